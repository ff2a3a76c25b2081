//! `summary`: the totals of a tree, level by level, the largest entries first.
//!
//! Levels that are shown are listed with attributes; what is below them is added up as
//! [`Meta::summary`] does.

use std::pin::Pin;

use crate::client::{Meta, MetaResult};
use crate::limits;
use crate::ops::summary::{Summary, Walk, gather};
use crate::types::{Attr, FileKind, Ino};

/// Deepest level that is shown.
pub const DEPTH_MAX: u8 = 10;
/// Most entries of a directory that are shown.
pub const ENTRIES_MAX: usize = 100;

/// What to show of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Levels below the top, at most [`DEPTH_MAX`].
    pub depth: u8,
    /// Entries of each directory, at most [`ENTRIES_MAX`]; the rest is one line.
    pub entries: usize,
    /// How to add up what is below.
    pub walk: Walk,
}

/// A tree with its totals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// From where the walk began; directories without a slash at the end.
    pub path: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Totals, itself included.
    pub totals: Summary,
    /// Entries, the largest first.
    pub children: Vec<Tree>,
}

/// The tree at `ino`, which is called `path`.
pub async fn tree(meta: &Meta, ino: Ino, path: &str, shape: Shape) -> MetaResult<Tree> {
    let attr = meta.getattr(ino).await?;
    let shape = Shape {
        depth: shape.depth.min(DEPTH_MAX),
        entries: shape.entries.min(ENTRIES_MAX),
        ..shape
    };
    grow(meta, ino, Some(attr), path.to_owned(), shape).await
}

type Growing<'a> = Pin<Box<dyn Future<Output = MetaResult<Tree>> + 'a>>;

fn grow(meta: &Meta, ino: Ino, attr: Option<Attr>, path: String, shape: Shape) -> Growing<'_> {
    Box::pin(async move {
        let is_dir = attr.is_some_and(|attr| attr.kind == FileKind::Directory);
        let mut tree = Tree {
            path,
            is_dir,
            totals: Summary {
                size: 4096,
                dirs: 1,
                ..Summary::default()
            },
            children: Vec::new(),
        };
        if shape.depth == 0 || !is_dir {
            match meta.summary(ino, shape.walk).await {
                Ok(totals) => tree.totals = totals,
                // Removed on the way: its entry is all there was.
                Err(crate::error::MetaError::NotFound) => {}
                Err(error) => return Err(error),
            }
            return Ok(tree);
        }
        let mut dirs = Vec::new();
        let base = tree.path.trim_end_matches('/').to_owned();
        let children = &mut tree.children;
        meta.each_entry(ino, true, |name, dentry, attr| {
            let path = format!("{base}/{}", String::from_utf8_lossy(&name));
            if attr
                .as_ref()
                .is_some_and(|it| it.kind == FileKind::Directory)
            {
                dirs.push((dentry.ino, attr, path));
            } else {
                children.push(Tree {
                    path,
                    is_dir: false,
                    totals: Summary::of(attr.as_ref()),
                    children: Vec::new(),
                });
            }
        })
        .await?;
        let below = Shape {
            depth: shape.depth - 1,
            ..shape
        };
        while !dirs.is_empty() {
            let wave = dirs.split_off(dirs.len().saturating_sub(limits::SUMMARY_WIDTH));
            let works = wave
                .into_iter()
                .map(|(ino, attr, path)| grow(meta, ino, attr, path, below));
            for child in gather(works).await {
                tree.children.push(child?);
            }
        }
        tree.add_up(shape.entries);
        Ok(tree)
    })
}

impl Tree {
    /// Adds the children to the totals and keeps the `most` largest; the others become one line.
    fn add_up(&mut self, most: usize) {
        for child in &self.children {
            self.totals += child.totals;
        }
        self.children.sort_by(|one, other| {
            let by_size = other.totals.size.cmp(&one.totals.size);
            by_size.then_with(|| one.path.cmp(&other.path))
        });
        if self.children.len() > most {
            let mut rest = Tree {
                path: format!("{}/...", self.path.trim_end_matches('/')),
                is_dir: false,
                totals: Summary::default(),
                children: Vec::new(),
            };
            for child in self.children.drain(most..) {
                rest.totals += child.totals;
            }
            self.children.push(rest);
        }
    }
}
