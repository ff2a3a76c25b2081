//! Random sequences of namespace operations against a model of what POSIX and the trash say, with commits
//! that lose: told so (a check is said to have failed) and really (somebody else touched what the commit
//! relies upon); whose answer is lost, applied or not; that find the store gone. Two clients take turns.
//! Every answer must be the model's, and a store that is gone must have done nothing; at the end every name must
//! be the model's, and the volume must add up.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may panic like the test"
)]

#[path = "support/stage.rs"]
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use sluice_meta::client::{Meta, MetaResult};
use sluice_meta::engine::memory::{Memory, Request, Verdict};
use sluice_meta::engine::{AttrFields, Check, Key, Outcome, Txn, Write};
use sluice_meta::error::EngineError;
use sluice_meta::ops::{Caller, Removed, Rename, RenameMode};
use sluice_meta::types::{Attr, FileKind, Ino, Name};

use stage::{Kept, Stage, block_on, errno, new_inode, setting};

const ROOT: Caller = Caller::ROOT;
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENOTEMPTY: i32 = 39;

/// A name in one of the directories there are.
#[derive(Clone, Debug)]
struct Place {
    dir: Index,
    name: usize,
}

#[derive(Clone, Debug)]
enum Op {
    Make(FileKind, Place),
    /// Of any inode there ever was.
    Link(Index, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, RenameMode),
    Open(Place),
    Close(Place),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn place() -> impl Strategy<Value = Place> {
    (any::<Index>(), 0..NAMES.len()).prop_map(|(dir, name)| Place { dir, name })
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        3 => Just(FileKind::Directory),
        3 => Just(FileKind::File),
        1 => Just(FileKind::Symlink),
        1 => Just(FileKind::Fifo),
    ];
    let mode = prop_oneof![
        3 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        2 => Just(RenameMode::Exchange),
    ];
    prop_oneof![
        6 => (kind, place()).prop_map(|(kind, place)| Op::Make(kind, place)),
        3 => (any::<Index>(), place()).prop_map(|(ino, place)| Op::Link(ino, place)),
        3 => place().prop_map(Op::Unlink),
        2 => place().prop_map(Op::Rmdir),
        6 => (place(), place(), mode).prop_map(|(from, to, mode)| Op::Rename(from, to, mode)),
        1 => place().prop_map(Op::Open),
        1 => place().prop_map(Op::Close),
    ]
}

