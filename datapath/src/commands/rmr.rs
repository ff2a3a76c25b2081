//! `sluice rmr`: removes trees on a mounted volume much faster than `rm -r`, in batches and past the kernel.
//!
//! The mount says which volume and which directory a path is; the rest goes to the metadata directly, under the
//! rules that the kernel would apply to this user. Afterwards the mount is told to forget the name.
//!
//! What is removed goes to the trash, unless the volume has none or `--skip-trash` is given (for the super-user).
//! The data of files that are deleted stays filed as deleted: the hourly job of any mount takes it away, so that
//! who has such a file open can go on reading for a while.
//!
//! Who may use the mount but not the metadata (an SQLite file without permission, a server without its password)
//! gets a plain recursive removal through the mount.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sluice_meta::limits;
use sluice_meta::ops::remove_tree::{TreeRemoval, TreeWatch};
use sluice_meta::ops::{Disposal, Removed};
use sluice_meta::types::Ino;

use super::tool::{self, Tool};
use super::{Failure, Outcome, Where, parse_url};
use crate::cli::RmrArgs;
use crate::runtime::run_on_one;

/// Counts entries.
#[derive(Default)]
struct Count(Cell<u64>);

impl TreeWatch for Count {
    fn removed(&self, _removed: &Removed) {
        self.0.set(self.0.get() + 1);
    }
}

/// Runs the command.
pub fn run(args: &RmrArgs) -> Outcome {
    if args.skip_trash && !rustix::process::geteuid().is_root() {
        return Err(Failure(
            "only root may remove past the trash: leave --skip-trash out, or run it as root"
                .to_owned(),
        ));
    }
    args.paths.iter().try_for_each(|path| remove(path, args))
}

fn remove(path: &Path, args: &RmrArgs) -> Outcome {
    let (parent, name) = tool::split(path)?;
    let place = tool::server_of(&parent)?;
    let removed = run_on_one(|| {
        let name = name.to_owned();
        let path = path.to_owned();
        let args = args.clone();
        async move { past_mount(&path, &place, &name, &args).await }
    })
    .map_err(Failure::from_error)??;
    match removed {
        Some(count) => {
            tool::forget(&parent, name);
            println!("{}: {count} entries removed", path.display());
            Ok(())
        }
        None => through_mount(&parent.join(name)),
    }
}

/// Removes by the metadata; answers how many entries, or `None` if this user cannot open it.
async fn past_mount(
    path: &Path,
    place: &Where,
    name: &OsStr,
    args: &RmrArgs,
) -> Result<Option<u64>, Failure> {
    let who = tool::credentials()?;
    let opened = match parse_url(&place.meta) {
        Ok(url) => Tool::open(&url, "sluice rmr").await,
        Err(failure) => Err(failure),
    };
    let tool = match opened {
        Ok(tool) => tool,
        Err(failure) if args.skip_trash => return Err(failure),
        Err(failure) => {
            tracing::info!(%failure, "no access to the metadata, removing through the mount");
            return Ok(None);
        }
    };
    let count = Count::default();
    let removed = tool
        .meta
        .remove_tree(
            Ino(place.inode),
            name.as_bytes(),
            &TreeRemoval {
                who: &who,
                disposal: match args.skip_trash {
                    true => Disposal::Delete,
                    false => Disposal::Trash,
                },
                width: tool::width(args.threads),
                batch: limits::UNLINK_BATCH,
                watch: &count,
            },
        )
        .await;
    let closed = tool.close().await;
    let removed = removed.map_err(|error| {
        let count = count.0.get();
        Failure(format!(
            "cannot remove {}: {error} ({count} entries below it are removed)",
            path.display()
        ))
    });
    removed.and(closed)?;
    Ok(Some(count.0.get()))
}

/// Removes by system calls.
fn through_mount(path: &Path) -> Outcome {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.map_err(|error| Failure(format!("cannot remove {}: {error}", path.display())))?;
    println!("{}: removed", path.display());
    Ok(())
}
