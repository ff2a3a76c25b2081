//! Tables and numbers as JuiceFS's commands print them.

/// Rows under a heading, in a frame; the first column to the left, the others to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let rule: String = widths
        .iter()
        .map(|width| format!("+{}", "-".repeat(width + 2)))
        .collect();
    let rule = format!("{rule}+\n");
    let mut out = rule.clone();
    for (number, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = match (number, column) {
                (0, _) => format!("{cell:^width$}"),
                (_, 0) => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            };
            out.push_str(&format!("| {cell} "));
        }
        out.push_str("|\n");
        if number == 0 {
            out.push_str(&rule);
        }
    }
    out + &rule
}

/// Rows as comma-separated values, quoted where needed.
pub fn csv(rows: &[Vec<String>]) -> String {
    let cell = |cell: &String| match cell.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    };
    let line = |row: &Vec<String>| row.iter().map(cell).collect::<Vec<_>>().join(",") + "\n";
    rows.iter().map(line).collect()
}

/// Bytes with a binary unit: one digit after the point below 10, none above.
pub fn ibytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let unit = (bytes.ilog2() / 10) as usize;
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    let value = (value * 10.0 + 0.5).floor() / 10.0;
    match value < 10.0 {
        true => format!("{value:.1} {}", UNITS[unit]),
        false => format!("{value:.0} {}", UNITS[unit]),
    }
}

/// A number with commas between thousands.
pub fn comma(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if number < 0 { format!("-{out}") } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_juicefs_shows_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (4096 * 3, "12 KiB"),
            (9_961_472, "9.5 MiB"),
            (10 << 30, "10 GiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(ibytes(bytes), text);
        }
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-1_234_567, "-1,234,567"),
        ] {
            assert_eq!(comma(number), text);
        }
    }

    #[test]
    fn tables_and_values() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let rows = [row(["Path", "Used"]), row(["/a,b", "4.0 KiB"])];
        let shown = "+------+---------+\n| Path |  Used   |\n+------+---------+\n| /a,b | 4.0 KiB |\n+------+---------+\n";
        assert_eq!(table(&rows), shown);
        assert_eq!(csv(&rows), "Path,Used\n\"/a,b\",4.0 KiB\n");
        assert_eq!(csv(&[row(["a\"b", ""])]), "\"a\"\"b\",\n");
    }
}
