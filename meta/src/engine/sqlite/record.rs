//! Records between their typed form and the columns and blobs of JuiceFS's schema. Pure.
//!
//! Times are signed nanoseconds in 64 bits, stored as microseconds and a remainder of 0..=999 that takes
//! the sign of the time; they are read by euclidean division and clamped when written. Fails with
//! `Corrupt` on anything that the format does not allow.

use super::row::Row;
use crate::engine::{Counter, EngineResult};
use crate::types::{
    AclRule, Attr, Dentry, FileKind, Flock, Ino, Plock, PlockRange, Quota, QuotaKind, SessionId,
    Slice, SliceId, Timestamp,
};

/// The columns of a node in the order in which [`attr`] and [`attr_values`] have them.
macro_rules! node_columns {
    ($prefix:literal) => {
        concat!(
            $prefix,
            "type,",
            $prefix,
            "flags,",
            $prefix,
            "mode,",
            $prefix,
            "uid,",
            $prefix,
            "gid,",
            $prefix,
            "atime,",
            $prefix,
            "mtime,",
            $prefix,
            "ctime,",
            $prefix,
            "atimensec,",
            $prefix,
            "mtimensec,",
            $prefix,
            "ctimensec,",
            $prefix,
            "nlink,",
            $prefix,
            "length,",
            $prefix,
            "rdev,",
            $prefix,
            "parent,",
            $prefix,
            "access_acl_id,",
            $prefix,
            "default_acl_id,",
            $prefix,
            "tier_id"
        )
    };
}
pub(super) use node_columns;

/// Number of the columns in `node_columns`.
pub(super) const NODE_COLUMNS: usize = 18;

/// The names in `node_columns`.
pub(super) const NODE_COLUMN_NAMES: [&str; NODE_COLUMNS] = [
    "type",
    "flags",
    "mode",
    "uid",
    "gid",
    "atime",
    "mtime",
    "ctime",
    "atimensec",
    "mtimensec",
    "ctimensec",
    "nlink",
    "length",
    "rdev",
    "parent",
    "access_acl_id",
    "default_acl_id",
    "tier_id",
];

/// Attributes from the `node_columns` that start at column `first`.
pub(super) fn attr(row: &Row<'_>, first: usize) -> EngineResult<Attr> {
    Ok(Attr {
        kind: kind(row, first)?,
        flags: row.number(first + 1)?,
        // Only the permission bits are the format's; the type has a column of its own.
        mode: row.number::<u16>(first + 2)? & 0o7777,
        uid: row.number(first + 3)?,
        gid: row.number(first + 4)?,
        atime: time(row, first + 5, first + 8)?,
        mtime: time(row, first + 6, first + 9)?,
        ctime: time(row, first + 7, first + 10)?,
        nlink: row.number(first + 11)?,
        length: row.number(first + 12)?,
        rdev: row.number_or_zero(first + 13)?,
        parent: Ino(row.number_or_zero(first + 14)?),
        access_acl: row.number_or_zero(first + 15)?,
        default_acl: row.number_or_zero(first + 16)?,
        tier: row.number_or_zero(first + 17)?,
    })
}

/// The values of `node_columns`.
pub(super) fn attr_values(attr: &Attr) -> [i64; NODE_COLUMNS] {
    let (atime, atimensec) = micros(attr.atime);
    let (mtime, mtimensec) = micros(attr.mtime);
    let (ctime, ctimensec) = micros(attr.ctime);
    [
        attr.kind as i64,
        attr.flags.into(),
        attr.mode.into(),
        attr.uid.into(),
        attr.gid.into(),
        atime,
        mtime,
        ctime,
        atimensec,
        mtimensec,
        ctimensec,
        attr.nlink.into(),
        attr.length.cast_signed(),
        attr.rdev.into(),
        attr.parent.0.cast_signed(),
        attr.access_acl.into(),
        attr.default_acl.into(),
        attr.tier.into(),
    ]
}

fn kind(row: &Row<'_>, column: usize) -> EngineResult<FileKind> {
    let raw = row.number(column)?;
    FileKind::from_raw(raw).ok_or_else(|| row.corrupt(format!("type {raw} is not one")))
}

fn time(row: &Row<'_>, micros: usize, nanos: usize) -> EngineResult<Timestamp> {
    let nanoseconds = i128::from(row.number::<i64>(micros)?) * 1000
        + i128::from(row.number_or_zero::<i64>(nanos)?);
    let sec = i64::try_from(nanoseconds.div_euclid(1_000_000_000));
    let nsec = u32::try_from(nanoseconds.rem_euclid(1_000_000_000));
    match (sec, nsec) {
        (Ok(sec), Ok(nsec)) => Ok(Timestamp { sec, nsec }),
        _ => Err(row.corrupt("time out of range")),
    }
}

/// A time as microseconds and the remaining nanoseconds.
pub(super) fn micros(time: Timestamp) -> (i64, i64) {
    let nanoseconds = i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    let clamped = nanoseconds.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
    (clamped / 1000, clamped % 1000)
}

