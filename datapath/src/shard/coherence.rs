//! Long cache times without stale answers: what other clients change is taken back from the kernel.
//!
//! A mount that lets the kernel keep attributes or entries for longer than [`SHORT`] follows the changes that the
//! metadata store pushes, if it does (Redis). One task on the first core hears them, tells others' changes from
//! our own ([`sluice_meta::ops::elsewhere`]) and orders the kernel to forget what they touched; who waits for a
//! lock that another mount released looks again. While nothing is heard (before the first connection, after a
//! lost one) the kernel is allowed to keep things for [`SHORT`] only, and what it has is taken back.
//!
//! An answer that was read before a change and is sent after it was told may not be kept at all; one that is on
//! its way just then arrives before what takes it back, which waits for [`GATHER`].
//!
//! So a change by another client is seen here within a few milliseconds of its commit, whatever the cache times
//! say, and within [`SHORT`] while the store does not tell.
//!
//! Cost: per change by anybody one look at this process's memory, one read in a batch if the record is there, and
//! one or two notifications if it was somebody else's. On the way of requests: [`Handed::note`] per entry.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sluice_meta::changes::{Changes, Moment};
use sluice_meta::engine::{Change, Watch};
use sluice_meta::error::MetaError;
use sluice_meta::types::{Ino, Name};

use super::Shard;
use super::attrs::Timeouts;
use super::dispatch::Answer;
use super::handed::{Handed, TakenBack};
use crate::fuse::op::Op;
use crate::fuse::request::Request;
use crate::runtime::Timer;

/// What the kernel may keep without hearing of changes: JuiceFS' default.
const SHORT: Duration = Duration::from_secs(1);
/// Changes gather for so long before they are looked at: a burst is one read.
const GATHER: Duration = Duration::from_millis(2);
/// Pause after a failure to hear or to look.
const PAUSE: Duration = Duration::from_secs(1);

/// What a mount keeps to take things back.
#[derive(Debug, Default)]
pub struct Coherence {
    handed: Handed,
    /// What was told to have changed, and when: an answer that was read before is not to be kept.
    told: Changes,
    /// Changes are being heard.
    live: AtomicBool,
}

impl Coherence {
    /// For a mount with these cache times, if they need it.
    pub fn wanted(timeouts: &Timeouts) -> Option<Coherence> {
        timeouts.longer_than(SHORT).then(Coherence::default)
    }

    /// The present moment, to be taken before anything is read for an answer.
    pub fn now(&self) -> Moment {
        self.told.now()
    }

    /// Whether what was read of an inode, or of entries of a directory, after `asked` may be kept.
    fn holds(&self, ino: Ino, asked: Moment) -> bool {
        self.told.unchanged_since(ino, asked)
    }

    fn hear(&self, live: bool) {
        self.live.store(live, Ordering::Release);
        metrics::gauge!("sluice_coherence_live").set(f64::from(u8::from(live)));
    }

    /// The cache times that hold now.
    pub fn bounded(&self, timeouts: Timeouts) -> Timeouts {
        if self.live.load(Ordering::Acquire) {
            timeouts
        } else {
            timeouts.at_most(SHORT)
        }
    }
}

/// What a burst of changes touches.
#[derive(Default)]
struct Burst {
    inodes: HashSet<Ino>,
    dirs: HashSet<Ino>,
    locks: HashSet<Ino>,
    everything: bool,
    silence: bool,
}

impl Burst {
    fn of(changes: Vec<Change>) -> Burst {
        let mut burst = Burst::default();
        for change in changes {
            match change {
                Change::Inode(ino) => drop(burst.inodes.insert(ino)),
                Change::Entries(dir) => drop(burst.dirs.insert(dir)),
                Change::Locks(ino) => drop(burst.locks.insert(ino)),
                Change::Everything => {
                    burst.everything = true;
                    burst.silence = false;
                }
                Change::Silence => burst.silence = true,
            }
        }
        burst
    }
}

impl Shard {
    /// Whether others' changes are to be followed.
    pub fn follows(&self) -> bool {
        self.common.coherence.is_some()
    }

