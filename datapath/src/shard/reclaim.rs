//! Deleting the data of deleted files, in the background of the core that deleted them.
//!
//! The order is the format's: chunk lists and references first, in one commit per chunk, then the objects,
//! then the slice's record. A crash in between leaves the file in the volume's list of deleted files or the slice
//! with no references left: the hourly job of any client finishes the work. At shutdown what is queued is left
//! to that job as well.

use std::rc::Rc;

use sluice_meta::types::{Ino, SliceId};

use super::Shard;
use crate::cache::{BlockIo, blocks_of};

/// Files whose data a core deletes at the same time: background work must not crowd out requests.
const RECLAIMERS_MAX: u32 = 2;
/// Files queued per core; more are left to the hourly job.
const QUEUE_MAX: usize = 100_000;

impl Shard {
    /// Queues the data of a deleted file of this length.
    pub fn reclaim(self: &Rc<Self>, ino: Ino, length: u64) {
        // The borrow ends here: a spawned task may run at once, and takes from the queue.
        {
            let mut deleted = self.deleted.borrow_mut();
            if deleted.len() >= QUEUE_MAX {
                return;
            }
            deleted.push_back((ino, length));
        }
        if self.reclaimers.get() < RECLAIMERS_MAX {
            self.reclaimers.set(self.reclaimers.get() + 1);
            let shard = Rc::clone(self);
            self.background
                .spawn(async move { shard.reclaim_queued().await });
        }
    }

    async fn reclaim_queued(self: Rc<Self>) {
        loop {
            let next = self.deleted.borrow_mut().pop_front();
            let Some((ino, length)) = next else { break };
            self.reclaim_now(ino, length).await;
        }
        self.reclaimers.set(self.reclaimers.get() - 1);
    }

    /// Deletes the data of a deleted file of this length.
    pub async fn reclaim_now(&self, ino: Ino, length: u64) {
        match self.meta.reclaim(ino, length).await {
            Ok(slices) => {
                for (id, size) in slices {
                    self.delete_slice(id, size).await;
                }
            }
            Err(error) => {
                tracing::warn!(inode = ino.0, %error, "data of a deleted file stays for the next try");
            }
        }
    }

    async fn delete_slice(&self, id: SliceId, size: u32) {
        for block in blocks_of(id, size, self.blocks.block_bytes()) {
            if let Err(error) = self.blocks.remove(block).await {
                tracing::warn!(slice = id.0, %error, "object of a deleted slice stays for the next try");
                return;
            }
        }
        if let Err(error) = self.meta.forget_slice(id, size).await {
            tracing::warn!(slice = id.0, %error, "record of a deleted slice stays for the next try");
        }
    }
}
