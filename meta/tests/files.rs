//! File content, open files and reclaim, over the engine in memory: against a model of bytes, with commits
//! that conflict, get lost or lose their answer.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, too"
)]

#[path = "support/fixture.rs"]
mod fixture;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fixture::{Client, Direct, START, block_on, file_attr, slice, stat_of, unknown_fate};
use proptest::prelude::*;
use sluice_meta::client::{MetaOptions, MetaResult};
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Counter, Item, Key, Outcome, Scan, Txn, Write};
use sluice_meta::error::MetaError;
use sluice_meta::limits;
use sluice_meta::ops::{Caller, FallocateMode, OpenFlags, WriteCommit};
use sluice_meta::tools::format::FormatOptions;
use sluice_meta::types::{
    Attr, CHUNK_BYTES, ChunkIndex, DirStat, FileKind, Ino, SessionId, Slice, SliceId, Timestamp,
    align_4k, attr_flags,
};

const FILE: Ino = Ino(10);
const DIR: Ino = Ino(5);
const SID: SessionId = SessionId(3);
const MIB: u64 = 1 << 20;

fn commit(slices: Vec<(u32, Slice)>, length: u64) -> WriteCommit {
    let slices = slices
        .into_iter()
        .map(|(index, slice)| (ChunkIndex(index), slice))
        .collect();
    WriteCommit {
        slices,
        length,
        mtime: Timestamp {
            sec: START,
            nsec: 9,
        },
        kill_suid: false,
    }
}

fn client() -> Client {
    let client = Client::new();
    client.add_file(FILE, DIR);
    client
}

fn truncate(client: &Client, length: u64) -> MetaResult<Attr> {
    block_on(client.meta.truncate(&Caller::ROOT, FILE, length, false))
}

/// Counts the commits that reach the store.
fn count_commits(client: &Client) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    client.memory.on_request(move |request| {
        if matches!(request, Request::Commit(_)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Verdict::Serve
    });
    count
}

// ---------------------------------------------------------------------------------------------------------
// Against a model of bytes.

