//! Reading: what every [`Key`] and [`Scan`] means on JuiceFS's tables.
//!
//! Called with a core's read connection, and by commits with the writer's to evaluate checks. Point reads
//! are by primary key or by one of JuiceFS's own indexes. Cursors are the last key of a page, so a scan
//! survives any change between its pages.

use rusqlite::Connection;

use super::record::{self, counter_row, node_columns};
use super::row::{Place, Row, Text, query_all, query_one, refused};
use crate::engine::{Counter, Cursor, EngineResult, Item, Key, Page, Record, Scan};
use crate::types::{Attr, ChunkIndex, Dentry, DirStat, Ino, Name, SessionId, Slice};

/// Answers one key.
pub(super) fn read(connection: &Connection, key: &Key) -> EngineResult<Option<Record>> {
    match key {
        Key::Attr(ino) => Ok(attr(connection, *ino)?.map(Record::Attr)),
        Key::Dentry { parent, name } => Ok(dentry(connection, *parent, name)?.map(Record::Dentry)),
        Key::Entry { parent, name } => entry(connection, *parent, name),
        Key::Chunk { ino, index } => Ok(chunk(connection, *ino, *index)?
            .filter(|list| !list.is_empty())
            .map(Record::Slices)),
        Key::Symlink(ino) => {
            let sql = "SELECT target FROM jfs_symlink WHERE inode=?1";
            let target = |row: &Row<'_>| row.bytes(0).map(Record::Bytes);
            query_one(connection, sql, [id(*ino)], ("jfs_symlink", ino), target)
        }
        Key::Xattr { ino, name } => {
            let sql = "SELECT value FROM jfs_xattr WHERE inode=?1 AND name=?2";
            let value = |row: &Row<'_>| row.bytes(0).map(Record::Bytes);
            query_one(
                connection,
                sql,
                (id(*ino), Text(name)),
                ("jfs_xattr", ino),
                value,
            )
        }
        Key::XattrNames(ino) => {
            let sql = "SELECT name FROM jfs_xattr WHERE inode=?1 ORDER BY name";
            let names = query_all(connection, sql, [id(*ino)], ("jfs_xattr", ino), |row| {
                row.bytes(0)
            })?;
            Ok(some_of(names).map(Record::Names))
        }
        Key::Parents(ino) => {
            let sql = "SELECT parent, count(*) FROM jfs_edge WHERE inode=?1 \
                       GROUP BY parent ORDER BY parent";
            let parents = query_all(connection, sql, [id(*ino)], ("jfs_edge", ino), |row| {
                Ok((Ino(row.number(0)?), row.number(1)?))
            })?;
            Ok(some_of(parents).map(Record::Parents))
        }
        Key::Counter(of) => Ok(Some(Record::Count(counter(connection, *of)?))),
        Key::Setting => {
            let sql = "SELECT value FROM jfs_setting WHERE name='format'";
            let text = |row: &Row<'_>| row.bytes(0).map(Record::Bytes);
            query_one(connection, sql, [], ("jfs_setting", &"format"), text)
        }
        Key::SliceRefs { .. }
        | Key::DirStat(_)
        | Key::DirQuota(_)
        | Key::Sustained(_)
        | Key::Acl(_) => read_usage(connection, key),
    }
}

fn read_usage(connection: &Connection, key: &Key) -> EngineResult<Option<Record>> {
    match key {
        Key::SliceRefs { id, size } => {
            let sql = "SELECT refs FROM jfs_chunk_ref WHERE chunkid=?1 AND size=?2";
            let refs = |row: &Row<'_>| row.number(0).map(Record::Count);
            let params = (id.0.cast_signed(), size);
            query_one(connection, sql, params, ("jfs_chunk_ref", &id.0), refs)
        }
        Key::DirStat(ino) => {
            let sql =
                "SELECT data_length, used_space, used_inodes FROM jfs_dir_stats WHERE inode=?1";
            let stat = |row: &Row<'_>| {
                Ok(Record::DirStat(DirStat {
                    length: row.number(0)?,
                    space: row.number(1)?,
                    inodes: row.number(2)?,
                }))
            };
            query_one(connection, sql, [id(*ino)], ("jfs_dir_stats", ino), stat)
        }
        Key::DirQuota(ino) => {
            let sql = "SELECT max_space, max_inodes, used_space, used_inodes FROM jfs_dir_quota \
                       WHERE inode=?1";
            let quota = |row: &Row<'_>| record::quota(row, 0).map(Record::Quota);
            query_one(connection, sql, [id(*ino)], ("jfs_dir_quota", ino), quota)
        }
        Key::Sustained(sid) => {
            let sql = "SELECT inode FROM jfs_sustained WHERE sid=?1 ORDER BY inode";
            let place: Place<'_> = ("jfs_sustained", &sid.0);
            let inodes = query_all(connection, sql, [sid.0.cast_signed()], place, |row| {
                Ok(Ino(row.number(0)?))
            })?;
            Ok(some_of(inodes).map(Record::Inodes))
        }
        Key::Acl(id) => {
            let sql = "SELECT owner, `group`, mask, other, named_users, named_groups FROM jfs_acl \
                       WHERE id=?1";
            let rule = |row: &Row<'_>| record::acl(row).map(Record::Acl);
            query_one(connection, sql, [id], ("jfs_acl", id), rule)
        }
        _ => Err(refused(format!("{key:?} is read elsewhere"))),
    }
}

