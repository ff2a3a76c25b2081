//! COPY_FILE_RANGE: a range of a file becomes a range of another by metadata alone.
//!
//! Served by the core that owns the target, as every change of data; the request hops there at most once or twice.
//! The source is flushed first, where its data is: by an order to its owner if that is another core. Then the
//! target is changed as a whole (`file/change.rs`), which flushes it too and forgets its published views. The
//! kernel drops the target's pages itself, and goes on with the rest after a short copy.

use std::rc::Rc;

use sluice_meta::ops::Caller;
use sluice_meta::ops::copy_range::CopyRange;
use sluice_meta::types::Ino;
use tokio::sync::oneshot;

use super::Shard;
use super::dispatch::Answer;
use super::flush_all::{FlushOrder, FlushScope};
use super::handle::Handles;
use super::inode::Route;
use crate::error::{FsError, FsResult};
use crate::fuse::op;

impl Shard {
    pub(super) async fn copy_file_range(
        self: &Rc<Self>,
        caller: &Caller,
        from: Ino,
        copy: &op::CopyFileRange,
    ) -> FsResult<Answer> {
        if copy.flags != 0 {
            return Err(FsError::Invalid("copy_file_range flags"));
        }
        if !Handles::is_writable(copy.fh_out) {
            return Err(FsError::BadHandle);
        }
        let to = self.ino(copy.nodeid_out);
        if let Some(owner) = self.claim(to) {
            return Ok(Answer::Hop(owner));
        }
        if from != to {
            self.flush_at_owner(from).await?;
            // The target may have been given back meanwhile, and claimed by another core.
            if let Some(owner) = self.claim(to) {
                return Ok(Answer::Hop(owner));
            }
        }
        let range = CopyRange {
            from,
            from_offset: copy.offset_in,
            to,
            to_offset: copy.offset_out,
            length: copy.length,
            // The kernel leaves it to us and does not say who may keep them, as it does for writes.
            kill_suid: !caller.is_root(),
        };
        let bytes = self.files.copy_file_range(&range).await?;
        Ok(Answer::Copied(bytes))
    }

    /// Flushes what was written to a file before, on the core that has it.
    async fn flush_at_owner(&self, ino: Ino) -> FsResult<()> {
        let Route::Hop(owner) = self.files.route_read(ino) else {
            return self.files.flush(ino).await;
        };
        let (done, answer) = oneshot::channel();
        let order = FlushOrder {
            scope: FlushScope::Inode(ino),
            done,
        };
        let lost = || FsError::WriteLost {
            cause: "the source of a copy could not be flushed".to_owned(),
            errno: libc::EIO,
        };
        let Some(orders) = self.common.flushes.get(usize::from(owner.0)) else {
            return Err(lost());
        };
        if orders.post(order).is_err() {
            return Err(lost());
        }
        if answer.await.unwrap_or(false) {
            return Ok(());
        }
        // What was lost is published for all cores.
        match self.table.get(ino).map(|shared| shared.check_lost()) {
            Some(Err(error)) => Err(error),
            Some(Ok(())) | None => Err(lost()),
        }
    }
}
