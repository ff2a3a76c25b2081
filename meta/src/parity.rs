#![doc = include_str!("../PARITY.md")]

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::Path;

    const TABLE: &str = include_str!("../PARITY.md");

    /// Names of all test functions in the Rust files below `directory`: those marked as tests, and those a macro
    /// runs on both engines, which take the engine.
    fn add_tests(directory: &Path, names: &mut HashSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add_tests(&path, names);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                add_tests_of(&fs::read_to_string(&path).unwrap(), names);
            }
        }
    }

    fn add_tests_of(source: &str, names: &mut HashSet<String>) {
        let mut marked = false;
        for line in source.lines().map(str::trim) {
            match line
                .strip_prefix("fn ")
                .and_then(|rest| rest.split_once('('))
            {
                Some((name, rest)) => {
                    if marked || rest.starts_with("engine: Engine) -> Result<()>") {
                        names.insert(name.to_owned());
                    }
                    marked = false;
                }
                None => marked |= line == "#[test]",
            }
        }
    }

    /// The name of each row with what it says in backticks in its last column.
    fn rows() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
        TABLE
            .lines()
            .filter(|line| line.starts_with("| "))
            .filter(|line| !line.starts_with("| Row "))
            .map(|line| {
                let columns: Vec<&str> = line.trim_matches('|').split('|').collect();
                assert_eq!(columns.len(), 4, "{line}");
                (
                    columns[0].trim(),
                    columns[3].split('`').skip(1).step_by(2).collect(),
                )
            })
    }

    #[test]
    fn every_test_named_exists() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut names = HashSet::new();
        for directory in ["meta/src", "meta/tests", "datapath/src", "tests/tests"] {
            add_tests(&repository.join(directory), &mut names);
        }
        let mut count = 0;
        for (row, tests) in rows() {
            assert!(!tests.is_empty(), "{row}: no test is named");
            for test in tests {
                assert!(names.contains(test), "{row}: no test is called {test}");
            }
            count += 1;
        }
        assert!(count > 40, "the tables have {count} rows");
    }

    #[test]
    fn only_tests_count_as_such() {
        let source =
            "#[test]\n#[ignore]\nfn a() {}\nfn b() {}\nfn c(engine: Engine) -> Result<()> {}";
        let mut names = HashSet::new();
        add_tests_of(source, &mut names);
        assert_eq!(names, HashSet::from(["a".to_owned(), "c".to_owned()]));
    }
}
