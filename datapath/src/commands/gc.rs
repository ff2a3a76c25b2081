//! `sluice gc`: what is left behind in a volume, found and, if asked for, deleted; and lists compacted.
//!
//! Left behind are: data of deleted files, replaced slices whose days in the trash are over, slices without
//! references, inodes without a name, chunk lists without an inode, and objects that no record knows. Objects
//! younger than an hour are left alone: their commit may be on its way.
//!
//! Memory: 36 bytes for each slice (`tools::leaks`), and one directory of objects.

use std::cell::Cell;
use std::cell::RefCell;

use sluice_meta::engine::{AnyEngine, Engine, Item, Scan};
use sluice_meta::store::Access;
use sluice_meta::tools::leaks::{
    Slices, Use, dead, delayed, delete_chunk, delete_inode, orphans, release, slices,
};
use sluice_meta::types::{Ino, SliceId};

use super::compact::Tally;
use super::status::size;
use super::volume::{Volume, block_of, for_each, threads, walk_objects};
use super::{Failure, Outcome};
use crate::cache::{BlockIo, blocks_of};
use crate::cli::GcArgs;
use crate::file::compact::delete_slice;
use crate::object::{Listed, ObjectStore};
use crate::runtime::run_on_one;

/// Objects younger than this are left alone, s.
const OBJECT_AGE: i64 = 3600;
const DAY: i64 = 86_400;

/// Runs the command.
pub fn run(args: &GcArgs) -> Outcome {
    let threads = threads(&args.threads)?;
    let url = super::parse_url(&args.meta_url)?;
    let access = if args.delete || args.compact {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    run_on_one(|| async move {
        let volume = Volume::open(&url, access, args.bucket.as_deref()).await?;
        let gc = Gc {
            volume,
            delete: args.delete,
            threads,
            failed: Cell::new(0),
        };
        gc.run(args.compact).await
    })
    .map_err(Failure::from_error)?
}

struct Gc {
    volume: Volume,
    delete: bool,
    threads: usize,
    /// Things that could not be deleted.
    failed: Cell<u64>,
}

/// Objects, by what they are.
#[derive(Default)]
struct Objects {
    valid: Count,
    waiting: Count,
    young: Count,
    leaked: Count,
    strange: Count,
    deleted: Count,
}

#[derive(Clone, Copy, Default)]
struct Count {
    objects: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, object: &Listed) {
        self.objects += 1;
        self.bytes += object.bytes;
    }
}

impl Gc {
    fn engine(&self) -> &AnyEngine {
        self.volume.meta.engine()
    }

    async fn run(&self, compact: bool) -> Outcome {
        if compact {
            self.compact().await?;
        }
        self.orphans().await?;
        self.deleted_files().await?;
        self.delayed_slices().await?;
        self.dead_slices().await?;
        self.objects().await?;
        match self.failed.get() {
            0 => Ok(()),
            count => Err(Failure(format!(
                "{count} things could not be deleted or compacted, see above; run the command again"
            ))),
        }
    }

    fn failed(&self, what: &dyn std::fmt::Display) {
        eprintln!("{what}");
        self.failed.set(self.failed.get() + 1);
    }

