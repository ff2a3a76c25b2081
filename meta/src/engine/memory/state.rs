//! The records of the memory engine and what checks and writes mean to them.
//!
//! Called by [`super::Memory`] with the store's lock held. Pure: no clock, no await. Fails only with
//! `Refused`, before anything is changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use bytes::Bytes;

use super::refused;
use crate::engine::{Check, Counter, EngineResult, Key, Outcome, Record, Txn, Write};
use crate::limits::DIR_DEPTH_MAX;
use crate::types::{
    AclRule, Attr, ChunkIndex, Dentry, DirStat, FileKind, Flock, Ino, Name, Plock, PlockRange,
    Quota, QuotaKey, SessionId, Slice, SliceId,
};

/// All records of a volume.
#[derive(Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) attrs: BTreeMap<Ino, Attr>,
    dentries: BTreeMap<(Ino, Name), Dentry>,
    pub(super) chunks: BTreeMap<(Ino, ChunkIndex), Vec<Slice>>,
    symlinks: BTreeMap<Ino, Bytes>,
    xattrs: BTreeMap<(Ino, Name), Bytes>,
    parents: BTreeMap<(Ino, Ino), i64>,
    counters: HashMap<Counter, i64>,
    setting: Option<Bytes>,
    pub(super) slice_refs: BTreeMap<SliceId, (u32, i64)>,
    dir_stats: BTreeMap<Ino, DirStat>,
    pub(super) quotas: BTreeMap<QuotaKey, Quota>,
    /// Expiry and description.
    pub(super) sessions: BTreeMap<SessionId, (i64, Bytes)>,
    sustained: BTreeSet<(SessionId, Ino)>,
    /// Length and time.
    pub(super) deleted_files: BTreeMap<Ino, (u64, i64)>,
    pub(super) acls: BTreeMap<u32, AclRule>,
    /// Exclusive or not.
    pub(super) flocks: BTreeMap<LockKey, bool>,
    pub(super) plocks: BTreeMap<LockKey, Vec<PlockRange>>,
    /// By the slice that replaced them and the time.
    pub(super) delayed: BTreeMap<(SliceId, i64), Vec<(SliceId, u32)>>,
    pub(super) detached: BTreeMap<Ino, i64>,
}

/// A lock's inode, session and owner.
pub(super) type LockKey = (Ino, SessionId, u64);

/// A record whose presence a write relies on.
#[derive(PartialEq, Eq, Hash, Debug)]
enum Place<'a> {
    Attr(Ino),
    Dentry(Ino, &'a Name),
    SliceRef(SliceId),
}

/// What a write does to the presence of a record: (needed before, left after). `None`: any.
type Presence = (Option<bool>, bool);

impl State {
    pub(super) fn entries(&self, parent: Ino) -> impl Iterator<Item = (Name, Dentry)> {
        let from = (parent, Name::new());
        let below = self
            .dentries
            .range(from..)
            .take_while(move |((dir, _), _)| *dir == parent);
        below.map(|((_, name), dentry)| (name.clone(), *dentry))
    }

    pub(super) fn xattrs_of(&self, ino: Ino) -> impl Iterator<Item = (Name, Bytes)> {
        let from = (ino, Name::new());
        let below = self
            .xattrs
            .range(from..)
            .take_while(move |((of, _), _)| *of == ino);
        below.map(|((_, name), value)| (name.clone(), value.clone()))
    }

    fn flocks_of(&self, ino: Ino) -> Vec<Flock> {
        let locks = self.flocks.range(locks_of(ino));
        let lock = |(&(_, sid, owner), &exclusive): (&LockKey, &bool)| Flock {
            sid,
            owner,
            exclusive,
        };
        locks.map(lock).collect()
    }

    fn plocks_of(&self, ino: Ino) -> Vec<Plock> {
        let locks = self.plocks.range(locks_of(ino));
        let lock = |(&(_, sid, owner), ranges): (&LockKey, &Vec<PlockRange>)| Plock {
            sid,
            owner,
            ranges: ranges.clone(),
        };
        locks.map(lock).collect()
    }

