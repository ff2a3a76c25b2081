//! Names of keys, and of the fields and members within them, exactly as JuiceFS has them in Redis. Pure.
//!
//! Called by the other files of the engine. Names are those within a volume: the prefix that tells the
//! volumes of a Redis Cluster apart is put before them where commands are made ([`super::pipe::Batch`],
//! [`super::script::Call`]). Numbers are decimal unless said otherwise.

use crate::engine::Counter;
use crate::types::{ChunkIndex, Ino, QuotaKind, SessionId, SliceId};

pub(super) const SETTING: &str = "setting";
pub(super) const SLICE_REFS: &str = "sliceRef";
pub(super) const DELETED_FILES: &str = "delfiles";
pub(super) const DELAYED_SLICES: &str = "delSlices";
pub(super) const DETACHED: &str = "detachedNodes";
pub(super) const SESSIONS: &str = "allSessions";
pub(super) const SESSION_INFOS: &str = "sessionInfos";
pub(super) const ACLS: &str = "acl";
/// Last number given to an ACL rule.
pub(super) const ACL_LAST: &str = "aclMaxId";
/// Length, space, inodes.
pub(super) const DIR_STATS: [&str; 3] = ["dirDataLength", "dirUsedSpace", "dirUsedInodes"];

/// Limits, used space, used inodes. A quota exists if the last has a field for it: JuiceFS loads by that
/// one, and does not see limits alone.
pub(super) fn quotas(kind: QuotaKind) -> [&'static str; 3] {
    match kind {
        QuotaKind::Dir => ["dirQuota", "dirQuotaUsedSpace", "dirQuotaUsedInodes"],
        QuotaKind::User => ["userQuota", "userQuotaUsedSpace", "userQuotaUsedInodes"],
        QuotaKind::Group => ["groupQuota", "groupQuotaUsedSpace", "groupQuotaUsedInodes"],
    }
}

pub(super) fn attr(ino: Ino) -> String {
    format!("i{ino}")
}

/// The inode whose record has this name.
pub(super) fn attr_ino(name: &[u8]) -> Option<Ino> {
    number(name.strip_prefix(b"i")?).map(Ino)
}

pub(super) fn dir(ino: Ino) -> String {
    format!("d{ino}")
}

pub(super) fn parents(ino: Ino) -> String {
    format!("p{ino}")
}

pub(super) fn chunk(ino: Ino, index: ChunkIndex) -> String {
    format!("c{ino}_{}", index.0)
}

/// The chunk whose list has this name.
pub(super) fn chunk_of(name: &[u8]) -> Option<(Ino, ChunkIndex)> {
    let (ino, index) = two_numbers(name.strip_prefix(b"c")?, b'_')?;
    Some((Ino(ino), ChunkIndex(u32::try_from(index).ok()?)))
}

pub(super) fn symlink(ino: Ino) -> String {
    format!("s{ino}")
}

pub(super) fn xattrs(ino: Ino) -> String {
    format!("x{ino}")
}

pub(super) fn sustained(sid: SessionId) -> String {
    format!("session{}", sid.0)
}

/// Full names of the lock keys that the session may have fields in.
pub(super) fn locked(sid: SessionId) -> String {
    format!("locked{}", sid.0)
}

pub(super) fn flocks(ino: Ino) -> String {
    format!("lockf{ino}")
}

pub(super) fn plocks(ino: Ino) -> String {
    format!("lockp{ino}")
}

/// What a lock key holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LockKey {
    /// BSD locks.
    Flocks(Ino),
    /// POSIX locks.
    Plocks(Ino),
}

impl LockKey {
    /// From its name.
    pub(super) fn of(name: &[u8]) -> Option<LockKey> {
        match name.strip_prefix(b"lockf") {
            Some(ino) => number(ino).map(|ino| LockKey::Flocks(Ino(ino))),
            None => number(name.strip_prefix(b"lockp")?).map(|ino| LockKey::Plocks(Ino(ino))),
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            LockKey::Flocks(ino) => flocks(ino),
            LockKey::Plocks(ino) => plocks(ino),
        }
    }
}

/// Field of an owner among the locks on an inode: session, owner in 16 upper-case hexadecimal digits.
pub(super) fn lock_owner(sid: SessionId, owner: u64) -> String {
    format!("{}_{owner:016X}", sid.0)
}

/// Session and owner from such a field.
pub(super) fn lock_owner_of(field: &[u8]) -> Option<(SessionId, u64)> {
    let (sid, owner) = std::str::from_utf8(field).ok()?.split_once('_')?;
    let sid = SessionId(sid.parse().ok()?);
    Some((sid, u64::from_str_radix(owner, 16).ok()?))
}

pub(super) fn counter(counter: Counter) -> &'static str {
    match counter {
        Counter::NextInode => "nextinode",
        Counter::NextSlice => "nextchunk",
        Counter::NextSession => "nextsession",
        Counter::NextTrash => "nextTrash",
        Counter::UsedSpace => "usedSpace",
        Counter::TotalInodes => "totalInodes",
        Counter::LastCleanupSessions => "lastCleanupSessions",
        Counter::LastCleanupFiles => "lastCleanupFiles",
        Counter::NextCleanupSlices => "nextCleanupSlices",
        Counter::LastCleanupTrash => "lastCleanupTrash",
    }
}

