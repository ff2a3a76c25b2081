//! Metadata in one local SQLite file, in JuiceFS's own tables (`sqlite3://` volumes).
//!
//! [`Database`] is the file: one per process, shared by the cores. It owns the writing connection, the line
//! of commits and the checkpoint thread. [`Sqlite`] is a core's engine: a reading connection of its own and a
//! share of the database.
//!
//! In reading order: [`connection`] how the file is opened, [`schema`] the tables, [`row`] columns that are
//! checked as they are read, [`record`] what they mean, [`read`] keys, [`scan`] enumerations, [`write`] checks
//! and writes, [`commit`] the combining of commits, [`durable`] flushes and checkpoints.
//!
//! Invariants: reads run inline on the asking core, each call on one snapshot; commits are serialised by
//! the file's lock, against JuiceFS processes too, and never blocked for: a lock held elsewhere is awaited by
//! suspending (SQLite's busy timeout is 0 once open). Nothing is added to the schema that JuiceFS 1.4 would not.
//!
//! Fails with `Busy` when another process kept the lock for [`limits::SQLITE_BUSY_MAX`], `NoSpace` when the
//! disk is full, `Corrupt` for records that the format does not allow, `Refused` for the rest.

mod commit;
mod connection;
mod durable;
mod read;
mod record;
mod row;
mod scan;
mod schema;
mod write;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Counter, Cursor, Engine, EngineResult, Key, Outcome, Page, Record, Scan, Txn};
use crate::error::EngineError;
use crate::limits;
use crate::runtime::Runtime;
use parking_lot::Mutex;

use commit::{Answer, Line, Work, mixed_up, submit};
use connection::{
    Connection, Reader, TableNames, at, open_checkpoints, open_read_only, open_reader, open_writer,
};
use durable::{Checkpointer, LogSync, checkpoint};
use row::{execute, refused};

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Make the file and the tables if they are not there; for `format`.
    Create,
    /// There must be a volume's tables in it.
    Existing,
    /// As `Existing`, and nothing will be written, not even to a directory that could not be.
    ReadOnly,
}

/// An open SQLite file.
pub struct Database {
    path: PathBuf,
    names: TableNames,
    reader: Reader,
    /// The writing connection; used by whoever has the turn.
    writer: Mutex<Connection>,
    line: Arc<Line>,
    /// Absent when read-only.
    log: Option<Log>,
}

/// What a writable database has besides.
struct Log {
    sync: LogSync,
    checkpointer: Checkpointer,
}

impl Database {
    /// Opens the volume in the file at `path`.
    pub fn open(path: &Path, mode: OpenMode) -> EngineResult<Arc<Database>> {
        Database::open_prefixed(path, None, mode)
    }

    /// Opens the volume in the file at `path` whose tables are called `jfs_PREFIX_...`.
    pub fn open_prefixed(
        path: &Path,
        prefix: Option<&str>,
        mode: OpenMode,
    ) -> EngineResult<Arc<Database>> {
        if mode != OpenMode::Create && !path.exists() {
            return Err(at(path, "there is no such file; was the volume formatted?"));
        }
        let names = TableNames::new(prefix)?;
        let (writer, reader) = match mode {
            OpenMode::ReadOnly => open_read_only(path, &names)?,
            OpenMode::Create | OpenMode::Existing => {
                let writer = open_writer(path, &names, mode == OpenMode::Create)?;
                (writer, Reader::Complete)
            }
        };
        writer.never_wait()?;
        let line = Arc::new(Line::default());
        let log = match mode {
            OpenMode::ReadOnly => None,
            OpenMode::Create | OpenMode::Existing => Some(Log::open(path, &names, &line)?),
        };
        let path = path.to_path_buf();
        Ok(Arc::new(Database {
            path,
            names,
            reader,
            writer: Mutex::new(writer),
            line,
            log,
        }))
    }

    /// Whether there is a setting: whether `format` came to its end.
    pub fn is_formatted(&self) -> EngineResult<bool> {
        Ok(read::read(&self.writer.lock(), &Key::Setting)?.is_some())
    }

