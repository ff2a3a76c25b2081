//! The uncommitted data of one inode: slices in the order they were begun. Pure: no I/O, no clock, no await.
//!
//! A write goes into the newest slice that accepts it, unless a still newer one overlaps the written range:
//! then it would slip below that one, so it begins a slice of its own. Records are committed in the order of
//! creation, so later ones cover earlier ones, as the writes did.
//!
//! A flush freezes all slices there are: the *batch*. It stays here, readable, until it is committed or
//! given up. Writes go on meanwhile into new slices, which are newer than all of the batch.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use sluice_meta::ops::WriteCommit;
use sluice_meta::types::{CHUNK_BYTES, ChunkIndex, Slice, SliceId, Timestamp};

use super::buffer::{OpenSlice, Piece};
use crate::cache::BlockId;
use crate::shard::inode::DirtyAttr;

/// A sealed block of a slice, to be uploaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BlockAt {
    /// Chunk of the slice.
    pub(super) chunk: ChunkIndex,
    /// Slice.
    pub(super) slice: SliceId,
    /// Block within the slice.
    pub(super) index: u32,
}

/// What a write did.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Memory taken.
    pub(super) capacity: u64,
    /// Blocks that became full: to be uploaded.
    pub(super) sealed: Vec<BlockAt>,
}

/// How far the batch of a flush has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BatchState {
    /// Uploads are in progress or to be started.
    Uploading,
    /// Every block is stored.
    Stored,
    /// An upload failed and none is in progress any more.
    Failed,
}

/// Slices that will never be committed.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    /// Memory given back.
    pub(super) capacity: u64,
    /// Blocks that may have reached the store.
    pub(super) blocks: Vec<BlockId>,
}

/// What some of the writes make of the attributes.
#[derive(Clone, Copy)]
struct Pending {
    /// End of the furthest byte.
    length: u64,
    mtime: Timestamp,
    kill_suid: bool,
}

impl Pending {
    /// Both, the second being the later one.
    fn join(first: Option<Pending>, second: Option<Pending>) -> Option<Pending> {
        match (first, second) {
            (Some(first), Some(second)) => Some(Pending {
                length: first.length.max(second.length),
                mtime: second.mtime,
                kill_suid: first.kill_suid || second.kill_suid,
            }),
            (only, None) | (None, only) => only,
        }
    }
}

/// Uncommitted data of one inode.
pub(super) struct Dirty {
    block_bytes: u32,
    /// Per chunk, oldest first.
    chunks: BTreeMap<ChunkIndex, Vec<OpenSlice>>,
    slices: usize,
    next_seq: u64,
    /// Attributes due to the slices of the batch.
    batch: Option<Pending>,
    /// Attributes due to the slices still open.
    open: Option<Pending>,
}

/// Chunk and position of a byte of a file.
fn locate(offset: u64) -> (ChunkIndex, u32) {
    // Callers keep offsets below 2^57, so both parts fit.
    (
        ChunkIndex((offset / CHUNK_BYTES) as u32),
        (offset % CHUNK_BYTES) as u32,
    )
}

/// File offset of a byte of a chunk.
pub(super) fn offset_of(chunk: ChunkIndex, pos: u32) -> u64 {
    u64::from(chunk.0) * CHUNK_BYTES + u64::from(pos)
}

/// The range `[offset, offset + len)` of a file, cut at chunk borders: chunk, range within the chunk.
pub(super) fn cut(offset: u64, len: u64) -> impl Iterator<Item = (ChunkIndex, Range<u32>)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (chunk, pos) = locate(at);
        let step = (CHUNK_BYTES - u64::from(pos)).min(end - at);
        at += step;
        Some((chunk, pos..pos + step as u32))
    })
}

impl Dirty {
    /// Nothing dirty.
    pub(super) fn new(block_bytes: u32) -> Dirty {
        Dirty {
            block_bytes,
            chunks: BTreeMap::new(),
            slices: 0,
            next_seq: 0,
            batch: None,
            open: None,
        }
    }

    /// Whether everything is committed.
    pub(super) fn is_empty(&self) -> bool {
        self.slices == 0
    }

    /// Uncommitted slices.
    pub(super) fn slices(&self) -> usize {
        self.slices
    }

    /// Whether there is data that no flush has taken up yet.
    pub(super) fn has_open(&self) -> bool {
        self.open.is_some()
    }

    /// What is to be published about it.
    pub(super) fn attr(&self) -> Option<DirtyAttr> {
        let Pending {
            length,
            mtime,
            kill_suid,
        } = Pending::join(self.batch, self.open)?;
        Some(DirtyAttr {
            length,
            mtime,
            kill_suid,
        })
    }

