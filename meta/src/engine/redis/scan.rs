//! Enumerations, a page at a time.
//!
//! Called by the engine's `scan`. Cursors are the server's own, in decimal (a hash that is being resized may
//! show an entry twice); those of a file's chunks are the index to go on with. A page costs one round trip,
//! and another where attributes or a second record are wanted. Enumerations of the whole volume walk all
//! keys of the server's database: a page of them may well be empty.

use bytes::Bytes;
use redis::Value;

use crate::engine::{Cursor, EngineResult, Item, Page, Scan};
use crate::error::EngineError;
use crate::limits;
use crate::types::{CHUNK_BYTES, ChunkIndex, Ino, QuotaKind, SessionId};

use super::conn::{Connection, Repeat};
use super::keys::LockKey;
use super::pipe::Batch;
use super::{ENGINE, keys, layout, listing, read, reply, whole};

/// Fields and values, and where to go on.
struct Found {
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    next: Option<Cursor>,
}

/// One page of `scan`.
pub(super) async fn page(
    connection: &Connection,
    scan: &Scan,
    cursor: Option<&Cursor>,
    limit: usize,
) -> EngineResult<Page> {
    let limit = limit.max(1);
    if let Scan::Dir {
        parent,
        attrs: true,
    } = scan
    {
        return listing::page(connection, *parent, cursor, limit).await;
    }
    let from = position(cursor)?;
    match scan {
        Scan::Dir { parent, .. } => {
            let found = find(connection, "HSCAN", &keys::dir(*parent), from, limit).await?;
            entries(*parent, found)
        }
        Scan::Chunks { ino, length } => chunks(connection, *ino, *length, from, limit).await,
        Scan::DeletedFiles => {
            let found = find(connection, "ZSCAN", keys::DELETED_FILES, from, limit).await?;
            deleted_files(found)
        }
        Scan::Sessions => {
            let found = find(connection, "ZSCAN", keys::SESSIONS, from, limit).await?;
            sessions(connection, found).await
        }
        Scan::Quotas(kind) => {
            let used = keys::quotas(*kind)[2];
            let found = find(connection, "HSCAN", used, from, limit).await?;
            quotas(connection, *kind, found).await
        }
        Scan::Xattrs(ino) => {
            let found = find(connection, "HSCAN", &keys::xattrs(*ino), from, limit).await?;
            let items = found.pairs.into_iter().map(|(name, value)| Item::Xattr {
                name: Bytes::from(name),
                value: Bytes::from(value),
            });
            Ok(Page {
                items: items.collect(),
                next: found.next,
            })
        }
        Scan::Acls => {
            let found = find(connection, "HSCAN", keys::ACLS, from, limit).await?;
            acls(found)
        }
        Scan::DelayedSlices => {
            let found = find(connection, "HSCAN", keys::DELAYED_SLICES, from, limit).await?;
            delayed_slices(found)
        }
        Scan::DeadSlices => {
            let found = find(connection, "HSCAN", keys::SLICE_REFS, from, limit).await?;
            dead_slices(found)
        }
        Scan::Detached => {
            let found = find(connection, "ZSCAN", keys::DETACHED, from, limit).await?;
            detached(found)
        }
        Scan::SessionLocks(sid) => session_locks(connection, *sid, from, limit).await,
        Scan::Inodes => inodes(connection, from, limit).await,
        Scan::AllChunks => all_chunks(connection, from, limit).await,
    }
}

fn position(cursor: Option<&Cursor>) -> EngineResult<u64> {
    let Some(Cursor(text)) = cursor else {
        return Ok(0);
    };
    let text = std::str::from_utf8(text).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| EngineError::Refused {
            engine: ENGINE,
            cause: "the cursor of an enumeration is not one of this engine's".to_owned(),
        })
}

fn cursor_at(position: u64) -> Cursor {
    Cursor(Bytes::from(position.to_string()))
}

/// Runs a batch of reads.
async fn run(connection: &Connection, batch: &Batch) -> EngineResult<Vec<Value>> {
    connection.run(batch, Repeat::Freely).await
}

