//! The bytes of one uncommitted slice. Pure: no I/O, no clock, no await.
//!
//! A slice grows at its end and may be rewritten only in its open tail. The tail is cut into pages, so that
//! a small file takes little memory and a growing one is never copied again. A full block leaves the tail at
//! once: it is *sealed*, immutable from then on, and handed to upload; once stored its bytes are dropped and
//! read back from the store. Freezing the slice seals the rest as a short last block.
//!
//! Memory is accounted by capacity. Each byte written is copied once, here; the first page of a slice alone
//! is copied again when it grows from 4 KiB to 64 KiB by doubling.

use std::ops::Range;

use bytes::Bytes;
use sluice_meta::types::{Slice, SliceId};

use crate::cache::BlockId;

/// Page of the open tail: what a file of a few bytes may cost at most once it has grown a little.
const PAGE_BYTES: usize = 64 << 10;
/// The first page starts with this.
const PAGE_BYTES_MIN: usize = 4 << 10;

/// The open tail of a slice.
#[derive(Default)]
struct Tail {
    /// All full but the last one.
    pages: Vec<Vec<u8>>,
    len: usize,
    capacity: u64,
}

impl Tail {
    /// Writes `data` at `at <= len`; overwrites and extends.
    fn write(&mut self, mut at: usize, mut data: &[u8]) {
        while !data.is_empty() {
            let (page, within) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let step = data.len().min(PAGE_BYTES - within);
            let (now, rest) = data.split_at(step);
            self.write_page(page, within, now);
            at += step;
            data = rest;
        }
        self.len = self.len.max(at);
    }

    fn write_page(&mut self, page: usize, within: usize, data: &[u8]) {
        if page == self.pages.len() {
            self.pages.push(Vec::new());
        }
        let first = page == 0;
        let bytes = &mut self.pages[page];
        let end = within + data.len();
        if end > bytes.capacity() {
            let before = bytes.capacity();
            let wanted = if first {
                end.next_power_of_two().max(PAGE_BYTES_MIN)
            } else {
                PAGE_BYTES
            };
            bytes.reserve_exact(wanted - bytes.len());
            self.capacity += (bytes.capacity() - before) as u64;
        }
        let overlap = data.len().min(bytes.len() - within);
        bytes[within..within + overlap].copy_from_slice(&data[..overlap]);
        bytes.extend_from_slice(&data[overlap..]);
    }

    /// Copies `range` out.
    fn read(&self, range: Range<usize>, out: &mut Vec<Bytes>) {
        let mut at = range.start;
        while at < range.end {
            let (page, within) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let step = (range.end - at).min(PAGE_BYTES - within);
            out.push(Bytes::copy_from_slice(
                &self.pages[page][within..within + step],
            ));
            at += step;
        }
    }
}

/// A sealed block.
struct Sealed {
    len: u32,
    /// Bytes that are held for it; 0 once it is stored.
    capacity: u64,
    /// Its bytes until it is stored.
    data: Option<Vec<Bytes>>,
}

/// Where bytes of an uncommitted slice are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Piece {
    /// Here.
    Memory(Bytes),
    /// In the store already.
    Stored {
        /// Block.
        block: BlockId,
        /// Bytes of it.
        range: Range<u32>,
    },
}

/// One slice that is not committed yet.
pub(super) struct OpenSlice {
    /// Its number.
    pub(super) id: SliceId,
    /// Place in the order of creation, over all chunks of the file.
    pub(super) seq: u64,
    /// First byte within the chunk.
    pub(super) pos: u32,
    /// No more writes: it belongs to the flush in progress.
    pub(super) frozen: bool,
    /// An upload failed: it will never be committed.
    pub(super) failed: bool,
    /// Uploads in progress.
    pub(super) uploading: u32,
    block_bytes: u32,
    sealed: Vec<Sealed>,
    tail: Tail,
    /// Memory held, by capacity.
    capacity: u64,
}

impl OpenSlice {
    /// A new slice, without bytes.
    pub(super) fn new(id: SliceId, seq: u64, pos: u32, block_bytes: u32) -> OpenSlice {
        OpenSlice {
            id,
            seq,
            pos,
            frozen: false,
            failed: false,
            uploading: 0,
            block_bytes,
            sealed: Vec::new(),
            tail: Tail::default(),
            capacity: 0,
        }
    }

    /// Bytes in full sealed blocks: below that nothing can be written any more.
    fn sealed_bytes(&self) -> u32 {
        // Only the last one can be short.
        self.sealed.last().map_or(0, |last| {
            (self.sealed.len() as u32 - 1) * self.block_bytes + last.len
        })
    }

