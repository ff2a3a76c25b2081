//! Enumerations, a page at a time.
//!
//! Called by the engine's `scan`. Cursors are the server's own, in decimal (a hash that is being resized may
//! show an entry twice); those of chunks are the index to go on with. A page costs one round trip, and
//! another where attributes or a second record are wanted.

use bytes::Bytes;
use redis::Value;

use crate::engine::{Cursor, EngineResult, Item, Page, Scan};
use crate::error::EngineError;
use crate::limits;
use crate::types::{CHUNK_BYTES, ChunkIndex, Dentry, Ino, Name, SessionId};

use super::conn::{Connection, Repeat};
use super::layout::{self, keys};
use super::pipe::Batch;
use super::{ENGINE, read, reply};

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
    let from = position(cursor)?;
    let limit = limit.max(1);
    match scan {
        Scan::Dir { parent, attrs } => {
            let found = find(connection, "HSCAN", &keys::dir(*parent), from, limit).await?;
            entries(connection, *parent, *attrs, found).await
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
        Scan::DirQuotas => {
            let found = find(connection, "HSCAN", keys::DIR_QUOTAS[0], from, limit).await?;
            quotas(connection, found).await
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
    let mut batch = Batch::default();
    let (from, count) = (from.to_string(), limit.to_string());
    let words = [command, key, from.as_str(), "COUNT", count.as_str()];
    batch.push_words(&words.map(str::as_bytes));
    let reply = run(connection, &batch).await?.pop().unwrap_or_default();
    let mut parts = reply::list(key, reply)?.into_iter();
    let next = reply::string(key, parts.next().unwrap_or_default())?;
    let pairs = reply::pairs(key, parts.next().unwrap_or_default())?;
    let next = (next != b"0").then(|| Cursor(Bytes::from(next)));
    Ok(Found { pairs, next })
}

async fn entries(
    connection: &Connection,
    parent: Ino,
    attrs: bool,
    found: Found,
) -> EngineResult<Page> {
    let key = keys::dir(parent);
    let mut named: Vec<(Name, Dentry)> = Vec::with_capacity(found.pairs.len());
    for (name, raw) in found.pairs {
        named.push((Bytes::from(name), layout::decode_dentry(&key, &raw)?));
    }
    let mut batch = Batch::default();
    for part in named.chunks(limits::REDIS_MGET_KEYS).filter(|_| attrs) {
        let mut command = redis::Cmd::new();
        command.arg("MGET");
        for (_, dentry) in part {
            command.arg(keys::attr(dentry.ino));
        }
        batch.push(&command);
    }
    let mut records = Vec::with_capacity(named.len());
    for reply in run(connection, &batch).await? {
        records.extend(reply::list(&key, reply)?);
    }
    let mut records = records.into_iter();
    let mut items = Vec::with_capacity(named.len());
    for (name, dentry) in named {
        let attr_key = keys::attr(dentry.ino);
        let raw = reply::bytes(&attr_key, records.next().unwrap_or_default())?;
        let attr = raw
            .map(|raw| layout::decode_attr(&attr_key, &raw))
            .transpose()?;
        items.push(Item::Entry { name, dentry, attr });
    }
    Ok(Page {
        items,
        next: found.next,
    })
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
    let mut batch = Batch::default();
    for index in indices() {
        batch.push_words(&[b"LRANGE", keys::chunk(ino, index).as_bytes(), b"0", b"-1"]);
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
        let Some((ino, length)) = layout::decode_deleted_file(&member) else {
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
    let mut batch = Batch::default();
    for (sid, _) in &found.pairs {
        batch.push_words(&[b"HGET", keys::SESSION_INFOS.as_bytes(), sid]);
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

async fn quotas(connection: &Connection, found: Found) -> EngineResult<Page> {
    let [limits, space, inodes] = keys::DIR_QUOTAS;
    let mut batch = Batch::default();
    for (ino, _) in &found.pairs {
        batch.push_words(&[b"HGET", space.as_bytes(), ino]);
        batch.push_words(&[b"HGET", inodes.as_bytes(), ino]);
    }
    let mut used = run(connection, &batch).await?.into_iter();
    let mut items = Vec::with_capacity(found.pairs.len());
    for (ino, raw) in found.pairs {
        let used = (
            used.next().unwrap_or_default(),
            used.next().unwrap_or_default(),
        );
        let ino = layout::decode_ino(limits, &ino)?;
        items.push(Item::Quota {
            ino,
            quota: read::quota(limits, &raw, used)?,
        });
    }
    Ok(Page {
        items,
        next: found.next,
    })
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