async fn find(
    connection: &Connection,
    command: &str,
    key: &str,
    from: u64,
    limit: usize,
) -> EngineResult<Found> {
    let mut batch = connection.batch();
    let (from, count) = (from.to_string(), limit.to_string());
    batch.key(command, key, &[from.as_bytes(), b"COUNT", count.as_bytes()]);
    let reply = run(connection, &batch).await?.pop().unwrap_or_default();
    let mut parts = reply::list(key, reply)?.into_iter();
    let next = reply::string(key, parts.next().unwrap_or_default())?;
    let pairs = reply::pairs(key, parts.next().unwrap_or_default())?;
    let next = (next != b"0").then(|| Cursor(Bytes::from(next)));
    Ok(Found { pairs, next })
}

/// Entries without attributes.
fn entries(parent: Ino, found: Found) -> EngineResult<Page> {
    let key = keys::dir(parent);
    let mut items = Vec::with_capacity(found.pairs.len());
    for (name, raw) in found.pairs {
        items.push(Item::Entry {
            name: Bytes::from(name),
            dentry: layout::decode_dentry(&key, &raw)?,
            attr: None,
        });
    }
    Ok(Page {
        items,
        next: found.next,
    })
}

/// Values of many attribute keys, nil for those without.
async fn attr_records(
    connection: &Connection,
    key: &str,
    names: Vec<String>,
) -> EngineResult<Vec<Value>> {
    let mut batch = connection.batch();
    for part in names.chunks(limits::REDIS_MGET_KEYS) {
        batch.keys("MGET", part.iter(), &[]);
    }
    let mut records = Vec::with_capacity(names.len());
    for reply in run(connection, &batch).await? {
        records.extend(reply::list(key, reply)?);
    }
    Ok(records)
}

/// Redis cannot list the chunks of a file: asks for every index below its length.
async fn chunks(
    connection: &Connection,
    ino: Ino,
    length: u64,
    from: u64,
    limit: usize,
) -> EngineResult<Page> {
    let end = length.div_ceil(CHUNK_BYTES).min(u64::from(u32::MAX));
    let stop = from
        .saturating_add(limit.min(limits::REDIS_MGET_KEYS) as u64)
        .min(end);
    let indices = || {
        (from..stop)
            .filter_map(|index| u32::try_from(index).ok())
            .map(ChunkIndex)
    };
    let mut batch = connection.batch();
    for index in indices() {
        batch.key("LRANGE", &keys::chunk(ino, index), &[b"0", b"-1"]);
    }
    let mut items = Vec::new();
    for (index, reply) in indices().zip(run(connection, &batch).await?) {
        let slices = read::slices(&keys::chunk(ino, index), reply)?;
        if !slices.is_empty() {
            items.push(Item::Chunk { index, slices });
        }
    }
    Ok(Page {
        items,
        next: (stop < end).then(|| cursor_at(stop)),
    })
}

fn deleted_files(found: Found) -> EngineResult<Page> {
    let mut items = Vec::with_capacity(found.pairs.len());
    for (member, score) in found.pairs {
        let Some((ino, length)) = keys::deleted_file_of(&member) else {
            tracing::debug!(member = %member.escape_ascii(), "deleted file of an old release");
            continue;
        };
        items.push(Item::DeletedFile {
            ino,
            length,
            time: seconds(keys::DELETED_FILES, &score)?,
        });
    }
    Ok(Page {
        items,
        next: found.next,
    })
}

async fn sessions(connection: &Connection, found: Found) -> EngineResult<Page> {
    let mut batch = connection.batch();
    for (sid, _) in &found.pairs {
        batch.key("HGET", keys::SESSION_INFOS, &[sid]);
    }
    let infos = run(connection, &batch).await?;
    let mut items = Vec::with_capacity(found.pairs.len());
    for ((sid, expire), info) in found.pairs.into_iter().zip(infos) {
        let info = reply::bytes(keys::SESSION_INFOS, info)?;
        items.push(Item::Session {
            sid: SessionId(layout::decode_number(keys::SESSIONS, &sid)?.unsigned_abs()),
            expire: seconds(keys::SESSIONS, &expire)?,
            info: info.map(Bytes::from).unwrap_or_default(),
        });
    }
    Ok(Page {
        items,
        next: found.next,
    })
}

