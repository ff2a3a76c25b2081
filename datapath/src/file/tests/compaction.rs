//! Compaction: lists stay short while a file is overwritten, content stays what it was, and no block of a slice
//! that nobody knows is left.

use std::rc::Rc;

use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::engine::AnyEngine;
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Txn, Write};
use sluice_meta::runtime::Runtime;
use sluice_meta::types::{ChunkIndex, Ino, Slice};
use sluice_meta::volume::Setting;

use super::super::WriteOptions;
use super::super::compact::{Round, compact_chunk, compact_fully};
use super::super::testing::{Mount, TestRuntime, io_error, read, run};

const INO: Ino = Ino(9);
const BLOCK: u32 = 64;
const CHUNK: ChunkIndex = ChunkIndex(0);
const FILE_BYTES: usize = 2000;

async fn write(mount: &Mount, model: &mut [u8], rng: &mut fastrand::Rng) {
    let at = rng.usize(..FILE_BYTES - 100);
    let data = vec![rng.u8(..); rng.usize(1..100)];
    let options = WriteOptions::default();
    mount
        .files()
        .write(INO, at as u64, &data, options)
        .await
        .unwrap();
    mount.files().fsync(INO).await.unwrap();
    model[at..at + data.len()].copy_from_slice(&data);
}

/// What a tool would use: no trash, so that old slices go at once.
fn tool(mount: &Mount, runtime: &Rc<TestRuntime>) -> Meta {
    let engine = Rc::new(AnyEngine::Memory(mount.engine.clone()));
    let setting = Setting {
        trash_days: 0,
        ..Setting::fresh("test", "none")
    };
    let runtime = Rc::clone(runtime) as Rc<dyn Runtime>;
    Meta::new(
        engine,
        runtime,
        Shared::new(setting, MetaOptions::default()),
    )
}

async fn overwritten(mount: &Mount, times: usize) -> Vec<u8> {
    let mut model = vec![0; FILE_BYTES];
    let mut rng = fastrand::Rng::with_seed(7);
    mount.create(INO);
    let options = WriteOptions::default();
    mount.files().write(INO, 0, &model, options).await.unwrap();
    for _ in 0..times {
        write(mount, &mut model, &mut rng).await;
    }
    model
}

#[test]
fn a_mount_keeps_lists_short() {
    run(|runtime| async move {
        let mount = Mount::simple(runtime, BLOCK);
        let mut model = vec![0; FILE_BYTES];
        let mut rng = fastrand::Rng::with_seed(3);
        mount.create(INO);
        let mut longest = 0;
        for _ in 0..3000 {
            write(&mount, &mut model, &mut rng).await;
            longest = longest.max(mount.slices(INO, 0).len());
        }
        assert!((99..200).contains(&longest), "{longest} records");
        let length = mount.attr(INO).length as usize;
        let found = read(mount.files(), INO, 0, FILE_BYTES as u32).await;
        assert_eq!(found, model[..length]);
        let again = mount.again();
        assert_eq!(
            read(again.files(), INO, 0, FILE_BYTES as u32).await,
            model[..length]
        );
    });
}

#[test]
fn a_tool_leaves_one_slice_and_its_blocks() {
    run(|runtime| async move {
        let mount = Mount::simple(Rc::clone(&runtime), BLOCK);
        let model = overwritten(&mount, 60).await;
        let meta = tool(&mount, &runtime);
        let written = compact_fully(&meta, &*mount.blocks, INO, CHUNK)
            .await
            .unwrap();
        assert_eq!(written, FILE_BYTES as u64);
        assert_eq!(mount.slices(INO, 0).len(), 1);
        mount.check_blocks(&[INO], 1).await;
        // The mount still has the old list, whose blocks are gone: it asks once more.
        assert_eq!(read(mount.files(), INO, 0, 5000).await, model);
        let round = compact_chunk(&meta, &*mount.blocks, INO, CHUNK)
            .await
            .unwrap();
        assert_eq!(round, Round::Nothing);
    });
}

#[test]
fn one_that_loses_leaves_no_blocks() {
    run(|runtime| async move {
        let mount = Mount::simple(Rc::clone(&runtime), BLOCK);
        overwritten(&mount, 10).await;
        let meta = tool(&mount, &runtime);
        let before = mount.slices(INO, 0);
        let engine = mount.engine.clone();
        mount.engine.on_request(move |request| {
            if let Request::Commit(_) = request {
                // Somebody punches a hole over everything first.
                let writes = vec![Write::ReplaceChunkPrefix {
                    ino: INO,
                    index: CHUNK,
                    drop: 1,
                    slices: vec![Slice::hole(0, 5)],
                }];
                let checks = Vec::new();
                engine.apply(&Txn { checks, writes }).unwrap();
            }
            Verdict::Serve
        });
        let blocks = mount.blocks.stored.borrow().clone();
        let round = compact_chunk(&meta, &*mount.blocks, INO, CHUNK)
            .await
            .unwrap();
        assert_eq!(round, Round::Lost);
        assert_eq!(mount.slices(INO, 0)[1..], before[1..]);
        assert_eq!(*mount.blocks.stored.borrow(), blocks);
    });
}

#[test]
fn one_that_cannot_write_leaves_everything_as_it_was() {
    run(|runtime| async move {
        let mount = Mount::simple(Rc::clone(&runtime), BLOCK);
        let model = overwritten(&mount, 10).await;
        let (meta, before) = (tool(&mount, &runtime), mount.slices(INO, 0));
        *mount.blocks.refuse.borrow_mut() = Some(io_error());
        compact_chunk(&meta, &*mount.blocks, INO, CHUNK)
            .await
            .unwrap_err();
        assert_eq!(mount.slices(INO, 0), before);
        mount.check_blocks(&[INO], 1).await;
        assert_eq!(read(mount.files(), INO, 0, 5000).await, model);
    });
}
