//! GETLK, SETLK, SETLKW and the releases that closing a file brings: `flock(2)` and `fcntl(2)` locks that hold
//! between all mounts of the volume.
//!
//! Locks order data: what was written under a lock is committed before its unlock goes out, and the kernel forgets
//! a file's attributes when a lock on it is granted, so that the next read asks whether another mount changed
//! the file, which may have been open all the time. (`O_DIRECT` reads do not ask.)
//!
//! Any core serves them; only an unlock hops, to the core that has the file's unwritten data. Owners are as JuiceFS has them: of a BSD lock the kernel's owner (an open
//! file) combined with the handle, of a POSIX lock the kernel's owner (a process' table of files). FLUSH releases
//! the POSIX locks of the owner that closes; RELEASE whatever was taken through the handle, which is its BSD
//! lock and the locks of an open file description.
//!
//! A request that has to wait keeps neither its buffer nor its place among the requests in flight: however many
//! wait, the unlock that they wait for is still read. It is woken by a release in this process ([`table`]). What
//! another mount holds is asked for again after a pause that grows from [`PAUSE_MIN`] to [`PAUSE_MAX`], and
//! further with the number of waiters, so that all of them together ask at most about a hundred times a second.
//! INTERRUPT ends the wait with EINTR. A conversion of a BSD lock that has to wait gives up the old lock first,
//! as in Linux: two holders who both want more would wait for ever.
//!
//! Cost: that of the operations in `sluice_meta`; one short process-wide lock for each lock request, none for
//! closing files while no file is marked; for a grant one notification to the kernel, which makes the read that
//! follows cost a GETATTR.

pub mod table;

use std::rc::Rc;
use std::time::Duration;

use futures_lite::future;
use sluice_meta::error::MetaError;
use sluice_meta::ops::{LockKind, RangeLock};
use sluice_meta::types::Ino;

use self::table::{Call, Class, Mark, Refusal, Waiting, Want};
use super::Shard;
use super::dispatch::Answer;
use super::handle::Handles;
use crate::error::{FsError, FsResult};
use crate::fuse::op;
use crate::runtime::Timer;

/// First pause before another mount's lock is asked for again.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest such pause while few wait.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Waiters that may use the longest pause; more of them wait longer.
const WAITERS_FEW: u32 = 10;
/// A lock held in this process calls its waiters, unless it ended with a session that was taken for dead.
const PAUSE_OWN: Duration = Duration::from_secs(1);
/// Pause before a release that failed is tried again.
const RELEASE_RETRY: Duration = Duration::from_secs(1);

/// A request that found a lock in its way.
pub(super) struct Blocked {
    waiting: Waiting,
    mark: Mark,
    /// Somebody else's mount holds one.
    foreign: bool,
}

impl From<Refusal> for FsError {
    fn from(refusal: Refusal) -> FsError {
        match refusal {
            Refusal::Interrupted => FsError::Interrupted,
            Refusal::Deadlock => FsError::Deadlock,
            Refusal::TooMany | Refusal::Ended => FsError::NoLocks,
        }
    }
}

impl Shard {
    pub(super) async fn getlk(&self, ino: Ino, lock: &op::LockOp) -> FsResult<Answer> {
        let want = wanted(ino, lock)?;
        let found = self.meta.getlk(ino, want.owner, &want.lock).await?;
        Ok(Answer::Lock(reported(lock, found)))
    }

