//! A tree with everything a file system can hold, written through a mount and then known by heart.
//!
//! `Tree::write` makes files of every size class around the limits of the format (page, block, chunk),
//! sparse, overwritten, truncated and punched files, hard links, special files, symlinks, odd names, a
//! large directory, a deep one, xattrs, modes, owners and times. What it made is recorded as it goes;
//! `seal` adds what only the file system can choose (inode numbers, times). `verify` compares any other
//! view of the same tree: after a remount, through another mount, through another implementation.

mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::FileType;

use crate::content::Content;
use crate::manifest::read_xattrs;

/// How many differences a failure lists.
const DIFFERENCES_SHOWN: usize = 40;

/// How much of everything.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// Decides all random choices.
    pub seed: u64,
    /// Block size of the volume: sizes lie around its multiples.
    pub block_bytes: u64,
    /// Entries of the large directory.
    pub directory_entries: usize,
    /// Whether to write the files of around and above a chunk (64 MiB).
    pub chunk_sizes: bool,
    /// Whether removed files go to the trash: there they keep a link.
    pub trash: bool,
    /// Length of the longest xattr value.
    pub xattr_bytes: usize,
}

impl Default for TreeOptions {
    fn default() -> TreeOptions {
        TreeOptions {
            seed: 1,
            block_bytes: 4 << 20,
            directory_entries: 10_000,
            chunk_sizes: true,
            trash: false,
            xattr_bytes: 30_000,
        }
    }
}

/// One path of the tree. Hard links are nodes of their own that name the first path.
#[derive(Clone, Debug, Default)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    /// Regular files: what is in it.
    content: Option<Content>,
    /// Symlinks: where it points.
    target: Option<Vec<u8>>,
    /// Hard links: the path that was made first.
    first: Option<PathBuf>,
    xattrs: BTreeMap<String, String>,
    /// Modification time, where the generator set it.
    mtime: Option<(i64, i64)>,
    sealed: Option<Sealed>,
}

/// What the file system chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Sealed {
    ino: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

/// The record of a tree.
pub struct Tree {
    // By path relative to the tree's root; the root itself is "".
    nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    /// Writes the tree into the existing, empty directory `root`, and seals the record.
    pub fn write(root: &Path, options: &TreeOptions) -> Result<Tree> {
        let nodes =
            writer::write(root, options).with_context(|| format!("writing a tree, {options:?}"))?;
        let mut tree = Tree { nodes };
        tree.seal(root)?;
        Ok(tree)
    }

    /// How many paths it has.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether it has no paths.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The record of a copy: inodes of its own, also where this tree has hard links.
    pub fn copied(&self) -> Tree {
        let mut nodes = self.nodes.clone();
        for node in nodes.values_mut() {
            let first = node.first.take();
            if let Some(first) = first.and_then(|first| self.nodes.get(&first)) {
                *node = first.clone();
            }
            node.sealed = None;
        }
        Tree { nodes }
    }

    /// Checks the tree as it is now and remembers what the file system chose.
    fn seal(&mut self, root: &Path) -> Result<()> {
        self.verify(root).context("right after writing")?;
        for (relative, node) in &mut self.nodes {
            let found = std::fs::symlink_metadata(root.join(relative))?;
            node.sealed = Some(Sealed {
                ino: found.ino(),
                mtime: (found.mtime(), found.mtime_nsec()),
                ctime: (found.ctime(), found.ctime_nsec()),
            });
        }
        Ok(())
    }

    /// Compares the tree below `root` with the record, byte for byte; an error lists the differences.
    pub fn verify(&self, root: &Path) -> Result<()> {
        let mut differences = Vec::new();
        let listed = self.compare_listings(root, &mut differences)?;
        for (relative, node) in &self.nodes {
            if !relative.as_os_str().is_empty() && !listed.contains(relative) {
                continue;
            }
            match self.compare_node(root, relative, node) {
                Ok(found) => differences.extend(found),
                Err(error) => differences.push(format!("{relative:?}: {error:#}")),
            }
        }
        let count = differences.len();
        differences.truncate(DIFFERENCES_SHOWN);
        ensure!(
            count == 0,
            "{count} differences from what was written:\n{}",
            differences.join("\n")
        );
        Ok(())
    }

