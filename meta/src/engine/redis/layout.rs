//! Bytes of values, exactly as JuiceFS has them in Redis. Pure.
//!
//! Called by the other files of the engine. Values come from a store that other programs write too: what
//! does not decode becomes [`EngineError::Corrupt`] naming the key, never a panic.
//!
//! Attribute records have had several lengths; all of them are read:
//!
//! | bytes | has |
//! |---|---|
//! | 64..=70 | up to the device number (no parent) |
//! | 71, 72 | + parent (and a zero byte) |
//! | 73 | + tier |
//! | 79, 80 | + parent, ACL ids (and a zero byte) |
//! | 81 | + parent, ACL ids, tier |
//! | longer | as 81, then something later than this code, which is kept |
//!
//! 72, 73, 80 and 81 are written, as JuiceFS writes them.

use crate::engine::{Counter, EngineResult};
use crate::error::EngineError;
use crate::types::{
    AclRule, Attr, Dentry, FileKind, Flock, Ino, PlockRange, Quota, SessionId, Slice, SliceId,
    Timestamp,
};

/// Offset behind the device number: the least a record must have.
const RDEV_END: usize = 63;
/// Offset behind the parent: where the short record ends.
const PARENT_END: usize = 71;
/// Offset behind the ACL ids.
const ACL_END: usize = 79;
/// Bytes of a record in the commit script's terms: all fields, with or without values.
pub(super) const CANONICAL_BYTES: usize = 80;

/// Whether numbers are handed out from this counter; such a counter is stored as the last number used.
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

/// What is handed out first.
pub(super) fn first_number(counter: Counter) -> i64 {
    // Inode 1 is the root.
    if counter == Counter::NextInode { 2 } else { 1 }
}

/// The stored form of a counter's value.
pub(super) fn stored_counter(counter: Counter, value: i64) -> i64 {
    if hands_out(counter) {
        value.saturating_sub(1)
    } else {
        value
    }
}

/// A counter's value from its stored form.
pub(super) fn counter_from_stored(counter: Counter, stored: i64) -> i64 {
    if !hands_out(counter) {
        return stored;
    }
    stored.saturating_add(1).max(first_number(counter))
}

/// A time as attribute records have it: seconds, nanoseconds.
pub(super) fn encode_time(time: Timestamp) -> [u8; 12] {
    let mut out = [0; 12];
    out[..8].copy_from_slice(&time.sec.to_be_bytes());
    out[8..].copy_from_slice(&time.nsec.to_be_bytes());
    out
}

/// An attribute record with all its fields, whether they have values or not: fixed fields, ACL ids, tier.
pub(super) fn canonical_attr(attr: &Attr) -> [u8; CANONICAL_BYTES] {
    let mut out = [0; CANONICAL_BYTES];
    let kind_and_mode = (u16::from(attr.kind as u8) << 12) | (attr.mode & 0xFFF);
    out[0] = attr.flags;
    out[1..3].copy_from_slice(&kind_and_mode.to_be_bytes());
    out[3..7].copy_from_slice(&attr.uid.to_be_bytes());
    out[7..11].copy_from_slice(&attr.gid.to_be_bytes());
    out[11..23].copy_from_slice(&encode_time(attr.atime));
    out[23..35].copy_from_slice(&encode_time(attr.mtime));
    out[35..47].copy_from_slice(&encode_time(attr.ctime));
    out[47..51].copy_from_slice(&attr.nlink.to_be_bytes());
    out[51..59].copy_from_slice(&attr.length.to_be_bytes());
    out[59..RDEV_END].copy_from_slice(&attr.rdev.to_be_bytes());
    out[RDEV_END..PARENT_END].copy_from_slice(&attr.parent.0.to_be_bytes());
    out[PARENT_END..75].copy_from_slice(&attr.access_acl.to_be_bytes());
    out[75..ACL_END].copy_from_slice(&attr.default_acl.to_be_bytes());
    out[ACL_END] = attr.tier;
    out
}

/// An attribute record as JuiceFS writes it: fields without values at the end are left out, and a zero byte
/// closes the record.
pub(super) fn encode_attr(attr: &Attr) -> Vec<u8> {
    let full = canonical_attr(attr);
    let has_acl = attr.access_acl != 0 || attr.default_acl != 0;
    let mut out = Vec::with_capacity(CANONICAL_BYTES + 1);
    out.extend_from_slice(&full[..if has_acl { ACL_END } else { PARENT_END }]);
    if attr.tier != 0 {
        out.push(attr.tier);
    }
    out.push(0);
    out
}

