//! Errors of the data path, by boundary, and the one place that chooses error numbers for them.

use sluice_meta::error::MetaError;

/// A fault of an object store.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// No object of that name.
    #[error("object {key} does not exist")]
    NotFound {
        /// Its key.
        key: String,
    },
    /// The object is there but not what it must be: too short, or it fails decryption or decompression.
    #[error("object {key} is damaged: {cause}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong.
        cause: String,
    },
    /// The store is full.
    #[error("object store is full while writing {key}")]
    NoSpace {
        /// Key being written.
        key: String,
    },
    /// Anything else.
    #[error("object store, {action} {key}: {cause}")]
    Io {
        /// `get`, `put`, `delete`.
        action: &'static str,
        /// Key.
        key: String,
        /// The store's words.
        cause: String,
    },
}

/// What a file-system request can end with instead of its answer.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// From the metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// From the object store.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Earlier data of this inode could not be uploaded or committed; reported once by fsync or close.
    #[error("earlier writes to this file were lost: {cause}")]
    WriteLost {
        /// What happened, already logged.
        cause: String,
        /// Error number of the cause.
        errno: i32,
    },
    /// The handle is not known or not open for this.
    #[error("bad file handle")]
    BadHandle,
    /// The request makes no sense.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// The operation is not offered; the kernel stops asking.
    #[error("not implemented")]
    NotImplemented,
    /// No such `ioctl(2)` command here.
    #[error("unknown ioctl")]
    NoSuchIoctl,
    /// The operation is not supported for this object or in this mode.
    #[error("not supported")]
    NotSupported,
    /// The request was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// The owner of a lock that is waited for waits for the one who asks.
    #[error("waiting for this lock would be a deadlock")]
    Deadlock,
    /// As many requests wait for locks as may.
    #[error("too many requests wait for locks")]
    NoLocks,
    /// Offset beyond the last byte or hole (`SEEK_DATA`, `SEEK_HOLE`).
    #[error("no such offset")]
    NoSuchOffset,
    /// The file would become larger than the format allows.
    #[error("file too large")]
    TooLarge,
    /// The inode of the request is gone. A name led to it a moment ago, so the kernel looks the name up
    /// once more (ENOENT would end the call although the name may have a new file by now: a rename over
    /// it would not be atomic for readers).
    #[error("stale inode")]
    Stale,
    /// The answer does not fit the caller's buffer.
    #[error("buffer too small")]
    BufferTooSmall,
}

impl FsError {
    /// The error number of the answer.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::Meta(error) => error.errno(),
            FsError::Object(ObjectError::NoSpace { .. }) => libc::ENOSPC,
            // A missing object under a live slice is lost data, never ENOENT: that would say the file is gone.
            FsError::Object(
                ObjectError::NotFound { .. } | ObjectError::Damaged { .. } | ObjectError::Io { .. },
            ) => libc::EIO,
            FsError::WriteLost { errno, .. } => *errno,
            FsError::BadHandle => libc::EBADF,
            FsError::Invalid(_) => libc::EINVAL,
            FsError::NotImplemented => libc::ENOSYS,
            FsError::NoSuchIoctl => libc::ENOTTY,
            FsError::NotSupported => libc::EOPNOTSUPP,
            FsError::Interrupted => libc::EINTR,
            FsError::Deadlock => libc::EDEADLK,
            FsError::NoLocks => libc::ENOLCK,
            FsError::NoSuchOffset => libc::ENXIO,
            FsError::TooLarge => libc::EFBIG,
            FsError::Stale => libc::ESTALE,
            FsError::BufferTooSmall => libc::ERANGE,
        }
    }

    /// Whether this is a fault to be logged, not an answer.
    pub fn is_fault(&self) -> bool {
        match self {
            FsError::Meta(error) => error.is_fault(),
            FsError::Object(_) | FsError::WriteLost { .. } => true,
            FsError::BadHandle
            | FsError::Invalid(_)
            | FsError::NotImplemented
            | FsError::NoSuchIoctl
            | FsError::NotSupported
            | FsError::Interrupted
            | FsError::Deadlock
            | FsError::NoLocks
            | FsError::NoSuchOffset
            | FsError::TooLarge
            | FsError::Stale
            | FsError::BufferTooSmall => false,
        }
    }
}

/// Result of a request.
pub type FsResult<T> = Result<T, FsError>;
