//! One request, on the core where it arrived: decode, serve or pass on, answer. The only big match.
//!
//! Nearly everything is served here and now. A request goes to another core only if that core owns the data
//! of the inode (see `inode`): it hops once with its reply slot and is answered from there. A hop costs
//! 80 to 120 us when the other core sleeps, a request served where it arrived 12 to 15 us.
//!
//! Cost of the common requests, beyond the kernel's copies: GETATTR and LOOKUP one metadata read; READ of a
//! clean file one lock for the route, one for the view, one cache look-up per page, no copy; WRITE one lock
//! for the claim and one copy into the block buffer.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sluice_meta::error::MetaError;
use sluice_meta::ops::{AclKind, Caller, NewInode, Rename, RenameMode, SgidRule, XattrMode};
use sluice_meta::types::{FileKind, Ino};

use super::Shard;
use super::attrs::attr_reply;
use super::coherence::Coherence;
use super::inode::CoreId;
use super::locks::Blocked;
use crate::commands::{FLUSH_XATTR, FORGET_XATTR, STATS_XATTR, WHERE_XATTR};
use crate::error::{FsError, FsResult};
use crate::fuse::dirbuf::DirBuffer;
use crate::fuse::op::{LockOp, Op};
use crate::fuse::reply::{AttrReply, EntryReply, StatfsReply};
use crate::fuse::request::Request;

/// What a request comes to.
pub(super) enum Answer {
    /// Nothing is to be sent.
    None,
    /// Success without a body.
    Empty,
    /// An entry.
    Entry(EntryReply),
    /// Attributes.
    Attr(AttrReply),
    /// Attributes that the kernel may keep for less long than others.
    KnownAttr(AttrReply, Duration),
    /// An open handle and its `FOPEN_*` flags.
    Open { fh: u64, flags: u32 },
    /// A created and opened file.
    Created {
        entry: EntryReply,
        fh: u64,
        flags: u32,
    },
    /// File data.
    Data(Vec<Bytes>),
    /// Link target, attribute value.
    Bytes(Bytes),
    /// Part of a directory.
    Listing(DirBuffer),
    /// Bytes taken.
    Written(u32),
    /// Bytes copied.
    Copied(u64),
    /// Volume usage.
    Statfs(StatfsReply),
    /// Size of an attribute value or list.
    XattrSize(u32),
    /// File offset.
    Offset(u64),
    /// Output of an ioctl.
    Ioctl(Bytes),
    /// A lock that is in the way, or none.
    Lock(LockOp),
    /// A lock to wait for.
    Blocked(Blocked),
    /// To be served by the core that owns the inode's data.
    Hop(CoreId),
}

/// For requests that name an inode and nothing else: a missing record is a stale inode, not a missing name.
fn stale(error: FsError) -> FsError {
    match error {
        FsError::Meta(MetaError::NotFound) => FsError::Stale,
        other => other,
    }
}

/// `renameat2(2)` flags.
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
/// `setxattr(2)` flags.
const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;

impl Shard {
    /// Serves one request to its end.
    pub async fn serve(self: Rc<Self>, request: Request) {
        let asked = self.common.coherence.as_ref().map(Coherence::now);
        let answer = self.answer(&request).await;
        match answer {
            Ok(Answer::Hop(core)) => self.hop(core, request),
            Ok(mut answer) => {
                if let Some(asked) = asked {
                    let inode = self.ino(request.header().nodeid);
                    self.hand_out(inode, &request, &mut answer, asked);
                }
                self.send(request, answer).await;
            }
            Err(error) => {
                if error.is_fault() {
                    let header = request.header();
                    tracing::error!(
                        opcode = header.opcode,
                        inode = header.nodeid,
                        pid = header.pid,
                        error = %error,
                        "request failed"
                    );
                }
                request.error(error.errno());
            }
        }
    }