/// Field of a slice in the hash of references.
pub(super) fn slice_ref(id: SliceId, size: u32) -> String {
    format!("k{}_{size}", id.0)
}

/// Slice and size from such a field.
pub(super) fn slice_ref_of(field: &[u8]) -> Option<(SliceId, u32)> {
    let (id, size) = two_numbers(field.strip_prefix(b"k")?, b'_')?;
    Some((SliceId(id), u32::try_from(size).ok()?))
}

/// Field of a note of delayed slices: the slice that replaced them, when.
pub(super) fn delayed(id: SliceId, time: i64) -> String {
    format!("{}_{time}", id.0)
}

/// Slice and time from such a field.
pub(super) fn delayed_of(field: &[u8]) -> Option<(SliceId, i64)> {
    let (id, time) = std::str::from_utf8(field).ok()?.split_once('_')?;
    Some((SliceId(id.parse().ok()?), time.parse().ok()?))
}

/// Member of a file in the set of deleted files.
pub(super) fn deleted_file(ino: Ino, length: u64) -> String {
    format!("{ino}:{length}")
}

/// Inode and length from a member of the set of deleted files. `None` for the form that releases before
/// 1.0 left behind, which their successors clean up.
pub(super) fn deleted_file_of(member: &[u8]) -> Option<(Ino, u64)> {
    let (ino, length) = two_numbers(member, b':')?;
    Some((Ino(ino), length))
}

fn two_numbers(text: &[u8], separator: u8) -> Option<(u64, u64)> {
    let at = text.iter().position(|&byte| byte == separator)?;
    let (first, second) = text.split_at(at);
    Some((number(first)?, number(&second[1..])?))
}

/// Digits and nothing else: other programs' keys may look alike.
fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, expected) in [
            (attr(Ino::TRASH), "i9223372032828243968"),
            (dir(Ino::ROOT), "d1"),
            (parents(Ino(5)), "p5"),
            (chunk(Ino(5), ChunkIndex(3)), "c5_3"),
            (symlink(Ino(5)), "s5"),
            (xattrs(Ino(5)), "x5"),
            (sustained(SessionId(6)), "session6"),
            (locked(SessionId(6)), "locked6"),
            (flocks(Ino(5)), "lockf5"),
            (plocks(Ino(5)), "lockp5"),
            (lock_owner(SessionId(6), 0xAB_CDEF), "6_0000000000ABCDEF"),
            (slice_ref(SliceId(12), 4096), "k12_4096"),
            (delayed(SliceId(12), 1_700_000_000), "12_1700000000"),
            (deleted_file(Ino(9), 100), "9:100"),
            (counter(Counter::NextInode).to_owned(), "nextinode"),
            (counter(Counter::NextSlice).to_owned(), "nextchunk"),
            (counter(Counter::NextSession).to_owned(), "nextsession"),
            (counter(Counter::NextTrash).to_owned(), "nextTrash"),
            (
                counter(Counter::NextCleanupSlices).to_owned(),
                "nextCleanupSlices",
            ),
            (
                counter(Counter::LastCleanupTrash).to_owned(),
                "lastCleanupTrash",
            ),
        ] {
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn numbers_in_names() {
        assert_eq!(attr_ino(b"i18446744073709551615"), Some(Ino(u64::MAX)));
        for other in ["i", "i+1", "i1x", "info", "d1", "i18446744073709551616"] {
            assert_eq!(attr_ino(other.as_bytes()), None, "{other}");
        }
        assert_eq!(chunk_of(b"c5_3"), Some((Ino(5), ChunkIndex(3))));
        for other in ["c5", "c5_", "c_3", "c5_3_1", "c5_4294967296", "counter_1"] {
            assert_eq!(chunk_of(other.as_bytes()), None, "{other}");
        }
        assert_eq!(LockKey::of(b"lockf5"), Some(LockKey::Flocks(Ino(5))));
        assert_eq!(LockKey::of(b"lockp5"), Some(LockKey::Plocks(Ino(5))));
        assert_eq!(LockKey::of(b"locked5"), None);
        let field = b"6_00000000000000aB";
        assert_eq!(lock_owner_of(field), Some((SessionId(6), 0xAB)));
        assert_eq!(lock_owner_of(b"6_x"), None);
        assert_eq!(slice_ref_of(b"k12_4096"), Some((SliceId(12), 4096)));
        assert_eq!(slice_ref_of(b"12_4096"), None);
        assert_eq!(delayed_of(b"12_-5"), Some((SliceId(12), -5)));
        assert_eq!(delayed_of(b"12"), None);
        assert_eq!(deleted_file_of(b"9:100"), Some((Ino(9), 100)));
        assert_eq!(deleted_file_of(b"c9_0"), None);
    }
}
