//! Packs directory entries into the answer to READDIR or READDIRPLUS.
//!
//! Called by the dispatcher. Owns one growing buffer that never exceeds the size the kernel asked for;
//! an entry that does not fit is refused and belongs into the next answer. Each entry carries the
//! offset (cookie) of the entry after it: the kernel comes back with the last one it used.
//! Entries are padded to 8 bytes.

use zerocopy::IntoBytes;

use super::abi;
use super::reply::{EntryReply, entry_out};

/// Entries of one answer.
#[derive(Debug)]
pub struct DirBuffer {
    /// Most bytes.
    limit: usize,
    bytes: Vec<u8>,
}

impl DirBuffer {
    /// An empty answer of at most `size` bytes, as READDIR says.
    pub fn new(size: u32) -> DirBuffer {
        let limit = usize::try_from(size).unwrap_or(usize::MAX);
        DirBuffer {
            limit,
            bytes: Vec::with_capacity(limit.min(64 << 10)),
        }
    }

    /// Adds an entry for READDIR; `false` if it does not fit. `offset` is the cookie of what follows it,
    /// `mode` its `st_mode`, of which the type counts.
    pub fn push(&mut self, ino: u64, offset: u64, mode: u32, name: &[u8]) -> bool {
        self.append(&[], ino, offset, mode, name)
    }

    /// Adds an entry for READDIRPLUS; `false` if it does not fit. The kernel counts one lookup of
    /// `entry.ino` for each, except for `.` and `..`, and none where `entry.ino` is 0.
    pub fn push_plus(&mut self, entry: &EntryReply, offset: u64, name: &[u8]) -> bool {
        let out = entry_out(entry);
        self.append(
            out.as_bytes(),
            entry.attr.ino,
            offset,
            entry.attr.mode,
            name,
        )
    }

    /// Adds an entry for READDIRPLUS whose attributes are not at hand: nothing is cached, nothing counted.
    pub fn push_plus_bare(&mut self, ino: u64, offset: u64, mode: u32, name: &[u8]) -> bool {
        self.append(abi::EntryOut::default().as_bytes(), ino, offset, mode, name)
    }

    /// Whether nothing was added: at the end of the directory, that is the answer.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The answer's body, for `Reply::bytes`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn append(&mut self, prefix: &[u8], ino: u64, off: u64, mode: u32, name: &[u8]) -> bool {
        let Ok(namelen) = u32::try_from(name.len()) else {
            return false;
        };
        let unpadded = prefix.len() + size_of::<abi::Dirent>() + name.len();
        let end = self.bytes.len() + unpadded.next_multiple_of(8);
        if end > self.limit {
            return false;
        }
        // `DT_*` is the type part of `st_mode`.
        let dirent = abi::Dirent {
            ino,
            off,
            namelen,
            kind: (mode & libc::S_IFMT) >> 12,
        };
        self.bytes.extend_from_slice(prefix);
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::super::reply::AttrReply;
    use super::*;

    const DIR: u32 = libc::S_IFDIR | 0o755;
    const FILE: u32 = libc::S_IFREG | 0o644;

    /// Reads entries back: (node id if plus, inode, cookie, type, name).
    fn parse(mut bytes: &[u8], plus: bool) -> Vec<(u64, u64, u64, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(bytes.len() % 8, 0);
            let mut nodeid = 0;
            let mut prefix = 24;
            if plus {
                nodeid = abi::EntryOut::read_from_prefix(bytes).unwrap().0.nodeid;
                bytes = &bytes[128..];
                prefix += 128;
            }
            let (dirent, rest) = abi::Dirent::read_from_prefix(bytes).unwrap();
            let name = rest[..dirent.namelen as usize].to_vec();
            entries.push((nodeid, dirent.ino, dirent.off, dirent.kind, name));
            let padded = (prefix + dirent.namelen as usize).next_multiple_of(8);
            bytes = &bytes[padded - if plus { 128 } else { 0 }..];
        }
        entries
    }

    #[test]
    fn entries_are_packed_and_padded() {
        let mut buffer = DirBuffer::new(4096);
        assert!(buffer.is_empty());
        assert!(buffer.push(1, 10, DIR, b"."));
        assert!(buffer.push(2, 11, FILE, b"12345678"));
        assert_eq!(buffer.as_bytes().len(), 32 + 32);
        let expected = vec![
            (0, 1, 10, 4, b".".to_vec()),
            (0, 2, 11, 8, b"12345678".to_vec()),
        ];
        assert_eq!(parse(buffer.as_bytes(), false), expected);
    }

    #[test]
    fn plus_entries_carry_their_node() {
        let attr = AttrReply {
            ino: 5,
            mode: FILE,
            ..AttrReply::default()
        };
        let entry = EntryReply {
            ino: 5,
            attr,
            ..EntryReply::default()
        };
        let mut buffer = DirBuffer::new(4096);
        assert!(buffer.push_plus(&entry, 1, b"file"));
        assert!(buffer.push_plus_bare(6, 2, DIR, b".."));
        let expected = vec![(5, 5, 1, 8, b"file".to_vec()), (0, 6, 2, 4, b"..".to_vec())];
        assert_eq!(parse(buffer.as_bytes(), true), expected);
    }

    #[test]
    fn the_limit_is_exact_and_a_refused_entry_leaves_no_trace() {
        for (size, fits) in [(0, false), (31, false), (32, true), (39, true)] {
            let mut buffer = DirBuffer::new(size);
            assert_eq!(buffer.push(1, 1, FILE, b"12345678"), fits, "size {size}");
            assert!(!buffer.push(2, 2, FILE, b"x"), "size {size}");
            assert_eq!(buffer.is_empty(), !fits);
        }
        let mut buffer = DirBuffer::new(160);
        assert!(buffer.push_plus(&EntryReply::default(), 1, b"12345678"));
        assert_eq!(buffer.as_bytes().len(), 160);
        assert!(!DirBuffer::new(159).push_plus(&EntryReply::default(), 1, b"12345678"));
    }
}
