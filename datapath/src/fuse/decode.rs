//! From bytes to [`Op`]: every length, NUL and offset is checked here.
//!
//! Called through [`Request::op`](super::request::Request::op). Pure: names and data borrow from the
//! request's buffer, fixed structs are read by value. Anything that is not exactly a message of the
//! negotiated protocol is a [`DecodeError`]: the caller answers with its error number and goes on,
//! since one odd message says nothing about the next.

use sluice_meta::types::Timestamp;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::abi::{self, InHeader, opcode, setattr_valid};
use super::op::{
    CopyFileRange, Create, DecodeError, ForgetList, Ioctl, LockOp, Op, Read, Release, SetTime,
    Setattr, Write,
};

/// Decodes the body of a message: everything after its header, of `header.len - 40` bytes.
pub fn decode<'a>(header: &InHeader, body: &'a [u8]) -> Result<Op<'a>, DecodeError> {
    let mut body = Body::new(header, body)?;
    match header.opcode {
        opcode::LOOKUP
        | opcode::SYMLINK
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::CREATE
        | opcode::TMPFILE => decode_namespace(header.opcode, body),
        opcode::OPEN
        | opcode::READ
        | opcode::WRITE
        | opcode::RELEASE
        | opcode::FSYNC
        | opcode::FLUSH
        | opcode::OPENDIR
        | opcode::READDIR
        | opcode::READDIRPLUS
        | opcode::RELEASEDIR
        | opcode::FSYNCDIR
        | opcode::FALLOCATE
        | opcode::LSEEK
        | opcode::COPY_FILE_RANGE
        | opcode::COPY_FILE_RANGE_64
        | opcode::IOCTL
        | opcode::GETLK
        | opcode::SETLK
        | opcode::SETLKW => decode_handle(header.opcode, body),
        opcode::FORGET => Ok(Op::Forget {
            nlookup: body.fixed::<abi::ForgetIn>("forget")?.nlookup,
        }),
        opcode::BATCH_FORGET => body.forgets(),
        opcode::GETATTR => {
            let raw = body.fixed::<abi::GetattrIn>("getattr")?;
            Ok(Op::Getattr {
                fh: flagged(raw.getattr_flags, abi::GETATTR_FH, raw.fh),
            })
        }
        opcode::SETATTR => Ok(Op::Setattr(setattr(&body.fixed("setattr")?)?)),
        opcode::READLINK => Ok(Op::Readlink),
        opcode::STATFS => Ok(Op::Statfs),
        opcode::SETXATTR => setxattr(body),
        opcode::GETXATTR => {
            let raw = body.fixed::<abi::GetxattrIn>("getxattr")?;
            Ok(Op::Getxattr {
                name: body.last_name("attribute name")?,
                size: raw.size,
            })
        }
        opcode::LISTXATTR => Ok(Op::Listxattr {
            size: body.fixed::<abi::GetxattrIn>("listxattr")?.size,
        }),
        opcode::REMOVEXATTR => Ok(Op::Removexattr {
            name: body.last_name("attribute name")?,
        }),
        opcode::INIT => Ok(Op::Init(init(body.rest)?)),
        opcode::ACCESS => Ok(Op::Access {
            mask: body.fixed::<abi::AccessIn>("access")?.mask,
        }),
        opcode::INTERRUPT => Ok(Op::Interrupt {
            unique: body.fixed::<abi::InterruptIn>("interrupt")?.unique,
        }),
        opcode::DESTROY => Ok(Op::Destroy),
        opcode::STATX => {
            let raw = body.fixed::<abi::StatxIn>("statx")?;
            let fh = flagged(raw.getattr_flags, abi::GETATTR_FH, raw.fh);
            Ok(Op::Statx {
                fh,
                flags: raw.sx_flags,
                mask: raw.sx_mask,
            })
        }
        opcode::SYNCFS => Ok(Op::Syncfs),
        other => Ok(Op::Unknown(other)),
    }
}

