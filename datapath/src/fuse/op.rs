//! What a request asks: one enum with a variant per operation.
//!
//! Made by `decode`, matched by the dispatcher. Plain values: names and data borrow from the request's
//! buffer, everything else is copied. What does not decode is a [`DecodeError`] with an error number.

use std::fmt;

use sluice_meta::types::Timestamp;
use zerocopy::FromBytes;

use super::abi;

/// A message that does not follow the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than its fixed part or than a length it states.
    #[error("message of {bytes} bytes is too short for its {part}")]
    Short {
        /// Bytes that were there.
        bytes: usize,
        /// What did not fit.
        part: &'static str,
    },
    /// The header's length is not the number of bytes received.
    #[error("header says {stated} bytes, {received} were received")]
    Length {
        /// From the header.
        stated: u32,
        /// From the read.
        received: usize,
    },
    /// A name without its NUL, empty, or with bytes after it.
    #[error("malformed {0}")]
    Name(&'static str),
    /// Offset or range beyond the largest file offset.
    #[error("offset {offset} with length {length} is out of range")]
    Offset {
        /// As sent.
        offset: u64,
        /// As sent.
        length: u64,
    },
    /// Nanoseconds not below 1e9.
    #[error("time with {0} nanoseconds")]
    Time(u32),
}

impl DecodeError {
    /// The error number to answer with.
    pub fn errno(self) -> i32 {
        match self {
            DecodeError::Offset { .. } | DecodeError::Time(_) => libc::EINVAL,
            DecodeError::Short { .. } | DecodeError::Length { .. } | DecodeError::Name(_) => {
                libc::EIO
            }
        }
    }
}

/// A time to set: the server's clock or a given one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// Now.
    Now,
    /// This one.
    At(Timestamp),
}

/// SETATTR: what is `Some` is to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setattr {
    /// Handle the change came through (`ftruncate`).
    pub fh: Option<u64>,
    /// Permission and type bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time; only with the writeback cache.
    pub ctime: Option<Timestamp>,
    /// Owner of a lock that permits the truncation.
    pub lock_owner: Option<u64>,
    /// Clear suid and, if group-executable, sgid.
    pub kill_suidgid: bool,
}

/// READ, READDIR and READDIRPLUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Handle.
    pub fh: u64,
    /// File offset; for directories the cookie of the last entry seen, 0 at the start.
    pub offset: u64,
    /// Most bytes of the answer.
    pub size: u32,
    /// `open(2)` flags of the file.
    pub flags: u32,
    /// Lock owner, when the kernel knows it.
    pub lock_owner: Option<u64>,
}

/// WRITE.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Write<'a> {
    /// Handle; a guess when `from_cache`.
    pub fh: u64,
    /// File offset.
    pub offset: u64,
    /// Bytes to write.
    pub data: &'a [u8],
    /// `open(2)` flags of the file.
    pub flags: u32,
    /// Written back from the page cache (mmap or writeback cache), not by the caller in the header.
    pub from_cache: bool,
    /// Clear suid and, if group-executable, sgid.
    pub kill_suidgid: bool,
    /// Lock owner, when the kernel knows it.
    pub lock_owner: Option<u64>,
}

impl fmt::Debug for Write<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.data.len();
        write!(
            f,
            "Write {{ fh: {}, offset: {}, bytes: {bytes} }}",
            self.fh, self.offset
        )
    }
}

/// CREATE and TMPFILE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Create<'a> {
    /// `open(2)` flags.
    pub flags: u32,
    /// Type and permission bits; the kernel has applied the umask.
    pub mode: u32,
    /// The caller's umask, for information.
    pub umask: u32,
    /// Clear suid and sgid if an existing file is truncated.
    pub kill_suidgid: bool,
    /// Name in the directory of the header; empty for TMPFILE.
    pub name: &'a [u8],
}

/// RELEASE and RELEASEDIR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// Handle: not used again.
    pub fh: u64,
    /// `open(2)` flags.
    pub flags: u32,
    /// Flush first.
    pub flush: bool,
    /// Drop the owner's `flock`.
    pub flock_unlock: bool,
    /// Lock owner.
    pub lock_owner: u64,
}

/// A POSIX lock or a `flock`: asked for or reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockOp {
    /// Handle.
    pub fh: u64,
    /// Lock owner.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive.
    pub end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: u32,
    /// Process.
    pub pid: u32,
    /// A `flock` on the whole file.
    pub flock: bool,
}

/// IOCTL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ioctl<'a> {
    /// Handle.
    pub fh: u64,
    /// `FUSE_IOCTL_*`.
    pub flags: u32,
    /// Command.
    pub cmd: u32,
    /// Argument as passed.
    pub arg: u64,
    /// Input bytes.
    pub input: &'a [u8],
    /// Most bytes of output.
    pub out_size: u32,
}

