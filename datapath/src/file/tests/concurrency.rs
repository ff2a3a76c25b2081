//! Many requests at once, on one core and on several.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use sluice_meta::engine::memory::Memory;
use sluice_meta::ops::{Caller, FallocateMode};
use sluice_meta::types::Ino;

use super::super::read::join_all;
use super::super::testing::{FaultyBlocks, Mount, TestRuntime, read, run};
use super::super::{DIRTY_TICKS_MAX, Files, WriteOptions};
use crate::shard::inode::{CoreId, Route};

const INO: Ino = Ino(11);
const BLOCK: u32 = 64;

async fn write(files: &Files<FaultyBlocks>, ino: Ino, offset: u64, data: &[u8]) {
    let written = files
        .write(ino, offset, data, WriteOptions::default())
        .await;
    assert_eq!(written.unwrap(), data.len());
}

async fn yields(turns: u32) {
    for _ in 0..turns {
        smol::future::yield_now().await;
    }
}

#[test]
fn dirty_data_is_read_while_its_upload_hangs() {
    run(async |runtime| {
        let mount = Mount::simple(runtime, BLOCK);
        mount.create(INO);
        let files = mount.files();
        mount.blocks.stalled.set(true);
        write(files, INO, 0, &[1; 200]).await;
        let flush = async { files.flush(INO).await.unwrap() };
        let meanwhile = async {
            yields(20).await;
            assert_eq!(read(files, INO, 0, 1000).await, [1; 200]);
            // The flush goes on with what it has taken up; this one is newer.
            write(files, INO, 50, &[2; 20]).await;
            let mixed = [&[1; 50][..], &[2; 20], &[1; 130]].concat();
            assert_eq!(read(files, INO, 0, 1000).await, mixed);
            assert!(mount.slices(INO, 0).is_empty(), "data-before-name");
            mount.blocks.stalled.set(false);
        };
        smol::future::zip(flush, meanwhile).await;
        assert_eq!(mount.slices(INO, 0).len(), 1);
        files.flush(INO).await.unwrap();
        assert_eq!(mount.slices(INO, 0).len(), 2);
        let mixed = [&[1; 50][..], &[2; 20], &[1; 130]].concat();
        assert_eq!(read(files, INO, 0, 1000).await, mixed);
    });
}

#[test]
fn flushes_of_one_inode_share_commits() {
    run(async |runtime| {
        let mount = Mount::simple(runtime, BLOCK);
        mount.create(INO);
        let files = mount.files();
        mount.blocks.delay.set(5);
        let writers = (0..20_u64).map(|nth| async move {
            write(files, INO, nth * 10, &[nth as u8; 10]).await;
            files.flush(INO).await.unwrap();
        });
        join_all(writers.collect()).await;
        assert!(
            mount.slices(INO, 0).len() <= 2,
            "{:?}",
            mount.slices(INO, 0)
        );
        let want: Vec<u8> = (0..20).flat_map(|nth| [nth; 10]).collect();
        assert_eq!(read(files, INO, 0, 1000).await, want);
    });
}

#[test]
fn writers_wait_for_room_and_get_it() {
    for seed in 0..10 {
        run(|runtime| squeeze(runtime, seed));
    }
}

/// 8 inodes, 24 writers, room for a few of their writes.
async fn squeeze(runtime: Rc<TestRuntime>, seed: u64) {
    let blocks = FaultyBlocks::new(5000, seed);
    blocks.delay.set(4);
    let room = 40_000;
    let mount = Mount::new(runtime, Memory::new(), blocks, 1, room);
    let files = mount.files();
    let inos: Vec<Ino> = (20..28).map(Ino).collect();
    inos.iter().for_each(|ino| mount.create(*ino));
    let used_max = Cell::new(0);
    let writers = (0..24_u64).map(|nth| {
        let (ino, used_max) = (inos[nth as usize % 8], &used_max);
        let mut rng = fastrand::Rng::with_seed(seed * 100 + nth);
        async move {
            for _ in 0..30 {
                let data = vec![nth as u8; rng.usize(1..9000)];
                write(files, ino, rng.u64(0..100_000), &data).await;
                used_max.set(files.budget.used().max(used_max.get()));
                if rng.u32(0..20) == 0 {
                    let length = rng.u64(0..100_000);
                    files
                        .truncate(&Caller::ROOT, ino, length, true)
                        .await
                        .unwrap();
                }
            }
        }
    });
    join_all(writers.collect()).await;
    // Memory is taken in powers of two: at most twice the bytes of a write, which was let in as its bytes.
    assert!(
        used_max.get() <= room + 2 * 24 * 16_384,
        "{}",
        used_max.get()
    );
    assert!(mount.blocks.writing_max.get() <= 4);
    files.flush_all().await.unwrap();
    assert_eq!(files.budget.used(), 0);
    mount.check_blocks(&inos, 1).await;
}

