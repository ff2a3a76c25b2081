//! Combining commits: whoever has the turn runs everything that waits, in one short transaction.
//!
//! A request becomes a [`Job`] in the [`Line`] of the database. Its owner, on whatever core, tries to take
//! the turn; the one who has it opens one transaction, runs the waiting jobs in order, each in a savepoint
//! of its own, commits once, and wakes the owners. Nobody waits on a lock: without the turn an owner
//! suspends until its result is there or the turn is passed to it.
//!
//! Invariants:
//! - A job leaves the line only inside an open transaction, and its result is given out only after the
//!   `COMMIT`; a job whose owner gave up while it was in line is never run.
//! - Whoever releases the turn wakes the owner of the first job in line, or gives the turn to the
//!   checkpoint thread if that asked for it: a job is never left without somebody to run it.
//! - One turn runs at most [`limits::SQLITE_COMBINE_MAX`] jobs, so that a core is not kept from its own work
//!   and the file's lock from other processes.
//!
//! Fails by answering jobs: an error of one job undoes that job alone, a failed `COMMIT` fails all of its
//! transaction. While another process has the file's lock, the turn's owner sleeps between attempts.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::connection::Connection;
use super::row::{execute, refused};
use super::{Database, pause_before};
use super::{schema, write};
use crate::engine::{Counter, EngineResult, Outcome, Txn};
use crate::error::EngineError;
use crate::limits;
use crate::runtime::Runtime;

/// What is asked of the writer.
pub(super) enum Work {
    /// Check and apply.
    Commit(Txn),
    /// Take numbers from a counter.
    Alloc(Counter, i64),
    /// Remove the volume's tables.
    Destroy,
}

/// What it answered.
pub(super) enum Answer {
    /// To [`Work::Commit`].
    Outcome(Outcome),
    /// To [`Work::Alloc`]: the first number.
    First(u64),
    /// To [`Work::Destroy`].
    Destroyed,
}

/// A request in line.
struct Job {
    work: Work,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    answer: Option<EngineResult<Answer>>,
    owner: Option<Waker>,
}

impl Job {
    fn answer(&self, answer: EngineResult<Answer>) {
        let mut slot = self.slot.lock();
        slot.answer = Some(answer);
        let owner = slot.owner.take();
        drop(slot);
        if let Some(owner) = owner {
            owner.wake();
        }
    }

    fn wake(&self) {
        let owner = self.slot.lock().owner.take();
        if let Some(owner) = owner {
            owner.wake();
        }
    }
}

/// The jobs that wait and who may run them.
#[derive(Default)]
pub(super) struct Line {
    state: Mutex<LineState>,
    granted: Condvar,
}

#[derive(Default)]
struct LineState {
    jobs: VecDeque<Arc<Job>>,
    taken: bool,
    pause: Pause,
}

/// The checkpoint thread's wish for the turn.
#[derive(Default, PartialEq, Eq)]
enum Pause {
    #[default]
    None,
    Wanted,
    Granted,
}

/// The turn: the right to use the writer. Passed on when dropped, also when its owner is cancelled.
pub(super) struct Turn<'a> {
    line: &'a Line,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state.lock();
        if state.pause == Pause::Wanted {
            state.pause = Pause::Granted;
            drop(state);
            self.line.granted.notify_one();
            return;
        }
        state.taken = false;
        let first = state.jobs.front().cloned();
        drop(state);
        if let Some(first) = first {
            first.wake();
        }
    }
}

impl Line {
    fn try_turn(&self) -> Option<Turn<'_>> {
        let mut state = self.state.lock();
        if state.taken {
            return None;
        }
        state.taken = true;
        Some(Turn { line: self })
    }

    /// Waits, blocking this thread, until it has the turn. For the checkpoint thread, of which there is one.
    pub(super) fn block_for_turn(&self) -> Turn<'_> {
        let mut state = self.state.lock();
        if state.taken {
            state.pause = Pause::Wanted;
            self.granted
                .wait_while(&mut state, |state| state.pause != Pause::Granted);
            state.pause = Pause::None;
        } else {
            state.taken = true;
        }
        drop(state);
        Turn { line: self }
    }

    fn pop(&self, most: usize) -> Vec<Arc<Job>> {
        let mut state = self.state.lock();
        let count = state.jobs.len().min(most);
        state.jobs.drain(..count).collect()
    }

    fn is_empty(&self) -> bool {
        self.state.lock().jobs.is_empty()
    }
}

/// Takes a job out of the line when its owner gives up.
struct Place<'a> {
    line: &'a Line,
    job: Arc<Job>,
}

