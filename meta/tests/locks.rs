//! Locks of two clients of one volume: against a model, in every store, and in memory with conflicts and lost
//! answers injected;
//! what they cost; and what becomes of them when their session ends.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, too"
)]

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/stage.rs"]
mod stage;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::engine::memory::{Memory, Request, Verdict};
use sluice_meta::engine::{Engine, Item, Key, Scan};
use sluice_meta::error::MetaError;
use sluice_meta::jobs::session::{Session, SessionInfo};
use sluice_meta::ops::{LockKind, RangeLock};
use sluice_meta::runtime::Runtime;
use sluice_meta::types::{Ino, SessionId, Timestamp};

use fixture::{Client, START, block_on, unknown_fate};
use stage::{Kept, SESSION, Stage, setting};

const FILE: Ino = Ino(20);
const BEAT: Duration = Duration::from_secs(12);

fn register(client: &Client) -> Session {
    let now = Timestamp {
        sec: START,
        nsec: 0,
    };
    let info = SessionInfo::of_this_process("/mnt/data", now);
    block_on(Session::register(&client.meta, &info, BEAT)).unwrap()
}

/// Two clients of one volume, each with a session.
fn two() -> ((Client, Session), (Client, Session)) {
    let one = Client::new();
    let other = Client::of(&one.memory, MetaOptions::default());
    let (a, b) = (register(&one), register(&other));
    ((one, a), (other, b))
}

fn range(start: u64, end: u64, kind: LockKind) -> RangeLock {
    RangeLock {
        start,
        end,
        kind,
        pid: 77,
    }
}

fn locks_of(memory: &Memory, sid: SessionId) -> Vec<Item> {
    block_on(memory.scan(&Scan::SessionLocks(sid), None, 1000))
        .unwrap()
        .items
}

/// Counts requests to the store from now on.
fn count(memory: &Memory) -> impl Fn() -> u64 + use<> {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    memory.on_request(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        Verdict::Serve
    });
    move || sent.swap(0, Ordering::Relaxed)
}

/// Loses one commit in four, and the answer of one in eight that was applied.
fn disturb(memory: &Memory, seed: u64) {
    let random = parking_lot::Mutex::new(fastrand::Rng::with_seed(seed));
    memory.on_request(move |request| match request {
        Request::Commit(_) => match random.lock().u32(0..8) {
            0 | 1 => Verdict::Conflict(0),
            2 => Verdict::ServeThenFail(unknown_fate()),
            _ => Verdict::Serve,
        },
        _ => Verdict::Serve,
    });
}

/// One owner: which client, and its number there.
type Owner = (usize, u64);

async fn play_flocks(clients: [&Meta; 2], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: BTreeMap<Owner, LockKind> = BTreeMap::new();
    for step in 0..200 {
        let owner = (random.usize(0..2), random.u64(1..4));
        let want = *random
            .choice(&[LockKind::Shared, LockKind::Exclusive, LockKind::Unlock])
            .unwrap();
        let free = want == LockKind::Unlock
            || model
                .iter()
                .filter(|(other, _)| **other != owner)
                .all(|(_, held)| *held == LockKind::Shared && want == LockKind::Shared);
        let answer = clients[owner.0].flock(FILE, owner.1, want).await;
        match answer {
            Ok(()) => assert!(free, "seed {seed}, step {step}: {owner:?} got {want:?}"),
            Err(MetaError::Locked { own, foreign }) => {
                assert!(
                    !free,
                    "seed {seed}, step {step}: {owner:?} refused {want:?}"
                );
                let here = |client: usize| {
                    model
                        .iter()
                        .filter(|(other, _)| **other != owner)
                        .any(|((of, _), held)| {
                            *of == client
                                && (*held == LockKind::Exclusive || want == LockKind::Exclusive)
                        })
                };
                assert_eq!((own.is_some(), foreign), (here(owner.0), here(1 - owner.0)));
            }
            Err(error) => panic!("seed {seed}, step {step}: {error}"),
        }
        if free && want == LockKind::Unlock {
            model.remove(&owner);
        } else if free {
            model.insert(owner, want);
        }
    }
}

const BYTES: usize = 16;

/// Offset of the model's byte: its last one is the end of the file.
fn offset(at: usize) -> u64 {
    if at == BYTES - 1 {
        RangeLock::END
    } else {
        at as u64
    }
}

