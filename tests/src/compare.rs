//! Two trees, path by path: for copies made by other programs (tar, git, cp).

use std::fs::{File, Metadata};
use std::io::{BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// How many differences a failure lists.
const DIFFERENCES_SHOWN: usize = 40;

/// Compares names, types, permissions, link targets and contents of all below two directories; an error
/// lists the differences.
pub fn same_trees(left: &Path, right: &Path) -> Result<()> {
    let mut differences = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        let names = names_of(&left.join(&dir))?;
        if names != names_of(&right.join(&dir))? {
            differences.push(format!("{dir:?}: different names"));
            continue;
        }
        for name in names {
            let path = dir.join(name);
            let (a, b) = (left.join(&path), right.join(&path));
            let (meta_a, meta_b) = (a.symlink_metadata()?, b.symlink_metadata()?);
            if let Some(difference) = difference(&a, &meta_a, &b, &meta_b)? {
                differences.push(format!("{path:?}: {difference}"));
            } else if meta_a.is_dir() {
                open.push(path);
            }
        }
    }
    let count = differences.len();
    differences.truncate(DIFFERENCES_SHOWN);
    ensure!(
        count == 0,
        "{} and {} differ in {count} places:\n{}",
        left.display(),
        right.display(),
        differences.join("\n")
    );
    Ok(())
}

fn names_of(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name()))
        .collect();
    let mut names = entries?;
    names.sort();
    Ok(names)
}

fn difference(a: &Path, meta_a: &Metadata, b: &Path, meta_b: &Metadata) -> Result<Option<String>> {
    if meta_a.mode() != meta_b.mode() {
        return Ok(Some(format!(
            "modes {:o} and {:o}",
            meta_a.mode(),
            meta_b.mode()
        )));
    }
    if meta_a.is_symlink() && std::fs::read_link(a)? != std::fs::read_link(b)? {
        return Ok(Some("different targets".into()));
    }
    if meta_a.is_file() && (meta_a.len() != meta_b.len() || !same_bytes(a, b)?) {
        return Ok(Some("different contents".into()));
    }
    Ok(None)
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let mut a = BufReader::new(File::open(a)?).bytes();
    let mut b = BufReader::new(File::open(b)?).bytes();
    loop {
        match (a.next().transpose()?, b.next().transpose()?) {
            (None, None) => return Ok(true),
            (left, right) if left != right => return Ok(false),
            _ => {}
        }
    }
}
