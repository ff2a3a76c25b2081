//! The tables of a volume in SQLite: how they are created, what older ones lack, and how they are removed.
//!
//! `schema.sql` is, byte for byte, what JuiceFS leaves in `sqlite_master`. JuiceFS compares columns and
//! drops indexes that it does not know, so nothing else may be added there. A file that an older release made
//! may lack tables, columns and indexes: a connection that writes adds them, as JuiceFS 1.4 does at its next
//! mount; one that does not write supplies them for itself, in its temporary schema.
//!
//! Called when connections are opened, and for the verbs `is_empty` and `destroy`. Fails with `Refused`
//! where a table is not of any release.

use super::connection::Connection;
use super::row::{Row, execute, query_all, refused};
use crate::engine::EngineResult;

/// One statement a line.
pub(super) const STATEMENTS: &str = include_str!("schema.sql");

/// Sessions of releases before 1.0: never made, but removed with the rest.
const OLD_SESSIONS: &str = "jfs_session";

/// A table as `schema.sql` has it.
struct Table {
    name: &'static str,
    /// Text that creates it.
    statement: &'static str,
    columns: Vec<Column>,
}

struct Column {
    name: &'static str,
    /// Name, type and what else is said of it.
    definition: &'static str,
}

impl Column {
    /// Whether a table may get it later: old rows have a value for it.
    fn is_late(&self) -> bool {
        !self.definition.contains("NOT NULL") || self.definition.contains(" DEFAULT ")
    }
}

fn tables() -> impl Iterator<Item = Table> {
    let statements = STATEMENTS.lines();
    statements
        .filter(|line| line.starts_with("CREATE TABLE"))
        .map(|statement| {
            let (head, body) = statement.split_once(" (").unwrap_or((statement, ""));
            let quoted = |text: &'static str| text.split('`').nth(1).unwrap_or_default();
            let columns = body.trim_end_matches(");").split(", ");
            let columns = columns.filter(|part| part.starts_with('`'));
            Table {
                name: quoted(head),
                statement,
                columns: columns
                    .map(|definition| Column {
                        name: quoted(definition),
                        definition,
                    })
                    .collect(),
            }
        })
}

/// What a file lacks, as statements that add it.
fn lacking(connection: &Connection) -> EngineResult<Vec<String>> {
    let mut missing = Vec::new();
    for table in tables() {
        let present = columns_of(connection, table.name)?;
        if present.is_empty() {
            missing.push(table.statement.to_owned());
            continue;
        }
        for column in absent(&table, &present)? {
            missing.push(format!(
                "ALTER TABLE `{}` ADD {};",
                table.name, column.definition
            ));
        }
    }
    let sql = "SELECT name FROM main.sqlite_master WHERE type='index'";
    let indexes = names(connection, sql, [])?;
    for statement in STATEMENTS.lines().filter(|line| line.contains(" INDEX ")) {
        let index = statement.split('`').nth(1).unwrap_or_default();
        let index = connection.names().spell(index);
        if !indexes.iter().any(|known| *known == index) {
            missing.push(statement.to_owned());
        }
    }
    Ok(missing)
}

/// The columns that a table lacks. Refuses one that no release made.
fn absent<'a>(table: &'a Table, present: &[String]) -> EngineResult<Vec<&'a Column>> {
    let columns = table.columns.iter();
    let absent: Vec<_> = columns
        .filter(|column| !present.iter().any(|known| known == column.name))
        .collect();
    match absent.iter().find(|column| !column.is_late()) {
        Some(column) => Err(refused(format!(
            "column {} of table {} is missing, which every release of JuiceFS has: the file is damaged \
             or not a volume's; restore it from a backup or a dump",
            column.name, table.name
        ))),
        None => Ok(absent),
    }
}

/// Adds what is missing of tables, columns and indexes.
pub(super) fn complete(connection: &Connection) -> EngineResult<()> {
    if lacking(connection)?.is_empty() {
        return Ok(());
    }
    execute(connection, "BEGIN IMMEDIATE", [])?;
    // Again: another process may have been faster.
    let done = lacking(connection).and_then(|statements| {
        let mut statements = statements.iter();
        statements.try_for_each(|statement| connection.batch(statement))
    });
    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = execute(connection, end, []);
    done.and(ended.map(drop))
}

/// Puts what is missing of tables and columns before this connection's eyes, without touching the file: an
/// empty table, or a view in which a missing column is NULL.
pub(super) fn supply(connection: &Connection) -> EngineResult<()> {
    connection.batch("PRAGMA temp_store=MEMORY")?;
    for table in tables() {
        let present = columns_of(connection, table.name)?;
        if present.is_empty() {
            connection.batch(&table.statement.replacen("TABLE", "TEMP TABLE", 1))?;
            continue;
        }
        let absent = absent(&table, &present)?;
        if absent.is_empty() {
            continue;
        }
        let name = table.name;
        let mut columns = String::from("*");
        for column in absent {
            columns.push_str(", NULL AS ");
            columns.push_str(column.name);
        }
        connection.batch(&format!(
            "CREATE TEMP VIEW {name} AS SELECT {columns} FROM main.{name}"
        ))?;
    }
    Ok(())
}

/// Whether the file holds this volume at all: has its table of settings.
pub(super) fn is_volume(connection: &Connection) -> EngineResult<bool> {
    Ok(!columns_of(connection, "jfs_setting")?.is_empty())
}

/// Whether the file has no row, and no table but this volume's: JuiceFS loads a volume into no other.
pub(super) fn is_empty(connection: &Connection) -> EngineResult<bool> {
    let sql = "SELECT name FROM main.sqlite_master WHERE type='table' AND name NOT GLOB 'sqlite_*'";
    for found in names(connection, sql, [])? {
        let ours = tables().find(|table| connection.names().spell(table.name) == found);
        let Some(Table { name, .. }) = ours else {
            return Ok(false);
        };
        let row = format!("SELECT 1 FROM main.{name} LIMIT 1");
        if !query_all(connection, &row, [], (name, &"rows"), |_| Ok(()))?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes this volume's tables and nothing else. To be called in a transaction.
pub(super) fn remove(connection: &Connection) -> EngineResult<()> {
    let names = tables().map(|table| table.name).chain([OLD_SESSIONS]);
    names
        .map(|name| format!("DROP TABLE IF EXISTS {name}"))
        .try_for_each(|sql| connection.batch(&sql))
}

fn columns_of(connection: &Connection, table: &str) -> EngineResult<Vec<String>> {
    let table = connection.names().spell(table);
    let sql = "SELECT name FROM pragma_table_info(?1, 'main')";
    names(connection, sql, [&*table])
}

fn names(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> EngineResult<Vec<String>> {
    let name = |row: &Row<'_>| {
        let name = row.bytes(0)?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    };
    query_all(connection, sql, params, ("sqlite_master", &"names"), name)
}
