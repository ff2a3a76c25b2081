//! What becomes of data that cannot be stored, and of objects that are gone.

use std::rc::Rc;

use bytes::Bytes;
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Txn, Write};
use sluice_meta::error::EngineError;
use sluice_meta::ops::Caller;
use sluice_meta::types::{ChunkIndex, Ino, Slice, SliceId};

use super::super::WriteOptions;
use super::super::testing::{Mount, TestRuntime, io_error, read, run, try_read};
use crate::error::{FsError, FsResult, ObjectError};

const INO: Ino = Ino(9);
const BLOCK: u32 = 64;

/// A mount with an open file that holds 100 committed bytes 1.
async fn prepared(runtime: Rc<TestRuntime>) -> Mount {
    let mount = Mount::simple(runtime, BLOCK);
    mount.create(INO);
    write(&mount, 0, &[1; 100]).await.unwrap();
    mount.files().flush(INO).await.unwrap();
    mount
}

async fn write(mount: &Mount, offset: u64, data: &[u8]) -> FsResult<usize> {
    mount
        .files()
        .write(INO, offset, data, WriteOptions::default())
        .await
}

fn check_lost(answer: FsResult<()>, errno: i32) {
    match answer {
        Err(error @ FsError::WriteLost { .. }) => assert_eq!(error.errno(), errno),
        other => panic!("expected WriteLost, got {other:?}"),
    }
}

/// After a loss: told to everybody until the last handle is closed; committed data is as it was.
async fn check_sticks(mount: &Mount, errno: i32) {
    let files = mount.files();
    check_lost(files.fsync(INO).await, errno);
    check_lost(write(mount, 0, &[3]).await.map(|_| ()), errno);
    assert_eq!(read(files, INO, 0, 1000).await, [1; 100]);
    assert_eq!(mount.stat(INO).length, 100);
    mount.open(INO);
    check_lost(files.release(INO).await, errno);
    check_lost(files.release(INO).await, errno);
    assert!(mount.table.is_empty());
    assert_eq!(files.budget.used(), 0);
    mount.open(INO);
    files.flush(INO).await.unwrap();
    write(mount, 100, &[4; 100]).await.unwrap();
    files.flush(INO).await.unwrap();
    assert_eq!(
        read(files, INO, 0, 1000).await,
        [[1; 100], [4; 100]].concat()
    );
}

#[test]
fn a_full_store_loses_the_data_at_once() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        let full = ObjectError::NoSpace { key: "some".into() };
        mount.blocks.refuse.replace(Some(full));
        write(&mount, 50, &[2; 300]).await.unwrap();
        check_lost(mount.files().flush(INO).await, libc::ENOSPC);
        assert_eq!(
            mount.runtime.pauses.borrow().len(),
            0,
            "a full store does not pass by itself"
        );
        mount.blocks.refuse.replace(None);
        mount.check_blocks(&[INO], 1).await;
        check_sticks(&mount, libc::ENOSPC).await;
    });
}

#[test]
fn an_outage_is_waited_for_within_the_budget() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        mount.blocks.refuse.replace(Some(io_error()));
        write(&mount, 0, &[2; 10]).await.unwrap();
        check_lost(mount.files().flush(INO).await, libc::EIO);
        let pauses = mount.runtime.pauses.take();
        assert_eq!(pauses.len(), 10);
        assert!(pauses.is_sorted() && pauses[0] < pauses[9]);
        mount.blocks.refuse.replace(None);
        check_sticks(&mount, libc::EIO).await;
    });
}

#[test]
fn an_early_upload_that_fails_is_told_by_the_next_write() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        let full = ObjectError::NoSpace { key: "some".into() };
        mount.blocks.refuse.replace(Some(full));
        write(&mount, 0, &[2; BLOCK as usize]).await.unwrap();
        while mount.files().uploads_pending.get() > 0 {
            smol::future::yield_now().await;
        }
        mount.blocks.refuse.replace(None);
        check_lost(write(&mount, 500, &[3]).await.map(|_| ()), libc::ENOSPC);
        check_lost(mount.files().flush(INO).await, libc::ENOSPC);
        check_sticks(&mount, libc::ENOSPC).await;
    });
}

#[test]
fn a_refused_commit_removes_the_blocks() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        mount.engine.on_request(|request| match request {
            Request::Commit(_) => Verdict::Fail(EngineError::NoSpace {
                engine: "memory",
                cause: "full".into(),
            }),
            _ => Verdict::Serve,
        });
        write(&mount, 0, &[2; 200]).await.unwrap();
        check_lost(mount.files().flush(INO).await, libc::ENOSPC);
        mount.check_blocks(&[INO], 1).await;
        mount.engine.clear_hook();
        check_sticks(&mount, libc::ENOSPC).await;
    });
}

#[test]
fn a_file_that_is_gone_takes_its_dirty_data_along() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        write(&mount, 0, &[2; 200]).await.unwrap();
        let writes = vec![
            Write::DeleteAttr(INO),
            Write::DeleteChunk {
                ino: INO,
                index: ChunkIndex(0),
            },
        ];
        mount
            .engine
            .apply(&Txn {
                checks: vec![],
                writes,
            })
            .unwrap();
        check_lost(mount.files().flush(INO).await, libc::ENOENT);
        assert_eq!(
            mount.blocks.stored.borrow().len(),
            2,
            "those of the first flush"
        );
    });
}

