//! Records between their typed form and the columns and blobs of JuiceFS's schema. Pure.
//!
//! Times are signed nanoseconds in 64 bits, stored as microseconds and a remainder of 0..=999 that takes
//! the sign of the time; they are read by euclidean division and clamped when written. Fails with
//! `Corrupt` on anything that the format does not allow.

use super::row::Row;
use crate::engine::{Counter, EngineResult};
use crate::types::{AclRule, Attr, Dentry, FileKind, Ino, Quota, Slice, Timestamp};

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

/// An ACL rule: owner, group, mask, other, and two lists without a count.
pub(super) fn acl(row: &Row<'_>) -> EngineResult<AclRule> {
    Ok(AclRule {
        owner: row.number_or_zero(0)?,
        group: row.number_or_zero(1)?,
        mask: row.number_or_zero(2)?,
        other: row.number_or_zero(3)?,
        users: named(row, 4)?,
        groups: named(row, 5)?,
    })
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
        | Counter::LastCleanupFiles => false,
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
