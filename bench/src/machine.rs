//! On what it was measured: date, host, kernel, processors, versions, and the command line.
//!
//! What cannot be found out is said to be unknown; nothing here ends a run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;

/// Written into both files of a run.
#[derive(Serialize, Debug)]
pub(crate) struct Machine {
    /// UTC, YYYY-MM-DD.
    pub(crate) date: String,
    /// Its name, fit for a folder's.
    pub(crate) host: String,
    /// Release and build of the kernel.
    pub(crate) kernel: String,
    /// Model of the first processor.
    pub(crate) processor: String,
    /// Processors that this process may use.
    pub(crate) processors: usize,
    /// Memory, as the kernel says it.
    pub(crate) memory: String,
    /// The load average when the run began: others at work make numbers worse.
    pub(crate) load: String,
    /// Program and what it says of its version.
    pub(crate) versions: Vec<(String, String)>,
    /// Of the source that this program runs in, and whether files differ from it.
    pub(crate) commit: String,
    /// This program's command line, quoted for a shell.
    pub(crate) command_line: String,
}

impl Machine {
    /// Looks around.
    pub(crate) fn describe(programs: &[PathBuf]) -> Result<Machine> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let fio = PathBuf::from("fio");
        Ok(Machine {
            date: date(seconds / 86_400),
            host: folder_name(&first_line("/proc/sys/kernel/hostname")),
            kernel: first_line("/proc/version"),
            processor: field("/proc/cpuinfo", "model name"),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory: field("/proc/meminfo", "MemTotal"),
            load: first_line("/proc/loadavg"),
            versions: [&fio]
                .into_iter()
                .chain(programs)
                .map(|program| (program.display().to_string(), version(program)))
                .collect(),
            commit: commit(),
            command_line: std::env::args()
                .map(|argument| quote(&argument))
                .collect::<Vec<_>>()
                .join(" "),
        })
    }
}

/// Type of the file system that holds the directory, after `/proc/self/mounts`.
pub(crate) fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(point, _)| dir.starts_with(point))
        // Of mounts on the same point, the last one is on top.
        .max_by_key(|(point, _)| point.len())
        .map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

/// The value behind "NAME:" in a file of such lines.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map_or_else(
            || "unknown".to_owned(),
            |(_, value)| value.trim().to_owned(),
        )
}

fn output_of(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

fn version(program: &Path) -> String {
    output_of(program, &["--version"]).unwrap_or_else(|| "unknown".to_owned())
}

fn commit() -> String {
    let git = |arguments: &[&str]| output_of(Path::new("git"), arguments);
    let changes = ["status", "--porcelain", "--untracked-files=no"];
    match (git(&["rev-parse", "HEAD"]), git(&changes)) {
        (Some(commit), Some(changes)) if changes.is_empty() => commit,
        (Some(commit), _) => format!("{commit}, with local changes"),
        (None, _) => "unknown".to_owned(),
    }
}

fn folder_name(host: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    host.trim_start_matches('.')
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect()
}

/// For a POSIX shell.
fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// Year, month and day of a day since 1970 in the Gregorian calendar.
fn date(days: u64) -> String {
    let mut rest = days;
    let mut year = 1970;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (364, "1970-12-31"),
            (365, "1971-01-01"),
            // `date -u -d @951782400`: a leap year that a century divides.
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
    }

    #[test]
    fn arguments_survive_a_shell() {
        for (argument, expected) in [
            ("--target=a=/b:1,2", "--target=a=/b:1,2"),
            ("", "''"),
            ("two words", "'two words'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(quote(argument), expected);
        }
    }

    #[test]
    fn hosts_become_folder_names() {
        for (host, expected) in [("node-1.lan", "node-1.lan"), ("../a b", "_a_b")] {
            assert_eq!(folder_name(host), expected);
        }
    }

    #[test]
    fn the_mount_nearest_to_a_directory_counts() {
        assert_eq!(file_system(Path::new("/proc/self")), "proc");
    }
}
