//! Copying a range of a file to a file without its data: the target's chunks get records of the source's slices,
//! and each slice a reference for each record.
//!
//! Round trips: the target's attributes unless they are remembered, the source's attributes and chunk lists
//! together, one commit. The commit relies on both attribute records and on every list that was read, whole: a
//! slice that a concurrent compaction, truncate or removal lets go is never referred to again.
//!
//! What is copied (`plan`, pure): what readers of the source see, holes included, cut at the target's chunk
//! borders. A call takes at most [`limits::COPY_CHUNKS_MAX`] chunks of the source and about
//! [`limits::COPY_RECORDS_MAX`] records; the caller asks again for the rest, as after any short copy.
//!
//! A commit whose connection breaks is looked for by the target's times and the ends of its lists (see
//! `content`); one that cannot be recognised any more, since others changed the target after it, is made again.

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::client::{Meta, MetaResult};
use crate::engine::{AttrFields, Check, Engine, Key, Record, Write};
use crate::error::MetaError;
use crate::limits;
use crate::ops::compact::merged;
use crate::ops::content::ContentChange;
use crate::ops::slices::{next_instant, without_suid};
use crate::types::{Attr, CHUNK_BYTES, ChunkIndex, FileKind, Ino, Slice, SliceId, attr_flags};

/// A range of a file to be copied to a file, perhaps the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRange {
    /// Source.
    pub from: Ino,
    /// First byte to copy.
    pub from_offset: u64,
    /// Target.
    pub to: Ino,
    /// Where the first byte goes.
    pub to_offset: u64,
    /// Bytes, as many as the source has.
    pub length: u64,
    /// Whether the target loses suid and sgid, as by a write.
    pub kill_suid: bool,
}

/// What the source is when it is read.
struct Source {
    attr: Attr,
    lists: Vec<Vec<Slice>>,
}

/// What to append to the target.
#[derive(Debug, PartialEq, Eq, Default)]
struct Plan {
    bytes: u64,
    records: Vec<(ChunkIndex, Slice)>,
}

impl Meta {
    /// Copies the range, or its beginning if it is long. Answers how many bytes, 0 behind the source's end, and
    /// the target's attributes afterwards. Committed data only: the caller flushes both files first.
    pub async fn copy_file_range(&self, copy: &CopyRange) -> MetaResult<(u64, Attr)> {
        check_range(copy)?;
        let bytes = Cell::new(0);
        let attr = self
            .change_content(copy.to, &[], async |old| {
                bytes.set(0);
                let source = self.read_source(copy).await?;
                check_files(&source.attr, old)?;
                let length = source.attr.length.saturating_sub(copy.from_offset);
                let length = length.min(copy.length);
                let plan = plan(&source.lists, copy.from_offset, length, copy.to_offset);
                if plan.bytes == 0 {
                    return Ok(None);
                }
                let end = copy.to_offset.checked_add(plan.bytes);
                let end = end.filter(|end| *end <= limits::FILE_BYTES_MAX);
                let end = end.ok_or(MetaError::TooLarge)?;
                bytes.set(plan.bytes);
                Ok(Some(ContentChange {
                    new: self.copied_to(old, end, copy.kill_suid),
                    records: writes(copy.to, &plan.records),
                    checks: checks(copy, source),
                }))
            })
            .await?;
        Ok((bytes.get(), attr))
    }

    /// The target's attributes afterwards. Content never changes under the same mtime.
    fn copied_to(&self, old: &Attr, end: u64, kill_suid: bool) -> Attr {
        let now = self.now();
        let mut new = old.clone();
        new.length = old.length.max(end);
        new.mtime = if now == old.mtime {
            next_instant(now)
        } else {
            now
        };
        new.ctime = now;
        if kill_suid {
            new.mode = without_suid(old.mode);
        }
        new
    }

