//! Compaction of a chunk's list, the metadata part: what to rewrite as one slice, and the commit that puts it in
//! the place of the records it was made of.
//!
//! The order, which the caller keeps: [`Meta::plan_compaction`] (one round trip); read the pieces, store them as
//! a new slice, durable; [`Meta::commit_compaction`] (one round trip). The commit relies on the front of the list
//! being as it was read; records that were appended meanwhile stay behind it. Attributes are not touched: the
//! file's content is the same.
//!
//! What is rewritten (`plan`, pure, as JuiceFS chooses): of the first [`limits::COMPACT_RECORDS_MAX`] records,
//! those after a front of large ones that lie whole before everything else; merged, without holes at both
//! ends. Old slices lose their references, or, in a volume with a trash, are noted as delayed: a client that
//! still reads by an old list finds them for the trash's days.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::{Meta, MetaResult};
use crate::engine::{Check, Outcome, Txn, Write};
use crate::error::EngineError;
use crate::limits;
use crate::types::{ChunkIndex, Ino, Slice, SliceId};

/// A record as large as this may stay as it is.
const LARGE_BYTES: u32 = 1 << 20;
/// ... if it is at least one in so many parts of what would be rewritten with it.
const LARGE_SHARE: u64 = 5;

/// A part of a chunk that is to become one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// File.
    pub ino: Ino,
    /// Which chunk.
    pub index: ChunkIndex,
    /// What to rewrite.
    pub plan: Plan,
}

/// What to rewrite of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Records at the front of the list that the plan rests on.
    pub prefix: Vec<Slice>,
    /// How many of them stay as they are, at the front.
    pub skipped: usize,
    /// Where the new slice goes in its chunk.
    pub pos: u32,
    /// Bytes of the new slice, at least 1.
    pub size: u32,
    /// What it is made of: from `pos` on without gaps, holes (zeros) explicit.
    pub pieces: Vec<Slice>,
}

/// How a compaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compacted {
    /// The new slice is in place; these lost their last reference: their objects are to be deleted, then
    /// [`Meta::forget_slice`] called for each.
    Done(Vec<(SliceId, u32)>),
    /// The list has changed: the new slice is nobody's, its objects are to be deleted.
    Lost,
    /// The connection broke, and what became of the commit cannot be told: the objects have to stay. If they are
    /// nobody's, `gc` finds them.
    Unknown,
}

impl Meta {
    /// Notes chunks whose lists a commit has made long: after every hundredth record, and with each beyond
    /// [`limits::CHUNK_RECORDS_LONG`], as JuiceFS decides.
    pub(crate) fn note_long_lists(
        &self,
        ino: Ino,
        appends: &[(usize, ChunkIndex)],
        results: &[i64],
    ) {
        let mut lists = self.long_lists.borrow_mut();
        for &(number, index) in appends {
            let records = results.get(number).copied().unwrap_or(0);
            let long = records > limits::CHUNK_RECORDS_LONG || records % 100 == 99;
            if long && lists.len() < limits::LONG_LISTS_MAX {
                lists.insert((ino, index));
            }
        }
    }

    /// Whether this core's commits have made any list long.
    pub fn has_long_lists(&self) -> bool {
        !self.long_lists.borrow().is_empty()
    }

    /// A chunk to compact, whose list this core's commits have made long.
    pub fn take_long_list(&self) -> Option<(Ino, ChunkIndex)> {
        self.long_lists.borrow_mut().pop_first()
    }

    /// What to rewrite of a chunk; `None` if there is nothing to gain. One round trip.
    pub async fn plan_compaction(
        &self,
        ino: Ino,
        index: ChunkIndex,
    ) -> MetaResult<Option<Compaction>> {
        let list = self.chunk(ino, index).await?;
        Ok(plan(&list).map(|plan| Compaction { ino, index, plan }))
    }

