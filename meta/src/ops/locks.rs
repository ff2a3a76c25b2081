//! BSD locks (`flock`) and POSIX byte-range locks (`fcntl`), held across all clients of the volume.
//!
//! A lock belongs to a session and an owner (a number that the caller chooses: the kernel's for an open file or
//! a process' table of files). Two locks of different owners conflict if they meet and one of them is for
//! writing. The process number of a POSIX lock is information: `getlk` reports it to the session that took the
//! lock and 0 to others, for whom it means nothing.
//!
//! These operations never wait. A lock that is in the way is the answer [`MetaError::Locked`]; whoever wants to
//! wait asks again. There is no notice of a release; clients of the same process tell each other.
//!
//! Locks end with their session: at unmount, or when other clients clean up a session that stopped beating
//! (`jobs`). A client that was merely slow has then lost its locks without being told, as with JuiceFS. A
//! read-only mount has no session and can hold no lock.
//!
//! Round trips: taking a lock 1 if nobody changed the inode's locks since this core last saw them (it supposes
//! that an inode it knows nothing of has none: the commit checks the whole set), else 2 more; a lock in the way
//! the same; releasing everything of an owner 1, always; part of its ranges as taking; `getlk` 1.
//!
//! A commit of unknown fate is looked for by reading again: setting a lock that is set already is no change.

pub(crate) mod ranges;