#[test]
fn room_held_by_a_writer_at_the_gate_is_found_later() {
    run(async |runtime| {
        let mount = Mount::new(
            runtime,
            Memory::new(),
            FaultyBlocks::new(1 << 20, 1),
            1,
            100,
        );
        let (gated, other) = (Ino(30), Ino(31));
        mount.create(gated);
        mount.create(other);
        let files = mount.files();
        let state = files.own(gated).unwrap();
        let gate = state.gate.write().await;
        // Takes the room, but is not dirty before it gets through the gate.
        let first = write(files, gated, 0, &[1; 80]);
        // Waits for room, which nobody can make yet.
        let second = write(files, other, 0, &[2; 80]);
        let open = async {
            yields(50).await;
            assert!(files.budget.is_short() && !files.relieving.get());
            drop(gate);
        };
        smol::future::zip(smol::future::zip(first, second), open).await;
        assert_eq!(read(files, other, 0, 100).await, [2; 80]);
    });
}

#[test]
fn a_write_larger_than_all_the_room_gets_through() {
    run(async |runtime| {
        let mount = Mount::new(runtime, Memory::new(), FaultyBlocks::new(BLOCK, 1), 1, 100);
        mount.create(INO);
        for nth in 0..4 {
            write(mount.files(), INO, nth * 700, &[nth as u8; 700]).await;
        }
        let want: Vec<u8> = (0..4).flat_map(|nth| [nth; 700]).collect();
        assert_eq!(read(mount.files(), INO, 0, 4000).await, want);
    });
}

#[test]
fn scattered_writes_are_flushed_before_they_are_too_many() {
    run(async |runtime| {
        let mount = Mount::simple(runtime, BLOCK);
        mount.create(INO);
        let files = mount.files();
        let mut most = 0;
        for nth in 0..4000 {
            write(files, INO, nth * 10, &[5; 3]).await;
            let dirty = files.owned(INO).unwrap();
            most = most.max(dirty.dirty.borrow().slices());
        }
        assert!(most <= 1600, "{most}");
        assert!(!mount.slices(INO, 0).is_empty());
    });
}

#[test]
fn age_flushes_at_the_fifth_tick() {
    run(async |runtime| {
        let mount = Mount::simple(runtime, BLOCK);
        mount.create(INO);
        let files = mount.files();
        write(files, INO, 0, b"abc").await;
        for _ in 1..DIRTY_TICKS_MAX {
            files.tick();
            yields(100).await;
            assert!(mount.slices(INO, 0).is_empty());
            write(files, INO, 0, b"abc").await;
        }
        files.tick();
        while mount.slices(INO, 0).is_empty() {
            yields(1).await;
        }
        yields(100).await;
        assert!(
            files.owned.borrow().is_empty(),
            "clean and idle: given back"
        );
    });
}

#[test]
fn readers_hop_only_to_dirty_data() {
    run(async |runtime| {
        let blocks = FaultyBlocks::new(BLOCK, 1);
        let mount = Mount::new(runtime, Memory::new(), blocks, 2, 1 << 30);
        mount.create(INO);
        let [near, far] = &mount.cores[..] else {
            panic!("two cores")
        };
        assert_eq!(
            (near.route_read(INO), far.route_read(INO)),
            (Route::Here, Route::Here)
        );
        write(near, INO, 0, &[1; 100]).await;
        assert_eq!(
            (near.route_read(INO), far.route_read(INO)),
            (Route::Here, Route::Hop(CoreId(0)))
        );
        near.flush(INO).await.unwrap();
        assert_eq!(far.route_read(INO), Route::Here);
        assert_eq!(read(far, INO, 0, 1000).await, [1; 100]);
        assert!(mount.table.get(INO).unwrap().owner().is_none());
        write(far, INO, 100, &[2; 100]).await;
        assert_eq!(near.route_read(INO), Route::Hop(CoreId(1)));
        far.flush(INO).await.unwrap();
        assert_eq!(
            read(near, INO, 0, 1000).await,
            [[1; 100], [2; 100]].concat()
        );
    });
}