    /// Writes `data` at `offset`. `next_id` gives a fresh slice id for each slice that has to be begun: at
    /// most one per chunk that the write touches.
    pub(super) fn write(
        &mut self,
        offset: u64,
        mut data: &[u8],
        mtime: Timestamp,
        kill_suid: bool,
        mut next_id: impl FnMut() -> SliceId,
    ) -> Written {
        let mut written = Written::default();
        let length = offset + data.len() as u64;
        self.open = Pending::join(
            self.open,
            Some(Pending {
                length,
                mtime,
                kill_suid,
            }),
        );
        for (chunk, range) in cut(offset, data.len() as u64) {
            let (now, rest) = data.split_at(range.len());
            self.write_chunk(chunk, range, now, &mut next_id, &mut written);
            data = rest;
        }
        written
    }

    fn write_chunk(
        &mut self,
        chunk: ChunkIndex,
        range: Range<u32>,
        data: &[u8],
        next_id: &mut impl FnMut() -> SliceId,
        written: &mut Written,
    ) {
        let slices = self.chunks.entry(chunk).or_default();
        let at = find_writable(slices, &range).unwrap_or_else(|| {
            slices.push(OpenSlice::new(
                next_id(),
                self.next_seq,
                range.start,
                self.block_bytes,
            ));
            self.next_seq += 1;
            self.slices += 1;
            slices.len() - 1
        });
        let slice = &mut slices[at];
        let before = slice.capacity();
        let full = slice.write(range.start, data);
        written.capacity += slice.capacity() - before;
        slice.uploading += full.len() as u32;
        let id = slice.id;
        written.sealed.extend(full.map(|index| BlockAt {
            chunk,
            slice: id,
            index,
        }));
    }

    /// Makes all slices part of the batch. Answers the blocks that have to be uploaded now.
    pub(super) fn freeze(&mut self) -> Vec<BlockAt> {
        let mut blocks = Vec::new();
        for (chunk, slices) in &mut self.chunks {
            for slice in slices.iter_mut().filter(|slice| !slice.frozen) {
                if let Some(index) = slice.freeze() {
                    slice.uploading += 1;
                    blocks.push(BlockAt {
                        chunk: *chunk,
                        slice: slice.id,
                        index,
                    });
                }
            }
        }
        self.batch = Pending::join(self.batch, self.open.take());
        blocks
    }

    fn slice(&self, chunk: ChunkIndex, id: SliceId) -> Option<&OpenSlice> {
        self.chunks
            .get(&chunk)?
            .iter()
            .rev()
            .find(|slice| slice.id == id)
    }

    fn slice_mut(&mut self, chunk: ChunkIndex, id: SliceId) -> Option<&mut OpenSlice> {
        self.chunks
            .get_mut(&chunk)?
            .iter_mut()
            .rev()
            .find(|slice| slice.id == id)
    }

    /// A block with its bytes; none if the slice has failed: then there is no use in uploading it.
    pub(super) fn upload(&self, at: BlockAt) -> Option<(BlockId, Vec<Bytes>)> {
        let slice = self
            .slice(at.chunk, at.slice)
            .filter(|slice| !slice.failed)?;
        slice.upload(at.index)
    }

    /// The upload of a block has ended. Answers the memory this gives back.
    pub(super) fn uploaded(&mut self, at: BlockAt, stored: bool) -> u64 {
        let Some(slice) = self.slice_mut(at.chunk, at.slice) else {
            return 0;
        };
        slice.uploading -= 1;
        if stored {
            slice.stored(at.index)
        } else {
            slice.failed = true;
            0
        }
    }

    fn frozen(&self) -> impl Iterator<Item = (ChunkIndex, &OpenSlice)> {
        self.chunks.iter().flat_map(|(chunk, slices)| {
            slices
                .iter()
                .filter(|slice| slice.frozen)
                .map(|slice| (*chunk, slice))
        })
    }

    /// How far the batch has come.
    pub(super) fn batch_state(&self) -> BatchState {
        if self.frozen().any(|(_, slice)| slice.uploading > 0) {
            BatchState::Uploading
        } else if self.frozen().any(|(_, slice)| slice.failed) {
            BatchState::Failed
        } else {
            assert!(
                self.frozen().all(|(_, slice)| slice.is_stored()),
                "data-before-name"
            );
            BatchState::Stored
        }
    }

