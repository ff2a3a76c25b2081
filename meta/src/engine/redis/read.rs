//! Point reads: which commands fetch a key, and what their replies mean.
//!
//! Called by the engine's `read`, which sends the commands of all keys in one batch. Pure.

use bytes::Bytes;
use redis::Value;

use crate::engine::{EngineResult, Key, Record};
use crate::types::{DirStat, Ino, Name, Quota, Slice};

use super::layout::{self, keys};
use super::pipe::Batch;
use super::reply;

/// Adds the commands that read `key`; `lookup` names the loaded lookup script.
pub(super) fn ask(key: &Key, lookup: &str, batch: &mut Batch) {
    match key {
        Key::Entry { parent, name } => {
            let dir = keys::dir(*parent);
            batch.push_words(&[b"EVALSHA", lookup.as_bytes(), b"1", dir.as_bytes(), name]);
        }
        Key::Dentry { parent, name } => hget(batch, &keys::dir(*parent), name),
        Key::Xattr { ino, name } => hget(batch, &keys::xattrs(*ino), name),
        Key::SliceRefs { id, size } => {
            hget(
                batch,
                keys::SLICE_REFS,
                layout::slice_ref_field(*id, *size).as_bytes(),
            );
        }
        Key::Acl(id) => hget(batch, keys::ACLS, id.to_string().as_bytes()),
        Key::DirStat(ino) => hget_each(batch, keys::DIR_STATS, *ino),
        Key::DirQuota(ino) => hget_each(batch, keys::DIR_QUOTAS, *ino),
        Key::Chunk { ino, index } => {
            batch.push_words(&[b"LRANGE", keys::chunk(*ino, *index).as_bytes(), b"0", b"-1"]);
        }
        Key::Attr(_) | Key::Symlink(_) | Key::Counter(_) | Key::Setting => {
            batch.push_words(&[b"GET", name_of(key).as_bytes()]);
        }
        Key::XattrNames(_) => batch.push_words(&[b"HKEYS", name_of(key).as_bytes()]),
        Key::Parents(_) => batch.push_words(&[b"HGETALL", name_of(key).as_bytes()]),
        Key::Sustained(_) => batch.push_words(&[b"SMEMBERS", name_of(key).as_bytes()]),
    }
}

/// Takes the replies to the commands of `key` and makes a record of them.
pub(super) fn answer(
    key: &Key,
    replies: &mut impl Iterator<Item = Value>,
) -> EngineResult<Option<Record>> {
    let name = &name_of(key);
    // The connection answers every command; nil stands in for what cannot happen.
    let mut next = || replies.next().unwrap_or_default();
    Ok(match key {
        Key::Attr(_) => match reply::bytes(name, next())? {
            Some(raw) => Some(Record::Attr(layout::decode_attr(name, &raw)?)),
            None => None,
        },
        Key::Dentry { .. } => match reply::bytes(name, next())? {
            Some(raw) => Some(Record::Dentry(layout::decode_dentry(name, &raw)?)),
            None => None,
        },
        Key::Entry { .. } => entry(name, next())?,
        Key::Chunk { .. } => {
            let slices = slices(name, next())?;
            (!slices.is_empty()).then_some(Record::Slices(slices))
        }
        Key::Symlink(_) | Key::Xattr { .. } | Key::Setting => {
            reply::bytes(name, next())?.map(|raw| Record::Bytes(Bytes::from(raw)))
        }
        Key::XattrNames(_) => {
            let names = reply::strings(name, next())?;
            let names: Vec<Name> = names.into_iter().map(Bytes::from).collect();
            (!names.is_empty()).then_some(Record::Names(names))
        }
        Key::Parents(_) => {
            let parents = parents(name, next())?;
            (!parents.is_empty()).then_some(Record::Parents(parents))
        }
        Key::Counter(counter) => {
            let stored = optional_number(name, next())?.unwrap_or(0);
            Some(Record::Count(layout::counter_from_stored(*counter, stored)))
        }
        Key::SliceRefs { .. } => {
            let stored = optional_number(name, next())?.unwrap_or(0);
            Some(Record::Count(stored.saturating_add(1)))
        }
        Key::DirStat(_) => {
            let length = optional_number(name, next())?;
            let space = optional_number(name, next())?;
            let inodes = optional_number(name, next())?;
            length
                .zip(space)
                .zip(inodes)
                .map(|((length, space), inodes)| {
                    Record::DirStat(DirStat {
                        length,
                        space,
                        inodes,
                    })
                })
        }
        Key::DirQuota(_) => {
            let limits = reply::bytes(name, next())?;
            let used = (next(), next());
            match limits {
                Some(limits) => Some(Record::Quota(quota(name, &limits, used)?)),
                None => None,
            }
        }
        Key::Sustained(_) => {
            let members = reply::strings(name, next())?;
            let inodes = members.iter().map(|raw| layout::decode_ino(name, raw));
            let inodes = inodes.collect::<EngineResult<Vec<Ino>>>()?;
            (!inodes.is_empty()).then_some(Record::Inodes(inodes))
        }
        Key::Acl(_) => match reply::bytes(name, next())? {
            Some(raw) => Some(Record::Acl(layout::decode_acl(name, &raw)?)),
            None => None,
        },
    })
}