/// Regions that a writer fills with numbers that grow: a read never sees less than was acknowledged before
/// it began, nor a mixture within the bytes of one write.
struct Regions {
    bytes: u64,
    acked: RefCell<Vec<u8>>,
    sent: RefCell<Vec<u8>>,
}

impl Regions {
    async fn write(&self, mount: &Mount, region: usize, mut rng: fastrand::Rng) {
        for number in 1..=40 {
            let core = rng.usize(0..mount.cores.len());
            self.sent.borrow_mut()[region] = number;
            let data = vec![number; self.bytes as usize];
            let files = mount.writer(INO, core);
            write(files, INO, region as u64 * self.bytes, &data).await;
            self.acked.borrow_mut()[region] = number;
            if rng.u32(0..4) == 0 {
                mount.reader(INO, core).flush(INO).await.unwrap();
            }
            yields(rng.u32(0..10)).await;
        }
    }

    async fn read(&self, mount: &Mount, mut rng: fastrand::Rng) {
        let regions = self.acked.borrow().len();
        for _ in 0..150 {
            let core = rng.usize(0..mount.cores.len());
            let first = rng.usize(0..regions);
            let count = rng.usize(1..4).min(regions - first);
            let acked = self.acked.borrow().clone();
            let length = mount.stat(INO).length;
            let (at, len) = (first as u64 * self.bytes, count as u32 * self.bytes as u32);
            let got = read(mount.reader(INO, core), INO, at, len).await;
            assert!(got.len() as u64 >= length.saturating_sub(at).min(u64::from(len)));
            let sent = self.sent.borrow().clone();
            for (nth, seen) in got.chunks(self.bytes as usize).enumerate() {
                let region = first + nth;
                assert!(seen.iter().all(|byte| *byte == seen[0]), "torn: {seen:?}");
                assert!(
                    seen[0] >= acked[region],
                    "stale: {} < {}",
                    seen[0],
                    acked[region]
                );
                assert!(seen[0] <= sent[region]);
            }
            yields(rng.u32(0..6)).await;
        }
    }

    /// Changes the file as a whole, outside of the regions or without effect on them.
    async fn disturb(&self, mount: &Mount, mut rng: fastrand::Rng) {
        let end = self.acked.borrow().len() as u64 * self.bytes;
        for _ in 0..40 {
            let files = mount.writer(INO, rng.usize(0..mount.cores.len()));
            let changed = if rng.bool() {
                files
                    .truncate(&Caller::ROOT, INO, end + rng.u64(0..500), true)
                    .await
            } else {
                files
                    .fallocate(INO, FallocateMode::PunchHole, end, rng.u64(1..500))
                    .await
            };
            changed.unwrap();
            mount.cores.iter().for_each(|files| files.tick());
            yields(rng.u32(0..20)).await;
        }
    }
}

#[test]
fn acknowledged_writes_are_seen_from_every_core() {
    for seed in 0..40 {
        run(|runtime| play_regions(runtime, seed));
    }
}

async fn play_regions(runtime: Rc<TestRuntime>, seed: u64) {
    eprintln!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let blocks = FaultyBlocks::new(BLOCK, seed);
    blocks.delay.set(rng.u32(0..8));
    let cores = rng.u16(1..4);
    let mount = Mount::new(runtime, Memory::new(), blocks, cores, 1 << 30);
    mount.create(INO);
    let count = 6;
    let regions = Regions {
        bytes: rng.u64(1..100),
        acked: RefCell::new(vec![0; count]),
        sent: RefCell::new(vec![0; count]),
    };
    // So that no change of the file as a whole touches a region.
    let length = regions.bytes * count as u64;
    mount
        .files()
        .truncate(&Caller::ROOT, INO, length, true)
        .await
        .unwrap();
    let writers = (0..count).map(|region| regions.write(&mount, region, rng.fork()));
    let writers: Vec<_> = writers.collect();
    let readers: Vec<_> = (0..4).map(|_| regions.read(&mount, rng.fork())).collect();
    let disturbing = regions.disturb(&mount, rng.fork());
    let reading = smol::future::zip(join_all(readers), disturbing);
    smol::future::zip(join_all(writers), reading).await;
    for files in &mount.cores {
        files.flush_all().await.unwrap();
    }
    mount.check_blocks(&[INO], 1).await;
}
