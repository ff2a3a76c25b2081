//! Blocks of slices, through the cache: what `file` reads and writes through.
//!
//! Reading order: [`BlockIo`] is what `file` knows of all this; `blocks` implements it over the process's one
//! page cache (`hybrid`: memory, and a disk if there is one) and this core's object store, with one fetch at
//! a time for each page (`single_flight`).
//!
//! The cached unit is a page of a block: 128 KiB of plain volumes, so that a read of 4 KiB does not move a
//! block of 4 MiB; the whole block where it is compressed or encrypted and can only be had as a whole.
//!
//! Invariants: `cache-is-copy` (losing the cache loses nothing), `missing-is-error` (an absent block is an
//! error, never zeros). Failure: faults of the cache's disk make misses, never errors; faults of the object
//! store are those of the reader, and of those who waited for the same page.
//!
//! Counters, summed over all cores; a core adds its hits when it has a few dozen of them, so they may lag:
//!
//! | name | counts |
//! |---|---|
//! | `sluice_cache_hits_total`, `sluice_cache_hit_bytes_total` | pages found in memory, bytes given from them |
//! | `sluice_cache_disk_hits_total`, `sluice_cache_disk_hit_bytes_total` | pages found on the cache's disk |
//! | `sluice_cache_misses_total`, `sluice_cache_miss_bytes_total` | pages fetched from the object store |
//! | `sluice_cache_waits_total` | pages that another reader was fetching already |

pub mod blocks;
pub mod hybrid;
mod single_flight;

use std::ops::Range;

use bytes::Bytes;
use sluice_meta::types::SliceId;

use crate::error::ObjectError;

pub use blocks::{Blocks, CacheWrites};
pub use hybrid::{CacheError, CacheOptions, DiskOptions, PageCache, page_bytes};

/// One block of a slice: one object in the store, written once, never changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockId {
    /// Slice it belongs to.
    pub slice: SliceId,
    /// Index within the slice.
    pub index: u32,
    /// Plain bytes in it: the volume's block size, less for the last block of a slice. Part of its name.
    pub size: u32,
}

/// Reading and writing blocks. The server's is `Blocks`; tests put a faulty twin in its place.
#[expect(
    async_fn_in_trait,
    reason = "used by the core that owns it; futures need not be Send"
)]
pub trait BlockIo {
    /// The volume's block size in bytes.
    fn block_bytes(&self) -> u32;
    /// Bytes `range` of the block, as pieces that add up to exactly the range. `range.end <= block.size`.
    async fn read(&self, block: BlockId, range: Range<u32>) -> Result<Vec<Bytes>, ObjectError>;
    /// Stores a block; durable when this returns (unless the mount chose otherwise). `data` adds up to
    /// `block.size` bytes.
    async fn write(&self, block: BlockId, data: Vec<Bytes>) -> Result<(), ObjectError>;
    /// Deletes a block; one that is not there is deleted already.
    async fn remove(&self, block: BlockId) -> Result<(), ObjectError>;
}

/// The blocks of a slice of `size` bytes.
pub fn blocks_of(slice: SliceId, size: u32, block_bytes: u32) -> impl Iterator<Item = BlockId> {
    (0..size.div_ceil(block_bytes)).map(move |index| BlockId {
        slice,
        index,
        size: (size - index * block_bytes).min(block_bytes),
    })
}