    /// The source's attributes and the lists of the chunks of the range. One round trip.
    async fn read_source(&self, copy: &CopyRange) -> MetaResult<Source> {
        let ino = copy.from;
        let chunks = source_chunks(copy).map(|index| Key::Chunk { ino, index });
        let keys: Vec<Key> = std::iter::once(Key::Attr(ino)).chain(chunks).collect();
        let mut records = self.engine.read(&keys).await?.into_iter();
        let attr = records.next().flatten().map(Record::attr).transpose()?;
        let attr = attr.ok_or(MetaError::NotFound)?;
        let mut lists = Vec::with_capacity(keys.len());
        for record in records {
            lists.push(record.map(Record::slices).transpose()?.unwrap_or_default());
        }
        Ok(Source { attr, lists })
    }
}

fn check_range(copy: &CopyRange) -> MetaResult<()> {
    if copy.from_offset.max(copy.to_offset) > limits::FILE_BYTES_MAX {
        return Err(MetaError::TooLarge);
    }
    let apart = copy.from_offset.abs_diff(copy.to_offset) >= copy.length;
    if copy.from == copy.to && !apart {
        return Err(MetaError::Invalid("source and target overlap"));
    }
    Ok(())
}

fn check_files(source: &Attr, target: &Attr) -> MetaResult<()> {
    if source.kind != FileKind::File || target.kind != FileKind::File {
        return Err(MetaError::Invalid(
            "only regular files can be copied from and to",
        ));
    }
    if target.flags & (attr_flags::IMMUTABLE | attr_flags::APPEND) != 0 {
        return Err(MetaError::NotPermitted);
    }
    Ok(())
}

/// Chunks of the source that one call looks at.
fn source_chunks(copy: &CopyRange) -> impl Iterator<Item = ChunkIndex> {
    let first = copy.from_offset / CHUNK_BYTES;
    let end = copy.from_offset.saturating_add(copy.length);
    let end = end
        .div_ceil(CHUNK_BYTES)
        .min(first + limits::COPY_CHUNKS_MAX);
    // A file has fewer than 2^31 chunks.
    (first..end).map(|index| ChunkIndex(index as u32))
}

/// The source is as it was read.
fn checks(copy: &CopyRange, source: Source) -> Vec<Check> {
    let mut checks = Vec::with_capacity(source.lists.len() + 1);
    if copy.from != copy.to {
        checks.push(Check::Attr {
            ino: copy.from,
            fields: AttrFields::ALL,
            expect: source.attr,
        });
    }
    for (index, prefix) in source_chunks(copy).zip(source.lists) {
        checks.push(Check::Chunk {
            ino: copy.from,
            index,
            prefix,
            whole: true,
        });
    }
    checks
}

/// The writes that append `records` and refer once more to a stored slice for each.
fn writes(ino: Ino, records: &[(ChunkIndex, Slice)]) -> Vec<Write> {
    let mut chunks: BTreeMap<ChunkIndex, Vec<Slice>> = BTreeMap::new();
    let mut references: BTreeMap<(SliceId, u32), i64> = BTreeMap::new();
    for &(index, slice) in records {
        chunks.entry(index).or_default().push(slice);
        if slice.id != SliceId::HOLE {
            *references.entry((slice.id, slice.size)).or_default() += 1;
        }
    }
    let append = |(index, slices)| Write::AppendChunk { ino, index, slices };
    let mut writes: Vec<Write> = chunks.into_iter().map(append).collect();
    let refer = |((id, size), delta)| Write::AddSliceRef { id, size, delta };
    writes.extend(references.into_iter().map(refer));
    writes
}

/// What to append to the target for `[from, from + length)` of a source whose chunks, from the one with `from`
/// on, have these lists. Less than `length` if they end before or have very many pieces.
fn plan(lists: &[Vec<Slice>], from: u64, length: u64, to: u64) -> Plan {
    let mut plan = Plan::default();
    let first = from / CHUNK_BYTES;
    for (index, list) in (first..).zip(lists) {
        let chunk = index * CHUNK_BYTES;
        // What no record covers is a hole, also behind the last one.
        let mut whole = vec![Slice::hole(0, CHUNK_BYTES as u32)];
        whole.extend_from_slice(list);
        for piece in merged(&whole) {
            let start = (chunk + u64::from(piece.pos)).max(from);
            let end = (chunk + u64::from(piece.pos) + u64::from(piece.len)).min(from + length);
            if start >= end {
                continue;
            }
            if plan.records.len() >= limits::COPY_RECORDS_MAX {
                return plan;
            }
            let skipped = (start - chunk - u64::from(piece.pos)) as u32;
            let part = part_of(&piece, skipped, (end - start) as u32);
            put(&mut plan.records, part, to + plan.bytes);
            plan.bytes += end - start;
        }
    }
    plan
}

