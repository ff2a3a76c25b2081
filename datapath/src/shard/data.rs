//! Requests that concern the data of a file: open to release. Here it is decided whether this core may serve
//! them or the owner of the inode's data has to.

use std::rc::Rc;

use sluice_meta::error::MetaError;
use sluice_meta::ops::{Caller, FallocateMode, NewInode, OpenFlags, SetAttr, SetTime};
use sluice_meta::types::{Attr, FileKind, Ino};

use super::Shard;
use super::attrs::attr_reply;
use super::dispatch::Answer;
use super::handle::Handles;
use super::inode::{Claim, CoreId, Route};
use crate::error::{FsError, FsResult};
use crate::file::WriteOptions;
use crate::fuse::op;

/// `FOPEN_*` flags of an answer to OPEN.
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
const FOPEN_NOFLUSH: u32 = 1 << 5;

/// `fallocate(2)` modes.
const KEEP_SIZE: u32 = 0x01;
const PUNCH_HOLE: u32 = 0x02;
const ZERO_RANGE: u32 = 0x10;

const O_ACCMODE: u32 = libc::O_ACCMODE as u32;

impl Shard {
    /// `None` if this core now owns the data, else who does.
    pub(super) fn claim(&self, ino: Ino) -> Option<CoreId> {
        match self.files.claim(ino) {
            Claim::Mine => None,
            Claim::Other(core) => Some(core),
        }
    }

    /// `None` if this core can see the current data, else who can.
    pub(super) fn elsewhere(&self, ino: Ino) -> Option<CoreId> {
        match self.files.route_read(ino) {
            Route::Here => None,
            Route::Hop(core) => Some(core),
        }
    }

    pub(super) async fn open(
        self: &Rc<Self>,
        caller: &Caller,
        ino: Ino,
        flags: u32,
        kill_suidgid: bool,
    ) -> FsResult<Answer> {
        let wanted = open_flags(flags);
        if wanted.truncate
            && let Some(owner) = self.claim(ino)
        {
            return Ok(Answer::Hop(owner));
        }
        let (seen, unchanged) = (self.table.observe(), self.meta.shared().changes.now());
        let attr = self.meta.open(ino, wanted).await?;
        self.table.opened(ino, seen, &attr);
        if wanted.read {
            self.opened_to_read(ino, &attr, unchanged, flags);
        }
        if wanted.truncate
            && let Err(error) = self.truncate(caller, ino, 0, kill_suidgid).await
        {
            self.close(ino).await;
            return Err(error);
        }
        let mut flags = 0;
        if self.common.keep_cache.seen(ino, attr.mtime, attr.length) && !wanted.truncate {
            flags |= FOPEN_KEEP_CACHE;
        }
        // Where there are locks, closing a file releases those of the process, however it was opened.
        if !wanted.write && self.meta.shared().options.read_only {
            flags |= FOPEN_NOFLUSH;
        }
        Ok(Answer::Open {
            fh: self.common.handles.file(wanted.write),
            flags,
        })
    }

