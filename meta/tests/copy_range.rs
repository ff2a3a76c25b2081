//! Copying ranges by reference: what it leaves, whom it loses against, and answers that are lost.
#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and does not get fails it"
)]

#[path = "support/stage.rs"]
mod stage;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Counter, Key, Write};
use sluice_meta::error::EngineError;
use sluice_meta::ops::copy_range::CopyRange;
use sluice_meta::ops::{Caller, WriteCommit};
use sluice_meta::types::{
    CHUNK_BYTES, ChunkIndex, FileKind, Ino, Slice, SliceId, Timestamp, attr_flags,
};
use stage::{Kept, NOON, Stage, block_on, errno, setting};

fn record(pos: u32, id: u64, off: u32, len: u32) -> Slice {
    let size = if id == 0 { 0 } else { 100 };
    Slice {
        pos,
        id: SliceId(id),
        size,
        off,
        len,
    }
}

/// A volume with a source, 150 bytes of slices 1 and 2 with a hole between, and an empty target.
async fn two_files(kept: Kept) -> (Stage, Ino, Ino) {
    let stage = Stage::on(kept, setting(0));
    let source = stage.file(Ino::ROOT, "source").await;
    let target = stage.file(Ino::ROOT, "target").await;
    stage.pass(std::time::Duration::from_secs(5));
    let slices = vec![
        (ChunkIndex(0), record(0, 1, 0, 50)),
        (ChunkIndex(0), record(100, 2, 0, 50)),
    ];
    let commit = WriteCommit {
        slices,
        length: 150,
        mtime: Timestamp { sec: NOON, nsec: 1 },
        kill_suid: false,
    };
    stage.meta.write(source, &commit).await.unwrap();
    stage.pass(std::time::Duration::from_secs(5));
    (stage, source, target)
}

fn all_of(from: Ino, to: Ino) -> CopyRange {
    CopyRange {
        from,
        from_offset: 0,
        to,
        to_offset: 0,
        length: 1000,
        kill_suid: true,
    }
}

fn list(stage: &Stage, ino: Ino, index: u32) -> Vec<Slice> {
    let index = ChunkIndex(index);
    let record = stage.peek(Key::Chunk { ino, index });
    record
        .map(|record| record.slices().unwrap())
        .unwrap_or_default()
}

fn copied() -> Vec<Slice> {
    vec![
        record(0, 1, 0, 50),
        record(50, 0, 0, 50),
        record(100, 2, 0, 50),
    ]
}

/// References of a slice are its records in all lists.
fn check_references(stage: &Stage, files: &[Ino]) {
    let mut counts: BTreeMap<u64, i64> = BTreeMap::new();
    for ino in files {
        for index in 0..4 {
            for slice in list(stage, *ino, index).iter().filter(|it| it.id.0 > 0) {
                *counts.entry(slice.id.0).or_default() += 1;
            }
        }
    }
    for (id, count) in counts {
        let key = Key::SliceRefs {
            id: SliceId(id),
            size: 100,
        };
        let references = stage.peek(key).unwrap().count().unwrap();
        assert_eq!(references, count, "references of slice {id}");
    }
}

fn check_a_copy(kept: Kept) {
    block_on(async {
        let (stage, source, target) = two_files(kept).await;
        stage.patch(target, |attr| attr.mode = 0o6755);
        let space = stage.counter(Counter::UsedSpace);
        let answer = stage.meta.copy_file_range(&all_of(source, target)).await;
        let (bytes, attr) = answer.unwrap();
        assert_eq!((bytes, attr.length, attr.mode), (150, 150, 0o755));
        assert_eq!(stage.attr(target), Some(attr));
        assert_eq!(list(&stage, target, 0), copied());
        // Across a chunk border, within one file: each half is a record.
        let within = CopyRange {
            from: target,
            from_offset: 10,
            to_offset: CHUNK_BYTES - 20,
            length: 40,
            ..all_of(source, target)
        };
        let (bytes, attr) = stage.meta.copy_file_range(&within).await.unwrap();
        assert_eq!((bytes, attr.length), (40, CHUNK_BYTES + 20));
        let end = CHUNK_BYTES as u32 - 20;
        assert_eq!(
            list(&stage, target, 0).last(),
            Some(&record(end, 1, 10, 20))
        );
        assert_eq!(list(&stage, target, 1), [record(0, 1, 30, 20)]);
        check_references(&stage, &[source, target]);
        let grown = CHUNK_BYTES.cast_signed();
        assert_eq!(stage.counter(Counter::UsedSpace), space + grown);
        // Behind the end there is nothing.
        let behind = CopyRange {
            from_offset: 150,
            ..all_of(source, target)
        };
        let before = stage.attr(target);
        assert_eq!(stage.meta.copy_file_range(&behind).await.unwrap().0, 0);
        assert_eq!(stage.attr(target), before);
    });
}

