//! The seam between transports and the dispatcher: where requests come from.
//!
//! Implemented by `queue_dev` (cloned `/dev/fuse` descriptors); called by the task that serves a core.
//! A queue belongs to the core that made it; the requests it yields may go anywhere.

use std::io;

use super::request::Request;

/// Why a queue gives no more requests.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The file system was unmounted: the orderly end.
    #[error("the file system was unmounted")]
    Unmounted,
    /// The connection was aborted through `/sys/fs/fuse/connections`.
    #[error("the FUSE connection was aborted")]
    Aborted,
    /// Reading requests failed in another way.
    #[error("cannot read requests from the kernel: {0}")]
    Io(#[source] io::Error),
}

/// A source of requests.
#[expect(
    async_fn_in_trait,
    reason = "used by the core that owns it; futures need not be Send"
)]
pub trait RequestQueue {
    /// The next request. Cancelling the wait loses nothing; several tasks may wait at once.
    async fn next(&self) -> Result<Request, QueueError>;
}
