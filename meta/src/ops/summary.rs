//! Totals of a tree: for `info`, `summary` and `quota`, and for directories that move between quotas.
//!
//! Fast: from the statistics of directories, listing only those with sub-directories. Strict: from every
//! entry. Hard links count once for each name, as in statistics and quotas. A directory that disappears on
//! the way counts as its entry alone. Nothing is atomic: what changes meanwhile is seen before or after.
//!
//! Round trips: for each directory one read and, unless it is without sub-directories, its listing (fast), or
//! its listing (strict); [`limits::SUMMARY_WIDTH`] directories at a time.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::task::Poll;

use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Item, Key, Scan};
use crate::error::EngineError;
use crate::limits;
use crate::quota::Usage;
use crate::types::{Attr, Dentry, FileKind, Ino, Name};

use super::rules;

/// How to add up a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// By the statistics of directories, if the volume keeps them.
    Fast,
    /// By every entry.
    Strict,
}

/// Totals of a tree, its top included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Bytes in regular files.
    pub length: u64,
    /// Bytes charged: multiples of 4096 for each name.
    pub size: u64,
    /// Names of everything but directories.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
}

impl Summary {
    /// Of one name; `None`: it dangles.
    pub(crate) fn of(attr: Option<&Attr>) -> Summary {
        let stat = rules::entry_stat(attr);
        let is_dir = attr.is_some_and(|attr| attr.kind == FileKind::Directory);
        Summary {
            length: stat.length.unsigned_abs(),
            size: stat.space.unsigned_abs(),
            files: u64::from(!is_dir),
            dirs: u64::from(is_dir),
        }
    }

    /// As usage of a quota, the top included.
    pub fn usage(&self) -> Usage {
        Usage {
            space: self.size.cast_signed(),
            inodes: self.files.saturating_add(self.dirs).cast_signed(),
        }
    }

    /// What is below the top of a directory: its quota's usage.
    pub fn usage_below(&self) -> Usage {
        let top = Usage {
            space: 4096,
            inodes: 1,
        };
        self.usage() - top
    }
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, more: Summary) {
        self.length = self.length.saturating_add(more.length);
        self.size = self.size.saturating_add(more.size);
        self.files = self.files.saturating_add(more.files);
        self.dirs = self.dirs.saturating_add(more.dirs);
    }
}

impl Meta {
    /// Totals of the tree at `ino`.
    pub async fn summary(&self, ino: Ino, walk: Walk) -> MetaResult<Summary> {
        let attr = self.getattr(ino).await?;
        let mut sum = Summary::of(Some(&attr));
        if attr.kind != FileKind::Directory {
            return Ok(sum);
        }
        let mut todo = vec![ino];
        while !todo.is_empty() {
            let wave = todo.split_off(todo.len().saturating_sub(limits::SUMMARY_WIDTH));
            let works = wave.into_iter().map(|dir| self.summary_of_dir(dir, walk));
            for part in gather(works).await {
                let (totals, dirs) = part?;
                sum += totals;
                todo.extend(dirs);
            }
        }
        Ok(sum)
    }

    /// Totals of a directory's entries, and those that are directories.
    async fn summary_of_dir(&self, dir: Ino, walk: Walk) -> MetaResult<(Summary, Vec<Ino>)> {
        let mut sum = Summary::default();
        let mut dirs = Vec::new();
        if walk == Walk::Strict || !self.shared.setting().dir_stats {
            self.each_entry(dir, true, |_, dentry, attr| {
                sum += Summary::of(attr.as_ref());
                if attr.is_some_and(|attr| attr.kind == FileKind::Directory) {
                    dirs.push(dentry.ino);
                }
            })
            .await?;
            return Ok((sum, dirs));
        }
        let Some(attr) = self.fetch(&[Key::Attr(dir)]).await?.attr()? else {
            return Ok((sum, dirs));
        };
        let stat = self.dir_stat(dir).await?;
        sum.length = stat.length.max(0).unsigned_abs();
        sum.size = stat.space.max(0).unsigned_abs();
        if attr.nlink <= 2 {
            sum.files = stat.inodes.max(0).unsigned_abs();
            return Ok((sum, dirs));
        }
        self.each_entry(dir, false, |_, dentry, _| {
            if dentry.kind == FileKind::Directory {
                sum.dirs += 1;
                dirs.push(dentry.ino);
            } else {
                sum.files += 1;
            }
        })
        .await?;
        Ok((sum, dirs))
    }

    /// Hands every entry of a directory to `take`, each name once.
    pub(crate) async fn each_entry(
        &self,
        parent: Ino,
        attrs: bool,
        mut take: impl FnMut(Name, Dentry, Option<Attr>),
    ) -> Result<(), EngineError> {
        let scan = Scan::Dir { parent, attrs };
        // Redis may answer an entry twice while it grows its table.
        let mut seen = HashSet::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
                .await?;
            for item in page.items {
                let Item::Entry { name, dentry, attr } = item else {
                    continue;
                };
                if seen.insert(name.clone()) {
                    take(name, dentry, attr);
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(()),
            }
        }
    }
}

/// Runs all of `works` side by side on this core; answers in their order.
pub(crate) async fn gather<T>(works: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut works: Vec<_> = works.map(|work| (Box::pin(work), None)).collect();
    poll_fn(|context| {
        let mut state = Poll::Ready(());
        for (work, answer) in &mut works {
            if answer.is_none() {
                match work.as_mut().poll(context) {
                    Poll::Ready(value) => *answer = Some(value),
                    Poll::Pending => state = Poll::Pending,
                }
            }
        }
        state
    })
    .await;
    works.into_iter().filter_map(|(_, answer)| answer).collect()
}
