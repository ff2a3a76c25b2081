//! `lookup`, `getattr`, `access`: the reads behind every path walk.
//!
//! Round trips: one each; `..` takes two (the directory, then its parent), and a miss on a mount that ignores case
//! a listing of the directory. Nothing is written. The root and
//! the trash always exist: without a record their attributes are made up, as JuiceFS clients do.

use std::time::Duration;

use crate::client::{Meta, MetaResult};
use crate::engine::Key;
use crate::error::{EngineError, MetaError};
use crate::ops::Caller;
use crate::types::{Attr, FileKind, Ino, Name, Timestamp};

use super::acl::rule;
use super::{names, rules, trash};

/// Attributes of a directory that exists whatever the store says.
fn made_up(ino: Ino) -> Option<Attr> {
    match ino {
        Ino::ROOT => Some(Attr {
            mode: 0o777,
            ..trash::directory(Ino::ROOT, Timestamp::default())
        }),
        Ino::TRASH => Some(trash::directory(Ino::ROOT, Timestamp::default())),
        _ => None,
    }
}

impl Meta {
    /// Finds `name` in `parent`. A dentry without attributes is `NotFound`.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> MetaResult<(Ino, Attr)> {
        let name = names::checked(name)?;
        match &*name {
            b"." => return Ok((parent, rules::directory(Some(self.getattr(parent).await?))?)),
            b".." => {
                let attr = rules::directory(Some(self.getattr(parent).await?))?;
                if attr.parent == Ino::NONE {
                    return Err(orphan(parent));
                }
                return Ok((attr.parent, self.getattr(attr.parent).await?));
            }
            names::TRASH if parent == Ino::ROOT => {
                return Ok((Ino::TRASH, self.getattr(Ino::TRASH).await?));
            }
            _ => {}
        }
        if let Some(found) = self.entry_of(parent, name.clone()).await? {
            return Ok(found);
        }
        match self.other_spelling(parent, &name).await? {
            Some(name) => self.entry_of(parent, name).await?,
            None => None,
        }
        .ok_or(MetaError::NotFound)
    }

    async fn entry_of(&self, parent: Ino, name: Name) -> MetaResult<Option<(Ino, Attr)>> {
        let read = self.shared.changes.now();
        let entry = self.fetch(&[Key::Entry { parent, name }]).await?.entry()?;
        let found = entry.and_then(|(dentry, attr)| Some((dentry.ino, attr?)));
        if let Some((ino, attr)) = &found {
            self.learn_place(*ino, attr, read);
        }
        Ok(found)
    }

    /// Attributes of an inode. Root and trash always exist.
    pub async fn getattr(&self, ino: Ino) -> MetaResult<Attr> {
        let read = self.shared.changes.now();
        let attr = self.fetch(&[Key::Attr(ino)]).await?.attr()?;
        if let Some(attr) = &attr {
            self.learn_place(ino, attr, read);
        }
        attr.or_else(|| made_up(ino)).ok_or(MetaError::NotFound)
    }

    /// Attributes of a directory without asking the store, if they were read there less than `age_max` ago;
    /// with that age. The kernel drops what it knows of a directory whenever an entry is made or removed: with
    /// what it is told here it knows no more, and for no longer, than it would have.
    pub fn remembered_directory(&self, ino: Ino, age_max: Duration) -> Option<(Attr, Duration)> {
        let recall = &self.shared.recall;
        recall.fresh_directory(ino, self.now(), age_max)
    }

    /// access(2) by mode bits and the access ACL: `mask` of R=4 W=2 X=1. The caller's supplementary groups
    /// are not known here; mounts let the kernel decide instead.
    pub async fn access(&self, caller: &Caller, ino: Ino, mask: u8) -> MetaResult<()> {
        let attr = self.getattr(ino).await?;
        let wanted = u16::from(mask & 7);
        let granted = if caller.is_root() {
            // Root may everything but execute what nobody may execute.
            let executable = attr.kind == FileKind::Directory || attr.mode & 0o111 != 0;
            if executable { 7 } else { 6 }
        } else if attr.access_acl != 0 && attr.mode & 0o070 != 0 {
            rule::granted(&*self.acl_rule(attr.access_acl).await?, caller, &attr)
        } else if caller.uid == attr.uid {
            attr.mode >> 6
        } else if caller.gid == attr.gid {
            attr.mode >> 3
        } else {
            attr.mode
        };
        if wanted & !granted == 0 {
            Ok(())
        } else {
            Err(MetaError::Access)
        }
    }
}

fn orphan(ino: Ino) -> MetaError {
    EngineError::Corrupt {
        record: format!("attributes of {ino}"),
        cause: "a directory without a parent".into(),
    }
    .into()
}
