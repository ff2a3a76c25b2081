//! The tables of a volume in SQLite: how they are created, and whether those of a file are complete.
//!
//! `schema.sql` is, byte for byte, what JuiceFS leaves in `sqlite_master`. JuiceFS compares columns and
//! drops indexes that it does not know, so nothing may be added there. Called by [`super::Database`] only,
//! at open. Fails with `Refused` where a person has to act on the file.

use rusqlite::Connection;

use super::row::{Row, execute, fault, query_all, refused};
use crate::engine::EngineResult;

/// One statement a line.
pub(super) const STATEMENTS: &str = include_str!("schema.sql");

/// Creates what is missing of tables and indexes.
pub(super) fn create(connection: &Connection) -> EngineResult<()> {
    execute(connection, "BEGIN IMMEDIATE", [])?;
    let created = STATEMENTS.lines().try_for_each(|statement| {
        let statement = statement.replacen(" `", " IF NOT EXISTS `", 1);
        connection.execute_batch(&statement).map_err(fault)
    });
    let ended = execute(
        connection,
        if created.is_ok() {
            "COMMIT"
        } else {
            "ROLLBACK"
        },
        [],
    );
    created.and(ended.map(drop))
}

/// Whether the file holds a volume at all: has the table of settings.
pub(super) fn is_volume(connection: &Connection) -> EngineResult<bool> {
    Ok(!columns_of(connection, "jfs_setting")?.is_empty())
}

/// Refuses a file whose tables miss something that this format version has.
pub(super) fn check(connection: &Connection) -> EngineResult<()> {
    let tables = STATEMENTS
        .lines()
        .filter(|line| line.starts_with("CREATE TABLE"));
    for statement in tables {
        let mut names = statement.split('`').skip(1).step_by(2);
        let table = names.next().unwrap_or_default();
        let present = columns_of(connection, table)?;
        if present.is_empty() {
            return Err(incomplete(&format!("table {table}")));
        }
        if let Some(missing) = names.find(|name| !present.iter().any(|column| column == name)) {
            return Err(incomplete(&format!("column {missing} of table {table}")));
        }
    }
    Ok(())
}

fn incomplete(what: &str) -> crate::error::EngineError {
    refused(format!(
        "the volume was written by an older JuiceFS: {what} is missing; run one read-write mount or \
         one `config` of JuiceFS 1.4 on it, which adds it"
    ))
}

fn columns_of(connection: &Connection, table: &str) -> EngineResult<Vec<String>> {
    let name = |row: &Row<'_>| {
        let name = row.bytes(0)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    };
    query_all(
        connection,
        "SELECT name FROM pragma_table_info(?1)",
        [table],
        (table, &"columns"),
        name,
    )
}