/// Decodes an attribute record; `key` is named in errors.
pub(super) fn decode_attr(key: &str, raw: &[u8]) -> EngineResult<Attr> {
    let mut from = Reader { key, raw, at: 0 };
    if raw.len() < RDEV_END {
        return Err(corrupt(
            key,
            format!("{} bytes instead of 64 or more", raw.len()),
        ));
    }
    let flags = from.u8()?;
    let kind_and_mode = from.u16()?;
    let kind = kind_of(key, (kind_and_mode >> 12).to_be_bytes()[1])?;
    let mut attr = Attr {
        flags,
        kind,
        mode: kind_and_mode & 0xFFF,
        uid: from.u32()?,
        gid: from.u32()?,
        atime: from.time()?,
        mtime: from.time()?,
        ctime: from.time()?,
        nlink: from.u32()?,
        length: from.u64()?,
        rdev: from.u32()?,
        parent: Ino::NONE,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    };
    if raw.len() >= PARENT_END {
        attr.parent = Ino(from.u64()?);
        if raw.len() >= ACL_END {
            attr.access_acl = from.u32()?;
            attr.default_acl = from.u32()?;
        }
        attr.tier = raw.get(from.at).copied().unwrap_or(0);
    }
    Ok(attr)
}

/// A directory entry: type, inode.
pub(super) fn encode_dentry(dentry: &Dentry) -> [u8; 9] {
    let mut out = [0; 9];
    out[0] = dentry.kind as u8;
    out[1..].copy_from_slice(&dentry.ino.0.to_be_bytes());
    out
}

/// Decodes a directory entry; `key` is named in errors.
pub(super) fn decode_dentry(key: &str, raw: &[u8]) -> EngineResult<Dentry> {
    let mut from = Reader { key, raw, at: 0 };
    let dentry = Dentry {
        kind: kind_of(key, from.u8()?)?,
        ino: Ino(from.u64()?),
    };
    from.end()?;
    Ok(dentry)
}

/// Decodes one record of a chunk's list; `key` is named in errors.
pub(super) fn decode_slice(key: &str, raw: &[u8]) -> EngineResult<Slice> {
    Slice::decode(raw)
        .ok_or_else(|| corrupt(key, format!("{raw:02x?} is not a slice within its chunk")))
}

/// The limits of a quota.
pub(super) fn encode_limits(max_space: i64, max_inodes: i64) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&max_space.to_be_bytes());
    out[8..].copy_from_slice(&max_inodes.to_be_bytes());
    out
}

/// Decodes the limits of a quota; usage is kept elsewhere and left zero.
pub(super) fn decode_limits(key: &str, raw: &[u8]) -> EngineResult<Quota> {
    let mut from = Reader { key, raw, at: 0 };
    let quota = Quota {
        max_space: from.u64()?.cast_signed(),
        max_inodes: from.u64()?.cast_signed(),
        ..Quota::default()
    };
    from.end()?;
    Ok(quota)
}

/// An ACL rule: permissions of owner, group, mask, others; then counted lists of users and of groups.
pub(super) fn encode_acl(rule: &AclRule) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + 6 * (rule.users.len() + rule.groups.len()));
    for permission in [rule.owner, rule.group, rule.mask, rule.other] {
        out.extend(permission.to_be_bytes());
    }
    for named in [&rule.users, &rule.groups] {
        out.extend((named.len() as u32).to_be_bytes());
        for (id, permission) in named {
            out.extend(id.to_be_bytes());
            out.extend(permission.to_be_bytes());
        }
    }
    out
}

/// Decodes an ACL rule; `key` is named in errors.
pub(super) fn decode_acl(key: &str, raw: &[u8]) -> EngineResult<AclRule> {
    let mut from = Reader { key, raw, at: 0 };
    let rule = AclRule {
        owner: from.u16()?,
        group: from.u16()?,
        mask: from.u16()?,
        other: from.u16()?,
        users: from.named()?,
        groups: from.named()?,
    };
    from.end()?;
    Ok(rule)
}

/// How a BSD lock is held.
pub(super) fn encode_flock(exclusive: bool) -> &'static [u8] {
    if exclusive { b"W" } else { b"R" }
}

/// Decodes a BSD lock; `key` is named in errors.
pub(super) fn decode_flock(
    key: &str,
    (sid, owner): (SessionId, u64),
    raw: &[u8],
) -> EngineResult<Flock> {
    let exclusive = match raw {
        b"W" => true,
        b"R" => false,
        _ => return Err(corrupt(key, "a lock is neither `R` nor `W`")),
    };
    Ok(Flock {
        sid,
        owner,
        exclusive,
    })
}