    async fn send(self: &Rc<Self>, request: Request, answer: Answer) {
        let inode = self.ino(request.header().nodeid);
        let mut reply = request.into_reply();
        match answer {
            Answer::None => reply.none(),
            Answer::Empty => drop(reply.ok_empty()),
            Answer::Entry(entry) => drop(reply.entry(&entry)),
            Answer::Attr(attr) => drop(reply.attr(&attr, self.common.timeouts().attr)),
            Answer::KnownAttr(attr, valid) => drop(reply.attr(&attr, valid)),
            Answer::Open { fh, flags } => {
                if !reply.open(fh, flags).is_delivered() {
                    self.abandon_open(inode, fh).await;
                }
            }
            Answer::Created { entry, fh, flags } => {
                if !reply.create(&entry, fh, flags).is_delivered() {
                    self.abandon_open(Ino(entry.ino), fh).await;
                }
            }
            Answer::Data(pieces) => drop(reply.data(&pieces)),
            Answer::Bytes(bytes) => drop(reply.bytes(&bytes)),
            Answer::Listing(buffer) => drop(reply.bytes(buffer.as_bytes())),
            Answer::Written(count) => drop(reply.write(count)),
            Answer::Copied(count) => drop(reply.copied(count)),
            Answer::Statfs(statfs) => drop(reply.statfs(&statfs)),
            Answer::XattrSize(size) => drop(reply.xattr_size(size)),
            Answer::Offset(offset) => drop(reply.lseek(offset)),
            Answer::Ioctl(output) => drop(reply.ioctl(0, &output)),
            Answer::Lock(lock) => drop(reply.lock(&lock)),
            Answer::Blocked(blocked) => {
                reply.yield_place();
                match self.wait_for_lock(blocked).await {
                    Ok(()) => drop(reply.ok_empty()),
                    Err(error) => drop(reply.error(error.errno())),
                }
            }
            Answer::Hop(_) => drop(reply.error(libc::EIO)),
        }
    }