    /// Puts slice `id`, whose objects are durable, in the place of what it was made of. One round trip, more
    /// after a broken connection. An error means that nothing was changed.
    pub async fn commit_compaction(
        &self,
        compaction: &Compaction,
        id: SliceId,
    ) -> MetaResult<Compacted> {
        self.check_writable()?;
        let Compaction { ino, index, plan } = compaction;
        let (ino, index) = (*ino, *index);
        let replaced: Vec<(SliceId, u32)> = plan.prefix[plan.skipped..]
            .iter()
            .filter(|slice| slice.id != SliceId::HOLE)
            .map(|slice| (slice.id, slice.size))
            .collect();
        let mut fate_known = true;
        for _ in 0..limits::COMMIT_ATTEMPTS_MAX {
            let trash = self.shared.setting().trash_days > 0;
            let txn = self.compaction_txn(compaction, id, trash.then_some(&replaced));
            match self.commit_marked(txn).await {
                Ok(Outcome::Committed(_)) if trash => return Ok(Compacted::Done(Vec::new())),
                Ok(Outcome::Committed(results)) => {
                    let left = replaced.iter().zip(results.into_iter().skip(2));
                    let dead = left.filter_map(|(slice, left)| (left <= 0).then_some(*slice));
                    let dead: BTreeSet<_> = dead.collect();
                    return Ok(Compacted::Done(dead.into_iter().collect()));
                }
                Ok(Outcome::Conflict { .. }) if fate_known => return Ok(Compacted::Lost),
                // Ours may be in the list, or was compacted again already.
                Ok(Outcome::Conflict { .. }) => {
                    let found = self.found_compacted(ino, index, id).await;
                    if !found {
                        return Ok(Compacted::Unknown);
                    }
                    let slices: BTreeSet<_> = replaced.into_iter().filter(|_| !trash).collect();
                    let dead = self.unreferenced(slices.into_iter()).await;
                    // Those that are not learnt of here are found by whoever looks for dead slices.
                    return Ok(Compacted::Done(dead.unwrap_or_default()));
                }
                Err(EngineError::UnknownFate { cause, .. }) => {
                    tracing::debug!(%ino, cause, "looking whether a chunk was compacted");
                    fate_known = false;
                }
                Err(EngineError::Busy { .. }) => {
                    self.runtime.sleep(limits::COMMIT_PAUSE_MAX / 10).await;
                }
                Err(error @ (EngineError::NoSpace { .. } | EngineError::Unreachable { .. }))
                    if fate_known =>
                {
                    return Err(error.into());
                }
                Err(error) => {
                    tracing::warn!(%ino, %error, "whether a chunk was compacted is unknown");
                    return Ok(Compacted::Unknown);
                }
            }
        }
        Ok(if fate_known {
            Compacted::Lost
        } else {
            Compacted::Unknown
        })
    }

    /// Whether slice `id` is in the list; not if that cannot be found out.
    async fn found_compacted(&self, ino: Ino, index: ChunkIndex, id: SliceId) -> bool {
        let list = self.chunk(ino, index).await;
        list.is_ok_and(|list| list.iter().any(|slice| slice.id == id))
    }

    /// `delayed`: the slices that keep their references for the trash's days.
    fn compaction_txn(
        &self,
        compaction: &Compaction,
        id: SliceId,
        delayed: Option<&Vec<(SliceId, u32)>>,
    ) -> Txn {
        let Compaction { ino, index, plan } = compaction;
        let (ino, index) = (*ino, *index);
        let size = plan.size;
        let mut slices = plan.prefix[..plan.skipped].to_vec();
        slices.push(Slice {
            pos: plan.pos,
            id,
            size,
            off: 0,
            len: size,
        });
        let mut writes = vec![
            Write::ReplaceChunkPrefix {
                ino,
                index,
                drop: plan.prefix.len(),
                slices,
            },
            Write::NewSliceRef { id, size },
        ];
        match delayed {
            Some(slices) if slices.is_empty() => {}
            Some(slices) => writes.push(Write::PutDelayedSlices {
                id,
                time: self.now().sec,
                slices: slices.clone(),
            }),
            None => {
                let stored = plan.prefix[plan.skipped..].iter();
                let stored = stored.filter(|slice| slice.id != SliceId::HOLE);
                writes.extend(stored.map(|slice| Write::AddSliceRef {
                    id: slice.id,
                    size: slice.size,
                    delta: -1,
                }));
            }
        }
        let checks = vec![Check::Chunk {
            ino,
            index,
            prefix: plan.prefix.clone(),
            whole: false,
        }];
        Txn { checks, writes }
    }
}