    fn note_writes(&self, writes: usize) {
        if let Some(log) = &self.log {
            log.checkpointer.note_writes(writes);
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(log) = self.log.take() else { return };
        // The thread first: its connection would keep the log from being truncated.
        drop(log);
        if let Err(error) = checkpoint(self.writer.get_mut(), "TRUNCATE") {
            tracing::debug!(%error, "the metadata log is left for the next opener");
        }
    }
}

impl Log {
    fn open(path: &Path, names: &TableNames, line: &Arc<Line>) -> EngineResult<Log> {
        let checkpoints = open_checkpoints(path, names)?;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let io = |error: std::io::Error| at(path, format!("its log: {error}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&log)
            .map_err(io)?;
        // The log's name may be new; SQLite would flush the directory only with its own first flush.
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))
            .and_then(|it| it.sync_all())
            .map_err(io)?;
        let checkpointer = Checkpointer::start(checkpoints, Arc::clone(line))?;
        Ok(Log {
            sync: LogSync::new(file),
            checkpointer,
        })
    }
}

/// A random pause before attempt number `attempts` + 1 at a lock that another process holds.
fn pause_before(attempts: u32) -> Duration {
    let most = limits::SQLITE_BUSY_PAUSE_MAX.as_micros() as u64;
    Duration::from_micros(fastrand::u64(100..=(200 << attempts.min(10)).min(most)))
}

/// A core's engine over a [`Database`].
pub struct Sqlite {
    // Before the database: a connection must be gone when that ends.
    reader: Connection,
    database: Arc<Database>,
    runtime: Rc<dyn Runtime>,
}

impl Sqlite {
    /// Opens this core's own connection for reading.
    pub fn connect(database: &Arc<Database>, runtime: Rc<dyn Runtime>) -> EngineResult<Sqlite> {
        let reader = open_reader(&database.path, &database.names, database.reader)?;
        Ok(Sqlite {
            reader,
            database: Arc::clone(database),
            runtime,
        })
    }

    /// Runs `work` on the reading connection until no lock of another process (recovery after a crash) is
    /// in the way.
    async fn reading<T>(&self, work: impl Fn(&Connection) -> EngineResult<T>) -> EngineResult<T> {
        let mut since = None;
        let mut attempts = 0;
        loop {
            match work(&self.reader) {
                Err(error @ EngineError::Busy { .. }) => {
                    let since = since.get_or_insert_with(Instant::now);
                    if since.elapsed() > limits::SQLITE_BUSY_MAX {
                        return Err(error);
                    }
                }
                done => return done,
            }
            attempts += 1;
            self.runtime.sleep(pause_before(attempts)).await;
        }
    }

    async fn submit(&self, work: Work) -> EngineResult<Answer> {
        if self.database.log.is_none() {
            return Err(refused("the file was opened for reading only"));
        }
        submit(&self.database, &*self.runtime, work).await
    }
}

/// Answers all keys, of one snapshot.
fn read_all(connection: &Connection, keys: &[Key]) -> EngineResult<Vec<Option<Record>>> {
    if let [key] = keys
        && read::is_one_statement(key)
    {
        return Ok(vec![read::read(connection, key)?]);
    }
    execute(connection, "BEGIN", [])?;
    let records: EngineResult<_> = keys.iter().map(|key| read::read(connection, key)).collect();
    let ended = execute(connection, "ROLLBACK", []);
    let records = records?;
    ended?;
    Ok(records)
}

impl Engine for Sqlite {
    async fn read(&self, keys: &[Key]) -> EngineResult<Vec<Option<Record>>> {
        self.reading(|connection| read_all(connection, keys)).await
    }

    async fn scan(&self, scan: &Scan, cursor: Option<&Cursor>, limit: usize) -> EngineResult<Page> {
        self.reading(|connection| scan::scan(connection, scan, cursor, limit))
            .await
    }

    async fn commit(&self, txn: Txn) -> EngineResult<Outcome> {
        match self.submit(Work::Commit(txn)).await? {
            Answer::Outcome(outcome) => Ok(outcome),
            Answer::First(_) | Answer::Destroyed => Err(mixed_up()),
        }
    }

    async fn alloc(&self, counter: Counter, count: i64) -> EngineResult<u64> {
        match self.submit(Work::Alloc(counter, count)).await? {
            Answer::First(first) => Ok(first),
            Answer::Outcome(_) | Answer::Destroyed => Err(mixed_up()),
        }
    }

    async fn sync(&self) -> EngineResult<()> {
        match &self.database.log {
            Some(log) => log.sync.sync(&*self.runtime).await,
            None => Ok(()),
        }
    }

    async fn is_empty(&self) -> EngineResult<bool> {
        self.reading(schema::is_empty).await
    }

    async fn destroy(&self) -> EngineResult<()> {
        match self.submit(Work::Destroy).await? {
            Answer::Destroyed => Ok(()),
            Answer::Outcome(_) | Answer::First(_) => Err(mixed_up()),
        }
    }
}