#[test]
fn blocks_of_a_doubtful_commit_stay() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        let before = mount.blocks.stored.borrow().len();
        let mut commits = 0;
        mount.engine.on_request(move |request| {
            let cause = || "cut".to_owned();
            match request {
                Request::Commit(_) => {
                    commits += 1;
                    Verdict::ServeThenFail(EngineError::UnknownFate {
                        engine: "memory",
                        cause: cause(),
                    })
                }
                // From then on nobody can look.
                _ if commits > 0 => Verdict::Fail(EngineError::Unreachable {
                    engine: "memory",
                    address: "here".into(),
                    cause: cause(),
                }),
                _ => Verdict::Serve,
            }
        });
        write(&mount, 0, &[2; 100]).await.unwrap();
        check_lost(mount.files().flush(INO).await, libc::EIO);
        mount.engine.clear_hook();
        assert_eq!(mount.blocks.stored.borrow().len(), before + 2);
        mount.check_blocks(&[INO], 1).await;
        assert_eq!(
            read(mount.files(), INO, 0, 1000).await,
            [2; 100],
            "it was applied after all"
        );
    });
}

/// Replaces the only slice of the file by another one with the same content, as compaction does.
fn compact(mount: &Mount, remove_old: bool) {
    let old = mount.slices(INO, 0)[0];
    let new = Slice {
        id: SliceId(900),
        ..old
    };
    let mut stored = mount.blocks.stored.borrow_mut();
    for index in 0..2 {
        let bytes = stored.get(&(old.id.0, index)).cloned().unwrap();
        stored.insert((new.id.0, index), bytes);
        if remove_old {
            stored.remove(&(old.id.0, index));
        }
    }
    let index = ChunkIndex(0);
    let writes = vec![
        Write::DeleteChunk { ino: INO, index },
        Write::AppendChunk {
            ino: INO,
            index,
            slices: vec![new],
        },
    ];
    mount
        .engine
        .apply(&Txn {
            checks: vec![],
            writes,
        })
        .unwrap();
}

#[test]
fn a_stale_slice_list_is_read_again() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        assert_eq!(read(mount.files(), INO, 0, 1000).await, [1; 100]);
        compact(&mount, true);
        assert_eq!(read(mount.files(), INO, 0, 1000).await, [1; 100]);
    });
}

#[test]
fn lost_and_damaged_objects_are_errors() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        let slice = mount.slices(INO, 0)[0];
        mount
            .blocks
            .stored
            .borrow_mut()
            .insert((slice.id.0, 1), Bytes::from_static(b"short"));
        let error = try_read(mount.files(), INO, 0, 1000).await.unwrap_err();
        assert!(
            matches!(error, FsError::Object(ObjectError::Damaged { .. })),
            "{error}"
        );
        mount.blocks.stored.borrow_mut().remove(&(slice.id.0, 1));
        let error = try_read(mount.files(), INO, 0, 1000).await.unwrap_err();
        assert!(
            matches!(error, FsError::Object(ObjectError::NotFound { .. })),
            "{error}"
        );
        assert_eq!(error.errno(), libc::EIO);
        assert_eq!(
            read(mount.files(), INO, 0, BLOCK).await,
            [1; BLOCK as usize],
            "the other block"
        );
    });
}

#[test]
fn attributes_show_what_a_write_does_before_it_is_committed() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        let before = mount.stat(INO);
        assert_eq!(before.mode, 0o6755);
        let options = WriteOptions {
            append: true,
            kill_suid: true,
        };
        mount
            .files()
            .write(INO, 0, &[2; 50], options)
            .await
            .unwrap();
        let dirty = mount.stat(INO);
        assert_eq!((dirty.length, dirty.mode), (150, 0o755));
        assert!(dirty.mtime > before.mtime && dirty.ctime > before.ctime);
        assert_eq!(mount.attr(INO).length, 100);
        mount.files().flush(INO).await.unwrap();
        let after = mount.stat(INO);
        assert_eq!(after, mount.attr(INO));
        assert_eq!(
            (after.length, after.mode, after.mtime),
            (150, 0o755, dirty.mtime)
        );
    });
}

#[test]
fn bad_requests() {
    run(async |runtime| {
        let mount = prepared(runtime).await;
        let files = mount.files();
        let far = sluice_meta::limits::FILE_BYTES_MAX;
        let errno = |answer: FsResult<()>| answer.unwrap_err().errno();
        assert_eq!(
            errno(write(&mount, far, &[1]).await.map(|_| ())),
            libc::EFBIG
        );
        assert_eq!(
            errno(write(&mount, u64::MAX, &[1]).await.map(|_| ())),
            libc::EFBIG
        );
        let truncated = files.truncate(&Caller::ROOT, INO, far + 1, true).await;
        assert_eq!(errno(truncated.map(|_| ())), libc::EFBIG);
        assert!(read(files, INO, u64::MAX, u32::MAX).await.is_empty());
        assert_eq!(
            errno(files.seek_data(INO, 100).await.map(|_| ())),
            libc::ENXIO
        );
        assert_eq!(write(&mount, 0, &[]).await.unwrap(), 0);
        assert!(files.owned.borrow().is_empty());
    });
}
