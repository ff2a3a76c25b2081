//! Changing a file's length.
//!
//! Whatever lies between the old and the new length is covered with holes, when growing as well as when
//! shrinking: records past the end stay in the lists, and must not show when the file grows again. Worked
//! example, from 200 MiB to 10 MiB (left = 10, right = 200; chunks are 64 MiB):
//! - chunk 0, which holds left: a hole over [10, 64), its list is made if there is none;
//! - chunks 1 and 2, strictly between: a hole over the whole chunk, only where there is a list;
//! - chunk 3, which holds right: a hole over [0, 8).

use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Item, Scan, Write};
use crate::error::MetaError;
use crate::limits;
use crate::ops::Caller;
use crate::ops::content::{ContentChange, chunk_at};
use crate::types::{Attr, CHUNK_BYTES, ChunkIndex, FileKind, Ino, Slice, attr_flags};

impl Meta {
    /// Changes a file's length. `handle` says that it is open for writing (in-trash and flag rules differ).
    /// Write permission is checked by the kernel.
    pub async fn truncate(
        &self,
        _caller: &Caller,
        ino: Ino,
        length: u64,
        handle: bool,
    ) -> MetaResult<Attr> {
        if length > limits::FILE_BYTES_MAX {
            return Err(MetaError::TooLarge);
        }
        self.change_content(ino, &[], async |old| {
            let frozen = old.flags & (attr_flags::IMMUTABLE | attr_flags::APPEND) != 0;
            if old.kind != FileKind::File || frozen || (!handle && old.in_trash()) {
                return Err(MetaError::NotPermitted);
            }
            if length == old.length {
                return Ok(None);
            }
            let now = self.now();
            let new = Attr {
                length,
                mtime: now,
                ctime: now,
                ..old.clone()
            };
            let (left, right) = (old.length.min(length), old.length.max(length));
            Ok(Some(ContentChange {
                new,
                records: self.zero_between(ino, left, right).await?,
                checks: Vec::new(),
            }))
        })
        .await
    }

    /// Holes over `[left, right)`, `left < right`.
    async fn zero_between(&self, ino: Ino, left: u64, right: u64) -> MetaResult<Vec<Write>> {
        let (first, first_pos) = chunk_at(left)?;
        let (last, last_pos) = chunk_at(right)?;
        let first_end = (u64::from(first.0) + 1) * CHUNK_BYTES;
        let len = (right.min(first_end) - left) as u32;
        let mut writes = vec![append(ino, first, Slice::hole(first_pos, len))];
        let full = Slice::hole(0, CHUNK_BYTES as u32);
        for index in self.chunks_between(ino, first, last, right).await? {
            writes.push(Write::AppendChunkIfPresent {
                ino,
                index,
                slices: vec![full],
            });
        }
        if right > first_end && last_pos > 0 {
            writes.push(append(ino, last, Slice::hole(0, last_pos)));
        }
        Ok(writes)
    }

    /// Chunks strictly between two: all of them, or only those with a list if there are very many.
    pub(crate) async fn chunks_between(
        &self,
        ino: Ino,
        first: ChunkIndex,
        last: ChunkIndex,
        length: u64,
    ) -> MetaResult<Vec<ChunkIndex>> {
        let between = first.0 + 1..last.0;
        if u64::from(last.0 - first.0) < limits::SPARSE_CHUNKS {
            return Ok(between.map(ChunkIndex).collect());
        }
        let mut found = Vec::new();
        let scan = Scan::Chunks { ino, length };
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::CHUNK_PAGE)
                .await?;
            found.extend(page.items.into_iter().filter_map(|item| match item {
                Item::Chunk { index, .. } if between.contains(&index.0) => Some(index),
                _ => None,
            }));
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

fn append(ino: Ino, index: ChunkIndex, slice: Slice) -> Write {
    Write::AppendChunk {
        ino,
        index,
        slices: vec![slice],
    }
}