fn some_of<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// An inode as a column has it. Numbers beyond 63 bits, which no volume has, become negative and match
/// nothing.
pub(super) fn id(ino: Ino) -> i64 {
    ino.0.cast_signed()
}

/// Attributes of an inode.
pub(super) fn attr(connection: &Connection, ino: Ino) -> EngineResult<Option<Attr>> {
    let sql = concat!(
        "SELECT ",
        node_columns!(""),
        " FROM jfs_node WHERE inode=?1"
    );
    query_one(connection, sql, [id(ino)], ("jfs_node", &ino), |row| {
        record::attr(row, 0)
    })
}

/// An entry. Names are bound as BLOB: as TEXT they would never be equal to what is stored.
pub(super) fn dentry(
    connection: &Connection,
    parent: Ino,
    name: &Name,
) -> EngineResult<Option<Dentry>> {
    let sql = "SELECT type, inode FROM jfs_edge WHERE parent=?1 AND name=?2";
    let params = (id(parent), &name[..]);
    query_one(connection, sql, params, ("jfs_edge", &parent), |row| {
        record::dentry(row, 0)
    })
}

fn entry(connection: &Connection, parent: Ino, name: &Name) -> EngineResult<Option<Record>> {
    let sql = concat!(
        "SELECT e.type, e.inode, n.inode, ",
        node_columns!("n."),
        " FROM jfs_edge e LEFT JOIN jfs_node n ON n.inode=e.inode WHERE e.parent=?1 AND e.name=?2"
    );
    let params = (id(parent), &name[..]);
    query_one(
        connection,
        sql,
        params,
        ("jfs_edge and jfs_node below", &parent),
        |row| {
            let (dentry, attr) = joined(row, 0)?;
            Ok(Record::Entry(dentry, attr))
        },
    )
}

/// An entry's type and inode, then the node's inode (NULL when the entry dangles) and columns.
fn joined(row: &Row<'_>, first: usize) -> EngineResult<(Dentry, Option<Attr>)> {
    let dentry = record::dentry(row, first)?;
    let present = row.optional::<u64>(first + 2)?.is_some();
    let attr = present.then(|| record::attr(row, first + 3)).transpose()?;
    Ok((dentry, attr))
}

/// Slice list of a chunk.
pub(super) fn chunk(
    connection: &Connection,
    ino: Ino,
    index: ChunkIndex,
) -> EngineResult<Option<Vec<Slice>>> {
    let sql = "SELECT slices FROM jfs_chunk WHERE inode=?1 AND indx=?2";
    let key = format_args!("{ino} {}", index.0);
    query_one(
        connection,
        sql,
        (id(ino), index.0),
        ("jfs_chunk", &key),
        |row| record::slices(row, 0),
    )
}

/// A counter as the contract sees it.
pub(super) fn counter(connection: &Connection, counter: Counter) -> EngineResult<i64> {
    let row = counter_row(counter);
    let sql = "SELECT value FROM jfs_counter WHERE name=?1";
    let place: Place<'_> = ("jfs_counter", &row.name);
    let stored = query_one(connection, sql, [row.name], place, |row| {
        row.number::<i64>(0)
    })?;
    Ok(stored.unwrap_or(row.fresh).saturating_add(row.to_next))
}

