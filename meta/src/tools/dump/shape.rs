//! The JSON shapes of a dump and the spelling of names in it: shared by `dump` and `load`. Pure.
//!
//! Field order is the order of writing; fields that JuiceFS leaves out when they are zero are left out.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{AclRule, Attr, FileKind, Ino, Slice, SliceId, Timestamp};
use crate::volume::Setting;

/// Everything before the trees.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Head {
    pub(crate) setting: Setting,
    pub(crate) counters: Counters,
    pub(crate) sustained: Vec<Sustained>,
    pub(crate) del_files: Vec<DeletedFile>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) quotas: Quotas,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) user_quotas: Quotas,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) group_quotas: Quotas,
}

/// Limits by the decimal number of inode, user or group.
pub(crate) type Quotas = BTreeMap<String, Limits>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Counters {
    pub(crate) used_space: i64,
    pub(crate) used_inodes: i64,
    /// Next to use.
    pub(crate) next_inodes: i64,
    /// Next to use.
    pub(crate) next_chunk: i64,
    /// Last used.
    pub(crate) next_session: i64,
    /// Last used.
    pub(crate) next_trash: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sustained {
    pub(crate) sid: u64,
    pub(crate) inodes: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct DeletedFile {
    pub(crate) inode: u64,
    pub(crate) length: u64,
    pub(crate) expire: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Limits {
    pub(crate) max_space: i64,
    pub(crate) max_inodes: i64,
}

/// Types of inodes as a dump spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KindName {
    Regular,
    Directory,
    Symlink,
    Fifo,
    BlockDev,
    CharDev,
    Socket,
}

impl KindName {
    pub(crate) fn of(kind: FileKind) -> KindName {
        match kind {
            FileKind::File => KindName::Regular,
            FileKind::Directory => KindName::Directory,
            FileKind::Symlink => KindName::Symlink,
            FileKind::Fifo => KindName::Fifo,
            FileKind::BlockDev => KindName::BlockDev,
            FileKind::CharDev => KindName::CharDev,
            FileKind::Socket => KindName::Socket,
        }
    }

    pub(crate) fn kind(self) -> FileKind {
        match self {
            KindName::Regular => FileKind::File,
            KindName::Directory => FileKind::Directory,
            KindName::Symlink => FileKind::Symlink,
            KindName::Fifo => FileKind::Fifo,
            KindName::BlockDev => FileKind::BlockDev,
            KindName::CharDev => FileKind::CharDev,
            KindName::Socket => FileKind::Socket,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DumpedAttr {
    pub(crate) inode: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) flags: u8,
    #[serde(rename = "type")]
    pub(crate) kind: KindName,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) atime: i64,
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) atimensec: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) mtimensec: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) ctimensec: u32,
    pub(crate) nlink: u32,
    /// Of files; 0 for everything else.
    #[serde(default)]
    pub(crate) length: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) rdev: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) tier: u8,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl DumpedAttr {
    pub(crate) fn of(ino: Ino, attr: &Attr) -> DumpedAttr {
        DumpedAttr {
            inode: ino.0,
            flags: attr.flags,
            kind: KindName::of(attr.kind),
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            atime: attr.atime.sec,
            mtime: attr.mtime.sec,
            ctime: attr.ctime.sec,
            atimensec: attr.atime.nsec,
            mtimensec: attr.mtime.nsec,
            ctimensec: attr.ctime.nsec,
            nlink: attr.nlink,
            length: match attr.kind {
                FileKind::File => attr.length,
                _ => 0,
            },
            rdev: attr.rdev,
            tier: attr.tier,
        }
    }

    /// What is dumped of an inode without a record: it has a type and links, and nothing else.
    pub(crate) fn missing(ino: Ino, kind: FileKind) -> DumpedAttr {
        DumpedAttr {
            inode: ino.0,
            flags: 0,
            kind: KindName::of(kind),
            mode: 0,
            uid: 0,
            gid: 0,
            atime: 0,
            mtime: 0,
            ctime: 0,
            atimensec: 0,
            mtimensec: 0,
            ctimensec: 0,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            length: 0,
            rdev: 0,
            tier: 0,
        }
    }

    /// Whether this is [`DumpedAttr::missing`].
    pub(crate) fn is_missing(&self) -> bool {
        *self == DumpedAttr::missing(Ino(self.inode), self.kind.kind())
    }

    /// The record, but for what follows from the tree: parent, links of directories, lengths of symlinks.
    pub(crate) fn attr(&self, parent: Ino) -> Attr {
        let time = |sec, nsec: u32| Timestamp {
            sec,
            nsec: nsec.min(999_999_999),
        };
        let kind = self.kind.kind();
        Attr {
            flags: self.flags,
            kind,
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            atime: time(self.atime, self.atimensec),
            mtime: time(self.mtime, self.mtimensec),
            ctime: time(self.ctime, self.ctimensec),
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            length: match kind {
                FileKind::File => self.length,
                FileKind::Directory => 4096,
                _ => 0,
            },
            rdev: self.rdev,
            parent,
            access_acl: 0,
            default_acl: 0,
            tier: self.tier,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DumpedXattr {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DumpedChunk {
    pub(crate) index: u32,
    pub(crate) slices: Vec<DumpedSlice>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct DumpedSlice {
    /// The id, in dumps of JuiceFS before 1.0.
    #[serde(default, skip_serializing_if = "is_zero")]
    chunkid: u64,
    #[serde(default)]
    id: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pos: u32,
    size: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    off: u32,
    len: u32,
}

impl DumpedChunk {
    pub(crate) fn of(index: u32, slices: &[Slice]) -> DumpedChunk {
        let dumped = |slice: &Slice| DumpedSlice {
            chunkid: 0,
            id: slice.id.0,
            pos: slice.pos,
            size: slice.size,
            off: slice.off,
            len: slice.len,
        };
        DumpedChunk {
            index,
            slices: slices.iter().map(dumped).collect(),
        }
    }
}

impl DumpedSlice {
    /// The record; `None` if it is not one that a chunk may hold.
    pub(crate) fn slice(&self) -> Option<Slice> {
        let id = if self.id == 0 { self.chunkid } else { self.id };
        let slice = Slice {
            pos: self.pos,
            id: SliceId(id),
            size: self.size,
            off: self.off,
            len: self.len,
        };
        Slice::decode(&slice.encode())
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DumpedAcl {
    owner: u16,
    group: u16,
    other: u16,
    mask: u16,
    users: Option<Vec<AclEntry>>,
    groups: Option<Vec<AclEntry>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AclEntry {
    id: u32,
    perm: u16,
}

impl DumpedAcl {
    pub(crate) fn of(rule: &AclRule) -> DumpedAcl {
        let entries = |named: &[(u32, u16)]| {
            let entry = |&(id, perm): &_| AclEntry { id, perm };
            (!named.is_empty()).then(|| named.iter().map(entry).collect())
        };
        DumpedAcl {
            owner: rule.owner,
            group: rule.group,
            other: rule.other,
            mask: rule.mask,
            users: entries(&rule.users),
            groups: entries(&rule.groups),
        }
    }

    pub(crate) fn rule(self) -> AclRule {
        let named = |entries: Option<Vec<AclEntry>>| {
            let entries = entries.unwrap_or_default().into_iter();
            entries.map(|entry| (entry.id, entry.perm)).collect()
        };
        AclRule {
            owner: self.owner,
            group: self.group,
            mask: self.mask,
            other: self.other,
            users: named(self.users),
            groups: named(self.groups),
        }
    }
}

/// Names, link targets and xattr values in a dump: bytes that JSON could not carry as they are (space and
/// below, `%`, `"`, `\`, what is not UTF-8) become `%XX`. U+FFFD too, since JuiceFS's decoder takes it for a
/// broken byte; unlike JuiceFS we escape all three bytes of it, so that it survives.
pub(crate) fn escape(raw: &[u8]) -> String {
    let mut out = String::with_capacity(raw.len());
    for piece in raw.utf8_chunks() {
        for letter in piece.valid().chars() {
            if letter <= ' ' || matches!(letter, '%' | '"' | '\\' | char::REPLACEMENT_CHARACTER) {
                let mut bytes = [0; 4];
                letter.encode_utf8(&mut bytes);
                percent(&bytes[..letter.len_utf8()], &mut out);
            } else {
                out.push(letter);
            }
        }
        percent(piece.invalid(), &mut out);
    }
    out
}

fn percent(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        out.push('%');
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Reverses [`escape`]. A `%` without two upper-case hex digits behind it stands for itself, as in dumps from
/// before there was an escape.
pub(crate) fn unescape(text: &str) -> Bytes {
    let raw = text.as_bytes();
    let digit = |at: usize| match raw.get(at)? {
        byte @ b'0'..=b'9' => Some(byte - b'0'),
        byte @ b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_spelt_as_juicefs_spells_them() {
        for (raw, text) in [
            (&b"plain-\xc3\xa9.txt"[..], "plain-\u{e9}.txt"),
            (b"a b\n", "a%20b%0A"),
            (b"50%\"\\", "50%25%22%5C"),
            (b"\xff\xc3x", "%FF%C3x"),
            (b"\xef\xbf\xbd", "%EF%BF%BD"),
            (b"<&>\x7f", "<&>\x7f"),
        ] {
            assert_eq!(escape(raw), text);
            assert_eq!(unescape(text), raw);
        }
        // As old dumps have them.
        for (text, raw) in [
            ("100%", &b"100%"[..]),
            ("%4", b"%4"),
            ("%zz%4a%4A", b"%zz%4aJ"),
        ] {
            assert_eq!(unescape(text), raw);
        }
    }

    proptest! {
        #[test]
        fn every_name_comes_back(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(&unescape(&escape(&raw))[..], &raw[..]);
        }
    }

    #[test]
    fn records_beyond_their_chunk_are_refused() {
        let mut slice: DumpedSlice =
            serde_json::from_str(r#"{"chunkid":7,"size":9,"len":9}"#).unwrap();
        assert_eq!(slice.slice().unwrap().id, SliceId(7));
        slice.pos = 1 << 26;
        assert_eq!(slice.slice(), None);
    }
}
