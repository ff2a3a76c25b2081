//! Answers to the kernel: one write of header and pieces, exactly once per request.
//!
//! Called by the dispatcher, on any thread. A [`Reply`] owns the duty to answer one request; each of its
//! methods consumes it. Dropping it unanswered answers EIO and logs, so that a lost request never
//! leaves its caller in uninterruptible sleep. Operations without an answer (FORGET, BATCH_FORGET,
//! INTERRUPT) are dropped silently, or ended with [`Reply::none`].
//!
//! The bytes go to a [`ReplySink`]: the descriptor (or ring entry) the request came from, because the
//! kernel finds a request only there. Data pieces are not copied: one vectored write carries them.
//!
//! Failures. ENOENT: the request was aborted, nobody waits ([`Delivery::Aborted`]: what the answer
//! would have created, a lookup count or a handle, does not exist for the kernel and is the caller's
//! to undo). ENODEV and friends: the mount is gone. Any other error is logged and answered with EIO once.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use async_lock::SemaphoreGuardArc;
use bytes::Bytes;
use sluice_meta::types::Timestamp;
use zerocopy::IntoBytes;

use super::abi::{self, InHeader, OutHeader, opcode};
use super::op::LockOp;

/// A slot of the queue's bound on requests in flight; freed when the reply is gone.
pub(super) type Permit = SemaphoreGuardArc;

/// Most pieces of one vectored write (`UIO_MAXIOV`), header included.
const PIECES_MAX: usize = 1024;

/// Where answers go.
pub trait ReplySink: Send + Sync + fmt::Debug {
    /// Sends the answer to request `unique`: `pieces` in one write, the first being the [`OutHeader`].
    fn send(&self, unique: u64, pieces: &[IoSlice<'_>]) -> io::Result<()>;
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The kernel has it.
    Delivered,
    /// Nobody waits any more: undo a lookup count or a handle that it carried.
    Aborted,
    /// The mount is gone.
    Unmounted,
    /// The kernel refused it (logged); the caller got EIO.
    Refused,
}

impl Delivery {
    /// Whether the kernel has it.
    pub fn is_delivered(self) -> bool {
        self == Delivery::Delivered
    }
}

/// Attributes of an inode, as the kernel wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttrReply {
    /// Inode number shown to users.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Preferred I/O size.
    pub blksize: u32,
}

/// A name that was found or made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntryReply {
    /// Node id; 0 says "no such name" and may be cached for `entry_valid`.
    pub ino: u64,
    /// Tells apart inodes that share a number over time.
    pub generation: u64,
    /// Attributes.
    pub attr: AttrReply,
    /// How long the kernel may trust the name.
    pub entry_valid: Duration,
    /// How long the kernel may trust the attributes.
    pub attr_valid: Duration,
}

impl EntryReply {
    /// "No such name", to be cached for `entry_valid`.
    pub fn negative(entry_valid: Duration) -> EntryReply {
        EntryReply {
            entry_valid,
            ..EntryReply::default()
        }
    }
}

/// Volume statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatfsReply {
    /// Blocks of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred I/O size.
    pub bsize: u32,
    /// Longest name.
    pub namelen: u32,
    /// Block size.
    pub frsize: u32,
}

/// The duty to answer one request.
#[must_use = "a request must be answered; dropping it answers EIO"]
pub struct Reply {
    sink: Arc<dyn ReplySink>,
    unique: u64,
    opcode: u32,
    /// Cleared by the first answer, and from the start for operations that have none.
    pending: bool,
    permit: Option<Permit>,
}

impl Reply {
    pub(super) fn new(
        sink: Arc<dyn ReplySink>,
        header: &InHeader,
        permit: Option<Permit>,
    ) -> Reply {
        let silent = matches!(
            header.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT
        );
        Reply {
            sink,
            unique: header.unique,
            opcode: header.opcode,
            pending: !silent,
            permit,
        }
    }

    /// The request's number, as INTERRUPT names it.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The request's operation.
    pub fn opcode(&self) -> u32 {
        self.opcode
    }

    /// This request may wait for long: it counts no longer against the queue's bound.
    pub fn yield_place(&mut self) {
        self.permit = None;
    }

    /// An error number (positive).
    pub fn error(mut self, errno: i32) -> Delivery {
        self.send(errno, &[])
    }

