//! `sluice compact`: rewrites files of many small slices as few large ones, now.
//!
//! The mount says which volume a path is of, as for `info`; the work goes to metadata and objects directly. What
//! is written meanwhile stays; a chunk that changes under the work is left as it is.

use std::cell::Cell;
use std::path::Path;

use sluice_meta::engine::{Engine, Item, Scan};
use sluice_meta::store::Access;
use sluice_meta::types::{ChunkIndex, FileKind, Ino};

use super::status::size;
use super::volume::{Volume, for_each, threads};
use super::{Failure, Outcome, whereabouts};
use crate::cli::CompactArgs;
use crate::file::compact::compact_fully;
use crate::runtime::run_on_one;

/// Runs the command.
pub fn run(args: &CompactArgs) -> Outcome {
    let threads = threads(&args.threads)?;
    for path in &args.paths {
        run_on_one(|| compact(path, args.bucket.as_deref(), threads))
            .map_err(Failure::from_error)??;
    }
    Ok(())
}

async fn compact(path: &Path, bucket: Option<&str>, threads: usize) -> Outcome {
    let place = whereabouts(path)
        .map_err(|error| Failure(format!("cannot look at {}: {error}", path.display())))?
        .ok_or_else(|| {
            Failure(format!(
                "{} is not on a sluice mount: name a path below one",
                path.display()
            ))
        })?;
    let url = super::parse_url(&place.meta)?;
    let volume = Volume::open(&url, Access::ReadWrite, bucket).await?;
    let mut tally = Tally::default();
    let mut todo = vec![Ino(place.inode)];
    while let Some(ino) = todo.pop() {
        let attr = volume.meta.getattr(ino).await;
        let attr = match attr {
            Ok(attr) => attr,
            // Removed meanwhile.
            Err(sluice_meta::error::MetaError::NotFound) => continue,
            Err(error) => return Err(Failure::from_error(error)),
        };
        match attr.kind {
            FileKind::Directory => subdirs_and_files(&volume, ino, &mut todo).await?,
            FileKind::File => file(&volume, ino, attr.length, threads, &mut tally).await?,
            _ => {}
        }
    }
    println!(
        "{}: {} files, {} chunks compacted, {} written",
        path.display(),
        tally.files,
        tally.chunks.get(),
        size(tally.bytes.get())
    );
    tally.verdict()
}

/// What was done.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) files: u64,
    pub(super) chunks: Cell<u64>,
    pub(super) bytes: Cell<u64>,
    pub(super) failed: Cell<u64>,
}

impl Tally {
    fn verdict(&self) -> Outcome {
        match self.failed.get() {
            0 => Ok(()),
            count => Err(Failure(format!(
                "{count} chunks could not be compacted, see above; they are as they were"
            ))),
        }
    }

    /// Compacts a chunk until there is nothing to gain.
    pub(super) async fn chunk(&self, volume: &Volume, ino: Ino, index: ChunkIndex) {
        match compact_fully(&volume.meta, &volume.blocks, ino, index).await {
            Ok(0) => {}
            Ok(bytes) => {
                self.chunks.set(self.chunks.get() + 1);
                self.bytes.set(self.bytes.get() + bytes);
            }
            Err(error) => {
                eprintln!("chunk {} of inode {ino}: {error}", index.0);
                self.failed.set(self.failed.get() + 1);
            }
        }
    }
}

async fn subdirs_and_files(volume: &Volume, dir: Ino, todo: &mut Vec<Ino>) -> Outcome {
    let scan = Scan::Dir {
        parent: dir,
        attrs: false,
    };
    for item in all(volume, &scan).await? {
        if let Item::Entry { dentry, .. } = item
            && matches!(dentry.kind, FileKind::Directory | FileKind::File)
        {
            todo.push(dentry.ino);
        }
    }
    Ok(())
}

async fn file(
    volume: &Volume,
    ino: Ino,
    length: u64,
    threads: usize,
    tally: &mut Tally,
) -> Outcome {
    tally.files += 1;
    let items = all(volume, &Scan::Chunks { ino, length }).await?;
    let long = items.into_iter().filter_map(|item| match item {
        Item::Chunk { index, slices } if slices.len() > 1 => Some(index),
        _ => None,
    });
    let tally = &*tally;
    for_each(long, threads, async |index| {
        tally.chunk(volume, ino, index).await
    })
    .await;
    Ok(())
}

async fn all(volume: &Volume, scan: &Scan) -> Result<Vec<Item>, Failure> {
    let mut items = Vec::new();
    let mut cursor = None;
    loop {
        let page = volume.meta.engine().scan(scan, cursor.as_ref(), 1000).await;
        let page = page.map_err(Failure::from_error)?;
        items.extend(page.items);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(items),
        }
    }
}