use std::cell::RefCell;
use std::collections::HashMap;

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{Check, Key, Record, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::ops::{LockKind, RangeLock};
use crate::types::{Flock, Ino, Plock, PlockRange, SessionId};

use self::ranges::Paint;

/// What a core last saw of the locks on inodes. A guess: every use is checked by a commit.
#[derive(Default)]
pub(crate) struct LockMemory {
    flocks: RefCell<HashMap<Ino, Vec<Flock>>>,
    plocks: RefCell<HashMap<Ino, Vec<Plock>>>,
}

fn remember<T>(map: &RefCell<HashMap<Ino, Vec<T>>>, ino: Ino, locks: Vec<T>) {
    let mut map = map.borrow_mut();
    // None is what is supposed of an unknown inode.
    if locks.is_empty() {
        map.remove(&ino);
        return;
    }
    if map.len() >= limits::LOCKED_INODES_REMEMBERED && !map.contains_key(&ino) {
        map.clear();
    }
    map.insert(ino, locks);
}

impl Meta {
    /// Sets or releases `owner`'s BSD lock on an inode. Fails with [`MetaError::Locked`] if somebody else's is
    /// in the way; what `owner` held before then stays.
    pub async fn flock(&self, ino: Ino, owner: u64, want: LockKind) -> MetaResult<()> {
        let sid = self.lock_session()?;
        let exclusive = match want {
            LockKind::Shared => false,
            LockKind::Exclusive => true,
            LockKind::Unlock => {
                let left = self.locks.flocks.borrow_mut().remove(&ino);
                let mut left = left.unwrap_or_default();
                left.retain(|lock| (lock.sid, lock.owner) != (sid, owner));
                self.release(Write::DeleteFlock { ino, sid, owner }, ino)
                    .await?;
                remember(&self.locks.flocks, ino, left);
                return Ok(());
            }
        };
        let lock = Flock {
            sid,
            owner,
            exclusive,
        };
        self.run(async |sight| self.try_flock(sight, ino, lock).await)
            .await
    }

    async fn try_flock(&self, sight: &Sight, ino: Ino, lock: Flock) -> MetaResult<Attempt<()>> {
        let held = self.flocks_at(sight, ino).await?;
        let others = held
            .iter()
            .filter(|other| (other.sid, other.owner) != (lock.sid, lock.owner))
            .filter(|other| other.exclusive || lock.exclusive);
        check_free(lock.sid, others.map(|other| (other.sid, other.owner)))?;
        if held.contains(&lock) && !sight.used.get() {
            return Ok(Attempt::Done(()));
        }
        let mut after = held.clone();
        after.retain(|other| (other.sid, other.owner) != (lock.sid, lock.owner));
        after.push(lock);
        after.sort_unstable();
        let expect = held;
        let txn = Txn {
            checks: vec![Check::Flocks { ino, expect }],
            writes: vec![Write::PutFlock { ino, lock }],
        };
        let applied = self.commit_lock(txn, ino).await?;
        if let Attempt::Done(()) = applied {
            remember(&self.locks.flocks, ino, after);
        }
        Ok(applied)
    }

    /// Sets or releases a range of `owner`'s POSIX locks on an inode. Fails with [`MetaError::Locked`] if
    /// somebody else's lock is in the way; what `owner` held before then stays.
    pub async fn setlk(&self, ino: Ino, owner: u64, lock: &RangeLock) -> MetaResult<()> {
        let sid = self.lock_session()?;
        if lock.start > lock.end {
            return Err(MetaError::Invalid("a lock that ends before it starts"));
        }
        if lock.releases_all() {
            let left = self.locks.plocks.borrow_mut().remove(&ino);
            let mut left = left.unwrap_or_default();
            left.retain(|other| (other.sid, other.owner) != (sid, owner));
            let ranges = Vec::new();
            let write = Write::PutPlocks {
                ino,
                sid,
                owner,
                ranges,
            };
            self.release(write, ino).await?;
            remember(&self.locks.plocks, ino, left);
            return Ok(());
        }
        self.run(async |sight| self.try_setlk(sight, ino, (sid, owner), lock).await)
            .await
    }

    async fn try_setlk(
        &self,
        sight: &Sight,
        ino: Ino,
        holder: (SessionId, u64),
        lock: &RangeLock,
    ) -> MetaResult<Attempt<()>> {
        let (sid, owner) = holder;
        let held = self.plocks_at(sight, ino).await?;
        let others = held
            .iter()
            .filter(|other| (other.sid, other.owner) != holder)
            .filter(|other| blocks(other, lock).is_some());
        check_free(sid, others.map(|other| (other.sid, other.owner)))?;
        let own = held
            .iter()
            .find(|other| (other.sid, other.owner) == holder)
            .map_or(&[][..], |own| &own.ranges);
        let new = ranges::set(own, lock.start, lock.end, paint(lock));
        if new == own && !sight.used.get() {
            return Ok(Attempt::Done(()));
        }
        let mut after = held.clone();
        after.retain(|other| (other.sid, other.owner) != holder);
        if !new.is_empty() {
            after.push(Plock {
                sid,
                owner,
                ranges: new.clone(),
            });
            after.sort_unstable();
        }
        let txn = Txn {
            checks: vec![Check::Plocks { ino, expect: held }],
            writes: vec![Write::PutPlocks {
                ino,
                sid,
                owner,
                ranges: new,
            }],
        };
        let applied = self.commit_lock(txn, ino).await?;
        if let Attempt::Done(()) = applied {
            remember(&self.locks.plocks, ino, after);
        }
        Ok(applied)
    }

    /// The first lock that keeps `owner` from setting `lock`, if one does.
    pub async fn getlk(
        &self,
        ino: Ino,
        owner: u64,
        lock: &RangeLock,
    ) -> MetaResult<Option<RangeLock>> {
        let sid = self.lock_session()?;
        let held = self.plocks_at(&Sight::fresh(), ino).await?;
        let first = held
            .iter()
            .filter(|other| (other.sid, other.owner) != (sid, owner))
            .filter_map(|other| Some((blocks(other, lock)?, other.sid)))
            .min_by_key(|(range, _)| range.start);
        Ok(first.map(|(range, of)| RangeLock {
            start: range.start,
            end: range.end,
            kind: if range.write {
                LockKind::Exclusive
            } else {
                LockKind::Shared
            },
            pid: if of == sid { range.pid } else { 0 },
        }))
    }

    fn lock_session(&self) -> MetaResult<SessionId> {
        self.check_writable()?;
        self.shared.session().ok_or(MetaError::NotSupported)
    }

    /// All BSD locks on an inode: as this core supposes, or as they are.
    async fn flocks_at(&self, sight: &Sight, ino: Ino) -> MetaResult<Vec<Flock>> {
        if sight.memory {
            sight.used.set(true);
            let seen = self.locks.flocks.borrow().get(&ino).cloned();
            return Ok(seen.unwrap_or_default());
        }
        let record = self.fetch(&[Key::Flocks(ino)]).await?.record();
        let held = record.map(Record::flocks).transpose()?.unwrap_or_default();
        remember(&self.locks.flocks, ino, held.clone());
        Ok(held)
    }

    /// All POSIX locks on an inode: as this core supposes, or as they are.
    async fn plocks_at(&self, sight: &Sight, ino: Ino) -> MetaResult<Vec<Plock>> {
        if sight.memory {
            sight.used.set(true);
            let seen = self.locks.plocks.borrow().get(&ino).cloned();
            return Ok(seen.unwrap_or_default());
        }
        let record = self.fetch(&[Key::Plocks(ino)]).await?.record();
        let held = record.map(Record::plocks).transpose()?.unwrap_or_default();
        remember(&self.locks.plocks, ino, held.clone());
        Ok(held)
    }

    /// Commits a lock. One of unknown fate is looked for like one that lost.
    async fn commit_lock(&self, txn: Txn, ino: Ino) -> MetaResult<Attempt<()>> {
        match self.commit(txn).await {
            Ok(Some(_)) => Ok(Attempt::Done(())),
            Ok(None) => Ok(Attempt::Conflict(ino)),
            Err(MetaError::Engine(EngineError::UnknownFate { .. })) => Ok(Attempt::Doubt(ino)),
            Err(error) => Err(error),
        }
    }

    /// Releases everything of one owner, whatever the other locks are. Doing it twice does no harm.
    async fn release(&self, write: Write, ino: Ino) -> MetaResult<()> {
        let txn = Txn {
            checks: Vec::new(),
            writes: vec![write],
        };
        self.run(async |_| self.commit_lock(txn.clone(), ino).await)
            .await
    }
}

fn paint(lock: &RangeLock) -> Paint {
    let pid = lock.pid;
    match lock.kind {
        LockKind::Shared => Paint::Lock { write: false, pid },
        LockKind::Exclusive => Paint::Lock { write: true, pid },
        LockKind::Unlock => Paint::Clear,
    }
}

/// The first range of another owner that keeps `lock` from being set.
fn blocks<'a>(other: &'a Plock, lock: &RangeLock) -> Option<&'a PlockRange> {
    let write = match lock.kind {
        LockKind::Shared => false,
        LockKind::Exclusive => true,
        LockKind::Unlock => return None,
    };
    ranges::in_the_way(&other.ranges, lock.start, lock.end, write)
}

/// [`MetaError::Locked`] if there is anybody in the way of a lock of session `sid`.
fn check_free(
    sid: SessionId,
    in_the_way: impl Iterator<Item = (SessionId, u64)>,
) -> MetaResult<()> {
    let (mut own, mut foreign) = (None, false);
    for (of, owner) in in_the_way {
        if of == sid {
            own.get_or_insert(owner);
        } else {
            foreign = true;
        }
    }
    if own.is_none() && !foreign {
        return Ok(());
    }
    Err(MetaError::Locked { own, foreign })
}