    /// Bytes.
    pub(super) fn len(&self) -> u32 {
        // The tail is shorter than a block.
        self.sealed_bytes() + self.tail.len as u32
    }

    /// First byte behind it within the chunk.
    pub(super) fn end(&self) -> u32 {
        self.pos + self.len()
    }

    /// Whether a write at `pos` of the chunk can go into this slice: in its open tail or right behind it.
    pub(super) fn accepts(&self, pos: u32) -> bool {
        !self.frozen && !self.failed && pos >= self.pos + self.sealed_bytes() && pos <= self.end()
    }

    /// Whether it has bytes in `range` of the chunk.
    pub(super) fn overlaps(&self, range: &Range<u32>) -> bool {
        self.pos < range.end && self.end() > range.start
    }

    /// Its record in the slice list.
    pub(super) fn record(&self) -> Slice {
        Slice {
            pos: self.pos,
            id: self.id,
            size: self.len(),
            off: 0,
            len: self.len(),
        }
    }

    /// Writes at `pos` of the chunk, which the slice accepts. Answers which blocks are full now.
    pub(super) fn write(&mut self, pos: u32, mut data: &[u8]) -> Range<u32> {
        assert!(
            self.accepts(pos),
            "a write goes to the open tail of a slice"
        );
        let first_new = self.sealed.len() as u32;
        let mut at = (pos - self.pos - self.sealed_bytes()) as usize;
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(self.block_bytes as usize - at));
            let before = self.tail.capacity;
            self.tail.write(at, now);
            self.capacity += self.tail.capacity - before;
            at += now.len();
            data = rest;
            if self.tail.len == self.block_bytes as usize {
                self.seal();
                at = 0;
            }
        }
        first_new..self.sealed.len() as u32
    }

    fn seal(&mut self) {
        let tail = std::mem::take(&mut self.tail);
        self.sealed.push(Sealed {
            len: tail.len as u32,
            capacity: tail.capacity,
            data: Some(tail.pages.into_iter().map(Bytes::from).collect()),
        });
    }

    /// Ends the slice. Answers the index of its last block if that was still open.
    pub(super) fn freeze(&mut self) -> Option<u32> {
        self.frozen = true;
        if self.tail.len == 0 {
            return None;
        }
        self.seal();
        Some(self.sealed.len() as u32 - 1)
    }

    /// A sealed block with the bytes to upload; none if it is stored already.
    pub(super) fn upload(&self, index: u32) -> Option<(BlockId, Vec<Bytes>)> {
        let data = self.sealed.get(index as usize)?.data.clone()?;
        Some((self.block(index), data))
    }

    /// The block is in the store. Answers the bytes of memory this gives back.
    pub(super) fn stored(&mut self, index: u32) -> u64 {
        let Some(block) = self.sealed.get_mut(index as usize) else {
            return 0;
        };
        block.data = None;
        let freed = std::mem::take(&mut block.capacity);
        self.capacity -= freed;
        freed
    }

    /// Whether all of it is in the store.
    pub(super) fn is_stored(&self) -> bool {
        self.tail.len == 0 && self.sealed.iter().all(|block| block.data.is_none())
    }

    /// Memory held.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Its sealed blocks: those that may have reached the store.
    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        (0..self.sealed.len() as u32).map(|index| self.block(index))
    }

    fn block(&self, index: u32) -> BlockId {
        BlockId {
            slice: self.id,
            index,
            size: self.sealed[index as usize].len,
        }
    }

    /// Where the bytes `range` of the slice are.
    pub(super) fn read(&self, range: Range<u32>, out: &mut Vec<Piece>) {
        let mut at = range.start;
        while at < range.end {
            let index = at / self.block_bytes;
            let base = index * self.block_bytes;
            let end = range.end.min(base + self.block_bytes);
            self.read_block(index, at - base..end - base, out);
            at = end;
        }
    }

    fn read_block(&self, index: u32, range: Range<u32>, out: &mut Vec<Piece>) {
        let Some(block) = self.sealed.get(index as usize) else {
            let mut copies = Vec::new();
            self.tail
                .read(range.start as usize..range.end as usize, &mut copies);
            out.extend(copies.into_iter().map(Piece::Memory));
            return;
        };
        let Some(pages) = &block.data else {
            out.push(Piece::Stored {
                block: self.block(index),
                range,
            });
            return;
        };
        let (mut skip, mut left) = (range.start as usize, (range.end - range.start) as usize);
        for page in pages {
            if skip >= page.len() {
                skip -= page.len();
                continue;
            }
            let step = left.min(page.len() - skip);
            out.push(Piece::Memory(page.slice(skip..skip + step)));
            (skip, left) = (0, left - step);
            if left == 0 {
                break;
            }
        }
    }
}
