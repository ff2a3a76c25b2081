//! INIT: what the kernel offers and we want, made into one answer.
//!
//! Called once per connection by `session`. Pure. Invariant: no flag is in the answer that the kernel did
//! not offer. Fails only when the kernel is too old ([`NegotiateError`]); everything else has a fallback.
//!
//! Taken when offered: parallel background reads (ASYNC_READ, ASYNC_DIO), large requests (BIG_WRITES,
//! MAX_PAGES), `O_TRUNC` inside OPEN, cached pages dropped when mtime or size changed
//! (AUTO_INVAL_DATA: what makes close-to-open hold), adaptive READDIRPLUS, parallel lookups in one
//! directory, cached link targets, suid clearing by us as told per request (HANDLE_KILLPRIV_V2: else
//! the kernel asks for `security.capability` before every write), a distinct error after an abort.
//! Locks (POSIX_LOCKS, FLOCK_LOCKS) if asked for: else the kernel keeps them local to the mount.
//!
//! Deliberately absent:
//! - DONT_MASK, POSIX_ACL, SETXATTR_EXT, unless the volume has ACLs: the kernel then checks them, asks for them
//!   as extended attributes and says with a new one whether it takes sgid away; and it leaves the umask to us,
//!   who know whether a default ACL takes its place. Without, the kernel applies the umask before it sends a mode.
//! - NO_OPEN_SUPPORT, NO_OPENDIR_SUPPORT: handles carry state here, so opens must be seen.
//! - EXPORT_SUPPORT: needs LOOKUP of `.` and `..` on any inode number, also after it was forgotten.
//! - splice flags: pages are copied once; moving them gains nothing for memory of our own.
//! - WRITEBACK_CACHE unless asked for: dirty pages in the kernel break close-to-open between mounts.

use super::abi::{self, InitIn, InitOut, init_flag};

const PAGE: u32 = 4096;
/// Largest request of a kernel without MAX_PAGES: 32 pages.
const OLD_PAGES: u32 = 32;
/// Most pages the kernel takes by default (sysctl `fs.fuse.max_pages_limit`).
const PAGES_MAX: u32 = 256;

/// What we ask for. `Default` is what the server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiateOptions {
    /// Bytes of the largest READ and WRITE; made a multiple of 4096 between 4 KiB and 1 MiB.
    pub max_write: u32,
    /// Bytes of readahead; the kernel takes no more than it offers (128 KiB), see `Session` for more.
    pub max_readahead: u32,
    /// Requests the kernel may have under way for readahead, writeback and asynchronous I/O.
    /// Its own default of 12 starves a deep queue.
    pub max_background: u16,
    /// From this many on it throttles writeback.
    pub congestion_threshold: u16,
    /// Let the kernel collect writes.
    pub writeback_cache: bool,
    /// The volume has POSIX ACLs.
    pub posix_acl: bool,
    /// Be asked for `flock(2)` and `fcntl(2)` locks, so that they hold between mounts.
    pub locks: bool,
}

impl Default for NegotiateOptions {
    fn default() -> NegotiateOptions {
        NegotiateOptions {
            max_write: 1 << 20,
            max_readahead: 1 << 20,
            max_background: 256,
            congestion_threshold: 192,
            writeback_cache: false,
            posix_acl: false,
            locks: true,
        }
    }
}

/// What both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Minor version spoken.
    pub minor: u32,
    /// Accepted flags, both words.
    pub flags: u64,
    /// Bytes of the largest READ and WRITE.
    pub max_write: u32,
    /// Bytes of readahead.
    pub max_readahead: u32,
    /// The answer to send.
    pub out: InitOut,
}

impl Negotiated {
    /// Whether a flag was agreed on.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// The kernel cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NegotiateError {
    /// Version out of range.
    #[error(
        "the kernel speaks FUSE {major}.{minor}; this server needs {}.{} or later (Linux 5.4)",
        abi::KERNEL_VERSION,
        abi::KERNEL_MINOR_OLDEST
    )]
    Version {
        /// The kernel's major version.
        major: u32,
        /// The kernel's minor version.
        minor: u32,
    },
}