/// A dentry from the columns type and inode that start at column `first`.
pub(super) fn dentry(row: &Row<'_>, first: usize) -> EngineResult<Dentry> {
    Ok(Dentry {
        kind: kind(row, first)?,
        ino: Ino(row.number(first + 1)?),
    })
}

/// A slice list.
pub(super) fn slices(row: &Row<'_>, column: usize) -> EngineResult<Vec<Slice>> {
    let raw = row.raw(column)?;
    let (records, rest) = raw.as_chunks::<{ Slice::BYTES }>();
    if !rest.is_empty() {
        return Err(row.corrupt(format!("{} bytes are no slice list", raw.len())));
    }
    let records = records.iter().map(|record| {
        Slice::decode(record).ok_or_else(|| row.corrupt("slice reaches beyond its chunk or data"))
    });
    records.collect()
}

/// A slice list as it is stored.
pub(super) fn encode_slices(slices: &[Slice]) -> Vec<u8> {
    slices.iter().flat_map(Slice::encode).collect()
}

/// A quota from the four columns that start at column `first`.
pub(super) fn quota(row: &Row<'_>, first: usize) -> EngineResult<Quota> {
    Ok(Quota {
        max_space: row.number(first)?,
        max_inodes: row.number(first + 1)?,
        used_space: row.number(first + 2)?,
        used_inodes: row.number(first + 3)?,
    })
}

/// Where quotas of a kind are.
pub(super) struct QuotaTable {
    /// The table.
    pub(super) name: &'static str,
    /// What a row's number is compared with, with the conditions that select the kind before it.
    pub(super) key: &'static str,
    /// The column of that number.
    pub(super) column: &'static str,
}

impl QuotaTable {
    /// The table of a kind: users' and groups' share one.
    pub(super) fn of(kind: QuotaKind) -> QuotaTable {
        let (name, key, column) = match kind {
            QuotaKind::Dir => ("jfs_dir_quota", "inode", "inode"),
            QuotaKind::User => ("jfs_user_group_quota", "qtype=1 AND qkey", "qkey"),
            QuotaKind::Group => ("jfs_user_group_quota", "qtype=2 AND qkey", "qkey"),
        };
        QuotaTable { name, key, column }
    }
}

/// An ACL rule from the columns owner, group, mask, other and two lists without a count that start at
/// column `first`.
pub(super) fn acl(row: &Row<'_>, first: usize) -> EngineResult<AclRule> {
    Ok(AclRule {
        owner: row.number_or_zero(first)?,
        group: row.number_or_zero(first + 1)?,
        mask: row.number_or_zero(first + 2)?,
        other: row.number_or_zero(first + 3)?,
        users: named(row, first + 4)?,
        groups: named(row, first + 5)?,
    })
}

/// A list of named entries as it is stored.
pub(super) fn encode_named(named: &[(u32, u16)]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(named.len() * 6);
    for (id, bits) in named {
        raw.extend(id.to_be_bytes());
        raw.extend(bits.to_be_bytes());
    }
    raw
}

/// `R` in the column of a BSD lock's type.
const FLOCK_SHARED: u8 = b'R';
/// `W` there.
const FLOCK_EXCLUSIVE: u8 = b'W';

/// A BSD lock from the columns owner and type that start at column `first`. Owners are stored as signed
/// numbers.
pub(super) fn flock(row: &Row<'_>, sid: SessionId, first: usize) -> EngineResult<Flock> {
    let owner = row.number::<i64>(first)?.cast_unsigned();
    let exclusive = match row.number(first + 1)? {
        FLOCK_SHARED => false,
        FLOCK_EXCLUSIVE => true,
        other => return Err(row.corrupt(format!("lock type {other} is neither R nor W"))),
    };
    Ok(Flock {
        sid,
        owner,
        exclusive,
    })
}

/// The type of a BSD lock as it is stored.
pub(super) fn flock_type(lock: &Flock) -> u8 {
    if lock.exclusive {
        FLOCK_EXCLUSIVE
    } else {
        FLOCK_SHARED
    }
}

/// One owner's POSIX locks from the columns owner and records that start at column `first`.
pub(super) fn plock(row: &Row<'_>, sid: SessionId, first: usize) -> EngineResult<Plock> {
    let owner = row.number::<i64>(first)?.cast_unsigned();
    let raw = row.raw(first + 1)?;
    let (records, rest) = raw.as_chunks::<24>();
    if !rest.is_empty() {
        return Err(row.corrupt(format!("{} bytes are no list of locks", raw.len())));
    }
    let ranges: EngineResult<_> = records
        .iter()
        .map(|record| {
            let (kind, record) = first_u32(record);
            let (pid, record) = first_u32(record);
            let (start, record) = first_u64(record);
            let (end, _) = first_u64(record);
            let write = match kind {
                0 => false,
                1 => true,
                other => return Err(row.corrupt(format!("lock type {other} is not Linux's"))),
            };
            Ok(PlockRange {
                start,
                end,
                write,
                pid,
            })
        })
        .collect();
    Ok(Plock {
        sid,
        owner,
        ranges: ranges?,
    })
}