/// POSIX locks of one owner, 24 bytes each: type as Linux numbers it, process, first and last byte.
pub(super) fn encode_plocks(ranges: &[PlockRange]) -> Vec<u8> {
    let mut out = Vec::with_capacity(24 * ranges.len());
    for range in ranges {
        out.extend(u32::from(range.write).to_be_bytes());
        out.extend(range.pid.to_be_bytes());
        out.extend(range.start.to_be_bytes());
        out.extend(range.end.to_be_bytes());
    }
    out
}

/// Decodes the POSIX locks of one owner; `key` is named in errors. Other systems number the types
/// otherwise: what is not Linux' read lock counts as a write lock.
pub(super) fn decode_plocks(key: &str, raw: &[u8]) -> EngineResult<Vec<PlockRange>> {
    let mut from = Reader { key, raw, at: 0 };
    let mut ranges = Vec::with_capacity(raw.len() / 24);
    while from.at < raw.len() {
        let (kind, pid) = (from.u32()?, from.u32()?);
        let (start, end) = (from.u64()?, from.u64()?);
        ranges.push(PlockRange {
            start,
            end,
            write: kind != 0,
            pid,
        });
    }
    Ok(ranges)
}

/// Slices that keep their reference for a while: number and size, 12 bytes each.
pub(super) fn encode_delayed(slices: &[(SliceId, u32)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 * slices.len());
    for (id, size) in slices {
        out.extend(id.0.to_be_bytes());
        out.extend(size.to_be_bytes());
    }
    out
}

/// Decodes such slices; `key` is named in errors.
pub(super) fn decode_delayed(key: &str, raw: &[u8]) -> EngineResult<Vec<(SliceId, u32)>> {
    let mut from = Reader { key, raw, at: 0 };
    let mut slices = Vec::with_capacity(raw.len() / 12);
    while from.at < raw.len() {
        slices.push((SliceId(from.u64()?), from.u32()?));
    }
    Ok(slices)
}

/// Decodes a number in decimal; `key` is named in errors.
pub(super) fn decode_number(key: &str, raw: &[u8]) -> EngineResult<i64> {
    let text = std::str::from_utf8(raw).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| corrupt(key, format!("`{}` is not a number", raw.escape_ascii())))
}

/// Decodes an inode number in decimal; `key` is named in errors.
pub(super) fn decode_ino(key: &str, raw: &[u8]) -> EngineResult<Ino> {
    let text = std::str::from_utf8(raw).ok();
    text.and_then(|text| text.parse().ok())
        .map(Ino)
        .ok_or_else(|| {
            corrupt(
                key,
                format!("`{}` is not an inode number", raw.escape_ascii()),
            )
        })
}

/// A damaged record under `key`.
pub(super) fn corrupt(key: &str, cause: impl Into<String>) -> EngineError {
    EngineError::Corrupt {
        record: key.to_owned(),
        cause: cause.into(),
    }
}

fn kind_of(key: &str, raw: u8) -> EngineResult<FileKind> {
    FileKind::from_raw(raw).ok_or_else(|| corrupt(key, format!("unknown file type {raw}")))
}

