//! Arguments and answers of the operations. The operations themselves are methods of [`crate::client::Meta`],
//! one file per family below this one, each written once over [`crate::engine`]'s records.
//!
//! Who checks permissions: mounts run with the kernel's `default_permissions`, so mode bits and ACLs are
//! checked before a request arrives. What the kernel does not know is checked here, for every caller but
//! root where the rule says so: sticky directories, immutable and append-only flags, trash, ownership
//! changes.

use bytes::Bytes;

use crate::changes::Moment;
use crate::engine::Cursor;
use crate::types::{Attr, ChunkIndex, FileKind, Ino, Name, Slice, Timestamp};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process, for logs.
    pub pid: u32,
}

impl Caller {
    /// The super-user, for tools and background work.
    pub const ROOT: Caller = Caller {
        uid: 0,
        gid: 0,
        pid: 0,
    };

    /// Whether ownership and sticky rules do not apply.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// A new inode of any type but symlink.
#[derive(Clone, Copy, Debug)]
pub struct NewInode {
    /// Type.
    pub kind: FileKind,
    /// Requested permission bits, `umask` not yet applied.
    pub mode: u16,
    /// The caller's umask.
    pub umask: u16,
    /// Device number, for device nodes.
    pub rdev: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's clock.
    Now,
    /// As given.
    At(Timestamp),
}

/// What to change; `None` leaves a field alone. Size changes go through `truncate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (`0o7777`).
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// Behaviour of a rename when the target exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail with `Exists`.
    NoReplace,
    /// Swap the two.
    Exchange,
    /// As `NoReplace`, from the trash; the target's directory may be in the trash itself.
    Restore,
}

/// What becomes of what is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposal {
    /// As the volume is set: into the trash, if it has one.
    Trash,
    /// Past the trash.
    Delete,
    /// Past the trash, and past the flags that protect it: for trees that nobody but their maker knows.
    Discard,
}

/// Source and destination of a rename.
#[derive(Clone, Debug)]
pub struct Rename {
    /// Directory of the source.
    pub from_parent: Ino,
    /// Name of the source.
    pub from_name: Name,
    /// Directory of the target.
    pub to_parent: Ino,
    /// Name of the target.
    pub to_name: Name,
    /// What if the target exists.
    pub mode: RenameMode,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags {
    /// Reading wanted.
    pub read: bool,
    /// Writing wanted.
    pub write: bool,
    /// `O_APPEND`.
    pub append: bool,
    /// `O_TRUNC`.
    pub truncate: bool,
}

/// What became of the inode behind a removed or replaced name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The inode.
    pub ino: Ino,
    /// Length of a regular file whose last link is gone and which nobody here holds open: its data is filed
    /// for deletion and the caller may start deleting it (`Meta::reclaim`). `None`: in the trash, other
    /// links, still open, or not a regular file.
    pub deleted: Option<u64>,
}

/// All slices of one flush of a file, and what they make of it. One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteCommit {
    /// Records in the order they were written. Their blocks are durable.
    pub slices: Vec<(ChunkIndex, Slice)>,
    /// The file becomes at least this long.
    pub length: u64,
    /// When the last of the writes happened.
    pub mtime: Timestamp,
    /// Whether suid and sgid are to be cleared, as a write by somebody other than root does.
    pub kill_suid: bool,
}

/// `fallocate` modes that are honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateMode {
    /// Reserve: grow the file to cover the range.
    Allocate,
    /// Reserve without growing: nothing to do on this format.
    KeepSize,
    /// Zeros in the range, size kept.
    PunchHole,
    /// Zeros in the range; grows the file unless `keep_size`.
    ZeroRange {
        /// Leave the size as it is.
        keep_size: bool,
    },
}

/// How `setxattr` treats an existing value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// Must be new.
    Create,
    /// Must exist.
    Replace,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name.
    pub name: Name,
    /// Inode.
    pub ino: Ino,
    /// Type.
    pub kind: FileKind,
    /// Attributes, when asked for.
    pub attr: Option<Attr>,
}

/// Part of a listing, without `.` and `..`.
#[derive(Clone, Debug)]
pub struct DirPage {
    /// Entries.
    pub entries: Vec<DirEntry>,
    /// Where to go on.
    pub next: Option<Cursor>,
    /// When it was read: for [`crate::changes::Changes::unchanged_since`].
    pub read: Moment,
}

/// What a lock shall become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Held together with other shared ones: for reading.
    Shared,
    /// Held alone: for writing.
    Exclusive,
    /// Not held.
    Unlock,
}

/// A POSIX lock on a range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLock {
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; [`RangeLock::END`] or more for whatever the file may become.
    pub end: u64,
    /// What these bytes shall be.
    pub kind: LockKind,
    /// The process that asks.
    pub pid: u32,
}

impl RangeLock {
    /// Largest offset there is.
    pub const END: u64 = i64::MAX as u64;

    /// Gives up everything that an owner holds.
    pub const RELEASE: RangeLock = RangeLock {
        start: 0,
        end: RangeLock::END,
        kind: LockKind::Unlock,
        pid: 0,
    };

    /// Whether this leaves the owner nothing, whatever it holds.
    pub fn releases_all(&self) -> bool {
        self.kind == LockKind::Unlock && self.start == 0 && self.end >= RangeLock::END
    }
}

/// Volume usage as `statfs` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes in all.
    pub total: u64,
    /// Bytes free.
    pub available: u64,
    /// Inodes used.
    pub inodes_used: u64,
    /// Inodes free.
    pub inodes_available: u64,
}

mod acl;
mod atime;
pub mod batch_unlink;
pub mod clone;
pub mod compact;
mod content;
pub mod copy_range;
mod create;
pub mod credentials;
mod doubt;
pub mod elsewhere;
mod fallocate;
mod flags;
pub(crate) mod growth;
mod link;
pub(crate) mod locks;
mod lookup;
mod names;
mod open;
mod plan;
mod readdir;
mod reclaim;
mod removal;
pub mod remove_tree;
mod rename;
mod resolve;
pub(crate) mod rules;
mod setattr;
mod slices;
mod spelling;
mod statfs;
pub mod summary;
pub(crate) mod together;
pub(crate) mod trash;
mod truncate;
mod unlink;
mod xattr;

pub use self::acl::{AclKind, SgidRule};
pub use self::atime::AtimeMode;
pub use self::flags::FlagChange;
pub use self::spelling::NameMatch;

/// Extended attribute values and link targets.
pub type Value = Bytes;
