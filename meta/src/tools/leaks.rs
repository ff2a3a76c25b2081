//! What a volume's records say about its objects: which slices are in use, waiting or dead, and which inodes
//! and chunk lists nobody can reach. `gc` and `fsck` hold the objects in the store against it.
//!
//! Memory: [`SLICE_BYTES`] for each slice, 24 bytes for each chunk while references are counted, a bit for each
//! inode. What is read is not a snapshot; whatever is deleted on its ground is checked by the commit that does
//! it, and objects younger than an hour are left alone.

use std::collections::{HashMap, HashSet};

use super::number_set::NumberSet;
use super::{scan_all, sustained_of};
use crate::engine::{
    AttrFields, Check, Counter, Engine, Item, Key, Outcome, Record, Scan, Txn, Write,
};
use crate::error::EngineError;
use crate::limits;
use crate::types::{Attr, ChunkIndex, FileKind, Ino, Slice, SliceId, Timestamp, align_4k};

/// Memory that a slice takes here, in the mean of a hash table's growth.
pub const SLICE_BYTES: usize = 36;
/// An inode without a name may be one that is being made: it is leaked when it is older than this, s.
const INODE_AGE: i64 = 3600;

/// Why a slice's objects are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// A chunk refers to it.
    Live,
    /// A compaction replaced it; it is kept for the trash's days.
    Delayed,
    /// Nothing refers to it; its deletion was not finished.
    Dead,
}

/// A slice that is known.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its stored size.
    pub size: u32,
    /// Records that refer to it, those of notes of delayed slices too.
    pub references: u32,
    /// Why it is there.
    pub usage: Use,
}

/// The slices of a volume.
#[derive(Default)]
pub struct Slices {
    known: HashMap<u64, Known>,
    /// Chunks met; Redis may give one twice.
    chunks: HashSet<(u64, u32)>,
    /// Slices that records disagree about the size of.
    pub disagreeing: Vec<SliceId>,
}

impl Slices {
    /// What is known of a slice.
    pub fn get(&self, id: SliceId) -> Option<Known> {
        self.known.get(&id.0).copied()
    }

    /// All slices, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (SliceId, Known)> + '_ {
        self.known.iter().map(|(id, known)| (SliceId(*id), *known))
    }

    /// Number of chunks that have a list.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    fn note(&mut self, id: SliceId, size: u32, usage: Use) {
        if id == SliceId::HOLE {
            return;
        }
        let known = self.known.entry(id.0).or_insert(Known {
            size,
            references: 0,
            usage,
        });
        if known.size != size {
            self.disagreeing.push(id);
        }
        if usage == Use::Live {
            known.usage = Use::Live;
        }
        known.references += u32::from(usage != Use::Dead);
    }
}