/// Big-endian fields, one after the other.
struct Reader<'a> {
    key: &'a str,
    raw: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> EngineResult<[u8; N]> {
        let field = self
            .raw
            .get(self.at..)
            .and_then(|rest| rest.first_chunk::<N>());
        self.at += N;
        field.copied().ok_or_else(|| {
            corrupt(
                self.key,
                format!("{} bytes, a field ends at {}", self.raw.len(), self.at),
            )
        })
    }

    fn u8(&mut self) -> EngineResult<u8> {
        Ok(u8::from_be_bytes(self.take()?))
    }

    fn u16(&mut self) -> EngineResult<u16> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn u32(&mut self) -> EngineResult<u32> {
        Ok(u32::from_be_bytes(self.take()?))
    }

    fn u64(&mut self) -> EngineResult<u64> {
        Ok(u64::from_be_bytes(self.take()?))
    }

    fn time(&mut self) -> EngineResult<Timestamp> {
        Ok(Timestamp {
            sec: self.u64()?.cast_signed(),
            nsec: self.u32()?,
        })
    }

    fn named(&mut self) -> EngineResult<Vec<(u32, u16)>> {
        // Not reserved in advance: the count is the store's word.
        (0..self.u32()?)
            .map(|_| Ok((self.u32()?, self.u16()?)))
            .collect()
    }

    fn end(&self) -> EngineResult<()> {
        if self.at == self.raw.len() {
            return Ok(());
        }
        Err(corrupt(
            self.key,
            format!("{} bytes instead of {}", self.raw.len(), self.at),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .chars()
            .filter_map(|c| c.to_digit(16))
            .map(|digit| digit as u8)
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    fn sample() -> Attr {
        Attr {
            flags: 0x20,
            kind: FileKind::File,
            mode: 0o4755,
            uid: 0x0102_0304,
            gid: 0x0506_0708,
            atime: Timestamp {
                sec: 0x11,
                nsec: 0x12,
            },
            mtime: Timestamp {
                sec: -2,
                nsec: 999_999_999,
            },
            ctime: Timestamp {
                sec: 0x31,
                nsec: 0x32,
            },
            nlink: 3,
            length: 0x0102_0304_0506_0708,
            rdev: 0x0900,
            parent: Ino(0x4142_4344_4546_4748),
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        }
    }

    /// The 71 bytes that all records of [`sample`] share.
    const FIXED: &str = "20 19ed 01020304 05060708 \
        0000000000000011 00000012 fffffffffffffffe 3b9ac9ff 0000000000000031 00000032 \
        00000003 0102030405060708 00000900 4142434445464748";

    /// (record, length, parent, access ACL): `.trash`, the root, a directory with both ACLs.
    const REAL_ATTRS: &[(&str, u64, u64, u32)] = &[
        (
            "00216d0000000000000000 000000006b035aaa00000000 000000006b035aaa00000000 \
             000000006b035aaa00000000 00000002 0000000000001000 00000000 0000000000000001 00",
            4096,
            1,
            0,
        ),
        (
            "0021ff0000000000000000 000000006b035aaa00000000 000000006b035aab0cad3b02 \
             000000006b035aab0cad3b02 00000013 0000000000001000 00000000 0000000000000001 00",
            4096,
            1,
            0,
        ),
        (
            "0021fd0000000000000000 000000006b035aab2bfef6d1 000000006b035aab2cdb4953 \
             000000006b035aab2cdb4953 00000003 0000000000001000 00000000 0000000000000008 \
             00000002 00000003 00",
            4096,
            8,
            2,
        ),
    ];

    #[test]
    fn attr_golden_bytes() {
        for (access_acl, default_acl, tier, tail) in [
            (0, 0, 0, "00"),
            (0, 0, 2, "02 00"),
            (7, 0, 0, "00000007 00000000 00"),
            (0, 8, 0, "00000000 00000008 00"),
            (7, 8, 3, "00000007 00000008 03 00"),
        ] {
            let attr = Attr {
                access_acl,
                default_acl,
                tier,
                ..sample()
            };
            let raw = unhex(&format!("{FIXED}{tail}"));
            assert_eq!(encode_attr(&attr), raw, "{tail}");
            assert_eq!(decode_attr("i2", &raw).unwrap(), attr, "{tail}");
        }
    }

    #[test]
    fn attr_of_other_lengths() {
        let no_parent = Attr {
            parent: Ino::NONE,
            ..sample()
        };
        let acl = Attr {
            access_acl: 7,
            default_acl: 8,
            ..sample()
        };
        let acl_tier = Attr {
            tier: 1,
            ..acl.clone()
        };
        let full = unhex(&format!("{FIXED} 00000007 00000008 01 00 aabbcc"));
        for (raw, expected) in [
            (unhex(FIXED)[..63].to_vec(), no_parent.clone()),
            ([&unhex(FIXED)[..63], &[0]].concat(), no_parent),
            (unhex(FIXED), sample()),
            (full[..79].to_vec(), acl),
            (full[..80].to_vec(), acl_tier.clone()),
            (full[..81].to_vec(), acl_tier.clone()),
            (full.clone(), acl_tier),
        ] {
            assert_eq!(
                decode_attr("i2", &raw).unwrap(),
                expected,
                "{} bytes",
                raw.len()
            );
        }
    }

    #[test]
    fn attr_damaged() {
        let short = unhex(FIXED)[..62].to_vec();
        let mut kind = unhex(FIXED);
        kind[1] = 0x90;
        for raw in [Vec::new(), short, kind] {
            let error = decode_attr("i2", &raw).unwrap_err();
            assert!(matches!(error, EngineError::Corrupt { ref record, .. } if record == "i2"));
        }
    }

    /// Records of a volume made by JuiceFS 1.4.
    #[test]
    fn attr_of_juicefs() {
        for (raw, length, parent, acl) in REAL_ATTRS {
            let raw = unhex(raw);
            let attr = decode_attr("i", &raw).unwrap();
            assert_eq!(
                (attr.length, attr.parent, attr.access_acl),
                (*length, Ino(*parent), *acl)
            );
            assert_eq!(encode_attr(&attr), raw);
        }
    }

    #[test]
    fn small_records() {
        let dentry = Dentry {
            kind: FileKind::Symlink,
            ino: Ino(0x7FFF_FFFF_1000_0001),
        };
        let raw = unhex("03 7fffffff10000001");
        assert_eq!(encode_dentry(&dentry).to_vec(), raw);
        assert_eq!(decode_dentry("d1", &raw).unwrap(), dentry);
        for damaged in [&raw[..8], &[raw.as_slice(), &[0]].concat(), &[0; 9]] {
            assert!(decode_dentry("d1", damaged).is_err(), "{damaged:?}");
        }

        let quota = decode_limits("q", &unhex("0000000000000400 ffffffffffffffff")).unwrap();
        assert_eq!(
            quota,
            Quota {
                max_space: 1024,
                max_inodes: -1,
                ..Quota::default()
            }
        );
        assert!(decode_limits("q", &[0; 15]).is_err());
        let raw = unhex("0000000000000400 ffffffffffffffff");
        assert_eq!(encode_limits(1024, -1).to_vec(), raw);

        let rule = unhex(
            "0006 0004 0005 ffff 00000001 000003e8 0007 00000002 00000001 0000 00000002 0001",
        );
        let expected = AclRule {
            owner: 6,
            group: 4,
            mask: 5,
            other: 0xFFFF,
            users: vec![(1000, 7)],
            groups: vec![(1, 0), (2, 1)],
        };
        assert_eq!(decode_acl("acl", &rule).unwrap(), expected);
        assert_eq!(encode_acl(&expected), rule);
        // A count beyond the record's end.
        assert!(decode_acl("acl", &unhex("0006 0004 0005 ffff ffffffff")).is_err());
        assert!(decode_acl("acl", &rule[..rule.len() - 1]).is_err());

        assert_eq!(decode_number("n", b"-5").unwrap(), -5);
        assert!(decode_number("n", b"5x").is_err());
        assert_eq!(
            decode_ino("n", b"18446744073709551615").unwrap(),
            Ino(u64::MAX)
        );
        assert!(decode_slice("c1_0", &[0; 23]).is_err());
    }

    #[test]
    fn locks_and_delayed_slices() {
        let ranges = vec![
            PlockRange {
                start: 0,
                end: 99,
                write: false,
                pid: 0x0102_0304,
            },
            PlockRange {
                start: 100,
                end: 0x7FFF_FFFF_FFFF_FFFF,
                write: true,
                pid: 1,
            },
        ];
        let raw = unhex(
            "00000000 01020304 0000000000000000 0000000000000063 \
             00000001 00000001 0000000000000064 7fffffffffffffff",
        );
        assert_eq!(encode_plocks(&ranges), raw);
        assert_eq!(decode_plocks("lockp2", &raw).unwrap(), ranges);
        // A write lock as macOS numbers it.
        let other = [&[0, 0, 0, 3], &raw[4..24]].concat();
        assert!(decode_plocks("lockp2", &other).unwrap()[0].write);
        assert!(decode_plocks("lockp2", &raw[..47]).is_err());
        assert_eq!(decode_plocks("lockp2", &[]).unwrap(), []);

        let holder = (SessionId(3), 9);
        for exclusive in [false, true] {
            let lock = decode_flock("lockf2", holder, encode_flock(exclusive)).unwrap();
            let expected = Flock {
                sid: SessionId(3),
                owner: 9,
                exclusive,
            };
            assert_eq!(lock, expected);
        }
        assert!(decode_flock("lockf2", holder, b"X").is_err());

        let slices = vec![(SliceId(0x0102_0304_0506_0708), 9), (SliceId(2), 4096)];
        let raw = unhex("0102030405060708 00000009 0000000000000002 00001000");
        assert_eq!(encode_delayed(&slices), raw);
        assert_eq!(decode_delayed("delSlices", &raw).unwrap(), slices);
        assert!(decode_delayed("delSlices", &raw[..23]).is_err());
    }

    #[test]
    fn counters_are_stored_as_last_used() {
        for (counter, stored, value) in [
            (Counter::NextInode, 0, 2),
            (Counter::NextInode, 1, 2),
            (Counter::NextInode, 1024, 1025),
            (Counter::NextSlice, 0, 1),
            (Counter::NextTrash, 3, 4),
            (Counter::UsedSpace, -4096, -4096),
        ] {
            assert_eq!(counter_from_stored(counter, stored), value, "{counter:?}");
        }
        assert_eq!(stored_counter(Counter::NextSlice, 8), 7);
        assert_eq!(stored_counter(Counter::TotalInodes, 8), 8);
    }
}
