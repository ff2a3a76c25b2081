//! Enumerations: what every [`Scan`] means on JuiceFS's tables.
//!
//! Called with a core's read connection. A page is one range of an index, in the index's order; its cursor
//! is the key of its last row, so that a scan survives any change between its pages and a page costs the
//! same wherever it starts. Only [`Scan::SessionLocks`] passes over rows of others: the tables of locks have
//! no index by session, and none may be added.

use bytes::Bytes;

use super::connection::Connection;
use super::read::{self, id};
use super::record::{self, QuotaTable, node_columns};
use super::row::{Place, Row, Text, query_all, refused};
use crate::engine::{Cursor, EngineResult, Item, Page, Scan};
use crate::types::{ChunkIndex, Ino, QuotaKind, SessionId, SliceId};

/// One page of an enumeration.
pub(super) fn scan(
    connection: &Connection,
    scan: &Scan,
    cursor: Option<&Cursor>,
    limit: usize,
) -> EngineResult<Page> {
    let range = Range {
        connection,
        cursor,
        limit: limit.clamp(1, u32::MAX as usize),
    };
    match *scan {
        Scan::Dir { parent, attrs } => range.dir(parent, attrs),
        Scan::Xattrs(ino) => range.xattrs(ino),
        Scan::Chunks { ino, .. } => range.chunks(ino),
        Scan::DeletedFiles => range.deleted_files(),
        Scan::Sessions => range.sessions(),
        Scan::Quotas(kind) => range.quotas(kind),
        Scan::Acls => range.acls(),
        Scan::DelayedSlices => range.delayed_slices(),
        Scan::DeadSlices => range.dead_slices(),
        Scan::Detached => range.detached(),
        Scan::SessionLocks(sid) => range.session_locks(sid),
        Scan::Inodes => range.inodes(),
        Scan::AllChunks => range.all_chunks(),
    }
}

/// Which part of an enumeration is asked for.
struct Range<'a> {
    connection: &'a Connection,
    cursor: Option<&'a Cursor>,
    limit: usize,
}

