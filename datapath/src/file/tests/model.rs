//! Random sequences of requests against a byte vector.

use std::rc::Rc;

use sluice_meta::engine::memory::{Memory, Request, Verdict};
use sluice_meta::error::EngineError;
use sluice_meta::ops::{Caller, FallocateMode};
use sluice_meta::types::{CHUNK_BYTES, Ino};

use super::super::WriteOptions;
use super::super::testing::{FaultyBlocks, Mount, read, run};
use crate::error::FsError;

const INO: Ino = Ino(7);

/// The file starts here, so that small files cross a chunk border.
struct Model {
    bytes: Vec<u8>,
    base: u64,
}

impl Model {
    fn write(&mut self, at: usize, data: &[u8]) {
        if self.bytes.len() < at + data.len() {
            self.bytes.resize(at + data.len(), 0);
        }
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn zero(&mut self, at: usize, len: usize) {
        let end = (at + len).min(self.bytes.len());
        self.bytes[at.min(end)..end].fill(0);
    }

    fn read(&self, at: usize, len: usize) -> &[u8] {
        let end = (at + len).min(self.bytes.len());
        &self.bytes[at.min(end)..end]
    }
}

/// One random request, on the mount and on the model.
async fn step(mount: &Mount, model: &mut Model, rng: &mut fastrand::Rng, span: usize) {
    let core = rng.usize(0..mount.cores.len());
    let (at, len) = (rng.usize(0..span), rng.usize(1..span / 3));
    let offset = model.base + at as u64;
    match rng.u32(0..100) {
        0..45 => {
            let data: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..)).take(len).collect();
            let append = rng.u32(0..8) == 0;
            let options = WriteOptions {
                append,
                kill_suid: false,
            };
            let at = if append { model.bytes.len() } else { at };
            let offset = if append { 0 } else { offset };
            let written = mount
                .writer(INO, core)
                .write(INO, offset, &data, options)
                .await;
            assert_eq!(written.unwrap(), data.len());
            model.write(at, &data);
        }
        45..70 => {
            let got = read(mount.reader(INO, core), INO, offset, len as u32).await;
            assert_eq!(got, model.read(at, len));
        }
        70..76 => mount.reader(INO, core).flush(INO).await.unwrap(),
        76..79 => mount.reader(INO, core).fsync(INO).await.unwrap(),
        79..84 => {
            let length = model.base + at as u64;
            let files = mount.writer(INO, core);
            files
                .truncate(&Caller::ROOT, INO, length, true)
                .await
                .unwrap();
            model.bytes.resize(at, 0);
        }
        84..90 => {
            let (mode, grows) = match rng.u32(0..4) {
                0 => (FallocateMode::Allocate, true),
                1 => (FallocateMode::PunchHole, false),
                2 => (FallocateMode::ZeroRange { keep_size: true }, false),
                _ => (FallocateMode::ZeroRange { keep_size: false }, true),
            };
            let files = mount.writer(INO, core);
            files
                .fallocate(INO, mode, offset, len as u64)
                .await
                .unwrap();
            if grows && model.bytes.len() < at + len {
                model.bytes.resize(at + len, 0);
            }
            if mode != FallocateMode::Allocate {
                model.zero(at, len);
            }
        }
        90..94 => {
            for files in &mount.cores {
                files.tick();
            }
        }
        94..97 => check_seek(mount, model, core, at).await,
        _ => {
            mount.open(INO);
            mount.reader(INO, core).release(INO).await.unwrap();
        }
    }
    assert_eq!(
        mount.stat(INO).length,
        model.base + model.bytes.len() as u64
    );
}

/// Holes are only where zeros are; data may be zeros.
async fn check_seek(mount: &Mount, model: &Model, core: usize, at: usize) {
    let offset = model.base + at as u64;
    let files = mount.reader(INO, core);
    let zeros_to_end = model
        .read(at, usize::MAX >> 1)
        .iter()
        .all(|byte| *byte == 0);
    match files.seek_data(INO, offset).await {
        Ok(found) => {
            assert!(
                model
                    .read(at, (found - offset) as usize)
                    .iter()
                    .all(|byte| *byte == 0)
            );
        }
        Err(FsError::NoSuchOffset) => assert!(zeros_to_end),
        Err(error) => panic!("{error}"),
    }
    match files.seek_hole(INO, offset).await {
        Ok(found) if found == model.base + model.bytes.len() as u64 => {}
        Ok(found) => assert_eq!(model.read((found - model.base) as usize, 1), [0]),
        Err(FsError::NoSuchOffset) => assert!(at >= model.bytes.len()),
        Err(error) => panic!("{error}"),
    }
}

