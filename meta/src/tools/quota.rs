//! `quota`: sets, shows, deletes, checks and repairs the quotas of directories, users and groups.
//!
//! Works over a [`Meta`] without a session. Mounted clients learn of a new quota with their next heartbeat;
//! what they change between the count of its usage and that moment is missing from it, as with JuiceFS:
//! [`check`] finds it. The first quota of a kind turns the accounting on in the setting, after what earlier
//! times may have left of it was removed.
//!
//! A user's and a group's usage counts every inode, as the accounting of mounted clients does. (JuiceFS's own
//! count of a whole volume leaves symlinks and special files out and differs by those.)

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::read_setting;
use crate::client::Meta;
use crate::engine::{Check, Engine, Item, Key, Outcome, Record, Scan, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::jobs::quotas::quotas_of;
use crate::limits;
use crate::ops::growth::inode_usage;
use crate::ops::summary::Walk;
use crate::ops::{Caller, NewInode};
use crate::quota::Usage;
use crate::types::{FileKind, Ino, Name, Quota, QuotaKey, QuotaKind};
use crate::volume::{Setting, VolumeError};

/// Why a quota command did nothing, or not all. One sentence each.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// No such directory.
    #[error("{path} does not exist on the volume: create it first, or add --create to `quota set`")]
    NoDirectory {
        /// As given.
        path: String,
    },
    /// Something else is there.
    #[error("{path} is not a directory: only directories, users and groups have quotas")]
    NotDirectory {
        /// As given.
        path: String,
    },
    /// The trash.
    #[error("{path} is in the trash, which has no quotas: name another directory")]
    Trash {
        /// As given.
        path: String,
    },
    /// Nothing to check.
    #[error("{what} has no quota: set one with `quota set`")]
    None {
        /// Whose.
        what: String,
    },
    /// About the volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// An operation failed.
    #[error("the quota could not be handled: {0}")]
    Meta(#[from] MetaError),
}

impl From<EngineError> for QuotaError {
    fn from(error: EngineError) -> QuotaError {
        VolumeError::from(error).into()
    }
}

/// Limits to set; `None` leaves one as it is, 0 takes it away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Most bytes.
    pub space: Option<u64>,
    /// Most inodes.
    pub inodes: Option<u64>,
}

/// A quota whose usage is not what a count finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Whose.
    pub key: QuotaKey,
    /// What the store says; `None`: it has none.
    pub stored: Option<Usage>,
    /// What there is.
    pub counted: Usage,
}

/// The directory at `path` from the volume's root; with `create` it is made, with all above it.
pub async fn directory(meta: &Meta, path: &str, create: bool) -> Result<Ino, QuotaError> {
    let parts = path.split('/').filter(|part| !part.is_empty());
    let mut at = Ino::ROOT;
    for part in parts {
        let (ino, attr) = match meta.lookup(at, part.as_bytes()).await {
            Err(MetaError::NotFound) if create => {
                let new = NewInode {
                    kind: FileKind::Directory,
                    mode: 0o777,
                    umask: 0o022,
                    rdev: 0,
                };
                meta.mknod(&Caller::ROOT, at, part.as_bytes(), &new).await?
            }
            Err(MetaError::NotFound) => {
                let path = path.into();
                return Err(QuotaError::NoDirectory { path });
            }
            found => found?,
        };
        if attr.kind != FileKind::Directory {
            let path = path.into();
            return Err(QuotaError::NotDirectory { path });
        }
        if ino.is_trash() {
            let path = path.into();
            return Err(QuotaError::Trash { path });
        }
        at = ino;
    }
    // What was made is charged to quotas above it.
    meta.flush_dir_stats().await?;
    meta.flush_quotas().await?;
    Ok(at)
}

/// Sets limits; a new directory's usage is counted by `walk`, all users' and groups' with their first one.
/// Answers the quota.
pub async fn set(
    meta: &Meta,
    key: QuotaKey,
    limits: Limits,
    walk: Walk,
) -> Result<Quota, QuotaError> {
    let first = turn_on(meta, key.kind()).await?;
    let old = read(meta, key).await?;
    let limit = |new: Option<u64>, old: i64| match new {
        Some(new) => i64::try_from(new).unwrap_or(i64::MAX),
        None => old,
    };
    let before = old.unwrap_or(Quota::UNLIMITED);
    put(
        meta,
        vec![Write::PutQuotaLimits {
            key,
            max_space: limit(limits.space, before.max_space),
            max_inodes: limit(limits.inodes, before.max_inodes),
        }],
    )
    .await?;
    match key {
        QuotaKey::Dir(dir) if old.is_none() => {
            let usage = meta.summary(dir, walk).await?.usage_below();
            put(meta, vec![usage_write(key, usage)]).await?;
        }
        QuotaKey::User(_) | QuotaKey::Group(_) if first => {
            let counted = count_owners(meta).await?;
            repair_owners(meta, &counted).await?;
        }
        _ => {}
    }
    meta.sync().await?;
    Ok(read(meta, key).await?.unwrap_or(Quota::UNLIMITED))
}

