//! Rules that several namespace operations share. Pure functions over attributes already read.
//!
//! Permission bits are the kernel's business (`default_permissions`); here are the rules it does not know or
//! that must hold at the moment of the commit: what a parent must be, flags, sticky directories, and how a
//! parent's times move.

use std::time::Duration;

use crate::client::MetaResult;
use crate::engine::{AttrFields, Check};
use crate::error::MetaError;
use crate::ops::Caller;
use crate::types::{Attr, DirStat, FileKind, Ino, Timestamp, align_4k, attr_flags};

/// `S_ISVTX`: entries of such a directory belong to their owners.
const STICKY: u16 = 0o1000;

/// The directory an operation works in.
pub(crate) fn directory(attr: Option<Attr>) -> MetaResult<Attr> {
    let attr = attr.ok_or(MetaError::NotFound)?;
    if attr.kind != FileKind::Directory {
        return Err(MetaError::NotDirectory);
    }
    Ok(attr)
}

/// As [`directory`], and entries may be added to it: not removed to the trash, not immutable.
pub(crate) fn growing_directory(attr: Option<Attr>) -> MetaResult<Attr> {
    let attr = directory(attr)?;
    if attr.in_trash() {
        return Err(MetaError::NotFound);
    }
    if attr.flags & attr_flags::IMMUTABLE != 0 {
        return Err(MetaError::NotPermitted);
    }
    Ok(attr)
}

/// `NotPermitted` for what `chattr` froze.
pub(crate) fn check_not_frozen(attr: &Attr) -> MetaResult<()> {
    if attr.flags & (attr_flags::IMMUTABLE | attr_flags::APPEND) != 0 {
        return Err(MetaError::NotPermitted);
    }
    Ok(())
}

/// Whether the sticky bit of `parent` concerns `caller` at all.
pub(crate) fn sticky_matters(caller: &Caller, parent: &Attr) -> bool {
    !caller.is_root() && parent.mode & STICKY != 0
}

/// In a sticky directory only the owners of the directory and of the entry may take the entry away.
pub(crate) fn check_sticky(caller: &Caller, parent: &Attr, owner: u32) -> MetaResult<()> {
    if sticky_matters(caller, parent) && caller.uid != parent.uid && caller.uid != owner {
        return Err(MetaError::Access);
    }
    Ok(())
}

/// The facts about a parent that a commit relies upon. Neither its times nor its link count: those change
/// with every sibling, and comparing them would make concurrent creates in one directory fail each other.
pub(crate) fn parent_check(caller: &Caller, ino: Ino, attr: &Attr) -> Check {
    let mut fields = AttrFields::FLAGS.and(AttrFields::PARENT);
    if !caller.is_root() {
        // Whether it is sticky, and whose it is.
        fields = fields.and(AttrFields::OWNER);
    }
    Check::Attr {
        ino,
        fields,
        expect: attr.clone(),
    }
}

/// As [`parent_check`], with everything that a new entry inherits.
pub(crate) fn heritage_check(ino: Ino, attr: &Attr) -> Check {
    let fields = AttrFields::FLAGS
        .and(AttrFields::PARENT)
        .and(AttrFields::OWNER)
        .and(AttrFields::INHERITED);
    Check::Attr {
        ino,
        fields,
        expect: attr.clone(),
    }
}

/// Whether a parent's mtime is old enough to be written again (`--skip-dir-mtime`). A time in the future
/// counts as young.
pub(crate) fn mtime_due(mtime: Timestamp, now: Timestamp, skip: Duration) -> bool {
    let nanos = |time: Timestamp| i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    // A duration has at most 2^64 seconds: its nanoseconds fit i128.
    nanos(now) - nanos(mtime) >= skip.as_nanos().cast_signed()
}

/// What one entry adds to the statistics of its directory. `None` (the entry dangles) counts as an empty
/// non-file, as JuiceFS charges it.
pub(crate) fn entry_stat(attr: Option<&Attr>) -> DirStat {
    match attr {
        Some(attr) if attr.kind == FileKind::File => DirStat {
            length: attr.length.cast_signed(),
            space: align_4k(attr.length),
            inodes: 1,
        },
        _ => DirStat {
            length: 0,
            space: align_4k(0),
            inodes: 1,
        },
    }
}

/// The same with the signs turned.
pub(crate) fn negated(stat: DirStat) -> DirStat {
    DirStat {
        length: -stat.length,
        space: -stat.space,
        inodes: -stat.inodes,
    }
}

/// Space an inode is charged for in the volume's sum.
pub(crate) fn charged_space(attr: &Attr) -> i64 {
    if attr.kind == FileKind::File {
        align_4k(attr.length)
    } else {
        align_4k(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn young_parents_are_left_alone() {
        let at = |sec, nsec| Timestamp { sec, nsec };
        let skip = Duration::from_millis(100);
        for (mtime, now, due) in [
            (at(10, 0), at(10, 99_999_999), false),
            (at(10, 0), at(10, 100_000_000), true),
            (at(9, 950_000_000), at(10, 50_000_000), true),
            (at(11, 0), at(10, 0), false),
            (at(-5, 0), at(10, 0), true),
        ] {
            assert_eq!(mtime_due(mtime, now, skip), due, "{mtime:?} {now:?}");
        }
        assert!(
            mtime_due(at(10, 0), at(10, 0), Duration::ZERO),
            "0 means always"
        );
    }
}
