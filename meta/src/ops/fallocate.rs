//! Reserving and zeroing ranges. Nothing is really reserved, as objects are written whole, and punching frees
//! no space at once: it appends holes, and compaction drops what they cover.

use crate::client::{Meta, MetaResult};
use crate::engine::Write;
use crate::error::MetaError;
use crate::limits;
use crate::ops::FallocateMode;
use crate::ops::content::{ContentChange, chunk_at};
use crate::types::{Attr, CHUNK_BYTES, ChunkIndex, FileKind, Ino, Slice, attr_flags};

impl FallocateMode {
    fn keeps_size(self) -> bool {
        match self {
            FallocateMode::Allocate => false,
            FallocateMode::KeepSize | FallocateMode::PunchHole => true,
            FallocateMode::ZeroRange { keep_size } => keep_size,
        }
    }

    fn zeroes(self) -> bool {
        matches!(
            self,
            FallocateMode::PunchHole | FallocateMode::ZeroRange { .. }
        )
    }
}

impl Meta {
    /// Reserves or zeroes a range. Times change even if nothing else does.
    pub async fn fallocate(
        &self,
        ino: Ino,
        mode: FallocateMode,
        offset: u64,
        length: u64,
    ) -> MetaResult<Attr> {
        if length == 0 {
            return Err(MetaError::Invalid("an empty range"));
        }
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= limits::FILE_BYTES_MAX);
        let end = end.ok_or(MetaError::TooLarge)?;
        self.change_content(ino, &[], async |old| {
            check_target(old, mode)?;
            let now = self.now();
            let grown = if mode.keeps_size() {
                old.length
            } else {
                old.length.max(end)
            };
            let new = Attr {
                length: grown,
                mtime: now,
                ctime: now,
                ..old.clone()
            };
            let end = end.min(old.length);
            let records = match mode.zeroes() && offset < end {
                true => self.zero_range(ino, offset, end, old.length).await?,
                false => Vec::new(),
            };
            Ok(Some(ContentChange {
                new,
                records,
                checks: Vec::new(),
            }))
        })
        .await
    }

    /// A hole for each chunk that `[from, to)` touches; of very many inner ones only for those with a list.
    async fn zero_range(
        &self,
        ino: Ino,
        from: u64,
        to: u64,
        length: u64,
    ) -> MetaResult<Vec<Write>> {
        let (first, _) = chunk_at(from)?;
        let (last, _) = chunk_at(to - 1)?;
        let mut indexes = self.chunks_between(ino, first, last, length).await?;
        indexes.insert(0, first);
        if last > first {
            indexes.push(last);
        }
        let hole = |index: ChunkIndex| {
            let start = u64::from(index.0) * CHUNK_BYTES;
            let (from, to) = (from.max(start), to.min(start + CHUNK_BYTES));
            let slices = vec![Slice::hole((from - start) as u32, (to - from) as u32)];
            Write::AppendChunk { ino, index, slices }
        };
        Ok(indexes.into_iter().map(hole).collect())
    }
}

fn check_target(attr: &Attr, mode: FallocateMode) -> MetaResult<()> {
    if attr.kind == FileKind::Fifo {
        return Err(MetaError::Pipe);
    }
    let immutable = attr.flags & attr_flags::IMMUTABLE != 0;
    // Append-only files may grow, but what they hold stays.
    let spoils = attr.flags & attr_flags::APPEND != 0 && mode.zeroes();
    if attr.kind != FileKind::File || immutable || spoils {
        return Err(MetaError::NotPermitted);
    }
    Ok(())
}
