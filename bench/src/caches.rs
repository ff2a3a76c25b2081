//! What the kernel knows before a case: nothing that would answer in the server's place.
//!
//! With `drop`, the kernel forgets for the whole machine, which is the same for every target: entries and inodes
//! (the FUSE server is asked again; a disk file system finds its tables in memory), or those and all clean pages
//! (a FUSE server's own files too; what the server holds in its own memory stays). With `expire`, entries are
//! waited out, which does nothing to a file system of the kernel's, and of data fio drops its own file's pages.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::options::Forgetting;

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// What a case wants forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Forget {
    /// Nothing.
    Nothing,
    /// Directory entries and inodes.
    Entries,
    /// Entries, inodes, and the pages of files.
    Everything,
}

/// How this run forgets.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caches {
    /// The machine's switch.
    Drop,
    /// Waiting this long.
    Expire(Duration),
}

impl Caches {
    /// Settles `auto`.
    pub(crate) fn new(wish: Forgetting, expiry: Duration) -> Caches {
        let may_drop = || File::options().write(true).open(DROP_CACHES).is_ok();
        match wish {
            Forgetting::Drop => Caches::Drop,
            Forgetting::Auto if may_drop() => Caches::Drop,
            Forgetting::Auto | Forgetting::Expire => Caches::Expire(expiry),
        }
    }

    /// Forgets. All dirty pages must have been written before, since they stay.
    pub(crate) fn forget(self, what: Forget) -> Result<()> {
        match (self, what) {
            (_, Forget::Nothing) => Ok(()),
            (Caches::Drop, Forget::Entries) => drop_caches("2"),
            (Caches::Drop, Forget::Everything) => drop_caches("3"),
            (Caches::Expire(after), Forget::Entries) => {
                wait(after);
                Ok(())
            }
            // The job says `invalidate`; direct reads look past the pages.
            (Caches::Expire(_), Forget::Everything) => Ok(()),
        }
    }

    /// For the summary.
    pub(crate) fn describe(self) -> String {
        match self {
            Caches::Drop => "Before stats the kernel's entries and inodes were dropped, before each case that reads \
                 data also all clean pages (`drop_caches`); what a server holds in its own memory stayed."
                .to_owned(),
            Caches::Expire(after) => format!(
                "Before stats {} ms were waited, so that entries of FUSE mounts expired (a file system of the \
                 kernel's keeps its own); before reads fio dropped the pages of its own file, while those of the \
                 servers' files stayed.",
                after.as_millis()
            ),
        }
    }
}

fn drop_caches(what: &str) -> Result<()> {
    let mut file = File::options()
        .write(true)
        .open(DROP_CACHES)
        .with_context(|| format!("opening {DROP_CACHES}: needs root, or choose --caches expire"))?;
    file.write_all(what.as_bytes())
        .with_context(|| format!("writing {what} to {DROP_CACHES}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "no executor here, and it is the passing of time itself that is waited for"
)]
fn wait(time: Duration) {
    std::thread::sleep(time);
}
