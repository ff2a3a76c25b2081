//! The kernel's wire format: opcodes, flags and the fixed structs of `linux/fuse.h`, ABI 7.45.
//!
//! Called by `request` (decoding), `reply`, `negotiate` and `notify` (encoding). Owns nothing and has no
//! behaviour: every struct is the kernel's, field for field and in the machine's byte order, and its
//! size is asserted at compile time. Bytes become structs only through `zerocopy`, which cannot fail
//! except by being too short; that is `request`'s error to report.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Major version of the protocol; the kernel has spoken 7 since 2006.
pub const KERNEL_VERSION: u32 = 7;
/// Highest minor version whose messages this module describes.
pub const KERNEL_MINOR_VERSION: u32 = 45;
/// Oldest minor version served: below it `copy_file_range`, `max_pages` and newer struct sizes are missing.
pub const KERNEL_MINOR_OLDEST: u32 = 31;
/// Node id of the root directory.
pub const ROOT_ID: u64 = 1;
/// A read of `/dev/fuse` with a smaller buffer is refused by the kernel.
pub const MIN_READ_BUFFER: usize = 8192;
/// Bytes of header and fixed struct before the data of a WRITE: the most that precedes any payload.
pub const WRITE_PREFIX: usize = size_of::<InHeader>() + size_of::<WriteIn>();
/// Largest error number the kernel accepts in a reply.
pub const ERRNO_MAX: i32 = 511;

/// Request codes.
#[expect(
    missing_docs,
    reason = "the kernel's names, each an operation of the same name"
)]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// The operation's name for logs and statistics, `unknown` for a code this module does not know.
pub fn opcode_name(code: u32) -> &'static str {
    match code {
        opcode::LOOKUP => "lookup",
        opcode::FORGET => "forget",
        opcode::GETATTR => "getattr",
        opcode::SETATTR => "setattr",
        opcode::READLINK => "readlink",
        opcode::SYMLINK => "symlink",
        opcode::MKNOD => "mknod",
        opcode::MKDIR => "mkdir",
        opcode::UNLINK => "unlink",
        opcode::RMDIR => "rmdir",
        opcode::RENAME | opcode::RENAME2 => "rename",
        opcode::LINK => "link",
        opcode::OPEN => "open",
        opcode::READ => "read",
        opcode::WRITE => "write",
        opcode::STATFS => "statfs",
        opcode::RELEASE => "release",
        opcode::FSYNC => "fsync",
        opcode::SETXATTR => "setxattr",
        opcode::GETXATTR => "getxattr",
        opcode::LISTXATTR => "listxattr",
        opcode::REMOVEXATTR => "removexattr",
        opcode::FLUSH => "flush",
        opcode::INIT => "init",
        opcode::OPENDIR => "opendir",
        opcode::READDIR => "readdir",
        opcode::RELEASEDIR => "releasedir",
        opcode::FSYNCDIR => "fsyncdir",
        opcode::GETLK => "getlk",
        opcode::SETLK => "setlk",
        opcode::SETLKW => "setlkw",
        opcode::ACCESS => "access",
        opcode::CREATE => "create",
        opcode::INTERRUPT => "interrupt",
        opcode::BMAP => "bmap",
        opcode::DESTROY => "destroy",
        opcode::IOCTL => "ioctl",
        opcode::POLL => "poll",
        opcode::NOTIFY_REPLY => "notify_reply",
        opcode::BATCH_FORGET => "batch_forget",
        opcode::FALLOCATE => "fallocate",
        opcode::READDIRPLUS => "readdirplus",
        opcode::LSEEK => "lseek",
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => "copy_file_range",
        opcode::SETUPMAPPING => "setupmapping",
        opcode::REMOVEMAPPING => "removemapping",
        opcode::SYNCFS => "syncfs",
        opcode::TMPFILE => "tmpfile",
        opcode::STATX => "statx",
        _ => "unknown",
    }
}

