//! A volume with a clock that stands still, in any of the stores, for tests of the operations.

#[path = "redis_server.rs"]
mod redis_server;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sluice_meta::client::{Meta, MetaOptions, MetaResult, Shared};
use sluice_meta::engine::memory::Memory;
use sluice_meta::engine::redis::Redis;
use sluice_meta::engine::sqlite::{Database, OpenMode, Sqlite};
use sluice_meta::engine::{AnyEngine, Check, Counter, Engine, Key, Record, Txn, Write};
use sluice_meta::ops::{Caller, NewInode, Rename, RenameMode};
use sluice_meta::runtime::{Address, LocalFuture, Runtime, Stream};
use sluice_meta::types::{Attr, DirStat, FileKind, Ino, Name, SessionId, Timestamp, align_4k};
use sluice_meta::volume::Setting;

use redis_server::RedisServer;

/// 2026-03-01 12:00:00 UTC.
pub(crate) const NOON: i64 = 1_772_366_400;
/// Session of the stage, when it has one.
pub(crate) const SESSION: SessionId = SessionId(7);

thread_local! {
    /// Tasks of this thread: the connection of the Redis engine lives in one.
    static TASKS: Rc<smol::LocalExecutor<'static>> = Rc::new(smol::LocalExecutor::new());
}

/// Runs `work` to its end, and this thread's tasks meanwhile.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let tasks = TASKS.with(Rc::clone);
    smol::block_on(tasks.run(work))
}

/// The wall clock stands still until a test moves it; pauses and everything else are real.
pub(crate) struct Clock {
    now: Cell<Timestamp>,
    tasks: Rc<smol::LocalExecutor<'static>>,
}

impl Clock {
    fn new(tasks: Rc<smol::LocalExecutor<'static>>) -> Rc<Clock> {
        Rc::new(Clock {
            now: Cell::new(Timestamp { sec: NOON, nsec: 0 }),
            tasks,
        })
    }

    /// Sets the clock.
    #[allow(dead_code, reason = "not every test binary needs every helper")]
    pub(crate) fn set(&self, sec: i64) {
        self.now.set(Timestamp { sec, nsec: 0 });
    }
}

/// Another client of a store in memory, at noon; may be made and used within a hook.
#[allow(dead_code, reason = "not every test binary needs every helper")]
pub(crate) fn other_client(store: &Memory, setting: Setting) -> Meta {
    let runtime = Clock::new(Rc::default()) as Rc<dyn Runtime>;
    let engine = Rc::new(AnyEngine::Memory(store.clone()));
    Meta::new(
        engine,
        runtime,
        Shared::new(setting, MetaOptions::default()),
    )
}

impl Runtime for Clock {
    fn sleep(&self, pause: Duration) -> LocalFuture<'static, ()> {
        Box::pin(async move {
            smol::Timer::after(pause).await;
        })
    }

    fn spawn(&self, task: LocalFuture<'static, ()>) {
        self.tasks.spawn(task).detach();
    }

    fn connect(&self, address: &Address) -> LocalFuture<'static, io::Result<Box<dyn Stream>>> {
        let Address::Unix(path) = address.clone() else {
            return Box::pin(async { Err(io::ErrorKind::Unsupported.into()) });
        };
        Box::pin(async move {
            let stream = smol::net::unix::UnixStream::connect(path).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn fdatasync(&self, _file: Arc<File>) -> LocalFuture<'static, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn now(&self) -> Timestamp {
        self.now.get()
    }
}

/// Where the volume is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "not every test binary needs every store")]
pub(crate) enum Kept {
    Memory,
    Sqlite,
    Redis,
}

/// Another client of the store, which looks and meddles between two steps of a test: its tasks run only
/// while it does.
struct Side {
    engine: AnyEngine,
    tasks: Rc<smol::LocalExecutor<'static>>,
}

impl Side {
    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        smol::block_on(self.tasks.run(work))
    }
}