/// What to rewrite of a list, oldest record first.
pub fn plan(list: &[Slice]) -> Option<Plan> {
    let prefix = &list[..list.len().min(limits::COMPACT_RECORDS_MAX)];
    let mut skipped = 0;
    let mut merged = trimmed(prefix);
    while let [first, rest @ ..] = &prefix[skipped..] {
        // As many as fit whole into a chunk, since they do not touch each other: 64.
        let size = size_of(&merged);
        let large = first.len >= LARGE_BYTES && u64::from(first.len) * LARGE_SHARE >= size;
        if !large || merged.first() != Some(first) || rest.contains(first) {
            break;
        }
        skipped += 1;
        merged = trimmed(rest);
    }
    let pos = merged.first()?.pos;
    if prefix.len() - skipped < 2 {
        return None;
    }
    Some(Plan {
        prefix: prefix.to_vec(),
        skipped,
        pos,
        size: u32::try_from(size_of(&merged)).ok()?,
        pieces: merged,
    })
}

fn size_of(pieces: &[Slice]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

/// What readers see of `records`, without holes at both ends; a byte of zeros if there is nothing but holes.
fn trimmed(records: &[Slice]) -> Vec<Slice> {
    let mut pieces = merged(records);
    let stored = |piece: &Slice| piece.id != SliceId::HOLE;
    match (
        pieces.iter().position(stored),
        pieces.iter().rposition(stored),
    ) {
        (Some(first), Some(last)) => {
            pieces.truncate(last + 1);
            pieces.split_off(first)
        }
        _ => {
            let last = pieces.pop();
            last.map(|hole| Slice { len: 1, ..hole })
                .into_iter()
                .collect()
        }
    }
}

/// The visible parts of `records` by position; gaps between them are holes.
pub(crate) fn merged(records: &[Slice]) -> Vec<Slice> {
    let mut cover: BTreeMap<u32, Slice> = BTreeMap::new();
    for record in records.iter().filter(|record| record.len > 0) {
        let (start, end) = (record.pos, record.pos + record.len);
        let before = cover.range(..start).next_back().map(|(_, piece)| *piece);
        if let Some(before) = before.filter(|before| before.pos + before.len > start) {
            cover.insert(before.pos, clip(before, before.pos, start));
            if before.pos + before.len > end {
                cover.insert(end, clip(before, end, before.pos + before.len));
            }
        }
        while let Some((&pos, &inside)) = cover.range(start..end).next() {
            cover.remove(&pos);
            if inside.pos + inside.len > end {
                cover.insert(end, clip(inside, end, inside.pos + inside.len));
            }
        }
        cover.insert(start, *record);
    }
    let mut pieces = Vec::with_capacity(cover.len());
    let mut end = None;
    for piece in cover.into_values() {
        if let Some(end) = end.filter(|end| *end < piece.pos) {
            pieces.push(Slice::hole(end, piece.pos - end));
        }
        end = Some(piece.pos + piece.len);
        pieces.push(piece);
    }
    pieces
}

/// The part of a piece from `start` to `end`, both within it.
fn clip(piece: Slice, start: u32, end: u32) -> Slice {
    let off = match piece.id {
        SliceId::HOLE => piece.off,
        _ => piece.off + (start - piece.pos),
    };
    Slice {
        pos: start,
        off,
        len: end - start,
        ..piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: usize = 6 << 20;

    fn record(pos: u32, id: u64, len: u32) -> Slice {
        Slice {
            pos,
            id: SliceId(id),
            size: if id == 0 { 0 } else { len },
            off: 0,
            len,
        }
    }

    /// What each byte of the chunk is: 0, or the slice and the place in it.
    fn bytes_of(list: &[Slice]) -> Vec<u64> {
        let mut bytes = vec![0; CHUNK];
        for slice in list {
            for at in 0..slice.len {
                bytes[(slice.pos + at) as usize] = match slice.id.0 {
                    0 => 0,
                    id => id << 32 | u64::from(slice.off + at),
                };
            }
        }
        bytes
    }

    /// The list after the compaction reads as before it.
    fn check(list: &[Slice]) -> Option<Plan> {
        let plan = plan(list)?;
        assert!(plan.size > 0 && plan.prefix.len() - plan.skipped >= 2);
        assert_eq!(u64::from(plan.size), size_of(&plan.pieces));
        let mut at = plan.pos;
        for piece in &plan.pieces {
            assert_eq!(piece.pos, at, "without gaps");
            at += piece.len;
        }
        let mut after = plan.prefix[..plan.skipped].to_vec();
        for kept in &after {
            let apart = kept.pos + kept.len <= plan.pos || at <= kept.pos;
            assert!(apart, "what stays and what is rewritten do not touch");
        }
        after.extend(&plan.pieces);
        after.extend(&list[plan.prefix.len()..]);
        assert!(
            bytes_of(list) == bytes_of(&after),
            "{list:?} reads as another file"
        );
        Some(plan)
    }

    #[test]
    fn small_cases() {
        assert_eq!(check(&[]), None);
        assert_eq!(check(&[record(0, 1, 100)]), None);
        let plan = check(&[record(100, 1, 100), record(150, 2, 100)]).unwrap();
        assert_eq!((plan.skipped, plan.pos, plan.size), (0, 100, 150));
        // Holes at both ends go.
        let holes = [record(0, 0, 50), record(100, 1, 10), record(200, 0, 50)];
        let plan = check(&holes).unwrap();
        assert_eq!((plan.pos, plan.size), (100, 10));
        // Nothing but holes is a byte of zeros.
        let plan = check(&[record(10, 0, 50), record(20, 0, 90)]).unwrap();
        assert_eq!((plan.pos, plan.size), (20, 1));
    }

    #[test]
    fn large_records_in_front_stay() {
        let large = record(0, 1, 4 << 20);
        let next = record(4 << 20, 2, 1 << 20);
        let tail = [record(5 << 20, 3, 10), record((5 << 20) + 10, 4, 10)];
        let plan = check(&[large, next, tail[0], tail[1]]).unwrap();
        assert_eq!((plan.skipped, plan.pos, plan.size), (2, 5 << 20, 20));
        // One that is partly covered is rewritten.
        let plan = check(&[large, record(100, 2, 10)]).unwrap();
        assert_eq!((plan.skipped, plan.size), (0, 4 << 20));
        assert_eq!(check(&[large, next]), None);
        // A second copy of it in the list would be taken for it.
        assert_eq!(check(&[large, next, large]).unwrap().skipped, 0);
    }

    #[test]
    fn a_long_list_is_taken_in_parts() {
        let list: Vec<Slice> = (0..1500)
            .map(|n| record(n * 7 % 900, u64::from(n) + 1, 9))
            .collect();
        let plan = check(&list).unwrap();
        assert_eq!(plan.prefix.len(), limits::COMPACT_RECORDS_MAX);
    }

    fn any_record() -> impl Strategy<Value = Slice> {
        let len = prop_oneof![1..200_u32, 1_u32 << 20..=2_u32 << 20];
        (0..5_u64, len, 0..4096_u32).prop_map(|(id, len, place)| {
            let pos = place * 1024 % (CHUNK as u32 - len);
            let off = if id == 0 { 0 } else { place % 10 };
            Slice {
                pos,
                id: SliceId(id),
                size: if id == 0 { 0 } else { off + len + 3 },
                off,
                len,
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_list_reads_as_before(list in proptest::collection::vec(any_record(), 0..12)) {
            check(&list);
        }
    }
}
