//! What can go wrong, by boundary. Outcomes (`NotFound`, `Exists`, ...) are answers; the rest are faults.
//!
//! [`MetaError::errno`] is the one place of this crate that chooses error numbers; only the front door
//! calls it.

use crate::types::Ino;

/// A fault of an engine: never an answer about the file system.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The store could not be reached or the connection was lost before the request was sent.
    #[error("{engine} at {address}: {cause}")]
    Unreachable {
        /// Engine's name.
        engine: &'static str,
        /// Address without secrets.
        address: String,
        /// What the attempt ended with.
        cause: String,
    },
    /// The connection broke after a commit was sent: it may or may not have been applied.
    #[error(
        "{engine}: connection lost while a request was in flight, its fate is unknown: {cause}"
    )]
    UnknownFate {
        /// Engine's name.
        engine: &'static str,
        /// What the connection ended with.
        cause: String,
    },
    /// The store answered with an error of its own.
    #[error("{engine}: {cause}")]
    Refused {
        /// Engine's name.
        engine: &'static str,
        /// The store's words.
        cause: String,
    },
    /// Out of room (Redis `maxmemory`, disk full under SQLite).
    #[error("{engine} is out of space: {cause}")]
    NoSpace {
        /// Engine's name.
        engine: &'static str,
        /// The store's words.
        cause: String,
    },
    /// Someone else holds the store's write lock; trying again helps.
    #[error("{engine} is busy: {cause}")]
    Busy {
        /// Engine's name.
        engine: &'static str,
        /// The store's words.
        cause: String,
    },
    /// A record is not of the form the format prescribes.
    #[error("damaged metadata record {record}: {cause}")]
    Corrupt {
        /// Which record, for a person.
        record: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl EngineError {
    /// Whether trying the same thing again soon may succeed and cannot do harm.
    pub fn is_transient(&self) -> bool {
        match self {
            EngineError::Busy { .. } | EngineError::Unreachable { .. } => true,
            EngineError::UnknownFate { .. }
            | EngineError::Refused { .. }
            | EngineError::NoSpace { .. }
            | EngineError::Corrupt { .. } => false,
        }
    }
}

/// Outcome of a metadata operation that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// No such entry or inode.
    #[error("not found")]
    NotFound,
    /// The name is taken.
    #[error("exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Anything but a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// Permission bits or the sticky bit say no.
    #[error("access denied")]
    Access,
    /// Not allowed for this caller or this kind of object.
    #[error("operation not permitted")]
    NotPermitted,
    /// An argument makes no sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// Name or target too long.
    #[error("name too long")]
    NameTooLong,
    /// Too many links.
    #[error("too many links")]
    TooManyLinks,
    /// Volume is full (capacity or inodes).
    #[error("volume is full")]
    NoSpace,
    /// A quota is used up.
    #[error("quota exceeded")]
    QuotaExceeded,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// Value or name beyond the limit, or buffer too small.
    #[error("out of range")]
    Range,
    /// Beyond the largest file.
    #[error("file too large")]
    TooLarge,
    /// The mount is read-only.
    #[error("read-only")]
    ReadOnly,
    /// Not offered.
    #[error("not supported")]
    NotSupported,
    /// `fallocate` on a pipe.
    #[error("illegal seek")]
    Pipe,
    /// A path goes through a symlink, which is not followed.
    #[error("a symlink in the middle of the path")]
    SymlinkInPath,
    /// A lock is in the way.
    #[error("locked by somebody else")]
    Locked {
        /// An owner in this session that holds one, if any does.
        own: Option<u64>,
        /// Whether another session holds one.
        foreign: bool,
    },
    /// Kept losing to concurrent changes until the budget was used up.
    #[error("gave up after {attempts} conflicting attempts on inode {ino}")]
    Contended {
        /// The inode whose record kept changing.
        ino: Ino,
        /// Attempts made.
        attempts: u32,
    },
    /// A fault below.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl MetaError {
    /// The error number a system call answers with.
    pub fn errno(&self) -> i32 {
        match self {
            MetaError::NotFound => 2,         // ENOENT
            MetaError::Exists => 17,          // EEXIST
            MetaError::NotDirectory => 20,    // ENOTDIR
            MetaError::IsDirectory => 21,     // EISDIR
            MetaError::NotEmpty => 39,        // ENOTEMPTY
            MetaError::Access => 13,          // EACCES
            MetaError::NotPermitted => 1,     // EPERM
            MetaError::Invalid(_) => 22,      // EINVAL
            MetaError::NameTooLong => 36,     // ENAMETOOLONG
            MetaError::TooManyLinks => 31,    // EMLINK
            MetaError::NoSpace => 28,         // ENOSPC
            MetaError::QuotaExceeded => 122,  // EDQUOT
            MetaError::NoAttribute => 61,     // ENODATA
            MetaError::Range => 34,           // ERANGE
            MetaError::TooLarge => 27,        // EFBIG
            MetaError::ReadOnly => 30,        // EROFS
            MetaError::NotSupported => 95,    // EOPNOTSUPP
            MetaError::Pipe => 29,            // ESPIPE, as Linux answers for a FIFO
            MetaError::SymlinkInPath => 40,   // ELOOP, as for O_NOFOLLOW
            MetaError::Locked { .. } => 11,   // EAGAIN, which is EWOULDBLOCK
            MetaError::Contended { .. } => 5, // EIO, as JuiceFS after its 50 attempts
            MetaError::Engine(EngineError::NoSpace { .. }) => 28,
            // An unreachable or damaged store is an I/O error to the application; the log has the cause.
            MetaError::Engine(
                EngineError::Unreachable { .. }
                | EngineError::UnknownFate { .. }
                | EngineError::Refused { .. }
                | EngineError::Busy { .. }
                | EngineError::Corrupt { .. },
            ) => 5,
        }
    }

    /// Whether this is a fault to be logged, not an answer.
    pub fn is_fault(&self) -> bool {
        matches!(self, MetaError::Engine(_) | MetaError::Contended { .. })
    }
}
