//! Uploads of sealed blocks: one task each, a bounded number at a time.

use std::rc::Rc;

use super::dirty::BlockAt;
use super::{FileState, Files};
use crate::cache::{BlockId, BlockIo};
use crate::error::{FsError, ObjectError};
use crate::shard::inode::Lost;

impl<B: BlockIo + 'static> Files<B> {
    /// Uploads a block, now or as soon as there is a slot. Its slice counts the upload already.
    pub(super) fn start_upload(&self, file: &Rc<FileState>, at: BlockAt) {
        self.uploads_pending.set(self.uploads_pending.get() + 1);
        let file = Rc::clone(file);
        self.spawn(async move |files| files.upload(&file, at).await);
    }

    async fn upload(&self, file: &FileState, at: BlockAt) {
        let slot = self.uploads.acquire().await;
        let job = file.dirty.borrow().upload(at);
        let stored = match job {
            // Another block of the slice failed: it will not be committed.
            None => false,
            Some((block, data)) => {
                let put = async || self.blocks.write(block, data.clone()).await;
                let passes = |error: &ObjectError| matches!(error, ObjectError::Io { .. });
                match self.retried(passes, put).await {
                    Ok(()) => true,
                    Err(error) => {
                        self.note_lost(file, FsError::Object(error));
                        false
                    }
                }
            }
        };
        drop(slot);
        let freed = file.dirty.borrow_mut().uploaded(at, stored);
        self.uploads_pending.set(self.uploads_pending.get() - 1);
        self.budget.release(freed);
        self.budget.freed().notify();
        file.progress.notify();
    }

    /// Marks the inode: data of it is lost.
    pub(super) fn note_lost(&self, file: &FileState, error: FsError) {
        tracing::error!(ino = %file.ino, %error, "written data is lost");
        file.shared.set_lost(Lost {
            cause: error.to_string(),
            errno: error.errno(),
        });
    }

    /// Removes blocks of slices that will never be committed.
    pub(super) async fn remove_blocks(&self, blocks: Vec<BlockId>) {
        for block in blocks {
            if let Err(error) = self.blocks.remove(block).await {
                // It stays behind as garbage, which `gc` finds.
                tracing::warn!(slice = block.slice.0, index = block.index, %error, "block not removed");
            }
        }
    }
}
