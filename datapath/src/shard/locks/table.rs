//! What a process knows of locks beyond the store: who took one, who waits for one, and who is to be told.
//!
//! One table for all cores, one short lock, never held across an await. The locks themselves are in the
//! metadata store; here are
//! - **marks**: which owner may hold locks on which inode, through which handle, so that closing a file that
//!   never had a lock costs nothing. A mark is there before the store is asked; it may say too much, never too
//!   little;
//! - **waiters**, in the order they came, by inode and kind of lock. A release calls the first, which asks the
//!   store again and passes the call on to the next: so waiters are served first come, first served, and one
//!   that waits for another range is not held up by those before it. Newcomers may overtake, as in Linux (to
//!   queue them behind waiters would deadlock an owner with those that wait for it). A waiter that goes away
//!   passes its call on. No call is lost: a waiter is listed before it asks the store, and a call that comes
//!   meanwhile makes it ask again;
//! - **interrupts**: the waiters by the number of their request. An INTERRUPT may be read on one core before
//!   another core has listed the request it is about (the kernel sends it when that request was read), so those
//!   that match nothing are remembered, the last [`EARLY_MAX`] of them. Most belong to requests that cannot be
//!   interrupted; numbers are never used again.
//!
//! Deadlocks of POSIX locks among owners of this process are found when a waiter is refused: who waits for whom
//! is written down with every refusal and erased with every release, and when a waiter asks again: it may hold
//! the lock before it hears so. Across mounts nothing is found.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use sluice_meta::ops::{LockKind, RangeLock};
use sluice_meta::types::Ino;

/// Interrupts remembered that came before their request: many more than can be read on other cores between
/// the read of a request and its first step.
const EARLY_MAX: usize = 4096;
/// Requests that may wait for locks at a time: each holds a few hundred bytes.
const WAITERS_MAX: usize = 1 << 16;

/// Which of the two kinds of locks, which know nothing of each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// BSD locks, on the whole file.
    Flock,
    /// POSIX locks, on ranges of bytes.
    Posix,
}

/// A lock that somebody wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    /// On this inode.
    pub ino: Ino,
    /// Of this kind.
    pub class: Class,
    /// As the store knows it.
    pub owner: u64,
    /// Which bytes, and how; a BSD lock has all bytes.
    pub lock: RangeLock,
}

impl Want {
    fn key(&self) -> (Ino, Class) {
        (self.ino, self.class)
    }

    /// Whether the two cannot both be held.
    fn excludes(&self, other: &Want) -> bool {
        let exclusive =
            self.lock.kind == LockKind::Exclusive || other.lock.kind == LockKind::Exclusive;
        let meet = self.lock.start <= other.lock.end && other.lock.start <= self.lock.end;
        self.owner != other.owner && exclusive && meet
    }
}

/// An owner that may hold locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// What kind.
    pub class: Class,
    /// As the store knows it.
    pub owner: u64,
    /// The handle it used.
    pub fh: u64,
}

/// Why a waiter need not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// By INTERRUPT.
    Interrupted,
    /// The mount ends. Not an interrupt: without a signal, the kernel would not know what to make of that.
    Ended,
    /// The one it waits for waits for it.
    Deadlock,
    /// As many wait as may.
    TooMany,
}

/// What a waiter is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// Ask the store again.
    Try,
    /// Give up: a signal came.
    Interrupted,
    /// Give up: the mount ends.
    Ended,
}

/// A request that waits.
struct Waiter {
    ticket: u64,
    /// Number of the request.
    unique: u64,
    want: Want,
    /// Not yet heard.
    call: Option<Call>,
    /// Heard a `Try`, and has not passed it on.
    called: bool,
    waker: Option<Waker>,
    /// An owner of this process that was in the way when it last asked; nobody while it asks.
    blocked_by: Option<u64>,
    /// While it asks, owners that released something since: an answer that names one of them is out of date.
    released: Option<Vec<u64>>,
}

impl Waiter {
    fn tell(&mut self, call: Call) -> Option<Waker> {
        if matches!(self.call, None | Some(Call::Try)) {
            self.call = Some(call);
        }
        self.waker.take()
    }
}

