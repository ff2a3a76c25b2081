//! Directory statistics: this core's pending changes go to the store, and what is missing there is recounted.
//!
//! Operations note changes in memory ([`Meta::note_dir_stat`]), so that they do not all write the statistics
//! of a hot directory. A crash loses what was noted within a second; a change noted while its directory is
//! being recounted may count twice. Both are drift that `juicefs fsck --sync-dir-stat` repairs, as JuiceFS's
//! own.

use std::collections::{HashMap, HashSet};

use crate::client::{Meta, MetaResult};
use crate::engine::{AttrFields, Check, Engine, Item, Key, Record, Scan, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::types::{Attr, DirStat, FileKind, Ino, align_4k};

impl Meta {
    /// Writes the pending changes of this core; answers to how many directories. What could not be written
    /// stays pending.
    pub async fn flush_dir_stats(&self) -> MetaResult<usize> {
        let mut pending = std::mem::take(&mut *self.dir_stats.borrow_mut());
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

    /// Sets a directory's statistics from its entries, if it is still there.
    async fn recount_dir(&self, dir: Ino) -> MetaResult<()> {
        let record = self.engine.read(&[Key::Attr(dir)]).await?.pop().flatten();
        let attr = record.map(Record::attr).transpose()?;
        let Some(attr) = attr.filter(|attr| attr.kind == FileKind::Directory) else {
            return Ok(());
        };
        let stat = self.count_entries(dir).await?;
        let txn = Txn {
            checks: vec![Check::Attr {
                ino: dir,
                fields: AttrFields::EXISTS,
                expect: attr,
            }],
            writes: vec![Write::PutDirStat { ino: dir, stat }],
        };
        // A conflict means that the directory is gone: nothing to keep.
        self.commit(txn).await?;
        Ok(())
    }

    async fn count_entries(&self, parent: Ino) -> MetaResult<DirStat> {
        let scan = Scan::Dir {
            parent,
            attrs: true,
        };
        let mut stat = DirStat::default();
        // Redis may answer an entry twice while it grows its table.
        let mut seen = HashSet::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
                .await?;
            for item in page.items {
                let Item::Entry { name, attr, .. } = item else {
                    continue;
                };
                if seen.insert(name) {
                    add_entry(&mut stat, attr.as_ref());
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(stat),
            }
        }
    }
}

fn add_entry(stat: &mut DirStat, attr: Option<&Attr>) {
    let file = attr.filter(|attr| attr.kind == FileKind::File);
    let length = file.map_or(0, |attr| attr.length);
    stat.length = stat.length.saturating_add_unsigned(length);
    stat.space = stat.space.saturating_add(align_4k(length));
    stat.inodes += 1;
}