async fn play_ranges(clients: [&Meta; 2], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: BTreeMap<Owner, [LockKind; BYTES]> = BTreeMap::new();
    for step in 0..200 {
        let owner = (random.usize(0..2), random.u64(1..3));
        let (a, b) = (random.usize(0..BYTES), random.usize(0..BYTES));
        let (first, last) = (a.min(b), a.max(b));
        let kind = *random
            .choice(&[LockKind::Shared, LockKind::Exclusive, LockKind::Unlock])
            .unwrap();
        let clash = |at: usize| {
            let others = model.iter().filter(|(other, _)| **other != owner);
            others.map(|(_, bytes)| bytes[at]).any(|held| {
                kind != LockKind::Unlock
                    && (held == LockKind::Exclusive
                        || held == LockKind::Shared && kind == LockKind::Exclusive)
            })
        };
        let free = !(first..=last).any(clash);
        let lock = range(offset(first), offset(last), kind);
        let meta = clients[owner.0];
        let found = meta.getlk(FILE, owner.1, &lock).await.unwrap();
        assert_eq!(found.is_none(), free, "seed {seed}, step {step}: {lock:?}");
        match meta.setlk(FILE, owner.1, &lock).await {
            Ok(()) => assert!(free, "seed {seed}, step {step}: {owner:?} got {lock:?}"),
            Err(MetaError::Locked { .. }) => assert!(!free, "seed {seed}, step {step}"),
            Err(error) => panic!("seed {seed}, step {step}: {error}"),
        }
        if free {
            let bytes = model.entry(owner).or_insert([LockKind::Unlock; BYTES]);
            bytes[first..=last].fill(kind);
        }
    }
}

#[test]
fn both_kinds_are_what_a_model_says() {
    for seed in 0..40 {
        for ranges in [false, true] {
            let ((one, _a), (other, _b)) = two();
            disturb(&one.memory, seed);
            let clients = [&one.meta, &other.meta];
            if ranges {
                block_on(play_ranges(clients, seed));
            } else {
                block_on(play_flocks(clients, seed));
            }
        }
    }
}

#[test]
fn both_kinds_are_what_a_model_says_in_every_store() {
    for kept in [Kept::Memory, Kept::Sqlite, Kept::Redis] {
        let stage = Stage::on(kept, setting(0));
        stage.register();
        let shared = Shared::new(setting(0), MetaOptions::default());
        shared.session.store(SESSION.0 + 1, Ordering::Release);
        let runtime: Rc<dyn Runtime> = Rc::<stage::Clock>::clone(&stage.clock);
        let other = Meta::new(Rc::clone(stage.meta.engine()), runtime, shared);
        let clients = [&stage.meta, &other];
        stage::block_on(async {
            for seed in 0..4 {
                play_flocks(clients, seed).await;
                play_ranges(clients, seed).await;
                release_all(clients).await;
            }
        });
        for sid in [SESSION, SessionId(SESSION.0 + 1)] {
            let locks = stage::block_on(other.engine().scan(&Scan::SessionLocks(sid), None, 9));
            assert_eq!(locks.unwrap().items, [], "{kept:?}");
        }
    }
}

/// Whatever the model's owners still hold.
async fn release_all(clients: [&Meta; 2]) {
    for meta in clients {
        for owner in 1..4 {
            meta.flock(FILE, owner, LockKind::Unlock).await.unwrap();
            let release = RangeLock::RELEASE;
            meta.setlk(FILE, owner, &release).await.unwrap();
        }
    }
}

#[test]
fn a_test_reports_the_first_lock_and_its_process_only_at_home() {
    let ((one, _a), (other, _b)) = two();
    let exclusive = |start, end| range(start, end, LockKind::Exclusive);
    block_on(one.meta.setlk(FILE, 5, &exclusive(50, 59))).unwrap();
    block_on(one.meta.setlk(FILE, 6, &exclusive(10, 19))).unwrap();
    let ask = range(0, RangeLock::END, LockKind::Shared);
    let at_home = block_on(one.meta.getlk(FILE, 9, &ask)).unwrap();
    assert_eq!(at_home, Some(exclusive(10, 19)));
    let elsewhere = block_on(other.meta.getlk(FILE, 9, &ask)).unwrap();
    assert_eq!(
        elsewhere,
        Some(RangeLock {
            pid: 0,
            ..exclusive(10, 19)
        })
    );
    // The same number in another session is another owner; one's own locks are never in the way.
    assert!(
        block_on(other.meta.getlk(FILE, 6, &exclusive(12, 12)))
            .unwrap()
            .is_some()
    );
    assert!(
        block_on(one.meta.getlk(FILE, 6, &exclusive(12, 12)))
            .unwrap()
            .is_none()
    );
    let backwards = block_on(one.meta.setlk(FILE, 6, &exclusive(9, 8)));
    assert!(matches!(backwards, Err(MetaError::Invalid(_))));
}