    fn path(&self, from: Ino, names: &[Name]) -> Vec<(Ino, Attr)> {
        let mut dir = from;
        let mut path = Vec::new();
        for name in names {
            let Some(dentry) = self.dentry(dir, name) else {
                break;
            };
            let Some(attr) = self.attrs.get(&dentry.ino) else {
                break;
            };
            path.push((dentry.ino, attr.clone()));
            if attr.kind != FileKind::Directory {
                break;
            }
            dir = dentry.ino;
        }
        path
    }

    fn ancestors(&self, ino: Ino) -> Vec<(Ino, Attr)> {
        let mut path = Vec::new();
        let mut at = ino;
        while at != Ino::ROOT && path.len() < DIR_DEPTH_MAX {
            let parent = self.attrs.get(&at).map_or(Ino::NONE, |attr| attr.parent);
            let Some(attr) = self.attrs.get(&parent).filter(|_| at != Ino::TRASH) else {
                break;
            };
            path.push((parent, attr.clone()));
            at = parent;
        }
        path
    }

    fn counter(&self, counter: Counter) -> i64 {
        self.counters
            .get(&counter)
            .copied()
            .unwrap_or(first_value(counter))
    }

    fn dentry(&self, parent: Ino, name: &Name) -> Option<Dentry> {
        self.dentries.get(&(parent, name.clone())).copied()
    }

    pub(super) fn read(&self, key: &Key) -> Option<Record> {
        match key {
            Key::Attr(ino) => self.attrs.get(ino).cloned().map(Record::Attr),
            Key::Dentry { parent, name } => self.dentry(*parent, name).map(Record::Dentry),
            Key::Entry { parent, name } => self
                .dentry(*parent, name)
                .map(|dentry| Record::Entry(dentry, self.attrs.get(&dentry.ino).cloned())),
            Key::Chunk { ino, index } => self
                .chunks
                .get(&(*ino, *index))
                .cloned()
                .map(Record::Slices),
            Key::Symlink(ino) => self.symlinks.get(ino).cloned().map(Record::Bytes),
            Key::Xattr { ino, name } => self
                .xattrs
                .get(&(*ino, name.clone()))
                .cloned()
                .map(Record::Bytes),
            Key::XattrNames(ino) => {
                let names: Vec<Name> = self.xattrs_of(*ino).map(|(name, _)| name).collect();
                (!names.is_empty()).then_some(Record::Names(names))
            }
            Key::Parents(ino) => {
                let parents = self
                    .parents
                    .range(pairs(*ino))
                    .filter(|(_, count)| **count > 0);
                let parents = parents.map(|((_, dir), count)| (*dir, *count as u32));
                let parents: Vec<(Ino, u32)> = parents.collect();
                (!parents.is_empty()).then_some(Record::Parents(parents))
            }
            Key::Counter(counter) => Some(Record::Count(self.counter(*counter))),
            Key::Setting => self.setting.clone().map(Record::Bytes),
            Key::SliceRefs { id, size } => {
                let refs = self.slice_refs.get(id).filter(|(stored, _)| stored == size);
                refs.map(|(_, refs)| Record::Count(*refs))
            }
            Key::DirStat(ino) => self.dir_stats.get(ino).copied().map(Record::DirStat),
            Key::Quota(key) => self.quotas.get(key).copied().map(Record::Quota),
            Key::Sustained(sid) => {
                let range = (*sid, Ino(0))..=(*sid, Ino(u64::MAX));
                let inodes: Vec<Ino> = self.sustained.range(range).map(|(_, ino)| *ino).collect();
                (!inodes.is_empty()).then_some(Record::Inodes(inodes))
            }
            Key::Acl(id) => self.acls.get(id).cloned().map(Record::Acl),
            Key::Flocks(ino) => {
                let locks = self.flocks_of(*ino);
                (!locks.is_empty()).then_some(Record::Flocks(locks))
            }
            Key::Plocks(ino) => {
                let locks = self.plocks_of(*ino);
                (!locks.is_empty()).then_some(Record::Plocks(locks))
            }
            Key::Path { from, names } => Some(Record::Path(self.path(*from, names))),
            Key::Ancestors(ino) => Some(Record::Path(self.ancestors(*ino))),
        }
    }

