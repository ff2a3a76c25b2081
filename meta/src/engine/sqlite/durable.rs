//! Durability: shared flushes of the write-ahead log, and the thread that folds it into the main file.
//!
//! Commits are written to the log and not flushed (`synchronous=NORMAL`). [`LogSync`] makes what was
//! committed before a call durable with one `fdatasync` of the log, shared by all who wait and run by the
//! executor, never by SQLite. The file may be flushed from outside because SQLite takes no POSIX lock on the
//! log (it does on the main file: opening and closing that would drop them). A commit that is no longer in
//! the log is durable: before SQLite starts the log over it has flushed the log and, with all pages copied,
//! the main file.
//!
//! [`Checkpointer`] owns one thread with a connection of its own. It copies pages without stopping anybody;
//! only when the log has outgrown [`limits::SQLITE_LOG_PAGES_MAX`] it takes the commits' turn for the rest, so
//! that the log can start over.
//!
//! Fails: after one failed flush every later one of this database is refused, because the kernel may have
//! dropped the pages that could not be written.

use std::fs::File;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::commit::Line;
use super::connection::Connection;
use super::row::{query_one, refused};
use crate::engine::EngineResult;
use crate::error::EngineError;
use crate::limits;
use crate::runtime::Runtime;

/// Flushes of the log.
pub(super) struct LogSync {
    log: Arc<File>,
    state: Mutex<SyncState>,
}

#[derive(Default)]
struct SyncState {
    /// Calls so far; a call's number is its ticket.
    asked: u64,
    /// Tickets up to here were given out before a flush that succeeded was started.
    covered: u64,
    flushing: bool,
    failed: Option<EngineError>,
    waiters: Vec<Waker>,
}

/// The right to run the flush; gives it up when dropped, also when its owner is cancelled.
struct Flush<'a> {
    sync: &'a LogSync,
    /// Tickets given out when it was started.
    upto: u64,
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        let mut state = self.sync.state.lock();
        state.flushing = false;
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        waiters.into_iter().for_each(Waker::wake);
    }
}

impl LogSync {
    pub(super) fn new(log: File) -> LogSync {
        LogSync {
            log: Arc::new(log),
            state: Mutex::default(),
        }
    }

    /// Completes when a flush that started after this call has succeeded.
    pub(super) async fn sync(&self, runtime: &dyn Runtime) -> EngineResult<()> {
        let ticket = {
            let mut state = self.state.lock();
            state.asked += 1;
            state.asked
        };
        while let Some(flush) = self.covered_or_mine(ticket).await? {
            let flushed = runtime.fdatasync(Arc::clone(&self.log)).await;
            let mut state = self.state.lock();
            match flushed {
                Ok(()) => state.covered = flush.upto,
                Err(error) => {
                    let cause = format!("the log could not be flushed to disk: {error}");
                    state.failed = Some(refused(cause));
                }
            }
            drop(state);
        }
        Ok(())
    }

    /// Waits until the ticket is covered (`None`) or it falls to this task to flush.
    async fn covered_or_mine(&self, ticket: u64) -> EngineResult<Option<Flush<'_>>> {
        poll_fn(|context| {
            let mut state = self.state.lock();
            if let Some(error) = &state.failed {
                return Poll::Ready(Err(error.clone()));
            }
            if state.covered >= ticket {
                return Poll::Ready(Ok(None));
            }
            if !state.flushing {
                state.flushing = true;
                let upto = state.asked;
                return Poll::Ready(Ok(Some(Flush { sync: self, upto })));
            }
            if !state
                .waiters
                .iter()
                .any(|waiter| waiter.will_wake(context.waker()))
            {
                state.waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// The thread that checkpoints. Ended and joined when dropped.
pub(super) struct Checkpointer {
    wish: Arc<Wish>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Wish {
    state: Mutex<WishState>,
    changed: Condvar,
}

#[derive(Default)]
struct WishState {
    writes: usize,
    stop: bool,
}

impl Checkpointer {
    pub(super) fn start(connection: Connection, line: Arc<Line>) -> EngineResult<Checkpointer> {
        let wish = Arc::new(Wish::default());
        let theirs = Arc::clone(&wish);
        let thread = std::thread::Builder::new()
            .name("sqlite-checkpoint".into())
            .spawn(move || checkpoint_when_asked(&connection, &line, &theirs))
            .map_err(|error| refused(format!("no thread for checkpoints: {error}")))?;
        Ok(Checkpointer {
            wish,
            thread: Some(thread),
        })
    }

    /// Counts writes; enough of them make a checkpoint due.
    pub(super) fn note_writes(&self, writes: usize) {
        let mut state = self.wish.state.lock();
        state.writes += writes;
        if state.writes >= limits::SQLITE_CHECKPOINT_WRITES {
            self.wish.changed.notify_one();
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.wish.state.lock().stop = true;
        self.wish.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for checkpoints panicked");
        }
    }
}

fn checkpoint_when_asked(connection: &Connection, line: &Line, wish: &Wish) {
    loop {
        let mut state = wish.state.lock();
        wish.changed.wait_while(&mut state, |state| {
            !state.stop && state.writes < limits::SQLITE_CHECKPOINT_WRITES
        });
        if state.stop {
            return;
        }
        state.writes = 0;
        drop(state);
        let done = checkpoint(connection, "PASSIVE").and_then(|pages| {
            if pages < limits::SQLITE_LOG_PAGES_MAX {
                return Ok(());
            }
            // Commits went on meanwhile. The log starts over only when a commit finds all of it copied.
            let _turn = line.block_for_turn();
            checkpoint(connection, "PASSIVE").map(drop)
        });
        match done {
            Ok(()) | Err(EngineError::Busy { .. }) => {}
            Err(error) => tracing::warn!(%error, "checkpoint of the metadata log failed"),
        }
    }
}

/// Checkpoints as `mode` says, without waiting for a lock: pages that were in the log.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> EngineResult<i64> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let pages = query_one(connection, &sql, [], ("wal_checkpoint", &mode), |row| {
        row.number::<i64>(1)
    })?;
    pages.ok_or_else(|| refused("no answer from wal_checkpoint"))
}