/// A quota, if it is there.
pub async fn read(meta: &Meta, key: QuotaKey) -> Result<Option<Quota>, QuotaError> {
    let mut records = meta.engine().read(&[Key::Quota(key)]).await?;
    let record = records.pop().flatten();
    Ok(record.map(Record::quota).transpose()?)
}

/// Deletes a directory's quota; takes a user's or group's limits away.
pub async fn delete(meta: &Meta, key: QuotaKey) -> Result<(), QuotaError> {
    put(meta, vec![Write::DeleteQuota(key)]).await?;
    Ok(meta.sync().await?)
}

/// All quotas that are more than accounting, by key.
pub async fn list(meta: &Meta) -> Result<BTreeMap<QuotaKey, Quota>, QuotaError> {
    let mut found = BTreeMap::new();
    for kind in [QuotaKind::Dir, QuotaKind::User, QuotaKind::Group] {
        found.extend(quotas_of(&**meta.engine(), kind).await?);
    }
    found.retain(|_, quota| (quota.max_space, quota.max_inodes) != (-1, -1));
    Ok(found)
}

/// The path of a directory from the volume's root; `None` if it has none (any more).
pub async fn path_of(meta: &Meta, dir: Ino) -> Result<Option<String>, QuotaError> {
    if dir == Ino::ROOT {
        return Ok(Some("/".into()));
    }
    let records = meta.engine().read(&[Key::Ancestors(dir)]).await?;
    let path = records.into_iter().next().flatten().map(Record::path);
    let above = path.transpose()?.unwrap_or_default();
    if above.last().is_none_or(|(top, _)| *top != Ino::ROOT) {
        return Ok(None);
    }
    let mut names: Vec<Name> = Vec::new();
    let mut at = dir;
    for (parent, _) in above {
        let mut found = None;
        meta.each_entry(parent, false, |name, dentry, _| {
            if dentry.ino == at {
                found = Some(name);
            }
        })
        .await?;
        let Some(name) = found else { return Ok(None) };
        names.push(name);
        at = parent;
    }
    let names = names.iter().rev();
    let path = names.map(|name| format!("/{}", String::from_utf8_lossy(name)));
    Ok(Some(path.collect()))
}

/// Holds a directory's usage against a count; `repair` sets it. `None`: they agree.
pub async fn check_dir(
    meta: &Meta,
    dir: Ino,
    walk: Walk,
    repair: bool,
) -> Result<Option<Difference>, QuotaError> {
    let key = QuotaKey::Dir(dir);
    let quota = read(meta, key).await?.ok_or_else(|| QuotaError::None {
        what: format!("directory {dir}"),
    })?;
    let counted = meta.summary(dir, walk).await?.usage_below();
    if quota.used() == counted {
        return Ok(None);
    }
    if repair {
        put(meta, vec![usage_write(key, counted)]).await?;
        meta.sync().await?;
    }
    Ok(Some(Difference {
        key,
        stored: Some(quota.used()),
        counted,
    }))
}

/// Holds the usage of all users and groups against a count of the volume; `repair` sets it.
pub async fn check_owners(meta: &Meta, repair: bool) -> Result<Vec<Difference>, QuotaError> {
    if !meta.shared().setting().user_group_quota {
        return Err(QuotaError::None {
            what: "no user and no group: the volume".into(),
        });
    }
    let counted = count_owners(meta).await?;
    let mut stored = quotas_of(&**meta.engine(), QuotaKind::User).await?;
    stored.extend(quotas_of(&**meta.engine(), QuotaKind::Group).await?);
    let keys: std::collections::BTreeSet<QuotaKey> =
        counted.keys().chain(stored.keys()).copied().collect();
    let compare = |key: QuotaKey| {
        let stored = stored.get(&key).map(Quota::used);
        let counted = counted.get(&key).copied().unwrap_or_default();
        (stored != Some(counted)).then_some(Difference {
            key,
            stored,
            counted,
        })
    };
    let differences: Vec<Difference> = keys.into_iter().filter_map(compare).collect();
    if repair && !differences.is_empty() {
        repair_owners(meta, &counted).await?;
        meta.sync().await?;
    }
    Ok(differences)
}

