//! Reading chunk lists and committing the slices of a flush.

use std::collections::BTreeMap;

use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Key, Record, Write};
use crate::error::MetaError;
use crate::limits;
use crate::ops::WriteCommit;
use crate::ops::content::ContentChange;
use crate::types::{Attr, CHUNK_BYTES, ChunkIndex, FileKind, Ino, Slice, SliceId, Timestamp};

impl Meta {
    /// Raw slice list of a chunk, oldest first; empty when there is none.
    pub async fn chunk(&self, ino: Ino, index: ChunkIndex) -> MetaResult<Vec<Slice>> {
        let record = self
            .engine
            .read(&[Key::Chunk { ino, index }])
            .await?
            .pop()
            .flatten();
        Ok(record.map(Record::slices).transpose()?.unwrap_or_default())
    }

    /// Commits the slices of a flush: one commit. Answers the new attributes. Trying again with the same
    /// slices after a fault is safe only if they are not in the chunk lists; a connection that breaks during
    /// the commit is dealt with here.
    pub async fn write(&self, ino: Ino, commit: &WriteCommit) -> MetaResult<Attr> {
        if commit.length > limits::FILE_BYTES_MAX {
            return Err(MetaError::TooLarge);
        }
        let inside = |slice: &Slice| u64::from(slice.pos) + u64::from(slice.len) <= CHUNK_BYTES;
        if !commit.slices.iter().all(|(_, slice)| inside(slice)) {
            return Err(MetaError::Invalid(
                "a slice record reaches beyond its chunk",
            ));
        }
        let marks = marks(&commit.slices);
        self.change_content(ino, &marks, async |old| {
            if old.kind != FileKind::File {
                return Err(MetaError::NotPermitted);
            }
            let new = written(old, commit, self.now());
            Ok(Some(ContentChange {
                new,
                records: slice_records(ino, &commit.slices),
                checks: Vec::new(),
            }))
        })
        .await
    }
}

/// One slice of each chunk that has any: enough to see whether the commit was applied.
fn marks(slices: &[(ChunkIndex, Slice)]) -> Vec<(ChunkIndex, SliceId)> {
    let stored = slices.iter().filter(|(_, slice)| slice.id != SliceId::HOLE);
    stored
        .map(|(index, slice)| (*index, slice.id))
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .collect()
}

fn written(old: &Attr, commit: &WriteCommit, now: Timestamp) -> Attr {
    let mut new = old.clone();
    new.length = old.length.max(commit.length);
    // Other clients tell by mtime whether their cached slice lists are stale, so content never changes under
    // the same mtime: two flushes of one burst of writes get different ones.
    new.mtime = if commit.mtime == old.mtime {
        next_instant(commit.mtime)
    } else {
        commit.mtime
    };
    new.ctime = now;
    if commit.kill_suid {
        new.mode = without_suid(old.mode);
    }
    new
}

pub(super) fn next_instant(time: Timestamp) -> Timestamp {
    match time.nsec {
        999_999_999.. => Timestamp {
            sec: time.sec.saturating_add(1),
            nsec: 0,
        },
        nsec => Timestamp {
            sec: time.sec,
            nsec: nsec + 1,
        },
    }
}

/// As Linux: sgid without group execution is not a privilege (it marks mandatory locking) and stays.
pub(super) fn without_suid(mode: u16) -> u16 {
    const SUID: u16 = 0o4000;
    const SGID: u16 = 0o2000;
    let privileges = if mode & 0o010 != 0 { SUID | SGID } else { SUID };
    mode & !privileges
}

/// The writes that append `slices`, in order within each chunk, and give each stored slice its references:
/// one for each record.
fn slice_records(ino: Ino, slices: &[(ChunkIndex, Slice)]) -> Vec<Write> {
    let mut chunks: BTreeMap<ChunkIndex, Vec<Slice>> = BTreeMap::new();
    let mut references: BTreeMap<(SliceId, u32), i64> = BTreeMap::new();
    for &(index, slice) in slices {
        chunks.entry(index).or_default().push(slice);
        if slice.id != SliceId::HOLE {
            *references.entry((slice.id, slice.size)).or_default() += 1;
        }
    }
    let append = |(index, slices)| Write::AppendChunk { ino, index, slices };
    let mut writes: Vec<Write> = chunks.into_iter().map(append).collect();
    for ((id, size), count) in references {
        writes.push(Write::NewSliceRef { id, size });
        if count > 1 {
            writes.push(Write::AddSliceRef {
                id,
                size,
                delta: count - 1,
            });
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_dropped_as_linux_does() {
        for (mode, left) in [
            (0o644, 0o644),
            (0o4755, 0o755),
            (0o6755, 0o755),
            (0o2745, 0o2745),
            (0o7777, 0o1777),
        ] {
            assert_eq!(without_suid(mode), left, "{mode:o}");
        }
    }

    #[test]
    fn a_new_mtime_is_another_one() {
        let at = |sec, nsec| Timestamp { sec, nsec };
        assert_eq!(next_instant(at(5, 7)), at(5, 8));
        assert_eq!(next_instant(at(5, 999_999_999)), at(6, 0));
    }
}