/// Flags taken whenever they are offered.
const WANTED: u64 = init_flag::ASYNC_READ
    | init_flag::ATOMIC_O_TRUNC
    | init_flag::BIG_WRITES
    | init_flag::AUTO_INVAL_DATA
    | init_flag::DO_READDIRPLUS
    | init_flag::READDIRPLUS_AUTO
    | init_flag::ASYNC_DIO
    | init_flag::PARALLEL_DIROPS
    | init_flag::ABORT_ERROR
    | init_flag::MAX_PAGES
    | init_flag::CACHE_SYMLINKS
    | init_flag::HANDLE_KILLPRIV_V2
    | init_flag::INIT_EXT;

/// Flags of a volume with ACLs.
const ACL_FLAGS: u64 = init_flag::POSIX_ACL | init_flag::DONT_MASK | init_flag::SETXATTR_EXT;

/// The answer to `offer`.
pub fn negotiate(offer: &InitIn, options: &NegotiateOptions) -> Result<Negotiated, NegotiateError> {
    if offer.major != abi::KERNEL_VERSION || offer.minor < abi::KERNEL_MINOR_OLDEST {
        return Err(NegotiateError::Version {
            major: offer.major,
            minor: offer.minor,
        });
    }
    let mut wanted = WANTED;
    if options.writeback_cache {
        wanted |= init_flag::WRITEBACK_CACHE;
    }
    if options.posix_acl {
        wanted |= ACL_FLAGS;
    }
    if options.locks {
        wanted |= init_flag::POSIX_LOCKS | init_flag::FLOCK_LOCKS;
    }
    let flags = wanted & offered_flags(offer);
    let pages_max = if flags & init_flag::MAX_PAGES != 0 {
        PAGES_MAX
    } else {
        OLD_PAGES
    };
    let pages = (options.max_write / PAGE).clamp(1, pages_max);
    let minor = offer.minor.min(abi::KERNEL_MINOR_VERSION);
    let max_readahead = options.max_readahead.min(offer.max_readahead);
    let (low, high) = split(flags);
    let out = InitOut {
        major: abi::KERNEL_VERSION,
        minor,
        max_readahead,
        flags: low,
        flags2: high,
        max_background: options.max_background,
        congestion_threshold: options.congestion_threshold.min(options.max_background),
        max_write: pages * PAGE,
        // Times are kept to the nanosecond.
        time_gran: 1,
        // At most 256, see above.
        max_pages: if flags & init_flag::MAX_PAGES != 0 {
            pages as u16
        } else {
            0
        },
        ..InitOut::default()
    };
    Ok(Negotiated {
        minor,
        flags,
        max_write: out.max_write,
        max_readahead,
        out,
    })
}

/// Both words of the offer; the high word counts only with INIT_EXT.
fn offered_flags(offer: &InitIn) -> u64 {
    let low = u64::from(offer.flags);
    let high = if low & init_flag::INIT_EXT != 0 {
        u64::from(offer.flags2)
    } else {
        0
    };
    low | high << 32
}

