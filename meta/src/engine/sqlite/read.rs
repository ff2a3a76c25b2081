//! Reading: what every [`Key`] means on JuiceFS's tables.
//!
//! Called with a core's read connection, and by commits with the writer's to evaluate checks. Point reads
//! are by primary key or by one of JuiceFS's own indexes; the walks of [`Key::Path`] and [`Key::Ancestors`]
//! are loops of them, on the caller's snapshot.

use bytes::Bytes;

use super::connection::Connection;
use super::record::{self, QuotaTable, counter_row, hands_out, node_columns};
use super::row::{Place, Row, Text, query_all, query_one};
use crate::engine::{Counter, EngineResult, Key, Record};
use crate::limits::DIR_DEPTH_MAX;
use crate::types::{
    AclRule, Attr, ChunkIndex, Dentry, DirStat, FileKind, Flock, Ino, Name, Plock, Quota, QuotaKey,
    SessionId, Slice, SliceId,
};

/// Answers one key.
pub(super) fn read(connection: &Connection, key: &Key) -> EngineResult<Option<Record>> {
    Ok(match key {
        Key::Attr(ino) => attr(connection, *ino)?.map(Record::Attr),
        Key::Dentry { parent, name } => dentry(connection, *parent, name)?.map(Record::Dentry),
        Key::Entry { parent, name } => {
            entry(connection, *parent, name)?.map(|(dentry, attr)| Record::Entry(dentry, attr))
        }
        Key::Chunk { ino, index } => chunk(connection, *ino, *index)?
            .filter(|list| !list.is_empty())
            .map(Record::Slices),
        Key::Symlink(ino) => symlink(connection, *ino)?.map(Record::Bytes),
        Key::Xattr { ino, name } => xattr(connection, *ino, name)?.map(Record::Bytes),
        Key::XattrNames(ino) => some_of(xattr_names(connection, *ino)?).map(Record::Names),
        Key::Parents(ino) => some_of(parents(connection, *ino)?).map(Record::Parents),
        Key::Counter(of) => Some(Record::Count(counter(connection, *of)?)),
        Key::Setting => setting(connection)?.map(Record::Bytes),
        Key::SliceRefs { id, size } => slice_refs(connection, *id, *size)?.map(Record::Count),
        Key::DirStat(ino) => dir_stat(connection, *ino)?.map(Record::DirStat),
        Key::Quota(key) => quota(connection, *key)?.map(Record::Quota),
        Key::Sustained(sid) => some_of(sustained(connection, *sid)?).map(Record::Inodes),
        Key::Acl(id) => acl(connection, *id)?.map(Record::Acl),
        Key::Flocks(ino) => some_of(flocks(connection, *ino)?).map(Record::Flocks),
        Key::Plocks(ino) => some_of(plocks(connection, *ino)?).map(Record::Plocks),
        Key::Path { from, names } => Some(Record::Path(path(connection, *from, names)?)),
        Key::Ancestors(ino) => Some(Record::Path(ancestors(connection, *ino)?)),
    })
}