    fn compare_listings(
        &self,
        root: &Path,
        differences: &mut Vec<String>,
    ) -> Result<BTreeSet<PathBuf>> {
        let mut listed = BTreeSet::new();
        let mut open = vec![PathBuf::new()];
        while let Some(dir) = open.pop() {
            let entries = std::fs::read_dir(root.join(&dir)).with_context(|| format!("{dir:?}"))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("listing {dir:?}"))?;
                let path = dir.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    open.push(path.clone());
                }
                if !self.nodes.contains_key(&path) {
                    differences.push(format!("{path:?}: was never made"));
                }
                if !listed.insert(path.clone()) {
                    differences.push(format!("{path:?}: listed twice"));
                }
            }
        }
        for path in self
            .nodes
            .keys()
            .filter(|path| !path.as_os_str().is_empty())
        {
            if !listed.contains(path) {
                differences.push(format!("{path:?}: not listed"));
            }
        }
        Ok(listed)
    }

    fn compare_node(&self, root: &Path, relative: &Path, node: &Node) -> Result<Vec<String>> {
        let path = root.join(relative);
        let found = std::fs::symlink_metadata(&path)?;
        let first = node
            .first
            .as_ref()
            .and_then(|first| self.nodes.get(first))
            .unwrap_or(node);
        let mut differences = Vec::new();
        let mut differs = |field: &str, found: String, wanted: String| {
            if found != wanted {
                differences.push(format!("{relative:?}: {field} {found}, expected {wanted}"));
            }
        };
        differs(
            "mode",
            format!("{:o}", found.mode()),
            format!("{:o}", first.mode),
        );
        differs("owner", found.uid().to_string(), first.uid.to_string());
        differs("group", found.gid().to_string(), first.gid.to_string());
        differs("device", found.rdev().to_string(), first.rdev.to_string());
        differs(
            "nlink",
            found.nlink().to_string(),
            self.nlink(relative, node).to_string(),
        );
        differs(
            "xattrs",
            format!("{:?}", read_xattrs(&path)?),
            format!("{:?}", first.xattrs),
        );
        if let Some(mtime) = first.mtime {
            let found = (found.mtime(), found.mtime_nsec());
            differs("mtime", format!("{found:?}"), format!("{mtime:?}"));
        }
        if let Some(sealed) = node.sealed {
            let now = Sealed {
                ino: found.ino(),
                mtime: (found.mtime(), found.mtime_nsec()),
                ctime: (found.ctime(), found.ctime_nsec()),
            };
            differs("inode and times", format!("{now:?}"), format!("{sealed:?}"));
        }
        if let Some(target) = &node.target {
            let found = std::fs::read_link(&path)?;
            differs(
                "target",
                format!("{found:?}"),
                format!("{:?}", OsStr::from_bytes(target)),
            );
            differs(
                "size",
                found.as_os_str().len().to_string(),
                target.len().to_string(),
            );
        }
        if let Some(content) = &first.content {
            content.verify(&File::open(&path)?)?;
        }
        Ok(differences)
    }

    fn nlink(&self, relative: &Path, node: &Node) -> usize {
        if FileType::from_raw_mode(node.mode) == FileType::Directory {
            let is_subdirectory = |path: &Path, other: &Node| {
                path.parent() == Some(relative)
                    && FileType::from_raw_mode(other.mode) == FileType::Directory
            };
            // Children sort right behind their parent: no need to look at the whole tree.
            let below = self.nodes.range(relative.to_path_buf()..).skip(1);
            let below = below.take_while(|(path, _)| path.starts_with(relative));
            return 2 + below
                .filter(|(path, other)| is_subdirectory(path, other))
                .count();
        }
        let first = node.first.as_deref().unwrap_or(relative);
        let links = self
            .nodes
            .values()
            .filter(|other| other.first.as_deref() == Some(first));
        if node.first.is_none() && !self.has_links(relative) {
            1
        } else {
            1 + links.count()
        }
    }

    fn has_links(&self, first: &Path) -> bool {
        // Only the directory of hard links has any; a search of the whole tree per file would be slow.
        first.starts_with("links")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> TreeOptions {
        // A local file system may hold a block's worth of attributes only.
        TreeOptions {
            directory_entries: 50,
            chunk_sizes: false,
            xattr_bytes: 1000,
            ..TreeOptions::default()
        }
    }

    // The judge itself, on the file system of the machine: right trees pass, each kind of change is seen.
    #[test]
    fn a_tree_on_the_local_file_system_verifies_and_changes_are_found() {
        let dir = tempfile::tempdir().expect("scratch");
        let root = dir.path();
        let tree = Tree::write(root, &small()).expect("written");
        tree.verify(root).expect("unchanged");
        let finds = |word: &str| {
            let error = tree.verify(root).expect_err("changed").to_string();
            assert!(error.contains(word), "{error}");
        };
        std::fs::write(root.join("extra"), b"").expect("write");
        finds("was never made");
        std::fs::remove_file(root.join("extra")).expect("remove");
        std::fs::rename(root.join("sizes/s4097"), root.join("sizes/renamed")).expect("rename");
        finds("not listed");
        std::fs::rename(root.join("sizes/renamed"), root.join("sizes/s4097")).expect("rename");
        finds("inode and times");
        std::fs::write(root.join("sizes/s511"), b"short").expect("write");
        finds("length 5, expected 511");
        std::fs::remove_file(root.join("links/second")).expect("remove");
        finds("nlink 3, expected 4");
    }
}
