//! `mknod` (with `mkdir` and the inode of `create`), `symlink`, `readlink`.
//!
//! Round trips of an attempt: one read (parent, entry), one commit; a parent with a default ACL costs one more
//! read or commit for each rule this process has not met. Inode numbers come from this core's batch; one that loses its name to somebody else is
//! kept for the next attempt.
//!
//! The commit relies on little of the parent (it lives, is not immutable, is not in the trash), so that
//! creates in one directory do not fight over its times.

use std::cell::Cell;

use bytes::Bytes;

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{Check, Key, Record, Write};
use crate::error::{EngineError, MetaError};
use crate::limits::{LINK_TARGETS_MAX, SYMLINK_BYTES_MAX};
use crate::ops::{Caller, NewInode, Value};
use crate::types::{Attr, Dentry, FileKind, Ino, Name, Timestamp, attr_flags};

use super::growth::inode_usage;
use super::plan::{Applied, Plan};
use super::{names, rules};

/// `S_ISGID`: of a directory, new entries take its group.
const SET_GID: u16 = 0o2000;

/// What is to be created.
struct Node<'a> {
    inode: NewInode,
    target: Option<&'a Bytes>,
}

impl Meta {
    /// Creates a file, directory or special file.
    pub async fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new: &NewInode,
    ) -> MetaResult<(Ino, Attr)> {
        if new.kind == FileKind::Symlink {
            return Err(MetaError::Invalid("a symlink needs a target"));
        }
        self.create(
            caller,
            parent,
            name,
            &Node {
                inode: *new,
                target: None,
            },
        )
        .await
    }

    /// Creates a symlink.
    pub async fn symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> MetaResult<(Ino, Attr)> {
        if target.is_empty() || target.contains(&0) {
            return Err(MetaError::Invalid(
                "a symlink's target is empty or contains NUL",
            ));
        }
        if target.len() > SYMLINK_BYTES_MAX {
            return Err(MetaError::NameTooLong);
        }
        let target = Bytes::copy_from_slice(target);
        let inode = NewInode {
            kind: FileKind::Symlink,
            mode: 0o777,
            umask: 0,
            rdev: 0,
        };
        self.create(
            caller,
            parent,
            name,
            &Node {
                inode,
                target: Some(&target),
            },
        )
        .await
    }

    /// Target of a symlink. Targets never change and numbers are never given again: this core remembers them,
    /// also those of links that were removed meanwhile.
    pub async fn readlink(&self, ino: Ino) -> MetaResult<Value> {
        if let Some(target) = self.link_targets.borrow().get(&ino) {
            return Ok(target.clone());
        }
        let mut answers = self.fetch(&[Key::Attr(ino), Key::Symlink(ino)]).await?;
        let attr = answers.attr()?.ok_or(MetaError::NotFound)?;
        if attr.kind != FileKind::Symlink {
            return Err(MetaError::Invalid("not a symlink"));
        }
        let target = answers.record().map(Record::bytes).transpose()?;
        let target = target.ok_or_else(|| {
            MetaError::Engine(EngineError::Corrupt {
                record: format!("symlink {ino}"),
                cause: "its target is missing".into(),
            })
        })?;
        let mut known = self.link_targets.borrow_mut();
        if known.len() >= LINK_TARGETS_MAX {
            known.clear();
        }
        known.insert(ino, target.clone());
        Ok(target)
    }

    async fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        node: &Node<'_>,
    ) -> MetaResult<(Ino, Attr)> {
        let name = names::new_entry(parent, name)?;
        if parent.is_trash() {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        self.check_new_name(parent, &name).await?;
        let spare = Cell::new(None);
        self.run(async |sight| {
            self.try_create(sight, caller, parent, &name, node, &spare)
                .await
        })
        .await
    }

    async fn try_create(
        &self,
        sight: &Sight,
        caller: &Caller,
        parent: Ino,
        name: &Name,
        node: &Node<'_>,
        spare: &Cell<Option<Ino>>,
    ) -> MetaResult<Attempt<(Ino, Attr)>> {
        let keys = [
            Key::Attr(parent),
            Key::Dentry {
                parent,
                name: name.clone(),
            },
        ];
        let mut answers = self.fetch_at(sight, &keys).await?;
        let parent_attr = rules::growing_directory(answers.attr()?)?;
        if answers.dentry()?.is_some() {
            return Err(MetaError::Exists);
        }
        let kind = node.inode.kind;
        let is_dir = kind == FileKind::Directory;
        let now = self.now();
        let mut attr = new_attr(caller, parent, &parent_attr, node, now);
        let more = inode_usage(&attr);
        self.check_growth(&attr, more)?;
        self.check_dir(parent, more).await?;
        let ino = match spare.get() {
            Some(ino) => ino,
            None => self.alloc_inode().await?,
        };
        spare.set(Some(ino));

        self.inherit_acl(&parent_attr, node.inode.mode, &mut attr)
            .await?;
        let mut plan = Plan::default();
        plan.check(rules::heritage_check(parent, &parent_attr));
        plan.check(Check::Dentry {
            parent,
            name: name.clone(),
            expect: None,
        });
        plan.write(Write::InsertAttr {
            ino,
            attr: attr.clone(),
        });
        let dentry = Dentry { kind, ino };
        plan.write(Write::InsertDentry {
            parent,
            name: name.clone(),
            dentry,
        });
        plan.patch_dir(self, parent, &parent_attr, i32::from(is_dir), now);
        if let Some(target) = node.target {
            plan.write(Write::PutSymlink {
                ino,
                target: target.clone(),
            });
        }
        if is_dir {
            plan.write(Write::InitDirStat(ino));
        }
        plan.charge(&attr, more.space, more.inodes);
        plan.note(parent, rules::entry_stat(Some(&attr)));
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => Attempt::Done((ino, attr)),
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }
}

/// Attributes of a new inode, before any default ACL.
fn new_attr(
    caller: &Caller,
    parent: Ino,
    parent_attr: &Attr,
    node: &Node<'_>,
    now: Timestamp,
) -> Attr {
    let NewInode {
        kind,
        mode,
        umask,
        rdev,
    } = node.inode;
    let is_dir = kind == FileKind::Directory;
    let takes_group = parent_attr.mode & SET_GID != 0;
    let inherited = if takes_group && is_dir { SET_GID } else { 0 };
    let is_device = matches!(kind, FileKind::BlockDev | FileKind::CharDev);
    Attr {
        flags: parent_attr.flags & attr_flags::SKIP_TRASH,
        kind,
        mode: (mode & 0o7777 & !(umask & 0o777)) | inherited,
        uid: caller.uid,
        gid: if takes_group {
            parent_attr.gid
        } else {
            caller.gid
        },
        atime: now,
        mtime: now,
        ctime: now,
        nlink: if is_dir { 2 } else { 1 },
        length: match node.target {
            Some(target) => target.len() as u64,
            None if is_dir => 4096,
            None => 0,
        },
        rdev: if is_device { rdev } else { 0 },
        parent,
        access_acl: 0,
        default_acl: 0,
        tier: parent_attr.tier,
    }
}
