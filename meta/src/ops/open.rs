//! Open files: which may be opened how, and what the last close of a file without links does.
//!
//! Owned here: the handle counts of [`crate::client::Shared::open`], shared by all cores. A handle is counted
//! *before* the attributes are read: an unlink on another core then either sees the handle and keeps the
//! inode (sustained by this process's session), or was there first and the open finds nothing.
//!
//! With `--open-cache` an open may take the attributes from memory ([`crate::recall`]) for that long, with this
//! process's own changes since: that gives up close-to-open for the time, as JuiceFS does, and saves the one round
//! trip of an open. Memory never refuses an open.

use std::cell::RefCell;
use std::collections::hash_map::Entry;

use crate::client::{Attempt, Meta, MetaResult, OpenInode};
use crate::engine::{AttrFields, Check, Counter, Engine, Key, Record, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::ops::OpenFlags;
use crate::ops::growth::inode_usage;
use crate::types::{Attr, FileKind, Ino, SessionId, align_4k, attr_flags};

impl Meta {
    /// Opens a regular file: checks flags, counts the handle. With `truncate` the caller truncates afterwards.
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> MetaResult<Attr> {
        if flags.write || flags.truncate {
            self.check_writable()?;
        }
        self.opened(ino);
        match self.check_open(ino, flags).await {
            Ok(attr) => Ok(attr),
            Err(error) => {
                // Its last link may have gone while it was counted. What is deleted by this waits for the
                // job that collects deleted files.
                if let Err(fault) = self.close(ino).await {
                    tracing::warn!(%ino, error = %fault, "could not give back a handle");
                }
                Err(error)
            }
        }
    }

    async fn check_open(&self, ino: Ino, flags: OpenFlags) -> MetaResult<Attr> {
        let age_max = self.shared.options.open_cache;
        if !age_max.is_zero()
            && let Some((attr, _)) = self.shared.recall.fresh(ino, self.now(), age_max)
            && check_flags(&attr, flags).is_ok()
        {
            return Ok(attr);
        }
        let attr = self
            .fetch(&[Key::Attr(ino)])
            .await?
            .attr()?
            .ok_or(MetaError::NotFound)?;
        check_flags(&attr, flags)?;
        Ok(attr)
    }

    /// Counts a handle of an inode that was just created by this process.
    pub fn opened(&self, ino: Ino) {
        self.shared.open.lock().entry(ino).or_default().handles += 1;
    }

    /// Gives a handle back; the last one deletes an inode that has no links any more.
    /// Answers the length of a file that is deleted by this, see `Removed::deleted`.
    pub async fn close(&self, ino: Ino) -> MetaResult<Option<u64>> {
        match (self.give_back(ino).sustained, self.shared.session()) {
            (true, Some(sid)) => self.delete_sustained(sid, ino).await,
            _ => Ok(None),
        }
    }

    /// The state of an inode whose last handle this was; else one that is not sustained.
    fn give_back(&self, ino: Ino) -> OpenInode {
        let mut open = self.shared.open.lock();
        if let Entry::Occupied(mut entry) = open.entry(ino) {
            let handles = entry.get().handles.saturating_sub(1);
            if handles == 0 {
                return entry.remove();
            }
            entry.get_mut().handles = handles;
        }
        OpenInode::default()
    }

    /// Deletes an inode without links that session `sid` kept: files its data for deletion and takes the
    /// session's note back. Answers its length; `None` if there is nothing to delete.
    pub(crate) async fn delete_sustained(
        &self,
        sid: SessionId,
        ino: Ino,
    ) -> MetaResult<Option<u64>> {
        // The record that a commit of unknown fate would have deleted.
        let doubt = RefCell::new(None);
        self.run(async |_| self.try_delete_sustained(sid, ino, &doubt).await)
            .await
    }

    async fn try_delete_sustained(
        &self,
        sid: SessionId,
        ino: Ino,
        doubt: &RefCell<Option<Attr>>,
    ) -> MetaResult<Attempt<Option<u64>>> {
        let record = self.engine.read(&[Key::Attr(ino)]).await?.pop().flatten();
        let attr = record.map(Record::attr).transpose()?;
        let take_back = Write::DeleteSustained { sid, ino };
        let Some(attr) = attr.filter(|attr| attr.nlink == 0) else {
            if let Some(deleted) = doubt.borrow_mut().take() {
                self.note_deleted(&deleted, None);
                return Ok(Attempt::Done(Some(deleted.length)));
            }
            // Gone already, or linked again: there is only the note left.
            let note = Txn {
                checks: Vec::new(),
                writes: vec![take_back],
            };
            self.commit(note).await?;
            return Ok(Attempt::Done(None));
        };

        let (length, space) = (attr.length, -align_4k(attr.length));
        let mut txn = Txn {
            checks: vec![Check::Attr {
                ino,
                fields: AttrFields::ALL,
                expect: attr.clone(),
            }],
            writes: vec![
                Write::AddCounter {
                    counter: Counter::UsedSpace,
                    delta: space,
                },
                Write::AddCounter {
                    counter: Counter::TotalInodes,
                    delta: -1,
                },
                Write::AddDeletedFile {
                    ino,
                    length,
                    time: self.now().sec,
                },
                Write::DeleteAttr(ino),
                // Attributes may have been set through the open handle after the last link went.
                Write::DeleteXattrs(ino),
                take_back,
            ],
        };
        if attr.parent == Ino::NONE {
            txn.writes.push(Write::DeleteParents(ino));
        }
        match self.commit(txn).await {
            Ok(Some(results)) => {
                self.note_deleted(&attr, results.first().copied().zip(results.get(1).copied()));
                Ok(Attempt::Done(Some(length)))
            }
            Ok(None) => Ok(Attempt::Conflict(ino)),
            Err(MetaError::Engine(EngineError::UnknownFate { cause, .. })) => {
                tracing::debug!(%ino, cause, "looking whether an open inode was deleted");
                *doubt.borrow_mut() = Some(attr);
                Ok(Attempt::Conflict(ino))
            }
            Err(error) => Err(error),
        }
    }

    /// Books a deleted inode; `sums` are the volume's new used space and inodes, if known.
    fn note_deleted(&self, attr: &Attr, sums: Option<(i64, i64)>) {
        use std::sync::atomic::Ordering;
        self.note_used_space(-align_4k(attr.length), sums.map(|(space, _)| space));
        self.charge_owner(attr.uid, attr.gid, -inode_usage(attr));
        match sums {
            Some((_, inodes)) => self.shared.total_inodes.store(inodes, Ordering::Relaxed),
            None => drop(self.shared.total_inodes.fetch_sub(1, Ordering::Relaxed)),
        }
    }
}

fn check_flags(attr: &Attr, flags: OpenFlags) -> MetaResult<()> {
    match attr.kind {
        FileKind::File => {}
        FileKind::Directory => return Err(MetaError::IsDirectory),
        // The kernel opens these itself and follows links.
        FileKind::Symlink
        | FileKind::Fifo
        | FileKind::BlockDev
        | FileKind::CharDev
        | FileKind::Socket => return Err(MetaError::NotPermitted),
    }
    let writes = flags.write || flags.truncate;
    let frozen = attr.flags & attr_flags::IMMUTABLE != 0 || attr.in_trash();
    let append_only = attr.flags & attr_flags::APPEND != 0;
    let overwrites = (flags.write && !flags.append) || flags.truncate;
    if (writes && frozen) || (append_only && overwrites) {
        return Err(MetaError::NotPermitted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn file(flags: u8, parent: Ino) -> Attr {
        let time = Timestamp::default();
        Attr {
            flags,
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            atime: time,
            mtime: time,
            ctime: time,
            nlink: 1,
            length: 0,
            rdev: 0,
            parent,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        }
    }

    #[test]
    fn what_may_be_opened_how() {
        // (read, write, append, truncate), exhaustively, against the rule said in another way.
        let hour = Ino(Ino::TRASH.0 + 1);
        let cases = [
            (file(0, Ino::ROOT), "any"),
            (file(attr_flags::IMMUTABLE, Ino::ROOT), "read"),
            (file(attr_flags::APPEND, Ino::ROOT), "append"),
            (file(0, hour), "read"),
            (file(attr_flags::SKIP_TRASH, Ino::NONE), "any"),
        ];
        for (attr, allowed) in cases {
            for bits in 0..16_u8 {
                let bit = |at: u8| bits & (1 << at) != 0;
                let flags = OpenFlags {
                    read: bit(0),
                    write: bit(1),
                    append: bit(2),
                    truncate: bit(3),
                };
                let expect = match allowed {
                    "any" => true,
                    "read" => !flags.write && !flags.truncate,
                    _ => !flags.truncate && (flags.append || !flags.write),
                };
                assert_eq!(
                    check_flags(&attr, flags).is_ok(),
                    expect,
                    "{allowed} {flags:?}"
                );
            }
        }
        let dir = Attr {
            kind: FileKind::Directory,
            ..file(0, Ino::ROOT)
        };
        let read = OpenFlags {
            read: true,
            write: false,
            append: false,
            truncate: false,
        };
        assert!(matches!(
            check_flags(&dir, read),
            Err(MetaError::IsDirectory)
        ));
    }
}
