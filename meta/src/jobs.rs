//! Background work of a mount: plain async methods that the server calls on its timers.
//!
//! | method | when | on how many cores |
//! |---|---|---|
//! | [`session::Session::heartbeat`] | every [`crate::limits::HEARTBEAT`] | one |
//! | [`crate::client::Meta::clean_stale_sessions`] | after a heartbeat | one |
//! | [`crate::client::Meta::flush_dir_stats`] | every [`crate::limits::DIR_STAT_FLUSH`] | each, for its own |
//! | [`crate::client::Meta::collect_deleted_files`] | every hour | one |
//!
//! All of it is bounded, may fail and be called again, and never deletes objects: files to reclaim are
//! answered to the caller, which paces `Meta::reclaim` and the deletion of objects.

use crate::types::Ino;

pub mod orphans;
pub mod session;
pub mod usage;

/// A file whose data is to be deleted: pass it to `Meta::reclaim`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeletedFile {
    /// The inode it was.
    pub ino: Ino,
    /// Its length at deletion.
    pub length: u64,
}