/// What each user and each group has: every inode but root and trash, sustained ones included.
async fn count_owners(meta: &Meta) -> Result<BTreeMap<QuotaKey, Usage>, QuotaError> {
    let mut found: BTreeMap<QuotaKey, Usage> = BTreeMap::new();
    // Redis may answer an inode twice.
    let mut seen = HashSet::new();
    each_item(meta, Scan::Inodes, |item| {
        let Item::Inode { ino, attr } = item else {
            return;
        };
        if ino == Ino::ROOT || ino == Ino::TRASH || !seen.insert(ino) {
            return;
        }
        for key in [QuotaKey::User(attr.uid), QuotaKey::Group(attr.gid)] {
            let usage = found.entry(key).or_default();
            *usage = *usage + inode_usage(&attr);
        }
    })
    .await?;
    Ok(found)
}

/// Sets the usage of all users and groups, also of those that have nothing.
async fn repair_owners(meta: &Meta, counted: &BTreeMap<QuotaKey, Usage>) -> Result<(), QuotaError> {
    let mut stored = quotas_of(&**meta.engine(), QuotaKind::User).await?;
    stored.extend(quotas_of(&**meta.engine(), QuotaKind::Group).await?);
    let missing = counted.keys().filter(|key| !stored.contains_key(key));
    let mut writes: Vec<Write> = missing
        .map(|key| Write::PutQuotaLimits {
            key: *key,
            max_space: Quota::UNLIMITED.max_space,
            max_inodes: Quota::UNLIMITED.max_inodes,
        })
        .collect();
    let gone = stored.keys().filter(|key| !counted.contains_key(key));
    writes.extend(gone.map(|key| usage_write(*key, Usage::default())));
    writes.extend(counted.iter().map(|(key, usage)| usage_write(*key, *usage)));
    put(meta, writes).await
}

fn usage_write(key: QuotaKey, usage: Usage) -> Write {
    Write::PutQuotaUsage {
        key,
        space: usage.space,
        inodes: usage.inodes,
    }
}

async fn put(meta: &Meta, mut writes: Vec<Write>) -> Result<(), QuotaError> {
    while !writes.is_empty() {
        let rest = writes.split_off(writes.len().min(limits::QUOTA_BATCH));
        let txn = Txn {
            checks: Vec::new(),
            writes,
        };
        meta.engine().commit(txn).await?;
        writes = rest;
    }
    Ok(())
}

async fn each_item(meta: &Meta, scan: Scan, mut take: impl FnMut(Item)) -> Result<(), EngineError> {
    let mut cursor = None;
    loop {
        let page = meta
            .engine()
            .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
            .await?;
        page.items.into_iter().for_each(&mut take);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

/// Turns on what quotas of this kind need in the setting; answers whether it was off.
async fn turn_on(meta: &Meta, kind: QuotaKind) -> Result<bool, QuotaError> {
    let raw = read_setting(&**meta.engine()).await?;
    let raw = raw.ok_or(VolumeError::NotFormatted)?;
    let mut setting = Setting::decode(&raw)?;
    let on = match kind {
        QuotaKind::Dir => std::mem::replace(&mut setting.dir_stats, true),
        QuotaKind::User | QuotaKind::Group => {
            std::mem::replace(&mut setting.user_group_quota, true)
        }
    };
    if on {
        return Ok(false);
    }
    match kind {
        QuotaKind::Dir => drop_dir_stats(meta).await?,
        QuotaKind::User | QuotaKind::Group => drop_owner_limits(meta).await?,
    }
    let txn = Txn {
        checks: vec![Check::Setting(Some(raw))],
        writes: vec![Write::PutSetting(Bytes::from(setting.render()))],
    };
    if let Outcome::Conflict { .. } = meta.engine().commit(txn).await? {
        return Err(VolumeError::Raced.into());
    }
    *meta.shared().setting.write() = Arc::new(setting);
    Ok(true)
}

/// Statistics from before they were turned off are old; missing ones are counted when needed.
async fn drop_dir_stats(meta: &Meta) -> Result<(), QuotaError> {
    let mut writes = Vec::new();
    each_item(meta, Scan::Inodes, |item| {
        if let Item::Inode { ino, attr } = item
            && attr.kind == FileKind::Directory
        {
            writes.push(Write::DeleteDirStat(ino));
        }
    })
    .await?;
    put(meta, writes).await
}

/// Limits from before the accounting was turned off; the usage is counted afterwards.
async fn drop_owner_limits(meta: &Meta) -> Result<(), QuotaError> {
    let mut writes = Vec::new();
    for kind in [QuotaKind::User, QuotaKind::Group] {
        let keys = quotas_of(&**meta.engine(), kind).await?.into_keys();
        writes.extend(keys.map(Write::DeleteQuota));
    }
    put(meta, writes).await
}