#[derive(Default)]
struct State {
    marks: HashMap<Ino, Vec<Mark>>,
    queues: HashMap<(Ino, Class), VecDeque<Waiter>>,
    /// Where the waiter of a request is.
    requests: HashMap<u64, (Ino, Class)>,
    early: VecDeque<u64>,
    tickets: u64,
    closed: bool,
}

/// Marks, waiters and interrupts of one mount; see the module.
#[derive(Default)]
pub struct LockTable {
    state: Mutex<State>,
    /// Inodes with marks, so that most closes take no lock here.
    marked: AtomicUsize,
    /// Requests waiting, so that most releases need not look for any.
    waiting: AtomicUsize,
}

impl LockTable {
    /// Notes that an owner may hold locks from now on.
    pub fn mark(&self, ino: Ino, mark: Mark) {
        let mut state = self.state.lock();
        let marks = state.marks.entry(ino).or_default();
        if !marks.contains(&mark) {
            marks.push(mark);
        }
        self.marked.store(state.marks.len(), Ordering::Release);
    }

    /// Whether an owner is marked.
    pub fn is_marked(&self, ino: Ino, class: Class, owner: u64) -> bool {
        let state = self.state.lock();
        let marks = state.marks.get(&ino);
        marks.is_some_and(|marks| {
            let mut marks = marks.iter();
            marks.any(|mark| (mark.class, mark.owner) == (class, owner))
        })
    }

    /// Takes the marks of an inode that `which` chooses: the caller releases their locks.
    pub fn unmark(&self, ino: Ino, which: impl Fn(&Mark) -> bool) -> Vec<Mark> {
        if self.marked.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let Some(marks) = state.marks.get_mut(&ino) else {
            return Vec::new();
        };
        let (taken, left): (Vec<Mark>, Vec<Mark>) = marks.iter().partition(|mark| which(mark));
        if left.is_empty() {
            state.marks.remove(&ino);
        } else {
            *marks = left;
        }
        self.marked.store(state.marks.len(), Ordering::Release);
        taken
    }

    /// Lists request `unique` as one that waits for `want`. To be called before the store is asked.
    pub fn wait(self: &Arc<Self>, unique: u64, want: Want) -> Result<Waiting, Refusal> {
        let mut state = self.state.lock();
        if let Some(at) = state.early.iter().position(|&early| early == unique) {
            state.early.remove(at);
            return Err(Refusal::Interrupted);
        }
        if state.closed {
            return Err(Refusal::Ended);
        }
        if state.requests.len() >= WAITERS_MAX {
            return Err(Refusal::TooMany);
        }
        state.tickets += 1;
        let ticket = state.tickets;
        state.requests.insert(unique, want.key());
        state
            .queues
            .entry(want.key())
            .or_default()
            .push_back(Waiter {
                ticket,
                unique,
                want,
                call: None,
                called: false,
                waker: None,
                blocked_by: None,
                released: None,
            });
        self.waiting.store(state.requests.len(), Ordering::Release);
        Ok(Waiting {
            table: Arc::clone(self),
            ticket,
            unique,
            want,
        })
    }