async fn quotas(connection: &Connection, kind: QuotaKind, found: Found) -> EngineResult<Page> {
    let [limits, space, inodes] = keys::quotas(kind);
    let mut batch = connection.batch();
    for (number, _) in &found.pairs {
        batch.key("HGET", limits, &[number]);
        batch.key("HGET", space, &[number]);
    }
    let mut replies = run(connection, &batch).await?.into_iter();
    let mut items = Vec::with_capacity(found.pairs.len());
    for (number, used_inodes) in found.pairs {
        let mut next = || replies.next().unwrap_or_default();
        let parts = [next(), next(), Value::BulkString(used_inodes)];
        let key = kind.key(layout::decode_ino(inodes, &number)?.0);
        let key = key.ok_or_else(|| layout::corrupt(inodes, "a number beyond 32 bits"))?;
        if let Some(quota) = read::quota(limits, parts)? {
            items.push(Item::Quota { key, quota });
        }
    }
    Ok(Page {
        items,
        next: found.next,
    })
}

fn acls(found: Found) -> EngineResult<Page> {
    let mut items = Vec::with_capacity(found.pairs.len());
    for (id, raw) in found.pairs {
        let id = u32::try_from(layout::decode_number(keys::ACLS, &id)?)
            .map_err(|_| layout::corrupt(keys::ACLS, "the number of a rule is beyond 32 bits"))?;
        let rule = layout::decode_acl(keys::ACLS, &raw)?;
        items.push(Item::Acl { id, rule });
    }
    Ok(Page {
        items,
        next: found.next,
    })
}

fn delayed_slices(found: Found) -> EngineResult<Page> {
    let key = keys::DELAYED_SLICES;
    let mut items = Vec::with_capacity(found.pairs.len());
    for (field, raw) in found.pairs {
        let Some((id, time)) = keys::delayed_of(&field) else {
            tracing::warn!(key, field = %field.escape_ascii(), "not a note of delayed slices");
            continue;
        };
        let slices = layout::decode_delayed(key, &raw)?;
        items.push(Item::DelayedSlices { id, time, slices });
    }
    Ok(Page {
        items,
        next: found.next,
    })
}

/// A stored number below zero means that not one reference is left.
fn dead_slices(found: Found) -> EngineResult<Page> {
    let key = keys::SLICE_REFS;
    let mut items = Vec::new();
    for (field, stored) in found.pairs {
        if layout::decode_number(key, &stored)? >= 0 {
            continue;
        }
        match keys::slice_ref_of(&field) {
            Some((id, size)) => items.push(Item::DeadSlice { id, size }),
            None => tracing::warn!(key, field = %field.escape_ascii(), "not a slice"),
        }
    }
    Ok(Page {
        items,
        next: found.next,
    })
}

fn detached(found: Found) -> EngineResult<Page> {
    let mut items = Vec::with_capacity(found.pairs.len());
    for (member, score) in found.pairs {
        items.push(Item::Detached {
            ino: layout::decode_ino(keys::DETACHED, &member)?,
            time: seconds(keys::DETACHED, &score)?,
        });
    }
    Ok(Page {
        items,
        next: found.next,
    })
}

/// Locks are found by the keys that the session is noted to have some in.
async fn session_locks(
    connection: &Connection,
    sid: SessionId,
    from: u64,
    limit: usize,
) -> EngineResult<Page> {
    let (held, next) = members(connection, &keys::locked(sid), from, limit).await?;
    let prefix = connection.prefix();
    let known: Vec<LockKey> = held
        .iter()
        .filter_map(|name| LockKey::of(name.strip_prefix(prefix.as_bytes())?))
        .collect();
    let mut batch = connection.batch();
    for key in &known {
        batch.key("HGETALL", &key.name(), &[]);
    }
    let mut items = Vec::with_capacity(known.len());
    for (key, reply) in known.into_iter().zip(run(connection, &batch).await?) {
        let name = key.name();
        match key {
            LockKey::Flocks(ino) => {
                let locks = read::flocks(&name, reply)?.into_iter();
                let mine = locks.filter(|lock| lock.sid == sid);
                items.extend(mine.map(|lock| Item::Flock { ino, lock }));
            }
            LockKey::Plocks(ino) => {
                let locks = read::plocks(&name, reply)?.into_iter();
                let mine = locks.filter(|lock| lock.sid == sid);
                items.extend(mine.map(|lock| Item::Plock { ino, lock }));
            }
        }
    }
    Ok(Page { items, next })
}