#[test]
fn a_copy_in_memory() {
    check_a_copy(Kept::Memory);
}

#[test]
fn a_copy_in_sqlite() {
    check_a_copy(Kept::Sqlite);
}

#[test]
fn a_copy_in_redis() {
    check_a_copy(Kept::Redis);
}

#[test]
fn what_may_not_be_copied() {
    block_on(async {
        let (stage, source, target) = two_files(Kept::Memory).await;
        let dir = stage
            .make(FileKind::Directory, Ino::ROOT, "dir")
            .await
            .unwrap();
        // EINVAL, ENOENT, EFBIG, EPERM.
        let copy = async |range| errno(&stage.meta.copy_file_range(&range).await);
        assert_eq!(copy(all_of(dir, target)).await, 22);
        assert_eq!(copy(all_of(source, dir)).await, 22);
        assert_eq!(copy(all_of(source, source)).await, 22);
        assert_eq!(copy(all_of(Ino(999), target)).await, 2);
        let far = CopyRange {
            to_offset: u64::MAX - 5,
            ..all_of(source, target)
        };
        assert_eq!(copy(far).await, 27);
        for flag in [attr_flags::IMMUTABLE, attr_flags::APPEND] {
            stage.patch(target, |attr| attr.flags = flag);
            assert_eq!(copy(all_of(source, target)).await, 1);
        }
        assert!(list(&stage, target, 0).is_empty());
    });
}

/// What somebody else does between reading and the first commit.
fn check_race(meddle: impl Fn(&Stage, Ino, Ino) -> Vec<Write>) -> (Stage, Ino, Ino, u64) {
    block_on(async {
        let (stage, source, target) = two_files(Kept::Memory).await;
        let txn = sluice_meta::engine::Txn {
            checks: Vec::new(),
            writes: meddle(&stage, source, target),
        };
        let pending = Mutex::new(Some(txn));
        let store = stage.store.clone();
        stage.store.on_request(move |request| {
            if matches!(request, Request::Commit(_))
                && let Some(txn) = pending.lock().take()
            {
                store.apply(&txn).unwrap();
            }
            Verdict::Serve
        });
        let answer = stage.meta.copy_file_range(&all_of(source, target)).await;
        stage.store.clear_hook();
        let bytes = answer.unwrap().0;
        check_references(&stage, &[source, target]);
        (stage, source, target, bytes)
    })
}

#[test]
fn a_compaction_in_between_is_seen() {
    let (stage, _, target, bytes) = check_race(|stage, source, _| {
        let (ino, index) = (source, ChunkIndex(0));
        let size = 100;
        let lose = |id| Write::AddSliceRef {
            id: SliceId(id),
            size,
            delta: -1,
        };
        vec![
            Write::ReplaceChunkPrefix {
                ino,
                index,
                drop: list(stage, source, 0).len(),
                slices: vec![record(0, 9, 0, 100)],
            },
            Write::NewSliceRef {
                id: SliceId(9),
                size,
            },
            lose(1),
            lose(2),
        ]
    });
    let expected = [record(0, 9, 0, 100), record(100, 0, 0, 50)];
    assert_eq!((list(&stage, target, 0), bytes), (expected.to_vec(), 150));
}

