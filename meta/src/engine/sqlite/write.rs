//! One commit on an open transaction: checks, then writes, and what each means on JuiceFS's tables.
//!
//! Called by `commit` with the writer's connection inside a transaction and a savepoint; an error undoes
//! the whole commit. Columns are updated, never whole rows, and sums only relative to what is there, so
//! that concurrent changes by JuiceFS survive. Writes that contradict the rows (an inode inserted twice, a
//! change of one that is gone) are refused by constraints or by the number of changed rows.

use rusqlite::params_from_iter;

use super::connection::Connection;
use super::read::{self, id};
use super::record::{self, NODE_COLUMN_NAMES, QuotaTable, counter_row, hands_out, node_columns};
use super::row::{Place, Row, Text, execute, query_one, refused};
use crate::engine::{Check, Counter, EngineResult, Txn, Write};
use crate::types::{
    AclRule, Attr, ChunkIndex, DirStat, Ino, QuotaKey, QuotaKind, SessionId, Slice, SliceId,
    Timestamp,
};

/// The first check that does not hold.
pub(super) fn failed_check(connection: &Connection, txn: &Txn) -> EngineResult<Option<usize>> {
    for (index, check) in txn.checks.iter().enumerate() {
        if !holds(connection, check)? {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// Applies the writes in order: their results.
pub(super) fn apply(connection: &Connection, txn: &Txn) -> EngineResult<Vec<i64>> {
    txn.writes
        .iter()
        .map(|write| apply_one(connection, write))
        .collect()
}

fn holds(connection: &Connection, check: &Check) -> EngineResult<bool> {
    Ok(match check {
        Check::Attr {
            ino,
            fields,
            expect,
        } => read::attr(connection, *ino)?.is_some_and(|found| fields.agree(expect, &found)),
        Check::NoAttr(ino) => {
            let sql = "SELECT 1 FROM jfs_node WHERE inode=?1";
            !exists(connection, sql, [id(*ino)])?
        }
        Check::Dentry {
            parent,
            name,
            expect,
        } => read::dentry(connection, *parent, name)? == *expect,
        Check::DirEmpty(ino) => {
            let sql = "SELECT 1 FROM jfs_edge WHERE parent=?1 LIMIT 1";
            !exists(connection, sql, [id(*ino)])?
        }
        Check::Xattr { ino, name, present } => {
            let sql = "SELECT 1 FROM jfs_xattr WHERE inode=?1 AND name=?2";
            exists(connection, sql, (id(*ino), Text(name)))? == *present
        }
        Check::Chunk {
            ino,
            index,
            prefix,
            whole,
        } => {
            let list = read::chunk(connection, *ino, *index)?.unwrap_or_default();
            list.starts_with(prefix) && (!whole || list.len() == prefix.len())
        }
        Check::Counter { counter, expect } => read::counter(connection, *counter)? == *expect,
        Check::Setting(expect) => read::setting(connection)? == *expect,
        Check::Flocks { ino, expect } => read::flocks(connection, *ino)? == *expect,
        Check::Plocks { ino, expect } => read::plocks(connection, *ino)? == *expect,
        Check::DelayedSlices { id, time, expect } => {
            read::delayed_slices(connection, *id, *time)?.as_ref() == Some(expect)
        }
    })
}

fn exists(connection: &Connection, sql: &str, params: impl rusqlite::Params) -> EngineResult<bool> {
    Ok(query_one(connection, sql, params, ("row", &""), |_| Ok(()))?.is_some())
}

/// Runs a statement whose result is no number of interest.
fn run(connection: &Connection, sql: &str, params: impl rusqlite::Params) -> EngineResult<i64> {
    execute(connection, sql, params).map(|_| 0)
}

/// Runs a statement that must find its row.
fn run_on_row(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    what: Place<'_>,
) -> EngineResult<i64> {
    match execute(connection, sql, params)? {
        0 => Err(refused(format!(
            "{} {} is not there to be changed",
            what.0, what.1
        ))),
        _ => Ok(0),
    }
}

/// The number a statement with RETURNING answers.
fn returning(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    place: Place<'_>,
) -> EngineResult<Option<i64>> {
    query_one(connection, sql, params, place, |row| row.number(0))
}

fn apply_one(connection: &Connection, write: &Write) -> EngineResult<i64> {
    match write {
        Write::InsertAttr { .. }
        | Write::UpdateAttr { .. }
        | Write::PatchDir { .. }
        | Write::DeleteAttr(_) => apply_attr(connection, write),
        Write::InsertDentry { .. }
        | Write::ReplaceDentry { .. }
        | Write::DeleteDentry { .. }
        | Write::PutSymlink { .. }
        | Write::DeleteSymlink(_)
        | Write::PutXattr { .. }
        | Write::DeleteXattr { .. }
        | Write::DeleteXattrs(_)
        | Write::AddParent { .. }
        | Write::DeleteParents(_) => apply_name(connection, write),
        Write::AppendChunk { .. }
        | Write::AppendChunkIfPresent { .. }
        | Write::ReplaceChunkPrefix { .. }
        | Write::DeleteChunk { .. }
        | Write::NewSliceRef { .. }
        | Write::AddSliceRef { .. }
        | Write::DeleteSliceRef { .. }
        | Write::PutDelayedSlices { .. }
        | Write::DeleteDelayedSlices { .. } => apply_data(connection, write),
        Write::AddCounter { .. }
        | Write::SetCounter { .. }
        | Write::InitDirStat(_)
        | Write::AddDirStat { .. }
        | Write::PutDirStat { .. }
        | Write::DeleteDirStat(_) => apply_usage(connection, write),
        Write::PutQuotaLimits { .. }
        | Write::PutQuotaUsage { .. }
        | Write::AddQuotaUsage { .. }
        | Write::DeleteQuota(_) => apply_quota(connection, write),
        Write::PutFlock { .. } | Write::DeleteFlock { .. } | Write::PutPlocks { .. } => {
            apply_lock(connection, write)
        }
        Write::InsertAcl(rule) => insert_acl(connection, rule),
        Write::PutSession { .. }
        | Write::DeleteSession(_)
        | Write::AddSustained { .. }
        | Write::DeleteSustained { .. }
        | Write::AddDeletedFile { .. }
        | Write::DeleteDeletedFile { .. }
        | Write::AddDetached { .. }
        | Write::DeleteDetached(_)
        | Write::PutSetting(_) => apply_session(connection, write),
    }
}

fn elsewhere(write: &Write) -> EngineResult<i64> {
    Err(refused(format!("{write:?} belongs to another family")))
}

fn apply_attr(connection: &Connection, write: &Write) -> EngineResult<i64> {
    match write {
        Write::InsertAttr { ino, attr } => {
            let sql = concat!(
                "INSERT INTO jfs_node (",
                node_columns!(""),
                ",inode) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
            );
            let values = record::attr_values(attr).into_iter().chain([id(*ino)]);
            run(connection, sql, params_from_iter(values))
        }
        Write::UpdateAttr { ino, old, new } => update_attr(connection, *ino, old, new),
        Write::PatchDir { ino, time, nlink } => patch_dir(connection, *ino, *time, *nlink),
        Write::DeleteAttr(ino) => run(
            connection,
            "DELETE FROM jfs_node WHERE inode=?1",
            [id(*ino)],
        ),
        _ => elsewhere(write),
    }
}

/// Sets the columns that differ.
fn update_attr(connection: &Connection, ino: Ino, old: &Attr, new: &Attr) -> EngineResult<i64> {
    let mut sql = String::from("UPDATE jfs_node SET ");
    let mut values = Vec::new();
    let pairs = record::attr_values(old)
        .into_iter()
        .zip(record::attr_values(new));
    for (name, (was, will)) in NODE_COLUMN_NAMES.iter().zip(pairs) {
        if was != will {
            sql.push_str(name);
            sql.push_str("=?,");
            values.push(will);
        }
    }
    if values.is_empty() {
        return Ok(0);
    }
    sql.pop();
    sql.push_str(" WHERE inode=?");
    values.push(id(ino));
    run_on_row(
        connection,
        &sql,
        params_from_iter(values),
        ("jfs_node", &ino),
    )
}

fn patch_dir(
    connection: &Connection,
    ino: Ino,
    time: Option<Timestamp>,
    nlink: i32,
) -> EngineResult<i64> {
    let what: Place<'_> = ("jfs_node", &ino);
    let Some(time) = time else {
        let sql = "UPDATE jfs_node SET nlink=nlink+?1 WHERE inode=?2";
        return run_on_row(connection, sql, (nlink, id(ino)), what);
    };
    let (micros, nanos) = record::micros(time);
    let sql = "UPDATE jfs_node SET nlink=nlink+?1, mtime=?2, mtimensec=?3, ctime=?2, ctimensec=?3 \
               WHERE inode=?4";
    run_on_row(connection, sql, (nlink, micros, nanos, id(ino)), what)
}

fn apply_name(connection: &Connection, write: &Write) -> EngineResult<i64> {
    match write {
        Write::InsertDentry {
            parent,
            name,
            dentry,
        } => {
            let sql = "INSERT INTO jfs_edge (parent, name, inode, type) VALUES (?1,?2,?3,?4)";
            let params = (id(*parent), &name[..], id(dentry.ino), dentry.kind as u8);
            run(connection, sql, params)
        }
        Write::ReplaceDentry {
            parent,
            name,
            dentry,
        } => {
            let sql = "UPDATE jfs_edge SET inode=?3, type=?4 WHERE parent=?1 AND name=?2";
            let params = (id(*parent), &name[..], id(dentry.ino), dentry.kind as u8);
            run_on_row(connection, sql, params, ("jfs_edge below", parent))
        }
        Write::DeleteDentry { parent, name } => {
            let sql = "DELETE FROM jfs_edge WHERE parent=?1 AND name=?2";
            run(connection, sql, (id(*parent), &name[..]))
        }
        Write::PutSymlink { ino, target } => {
            let sql = "INSERT INTO jfs_symlink (inode, target) VALUES (?1,?2) \
                       ON CONFLICT (inode) DO UPDATE SET target=excluded.target";
            run(connection, sql, (id(*ino), &target[..]))
        }
        Write::DeleteSymlink(ino) => run(
            connection,
            "DELETE FROM jfs_symlink WHERE inode=?1",
            [id(*ino)],
        ),
        Write::PutXattr { ino, name, value } => {
            let sql = "INSERT INTO jfs_xattr (inode, name, value) VALUES (?1,?2,?3) \
                       ON CONFLICT (inode, name) DO UPDATE SET value=excluded.value";
            run(connection, sql, (id(*ino), Text(name), &value[..]))
        }
        Write::DeleteXattr { ino, name } => {
            let sql = "DELETE FROM jfs_xattr WHERE inode=?1 AND name=?2";
            Ok(execute(connection, sql, (id(*ino), Text(name)))? as i64)
        }
        Write::DeleteXattrs(ino) => run(
            connection,
            "DELETE FROM jfs_xattr WHERE inode=?1",
            [id(*ino)],
        ),
        // Parents of a hard link are its entries.
        Write::AddParent { .. } | Write::DeleteParents(_) => Ok(0),
        _ => elsewhere(write),
    }
}

fn apply_data(connection: &Connection, write: &Write) -> EngineResult<i64> {
    match write {
        Write::AppendChunk { ino, index, slices } => {
            // `||` answers TEXT, whatever it is given; the cast keeps the column a BLOB.
            let sql = "INSERT INTO jfs_chunk (inode, indx, slices) VALUES (?1,?2,?3) \
                       ON CONFLICT (inode, indx) DO UPDATE \
                       SET slices=CAST(CAST(slices AS BLOB)||excluded.slices AS BLOB) \
                       RETURNING length(slices)";
            append(connection, sql, *ino, *index, slices)
        }
        Write::AppendChunkIfPresent { ino, index, slices } => {
            let sql = "UPDATE jfs_chunk SET slices=CAST(CAST(slices AS BLOB)||?3 AS BLOB) \
                       WHERE inode=?1 AND indx=?2 RETURNING length(slices)";
            append(connection, sql, *ino, *index, slices)
        }
        Write::ReplaceChunkPrefix {
            ino,
            index,
            drop,
            slices,
        } => replace_prefix(connection, *ino, *index, *drop, slices),
        Write::PutDelayedSlices { id, time, slices } => put_delayed(connection, *id, *time, slices),
        Write::DeleteDelayedSlices { id, time } => {
            let sql = "DELETE FROM jfs_delslices WHERE chunkid=?1 AND deleted=?2";
            run(connection, sql, (slice_id(*id), time))
        }
        Write::DeleteChunk { ino, index } => {
            let sql = "DELETE FROM jfs_chunk WHERE inode=?1 AND indx=?2";
            run(connection, sql, (id(*ino), index.0))
        }
        Write::NewSliceRef { id, size } => {
            let sql = "INSERT INTO jfs_chunk_ref (chunkid, size, refs) VALUES (?1,?2,1)";
            run(connection, sql, (slice_id(*id), size))
        }
        Write::AddSliceRef { id, size, delta } => {
            let sql = "UPDATE jfs_chunk_ref SET refs=refs+?3 WHERE chunkid=?1 AND size=?2 \
                       RETURNING refs";
            let params = (slice_id(*id), size, delta);
            let refs = returning(connection, sql, params, ("jfs_chunk_ref", &id.0))?;
            // A slice without a row is never deleted: who else refers to it is not known.
            Ok(refs.unwrap_or(1))
        }
        Write::DeleteSliceRef { id, .. } => run(
            connection,
            "DELETE FROM jfs_chunk_ref WHERE chunkid=?1",
            [slice_id(*id)],
        ),
        _ => elsewhere(write),
    }
}

fn slice_id(id: SliceId) -> i64 {
    id.0.cast_signed()
}

fn append(
    connection: &Connection,
    sql: &str,
    ino: Ino,
    index: ChunkIndex,
    slices: &[Slice],
) -> EngineResult<i64> {
    if slices.is_empty() {
        let list = read::chunk(connection, ino, index)?;
        return Ok(list.map_or(0, |list| list.len() as i64));
    }
    let key = format_args!("{ino} {}", index.0);
    let params = (id(ino), index.0, record::encode_slices(slices));
    let bytes = query_one(
        connection,
        sql,
        params,
        ("jfs_chunk", &key),
        |row: &Row<'_>| {
            let bytes = row.number::<i64>(0)?;
            let whole = bytes % Slice::BYTES as i64 == 0;
            whole
                .then_some(bytes)
                .ok_or_else(|| row.corrupt("list ends within a record"))
        },
    )?;
    Ok(bytes.unwrap_or(0) / Slice::BYTES as i64)
}

/// Rewrites the list as a BLOB, whatever its storage class was.
fn replace_prefix(
    connection: &Connection,
    ino: Ino,
    index: ChunkIndex,
    drop: usize,
    slices: &[Slice],
) -> EngineResult<i64> {
    let mut list = read::chunk(connection, ino, index)?.unwrap_or_default();
    let drop = drop.min(list.len());
    list.splice(..drop, slices.iter().copied());
    if list.is_empty() {
        let sql = "DELETE FROM jfs_chunk WHERE inode=?1 AND indx=?2";
        return run(connection, sql, (id(ino), index.0));
    }
    let sql = "INSERT INTO jfs_chunk (inode, indx, slices) VALUES (?1,?2,?3) \
               ON CONFLICT (inode, indx) DO UPDATE SET slices=excluded.slices";
    let params = (id(ino), index.0, record::encode_slices(&list));
    execute(connection, sql, params)?;
    Ok(list.len() as i64)
}

/// See [`read::delayed_slices`] for the key. A slice that is noted with another time is an error of the
/// caller, and overwriting its note would lose slices.
fn put_delayed(
    connection: &Connection,
    id: SliceId,
    time: i64,
    slices: &[(SliceId, u32)],
) -> EngineResult<i64> {
    let sql = "INSERT INTO jfs_delslices (chunkid, deleted, slices) VALUES (?1,?2,?3) \
               ON CONFLICT (chunkid) DO UPDATE SET slices=excluded.slices \
               WHERE deleted=excluded.deleted";
    let params = (slice_id(id), time, record::encode_delayed(slices));
    match execute(connection, sql, params)? {
        0 => Err(refused(format!(
            "slice {} replaced others at another time already",
            id.0
        ))),
        _ => Ok(0),
    }
}

fn apply_quota(connection: &Connection, write: &Write) -> EngineResult<i64> {
    let update = |key: &QuotaKey, set: &str, one: i64, two: i64| {
        let table = QuotaTable::of(key.kind());
        let sql = format!("UPDATE {} SET {set} WHERE {}=?1", table.name, table.key);
        let params = (key.number().cast_signed(), one, two);
        execute(connection, &sql, params).map(|rows| rows as i64)
    };
    match write {
        Write::PutQuotaLimits {
            key,
            max_space,
            max_inodes,
        } => {
            let set = "max_space=?2, max_inodes=?3";
            let known = update(key, set, *max_space, *max_inodes)?;
            if known == 0 {
                insert_quota(connection, *key, [*max_space, *max_inodes, 0, 0])?;
            }
            Ok(known)
        }
        Write::PutQuotaUsage { key, space, inodes } => {
            update(key, "used_space=?2, used_inodes=?3", *space, *inodes)
        }
        Write::AddQuotaUsage { key, space, inodes } => {
            let set = "used_space=used_space+?2, used_inodes=used_inodes+?3";
            let known = update(key, set, *space, *inodes)?;
            if known == 0 && key.kind() != QuotaKind::Dir {
                insert_quota(connection, *key, [-1, -1, *space, *inodes])?;
            }
            Ok(known)
        }
        Write::DeleteQuota(QuotaKey::Dir(ino)) => run(
            connection,
            "DELETE FROM jfs_dir_quota WHERE inode=?1",
            [id(*ino)],
        ),
        Write::DeleteQuota(key) => update(key, "max_space=?2, max_inodes=?3", -1, -1).map(|_| 0),
        _ => elsewhere(write),
    }
}

/// Values: the two limits, then the two usages.
fn insert_quota(connection: &Connection, key: QuotaKey, values: [i64; 4]) -> EngineResult<i64> {
    let sql = match key.kind() {
        QuotaKind::Dir => {
            "INSERT INTO jfs_dir_quota (max_space, max_inodes, used_space, used_inodes, inode) \
             VALUES (?1,?2,?3,?4,?5)"
        }
        QuotaKind::User => {
            "INSERT INTO jfs_user_group_quota \
             (max_space, max_inodes, used_space, used_inodes, qkey, qtype) VALUES (?1,?2,?3,?4,?5,1)"
        }
        QuotaKind::Group => {
            "INSERT INTO jfs_user_group_quota \
             (max_space, max_inodes, used_space, used_inodes, qkey, qtype) VALUES (?1,?2,?3,?4,?5,2)"
        }
    };
    let number = key.number().cast_signed();
    run(
        connection,
        sql,
        params_from_iter(values.into_iter().chain([number])),
    )
}

fn insert_acl(connection: &Connection, rule: &AclRule) -> EngineResult<i64> {
    let sql = "INSERT INTO jfs_acl (owner, `group`, mask, other, named_users, named_groups) \
               VALUES (?1,?2,?3,?4,?5,?6) RETURNING id";
    let params = (
        rule.owner,
        rule.group,
        rule.mask,
        rule.other,
        record::encode_named(&rule.users),
        record::encode_named(&rule.groups),
    );
    let id = returning(connection, sql, params, ("jfs_acl", &"new rule"))?;
    id.ok_or_else(|| refused("no id came back for a new ACL rule"))
}

fn apply_lock(connection: &Connection, write: &Write) -> EngineResult<i64> {
    match write {
        Write::PutFlock { ino, lock } => {
            let sql = "INSERT INTO jfs_flock (inode, sid, owner, ltype) VALUES (?1,?2,?3,?4) \
                       ON CONFLICT (inode, sid, owner) DO UPDATE SET ltype=excluded.ltype";
            let kind = record::flock_type(lock);
            let params = (id(*ino), session(lock.sid), lock.owner.cast_signed(), kind);
            run(connection, sql, params)
        }
        Write::DeleteFlock { ino, sid, owner } => {
            let sql = "DELETE FROM jfs_flock WHERE inode=?1 AND sid=?2 AND owner=?3";
            run(
                connection,
                sql,
                (id(*ino), session(*sid), owner.cast_signed()),
            )
        }
        Write::PutPlocks {
            ino,
            sid,
            owner,
            ranges,
        } => {
            let (ino, sid, owner) = (id(*ino), session(*sid), owner.cast_signed());
            if ranges.is_empty() {
                let sql = "DELETE FROM jfs_plock WHERE inode=?1 AND sid=?2 AND owner=?3";
                return run(connection, sql, (ino, sid, owner));
            }
            let sql = "INSERT INTO jfs_plock (inode, sid, owner, records) VALUES (?1,?2,?3,?4) \
                       ON CONFLICT (inode, sid, owner) DO UPDATE SET records=excluded.records";
            run(
                connection,
                sql,
                (ino, sid, owner, record::encode_ranges(ranges)),
            )
        }
        _ => elsewhere(write),
    }
}

fn apply_usage(connection: &Connection, write: &Write) -> EngineResult<i64> {
    match write {
        Write::AddCounter { counter, delta } => {
            let row = counter_row(*counter);
            let sql = "INSERT INTO jfs_counter (name, value) VALUES (?1,?2+?3) \
                       ON CONFLICT (name) DO UPDATE SET value=value+?3 RETURNING value";
            let params = (row.name, row.fresh, delta);
            let value = returning(connection, sql, params, ("jfs_counter", &row.name))?;
            Ok(value.unwrap_or_default().saturating_add(row.to_next))
        }
        Write::SetCounter { counter, value } => {
            let row = counter_row(*counter);
            let sql = "INSERT INTO jfs_counter (name, value) VALUES (?1,?2) \
                       ON CONFLICT (name) DO UPDATE SET value=excluded.value";
            run(
                connection,
                sql,
                (row.name, value.saturating_sub(row.to_next)),
            )
        }
        Write::InitDirStat(ino) => put_dir_stat(connection, *ino, &DirStat::default()),
        Write::PutDirStat { ino, stat } => put_dir_stat(connection, *ino, stat),
        Write::AddDirStat { ino, delta } => {
            let sql = "UPDATE jfs_dir_stats SET data_length=data_length+?2, \
                       used_space=used_space+?3, used_inodes=used_inodes+?4 WHERE inode=?1";
            let params = (id(*ino), delta.length, delta.space, delta.inodes);
            Ok(execute(connection, sql, params)? as i64)
        }
        Write::DeleteDirStat(ino) => run(
            connection,
            "DELETE FROM jfs_dir_stats WHERE inode=?1",
            [id(*ino)],
        ),
        _ => elsewhere(write),
    }
}

fn put_dir_stat(connection: &Connection, ino: Ino, stat: &DirStat) -> EngineResult<i64> {
    let sql = "INSERT INTO jfs_dir_stats (inode, data_length, used_space, used_inodes) \
               VALUES (?1,?2,?3,?4) ON CONFLICT (inode) DO UPDATE SET \
               data_length=excluded.data_length, used_space=excluded.used_space, \
               used_inodes=excluded.used_inodes";
    run(
        connection,
        sql,
        (id(ino), stat.length, stat.space, stat.inodes),
    )
}

fn apply_session(connection: &Connection, write: &Write) -> EngineResult<i64> {
    match write {
        Write::PutSession { sid, expire, info } => {
            let sql = "INSERT INTO jfs_session2 (sid, expire, info) VALUES (?1,?2,?3) \
                       ON CONFLICT (sid) DO UPDATE SET expire=excluded.expire, \
                       info=coalesce(excluded.info, info)";
            run(connection, sql, (session(*sid), expire, info.as_deref()))
        }
        Write::DeleteSession(sid) => {
            // Nobody would ever find the locks again.
            for sql in [
                "DELETE FROM jfs_flock WHERE sid=?1",
                "DELETE FROM jfs_plock WHERE sid=?1",
                "DELETE FROM jfs_session2 WHERE sid=?1",
            ] {
                execute(connection, sql, [session(*sid)])?;
            }
            Ok(0)
        }
        Write::AddSustained { sid, ino } => {
            let sql = "INSERT INTO jfs_sustained (sid, inode) VALUES (?1,?2) \
                       ON CONFLICT (sid, inode) DO NOTHING";
            run(connection, sql, (session(*sid), id(*ino)))
        }
        Write::DeleteSustained { sid, ino } => {
            let sql = "DELETE FROM jfs_sustained WHERE sid=?1 AND inode=?2";
            run(connection, sql, (session(*sid), id(*ino)))
        }
        Write::AddDeletedFile { ino, length, time } => {
            let sql = "INSERT INTO jfs_delfile (inode, length, expire) VALUES (?1,?2,?3) \
                       ON CONFLICT (inode) DO UPDATE SET length=excluded.length, \
                       expire=excluded.expire";
            run(connection, sql, (id(*ino), length.cast_signed(), time))
        }
        Write::DeleteDeletedFile { ino, .. } => run(
            connection,
            "DELETE FROM jfs_delfile WHERE inode=?1",
            [id(*ino)],
        ),
        Write::AddDetached { ino, time } => {
            let sql = "INSERT INTO jfs_detached_node (inode, added) VALUES (?1,?2) \
                       ON CONFLICT (inode) DO UPDATE SET added=excluded.added";
            run(connection, sql, (id(*ino), time))
        }
        Write::DeleteDetached(ino) => run(
            connection,
            "DELETE FROM jfs_detached_node WHERE inode=?1",
            [id(*ino)],
        ),
        Write::PutSetting(text) => put_setting(connection, text),
        _ => elsewhere(write),
    }
}

fn session(sid: SessionId) -> i64 {
    sid.0.cast_signed()
}

/// Writes the setting; with the first one come the counters of a fresh volume, which JuiceFS only ever
/// updates.
fn put_setting(connection: &Connection, text: &[u8]) -> EngineResult<i64> {
    let update = "UPDATE jfs_setting SET value=?1 WHERE name='format'";
    if execute(connection, update, [Text(text)])? > 0 {
        return Ok(0);
    }
    let insert = "INSERT INTO jfs_setting (name, value) VALUES ('format',?1)";
    execute(connection, insert, [Text(text)])?;
    let counters = "INSERT INTO jfs_counter (name, value) VALUES ('nextInode',2),('nextChunk',1),\
                    ('nextSession',0),('usedSpace',0),('totalInodes',0),('nextCleanupSlices',0) \
                    ON CONFLICT (name) DO NOTHING";
    run(connection, counters, [])
}

/// Takes `count` numbers from a counter: the first of them. A missing row, or one that holds less than a
/// fresh volume's, counts as fresh.
pub(super) fn alloc(connection: &Connection, counter: Counter, count: i64) -> EngineResult<u64> {
    if count < 1 || !hands_out(counter) {
        return Err(refused(format!(
            "{count} numbers of {counter:?} cannot be had"
        )));
    }
    let row = counter_row(counter);
    let sql = "INSERT INTO jfs_counter (name, value) VALUES (?1,?2+?3) \
               ON CONFLICT (name) DO UPDATE SET value=max(value,?2)+?3 RETURNING value";
    let params = (row.name, row.fresh, count);
    let first = query_one(
        connection,
        sql,
        params,
        ("jfs_counter", &row.name),
        |found| {
            let stored = found.number::<i64>(0)?;
            let first = stored
                .checked_sub(count)
                .and_then(|first| first.checked_add(row.to_next));
            let first = first.and_then(|first| u64::try_from(first).ok());
            first.ok_or_else(|| found.corrupt(format!("value is {stored}: used up")))
        },
    )?;
    first.ok_or_else(|| refused(format!("no answer from counter {}", row.name)))
}
