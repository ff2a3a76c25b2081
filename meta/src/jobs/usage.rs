//! Directory statistics: this core's pending changes go to the store, and what is missing there is recounted.
//!
//! Operations note changes in memory ([`Meta::note_dir_stat`]), so that they do not all write the statistics
//! of a hot directory. A crash loses what was noted within a second; a change noted on another core or client
//! while its directory is being recounted may count twice. Both are drift that `juicefs fsck --sync-dir-stat`
//! repairs, as JuiceFS's own.
//!
//! Round trips: one commit for [`limits::DIR_STAT_BATCH`] directories; a recount reads the directory, lists it
//! and commits, and begins again if the directory changed meanwhile.

use std::collections::HashMap;

use crate::client::{Meta, MetaResult};
use crate::engine::{AttrFields, Check, Engine, Key, Record, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::ops::rules;
use crate::types::{DirStat, FileKind, Ino};

/// Listings of a directory that keeps changing before its count is taken as it is.
const RECOUNTS_MAX: u32 = 3;

impl Meta {
    /// Writes the pending changes of this core; answers to how many directories. What could not be written
    /// stays pending. Without statistics in the volume nothing is pending any more.
    pub async fn flush_dir_stats(&self) -> MetaResult<usize> {
        let mut pending = std::mem::take(&mut *self.dir_stats.borrow_mut());
        if !self.shared.setting().dir_stats {
            return Ok(0);
        }
        pending.retain(|_, delta| *delta != DirStat::default());
        let flushed = self.flush_batches(&mut pending).await;
        self.keep_pending(pending);
        flushed
    }

    /// Writes `pending` and removes from it what is written.
    async fn flush_batches(&self, pending: &mut HashMap<Ino, DirStat>) -> MetaResult<usize> {
        let mut flushed = 0;
        while !pending.is_empty() {
            let batch: Vec<(Ino, DirStat)> = pending
                .iter()
                .take(limits::DIR_STAT_BATCH)
                .map(|(&dir, &delta)| (dir, delta))
                .collect();
            let add = |&(ino, delta): &(Ino, DirStat)| Write::AddDirStat { ino, delta };
            let txn = Txn {
                checks: Vec::new(),
                writes: batch.iter().map(add).collect(),
            };
            let present = match self.commit(txn).await {
                Ok(results) => results.unwrap_or_default(),
                // Adding again could count twice, giving up may lose it: a recount is neither.
                Err(MetaError::Engine(EngineError::UnknownFate { .. })) => Vec::new(),
                Err(error) => return Err(error),
            };
            for (index, (dir, _)) in batch.into_iter().enumerate() {
                if present.get(index).is_none_or(|present| *present == 0) {
                    self.recount_dir(dir).await?;
                }
                pending.remove(&dir);
                flushed += 1;
            }
        }
        Ok(flushed)
    }

    fn keep_pending(&self, left: HashMap<Ino, DirStat>) {
        for (dir, delta) in left {
            self.note_dir_stat(dir, delta);
        }
    }

    /// Statistics of a directory, with what this core has not written yet. Missing and impossible ones are
    /// counted, and stored unless the mount is read-only. Zero for what is no directory (any more).
    pub async fn dir_stat(&self, dir: Ino) -> MetaResult<DirStat> {
        let record = self
            .engine
            .read(&[Key::DirStat(dir)])
            .await?
            .pop()
            .flatten();
        let stored = record.map(Record::dir_stat).transpose()?;
        let possible = |stat: &DirStat| stat.length >= 0 && stat.space >= 0 && stat.inodes >= 0;
        let Some(stat) = stored.filter(possible) else {
            return match self.shared.options.read_only {
                true => self.count_entries(dir).await,
                false => self.recount_dir(dir).await,
            };
        };
        let pending = self.dir_stats.borrow().get(&dir).copied();
        let pending = pending.unwrap_or_default();
        Ok(DirStat {
            length: stat.length + pending.length,
            space: stat.space + pending.space,
            inodes: stat.inodes + pending.inodes,
        })
    }

    /// Sets a directory's statistics from its entries, if it is still there; answers them.
    async fn recount_dir(&self, dir: Ino) -> MetaResult<DirStat> {
        for tries in 1.. {
            let record = self.engine.read(&[Key::Attr(dir)]).await?.pop().flatten();
            let attr = record.map(Record::attr).transpose()?;
            let Some(attr) = attr.filter(|attr| attr.kind == FileKind::Directory) else {
                break;
            };
            // The listing shows what this core has noted so far.
            let noted = self.dir_stats.borrow_mut().remove(&dir);
            let last = tries >= RECOUNTS_MAX;
            let fields = if last {
                AttrFields::EXISTS
            } else {
                AttrFields::ALL
            };
            match self.store_count(dir, fields, attr).await {
                Ok(Some(stat)) => return Ok(stat),
                // It has changed or is gone.
                Ok(None) => {}
                Err(error) => {
                    self.note_dir_stat(dir, noted.unwrap_or_default());
                    return Err(error);
                }
            }
            if last {
                break;
            }
        }
        Ok(DirStat::default())
    }

    async fn store_count(
        &self,
        ino: Ino,
        fields: AttrFields,
        expect: crate::types::Attr,
    ) -> MetaResult<Option<DirStat>> {
        let stat = self.count_entries(ino).await?;
        let txn = Txn {
            checks: vec![Check::Attr {
                ino,
                fields,
                expect,
            }],
            writes: vec![Write::PutDirStat { ino, stat }],
        };
        Ok(self.commit(txn).await?.map(|_| stat))
    }

    async fn count_entries(&self, parent: Ino) -> MetaResult<DirStat> {
        let mut stat = DirStat::default();
        self.each_entry(parent, true, |_, _, attr| {
            let entry = rules::entry_stat(attr.as_ref());
            stat.length = stat.length.saturating_add(entry.length);
            stat.space = stat.space.saturating_add(entry.space);
            stat.inodes += 1;
        })
        .await?;
        Ok(stat)
    }
}
