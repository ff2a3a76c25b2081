//! Connections to the file: how they are opened and set up, and the names of the tables they speak of.
//!
//! Called by [`super::Database`] for the writer, its checkpoints and the readers of the cores. Statements are
//! written with the names of a volume without prefix and kept prepared by their text; a volume with a
//! prefix has its names put in as a statement is asked for.
//!
//! Fails with `Refused` where a person has to act on the file, saying which one.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{CachedStatement, OpenFlags};

use super::row::{fault, refused};
use super::schema;
use crate::engine::EngineResult;
use crate::error::EngineError;

/// How long opening may wait for locks of other processes. It happens once, before any core runs.
const OPEN_BUSY: Duration = Duration::from_secs(5);
/// Statements kept prepared per connection: all there are, with room for combinations of columns.
const STATEMENTS: usize = 256;
/// What the names of tables begin with, in statements and in a volume without prefix.
const TABLES: &str = "jfs_";

/// What the names of a volume's tables begin with: `jfs_`, or `jfs_PREFIX_`.
#[derive(Clone, Default)]
pub(super) struct TableNames(Option<Arc<str>>);

impl TableNames {
    /// Names with `prefix`, letters, digits and `_` only: they are not quoted in statements.
    pub(super) fn new(prefix: Option<&str>) -> EngineResult<TableNames> {
        let Some(prefix) = prefix else {
            return Ok(TableNames(None));
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if prefix.is_empty() || !prefix.bytes().all(plain) {
            return Err(refused(format!(
                "table prefix `{prefix}` cannot be used: write letters, digits and _ only"
            )));
        }
        Ok(TableNames(Some(format!("{TABLES}{prefix}_").into())))
    }

    /// `sql` with the names of this volume's tables and indexes. No other word begins as they do.
    pub(super) fn spell<'a>(&self, sql: &'a str) -> Cow<'a, str> {
        match &self.0 {
            None => Cow::Borrowed(sql),
            Some(begin) => Cow::Owned(sql.replace(TABLES, begin)),
        }
    }
}

/// A connection that knows how its volume's tables are called.
pub(super) struct Connection {
    raw: rusqlite::Connection,
    names: TableNames,
}

impl Connection {
    /// The statement, prepared.
    pub(super) fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.raw.prepare_cached(&self.names.spell(sql))
    }

    /// Runs statements that answer nothing and are not worth keeping.
    pub(super) fn batch(&self, sql: &str) -> EngineResult<()> {
        let sql = self.names.spell(sql);
        self.raw.execute_batch(&sql).map_err(fault)
    }

    /// How its volume's tables are called.
    pub(super) fn names(&self) -> &TableNames {
        &self.names
    }

    /// Whether no transaction is open.
    pub(super) fn is_autocommit(&self) -> bool {
        self.raw.is_autocommit()
    }

    /// From here on a lock of another process is an answer, not something to wait for.
    pub(super) fn never_wait(&self) -> EngineResult<()> {
        self.raw.busy_timeout(Duration::ZERO).map_err(fault)
    }

    /// Reads the file's header, which opening alone does not.
    fn probe(&self) -> rusqlite::Result<()> {
        self.raw
            .query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0))
            .map(drop)
    }
}

/// How connections for reading are opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reader {
    /// Of a file that is being written: its tables are complete.
    Complete,
    /// Of a file that nothing is written to: what its tables lack is supplied by each connection.
    Shared,
    /// As `Shared`, without locks or shared memory, because that cannot be created here.
    Immutable,
}

/// An error that a person has to do something about.
pub(super) fn at(path: &Path, cause: impl std::fmt::Display) -> EngineError {
    refused(format!("{}: {cause}", path.display()))
}

fn connect(path: &Path, names: &TableNames, flags: OpenFlags) -> EngineResult<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let raw =
        rusqlite::Connection::open_with_flags(path, flags).map_err(|error| at(path, error))?;
    raw.busy_timeout(OPEN_BUSY).map_err(fault)?;
    raw.set_prepared_statement_cache_capacity(STATEMENTS);
    let names = names.clone();
    Ok(Connection { raw, names })
}

/// A connection that writes. Tables are made if `create`; what those of an older release lack is added.
pub(super) fn open_writer(
    path: &Path,
    names: &TableNames,
    create: bool,
) -> EngineResult<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    if create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let connection = connect(path, names, flags)?;
    connection.probe().map_err(|error| at(path, error))?;
    if !create {
        // Before anything is changed in a file that may be somebody else's.
        check_volume(&connection, path)?;
    }
    let mode: String = connection
        .raw
        .query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))
        .map_err(|error| at(path, error))?;
    if mode != "wal" {
        return Err(at(
            path,
            format!("its journal mode is {mode} and cannot be changed to wal"),
        ));
    }
    tune(&connection)?;
    schema::complete(&connection)?;
    Ok(connection)
}

/// A connection for checkpoints.
pub(super) fn open_checkpoints(path: &Path, names: &TableNames) -> EngineResult<Connection> {
    let connection = connect(path, names, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    tune(&connection)?;
    Ok(connection)
}

fn check_volume(connection: &Connection, path: &Path) -> EngineResult<()> {
    if schema::is_volume(connection)? {
        return Ok(());
    }
    let table = connection.names.spell("jfs_setting");
    let cause = format!("it is a SQLite file but holds no such volume: there is no table {table}");
    Err(at(path, cause))
}

/// Settings of connections that write.
fn tune(connection: &Connection) -> EngineResult<()> {
    connection.batch("PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0;")
}

/// A connection to a file that nothing is written to, without shared memory where that cannot be had, and
/// how further ones are opened.
pub(super) fn open_read_only(
    path: &Path,
    names: &TableNames,
) -> EngineResult<(Connection, Reader)> {
    let shared = connect(path, names, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    match shared.probe() {
        Ok(()) => {
            check_volume(&shared, path)?;
            schema::supply(&shared)?;
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
    let immutable = connect_immutable(path, names)?;
    immutable.probe().map_err(|error| at(path, error))?;
    check_volume(&immutable, path)?;
    schema::supply(&immutable)?;
    Ok((immutable, Reader::Immutable))
}

/// A core's connection for reading.
pub(super) fn open_reader(
    path: &Path,
    names: &TableNames,
    reader: Reader,
) -> EngineResult<Connection> {
    let connection = match reader {
        Reader::Complete | Reader::Shared => {
            connect(path, names, OpenFlags::SQLITE_OPEN_READ_ONLY)?
        }
        Reader::Immutable => connect_immutable(path, names)?,
    };
    if reader != Reader::Complete {
        schema::supply(&connection)?;
    }
    connection.never_wait()?;
    Ok(connection)
}

fn connect_immutable(path: &Path, names: &TableNames) -> EngineResult<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    connect(Path::new(&immutable_uri(path)), names, flags)
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
