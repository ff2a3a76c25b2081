//! Statements and rows: SQLite's errors in this crate's words, and columns that are checked as they are
//! read.
//!
//! Nothing found in the file is trusted: a column of another type, a number out of range or a damaged blob
//! is [`EngineError::Corrupt`], naming table and key. NULL is 0 or empty where the schema allows NULL.

use std::fmt::Display;

use bytes::Bytes;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{ErrorCode, Params};

use super::connection::Connection;
use crate::engine::EngineResult;
use crate::error::EngineError;

/// Name of this engine in errors.
pub(super) const ENGINE: &str = "sqlite";

/// Table and key of the record being read, for errors.
pub(super) type Place<'a> = (&'a str, &'a dyn Display);

/// Bytes to be stored as TEXT, valid UTF-8 or not.
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// A failure of SQLite as a fault of the engine.
pub(super) fn fault(error: rusqlite::Error) -> EngineError {
    let cause = error.to_string();
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed,
        ) => EngineError::Busy {
            engine: ENGINE,
            cause,
        },
        Some(ErrorCode::DiskFull) => EngineError::NoSpace {
            engine: ENGINE,
            cause,
        },
        Some(ErrorCode::DatabaseCorrupt) => EngineError::Corrupt {
            record: "the SQLite file".into(),
            cause,
        },
        _ => refused(cause),
    }
}

/// An error of the request or the file that trying again does not heal.
pub(super) fn refused(cause: impl Into<String>) -> EngineError {
    EngineError::Refused {
        engine: ENGINE,
        cause: cause.into(),
    }
}

/// Runs a statement that answers no rows: how many rows it changed.
pub(super) fn execute(
    connection: &Connection,
    sql: &str,
    params: impl Params,
) -> EngineResult<usize> {
    connection
        .prepare(sql)
        .and_then(|mut it| it.execute(params))
        .map_err(fault)
}

/// The first row a statement answers, if any.
pub(super) fn query_one<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    place: Place<'_>,
    decode: impl FnOnce(&Row<'_>) -> EngineResult<T>,
) -> EngineResult<Option<T>> {
    let mut statement = connection.prepare(sql).map_err(fault)?;
    let mut rows = statement.query(params).map_err(fault)?;
    let row = rows.next().map_err(fault)?;
    row.map(|row| decode(&Row { row, place })).transpose()
}

/// All rows a statement answers.
pub(super) fn query_all<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    place: Place<'_>,
    mut decode: impl FnMut(&Row<'_>) -> EngineResult<T>,
) -> EngineResult<Vec<T>> {
    let mut statement = connection.prepare(sql).map_err(fault)?;
    let mut rows = statement.query(params).map_err(fault)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next().map_err(fault)? {
        all.push(decode(&Row { row, place })?);
    }
    Ok(all)
}

/// A row being read.
pub(super) struct Row<'a> {
    row: &'a rusqlite::Row<'a>,
    place: Place<'a>,
}

impl Row<'_> {
    /// "This record is damaged".
    pub(super) fn corrupt(&self, cause: impl Into<String>) -> EngineError {
        let (table, key) = self.place;
        EngineError::Corrupt {
            record: format!("{table} {key}"),
            cause: cause.into(),
        }
    }

    /// A column that may hold a number or NULL.
    pub(super) fn optional<T: TryFrom<i64>>(&self, column: usize) -> EngineResult<Option<T>> {
        match self.row.get_ref(column).map_err(fault)? {
            ValueRef::Null => Ok(None),
            ValueRef::Integer(number) => match T::try_from(number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => {
                    Err(self.corrupt(format!("{} is {number}: out of range", self.name(column))))
                }
            },
            other => {
                let found = other.data_type();
                Err(self.corrupt(format!("{} is {found}, not a number", self.name(column))))
            }
        }
    }

    /// A column that holds a number.
    pub(super) fn number<T: TryFrom<i64>>(&self, column: usize) -> EngineResult<T> {
        let number = self.optional(column)?;
        number.ok_or_else(|| self.corrupt(format!("{} is NULL", self.name(column))))
    }

    /// A number in a column that older releases left NULL: then 0.
    pub(super) fn number_or_zero<T: TryFrom<i64> + Default>(
        &self,
        column: usize,
    ) -> EngineResult<T> {
        Ok(self.optional(column)?.unwrap_or_default())
    }

    /// Bytes, whether they are stored as BLOB or as TEXT (a list that JuiceFS appended to); NULL is empty.
    pub(super) fn raw(&self, column: usize) -> EngineResult<&[u8]> {
        match self.row.get_ref(column).map_err(fault)? {
            ValueRef::Null => Ok(&[]),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(bytes),
            other => {
                let found = other.data_type();
                Err(self.corrupt(format!("{} is {found}, not bytes", self.name(column))))
            }
        }
    }

    /// As [`Row::raw`], owned.
    pub(super) fn bytes(&self, column: usize) -> EngineResult<Bytes> {
        self.raw(column).map(Bytes::copy_from_slice)
    }

    fn name(&self, column: usize) -> &str {
        self.row.as_ref().column_name(column).unwrap_or("column")
    }
}