/// What POSIX says, and the trash.
struct Model {
    trash_on: bool,
    kinds: BTreeMap<Ino, FileKind>,
    entries: BTreeMap<(Ino, &'static str), Ino>,
    trash: BTreeMap<String, Ino>,
    open: BTreeMap<Ino, u32>,
}

impl Model {
    fn new(trash_on: bool) -> Model {
        Model {
            trash_on,
            kinds: BTreeMap::from([(Ino::ROOT, FileKind::Directory)]),
            entries: BTreeMap::new(),
            trash: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    /// Directories with a path from the root.
    fn dirs(&self) -> Vec<Ino> {
        let mut found = vec![Ino::ROOT];
        let mut at = 0;
        while at < found.len() {
            let range = (found[at], "")..(Ino(found[at].0 + 1), "");
            let below = self.entries.range(range).map(|(_, ino)| *ino);
            found.extend(below.filter(|ino| self.is_dir(*ino)));
            at += 1;
        }
        found
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.kinds[&ino] == FileKind::Directory
    }

    fn links(&self, ino: Ino) -> usize {
        let named = self.entries.values().chain(self.trash.values());
        named.filter(|other| **other == ino).count()
    }

    fn is_empty(&self, dir: Ino) -> bool {
        self.entries
            .range((dir, "")..(Ino(dir.0 + 1), ""))
            .next()
            .is_none()
    }

    /// Whether `dir` is `above` or below it.
    fn is_below(&self, dir: Ino, above: Ino) -> bool {
        let mut at = dir;
        while at != above {
            match self.entries.iter().find(|(_, ino)| **ino == at) {
                Some(((parent, _), _)) => at = *parent,
                None => return false,
            }
        }
        true
    }

    /// An inode loses a name. Answers whether its data is to be deleted at once.
    fn drop_name(&mut self, parent: Ino, name: &str, ino: Ino) -> bool {
        let full = format!("{parent}-{ino}-{name}");
        // Its entry is gone already: any link left is another one.
        if self.trash_on && !(self.trash.contains_key(&full) && self.links(ino) > 0) {
            self.trash.insert(full, ino);
        }
        self.links(ino) == 0
            && self.kinds[&ino] == FileKind::File
            && self.open.get(&ino).is_none_or(|handles| *handles == 0)
    }

    fn unlink(&mut self, dir: Ino, name: &'static str, rmdir: bool) -> Result<Removed, i32> {
        let ino = *self.entries.get(&(dir, name)).ok_or(ENOENT)?;
        match (rmdir, self.is_dir(ino)) {
            (false, true) => return Err(EISDIR),
            (true, false) => return Err(ENOTDIR),
            (true, true) if !self.is_empty(ino) => return Err(ENOTEMPTY),
            _ => {}
        }
        self.entries.remove(&(dir, name));
        let deleted = self.drop_name(dir, name, ino);
        Ok(Removed {
            ino,
            deleted: deleted.then_some(0),
        })
    }

    fn link(&mut self, ino: Ino, dir: Ino, name: &'static str) -> Result<(), i32> {
        if self.entries.contains_key(&(dir, name)) {
            return Err(EEXIST);
        }
        if self.is_dir(ino) {
            // A removed one is gone, unless the trash has it.
            let there = ino == Ino::ROOT || self.links(ino) > 0;
            return Err(if there { EPERM } else { ENOENT });
        }
        if self.links(ino) == 0 {
            return Err(ENOENT);
        }
        self.entries.insert((dir, name), ino);
        Ok(())
    }

    fn rename(
        &mut self,
        from: (Ino, &'static str),
        to: (Ino, &'static str),
        mode: RenameMode,
    ) -> Result<Option<Removed>, i32> {
        let ino = *self.entries.get(&from).ok_or(ENOENT)?;
        let target = self.entries.get(&to).copied();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(EEXIST),
            (RenameMode::Exchange, None) => return Err(ENOENT),
            (_, Some(target)) if target == ino => return Ok(None),
            (RenameMode::Replace, Some(target)) => match (self.is_dir(ino), self.is_dir(target)) {
                (true, false) => return Err(ENOTDIR),
                (false, true) => return Err(EISDIR),
                _ => {}
            },
            _ => {}
        }
        if self.is_dir(ino) && self.is_below(to.0, ino) {
            return Err(EINVAL);
        }
        if mode == RenameMode::Exchange {
            let target = target.unwrap_or(ino);
            if self.is_dir(target) && self.is_below(from.0, target) {
                return Err(EINVAL);
            }
            self.entries.insert(from, target);
            self.entries.insert(to, ino);
            return Ok(None);
        }
        if let Some(target) = target.filter(|target| self.is_dir(*target))
            && !self.is_empty(target)
        {
            return Err(ENOTEMPTY);
        }
        self.entries.remove(&from);
        self.entries.insert(to, ino);
        Ok(target.map(|target| {
            let deleted = self.drop_name(to.0, to.1, target);
            Removed {
                ino: target,
                deleted: deleted.then_some(0),
            }
        }))
    }
}

/// Lets things happen to commits, as `fates` say, one after the other: 0 is nothing. Answers how many were told
/// that the store is gone. Nothing happens while it is `calm`.
fn interfere(store: &Memory, fates: Vec<u8>, calm: &Arc<AtomicBool>) -> Arc<AtomicU32> {
    let (mut next, other) = (fates.into_iter().cycle(), store.clone());
    let gone = Arc::new(AtomicU32::new(0));
    let told = Arc::clone(&gone);
    let calm = Arc::clone(calm);
    store.on_request(move |request| {
        if calm.load(Ordering::Relaxed) {
            return Verdict::Serve;
        }
        let Request::Commit(txn) = request else {
            return Verdict::Serve;
        };
        match next.next() {
            Some(1) => Verdict::Conflict(0),
            Some(2) => {
                touch_one(&other, txn);
                Verdict::Serve
            }
            // Only of what would be applied: a commit that lost to the same change by the other client cannot be
            // told from one that was applied.
            Some(3) if holds(&other, txn) => Verdict::ServeThenFail(unknown_fate()),
            Some(5) if holds(&other, txn) => Verdict::Fail(unknown_fate()),
            // A close that fails leaves its file to the end of the session.
            Some(4) if !txn.writes.iter().any(ends_handle) => {
                told.fetch_add(1, Ordering::Relaxed);
                Verdict::Fail(EngineError::Unreachable {
                    engine: "memory",
                    address: "here".into(),
                    cause: "injected".into(),
                })
            }
            _ => Verdict::Serve,
        }
    });
    gone
}

/// Whether a commit's checks hold: one more is the first that fails.
fn holds(store: &Memory, txn: &Txn) -> bool {
    let (mut checks, last) = (txn.checks.clone(), txn.checks.len());
    checks.push(Check::NoAttr(Ino::ROOT));
    let writes = Vec::new();
    matches!(
        store.apply(&Txn { checks, writes }),
        Ok(Outcome::Conflict { check }) if check == last
    )
}

fn unknown_fate() -> EngineError {
    EngineError::UnknownFate {
        engine: "memory",
        cause: "injected".into(),
    }
}

fn ends_handle(write: &Write) -> bool {
    matches!(write, Write::DeleteSustained { .. })
}

/// Changes a time of the first inode whose whole record the commit relies upon.
fn touch_one(store: &Memory, txn: &Txn) {
    let whole = txn.checks.iter().find_map(|check| match check {
        Check::Attr {
            ino,
            fields: AttrFields::ALL,
            ..
        } => Some(*ino),
        _ => None,
    });
    let Some(ino) = whole else { return };
    let Some(old) = store
        .peek(&Key::Attr(ino))
        .map(|record| record.attr().unwrap())
    else {
        return;
    };
    let mut new: Attr = old.clone();
    new.atime.sec += 1;
    let writes = vec![Write::UpdateAttr { ino, old, new }];
    store
        .apply(&Txn {
            checks: vec![],
            writes,
        })
        .unwrap();
}

struct Run {
    stage: Stage,
    /// Another process, if there is one.
    other: Option<Meta>,
    /// How often an operation was told that the store is gone.
    gone: Arc<AtomicU32>,
    calm: Arc<AtomicBool>,
    model: Model,
    made: BTreeSet<Ino>,
}

impl Run {
    /// Who does the next thing. Only this process knows its open files: while there are some it is alone.
    fn client(&self, other: bool) -> &Meta {
        let alone = self.model.open.values().any(|handles| *handles > 0);
        match &self.other {
            Some(meta) if other && !alone => meta,
            _ => &self.stage.meta,
        }
    }

    /// Two clients write what they noted of directories: one that finds statistics missing counts also what the
    /// other has not written yet.
    async fn write_stats(&self) {
        let Some(other) = &self.other else { return };
        self.calm.store(true, Ordering::Relaxed);
        other.flush_dir_stats().await.unwrap();
        self.stage.meta.flush_dir_stats().await.unwrap();
        self.calm.store(false, Ordering::Relaxed);
    }

    /// Whether the store was gone, so that nothing can have happened.
    fn refused<T>(&self, answer: &MetaResult<T>) -> bool {
        let gone = self.gone.swap(0, Ordering::Relaxed) > 0;
        assert!(gone || errno(answer) != EIO, "EIO for no reason");
        errno(answer) == EIO
    }

    async fn make(&mut self, kind: FileKind, dir: Ino, name: &'static str, other: bool) {
        let exists = self.model.entries.contains_key(&(dir, name));
        let meta = self.client(other);
        let answer = if kind == FileKind::Symlink {
            meta.symlink(&ROOT, dir, name.as_bytes(), b"t").await
        } else {
            let new = new_inode(kind);
            meta.mknod(&ROOT, dir, name.as_bytes(), &new).await
        };
        let answer = answer.map(|(ino, _)| ino);
        if self.refused(&answer) {
            return;
        }
        assert_eq!(
            errno(&answer),
            if exists { EEXIST } else { 0 },
            "make {kind:?}"
        );
        if let Ok(ino) = answer {
            assert!(self.made.insert(ino), "{ino} was handed out twice");
            self.model.kinds.insert(ino, kind);
            self.model.entries.insert((dir, name), ino);
        }
    }

    async fn close(&mut self, dir: Ino, name: &'static str) {
        let Some(ino) = self.model.entries.get(&(dir, name)).copied() else {
            return;
        };
        self.close_once(ino).await;
    }

    async fn close_once(&mut self, ino: Ino) {
        let Some(handles) = self
            .model
            .open
            .get_mut(&ino)
            .filter(|handles| **handles > 0)
        else {
            return;
        };
        *handles -= 1;
        let last = *handles == 0;
        let gone = last && self.model.links(ino) == 0;
        let answer = self.stage.meta.close(ino).await.unwrap();
        assert_eq!(answer, gone.then_some(0), "close of {ino}");
    }

    async fn step(&mut self, op: Op, other: bool) {
        let dirs = self.model.dirs();
        let at = |place: &Place| (dirs[place.dir.index(dirs.len())], NAMES[place.name]);
        match op {
            Op::Make(kind, place) => {
                let (dir, name) = at(&place);
                self.make(kind, dir, name, other).await;
            }
            Op::Link(ino, place) => {
                let (dir, name) = at(&place);
                let all: Vec<Ino> = self.model.kinds.keys().copied().collect();
                let ino = all[ino.index(all.len())];
                let meta = self.client(other);
                let answer = meta.link(&ROOT, ino, dir, name.as_bytes()).await;
                if self.refused(&answer) {
                    return;
                }
                same(answer.map(|_| ()), self.model.link(ino, dir, name), "link");
            }
            Op::Unlink(place) => {
                let (dir, name) = at(&place);
                let meta = self.client(other);
                let answer = meta.unlink(&ROOT, dir, name.as_bytes()).await;
                if self.refused(&answer) {
                    return;
                }
                same(answer, self.model.unlink(dir, name, false), "unlink");
            }
            Op::Rmdir(place) => {
                let (dir, name) = at(&place);
                let meta = self.client(other);
                let answer = meta.rmdir(&ROOT, dir, name.as_bytes()).await;
                if self.refused(&answer) {
                    return;
                }
                same(answer, self.model.unlink(dir, name, true), "rmdir");
            }
            Op::Rename(from, to, mode) => {
                let (from, to) = (at(&from), at(&to));
                let bytes = |name: &str| Name::copy_from_slice(name.as_bytes());
                let rename = Rename {
                    from_parent: from.0,
                    from_name: bytes(from.1),
                    to_parent: to.0,
                    to_name: bytes(to.1),
                    mode,
                };
                let answer = self.client(other).rename(&ROOT, &rename).await;
                if self.refused(&answer) {
                    return;
                }
                same(answer, self.model.rename(from, to, mode), "rename");
            }
            Op::Open(place) => {
                let (dir, name) = at(&place);
                let file = self.model.entries.get(&(dir, name)).copied();
                let is_file = |ino: &Ino| self.model.kinds[ino] == FileKind::File;
                if let Some(ino) = file.filter(is_file) {
                    self.stage.open(ino);
                    *self.model.open.entry(ino).or_default() += 1;
                }
            }
            Op::Close(place) => {
                let (dir, name) = at(&place);
                self.close(dir, name).await;
            }
        }
    }

    /// Every name is the model's, in the tree and in the trash, and everything adds up.
    async fn check(&self) {
        let named = |(dir, name): &(Ino, &str)| (*dir, Name::copy_from_slice(name.as_bytes()));
        let expected: BTreeMap<(Ino, Name), Ino> = self
            .model
            .entries
            .iter()
            .map(|(key, ino)| (named(key), *ino))
            .collect();
        let mut found = self.stage.walk().await;
        found.retain(|(dir, _), _| !dir.is_trash());
        assert_eq!(found, expected, "names");
        let trash: BTreeMap<Name, Ino> = self
            .model
            .trash
            .iter()
            .map(|(name, ino)| (Name::copy_from_slice(name.as_bytes()), *ino))
            .collect();
        assert_eq!(self.stage.trash().await, trash, "trash");
        self.stage.check_volume(&self.made).await;
        for (ino, handles) in &self.model.open {
            let open = self.stage.meta.shared().open.lock();
            let counted = open.get(ino).map_or(0, |state| state.handles);
            assert_eq!(counted, *handles, "handles of {ino}");
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(answer: MetaResult<T>, expected: Result<T, i32>, op: &str) {
    assert_eq!(answer.map_err(|error| error.errno()), expected, "{op}");
}

/// Who cuts the connections of a Redis server's clients, until dropped.
struct Cutter {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Cutter {
    fn start(mut server: redis::Connection, pauses: Vec<u8>) -> Cutter {
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for pause in pauses.into_iter().cycle() {
                smol::block_on(smol::Timer::after(Duration::from_millis(
                    3 + u64::from(pause),
                )));
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let mut kill = redis::cmd("CLIENT");
                kill.arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]);
                kill.query::<i64>(&mut server).unwrap();
            }
        });
        Cutter {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_none_or(|end| end.is_ok()));
    }
}

/// One sequence, with things that happen to commits as `fates` say: in memory one after the other, in Redis as
/// pauses between two cuts of all connections; in SQLite nothing happens.
fn play(kept: Kept, trash_on: bool, ops: Vec<(Op, bool)>, fates: Vec<u8>) {
    block_on(async {
        let stage = Stage::on(kept, setting(u32::from(trash_on)));
        stage.register();
        stage.apply(vec![Write::InitDirStat(Ino::ROOT)]);
        let cutter = stage
            .redis()
            .map(|server| Cutter::start(server, fates.clone()));
        // At least every other commit wins.
        let fates = fates.into_iter().flat_map(|fate| [fate, 0]).collect();
        let calm = Arc::default();
        let gone = interfere(&stage.store, fates, &calm);
        let other = (kept == Kept::Memory).then(|| stage.colleague());
        let mut run = Run {
            stage,
            other,
            gone,
            calm,
            model: Model::new(trash_on),
            made: BTreeSet::new(),
        };
        for (op, other) in ops {
            run.step(op, other).await;
            run.write_stats().await;
        }
        drop(cutter);
        run.stage.store.clear_hook();
        run.check().await;
        // Whoever still holds files lets go of them.
        for ino in run.made.clone() {
            while run.model.open.get(&ino).is_some_and(|handles| *handles > 0) {
                run.close_once(ino).await;
            }
        }
        run.check().await;
        assert!(run.stage.sustained().is_empty());
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn operations_agree_with_the_model(
        trash_on: bool,
        ops in proptest::collection::vec((op(), any::<bool>()), 1..200),
        fates in proptest::collection::vec(0u8..6, 1..12),
    ) {
        play(Kept::Memory, trash_on, ops, fates);
    }
}

proptest! {
    // Each makes a file of its own or starts a server: some 50 ms.
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn operations_agree_with_the_model_in_sqlite(
        trash_on: bool,
        ops in proptest::collection::vec((op(), any::<bool>()), 1..200),
    ) {
        play(Kept::Sqlite, trash_on, ops, vec![0]);
    }

    #[test]
    fn operations_agree_with_the_model_in_redis_with_connections_cut(
        trash_on: bool,
        ops in proptest::collection::vec((op(), any::<bool>()), 1..200),
        pauses in proptest::collection::vec(0u8..20, 1..8),
    ) {
        play(Kept::Redis, trash_on, ops, pauses);
    }
}