/// What a store needs besides its engine while it is used.
enum Home {
    Nothing,
    Folder(#[expect(dead_code, reason = "kept until the end")] tempfile::TempDir),
    Server(RedisServer),
}

/// A formatted volume and one core's access to it.
pub(crate) struct Stage {
    /// The store, if it is in memory: for hooks. Else an empty one.
    pub(crate) store: Memory,
    pub(crate) meta: Meta,
    side: Side,
    /// After the engines: dropped when its connections are gone.
    home: Home,
    pub(crate) clock: Rc<Clock>,
}

/// Settings of most tests.
pub(crate) fn setting(trash_days: u32) -> Setting {
    Setting {
        dir_stats: true,
        trash_days,
        ..Setting::default()
    }
}

fn dir_attr(mode: u16) -> Attr {
    let noon = Timestamp { sec: NOON, nsec: 0 };
    Attr {
        flags: 0,
        kind: FileKind::Directory,
        mode,
        uid: 0,
        gid: 0,
        atime: noon,
        mtime: noon,
        ctime: noon,
        nlink: 2,
        length: 4096,
        rdev: 0,
        parent: Ino::ROOT,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}

/// What an operation answered, as an error number; 0 for success.
#[allow(dead_code, reason = "not every test binary needs every helper")]
pub(crate) fn errno<T>(answer: &MetaResult<T>) -> i32 {
    answer.as_ref().err().map_or(0, |error| error.errno())
}

/// Of any kind, as most tests make them.
pub(crate) fn new_inode(kind: FileKind) -> NewInode {
    NewInode {
        kind,
        mode: 0o755,
        umask: 0o022,
        rdev: 0,
    }
}

#[allow(dead_code, reason = "not every test binary needs every helper")]
impl Stage {
    /// As `format` leaves a volume.
    pub(crate) fn new(setting: Setting) -> Stage {
        Stage::on(Kept::Memory, setting)
    }

    pub(crate) fn on(kept: Kept, setting: Setting) -> Stage {
        let options = MetaOptions {
            read_only: false,
            skip_dir_mtime: Duration::ZERO,
            ..MetaOptions::default()
        };
        Stage::with(kept, setting, options)
    }

    pub(crate) fn with(kept: Kept, setting: Setting, options: MetaOptions) -> Stage {
        let store = Memory::new();
        let clock = Clock::new(TASKS.with(Rc::clone));
        let runtime = Rc::clone(&clock) as Rc<dyn Runtime>;
        let tasks = Rc::new(smol::LocalExecutor::new());
        let aside = Clock::new(Rc::clone(&tasks)) as Rc<dyn Runtime>;
        let (engine, other, home) = match kept {
            Kept::Memory => (
                AnyEngine::Memory(store.clone()),
                AnyEngine::Memory(store.clone()),
                Home::Nothing,
            ),
            Kept::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("meta.db");
                let database = Database::open(&path, OpenMode::Create).unwrap();
                let connect =
                    |runtime| AnyEngine::Sqlite(Sqlite::connect(&database, runtime).unwrap());
                (
                    connect(Rc::clone(&runtime)),
                    connect(aside),
                    Home::Folder(folder),
                )
            }
            Kept::Redis => {
                let server = RedisServer::start(&[]);
                let engine = block_on(Redis::connect(&server.url(), Rc::clone(&runtime))).unwrap();
                let other =
                    smol::block_on(tasks.run(Redis::connect(&server.url(), aside))).unwrap();
                (
                    AnyEngine::Redis(engine),
                    AnyEngine::Redis(other),
                    Home::Server(server),
                )
            }
        };
        let side = Side {
            engine: other,
            tasks,
        };
        let trash_on = setting.trash_days > 0;
        let meta = Meta::new(Rc::new(engine), runtime, Shared::new(setting, options));
        let stage = Stage {
            store,
            meta,
            side,
            home,
            clock,
        };
        let mut writes = vec![Write::InsertAttr {
            ino: Ino::ROOT,
            attr: dir_attr(0o777),
        }];
        if trash_on {
            writes.push(Write::InsertAttr {
                ino: Ino::TRASH,
                attr: dir_attr(0o555),
            });
        }
        stage.apply(writes);
        stage
    }

    /// A client that looks at the Redis server the volume is in.
    pub(crate) fn redis_client(&self) -> redis::Connection {
        match &self.home {
            Home::Server(server) => server.client(),
            Home::Nothing | Home::Folder(_) => panic!("this volume is not in Redis"),
        }
    }

    /// Another process on the same volume: it remembers nothing.
    pub(crate) fn colleague(&self) -> Meta {
        let setting = Setting::clone(&self.meta.shared().setting());
        let shared = Shared::new(setting, self.meta.shared().options.clone());
        let runtime = Rc::clone(&self.clock) as Rc<dyn Runtime>;
        Meta::new(Rc::clone(self.meta.engine()), runtime, shared)
    }

    /// Another client of the Redis server, if the volume is in one.
    pub(crate) fn redis(&self) -> Option<redis::Connection> {
        match &self.home {
            Home::Server(server) => Some(server.client()),
            Home::Nothing | Home::Folder(_) => None,
        }
    }

    fn in_memory(&self) -> bool {
        matches!(self.home, Home::Nothing)
    }

    /// Changes the store behind the operations' back.
    pub(crate) fn apply(&self, writes: Vec<Write>) {
        let txn = Txn {
            checks: vec![],
            writes,
        };
        if self.in_memory() {
            // Past the hooks.
            self.store.apply(&txn).unwrap();
        } else {
            self.side.run(self.side.engine.commit(txn)).unwrap();
        }
    }

    /// What the store holds.
    pub(crate) fn peek(&self, key: Key) -> Option<Record> {
        if self.in_memory() {
            return self.store.peek(&key);
        }
        let keys = [key];
        self.side
            .run(self.side.engine.read(&keys))
            .unwrap()
            .pop()
            .flatten()
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, time: Duration) {
        let now = self.clock.now.get();
        let nsec = now.nsec + time.subsec_nanos();
        self.clock.now.set(Timestamp {
            sec: now.sec + time.as_secs().cast_signed() + i64::from(nsec / 1_000_000_000),
            nsec: nsec % 1_000_000_000,
        });
    }

    /// The process gets a session.
    pub(crate) fn register(&self) {
        self.meta
            .shared()
            .session
            .store(SESSION.0, std::sync::atomic::Ordering::Release);
    }

    /// A handle of `ino` is open in this process.
    pub(crate) fn open(&self, ino: Ino) {
        self.meta.opened(ino);
    }

    pub(crate) fn attr(&self, ino: Ino) -> Option<Attr> {
        self.peek(Key::Attr(ino))
            .map(|record| record.attr().unwrap())
    }

    /// Changes a record behind the operations' back.
    pub(crate) fn patch(&self, ino: Ino, change: impl FnOnce(&mut Attr)) {
        let old = self.attr(ino).unwrap();
        let mut new = old.clone();
        change(&mut new);
        self.apply(vec![Write::UpdateAttr { ino, old, new }]);
    }

    pub(crate) fn entry(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        let key = Key::Dentry {
            parent,
            name: Name::copy_from_slice(name),
        };
        self.peek(key).map(|record| record.dentry().unwrap().ino)
    }

    pub(crate) fn parents(&self, ino: Ino) -> BTreeMap<Ino, u32> {
        let record = self.peek(Key::Parents(ino));
        record
            .map(|it| it.parents().unwrap().into_iter().collect())
            .unwrap_or_default()
    }

    pub(crate) fn counter(&self, counter: Counter) -> i64 {
        self.peek(Key::Counter(counter)).unwrap().count().unwrap()
    }

    pub(crate) fn dir_stat(&self, ino: Ino) -> Option<DirStat> {
        self.peek(Key::DirStat(ino))
            .map(|record| record.dir_stat().unwrap())
    }

    pub(crate) fn sustained(&self) -> BTreeSet<Ino> {
        let record = self.peek(Key::Sustained(SESSION));
        record
            .map(|it| it.inodes().unwrap().into_iter().collect())
            .unwrap_or_default()
    }

    pub(crate) async fn make(&self, kind: FileKind, parent: Ino, name: &str) -> MetaResult<Ino> {
        let new = new_inode(kind);
        let made = self
            .meta
            .mknod(&Caller::ROOT, parent, name.as_bytes(), &new)
            .await;
        made.map(|(ino, _)| ino)
    }

    pub(crate) async fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        self.make(FileKind::Directory, parent, name).await.unwrap()
    }