    /// Success without a body.
    pub fn ok_empty(mut self) -> Delivery {
        self.send(0, &[])
    }

    /// No answer: FORGET, BATCH_FORGET and INTERRUPT. Anything else is answered with EIO.
    pub fn none(self) {}

    /// LOOKUP, MKNOD, MKDIR, SYMLINK, LINK.
    pub fn entry(mut self, entry: &EntryReply) -> Delivery {
        self.send(0, &[entry_out(entry).as_bytes()])
    }

    /// GETATTR and SETATTR.
    pub fn attr(mut self, attr: &AttrReply, valid: Duration) -> Delivery {
        let out = abi::AttrOut {
            attr_valid: valid.as_secs(),
            attr_valid_nsec: valid.subsec_nanos(),
            dummy: 0,
            attr: attr_out(attr),
        };
        self.send(0, &[out.as_bytes()])
    }

    /// STATX: the basic attributes, and `attributes` (`STATX_ATTR_*`) of those in `attributes_mask`.
    pub fn statx(
        mut self,
        attr: &AttrReply,
        attributes: u64,
        attributes_mask: u64,
        valid: Duration,
    ) -> Delivery {
        let out = abi::StatxOut {
            attr_valid: valid.as_secs(),
            attr_valid_nsec: valid.subsec_nanos(),
            stat: statx_out(attr, attributes, attributes_mask),
            ..abi::StatxOut::default()
        };
        self.send(0, &[out.as_bytes()])
    }

    /// OPEN and OPENDIR; `open_flags` are `abi::open_flag`.
    pub fn open(mut self, fh: u64, open_flags: u32) -> Delivery {
        self.send(0, &[open_out(fh, open_flags).as_bytes()])
    }

    /// CREATE and TMPFILE.
    pub fn create(mut self, entry: &EntryReply, fh: u64, open_flags: u32) -> Delivery {
        self.send(
            0,
            &[
                entry_out(entry).as_bytes(),
                open_out(fh, open_flags).as_bytes(),
            ],
        )
    }

    /// READ: pieces in order, together at most the size asked for. Nothing is copied.
    pub fn data(mut self, pieces: &[Bytes]) -> Delivery {
        if pieces.len() < PIECES_MAX {
            let slices: Vec<&[u8]> = pieces.iter().map(Bytes::as_ref).collect();
            return self.send(0, &slices);
        }
        // A vectored write has room for 1023 pieces: a read of fragments smaller than 1 KiB each. Copy.
        self.send(0, &[&pieces.concat()])
    }

    /// READLINK, GETXATTR, LISTXATTR, READDIR, READDIRPLUS.
    pub fn bytes(mut self, data: &[u8]) -> Delivery {
        self.send(0, &[data])
    }

    /// WRITE: bytes written.
    pub fn write(mut self, bytes: u32) -> Delivery {
        self.send(
            0,
            &[abi::WriteOut {
                size: bytes,
                padding: 0,
            }
            .as_bytes()],
        )
    }

    /// COPY_FILE_RANGE: bytes copied. The older form cannot say more than 4 GiB; callers see a short copy.
    pub fn copied(mut self, bytes: u64) -> Delivery {
        if self.opcode == opcode::COPY_FILE_RANGE_64 {
            return self.send(
                0,
                &[abi::CopyFileRangeOut {
                    bytes_copied: bytes,
                }
                .as_bytes()],
            );
        }
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.send(0, &[abi::WriteOut { size, padding: 0 }.as_bytes()])
    }

    /// STATFS.
    pub fn statfs(mut self, statfs: &StatfsReply) -> Delivery {
        let out = abi::StatfsOut {
            blocks: statfs.blocks,
            bfree: statfs.bfree,
            bavail: statfs.bavail,
            files: statfs.files,
            ffree: statfs.ffree,
            bsize: statfs.bsize,
            namelen: statfs.namelen,
            frsize: statfs.frsize,
            ..abi::StatfsOut::default()
        };
        self.send(0, &[out.as_bytes()])
    }

    /// GETXATTR and LISTXATTR that asked for the size only.
    pub fn xattr_size(mut self, bytes: u32) -> Delivery {
        self.send(
            0,
            &[abi::GetxattrOut {
                size: bytes,
                padding: 0,
            }
            .as_bytes()],
        )
    }

