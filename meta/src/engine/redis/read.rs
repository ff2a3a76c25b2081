//! Point reads: which commands fetch a key, and what their replies mean.
//!
//! Called by the engine's `read`, which sends the commands of all keys in one batch. Pure.

use bytes::Bytes;
use redis::Value;

use crate::engine::{EngineResult, Key, Record};
use crate::limits::DIR_DEPTH_MAX;
use crate::types::{Attr, DirStat, Flock, Ino, Name, Plock, Quota, SessionId, Slice};

use super::pipe::Batch;
use super::{keys, layout, reply, script};

/// Adds the commands that read `key`; `sha` gives the name of a loaded script by its position.
pub(super) fn ask<'a>(key: &Key, sha: impl Fn(usize) -> &'a str, batch: &mut Batch) {
    let name = name_of(key);
    match key {
        Key::Entry { name: entry, .. } => batch.script(sha(script::LOOKUP), &name, &[entry]),
        Key::Path { names, .. } => {
            let names: Vec<&[u8]> = names.iter().map(|name| name.as_ref()).collect();
            batch.script(sha(script::PATH), &name, &names);
        }
        Key::Ancestors(ino) => {
            let words = [ino.0, Ino::ROOT.0, Ino::TRASH.0, DIR_DEPTH_MAX as u64];
            let words = words.map(|number| number.to_string());
            batch.script(
                sha(script::ANCESTORS),
                &name,
                &words.each_ref().map(|word| word.as_bytes()),
            );
        }
        Key::Dentry { name: field, .. } | Key::Xattr { name: field, .. } => {
            batch.key("HGET", &name, &[field]);
        }
        Key::SliceRefs { id, size } => {
            batch.key("HGET", &name, &[keys::slice_ref(*id, *size).as_bytes()]);
        }
        Key::Acl(id) => batch.key("HGET", &name, &[id.to_string().as_bytes()]),
        Key::DirStat(ino) => hget_each(batch, keys::DIR_STATS, ino.0),
        Key::Quota(quota) => hget_each(batch, keys::quotas(quota.kind()), quota.number()),
        Key::Chunk { .. } => batch.key("LRANGE", &name, &[b"0", b"-1"]),
        Key::Attr(_) | Key::Symlink(_) | Key::Counter(_) | Key::Setting => {
            batch.key("GET", &name, &[]);
        }
        Key::XattrNames(_) => batch.key("HKEYS", &name, &[]),
        Key::Parents(_) | Key::Flocks(_) | Key::Plocks(_) => batch.key("HGETALL", &name, &[]),
        Key::Sustained(_) => batch.key("SMEMBERS", &name, &[]),
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
        Key::Quota(_) => quota(name, [next(), next(), next()])?.map(Record::Quota),
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
        Key::Flocks(_) => {
            let mut locks = flocks(name, next())?;
            locks.sort_unstable();
            (!locks.is_empty()).then_some(Record::Flocks(locks))
        }
        Key::Plocks(_) => {
            let mut locks = plocks(name, next())?;
            locks.sort_unstable();
            (!locks.is_empty()).then_some(Record::Plocks(locks))
        }
        Key::Path { .. } => Some(Record::Path(path(name, next())?)),
        Key::Ancestors(_) => Some(Record::Path(ancestors(name, next())?)),
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

/// A quota from the replies on its limits, used space and used inodes. The last decides whether there is
/// one; limits that are missing are none, as JuiceFS has it.
pub(super) fn quota(key: &str, [limits, space, inodes]: [Value; 3]) -> EngineResult<Option<Quota>> {
    let Some(used_inodes) = optional_number(key, inodes)? else {
        return Ok(None);
    };
    let limits = match reply::bytes(key, limits)? {
        Some(raw) => layout::decode_limits(key, &raw)?,
        None => Quota {
            max_space: -1,
            max_inodes: -1,
            ..Quota::default()
        },
    };
    Ok(Some(Quota {
        used_space: optional_number(key, space)?.unwrap_or(0),
        used_inodes,
        ..limits
    }))
}

/// The BSD locks on an inode, in no order.
pub(super) fn flocks(key: &str, value: Value) -> EngineResult<Vec<Flock>> {
    let held = reply::pairs(key, value)?.into_iter();
    held.map(|(field, raw)| layout::decode_flock(key, holder(key, &field)?, &raw))
        .collect()
}

/// The POSIX locks on an inode, in no order. An owner without ranges holds nothing.
pub(super) fn plocks(key: &str, value: Value) -> EngineResult<Vec<Plock>> {
    let mut locks = Vec::new();
    for (field, raw) in reply::pairs(key, value)? {
        let (sid, owner) = holder(key, &field)?;
        let ranges = layout::decode_plocks(key, &raw)?;
        if !ranges.is_empty() {
            locks.push(Plock { sid, owner, ranges });
        }
    }
    Ok(locks)
}

fn holder(key: &str, field: &[u8]) -> EngineResult<(SessionId, u64)> {
    keys::lock_owner_of(field).ok_or_else(|| {
        let field = field.escape_ascii();
        layout::corrupt(key, format!("`{field}` is not the owner of a lock"))
    })
}

fn path(key: &str, value: Value) -> EngineResult<Vec<(Ino, Attr)>> {
    let steps = reply::pairs(key, value)?.into_iter();
    steps
        .map(|(entry, raw)| {
            let ino = layout::decode_dentry(key, &entry)?.ino;
            Ok((ino, layout::decode_attr(&keys::attr(ino), &raw)?))
        })
        .collect()
}

fn ancestors(key: &str, value: Value) -> EngineResult<Vec<(Ino, Attr)>> {
    let steps = reply::pairs(key, value)?.into_iter();
    steps
        .map(|(ino, raw)| {
            let ino = layout::decode_ino(key, &ino)?;
            Ok((ino, layout::decode_attr(&keys::attr(ino), &raw)?))
        })
        .collect()
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

fn hget_each(batch: &mut Batch, hashes: [&str; 3], field: u64) {
    for key in hashes {
        batch.key("HGET", key, &[field.to_string().as_bytes()]);
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
        Key::Quota(quota) => keys::quotas(quota.kind())[0].to_owned(),
        Key::Sustained(sid) => keys::sustained(*sid),
        Key::Acl(_) => keys::ACLS.to_owned(),
        Key::Flocks(ino) => keys::flocks(*ino),
        Key::Plocks(ino) => keys::plocks(*ino),
        Key::Path { from, .. } => keys::dir(*from),
        Key::Ancestors(ino) => keys::attr(*ino),
    }
}
