//! All keys of a volume at once: is there any, and away with them.
//!
//! Called by the engine's `is_empty` and `destroy`. A volume without a prefix has its database to itself,
//! as JuiceFS has it; one with a prefix shares its node with other volumes of the cluster, so its keys are
//! looked for.

use crate::engine::EngineResult;
use crate::limits;

use super::conn::{Connection, Repeat};
use super::{keys, reply};

/// Names the replies of this file in errors.
const KEY: &str = "keys of the volume";

/// Whether the volume has no key at all. One round trip, or one for each page of the node's keys.
pub(super) async fn is_empty(connection: &Connection) -> EngineResult<bool> {
    if connection.prefix().is_empty() {
        let mut batch = connection.batch();
        batch.push_words(&[b"DBSIZE"]);
        let replies = connection.run(&batch, Repeat::Freely).await?;
        return Ok(reply::number(KEY, replies.into_iter().next().unwrap_or_default())? == 0);
    }
    let mut cursor = 0;
    loop {
        let (found, next) = page(connection, "*", cursor, limits::REDIS_MGET_KEYS).await?;
        if !found.is_empty() || next == 0 {
            return Ok(found.is_empty());
        }
        cursor = next;
    }
}

/// Removes every key of the volume. If they move to another node meanwhile, the rest is removed there.
pub(super) async fn destroy(connection: &Connection) -> EngineResult<()> {
    if connection.prefix().is_empty() {
        let mut batch = connection.batch();
        batch.push_words(&[b"FLUSHDB"]);
        connection.run(&batch, Repeat::Freely).await?;
        return Ok(());
    }
    while !is_empty(connection).await? {
        unlink(connection).await?;
    }
    Ok(())
}

/// Removes the keys that one walk over the node finds.
async fn unlink(connection: &Connection) -> EngineResult<()> {
    let mut cursor = 0;
    loop {
        let (found, next) = page(connection, "*", cursor, limits::REDIS_MGET_KEYS).await?;
        if !found.is_empty() {
            let names = found.iter().map(|name| name.as_slice());
            let mut batch = connection.batch();
            let words: Vec<&[u8]> = std::iter::once(&b"UNLINK"[..]).chain(names).collect();
            batch.push_words(&words);
            connection.run(&batch, Repeat::Freely).await?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Full names of some keys of the volume that match `pattern`, and where to go on (0: nowhere).
pub(super) async fn page(
    connection: &Connection,
    pattern: &str,
    cursor: u64,
    count: usize,
) -> EngineResult<(Vec<Vec<u8>>, u64)> {
    let pattern = format!("{}{pattern}", connection.prefix());
    let (cursor, count) = (cursor.to_string(), count.to_string());
    let words = ["SCAN", &cursor, "MATCH", &pattern, "COUNT", &count];
    let mut batch = connection.batch();
    if !connection.prefix().is_empty() {
        // SCAN names no key: without this a node that has given the volume away would answer "nothing".
        batch.key("EXISTS", keys::SETTING, &[]);
    }
    batch.push_words(&words.map(str::as_bytes));
    let mut replies = connection.run(&batch, Repeat::Freely).await?;
    let reply = replies.pop().unwrap_or_default();
    let mut parts = reply::list(KEY, reply)?.into_iter();
    let next = reply::string(KEY, parts.next().unwrap_or_default())?;
    let found = reply::strings(KEY, parts.next().unwrap_or_default())?;
    let next = std::str::from_utf8(&next)
        .ok()
        .and_then(|text| text.parse().ok());
    let next = next.ok_or_else(|| super::layout::corrupt(KEY, "no cursor"))?;
    Ok((found, next))
}
