//! Compaction, the data part: the pieces of a chunk's list read and stored again as one slice, then the commit.
//!
//! [`compact_chunk`] is what the commands `compact` and `gc` call, and what a mount does by itself on the core
//! that owns a file when its commits have made a list long ([`Files::compact_behind`]). One block of the new slice is in
//! memory at a time. Invariants: `data-before-name` (the commit comes after the last block is stored),
//! `block-immutable` (the new slice has an id of its own).
//!
//! Failure: nothing is lost. Blocks of a slice that did not come into a list are removed; if it cannot be told
//! whether it did, they stay, and `gc` finds them when they are nobody's.

use bytes::Bytes;
use sluice_meta::client::Meta;
use sluice_meta::ops::compact::{Compacted, Plan};
use sluice_meta::types::{ChunkIndex, Ino, Slice, SliceId};

use super::Files;
use crate::cache::{BlockId, BlockIo, blocks_of};
use crate::error::{FsResult, ObjectError};

/// Chunks that a core compacts at the same time while it serves requests.
const COMPACTIONS_MAX: u32 = 2;
/// Compactions of one chunk in a row: a list grows by far fewer records meanwhile than each takes out.
const ROUNDS_MAX: u32 = 1000;

/// What a compaction came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    /// There was nothing to gain.
    Nothing,
    /// The list is shorter; so many bytes were written.
    Shorter(u64),
    /// Somebody else changed the list; what was written is removed.
    Lost,
}

/// Compacts the first part of a chunk's list that is worth it.
pub async fn compact_chunk(
    meta: &Meta,
    blocks: &impl BlockIo,
    ino: Ino,
    index: ChunkIndex,
) -> FsResult<Round> {
    let Some(compaction) = meta.plan_compaction(ino, index).await? else {
        return Ok(Round::Nothing);
    };
    let (id, size) = (meta.alloc_slice().await?, compaction.plan.size);
    if let Err(error) = rewrite(blocks, &compaction.plan, id).await {
        remove(blocks, id, size).await;
        return Err(error.into());
    }
    match meta.commit_compaction(&compaction, id).await {
        Ok(Compacted::Done(dead)) => {
            for (id, size) in dead {
                delete_slice(meta, blocks, id, size).await;
            }
            Ok(Round::Shorter(u64::from(size)))
        }
        Ok(Compacted::Lost) => {
            remove(blocks, id, size).await;
            Ok(Round::Lost)
        }
        Ok(Compacted::Unknown) => Ok(Round::Lost),
        Err(error) => {
            remove(blocks, id, size).await;
            Err(error.into())
        }
    }
}

/// Compacts a chunk until there is nothing left to gain; answers the bytes written.
pub async fn compact_fully(
    meta: &Meta,
    blocks: &impl BlockIo,
    ino: Ino,
    index: ChunkIndex,
) -> FsResult<u64> {
    let mut written = 0;
    for _ in 0..ROUNDS_MAX {
        match compact_chunk(meta, blocks, ino, index).await? {
            Round::Nothing => break,
            Round::Shorter(bytes) => written += bytes,
            Round::Lost => {}
        }
    }
    Ok(written)
}

/// Deletes a slice's objects, then its record. What fails is left to `gc`.
pub async fn delete_slice(meta: &Meta, blocks: &impl BlockIo, id: SliceId, size: u32) -> bool {
    if !remove(blocks, id, size).await {
        return false;
    }
    match meta.forget_slice(id, size).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(slice = id.0, %error, "record of a deleted slice stays for gc");
            false
        }
    }
}

async fn remove(blocks: &impl BlockIo, id: SliceId, size: u32) -> bool {
    let mut all = true;
    for block in blocks_of(id, size, blocks.block_bytes()) {
        if let Err(error) = blocks.remove(block).await {
            tracing::warn!(slice = id.0, index = block.index, %error, "a block stays for gc");
            all = false;
        }
    }
    all
}

/// Stores slice `id`, made of the plan's pieces.
async fn rewrite(blocks: &impl BlockIo, plan: &Plan, id: SliceId) -> Result<(), ObjectError> {
    let mut pieces = plan.pieces.iter().copied();
    let mut next = pieces.next();
    for block in blocks_of(id, plan.size, blocks.block_bytes()) {
        let mut data = Vec::new();
        let mut lacking = block.size;
        while let Some(piece) = next.as_mut().filter(|_| lacking > 0) {
            let taken = piece.len.min(lacking);
            read_piece(blocks, piece, taken, &mut data).await?;
            lacking -= taken;
            piece.len -= taken;
            piece.off += taken;
            if piece.len == 0 {
                next = pieces.next();
            }
        }
        assert_eq!(lacking, 0, "the pieces of a plan add up to its size");
        blocks.write(block, data).await?;
    }
    Ok(())
}

/// The first `len` bytes of a piece.
async fn read_piece(
    blocks: &impl BlockIo,
    piece: &Slice,
    len: u32,
    data: &mut Vec<Bytes>,
) -> Result<(), ObjectError> {
    if piece.id == SliceId::HOLE {
        data.push(Bytes::from(vec![0; len as usize]));
        return Ok(());
    }
    let block_bytes = blocks.block_bytes();
    let (mut at, end) = (piece.off, piece.off + len);
    while at < end {
        let index = at / block_bytes;
        let start = index * block_bytes;
        let block = BlockId {
            slice: piece.id,
            index,
            size: (piece.size - start).min(block_bytes),
        };
        let to = end.min(start + block.size);
        data.extend(blocks.read(block, at - start..to - start).await?);
        at = to;
    }
    Ok(())
}

impl<B: BlockIo + 'static> Files<B> {
    /// After a commit: compacts, in the background, the lists that it has made long. A few at a time; the rest
    /// has its turn when they are done.
    pub(super) fn compact_behind(&self) {
        if self.compacting.get() >= COMPACTIONS_MAX || !self.meta.has_long_lists() {
            return;
        }
        self.compacting.set(self.compacting.get() + 1);
        self.spawn(async move |files| {
            while let Some((ino, index)) = files.meta.take_long_list() {
                match compact_chunk(&files.meta, &*files.blocks, ino, index).await {
                    Ok(round) => {
                        tracing::debug!(%ino, index = index.0, ?round, "compacted a chunk");
                        // Readers would find the old slices gone and ask again; this spares them that.
                        if let Some(shared) = files.table.get(ino) {
                            shared.drop_views(shared.generation());
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%ino, index = index.0, %error, "a chunk's list stays long");
                    }
                }
            }
            files.compacting.set(files.compacting.get() - 1);
        });
    }
}