    /// SETLK and, with `wait`, SETLKW, which is request `unique`.
    pub(super) async fn setlk(
        self: &Rc<Self>,
        ino: Ino,
        lock: &op::LockOp,
        unique: u64,
        wait: bool,
    ) -> FsResult<Answer> {
        let want = wanted(ino, lock)?;
        let mark = Mark {
            class: want.class,
            owner: want.owner,
            fh: lock.fh,
        };
        let locks = &self.common.locks;
        if want.lock.kind == LockKind::Unlock {
            let mut flushed = Ok(());
            if Handles::is_writable(lock.fh) {
                if let Some(owner) = self.elsewhere(ino) {
                    return Ok(Answer::Hop(owner));
                }
                flushed = self.files.flush(ino).await;
            }
            self.unlock(&want, mark).await?;
            return flushed.map(|()| Answer::Empty);
        }
        let held = want.class == Class::Flock && locks.is_marked(ino, want.class, want.owner);
        locks.mark(ino, mark);
        if !wait {
            self.take(&want, mark).await?;
            return Ok(Answer::Empty);
        }
        let waiting = locks.wait(unique, want)?;
        let mut blocked = Blocked {
            waiting,
            mark,
            foreign: false,
        };
        if self.attempt(&mut blocked).await? {
            blocked.waiting.granted();
            return Ok(Answer::Empty);
        }
        if held {
            let old = Want {
                lock: RangeLock::RELEASE,
                ..want
            };
            self.unlock(&old, mark).await?;
            locks.mark(ino, mark);
        }
        Ok(Answer::Blocked(blocked))
    }

    /// Waits until the lock is held.
    pub(super) async fn wait_for_lock(&self, mut blocked: Blocked) -> FsResult<()> {
        let mut pause = PAUSE_MIN;
        loop {
            let waiters = u32::try_from(self.common.locks.waiting()).unwrap_or(u32::MAX);
            let limit = PAUSE_MAX * (waiters / WAITERS_FEW + 1);
            let due = if blocked.foreign {
                pause.min(limit)
            } else {
                PAUSE_OWN.max(limit)
            };
            let timer = async {
                Timer::new(due).await;
                Call::Try
            };
            match future::or(blocked.waiting.called(), timer).await {
                Call::Interrupted => return Err(FsError::Interrupted),
                Call::Ended => return Err(Refusal::Ended.into()),
                Call::Try if self.attempt(&mut blocked).await? => {
                    blocked.waiting.granted();
                    return Ok(());
                }
                Call::Try => pause = pause.saturating_mul(2).min(limit),
            }
        }
    }

