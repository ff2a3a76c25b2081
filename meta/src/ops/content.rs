//! A change of a file's content as metadata sees it: slice records, length, times and usage in one commit.
//!
//! `write`, `truncate` and `fallocate` differ only in how the new attributes and records follow from the old
//! ones; that is their plan. Everything else is here, once: the check that the attribute record is still the
//! one the plan was made from (which excludes every other writer of the chunk lists), the volume's used
//! space, its capacity, the quotas, and the statistics of the directories that hold the file.
//!
//! A commit whose connection breaks may have been applied. The change is then looked for before it is tried
//! again, by three marks: the attribute record that it leaves (its ctime is of our clock, to the nanosecond);
//! the ids of slices, which nobody else can have appended; and, where attributes other than of content have
//! changed since, its mtime together with the ends of the lists. So slices are never appended twice.

use std::cell::RefCell;

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{AttrFields, Check, Counter, Engine, Key, Record, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::quota::Usage;
use crate::types::{Attr, CHUNK_BYTES, ChunkIndex, DirStat, Ino, Slice, SliceId, align_4k};

/// What a plan wants committed.
pub(crate) struct ContentChange {
    /// The file's attributes afterwards.
    pub(crate) new: Attr,
    /// Changes of chunk lists and slice references.
    pub(crate) records: Vec<Write>,
    /// What the plan relies on besides the file's attributes.
    pub(crate) checks: Vec<Check>,
}

/// A commit of unknown fate.
#[derive(Clone)]
struct Doubt {
    before: Attr,
    after: Attr,
    /// Directories that hold the file, with the number of its names there.
    holders: Vec<(Ino, u32)>,
    /// What it appends to which chunk.
    tails: Vec<(ChunkIndex, Vec<Slice>)>,
}

impl Meta {
    /// Runs `plan` on the file's attributes and commits what it wants; `None` means that there is nothing to
    /// do. Answers the attributes afterwards. `marks` are slices that the plan appends.
    pub(crate) async fn change_content(
        &self,
        ino: Ino,
        marks: &[(ChunkIndex, SliceId)],
        plan: impl AsyncFn(&Attr) -> MetaResult<Option<ContentChange>>,
    ) -> MetaResult<Attr> {
        self.check_writable()?;
        let doubts = RefCell::new(Vec::new());
        self.run(async |sight| self.try_change(sight, ino, marks, &plan, &doubts).await)
            .await
    }

    async fn try_change(
        &self,
        sight: &Sight,
        ino: Ino,
        marks: &[(ChunkIndex, SliceId)],
        plan: &impl AsyncFn(&Attr) -> MetaResult<Option<ContentChange>>,
        doubts: &RefCell<Vec<Doubt>>,
    ) -> MetaResult<Attempt<Attr>> {
        let in_doubt = !doubts.borrow().is_empty();
        let (old, marked) = match self
            .read_marks(sight, ino, if in_doubt { marks } else { &[] })
            .await
        {
            Ok(found) => found,
            // To give up now would leave the caller not knowing what it has written.
            Err(error) if in_doubt && error.is_transient() => return Ok(Attempt::Conflict(ino)),
            Err(error) => return Err(error.into()),
        };
        let old = old.ok_or(MetaError::NotFound)?;
        let in_doubt = doubts.borrow().clone();
        let settled = match settle(&in_doubt, &old, marked) {
            None => match self.settle_by_lists(ino, &in_doubt, &old).await {
                Err(error) if error.is_transient() => return Ok(Attempt::Conflict(ino)),
                settled => settled?,
            },
            settled => settled,
        };
        if let Some(Doubt {
            before,
            after,
            holders,
            ..
        }) = settled
        {
            self.charge(&before, &after, &holders, None).await;
            return Ok(Attempt::Done(old));
        }

        let Some(change) = plan(&old).await? else {
            return Ok(sight.done(old));
        };
        let space = align_4k(change.new.length) - align_4k(old.length);
        let holders = self.charged_holders(ino, &old, &change.new).await?;
        self.check_content(&old, &holders, space).await?;
        let mut txn = Txn {
            checks: vec![Check::Attr {
                ino,
                fields: AttrFields::ALL,
                expect: old.clone(),
            }],
            writes: vec![Write::UpdateAttr {
                ino,
                old: old.clone(),
                new: change.new.clone(),
            }],
        };
        txn.checks.extend(change.checks);
        let tails = tails(&change.records);
        txn.writes.extend(change.records);
        if space != 0 {
            txn.writes.push(Write::AddCounter {
                counter: Counter::UsedSpace,
                delta: space,
            });
        }
        let appends = appends(&txn.writes);
        match self.commit(txn).await {
            Ok(Some(results)) => {
                self.note_long_lists(ino, &appends, &results);
                let used = results.last().copied().filter(|_| space != 0);
                self.charge(&old, &change.new, &holders, used).await;
                Ok(Attempt::Done(change.new))
            }
            Ok(None) => Ok(Attempt::Conflict(ino)),
            Err(MetaError::Engine(EngineError::UnknownFate { cause, .. })) => {
                tracing::debug!(%ino, cause, "looking whether a change of content was applied");
                let (before, after) = (old, change.new);
                let doubt = Doubt {
                    before,
                    after,
                    holders,
                    tails,
                };
                doubts.borrow_mut().push(doubt);
                Ok(Attempt::Conflict(ino))
            }
            Err(error) => Err(error),
        }
    }

    /// The file's attributes, and whether any of `marks` is in its chunk.
    async fn read_marks(
        &self,
        sight: &Sight,
        ino: Ino,
        marks: &[(ChunkIndex, SliceId)],
    ) -> Result<(Option<Attr>, bool), EngineError> {
        if marks.is_empty()
            && sight.memory
            && let Some(attr) = self.shared.recall.attr(ino)
        {
            sight.used.set(true);
            return Ok((Some(attr), false));
        }
        let chunks = marks.iter().map(|&(index, _)| Key::Chunk { ino, index });
        let keys: Vec<Key> = std::iter::once(Key::Attr(ino)).chain(chunks).collect();
        let asked = self.now();
        let records = self.engine.read(&keys).await?;
        self.shared.recall.learn(&keys, &records, asked);
        let mut records = records.into_iter();
        let attr = records.next().flatten().map(Record::attr).transpose()?;
        let mut marked = false;
        for (record, (_, id)) in records.zip(marks) {
            let slices = record.map(Record::slices).transpose()?.unwrap_or_default();
            marked |= slices.iter().any(|slice| slice.id == *id);
        }
        Ok((attr, marked))
    }

    /// The commit in doubt whose mtime the file has and with whose records the lists end. One round trip if
    /// there is one with the mtime.
    async fn settle_by_lists(
        &self,
        ino: Ino,
        doubts: &[Doubt],
        found: &Attr,
    ) -> Result<Option<Doubt>, EngineError> {
        let timed =
            |doubt: &&Doubt| doubt.after.mtime == found.mtime && doubt.before.mtime != found.mtime;
        let Some(doubt) = doubts.iter().rev().find(timed) else {
            return Ok(None);
        };
        let chunk = |tail: &(ChunkIndex, Vec<Slice>)| Key::Chunk { ino, index: tail.0 };
        let keys: Vec<Key> = doubt.tails.iter().map(chunk).collect();
        let records = self.engine.read(&keys).await?;
        for (record, (_, tail)) in records.into_iter().zip(&doubt.tails) {
            let list = record.map(Record::slices).transpose()?.unwrap_or_default();
            if !list.ends_with(tail) {
                return Ok(None);
            }
        }
        Ok(Some(doubt.clone()))
    }

    /// Books a committed change with the volume's usage (`used` is its new value, if known) and with the
    /// directories that hold the file.
    async fn charge(&self, old: &Attr, new: &Attr, holders: &[(Ino, u32)], used: Option<i64>) {
        let space = align_4k(new.length) - align_4k(old.length);
        self.note_used_space(space, used);
        let length = new
            .length
            .cast_signed()
            .wrapping_sub(old.length.cast_signed());
        self.charge_owner(new.uid, new.gid, Usage { space, inodes: 0 });
        for &(dir, links) in holders {
            let links = i64::from(links);
            let delta = DirStat {
                length: length * links,
                space: space * links,
                inodes: 0,
            };
            self.note_dir_stat(dir, delta);
            self.charge_dir(dir, delta.into()).await;
        }
    }

    /// Whether there is room for so much more space of a file in these directories.
    async fn check_content(
        &self,
        old: &Attr,
        holders: &[(Ino, u32)],
        space: i64,
    ) -> MetaResult<()> {
        let more = Usage { space, inodes: 0 };
        self.check_growth(old, more)?;
        for &(dir, links) in holders {
            let space = space.saturating_mul(i64::from(links));
            self.check_dir(dir, Usage { space, ..more }).await?;
        }
        Ok(())
    }

    /// The directories that a change is charged to; none if the length stays. Asked for before the commit, which
    /// checks the record that they go with: after it, a store that has gone away would leave them uncharged.
    /// One round trip if the file was hard-linked, and one for each way up with quotas that is not known.
    async fn charged_holders(
        &self,
        ino: Ino,
        old: &Attr,
        new: &Attr,
    ) -> Result<Vec<(Ino, u32)>, EngineError> {
        // A file without links is in no directory: its entry was discharged when the last link went.
        if new.length == old.length || new.nlink == 0 {
            return Ok(Vec::new());
        }
        let holders = self.holders(ino, old).await?;
        for (dir, _) in &holders {
            self.quota_dirs(*dir).await?;
        }
        Ok(holders)
    }

    /// The directories that have names of a file, with how many.
    async fn holders(&self, ino: Ino, attr: &Attr) -> Result<Vec<(Ino, u32)>, EngineError> {
        if attr.parent != Ino::NONE {
            return Ok(vec![(attr.parent, 1)]);
        }
        let record = self
            .engine
            .read(&[Key::Parents(ino)])
            .await?
            .pop()
            .flatten();
        Ok(record.map(Record::parents).transpose()?.unwrap_or_default())
    }
}

/// Which writes append to which chunk: their results are the lengths of the lists.
fn appends(writes: &[Write]) -> Vec<(usize, ChunkIndex)> {
    let append = |(number, write): (usize, &Write)| match write {
        Write::AppendChunk { index, .. } => Some((number, *index)),
        _ => None,
    };
    writes.iter().enumerate().filter_map(append).collect()
}

/// What is appended to which chunk.
fn tails(records: &[Write]) -> Vec<(ChunkIndex, Vec<Slice>)> {
    let tail = |write: &Write| match write {
        Write::AppendChunk { index, slices, .. } => Some((*index, slices.clone())),
        _ => None,
    };
    records.iter().filter_map(tail).collect()
}

/// The one commit in doubt that was applied after all, as `found` and `marked` tell. With several in doubt
/// and only the marks to tell, the last one is as good as any: they differ in times.
fn settle(doubts: &[Doubt], found: &Attr, marked: bool) -> Option<Doubt> {
    let by_record = doubts.iter().find(|doubt| doubt.after == *found);
    by_record
        .or_else(|| doubts.last().filter(|_| marked))
        .cloned()
}

/// The chunk that holds the byte at `offset`, and where in it.
pub(crate) fn chunk_at(offset: u64) -> MetaResult<(ChunkIndex, u32)> {
    let index = u32::try_from(offset / CHUNK_BYTES).map_err(|_| MetaError::TooLarge)?;
    Ok((ChunkIndex(index), (offset % CHUNK_BYTES) as u32))
}