    pub(super) fn alloc(&mut self, counter: Counter, count: i64) -> EngineResult<u64> {
        if count < 1 || first_value(counter) == 0 {
            return Err(refused(format!(
                "{count} numbers of {counter:?} cannot be had"
            )));
        }
        let first = self.counter(counter);
        self.counters.insert(counter, first + count);
        Ok(first.unsigned_abs())
    }

    pub(super) fn commit(&mut self, txn: &Txn) -> EngineResult<Outcome> {
        if let Some(check) = txn.checks.iter().position(|check| !self.holds(check)) {
            return Ok(Outcome::Conflict { check });
        }
        self.admit(&txn.writes)?;
        Ok(Outcome::Committed(
            txn.writes.iter().map(|write| self.write(write)).collect(),
        ))
    }

    fn holds(&self, check: &Check) -> bool {
        match check {
            Check::Attr {
                ino,
                fields,
                expect,
            } => self
                .attrs
                .get(ino)
                .is_some_and(|found| fields.agree(expect, found)),
            Check::NoAttr(ino) => !self.attrs.contains_key(ino),
            Check::Dentry {
                parent,
                name,
                expect,
            } => self.dentry(*parent, name) == *expect,
            Check::DirEmpty(ino) => self.entries(*ino).next().is_none(),
            Check::Xattr { ino, name, present } => {
                self.xattrs.contains_key(&(*ino, name.clone())) == *present
            }
            Check::Chunk {
                ino,
                index,
                prefix,
                whole,
            } => {
                let list = self
                    .chunks
                    .get(&(*ino, *index))
                    .map_or(&[][..], Vec::as_slice);
                list.starts_with(prefix) && (!whole || list.len() == prefix.len())
            }
            Check::Counter { counter, expect } => self.counter(*counter) == *expect,
            Check::Setting(expect) => self.setting == *expect,
            Check::Flocks { ino, expect } => self.flocks_of(*ino) == *expect,
            Check::Plocks { ino, expect } => self.plocks_of(*ino) == *expect,
            Check::DelayedSlices { id, time, expect } => {
                self.delayed.get(&(*id, *time)) == Some(expect)
            }
        }
    }

    /// Refuses writes that contradict what is there, counting what earlier writes of the same commit do.
    fn admit(&self, writes: &[Write]) -> EngineResult<()> {
        let mut overlay: HashMap<Place<'_>, bool> = HashMap::new();
        for write in writes {
            let Some((place, (needed, left))) = presence(write) else {
                continue;
            };
            let now = overlay
                .get(&place)
                .copied()
                .unwrap_or_else(|| self.present(&place));
            if needed.is_some_and(|needed| needed != now) {
                let cause = if now {
                    "it is there already"
                } else {
                    "it is not there"
                };
                return Err(refused(format!("{write:?}: {cause}")));
            }
            overlay.insert(place, left);
        }
        Ok(())
    }

    fn present(&self, place: &Place<'_>) -> bool {
        match place {
            Place::Attr(ino) => self.attrs.contains_key(ino),
            Place::Dentry(parent, name) => self.dentry(*parent, name).is_some(),
            Place::SliceRef(id) => self.slice_refs.contains_key(id),
        }
    }