impl Place<'_> {
    fn leave(&self) {
        self.line
            .state
            .lock()
            .jobs
            .retain(|job| !Arc::ptr_eq(job, &self.job));
    }

    fn poll<'a>(&self, line: &'a Line, context: &mut Context<'_>) -> Poll<Step<'a>> {
        let mut slot = self.job.slot.lock();
        if let Some(answer) = slot.answer.take() {
            return Poll::Ready(Step::Answered(answer));
        }
        // Before the turn is tried for: whoever has it wakes this task after giving it up.
        slot.owner = Some(context.waker().clone());
        drop(slot);
        match line.try_turn() {
            Some(turn) => Poll::Ready(Step::MyTurn(turn)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
        // It may have been woken to take the turn.
        let state = self.line.state.lock();
        let first = if state.taken {
            None
        } else {
            state.jobs.front().cloned()
        };
        drop(state);
        if let Some(first) = first {
            first.wake();
        }
    }
}

enum Step<'a> {
    Answered(EngineResult<Answer>),
    MyTurn(Turn<'a>),
}

/// Puts `work` in line and waits for its answer, running the line when it is this task's turn.
pub(super) async fn submit(
    database: &Database,
    runtime: &dyn Runtime,
    work: Work,
) -> EngineResult<Answer> {
    let since = Instant::now();
    let line = &database.line;
    let job = Arc::new(Job {
        work,
        slot: Mutex::default(),
    });
    line.state.lock().jobs.push_back(Arc::clone(&job));
    let place = Place { line, job };
    // Tasks of this core that are ready now get in line too, and share the transaction.
    futures_lite::future::yield_now().await;
    let mut attempts = 0;
    loop {
        let turn = match poll_fn(|context| place.poll(line, context)).await {
            Step::Answered(answer) => return answer,
            Step::MyTurn(turn) => turn,
        };
        while let Err(error) = run_line(database) {
            if since.elapsed() > limits::SQLITE_BUSY_MAX {
                return Err(error);
            }
            attempts += 1;
            // The turn is kept: others would meet the same lock.
            runtime.sleep(pause_before(attempts)).await;
        }
        drop(turn);
    }
}

/// Runs what is in line, up to the bound of one turn. Fails only when the file is locked by another
/// process; then nothing has left the line.
fn run_line(database: &Database) -> EngineResult<()> {
    let mut left = limits::SQLITE_COMBINE_MAX;
    while left > 0 && !database.line.is_empty() {
        left -= run_batch(database, left)?;
    }
    Ok(())
}

fn run_batch(database: &Database, most: usize) -> EngineResult<usize> {
    let connection = database.writer.lock();
    let begun = execute(&connection, "BEGIN IMMEDIATE", []);
    if let Err(error @ EngineError::Busy { .. }) = begun {
        return Err(error);
    }
    let jobs = database.line.pop(most);
    let answers = match begun {
        Ok(_) => run_jobs(&connection, &jobs),
        Err(error) => jobs.iter().map(|_| Err(error.clone())).collect(),
    };
    drop(connection);
    let writes = jobs.iter().map(|job| match &job.work {
        Work::Commit(txn) => txn.writes.len(),
        Work::Alloc(..) | Work::Destroy => 1,
    });
    database.note_writes(writes.sum());
    for (job, answer) in jobs.iter().zip(answers) {
        job.answer(answer);
    }
    // Counted as one even when the line emptied meanwhile: a turn ends.
    Ok(jobs.len().max(1))
}

/// Runs the jobs in the open transaction and ends it.
fn run_jobs(connection: &Connection, jobs: &[Arc<Job>]) -> Vec<EngineResult<Answer>> {
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs {
        let answer = run_job(connection, &job.work);
        let lost = answer
            .as_ref()
            .err()
            .filter(|_| connection.is_autocommit())
            .cloned();
        answers.push(answer);
        // A full disk or a failed write ends the transaction by itself, with all it had done.
        if let Some(error) = lost {
            return jobs.iter().map(|_| Err(error.clone())).collect();
        }
    }
    if let Err(error) = execute(connection, "COMMIT", []) {
        if !connection.is_autocommit()
            && let Err(error) = execute(connection, "ROLLBACK", [])
        {
            tracing::error!(%error, "a failed transaction could not be rolled back");
        }
        return jobs.iter().map(|_| Err(error.clone())).collect();
    }
    answers
}

fn run_job(connection: &Connection, work: &Work) -> EngineResult<Answer> {
    match work {
        Work::Alloc(counter, count) => {
            in_savepoint(connection, || write::alloc(connection, *counter, *count))
                .map(Answer::First)
        }
        Work::Destroy => {
            in_savepoint(connection, || schema::remove(connection)).map(|()| Answer::Destroyed)
        }
        Work::Commit(txn) => {
            if let Some(check) = write::failed_check(connection, txn)? {
                return Ok(Answer::Outcome(Outcome::Conflict { check }));
            }
            let results = in_savepoint(connection, || write::apply(connection, txn))?;
            Ok(Answer::Outcome(Outcome::Committed(results)))
        }
    }
}

fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce() -> EngineResult<T>,
) -> EngineResult<T> {
    execute(connection, "SAVEPOINT job", [])?;
    match work() {
        Ok(done) => {
            execute(connection, "RELEASE job", [])?;
            Ok(done)
        }
        Err(error) => {
            if !connection.is_autocommit() {
                execute(connection, "ROLLBACK TO job", [])?;
                execute(connection, "RELEASE job", [])?;
            }
            Err(error)
        }
    }
}

/// An answer of the other kind than was asked for.
pub(super) fn mixed_up() -> EngineError {
    refused("the writer answered another request")
}
