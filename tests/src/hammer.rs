//! Several mounts of one volume worked on at once, by many threads, on few names: the work and its verdicts.
//!
//! `run` starts the same number of threads on every `Side` and gives them a common number of operations to do.
//! Two kinds of work share the volume, in directories of their own:
//! - `chaos`: every kind of operation at random on a tree of few names, so that they collide. Judged while it
//!   runs by the errors each operation may give, and afterwards by `judge`;
//! - `counted`: work whose outcome is known. Exclusive creates are won by one thread until its unlink, and what
//!   they guard is changed by one at a time; appended records are there once and in order.
//!
//! A thread that waits longer than `STUCK` for one operation is a hang: the servers are killed, so that the
//! threads end, and the run fails with the operation's name. Everything random comes from one seed, though the
//! order of threads does not: a seed makes a failure likely, not certain.

pub mod chaos;
pub mod counted;
pub mod judge;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::deadline::patience;
use crate::mount::Mount;

/// How long one operation may take.
fn stuck() -> Duration {
    patience(60)
}

/// Where all the work is: below this name in each mount's root.
pub const BASE: &str = "hammer";

/// One mount and what it is called in messages.
pub struct Side<'a> {
    /// For messages.
    pub name: &'static str,
    /// The mount.
    pub mount: &'a Mount,
}

/// How much work.
pub struct Plan {
    /// Decides all random choices.
    pub seed: u64,
    /// Operations of all threads together.
    pub operations: u64,
    /// Threads of chaos on every side; as many do counted work.
    pub threads: usize,
}

/// What a thread works with.
pub struct Hand<'a> {
    /// The side's name and the thread's number, for messages and records.
    pub name: String,
    /// The base directory, through this thread's mount.
    pub base: PathBuf,
    /// Its own random numbers.
    pub random: fastrand::Rng,
    shared: &'a Shared,
    doing: &'a Mutex<Option<(Instant, String)>>,
}

struct Shared {
    left: AtomicU64,
    failed: AtomicBool,
    ledger: counted::Ledger,
}

impl Hand<'_> {
    /// Whether there is one more operation to do; counts it.
    pub fn more(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        !self.shared.failed.load(Ordering::SeqCst)
            && self
                .shared
                .left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
                .is_ok()
    }

    /// What all threads know of the counted work.
    pub fn ledger(&self) -> &counted::Ledger {
        &self.shared.ledger
    }

    /// Says what this thread is about to do, and since when.
    pub fn begin(&self, what: &str) -> Result<()> {
        *self.doing.lock().map_err(|_| anyhow!("poisoned"))? = Some((Instant::now(), what.into()));
        Ok(())
    }

    fn end(&self) {
        if let Ok(mut doing) = self.doing.lock() {
            *doing = None;
        }
    }
}

/// Does the work of `plan` on all sides; the first failure of any thread, with its name, or a hang.
pub fn run(plan: &Plan, sides: &[Side]) -> Result<counted::Ledger> {
    let first = sides.first().context("no side")?;
    chaos::prepare(&first.mount.path(BASE))?;
    counted::prepare(&first.mount.path(BASE))?;
    let shared = Shared {
        left: AtomicU64::new(plan.operations),
        failed: AtomicBool::new(false),
        ledger: counted::Ledger::default(),
    };
    let threads = sides.len() * plan.threads * 2;
    let doing: Vec<Mutex<Option<(Instant, String)>>> =
        (0..threads).map(|_| Mutex::new(None)).collect();
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (number, doing) in doing.iter().enumerate() {
            let side = &sides[number % sides.len()];
            let hand = Hand {
                name: format!("{}.{number}", side.name),
                base: side.mount.path(BASE),
                random: fastrand::Rng::with_seed(plan.seed.wrapping_add(number as u64 * 7919)),
                shared: &shared,
                doing,
            };
            let is_chaos = number / sides.len() < plan.threads;
            running.push(scope.spawn(move || work(hand, is_chaos)));
        }
        let hang = guard(&doing, sides, || {
            running.iter().all(|thread| thread.is_finished())
        });
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
        };
        // A hang first: the errors of the other threads follow from it.
        std::iter::once(hang)
            .chain(running.into_iter().map(join))
            .collect()
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    Ok(shared.ledger)
}

fn work(mut hand: Hand, is_chaos: bool) -> Result<()> {
    let name = hand.name.clone();
    let shared = hand.shared;
    let outcome = if is_chaos {
        chaos::work(&mut hand)
    } else {
        counted::work(&mut hand)
    };
    hand.end();
    if outcome.is_err() {
        shared.failed.store(true, Ordering::SeqCst);
    }
    outcome.with_context(|| format!("thread {name}"))
}

/// Looks at what all threads are doing until they are done; on a hang kills the servers, which ends every
/// operation on them.
fn guard(
    doing: &[Mutex<Option<(Instant, String)>>],
    sides: &[Side],
    done: impl Fn() -> bool,
) -> Result<()> {
    while !done() {
        std::thread::park_timeout(Duration::from_millis(20));
        for (number, doing) in doing.iter().enumerate() {
            let doing = doing.lock().map_err(|_| anyhow!("poisoned"))?.clone();
            let Some((since, what)) = doing.filter(|(since, _)| since.elapsed() > stuck()) else {
                continue;
            };
            for side in sides {
                side.mount.killer()()?;
            }
            let waited = since.elapsed();
            let side = sides[number % sides.len()].name;
            bail!("HANG: thread {side}.{number} has waited {waited:?} for: {what}");
        }
    }
    Ok(())
}