/// Whether a key is answered by one statement, and so from one snapshot without a transaction.
pub(super) fn is_one_statement(key: &Key) -> bool {
    !matches!(key, Key::Path { .. } | Key::Ancestors(_))
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

fn entry(
    connection: &Connection,
    parent: Ino,
    name: &Name,
) -> EngineResult<Option<(Dentry, Option<Attr>)>> {
    let sql = concat!(
        "SELECT e.type, e.inode, n.inode, ",
        node_columns!("n."),
        " FROM jfs_edge e LEFT JOIN jfs_node n ON n.inode=e.inode WHERE e.parent=?1 AND e.name=?2"
    );
    let params = (id(parent), &name[..]);
    let place: Place<'_> = ("jfs_edge and jfs_node below", &parent);
    query_one(connection, sql, params, place, |row| joined(row, 0))
}

/// An entry's type and inode, then the node's inode (NULL when the entry dangles) and columns.
pub(super) fn joined(row: &Row<'_>, first: usize) -> EngineResult<(Dentry, Option<Attr>)> {
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
    let params = (id(ino), index.0);
    query_one(connection, sql, params, ("jfs_chunk", &key), |row| {
        record::slices(row, 0)
    })
}

fn symlink(connection: &Connection, ino: Ino) -> EngineResult<Option<Bytes>> {
    let sql = "SELECT target FROM jfs_symlink WHERE inode=?1";
    query_one(connection, sql, [id(ino)], ("jfs_symlink", &ino), |row| {
        row.bytes(0)
    })
}

fn xattr(connection: &Connection, ino: Ino, name: &Name) -> EngineResult<Option<Bytes>> {
    let sql = "SELECT value FROM jfs_xattr WHERE inode=?1 AND name=?2";
    let params = (id(ino), Text(name));
    query_one(connection, sql, params, ("jfs_xattr", &ino), |row| {
        row.bytes(0)
    })
}

fn xattr_names(connection: &Connection, ino: Ino) -> EngineResult<Vec<Name>> {
    let sql = "SELECT name FROM jfs_xattr WHERE inode=?1 ORDER BY name";
    query_all(connection, sql, [id(ino)], ("jfs_xattr", &ino), |row| {
        row.bytes(0)
    })
}

fn parents(connection: &Connection, ino: Ino) -> EngineResult<Vec<(Ino, u32)>> {
    let sql =
        "SELECT parent, count(*) FROM jfs_edge WHERE inode=?1 GROUP BY parent ORDER BY parent";
    query_all(connection, sql, [id(ino)], ("jfs_edge", &ino), |row| {
        Ok((Ino(row.number(0)?), row.number(1)?))
    })
}

/// A counter as the contract sees it.
pub(super) fn counter(connection: &Connection, counter: Counter) -> EngineResult<i64> {
    let row = counter_row(counter);
    let sql = "SELECT value FROM jfs_counter WHERE name=?1";
    let place: Place<'_> = ("jfs_counter", &row.name);
    let stored = query_one(connection, sql, [row.name], place, |row| {
        row.number::<i64>(0)
    })?;
    let stored = stored.unwrap_or(row.fresh);
    // What `alloc` would go by.
    let trusted = if hands_out(counter) {
        stored.max(row.fresh)
    } else {
        stored
    };
    Ok(trusted.saturating_add(row.to_next))
}

/// The volume's setting.
pub(super) fn setting(connection: &Connection) -> EngineResult<Option<Bytes>> {
    let sql = "SELECT value FROM jfs_setting WHERE name='format'";
    query_one(connection, sql, [], ("jfs_setting", &"format"), |row| {
        row.bytes(0)
    })
}

fn slice_refs(connection: &Connection, id: SliceId, size: u32) -> EngineResult<Option<i64>> {
    let sql = "SELECT refs FROM jfs_chunk_ref WHERE chunkid=?1 AND size=?2";
    let params = (id.0.cast_signed(), size);
    query_one(connection, sql, params, ("jfs_chunk_ref", &id.0), |row| {
        row.number(0)
    })
}

fn dir_stat(connection: &Connection, ino: Ino) -> EngineResult<Option<DirStat>> {
    let sql = "SELECT data_length, used_space, used_inodes FROM jfs_dir_stats WHERE inode=?1";
    query_one(connection, sql, [id(ino)], ("jfs_dir_stats", &ino), |row| {
        Ok(DirStat {
            length: row.number(0)?,
            space: row.number(1)?,
            inodes: row.number(2)?,
        })
    })
}

fn quota(connection: &Connection, key: QuotaKey) -> EngineResult<Option<Quota>> {
    let table = QuotaTable::of(key.kind());
    let sql = format!(
        "SELECT max_space, max_inodes, used_space, used_inodes FROM {} WHERE {}=?1",
        table.name, table.key
    );
    let number = key.number();
    let place: Place<'_> = (table.name, &number);
    query_one(connection, &sql, [number.cast_signed()], place, |row| {
        record::quota(row, 0)
    })
}

fn sustained(connection: &Connection, sid: SessionId) -> EngineResult<Vec<Ino>> {
    let sql = "SELECT inode FROM jfs_sustained WHERE sid=?1 ORDER BY inode";
    let place: Place<'_> = ("jfs_sustained", &sid.0);
    query_all(connection, sql, [sid.0.cast_signed()], place, |row| {
        Ok(Ino(row.number(0)?))
    })
}

fn acl(connection: &Connection, id: u32) -> EngineResult<Option<AclRule>> {
    let sql = "SELECT owner, `group`, mask, other, named_users, named_groups FROM jfs_acl \
               WHERE id=?1";
    query_one(connection, sql, [id], ("jfs_acl", &id), |row| {
        record::acl(row, 0)
    })
}

/// BSD locks on an inode. Sorted here: the columns hold session and owner as signed numbers.
pub(super) fn flocks(connection: &Connection, ino: Ino) -> EngineResult<Vec<Flock>> {
    let sql = "SELECT sid, owner, ltype FROM jfs_flock WHERE inode=?1";
    let place: Place<'_> = ("jfs_flock", &ino);
    let mut locks = query_all(connection, sql, [id(ino)], place, |row| {
        let sid = SessionId(row.number::<i64>(0)?.cast_unsigned());
        record::flock(row, sid, 1)
    })?;
    locks.sort_unstable();
    Ok(locks)
}

/// POSIX locks on an inode; an owner without a range has none.
pub(super) fn plocks(connection: &Connection, ino: Ino) -> EngineResult<Vec<Plock>> {
    let sql = "SELECT sid, owner, records FROM jfs_plock WHERE inode=?1";
    let place: Place<'_> = ("jfs_plock", &ino);
    let mut locks = query_all(connection, sql, [id(ino)], place, |row| {
        let sid = SessionId(row.number::<i64>(0)?.cast_unsigned());
        record::plock(row, sid, 1)
    })?;
    locks.retain(|lock| !lock.ranges.is_empty());
    locks.sort_unstable();
    Ok(locks)
}

/// The slices noted with the one that replaced them.
///
/// The table is keyed by the replacing slice alone. That is enough: a slice's id is used once, so it replaced
/// others at one time. A note is there if its row has that time.
pub(super) fn delayed_slices(
    connection: &Connection,
    id: SliceId,
    time: i64,
) -> EngineResult<Option<Vec<(SliceId, u32)>>> {
    let sql = "SELECT slices FROM jfs_delslices WHERE chunkid=?1 AND deleted=?2";
    let params = (id.0.cast_signed(), time);
    query_one(connection, sql, params, ("jfs_delslices", &id.0), |row| {
        record::delayed_slices(row, 0)
    })
}

fn path(connection: &Connection, from: Ino, names: &[Name]) -> EngineResult<Vec<(Ino, Attr)>> {
    let mut dir = from;
    let mut path = Vec::with_capacity(names.len());
    for name in names {
        let Some((dentry, Some(attr))) = entry(connection, dir, name)? else {
            break;
        };
        let is_dir = attr.kind == FileKind::Directory;
        path.push((dentry.ino, attr));
        if !is_dir {
            break;
        }
        dir = dentry.ino;
    }
    Ok(path)
}

fn ancestors(connection: &Connection, ino: Ino) -> EngineResult<Vec<(Ino, Attr)>> {
    let mut path: Vec<(Ino, Attr)> = Vec::new();
    let mut at = ino;
    let mut parent = attr(connection, ino)?.map_or(Ino::NONE, |attr| attr.parent);
    while at != Ino::ROOT && at != Ino::TRASH && path.len() < DIR_DEPTH_MAX {
        let Some(attr) = attr(connection, parent)? else {
            break;
        };
        at = parent;
        parent = attr.parent;
        path.push((at, attr));
    }
    Ok(path)
}