    fn write(&mut self, write: &Write) -> i64 {
        match write {
            Write::InsertAttr { .. }
            | Write::UpdateAttr { .. }
            | Write::PatchDir { .. }
            | Write::DeleteAttr(_) => self.write_attr(write),
            Write::AppendChunk { ino, index, slices } => self.append(*ino, *index, slices, true),
            Write::AppendChunkIfPresent { ino, index, slices } => {
                self.append(*ino, *index, slices, false)
            }
            Write::ReplaceChunkPrefix {
                ino,
                index,
                drop,
                slices,
            } => self.replace_prefix(*ino, *index, *drop, slices),
            Write::DeleteChunk { ino, index } => drop_of(self.chunks.remove(&(*ino, *index))),
            Write::NewSliceRef { .. }
            | Write::AddSliceRef { .. }
            | Write::DeleteSliceRef { .. }
            | Write::AddCounter { .. }
            | Write::SetCounter { .. } => self.write_number(write),
            Write::InitDirStat(_)
            | Write::AddDirStat { .. }
            | Write::PutDirStat { .. }
            | Write::DeleteDirStat(_)
            | Write::PutQuotaLimits { .. }
            | Write::PutQuotaUsage { .. }
            | Write::AddQuotaUsage { .. }
            | Write::DeleteQuota(_) => self.write_usage(write),
            Write::PutFlock { .. } | Write::DeleteFlock { .. } | Write::PutPlocks { .. } => {
                self.write_lock(write)
            }
            Write::InsertAcl(_)
            | Write::PutDelayedSlices { .. }
            | Write::DeleteDelayedSlices { .. }
            | Write::AddDetached { .. }
            | Write::DeleteDetached(_) => self.write_note(write),
            Write::PutSession { .. }
            | Write::DeleteSession(_)
            | Write::AddSustained { .. }
            | Write::DeleteSustained { .. }
            | Write::AddDeletedFile { .. }
            | Write::DeleteDeletedFile { .. }
            | Write::PutSetting(_) => self.write_session(write),
            Write::InsertDentry { .. }
            | Write::ReplaceDentry { .. }
            | Write::DeleteDentry { .. }
            | Write::PutSymlink { .. }
            | Write::DeleteSymlink(_)
            | Write::PutXattr { .. }
            | Write::DeleteXattr { .. }
            | Write::DeleteXattrs(_)
            | Write::AddParent { .. }
            | Write::DeleteParents(_) => self.write_name(write),
        }
    }

    fn write_attr(&mut self, write: &Write) -> i64 {
        match write {
            Write::InsertAttr { ino, attr } => drop_of(self.attrs.insert(*ino, attr.clone())),
            Write::UpdateAttr { ino, old, new } => {
                if let Some(attr) = self.attrs.get_mut(ino) {
                    *attr = merged(attr, old, new);
                }
                0
            }
            Write::PatchDir { ino, time, nlink } => {
                if let Some(attr) = self.attrs.get_mut(ino) {
                    attr.nlink = attr.nlink.saturating_add_signed(*nlink);
                    attr.mtime = time.unwrap_or(attr.mtime);
                    attr.ctime = time.unwrap_or(attr.ctime);
                }
                0
            }
            Write::DeleteAttr(ino) => drop_of(self.attrs.remove(ino)),
            _ => 0,
        }
    }

    fn append(&mut self, ino: Ino, index: ChunkIndex, slices: &[Slice], create: bool) -> i64 {
        if slices.is_empty() || !(create || self.chunks.contains_key(&(ino, index))) {
            return self
                .chunks
                .get(&(ino, index))
                .map_or(0, |list| list.len() as i64);
        }
        let list = self.chunks.entry((ino, index)).or_default();
        list.extend_from_slice(slices);
        list.len() as i64
    }

    fn replace_prefix(
        &mut self,
        ino: Ino,
        index: ChunkIndex,
        drop: usize,
        slices: &[Slice],
    ) -> i64 {
        let list = self.chunks.entry((ino, index)).or_default();
        let drop = drop.min(list.len());
        list.splice(..drop, slices.iter().copied());
        let left = list.len();
        if left == 0 {
            self.chunks.remove(&(ino, index));
        }
        left as i64
    }

    fn write_name(&mut self, write: &Write) -> i64 {
        match write {
            Write::InsertDentry {
                parent,
                name,
                dentry,
            }
            | Write::ReplaceDentry {
                parent,
                name,
                dentry,
            } => drop_of(self.dentries.insert((*parent, name.clone()), *dentry)),
            Write::DeleteDentry { parent, name } => {
                drop_of(self.dentries.remove(&(*parent, name.clone())))
            }
            Write::PutSymlink { ino, target } => {
                drop_of(self.symlinks.insert(*ino, target.clone()))
            }
            Write::DeleteSymlink(ino) => drop_of(self.symlinks.remove(ino)),
            Write::PutXattr { ino, name, value } => {
                drop_of(self.xattrs.insert((*ino, name.clone()), value.clone()))
            }
            Write::DeleteXattr { ino, name } => {
                i64::from(self.xattrs.remove(&(*ino, name.clone())).is_some())
            }
            Write::DeleteXattrs(ino) => {
                self.xattrs.retain(|(of, _), _| of != ino);
                0
            }
            Write::AddParent { ino, parent, delta } => {
                *self.parents.entry((*ino, *parent)).or_default() += i64::from(*delta);
                0
            }
            Write::DeleteParents(ino) => {
                self.parents.retain(|(of, _), _| of != ino);
                0
            }
            _ => 0,
        }
    }

