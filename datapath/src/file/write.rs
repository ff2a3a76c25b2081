//! Admission of a write: room, checks, one copy, publication.
//!
//! A writer waits for room before it enters the inode's gate, and it holds nothing else while it waits; a
//! flush needs no room. So waiting writers never keep a flush, nor a change that waits for writers to end,
//! from going on.

use sluice_meta::limits::FILE_BYTES_MAX;
use sluice_meta::types::Ino;

use super::dirty::cut;
use super::{FileState, Files, meta_passes};
use crate::cache::BlockIo;
use crate::error::{FsError, FsResult};

/// Uncommitted slices of one inode that start a flush in the background.
const SLICES_FLUSH: usize = 800;
/// Uncommitted slices of one inode that make writers wait for a flush: reading through more of them, and
/// committing them, takes too long.
const SLICES_MAX: usize = 2 * SLICES_FLUSH;

/// How a write is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// At the end of the file, wherever that is; the offset is ignored.
    pub append: bool,
    /// Takes the suid and sgid bits away.
    pub kill_suid: bool,
}

impl<B: BlockIo + 'static> Files<B> {
    /// Writes `data` at `offset`. The inode has been claimed on this core. Answers its length.
    pub async fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        options: WriteOptions,
    ) -> FsResult<usize> {
        let file = self.own(ino)?;
        file.shared.check_lost()?;
        if data.is_empty() {
            return Ok(0);
        }
        if file.dirty.borrow().slices() >= SLICES_MAX {
            self.flush_state(&file).await?;
        }
        let bytes = data.len() as u64;
        let room = match self.budget.try_take(bytes) {
            Some(room) => room,
            None => {
                self.relieve();
                self.budget.take(bytes).await
            }
        };
        let _gate = file.gate.read().await;
        let mut offset = offset;
        if options.append {
            self.length(&file.shared).await?;
        }
        // A write of any size touches at most this many chunks, wherever it lands.
        self.stock_ids(cut(0, bytes).count() + 1).await?;
        // Nothing suspends from here on.
        file.shared.check_lost()?;
        if options.append {
            offset = file.shared.length().1.ok_or(FsError::Interrupted)?;
        }
        if offset
            .checked_add(bytes)
            .is_none_or(|end| end > FILE_BYTES_MAX)
        {
            return Err(FsError::TooLarge);
        }
        let taken = self.buffer(&file, offset, data, options.kill_suid);
        room.turn_into(taken);
        if self.budget.is_short() {
            self.relieve();
        }
        Ok(data.len())
    }

    /// Copies the data, publishes it and starts uploads. Answers the memory it took.
    fn buffer(
        &self,
        file: &std::rc::Rc<FileState>,
        offset: u64,
        data: &[u8],
        kill_suid: bool,
    ) -> u64 {
        let mut dirty = file.dirty.borrow_mut();
        if !dirty.has_open() {
            self.dirtied.set(self.dirtied.get() + 1);
            file.since.set((self.ticks.get(), self.dirtied.get()));
        }
        let next_id = || {
            let id = self.spare_ids.borrow_mut().pop();
            id.expect("a write keeps one id in stock for each chunk it touches")
        };
        let written = dirty.write(offset, data, self.meta.now(), kill_suid, next_id);
        let (attr, slices) = (dirty.attr(), dirty.slices());
        drop(dirty);
        if let Some(attr) = attr {
            file.shared.set_dirty(attr);
        }
        for at in written.sealed {
            self.start_upload(file, at);
        }
        if slices >= SLICES_FLUSH {
            self.flush_behind(file);
        }
        written.capacity
    }

    async fn stock_ids(&self, count: usize) -> FsResult<()> {
        while self.spare_ids.borrow().len() < count {
            let id = self
                .retried(meta_passes, async || self.meta.alloc_slice().await)
                .await?;
            self.spare_ids.borrow_mut().push(id);
        }
        Ok(())
    }

    /// Makes room in the buffers while somebody waits for it: by flushing, oldest data first, unless uploads
    /// that are under way will free at least half of them anyway.
    fn relieve(&self) {
        if self.relieving.replace(true) {
            return;
        }
        self.spawn(async |files| {
            while files.budget.is_short() {
                let block_bytes = u64::from(files.blocks.block_bytes());
                let uploading = || files.uploads_pending.get() as u64 * block_bytes;
                let short = || files.budget.is_short();
                files
                    .budget
                    .freed()
                    .until(|| !short() || uploading() * 2 < files.budget.used())
                    .await;
                let Some(oldest) = files.oldest_dirty().filter(|_| short()) else {
                    break;
                };
                if let Err(error) = files.flush(oldest).await {
                    tracing::debug!(ino = %oldest, %error, "flush to make room failed");
                }
            }
            files.relieving.set(false);
        });
    }

    fn oldest_dirty(&self) -> Option<Ino> {
        let owned = self.owned.borrow();
        let dirty = owned
            .values()
            .filter(|state| !state.dirty.borrow().is_empty());
        dirty
            .min_by_key(|state| state.since.get())
            .map(|state| state.ino)
    }
}