/// Bits of the INIT flags, low word (`flags`) and high word (`flags2`) as one number.
#[expect(
    missing_docs,
    reason = "the kernel's names; what we do with each is in `negotiate`"
)]
pub mod init_flag {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const ABORT_ERROR: u64 = 1 << 21;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// Bits of the answer to OPEN and CREATE.
pub mod open_flag {
    /// Bypass the page cache for this handle.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Keep cached pages of earlier opens.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// The file cannot seek.
    pub const NONSEEKABLE: u32 = 1 << 2;
    /// Cache the directory listing (OPENDIR).
    pub const CACHE_DIR: u32 = 1 << 3;
    /// The file has no position.
    pub const STREAM: u32 = 1 << 4;
    /// Do not send FLUSH on close.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Direct writes of one inode may run side by side.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Bits of `SetattrIn::valid`.
#[expect(
    missing_docs,
    reason = "the kernel's names: which field of the struct counts"
)]
pub mod setattr_valid {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCKOWNER: u32 = 1 << 9;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `GetattrIn::getattr_flags`: `fh` is valid.
pub const GETATTR_FH: u32 = 1 << 0;
/// `WriteIn::write_flags`: written back from the page cache, the handle is a guess.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `WriteIn::write_flags`: `lock_owner` is valid.
pub const WRITE_LOCKOWNER: u32 = 1 << 1;
/// `WriteIn::write_flags`: the server clears suid and sgid (HANDLE_KILLPRIV_V2).
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `ReadIn::read_flags`: `lock_owner` is valid.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// `FsyncIn::fsync_flags`: `fdatasync`.
pub const FSYNC_DATASYNC: u32 = 1 << 0;
/// `OpenIn::open_flags`: truncation by open clears suid and sgid (HANDLE_KILLPRIV_V2).
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `ReleaseIn::release_flags`: flush as well.
pub const RELEASE_FLUSH: u32 = 1 << 0;
/// `ReleaseIn::release_flags`: drop the owner's `flock`.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `SetxattrExtIn::setxattr_flags`: an ACL is set by somebody outside of the group: sgid goes.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// `LkIn::lk_flags`: a `flock`, not a POSIX lock.
pub const LK_FLOCK: u32 = 1 << 0;
/// Notification: drop cached pages and attributes of an inode.
pub const NOTIFY_INVAL_INODE: i32 = 2;
/// Notification: drop a cached name.
pub const NOTIFY_INVAL_ENTRY: i32 = 3;
/// `ioctl` on `/dev/fuse`: attach this descriptor to the connection of another.
pub const DEV_IOC_CLONE: u64 = 0x8004_e500;

/// Declares wire structs: C layout, every field public, size checked against the kernel's.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident[$size:literal] { $($field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[expect(missing_docs, reason = "fields are the kernel's, by the same name")]
        pub struct $name { $(pub $field: $kind,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

wire! {
    /// First bytes of every request.
    InHeader[40] { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16, }
    /// First bytes of every reply; `error` is 0 or a negative error number.
    OutHeader[16] { len: u32, error: i32, unique: u64, }
    /// Attributes of an inode.
    Attr[88] {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32,
        rdev: u32, blksize: u32, flags: u32,
    }
    /// Answer to LOOKUP and everything that makes an inode.
    EntryOut[128] {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// Answer to GETATTR and SETATTR.
    AttrOut[104] { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// FORGET.
    ForgetIn[8] { nlookup: u64, }
    /// One element of BATCH_FORGET.
    ForgetOne[16] { nodeid: u64, nlookup: u64, }
    /// BATCH_FORGET, before its elements.
    BatchForgetIn[8] { count: u32, dummy: u32, }
    /// GETATTR.
    GetattrIn[16] { getattr_flags: u32, dummy: u32, fh: u64, }
    /// SETATTR.
    SetattrIn[88] {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// MKNOD, before the name.
    MknodIn[16] { mode: u32, rdev: u32, umask: u32, padding: u32, }
    /// MKDIR, before the name.
    MkdirIn[8] { mode: u32, umask: u32, }
    /// RENAME, before the names.
    RenameIn[8] { newdir: u64, }
    /// RENAME2, before the names.
    Rename2In[16] { newdir: u64, flags: u32, padding: u32, }
    /// LINK, before the name.
    LinkIn[8] { oldnodeid: u64, }
    /// OPEN and OPENDIR.
    OpenIn[8] { flags: u32, open_flags: u32, }
    /// CREATE and TMPFILE, before the name.
    CreateIn[16] { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// Answer to OPEN and OPENDIR; follows the entry in the answer to CREATE.
    OpenOut[16] { fh: u64, open_flags: u32, backing_id: i32, }
    /// RELEASE and RELEASEDIR.
    ReleaseIn[24] { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// FLUSH.
    FlushIn[24] { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    /// READ, READDIR and READDIRPLUS.
    ReadIn[40] { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// WRITE, before the data.
    WriteIn[40] { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32, }
    /// Answer to WRITE and COPY_FILE_RANGE.
    WriteOut[8] { size: u32, padding: u32, }
    /// Answer to STATFS.
    StatfsOut[80] {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// FSYNC and FSYNCDIR.
    FsyncIn[16] { fh: u64, fsync_flags: u32, padding: u32, }
    /// SETXATTR without SETXATTR_EXT, before name and value.
    SetxattrIn[8] { size: u32, flags: u32, }
    /// What follows with SETXATTR_EXT, before name and value.
    SetxattrExtIn[8] { setxattr_flags: u32, padding: u32, }
    /// GETXATTR and LISTXATTR.
    GetxattrIn[8] { size: u32, padding: u32, }
    /// Answer to GETXATTR and LISTXATTR when only the size was asked.
    GetxattrOut[8] { size: u32, padding: u32, }
    /// A lock range, both ends inclusive.
    FileLock[24] { start: u64, end: u64, kind: u32, pid: u32, }
    /// GETLK, SETLK and SETLKW.
    LkIn[48] { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32, }
    /// Answer to GETLK.
    LkOut[24] { lk: FileLock, }
    /// ACCESS.
    AccessIn[8] { mask: u32, padding: u32, }
    /// INIT of ABI 7.36 and later; older kernels send the first 16 bytes.
    InitIn[64] { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11], }
    /// Answer to INIT.
    InitOut[64] {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// INTERRUPT.
    InterruptIn[8] { unique: u64, }
    /// IOCTL, before its input.
    IoctlIn[32] { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    /// Answer to IOCTL, before its output.
    IoctlOut[16] { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    /// FALLOCATE.
    FallocateIn[32] { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// LSEEK.
    LseekIn[24] { fh: u64, offset: u64, whence: u32, padding: u32, }
    /// Answer to LSEEK.
    LseekOut[8] { offset: u64, }
    /// COPY_FILE_RANGE and COPY_FILE_RANGE_64.
    CopyFileRangeIn[56] { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64, }
    /// Answer to COPY_FILE_RANGE_64.
    CopyFileRangeOut[8] { bytes_copied: u64, }
    /// STATX.
    StatxIn[24] { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
    /// A time of STATX.
    SxTime[16] { tv_sec: i64, tv_nsec: u32, reserved: i32, }
    /// Attributes as STATX has them.
    Statx[256] {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16,
        ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// Answer to STATX.
    StatxOut[288] { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx, }
    /// One name of READDIR, before the name; padded to 8 bytes.
    Dirent[24] { ino: u64, off: u64, namelen: u32, kind: u32, }
    /// Notification NOTIFY_INVAL_INODE.
    NotifyInvalInodeOut[24] { ino: u64, off: i64, len: i64, }
    /// Notification NOTIFY_INVAL_ENTRY, before the name and its NUL.
    NotifyInvalEntryOut[16] { parent: u64, namelen: u32, flags: u32, }
}

const _: () = assert!(WRITE_PREFIX == 80);
