//! Access times, behind the replies: an access is noted when it is answered, and committed by tasks of this core.
//!
//! Nothing is noted with `--atime-mode noatime`, on read-only mounts and for files opened with `O_NOATIME`. Accesses
//! to one inode within a second are one, unless this process changed the inode in between. Cost of a noted read: one
//! look-up in a map and one atomic load. Times are best effort, as everywhere: what the bounds below do not hold is
//! not noted, and what fails is not tried again. At the end of a mount, what is noted is committed.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use sluice_meta::changes::Moment;
use sluice_meta::ops::AtimeMode;
use sluice_meta::types::{Attr, Ino};

use super::Shard;
use crate::fuse::op;
use crate::runtime::Tasks;

/// Accesses of one inode this close together are one.
const WINDOW: Duration = Duration::from_secs(1);
/// Inodes remembered as accessed a moment ago, and most commits waiting: 4096 inodes in a second.
const NOTED_MAX: usize = 4096;
/// Commits under way at the same time.
const WORKERS_MAX: u32 = 4;

/// What a core knows of accesses.
#[derive(Default)]
pub(super) struct Atimes {
    /// When an inode was noted last, and what had changed by then.
    recent: RefCell<HashMap<Ino, (Instant, Moment)>>,
    pending: RefCell<VecDeque<Ino>>,
    workers: Cell<u32>,
    tasks: Tasks,
}

impl Atimes {
    /// Whether this access stands for others that follow; then it is to be committed.
    fn note(&self, ino: Ino, now: Instant, changes: Moment, same: impl Fn(Moment) -> bool) -> bool {
        let mut recent = self.recent.borrow_mut();
        let young = |(noted, moment): &(Instant, Moment)| {
            now.duration_since(*noted) < WINDOW && same(*moment)
        };
        if recent.get(&ino).is_some_and(young) {
            return false;
        }
        let mut pending = self.pending.borrow_mut();
        if pending.len() >= NOTED_MAX {
            return false;
        }
        remember(&mut recent, ino, (now, changes));
        pending.push_back(ino);
        true
    }

    /// Accesses in the next second need no look: `ino` was looked at by `changes` and nothing is due.
    fn skip(&self, ino: Ino, now: Instant, changes: Moment) {
        remember(&mut self.recent.borrow_mut(), ino, (now, changes));
    }

    /// Completes when everything that was noted is committed or given up.
    pub(super) async fn finished(&self) {
        self.tasks.finished().await;
    }
}

fn remember(recent: &mut HashMap<Ino, (Instant, Moment)>, ino: Ino, noted: (Instant, Moment)) {
    if recent.len() >= NOTED_MAX {
        recent.clear();
    }
    recent.insert(ino, noted);
}

impl Shard {
    /// Notes that an inode was read; `flags` are those of the open file, 0 where there is none.
    pub(super) fn accessed(self: &Rc<Self>, ino: Ino, flags: u32) {
        if self.meta.atime_mode() == AtimeMode::Noatime || flags & libc::O_NOATIME as u32 != 0 {
            return;
        }
        let changes = &self.meta.shared().changes;
        let same = |moment| changes.unchanged_since(ino, moment);
        let noted = self.atimes.note(ino, Instant::now(), changes.now(), same);
        if noted && self.atimes.workers.get() < WORKERS_MAX {
            self.atimes.workers.set(self.atimes.workers.get() + 1);
            let shard = Rc::clone(self);
            self.atimes
                .tasks
                .spawn(async move { shard.commit_accesses().await });
        }
    }

    /// Notes that a file is opened to be read, with these attributes, read after `seen`. If nothing is due, the reads
    /// that follow ask the store for nothing either.
    pub(super) fn opened_to_read(self: &Rc<Self>, ino: Ino, attr: &Attr, seen: Moment, flags: u32) {
        let mode = self.meta.atime_mode();
        if mode.is_due(attr, self.meta.now()) {
            self.accessed(ino, flags);
        } else if mode != AtimeMode::Noatime {
            self.atimes.skip(ino, Instant::now(), seen);
        }
    }

    /// Notes that a directory is read, at the start of its listing.
    pub(super) fn listed(self: &Rc<Self>, dir: Ino, read: &op::Read) {
        if read.offset == 0 {
            self.accessed(dir, read.flags);
        }
    }

    async fn commit_accesses(self: Rc<Self>) {
        loop {
            let next = self.atimes.pending.borrow_mut().pop_front();
            let Some(ino) = next else { break };
            if let Err(error) = self.meta.touch_atime(ino).await {
                tracing::warn!(inode = ino.0, %error, "access times are not kept up");
                self.atimes.pending.borrow_mut().clear();
            }
        }
        self.atimes.workers.set(self.atimes.workers.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_meta::changes::Changes;

    #[test]
    fn accesses_of_a_second_are_one() {
        let (atimes, changes) = (Atimes::default(), Changes::default());
        let start = Instant::now();
        let at = |millis| {
            let same = |moment| changes.unchanged_since(Ino(7), moment);
            let now = start + Duration::from_millis(millis);
            atimes.note(Ino(7), now, changes.now(), same)
        };
        assert!(at(0));
        assert!(!at(999));
        assert!(at(1000));
        changes.mark(Ino(7));
        assert!(at(1001), "changed in between");
        assert!(!at(1002));
        assert_eq!(atimes.pending.borrow().len(), 3);
        atimes.skip(Ino(7), start + Duration::from_secs(5), changes.now());
        assert!(!at(5500), "found not to be due");
        changes.mark(Ino(7));
        assert!(at(5600));
    }

    #[test]
    fn what_is_noted_is_bounded() {
        let (atimes, changes) = (Atimes::default(), Changes::default());
        let now = Instant::now();
        let count = (0..2 * NOTED_MAX as u64)
            .filter(|ino| atimes.note(Ino(*ino), now, changes.now(), |_| true))
            .count();
        assert_eq!(count, NOTED_MAX);
        atimes.pending.borrow_mut().clear();
        assert!(atimes.note(Ino(1 << 40), now, changes.now(), |_| true));
        assert!(atimes.recent.borrow().len() <= NOTED_MAX);
    }
}