    fn write_number(&mut self, write: &Write) -> i64 {
        match write {
            Write::NewSliceRef { id, size } => drop_of(self.slice_refs.insert(*id, (*size, 1))),
            Write::AddSliceRef { id, size, delta } => match self.slice_refs.get_mut(id) {
                Some((stored, refs)) if stored == size => {
                    *refs += delta;
                    *refs
                }
                // Unknown: somebody else's until the opposite is known, so nothing gets deleted.
                _ => 1,
            },
            Write::DeleteSliceRef { id, .. } => drop_of(self.slice_refs.remove(id)),
            Write::AddCounter { counter, delta } => {
                let value = self.counter(*counter).wrapping_add(*delta);
                self.counters.insert(*counter, value);
                value
            }
            Write::SetCounter { counter, value } => drop_of(self.counters.insert(*counter, *value)),
            _ => 0,
        }
    }

    fn write_usage(&mut self, write: &Write) -> i64 {
        match write {
            Write::InitDirStat(ino) => drop_of(self.dir_stats.insert(*ino, DirStat::default())),
            Write::AddDirStat { ino, delta } => {
                let Some(stat) = self.dir_stats.get_mut(ino) else {
                    return 0;
                };
                stat.length += delta.length;
                stat.space += delta.space;
                stat.inodes += delta.inodes;
                1
            }
            Write::PutDirStat { ino, stat } => drop_of(self.dir_stats.insert(*ino, *stat)),
            Write::DeleteDirStat(ino) => drop_of(self.dir_stats.remove(ino)),
            Write::PutQuotaLimits {
                key,
                max_space,
                max_inodes,
            } => {
                let known = i64::from(self.quotas.contains_key(key));
                let quota = self.quotas.entry(*key).or_default();
                quota.max_space = *max_space;
                quota.max_inodes = *max_inodes;
                known
            }
            Write::PutQuotaUsage { key, space, inodes } => match self.quotas.get_mut(key) {
                Some(quota) => {
                    quota.used_space = *space;
                    quota.used_inodes = *inodes;
                    1
                }
                None => 0,
            },
            Write::AddQuotaUsage { key, space, inodes } => {
                let known = self.quotas.contains_key(key);
                if known || !matches!(key, QuotaKey::Dir(_)) {
                    let quota = self.quotas.entry(*key).or_insert(UNLIMITED);
                    quota.used_space += space;
                    quota.used_inodes += inodes;
                }
                i64::from(known)
            }
            Write::DeleteQuota(QuotaKey::Dir(ino)) => {
                drop_of(self.quotas.remove(&QuotaKey::Dir(*ino)))
            }
            Write::DeleteQuota(key) => {
                if let Some(quota) = self.quotas.get_mut(key) {
                    quota.max_space = UNLIMITED.max_space;
                    quota.max_inodes = UNLIMITED.max_inodes;
                }
                0
            }
            _ => 0,
        }
    }

    fn write_lock(&mut self, write: &Write) -> i64 {
        match write {
            Write::PutFlock { ino, lock } => drop_of(
                self.flocks
                    .insert((*ino, lock.sid, lock.owner), lock.exclusive),
            ),
            Write::DeleteFlock { ino, sid, owner } => {
                drop_of(self.flocks.remove(&(*ino, *sid, *owner)))
            }
            Write::PutPlocks {
                ino,
                sid,
                owner,
                ranges,
            } if ranges.is_empty() => drop_of(self.plocks.remove(&(*ino, *sid, *owner))),
            Write::PutPlocks {
                ino,
                sid,
                owner,
                ranges,
            } => drop_of(self.plocks.insert((*ino, *sid, *owner), ranges.clone())),
            _ => 0,
        }
    }

