//! Which bytes of a chunk come from where: raw slice lists to segments. Pure: no I/O, no clock, no await.
//!
//! A chunk's slice list is in the order of writing: later records cover earlier ones. [`merge`] makes of it
//! what readers see: segments sorted by position that neither overlap nor leave gaps before the last one,
//! holes explicit. What follows the last segment reads as zeros too. [`lay`] puts newer slices (those not
//! yet committed) on top of the part of a merged list that a read asks for, and covers exactly that part.
//!
//! Example: records A = [0, 100), B = [40, 60) of a slice with `off` 5 give A[0..40) | B[5..25) | A[60..100).
//!
//! Never fails: records beyond the chunk are refused where they are decoded (`Slice::decode`).

use std::collections::BTreeMap;
use std::ops::Range;

use sluice_meta::types::{Slice, SliceId};

/// A run of bytes of a chunk that come from one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First byte within the chunk.
    pub pos: u32,
    /// Bytes, never 0.
    pub len: u32,
    /// Where they are.
    pub source: Source,
}

/// Where a segment's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nowhere: zeros.
    Hole,
    /// In a slice.
    Slice {
        /// Which.
        id: SliceId,
        /// Bytes of the whole slice: its last block is named by them.
        size: u32,
        /// First byte of the segment within the slice.
        off: u32,
    },
}

impl Segment {
    fn of(slice: &Slice) -> Segment {
        let source = if slice.id == SliceId::HOLE {
            Source::Hole
        } else {
            Source::Slice {
                id: slice.id,
                size: slice.size,
                off: slice.off,
            }
        };
        Segment {
            pos: slice.pos,
            len: slice.len,
            source,
        }
    }

    fn hole(range: Range<u32>) -> Segment {
        Segment {
            pos: range.start,
            len: range.end - range.start,
            source: Source::Hole,
        }
    }

    /// First byte behind it.
    pub fn end(&self) -> u32 {
        self.pos + self.len
    }

    /// The part of it within `range`, which it must touch.
    fn clip(&self, range: &Range<u32>) -> Segment {
        let pos = self.pos.max(range.start);
        let len = self.end().min(range.end) - pos;
        let source = match self.source {
            Source::Hole => Source::Hole,
            Source::Slice { id, size, off } => Source::Slice {
                id,
                size,
                off: off + (pos - self.pos),
            },
        };
        Segment { pos, len, source }
    }

    /// Whether `next` goes on where this one ends, in the chunk and in its source.
    fn continues(&self, next: &Segment) -> bool {
        self.end() == next.pos
            && match (self.source, next.source) {
                (Source::Hole, Source::Hole) => true,
                (
                    Source::Slice { id, size, off },
                    Source::Slice {
                        id: next_id,
                        size: next_size,
                        off: next_off,
                    },
                ) => id == next_id && size == next_size && off + self.len == next_off,
                (Source::Hole, Source::Slice { .. }) | (Source::Slice { .. }, Source::Hole) => {
                    false
                }
            }
    }
}

/// Segments by position, being covered.
#[derive(Default)]
struct Cover(BTreeMap<u32, Segment>);

impl Cover {
    /// Puts `new` on top of what is there.
    fn put(&mut self, new: Segment) {
        if new.len == 0 {
            return;
        }
        let range = new.pos..new.end();
        // The one segment that starts before the range may reach into it, or even beyond it.
        if let Some(before) = self
            .0
            .range(..range.start)
            .next_back()
            .map(|(_, before)| *before)
            && before.end() > range.start
        {
            self.0
                .insert(before.pos, before.clip(&(before.pos..range.start)));
            if before.end() > range.end {
                self.0
                    .insert(range.end, before.clip(&(range.end..before.end())));
            }
        }
        while let Some((&pos, &inside)) = self.0.range(range.clone()).next() {
            self.0.remove(&pos);
            if inside.end() > range.end {
                self.0
                    .insert(range.end, inside.clip(&(range.end..inside.end())));
            }
        }
        self.0.insert(new.pos, new);
    }

    /// The segments from `start` on, gaps filled with holes, neighbours that belong together joined.
    fn into_segments(self, start: u32) -> Vec<Segment> {
        let mut out: Vec<Segment> = Vec::with_capacity(self.0.len() + 1);
        let mut end = start;
        for segment in self.0.into_values() {
            if segment.pos > end {
                append(&mut out, Segment::hole(end..segment.pos));
            }
            end = segment.end();
            append(&mut out, segment);
        }
        out
    }
}

fn append(out: &mut Vec<Segment>, segment: Segment) {
    match out.last_mut() {
        Some(last) if last.continues(&segment) => last.len += segment.len,
        Some(_) | None => out.push(segment),
    }
}

/// Merges a raw slice list, oldest first, into segments that cover `[0, end of the last one)`.
pub fn merge(slices: &[Slice]) -> Vec<Segment> {
    let mut cover = Cover::default();
    for slice in slices {
        cover.put(Segment::of(slice));
    }
    cover.into_segments(0)
}

