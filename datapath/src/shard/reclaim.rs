//! Deleting data that nothing refers to any more, in the background of the core that learned of it: of deleted
//! files, and slices that a job found.
//!
//! The order is the format's: chunk lists and references first, in one commit per chunk, then the objects,
//! then the slice's record. A crash in between leaves the file in the volume's list of deleted files or the slice
//! with no references left: the hourly jobs of any client finish the work. At shutdown what is queued is left
//! to those as well.

use std::rc::Rc;

use metrics::counter;
use sluice_meta::jobs::DeadSlice;
use sluice_meta::types::{Ino, SliceId};

use super::Shard;
use crate::cache::{BlockIo, blocks_of};

/// Things a core deletes at the same time: background work must not crowd out requests.
const RECLAIMERS_MAX: u32 = 2;
/// Things queued per core; more are left to the hourly jobs.
const QUEUE_MAX: usize = 100_000;

/// Something to delete.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unused {
    /// The data of a deleted file of this length.
    File(Ino, u64),
    /// A slice without references.
    Slice(DeadSlice),
}

impl Shard {
    /// Queues the data of a deleted file of this length.
    pub fn reclaim(self: &Rc<Self>, ino: Ino, length: u64) {
        self.delete_later(Unused::File(ino, length));
    }

    /// Queues the objects of a slice that nothing refers to.
    pub fn reclaim_slice(self: &Rc<Self>, slice: DeadSlice) {
        self.delete_later(Unused::Slice(slice));
    }

    fn delete_later(self: &Rc<Self>, unused: Unused) {
        // The borrow ends here: a spawned task may run at once, and takes from the queue.
        {
            let mut queue = self.unused.borrow_mut();
            if queue.len() >= QUEUE_MAX {
                return;
            }
            queue.push_back(unused);
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
            let next = self.unused.borrow_mut().pop_front();
            match next {
                Some(Unused::File(ino, length)) => self.reclaim_now(ino, length).await,
                Some(Unused::Slice(slice)) => self.delete_slice(slice.id, slice.size).await,
                None => break,
            }
        }
        self.reclaimers.set(self.reclaimers.get() - 1);
    }

    /// Deletes the data of a deleted file of this length.
    pub async fn reclaim_now(&self, ino: Ino, length: u64) {
        match self.meta.reclaim(ino, length).await {
            Ok(slices) => {
                counter!("sluice_reclaimed_files_total").increment(1);
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
        match self.meta.forget_slice(id, size).await {
            Ok(()) => counter!("sluice_reclaimed_slices_total").increment(1),
            Err(error) => {
                tracing::warn!(slice = id.0, %error, "record of a deleted slice stays for the next try");
            }
        }
    }
}