#[test]
fn a_truncate_in_between_is_seen() {
    let (stage, _, target, bytes) = check_race(|stage, source, _| {
        let old = stage.attr(source).unwrap();
        let mut new = old.clone();
        new.length = 20;
        let ino = source;
        vec![
            Write::UpdateAttr { ino, old, new },
            Write::AppendChunk {
                ino,
                index: ChunkIndex(0),
                slices: vec![Slice::hole(20, 130)],
            },
        ]
    });
    let expected = vec![record(0, 1, 0, 20)];
    assert_eq!((list(&stage, target, 0), bytes), (expected, 20));
}

/// The answer of the first commit is lost, applied or not.
fn check_lost_answer(applied: bool) {
    block_on(async {
        let (stage, source, target) = two_files(Kept::Memory).await;
        // It holds the same slices already: their ids tell nothing.
        stage
            .meta
            .copy_file_range(&all_of(source, target))
            .await
            .unwrap();
        stage.pass(std::time::Duration::from_secs(5));
        let commits = Arc::new(Mutex::new(0));
        let (count, seen) = (Arc::clone(&commits), Mutex::new(false));
        stage.store.on_request(move |request| {
            let Request::Commit(_) = request else {
                return Verdict::Serve;
            };
            *count.lock() += 1;
            if std::mem::replace(&mut *seen.lock(), true) {
                return Verdict::Serve;
            }
            let error = EngineError::UnknownFate {
                engine: "memory",
                cause: "injected".into(),
            };
            match applied {
                true => Verdict::ServeThenFail(error),
                false => Verdict::Fail(error),
            }
        });
        let answer = stage.meta.copy_file_range(&all_of(source, target)).await;
        stage.store.clear_hook();
        let (bytes, attr) = answer.unwrap();
        assert_eq!((bytes, attr.length), (150, 150));
        assert_eq!(*commits.lock(), if applied { 1 } else { 2 });
        assert_eq!(list(&stage, target, 0), [copied(), copied()].concat());
        check_references(&stage, &[source, target]);
    });
}

#[test]
fn an_answer_that_is_lost_is_looked_for() {
    check_lost_answer(true);
    check_lost_answer(false);
}

#[test]
fn a_lost_answer_is_found_though_the_mode_has_changed() {
    block_on(async {
        let (stage, source, target) = two_files(Kept::Memory).await;
        let store = stage.store.clone();
        let step = Mutex::new(0);
        stage.store.on_request(move |request| {
            let mut step = step.lock();
            match request {
                Request::Commit(_) => {
                    *step += 1;
                    assert_eq!(*step, 1, "committed again");
                    Verdict::ServeThenFail(EngineError::UnknownFate {
                        engine: "memory",
                        cause: "injected".into(),
                    })
                }
                Request::Read(_) if *step == 1 => {
                    *step = 2;
                    let ino = target;
                    let old = store.peek(&Key::Attr(ino)).unwrap().attr().unwrap();
                    let mut new = old.clone();
                    (new.mode, new.ctime.nsec) = (0o600, old.ctime.nsec + 7);
                    let writes = vec![Write::UpdateAttr { ino, old, new }];
                    let checks = Vec::new();
                    store
                        .apply(&sluice_meta::engine::Txn { checks, writes })
                        .unwrap();
                    Verdict::Serve
                }
                _ => Verdict::Serve,
            }
        });
        let answer = stage.meta.copy_file_range(&all_of(source, target)).await;
        stage.store.clear_hook();
        let (bytes, attr) = answer.unwrap();
        assert_eq!((bytes, attr.mode), (150, 0o600));
        assert_eq!(list(&stage, target, 0), copied());
        check_references(&stage, &[source, target]);
    });
}

#[test]
fn the_copy_outlives_the_source() {
    block_on(async {
        let (stage, source, target) = two_files(Kept::Memory).await;
        stage
            .meta
            .copy_file_range(&all_of(source, target))
            .await
            .unwrap();
        stage
            .meta
            .unlink(&Caller::ROOT, Ino::ROOT, b"source")
            .await
            .unwrap();
        let answer = stage.meta.copy_file_range(&all_of(source, target)).await;
        assert_eq!(errno(&answer), 2);
        assert_eq!(list(&stage, target, 0), copied());
    });
}