/// Operations on names in the directory of the header.
fn decode_namespace(code: u32, mut body: Body<'_>) -> Result<Op<'_>, DecodeError> {
    Ok(match code {
        opcode::LOOKUP => Op::Lookup {
            name: body.last_name("name")?,
        },
        opcode::SYMLINK => {
            let name = body.name("name")?;
            Op::Symlink {
                name,
                target: body.last_name("link target")?,
            }
        }
        opcode::MKNOD => {
            let raw = body.fixed::<abi::MknodIn>("mknod")?;
            let name = body.last_name("name")?;
            Op::Mknod {
                mode: raw.mode,
                rdev: raw.rdev,
                umask: raw.umask,
                name,
            }
        }
        opcode::MKDIR => {
            let raw = body.fixed::<abi::MkdirIn>("mkdir")?;
            Op::Mkdir {
                mode: raw.mode,
                umask: raw.umask,
                name: body.last_name("name")?,
            }
        }
        opcode::UNLINK => Op::Unlink {
            name: body.last_name("name")?,
        },
        opcode::RMDIR => Op::Rmdir {
            name: body.last_name("name")?,
        },
        opcode::RENAME => {
            let newdir = body.fixed::<abi::RenameIn>("rename")?.newdir;
            let name = body.name("name")?;
            Op::Rename {
                newdir,
                flags: 0,
                name,
                newname: body.last_name("new name")?,
            }
        }
        opcode::RENAME2 => {
            let raw = body.fixed::<abi::Rename2In>("rename")?;
            let name = body.name("name")?;
            let newname = body.last_name("new name")?;
            Op::Rename {
                newdir: raw.newdir,
                flags: raw.flags,
                name,
                newname,
            }
        }
        opcode::LINK => {
            let oldnodeid = body.fixed::<abi::LinkIn>("link")?.oldnodeid;
            Op::Link {
                oldnodeid,
                newname: body.last_name("name")?,
            }
        }
        opcode::CREATE => Op::Create(create(&body.fixed("create")?, body.last_name("name")?)),
        // The kernel sends a name with TMPFILE as well; it means nothing.
        opcode::TMPFILE => Op::Tmpfile(create(&body.fixed("tmpfile")?, &[])),
        other => Op::Unknown(other),
    })
}

/// Operations that carry a handle, or return one.
fn decode_handle(code: u32, mut body: Body<'_>) -> Result<Op<'_>, DecodeError> {
    Ok(match code {
        opcode::OPEN => {
            let raw = body.fixed::<abi::OpenIn>("open")?;
            let kill_suidgid = raw.open_flags & abi::OPEN_KILL_SUIDGID != 0;
            Op::Open {
                flags: raw.flags,
                kill_suidgid,
            }
        }
        opcode::OPENDIR => Op::Opendir {
            flags: body.fixed::<abi::OpenIn>("opendir")?.flags,
        },
        opcode::READ => {
            let read = read(&body.fixed("read")?);
            check_range(read.offset, u64::from(read.size))?;
            Op::Read(read)
        }
        opcode::WRITE => Op::Write(body.write()?),
        // Directory offsets are cookies of our own making: any value may come back.
        opcode::READDIR => Op::Readdir(read(&body.fixed("readdir")?)),
        opcode::READDIRPLUS => Op::Readdirplus(read(&body.fixed("readdirplus")?)),
        opcode::RELEASE => Op::Release(release(&body.fixed("release")?)),
        opcode::RELEASEDIR => Op::Releasedir(release(&body.fixed("releasedir")?)),
        opcode::FSYNC => {
            let raw = body.fixed::<abi::FsyncIn>("fsync")?;
            Op::Fsync {
                fh: raw.fh,
                datasync: raw.fsync_flags & abi::FSYNC_DATASYNC != 0,
            }
        }
        opcode::FSYNCDIR => {
            let raw = body.fixed::<abi::FsyncIn>("fsyncdir")?;
            Op::Fsyncdir {
                fh: raw.fh,
                datasync: raw.fsync_flags & abi::FSYNC_DATASYNC != 0,
            }
        }
        opcode::FLUSH => {
            let raw = body.fixed::<abi::FlushIn>("flush")?;
            Op::Flush {
                fh: raw.fh,
                lock_owner: raw.lock_owner,
            }
        }
        opcode::FALLOCATE => {
            let raw = body.fixed::<abi::FallocateIn>("fallocate")?;
            check_range(raw.offset, raw.length)?;
            Op::Fallocate {
                fh: raw.fh,
                offset: raw.offset,
                length: raw.length,
                mode: raw.mode,
            }
        }
        opcode::LSEEK => {
            let raw = body.fixed::<abi::LseekIn>("lseek")?;
            check_range(raw.offset, 0)?;
            Op::Lseek {
                fh: raw.fh,
                offset: raw.offset,
                whence: raw.whence,
            }
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            Op::CopyFileRange(copy_file_range(&body.fixed("copy_file_range")?)?)
        }
        opcode::IOCTL => Op::Ioctl(body.ioctl()?),
        opcode::GETLK => Op::Getlk(lock(&body.fixed("getlk")?)),
        opcode::SETLK => Op::Setlk {
            lock: lock(&body.fixed("setlk")?),
            wait: false,
        },
        opcode::SETLKW => Op::Setlk {
            lock: lock(&body.fixed("setlkw")?),
            wait: true,
        },
        other => Op::Unknown(other),
    })
}

/// What is left of a message's body.
#[derive(Clone, Copy)]
struct Body<'a> {
    rest: &'a [u8],
    /// Bytes of the whole message, for errors.
    total: usize,
}

impl<'a> Body<'a> {
    /// Cuts off the extensions at the end (in units of 8 bytes): none is negotiated, none is expected.
    fn new(header: &InHeader, body: &'a [u8]) -> Result<Body<'a>, DecodeError> {
        let total = size_of::<InHeader>() + body.len();
        let extensions = usize::from(header.total_extlen) * 8;
        let Some(end) = body.len().checked_sub(extensions) else {
            return Err(DecodeError::Short {
                bytes: total,
                part: "extensions",
            });
        };
        Ok(Body {
            rest: &body[..end],
            total,
        })
    }

    fn short(&self, part: &'static str) -> DecodeError {
        DecodeError::Short {
            bytes: self.total,
            part,
        }
    }

    /// The next fixed struct.
    fn fixed<T: FromBytes>(&mut self, part: &'static str) -> Result<T, DecodeError> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| self.short(part))?;
        self.rest = rest;
        Ok(value)
    }

    /// The next NUL-terminated name, without its NUL; not empty.
    fn name(&mut self, part: &'static str) -> Result<&'a [u8], DecodeError> {
        let nul = self.rest.iter().position(|&byte| byte == 0);
        let Some(nul @ 1..) = nul else {
            return Err(DecodeError::Name(part));
        };
        let name = &self.rest[..nul];
        self.rest = &self.rest[nul + 1..];
        Ok(name)
    }

    /// A name that must end the message.
    fn last_name(&mut self, part: &'static str) -> Result<&'a [u8], DecodeError> {
        let name = self.name(part)?;
        if self.rest.is_empty() {
            Ok(name)
        } else {
            Err(DecodeError::Name(part))
        }
    }

    /// `size` bytes that must end the message.
    fn exactly(&mut self, size: u32, part: &'static str) -> Result<&'a [u8], DecodeError> {
        if usize::try_from(size) != Ok(self.rest.len()) {
            return Err(self.short(part));
        }
        Ok(std::mem::take(&mut self.rest))
    }

    fn forgets(mut self) -> Result<Op<'a>, DecodeError> {
        let count = self.fixed::<abi::BatchForgetIn>("batch_forget")?.count;
        let bytes = u64::from(count) * size_of::<abi::ForgetOne>() as u64;
        let raw = usize::try_from(bytes)
            .ok()
            .and_then(|bytes| self.rest.get(..bytes));
        let raw = raw.ok_or_else(|| self.short("forget list"))?;
        Ok(Op::BatchForget {
            forgets: ForgetList { raw },
        })
    }

    fn write(mut self) -> Result<Write<'a>, DecodeError> {
        let raw = self.fixed::<abi::WriteIn>("write")?;
        check_range(raw.offset, u64::from(raw.size))?;
        Ok(Write {
            fh: raw.fh,
            offset: raw.offset,
            data: self.exactly(raw.size, "data")?,
            flags: raw.flags,
            from_cache: raw.write_flags & abi::WRITE_CACHE != 0,
            kill_suidgid: raw.write_flags & abi::WRITE_KILL_SUIDGID != 0,
            lock_owner: flagged(raw.write_flags, abi::WRITE_LOCKOWNER, raw.lock_owner),
        })
    }

    fn ioctl(mut self) -> Result<Ioctl<'a>, DecodeError> {
        let raw = self.fixed::<abi::IoctlIn>("ioctl")?;
        let input = self.exactly(raw.in_size, "ioctl input")?;
        let abi::IoctlIn {
            fh,
            flags,
            cmd,
            arg,
            out_size,
            ..
        } = raw;
        Ok(Ioctl {
            fh,
            flags,
            cmd,
            arg,
            input,
            out_size,
        })
    }
}

/// SETXATTR has two forms, by whether SETXATTR_EXT was agreed on. They are told apart by their lengths alone: name
/// and value end a message in the short form exactly if they do not in the long one, which begins with eight
/// bytes of flags that cannot be a name of the right length.
fn setxattr(mut body: Body<'_>) -> Result<Op<'_>, DecodeError> {
    let raw = body.fixed::<abi::SetxattrIn>("setxattr")?;
    let short = setxattr_rest(body, &raw, None);
    let Ok(ext) = body.fixed::<abi::SetxattrExtIn>("setxattr") else {
        return short;
    };
    let kill_sgid = ext.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0;
    short.or_else(|error| setxattr_rest(body, &raw, Some(kill_sgid)).map_err(|_| error))
}

fn setxattr_rest<'a>(
    mut body: Body<'a>,
    raw: &abi::SetxattrIn,
    kill_sgid: Option<bool>,
) -> Result<Op<'a>, DecodeError> {
    Ok(Op::Setxattr {
        name: body.name("attribute name")?,
        value: body.exactly(raw.size, "attribute value")?,
        flags: raw.flags,
        kill_sgid,
    })
}

/// `value` if `bit` is set.
fn flagged<T>(flags: u32, bit: u32, value: T) -> Option<T> {
    (flags & bit != 0).then_some(value)
}

/// A range must end at or below the largest `loff_t`, so that no one adds past it later.
fn check_range(offset: u64, length: u64) -> Result<(), DecodeError> {
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(DecodeError::Offset { offset, length }),
    }
}