/// Where ranges begin and end: around chunk borders and in their middle. Between two neighbours every byte
/// has the same history, so one byte stands for all.
fn cuts() -> Vec<u64> {
    let mut cuts = vec![0, 1, 4096];
    for chunk in 0..4 {
        let start = chunk * CHUNK_BYTES;
        cuts.extend([
            start + 7,
            start + 20 * MIB,
            start + 20 * MIB + 1,
            start + CHUNK_BYTES - 1,
        ]);
        cuts.extend([start + CHUNK_BYTES, start + CHUNK_BYTES + 1]);
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

#[derive(Clone, Debug)]
enum Op {
    Write {
        from: usize,
        to: usize,
    },
    Truncate {
        to: usize,
    },
    Fallocate {
        mode: FallocateMode,
        from: usize,
        to: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    Conflict,
    LostBefore,
    LostAfter,
    Busy,
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..cuts().len();
    let mode = prop_oneof![
        Just(FallocateMode::Allocate),
        Just(FallocateMode::KeepSize),
        Just(FallocateMode::PunchHole),
        any::<bool>().prop_map(|keep_size| FallocateMode::ZeroRange { keep_size }),
    ];
    prop_oneof![
        4 => (at(), at()).prop_map(|(from, to)| Op::Write { from, to }),
        2 => at().prop_map(|to| Op::Truncate { to }),
        2 => (mode, at(), at()).prop_map(|(mode, from, to)| Op::Fallocate { mode, from, to }),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        2 => Just(Fault::Conflict),
        1 => Just(Fault::LostBefore),
        1 => Just(Fault::LostAfter),
        1 => Just(Fault::Busy),
    ]
}

/// What a byte is: written at `1 + file offset - origin` of slice `id`, or zero.
type Byte = Option<(SliceId, u64)>;

/// A file as an application sees it, one byte for each stretch between two cuts.
struct Model {
    cuts: Vec<u64>,
    bytes: Vec<Byte>,
    length: u64,
}

impl Model {
    fn fill(&mut self, from: u64, to: u64, byte: impl Fn(u64) -> Byte) {
        for (at, stored) in self.cuts.iter().zip(&mut self.bytes) {
            if (from..to).contains(at) {
                *stored = byte(*at);
            }
        }
    }

    fn resize(&mut self, length: u64) {
        self.fill(self.length.min(length), self.length.max(length), |_| None);
        self.length = length;
    }
}

/// The byte at `offset` according to the chunk's raw records: the last one that covers it.
fn overlay(records: &[Slice], offset: u64) -> Byte {
    let pos = (offset % CHUNK_BYTES) as u32;
    let covers = |slice: &&Slice| (slice.pos..slice.pos + slice.len).contains(&pos);
    let slice = records.iter().rev().find(covers)?;
    let within = u64::from(slice.off + (pos - slice.pos));
    (slice.id != SliceId::HOLE).then_some((slice.id, within))
}

/// A write as the data path cuts it: one slice for each chunk, ids from `next`.
fn cut_write(next: &mut u64, from: u64, to: u64) -> Vec<(u32, Slice)> {
    let mut slices = Vec::new();
    let mut at = from;
    while at < to {
        let end = to.min((at / CHUNK_BYTES + 1) * CHUNK_BYTES);
        let record = slice((at % CHUNK_BYTES) as u32, *next, (end - at) as u32);
        slices.push(((at / CHUNK_BYTES) as u32, record));
        *next += 1;
        at = end;
    }
    slices
}

fn inject(client: &Client, faults: Vec<Fault>) {
    let mut faults = faults.into_iter().cycle();
    client.memory.on_request(move |request| match request {
        Request::Commit(_) => match faults.next() {
            None | Some(Fault::None) => Verdict::Serve,
            Some(Fault::Conflict) => Verdict::Conflict(0),
            Some(Fault::LostBefore) => Verdict::Fail(unknown_fate()),
            Some(Fault::LostAfter) => Verdict::ServeThenFail(unknown_fate()),
            Some(Fault::Busy) => Verdict::Fail(sluice_meta::error::EngineError::Busy {
                engine: "memory",
                cause: "injected".into(),
            }),
        },
        _ => Verdict::Serve,
    });
}

fn apply(client: &Client, model: &mut Model, next: &mut u64, op: &Op) -> MetaResult<Option<Attr>> {
    let range = |from: usize, to: usize| {
        let (from, to) = (model.cuts[from.min(to)], model.cuts[from.max(to)]);
        (from < to).then_some((from, to))
    };
    let meta = &client.meta;
    Ok(Some(match *op {
        Op::Write { from, to } => {
            let Some((from, to)) = range(from, to) else {
                return Ok(None);
            };
            let slices = cut_write(next, from, to);
            let attr = block_on(meta.write(FILE, &commit(slices.clone(), to)))?;
            for (index, slice) in slices {
                let start = u64::from(index) * CHUNK_BYTES + u64::from(slice.pos);
                let end = start + u64::from(slice.len);
                model.fill(start, end, |at| Some((slice.id, at - start)));
            }
            model.length = model.length.max(to);
            attr
        }
        Op::Truncate { to } => {
            let length = model.cuts[to];
            model.resize(length);
            truncate(client, length)?
        }
        Op::Fallocate { mode, from, to } => {
            let Some((from, to)) = range(from, to) else {
                return Ok(None);
            };
            let attr = block_on(meta.fallocate(FILE, mode, from, to - from))?;
            let (zeroes, keeps) = match mode {
                FallocateMode::Allocate => (false, false),
                FallocateMode::KeepSize => (false, true),
                FallocateMode::PunchHole => (true, true),
                FallocateMode::ZeroRange { keep_size } => (true, keep_size),
            };
            if zeroes {
                model.fill(from, to.min(model.length), |_| None);
            }
            if !keeps && to > model.length {
                model.resize(to);
            }
            attr
        }
    }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn content_is_what_was_written(
        ops in prop::collection::vec(op(), 1..14),
        faults in prop::collection::vec(fault(), 1..9),
    ) {
        // At least one commit in each round of faults gets through.
        let faults: Vec<Fault> = faults.into_iter().chain([Fault::None]).collect();
        let client = client();
        client.put(vec![Write::PutDirStat { ino: DIR, stat: stat_of(0) }]);
        inject(&client, faults);
        let cuts = cuts();
        let mut model = Model { bytes: vec![None; cuts.len()], cuts, length: 0 };
        let mut next = 1;
        for op in &ops {
            let answer = apply(&client, &mut model, &mut next, op).unwrap();
            let attr = client.attr(FILE).unwrap();
            if let Some(answer) = answer {
                prop_assert_eq!(&answer, &attr);
            }
            prop_assert_eq!(attr.length, model.length);
            prop_assert_eq!(client.counter(Counter::UsedSpace), align_4k(model.length));
        }

        let mut seen: HashMap<SliceId, u32> = HashMap::new();
        let chunks: Vec<Vec<Slice>> = (0..6).map(|index| client.chunk(FILE, index)).collect();
        for record in chunks.iter().flatten().filter(|slice| slice.id != SliceId::HOLE) {
            *seen.entry(record.id).or_default() += 1;
            prop_assert_eq!(client.references(record.id.0, record.size), Some(1));
        }
        prop_assert!(seen.values().all(|count| *count == 1), "a slice was appended twice");
        prop_assert_eq!(seen.len() as u64, next - 1);
        for (at, byte) in model.cuts.iter().zip(&model.bytes) {
            if *at < model.length {
                let found = overlay(&chunks[(at / CHUNK_BYTES) as usize], *at);
                prop_assert_eq!(found, *byte, "byte {}", at);
            }
        }

        client.memory.clear_hook();
        block_on(client.meta.flush_dir_stats()).unwrap();
        prop_assert_eq!(client.dir_stat(DIR), Some(stat_of(model.length)));
    }
}

// ---------------------------------------------------------------------------------------------------------
// Writes.

#[test]
fn a_flush_is_one_commit() {
    let client = client();
    let commits = count_commits(&client);
    let slices = vec![
        (1, slice(0, 21, 100)),
        (0, slice(50, 22, 10)),
        (1, slice(20, 23, 5)),
        (0, Slice::hole(0, 5)),
    ];
    let attr = block_on(client.meta.write(FILE, &commit(slices, CHUNK_BYTES + 100))).unwrap();
    assert_eq!(commits.load(Ordering::Relaxed), 1);
    assert_eq!(
        client.chunk(FILE, 0),
        [slice(50, 22, 10), Slice::hole(0, 5)]
    );
    assert_eq!(client.chunk(FILE, 1), [slice(0, 21, 100), slice(20, 23, 5)]);
    for (id, size) in [(21, 100), (22, 10), (23, 5)] {
        assert_eq!(client.references(id, size), Some(1));
    }
    assert_eq!(attr.length, CHUNK_BYTES + 100);
    assert_eq!(
        attr.mtime,
        Timestamp {
            sec: START,
            nsec: 9
        }
    );
    assert!(attr.ctime > attr.mtime && attr.atime == file_attr(DIR).atime);
    assert_eq!(client.attr(FILE), Some(attr));
    assert_eq!(
        client.counter(Counter::UsedSpace),
        align_4k(CHUNK_BYTES + 100)
    );

    // Within the file: no change of length, and never the mtime that others may have cached content under.
    let attr = block_on(
        client
            .meta
            .write(FILE, &commit(vec![(0, slice(0, 24, 1))], 1)),
    )
    .unwrap();
    assert_eq!(attr.length, CHUNK_BYTES + 100);
    assert_eq!(
        attr.mtime,
        Timestamp {
            sec: START,
            nsec: 10
        }
    );
}

#[test]
fn two_records_of_one_slice_are_two_references() {
    let client = client();
    let half = |pos, off| Slice {
        pos,
        id: SliceId(7),
        size: 20,
        off,
        len: 10,
    };
    let slices = vec![(0, half(0, 0)), (1, half(0, 10))];
    block_on(client.meta.write(FILE, &commit(slices, CHUNK_BYTES + 10))).unwrap();
    assert_eq!(client.references(7, 20), Some(2));
}

#[test]
fn writes_by_others_than_root_drop_privileges() {
    let client = client();
    client.set_attr(FILE, |attr| attr.mode = 0o6755);
    let keep = commit(vec![(0, slice(0, 1, 1))], 1);
    assert_eq!(
        block_on(client.meta.write(FILE, &keep)).unwrap().mode,
        0o6755
    );
    let kill = WriteCommit {
        kill_suid: true,
        ..commit(vec![(0, slice(0, 2, 1))], 1)
    };
    assert_eq!(
        block_on(client.meta.write(FILE, &kill)).unwrap().mode,
        0o755
    );
}

#[test]
fn writes_that_cannot_be() {
    let client = client();
    let one = commit(vec![(0, slice(0, 1, 1))], 1);
    let write = |ino, commit| block_on(client.meta.write(ino, commit));
    assert!(matches!(write(Ino(99), &one), Err(MetaError::NotFound)));
    assert!(matches!(
        write(Ino::ROOT, &one),
        Err(MetaError::NotPermitted)
    ));
    let far = commit(Vec::new(), limits::FILE_BYTES_MAX + 1);
    assert!(matches!(write(FILE, &far), Err(MetaError::TooLarge)));
    let beyond = commit(vec![(0, slice(CHUNK_BYTES as u32 - 1, 1, 2))], 1);
    assert!(matches!(write(FILE, &beyond), Err(MetaError::Invalid(_))));

    let read_only = MetaOptions {
        read_only: true,
        ..MetaOptions::default()
    };
    let reader = Client::of(&client.memory, read_only);
    assert!(matches!(
        block_on(reader.meta.write(FILE, &one)),
        Err(MetaError::ReadOnly)
    ));
    assert_eq!(client.attr(FILE), Some(file_attr(DIR)));
}

#[test]
fn a_full_volume_takes_no_more() {
    let options = FormatOptions {
        bucket: Some("/data".into()),
        capacity: Some(16384),
        ..FormatOptions::default()
    };
    let client = Client::with(&options, MetaOptions::default());
    client.add_file(FILE, DIR);
    assert_eq!(
        block_on(client.meta.statfs(Ino::ROOT)).unwrap().available,
        12288
    );
    let grow = |length| block_on(client.meta.write(FILE, &commit(Vec::new(), length)));
    assert!(matches!(grow(16385), Err(MetaError::NoSpace)));
    assert_eq!(grow(16384).unwrap().length, 16384);
    assert!(matches!(truncate(&client, 16385), Err(MetaError::NoSpace)));
    // What does not grow always fits, and what is given back can be used again.
    assert!(grow(10).is_ok());
    truncate(&client, 1).unwrap();
    assert_eq!(grow(8192).unwrap().length, 8192);
    assert_eq!(
        block_on(client.meta.statfs(Ino::ROOT)).unwrap().available,
        8192
    );
}

#[test]
fn a_lost_answer_whose_marks_are_compacted_is_known_by_the_record() {
    let client = client();
    let memory = client.memory.clone();
    let mut commits = 0;
    client.memory.on_request(move |request| match request {
        Request::Commit(txn) => {
            commits += 1;
            assert_eq!(commits, 1, "{txn:?}");
            // Applied, and compacted by somebody else before we can look.
            memory.apply(txn).unwrap();
            let (ino, index) = (FILE, ChunkIndex(0));
            let compacted = vec![
                Write::DeleteChunk { ino, index },
                Write::AppendChunk {
                    ino,
                    index,
                    slices: vec![slice(0, 900, 50)],
                },
            ];
            memory
                .apply(&Txn {
                    checks: Vec::new(),
                    writes: compacted,
                })
                .unwrap();
            Verdict::Fail(unknown_fate())
        }
        _ => Verdict::Serve,
    });
    block_on(
        client
            .meta
            .write(FILE, &commit(vec![(0, slice(0, 1, 50))], 50)),
    )
    .unwrap();
    assert_eq!(client.chunk(FILE, 0), [slice(0, 900, 50)]);
    assert_eq!(
        client.meta.shared().used_space.load(Ordering::Relaxed),
        0,
        "4096 before and after"
    );
}

#[test]
fn a_lost_answer_whose_record_was_changed_is_known_by_the_marks() {
    let client = client();
    let other = client.memory.clone();
    let memory = client.memory.clone();
    let mut commits = 0;
    client.memory.on_request(move |request| match request {
        Request::Commit(txn) => {
            commits += 1;
            assert_eq!(commits, 1, "{txn:?}");
            memory.apply(txn).unwrap();
            other.set_attr(FILE, |attr| attr.mode = 0o600);
            Verdict::Fail(unknown_fate())
        }
        _ => Verdict::Serve,
    });
    let slices = vec![(0, slice(0, 1, 50)), (1, slice(0, 2, 50))];
    let attr = block_on(client.meta.write(FILE, &commit(slices, CHUNK_BYTES + 50))).unwrap();
    assert_eq!((attr.mode, attr.length), (0o600, CHUNK_BYTES + 50));
    assert_eq!(client.chunk(FILE, 1), [slice(0, 2, 50)]);
}

#[test]
fn a_change_between_read_and_commit_is_seen() {
    let client = client();
    let other = client.memory.clone();
    let mut first = true;
    client.memory.on_request(move |request| {
        if matches!(request, Request::Commit(_)) && std::mem::take(&mut first) {
            other.set_attr(FILE, |attr| attr.length = 1000);
        }
        Verdict::Serve
    });
    // Planned as growing from 0, which would have put the hole at the front.
    truncate(&client, 3000).unwrap();
    assert_eq!(client.chunk(FILE, 0), [Slice::hole(1000, 2000)]);
}

#[test]
fn endless_conflicts_end() {
    let client = client();
    client.memory.conflict_next(usize::MAX);
    assert!(matches!(
        truncate(&client, 1),
        Err(MetaError::Contended {
            ino: FILE,
            attempts: 50
        })
    ));
}

#[test]
fn hard_links_charge_each_directory() {
    let client = client();
    client.set_attr(FILE, |attr| (attr.parent, attr.nlink) = (Ino::NONE, 3));
    let held = |links: i64| DirStat {
        length: 0,
        space: 4096 * links,
        inodes: links,
    };
    client.put(vec![
        Write::AddParent {
            ino: FILE,
            parent: DIR,
            delta: 2,
        },
        Write::AddParent {
            ino: FILE,
            parent: Ino(6),
            delta: 1,
        },
        Write::PutDirStat {
            ino: DIR,
            stat: held(2),
        },
        Write::PutDirStat {
            ino: Ino(6),
            stat: held(1),
        },
    ]);
    truncate(&client, 5000).unwrap();
    assert_eq!(block_on(client.meta.flush_dir_stats()).unwrap(), 2);
    let grown = |links: i64| DirStat {
        length: 5000 * links,
        space: 8192 * links,
        inodes: links,
    };
    assert_eq!(client.dir_stat(DIR), Some(grown(2)));
    assert_eq!(client.dir_stat(Ino(6)), Some(grown(1)));
    assert_eq!(client.counter(Counter::UsedSpace), 8192);
}

#[test]
fn files_without_links_charge_no_directory() {
    let client = client();
    client.set_attr(FILE, |attr| attr.nlink = 0);
    truncate(&client, 5000).unwrap();
    assert_eq!(block_on(client.meta.flush_dir_stats()).unwrap(), 0);
    assert_eq!(client.counter(Counter::UsedSpace), 8192);
}

// ---------------------------------------------------------------------------------------------------------
// Truncate and fallocate, record by record.

/// Holes that a case expects: (chunk, (pos, len)).
type Holes<'a> = &'a [(u32, (u64, u64))];

/// Gives `chunks` of the file a slice each, as if written before, and the file a length.
fn prepare(client: &Client, chunks: &[u32], length: u64) {
    let data = |index: &u32| Write::AppendChunk {
        ino: FILE,
        index: ChunkIndex(*index),
        slices: vec![slice(0, u64::from(*index) + 1, 8)],
    };
    client.put(chunks.iter().map(data).collect());
    client.set_attr(FILE, |attr| attr.length = length);
}

/// Records of all chunks behind the first one that `prepare` made.
fn appended(client: &Client) -> Vec<(u32, Vec<Slice>)> {
    let page = block_on(async {
        use sluice_meta::engine::Engine;
        client
            .memory
            .scan(
                &Scan::Chunks {
                    ino: FILE,
                    length: u64::MAX,
                },
                None,
                100_000,
            )
            .await
    });
    let items = page.unwrap().items.into_iter().map(|item| match item {
        Item::Chunk { index, slices } => (
            index.0,
            slices
                .into_iter()
                .filter(|slice| slice.id == SliceId::HOLE)
                .collect(),
        ),
        other => panic!("{other:?}"),
    });
    items
        .filter(|(_, holes): &(u32, Vec<Slice>)| !holes.is_empty())
        .collect()
}

#[test]
fn truncate_covers_the_difference_with_holes() {
    const C: u64 = CHUNK_BYTES;
    let full = (0, C);
    // (chunks with data, old length, new length) -> holes (chunk, (pos, len)); both directions are the same.
    let cases: [(&[u32], u64, u64, Holes<'_>); 9] = [
        (&[0], 100, 300, &[(0, (100, 200))]),
        (&[0], 0, C, &[(0, (0, C))]),
        (&[0], C - 1, C + 1, &[(0, (C - 1, 1)), (1, (0, 1))]),
        (&[], C, 2 * C, &[(1, (0, C))]),
        (&[], C, 3 * C, &[(1, (0, C))]),
        (
            &[0, 2, 3],
            10 * MIB,
            200 * MIB,
            &[(0, (10 * MIB, 54 * MIB)), (2, full), (3, (0, 8 * MIB))],
        ),
        (
            &[1, 2, 5],
            5,
            4 * C,
            &[(0, (5, C - 5)), (1, full), (2, full)],
        ),
        (&[7], 3 * C + 1, 3 * C + 2, &[(3, (1, 1))]),
        // So far apart that the chunks with lists are looked up.
        (
            &[9, 12_000, 19_999, 20_000],
            1,
            20_000 * C + 3,
            &[
                (0, (1, C - 1)),
                (9, full),
                (12_000, full),
                (19_999, full),
                (20_000, (0, 3)),
            ],
        ),
    ];
    for (chunks, low, high, holes) in cases {
        for (old, new) in [(low, high), (high, low)] {
            let client = client();
            prepare(&client, chunks, old);
            let commits = count_commits(&client);
            let attr = truncate(&client, new).unwrap();
            assert_eq!(commits.load(Ordering::Relaxed), 1);
            let hole = |&(index, (pos, len)): &(u32, (u64, u64))| {
                (index, vec![Slice::hole(pos as u32, len as u32)])
            };
            let expect: Vec<_> = holes.iter().map(hole).collect();
            assert_eq!(appended(&client), expect, "{old} to {new}");
            assert_eq!(attr.length, new);
            assert!(attr.mtime.sec == START && attr.ctime == attr.mtime);
        }
    }
}

#[test]
fn truncate_to_the_same_length_changes_nothing() {
    let client = client();
    let commits = count_commits(&client);
    assert_eq!(truncate(&client, 0).unwrap(), file_attr(DIR));
    assert_eq!(commits.load(Ordering::Relaxed), 0);
}

#[test]
fn truncate_obeys_flags_and_trash() {
    // (change of the attributes, by path allowed, by handle allowed)
    type Change = fn(&mut Attr);
    let cases: [(Change, bool, bool); 5] = [
        (|_| (), true, true),
        (|attr| attr.flags = attr_flags::IMMUTABLE, false, false),
        (|attr| attr.flags = attr_flags::APPEND, false, false),
        (|attr| attr.parent = Ino(Ino::TRASH.0 + 1), false, true),
        (|attr| attr.kind = FileKind::Symlink, false, false),
    ];
    for (number, (change, by_path, by_handle)) in cases.into_iter().enumerate() {
        for (handle, allowed) in [(false, by_path), (true, by_handle)] {
            let client = client();
            client.set_attr(FILE, change);
            let done = block_on(client.meta.truncate(&Caller::ROOT, FILE, 9, handle));
            match done {
                Ok(attr) => assert!(allowed && attr.length == 9, "case {number}"),
                Err(MetaError::NotPermitted) => assert!(!allowed, "case {number}"),
                Err(other) => panic!("case {number}: {other}"),
            }
        }
    }
    let client = client();
    assert!(matches!(
        truncate(&client, limits::FILE_BYTES_MAX + 1),
        Err(MetaError::TooLarge)
    ));
    assert!(truncate(&client, limits::FILE_BYTES_MAX).is_ok());
}

#[test]
fn fallocate_records() {
    const C: u64 = CHUNK_BYTES;
    use FallocateMode::{Allocate, KeepSize, PunchHole, ZeroRange};
    let zero = |keep_size| ZeroRange { keep_size };
    type Case<'a> = (FallocateMode, u64, u64, u64, u64, Holes<'a>);
    // (mode, old length, offset, length) -> new length, holes
    let cases: [Case<'_>; 9] = [
        (Allocate, 100, 50, 200, 250, &[]),
        (Allocate, 100, 10, 20, 100, &[]),
        (KeepSize, 100, 50, 200, 100, &[]),
        (PunchHole, 100, 50, 200, 100, &[(0, (50, 50))]),
        (PunchHole, 100, 100, 5, 100, &[]),
        (zero(true), 100, 90, 20, 100, &[(0, (90, 10))]),
        (zero(false), 100, 90, 20, 110, &[(0, (90, 10))]),
        (
            PunchHole,
            3 * C,
            C - 1,
            C + 2,
            3 * C,
            &[(0, (C - 1, 1)), (1, (0, C)), (2, (0, 1))],
        ),
        // Chunk 4 has no list and gets none, since so many are not named one by one.
        (
            PunchHole,
            30_000 * C,
            1,
            20_000 * C,
            30_000 * C,
            &[(0, (1, C - 1)), (3, (0, C)), (20_000, (0, 1))],
        ),
    ];
    for (mode, old, offset, len, new, holes) in cases {
        let client = client();
        prepare(&client, &[3], old);
        let before = client.counter(Counter::UsedSpace);
        let attr = block_on(client.meta.fallocate(FILE, mode, offset, len)).unwrap();
        let hole = |&(index, (pos, len)): &(u32, (u64, u64))| {
            (index, vec![Slice::hole(pos as u32, len as u32)])
        };
        let expect: Vec<_> = holes.iter().map(hole).collect();
        assert_eq!(
            (attr.length, appended(&client)),
            (new, expect),
            "{mode:?} {offset} {len}"
        );
        assert!(attr.mtime.sec == START && attr.ctime == attr.mtime);
        let grown = align_4k(new) - align_4k(old);
        assert_eq!(client.counter(Counter::UsedSpace) - before, grown);
    }
}

#[test]
fn fallocate_refusals() {
    use FallocateMode::{Allocate, KeepSize, PunchHole};
    let run = |change: fn(&mut Attr), mode, offset, length| {
        let client = client();
        client.set_attr(FILE, |attr| {
            attr.length = 50;
            change(attr);
        });
        block_on(client.meta.fallocate(FILE, mode, offset, length))
    };
    assert!(matches!(
        run(|_| (), Allocate, 0, 0),
        Err(MetaError::Invalid(_))
    ));
    for (offset, length) in [(1, limits::FILE_BYTES_MAX), (u64::MAX, 2)] {
        assert!(matches!(
            run(|_| (), Allocate, offset, length),
            Err(MetaError::TooLarge)
        ));
    }
    assert!(matches!(
        run(|attr| attr.kind = FileKind::Fifo, Allocate, 0, 1),
        Err(MetaError::Pipe)
    ));
    let frozen: fn(&mut Attr) = |attr| attr.flags = attr_flags::IMMUTABLE;
    assert!(matches!(
        run(frozen, KeepSize, 0, 1),
        Err(MetaError::NotPermitted)
    ));
    let append: fn(&mut Attr) = |attr| attr.flags = attr_flags::APPEND;
    assert!(matches!(
        run(append, PunchHole, 0, 1),
        Err(MetaError::NotPermitted)
    ));
    assert!(run(append, Allocate, 0, 99).is_ok() && run(append, KeepSize, 0, 99).is_ok());
}

// ---------------------------------------------------------------------------------------------------------
// Open files.

const READ: OpenFlags = OpenFlags {
    read: true,
    write: false,
    append: false,
    truncate: false,
};
const WRITE: OpenFlags = OpenFlags {
    write: true,
    ..READ
};

/// What the unlink of the file's last name leaves while it is open here.
fn unlink_open(client: &Client) {
    client.meta.shared().session.store(SID.0, Ordering::Release);
    client.set_attr(FILE, |attr| attr.nlink = 0);
    client.put(vec![Write::AddSustained {
        sid: SID,
        ino: FILE,
    }]);
    client
        .meta
        .shared()
        .open
        .lock()
        .get_mut(&FILE)
        .unwrap()
        .sustained = true;
}

fn handles(client: &Client) -> u32 {
    client
        .meta
        .shared()
        .open
        .lock()
        .get(&FILE)
        .map_or(0, |open| open.handles)
}

#[test]
fn handles_are_counted() {
    let client = client();
    assert_eq!(
        block_on(client.meta.open(FILE, READ)).unwrap(),
        file_attr(DIR)
    );
    block_on(client.meta.open(FILE, WRITE)).unwrap();
    client.meta.opened(FILE);
    assert_eq!(handles(&client), 3);
    // A refused open leaves no handle.
    client.set_attr(FILE, |attr| attr.flags = attr_flags::IMMUTABLE);
    assert!(matches!(
        block_on(client.meta.open(FILE, WRITE)),
        Err(MetaError::NotPermitted)
    ));
    assert!(matches!(
        block_on(client.meta.open(Ino(99), READ)),
        Err(MetaError::NotFound)
    ));
    assert!(matches!(
        block_on(client.meta.open(Ino::ROOT, READ)),
        Err(MetaError::IsDirectory)
    ));
    assert_eq!(client.meta.shared().open.lock().len(), 1);
    for left in [2, 1, 0] {
        assert_eq!(block_on(client.meta.close(FILE)).unwrap(), None);
        assert_eq!(handles(&client), left);
    }
    assert!(client.attr(FILE).is_some());
    assert_eq!(block_on(client.meta.close(FILE)).unwrap(), None);

    let read_only = MetaOptions {
        read_only: true,
        ..MetaOptions::default()
    };
    let reader = Client::of(&client.memory, read_only);
    assert!(matches!(
        block_on(reader.meta.open(FILE, WRITE)),
        Err(MetaError::ReadOnly)
    ));
    assert!(block_on(reader.meta.open(FILE, READ)).is_ok());
}

#[test]
fn the_last_close_deletes_what_has_no_links() {
    for fault in [
        Fault::None,
        Fault::Conflict,
        Fault::LostBefore,
        Fault::LostAfter,
    ] {
        let client = client();
        block_on(client.meta.open(FILE, READ)).unwrap();
        client.meta.opened(FILE);
        truncate(&client, 5000).unwrap();
        unlink_open(&client);
        client.put(vec![Write::PutXattr {
            ino: FILE,
            name: "x".into(),
            value: "y".into(),
        }]);
        assert_eq!(block_on(client.meta.close(FILE)).unwrap(), None);
        assert!(client.attr(FILE).is_some());

        inject(&client, vec![fault, Fault::None]);
        assert_eq!(
            block_on(client.meta.close(FILE)).unwrap(),
            Some(5000),
            "{fault:?}"
        );
        assert_eq!(client.attr(FILE), None);
        assert_eq!(client.counter(Counter::UsedSpace), 0);
        assert_eq!(client.counter(Counter::TotalInodes), 0);
        assert_eq!(client.memory.peek(&Key::Sustained(SID)), None);
        assert_eq!(client.memory.peek(&Key::XattrNames(FILE)), None);
        assert_eq!(deleted_files(&client), [(FILE, 5000, START)]);
        assert_eq!(client.meta.shared().used_space.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_sustained_file_that_is_linked_again_lives() {
    let client = client();
    client.meta.opened(FILE);
    unlink_open(&client);
    client.set_attr(FILE, |attr| attr.nlink = 1);
    assert_eq!(block_on(client.meta.close(FILE)).unwrap(), None);
    assert!(client.attr(FILE).is_some());
    assert_eq!(client.memory.peek(&Key::Sustained(SID)), None);
}

fn deleted_files(client: &Client) -> Vec<(Ino, u64, i64)> {
    use sluice_meta::engine::Engine;
    let page = block_on(client.memory.scan(&Scan::DeletedFiles, None, 1000)).unwrap();
    let items = page.items.into_iter().map(|item| match item {
        Item::DeletedFile { ino, length, time } => (ino, length, time),
        other => panic!("{other:?}"),
    });
    items.collect()
}

// ---------------------------------------------------------------------------------------------------------
// Reclaim.

/// A deleted file with slices 1 (in two chunks), 2 (shared with another file) and 3, and a hole.
fn deleted(chunks: u32) -> Client {
    let client = Client::new();
    let shared = slice(0, 2, 20);
    let mut writes = vec![
        Write::NewSliceRef {
            id: SliceId(1),
            size: 10,
        },
        Write::AddSliceRef {
            id: SliceId(1),
            size: 10,
            delta: 1,
        },
        Write::NewSliceRef {
            id: SliceId(2),
            size: 20,
        },
        Write::AddSliceRef {
            id: SliceId(2),
            size: 20,
            delta: 1,
        },
        Write::NewSliceRef {
            id: SliceId(3),
            size: 30,
        },
        Write::AddDeletedFile {
            ino: FILE,
            length: 9999,
            time: START,
        },
    ];
    let lists = [
        vec![slice(0, 1, 10), shared, Slice::hole(0, 9)],
        vec![slice(0, 3, 30), slice(0, 1, 10)],
    ];
    for index in 0..chunks {
        let slices = lists
            .get(index as usize)
            .cloned()
            .unwrap_or(vec![Slice::hole(0, 1)]);
        writes.push(Write::AppendChunk {
            ino: FILE,
            index: ChunkIndex(index),
            slices,
        });
    }
    client.put(writes);
    client
}

const UNUSED: [(SliceId, u32); 2] = [(SliceId(1), 10), (SliceId(3), 30)];

#[test]
fn reclaim_answers_what_nobody_refers_to() {
    // More chunks than a page holds.
    let client = deleted(limits::CHUNK_PAGE as u32 + 10);
    assert_eq!(block_on(client.meta.reclaim(FILE, 9999)).unwrap(), UNUSED);
    for index in 0..limits::CHUNK_PAGE as u32 + 10 {
        assert_eq!(client.chunk(FILE, index), []);
    }
    assert_eq!(deleted_files(&client), []);
    assert_eq!(
        (client.references(1, 10), client.references(2, 20)),
        (Some(0), Some(1))
    );
    block_on(client.meta.forget_slice(SliceId(1), 10)).unwrap();
    assert_eq!(client.references(1, 10), None);
    // All of it may be done again.
    assert_eq!(block_on(client.meta.reclaim(FILE, 9999)).unwrap(), []);
}

#[test]
fn reclaim_survives_faults() {
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::Busy] {
        for healthy in 0..3 {
            let client = deleted(2);
            let mut faults = vec![Fault::None; healthy];
            faults.push(fault);
            faults.extend([Fault::None; 4]);
            inject(&client, faults);
            let found = block_on(client.meta.reclaim(FILE, 9999)).unwrap();
            assert_eq!(found, UNUSED, "{fault:?} after {healthy}");
            assert_eq!(client.references(2, 20), Some(1));
            // Only a note that was not taken away for sure stays: the next run does it.
            let noted = deleted_files(&client).len();
            assert_eq!(
                noted,
                usize::from(healthy == 2 && !matches!(fault, Fault::LostAfter))
            );
        }
    }
}

#[test]
fn reclaim_takes_a_list_as_it_is_at_the_commit() {
    let client = deleted(1);
    let other = client.memory.clone();
    let mut first = true;
    client.memory.on_request(move |request| {
        if matches!(request, Request::Commit(_)) && std::mem::take(&mut first) {
            // A compaction elsewhere replaces the list.
            let (ino, index) = (FILE, ChunkIndex(0));
            other.put(vec![
                Write::DeleteChunk { ino, index },
                Write::AppendChunk {
                    ino,
                    index,
                    slices: vec![slice(0, 50, 60)],
                },
                Write::NewSliceRef {
                    id: SliceId(50),
                    size: 60,
                },
            ]);
        }
        Verdict::Serve
    });
    assert_eq!(
        block_on(client.meta.reclaim(FILE, 9999)).unwrap(),
        [(SliceId(50), 60)]
    );
    assert_eq!(client.references(1, 10), Some(2));
}

#[test]
fn living_files_are_not_reclaimed() {
    let client = deleted(2);
    client.add_file(FILE, DIR);
    assert!(matches!(
        block_on(client.meta.reclaim(FILE, 9999)),
        Err(MetaError::Invalid(_))
    ));
    assert_eq!(client.chunk(FILE, 1).len(), 2);
    assert_eq!(deleted_files(&client).len(), 1);
}

#[test]
fn usage_is_shown_while_the_store_is_away() {
    let client = client();
    let before = block_on(client.meta.statfs(Ino::ROOT)).unwrap();
    assert_eq!(
        (before.inodes_used, before.total - before.available),
        (1, 4096)
    );
    client
        .memory
        .fail_next(sluice_meta::error::EngineError::Unreachable {
            engine: "memory",
            address: "here".into(),
            cause: "injected".into(),
        });
    assert_eq!(block_on(client.meta.statfs(Ino::ROOT)).unwrap(), before);
    assert!(matches!(
        client.memory.apply(&Txn::default()),
        Ok(Outcome::Committed(_))
    ));
}
