//! What metadata says about an inode's data: its length and the slices of its chunks, published or fetched.

use std::ops::Range;
use std::sync::Arc;

use sluice_meta::types::{ChunkIndex, FileKind, Ino};

use super::dirty::{cut, offset_of};
use super::overlay::{Segment, Source, lay, merge};
use super::{FileState, Files, meta_passes};
use crate::cache::BlockIo;
use crate::error::{FsError, FsResult};
use crate::shard::inode::InodeShared;

/// What a seek looks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Data,
    Hole,
}

/// Part of a chunk as it is at one moment.
pub(super) struct Snapshot {
    /// Generation it belongs to.
    pub(super) generation: u64,
    /// Covers exactly the part.
    pub(super) segments: Vec<Segment>,
}

impl<B: BlockIo + 'static> Files<B> {
    /// The length of the file, with uncommitted data.
    pub(super) async fn length(&self, shared: &InodeShared) -> FsResult<u64> {
        loop {
            let (generation, length) = shared.length();
            if let Some(length) = length {
                return Ok(length);
            }
            let ino = shared.ino();
            let attr = self
                .retried(meta_passes, async || self.meta.getattr(ino).await)
                .await?;
            if attr.kind != FileKind::File {
                return Err(FsError::Invalid("not a regular file"));
            }
            shared.publish_attr(generation, &attr);
        }
    }

    /// The committed segments of a chunk, with the generation they belong to.
    async fn view(
        &self,
        shared: &InodeShared,
        chunk: ChunkIndex,
    ) -> FsResult<(u64, Arc<[Segment]>)> {
        let (generation, published) = shared.view(chunk);
        if let Some(view) = published {
            return Ok((generation, view));
        }
        let ino = shared.ino();
        let slices = self
            .retried(meta_passes, async || self.meta.chunk(ino, chunk).await)
            .await?;
        let view: Arc<[Segment]> = merge(&slices).into();
        shared.publish_view(generation, chunk, Arc::clone(&view));
        Ok((generation, view))
    }

    /// The bytes `range` of a chunk, committed and, at the owner, uncommitted. Both are of the same moment,
    /// which is that of the return: callers take dirty bytes before they await anything else.
    pub(super) async fn snapshot(
        &self,
        shared: &InodeShared,
        file: Option<&FileState>,
        chunk: ChunkIndex,
        range: Range<u32>,
    ) -> FsResult<Snapshot> {
        loop {
            let (generation, view) = self.view(shared, chunk).await?;
            // A commit while the view was fetched moved data from the dirty side to the committed one.
            if shared.generation() != generation {
                continue;
            }
            let newer = match file {
                Some(file) => file.dirty.borrow().records(chunk, &range),
                None => Vec::new(),
            };
            return Ok(Snapshot {
                generation,
                segments: lay(&view, &newer, range),
            });
        }
    }

    /// `SEEK_DATA`: the first byte of data at or after `offset`.
    pub async fn seek_data(&self, ino: Ino, offset: u64) -> FsResult<u64> {
        self.seek(ino, offset, Wanted::Data).await
    }

    /// `SEEK_HOLE`: the first byte of a hole at or after `offset`; the end of the file counts as one.
    pub async fn seek_hole(&self, ino: Ino, offset: u64) -> FsResult<u64> {
        self.seek(ino, offset, Wanted::Hole).await
    }

    async fn seek(&self, ino: Ino, offset: u64, wanted: Wanted) -> FsResult<u64> {
        let file = self.owned(ino);
        let _gate = match &file {
            Some(file) => Some(file.gate.read().await),
            None => None,
        };
        let shared = self.shared(ino, file.as_ref());
        let length = self.length(&shared).await?;
        if offset >= length {
            return Err(FsError::NoSuchOffset);
        }
        let state = file.as_ref().map(|file| &*file.state);
        for (chunk, range) in cut(offset, length - offset) {
            let snapshot = self.snapshot(&shared, state, chunk, range).await?;
            let found = snapshot
                .segments
                .iter()
                .find(|segment| match segment.source {
                    Source::Hole => wanted == Wanted::Hole,
                    Source::Slice { .. } => wanted == Wanted::Data,
                });
            if let Some(segment) = found {
                return Ok(offset_of(chunk, segment.pos));
            }
        }
        match wanted {
            Wanted::Hole => Ok(length),
            Wanted::Data => Err(FsError::NoSuchOffset),
        }
    }

    /// The table's entry of an inode.
    pub(super) fn shared(&self, ino: Ino, file: Option<&super::Owned<'_, B>>) -> Arc<InodeShared> {
        match file {
            Some(file) => Arc::clone(&file.shared),
            None => self.table.get_or_detached(ino),
        }
    }
}