/// Seconds are signed, though the wire says otherwise.
fn timestamp(sec: u64, nsec: u32) -> Result<Timestamp, DecodeError> {
    if nsec >= 1_000_000_000 {
        return Err(DecodeError::Time(nsec));
    }
    Ok(Timestamp {
        sec: sec.cast_signed(),
        nsec,
    })
}

fn setattr(raw: &abi::SetattrIn) -> Result<Setattr, DecodeError> {
    let has = |bit: u32| raw.valid & bit != 0;
    let time = |given: u32, now: u32, sec: u64, nsec: u32| match (has(now), has(given)) {
        (true, _) => Ok(Some(SetTime::Now)),
        (false, true) => timestamp(sec, nsec).map(|at| Some(SetTime::At(at))),
        (false, false) => Ok(None),
    };
    if has(setattr_valid::SIZE) {
        check_range(raw.size, 0)?;
    }
    Ok(Setattr {
        fh: flagged(raw.valid, setattr_valid::FH, raw.fh),
        mode: flagged(raw.valid, setattr_valid::MODE, raw.mode),
        uid: flagged(raw.valid, setattr_valid::UID, raw.uid),
        gid: flagged(raw.valid, setattr_valid::GID, raw.gid),
        size: flagged(raw.valid, setattr_valid::SIZE, raw.size),
        atime: time(
            setattr_valid::ATIME,
            setattr_valid::ATIME_NOW,
            raw.atime,
            raw.atimensec,
        )?,
        mtime: time(
            setattr_valid::MTIME,
            setattr_valid::MTIME_NOW,
            raw.mtime,
            raw.mtimensec,
        )?,
        ctime: match has(setattr_valid::CTIME) {
            true => Some(timestamp(raw.ctime, raw.ctimensec)?),
            false => None,
        },
        lock_owner: flagged(raw.valid, setattr_valid::LOCKOWNER, raw.lock_owner),
        kill_suidgid: has(setattr_valid::KILL_SUIDGID),
    })
}

