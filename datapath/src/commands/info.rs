//! `sluice info`: inode, chunks, slices and objects of files on a mount.
//!
//! The mount says which volume it serves and which inode a path is (a virtual extended attribute); the rest is read
//! from the metadata directly. What a process has written and not flushed yet is not in it.

use std::path::Path;

use serde::Serialize;
use sluice_meta::engine::{Engine, EngineResult, Item, Scan};
use sluice_meta::ops::summary::Walk;
use sluice_meta::store::Access;
use sluice_meta::types::{Attr, FileKind, Ino, Slice, SliceId, align_4k};

use super::quota::open_meta;
use super::status::size;
use super::{Failure, Outcome, Where, whereabouts};
use crate::cache::blocks_of;
use crate::cli::InfoArgs;
use crate::runtime::run_on_one;
use crate::volume_store;

/// All that is shown of one path.
#[derive(Debug, Serialize)]
struct Info {
    path: String,
    volume: String,
    inode: u64,
    kind: String,
    length: u64,
    space: i64,
    nlink: u32,
    parent: u64,
    chunks: Vec<ChunkInfo>,
    /// Of a directory with everything below it, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    totals: Option<Totals>,
}

#[derive(Debug, Serialize)]
struct Totals {
    files: u64,
    dirs: u64,
    length: u64,
    size: u64,
}

#[derive(Debug, Serialize)]
struct ChunkInfo {
    index: u32,
    slices: Vec<SliceInfo>,
}

#[derive(Debug, Serialize)]
struct SliceInfo {
    pos: u32,
    id: u64,
    size: u32,
    off: u32,
    len: u32,
    objects: Vec<String>,
}

/// Runs the command.
pub fn run(args: &InfoArgs) -> Outcome {
    let walk = match (args.recursive, args.strict) {
        (false, _) => None,
        (true, false) => Some(Walk::Fast),
        (true, true) => Some(Walk::Strict),
    };
    let mut infos = Vec::new();
    for path in &args.paths {
        let place = whereabouts(path)
            .map_err(|error| Failure(format!("cannot look at {}: {error}", path.display())))?
            .ok_or_else(|| {
                Failure(format!(
                    "{} is not on a sluice mount: name a path below one",
                    path.display()
                ))
            })?;
        infos.push(
            run_on_one(|| async { look(path, &place, walk).await })
                .map_err(Failure::from_error)??,
        );
    }
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&infos).map_err(Failure::from_error)?
        );
    } else {
        infos.iter().for_each(print);
    }
    Ok(())
}

async fn look(path: &Path, place: &Where, walk: Option<Walk>) -> Result<Info, Failure> {
    let url = super::parse_url(&place.meta)?;
    let meta = open_meta(&url, Access::ReadOnly).await?;
    let setting = meta.shared().setting();
    let naming = volume_store::naming(&setting);
    let block_bytes = setting.block_size_kib << 10;
    let ino = Ino(place.inode);
    let attr = meta.getattr(ino).await.map_err(|error| {
        Failure(format!(
            "inode {ino} of {} cannot be read: {error}",
            path.display()
        ))
    })?;
    let chunks = match attr.kind {
        FileKind::File => chunks(&**meta.engine(), ino, attr.length, |slice| {
            slice_info(slice, naming, block_bytes)
        })
        .await
        .map_err(Failure::from_error)?,
        _ => Vec::new(),
    };
    let mut info = info(path, place, &attr, chunks);
    if let Some(walk) = walk.filter(|_| attr.kind == FileKind::Directory) {
        let found = meta.summary(ino, walk).await.map_err(Failure::from_error)?;
        info.totals = Some(Totals {
            files: found.files,
            dirs: found.dirs,
            length: found.length,
            size: found.size,
        });
    }
    Ok(info)
}

async fn chunks(
    engine: &impl Engine,
    ino: Ino,
    length: u64,
    show: impl Fn(&Slice) -> SliceInfo,
) -> EngineResult<Vec<ChunkInfo>> {
    let scan = Scan::Chunks { ino, length };
    let mut chunks = Vec::new();
    let mut cursor = None;
    loop {
        let page = engine.scan(&scan, cursor.as_ref(), 1000).await?;
        for item in page.items {
            if let Item::Chunk { index, slices } = item {
                chunks.push(ChunkInfo {
                    index: index.0,
                    slices: slices.iter().map(&show).collect(),
                });
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(chunks),
        }
    }
}

fn info(path: &Path, place: &Where, attr: &Attr, chunks: Vec<ChunkInfo>) -> Info {
    Info {
        path: path.display().to_string(),
        volume: place.volume.clone(),
        inode: place.inode,
        kind: format!("{:?}", attr.kind).to_lowercase(),
        length: attr.length,
        space: align_4k(if attr.kind == FileKind::File {
            attr.length
        } else {
            0
        }),
        nlink: attr.nlink,
        parent: attr.parent.0,
        chunks,
        totals: None,
    }
}

fn slice_info(slice: &Slice, naming: crate::object::Naming, block_bytes: u32) -> SliceInfo {
    let objects = if slice.id == SliceId::HOLE {
        Vec::new()
    } else {
        blocks_of(slice.id, slice.size, block_bytes)
            .map(|block| naming.key(block))
            .collect()
    };
    SliceInfo {
        pos: slice.pos,
        id: slice.id.0,
        size: slice.size,
        off: slice.off,
        len: slice.len,
        objects,
    }
}

fn print(info: &Info) {
    println!("{}:", info.path);
    println!(
        "  inode   {} ({}, {} links, parent {})",
        info.inode, info.kind, info.nlink, info.parent
    );
    println!("  length  {} ({} bytes)", size(info.length), info.length);
    println!("  space   {}", size(info.space.unsigned_abs()));
    if let Some(totals) = &info.totals {
        println!("  files   {}", totals.files);
        println!("  dirs    {}", totals.dirs);
        println!(
            "  length  {} ({} bytes) in files",
            size(totals.length),
            totals.length
        );
        println!("  size    {} ({} bytes)", size(totals.size), totals.size);
    }
    for chunk in &info.chunks {
        println!("  chunk {}:", chunk.index);
        for slice in &chunk.slices {
            if slice.id == 0 {
                println!("    {:>10} +{:<10} hole", slice.pos, slice.len);
                continue;
            }
            println!(
                "    {:>10} +{:<10} slice {} [{}..{} of {}]",
                slice.pos,
                slice.len,
                slice.id,
                slice.off,
                u64::from(slice.off) + u64::from(slice.len),
                slice.size
            );
            slice
                .objects
                .iter()
                .for_each(|object| println!("      {object}"));
        }
    }
}
