//! `restore`: putting what was removed in an hour back together.
//!
//! The trash is flat: a removed tree is a row of entries in an hour directory, each named after the inode of
//! its directory. Rebuilding moves the entries whose directory is in the same hour directory back below it;
//! putting back moves every entry to its directory, wherever that is. Nothing is replaced
//! ([`RenameMode::Restore`]). A name that had to be cut to fit into the trash comes back cut.
//!
//! Statistics of directories are written at the start and at the end.
//!
//! Memory: the inodes of the hour's directories when rebuilding; entries are read page by page.

use std::collections::HashSet;

use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Item, Key, Scan};
use crate::error::MetaError;
use crate::limits;
use crate::ops::together::Together;
use crate::ops::{Caller, Rename, RenameMode, trash};
use crate::types::{FileKind, Ino, Name};

/// Which entries are moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestoreScope {
    /// Those whose directory is in the same hour of the trash.
    Rebuild,
    /// All.
    PutBack,
}

/// What became of the entries of an hour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Moved.
    pub moved: u64,
    /// Their directory is elsewhere: only putting back moves them.
    pub skipped: u64,
    /// There is something of that name.
    pub conflicts: u64,
    /// Could not be moved, for the reason that was logged.
    pub failed: u64,
}

/// Whether this is the name of an hour: `YYYY-MM-DD-HH`.
pub fn is_hour(name: &[u8]) -> bool {
    trash::hour_of(name).is_some()
}

impl Meta {
    /// Restores the entries of an hour directory of the trash, `width` at a time. `NotFound` if there is none
    /// of that name.
    pub async fn restore_hour(
        &self,
        hour: &[u8],
        scope: RestoreScope,
        width: usize,
    ) -> MetaResult<Restored> {
        self.check_writable()?;
        if !is_hour(hour) {
            return Err(MetaError::Invalid("an hour is YYYY-MM-DD-HH, in UTC"));
        }
        let (dir, _) = self.lookup(Ino::TRASH, hour).await?;
        // What is pending about directories that were removed would count against them once they are back.
        self.flush_dir_stats().await?;
        let parents = match scope {
            RestoreScope::Rebuild => Some(self.directories_of(dir).await?),
            RestoreScope::PutBack => None,
        };
        let scan = Scan::Dir {
            parent: dir,
            attrs: false,
        };
        let mut restored = Restored::default();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
                .await?;
            let mut names: Vec<Name> = page.items.into_iter().filter_map(entry_name).collect();
            // Neighbours have the same directory: shuffled, those in flight fight less over its record.
            fastrand::shuffle(&mut names);
            let wanted = |parent: Ino| parents.as_ref().is_none_or(|it| it.contains(&parent));
            self.restore_page(dir, names, &wanted, width, &mut restored)
                .await;
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        self.flush_dir_stats().await?;
        Ok(restored)
    }

    async fn restore_page(
        &self,
        dir: Ino,
        names: Vec<Name>,
        wanted: &dyn Fn(Ino) -> bool,
        width: usize,
        restored: &mut Restored,
    ) {
        let mut names = names.into_iter();
        let mut running = Together::new();
        loop {
            while running.len() < width.max(1)
                && let Some(name) = names.next()
            {
                match trash::origin(&name) {
                    Some((parent, _)) if !wanted(parent) => restored.skipped += 1,
                    _ => running.push(async move {
                        let moved = self.restore_entry(dir, &name).await;
                        (name, moved)
                    }),
                }
            }
            let Some((name, moved)) = running.next().await else {
                return;
            };
            match moved {
                Ok(()) => restored.moved += 1,
                // Moved before: Redis may show an entry twice while it changes its table.
                Err(MetaError::NotFound) if self.is_gone(dir, &name).await => {}
                Err(MetaError::Exists) => {
                    tracing::warn!(name = %name.escape_ascii(), "not restored: there is something of that name");
                    restored.conflicts += 1;
                }
                Err(error) => {
                    tracing::warn!(name = %name.escape_ascii(), %error, "not restored");
                    restored.failed += 1;
                }
            }
        }
    }

    async fn is_gone(&self, dir: Ino, name: &Name) -> bool {
        let (parent, name) = (dir, name.clone());
        match self.fetch(&[Key::Dentry { parent, name }]).await {
            Ok(mut answers) => matches!(answers.dentry(), Ok(None)),
            Err(_) => false,
        }
    }

    async fn restore_entry(&self, dir: Ino, name: &Name) -> MetaResult<()> {
        let (to_parent, to_name) =
            trash::origin(name).ok_or(MetaError::Invalid("its name does not say where it was"))?;
        let rename = Rename {
            from_parent: dir,
            from_name: name.clone(),
            to_parent,
            to_name: name.slice_ref(to_name),
            mode: RenameMode::Restore,
        };
        self.rename(&Caller::ROOT, &rename).await.map(drop)
    }

    /// Inodes of the directories in an hour directory.
    async fn directories_of(&self, dir: Ino) -> MetaResult<HashSet<Ino>> {
        let scan = Scan::Dir {
            parent: dir,
            attrs: false,
        };
        let mut found = HashSet::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
                .await?;
            found.extend(page.items.into_iter().filter_map(|item| match item {
                Item::Entry { dentry, .. } if dentry.kind == FileKind::Directory => {
                    Some(dentry.ino)
                }
                _ => None,
            }));
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(found),
            }
        }
    }
}

fn entry_name(item: Item) -> Option<Name> {
    match item {
        Item::Entry { name, .. } if !name.is_empty() => Some(name),
        _ => None,
    }
}
