//! Everything a command could have changed, as one comparable value: the judge of "changes nothing".

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags};

use crate::harness::Volume;
use crate::manifest::sha256;

/// Metadata, objects and mounts at one moment.
#[derive(PartialEq, Eq, Debug)]
pub struct Snapshot {
    metadata: Vec<String>,
    objects: BTreeMap<PathBuf, String>,
    mounts: usize,
}

impl Snapshot {
    /// The state of a volume, and of the mount table below its scratch directory.
    pub fn take(volume: &Volume) -> Result<Snapshot> {
        let metadata = match &volume.redis {
            Some(server) => vec![server.digest()?],
            None => dump_sqlite(&volume.sqlite_path()?)?,
        };
        let mut objects = BTreeMap::new();
        list_objects(&volume.bucket, &mut objects)?;
        let here = volume
            .scratch
            .root()
            .as_os_str()
            .as_encoded_bytes()
            .to_vec();
        let mounts = std::fs::read("/proc/self/mountinfo")?;
        let mounts = mounts
            .windows(here.len())
            .filter(|window| *window == here)
            .count();
        Ok(Snapshot {
            metadata,
            objects,
            mounts,
        })
    }
}

/// Every row of every table; nothing when there is no file.
fn dump_sqlite(path: &Path) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut tables = database.prepare("SELECT name, sql FROM sqlite_master ORDER BY name")?;
    let tables: Vec<(String, Option<String>)> = tables
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()
        .context("listing tables")?;
    let mut dump = Vec::new();
    for (name, sql) in &tables {
        dump.push(format!("{name}: {sql:?}"));
        if !sql
            .as_deref()
            .is_some_and(|sql| sql.starts_with("CREATE TABLE"))
        {
            continue;
        }
        let mut statement = database.prepare(&format!("SELECT * FROM `{name}`"))?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values: rusqlite::Result<Vec<_>> = (0..columns)
                .map(|column| row.get::<_, rusqlite::types::Value>(column))
                .collect();
            dump.push(format!("{name}: {:?}", values?));
        }
    }
    Ok(dump)
}

fn list_objects(dir: &Path, objects: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            objects.insert(entry.path(), "directory".into());
            list_objects(&entry.path(), objects)?;
        } else {
            objects.insert(entry.path(), sha256(&entry.path())?);
        }
    }
    Ok(())
}
