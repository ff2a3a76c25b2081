//! Listings with attributes: the names of the next page are asked for together with the attributes of this one, so
//! that a directory of n entries costs a round trip for each page and one more.
//!
//! Called by [`super::scan`]. The cursor carries the names that were read ahead, which is its only state: some
//! tens of kilobytes for a page of a thousand names. Names are as old as the page before them.
//!
//! Cursor: `L`, whether there is more (u8), where (u64), then for each entry name and value, each behind its
//! length (u16). All big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::engine::{Cursor, EngineResult, Item, Page};
use crate::error::EngineError;
use crate::limits;
use crate::types::{Dentry, Ino, Name};

use super::conn::{Connection, Repeat};
use super::{ENGINE, keys, layout, reply};

/// First byte of a cursor.
const MARK: u8 = b'L';

/// Names with their raw dentries, and where the enumeration goes on.
#[derive(Default, PartialEq, Eq, Debug)]
struct Names {
    pairs: Vec<(Name, Bytes)>,
    next: Option<u64>,
}

/// One page of a directory with the attributes of its entries.
pub(super) async fn page(
    connection: &Connection,
    parent: Ino,
    cursor: Option<&Cursor>,
    limit: usize,
) -> EngineResult<Page> {
    let key = keys::dir(parent);
    let names = match cursor {
        Some(cursor) => Names::decode(&cursor.0)?,
        None => {
            let mut batch = connection.batch();
            ask(&mut batch, &key, 0, limit);
            let mut replies = connection.run(&batch, Repeat::Freely).await?;
            Names::of(&key, replies.pop().unwrap_or_default())?
        }
    };
    let mut found: Vec<(Name, Dentry)> = Vec::with_capacity(names.pairs.len());
    for (name, raw) in names.pairs {
        found.push((name, layout::decode_dentry(&key, &raw)?));
    }
    let mut batch = connection.batch();
    for part in found.chunks(limits::REDIS_MGET_KEYS) {
        let attrs = part.iter().map(|(_, dentry)| keys::attr(dentry.ino));
        batch.keys("MGET", attrs, &[]);
    }
    if let Some(next) = names.next {
        ask(&mut batch, &key, next, limit);
    }
    let mut replies = connection.run(&batch, Repeat::Freely).await?;
    let ahead = match names.next {
        Some(_) => Some(Names::of(&key, replies.pop().unwrap_or_default())?),
        None => None,
    };
    let mut records = Vec::with_capacity(found.len());
    for reply in replies {
        records.extend(reply::list(&key, reply)?);
    }
    let mut records = records.into_iter();
    let mut items = Vec::with_capacity(found.len());
    for (name, dentry) in found {
        let attr_key = keys::attr(dentry.ino);
        let raw = reply::bytes(&attr_key, records.next().unwrap_or_default())?;
        let attr = raw
            .map(|raw| layout::decode_attr(&attr_key, &raw))
            .transpose()?;
        items.push(Item::Entry { name, dentry, attr });
    }
    Ok(Page {
        items,
        next: ahead.map(|ahead| Cursor(ahead.encode())),
    })
}

fn ask(batch: &mut super::pipe::Batch, key: &str, from: u64, limit: usize) {
    let (from, count) = (from.to_string(), limit.to_string());
    batch.key("HSCAN", key, &[from.as_bytes(), b"COUNT", count.as_bytes()]);
}

impl Names {
    fn of(key: &str, reply: redis::Value) -> EngineResult<Names> {
        let mut parts = reply::list(key, reply)?.into_iter();
        let next = reply::string(key, parts.next().unwrap_or_default())?;
        let next: u64 = std::str::from_utf8(&next)
            .ok()
            .and_then(|next| next.parse().ok())
            .ok_or_else(|| EngineError::Corrupt {
                record: key.to_owned(),
                cause: "the enumeration goes on at no number".into(),
            })?;
        let pairs = reply::pairs(key, parts.next().unwrap_or_default())?;
        let pairs = pairs.into_iter();
        Ok(Names {
            pairs: pairs
                .map(|(name, raw)| (Bytes::from(name), Bytes::from(raw)))
                .collect(),
            next: (next != 0).then_some(next),
        })
    }

    fn encode(&self) -> Bytes {
        let size: usize = self
            .pairs
            .iter()
            .map(|(name, raw)| 4 + name.len() + raw.len())
            .sum();
        let mut out = BytesMut::with_capacity(size + 10);
        out.put_u8(MARK);
        out.put_u8(u8::from(self.next.is_some()));
        out.put_u64(self.next.unwrap_or(0));
        for part in self.pairs.iter().flat_map(|(name, raw)| [name, raw]) {
            // Whatever is longer is no name and no dentry: cut, it is found to be damaged when it is decoded.
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            out.put_u16(length);
            out.put_slice(&part[..usize::from(length)]);
        }
        out.freeze()
    }

    fn decode(raw: &Bytes) -> EngineResult<Names> {
        let foreign = || EngineError::Refused {
            engine: ENGINE,
            cause: "the cursor of a listing is not one of this engine's".to_owned(),
        };
        let mut rest = raw.clone();
        if rest.remaining() < 10 || rest.get_u8() != MARK {
            return Err(foreign());
        }
        let (more, at) = (rest.get_u8() != 0, rest.get_u64());
        let mut part = || -> Option<Bytes> {
            let length = usize::from(rest.try_get_u16().ok()?);
            (rest.remaining() >= length).then(|| rest.split_to(length))
        };
        let mut pairs = Vec::new();
        while let Some(name) = part() {
            pairs.push((name, part().ok_or_else(foreign)?));
        }
        if rest.has_remaining() {
            return Err(foreign());
        }
        Ok(Names {
            pairs,
            next: more.then_some(at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_carry_names() {
        for next in [None, Some(1), Some(u64::MAX)] {
            let pair = |name: &'static str| (Name::from(name), Bytes::from_static(&[2; 9]));
            let names = Names {
                pairs: vec![pair("a"), pair("a longer name")],
                next,
            };
            let raw = names.encode();
            assert_eq!(Names::decode(&raw).unwrap(), names);
            for cut in 0..raw.len() {
                if let Ok(found) = Names::decode(&raw.slice(..cut)) {
                    assert!(found.pairs.len() < 2, "a cut between entries");
                }
            }
        }
        assert!(Names::decode(&Bytes::from_static(b"17")).is_err());
    }
}