    /// Every chunk whose list has more than one record, a page at a time.
    async fn compact(&self) -> Outcome {
        let tally = Tally::default();
        let mut cursor = None;
        loop {
            let page = self
                .engine()
                .scan(&Scan::AllChunks, cursor.as_ref(), 1000)
                .await
                .map_err(Failure::from_error)?;
            let chunks: Vec<_> = page
                .items
                .into_iter()
                .filter_map(|item| match item {
                    Item::FileChunk { ino, index, slices } if slices.len() > 1 => {
                        Some((ino, index))
                    }
                    _ => None,
                })
                .collect();
            for_each(chunks, self.threads, async |(ino, index)| {
                tally.chunk(&self.volume, ino, index).await;
            })
            .await;
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        println!(
            "compacted chunks:     {} ({} written)",
            tally.chunks.get(),
            size(tally.bytes.get())
        );
        self.failed.set(self.failed.get() + tally.failed.get());
        Ok(())
    }

    async fn delete_slices(&self, slices: Vec<(SliceId, u32)>) -> u64 {
        let deleted = Cell::new(0);
        for_each(slices, self.threads, async |(id, bytes)| {
            if delete_slice(&self.volume.meta, &self.volume.blocks, id, bytes).await {
                deleted.set(deleted.get() + 1);
            } else {
                self.failed(&format_args!("slice {} is not deleted", id.0));
            }
        })
        .await;
        deleted.get()
    }

    fn line(&self, what: &str, found: usize, deleted: u64) {
        let what = format!("{what}:");
        if self.delete {
            println!("{what:<21} {found} found, {deleted} deleted");
        } else {
            println!("{what:<21} {found} found");
        }
    }

    async fn orphans(&self) -> Outcome {
        let now = self.volume.meta.now();
        let found = orphans(self.engine(), now)
            .await
            .map_err(Failure::from_error)?;
        let (mut inodes, mut chunks) = (0, 0);
        if self.delete {
            for (ino, attr) in &found.inodes {
                match delete_inode(self.engine(), *ino, attr, now).await {
                    Ok(true) => inodes += 1,
                    Ok(false) => eprintln!("inode {ino} has changed or is not empty and stays"),
                    Err(error) => self.failed(&format_args!("inode {ino}: {error}")),
                }
            }
            for chunk in &found.chunks {
                match delete_chunk(self.engine(), chunk).await {
                    Ok(dead) => {
                        chunks += 1;
                        self.delete_slices(dead).await;
                    }
                    Err(error) => self.failed(&format_args!("chunk of inode {}: {error}", chunk.0)),
                }
            }
        }
        self.line("leaked inodes", found.inodes.len(), inodes);
        self.line("leaked chunks", found.chunks.len(), chunks);
        Ok(())
    }

    async fn deleted_files(&self) -> Outcome {
        let mut files = Vec::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine()
                .scan(&Scan::DeletedFiles, cursor.as_ref(), 1000)
                .await
                .map_err(Failure::from_error)?;
            files.extend(page.items.into_iter().filter_map(|item| match item {
                Item::DeletedFile { ino, length, .. } => Some((ino, length)),
                _ => None,
            }));
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        let mut deleted = 0;
        if self.delete {
            for (ino, length) in &files {
                deleted += u64::from(self.reclaim(*ino, *length).await);
            }
        }
        self.line("deleted files", files.len(), deleted);
        Ok(())
    }

    async fn reclaim(&self, ino: Ino, length: u64) -> bool {
        match self.volume.meta.reclaim(ino, length).await {
            Ok(dead) => {
                self.delete_slices(dead).await;
                true
            }
            Err(error) => {
                self.failed(&format_args!("deleted file {ino}: {error}"));
                false
            }
        }
    }

    /// Those whose days in the trash are over.
    async fn delayed_slices(&self) -> Outcome {
        let notes = delayed(self.engine()).await.map_err(Failure::from_error)?;
        let days = i64::from(self.volume.setting.trash_days);
        let edge = self.volume.meta.now().sec - days * DAY;
        let (mut found, mut deleted) = (0, 0);
        for note in &notes {
            found += note.2.len();
            if !self.delete || note.1 > edge {
                continue;
            }
            match release(self.engine(), note).await {
                Ok(dead) => deleted += self.delete_slices(dead).await,
                Err(error) => self.failed(&format_args!("replaced slices: {error}")),
            }
        }
        self.line("replaced slices", found, deleted);
        Ok(())
    }

    async fn dead_slices(&self) -> Outcome {
        let slices = dead(self.engine()).await.map_err(Failure::from_error)?;
        let found = slices.len();
        let deleted = match self.delete {
            true => self.delete_slices(slices).await,
            false => 0,
        };
        self.line("pending slices", found, deleted);
        Ok(())
    }

    async fn objects(&self) -> Outcome {
        let known = slices(self.engine()).await.map_err(Failure::from_error)?;
        let counts = RefCell::new(Objects::default());
        let newest = self.volume.meta.now().sec - OBJECT_AGE;
        let store = self.volume.store();
        walk_objects(store, "chunks", async |objects| {
            let mut leaked = Vec::new();
            for object in objects {
                let mut counts = counts.borrow_mut();
                match self.judge(&known, &object, newest) {
                    Verdict::Valid => counts.valid.add(&object),
                    Verdict::Waiting => counts.waiting.add(&object),
                    Verdict::Young => counts.young.add(&object),
                    Verdict::Strange => counts.strange.add(&object),
                    Verdict::Leaked => {
                        counts.leaked.add(&object);
                        leaked.push(object);
                    }
                }
            }
            if self.delete {
                for_each(leaked, self.threads, async |object| {
                    match store.delete(&object.key).await {
                        Ok(()) => counts.borrow_mut().deleted.add(&object),
                        Err(error) => self.failed(&error),
                    }
                })
                .await;
            }
        })
        .await
        .map_err(Failure::from_error)?;
        self.show(&counts.into_inner(), known.chunk_count());
        Ok(())
    }

    fn judge(&self, known: &Slices, object: &Listed, newest: i64) -> Verdict {
        let layout = self.volume.blocks.0.layout();
        let Some(block) = block_of(layout.naming, &object.key) else {
            return Verdict::Strange;
        };
        let slice = known.get(block.slice);
        let fits = slice.is_some_and(|slice| {
            let mut blocks = blocks_of(block.slice, slice.size, self.volume.blocks.block_bytes());
            blocks.nth(block.index as usize) == Some(block)
        });
        match slice.map(|slice| slice.usage).filter(|_| fits) {
            Some(Use::Live) => Verdict::Valid,
            Some(Use::Delayed | Use::Dead) => Verdict::Waiting,
            None if object.modified > newest => Verdict::Young,
            None => Verdict::Leaked,
        }
    }

    fn show(&self, counts: &Objects, chunks: usize) {
        let line = |what: &str, count: Count| {
            let what = format!("{what}:");
            println!("{what:<21} {} ({})", count.objects, size(count.bytes));
        };
        println!("chunks:               {chunks}");
        line("valid objects", counts.valid);
        line("waiting objects", counts.waiting);
        line("young objects", counts.young);
        line("leaked objects", counts.leaked);
        if counts.strange.objects > 0 {
            line("unknown files", counts.strange);
        }
        if self.delete {
            line("deleted objects", counts.deleted);
        } else if counts.leaked.objects > 0 {
            println!("give --delete to delete what is leaked");
        }
    }
}

enum Verdict {
    Valid,
    Waiting,
    Young,
    Leaked,
    /// Not an object of ours: never touched.
    Strange,
}