/// One owner's POSIX locks as they are stored: type (Linux's `F_RDLCK` 0, `F_WRLCK` 1), process, first and
/// last byte.
pub(super) fn encode_ranges(ranges: &[PlockRange]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(ranges.len() * 24);
    for range in ranges {
        raw.extend(u32::from(range.write).to_be_bytes());
        raw.extend(range.pid.to_be_bytes());
        raw.extend(range.start.to_be_bytes());
        raw.extend(range.end.to_be_bytes());
    }
    raw
}

/// Slices that another replaced, with their sizes.
pub(super) fn delayed_slices(row: &Row<'_>, column: usize) -> EngineResult<Vec<(SliceId, u32)>> {
    let (records, rest) = row.raw(column)?.as_chunks::<12>();
    if !rest.is_empty() {
        return Err(row.corrupt("a list of replaced slices is cut off"));
    }
    let records = records.iter().map(|record| {
        let (id, record) = first_u64(record);
        (SliceId(id), first_u32(record).0)
    });
    Ok(records.collect())
}

/// Slices that another replaced, as they are stored.
pub(super) fn encode_delayed(slices: &[(SliceId, u32)]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(slices.len() * 12);
    for (id, size) in slices {
        raw.extend(id.0.to_be_bytes());
        raw.extend(size.to_be_bytes());
    }
    raw
}

/// A number from the front of a record whose length was checked, and what follows it.
fn first_u32(record: &[u8]) -> (u32, &[u8]) {
    let (number, rest) = record.split_first_chunk().unwrap_or((&[0; 4], &[]));
    (u32::from_be_bytes(*number), rest)
}

/// As [`first_u32`].
fn first_u64(record: &[u8]) -> (u64, &[u8]) {
    let (number, rest) = record.split_first_chunk().unwrap_or((&[0; 8], &[]));
    (u64::from_be_bytes(*number), rest)
}

fn named(row: &Row<'_>, column: usize) -> EngineResult<Vec<(u32, u16)>> {
    let (entries, rest) = row.raw(column)?.as_chunks::<6>();
    if !rest.is_empty() {
        return Err(row.corrupt("a list of named entries is cut off"));
    }
    let entry = |&[a, b, c, d, e, f]: &[u8; 6]| {
        (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f]))
    };
    Ok(entries.iter().map(entry).collect())
}

/// How a counter is kept.
pub(super) struct CounterRow {
    /// Key of its row.
    pub(super) name: &'static str,
    /// What is added to the stored value to get the next number to hand out.
    pub(super) to_next: i64,
    /// Stored value of a fresh volume; a row with less is not trusted for handing out numbers.
    pub(super) fresh: i64,
}

/// The row of a counter: "next to use" for inodes and slices, "last used" for sessions and trash.
pub(super) fn counter_row(counter: Counter) -> CounterRow {
    let (name, to_next, fresh) = match counter {
        Counter::NextInode => ("nextInode", 0, 2),
        Counter::NextSlice => ("nextChunk", 0, 1),
        Counter::NextSession => ("nextSession", 1, 0),
        Counter::NextTrash => ("nextTrash", 1, 0),
        Counter::UsedSpace => ("usedSpace", 0, 0),
        Counter::TotalInodes => ("totalInodes", 0, 0),
        Counter::LastCleanupSessions => ("lastCleanupSessions", 0, 0),
        Counter::LastCleanupFiles => ("lastCleanupFiles", 0, 0),
        Counter::NextCleanupSlices => ("nextCleanupSlices", 0, 0),
        Counter::LastCleanupTrash => ("lastCleanupTrash", 0, 0),
    };
    CounterRow {
        name,
        to_next,
        fresh,
    }
}

/// Whether numbers are handed out from this counter.
pub(super) fn hands_out(counter: Counter) -> bool {
    match counter {
        Counter::NextInode | Counter::NextSlice | Counter::NextSession | Counter::NextTrash => true,
        Counter::UsedSpace
        | Counter::TotalInodes
        | Counter::LastCleanupSessions
        | Counter::LastCleanupFiles
        | Counter::NextCleanupSlices
        | Counter::LastCleanupTrash => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_split_as_juicefs_splits_them() {
        let at = |sec, nsec| Timestamp { sec, nsec };
        for (time, stored) in [
            (at(0, 0), (0, 0)),
            (at(1, 999_999_999), (1_999_999, 999)),
            // Before the epoch the quotient truncates toward zero and the remainder is negative.
            (at(-1, 999_999_999), (0, -1)),
            (at(-2, 1), (-1_999_999, -999)),
            // 64-bit nanoseconds end in 1677 and 2262.
            (at(10_000_000_000, 0), (i64::MAX / 1000, i64::MAX % 1000)),
            (at(i64::MIN, 0), (i64::MIN / 1000, i64::MIN % 1000)),
        ] {
            assert_eq!(micros(time), stored, "{time:?}");
        }
    }
}
