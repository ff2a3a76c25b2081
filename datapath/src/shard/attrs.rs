//! From the volume's attributes to the kernel's, and how long the kernel may believe them.

use std::time::Duration;

use sluice_meta::types::{Attr, FileKind, Ino};

use crate::fuse::reply::{AttrReply, EntryReply};

/// Preferred I/O size of files: what JuiceFS reports.
const BLKSIZE: u32 = 64 << 10;

/// How long the kernel may keep what it was told.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Attributes.
    pub attr: Duration,
    /// Entries that name anything but a directory.
    pub entry: Duration,
    /// Entries that name directories.
    pub dir_entry: Duration,
    /// Names that do not exist.
    pub negative: Duration,
}

/// Attributes as the kernel wants them.
pub fn attr_reply(ino: Ino, attr: &Attr) -> AttrReply {
    // `.trash` is no directory of the user's: it shows no size, as with JuiceFS.
    let size = if ino == Ino::TRASH { 0 } else { attr.length };
    AttrReply {
        ino: ino.0,
        size,
        blocks: size.div_ceil(512),
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        mode: attr.st_mode(),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLKSIZE,
    }
}

impl Timeouts {
    fn all(&self) -> [Duration; 4] {
        [self.attr, self.entry, self.dir_entry, self.negative]
    }

    /// Whether any of them is longer than `time`.
    pub fn longer_than(&self, time: Duration) -> bool {
        self.all().iter().any(|timeout| *timeout > time)
    }

    /// The same, none of them longer than `time`.
    #[must_use]
    pub fn at_most(&self, time: Duration) -> Timeouts {
        let [attr, entry, dir_entry, negative] = self.all().map(|timeout| timeout.min(time));
        Timeouts {
            attr,
            entry,
            dir_entry,
            negative,
        }
    }

    /// An entry with attributes read `age` ago.
    pub fn entry_reply(&self, ino: Ino, attr: &Attr, age: Duration) -> EntryReply {
        let entry = if attr.kind == FileKind::Directory {
            self.dir_entry
        } else {
            self.entry
        };
        EntryReply {
            ino: ino.0,
            generation: 1,
            attr: attr_reply(ino, attr),
            entry_valid: entry.saturating_sub(age),
            attr_valid: self.attr.saturating_sub(age),
        }
    }
}
