//! [`Together`]: a bounded set of futures that one task drives at the same time.
//!
//! Walks over trees use it to keep several directories in flight on one connection. Whoever polls it polls
//! every member, which is fine for the tens of members that a walk has.

use std::future::poll_fn;
use std::task::Poll;

use crate::runtime::LocalFuture;

/// Futures in flight; dropped with it.
pub(crate) struct Together<'a, T> {
    running: Vec<LocalFuture<'a, T>>,
}

impl<'a, T> Together<'a, T> {
    /// None yet.
    pub(crate) fn new() -> Together<'a, T> {
        Together {
            running: Vec::new(),
        }
    }

    /// How many are in flight.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    /// Adds one. It starts with the next [`Together::next`].
    pub(crate) fn push(&mut self, future: impl Future<Output = T> + 'a) {
        self.running.push(Box::pin(future));
    }

    /// What the next of them to end comes to; `None` when none is left.
    pub(crate) async fn next(&mut self) -> Option<T> {
        poll_fn(|context| {
            for index in 0..self.running.len() {
                if let Poll::Ready(value) = self.running[index].as_mut().poll(context) {
                    drop(self.running.swap_remove(index));
                    return Poll::Ready(Some(value));
                }
            }
            if self.running.is_empty() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_driven_and_each_is_answered_once() {
        smol::block_on(async {
            let (sender, receiver) = smol::channel::bounded(1);
            let mut together = Together::new();
            // The first can only end after the second has run.
            together.push(async move { receiver.recv().await.unwrap() });
            together.push(async move {
                sender.send(7).await.unwrap();
                8
            });
            assert_eq!(together.len(), 2);
            let mut ended = [together.next().await, together.next().await];
            ended.sort_unstable();
            assert_eq!(ended, [Some(7), Some(8)]);
            assert_eq!(together.next().await, None);
        });
    }
}
