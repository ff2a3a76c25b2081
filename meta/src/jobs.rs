//! Background work of a mount: plain async methods that the server calls on its timers.
//!
//! | method | when | on how many cores |
//! |---|---|---|
//! | [`session::Session::heartbeat`] | every [`crate::limits::HEARTBEAT`] | one |
//! | [`crate::client::Meta::clean_stale_sessions`] | after a heartbeat | one |
//! | [`crate::client::Meta::flush_dir_stats`] | every [`crate::limits::DIR_STAT_FLUSH`] | each, for its own |
//! | [`crate::client::Meta::load_quotas`] | with each heartbeat | one |
//! | [`crate::client::Meta::flush_quotas`] | every [`crate::limits::QUOTA_FLUSH`] | one, for all |
//! | [`crate::client::Meta::collect_deleted_files`] | every hour | one |
//! | [`crate::client::Meta::take_trash_job`], then [`crate::client::Meta::expire_trash`] and [`crate::client::Meta::expire_delayed_slices`] | every hour | one |
//! | [`crate::client::Meta::collect_dead_slices`] | every hour | one |
//! | [`crate::client::Meta::clean_detached`] | on demand (`gc`) | one |
//!
//! All of it is bounded, may fail and be called again, and never deletes objects: files to reclaim and slices
//! without references are answered to the caller, which paces `Meta::reclaim` and the deletion of objects. A
//! job that has run for [`crate::limits::JOB_BUDGET`] ends; what it left is for its next run.

use crate::types::{Ino, SliceId};

pub mod dead_slices;
pub mod delayed;
pub mod detached;
pub mod orphans;
pub mod quotas;
pub mod session;
pub mod trash;
pub mod usage;

/// A slice that nothing refers to: its objects are to be deleted, then `Meta::forget_slice` called.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeadSlice {
    /// The slice.
    pub id: SliceId,
    /// Its stored size.
    pub size: u32,
}

/// A file whose data is to be deleted: pass it to `Meta::reclaim`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeletedFile {
    /// The inode it was.
    pub ino: Ino,
    /// Its length at deletion.
    pub length: u64,
}