impl Range<'_> {
    /// The page that `sql` answers. `decode` tells of a row where to continue after it, and what it stands
    /// for: possibly nothing.
    fn page<K>(
        &self,
        (sql, params): (&str, impl rusqlite::Params),
        place: Place<'_>,
        cursor: impl FnOnce(K) -> Bytes,
        mut decode: impl FnMut(&Row<'_>) -> EngineResult<(K, Option<Item>)>,
    ) -> EngineResult<Page> {
        let mut rows = 0;
        let mut last = None;
        let found = query_all(self.connection, sql, params, place, |row| {
            let (key, item) = decode(row)?;
            rows += 1;
            last = Some(key);
            Ok(item)
        })?;
        let last = last.filter(|_| rows >= self.limit);
        Ok(Page {
            items: found.into_iter().flatten().collect(),
            next: last.map(|last| Cursor(cursor(last))),
        })
    }

    /// As `page`, of a statement whose first column is the number to continue after, and whose parameters are
    /// `of`, that number and the limit.
    fn numbered(
        &self,
        sql: &str,
        of: Option<i64>,
        place: Place<'_>,
        mut decode: impl FnMut(&Row<'_>) -> EngineResult<Option<Item>>,
    ) -> EngineResult<Page> {
        let [after] = self.after([-1])?;
        let params = of.into_iter().chain([after, self.limit as i64]);
        let statement = (sql, rusqlite::params_from_iter(params));
        self.page(statement, place, numbers_cursor, |row| {
            Ok(([row.number::<i64>(0)?], decode(row)?))
        })
    }

    /// The numbers to continue after; `start` on the first page.
    fn after<const N: usize>(&self, start: [i64; N]) -> EngineResult<[i64; N]> {
        let Some(cursor) = self.cursor else {
            return Ok(start);
        };
        let (numbers, rest) = cursor.0.as_chunks::<8>();
        let numbers: Vec<i64> = numbers.iter().copied().map(i64::from_be_bytes).collect();
        <[i64; N]>::try_from(numbers)
            .ok()
            .filter(|_| rest.is_empty())
            .ok_or_else(|| refused("cursor is not of this enumeration"))
    }

    fn after_name(&self) -> &[u8] {
        self.cursor.map_or(&[], |cursor| &cursor.0)
    }

    /// Entries in the order of their names. A name stored as TEXT sorts before every BLOB and is not found by
    /// lookups either; it is left out, like an empty one.
    fn dir(&self, parent: Ino, attrs: bool) -> EngineResult<Page> {
        let plain = "SELECT name, type, inode FROM jfs_edge WHERE parent=?1 AND name>?2 \
                     ORDER BY name LIMIT ?3";
        let with_attrs = concat!(
            "SELECT e.name, e.type, e.inode, n.inode, ",
            node_columns!("n."),
            " FROM jfs_edge e LEFT JOIN jfs_node n ON n.inode=e.inode",
            " WHERE e.parent=?1 AND e.name>?2 ORDER BY e.name LIMIT ?3"
        );
        let sql = if attrs { with_attrs } else { plain };
        let params = (id(parent), self.after_name(), self.limit as i64);
        let place: Place<'_> = ("jfs_edge below", &parent);
        self.page(
            (sql, params),
            place,
            |name| name,
            |row| {
                let name = row.bytes(0)?;
                let (dentry, attr) = if attrs {
                    read::joined(row, 1)?
                } else {
                    (record::dentry(row, 1)?, None)
                };
                let item = Item::Entry {
                    name: name.clone(),
                    dentry,
                    attr,
                };
                Ok((name, Some(item)))
            },
        )
    }

    fn xattrs(&self, ino: Ino) -> EngineResult<Page> {
        let sql = "SELECT name, value FROM jfs_xattr WHERE inode=?1 AND name>?2 \
                   ORDER BY name LIMIT ?3";
        let params = (id(ino), Text(self.after_name()), self.limit as i64);
        self.page(
            (sql, params),
            ("jfs_xattr", &ino),
            |name| name,
            |row| {
                let name = row.bytes(0)?;
                let item = Item::Xattr {
                    name: name.clone(),
                    value: row.bytes(1)?,
                };
                Ok((name, Some(item)))
            },
        )
    }

    fn chunks(&self, ino: Ino) -> EngineResult<Page> {
        let sql = "SELECT indx, slices FROM jfs_chunk WHERE inode=?1 AND indx>?2 \
                   ORDER BY indx LIMIT ?3";
        self.numbered(sql, Some(id(ino)), ("jfs_chunk of", &ino), |row| {
            let slices = record::slices(row, 1)?;
            let index = ChunkIndex(row.number(0)?);
            Ok((!slices.is_empty()).then_some(Item::Chunk { index, slices }))
        })
    }

    fn all_chunks(&self) -> EngineResult<Page> {
        let sql = "SELECT id, inode, indx, slices FROM jfs_chunk WHERE id>?1 ORDER BY id LIMIT ?2";
        self.numbered(sql, None, ("jfs_chunk", &"page"), |row| {
            let slices = record::slices(row, 3)?;
            let (ino, index) = (Ino(row.number(1)?), ChunkIndex(row.number(2)?));
            Ok((!slices.is_empty()).then_some(Item::FileChunk { ino, index, slices }))
        })
    }

    fn deleted_files(&self) -> EngineResult<Page> {
        let sql = "SELECT inode, length, expire FROM jfs_delfile WHERE inode>?1 \
                   ORDER BY inode LIMIT ?2";
        self.numbered(sql, None, ("jfs_delfile", &"page"), |row| {
            Ok(Some(Item::DeletedFile {
                ino: Ino(row.number(0)?),
                length: row.number(1)?,
                time: row.number(2)?,
            }))
        })
    }

    fn sessions(&self) -> EngineResult<Page> {
        let sql = "SELECT sid, expire, info FROM jfs_session2 WHERE sid>?1 ORDER BY sid LIMIT ?2";
        self.numbered(sql, None, ("jfs_session2", &"page"), |row| {
            Ok(Some(Item::Session {
                sid: SessionId(row.number(0)?),
                expire: row.number(1)?,
                info: row.bytes(2)?,
            }))
        })
    }

    fn quotas(&self, kind: QuotaKind) -> EngineResult<Page> {
        let QuotaTable { name, key, column } = QuotaTable::of(kind);
        let sql = format!(
            "SELECT {column}, max_space, max_inodes, used_space, used_inodes FROM {name} \
             WHERE {key}>?1 ORDER BY {column} LIMIT ?2"
        );
        self.numbered(&sql, None, (name, &"page"), |row| {
            let number = row.number(0)?;
            let key = kind.key(number).ok_or_else(|| {
                row.corrupt(format!(
                    "{column} is {number}: not the number of a user or group"
                ))
            })?;
            let quota = record::quota(row, 1)?;
            Ok(Some(Item::Quota { key, quota }))
        })
    }

    fn acls(&self) -> EngineResult<Page> {
        let sql = "SELECT id, owner, `group`, mask, other, named_users, named_groups FROM jfs_acl \
                   WHERE id>?1 ORDER BY id LIMIT ?2";
        self.numbered(sql, None, ("jfs_acl", &"page"), |row| {
            Ok(Some(Item::Acl {
                id: row.number(0)?,
                rule: record::acl(row, 1)?,
            }))
        })
    }

    fn delayed_slices(&self) -> EngineResult<Page> {
        let sql = "SELECT chunkid, deleted, slices FROM jfs_delslices WHERE chunkid>?1 \
                   ORDER BY chunkid LIMIT ?2";
        self.numbered(sql, None, ("jfs_delslices", &"page"), |row| {
            Ok(Some(Item::DelayedSlices {
                id: SliceId(row.number(0)?),
                time: row.number(1)?,
                slices: record::delayed_slices(row, 2)?,
            }))
        })
    }

    /// In the order of the index by references, whose trailing column is the key: the living, which are
    /// nearly all, are not passed over.
    fn dead_slices(&self) -> EngineResult<Page> {
        let [refs, slice] = self.after([i64::MIN, -1])?;
        let sql = "SELECT refs, chunkid, size FROM jfs_chunk_ref \
                   WHERE refs<=0 AND refs>=?1 AND (refs>?1 OR chunkid>?2) \
                   ORDER BY refs, chunkid LIMIT ?3";
        let params = (refs, slice, self.limit as i64);
        self.page(
            (sql, params),
            ("jfs_chunk_ref", &"page"),
            numbers_cursor,
            |row| {
                let item = Item::DeadSlice {
                    id: SliceId(row.number(1)?),
                    size: row.number(2)?,
                };
                Ok(([row.number(0)?, row.number(1)?], Some(item)))
            },
        )
    }

    fn detached(&self) -> EngineResult<Page> {
        let sql = "SELECT inode, added FROM jfs_detached_node WHERE inode>?1 \
                   ORDER BY inode LIMIT ?2";
        self.numbered(sql, None, ("jfs_detached_node", &"page"), |row| {
            Ok(Some(Item::Detached {
                ino: Ino(row.number(0)?),
                time: row.number(1)?,
            }))
        })
    }

    fn inodes(&self) -> EngineResult<Page> {
        let sql = concat!(
            "SELECT inode, ",
            node_columns!(""),
            " FROM jfs_node WHERE inode>?1 ORDER BY inode LIMIT ?2"
        );
        self.numbered(sql, None, ("jfs_node", &"page"), |row| {
            Ok(Some(Item::Inode {
                ino: Ino(row.number(0)?),
                attr: record::attr(row, 1)?,
            }))
        })
    }

    /// BSD locks first, then POSIX locks; the cursor says which of the two, and the row.
    fn session_locks(&self, sid: SessionId) -> EngineResult<Page> {
        let [table, after] = self.after([FLOCKS, -1])?;
        let place: Place<'_> = ("locks of session", &sid.0);
        let params = (sid.0.cast_signed(), after, self.limit as i64);
        if table == FLOCKS {
            let sql = "SELECT id, inode, owner, ltype FROM jfs_flock WHERE sid=?1 AND id>?2 \
                       ORDER BY id LIMIT ?3";
            let page = self.page((sql, params), place, numbers_cursor, |row| {
                let ino = Ino(row.number(1)?);
                let lock = record::flock(row, sid, 2)?;
                Ok(([FLOCKS, row.number(0)?], Some(Item::Flock { ino, lock })))
            })?;
            let next = page
                .next
                .unwrap_or_else(|| Cursor(numbers_cursor([PLOCKS, -1])));
            return Ok(Page {
                items: page.items,
                next: Some(next),
            });
        }
        let sql = "SELECT id, inode, owner, records FROM jfs_plock WHERE sid=?1 AND id>?2 \
                   ORDER BY id LIMIT ?3";
        self.page((sql, params), place, numbers_cursor, |row| {
            let ino = Ino(row.number(1)?);
            let lock = record::plock(row, sid, 2)?;
            let item = (!lock.ranges.is_empty()).then_some(Item::Plock { ino, lock });
            Ok(([PLOCKS, row.number(0)?], item))
        })
    }
}

/// First number of a cursor of [`Scan::SessionLocks`]: in the table of BSD locks.
const FLOCKS: i64 = 0;
/// ... in the table of POSIX locks.
const PLOCKS: i64 = 1;

fn numbers_cursor<const N: usize>(numbers: [i64; N]) -> Bytes {
    numbers
        .iter()
        .flat_map(|number| number.to_be_bytes())
        .collect()
}