    async fn answer(self: &Rc<Self>, request: &Request) -> FsResult<Answer> {
        let header = request.header();
        let op = request.op().map_err(|error| {
            tracing::warn!(opcode = header.opcode, %error, "malformed request from the kernel");
            FsError::Invalid("malformed request")
        })?;
        let ino = self.ino(header.nodeid);
        let caller = Caller {
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
        };
        match op {
            Op::Lookup { name } => self.lookup(ino, name).await,
            Op::Forget { .. } | Op::BatchForget { .. } => Ok(Answer::None),
            Op::Interrupt { unique } => {
                self.common.locks.interrupt(unique);
                Ok(Answer::None)
            }
            Op::Getattr { .. } => self.getattr(ino).await.map_err(stale),
            Op::Setattr(set) => self.setattr(&caller, ino, &set).await.map_err(stale),
            Op::Readlink => match self.meta.readlink(ino).await {
                Ok(target) => {
                    self.accessed(ino, 0);
                    Ok(Answer::Bytes(target))
                }
                Err(error) => Err(stale(error.into())),
            },
            Op::Symlink { name, target } => {
                self.entry(self.meta.symlink(&caller, ino, name, target).await?)
            }
            Op::Mknod {
                mode,
                rdev,
                umask,
                name,
            } => {
                let new = new_inode(mode, umask, rdev)?;
                self.entry(self.meta.mknod(&caller, ino, name, &new).await?)
            }
            Op::Mkdir { mode, umask, name } => {
                let new = new_inode((mode & 0o7777) | libc::S_IFDIR, umask, 0)?;
                self.entry(self.meta.mknod(&caller, ino, name, &new).await?)
            }
            Op::Unlink { name } => {
                self.removed(Some(self.meta.unlink(&caller, ino, name).await?));
                Ok(Answer::Empty)
            }
            Op::Rmdir { name } => {
                self.meta.rmdir(&caller, ino, name).await?;
                Ok(Answer::Empty)
            }
            Op::Rename {
                newdir,
                flags,
                name,
                newname,
            } => {
                let rename = Rename {
                    from_parent: ino,
                    from_name: Bytes::copy_from_slice(name),
                    to_parent: self.ino(newdir),
                    to_name: Bytes::copy_from_slice(newname),
                    mode: rename_mode(flags)?,
                };
                self.removed(self.meta.rename(&caller, &rename).await?);
                Ok(Answer::Empty)
            }
            Op::Link { oldnodeid, newname } => {
                let target = self.ino(oldnodeid);
                // The file may be open with data that no record knows of yet: its length comes from there.
                let seen = self.table.observe();
                let mut attr = self.meta.link(&caller, target, ino, newname).await?;
                self.table.patch_attr(target, seen, &mut attr);
                self.entry((target, attr))
            }
            Op::Open {
                flags,
                kill_suidgid,
            } => self
                .open(&caller, ino, flags, kill_suidgid)
                .await
                .map_err(stale),
            Op::Create(create) => self.create(&caller, ino, &create).await,
            Op::Read(read) => {
                let answer = self.read(ino, &read).await?;
                if matches!(answer, Answer::Data(_)) {
                    self.accessed(ino, read.flags);
                }
                Ok(answer)
            }
            Op::Write(write) => self.write(ino, &write).await,
            Op::Flush { fh, lock_owner } => self.flush(ino, fh, lock_owner).await,
            Op::Fsync { .. } => self.fsync(ino).await,
            Op::Release(release) => self.release(ino, release.fh).await,
            Op::Getlk(lock) => self.getlk(ino, &lock).await,
            Op::Setlk { lock, wait } => self.setlk(ino, &lock, header.unique, wait).await,
            Op::Fallocate {
                offset,
                length,
                mode,
                ..
            } => self.fallocate(ino, offset, length, mode).await,
            Op::Lseek { offset, whence, .. } => self.lseek(ino, offset, whence).await,
            Op::Statfs => self.statfs().await,
            Op::Opendir { .. } => Ok(Answer::Open {
                fh: self.common.handles.open_dir(ino),
                flags: 0,
            }),
            Op::Readdir(read) => {
                self.listed(ino, &read);
                self.readdir(ino, &read, false).await
            }
            Op::Readdirplus(read) => {
                self.listed(ino, &read);
                self.readdir(ino, &read, true).await
            }
            Op::Releasedir(release) => {
                self.common.handles.close_dir(release.fh);
                Ok(Answer::Empty)
            }
            Op::Fsyncdir { .. } => {
                self.meta.sync().await?;
                Ok(Answer::Empty)
            }
            Op::Access { mask } => {
                self.meta.access(&caller, ino, (mask & 7) as u8).await?;
                Ok(Answer::Empty)
            }
            Op::Setxattr { name, value, .. } if name == FORGET_XATTR.as_bytes() => {
                self.forget(header.nodeid, value).await
            }
            Op::Setxattr {
                name,
                value,
                flags,
                kill_sgid,
            } => {
                let mode = xattr_mode(flags)?;
                match AclKind::from_name(name) {
                    None => self.meta.setxattr(&caller, ino, name, value, mode).await?,
                    Some(kind) => {
                        let sgid = sgid_rule(kill_sgid);
                        let set = self.meta.set_acl(&caller, ino, kind, Some(value), sgid);
                        set.await?;
                    }
                }
                Ok(Answer::Empty)
            }
            Op::Getxattr { name, size } if name == FLUSH_XATTR.as_bytes() => {
                self.flush_everywhere().await?;
                sized(Bytes::from_static(b"flushed"), size)
            }
            Op::Getxattr { name, size } => {
                let value = match self.virtual_xattr(ino, name)? {
                    Some(value) => value,
                    None => self.meta.getxattr(ino, name).await?,
                };
                sized(value, size)
            }
            Op::Listxattr { size } => {
                let mut list = Vec::new();
                for name in self.meta.listxattr(ino).await? {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                sized(list.into(), size)
            }
            Op::Removexattr { name } => {
                self.meta.removexattr(&caller, ino, name).await?;
                Ok(Answer::Empty)
            }
            Op::Ioctl(ioctl) => self.ioctl(&caller, ino, &ioctl).await.map_err(stale),
            Op::Destroy => Ok(Answer::Empty),
            Op::CopyFileRange(copy) => self.copy_file_range(&caller, ino, &copy).await,
            // Not offered: the kernel falls back (statx is a stat) or refuses.
            Op::Statx { .. } | Op::Tmpfile(_) | Op::Syncfs | Op::Init(_) | Op::Unknown(_) => {
                Err(FsError::NotImplemented)
            }
        }
    }

    async fn lookup(&self, parent: Ino, name: &[u8]) -> FsResult<Answer> {
        let seen = self.table.observe();
        match self.meta.lookup(parent, name).await {
            Ok((ino, mut attr)) => {
                self.table.patch_attr(ino, seen, &mut attr);
                self.entry((ino, attr))
            }
            Err(MetaError::NotFound) if !self.common.timeouts().negative.is_zero() => Ok(
                Answer::Entry(EntryReply::negative(self.common.timeouts().negative)),
            ),
            Err(error) => Err(error.into()),
        }
    }

    async fn getattr(&self, ino: Ino) -> FsResult<Answer> {
        let age_max = self.common.timeouts().attr;
        if let Some((attr, age)) = self.meta.remembered_directory(ino, age_max) {
            return Ok(Answer::KnownAttr(attr_reply(ino, &attr), age_max - age));
        }
        let seen = self.table.observe();
        let mut attr = self.meta.getattr(ino).await?;
        self.table.patch_attr(ino, seen, &mut attr);
        Ok(Answer::Attr(attr_reply(ino, &attr)))
    }

    async fn statfs(&self) -> FsResult<Answer> {
        const UNIT: u64 = 4096;
        let usage = self.meta.statfs(self.common.root).await?;
        Ok(Answer::Statfs(StatfsReply {
            blocks: usage.total / UNIT,
            bfree: usage.available / UNIT,
            bavail: usage.available / UNIT,
            files: usage.inodes_used + usage.inodes_available,
            ffree: usage.inodes_available,
            bsize: UNIT as u32,
            namelen: 255,
            frsize: UNIT as u32,
        }))
    }

    /// Attributes that exist on every inode and in no store: what tools ask the server.
    fn virtual_xattr(&self, ino: Ino, name: &[u8]) -> FsResult<Option<Bytes>> {
        if name == STATS_XATTR.as_bytes() {
            return Ok(Some(self.common.counters.render().into()));
        }
        if name != WHERE_XATTR.as_bytes() {
            return Ok(None);
        }
        let mut answer = self.common.whereabouts.clone();
        answer.inode = ino.0;
        let json = serde_json::to_vec(&answer).map_err(|_| FsError::NotSupported)?;
        Ok(Some(json.into()))
    }
}

/// A value or, for size 0, its size; `ERANGE` if it does not fit.
fn sized(value: Bytes, size: u32) -> FsResult<Answer> {
    let length = u32::try_from(value.len()).map_err(|_| FsError::BufferTooSmall)?;
    if size == 0 {
        Ok(Answer::XattrSize(length))
    } else if size < length {
        Err(FsError::BufferTooSmall)
    } else {
        Ok(Answer::Bytes(value))
    }
}

fn new_inode(mode: u32, umask: u32, rdev: u32) -> FsResult<NewInode> {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFBLK => FileKind::BlockDev,
        libc::S_IFCHR => FileKind::CharDev,
        _ => return Err(FsError::Invalid("unknown file type")),
    };
    Ok(NewInode {
        kind,
        mode: (mode & 0o7777) as u16,
        umask: (umask & 0o777) as u16,
        rdev,
    })
}

