//! Twins for the tests of file data: an executor whose pauses take no time, a block store that fails on
//! request, and a mount of one or more cores in one thread.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::engine::memory::Memory;
use sluice_meta::engine::{AnyEngine, Engine, Item, Key, Record, Scan, Txn, Write};
use sluice_meta::runtime::{Address, LocalFuture, Runtime, Stream};
use sluice_meta::types::{Attr, ChunkIndex, FileKind, Ino, Slice, SliceId, Timestamp};
use sluice_meta::volume::Setting;

use super::{Files, FilesOptions};
use crate::cache::{BlockId, BlockIo};
use crate::error::{FsResult, ObjectError};
use crate::shard::inode::{Claim, CoreId, InodeTable, Route};

/// Tasks of one thread; pauses last until everybody else had a turn; a clock that ticks when looked at.
pub(super) struct TestRuntime {
    tasks: Rc<smol::LocalExecutor<'static>>,
    clock: Cell<u64>,
    pub(super) pauses: RefCell<Vec<Duration>>,
}

/// Runs `test` and what it spawns.
pub(super) fn run<F: Future>(test: impl FnOnce(Rc<TestRuntime>) -> F) -> F::Output {
    let tasks = Rc::new(smol::LocalExecutor::new());
    let runtime = Rc::new(TestRuntime {
        tasks: Rc::clone(&tasks),
        clock: Cell::new(0),
        pauses: RefCell::new(Vec::new()),
    });
    smol::block_on(tasks.run(test(runtime)))
}

impl Runtime for TestRuntime {
    fn sleep(&self, pause: Duration) -> LocalFuture<'static, ()> {
        self.pauses.borrow_mut().push(pause);
        Box::pin(smol::future::yield_now())
    }

    fn spawn(&self, task: LocalFuture<'static, ()>) {
        self.tasks.spawn(task).detach();
    }

    fn connect(&self, _: &Address) -> LocalFuture<'static, io::Result<Box<dyn Stream>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn fdatasync(&self, _: Arc<File>) -> LocalFuture<'static, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn now(&self) -> Timestamp {
        self.clock.set(self.clock.get() + 1);
        Timestamp {
            sec: 1_000 + self.clock.get() as i64,
            nsec: 0,
        }
    }
}

/// A block store in memory that takes its time and fails as it is told.
pub(super) struct FaultyBlocks {
    pub(super) block_bytes: u32,
    pub(super) stored: RefCell<BTreeMap<(u64, u32), Bytes>>,
    rng: RefCell<fastrand::Rng>,
    /// Most turns a request lets others have first.
    pub(super) delay: Cell<u32>,
    /// Of 100 writes and reads, how many fail in a way that passes.
    pub(super) flaky: Cell<u32>,
    /// Every write fails with this.
    pub(super) refuse: RefCell<Option<ObjectError>>,
    /// No write ends while this is set.
    pub(super) stalled: Cell<bool>,
    pub(super) writing: Cell<u32>,
    pub(super) writing_max: Cell<u32>,
}

impl FaultyBlocks {
    pub(super) fn new(block_bytes: u32, seed: u64) -> Rc<FaultyBlocks> {
        Rc::new(FaultyBlocks {
            block_bytes,
            stored: RefCell::default(),
            rng: RefCell::new(fastrand::Rng::with_seed(seed)),
            delay: Cell::new(0),
            flaky: Cell::new(0),
            refuse: RefCell::new(None),
            stalled: Cell::new(false),
            writing: Cell::new(0),
            writing_max: Cell::new(0),
        })
    }

    async fn pass(&self, action: &'static str) -> Result<(), ObjectError> {
        let turns = self.rng.borrow_mut().u32(0..=self.delay.get());
        for _ in 0..turns {
            smol::future::yield_now().await;
        }
        if self.rng.borrow_mut().u32(0..100) < self.flaky.get() {
            return Err(ObjectError::Io {
                action,
                key: "some".into(),
                cause: "flaky".into(),
            });
        }
        Ok(())
    }
}

pub(super) fn io_error() -> ObjectError {
    ObjectError::Io {
        action: "put",
        key: "some".into(),
        cause: "down".into(),
    }
}

