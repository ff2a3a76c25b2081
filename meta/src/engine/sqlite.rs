//! Metadata in one local SQLite file, in JuiceFS's own tables (`sqlite3://` volumes).
//!
//! [`Database`] is the file: one per process, shared by the cores. It owns the writing connection, the line
//! of commits and the checkpoint thread. [`Sqlite`] is a core's engine: a reading connection of its own and a
//! share of the database.
//!
//! In reading order: [`schema`] the tables, [`row`] columns that are checked as they are read, [`record`] what
//! they mean, [`read`] keys and enumerations, [`write`] checks and writes, [`commit`] the combining of commits,
//! [`durable`] flushes and checkpoints.
//!
//! Invariants: reads run inline on the asking core, each call on one snapshot; commits are serialised by
//! the file's lock, against JuiceFS processes too, and never blocked for: a lock held elsewhere is awaited by
//! suspending (SQLite's busy timeout is 0 once open). Nothing is ever added to the schema.
//!
//! Fails with `Busy` when another process kept the lock for [`limits::SQLITE_BUSY_MAX`], `NoSpace` when the
//! disk is full, `Corrupt` for records that the format does not allow, `Refused` for the rest.

mod commit;
mod durable;
mod read;
mod record;
mod row;
mod schema;
mod write;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};

use crate::engine::{Counter, Cursor, Engine, EngineResult, Key, Outcome, Page, Record, Scan, Txn};
use crate::error::EngineError;
use crate::limits;
use crate::runtime::Runtime;

use commit::{Answer, Line, Work, mixed_up, submit};
use durable::{Checkpointer, LogSync, checkpoint};
use row::{execute, fault, refused};

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

/// How long opening may wait for locks of other processes. It happens once, before any core runs.
const OPEN_BUSY: Duration = Duration::from_secs(5);
/// Statements kept prepared per connection: all there are, with room for combinations of columns.
const STATEMENTS: usize = 256;

/// An open SQLite file.
pub struct Database {
    path: PathBuf,
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

/// How connections for reading are opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reader {
    /// As usual.
    Shared,
    /// Without locks or shared memory, because that cannot be created here.
    Immutable,
}

impl Database {
    /// Opens the file at `path`.
    pub fn open(path: &Path, mode: OpenMode) -> EngineResult<Arc<Database>> {
        if mode != OpenMode::Create && !path.exists() {
            return Err(at(path, "there is no such file; was the volume formatted?"));
        }
        let (writer, reader) = match mode {
            OpenMode::ReadOnly => open_read_only(path)?,
            OpenMode::Create | OpenMode::Existing => {
                (open_writer(path, mode == OpenMode::Create)?, Reader::Shared)
            }
        };
        schema::check(&writer)?;
        writer.busy_timeout(Duration::ZERO).map_err(fault)?;
        let line = Arc::new(Line::default());
        let log = match mode {
            OpenMode::ReadOnly => None,
            OpenMode::Create | OpenMode::Existing => Some(Log::open(path, &line)?),
        };
        let path = path.to_path_buf();
        Ok(Arc::new(Database {
            path,
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
    fn open(path: &Path, line: &Arc<Line>) -> EngineResult<Log> {
        let checkpoints = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        tune(&checkpoints)?;
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

/// An error that a person has to do something about.
fn at(path: &Path, cause: impl std::fmt::Display) -> EngineError {
    refused(format!("{}: {cause}", path.display()))
}

fn connect(path: &Path, flags: OpenFlags) -> EngineResult<Connection> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|error| at(path, error))?;
    connection.busy_timeout(OPEN_BUSY).map_err(fault)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

fn open_writer(path: &Path, create: bool) -> EngineResult<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let connection = connect(path, flags)?;
    probe(&connection).map_err(|error| at(path, error))?;
    if !create {
        // Before anything is changed in a file that may be somebody else's.
        check_volume(&connection, path)?;
    }
    let mode: String = connection
        .query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))
        .map_err(|error| at(path, error))?;
    if mode != "wal" {
        return Err(at(
            path,
            format!("its journal mode is {mode} and cannot be changed to wal"),
        ));
    }
    tune(&connection)?;
    if create {
        schema::create(&connection)?;
    }
    Ok(connection)
}

fn check_volume(connection: &Connection, path: &Path) -> EngineResult<()> {
    if schema::is_volume(connection)? {
        return Ok(());
    }
    Err(at(
        path,
        "it is a SQLite file but holds no volume: there is no table jfs_setting",
    ))
}

/// Settings of connections that write.
fn tune(connection: &Connection) -> EngineResult<()> {
    connection
        .execute_batch("PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;")
        .map_err(fault)
}

/// A reading connection, without shared memory where that cannot be had.
fn open_read_only(path: &Path) -> EngineResult<(Connection, Reader)> {
    let shared = connect_reader(path, Reader::Shared)?;
    match probe(&shared) {
        Ok(()) => {
            check_volume(&shared, path)?;
            return Ok((shared, Reader::Shared));
        }
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::CannotOpen) => {}
        Err(error) => return Err(at(path, error)),
    }
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        let cause = "its log holds changes, and reading them needs a writable directory";
        return Err(at(path, cause));
    }
    let immutable = connect_reader(path, Reader::Immutable)?;
    probe(&immutable).map_err(|error| at(path, error))?;
    check_volume(&immutable, path)?;
    Ok((immutable, Reader::Immutable))
}

/// Reads the file's header, which opening alone does not.
fn probe(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0))
        .map(drop)
}

fn connect_reader(path: &Path, reader: Reader) -> EngineResult<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    match reader {
        Reader::Shared => connect(path, flags),
        Reader::Immutable => {
            let uri = immutable_uri(path);
            connect(Path::new(&uri), flags | OpenFlags::SQLITE_OPEN_URI)
        }
    }
}

/// `file:` address of `path` with the characters escaped that mean something there.
fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            // Writing to a string does not fail.
            _ => _ = write!(uri, "%{byte:02X}"),
        }
    }
    uri.push_str("?immutable=1");
    uri
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
        let reader = connect_reader(&database.path, database.reader)?;
        reader.busy_timeout(Duration::ZERO).map_err(fault)?;
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
    if let [key] = keys {
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
        self.reading(|connection| read::scan(connection, scan, cursor, limit))
            .await
    }

    async fn commit(&self, txn: Txn) -> EngineResult<Outcome> {
        match self.submit(Work::Commit(txn)).await? {
            Answer::Outcome(outcome) => Ok(outcome),
            Answer::First(_) => Err(mixed_up()),
        }
    }

    async fn alloc(&self, counter: Counter, count: i64) -> EngineResult<u64> {
        match self.submit(Work::Alloc(counter, count)).await? {
            Answer::First(first) => Ok(first),
            Answer::Outcome(_) => Err(mixed_up()),
        }
    }

    async fn sync(&self) -> EngineResult<()> {
        match &self.database.log {
            Some(log) => log.sync.sync(&*self.runtime).await,
            None => Ok(()),
        }
    }
}