    /// What the batch asks of the metadata; none if it has no slices.
    pub(super) fn batch_commit(&self) -> Option<WriteCommit> {
        let Pending {
            length,
            mtime,
            kill_suid,
        } = self.batch?;
        let mut slices: Vec<_> = self
            .frozen()
            .map(|(chunk, slice)| (slice.seq, chunk, slice.record()))
            .collect();
        slices.sort_unstable_by_key(|(seq, ..)| *seq);
        Some(WriteCommit {
            slices: slices
                .into_iter()
                .map(|(_, chunk, slice)| (chunk, slice))
                .collect(),
            length,
            mtime,
            kill_suid,
        })
    }

    /// Forgets the batch, committed or given up.
    pub(super) fn take_batch(&mut self) -> Dropped {
        let mut dropped = Dropped::default();
        self.batch = None;
        self.chunks.retain(|_, slices| {
            slices.retain(|slice| {
                if slice.frozen {
                    dropped.capacity += slice.capacity();
                    dropped.blocks.extend(slice.blocks());
                    self.slices -= 1;
                }
                !slice.frozen
            });
            !slices.is_empty()
        });
        dropped
    }

    /// Records of the slices with bytes in `range` of a chunk, oldest first: to be laid over the view.
    pub(super) fn records(&self, chunk: ChunkIndex, range: &Range<u32>) -> Vec<Slice> {
        let slices = self.chunks.get(&chunk).map_or(&[][..], Vec::as_slice);
        slices
            .iter()
            .filter(|slice| slice.overlaps(range))
            .map(OpenSlice::record)
            .collect()
    }

    /// Where the bytes `range` of a slice are; false if it is not one of these.
    pub(super) fn read(
        &self,
        chunk: ChunkIndex,
        id: SliceId,
        range: Range<u32>,
        out: &mut Vec<Piece>,
    ) -> bool {
        let Some(slice) = self.slice(chunk, id) else {
            return false;
        };
        slice.read(range, out);
        true
    }
}