    pub(super) async fn create(
        self: &Rc<Self>,
        caller: &Caller,
        parent: Ino,
        create: &op::Create<'_>,
    ) -> FsResult<Answer> {
        let new = NewInode {
            kind: FileKind::File,
            mode: (create.mode & 0o7777) as u16,
            umask: (create.umask & 0o777) as u16,
            rdev: 0,
        };
        match self.meta.mknod(caller, parent, create.name, &new).await {
            Ok((ino, attr)) => {
                let seen = self.table.observe();
                self.meta.opened(ino);
                self.table.opened(ino, seen, &attr);
                self.common.keep_cache.seen(ino, attr.mtime, attr.length);
                Ok(self.created(ino, &attr, create.flags, 0))
            }
            // Somebody else made it since the kernel looked: open it, unless it had to be new.
            Err(MetaError::Exists) if create.flags & libc::O_EXCL as u32 == 0 => {
                let seen = self.table.observe();
                let (ino, mut attr) = self.meta.lookup(parent, create.name).await?;
                match self
                    .open(caller, ino, create.flags, create.kill_suidgid)
                    .await?
                {
                    Answer::Open { fh, flags } => {
                        self.table.patch_attr(ino, seen, &mut attr);
                        let entry =
                            self.common
                                .timeouts()
                                .entry_reply(ino, &attr, Default::default());
                        Ok(Answer::Created { entry, fh, flags })
                    }
                    other => Ok(other),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn created(&self, ino: Ino, attr: &Attr, flags: u32, open_flags: u32) -> Answer {
        let fh = self
            .common
            .handles
            .file(flags & O_ACCMODE != libc::O_RDONLY as u32);
        let entry = self
            .common
            .timeouts()
            .entry_reply(ino, attr, Default::default());
        Answer::Created {
            entry,
            fh,
            flags: open_flags,
        }
    }

    pub(super) async fn read(&self, ino: Ino, read: &op::Read) -> FsResult<Answer> {
        if let Some(owner) = self.elsewhere(ino) {
            return Ok(Answer::Hop(owner));
        }
        Ok(Answer::Data(
            self.files.read(ino, read.offset, read.size).await?,
        ))
    }

    pub(super) async fn write(&self, ino: Ino, write: &op::Write<'_>) -> FsResult<Answer> {
        // A write back from the page cache carries a guess for its handle.
        if !write.from_cache && !Handles::is_writable(write.fh) {
            return Err(FsError::BadHandle);
        }
        if let Some(owner) = self.claim(ino) {
            return Ok(Answer::Hop(owner));
        }
        let options = WriteOptions {
            kill_suid: write.kill_suidgid,
            ..WriteOptions::default()
        };
        let count = self
            .files
            .write(ino, write.offset, write.data, options)
            .await?;
        Ok(Answer::Written(count as u32))
    }

    pub(super) async fn flush(
        self: &Rc<Self>,
        ino: Ino,
        fh: u64,
        lock_owner: u64,
    ) -> FsResult<Answer> {
        let mut flushed = Ok(());
        if Handles::is_writable(fh) {
            if let Some(owner) = self.elsewhere(ino) {
                return Ok(Answer::Hop(owner));
            }
            flushed = self.files.flush(ino).await;
        }
        self.release_closed(ino, lock_owner).await;
        flushed.map(|()| Answer::Empty)
    }

    pub(super) async fn fsync(&self, ino: Ino) -> FsResult<Answer> {
        if let Some(owner) = self.elsewhere(ino) {
            return Ok(Answer::Hop(owner));
        }
        self.files.fsync(ino).await?;
        Ok(Answer::Empty)
    }

    pub(super) async fn release(self: &Rc<Self>, ino: Ino, fh: u64) -> FsResult<Answer> {
        if Handles::is_writable(fh) {
            // Pages written through mmap after the last close(2) are still dirty here.
            if let Some(owner) = self.elsewhere(ino) {
                return Ok(Answer::Hop(owner));
            }
        }
        // After the data: who gets the lock next shall see it.
        let flushed = self.files.flush(ino).await;
        self.release_handle(ino, fh).await;
        if let Err(error) = flushed {
            tracing::debug!(inode = ino.0, %error, "flush at the last close failed");
        }
        self.close(ino).await;
        Ok(Answer::Empty)
    }

    /// Gives a handle back.
    pub(super) async fn close(self: &Rc<Self>, ino: Ino) {
        if let Err(error) = self.files.release(ino).await {
            tracing::warn!(inode = ino.0, %error, "a file was closed with writes that are lost");
        }
        match self.meta.close(ino).await {
            Ok(Some(length)) => self.reclaim(ino, length),
            Ok(None) => {}
            Err(error) => tracing::error!(inode = ino.0, %error, "closing failed"),
        }
    }

    /// The kernel did not take an open handle: nobody will release it.
    pub(super) async fn abandon_open(self: &Rc<Self>, ino: Ino, fh: u64) {
        if self.common.handles.dir(fh).is_some() {
            self.common.handles.close_dir(fh);
        } else {
            self.close(ino).await;
        }
    }

    pub(super) async fn fallocate(
        &self,
        ino: Ino,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> FsResult<Answer> {
        let mode = match mode {
            0 => FallocateMode::Allocate,
            KEEP_SIZE => FallocateMode::KeepSize,
            m if m == PUNCH_HOLE | KEEP_SIZE => FallocateMode::PunchHole,
            ZERO_RANGE => FallocateMode::ZeroRange { keep_size: false },
            m if m == ZERO_RANGE | KEEP_SIZE => FallocateMode::ZeroRange { keep_size: true },
            _ => return Err(FsError::NotSupported),
        };
        if let Some(owner) = self.claim(ino) {
            return Ok(Answer::Hop(owner));
        }
        self.files.fallocate(ino, mode, offset, length).await?;
        Ok(Answer::Empty)
    }

    pub(super) async fn lseek(&self, ino: Ino, offset: u64, whence: u32) -> FsResult<Answer> {
        if let Some(owner) = self.elsewhere(ino) {
            return Ok(Answer::Hop(owner));
        }
        let found = match whence as i32 {
            libc::SEEK_DATA => self.files.seek_data(ino, offset).await?,
            libc::SEEK_HOLE => self.files.seek_hole(ino, offset).await?,
            _ => return Err(FsError::Invalid("lseek whence")),
        };
        Ok(Answer::Offset(found))
    }

    pub(super) async fn setattr(
        &self,
        caller: &Caller,
        ino: Ino,
        set: &op::Setattr,
    ) -> FsResult<Answer> {
        if set.size.is_some() {
            if let Some(owner) = self.claim(ino) {
                return Ok(Answer::Hop(owner));
            }
        } else if set.mtime.is_some() {
            if let Some(owner) = self.elsewhere(ino) {
                return Ok(Answer::Hop(owner));
            }
            // What is flushed later would set its own time over the one that is asked for now.
            self.files.flush(ino).await?;
        }
        let mut attr = None;
        if let Some(size) = set.size {
            attr = Some(self.resize(caller, ino, size, set).await?);
        }
        let rest = SetAttr {
            mode: set.mode.map(|mode| (mode & 0o7777) as u16),
            uid: set.uid,
            gid: set.gid,
            atime: set.atime.map(set_time),
            mtime: set.mtime.map(set_time),
        };
        let seen = self.table.observe();
        let mut attr = match attr {
            Some(attr) if rest == SetAttr::default() => attr,
            _ => self.meta.setattr(caller, ino, &rest).await?,
        };
        self.table.patch_attr(ino, seen, &mut attr);
        Ok(Answer::Attr(attr_reply(ino, &attr)))
    }

    async fn resize(
        &self,
        caller: &Caller,
        ino: Ino,
        size: u64,
        set: &op::Setattr,
    ) -> FsResult<Attr> {
        let attr = self
            .files
            .truncate(caller, ino, size, set.fh.is_some())
            .await?;
        if set.kill_suidgid {
            self.without_suid(ino, attr).await
        } else {
            Ok(attr)
        }
    }

    async fn truncate(
        &self,
        caller: &Caller,
        ino: Ino,
        size: u64,
        kill_suidgid: bool,
    ) -> FsResult<()> {
        let attr = self.files.truncate(caller, ino, size, true).await?;
        if kill_suidgid {
            self.without_suid(ino, attr).await?;
        }
        Ok(())
    }

    /// Takes suid, and sgid of a group-executable file, away: somebody without the right to keep them changed
    /// the content, and the kernel leaves it to us (`HANDLE_KILLPRIV_V2`).
    async fn without_suid(&self, ino: Ino, attr: Attr) -> FsResult<Attr> {
        let sgid = if attr.mode & 0o010 != 0 { 0o2000 } else { 0 };
        let mode = attr.mode & !(0o4000 | sgid);
        if mode == attr.mode {
            return Ok(attr);
        }
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        Ok(self.meta.setattr(&Caller::ROOT, ino, &set).await?)
    }
}

fn set_time(time: op::SetTime) -> SetTime {
    match time {
        op::SetTime::Now => SetTime::Now,
        op::SetTime::At(at) => SetTime::At(at),
    }
}

fn open_flags(flags: u32) -> OpenFlags {
    let access = flags & O_ACCMODE;
    let write = access != libc::O_RDONLY as u32;
    OpenFlags {
        read: access != libc::O_WRONLY as u32,
        write,
        append: flags & libc::O_APPEND as u32 != 0,
        truncate: write && flags & libc::O_TRUNC as u32 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_open() {
        let flags = open_flags((libc::O_WRONLY | libc::O_TRUNC | libc::O_APPEND) as u32);
        assert!(flags.write && !flags.read && flags.truncate && flags.append);
        let flags = open_flags((libc::O_RDONLY | libc::O_TRUNC) as u32);
        assert!(
            flags.read && !flags.write && !flags.truncate,
            "O_TRUNC needs the right to write"
        );
        assert!(open_flags(libc::O_RDWR as u32).read);
    }
}