    /// Asks the store once; `false` if a lock is in the way.
    async fn attempt(&self, blocked: &mut Blocked) -> FsResult<bool> {
        blocked.waiting.asks();
        match self.take(blocked.waiting.want(), blocked.mark).await {
            Ok(()) => Ok(true),
            Err(FsError::Meta(MetaError::Locked { own, foreign })) => {
                blocked.waiting.refused(own)?;
                blocked.foreign = foreign;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn take(&self, want: &Want, mark: Mark) -> FsResult<()> {
        self.set(want).await?;
        // Once more: an unlock by another thread may have taken the mark since.
        self.common.locks.mark(want.ino, mark);
        if want.lock.kind == LockKind::Shared {
            // It may have been exclusive.
            self.common.locks.released(want.ino, want.class, want.owner);
        }
        if let Some(notifier) = self.common.notifier.get() {
            notifier.attributes(want.ino.0).await;
        }
        Ok(())
    }

    async fn unlock(&self, want: &Want, mark: Mark) -> FsResult<()> {
        let locks = &self.common.locks;
        // POSIX marks stay: there may be other ranges. The mark goes first, so that it cannot take that of a
        // lock which is granted after this.
        if want.class == Class::Flock {
            locks.unmark(want.ino, |other| *other == mark);
        }
        let released = self.set(want).await;
        if released.is_err() {
            locks.mark(want.ino, mark);
        }
        locks.released(want.ino, want.class, want.owner);
        released
    }

    async fn set(&self, want: &Want) -> FsResult<()> {
        let Want {
            ino, owner, lock, ..
        } = want;
        match want.class {
            Class::Flock => self.meta.flock(*ino, *owner, lock.kind).await?,
            Class::Posix => self.meta.setlk(*ino, *owner, lock).await?,
        }
        Ok(())
    }

    /// A descriptor was closed: the closing owner has no POSIX locks on the file any more.
    pub(super) async fn release_closed(self: &Rc<Self>, ino: Ino, owner: u64) {
        let closed = |mark: &Mark| mark.class == Class::Posix && mark.owner == owner;
        self.release_marked(ino, closed).await;
    }

    /// The last descriptor of a handle was closed.
    pub(super) async fn release_handle(self: &Rc<Self>, ino: Ino, fh: u64) {
        self.release_marked(ino, |mark| mark.fh == fh).await;
    }

    async fn release_marked(self: &Rc<Self>, ino: Ino, which: impl Fn(&Mark) -> bool) {
        for mark in self.common.locks.unmark(ino, which) {
            if let Err(error) = self.drop_locks(ino, &mark).await {
                tracing::warn!(inode = ino.0, %error, "a lock outlives its file's close; trying again");
                let shard = Rc::clone(self);
                // Ends at the latest with the mount, and so do the session's locks.
                self.background.spawn(async move {
                    loop {
                        Timer::new(RELEASE_RETRY).await;
                        match shard.drop_locks(ino, &mark).await {
                            Err(error) if error.is_fault() => {}
                            Ok(()) | Err(_) => return,
                        }
                    }
                });
            }
        }
    }

    async fn drop_locks(&self, ino: Ino, mark: &Mark) -> FsResult<()> {
        let want = Want {
            ino,
            class: mark.class,
            owner: mark.owner,
            lock: RangeLock::RELEASE,
        };
        self.set(&want).await?;
        self.common.locks.released(ino, mark.class, mark.owner);
        Ok(())
    }
}

/// What a lock request is about.
fn wanted(ino: Ino, lock: &op::LockOp) -> FsResult<Want> {
    let kind = match lock.kind as i32 {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return Err(FsError::Invalid("lock type")),
    };
    let pid = lock.pid;
    let (class, owner, start, end) = if lock.flock {
        (Class::Flock, lock.owner ^ lock.fh, 0, RangeLock::END)
    } else {
        (Class::Posix, lock.owner, lock.start, lock.end)
    };
    let lock = RangeLock {
        start,
        end,
        kind,
        pid,
    };
    Ok(Want {
        ino,
        class,
        owner,
        lock,
    })
}

/// The answer to GETLK. Ranges are cut to what the kernel takes: others may have stored larger ones.
fn reported(asked: &op::LockOp, found: Option<RangeLock>) -> op::LockOp {
    let free = RangeLock {
        start: 0,
        end: 0,
        kind: LockKind::Unlock,
        pid: 0,
    };
    let lock = found.unwrap_or(free);
    let kind = match lock.kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    };
    op::LockOp {
        start: lock.start.min(RangeLock::END),
        end: lock.end.min(RangeLock::END),
        kind: kind as u32,
        pid: lock.pid,
        ..*asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(kind: i32, flock: bool) -> op::LockOp {
        op::LockOp {
            fh: 6,
            owner: 0xFF,
            start: 10,
            end: 19,
            kind: kind as u32,
            pid: 33,
            flock,
        }
    }

    #[test]
    fn owners_and_ranges_of_both_kinds() {
        let posix = wanted(Ino(3), &asked(libc::F_RDLCK, false)).unwrap();
        assert_eq!((posix.class, posix.owner), (Class::Posix, 0xFF));
        assert_eq!((posix.lock.start, posix.lock.end), (10, 19));
        let flock = wanted(Ino(3), &asked(libc::F_UNLCK, true)).unwrap();
        assert_eq!((flock.class, flock.owner), (Class::Flock, 0xFF ^ 6));
        assert!(flock.lock.releases_all());
        assert!(wanted(Ino(3), &asked(9, false)).is_err());
    }

    #[test]
    fn what_is_reported_fits_the_kernel() {
        let found = RangeLock {
            start: 5,
            end: u64::MAX,
            kind: LockKind::Exclusive,
            pid: 4,
        };
        let answer = reported(&asked(libc::F_RDLCK, false), Some(found));
        assert_eq!((answer.start, answer.end), (5, RangeLock::END));
        assert_eq!((answer.kind, answer.pid), (libc::F_WRLCK as u32, 4));
        let free = reported(&asked(libc::F_RDLCK, false), None);
        assert_eq!(free.kind, libc::F_UNLCK as u32);
    }
}