struct Setup {
    cores: u16,
    block_bytes: u32,
    buffer_bytes: u64,
    span: usize,
    flaky: bool,
    steps: usize,
}

async fn play(runtime: Rc<super::super::testing::TestRuntime>, setup: &Setup, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let blocks = FaultyBlocks::new(setup.block_bytes, seed);
    blocks.delay.set(rng.u32(0..6));
    let engine = Memory::new();
    let mount = Mount::new(runtime, engine, blocks, setup.cores, setup.buffer_bytes);
    mount.create(INO);
    if setup.flaky {
        mount.blocks.flaky.set(20);
        mount.engine.on_request(flaky_engine(seed));
    }
    let base = CHUNK_BYTES - setup.span as u64 / 2;
    let mut model = Model {
        bytes: Vec::new(),
        base,
    };
    mount
        .files()
        .truncate(&Caller::ROOT, INO, base, true)
        .await
        .unwrap();
    for _ in 0..setup.steps {
        step(&mount, &mut model, &mut rng, setup.span).await;
        if rng.bool() {
            smol::future::yield_now().await;
        }
    }
    for files in &mount.cores {
        files.flush_all().await.unwrap();
        assert_eq!(files.budget.used(), 0, "buffers give back what they took");
        assert_eq!(files.uploads_pending.get(), 0);
        files.tick();
        assert!(
            files.owned.borrow().is_empty(),
            "clean and idle inodes are given back"
        );
    }
    mount.blocks.flaky.set(0);
    mount.engine.clear_hook();
    let all = u32::try_from(model.bytes.len() + 1).unwrap();
    for core in 0..mount.cores.len() {
        assert_eq!(
            read(mount.reader(INO, core), INO, base, all).await,
            model.bytes
        );
    }
    if setup.flaky {
        mount.check_blocks_there(&[INO], 3).await;
    } else {
        mount.check_blocks(&[INO], 3).await;
    }
    let elsewhere = mount.again();
    elsewhere.open(INO);
    assert_eq!(read(elsewhere.files(), INO, base, all).await, model.bytes);
    assert_eq!(elsewhere.attr(INO).length, base + model.bytes.len() as u64);
    mount.table.closed(INO);
    assert!(mount.table.is_empty());
}

/// Outages and conflicts that pass, and lost connections.
fn flaky_engine(seed: u64) -> impl FnMut(Request<'_>) -> Verdict + Send {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
    move |request| {
        let unreachable = || EngineError::Unreachable {
            engine: "memory",
            address: "here".into(),
            cause: "flaky".into(),
        };
        let lost = || EngineError::UnknownFate {
            engine: "memory",
            cause: "flaky".into(),
        };
        match (request, rng.u32(0..20)) {
            (Request::Commit(_), 0) => Verdict::Conflict(0),
            (Request::Commit(_), 1) => Verdict::ServeThenFail(lost()),
            (Request::Commit(_), 2) => Verdict::Fail(lost()),
            (Request::Read(_) | Request::Alloc(_) | Request::Sync, 3) => {
                Verdict::Fail(unreachable())
            }
            _ => Verdict::Serve,
        }
    }
}

fn check(setup: &Setup, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        eprintln!("seed {seed}");
        run(|runtime| play(runtime, setup, seed));
    }
}

#[test]
fn small_blocks() {
    let (cores, block_bytes, span) = (1, 16, 150);
    check(
        &Setup {
            cores,
            block_bytes,
            buffer_bytes: 1 << 30,
            span,
            flaky: false,
            steps: 300,
        },
        0..60,
    );
}

#[test]
fn large_blocks_and_little_room() {
    let (cores, block_bytes, span) = (1, 100_000, 600_000);
    let buffer_bytes = 700_000;
    check(
        &Setup {
            cores,
            block_bytes,
            buffer_bytes,
            span,
            flaky: false,
            steps: 60,
        },
        0..6,
    );
}

#[test]
fn three_cores() {
    let (cores, block_bytes, span) = (3, 16, 150);
    check(
        &Setup {
            cores,
            block_bytes,
            buffer_bytes: 1 << 30,
            span,
            flaky: false,
            steps: 300,
        },
        100..160,
    );
}

#[test]
fn outages_that_pass() {
    let (cores, block_bytes, span) = (2, 16, 150);
    check(
        &Setup {
            cores,
            block_bytes,
            buffer_bytes: 1 << 30,
            span,
            flaky: true,
            steps: 300,
        },
        200..240,
    );
}
