//! Waiting on one core: [`Signal`] for conditions, [`Budget`] for room in the write buffers.
//!
//! Nothing here is shared between cores, so neither needs a lock: a waiter checks its condition, and between
//! the check and its going to sleep nothing else runs. A signal wakes all its waiters, which check again.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes tasks of this core that wait for a condition.
#[derive(Default)]
pub(super) struct Signal {
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    /// Waits until `condition` holds. Who makes it true calls [`Self::notify`].
    pub(super) async fn until(&self, mut condition: impl FnMut() -> bool) {
        poll_fn(|context| {
            if condition() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Something changed.
    pub(super) fn notify(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }
}

/// Bytes of write buffer on this core.
pub(super) struct Budget {
    limit: u64,
    used: Cell<u64>,
    waiting: Cell<usize>,
    freed: Signal,
}

/// Room promised to one write; given back when dropped.
pub(super) struct Room<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    /// Of `limit` bytes.
    pub(super) fn new(limit: u64) -> Budget {
        Budget {
            limit,
            used: Cell::new(0),
            waiting: Cell::new(0),
            freed: Signal::default(),
        }
    }

    /// Whether `bytes` more may be taken. Somebody alone may always take what it needs.
    fn has_room(&self, bytes: u64) -> bool {
        self.used.get() == 0 || self.used.get() + bytes <= self.limit
    }

    /// Takes room for `bytes` if there is.
    pub(super) fn try_take(&self, bytes: u64) -> Option<Room<'_>> {
        if !self.has_room(bytes) {
            return None;
        }
        self.used.set(self.used.get() + bytes);
        Some(Room {
            budget: self,
            bytes,
        })
    }

    /// Waits for room. The caller sees to it that buffers are being flushed.
    pub(super) async fn take(&self, bytes: u64) -> Room<'_> {
        let _waiting = Waiting::new(&self.waiting);
        loop {
            self.freed.until(|| self.has_room(bytes)).await;
            if let Some(room) = self.try_take(bytes) {
                return room;
            }
        }
    }

    /// Whether somebody waits for room.
    pub(super) fn is_short(&self) -> bool {
        self.waiting.get() > 0
    }

    /// Room was given back, or uploads that would have done so have ended.
    pub(super) fn freed(&self) -> &Signal {
        &self.freed
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> u64 {
        self.used.get()
    }

    /// Gives back what a [`Room`] was turned into.
    pub(super) fn release(&self, bytes: u64) {
        if bytes > 0 {
            assert!(bytes <= self.used.get(), "buffers give back what they took");
            self.used.set(self.used.get() - bytes);
            self.freed.notify();
        }
    }
}

impl Room<'_> {
    /// The write has taken `bytes` of memory, which [`Budget::release`] gives back one day.
    pub(super) fn turn_into(self, bytes: u64) {
        self.budget.used.set(self.budget.used.get() + bytes);
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

/// Counts itself while it lives.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
