//! A whole path in one round trip: for `--subdir` and tools, which have no kernel to walk for them.
//!
//! Symlinks are not followed: one in the middle of a path is the error [`MetaError::SymlinkInPath`], at its end it
//! is the answer. `.` and empty components mean nothing; `..` takes the component before it back, which must be
//! a directory all the same, and stays where it is at the start of the walk. In the root, `.trash` is the trash.
//! Where case does not matter the walk goes on name by name from where it ended. Permissions are not looked at.

use crate::client::{Meta, MetaResult};
use crate::engine::Key;
use crate::error::MetaError;
use crate::limits::PATH_BYTES_MAX;
use crate::ops::NameMatch;
use crate::types::{Attr, FileKind, Ino, Name};

use super::{names, rules};

/// What a walk must end at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Anything,
    Directory,
}

/// A walk that the store does at once.
#[derive(PartialEq, Eq, Debug)]
struct Walk {
    from: Ino,
    names: Vec<Name>,
    end: End,
}

impl Walk {
    fn new(start: Ino, names: &[Name], end: End) -> Walk {
        let (from, names) = match names.split_first() {
            Some((first, rest)) if start == Ino::ROOT && **first == *names::TRASH => {
                (Ino::TRASH, rest)
            }
            _ => (start, names),
        };
        Walk {
            from,
            names: names.to_vec(),
            end,
        }
    }
}

impl Meta {
    /// The inode that `path` leads to from the root; `/` and the empty path are the root itself.
    pub async fn resolve(&self, path: &[u8]) -> MetaResult<(Ino, Attr)> {
        self.resolve_from(Ino::ROOT, path).await
    }

    /// The inode that `path` leads to from directory `start`, above which it does not get.
    pub async fn resolve_from(&self, start: Ino, path: &[u8]) -> MetaResult<(Ino, Attr)> {
        let walks = walks(start, path)?;
        let keys: Vec<Key> = walks
            .iter()
            .flat_map(|walk| {
                let (from, names) = (walk.from, walk.names.clone());
                [Key::Attr(from), Key::Path { from, names }]
            })
            .collect();
        let mut answers = self.fetch(&keys).await?;
        let mut end = None;
        for walk in &walks {
            let (first, steps) = (answers.attr()?, answers.path()?);
            let first = match first {
                Some(attr) => attr,
                // Root and trash exist without a record.
                None => self.getattr(walk.from).await?,
            };
            end = Some(self.walked(walk, first, steps).await?);
        }
        end.ok_or(MetaError::NotFound)
    }

    /// Where a walk ends, of which the store did `steps`.
    async fn walked(
        &self,
        walk: &Walk,
        start: Attr,
        steps: Vec<(Ino, Attr)>,
    ) -> MetaResult<(Ino, Attr)> {
        let done = steps.len();
        let mut at = steps.into_iter().next_back().unwrap_or((walk.from, start));
        for name in walk.names.get(done..).unwrap_or_default() {
            check_middle(&at.1)?;
            if self.shared.options.names == NameMatch::Exact {
                return Err(MetaError::NotFound);
            }
            at = self.lookup(at.0, name).await?;
        }
        if walk.end == End::Directory {
            check_middle(&at.1)?;
        }
        Ok(at)
    }
}

/// Only directories have something below them.
fn check_middle(attr: &Attr) -> MetaResult<()> {
    if attr.kind == FileKind::Symlink {
        return Err(MetaError::SymlinkInPath);
    }
    rules::directory(Some(attr.clone())).map(drop)
}

/// The walks that together prove and answer `path`: one for each `..`, which needs what is before it to be a
/// directory, and the last for the path itself.
fn walks(start: Ino, path: &[u8]) -> MetaResult<Vec<Walk>> {
    if path.len() > PATH_BYTES_MAX {
        return Err(MetaError::NameTooLong);
    }
    let mut walks = Vec::new();
    let mut names: Vec<Name> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if !names.is_empty() {
                    walks.push(Walk::new(start, &names, End::Directory));
                }
                names.pop();
            }
            name => names.push(names::checked(name)?),
        }
    }
    walks.push(Walk::new(start, &names, End::Anything));
    Ok(walks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(from: Ino, names: &[&str], end: End) -> Walk {
        let names = names
            .iter()
            .map(|name| Name::copy_from_slice(name.as_bytes()));
        Walk {
            from,
            names: names.collect(),
            end,
        }
    }

    #[test]
    fn paths_become_walks() {
        use End::{Anything, Directory};
        let root = Ino::ROOT;
        for (path, expected) in [
            ("", vec![walk(root, &[], Anything)]),
            ("//./", vec![walk(root, &[], Anything)]),
            ("a//b/.", vec![walk(root, &["a", "b"], Anything)]),
            ("../../a", vec![walk(root, &["a"], Anything)]),
            (
                "/a/../b",
                vec![walk(root, &["a"], Directory), walk(root, &["b"], Anything)],
            ),
            (
                "a/b/../..",
                vec![
                    walk(root, &["a", "b"], Directory),
                    walk(root, &["a"], Directory),
                    walk(root, &[], Anything),
                ],
            ),
            (".trash/x", vec![walk(Ino::TRASH, &["x"], Anything)]),
            ("a/.trash", vec![walk(root, &["a", ".trash"], Anything)]),
        ] {
            assert_eq!(walks(root, path.as_bytes()).unwrap(), expected, "{path}");
        }
        assert_eq!(
            walks(Ino(7), b".trash").unwrap(),
            [walk(Ino(7), &[".trash"], Anything)]
        );
        let long = vec![b'/'; PATH_BYTES_MAX + 1];
        assert!(matches!(walks(root, &long), Err(MetaError::NameTooLong)));
        assert!(walks(root, &[b'x'; 256]).is_err());
        assert!(walks(root, b"a\0b").is_err());
    }
}