    /// Requests waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// An owner of this process gave up all or some of its locks, or shares them now.
    pub fn released(&self, ino: Ino, class: Class, owner: u64) {
        if self.waiting() == 0 {
            return;
        }
        let waker = {
            let mut state = self.state.lock();
            let Some(queue) = state.queues.get_mut(&(ino, class)) else {
                return;
            };
            for waiter in queue.iter_mut() {
                if waiter.blocked_by == Some(owner) {
                    waiter.blocked_by = None;
                }
                if let Some(released) = &mut waiter.released
                    && !released.contains(&owner)
                {
                    released.push(owner);
                }
            }
            queue.front_mut().and_then(|first| first.tell(Call::Try))
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// Locks of an inode were changed by another client: those who wait for one look again. For whoever hears
    /// of it; waiters look by themselves, too.
    pub fn locks_changed(&self, ino: Ino) {
        for class in [Class::Flock, Class::Posix] {
            if self.waiting() == 0 {
                return;
            }
            let waker = {
                let mut state = self.state.lock();
                let queue = state.queues.get_mut(&(ino, class));
                let first = queue.and_then(VecDeque::front_mut);
                first.and_then(|first| first.tell(Call::Try))
            };
            waker.into_iter().for_each(Waker::wake);
        }
    }

    /// An INTERRUPT of request `unique` came, perhaps before that request.
    pub fn interrupt(&self, unique: u64) {
        let waker = {
            let mut state = self.state.lock();
            let Some(key) = state.requests.get(&unique).copied() else {
                if state.early.len() >= EARLY_MAX {
                    state.early.pop_front();
                }
                state.early.push_back(unique);
                return;
            };
            let queue = state.queues.get_mut(&key);
            let mut waiters = queue.into_iter().flatten();
            let waiter = waiters.find(|waiter| waiter.unique == unique);
            waiter.and_then(|waiter| waiter.tell(Call::Interrupted))
        };
        waker.into_iter().for_each(Waker::wake);
    }

    /// The mount ends: everybody who waits, now or later, gives up.
    pub fn close(&self) {
        let wakers: Vec<Waker> = {
            let mut state = self.state.lock();
            state.closed = true;
            let waiters = state.queues.values_mut().flatten();
            waiters
                .filter_map(|waiter| waiter.tell(Call::Ended))
                .collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn waiter(&mut self, key: (Ino, Class), ticket: u64) -> Option<&mut Waiter> {
        let mut waiters = self.queues.get_mut(&key)?.iter_mut();
        waiters.find(|waiter| waiter.ticket == ticket)
    }

    /// Calls the first waiter behind `ticket`, except those that `granted` keeps waiting.
    fn pass_on(&mut self, key: (Ino, Class), ticket: u64, granted: Option<&Want>) -> Option<Waker> {
        let mut behind = self.queues.get_mut(&key)?.iter_mut();
        let next = behind.find(|waiter| {
            waiter.ticket > ticket && granted.is_none_or(|won| !won.excludes(&waiter.want))
        });
        next?.tell(Call::Try)
    }

    /// Whether `owner`, by way of those it waits for, waits for `target`.
    fn waits_for(&self, owner: u64, target: u64) -> bool {
        let posix = self
            .queues
            .iter()
            .filter(|((_, class), _)| *class == Class::Posix);
        let edges: Vec<(u64, u64)> = posix
            .flat_map(|(_, queue)| queue)
            .filter_map(|waiter| Some((waiter.want.owner, waiter.blocked_by?)))
            .collect();
        let (mut seen, mut next) = (Vec::new(), vec![owner]);
        while let Some(at) = next.pop() {
            if at == target {
                return true;
            }
            if !seen.contains(&at) {
                seen.push(at);
                next.extend(edges.iter().filter(|edge| edge.0 == at).map(|edge| edge.1));
            }
        }
        false
    }
}

/// A place in the queue; given up when it is dropped.
pub struct Waiting {
    table: Arc<LockTable>,
    ticket: u64,
    unique: u64,
    want: Want,
}

impl Waiting {
    /// What it waits for.
    pub fn want(&self) -> &Want {
        &self.want
    }

    /// Completes when there is a reason to ask the store again, or to give up.
    pub async fn called(&self) -> Call {
        poll_fn(|context| {
            let mut state = self.table.state.lock();
            let Some(waiter) = state.waiter(self.want.key(), self.ticket) else {
                return Poll::Ready(Call::Interrupted);
            };
            if let Some(call) = waiter.call.take() {
                waiter.called |= call == Call::Try;
                return Poll::Ready(call);
            }
            waiter.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The store is about to be asked. Until it has said no, nobody is known to be in the way: it may have said yes.
    pub fn asks(&self) {
        let mut state = self.table.state.lock();
        if let Some(waiter) = state.waiter(self.want.key(), self.ticket) {
            waiter.blocked_by = None;
            waiter.released = Some(Vec::new());
        }
    }

    /// The store said no; `own` is an owner of this process that is in the way. The call goes to the next.
    pub fn refused(&self, own: Option<u64>) -> Result<(), Refusal> {
        let waker = {
            let mut state = self.table.state.lock();
            let posix = self.want.class == Class::Posix;
            let key = self.want.key();
            let Some(waiter) = state.waiter(key, self.ticket) else {
                return Err(Refusal::Interrupted);
            };
            let released = waiter.released.take().unwrap_or_default();
            let own = own.filter(|own| !released.contains(own));
            if posix && own.is_some_and(|own| state.waits_for(own, self.want.owner)) {
                return Err(Refusal::Deadlock);
            }
            let Some(waiter) = state.waiter(key, self.ticket) else {
                return Err(Refusal::Interrupted);
            };
            waiter.blocked_by = own;
            let called = std::mem::take(&mut waiter.called);
            called
                .then(|| state.pass_on(key, self.ticket, None))
                .flatten()
        };
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// The lock is held: others that can hold theirs beside it are called.
    pub fn granted(self) {
        let waker = {
            let mut state = self.table.state.lock();
            let key = self.want.key();
            if let Some(waiter) = state.waiter(key, self.ticket) {
                (waiter.called, waiter.call) = (false, None);
            }
            state.pass_on(key, self.ticket, Some(&self.want))
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.table.state.lock();
            let key = self.want.key();
            state.requests.remove(&self.unique);
            let called = state
                .waiter(key, self.ticket)
                .is_some_and(|waiter| waiter.called || waiter.call == Some(Call::Try));
            let waker = called
                .then(|| state.pass_on(key, self.ticket, None))
                .flatten();
            if let Some(queue) = state.queues.get_mut(&key) {
                queue.retain(|waiter| waiter.ticket != self.ticket);
                if queue.is_empty() {
                    state.queues.remove(&key);
                }
            }
            self.table
                .waiting
                .store(state.requests.len(), Ordering::Release);
            waker
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    const FILE: Ino = Ino(9);

    fn want(owner: u64, start: u64, end: u64, kind: LockKind) -> Want {
        let lock = RangeLock {
            start,
            end,
            kind,
            pid: 1,
        };
        Want {
            ino: FILE,
            class: Class::Posix,
            owner,
            lock,
        }
    }

    fn exclusive(owner: u64) -> Want {
        want(owner, 0, 9, LockKind::Exclusive)
    }

    /// What it was told, if anything.
    fn heard(waiting: &Waiting) -> Option<Call> {
        block_on(poll_once(waiting.called()))
    }

    #[test]
    fn waiters_are_called_in_order_and_pass_the_call_on() {
        let table = Arc::new(LockTable::default());
        let wait = |unique, want| table.wait(unique, want).unwrap();
        let [a, b, c] = [
            wait(2, exclusive(1)),
            wait(4, exclusive(2)),
            wait(6, exclusive(3)),
        ];
        let elsewhere = wait(8, want(4, 50, 59, LockKind::Exclusive));
        assert_eq!(heard(&a), None);
        table.released(FILE, Class::Posix, 99);
        assert_eq!([&b, &c, &elsewhere].map(heard), [None; 3]);
        assert_eq!(heard(&a), Some(Call::Try));
        a.refused(Some(98)).unwrap();
        assert_eq!([&a, &b, &c].map(heard), [None, Some(Call::Try), None]);
        // Who comes behind cannot have it, but the one that waits for other bytes can have its own.
        b.granted();
        assert_eq!([&a, &c].map(heard), [None; 2]);
        assert_eq!(heard(&elsewhere), Some(Call::Try));
        table.released(FILE, Class::Flock, 99);
        assert_eq!(heard(&a), None, "the other kind");
        table.locks_changed(FILE);
        assert_eq!(heard(&a), Some(Call::Try));
        // It goes away with the call.
        drop(a);
        assert_eq!(heard(&c), Some(Call::Try));
        drop((c, elsewhere));
        assert_eq!(table.waiting(), 0);
        assert!(table.state.lock().queues.is_empty());
    }

    #[test]
    fn a_call_while_the_store_is_asked_is_heard_afterwards() {
        let table = Arc::new(LockTable::default());
        let waiting = table.wait(2, exclusive(1)).unwrap();
        table.released(FILE, Class::Posix, 5);
        waiting.refused(Some(5)).unwrap();
        assert_eq!(heard(&waiting), Some(Call::Try));
    }

    #[test]
    fn interrupts_come_before_during_and_after() {
        let table = Arc::new(LockTable::default());
        table.interrupt(2);
        assert_eq!(
            table.wait(2, exclusive(1)).err(),
            Some(Refusal::Interrupted)
        );
        let waiting = table.wait(4, exclusive(1)).unwrap();
        table.interrupt(6);
        assert_eq!(heard(&waiting), None);
        table.interrupt(4);
        table.released(FILE, Class::Posix, 9);
        assert_eq!(
            heard(&waiting),
            Some(Call::Interrupted),
            "it stays interrupted"
        );
        drop(waiting);
        table.interrupt(4);
        for unique in 0..3 * EARLY_MAX as u64 {
            table.interrupt(100 + unique);
        }
        assert_eq!(table.state.lock().early.len(), EARLY_MAX);
        let waiting = table.wait(8, exclusive(1)).unwrap();
        table.close();
        assert_eq!(heard(&waiting), Some(Call::Ended));
        assert_eq!(table.wait(10, exclusive(1)).err(), Some(Refusal::Ended));
    }

    #[test]
    fn a_circle_of_waiters_is_a_deadlock_until_one_gives_way() {
        let table = Arc::new(LockTable::default());
        let wait = |unique, owner| table.wait(unique, exclusive(owner)).unwrap();
        let [a, b, c] = [wait(2, 1), wait(4, 2), wait(6, 3)];
        a.refused(Some(2)).unwrap();
        b.refused(Some(3)).unwrap();
        assert_eq!(c.refused(Some(1)), Err(Refusal::Deadlock));
        c.refused(Some(7)).unwrap();
        table.released(FILE, Class::Posix, 3);
        c.refused(Some(1)).unwrap();
        assert_eq!(b.refused(Some(3)), Err(Refusal::Deadlock));
    }

    #[test]
    fn who_may_hold_the_lock_by_now_waits_for_nobody() {
        let table = Arc::new(LockTable::default());
        let wait = |unique, owner| table.wait(unique, exclusive(owner)).unwrap();
        let [a, b] = [wait(2, 1), wait(4, 2)];
        a.refused(Some(2)).unwrap();
        // It asks again, gets the lock, and has not heard so when the other one is refused because of it.
        a.asks();
        b.refused(Some(1)).unwrap();
        // The answer that names an owner which has released meanwhile.
        a.asks();
        b.asks();
        table.released(FILE, Class::Posix, 2);
        a.refused(Some(2)).unwrap();
        b.refused(Some(1)).unwrap();
        a.asks();
        assert_eq!(a.refused(Some(2)), Err(Refusal::Deadlock));
    }

    #[test]
    fn marks_are_taken_once() {
        let table = LockTable::default();
        let mark = |class, owner, fh| Mark { class, owner, fh };
        assert_eq!(table.unmark(FILE, |_| true), []);
        let marks = [
            mark(Class::Posix, 1, 10),
            mark(Class::Posix, 2, 10),
            mark(Class::Flock, 1, 12),
        ];
        for mark in marks.into_iter().chain(marks) {
            table.mark(FILE, mark);
        }
        assert!(table.is_marked(FILE, Class::Flock, 1) && !table.is_marked(FILE, Class::Flock, 2));
        assert_eq!(
            table.unmark(FILE, |mark| mark.owner == 1),
            [marks[0], marks[2]]
        );
        assert_eq!(table.unmark(Ino(1), |_| true), []);
        assert_eq!(table.unmark(FILE, |_| true), [marks[1]]);
        assert_eq!(table.marked.load(Ordering::Relaxed), 0);
    }
}
