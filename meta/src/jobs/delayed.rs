//! Slices that a compaction replaced: with the trash on they keep their reference for as long as the trash
//! keeps files, so that somebody who read the chunk list before finds its data.
//!
//! A note lists the slices that one compaction replaced. When its time is over, one commit takes it back and
//! drops a reference of each; the slices whose last that was are answered. If an answer is lost,
//! [`Meta::collect_dead_slices`] finds them. Runs with the job of the trash, under its lock.

use std::collections::BTreeMap;

use super::DeadSlice;
use crate::client::{Meta, MetaResult};
use crate::engine::{Check, Engine, Item, Scan, Txn, Write};
use crate::limits;
use crate::types::SliceId;

/// One note.
struct Note {
    id: SliceId,
    time: i64,
    slices: Vec<(SliceId, u32)>,
}

impl Meta {
    /// Drops the references of slices that were replaced longer ago than the trash keeps files. Answers those
    /// that nothing refers to any more, at most about [`limits::DEAD_SLICES_MAX`].
    pub async fn expire_delayed_slices(&self) -> MetaResult<Vec<DeadSlice>> {
        let kept = i64::from(self.shared.setting().trash_days) * 24 * 3600;
        self.release_delayed_before(self.now().sec.saturating_sub(kept))
            .await
    }

    /// The same for notes made before `edge`, unix s. An error midway is logged and ends the run: what was
    /// found is answered, since the notes are gone.
    pub async fn release_delayed_before(&self, edge: i64) -> MetaResult<Vec<DeadSlice>> {
        self.check_writable()?;
        let until = self.now().sec.saturating_add(limits::JOB_BUDGET);
        let mut dead = Vec::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&Scan::DelayedSlices, cursor.as_ref(), limits::CHUNK_PAGE)
                .await;
            let page = match page {
                Ok(page) => page,
                Err(error) if dead.is_empty() => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, "not all delayed slices were looked at");
                    return Ok(dead);
                }
            };
            for note in page.items.into_iter().filter_map(note) {
                if note.time >= edge {
                    continue;
                }
                match self.release_note(&note, &mut dead).await {
                    Ok(()) => {}
                    Err(error) if dead.is_empty() => return Err(error),
                    Err(error) => {
                        tracing::warn!(slice = note.id.0, %error, "a note of delayed slices stays");
                        return Ok(dead);
                    }
                }
            }
            let full = dead.len() >= limits::DEAD_SLICES_MAX || self.now().sec > until;
            match page.next {
                Some(next) if !full => cursor = Some(next),
                _ => return Ok(dead),
            }
        }
    }

    /// Takes one note back. One commit; a conflict means that another client has.
    async fn release_note(&self, note: &Note, dead: &mut Vec<DeadSlice>) -> MetaResult<()> {
        let (id, time) = (note.id, note.time);
        let mut writes: Vec<Write> = note
            .slices
            .iter()
            .map(|&(id, size)| Write::AddSliceRef {
                id,
                size,
                delta: -1,
            })
            .collect();
        writes.push(Write::DeleteDelayedSlices { id, time });
        let txn = Txn {
            checks: vec![Check::DelayedSlices {
                id,
                time,
                expect: note.slices.clone(),
            }],
            writes,
        };
        let Some(left) = self.commit(txn).await? else {
            return Ok(());
        };
        // A slice may be listed twice: the last result counts.
        let left: BTreeMap<_, _> = note.slices.iter().copied().zip(left).collect();
        dead.extend(
            left.into_iter()
                .filter(|(_, references)| *references <= 0)
                .map(|((id, size), _)| DeadSlice { id, size }),
        );
        Ok(())
    }
}

fn note(item: Item) -> Option<Note> {
    match item {
        Item::DelayedSlices { id, time, slices } => Some(Note { id, time, slices }),
        _ => None,
    }
}