fn create<'a>(raw: &abi::CreateIn, name: &'a [u8]) -> Create<'a> {
    Create {
        flags: raw.flags,
        mode: raw.mode,
        umask: raw.umask,
        kill_suidgid: raw.open_flags & abi::OPEN_KILL_SUIDGID != 0,
        name,
    }
}

fn read(raw: &abi::ReadIn) -> Read {
    Read {
        fh: raw.fh,
        offset: raw.offset,
        size: raw.size,
        flags: raw.flags,
        lock_owner: flagged(raw.read_flags, abi::READ_LOCKOWNER, raw.lock_owner),
    }
}

fn release(raw: &abi::ReleaseIn) -> Release {
    Release {
        fh: raw.fh,
        flags: raw.flags,
        flush: raw.release_flags & abi::RELEASE_FLUSH != 0,
        flock_unlock: raw.release_flags & abi::RELEASE_FLOCK_UNLOCK != 0,
        lock_owner: raw.lock_owner,
    }
}

fn lock(raw: &abi::LkIn) -> LockOp {
    LockOp {
        fh: raw.fh,
        owner: raw.owner,
        start: raw.lk.start,
        end: raw.lk.end,
        kind: raw.lk.kind,
        pid: raw.lk.pid,
        flock: raw.lk_flags & abi::LK_FLOCK != 0,
    }
}

fn copy_file_range(raw: &abi::CopyFileRangeIn) -> Result<CopyFileRange, DecodeError> {
    // The length may be "all there is"; offsets are checked alone and the length is the caller's to cut.
    check_range(raw.off_in, 0)?;
    check_range(raw.off_out, 0)?;
    Ok(CopyFileRange {
        fh_in: raw.fh_in,
        offset_in: raw.off_in,
        nodeid_out: raw.nodeid_out,
        fh_out: raw.fh_out,
        offset_out: raw.off_out,
        length: raw.len,
        flags: raw.flags,
    })
}

/// INIT grew from 16 to 64 bytes with ABI 7.36; what an older kernel does not send is zero.
fn init(body: &[u8]) -> Result<abi::InitIn, DecodeError> {
    const OLD: usize = 16;
    if body.len() < OLD {
        let bytes = size_of::<InHeader>() + body.len();
        return Err(DecodeError::Short {
            bytes,
            part: "init",
        });
    }
    let mut raw = abi::InitIn::new_zeroed();
    let known = body.len().min(size_of::<abi::InitIn>());
    raw.as_mut_bytes()[..known].copy_from_slice(&body[..known]);
    Ok(raw)
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