/// COPY_FILE_RANGE, from the node of the header to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyFileRange {
    /// Source handle.
    pub fh_in: u64,
    /// Source offset.
    pub offset_in: u64,
    /// Destination inode.
    pub nodeid_out: u64,
    /// Destination handle.
    pub fh_out: u64,
    /// Destination offset.
    pub offset_out: u64,
    /// Bytes.
    pub length: u64,
    /// Flags, 0 today.
    pub flags: u64,
}

/// The elements of BATCH_FORGET.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForgetList<'a> {
    /// Whole elements of 16 bytes.
    pub(super) raw: &'a [u8],
}

impl ForgetList<'_> {
    /// Pairs of inode and lookups to forget.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.raw
            .chunks_exact(size_of::<abi::ForgetOne>())
            .filter_map(|raw| {
                let one = abi::ForgetOne::read_from_bytes(raw).ok()?;
                Some((one.nodeid, one.nlookup))
            })
    }
}

/// One request, decoded. "The node" is `header.nodeid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "fields have the kernel's names; variants say what is special"
)]
pub enum Op<'a> {
    /// Find a name in the directory; the answer counts as one lookup.
    Lookup { name: &'a [u8] },
    /// Forget lookups of the node. No answer.
    Forget { nlookup: u64 },
    /// Forget lookups of many nodes. No answer.
    BatchForget { forgets: ForgetList<'a> },
    /// Attributes.
    Getattr { fh: Option<u64> },
    /// Change attributes.
    Setattr(Setattr),
    /// Target of a symbolic link.
    Readlink,
    /// Make a symbolic link.
    Symlink { name: &'a [u8], target: &'a [u8] },
    /// Make a file or special file.
    Mknod {
        mode: u32,
        rdev: u32,
        umask: u32,
        name: &'a [u8],
    },
    /// Make a directory.
    Mkdir {
        mode: u32,
        umask: u32,
        name: &'a [u8],
    },
    /// Remove a name that is not a directory.
    Unlink { name: &'a [u8] },
    /// Remove a directory.
    Rmdir { name: &'a [u8] },
    /// Rename, both versions; `flags` of `renameat2`, 0 from version 1.
    Rename {
        newdir: u64,
        flags: u32,
        name: &'a [u8],
        newname: &'a [u8],
    },
    /// Link `oldnodeid` into the directory.
    Link { oldnodeid: u64, newname: &'a [u8] },
    /// Open a file.
    Open { flags: u32, kill_suidgid: bool },
    /// Read a file.
    Read(Read),
    /// Write a file.
    Write(Write<'a>),
    /// Volume statistics.
    Statfs,
    /// Last close of a handle.
    Release(Release),
    /// Make a file durable.
    Fsync { fh: u64, datasync: bool },
    /// Set an extended attribute; `flags` is `XATTR_CREATE` or `XATTR_REPLACE`. `kill_sgid`: an ACL takes sgid
    /// away, if the kernel says anything about it.
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        kill_sgid: Option<bool>,
    },
    /// Read an extended attribute; size 0 asks for its size.
    Getxattr { name: &'a [u8], size: u32 },
    /// Names of extended attributes; size 0 asks for their size.
    Listxattr { size: u32 },
    /// Remove an extended attribute.
    Removexattr { name: &'a [u8] },
    /// A descriptor was closed.
    Flush { fh: u64, lock_owner: u64 },
    /// First message of a connection.
    Init(abi::InitIn),
    /// Open a directory.
    Opendir { flags: u32 },
    /// Read a directory.
    Readdir(Read),
    /// Read a directory with attributes; each entry counts as one lookup.
    Readdirplus(Read),
    /// Last close of a directory handle.
    Releasedir(Release),
    /// Make a directory durable.
    Fsyncdir { fh: u64, datasync: bool },
    /// Test a lock.
    Getlk(LockOp),
    /// Set or clear a lock.
    Setlk { lock: LockOp, wait: bool },
    /// `access(2)`; not sent with `default_permissions`.
    Access { mask: u32 },
    /// Make and open a file.
    Create(Create<'a>),
    /// The caller of request `unique` has a signal pending. No answer.
    Interrupt { unique: u64 },
    /// The connection ends; not sent to ordinary mounts.
    Destroy,
    /// `ioctl(2)`.
    Ioctl(Ioctl<'a>),
    /// Allocate, punch or zero a range.
    Fallocate {
        fh: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    /// `SEEK_DATA` and `SEEK_HOLE`.
    Lseek { fh: u64, offset: u64, whence: u32 },
    /// Copy within the volume.
    CopyFileRange(CopyFileRange),
    /// `statx(2)` beyond the basic attributes.
    Statx {
        fh: Option<u64>,
        flags: u32,
        mask: u32,
    },
    /// Make and open a file without a name in the directory.
    Tmpfile(Create<'a>),
    /// `syncfs(2)`.
    Syncfs,
    /// Not known here: answer ENOSYS.
    Unknown(u32),
}
