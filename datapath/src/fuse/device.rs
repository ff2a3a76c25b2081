//! A descriptor of `/dev/fuse`: reads requests, writes answers and notifications.
//!
//! Owned by `session` (the descriptor the mount was made with) and by each queue (a clone of it), shared
//! with the replies of the requests read from it: the kernel keeps requests under way per descriptor
//! and finds them only on the one that delivered them. Non-blocking. Each message is one read or one
//! write, so the descriptor may be used from any thread.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::reply::ReplySink;

/// One open descriptor.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl Device {
    /// Takes over a non-blocking descriptor of a connection.
    pub(super) fn new(fd: OwnedFd) -> Device {
        Device {
            file: File::from(fd),
        }
    }

    /// A second descriptor of the same open file.
    pub(super) fn duplicate(&self) -> io::Result<Device> {
        Ok(Device {
            file: self.file.try_clone()?,
        })
    }

    /// Reads one request.
    pub(super) fn read(&self, space: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(space)
    }

    /// Writes one message.
    pub(super) fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        loop {
            match (&self.file).write_vectored(pieces) {
                Ok(written) if written == bytes => return Ok(()),
                // The kernel takes a message whole or not at all.
                Ok(_) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl ReplySink for Device {
    fn send(&self, _unique: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        self.write(pieces)
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