    fn write_note(&mut self, write: &Write) -> i64 {
        match write {
            Write::InsertAcl(rule) => {
                let id = self.acls.keys().next_back().map_or(1, |last| last + 1);
                self.acls.insert(id, rule.clone());
                i64::from(id)
            }
            Write::PutDelayedSlices { id, time, slices } => {
                drop_of(self.delayed.insert((*id, *time), slices.clone()))
            }
            Write::DeleteDelayedSlices { id, time } => drop_of(self.delayed.remove(&(*id, *time))),
            Write::AddDetached { ino, time } => drop_of(self.detached.insert(*ino, *time)),
            Write::DeleteDetached(ino) => drop_of(self.detached.remove(ino)),
            _ => 0,
        }
    }

    fn write_session(&mut self, write: &Write) -> i64 {
        match write {
            Write::PutSession { sid, expire, info } => {
                let session = self.sessions.entry(*sid).or_default();
                session.0 = *expire;
                if let Some(info) = info {
                    session.1 = info.clone();
                }
                0
            }
            Write::DeleteSession(sid) => {
                self.flocks.retain(|(_, of, _), _| of != sid);
                self.plocks.retain(|(_, of, _), _| of != sid);
                drop_of(self.sessions.remove(sid))
            }
            Write::AddSustained { sid, ino } => drop_of(self.sustained.insert((*sid, *ino))),
            Write::DeleteSustained { sid, ino } => drop_of(self.sustained.remove(&(*sid, *ino))),
            Write::AddDeletedFile { ino, length, time } => {
                drop_of(self.deleted_files.insert(*ino, (*length, *time)))
            }
            Write::DeleteDeletedFile { ino, .. } => drop_of(self.deleted_files.remove(ino)),
            Write::PutSetting(text) => drop_of(self.setting.replace(text.clone())),
            _ => 0,
        }
    }
}

/// For writes without a result.
fn drop_of<T>(_previous: T) -> i64 {
    0
}

/// What is handed out first; 0 for sums and job locks, which are not for handing out.
fn first_value(counter: Counter) -> i64 {
    match counter {
        Counter::NextInode => 2,
        Counter::NextSlice | Counter::NextSession | Counter::NextTrash => 1,
        Counter::UsedSpace
        | Counter::TotalInodes
        | Counter::LastCleanupSessions
        | Counter::LastCleanupFiles
        | Counter::NextCleanupSlices
        | Counter::LastCleanupTrash => 0,
    }
}

/// Limits that are none.
const UNLIMITED: Quota = Quota {
    max_space: -1,
    max_inodes: -1,
    used_space: 0,
    used_inodes: 0,
};

fn locks_of(ino: Ino) -> RangeInclusive<LockKey> {
    (ino, SessionId(0), 0)..=(ino, SessionId(u64::MAX), u64::MAX)
}

fn pairs(ino: Ino) -> RangeInclusive<(Ino, Ino)> {
    (ino, Ino(0))..=(ino, Ino(u64::MAX))
}

fn presence(write: &Write) -> Option<(Place<'_>, Presence)> {
    Some(match write {
        Write::InsertAttr { ino, .. } => (Place::Attr(*ino), (Some(false), true)),
        Write::UpdateAttr { ino, .. } | Write::PatchDir { ino, .. } => {
            (Place::Attr(*ino), (Some(true), true))
        }
        Write::DeleteAttr(ino) => (Place::Attr(*ino), (None, false)),
        Write::InsertDentry { parent, name, .. } => {
            (Place::Dentry(*parent, name), (Some(false), true))
        }
        Write::ReplaceDentry { parent, name, .. } => {
            (Place::Dentry(*parent, name), (Some(true), true))
        }
        Write::DeleteDentry { parent, name } => (Place::Dentry(*parent, name), (None, false)),
        Write::NewSliceRef { id, .. } => (Place::SliceRef(*id), (Some(false), true)),
        Write::DeleteSliceRef { id, .. } => (Place::SliceRef(*id), (None, false)),
        _ => return None,
    })
}

/// `found` with the fields that differ between `old` and `new` set as in `new`.
fn merged(found: &Attr, old: &Attr, new: &Attr) -> Attr {
    macro_rules! pick {
        ($($field:ident),*) => {
            Attr { $($field: if old.$field == new.$field { found.$field } else { new.$field }),* }
        };
    }
    pick!(
        flags,
        kind,
        mode,
        uid,
        gid,
        atime,
        mtime,
        ctime,
        nlink,
        length,
        rdev,
        parent,
        access_acl,
        default_acl,
        tier
    )
}