    /// Follows the store's changes until the task is dropped.
    pub async fn follow(self: Rc<Self>, mut watch: Watch) {
        loop {
            match watch.next().await {
                Ok(changes) => {
                    let burst = Burst::of(changes);
                    self.mark(&burst);
                    // Answers on their way arrive before what takes them back.
                    Timer::new(GATHER).await;
                    self.heed(burst).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "changes by other clients are not heard: cache times are short");
                    Timer::new(PAUSE).await;
                }
            }
        }
    }

    fn mark(&self, burst: &Burst) {
        let Some(coherence) = &self.common.coherence else {
            return;
        };
        if burst.silence {
            coherence.hear(false);
        }
        for ino in burst.inodes.iter().chain(&burst.dirs) {
            coherence.told.mark(*ino);
        }
    }

    async fn heed(&self, burst: Burst) {
        let Some(coherence) = &self.common.coherence else {
            return;
        };
        if burst.everything || burst.silence {
            self.retract(coherence.handed.take_all_back());
        }
        for ino in &burst.locks {
            self.common.locks.locks_changed(*ino);
        }
        if let Err(error) = self.look(coherence, &burst).await {
            tracing::warn!(%error, "cannot look at what others changed: everything is forgotten");
            self.retract(coherence.handed.take_all_back());
        }
        if burst.everything && !burst.silence {
            coherence.hear(true);
        }
    }

    /// Takes back what others changed of the inodes and entries of a burst.
    async fn look(&self, coherence: &Coherence, burst: &Burst) -> Result<(), MetaError> {
        let inodes: Vec<Ino> = burst.inodes.iter().copied().collect();
        for changed in self.meta.inodes_changed_elsewhere(&inodes).await? {
            if let Some(notifier) = self.common.notifier.get() {
                let offset = if changed.content { 0 } else { -1 };
                notifier.inode(self.nodeid(changed.ino), offset, 0);
                metrics::counter!("sluice_coherence_retracted_inodes_total").increment(1);
            }
        }
        for &dir in &burst.dirs {
            let names: Vec<Name> = coherence.handed.names(dir);
            let changed = self.meta.names_changed_elsewhere(dir, &names).await?;
            let taken = changed
                .iter()
                .filter_map(|name| coherence.handed.take_back(dir, name));
            self.retract(taken.collect());
        }
        Ok(())
    }

    /// Has the kernel forget names, and what it knows of the inodes behind them.
    fn retract(&self, taken: Vec<TakenBack>) {
        let Some(notifier) = self.common.notifier.get() else {
            return;
        };
        metrics::counter!("sluice_coherence_retracted_names_total").increment(taken.len() as u64);
        for TakenBack { parent, name, ino } in taken {
            notifier.entry(self.nodeid(parent), &name);
            if ino != Ino::NONE {
                notifier.inode(self.nodeid(ino), 0, 0);
            }
        }
    }

    /// The kernel is about to be told the entry that a request names, or that there is none, or an inode's
    /// attributes. What was told to have changed since the request came is not to be kept.
    pub(super) fn hand_out(&self, dir: Ino, request: &Request, answer: &mut Answer, asked: Moment) {
        let Some(coherence) = &self.common.coherence else {
            return;
        };
        match answer {
            Answer::Entry(entry) | Answer::Created { entry, .. } => {
                let ino = Ino(entry.ino);
                if !coherence.holds(dir, asked) || !coherence.holds(ino, asked) {
                    entry.entry_valid = Duration::ZERO;
                    entry.attr_valid = Duration::ZERO;
                }
                if let Ok(op) = request.op()
                    && let Some(name) = named_by(&op)
                {
                    self.hand_out_name(dir, name, ino);
                }
            }
            Answer::Attr(attr) if !coherence.holds(dir, asked) => {
                *answer = Answer::KnownAttr(*attr, Duration::ZERO);
            }
            Answer::KnownAttr(_, valid) if !coherence.holds(dir, asked) => *valid = Duration::ZERO,
            _ => {}
        }
    }

    /// The kernel is about to be told an entry of a listing.
    pub(super) fn hand_out_name(&self, dir: Ino, name: &[u8], ino: Ino) {
        if let Some(coherence) = &self.common.coherence {
            self.retract(coherence.handed.note(dir, name, ino).into_iter().collect());
        }
    }

    /// The kernel's number of an inode.
    fn nodeid(&self, ino: Ino) -> u64 {
        if ino == self.common.root {
            Ino::ROOT.0
        } else {
            ino.0
        }
    }
}

/// The name whose entry an answer to `op` is.
fn named_by<'a>(op: &Op<'a>) -> Option<&'a [u8]> {
    match op {
        Op::Lookup { name }
        | Op::Symlink { name, .. }
        | Op::Mknod { name, .. }
        | Op::Mkdir { name, .. } => Some(name),
        Op::Link { newname, .. } => Some(newname),
        Op::Create(create) => Some(create.name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_makes_cache_times_short() {
        let hour = Duration::from_secs(3600);
        let timeouts = Timeouts {
            attr: hour,
            entry: hour,
            dir_entry: Duration::from_millis(10),
            negative: Duration::ZERO,
        };
        let coherence = Coherence::wanted(&timeouts).unwrap();
        let bounded = coherence.bounded(timeouts);
        assert_eq!((bounded.attr, bounded.entry), (SHORT, SHORT));
        assert_eq!(bounded.dir_entry, timeouts.dir_entry);
        coherence.live.store(true, Ordering::Release);
        assert_eq!(coherence.bounded(timeouts).attr, hour);
        assert!(Coherence::wanted(&timeouts.at_most(SHORT)).is_none());
    }

    #[test]
    fn a_burst_ends_as_its_last_word_on_hearing_says() {
        let burst = Burst::of(vec![
            Change::Inode(Ino(3)),
            Change::Silence,
            Change::Inode(Ino(3)),
            Change::Everything,
        ]);
        assert!(burst.everything && !burst.silence && burst.inodes.len() == 1);
        let burst = Burst::of(vec![Change::Everything, Change::Silence]);
        assert!(burst.silence, "{}", burst.everything);
    }
}