#[test]
fn a_lock_that_nobody_wants_costs_one_request() {
    let ((one, _a), (other, _b)) = two();
    let sent = count(&one.memory);
    let meta = &one.meta;
    for _ in 0..3 {
        for want in [LockKind::Shared, LockKind::Exclusive, LockKind::Unlock] {
            block_on(meta.flock(FILE, 1, want)).unwrap();
            assert_eq!(sent(), 1, "flock {want:?}");
        }
        for (start, end) in [(0, 9), (20, 29), (5, 24)] {
            block_on(meta.setlk(FILE, 1, &range(start, end, LockKind::Exclusive))).unwrap();
            assert_eq!(sent(), 1);
        }
        block_on(meta.setlk(FILE, 1, &range(3, 4, LockKind::Unlock))).unwrap();
        assert_eq!(sent(), 1);
        block_on(meta.setlk(FILE, 1, &RangeLock::RELEASE)).unwrap();
        assert_eq!(sent(), 1);
    }
    // Somebody else's change is found out by the commit.
    block_on(other.meta.flock(FILE, 1, LockKind::Shared)).unwrap();
    sent();
    block_on(meta.flock(FILE, 1, LockKind::Shared)).unwrap();
    assert_eq!(sent(), 3);
    assert!(block_on(meta.flock(FILE, 1, LockKind::Exclusive)).is_err());
    assert_eq!(sent(), 1, "what is known to be held is looked at once");
}

#[test]
fn a_lock_whose_answer_was_lost_is_held_once() {
    let ((one, a), (other, _b)) = two();
    let lose = |memory: &Memory| {
        let lost = Cell::new(false);
        memory.on_request(move |request| match request {
            Request::Commit(_) if !lost.replace(true) => Verdict::ServeThenFail(unknown_fate()),
            _ => Verdict::Serve,
        });
    };
    lose(&one.memory);
    block_on(one.meta.flock(FILE, 1, LockKind::Exclusive)).unwrap();
    lose(&one.memory);
    block_on(one.meta.setlk(FILE, 1, &range(0, 9, LockKind::Exclusive))).unwrap();
    one.memory.clear_hook();
    assert_eq!(locks_of(&one.memory, a.sid()).len(), 2);
    assert!(block_on(other.meta.flock(FILE, 1, LockKind::Shared)).is_err());
    lose(&one.memory);
    block_on(one.meta.flock(FILE, 1, LockKind::Unlock)).unwrap();
    lose(&one.memory);
    block_on(one.meta.setlk(FILE, 1, &RangeLock::RELEASE)).unwrap();
    one.memory.clear_hook();
    assert_eq!(locks_of(&one.memory, a.sid()), []);
    block_on(other.meta.flock(FILE, 1, LockKind::Exclusive)).unwrap();
}

#[test]
fn the_end_of_a_session_releases_its_locks() {
    let ((one, a), (other, b)) = two();
    let all = range(0, RangeLock::END, LockKind::Exclusive);
    block_on(one.meta.flock(FILE, 1, LockKind::Exclusive)).unwrap();
    block_on(one.meta.setlk(FILE, 1, &all)).unwrap();
    assert!(block_on(other.meta.flock(FILE, 1, LockKind::Shared)).is_err());
    let sid = a.sid();
    block_on(a.end(&one.meta)).unwrap();
    assert_eq!(locks_of(&one.memory, sid), []);
    block_on(other.meta.flock(FILE, 1, LockKind::Exclusive)).unwrap();
    block_on(other.meta.setlk(FILE, 1, &all)).unwrap();
    assert_eq!(locks_of(&one.memory, b.sid()).len(), 2);
}

#[test]
fn locks_of_a_dead_session_go_when_it_is_cleaned_up() {
    let ((one, a), (other, _b)) = two();
    block_on(one.meta.flock(FILE, 1, LockKind::Exclusive)).unwrap();
    block_on(one.meta.setlk(FILE, 1, &range(5, 5, LockKind::Shared))).unwrap();
    // Five beats later only the other one is alive.
    other.clock.set(START + 61);
    assert!(block_on(other.meta.flock(FILE, 1, LockKind::Shared)).is_err());
    block_on(other.meta.clean_stale_sessions(BEAT)).unwrap();
    assert_eq!(locks_of(&one.memory, a.sid()), []);
    block_on(other.meta.flock(FILE, 1, LockKind::Exclusive)).unwrap();
    // The dead one was only slow: what it remembers of its lock is found to be wrong.
    let again = block_on(one.meta.flock(FILE, 1, LockKind::Exclusive));
    assert!(matches!(
        again,
        Err(MetaError::Locked {
            own: None,
            foreign: true
        })
    ));
}

#[test]
fn no_session_no_lock() {
    let client = Client::new();
    let refused = block_on(client.meta.flock(FILE, 1, LockKind::Shared));
    assert!(matches!(refused, Err(MetaError::NotSupported)));
    let read_only = MetaOptions {
        read_only: true,
        ..MetaOptions::default()
    };
    let reader = Client::of(&client.memory, read_only);
    let refused = block_on(reader.meta.setlk(FILE, 1, &RangeLock::RELEASE));
    assert!(matches!(refused, Err(MetaError::ReadOnly)));
    assert_eq!(client.memory.peek(&Key::Flocks(FILE)), None);
}