/// `len` bytes of a piece from its byte `skip` on.
fn part_of(piece: &Slice, skip: u32, len: u32) -> Slice {
    let off = match piece.id {
        SliceId::HOLE => 0,
        _ => piece.off + skip,
    };
    Slice { off, len, ..*piece }
}

/// Appends a piece that goes to file offset `at`: one record, or two if a chunk border is in it. What continues
/// the record before is joined to it.
fn put(records: &mut Vec<(ChunkIndex, Slice)>, mut piece: Slice, mut at: u64) {
    while piece.len > 0 {
        let pos = (at % CHUNK_BYTES) as u32;
        let len = piece.len.min(CHUNK_BYTES as u32 - pos);
        // Offsets are at most `FILE_BYTES_MAX` when this is committed.
        let index = ChunkIndex((at / CHUNK_BYTES) as u32);
        let record = Slice {
            pos,
            ..part_of(&piece, 0, len)
        };
        match records.last_mut() {
            Some((last_index, last)) if *last_index == index && continues(last, &record) => {
                last.len += len;
            }
            _ => records.push((index, record)),
        }
        piece = part_of(&piece, len, piece.len - len);
        at += u64::from(len);
    }
}

fn continues(last: &Slice, next: &Slice) -> bool {
    let source = match next.id {
        SliceId::HOLE => true,
        _ => last.size == next.size && last.off + last.len == next.off,
    };
    last.id == next.id && last.pos + last.len == next.pos && source
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNK: u64 = CHUNK_BYTES;

    fn record(pos: u64, id: u64, off: u32, len: u32) -> Slice {
        Slice {
            pos: pos as u32,
            id: SliceId(id),
            size: if id == 0 { 0 } else { off + len + 3 },
            off: if id == 0 { 0 } else { off },
            len,
        }
    }

    /// What byte `at` of a file with these records is: slice and place in it; `None` for zeros.
    fn byte(records: &[(ChunkIndex, Slice)], at: u64) -> Option<(u64, u32)> {
        let (chunk, pos) = (at / CHUNK, (at % CHUNK) as u32);
        let covers = |(index, slice): &&(ChunkIndex, Slice)| {
            u64::from(index.0) == chunk && slice.pos <= pos && pos < slice.pos + slice.len
        };
        let (_, top) = records.iter().rev().find(covers)?;
        (top.id != SliceId::HOLE).then(|| (top.id.0, top.off + pos - top.pos))
    }

    /// Checks a plan at `points` of the range, its ends, and all borders of records.
    fn check(lists: &[Vec<Slice>], from: u64, length: u64, to: u64, points: &[u64]) -> Plan {
        let plan = plan(lists, from, length, to);
        let first = from / CHUNK;
        let source: Vec<(ChunkIndex, Slice)> = (first..)
            .zip(lists)
            .flat_map(|(index, list)| {
                let index = ChunkIndex(index as u32);
                list.iter().map(move |slice| (index, *slice))
            })
            .collect();
        let covered = ((first + lists.len() as u64) * CHUNK).saturating_sub(from);
        assert_eq!(plan.bytes, length.min(covered));
        let mut at = to;
        for (index, slice) in &plan.records {
            assert_eq!(u64::from(index.0) * CHUNK + u64::from(slice.pos), at);
            assert!(slice.len > 0 && u64::from(slice.pos) + u64::from(slice.len) <= CHUNK);
            assert!(slice.id == SliceId::HOLE || slice.off + slice.len <= slice.size);
            at += u64::from(slice.len);
        }
        assert_eq!(at, to + plan.bytes, "all of it, without gaps");
        let borders = plan.records.iter().flat_map(|(index, slice)| {
            let start = u64::from(index.0) * CHUNK + u64::from(slice.pos);
            [start - to, start - to + u64::from(slice.len) - 1]
        });
        let points = points.iter().filter(|_| plan.bytes > 0);
        for at in borders.chain(points.map(|point| point % plan.bytes)) {
            let (got, want) = (byte(&plan.records, to + at), byte(&source, from + at));
            assert_eq!(got, want, "byte {at} of {lists:?}");
        }
        plan
    }

    #[test]
    fn pieces_holes_and_borders() {
        // A hole before, between and behind.
        let list = vec![record(10, 1, 5, 10), record(30, 2, 0, 10)];
        let plan = check(&[list], 0, 50, 0, &[]);
        let ids: Vec<u64> = plan.records.iter().map(|(_, slice)| slice.id.0).collect();
        assert_eq!(ids, [0, 1, 0, 2, 0]);
        // Cut in the middle of a slice, and at a border of the target.
        let plan = check(&[vec![record(0, 1, 0, 100)]], 20, 60, CHUNK - 10, &[]);
        let places: Vec<_> = plan
            .records
            .iter()
            .map(|(index, s)| (index.0, s.off, s.len))
            .collect();
        assert_eq!(places, [(0, 20, 10), (1, 30, 50)]);
        // Nothing but holes over three chunks is one record for each chunk of the target.
        let plan = check(&[vec![], vec![], vec![]], 5, 2 * CHUNK, 5, &[]);
        assert_eq!(plan.records.len(), 3);
        assert_eq!(check(&[], 5, 0, 5, &[]), Plan::default());
    }

    #[test]
    fn very_many_pieces_are_copied_in_parts() {
        let pieces = limits::COPY_RECORDS_MAX as u64 + 9;
        let list: Vec<Slice> = (0..pieces).map(|n| record(n * 10, n + 1, 0, 10)).collect();
        let plan = plan(&[list], 0, pieces * 10, 0);
        assert_eq!(plan.bytes, limits::COPY_RECORDS_MAX as u64 * 10);
    }

    #[test]
    fn ranges_of_one_file_may_not_overlap() {
        let copy = |from_offset, to_offset, length| CopyRange {
            from: Ino(5),
            from_offset,
            to: Ino(5),
            to_offset,
            length,
            kill_suid: false,
        };
        for (from, to, length, good) in [
            (0, 10, 10, true),
            (10, 0, 10, true),
            (0, 10, 11, false),
            (10, 0, 11, false),
            (7, 7, 1, false),
            (0, 10, u64::MAX, false),
            (7, 7, 0, true),
        ] {
            assert_eq!(
                check_range(&copy(from, to, length)).is_ok(),
                good,
                "{from} {to} {length}"
            );
        }
    }

    fn any_list() -> impl Strategy<Value = Vec<Slice>> {
        let len = prop_oneof![1..40_u32, 1_u32 << 20..=32_u32 << 20];
        let one = (0..4_u64, 0..9_u32, len, any::<bool>(), 0..100_u64);
        let one = one.prop_map(|(id, off, len, at_end, pos)| match at_end {
            true => record(
                CHUNK - u64::from(len) - pos.min(CHUNK - u64::from(len)),
                id,
                off,
                len,
            ),
            false => record(pos, id, off, len),
        });
        proptest::collection::vec(one, 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_target_reads_as_the_source(
            lists in proptest::collection::vec(any_list(), 1..4),
            start in prop_oneof![0..120_u64, CHUNK - 120..CHUNK],
            length in prop_oneof![0..200_u64, CHUNK - 200..CHUNK + 200, 0..3 * CHUNK],
            to in prop_oneof![0..120_u64, CHUNK - 120..CHUNK + 120, 0..9 * CHUNK],
            points in proptest::collection::vec(any::<u64>(), 20),
        ) {
            check(&lists, 2 * CHUNK + start, length, to, &points);
        }
    }
}
