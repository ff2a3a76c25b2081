//! Room for what an operation adds, and who is charged for what it did: quotas of users and groups, limits of
//! the volume, quotas of the directories above.
//!
//! Before a commit that adds, in the order of JuiceFS: user, group (`QuotaExceeded`), volume (`NoSpace`),
//! every directory above with a quota (`QuotaExceeded`). After a commit: [`super::plan`] charges what the plan
//! noted, `content` and `open` charge what they change themselves. All of it is memory ([`crate::quota`]);
//! `jobs::quotas` writes it.
//!
//! What is charged: an inode once to its owner and group from its creation to its end, trash and files kept
//! open included; a name once to every directory with a quota above it, hard links once for each name,
//! without what is in the trash. A commit whose answer is lost is charged once it is known to have been applied.
//!
//! Round trips: none while no directory has a quota, and none for directories whose ancestors are known; else
//! one for the whole way up.

use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Key, Record, Write};
use crate::error::{EngineError, MetaError};
use crate::quota::Usage;
use crate::types::{Attr, DirStat, FileKind, Ino, QuotaKey};

use super::rules;

/// What one name adds to the directories above it, and one inode to its owner.
pub(crate) fn inode_usage(attr: &Attr) -> Usage {
    Usage {
        space: rules::charged_space(attr),
        inodes: 1,
    }
}

impl From<DirStat> for Usage {
    fn from(stat: DirStat) -> Usage {
        Usage {
            space: stat.space,
            inodes: stat.inodes,
        }
    }
}

/// Where a directory is after a commit, `None` if it is gone.
pub(crate) type Place = (Ino, Option<Ino>);

/// The directories that these writes make, move or remove.
pub(crate) fn places(writes: &[Write]) -> Vec<Place> {
    let is_dir = |attr: &Attr| attr.kind == FileKind::Directory;
    let place = |write: &Write| match write {
        Write::InsertAttr { ino, attr } | Write::UpdateAttr { ino, new: attr, .. }
            if is_dir(attr) =>
        {
            Some((*ino, Some(attr.parent)))
        }
        Write::DeleteQuota(QuotaKey::Dir(ino)) => Some((*ino, None)),
        _ => None,
    };
    writes.iter().filter_map(place).collect()
}

impl Meta {
    /// Whether the owner of an inode, its group and the volume have room for so much more.
    pub(crate) fn check_growth(&self, attr: &Attr, more: Usage) -> MetaResult<()> {
        self.check_owner(attr, more)?;
        self.check_room(more.space, more.inodes)
    }

    /// Whether the owner of an inode and its group have room for so much more.
    pub(crate) fn check_owner(&self, attr: &Attr, more: Usage) -> MetaResult<()> {
        let quotas = &self.shared.quotas;
        if !quotas.watches_owners() {
            return Ok(());
        }
        for key in [QuotaKey::User(attr.uid), QuotaKey::Group(attr.gid)] {
            if quotas.refuses(key, more) {
                return Err(MetaError::QuotaExceeded);
            }
        }
        Ok(())
    }

    /// Whether every directory with a quota from `dir` upwards has room for so much more.
    pub(crate) async fn check_dir(&self, dir: Ino, more: Usage) -> MetaResult<()> {
        if more.space <= 0 && more.inodes <= 0 {
            return Ok(());
        }
        let dirs = self.quota_dirs(dir).await?;
        self.check_dirs(&dirs, more)
    }

    /// Whether these directories have room for so much more.
    pub(crate) fn check_dirs(&self, dirs: &[Ino], more: Usage) -> MetaResult<()> {
        let quotas = &self.shared.quotas;
        match dirs
            .iter()
            .any(|dir| quotas.refuses(QuotaKey::Dir(*dir), more))
        {
            true => Err(MetaError::QuotaExceeded),
            false => Ok(()),
        }
    }

    /// The directories with a quota from `dir` upwards, nearest first. One round trip if not all of the way is
    /// known. A way that ends at a missing record ends there.
    pub(crate) async fn quota_dirs(&self, dir: Ino) -> Result<Vec<Ino>, EngineError> {
        let quotas = &self.shared.quotas;
        if !quotas.watches_dirs() {
            return Ok(Vec::new());
        }
        let (dirs, unknown) = quotas.above(dir);
        let Some(unknown) = unknown else {
            return Ok(dirs);
        };
        let read = self.shared.changes.now();
        let records = self.engine.read(&[Key::Ancestors(unknown)]).await?;
        let path = records.into_iter().next().flatten();
        let path = path.map(Record::path).transpose()?.unwrap_or_default();
        let mut below = unknown;
        for (above, _) in path {
            if self.shared.changes.unchanged_since(below, read) {
                quotas.learn(below, above);
            }
            below = above;
        }
        Ok(quotas.above(dir).0)
    }

    /// A directory's attributes were read after moment `read`: remembers where it is.
    pub(crate) fn learn_place(&self, ino: Ino, attr: &Attr, read: crate::changes::Moment) {
        let watched = attr.kind == FileKind::Directory && self.shared.quotas.watches_dirs();
        if watched && self.shared.changes.unchanged_since(ino, read) {
            self.shared.quotas.learn(ino, attr.parent);
        }
    }

    /// Takes over where a commit has put directories.
    pub(crate) fn learn_places(&self, places: Vec<Place>) {
        for (dir, parent) in places {
            match parent {
                Some(parent) => self.shared.quotas.learn(dir, parent),
                None => self.shared.quotas.removed(dir),
            }
        }
    }

    /// Charges owner and group of an inode.
    pub(crate) fn charge_owner(&self, uid: u32, gid: u32, change: Usage) {
        let quotas = &self.shared.quotas;
        if quotas.watches_owners() {
            quotas.charge(QuotaKey::User(uid), change);
            quotas.charge(QuotaKey::Group(gid), change);
        }
    }

    /// Charges every directory with a quota from `dir` upwards, after a commit.
    pub(crate) async fn charge_dir(&self, dir: Ino, change: Usage) {
        if change.is_none() || !self.shared.quotas.watches_dirs() {
            return;
        }
        match self.quota_dirs(dir).await {
            Ok(dirs) => {
                for dir in dirs {
                    self.shared.quotas.charge(QuotaKey::Dir(dir), change);
                }
            }
            // The change is committed all the same.
            Err(error) => {
                tracing::warn!(%dir, %error, "quotas above a directory miss a change: see `quota check`")
            }
        }
    }
}
