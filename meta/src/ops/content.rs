//! A change of a file's content as metadata sees it: slice records, length, times and usage in one commit.
//!
//! `write`, `truncate` and `fallocate` differ only in how the new attributes and records follow from the old
//! ones; that is their plan. Everything else is here, once: the check that the attribute record is still the
//! one the plan was made from (which excludes every other writer of the chunk lists), the volume's used
//! space, its capacity, and the statistics of the directories that hold the file.
//!
//! A commit whose connection breaks may have been applied. The change is then looked for before it is tried
//! again, by two marks: the attribute record that it leaves (its ctime is of our clock, to the nanosecond)
//! and the ids of slices, which nobody else can have appended. So slices are never appended twice.

use std::cell::RefCell;

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{AttrFields, Check, Counter, Engine, Key, Record, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::types::{Attr, CHUNK_BYTES, ChunkIndex, DirStat, Ino, SliceId, align_4k};

/// What a plan wants committed.
pub(crate) struct ContentChange {
    /// The file's attributes afterwards.
    pub(crate) new: Attr,
    /// Changes of chunk lists and slice references.
    pub(crate) records: Vec<Write>,
}

/// A commit of unknown fate: attributes before and after.
type Doubt = (Attr, Attr);

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
        self.run(|| self.try_change(ino, marks, &plan, &doubts))
            .await
    }

    async fn try_change(
        &self,
        ino: Ino,
        marks: &[(ChunkIndex, SliceId)],
        plan: &impl AsyncFn(&Attr) -> MetaResult<Option<ContentChange>>,
        doubts: &RefCell<Vec<Doubt>>,
    ) -> MetaResult<Attempt<Attr>> {
        let in_doubt = !doubts.borrow().is_empty();
        let (old, marked) = match self
            .read_marks(ino, if in_doubt { marks } else { &[] })
            .await
        {
            Ok(found) => found,
            // To give up now would leave the caller not knowing what it has written.
            Err(error) if in_doubt && error.is_transient() => return Ok(Attempt::Conflict(ino)),
            Err(error) => return Err(error.into()),
        };
        let old = old.ok_or(MetaError::NotFound)?;
        let settled = settle(&doubts.borrow(), &old, marked);
        if let Some((before, after)) = settled {
            self.charge(ino, &before, &after, None).await;
            return Ok(Attempt::Done(old));
        }

        let Some(change) = plan(&old).await? else {
            return Ok(Attempt::Done(old));
        };
        let space = align_4k(change.new.length) - align_4k(old.length);
        self.check_room(space, 0)?;
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
        txn.writes.extend(change.records);
        if space != 0 {
            txn.writes.push(Write::AddCounter {
                counter: Counter::UsedSpace,
                delta: space,
            });
        }
        match self.commit(txn).await {
            Ok(Some(results)) => {
                let used = results.last().copied().filter(|_| space != 0);
                self.charge(ino, &old, &change.new, used).await;
                Ok(Attempt::Done(change.new))
            }
            Ok(None) => Ok(Attempt::Conflict(ino)),
            Err(MetaError::Engine(EngineError::UnknownFate { cause, .. })) => {
                tracing::debug!(%ino, cause, "looking whether a change of content was applied");
                doubts.borrow_mut().push((old, change.new));
                Ok(Attempt::Conflict(ino))
            }
            Err(error) => Err(error),
        }
    }

    /// The file's attributes, and whether any of `marks` is in its chunk.
    async fn read_marks(
        &self,
        ino: Ino,
        marks: &[(ChunkIndex, SliceId)],
    ) -> Result<(Option<Attr>, bool), EngineError> {
        let chunks = marks.iter().map(|&(index, _)| Key::Chunk { ino, index });
        let keys: Vec<Key> = std::iter::once(Key::Attr(ino)).chain(chunks).collect();
        let mut records = self.engine.read(&keys).await?.into_iter();
        let attr = records.next().flatten().map(Record::attr).transpose()?;
        let mut marked = false;
        for (record, (_, id)) in records.zip(marks) {
            let slices = record.map(Record::slices).transpose()?.unwrap_or_default();
            marked |= slices.iter().any(|slice| slice.id == *id);
        }
        Ok((attr, marked))
    }

    /// Books a committed change with the volume's usage (`used` is its new value, if known) and with the
    /// directories that hold the file.
    async fn charge(&self, ino: Ino, old: &Attr, new: &Attr, used: Option<i64>) {
        let space = align_4k(new.length) - align_4k(old.length);
        self.note_used_space(space, used);
        let length = new
            .length
            .cast_signed()
            .wrapping_sub(old.length.cast_signed());
        // A file without links is in no directory: its entry was discharged when the last link went.
        if length == 0 || new.nlink == 0 {
            return;
        }
        if new.parent != Ino::NONE {
            return self.note_dir_stat(
                new.parent,
                DirStat {
                    length,
                    space,
                    inodes: 0,
                },
            );
        }
        match self.parents(ino).await {
            Ok(parents) => {
                for (dir, links) in parents {
                    let links = i64::from(links);
                    let delta = DirStat {
                        length: length * links,
                        space: space * links,
                        inodes: 0,
                    };
                    self.note_dir_stat(dir, delta);
                }
            }
            // The change is committed all the same; a later recount puts the statistics right.
            Err(error) => {
                tracing::warn!(%ino, %error, "statistics of its directories miss a change")
            }
        }
    }

    async fn parents(&self, ino: Ino) -> Result<Vec<(Ino, u32)>, EngineError> {
        let record = self
            .engine
            .read(&[Key::Parents(ino)])
            .await?
            .pop()
            .flatten();
        Ok(record.map(Record::parents).transpose()?.unwrap_or_default())
    }
}

/// The one commit in doubt that was applied after all, as `found` and `marked` tell. With several in doubt
/// and only the marks to tell, the last one is as good as any: they differ in times.
fn settle(doubts: &[Doubt], found: &Attr, marked: bool) -> Option<Doubt> {
    let by_record = doubts.iter().find(|(_, after)| after == found);
    by_record
        .or_else(|| doubts.last().filter(|_| marked))
        .cloned()
}

/// The chunk that holds the byte at `offset`, and where in it.
pub(crate) fn chunk_at(offset: u64) -> MetaResult<(ChunkIndex, u32)> {
    let index = u32::try_from(offset / CHUNK_BYTES).map_err(|_| MetaError::TooLarge)?;
    Ok((ChunkIndex(index), (offset % CHUNK_BYTES) as u32))
}