async fn members(
    connection: &Connection,
    key: &str,
    from: u64,
    limit: usize,
) -> EngineResult<(Vec<Vec<u8>>, Option<Cursor>)> {
    let mut batch = connection.batch();
    let (from, count) = (from.to_string(), limit.to_string());
    batch.key("SSCAN", key, &[from.as_bytes(), b"COUNT", count.as_bytes()]);
    let reply = run(connection, &batch).await?.pop().unwrap_or_default();
    let mut parts = reply::list(key, reply)?.into_iter();
    let next = reply::string(key, parts.next().unwrap_or_default())?;
    let members = reply::strings(key, parts.next().unwrap_or_default())?;
    let next = (next != b"0").then(|| Cursor(Bytes::from(next)));
    Ok((members, next))
}

/// Names among the volume's keys, without its prefix.
async fn names<T>(
    connection: &Connection,
    pattern: &str,
    (from, limit): (u64, usize),
    parse: impl Fn(&[u8]) -> Option<T>,
) -> EngineResult<(Vec<T>, Option<Cursor>)> {
    let (found, next) = whole::page(connection, pattern, from, limit).await?;
    let prefix = connection.prefix();
    let found = found
        .iter()
        .filter_map(|name| parse(name.strip_prefix(prefix.as_bytes())?));
    Ok((found.collect(), (next != 0).then(|| cursor_at(next))))
}

async fn inodes(connection: &Connection, from: u64, limit: usize) -> EngineResult<Page> {
    let (inos, next) = names(connection, "i[0-9]*", (from, limit), keys::attr_ino).await?;
    let wanted = inos.iter().map(|ino| keys::attr(*ino)).collect();
    let records = attr_records(connection, "i*", wanted).await?;
    let mut items = Vec::with_capacity(inos.len());
    for (ino, raw) in inos.into_iter().zip(records) {
        let key = keys::attr(ino);
        // Nil: gone since its name was read.
        if let Some(raw) = reply::bytes(&key, raw)? {
            let attr = layout::decode_attr(&key, &raw)?;
            items.push(Item::Inode { ino, attr });
        }
    }
    Ok(Page { items, next })
}

async fn all_chunks(connection: &Connection, from: u64, limit: usize) -> EngineResult<Page> {
    let (chunks, next) = names(connection, "c[0-9]*_*", (from, limit), keys::chunk_of).await?;
    let mut batch = connection.batch();
    for (ino, index) in &chunks {
        batch.key("LRANGE", &keys::chunk(*ino, *index), &[b"0", b"-1"]);
    }
    let mut items = Vec::with_capacity(chunks.len());
    for ((ino, index), reply) in chunks.into_iter().zip(run(connection, &batch).await?) {
        let slices = read::slices(&keys::chunk(ino, index), reply)?;
        if !slices.is_empty() {
            items.push(Item::FileChunk { ino, index, slices });
        }
    }
    Ok(Page { items, next })
}

/// Scores of sorted sets are doubles, and print as such.
fn seconds(key: &str, score: &[u8]) -> EngineResult<i64> {
    let score = std::str::from_utf8(score)
        .ok()
        .and_then(|text| text.parse::<f64>().ok());
    let score = score.filter(|score| score.is_finite());
    // Seconds since the epoch are far below 2^53: nothing is lost.
    score
        .map(|score| score as i64)
        .ok_or_else(|| layout::corrupt(key, "a score is not a time"))
}
