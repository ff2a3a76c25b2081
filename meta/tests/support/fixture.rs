//! A volume in memory, a client of it with a clock of its own, and inodes made by direct commits: what the
//! tests of files, sessions and jobs start from.

#![allow(dead_code, reason = "not every test binary needs every helper")]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::engine::memory::Memory;
use sluice_meta::engine::{AnyEngine, Counter, Key, Outcome, Txn, Write};
use sluice_meta::error::EngineError;
use sluice_meta::runtime::{Address, LocalFuture, Runtime, Stream};
use sluice_meta::tools::format::{FormatOptions, format};
use sluice_meta::tools::load_volume;
use sluice_meta::types::{
    Attr, ChunkIndex, DirStat, FileKind, Ino, Slice, SliceId, Timestamp, align_4k,
};

/// When the tests begin.
pub(crate) const START: i64 = 1_800_000_000;

/// A clock that the test sets. Every look at it takes a microsecond, pauses take no time at all.
pub(crate) struct Clock {
    now: Cell<Timestamp>,
}

impl Clock {
    pub(crate) fn set(&self, sec: i64) {
        self.now.set(Timestamp { sec, nsec: 0 });
    }
}

impl Runtime for Clock {
    fn sleep(&self, _pause: Duration) -> LocalFuture<'static, ()> {
        Box::pin(async {})
    }

    fn spawn(&self, _task: LocalFuture<'static, ()>) {
        panic!("nothing is spawned by these operations");
    }

    fn connect(&self, _address: &Address) -> LocalFuture<'static, io::Result<Box<dyn Stream>>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn fdatasync(&self, _file: Arc<File>) -> LocalFuture<'static, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn now(&self) -> Timestamp {
        let mut now = self.now.get();
        now.nsec += 1000;
        self.now.set(now);
        now
    }
}

/// A client of a volume in memory.
pub(crate) struct Client {
    pub(crate) meta: Meta,
    pub(crate) memory: Memory,
    pub(crate) clock: Rc<Clock>,
}

impl Client {
    /// Of a new volume.
    pub(crate) fn new() -> Client {
        let options = FormatOptions {
            bucket: Some("/data".into()),
            ..FormatOptions::default()
        };
        Client::with(&options, MetaOptions::default())
    }

    pub(crate) fn with(options: &FormatOptions, mount: MetaOptions) -> Client {
        let memory = Memory::new();
        let options = FormatOptions {
            name: "test".into(),
            ..options.clone()
        };
        let now = Timestamp {
            sec: START,
            nsec: 0,
        };
        block_on(format(&memory, &options, now)).unwrap();
        Client::of(&memory, mount)
    }

    /// Another client of the volume in `memory`.
    pub(crate) fn of(memory: &Memory, mount: MetaOptions) -> Client {
        let setting = block_on(load_volume(memory)).unwrap();
        let clock = Rc::new(Clock {
            now: Cell::new(Timestamp {
                sec: START,
                nsec: 0,
            }),
        });
        let engine = Rc::new(AnyEngine::Memory(memory.clone()));
        let runtime: Rc<dyn Runtime> = Rc::<Clock>::clone(&clock);
        let meta = Meta::new(engine, runtime, Shared::new(setting, mount));
        Client {
            meta,
            memory: memory.clone(),
            clock,
        }
    }
}

impl std::ops::Deref for Client {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

/// The store without an operation between, as another client would change it.
pub(crate) trait Direct {
    /// Applies writes as another client would.
    fn put(&self, writes: Vec<Write>);

    /// Adds an empty regular file to `parent` in everything but its entry.
    fn add_file(&self, ino: Ino, parent: Ino) -> Attr;

    fn attr(&self, ino: Ino) -> Option<Attr>;

    /// Replaces an inode's attributes.
    fn set_attr(&self, ino: Ino, change: impl FnOnce(&mut Attr));

    fn chunk(&self, ino: Ino, index: u32) -> Vec<Slice>;

    fn counter(&self, counter: Counter) -> i64;

    fn dir_stat(&self, dir: Ino) -> Option<DirStat>;

    fn references(&self, id: u64, size: u32) -> Option<i64>;
}

impl Direct for Memory {
    fn put(&self, writes: Vec<Write>) {
        let outcome = self
            .apply(&Txn {
                checks: Vec::new(),
                writes,
            })
            .unwrap();
        assert!(matches!(outcome, Outcome::Committed(_)));
    }

    fn add_file(&self, ino: Ino, parent: Ino) -> Attr {
        let attr = file_attr(parent);
        self.put(vec![
            Write::InsertAttr {
                ino,
                attr: attr.clone(),
            },
            Write::AddCounter {
                counter: Counter::UsedSpace,
                delta: 4096,
            },
            Write::AddCounter {
                counter: Counter::TotalInodes,
                delta: 1,
            },
        ]);
        attr
    }

    fn attr(&self, ino: Ino) -> Option<Attr> {
        self.peek(&Key::Attr(ino))
            .map(|record| record.attr().unwrap())
    }

    fn set_attr(&self, ino: Ino, change: impl FnOnce(&mut Attr)) {
        let old = self.attr(ino).unwrap();
        let mut new = old.clone();
        change(&mut new);
        self.put(vec![Write::UpdateAttr { ino, old, new }]);
    }

    fn chunk(&self, ino: Ino, index: u32) -> Vec<Slice> {
        let record = self.peek(&Key::Chunk {
            ino,
            index: ChunkIndex(index),
        });
        record
            .map(|record| record.slices().unwrap())
            .unwrap_or_default()
    }

    fn counter(&self, counter: Counter) -> i64 {
        let record = self.peek(&Key::Counter(counter));
        record.map_or(0, |record| record.count().unwrap())
    }

    fn dir_stat(&self, dir: Ino) -> Option<DirStat> {
        self.peek(&Key::DirStat(dir))
            .map(|record| record.dir_stat().unwrap())
    }

    fn references(&self, id: u64, size: u32) -> Option<i64> {
        let record = self.peek(&Key::SliceRefs {
            id: SliceId(id),
            size,
        });
        record.map(|record| record.count().unwrap())
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    smol::block_on(future)
}

pub(crate) fn file_attr(parent: Ino) -> Attr {
    let time = Timestamp {
        sec: START - 100,
        nsec: 5,
    };
    Attr {
        flags: 0,
        kind: FileKind::File,
        mode: 0o644,
        uid: 1000,
        gid: 1000,
        atime: time,
        mtime: time,
        ctime: time,
        nlink: 1,
        length: 0,
        rdev: 0,
        parent,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}

/// A freshly written slice.
pub(crate) fn slice(pos: u32, id: u64, len: u32) -> Slice {
    Slice {
        pos,
        id: SliceId(id),
        size: len,
        off: 0,
        len,
    }
}

pub(crate) fn unknown_fate() -> EngineError {
    EngineError::UnknownFate {
        engine: "memory",
        cause: "injected".into(),
    }
}

/// Statistics of a directory that holds one file of this length.
pub(crate) fn stat_of(length: u64) -> DirStat {
    DirStat {
        length: length.cast_signed(),
        space: align_4k(length),
        inodes: 1,
    }
}
