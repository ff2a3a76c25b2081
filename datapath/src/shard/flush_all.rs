//! Flushing what all cores hold: asked for by tools that are about to work past the mount, by reading a virtual
//! attribute ([`crate::commands::FLUSH_XATTR`]).
//!
//! The core where the request arrived orders each core to flush, itself too, and waits for all. What is written
//! meanwhile may be in it or not. Nobody is kept from writing, and a failure is also reported to whoever wrote.
//! One file alone is flushed for whoever copies from it on another core (`copy_range`).

use std::rc::Rc;

use sluice_meta::types::Ino;
use tokio::sync::oneshot;

use super::Shard;
use crate::error::{FsError, FsResult};
use crate::runtime::{Mailbox, PostError};

/// An order to flush.
#[derive(Debug)]
pub struct FlushOrder {
    /// What.
    pub scope: FlushScope,
    /// Answered with whether all of it is in the volume.
    pub done: oneshot::Sender<bool>,
}

/// What to flush of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushScope {
    /// Everything.
    All,
    /// The data of an inode.
    Inode(Ino),
}

/// Orders that may wait for a core.
const ORDERS_MAX: usize = 4096;

/// A mailbox for orders.
pub fn orders() -> Mailbox<FlushOrder> {
    Mailbox::new(ORDERS_MAX)
}

impl Shard {
    /// Carries out orders until the mailbox is closed.
    pub(super) async fn serve_flushes(self: Rc<Self>) {
        let orders = &self.common.flushes[usize::from(self.core.0)];
        while let Some(order) = orders.recv().await {
            // Side by side: a copy does not wait for a tool.
            let shard = Rc::clone(&self);
            self.tasks
                .spawn(async move { shard.obey_flush(order).await });
        }
    }

    async fn obey_flush(&self, order: FlushOrder) {
        let flushed = match order.scope {
            FlushScope::All => self.files.flush_present().await,
            FlushScope::Inode(ino) => self.files.flush(ino).await,
        };
        if let Err(error) = &flushed {
            tracing::warn!(scope = ?order.scope, %error, "not everything could be flushed");
        }
        // Whoever asked may have gone.
        let _ = order.done.send(flushed.is_ok());
    }

    /// Flushes what was written before, on all cores. `EIO` if some of it is lost.
    pub(super) async fn flush_everywhere(&self) -> FsResult<()> {
        let mut waiting = Vec::with_capacity(self.common.flushes.len());
        for core in &self.common.flushes {
            let (done, answer) = oneshot::channel();
            let scope = FlushScope::All;
            match core.post(FlushOrder { scope, done }) {
                Ok(()) => waiting.push(answer),
                // The mount ends, and flushes everything as it does.
                Err(PostError::Closed(_)) => {}
                Err(PostError::Full(_)) => return Err(FsError::NotSupported),
            }
        }
        for answer in waiting {
            if !answer.await.unwrap_or(false) {
                return Err(FsError::WriteLost {
                    cause: "something that was written could not be flushed".to_owned(),
                    errno: libc::EIO,
                });
            }
        }
        self.meta.sync().await?;
        Ok(())
    }
}