/// The bytes `range` of a chunk: segments that cover exactly that range, from the merged list `base` and,
/// on top, from `newer` slices, oldest first.
pub fn lay(base: &[Segment], newer: &[Slice], range: Range<u32>) -> Vec<Segment> {
    if range.is_empty() {
        return Vec::new();
    }
    let first = base.partition_point(|segment| segment.end() <= range.start);
    let covered = base[first..]
        .iter()
        .take_while(|segment| segment.pos < range.end);
    let mut out = Vec::new();
    if newer.is_empty() {
        out.extend(covered.map(|segment| segment.clip(&range)));
    } else {
        let mut cover = Cover::default();
        for segment in covered {
            cover.put(segment.clip(&range));
        }
        for segment in newer.iter().map(Segment::of) {
            if segment.len > 0 && segment.pos < range.end && segment.end() > range.start {
                cover.put(segment.clip(&range));
            }
        }
        out = cover.into_segments(range.start);
    }
    let end = out.last().map_or(range.start, Segment::end);
    if end < range.end {
        append(&mut out, Segment::hole(end..range.end));
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slice(pos: u32, id: u64, off: u32, len: u32) -> Slice {
        Slice {
            pos,
            id: SliceId(id),
            size: off + len + 3,
            off,
            len,
        }
    }

    /// What byte `at` of the chunk is: (slice, byte of the slice), or nothing.
    fn byte(slices: &[Slice], at: u32) -> Option<(u64, u32)> {
        let top = slices
            .iter()
            .rev()
            .find(|s| s.pos <= at && at < s.pos + s.len)?;
        (top.id != SliceId::HOLE).then(|| (top.id.0, top.off + at - top.pos))
    }

    fn check_covers(segments: &[Segment], slices: &[Slice], range: Range<u32>) {
        let mut at = range.start;
        for segment in segments {
            assert_eq!(segment.pos, at, "no gap and no overlap");
            assert!(segment.len > 0);
            for i in 0..segment.len {
                let want = byte(slices, at + i);
                let got = match segment.source {
                    Source::Hole => None,
                    Source::Slice { id, size, off } => {
                        let of = slices.iter().find(|s| s.id == id).unwrap();
                        assert_eq!(size, of.size, "the size names the last block");
                        Some((id.0, off + i))
                    }
                };
                assert_eq!(got, want, "byte {} of {slices:?}", at + i);
            }
            at = segment.end();
        }
        assert_eq!(at, range.end);
        assert!(segments.windows(2).all(|pair| !pair[0].continues(&pair[1])));
    }

    fn check(slices: &[Slice]) {
        let visible = slices.iter().filter(|s| s.len > 0);
        let end = visible.map(|s| s.pos + s.len).max().unwrap_or(0);
        let merged = merge(slices);
        check_covers(&merged, slices, 0..end);
    }

    #[test]
    fn three_records_on_a_small_chunk_exhaustively() {
        let ranges: Vec<(u32, u32)> = (0..5)
            .flat_map(|pos| (0..=5 - pos).map(move |len| (pos, len)))
            .collect();
        for a in &ranges {
            for b in &ranges {
                for c in &ranges {
                    for hole in 0..8_u64 {
                        let id = |n: u64| if hole >> (n - 1) & 1 == 1 { 0 } else { n };
                        check(&[
                            slice(a.0, id(1), 7, a.1),
                            slice(b.0, id(2), 0, b.1),
                            slice(c.0, id(3), 2, c.1),
                        ]);
                    }
                }
            }
        }
    }

    #[test]
    fn adjoining_parts_of_one_slice_are_one_segment() {
        let first = Slice {
            pos: 0,
            id: SliceId(1),
            size: 10,
            off: 0,
            len: 4,
        };
        let second = Slice {
            pos: 4,
            id: SliceId(1),
            size: 10,
            off: 4,
            len: 6,
        };
        assert_eq!(merge(&[first, second]).len(), 1);
        let elsewhere = Slice { off: 3, ..second };
        assert_eq!(merge(&[first, elsewhere]).len(), 2);
    }

    fn any_slices(max: usize) -> impl Strategy<Value = Vec<Slice>> {
        let one = (0..200_u32, 0..60_u32, 0..9_u32, any::<bool>());
        proptest::collection::vec(one, 0..max).prop_map(|list| {
            let numbered = list.into_iter().zip(1_u64..);
            numbered
                .map(|((pos, len, off, hole), id)| {
                    if hole && id % 3 == 0 {
                        Slice::hole(pos, len)
                    } else {
                        slice(pos, id, off, len)
                    }
                })
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn merged_lists_read_like_the_raw_ones(slices in any_slices(40)) {
            check(&slices);
        }

        #[test]
        fn newer_slices_lie_on_top(
            slices in any_slices(40),
            split in 0_usize..40,
            start in 0_u32..300,
            len in 0_u32..300,
        ) {
            let split = split.min(slices.len());
            let base = merge(&slices[..split]);
            let range = start..start + len;
            check_covers(&lay(&base, &slices[split..], range.clone()), &slices, range);
        }
    }
}
