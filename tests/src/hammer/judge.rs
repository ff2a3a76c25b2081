//! What must hold of a volume after the work, whatever the order in which it happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::Dir;

use super::{BASE, Side};
use crate::deadline::{patience, wait_until};
use crate::harness::{Volume, run_ok};
use crate::manifest::{read_xattrs, sha256};

/// How many differences a failure lists.
const DIFFERENCES_SHOWN: usize = 12;

/// First inode of the trash: its directories belong to no user.
const FIRST_OF_TRASH: u64 = 0x7FFF_FFFF_1000_0000;

/// What one path shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    ino: u64,
    mode: u32,
    nlink: u64,
    len: u64,
    /// The inode that `..` of a directory's own listing names.
    parent: Option<u64>,
    /// A file's digest or a link's target.
    content: String,
    xattrs: BTreeMap<String, String>,
}

/// A tree as one mount shows it, by path relative to its root, which is "".
pub type Shape = BTreeMap<PathBuf, Shown>;

/// Walks the tree below `root`.
pub fn walk(root: &Path) -> Result<Shape> {
    let mut shape = Shape::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        let path = root.join(&relative);
        let found = show(&path).with_context(|| format!("{path:?}"))?;
        if found.parent.is_some() {
            // The work makes no deep paths: longer ones are a circle.
            let depth = relative.components().count();
            ensure!(depth < 1000, "{path:?}: a circle of directories");
            for entry in std::fs::read_dir(&path).with_context(|| format!("{path:?}"))? {
                open.push(relative.join(entry?.file_name()));
            }
        }
        let twice = shape.insert(relative, found).is_some();
        ensure!(!twice, "{path:?} is listed twice");
    }
    Ok(shape)
}

fn show(path: &Path) -> Result<Shown> {
    let found = path.symlink_metadata()?;
    let mut parent = None;
    let mut content = String::new();
    if found.is_dir() {
        for entry in Dir::read_from(File::open(path)?)? {
            let entry = entry?;
            if entry.file_name().to_bytes() == b".." {
                parent = Some(entry.ino());
            }
        }
        ensure!(parent.is_some(), "no '..' in the listing");
    } else if found.is_symlink() {
        let target = std::fs::read_link(path)?;
        content = String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned();
    } else {
        content = sha256(path)?;
    }
    Ok(Shown {
        ino: found.ino(),
        mode: found.mode(),
        nlink: found.nlink(),
        len: found.len(),
        parent,
        content,
        // The kernel keeps user attributes from symlinks.
        xattrs: if found.is_symlink() {
            BTreeMap::new()
        } else {
            read_xattrs(path)?
        },
    })
}

/// Waits until all mounts show the same below the base: what their caches kept has expired by then.
pub fn sides_agree(sides: &[Side]) -> Result<()> {
    let mut differences = vec!["never compared".to_owned()];
    let agreed = wait_until("all mounts show the same", patience(30), || {
        let mut shapes = Vec::new();
        for side in sides {
            // While a cache expires, a name may be listed that is gone: look again.
            match walk(&side.mount.path(BASE)) {
                Ok(shape) => shapes.push(shape),
                Err(error) => {
                    differences = vec![format!("{}: {error:#}", side.name)];
                    return Ok(false);
                }
            }
        }
        differences = shapes
            .windows(2)
            .flat_map(|pair| differ(&pair[0], &pair[1]))
            .collect();
        Ok(differences.is_empty())
    });
    differences.truncate(DIFFERENCES_SHOWN);
    agreed.with_context(|| format!("last differences:\n{}", differences.join("\n")))
}

fn differ(one: &Shape, two: &Shape) -> Vec<String> {
    let paths: BTreeSet<&PathBuf> = one.keys().chain(two.keys()).collect();
    paths
        .into_iter()
        .filter(|path| one.get(*path) != two.get(*path))
        .map(|path| format!("{path:?}: {:?}\n    and {:?}", one.get(path), two.get(path)))
        .collect()
}

