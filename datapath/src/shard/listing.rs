//! READDIR and READDIRPLUS: positions of an open directory packed into the kernel's buffer.

use sluice_meta::ops::DirEntry;
use sluice_meta::types::{FileKind, Ino};

use super::Shard;
use super::dir::{DirStream, Positioned, leading};
use super::dispatch::Answer;
use crate::error::{FsError, FsResult};
use crate::fuse::dirbuf::DirBuffer;
use crate::fuse::op;

impl Shard {
    pub(super) async fn readdir(&self, dir: Ino, read: &op::Read, plus: bool) -> FsResult<Answer> {
        let handle = self.common.handles.dir(read.fh).ok_or(FsError::BadHandle)?;
        let mut stream = handle.take(read.offset, plus);
        let filled = self.fill(dir, &mut stream, read, plus).await;
        handle.put(stream);
        Ok(Answer::Listing(filled?))
    }

    async fn fill(
        &self,
        dir: Ino,
        stream: &mut DirStream,
        read: &op::Read,
        plus: bool,
    ) -> FsResult<DirBuffer> {
        let mut buffer = DirBuffer::new(read.size);
        let with_trash = dir == Ino::ROOT && dir == self.common.root && !self.common.hide_internal;
        let lead: u64 = if with_trash { 3 } else { 2 };
        let mut position = read.offset;
        if position < lead {
            let parent = self.parent_of(dir).await?;
            let skip = position as usize;
            for (name, ino) in leading(dir, parent, with_trash).into_iter().skip(skip) {
                position += 1;
                let mode = FileKind::Directory.mode_bits();
                let fits = if plus {
                    buffer.push_plus_bare(ino.0, position, mode, name)
                } else {
                    buffer.push(ino.0, position, mode, name)
                };
                if !fits {
                    return Ok(buffer);
                }
            }
        }
        while let Some(found) = stream
            .entry(
                &self.meta,
                &self.background,
                dir,
                (position - lead) as usize,
            )
            .await?
        {
            position += 1;
            if !self.push(dir, &mut buffer, &found, position, plus) {
                break;
            }
        }
        Ok(buffer)
    }

    fn push(
        &self,
        dir: Ino,
        buffer: &mut DirBuffer,
        found: &Positioned<'_>,
        next: u64,
        plus: bool,
    ) -> bool {
        let DirEntry {
            name,
            ino,
            kind,
            attr,
        } = found.entry;
        let mode = kind.mode_bits();
        match attr {
            _ if !plus => buffer.push(ino.0, next, mode, name),
            // An inode in use here may have data that the store has not, and one that was changed here since the
            // page was read has other attributes: the kernel looks it up when it needs it.
            Some(attr)
                if self.table.get(*ino).is_none()
                    && self.meta.shared().changes.unchanged_since(*ino, found.read) =>
            {
                let entry = self.common.timeouts().entry_reply(*ino, attr, found.age);
                let fits = buffer.push_plus(&entry, next, name);
                if fits {
                    self.hand_out_name(dir, name, *ino);
                }
                fits
            }
            _ => buffer.push_plus_bare(ino.0, next, mode, name),
        }
    }

    /// What `..` of a directory is; the root's parent is the root.
    async fn parent_of(&self, dir: Ino) -> FsResult<Ino> {
        if dir == self.common.root {
            return Ok(dir);
        }
        let parent = self.meta.getattr(dir).await?.parent;
        Ok(if parent == Ino::NONE { dir } else { parent })
    }
}