impl BlockIo for FaultyBlocks {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    async fn read(&self, block: BlockId, range: Range<u32>) -> Result<Vec<Bytes>, ObjectError> {
        self.pass("get").await?;
        assert!(
            range.start < range.end && range.end <= block.size,
            "{block:?} {range:?}"
        );
        let key = format!("{block:?}");
        let stored = self
            .stored
            .borrow()
            .get(&(block.slice.0, block.index))
            .cloned();
        let bytes = stored.ok_or(ObjectError::NotFound { key: key.clone() })?;
        if bytes.len() != block.size as usize {
            return Err(ObjectError::Damaged {
                key,
                cause: "another size".into(),
            });
        }
        let middle = (range.start + range.end) as usize / 2;
        // In pieces, as a cache of pages answers.
        Ok(vec![
            bytes.slice(range.start as usize..middle),
            bytes.slice(middle..range.end as usize),
        ])
    }

    async fn write(&self, block: BlockId, data: Vec<Bytes>) -> Result<(), ObjectError> {
        self.writing.set(self.writing.get() + 1);
        self.writing_max
            .set(self.writing_max.get().max(self.writing.get()));
        while self.stalled.get() {
            smol::future::yield_now().await;
        }
        let passed = self.pass("put").await;
        self.writing.set(self.writing.get() - 1);
        passed?;
        if let Some(error) = self.refuse.borrow().clone() {
            return Err(error);
        }
        let bytes: Bytes = data.concat().into();
        assert_eq!(bytes.len(), block.size as usize);
        assert!(block.size <= self.block_bytes);
        let before = self
            .stored
            .borrow_mut()
            .insert((block.slice.0, block.index), bytes.clone());
        assert!(
            before.is_none_or(|before| before == bytes),
            "block-immutable"
        );
        Ok(())
    }

    async fn remove(&self, block: BlockId) -> Result<(), ObjectError> {
        self.stored
            .borrow_mut()
            .remove(&(block.slice.0, block.index));
        Ok(())
    }
}

/// A mount with some cores, all in this thread.
pub(super) struct Mount {
    pub(super) engine: Memory,
    pub(super) blocks: Rc<FaultyBlocks>,
    pub(super) table: Arc<InodeTable>,
    pub(super) cores: Vec<Rc<Files<FaultyBlocks>>>,
    pub(super) runtime: Rc<TestRuntime>,
}

impl Mount {
    pub(super) fn new(
        runtime: Rc<TestRuntime>,
        engine: Memory,
        blocks: Rc<FaultyBlocks>,
        cores: u16,
        buffer_bytes: u64,
    ) -> Mount {
        let table = InodeTable::new();
        let shared = Shared::new(Setting::fresh("test", "none"), MetaOptions::default());
        let core = |core| {
            let engine = Rc::new(AnyEngine::Memory(engine.clone()));
            let services: Rc<dyn Runtime> = Rc::clone(&runtime) as Rc<dyn Runtime>;
            let meta = Meta::new(engine, Rc::clone(&services), Arc::clone(&shared));
            let table = Arc::clone(&table);
            let options =
                FilesOptions::share(CoreId(core), usize::from(cores), buffer_bytes, 4, 10);
            Files::new(Rc::new(meta), Rc::clone(&blocks), services, table, options)
        };
        let cores = (0..cores).map(core).collect();
        Mount {
            engine,
            blocks,
            table,
            cores,
            runtime,
        }
    }

    /// One core, plenty of room.
    pub(super) fn simple(runtime: Rc<TestRuntime>, block_bytes: u32) -> Mount {
        Mount::new(
            runtime,
            Memory::new(),
            FaultyBlocks::new(block_bytes, 1),
            1,
            1 << 30,
        )
    }

    /// The same volume, mounted again.
    pub(super) fn again(&self) -> Mount {
        let (engine, blocks) = (self.engine.clone(), Rc::clone(&self.blocks));
        Mount::new(Rc::clone(&self.runtime), engine, blocks, 1, 1 << 30)
    }

    pub(super) fn files(&self) -> &Rc<Files<FaultyBlocks>> {
        &self.cores[0]
    }

    /// Makes an empty file and opens it.
    pub(super) fn create(&self, ino: Ino) {
        let attr = Attr {
            flags: 0,
            kind: FileKind::File,
            mode: 0o6755,
            uid: 0,
            gid: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            nlink: 1,
            length: 0,
            rdev: 0,
            parent: Ino::ROOT,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        };
        let writes = vec![Write::InsertAttr { ino, attr }];
        self.engine
            .apply(&Txn {
                checks: vec![],
                writes,
            })
            .unwrap();
        self.open(ino);
    }