/// The slice that a write to `range` of the chunk may go to.
fn find_writable(slices: &[OpenSlice], range: &Range<u32>) -> Option<usize> {
    for (at, slice) in slices.iter().enumerate().rev() {
        if slice.accepts(range.start) {
            return Some(at);
        }
        if slice.overlaps(range) {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::file::overlay::{Segment, Source, lay, merge};

    fn at(second: i64) -> Timestamp {
        Timestamp {
            sec: second,
            nsec: 0,
        }
    }

    /// Writes with ids counted from 1.
    fn write(dirty: &mut Dirty, offset: u64, data: &[u8]) -> Written {
        let mut next = dirty.next_seq;
        dirty.write(offset, data, at(1), false, || {
            next += 1;
            SliceId(next)
        })
    }

    fn records(dirty: &Dirty, chunk: u32) -> Vec<(u32, u32)> {
        let all = dirty.records(ChunkIndex(chunk), &(0..CHUNK_BYTES as u32));
        all.iter().map(|slice| (slice.pos, slice.len)).collect()
    }

    #[test]
    fn writes_find_their_slice() {
        // (writes as (offset, length), slices as (position, length)), with blocks of 10 bytes.
        type Ranges = &'static [(u64, usize)];
        let cases: [(Ranges, &[(u32, u32)]); 9] = [
            (&[(0, 4), (4, 4), (8, 30)], &[(0, 38)]),
            // Rewritten in the open tail, and beyond it.
            (&[(0, 5), (2, 2), (0, 9), (5, 3)], &[(0, 9)]),
            // Below what was handed to upload: a slice of its own.
            (&[(0, 15), (3, 4)], &[(0, 15), (3, 4)]),
            (&[(0, 15), (9, 4)], &[(0, 15), (9, 4)]),
            (&[(0, 15), (10, 7)], &[(0, 17)]),
            // A gap begins another slice.
            (&[(0, 3), (4, 3)], &[(0, 3), (4, 3)]),
            // The older one goes on, for the newer one is elsewhere.
            (&[(0, 3), (50, 3), (3, 3)], &[(0, 6), (50, 3)]),
            // It may not slip below the newer one.
            (&[(0, 3), (5, 3), (3, 4)], &[(0, 3), (5, 3), (3, 4)]),
            (&[(0, 3), (5, 3), (3, 2), (5, 1)], &[(0, 5), (5, 3)]),
        ];
        for (writes, slices) in cases {
            let mut dirty = Dirty::new(10);
            for (offset, len) in writes {
                write(&mut dirty, *offset, &vec![1; *len]);
            }
            assert_eq!(records(&dirty, 0), slices, "{writes:?}");
            assert_eq!(dirty.slices(), slices.len());
        }
    }

    #[test]
    fn a_write_is_cut_at_the_end_of_a_chunk() {
        let mut dirty = Dirty::new(1 << 20);
        write(&mut dirty, CHUNK_BYTES - 3, &[1; 8]);
        write(&mut dirty, CHUNK_BYTES + 5, &[1; 2]);
        assert_eq!(records(&dirty, 0), [(CHUNK_BYTES as u32 - 3, 3)]);
        assert_eq!(records(&dirty, 1), [(0, 7)]);
        dirty.freeze();
        let commit = dirty.batch_commit().unwrap();
        assert_eq!(commit.length, CHUNK_BYTES + 7);
        let chunks: Vec<u32> = commit.slices.iter().map(|(chunk, _)| chunk.0).collect();
        assert_eq!(chunks, [0, 1]);
    }

    #[test]
    fn memory_follows_the_data() {
        for (len, most) in [
            (1, 4096),
            (4096, 4096),
            (5000, 8192),
            (65_536, 65_536),
            (70_000, 131_072),
        ] {
            let mut dirty = Dirty::new(4 << 20);
            let written = write(&mut dirty, 0, &vec![1; len]);
            assert!(
                (len as u64..=most).contains(&written.capacity),
                "{len}: {}",
                written.capacity
            );
            assert_eq!(
                write(&mut dirty, 0, &vec![2; len]).capacity,
                0,
                "rewritten in place"
            );
            assert!(write(&mut dirty, 0, &vec![2; len]).sealed.is_empty());
            assert_eq!(
                {
                    dirty.freeze();
                    dirty.take_batch().capacity
                },
                written.capacity
            );
            assert!(dirty.is_empty());
        }
    }

    #[test]
    fn the_batch_is_apart_from_later_writes() {
        let mut dirty = Dirty::new(10);
        dirty.write(0, &[1; 5], at(1), true, || SliceId(1));
        dirty.freeze();
        assert!(!dirty.has_open() && !dirty.is_empty());
        dirty.write(5, &[2; 5], at(2), false, || SliceId(2));
        assert_eq!(records(&dirty, 0), [(0, 5), (5, 5)]);
        let commit = dirty.batch_commit().unwrap();
        assert_eq!(
            (commit.length, commit.mtime, commit.kill_suid),
            (5, at(1), true)
        );
        assert_eq!(commit.slices.len(), 1);
        let all = DirtyAttr {
            length: 10,
            mtime: at(2),
            kill_suid: true,
        };
        assert_eq!(dirty.attr(), Some(all));
        dirty.take_batch();
        assert_eq!(
            dirty.attr(),
            Some(DirtyAttr {
                kill_suid: false,
                ..all
            })
        );
        assert_eq!(dirty.batch_commit(), None);
    }

    #[test]
    fn a_batch_fails_when_its_last_upload_has_ended() {
        let mut dirty = Dirty::new(10);
        let sealed = write(&mut dirty, 0, &[1; 25]).sealed;
        let tail = dirty.freeze();
        assert_eq!((sealed.len(), tail.len()), (2, 1));
        assert_eq!(dirty.batch_state(), BatchState::Uploading);
        dirty.uploaded(sealed[0], false);
        assert_eq!(dirty.batch_state(), BatchState::Uploading);
        assert_eq!(
            dirty.upload(sealed[1]),
            None,
            "no use in uploading the rest"
        );
        dirty.uploaded(sealed[1], false);
        dirty.uploaded(tail[0], true);
        assert_eq!(dirty.batch_state(), BatchState::Failed);
        assert_eq!(dirty.take_batch().blocks.len(), 3);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write {
            offset: usize,
            len: usize,
        },
        /// Lets the upload end that is the n-th in the queue.
        Upload(usize),
        Freeze,
        Commit,
        Read {
            offset: usize,
            len: usize,
        },
    }

    /// The rest of the system: uploads in progress, a store, and committed slices.
    struct World {
        dirty: Dirty,
        bytes: Vec<u8>,
        base: u64,
        uploads: Vec<BlockAt>,
        stored: HashMap<(SliceId, u32), Vec<u8>>,
        committed: HashMap<ChunkIndex, Vec<Slice>>,
        held: u64,
        block_bytes: u32,
    }

    impl World {
        fn new(block_bytes: u32, span: usize) -> World {
            World {
                dirty: Dirty::new(block_bytes),
                bytes: vec![0; 2 * span],
                base: CHUNK_BYTES - span as u64 / 2,
                uploads: Vec::new(),
                stored: HashMap::new(),
                committed: HashMap::new(),
                held: 0,
                block_bytes,
            }
        }

        fn play(&mut self, step: &Step, fill: u8) {
            match *step {
                Step::Write { offset, len } => {
                    let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add(i as u8) | 1).collect();
                    let written = write(&mut self.dirty, self.base + offset as u64, &data);
                    self.bytes[offset..offset + len].copy_from_slice(&data);
                    self.uploads.extend(written.sealed);
                    self.held += written.capacity;
                }
                Step::Upload(nth) if !self.uploads.is_empty() => {
                    let at = self.uploads.swap_remove(nth % self.uploads.len());
                    self.upload(at);
                }
                Step::Upload(_) => {}
                Step::Freeze => self.uploads.extend(self.dirty.freeze()),
                Step::Commit => self.commit(),
                Step::Read { offset, len } => {
                    assert_eq!(self.read(offset, len), self.bytes[offset..offset + len]);
                }
            }
        }

        fn upload(&mut self, at: BlockAt) {
            let (block, data) = self.dirty.upload(at).unwrap();
            let bytes = data.concat();
            assert_eq!(bytes.len(), block.size as usize);
            assert!(
                self.stored
                    .insert((block.slice, block.index), bytes)
                    .is_none()
            );
            self.held -= self.dirty.uploaded(at, true);
        }

        fn commit(&mut self) {
            self.uploads.extend(self.dirty.freeze());
            while let Some(at) = self.uploads.pop() {
                self.upload(at);
            }
            assert_eq!(self.dirty.batch_state(), BatchState::Stored);
            let Some(commit) = self.dirty.batch_commit() else {
                return;
            };
            for (chunk, slice) in commit.slices {
                self.committed.entry(chunk).or_default().push(slice);
            }
            self.held -= self.dirty.take_batch().capacity;
            assert_eq!(self.held, 0);
        }

        fn read(&self, offset: usize, len: usize) -> Vec<u8> {
            let mut out = Vec::new();
            for (chunk, range) in cut(self.base + offset as u64, len as u64) {
                let view = merge(self.committed.get(&chunk).map_or(&[][..], Vec::as_slice));
                for segment in lay(&view, &self.dirty.records(chunk, &range), range) {
                    self.read_segment(chunk, &segment, &mut out);
                }
            }
            out
        }

        fn read_segment(&self, chunk: ChunkIndex, segment: &Segment, out: &mut Vec<u8>) {
            let Source::Slice { id, off, .. } = segment.source else {
                out.extend(std::iter::repeat_n(0, segment.len as usize));
                return;
            };
            let mut pieces = Vec::new();
            if !self
                .dirty
                .read(chunk, id, off..off + segment.len, &mut pieces)
            {
                let byte = |i: u32| {
                    self.stored[&(id, i / self.block_bytes)][(i % self.block_bytes) as usize]
                };
                out.extend((off..off + segment.len).map(byte));
            }
            for piece in pieces {
                match piece {
                    Piece::Memory(bytes) => out.extend_from_slice(&bytes),
                    Piece::Stored { block, range } => {
                        let bytes = &self.stored[&(block.slice, block.index)];
                        out.extend_from_slice(&bytes[range.start as usize..range.end as usize]);
                    }
                }
            }
        }
    }

    fn steps(span: usize, max: usize) -> impl Strategy<Value = Vec<Step>> {
        let range = move || (0..span, 1..span / 2);
        let step = prop_oneof![
            5 => range().prop_map(|(offset, len)| Step::Write { offset, len }),
            3 => any::<usize>().prop_map(Step::Upload),
            1 => Just(Step::Freeze),
            1 => Just(Step::Commit),
            4 => range().prop_map(|(offset, len)| Step::Read { offset, len }),
        ];
        proptest::collection::vec(step, 1..max)
    }

    fn check(block_bytes: u32, span: usize, steps: &[Step]) {
        let mut world = World::new(block_bytes, span);
        for (step, fill) in steps.iter().zip((0..=255).cycle()) {
            world.play(step, fill);
        }
        world.commit();
        assert_eq!(world.read(0, world.bytes.len()), world.bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn reads_like_a_byte_array_in_small_blocks(steps in steps(100, 80)) {
            check(8, 100, &steps);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn reads_like_a_byte_array_in_pages(steps in steps(400_000, 30)) {
            check(150_000, 400_000, &steps);
        }
    }
}