/// One page of an enumeration.
pub(super) fn scan(
    connection: &Connection,
    scan: &Scan,
    cursor: Option<&Cursor>,
    limit: usize,
) -> EngineResult<Page> {
    let limit = limit.clamp(1, u32::MAX as usize);
    match *scan {
        Scan::Dir { parent, attrs } => dir(connection, parent, attrs, cursor, limit),
        Scan::Xattrs(ino) => {
            let sql = "SELECT name, value FROM jfs_xattr WHERE inode=?1 AND name>?2 \
                       ORDER BY name LIMIT ?3";
            let params = (id(ino), Text(after_name(cursor)), limit as i64);
            let items = query_all(connection, sql, params, ("jfs_xattr", &ino), |row| {
                Ok(Item::Xattr {
                    name: row.bytes(0)?,
                    value: row.bytes(1)?,
                })
            })?;
            Ok(page(items, limit))
        }
        Scan::Chunks { ino, .. } => {
            let sql = "SELECT indx, slices FROM jfs_chunk WHERE inode=?1 AND indx>?2 \
                       ORDER BY indx LIMIT ?3";
            let params = (id(ino), after_number(cursor)?, limit as i64);
            let items = query_all(connection, sql, params, ("jfs_chunk of", &ino), |row| {
                Ok(Item::Chunk {
                    index: ChunkIndex(row.number(0)?),
                    slices: record::slices(row, 1)?,
                })
            })?;
            Ok(page(items, limit))
        }
        Scan::DeletedFiles => {
            let sql = "SELECT inode, length, expire FROM jfs_delfile WHERE inode>?1 \
                       ORDER BY inode LIMIT ?2";
            let params = (after_number(cursor)?, limit as i64);
            let items = query_all(connection, sql, params, ("jfs_delfile", &"page"), |row| {
                Ok(Item::DeletedFile {
                    ino: Ino(row.number(0)?),
                    length: row.number(1)?,
                    time: row.number(2)?,
                })
            })?;
            Ok(page(items, limit))
        }
        Scan::Sessions => {
            let sql = "SELECT sid, expire, info FROM jfs_session2 WHERE sid>?1 \
                       ORDER BY sid LIMIT ?2";
            let params = (after_number(cursor)?, limit as i64);
            let items = query_all(connection, sql, params, ("jfs_session2", &"page"), |row| {
                Ok(Item::Session {
                    sid: SessionId(row.number(0)?),
                    expire: row.number(1)?,
                    info: row.bytes(2)?,
                })
            })?;
            Ok(page(items, limit))
        }
        Scan::DirQuotas => {
            let sql = "SELECT inode, max_space, max_inodes, used_space, used_inodes \
                       FROM jfs_dir_quota WHERE inode>?1 ORDER BY inode LIMIT ?2";
            let params = (after_number(cursor)?, limit as i64);
            let items = query_all(connection, sql, params, ("jfs_dir_quota", &"page"), |row| {
                Ok(Item::Quota {
                    ino: Ino(row.number(0)?),
                    quota: record::quota(row, 1)?,
                })
            })?;
            Ok(page(items, limit))
        }
    }
}

/// Entries in the order of their names. A name stored as TEXT sorts before every BLOB and is not found by
/// lookups either; it is left out, like an empty one.
fn dir(
    connection: &Connection,
    parent: Ino,
    attrs: bool,
    cursor: Option<&Cursor>,
    limit: usize,
) -> EngineResult<Page> {
    let plain = "SELECT name, type, inode FROM jfs_edge WHERE parent=?1 AND name>?2 \
                 ORDER BY name LIMIT ?3";
    let with_attrs = concat!(
        "SELECT e.name, e.type, e.inode, n.inode, ",
        node_columns!("n."),
        " FROM jfs_edge e LEFT JOIN jfs_node n ON n.inode=e.inode",
        " WHERE e.parent=?1 AND e.name>?2 ORDER BY e.name LIMIT ?3"
    );
    let sql = if attrs { with_attrs } else { plain };
    let params = (id(parent), after_name(cursor), limit as i64);
    let items = query_all(
        connection,
        sql,
        params,
        ("jfs_edge below", &parent),
        |row| {
            let (dentry, attr) = if attrs {
                joined(row, 1)?
            } else {
                (record::dentry(row, 1)?, None)
            };
            Ok(Item::Entry {
                name: row.bytes(0)?,
                dentry,
                attr,
            })
        },
    )?;
    Ok(page(items, limit))
}

/// A full page continues after its last key.
fn page(items: Vec<Item>, limit: usize) -> Page {
    let number = |number: u64| Name::copy_from_slice(&number.to_be_bytes());
    let next = items.last().filter(|_| items.len() >= limit).map(|last| {
        Cursor(match last {
            Item::Entry { name, .. } | Item::Xattr { name, .. } => name.clone(),
            Item::Chunk { index, .. } => number(index.0.into()),
            Item::DeletedFile { ino, .. } | Item::Quota { ino, .. } => number(ino.0),
            Item::Session { sid, .. } => number(sid.0),
        })
    });
    Page { items, next }
}

fn after_name(cursor: Option<&Cursor>) -> &[u8] {
    cursor.map_or(&[], |cursor| &cursor.0)
}

fn after_number(cursor: Option<&Cursor>) -> EngineResult<i64> {
    let Some(cursor) = cursor else { return Ok(-1) };
    let number = <[u8; 8]>::try_from(cursor.0.as_ref());
    number
        .map(i64::from_be_bytes)
        .map_err(|_| refused("cursor is not of this enumeration"))
}
