//! One fetch at a time for each page, across all cores.
//!
//! Called by `blocks` for pages that memory does not have. A reader claims the pages it misses; for each
//! of them it gets one of three answers: the page after all (another reader has just brought it), a *lead*
//! (it must fetch it, with its neighbours in one go), or somebody else's *flight* to wait for.
//!
//! 1. A leader fetches, puts the pages into the cache, and lands the flight with them or with the error.
//! 2. Followers get the same pages or the same error.
//! 3. A leader that is dropped before (its request was cancelled) abandons the flight: followers claim anew,
//!    and one of them leads.
//!
//! Nobody waits for a flight while leading one, so there is no circle. One lock of a shard per claim and per
//! landing, both only on the way of a miss; all pages of a block are in the same shard. Followers on other
//! cores are woken by the leader's core, after it has let go of the lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use super::BlockId;
use super::hybrid::PageKey;
use crate::error::ObjectError;

/// Far more than cores: two misses rarely meet in one lock.
const SHARDS: usize = 64;

type Shard = Mutex<HashMap<PageKey, Arc<Flight>>>;

/// Pages being fetched.
pub(super) struct Flights {
    shards: Vec<Shard>,
}

/// A fetch of consecutive pages.
pub(super) struct Flight {
    first: u32,
    state: Mutex<State>,
}

enum State {
    Flying(Vec<Waker>),
    Landed(Result<Arc<[Bytes]>, ObjectError>),
    Abandoned,
}

/// What to do about a page.
pub(super) enum Claim<'a> {
    /// Nothing: here it is.
    Cached(u32, Bytes),
    /// Fetch it, with others.
    Lead(Lead<'a>),
    /// Wait for it.
    Follow(u32, Arc<Flight>),
}

/// The duty to fetch consecutive pages.
pub(super) struct Lead<'a> {
    shard: &'a Shard,
    block: BlockId,
    pages: Range<u32>,
    flight: Arc<Flight>,
}

impl Flights {
    pub(super) fn new() -> Flights {
        Flights {
            shards: std::iter::repeat_with(Shard::default)
                .take(SHARDS)
                .collect(),
        }
    }

    /// Claims `missing` pages of a block, in ascending order. `cached` is asked again for each one.
    pub(super) fn claim(
        &self,
        block: BlockId,
        missing: impl Iterator<Item = u32>,
        cached: impl Fn(u32) -> Option<Bytes>,
    ) -> Vec<Claim<'_>> {
        let shard = self.shard(block);
        let mut flights = shard.lock();
        let mut claims: Vec<Claim<'_>> = Vec::new();
        for page in missing {
            let entry = match flights.entry(PageKey::new(block, page)) {
                Entry::Occupied(entry) => {
                    claims.push(Claim::Follow(page, Arc::clone(entry.get())));
                    continue;
                }
                Entry::Vacant(entry) => entry,
            };
            // A leader inserts its pages before it lands, so they are in flight, or cached, or unknown.
            if let Some(bytes) = cached(page) {
                claims.push(Claim::Cached(page, bytes));
                continue;
            }
            match claims.last_mut() {
                Some(Claim::Lead(lead)) if lead.pages.end == page => {
                    lead.pages.end = page + 1;
                    entry.insert(Arc::clone(&lead.flight));
                }
                _ => {
                    let state = Mutex::new(State::Flying(Vec::new()));
                    let flight = Arc::new(Flight { first: page, state });
                    entry.insert(Arc::clone(&flight));
                    claims.push(Claim::Lead(Lead {
                        shard,
                        block,
                        pages: page..page + 1,
                        flight,
                    }));
                }
            }
        }
        claims
    }

    fn shard(&self, block: BlockId) -> &Shard {
        // Blocks of a slice and slices of a batch spread over the shards.
        &self.shards[(block.slice.0.wrapping_add(u64::from(block.index)) % SHARDS as u64) as usize]
    }
}

