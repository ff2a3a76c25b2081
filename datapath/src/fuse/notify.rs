//! Notifications: telling the kernel to drop what it caches.
//!
//! Called by whoever learns that another client changed something. Owns a share of the connection's
//! first descriptor. "The kernel does not have that" (ENOENT) and "the mount is gone" are successes.
//!
//! The write blocks while the kernel takes locks that a client holds during a request to us: the
//! directory's for an entry, a page's for an inode. So **never notify from an executor**, and never
//! while holding a lock that a handler may want: the request that would free the kernel's lock could
//! not be served, and both would wait for ever. Use a thread of its own.

use std::io::{self, IoSlice};
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::abi::{self, OutHeader};
use super::device::Device;

/// Sends notifications on one connection.
#[derive(Debug, Clone)]
pub struct Notifier {
    device: Arc<Device>,
}

impl Notifier {
    pub(super) fn new(device: Arc<Device>) -> Notifier {
        Notifier { device }
    }

    /// Drops cached attributes of an inode, and cached pages of `[offset, offset + length)`; a length of 0
    /// means to the end, a negative offset means no pages.
    pub fn inval_inode(&self, ino: u64, offset: i64, length: i64) -> io::Result<()> {
        let out = abi::NotifyInvalInodeOut {
            ino,
            off: offset,
            len: length,
        };
        self.send(abi::NOTIFY_INVAL_INODE, &[out.as_bytes()])
    }

    /// Drops a cached name of a directory.
    pub fn inval_entry(&self, parent: u64, name: &[u8]) -> io::Result<()> {
        let invalid = || io::Error::from_raw_os_error(libc::ENAMETOOLONG);
        let namelen = u32::try_from(name.len()).map_err(|_| invalid())?;
        let out = abi::NotifyInvalEntryOut {
            parent,
            namelen,
            flags: 0,
        };
        self.send(abi::NOTIFY_INVAL_ENTRY, &[out.as_bytes(), name, &[0]])
    }

    /// A message without a request: number 0, and the notification's code in place of the error.
    fn send(&self, code: i32, body: &[&[u8]]) -> io::Result<()> {
        let bytes = size_of::<OutHeader>() + body.iter().map(|piece| piece.len()).sum::<usize>();
        let len = u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let header = OutHeader {
            len,
            error: code,
            unique: 0,
        };
        let mut pieces = vec![IoSlice::new(header.as_bytes())];
        pieces.extend(body.iter().map(|piece| IoSlice::new(piece)));
        match self.device.write(&pieces) {
            Err(error) if is_settled(&error) => Ok(()),
            result => result,
        }
    }
}

/// Whether there is nothing left to drop.
fn is_settled(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN)
    )
}