    /// LSEEK.
    pub fn lseek(mut self, offset: u64) -> Delivery {
        self.send(0, &[abi::LseekOut { offset }.as_bytes()])
    }

    /// IOCTL: return value and output.
    pub fn ioctl(mut self, result: i32, output: &[u8]) -> Delivery {
        let out = abi::IoctlOut {
            result,
            ..abi::IoctlOut::default()
        };
        self.send(0, &[out.as_bytes(), output])
    }

    /// GETLK: the conflicting lock, or one of kind `F_UNLCK`.
    pub fn lock(mut self, lock: &LockOp) -> Delivery {
        let LockOp {
            start,
            end,
            kind,
            pid,
            ..
        } = *lock;
        self.send(
            0,
            &[abi::LkOut {
                lk: abi::FileLock {
                    start,
                    end,
                    kind,
                    pid,
                },
            }
            .as_bytes()],
        )
    }

    /// INIT.
    pub(super) fn init(mut self, out: &abi::InitOut) -> Delivery {
        self.send(0, &[out.as_bytes()])
    }

    /// Sends the only answer.
    fn send(&mut self, errno: i32, body: &[&[u8]]) -> Delivery {
        self.pending = false;
        let error = match self.try_send(errno, body) {
            Ok(()) => return Delivery::Delivered,
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::ENOENT) => Delivery::Aborted,
            Some(libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED) => Delivery::Unmounted,
            _ => {
                let (op, unique) = (abi::opcode_name(self.opcode), self.unique);
                tracing::error!(op, unique, %error, "the kernel refused an answer; sending EIO");
                // ENOENT here means that the kernel ended the request by itself.
                match self.try_send(libc::EIO, &[]) {
                    Ok(()) | Err(_) => Delivery::Refused,
                }
            }
        }
    }

    fn try_send(&self, errno: i32, body: &[&[u8]]) -> io::Result<()> {
        // The kernel ignores an answer whose error is out of range, and its caller would wait for ever.
        let errno = if (0..=abi::ERRNO_MAX).contains(&errno) {
            errno
        } else {
            libc::EIO
        };
        let bytes = size_of::<OutHeader>() + body.iter().map(|piece| piece.len()).sum::<usize>();
        let len = u32::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let header = OutHeader {
            len,
            error: -errno,
            unique: self.unique,
        };
        let mut pieces = Vec::with_capacity(1 + body.len());
        pieces.push(IoSlice::new(header.as_bytes()));
        pieces.extend(body.iter().map(|piece| IoSlice::new(piece)));
        self.sink.send(self.unique, &pieces)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.pending {
            let (op, unique) = (abi::opcode_name(self.opcode), self.unique);
            tracing::error!(op, unique, "request dropped without an answer; sending EIO");
            self.send(libc::EIO, &[]);
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Reply({} {})",
            abi::opcode_name(self.opcode),
            self.unique
        )
    }
}