    pub(crate) async fn file(&self, parent: Ino, name: &str) -> Ino {
        self.make(FileKind::File, parent, name).await.unwrap()
    }

    /// Names and inodes of a directory, read in small pages.
    pub(crate) async fn list(&self, dir: Ino) -> BTreeMap<Name, Ino> {
        let mut found = BTreeMap::new();
        let mut cursor = None;
        loop {
            let page = self
                .meta
                .readdir(dir, cursor.as_ref(), 3, false)
                .await
                .unwrap();
            found.extend(
                page.entries
                    .into_iter()
                    .map(|entry| (entry.name, entry.ino)),
            );
            match page.next {
                Some(next) => cursor = Some(next),
                None => return found,
            }
        }
    }

    /// Every entry of the volume, trash included: (directory, name) -> inode.
    pub(crate) async fn walk(&self) -> BTreeMap<(Ino, Name), Ino> {
        let mut entries = BTreeMap::new();
        let mut todo = vec![Ino::ROOT, Ino::TRASH];
        while let Some(dir) = todo.pop() {
            for (name, ino) in self.list(dir).await {
                if self
                    .attr(ino)
                    .is_some_and(|attr| attr.kind == FileKind::Directory)
                {
                    todo.push(ino);
                }
                entries.insert((dir, name), ino);
            }
        }
        entries
    }

