//! Asking a system call for the error it must give.

use anyhow::{Result, bail, ensure};
use rustix::io::Errno;

/// An outcome that can be asked for its error number.
pub(crate) trait Fails {
    /// Its error number; `None` on success or when there is none.
    fn errno(self) -> Option<Errno>;
}

impl<T> Fails for std::io::Result<T> {
    fn errno(self) -> Option<Errno> {
        self.err().and_then(|error| Errno::from_io_error(&error))
    }
}

impl<T> Fails for Result<T, Errno> {
    fn errno(self) -> Option<Errno> {
        self.err()
    }
}

/// The outcome must be exactly this error.
#[track_caller]
pub(crate) fn must_fail(what: &str, outcome: impl Fails, wanted: Errno) -> Result<()> {
    let place = std::panic::Location::caller();
    match outcome.errno() {
        Some(found) if found == wanted => Ok(()),
        Some(found) => {
            bail!("{place}: {what}: {found:?} ({found}), expected {wanted:?} ({wanted})")
        }
        None => bail!("{place}: {what}: no error, expected {wanted:?} ({wanted})"),
    }
}

/// Two values must be equal; says which.
#[track_caller]
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<()> {
    let place = std::panic::Location::caller();
    ensure!(
        found == wanted,
        "{place}: {what}: {found:?}, expected {wanted:?}"
    );
    Ok(())
}