/// Collects all slices. Dead ones and delayed ones come last, so that a slice which was just dropped or replaced
/// is met at one place at least.
pub async fn slices(engine: &impl Engine) -> Result<Slices, EngineError> {
    let mut slices = Slices::default();
    let mut cursor = None;
    loop {
        let page = engine
            .scan(&Scan::AllChunks, cursor.as_ref(), limits::CHUNK_PAGE)
            .await?;
        for item in page.items {
            if let Item::FileChunk {
                ino,
                index,
                slices: list,
            } = item
                && slices.chunks.insert((ino.0, index.0))
            {
                for slice in &list {
                    slices.note(slice.id, slice.size, Use::Live);
                }
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    for (_, _, replaced) in delayed(engine).await? {
        for (id, size) in replaced {
            slices.note(id, size, Use::Delayed);
        }
    }
    for (id, size) in dead(engine).await? {
        slices.note(id, size, Use::Dead);
    }
    Ok(slices)
}

/// Slices without references whose deletion was not finished.
pub async fn dead(engine: &impl Engine) -> Result<Vec<(SliceId, u32)>, EngineError> {
    let items = scan_all(engine, &Scan::DeadSlices).await?;
    let slice = |item| match item {
        Item::DeadSlice { id, size } => Some((id, size)),
        _ => None,
    };
    Ok(items.into_iter().filter_map(slice).collect())
}

/// A note of delayed slices: the slice that replaced them, when, and which they are.
pub type Delayed = (SliceId, i64, Vec<(SliceId, u32)>);

/// All notes of delayed slices.
pub async fn delayed(engine: &impl Engine) -> Result<Vec<Delayed>, EngineError> {
    let items = scan_all(engine, &Scan::DelayedSlices).await?;
    let note = |item| match item {
        Item::DelayedSlices { id, time, slices } => Some((id, time, slices)),
        _ => None,
    };
    let mut notes: Vec<Delayed> = items.into_iter().filter_map(note).collect();
    notes.sort_unstable();
    notes.dedup();
    Ok(notes)
}

/// Takes a note of delayed slices back and drops their references; answers those that are dead now. Nothing
/// if somebody else did it.
pub async fn release(
    engine: &impl Engine,
    note: &Delayed,
) -> Result<Vec<(SliceId, u32)>, EngineError> {
    let (id, time, slices) = note;
    let (id, time) = (*id, *time);
    let mut writes = vec![Write::DeleteDelayedSlices { id, time }];
    writes.extend(slices.iter().map(|&(id, size)| Write::AddSliceRef {
        id,
        size,
        delta: -1,
    }));
    let checks = vec![Check::DelayedSlices {
        id,
        time,
        expect: slices.clone(),
    }];
    match engine.commit(Txn { checks, writes }).await? {
        Outcome::Conflict { .. } => Ok(Vec::new()),
        Outcome::Committed(results) => {
            let left = slices.iter().zip(results.into_iter().skip(1));
            let dead = left.filter_map(|(slice, left)| (left <= 0).then_some(*slice));
            Ok(dead.collect())
        }
    }
}

/// References as recorded that differ from what the records add up to: slice, counted, recorded.
pub async fn wrong_references(
    engine: &impl Engine,
    slices: &Slices,
) -> Result<Vec<(SliceId, u32, i64)>, EngineError> {
    let counted: Vec<_> = slices
        .iter()
        .filter(|(_, known)| known.references > 0)
        .collect();
    let mut wrong = Vec::new();
    for page in counted.chunks(1000) {
        let key = |&(id, known): &(SliceId, Known)| Key::SliceRefs {
            id,
            size: known.size,
        };
        let keys: Vec<Key> = page.iter().map(key).collect();
        for ((id, known), record) in page.iter().zip(engine.read(&keys).await?) {
            let recorded = record.map(Record::count).transpose()?.unwrap_or(0);
            if recorded != i64::from(known.references) {
                wrong.push((*id, known.references, recorded));
            }
        }
    }
    wrong.sort_unstable();
    Ok(wrong)
}

/// Inodes without a name, and chunk lists without an inode.
#[derive(Debug, Default)]
pub struct Orphans {
    /// With the attributes to rely on when they are deleted.
    pub inodes: Vec<(Ino, Attr)>,
    /// With the lists to rely on.
    pub chunks: Vec<(Ino, ChunkIndex, Vec<Slice>)>,
}

/// Looks for them. What a session holds open, what is being cloned, what awaits deletion and what changed
/// within an hour is none.
pub async fn orphans(engine: &impl Engine, now: Timestamp) -> Result<Orphans, EngineError> {
    let mut kept = NumberSet::default();
    for item in scan_all(engine, &Scan::Sessions).await? {
        if let Item::Session { sid, .. } = item {
            for ino in sustained_of(engine, sid).await? {
                kept.insert(ino.0);
            }
        }
    }
    for item in scan_all(engine, &Scan::Detached).await? {
        if let Item::Detached { ino, .. } = item {
            kept.insert(ino.0);
        }
    }
    let mut present = NumberSet::default();
    let mut candidates = Vec::new();
    let mut cursor = None;
    loop {
        let page = engine.scan(&Scan::Inodes, cursor.as_ref(), 1000).await?;
        for item in page.items {
            let Item::Inode { ino, attr } = item else {
                continue;
            };
            if !present.insert(ino.0) {
                continue;
            }
            if attr.kind == FileKind::Directory {
                note_entries(engine, ino, &mut kept).await?;
            }
            let old = attr.ctime.sec < now.sec - INODE_AGE;
            if old && ino != Ino::ROOT && !ino.is_trash() && !kept.contains(ino.0) {
                candidates.push((ino, attr));
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    candidates.retain(|(ino, _)| !kept.contains(ino.0));
    let chunks = orphaned_chunks(engine, &present).await?;
    Ok(Orphans {
        inodes: candidates,
        chunks,
    })
}

/// Marks what a directory names.
async fn note_entries(
    engine: &impl Engine,
    dir: Ino,
    kept: &mut NumberSet,
) -> Result<(), EngineError> {
    let scan = Scan::Dir {
        parent: dir,
        attrs: false,
    };
    let mut cursor = None;
    loop {
        let page = engine
            .scan(&scan, cursor.as_ref(), limits::DIR_PAGE_ENTRIES)
            .await?;
        for item in page.items {
            if let Item::Entry { dentry, .. } = item {
                kept.insert(dentry.ino.0);
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

async fn orphaned_chunks(
    engine: &impl Engine,
    present: &NumberSet,
) -> Result<Vec<(Ino, ChunkIndex, Vec<Slice>)>, EngineError> {
    let mut waiting = HashSet::new();
    for item in scan_all(engine, &Scan::DeletedFiles).await? {
        if let Item::DeletedFile { ino, .. } = item {
            waiting.insert(ino);
        }
    }
    let mut chunks = Vec::new();
    let mut cursor = None;
    loop {
        let page = engine
            .scan(&Scan::AllChunks, cursor.as_ref(), limits::CHUNK_PAGE)
            .await?;
        for item in page.items {
            if let Item::FileChunk { ino, index, slices } = item
                && !present.contains(ino.0)
                && !waiting.contains(&ino)
            {
                chunks.push((ino, index, slices));
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    // Made after the inodes were enumerated?
    let keys: Vec<Key> = chunks.iter().map(|(ino, ..)| Key::Attr(*ino)).collect();
    let mut alive = Vec::with_capacity(keys.len());
    for keys in keys.chunks(1000) {
        alive.extend(
            engine
                .read(keys)
                .await?
                .into_iter()
                .map(|record| record.is_some()),
        );
    }
    let mut alive = alive.into_iter();
    chunks.retain(|_| !alive.next().unwrap_or(true));
    Ok(chunks)
}

/// Deletes an inode without a name: a file's data is then filed for deletion. Whether it was still the same;
/// a directory that is not empty stays.
pub async fn delete_inode(
    engine: &impl Engine,
    ino: Ino,
    attr: &Attr,
    now: Timestamp,
) -> Result<bool, EngineError> {
    let is_file = attr.kind == FileKind::File;
    let space = align_4k(if is_file { attr.length } else { 0 });
    let mut checks = vec![Check::Attr {
        ino,
        fields: AttrFields::ALL,
        expect: attr.clone(),
    }];
    let add = |counter, delta| Write::AddCounter { counter, delta };
    let mut writes = vec![
        Write::DeleteAttr(ino),
        Write::DeleteXattrs(ino),
        Write::DeleteParents(ino),
        add(Counter::UsedSpace, -space),
        add(Counter::TotalInodes, -1),
    ];
    match attr.kind {
        FileKind::File => writes.push(Write::AddDeletedFile {
            ino,
            length: attr.length,
            time: now.sec,
        }),
        FileKind::Directory => {
            checks.push(Check::DirEmpty(ino));
            writes.push(Write::DeleteDirStat(ino));
        }
        FileKind::Symlink => writes.push(Write::DeleteSymlink(ino)),
        _ => {}
    }
    let outcome = engine.commit(Txn { checks, writes }).await?;
    Ok(matches!(outcome, Outcome::Committed(_)))
}

/// Deletes a chunk list without an inode; answers the slices that are dead now.
pub async fn delete_chunk(
    engine: &impl Engine,
    chunk: &(Ino, ChunkIndex, Vec<Slice>),
) -> Result<Vec<(SliceId, u32)>, EngineError> {
    let (ino, index, list) = chunk;
    let (ino, index) = (*ino, *index);
    let stored: Vec<_> = list
        .iter()
        .filter(|slice| slice.id != SliceId::HOLE)
        .map(|slice| (slice.id, slice.size))
        .collect();
    let checks = vec![
        Check::NoAttr(ino),
        Check::Chunk {
            ino,
            index,
            prefix: list.clone(),
            whole: true,
        },
    ];
    let mut writes = vec![Write::DeleteChunk { ino, index }];
    writes.extend(stored.iter().map(|&(id, size)| Write::AddSliceRef {
        id,
        size,
        delta: -1,
    }));
    match engine.commit(Txn { checks, writes }).await? {
        Outcome::Conflict { .. } => Ok(Vec::new()),
        Outcome::Committed(results) => {
            let left = stored.into_iter().zip(results.into_iter().skip(1));
            Ok(left
                .filter_map(|(slice, left)| (left <= 0).then_some(slice))
                .collect())
        }
    }
}