    /// Statistics of directories are those of their entries.
    async fn check_dir_stats(&self, entries: &BTreeMap<(Ino, Name), Ino>) {
        self.meta.flush_dir_stats().await.unwrap();
        let mut expected: BTreeMap<Ino, DirStat> = BTreeMap::new();
        for ((dir, _), ino) in entries {
            let attr = self.attr(*ino).unwrap();
            let is_file = attr.kind == FileKind::File;
            let stat = expected.entry(*dir).or_default();
            stat.length += if is_file {
                attr.length.cast_signed()
            } else {
                0
            };
            stat.space += if is_file { align_4k(attr.length) } else { 4096 };
            stat.inodes += 1;
            if attr.kind == FileKind::Directory {
                expected.entry(*ino).or_default();
            }
        }
        for (dir, expected) in expected.into_iter().filter(|(dir, _)| *dir != Ino::TRASH) {
            let attr = self.attr(dir).unwrap();
            // Without statistics until somebody changes something in it: the root, and what is in the trash.
            let stat = self.dir_stat(dir);
            if stat.is_none() && (dir == Ino::ROOT || attr.in_trash() || attr.parent == Ino::TRASH)
            {
                continue;
            }
            assert_eq!(stat, Some(expected), "statistics of directory {dir}");
        }
    }