/// Link counts, `..` and one name per directory, in a tree as a fresh mount shows it.
pub fn is_sound(shape: &Shape) -> Result<()> {
    let mut wrong = Vec::new();
    let mut names: BTreeMap<u64, Vec<&PathBuf>> = BTreeMap::new();
    let mut subdirectories: BTreeMap<&Path, u64> = BTreeMap::new();
    for (path, shown) in shape {
        names.entry(shown.ino).or_default().push(path);
        let Some(parent) = path.parent().filter(|_| shown.parent.is_some()) else {
            continue;
        };
        *subdirectories.entry(parent).or_default() += 1;
        let above = shape.get(parent).map(|above| above.ino);
        if above != shown.parent {
            wrong.push(format!(
                "{path:?}: '..' is {:?}, it lies in {above:?}",
                shown.parent
            ));
        }
    }
    for (path, shown) in shape {
        let paths = &names[&shown.ino];
        let expected = match shown.parent {
            Some(_) if paths.len() > 1 => {
                wrong.push(format!("one directory has the names {paths:?}"));
                continue;
            }
            Some(_) => 2 + subdirectories.get(path.as_path()).copied().unwrap_or(0),
            None => paths.len() as u64,
        };
        if shown.nlink != expected {
            wrong.push(format!(
                "{path:?}: nlink {}, expected {expected}",
                shown.nlink
            ));
        }
    }
    let count = wrong.len();
    wrong.truncate(DIFFERENCES_SHOWN);
    ensure!(
        count == 0,
        "{count} faults in the tree:\n{}",
        wrong.join("\n")
    );
    Ok(())
}

/// Space and inodes in use, by the volume's own counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    space: i64,
    inodes: i64,
}

impl Usage {
    /// As `sluice status` says.
    pub fn of(volume: &Volume) -> Result<Usage> {
        let text = run_ok(&mut volume.command(["status", "--json", &volume.meta_url])?)?;
        let status: serde_json::Value = serde_json::from_str(&text).context(text.clone())?;
        let field = |name: &str| {
            let found = find_number(&status, name);
            found.with_context(|| format!("no number {name} in {text}"))
        };
        Ok(Usage {
            space: field("used_space")?,
            inodes: field("used_inodes")?,
        })
    }

    /// What the tree adds to an empty volume, counted: files in units of 4 KiB, everything else one unit.
    pub fn recount(shape: &Shape) -> Usage {
        let inodes: BTreeMap<u64, &Shown> =
            shape.values().map(|shown| (shown.ino, shown)).collect();
        let units = |shown: &&Shown| {
            let is_file = shown.parent.is_none() && shown.mode & 0o170_000 == 0o100_000;
            if is_file {
                shown.len.div_ceil(4096).max(1)
            } else {
                1
            }
        };
        let units: u64 = inodes.values().map(units).sum();
        Usage {
            space: units as i64 * 4096,
            inodes: inodes.len() as i64,
        }
    }

    /// The difference to an earlier state.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            space: self.space - before.space,
            inodes: self.inodes - before.inodes,
        }
    }
}

fn find_number(value: &serde_json::Value, name: &str) -> Option<i64> {
    let object = value.as_object()?;
    let own = object
        .get(&name.replace('_', ""))
        .or_else(|| object.get(name));
    let camel: String = name
        .split('_')
        .map(|word| format!("{}{}", word[..1].to_uppercase(), &word[1..]))
        .collect();
    let own = own
        .or_else(|| object.get(&camel))
        .and_then(serde_json::Value::as_i64);
    own.or_else(|| object.values().find_map(|inner| find_number(inner, name)))
}

/// Every inode of which the store has a record is in the tree, and the other way round: nothing is cut off
/// in a circle, and nothing was forgotten. The volume must hold the tree and its root directory only.
pub fn nothing_unreachable(volume: &Volume, shape: &Shape) -> Result<()> {
    let mut reachable: BTreeSet<u64> = shape.values().map(|shown| shown.ino).collect();
    reachable.insert(1);
    let stored = stored_inodes(volume)?;
    let lost: Vec<&u64> = stored.difference(&reachable).collect();
    let missing: Vec<&u64> = reachable.difference(&stored).collect();
    ensure!(
        lost.is_empty() && missing.is_empty(),
        "inodes that no path leads to: {lost:?}; in the tree without a record: {missing:?}"
    );
    Ok(())
}

fn stored_inodes(volume: &Volume) -> Result<BTreeSet<u64>> {
    let all: Vec<u64> = match &volume.redis {
        Some(server) => {
            let mut connection = server.connection(1)?;
            let keys: Vec<String> = redis::cmd("KEYS").arg("i[0-9]*").query(&mut connection)?;
            keys.iter()
                .filter_map(|key| key[1..].parse().ok())
                .collect()
        }
        None => {
            let database = rusqlite::Connection::open(volume.sqlite_path()?)?;
            let mut statement = database.prepare("SELECT inode FROM jfs_node")?;
            let rows = statement.query_map([], |row| row.get::<_, i64>(0))?;
            rows.map(|row| row.map(i64::cast_unsigned))
                .collect::<rusqlite::Result<_>>()?
        }
    };
    Ok(all
        .into_iter()
        .filter(|ino| *ino < FIRST_OF_TRASH)
        .collect())
}