/// Wire form of attributes. Seconds before 1970 keep their bits: the kernel reads them as signed.
fn attr_out(attr: &AttrReply) -> abi::Attr {
    abi::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.sec.cast_unsigned(),
        mtime: attr.mtime.sec.cast_unsigned(),
        ctime: attr.ctime.sec.cast_unsigned(),
        atimensec: attr.atime.nsec,
        mtimensec: attr.mtime.nsec,
        ctimensec: attr.ctime.nsec,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Wire form of an entry.
pub(super) fn entry_out(entry: &EntryReply) -> abi::EntryOut {
    abi::EntryOut {
        nodeid: entry.ino,
        generation: entry.generation,
        entry_valid: entry.entry_valid.as_secs(),
        attr_valid: entry.attr_valid.as_secs(),
        entry_valid_nsec: entry.entry_valid.subsec_nanos(),
        attr_valid_nsec: entry.attr_valid.subsec_nanos(),
        attr: attr_out(&entry.attr),
    }
}

fn open_out(fh: u64, open_flags: u32) -> abi::OpenOut {
    abi::OpenOut {
        fh,
        open_flags,
        backing_id: 0,
    }
}

fn statx_out(attr: &AttrReply, attributes: u64, attributes_mask: u64) -> abi::Statx {
    let time = |time: Timestamp| abi::SxTime {
        tv_sec: time.sec,
        tv_nsec: time.nsec,
        reserved: 0,
    };
    abi::Statx {
        mask: libc::STATX_BASIC_STATS,
        blksize: attr.blksize,
        attributes,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        // `st_mode` has 16 bits.
        mode: (attr.mode & 0xFFFF) as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        attributes_mask,
        atime: time(attr.atime),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: libc::major(u64::from(attr.rdev)),
        rdev_minor: libc::minor(u64::from(attr.rdev)),
        ..abi::Statx::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::recorder::Recorder;
    use super::*;

    fn reply(sink: &Arc<Recorder>, opcode: u32) -> Reply {
        let header = InHeader {
            opcode,
            unique: 42,
            ..InHeader::default()
        };
        Reply::new(Arc::clone(sink) as Arc<dyn ReplySink>, &header, None)
    }

    fn header(body: usize, error: i32) -> OutHeader {
        OutHeader {
            len: 16 + body as u32,
            error,
            unique: 42,
        }
    }

    /// Runs one answer and returns its body.
    fn body_of(opcode: u32, answer: impl FnOnce(Reply) -> Delivery) -> Vec<u8> {
        let sink = Recorder::new();
        assert_eq!(answer(reply(&sink, opcode)), Delivery::Delivered);
        let mut answers = sink.take();
        let (got, body) = answers.pop().unwrap();
        assert!(answers.is_empty(), "more than one answer");
        assert_eq!(got, header(body.len(), 0));
        body
    }

    #[test]
    fn bodies_have_the_kernels_sizes() {
        let (entry, attr, valid) = (EntryReply::default(), AttrReply::default(), Duration::ZERO);
        let lock = LockOp {
            fh: 0,
            owner: 0,
            start: 1,
            end: 2,
            kind: 3,
            pid: 4,
            flock: false,
        };
        assert_eq!(body_of(opcode::FLUSH, Reply::ok_empty).len(), 0);
        assert_eq!(
            body_of(opcode::LOOKUP, |reply| reply.entry(&entry)).len(),
            128
        );
        assert_eq!(
            body_of(opcode::GETATTR, |reply| reply.attr(&attr, valid)).len(),
            104
        );
        assert_eq!(
            body_of(opcode::STATX, |reply| reply.statx(&attr, 0, 0, valid)).len(),
            288
        );
        assert_eq!(body_of(opcode::OPEN, |reply| reply.open(1, 0)).len(), 16);
        assert_eq!(
            body_of(opcode::CREATE, |reply| reply.create(&entry, 1, 0)).len(),
            144
        );
        assert_eq!(
            body_of(opcode::WRITE, |reply| reply.write(7)),
            [7, 0, 0, 0, 0, 0, 0, 0]
        );
        let statfs = StatfsReply::default();
        assert_eq!(
            body_of(opcode::STATFS, |reply| reply.statfs(&statfs)).len(),
            80
        );
        assert_eq!(
            body_of(opcode::GETXATTR, |reply| reply.xattr_size(9)).len(),
            8
        );
        assert_eq!(body_of(opcode::LSEEK, |reply| reply.lseek(9)).len(), 8);
        assert_eq!(
            body_of(opcode::IOCTL, |reply| reply.ioctl(0, b"abc")).len(),
            19
        );
        assert_eq!(body_of(opcode::GETLK, |reply| reply.lock(&lock)).len(), 24);
        assert_eq!(
            body_of(opcode::READLINK, |reply| reply.bytes(b"target")),
            b"target"
        );
    }

    #[test]
    fn attributes_arrive_field_by_field() {
        let time = |sec| Timestamp { sec, nsec: 5 };
        let attr = AttrReply {
            ino: 1,
            size: 2,
            blocks: 3,
            atime: time(-1),
            mtime: time(10),
            ctime: time(11),
            mode: 0o100_644,
            nlink: 6,
            uid: 7,
            gid: 8,
            rdev: 0x0801,
            blksize: 4096,
        };
        let entry = EntryReply {
            ino: 20,
            generation: 21,
            attr,
            entry_valid: Duration::new(22, 23),
            attr_valid: Duration::new(24, 25),
        };
        let body = body_of(opcode::LOOKUP, |reply| reply.entry(&entry));
        let out = <abi::EntryOut as zerocopy::FromBytes>::read_from_bytes(&body).unwrap();
        assert_eq!((out.nodeid, out.generation), (20, 21));
        assert_eq!((out.entry_valid, out.entry_valid_nsec), (22, 23));
        assert_eq!((out.attr_valid, out.attr_valid_nsec), (24, 25));
        assert_eq!((out.attr.ino, out.attr.size, out.attr.blocks), (1, 2, 3));
        assert_eq!(
            (out.attr.atime, out.attr.mtime, out.attr.ctime),
            (u64::MAX, 10, 11)
        );
        assert_eq!(
            (out.attr.atimensec, out.attr.mode, out.attr.nlink),
            (5, 0o100_644, 6)
        );
        assert_eq!(
            (out.attr.uid, out.attr.gid, out.attr.rdev, out.attr.blksize),
            (7, 8, 0x0801, 4096)
        );
        let body = body_of(opcode::STATX, |reply| {
            reply.statx(&attr, 16, 48, Duration::ZERO)
        });
        let out = <abi::StatxOut as zerocopy::FromBytes>::read_from_bytes(&body)
            .unwrap()
            .stat;
        assert_eq!(
            (out.mode, out.rdev_major, out.rdev_minor),
            (0o100_644, 8, 1)
        );
        assert_eq!(
            (out.attributes, out.attributes_mask, out.atime.tv_sec),
            (16, 48, -1)
        );
    }

    #[test]
    fn data_goes_out_in_order_however_many_pieces() {
        for count in [0, 1, 1023, 1024, 3000] {
            let pieces: Vec<Bytes> = (0..count)
                .map(|index: u32| Bytes::from(index.to_le_bytes().to_vec()))
                .collect();
            let body = body_of(opcode::READ, |reply| reply.data(&pieces));
            assert_eq!(body, pieces.concat(), "{count} pieces");
        }
    }

    #[test]
    fn copied_takes_the_form_of_its_request() {
        let wide = body_of(opcode::COPY_FILE_RANGE_64, |reply| reply.copied(1 << 33));
        assert_eq!(wide, (1u64 << 33).as_bytes());
        let narrow = body_of(opcode::COPY_FILE_RANGE, |reply| reply.copied(1 << 33));
        assert_eq!(narrow[..4], *u32::MAX.as_bytes());
    }

    #[test]
    fn errors_are_negative_and_in_range() {
        for (errno, sent) in [
            (libc::ENOENT, -libc::ENOENT),
            (0, 0),
            (511, -511),
            (512, -libc::EIO),
            (-1, -libc::EIO),
        ] {
            let sink = Recorder::new();
            reply(&sink, opcode::LOOKUP).error(errno);
            assert_eq!(
                sink.take(),
                [(header(0, sent), Vec::new())],
                "errno {errno}"
            );
        }
    }

    #[test]
    fn one_answer_even_when_dropped() {
        let sink = Recorder::new();
        drop(reply(&sink, opcode::READ));
        reply(&sink, opcode::READ).none();
        let eio = (header(0, -libc::EIO), Vec::new());
        assert_eq!(sink.take(), [eio.clone(), eio]);
        for silent in [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT] {
            drop(reply(&sink, silent));
            reply(&sink, silent).none();
        }
        assert!(sink.take().is_empty());
    }

    #[test]
    fn failures_of_the_write_tell_who_is_gone() {
        for (errors, expected, sends) in [
            (&[libc::ENOENT][..], Delivery::Aborted, 1),
            (&[libc::ENODEV], Delivery::Unmounted, 1),
            (&[libc::ECONNABORTED], Delivery::Unmounted, 1),
            (&[libc::EINVAL], Delivery::Refused, 2),
            (&[libc::EINVAL, libc::ENOENT], Delivery::Refused, 2),
        ] {
            let sink = Recorder::failing(errors);
            assert_eq!(
                reply(&sink, opcode::OPEN).open(1, 0),
                expected,
                "{errors:?}"
            );
            let answers = sink.take();
            assert_eq!(answers.len(), sends, "{errors:?}");
            if sends == 2 {
                assert_eq!(answers[1], (header(0, -libc::EIO), Vec::new()));
            }
        }
    }
}
