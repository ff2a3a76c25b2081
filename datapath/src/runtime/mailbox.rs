//! A bounded mailbox: messages for one core, from any thread.
//!
//! A core owns the receiving end of one mailbox per kind of message; everybody who may write to it holds an
//! `Arc` of it. One short lock for each message posted and for each batch received, none per poll of an idle
//! receiver. A wake-up is sent only to a receiver that waits, so a busy core is not woken.
//!
//! No wake-up is lost: the queue and the receiver's waker are under the same lock, so a message is either
//! seen by the receiver before it waits, or its sender sees the waker.
//!
//! Failure: a full mailbox refuses the message and hands it back ([`PostError::Full`]); the sender decides.
//! So does a closed one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// A message that was not taken, handed back.
#[derive(Debug, thiserror::Error)]
pub enum PostError<T> {
    /// As many messages as it may hold are waiting already.
    #[error("mailbox is full")]
    Full(T),
    /// The receiver is gone.
    #[error("mailbox is closed")]
    Closed(T),
}

/// Messages for one core; see the module.
pub struct Mailbox<T> {
    state: Mutex<State<T>>,
    capacity: usize,
}

struct State<T> {
    queue: VecDeque<T>,
    /// Of the one receiver, if it waits.
    waiting: Option<Waker>,
    closed: bool,
}

impl<T> std::fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox")
            .field("len", &self.len())
            .field("capacity", &self.capacity)
            .finish()
    }
}

impl<T> Mailbox<T> {
    /// For at most `capacity` messages at a time.
    pub fn new(capacity: usize) -> Mailbox<T> {
        let queue = VecDeque::with_capacity(capacity.min(1024));
        Mailbox {
            state: Mutex::new(State {
                queue,
                waiting: None,
                closed: false,
            }),
            capacity,
        }
    }

    /// Puts a message in, from any thread, without waiting.
    pub fn post(&self, message: T) -> Result<(), PostError<T>> {
        let waiting = {
            let mut state = self.state.lock();
            if state.closed {
                return Err(PostError::Closed(message));
            }
            if state.queue.len() >= self.capacity {
                return Err(PostError::Full(message));
            }
            state.queue.push_back(message);
            state.waiting.take()
        };
        // Outside the lock: the receiver would otherwise wake only to wait for it.
        if let Some(waker) = waiting {
            waker.wake();
        }
        Ok(())
    }

    /// The next message; `None` when the mailbox is closed and empty. One receiver at a time. Ready at once
    /// as long as there are messages: a loop over this must suspend for real now and then (`breathe`).
    pub async fn recv(&self) -> Option<T> {
        poll_fn(|context| self.poll_state(context, |state| state.queue.pop_front())).await
    }

    /// Waits for messages and moves all of them to the end of `batch`; `false` when closed and empty.
    pub async fn recv_all(&self, batch: &mut VecDeque<T>) -> bool {
        poll_fn(|context| {
            self.poll_state(context, |state| {
                (!state.queue.is_empty()).then(|| batch.append(&mut state.queue))
            })
        })
        .await
        .is_some()
    }

    /// The next message if there is one.
    pub fn try_recv(&self) -> Option<T> {
        self.state.lock().queue.pop_front()
    }

    /// Refuses messages from now on; those inside can still be received.
    pub fn close(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.closed = true;
            state.waiting.take()
        };
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Messages waiting.
    pub fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn poll_state<R>(
        &self,
        context: &mut Context<'_>,
        take: impl FnOnce(&mut State<T>) -> Option<R>,
    ) -> Poll<Option<R>> {
        let mut state = self.state.lock();
        if let Some(taken) = take(&mut state) {
            return Poll::Ready(Some(taken));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        let stored = state.waiting.as_ref();
        if !stored.is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waiting = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::{Cores, allowed_cpus, breathe, run_on_one};

    /// Each way between busy cores.
    const FLOOD: u64 = 200_000;
    /// Each way between cores that park after every message; 200 000 passed too, in 15 s.
    const PING_PONGS: u64 = 50_000;

    /// The first two CPUs, or the only one twice.
    fn two_cpus() -> [usize; 2] {
        let cpus = allowed_cpus().unwrap();
        [cpus[0], cpus[cpus.len() - 1]]
    }

    type Pair = Arc<[Mailbox<u64>; 2]>;

    /// Strict ping-pong: both cores park between any two messages.
    async fn idle_side(boxes: Pair, core: usize) -> u64 {
        let mut received = 0;
        if core == 0 {
            boxes[1].post(0).unwrap();
        }
        while received < PING_PONGS {
            let message = boxes[core].recv().await.unwrap();
            assert_eq!(message, received);
            received += 1;
            let last = core == 0 && received == PING_PONGS;
            if !last {
                boxes[1 - core]
                    .post(message + u64::from(core == 0))
                    .unwrap();
            }
        }
        received
    }

    /// Both flood each other through small mailboxes: senders meet full boxes, receivers meet both idle and
    /// busy moments.
    async fn busy_side(boxes: Pair, core: usize) -> u64 {
        let (mut sent, mut received) = (0, 0);
        while sent < FLOOD || received < FLOOD {
            while sent < FLOOD && boxes[1 - core].post(sent).is_ok() {
                sent += 1;
            }
            while let Some(message) = boxes[core].try_recv() {
                assert_eq!(message, received);
                received += 1;
            }
            if sent == FLOOD && received < FLOOD {
                assert_eq!(boxes[core].recv().await, Some(received));
                received += 1;
            } else if sent < FLOOD {
                breathe().await;
            }
        }
        received
    }

    fn check<Fut>(
        side: impl Fn(Pair, usize) -> Fut + Clone + Send + 'static,
        capacity: usize,
        expected: u64,
    ) where
        Fut: Future<Output = u64> + 'static,
    {
        let boxes: Pair = Arc::new([Mailbox::new(capacity), Mailbox::new(capacity)]);
        let cores = Cores::start_on(&two_cpus(), move |core| side(Arc::clone(&boxes), core));
        assert_eq!(cores.unwrap().join().unwrap(), vec![expected; 2]);
    }

    #[test]
    fn nothing_lost_between_idle_cores() {
        check(idle_side, 4, PING_PONGS);
    }

    #[test]
    fn nothing_lost_between_busy_cores() {
        check(busy_side, 64, FLOOD);
    }

    #[test]
    fn full_and_closed_hand_the_message_back() {
        let mailbox = Mailbox::new(1);
        mailbox.post("first").unwrap();
        assert!(matches!(
            mailbox.post("second"),
            Err(PostError::Full("second"))
        ));
        mailbox.close();
        assert!(matches!(
            mailbox.post("third"),
            Err(PostError::Closed("third"))
        ));
        let (first, end) =
            run_on_one(|| async { (mailbox.recv().await, mailbox.recv().await) }).unwrap();
        assert_eq!((first, end), (Some("first"), None));
    }

    #[test]
    fn batches_come_whole_and_in_order() {
        let mailbox = Arc::new(Mailbox::new(8));
        for n in 0..5 {
            mailbox.post(n).unwrap();
        }
        mailbox.close();
        run_on_one(|| async {
            let mut batch = VecDeque::from([9]);
            assert!(mailbox.recv_all(&mut batch).await);
            assert_eq!(batch, [9, 0, 1, 2, 3, 4]);
            assert!(!mailbox.recv_all(&mut batch).await);
        })
        .unwrap();
    }
}
