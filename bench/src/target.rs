//! A directory to measure and the processes that serve it.
//!
//! The directory itself is left alone: all work is done in a fresh directory below it, which is removed in the end.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

/// `NAME=DIR[:PID,...]` on the command line.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    /// What the tables call it.
    pub(crate) name: String,
    /// An existing directory on the file system to measure.
    pub(crate) dir: PathBuf,
    /// All processes that serve it, a database included; none for a file system of the kernel's.
    pub(crate) servers: Vec<u32>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (name, place) = text
            .split_once('=')
            .filter(|(name, place)| !name.is_empty() && !place.is_empty())
            .ok_or_else(|| format!("{text:?} is not NAME=DIR[:PID,...]"))?;
        let (dir, servers) = match place.rsplit_once(':') {
            Some((dir, pids)) if !dir.is_empty() => (dir, parse_pids(pids)?),
            _ => (place, Vec::new()),
        };
        Ok(Target {
            name: name.to_owned(),
            dir: PathBuf::from(dir),
            servers,
        })
    }
}

fn parse_pids(text: &str) -> Result<Vec<u32>, String> {
    text.split(',')
        .map(|pid| match pid.parse() {
            Ok(pid) if pid > 0 => Ok(pid),
            _ => Err(format!("{pid:?} is no process id")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_directories_and_processes_are_told_apart() {
        let check = |text: &str, expected: Option<(&str, &str, &[u32])>| {
            let expected = expected.map(|(name, dir, servers)| Target {
                name: name.to_owned(),
                dir: PathBuf::from(dir),
                servers: servers.to_vec(),
            });
            assert_eq!(text.parse::<Target>().ok(), expected, "{text}");
        };
        check("ext4=/srv", Some(("ext4", "/srv", &[])));
        check("sluice=/mnt/a:17", Some(("sluice", "/mnt/a", &[17])));
        check("both=m:17,4", Some(("both", "m", &[17, 4])));
        check("odd=/mnt/a:b:9", Some(("odd", "/mnt/a:b", &[9])));
        check("/srv", None);
        check("=/srv", None);
        check("x=", None);
        check("x=/srv:", None);
        check("x=/srv:0", None);
        check("x=/srv:12,y", None);
    }
}
