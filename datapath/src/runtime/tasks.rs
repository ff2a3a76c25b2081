//! The owner of tasks on one core: nothing is spawned without one.
//!
//! Whoever spawns background work holds a [`Tasks`]; at shutdown it either waits for the work
//! ([`Tasks::finished`]) or drops it ([`Tasks::cancel`]; also when the owner itself is dropped). Futures are
//! dropped on the core that ran them. One allocation per task beside the executor's own.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Owner of tasks; see the module.
#[derive(Default)]
pub struct Tasks {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    live: RefCell<HashMap<u64, Rc<Slot>>>,
    next: Cell<u64>,
    closed: Cell<bool>,
    /// Those who wait for the last task to end.
    waiting: RefCell<Vec<Waker>>,
}

/// One task's future, where its owner can reach it.
struct Slot {
    /// Absent while it is being polled, and for good once it was cancelled.
    future: RefCell<Option<LocalFuture>>,
    cancelled: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// Runs `future` on this core's executor. After [`Tasks::cancel`] it is dropped at once.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        if self.inner.closed.get() {
            return;
        }
        let id = self.inner.next.get();
        self.inner.next.set(id + 1);
        let slot = Rc::new(Slot {
            future: RefCell::new(Some(Box::pin(future))),
            cancelled: Cell::new(false),
            waker: RefCell::new(None),
        });
        self.inner.live.borrow_mut().insert(id, Rc::clone(&slot));
        let owner = Rc::downgrade(&self.inner);
        // The handle is not needed: the slot is how this task is reached.
        drop(glommio::spawn_local(run(slot, owner, id)).detach());
    }

    /// Tasks that have not ended.
    pub fn count(&self) -> usize {
        self.inner.live.borrow().len()
    }

    /// Drops all tasks where they are, and every later one. May be called by one of them.
    pub fn cancel(&self) {
        self.inner.cancel();
    }

    /// Completes when no task is left.
    pub async fn finished(&self) {
        poll_fn(|context| {
            if self.inner.live.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.inner
                .waiting
                .borrow_mut()
                .push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.inner.cancel();
    }
}

impl Inner {
    fn cancel(&self) {
        self.closed.set(true);
        let slots: Vec<_> = self
            .live
            .borrow_mut()
            .drain()
            .map(|(_, slot)| slot)
            .collect();
        for slot in slots {
            slot.cancelled.set(true);
            let future = slot.future.borrow_mut().take();
            drop(future);
            let waker = slot.waker.borrow_mut().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        self.wake_waiting();
    }

    fn wake_waiting(&self) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    fn ended(&self, id: u64) {
        let ended = self.live.borrow_mut().remove(&id);
        drop(ended);
        if self.live.borrow().is_empty() {
            self.wake_waiting();
        }
    }
}

/// What the executor runs for a task.
async fn run(slot: Rc<Slot>, owner: Weak<Inner>, id: u64) {
    poll_fn(|context| slot.poll(context)).await;
    if let Some(owner) = owner.upgrade() {
        owner.ended(id);
    }
}

impl Slot {
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        // Taken out while it runs: the task itself may cancel its owner.
        let Some(mut future) = self.future.borrow_mut().take() else {
            return Poll::Ready(());
        };
        let polled = future.as_mut().poll(context);
        if polled.is_ready() || self.cancelled.get() {
            return Poll::Ready(());
        }
        *self.future.borrow_mut() = Some(future);
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{breathe, run_on_one};

    /// Sets its cell when dropped.
    struct Dropped(Rc<Cell<u32>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn finished_waits_for_all() {
        let sum = run_on_one(|| async {
            let (tasks, sum) = (Tasks::new(), Rc::new(Cell::new(0)));
            for n in 0..10 {
                let sum = Rc::clone(&sum);
                tasks.spawn(async move {
                    for _ in 0..n {
                        breathe().await;
                    }
                    sum.set(sum.get() + n);
                });
            }
            // Task 0 never suspends: glommio runs a new task at once.
            assert_eq!(tasks.count(), 9);
            tasks.finished().await;
            assert_eq!(tasks.count(), 0);
            sum.get()
        });
        assert_eq!(sum.unwrap(), 45);
    }

    #[test]
    fn cancel_drops_futures_and_refuses_later_ones() {
        run_on_one(|| async {
            let (tasks, dropped) = (Tasks::new(), Rc::new(Cell::new(0)));
            let guard = Dropped(Rc::clone(&dropped));
            tasks.spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
            breathe().await;
            tasks.cancel();
            assert_eq!(dropped.get(), 1);
            let guard = Dropped(Rc::clone(&dropped));
            tasks.spawn(async move { drop(guard) });
            assert_eq!(dropped.get(), 2);
            tasks.finished().await;
        })
        .unwrap();
    }

    #[test]
    fn a_task_may_cancel_its_owner() {
        run_on_one(|| async {
            let (tasks, dropped) = (Rc::new(Tasks::new()), Rc::new(Cell::new(0)));
            let (owner, guard) = (Rc::clone(&tasks), Dropped(Rc::clone(&dropped)));
            tasks.spawn(async move {
                let _guard = guard;
                owner.cancel();
                std::future::pending::<()>().await;
            });
            tasks.finished().await;
            breathe().await;
            assert_eq!(dropped.get(), 1);
        })
        .unwrap();
    }
}