    pub(super) fn open(&self, ino: Ino) {
        let seen = self.table.observe();
        self.table.opened(ino, seen, &self.attr(ino));
    }

    /// Committed attributes.
    pub(super) fn attr(&self, ino: Ino) -> Attr {
        self.engine.peek(&Key::Attr(ino)).unwrap().attr().unwrap()
    }

    /// Attributes as any core replies them.
    pub(super) fn stat(&self, ino: Ino) -> Attr {
        let seen = self.table.observe();
        let mut attr = self.attr(ino);
        self.table.patch_attr(ino, seen, &mut attr);
        attr
    }

    /// Committed slices.
    pub(super) fn slices(&self, ino: Ino, index: u32) -> Vec<Slice> {
        let index = ChunkIndex(index);
        let record = self.engine.peek(&Key::Chunk { ino, index });
        record.map_or(Vec::new(), |record: Record| record.slices().unwrap())
    }

    /// The core that serves a request for data which arrives at `core`, as the dispatcher finds it.
    pub(super) fn reader(&self, ino: Ino, core: usize) -> &Rc<Files<FaultyBlocks>> {
        match self.cores[core].route_read(ino) {
            Route::Here => &self.cores[core],
            Route::Hop(CoreId(other)) => &self.cores[usize::from(other)],
        }
    }

    /// The core that serves a change which arrives at `core`, as the dispatcher finds it.
    pub(super) fn writer(&self, ino: Ino, core: usize) -> &Rc<Files<FaultyBlocks>> {
        match self.cores[core].claim(ino) {
            Claim::Mine => &self.cores[core],
            Claim::Other(CoreId(other)) => {
                assert_eq!(self.cores[usize::from(other)].claim(ino), Claim::Mine);
                &self.cores[usize::from(other)]
            }
        }
    }

    /// Every slice of the first `chunks` chunks has its blocks, and there are no others but those that
    /// compactions have replaced.
    pub(super) async fn check_blocks(&self, inos: &[Ino], chunks: u32) {
        let (stored, wanted) = self.block_sets(inos, chunks).await;
        assert_eq!(stored, wanted, "data-before-name, and no garbage");
    }

    /// As `check_blocks` where connections broke: a block whose fate could not be told may be left.
    pub(super) async fn check_blocks_there(&self, inos: &[Ino], chunks: u32) {
        let (stored, wanted) = self.block_sets(inos, chunks).await;
        assert!(wanted.is_subset(&stored), "data-before-name");
    }

    /// Blocks that are there, and those that should be, when compactions have come to rest.
    async fn block_sets(&self, inos: &[Ino], chunks: u32) -> (Blocks, Blocks) {
        while self.cores.iter().any(|files| files.compacting.get() > 0) {
            smol::future::yield_now().await;
        }
        let mut slices: Vec<(SliceId, u32)> = Vec::new();
        for ino in inos {
            let records = (0..chunks).flat_map(|index| self.slices(*ino, index));
            slices.extend(records.map(|slice| (slice.id, slice.size)));
        }
        let notes = self
            .engine
            .scan(&Scan::DelayedSlices, None, usize::MAX)
            .await;
        for item in notes.unwrap().items {
            if let Item::DelayedSlices { slices: old, .. } = item {
                slices.extend(old);
            }
        }
        let wanted = slices
            .into_iter()
            .filter(|(id, _)| *id != SliceId::HOLE)
            .flat_map(|(id, size)| crate::cache::blocks_of(id, size, self.blocks.block_bytes))
            .map(|block| (block.slice.0, block.index));
        let stored = self.blocks.stored.borrow().keys().copied().collect();
        (stored, wanted.collect())
    }
}

/// Slice and index of blocks.
type Blocks = HashSet<(u64, u32)>;

/// What is read, in one piece.
pub(super) async fn read(files: &Files<FaultyBlocks>, ino: Ino, at: u64, len: u32) -> Vec<u8> {
    try_read(files, ino, at, len).await.unwrap()
}

pub(super) async fn try_read(
    files: &Files<FaultyBlocks>,
    ino: Ino,
    at: u64,
    len: u32,
) -> FsResult<Vec<u8>> {
    Ok(files.read(ino, at, len).await?.concat())
}
