//! `sluice clone`: a copy of a file or tree on the same mount that shares its data.
//!
//! Only metadata is copied, past the mount and under the rules that the kernel would apply to this user. All that
//! was written through the mount before is flushed first, and is in the copy. The new name appears when all of the copy is there, and the mount is told to forget that it was not.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use sluice_meta::error::MetaError;
use sluice_meta::ops::clone::{CloneAttrs, CloneTree, Cloned};
use sluice_meta::types::Ino;

use super::status::size;
use super::tool::{self, Tool};
use super::{FLUSH_XATTR, Failure, Outcome, parse_url};
use crate::cli::CloneArgs;
use crate::runtime::run_on_one;

/// Both ends of a clone, by path and by inode.
struct Ends {
    meta: String,
    source: Ino,
    to_parent: Ino,
    to_name: Vec<u8>,
}

/// Runs the command.
pub fn run(args: &CloneArgs) -> Outcome {
    let target = target(args)?;
    let (parent, name) = tool::split(&target)?;
    let ends = ends(args, &parent, name)?;
    flush(&args.source)?;
    let attrs = match args.preserve {
        true => CloneAttrs::Preserve,
        false => CloneAttrs::Fresh { umask: umask() },
    };
    let width = tool::width(args.threads);
    let made = run_on_one(|| async move { clone(&ends, attrs, width).await })
        .map_err(Failure::from_error)?;
    let made = made.map_err(|failure| {
        let (from, to) = (args.source.display(), target.display());
        Failure(format!("cannot clone {from} to {to}: {failure}"))
    })?;
    tool::forget(&parent, name);
    println!(
        "{}: {} entries, {} of data shared",
        target.display(),
        made.inodes,
        size(made.space.max(0).unsigned_abs())
    );
    Ok(())
}

/// Where the copy goes: a target that ends in a slash names the directory.
fn target(args: &CloneArgs) -> Result<PathBuf, Failure> {
    if !args.target.as_os_str().as_bytes().ends_with(b"/") {
        return Ok(args.target.clone());
    }
    let (_, name) = tool::split(&args.source)?;
    Ok(args.target.join(name))
}

fn ends(args: &CloneArgs, parent: &Path, name: &std::ffi::OsStr) -> Result<Ends, Failure> {
    let unseen =
        |path: &Path, error| Failure(format!("cannot look at {}: {error}", path.display()));
    let source = args
        .source
        .canonicalize()
        .map_err(|error| unseen(&args.source, error))?;
    let from = tool::server_of(&source)?;
    let to = tool::server_of(parent)?;
    let device = |path: &Path| {
        path.metadata()
            .map(|metadata| metadata.dev())
            .map_err(|error| unseen(path, error))
    };
    if device(&source)? != device(parent)? {
        return Err(Failure(format!(
            "{} and {} are not on the same mount: a clone shares data within a volume, copy it with cp",
            args.source.display(),
            parent.display()
        )));
    }
    let target = parent.join(name);
    if target.symlink_metadata().is_ok() {
        return Err(Failure(format!(
            "{} exists: name a path that does not",
            target.display()
        )));
    }
    if target.starts_with(&source) {
        return Err(Failure(format!(
            "{} is below {}: clone it to a place outside of itself",
            target.display(),
            source.display()
        )));
    }
    Ok(Ends {
        meta: from.meta,
        source: Ino(from.inode),
        to_parent: Ino(to.inode),
        to_name: name.as_bytes().to_vec(),
    })
}

/// What was written to the source is in the volume: first what waits in the kernel (pages of a mapping), then
/// what waits in the server, on all of its cores.
fn flush(source: &Path) -> Outcome {
    let failed =
        |error: std::io::Error| Failure(format!("cannot flush {}: {error}", source.display()));
    let metadata = source.metadata().map_err(failed)?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Ok(());
    }
    let file = File::open(source).map_err(failed)?;
    rustix::fs::syncfs(&file).map_err(|error| failed(error.into()))?;
    let mut value = [0u8; 16];
    rustix::fs::fgetxattr(&file, FLUSH_XATTR, &mut value[..])
        .map_err(|error| failed(error.into()))?;
    Ok(())
}

/// This process's umask, which can only be read by setting it.
fn umask() -> u16 {
    let mask = rustix::process::umask(Mode::empty());
    rustix::process::umask(mask);
    (mask.bits() & 0o777) as u16
}

async fn clone(ends: &Ends, attrs: CloneAttrs, width: usize) -> Result<Cloned, Failure> {
    let url = parse_url(&ends.meta)?;
    let who = tool::credentials()?;
    let tool = Tool::open(&url, "sluice clone").await?;
    let made = tool
        .meta
        .clone_tree(&CloneTree {
            who: &who,
            source: ends.source,
            to_parent: ends.to_parent,
            to_name: &ends.to_name,
            attrs,
            width,
            progress: &|count| tracing::debug!(count, "entries cloned"),
        })
        .await;
    let closed = tool.close().await;
    let made = made.map_err(|error| match error {
        MetaError::NotFound => {
            Failure("it was removed meanwhile: look whether it is still there".to_owned())
        }
        error => Failure::from_error(error),
    })?;
    closed.map(|()| made)
}