/// Low and high word.
fn split(flags: u64) -> (u32, u32) {
    ((flags & u64::from(u32::MAX)) as u32, (flags >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.18 offers.
    fn offer() -> InitIn {
        InitIn {
            major: 7,
            minor: 45,
            max_readahead: 128 << 10,
            flags: 0x73ff_fffb,
            flags2: 0x7fd,
            unused: [0; 11],
        }
    }

    #[test]
    fn linux_6_18_gets_everything_wanted() {
        let got = negotiate(&offer(), &NegotiateOptions::default()).unwrap();
        let locks = init_flag::POSIX_LOCKS | init_flag::FLOCK_LOCKS;
        assert_eq!(got.flags, WANTED | locks);
        let without = NegotiateOptions {
            locks: false,
            ..NegotiateOptions::default()
        };
        assert_eq!(negotiate(&offer(), &without).unwrap().flags, WANTED);
        assert_eq!(
            (got.minor, got.max_write, got.max_readahead),
            (45, 1 << 20, 128 << 10)
        );
        assert_eq!(
            (got.out.major, got.out.minor, got.out.max_pages),
            (7, 45, 256)
        );
        assert_eq!(
            (got.out.max_background, got.out.congestion_threshold),
            (256, 192)
        );
        assert_eq!(got.out.time_gran, 1);
        for absent in [
            init_flag::DONT_MASK,
            init_flag::POSIX_ACL,
            init_flag::EXPORT_SUPPORT,
            init_flag::NO_OPEN_SUPPORT,
            init_flag::NO_OPENDIR_SUPPORT,
            init_flag::SETXATTR_EXT,
            init_flag::WRITEBACK_CACHE,
            init_flag::OVER_IO_URING,
        ] {
            assert!(!got.has(absent), "{absent:#x}");
        }
    }

    #[test]
    fn nothing_is_taken_that_was_not_offered() {
        for bit in 0..64 {
            let (flags, flags2) = split(!(1u64 << bit));
            let options = NegotiateOptions {
                writeback_cache: true,
                posix_acl: true,
                ..Default::default()
            };
            let got = negotiate(
                &InitIn {
                    flags,
                    flags2,
                    ..offer()
                },
                &options,
            )
            .unwrap();
            assert!(!got.has(1 << bit), "bit {bit}");
            let (low, high) = split(got.flags);
            assert_eq!((got.out.flags, got.out.flags2), (low, high));
        }
    }

    #[test]
    fn high_word_is_void_without_init_ext() {
        let (flags, _) = split(!init_flag::INIT_EXT);
        assert_eq!(
            offered_flags(&InitIn {
                flags,
                flags2: u32::MAX,
                ..offer()
            }) >> 32,
            0
        );
    }

    #[test]
    fn request_size_is_whole_pages_within_bounds() {
        let check = |max_write, offered: u64, expected| {
            let (flags, _) = split(offered);
            let options = NegotiateOptions {
                max_write,
                ..Default::default()
            };
            let got = negotiate(&InitIn { flags, ..offer() }, &options).unwrap();
            assert_eq!(got.max_write, expected, "asked for {max_write}");
        };
        let (all, old) = (
            u64::from(u32::MAX),
            u64::from(u32::MAX) & !init_flag::MAX_PAGES,
        );
        check(0, all, 4096);
        check(5000, all, 4096);
        check(128 << 10, all, 128 << 10);
        check(u32::MAX, all, 1 << 20);
        check(1 << 20, old, 128 << 10);
    }

    #[test]
    fn writeback_cache_only_on_request() {
        let options = NegotiateOptions {
            writeback_cache: true,
            ..Default::default()
        };
        assert!(
            negotiate(&offer(), &options)
                .unwrap()
                .has(init_flag::WRITEBACK_CACHE)
        );
    }

    #[test]
    fn acls_only_for_volumes_that_have_them() {
        let options = NegotiateOptions {
            posix_acl: true,
            locks: false,
            ..Default::default()
        };
        let got = negotiate(&offer(), &options).unwrap();
        assert_eq!(got.flags, WANTED | ACL_FLAGS);
    }

    #[test]
    fn versions_out_of_range_are_refused() {
        for (major, minor) in [(6, 45), (8, 0), (7, 30), (7, 0)] {
            let got = negotiate(
                &InitIn {
                    major,
                    minor,
                    ..offer()
                },
                &NegotiateOptions::default(),
            );
            assert_eq!(got, Err(NegotiateError::Version { major, minor }));
        }
        let newer = InitIn {
            minor: 99,
            ..offer()
        };
        assert_eq!(
            negotiate(&newer, &NegotiateOptions::default())
                .unwrap()
                .out
                .minor,
            45
        );
    }
}
