//! Emptying the trash of what is older than the volume keeps it.
//!
//! An hour directory goes when its hour and [`limits::TRASH_GRACE_HOURS`] more are [`Setting::trash_days`]
//! days old: its entries past the trash, then itself. Names that are no hours are nobody's business here and
//! stay. Clients agree on who does it by [`Counter::LastCleanupTrash`], as JuiceFS clients do.
//!
//! [`Setting::trash_days`]: crate::volume::Setting::trash_days

use std::cell::Cell;

use crate::client::{Meta, MetaResult};
use crate::engine::{Counter, Engine, Item, Key, Scan};
use crate::error::MetaError;
use crate::limits;
use crate::ops::credentials::Credentials;
use crate::ops::remove_tree::{TreeEnd, TreeRemoval, TreeWatch};
use crate::ops::{Disposal, Removed, trash};
use crate::types::{Dentry, FileKind, Ino, Name};

/// Files that a job let go of, on their way to whoever deletes data.
pub trait FileSink {
    /// The data of this file may be deleted.
    fn deleted(&self, file: super::DeletedFile);
}

/// What emptying the trash came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    /// Entries removed, hour directories included.
    pub entries: u64,
    /// Hour directories removed.
    pub hours: u64,
}

/// Passes on what a removal lets go of, until the job's time is over.
pub(super) struct Reaping<'a> {
    meta: &'a Meta,
    sink: &'a dyn FileSink,
    until: i64,
    pub(super) entries: Cell<u64>,
}

impl<'a> Reaping<'a> {
    pub(super) fn new(meta: &'a Meta, sink: &'a dyn FileSink) -> Reaping<'a> {
        Reaping {
            meta,
            sink,
            until: meta.now().sec.saturating_add(limits::JOB_BUDGET),
            entries: Cell::new(0),
        }
    }
}

impl TreeWatch for Reaping<'_> {
    fn removed(&self, removed: &Removed) {
        self.entries.set(self.entries.get() + 1);
        if let Some(length) = removed.deleted {
            let ino = removed.ino;
            self.sink.deleted(super::DeletedFile { ino, length });
        }
    }

    fn stopped(&self) -> bool {
        self.meta.now().sec > self.until
    }
}

impl Meta {
    /// Whether this client is to empty the trash now, and to look at delayed slices: no client has within the
    /// last [`limits::CLEAN_UP_PERIOD`] seconds.
    pub async fn take_trash_job(&self) -> MetaResult<bool> {
        self.check_writable()?;
        self.take_job(Counter::LastCleanupTrash, limits::CLEAN_UP_PERIOD)
            .await
    }

    /// Removes from the trash what is older than the volume keeps it. Files are passed to `sink` as they go;
    /// those it does not take are found by [`Meta::collect_deleted_files`].
    pub async fn expire_trash(&self, sink: &dyn FileSink) -> MetaResult<Expired> {
        let days = i64::from(self.shared.setting().trash_days);
        let hour = self.now().sec.div_euclid(3600);
        // Hours are whole: one that began before now - (24 days + 2) h began before this hour's edge, or at it
        // with the rest of this hour passed since.
        let partial = i64::from(self.now().sec.rem_euclid(3600) != 0);
        let edge = hour - (24 * days + limits::TRASH_GRACE_HOURS) + partial;
        self.empty_trash_before(edge, sink).await
    }

    /// Removes the hour directories of the trash whose hour (since the epoch) is less than `edge`.
    pub async fn empty_trash_before(&self, edge: i64, sink: &dyn FileSink) -> MetaResult<Expired> {
        self.check_writable()?;
        let reaping = Reaping::new(self, sink);
        let how = TreeRemoval {
            who: &Credentials::ROOT,
            disposal: Disposal::Delete,
            width: limits::BACKGROUND_WIDTH,
            batch: limits::BACKGROUND_BATCH,
            watch: &reaping,
        };
        let mut hours = 0;
        for (name, ino) in self.trash_hours_before(edge).await? {
            if self.empty_tree(ino, &how).await? == TreeEnd::Stopped {
                break;
            }
            match self.remove_trash_hour(name).await {
                Ok(()) => {
                    hours += 1;
                    reaping.entries.set(reaping.entries.get() + 1);
                }
                // Another client was as fast; or something came in that belongs there no more than the rest,
                // and goes next time.
                Err(MetaError::NotFound | MetaError::NotEmpty) => {}
                Err(error) => return Err(error),
            }
        }
        let entries = reaping.entries.get();
        Ok(Expired { entries, hours })
    }

    /// Hour directories before `edge`, oldest first: at most one for each hour since the trash was last
    /// emptied.
    async fn trash_hours_before(&self, edge: i64) -> MetaResult<Vec<(Name, Ino)>> {
        let mut hours = std::collections::BTreeMap::new();
        if self
            .fetch(&[Key::Attr(Ino::TRASH)])
            .await?
            .attr()?
            .is_none()
        {
            return Ok(Vec::new());
        }
        let scan = Scan::Dir {
            parent: Ino::TRASH,
            attrs: false,
        };
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
                .await?;
            for item in page.items {
                let Item::Entry { name, dentry, .. } = item else {
                    continue;
                };
                match trash::hour_of(&name).filter(|_| is_hour(dentry)) {
                    Some(hour) if hour < edge => drop(hours.insert(hour, (name, dentry.ino))),
                    Some(_) => {}
                    None => {
                        let name = name.escape_ascii();
                        tracing::warn!(%name, "an entry of the trash is no hour directory and stays");
                    }
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(hours.into_values().collect()),
            }
        }
    }
}

fn is_hour(dentry: Dentry) -> bool {
    dentry.kind == FileKind::Directory && dentry.ino > Ino::TRASH
}