fn rename_mode(flags: u32) -> FsResult<RenameMode> {
    match flags {
        0 => Ok(RenameMode::Replace),
        RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(FsError::Invalid("rename flags")),
    }
}

/// What the kernel says of sgid with a new ACL; kernels before 5.12 say nothing.
fn sgid_rule(kill_sgid: Option<bool>) -> SgidRule {
    match kill_sgid {
        Some(true) => SgidRule::Clear,
        Some(false) => SgidRule::Keep,
        None => SgidRule::ByGroup,
    }
}

fn xattr_mode(flags: u32) -> FsResult<XattrMode> {
    match flags {
        0 => Ok(XattrMode::Any),
        XATTR_CREATE => Ok(XattrMode::Create),
        XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(FsError::Invalid("setxattr flags")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_new_inodes() {
        for (mode, kind) in [
            (libc::S_IFREG | 0o644, FileKind::File),
            (0o600, FileKind::File),
            (libc::S_IFDIR, FileKind::Directory),
            (libc::S_IFSOCK, FileKind::Socket),
        ] {
            assert_eq!(new_inode(mode, 0, 0).unwrap().kind, kind);
        }
        assert!(new_inode(libc::S_IFLNK, 0, 0).is_err());
    }

    #[test]
    fn values_fit_or_are_refused() {
        let value = Bytes::from_static(b"value");
        assert!(matches!(sized(value.clone(), 0), Ok(Answer::XattrSize(5))));
        assert!(matches!(sized(value.clone(), 5), Ok(Answer::Bytes(_))));
        assert!(matches!(sized(value, 4), Err(FsError::BufferTooSmall)));
    }
}