/// A slice list.
pub(super) fn slices(key: &str, value: Value) -> EngineResult<Vec<Slice>> {
    let records = reply::strings(key, value)?;
    records
        .iter()
        .map(|raw| layout::decode_slice(key, raw))
        .collect()
}

/// Limits of a quota with the two replies on its usage, which counts as zero where it is missing.
pub(super) fn quota(key: &str, limits: &[u8], used: (Value, Value)) -> EngineResult<Quota> {
    Ok(Quota {
        used_space: optional_number(key, used.0)?.unwrap_or(0),
        used_inodes: optional_number(key, used.1)?.unwrap_or(0),
        ..layout::decode_quota(key, limits)?
    })
}

fn entry(key: &str, value: Value) -> EngineResult<Option<Record>> {
    let mut found = reply::list(key, value)?.into_iter();
    let Some(dentry) = found.next() else {
        return Ok(None);
    };
    let dentry = layout::decode_dentry(key, &reply::string(key, dentry)?)?;
    let attr_key = keys::attr(dentry.ino);
    let attr = match reply::bytes(&attr_key, found.next().unwrap_or_default())? {
        Some(raw) => Some(layout::decode_attr(&attr_key, &raw)?),
        None => None,
    };
    Ok(Some(Record::Entry(dentry, attr)))
}

/// Zero and negative counts mean that the link is gone.
fn parents(key: &str, value: Value) -> EngineResult<Vec<(Ino, u32)>> {
    let mut parents = Vec::new();
    for (dir, count) in reply::pairs(key, value)? {
        let count = layout::decode_number(key, &count)?;
        if let Ok(count @ 1..) = u32::try_from(count) {
            parents.push((layout::decode_ino(key, &dir)?, count));
        }
    }
    Ok(parents)
}

fn optional_number(key: &str, value: Value) -> EngineResult<Option<i64>> {
    match value {
        Value::Nil => Ok(None),
        value => reply::number(key, value).map(Some),
    }
}

fn hget(batch: &mut Batch, key: &str, field: &[u8]) {
    batch.push_words(&[b"HGET", key.as_bytes(), field]);
}

fn hget_each(batch: &mut Batch, hashes: [&str; 3], ino: Ino) {
    for key in hashes {
        hget(batch, key, ino.to_string().as_bytes());
    }
}

/// The Redis key that holds `key`, the first where there are several.
fn name_of(key: &Key) -> String {
    match key {
        Key::Attr(ino) => keys::attr(*ino),
        Key::Dentry { parent, .. } | Key::Entry { parent, .. } => keys::dir(*parent),
        Key::Chunk { ino, index } => keys::chunk(*ino, *index),
        Key::Symlink(ino) => keys::symlink(*ino),
        Key::Xattr { ino, .. } | Key::XattrNames(ino) => keys::xattrs(*ino),
        Key::Parents(ino) => keys::parents(*ino),
        Key::Counter(counter) => keys::counter(*counter).to_owned(),
        Key::Setting => keys::SETTING.to_owned(),
        Key::SliceRefs { .. } => keys::SLICE_REFS.to_owned(),
        Key::DirStat(_) => keys::DIR_STATS[0].to_owned(),
        Key::DirQuota(_) => keys::DIR_QUOTAS[0].to_owned(),
        Key::Sustained(sid) => keys::sustained(*sid),
        Key::Acl(_) => keys::ACLS.to_owned(),
    }
}