impl Flight {
    /// The page when it has landed; `None` if its leader gave up.
    pub(super) async fn wait(&self, page: u32) -> Option<Result<Bytes, ObjectError>> {
        poll_fn(|context| match &mut *self.state.lock() {
            State::Landed(Ok(pages)) => {
                Poll::Ready(Some(Ok(pages[(page - self.first) as usize].clone())))
            }
            State::Landed(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            State::Abandoned => Poll::Ready(None),
            State::Flying(waiting) => {
                if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                    waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    fn end(&self, end: State) {
        let before = std::mem::replace(&mut *self.state.lock(), end);
        if let State::Flying(waiting) = before {
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

impl Lead<'_> {
    /// The pages to fetch.
    pub(super) fn pages(&self) -> Range<u32> {
        self.pages.clone()
    }

    /// Ends the flight: with all pages in order, which are in the cache by now, or with the error.
    pub(super) fn land(self, fetched: Result<Vec<Bytes>, ObjectError>) {
        if let Ok(pages) = &fetched {
            assert_eq!(
                pages.len(),
                self.pages.len(),
                "a flight lands with all its pages"
            );
        }
        self.leave(State::Landed(fetched.map(Arc::from)));
    }

    fn leave(&self, end: State) {
        {
            let mut flights = self.shard.lock();
            for page in self.pages() {
                let removed = flights.remove(&PageKey::new(self.block, page));
                debug_assert!(removed.is_some_and(|flight| Arc::ptr_eq(&flight, &self.flight)));
            }
        }
        self.flight.end(end);
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let flying = matches!(&*self.flight.state.lock(), State::Flying(_));
        if flying {
            self.leave(State::Abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_meta::types::SliceId;

    use super::*;
    use crate::runtime::{Tasks, run_on_one};

    const BLOCK: BlockId = BlockId {
        slice: SliceId(9),
        index: 1,
        size: 1000,
    };

    fn page(n: u32) -> Bytes {
        Bytes::from(vec![n as u8; 4])
    }

    /// Claims in short: `c3` cached, `l4..6` lead, `f7` follow.
    fn shape(claims: &[Claim<'_>]) -> String {
        let words: Vec<_> = claims
            .iter()
            .map(|claim| match claim {
                Claim::Cached(page, _) => format!("c{page}"),
                Claim::Lead(lead) => format!("l{:?}", lead.pages()),
                Claim::Follow(page, _) => format!("f{page}"),
            })
            .collect();
        words.join(" ")
    }

    #[test]
    fn claims_split_into_runs() {
        let flights = Flights::new();
        let first = flights.claim(BLOCK, [2, 3].into_iter(), |_| None);
        assert_eq!(shape(&first), "l2..4");
        let cached = |n| (n == 6).then(|| page(n));
        let second = flights.claim(BLOCK, [0, 1, 2, 3, 4, 5, 6, 7, 9].into_iter(), cached);
        assert_eq!(shape(&second), "l0..2 f2 f3 l4..6 c6 l7..8 l9..10");
        let other = BlockId { index: 2, ..BLOCK };
        assert_eq!(
            shape(&flights.claim(other, [2].into_iter(), |_| None)),
            "l2..3"
        );
        drop((first, second));
        assert!(flights.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    fn lead<'a>(flights: &'a Flights, pages: Range<u32>) -> Lead<'a> {
        match flights.claim(BLOCK, pages, |_| None).pop() {
            Some(Claim::Lead(lead)) => lead,
            _ => panic!("nobody leads"),
        }
    }

    fn follow(flights: &Flights, page: u32) -> Arc<Flight> {
        match flights.claim(BLOCK, page..page + 1, |_| None).pop() {
            Some(Claim::Follow(_, flight)) => flight,
            _ => panic!("nothing to follow"),
        }
    }

    #[test]
    fn followers_get_pages_errors_or_the_lead() {
        run_on_one(|| async {
            let flights = Flights::new();
            let (leading, tasks) = (lead(&flights, 5..8), Tasks::new());
            let flight = follow(&flights, 6);
            tasks.spawn(async move {
                assert_eq!(flight.wait(6).await.unwrap().unwrap(), page(6));
            });
            leading.land(Ok((5..8).map(page).collect()));
            tasks.finished().await;

            let leading = lead(&flights, 5..8);
            let flight = follow(&flights, 7);
            leading.land(Err(ObjectError::NoSpace { key: "k".into() }));
            let error = flight.wait(7).await.unwrap().unwrap_err();
            assert!(matches!(error, ObjectError::NoSpace { .. }));

            let leading = lead(&flights, 5..8);
            let flight = follow(&flights, 5);
            drop(leading);
            assert!(flight.wait(5).await.is_none());
            drop(lead(&flights, 5..6));
        })
        .unwrap();
    }
}