    /// Holds the whole volume against what a check of it would demand. `made`: every inode ever created.
    pub(crate) async fn check_volume(&self, made: &BTreeSet<Ino>) {
        let entries = self.walk().await;
        self.check_dir_stats(&entries).await;
        let mut links: BTreeMap<Ino, BTreeMap<Ino, u32>> = BTreeMap::new();
        let mut subdirs: BTreeMap<Ino, u32> = BTreeMap::new();
        for ((dir, name), ino) in &entries {
            let attr = self
                .attr(*ino)
                .unwrap_or_else(|| panic!("{name:?} in {dir} dangles"));
            *links.entry(*ino).or_default().entry(*dir).or_default() += 1;
            if attr.kind == FileKind::Directory {
                *subdirs.entry(*dir).or_default() += 1;
            }
        }
        // SQL has no list of parents: it answers from the entries, hard-linked or not.
        let derived = matches!(self.home, Home::Folder(_));
        let (mut space, mut inodes) = (0, 0);
        for (ino, from) in &links {
            let attr = self.attr(*ino).unwrap();
            space += if attr.kind == FileKind::File {
                align_4k(attr.length)
            } else {
                4096
            };
            inodes += 1;
            let count: u32 = from.values().sum();
            if attr.parent == Ino::NONE {
                assert_eq!(self.parents(*ino), *from, "parents of hard-linked {ino}");
                assert_eq!(attr.nlink, count, "links of {ino}");
            } else {
                assert_eq!(
                    from.get(&attr.parent),
                    Some(&1),
                    "{ino} says it is in {}",
                    attr.parent
                );
                assert_eq!(count, 1, "{ino} has several names but one parent");
                assert!(
                    derived || self.parents(*ino).is_empty(),
                    "{ino} has parents twice"
                );
            }
            if attr.kind == FileKind::Directory && *ino < Ino::TRASH {
                let expected = 2 + subdirs.get(ino).copied().unwrap_or(0);
                assert_eq!(attr.nlink, expected, "links of directory {ino}");
            }
        }
        let root = self.attr(Ino::ROOT).unwrap();
        assert_eq!(
            root.nlink,
            2 + subdirs.get(&Ino::ROOT).copied().unwrap_or(0),
            "root's links"
        );
        let sustained = self.sustained();
        for ino in made {
            let Some(attr) = self.attr(*ino).filter(|_| !links.contains_key(ino)) else {
                continue;
            };
            assert!(sustained.contains(ino), "{ino} is lost");
            assert_eq!(attr.nlink, 0, "sustained {ino} has links");
            space += align_4k(attr.length);
            inodes += 1;
        }
        assert_eq!(self.counter(Counter::UsedSpace), space, "used space");
        assert_eq!(self.counter(Counter::TotalInodes), inodes, "inodes");
    }

    /// How much trash there is: names in all hour directories.
    pub(crate) async fn trash(&self) -> BTreeMap<Name, Ino> {
        let mut found = BTreeMap::new();
        for hour in self.list(Ino::TRASH).await.into_values() {
            found.extend(self.list(hour).await);
        }
        found
    }

    pub(crate) async fn rename(
        &self,
        caller: &Caller,
        from: (Ino, &str),
        to: (Ino, &str),
        mode: RenameMode,
    ) -> MetaResult<Option<sluice_meta::ops::Removed>> {
        let bytes = |name: &str| Name::copy_from_slice(name.as_bytes());
        let rename = Rename {
            from_parent: from.0,
            from_name: bytes(from.1),
            to_parent: to.0,
            to_name: bytes(to.1),
            mode,
        };
        self.meta.rename(caller, &rename).await
    }

    /// The checks of the last commit that `work` sends.
    pub(crate) async fn checks_of<T>(&self, work: impl Future<Output = T>) -> (T, Vec<Check>) {
        use sluice_meta::engine::memory::{Request, Verdict};
        let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        self.store.on_request(move |request| {
            if let Request::Commit(txn) = request {
                *sink.lock() = txn.checks.clone();
            }
            Verdict::Serve
        });
        let answer = work.await;
        self.store.clear_hook();
        let checks = std::mem::take(&mut *seen.lock());
        (answer, checks)
    }
}

/// A record of bytes, for comparisons.
#[allow(dead_code, reason = "not every test binary needs every helper")]
pub(crate) fn bytes_of(record: Option<Record>) -> Option<Vec<u8>> {
    record.map(|record| record.bytes().unwrap().to_vec())
}
