//! Operations on trees, and the jobs that empty the trash: on the engine in memory, with commits that conflict,
//! fail or are the last thing a client ever did.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may panic like the test"
)]

#[path = "support/stage.rs"]
mod stage;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use sluice_meta::client::MetaResult;
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Counter, Engine, Item, Key, Scan, Txn, Write};
use sluice_meta::error::{EngineError, MetaError};
use sluice_meta::jobs::trash::FileSink;
use sluice_meta::jobs::{DeadSlice, DeletedFile};
use sluice_meta::limits;
use sluice_meta::ops::clone::{CloneAttrs, CloneTree, Cloned};
use sluice_meta::ops::credentials::Credentials;
use sluice_meta::ops::remove_tree::{TreeEnd, TreeRemoval, TreeWatch};
use sluice_meta::ops::{Caller, Disposal, NewInode, Removed, RenameMode, WriteCommit, XattrMode};
use sluice_meta::runtime::Runtime;
use sluice_meta::tools::restore::{RestoreScope, Restored};
use sluice_meta::types::{
    Attr, CHUNK_BYTES, ChunkIndex, Dentry, FileKind, Ino, Name, Slice, SliceId, attr_flags,
};

use stage::{Kept, NOON, Stage, block_on, bytes_of, errno, other_client, setting};

const ROOT: Caller = Caller::ROOT;
static SUPER: Credentials = Credentials::ROOT;
const USER: Caller = Caller {
    uid: 1000,
    gid: 1000,
    pid: 1,
};
const NEW_FILE: NewInode = NewInode {
    kind: FileKind::File,
    mode: 0o644,
    umask: 0,
    rdev: 0,
};
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;

/// Collects what a walk lets go of.
#[derive(Default)]
struct Watch {
    gone: Cell<u64>,
    files: RefCell<Vec<DeletedFile>>,
    stop_after: Option<u64>,
}

impl TreeWatch for Watch {
    fn removed(&self, removed: &Removed) {
        self.gone.set(self.gone.get() + 1);
        if let Some(length) = removed.deleted {
            let ino = removed.ino;
            self.files.borrow_mut().push(DeletedFile { ino, length });
        }
    }

    fn stopped(&self) -> bool {
        self.stop_after.is_some_and(|most| self.gone.get() >= most)
    }
}

impl FileSink for Watch {
    fn deleted(&self, file: DeletedFile) {
        self.files.borrow_mut().push(file);
    }
}

/// A slice of `len` bytes at the start of a chunk, with an id of its own.
async fn slice(stage: &Stage, pos: u32, len: u32) -> Slice {
    Slice {
        pos,
        id: stage.meta.alloc_slice().await.unwrap(),
        size: len,
        off: 0,
        len,
    }
}

async fn write(stage: &Stage, ino: Ino, slices: Vec<(u32, Slice)>, length: u64) {
    let slices = slices.into_iter();
    let commit = WriteCommit {
        slices: slices.map(|(at, slice)| (ChunkIndex(at), slice)).collect(),
        length,
        mtime: stage.meta.now(),
        kill_suid: false,
    };
    stage.meta.write(ino, &commit).await.unwrap();
}

/// A tree with one of everything below `/src`: answers `src`.
async fn source(stage: &Stage) -> Ino {
    let src = stage.mkdir(Ino::ROOT, "src").await;
    let sub = stage.mkdir(src, "sub").await;
    let deep = stage.mkdir(sub, "deep").await;
    stage.mkdir(src, "empty").await;
    let file = stage.file(src, "file").await;
    let (first, second) = (slice(stage, 0, 9000).await, slice(stage, 4096, 100).await);
    let hole = Slice::hole(20_000, 4096);
    write(
        stage,
        file,
        vec![(0, first), (0, second), (0, hole)],
        30_000,
    )
    .await;
    let xattrs = [("user.a", "1"), ("user.b", "22")];
    for (name, value) in xattrs {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        stage
            .meta
            .setxattr(&ROOT, file, name, value, XattrMode::Any)
            .await
            .unwrap();
    }
    stage
        .meta
        .setxattr(&ROOT, sub, b"user.dir", b"x", XattrMode::Any)
        .await
        .unwrap();
    stage
        .meta
        .symlink(&ROOT, sub, b"link", b"../file")
        .await
        .unwrap();
    stage.make(FileKind::Fifo, deep, "fifo").await.unwrap();
    let long = stage.file(deep, "long").await;
    let tail = slice(stage, 0, 5).await;
    write(stage, long, vec![(40, tail)], 40 * CHUNK_BYTES + 5).await;
    stage.meta.link(&ROOT, file, deep, b"twin").await.unwrap();
    for n in 0..7 {
        stage.file(deep, &format!("f{n}")).await;
    }
    let frozen = stage.file(sub, "frozen").await;
    stage.patch(frozen, |attr| attr.flags = attr_flags::IMMUTABLE);
    stage.patch(deep, |attr| {
        attr.mode = 0o3750;
        attr.uid = 1000;
    });
    stage.patch(file, |attr| attr.mode = 0o4755);
    src
}

fn tree<'a>(source: Ino, name: &'a str, who: &'a Credentials) -> CloneTree<'a> {
    CloneTree {
        who,
        source,
        to_parent: Ino::ROOT,
        to_name: name.as_bytes(),
        attrs: CloneAttrs::Preserve,
        width: 3,
        progress: &|_| {},
    }
}

async fn clone(stage: &Stage, source: Ino, name: &str) -> MetaResult<Cloned> {
    let tree = tree(source, name, &SUPER);
    stage.meta.clone_tree(&tree).await
}

/// What there is to see of an inode: attributes, xattrs, target, chunk lists.
type Seen = (
    Attr,
    BTreeMap<Name, Vec<u8>>,
    Option<Vec<u8>>,
    Vec<Vec<Slice>>,
);

/// Every path below `dir` with all there is to see of it, inode numbers and parents left out.
async fn picture(stage: &Stage, dir: Ino) -> BTreeMap<Vec<u8>, Seen> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(Vec::new(), dir)];
    while let Some((path, ino)) = todo.pop() {
        let mut attr = stage.attr(ino).unwrap();
        attr.parent = Ino::NONE;
        if attr.kind == FileKind::Directory {
            for (name, child) in stage.list(ino).await {
                todo.push(([&path[..], b"/", &name[..]].concat(), child));
            }
        } else {
            // Hard links become files of their own.
            attr.nlink = 1;
        }
        let mut xattrs = BTreeMap::new();
        for name in stage.meta.listxattr(ino).await.unwrap() {
            let value = stage.meta.getxattr(ino, &name).await.unwrap();
            xattrs.insert(name, value.to_vec());
        }
        let target = bytes_of(stage.peek(Key::Symlink(ino)));
        let mut chunks = Vec::new();
        for index in 0..=41 {
            chunks.push(stage.meta.chunk(ino, ChunkIndex(index)).await.unwrap());
        }
        found.insert(path, (attr, xattrs, target, chunks));
    }
    found
}

async fn scanned(stage: &Stage, scan: Scan) -> Vec<Item> {
    let mut items = Vec::new();
    let mut cursor = None;
    loop {
        let page = stage
            .meta
            .engine()
            .scan(&scan, cursor.as_ref(), 100)
            .await
            .unwrap();
        items.extend(page.items);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return items,
        }
    }
}

/// Reclaims every deleted file and forgets every slice that this frees.
async fn reclaim_all(stage: &Stage) -> Vec<SliceId> {
    let mut freed = Vec::new();
    for item in scanned(stage, Scan::DeletedFiles).await {
        let Item::DeletedFile { ino, length, .. } = item else {
            panic!("{item:?}")
        };
        for (id, size) in stage.meta.reclaim(ino, length).await.unwrap() {
            stage.meta.forget_slice(id, size).await.unwrap();
            freed.push(id);
        }
    }
    freed
}

/// Nothing is lost and nothing is left over: every inode has a name, every chunk list a file, every slice as
/// many references as records.
async fn check_nothing_leaked(stage: &Stage) {
    stage.check_volume(&BTreeSet::new()).await;
    let named: BTreeSet<Ino> = stage.walk().await.into_values().collect();
    for item in scanned(stage, Scan::Inodes).await {
        let Item::Inode { ino, .. } = item else {
            panic!("{item:?}")
        };
        assert!(
            ino == Ino::ROOT || ino == Ino::TRASH || named.contains(&ino),
            "{ino} has no name"
        );
    }
    let mut records: BTreeMap<(SliceId, u32), i64> = BTreeMap::new();
    let mut count = |id: SliceId, size: u32| *records.entry((id, size)).or_default() += 1;
    for item in scanned(stage, Scan::AllChunks).await {
        let Item::FileChunk { ino, slices, .. } = item else {
            panic!("{item:?}")
        };
        assert!(named.contains(&ino), "a chunk of {ino}, which is gone");
        let stored = slices.iter().filter(|slice| slice.id != SliceId::HOLE);
        stored.for_each(|slice| count(slice.id, slice.size));
    }
    for item in scanned(stage, Scan::DelayedSlices).await {
        let Item::DelayedSlices { slices, .. } = item else {
            panic!("{item:?}")
        };
        slices.into_iter().for_each(|(id, size)| count(id, size));
    }
    for ((id, size), records) in records {
        let refs = stage.peek(Key::SliceRefs { id, size });
        let refs = refs.map(|refs| refs.count().unwrap());
        assert_eq!(refs, Some(records), "references of slice {}", id.0);
    }
    assert_eq!(scanned(stage, Scan::DeadSlices).await, [], "slices left");
    assert_eq!(scanned(stage, Scan::DeletedFiles).await, [], "files left");
    assert_eq!(scanned(stage, Scan::Detached).await, [], "trees left");
}

fn removal<'a>(who: &'a Credentials, disposal: Disposal, watch: &'a Watch) -> TreeRemoval<'a> {
    TreeRemoval {
        who,
        disposal,
        width: 3,
        batch: limits::UNLINK_BATCH,
        watch,
    }
}

async fn remove(stage: &Stage, name: &str, disposal: Disposal) -> MetaResult<u64> {
    let watch = Watch::default();
    let how = removal(&SUPER, disposal, &watch);
    let end = stage
        .meta
        .remove_tree(Ino::ROOT, name.as_bytes(), &how)
        .await?;
    assert_eq!(end, TreeEnd::Complete);
    Ok(watch.gone.get())
}

/// Takes away the flags that protect entries below `dir`.
async fn thaw(stage: &Stage, dir: Ino) {
    for ((_, name), ino) in stage.walk().await {
        if &name[..] == b"frozen" {
            stage.patch(ino, |attr| attr.flags = 0);
        }
    }
    assert!(stage.attr(dir).is_some());
}

fn lost() -> EngineError {
    EngineError::Unreachable {
        engine: "memory",
        address: "here".into(),
        cause: "killed".into(),
    }
}

fn unknown_fate() -> EngineError {
    EngineError::UnknownFate {
        engine: "memory",
        cause: "connection lost".into(),
    }
}

/// Counts the commits of `work`.
async fn commits_of<T>(stage: &Stage, work: impl Future<Output = T>) -> (T, u32) {
    let commits = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&commits);
    stage.store.on_request(move |request| {
        if matches!(request, Request::Commit(_)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Verdict::Serve
    });
    let answer = work.await;
    stage.store.clear_hook();
    (answer, commits.load(Ordering::Relaxed))
}

/// The client is killed at its `nth` commit: this one and everything after it never reaches the store.
fn kill_at(stage: &Stage, nth: u32) {
    let mut commits = 0;
    stage.store.on_request(move |request| {
        commits += u32::from(matches!(request, Request::Commit(_)));
        match commits {
            n if n < nth => Verdict::Serve,
            _ => Verdict::Fail(lost()),
        }
    });
}

#[test]
fn a_clone_is_its_source() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let src = source(&stage).await;
        let before = picture(&stage, src).await;
        stage.pass(Duration::from_secs(100));
        let made = clone(&stage, src, "dst").await.unwrap();
        assert_eq!(stage.entry(Ino::ROOT, b"dst"), Some(made.ino));
        assert_eq!(picture(&stage, made.ino).await, before);
        assert_eq!(made.inodes as usize, before.len());
        check_nothing_leaked(&stage).await;
        // And its own: removing the source leaves it whole, removing both leaves nothing.
        thaw(&stage, src).await;
        let before = picture(&stage, made.ino).await;
        remove(&stage, "src", Disposal::Delete).await.unwrap();
        assert_eq!(reclaim_all(&stage).await, [], "all slices are shared");
        assert_eq!(picture(&stage, made.ino).await, before);
        check_nothing_leaked(&stage).await;
        let gone = remove(&stage, "dst", Disposal::Delete).await.unwrap();
        assert_eq!(gone as usize, before.len());
        assert_eq!(reclaim_all(&stage).await.len(), 3);
        check_nothing_leaked(&stage).await;
        assert_eq!(stage.counter(Counter::TotalInodes), 0);
    });
}

#[test]
fn a_fresh_clone_belongs_to_the_caller() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let src = source(&stage).await;
        stage.pass(Duration::from_secs(100));
        let who = Credentials {
            caller: USER,
            groups: vec![],
        };
        stage.patch(Ino::ROOT, |attr| attr.mode = 0o777);
        let fresh = CloneTree {
            attrs: CloneAttrs::Fresh { umask: 0o027 },
            ..tree(src, "dst", &who)
        };
        let made = stage.meta.clone_tree(&fresh).await.unwrap();
        let now = stage.meta.now();
        for (path, (attr, ..)) in picture(&stage, made.ino).await {
            let path = path.escape_ascii();
            assert_eq!((attr.uid, attr.gid), (1000, 1000), "{path}");
            assert_eq!(attr.mode & 0o027, 0, "{path}");
            assert_eq!(
                (attr.atime, attr.mtime, attr.ctime),
                (now, now, now),
                "{path}"
            );
        }
        let file = stage.entry(made.ino, b"file").unwrap();
        assert_eq!(stage.attr(file).unwrap().mode, 0o4750);
        check_nothing_leaked(&stage).await;
    });
}

#[test]
fn what_cannot_be_cloned() {
    block_on(async {
        let stage = Stage::new(setting(1));
        let src = source(&stage).await;
        let file = stage.entry(src, b"file").unwrap();
        let secret = stage.mkdir(src, "secret").await;
        stage.patch(secret, |attr| attr.mode = 0o700);
        let hidden = stage.file(src, "hidden").await;
        stage.patch(hidden, |attr| attr.mode = 0o600);
        let removed = stage.file(Ino::ROOT, "removed").await;
        stage
            .meta
            .unlink(&ROOT, Ino::ROOT, b"removed")
            .await
            .unwrap();
        let open = stage.mkdir(Ino::ROOT, "open").await;
        stage.patch(open, |attr| attr.mode = 0o777);
        stage.patch(Ino::ROOT, |attr| attr.mode = 0o755);
        let user = Credentials {
            caller: USER,
            groups: vec![],
        };
        let before = stage.walk().await;
        for (who, source, parent, name, expect) in [
            (&SUPER, src, Ino::ROOT, "src", EEXIST),
            (&SUPER, file, Ino::ROOT, "src", EEXIST),
            (&SUPER, src, Ino::ROOT, ".trash", EEXIST),
            (&SUPER, src, Ino::ROOT, "a/b", EINVAL),
            (&SUPER, removed, Ino::ROOT, "x", EPERM),
            (&SUPER, Ino::TRASH, Ino::ROOT, "x", EPERM),
            (&SUPER, src, Ino::TRASH, "x", EPERM),
            (&SUPER, Ino(999), Ino::ROOT, "x", ENOENT),
            (&SUPER, src, Ino(999), "x", ENOENT),
            (&user, src, Ino::ROOT, "x", EACCES),
            (&user, src, open, "x", EACCES),
            (&user, hidden, open, "x", EACCES),
        ] {
            let tree = CloneTree {
                to_parent: parent,
                ..tree(source, name, who)
            };
            let answer = stage.meta.clone_tree(&tree).await;
            assert_eq!(errno(&answer), expect, "{source} to {parent}/{name}");
        }
        assert_eq!(stage.walk().await, before);
        reclaim_all(&stage).await;
        check_nothing_leaked(&stage).await;
    });
}

#[test]
fn a_clone_that_does_not_fit_leaves_nothing() {
    block_on(async {
        let mut small = setting(0);
        small.inodes = 30;
        let stage = Stage::new(small);
        let src = source(&stage).await;
        stage.meta.statfs(Ino::ROOT).await.unwrap();
        let answer = clone(&stage, src, "dst").await;
        assert_eq!(errno(&answer), ENOSPC);
        assert_eq!(stage.entry(Ino::ROOT, b"dst"), None);
        assert_eq!(reclaim_all(&stage).await, []);
        check_nothing_leaked(&stage).await;
    });
}

#[test]
fn a_clone_killed_anywhere_leaves_nothing_a_day_later() {
    block_on(async {
        let count = {
            let stage = Stage::new(setting(0));
            let src = source(&stage).await;
            let (made, commits) = commits_of(&stage, clone(&stage, src, "dst")).await;
            made.unwrap();
            commits
        };
        assert!(count >= 5, "root, levels, link: {count}");
        for nth in 1..=count {
            let stage = Stage::new(setting(0));
            let src = source(&stage).await;
            let before = picture(&stage, src).await;
            kill_at(&stage, nth);
            assert_eq!(errno(&clone(&stage, src, "dst").await), EIO);
            stage.store.clear_hook();
            assert_eq!(stage.entry(Ino::ROOT, b"dst"), None, "killed at {nth}");
            let notes = scanned(&stage, Scan::Detached).await.len();
            assert_eq!(notes, usize::from(nth > 1), "killed at {nth}");

            // Younger than a day: it may be at work still.
            let sink = Watch::default();
            let clean = async || {
                let edge = stage.meta.now().sec - limits::DETACHED_AGE;
                stage.meta.clean_detached(edge, &sink).await.unwrap()
            };
            assert_eq!(clean().await, 0);
            stage.pass(Duration::from_secs(25 * 3600));
            assert_eq!(clean().await as usize, notes);
            assert_eq!(reclaim_all(&stage).await, [], "its slices are the source's");
            check_nothing_leaked(&stage).await;
            assert_eq!(picture(&stage, src).await, before);
        }
    });
}

#[test]
fn cleaning_up_killed_anywhere_is_repeated() {
    block_on(async {
        let abandoned = async || {
            let stage = Stage::new(setting(0));
            let src = source(&stage).await;
            let (_, commits) = commits_of(&stage, clone(&stage, src, "whole")).await;
            kill_at(&stage, commits);
            clone(&stage, src, "dst").await.unwrap_err();
            stage.store.clear_hook();
            stage
        };
        let sink = Watch::default();
        let stage = abandoned().await;
        let edge = NOON + 1;
        let (cleaned, count) = commits_of(&stage, stage.meta.clean_detached(edge, &sink)).await;
        assert_eq!(cleaned.unwrap(), 1);
        assert!(count >= 5, "{count}");
        for nth in 1..=count {
            let stage = abandoned().await;
            kill_at(&stage, nth);
            stage.meta.clean_detached(edge, &sink).await.unwrap_err();
            stage.store.clear_hook();
            assert_eq!(stage.meta.clean_detached(edge, &sink).await.unwrap(), 1);
            reclaim_all(&stage).await;
            check_nothing_leaked(&stage).await;
        }
    });
}

#[test]
fn a_lost_answer_never_costs_a_linked_clone() {
    block_on(async {
        let count = {
            let stage = Stage::new(setting(0));
            let src = source(&stage).await;
            commits_of(&stage, clone(&stage, src, "dst")).await.1
        };
        for nth in 1..=count {
            let stage = Stage::new(setting(0));
            let src = source(&stage).await;
            let before = picture(&stage, src).await;
            let mut commits = 0;
            stage.store.on_request(move |request| {
                commits += u32::from(matches!(request, Request::Commit(_)));
                match request {
                    Request::Commit(_) if commits == nth => Verdict::ServeThenFail(unknown_fate()),
                    _ => Verdict::Serve,
                }
            });
            let answer = clone(&stage, src, "dst").await;
            stage.store.clear_hook();
            // It is found out that it was applied, whichever it is.
            answer.unwrap();
            let dst = stage.entry(Ino::ROOT, b"dst").unwrap();
            assert_eq!(picture(&stage, dst).await, before, "commit {nth}");
            reclaim_all(&stage).await;
            check_nothing_leaked(&stage).await;
        }
    });
}

#[test]
fn a_tree_taken_for_abandoned_cannot_be_linked() {
    block_on(async {
        let count = {
            let stage = Stage::new(setting(0));
            let src = source(&stage).await;
            commits_of(&stage, clone(&stage, src, "dst")).await.1
        };
        for nth in 2..=count {
            let stage = Stage::new(setting(0));
            let src = source(&stage).await;
            // Another client takes the tree away just before this commit of the clone.
            let store = stage.store.clone();
            let mut commits = 0;
            stage.store.on_request(move |request| {
                commits += u32::from(matches!(request, Request::Commit(_)));
                if matches!(request, Request::Commit(_)) && commits == nth {
                    let sink = Watch::default();
                    let cleaned = {
                        let other = other_client(&store, setting(0));
                        smol::block_on(other.clean_detached(NOON + 1, &sink))
                    };
                    assert_eq!(cleaned.unwrap(), 1);
                }
                Verdict::Serve
            });
            let answer = clone(&stage, src, "dst").await;
            stage.store.clear_hook();
            assert_eq!(errno(&answer), ENOENT, "commit {nth}");
            assert_eq!(stage.entry(Ino::ROOT, b"dst"), None);
            reclaim_all(&stage).await;
            check_nothing_leaked(&stage).await;
        }
    });
}

/// Before the first commit that copies chunks, `meddle` changes the store once, as another client would.
fn meddle_once(stage: &Stage, mut meddle: impl FnMut() + Send + 'static) {
    let mut done = false;
    stage.store.on_request(move |request| {
        if let Request::Commit(txn) = request
            && !done
            && txn
                .writes
                .iter()
                .any(|write| matches!(write, Write::AppendChunk { .. }))
        {
            done = true;
            meddle();
        }
        Verdict::Serve
    });
}

#[test]
fn a_compaction_in_between_takes_no_slice_away() {
    block_on(async {
        for in_tree in [true, false] {
            let stage = Stage::new(setting(0));
            let src = source(&stage).await;
            let file = stage.entry(src, b"file").unwrap();
            let index = ChunkIndex(0);
            let list = stage.meta.chunk(file, index).await.unwrap();
            let whole = Slice {
                id: SliceId(9000),
                size: 9000,
                ..list[0]
            };
            let mut writes = vec![
                Write::ReplaceChunkPrefix {
                    ino: file,
                    index,
                    drop: list.len(),
                    slices: vec![whole],
                },
                Write::NewSliceRef {
                    id: whole.id,
                    size: whole.size,
                },
            ];
            for slice in &list[..2] {
                let (id, size) = (slice.id, slice.size);
                let delta = -1;
                writes.push(Write::AddSliceRef { id, size, delta });
                writes.push(Write::DeleteSliceRef { id, size });
            }
            let store = stage.store.clone();
            let checks = vec![];
            let txn = Txn { checks, writes };
            meddle_once(&stage, move || drop(store.apply(&txn).unwrap()));
            let what = if in_tree { src } else { file };
            let made = clone(&stage, what, "dst").await.unwrap();
            stage.store.clear_hook();
            let copy = match in_tree {
                true => stage.entry(made.ino, b"file").unwrap(),
                false => made.ino,
            };
            assert_eq!(stage.meta.chunk(copy, index).await.unwrap(), [whole]);
            check_nothing_leaked(&stage).await;
        }
    });
}

#[test]
fn a_file_that_changes_all_the_time_is_cloned_in_the_end() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let src = source(&stage).await;
        let file = stage.entry(src, b"file").unwrap();
        let store = stage.store.clone();
        // Every batch of more than one loses: somebody writes to this file.
        stage.store.on_request(move |request| {
            let copied = |write: &&Write| matches!(write, Write::InsertDentry { .. });
            if let Request::Commit(txn) = request
                && txn.writes.iter().filter(copied).count() > 1
            {
                let old = store.peek(&Key::Attr(file)).unwrap().attr().unwrap();
                let mut new = old.clone();
                new.mtime.nsec += 1;
                let (checks, ino) = (vec![], file);
                let writes = vec![Write::UpdateAttr { ino, old, new }];
                store.apply(&Txn { checks, writes }).unwrap();
            }
            Verdict::Serve
        });
        let made = clone(&stage, src, "dst").await.unwrap();
        stage.store.clear_hook();
        let names = |list: BTreeMap<Name, Ino>| list.into_keys().collect::<Vec<_>>();
        assert_eq!(
            names(stage.list(made.ino).await),
            names(stage.list(src).await)
        );
        check_nothing_leaked(&stage).await;
    });
}

#[test]
fn many_entries_take_few_commits() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        for n in 0..600 {
            stage.file(dir, &format!("{n}")).await;
        }
        let (made, commits) = commits_of(&stage, clone(&stage, dir, "dst")).await;
        assert_eq!(made.unwrap().inodes, 601);
        assert_eq!(commits, 3 + 2, "three batches, root and link");
        check_nothing_leaked(&stage).await;
        let (gone, commits) = commits_of(&stage, remove(&stage, "dst", Disposal::Delete)).await;
        assert_eq!(gone.unwrap(), 601);
        assert_eq!(commits, 3 + 1, "three batches and the directory");
        reclaim_all(&stage).await;
        check_nothing_leaked(&stage).await;
    });
}

#[test]
fn files_of_many_chunks_are_cloned_one_by_one() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        for n in 0..4 {
            let file = stage.file(dir, &format!("{n}")).await;
            let (first, last) = (slice(&stage, 0, 9).await, slice(&stage, 0, 9).await);
            write(
                &stage,
                file,
                vec![(0, first), (599, last)],
                600 * CHUNK_BYTES,
            )
            .await;
        }
        let (made, commits) = commits_of(&stage, clone(&stage, dir, "dst")).await;
        let made = made.unwrap();
        assert_eq!(made.inodes, 5);
        assert_eq!(
            commits,
            2 + 4,
            "two such files have too many chunks for one"
        );
        for (name, copy) in stage.list(made.ino).await {
            let file = stage.entry(dir, &name).unwrap();
            for index in [0, 1, 599] {
                let index = ChunkIndex(index);
                let list = stage.meta.chunk(copy, index).await.unwrap();
                assert_eq!(list, stage.meta.chunk(file, index).await.unwrap());
            }
        }
        check_nothing_leaked(&stage).await;
    });
}

#[test]
fn a_batch_does_what_unlink_does() {
    block_on(async {
        for trash_days in [0, 1] {
            let prepare = async || {
                let stage = Stage::new(setting(trash_days));
                stage.register();
                let src = source(&stage).await;
                let deep = stage.meta.lookup(src, b"sub").await.unwrap().0;
                let deep = stage.meta.lookup(deep, b"deep").await.unwrap().0;
                // Held open; linked twice in this directory; skipping the trash.
                let f0 = stage.entry(deep, b"f0").unwrap();
                stage.open(f0);
                let f1 = stage.entry(deep, b"f1").unwrap();
                stage.meta.link(&ROOT, f1, deep, b"f1-again").await.unwrap();
                let f2 = stage.entry(deep, b"f2").unwrap();
                stage.patch(f2, |attr| attr.flags = attr_flags::SKIP_TRASH);
                (stage, deep, f0)
            };
            let (one, deep, f0) = prepare().await;
            let names: Vec<Name> = one.list(deep).await.into_keys().collect();
            for name in &names {
                one.meta.unlink(&ROOT, deep, name).await.unwrap();
            }
            let (many, ..) = prepare().await;
            let batch = many
                .meta
                .unlink_batch(&ROOT, deep, names.clone(), Disposal::Trash)
                .await
                .unwrap();
            assert_eq!(batch.left, ["f0", "f1-again"]);
            for name in &batch.left {
                many.meta.unlink(&ROOT, deep, name).await.unwrap();
            }
            assert_eq!(many.walk().await, one.walk().await, "trash {trash_days}");
            assert_eq!(many.sustained(), one.sustained());
            for scan in [Scan::Inodes, Scan::DeletedFiles] {
                assert_eq!(
                    scanned(&many, scan.clone()).await,
                    scanned(&one, scan).await
                );
            }
            for stage in [&one, &many] {
                stage.meta.close(f0).await.unwrap();
                stage.check_volume(&BTreeSet::new()).await;
            }
        }
    });
}

#[test]
fn entries_that_change_are_removed_one_by_one() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        for n in 0..40 {
            stage.file(dir, &format!("{n:02}")).await;
        }
        let names: Vec<Name> = stage.list(dir).await.into_keys().collect();
        let changing: BTreeSet<Ino> = stage.list(dir).await.into_values().take(3).collect();
        let store = stage.store.clone();
        let mut left: Vec<Ino> = changing.into_iter().collect();
        stage.store.on_request(move |request| {
            if matches!(request, Request::Commit(_))
                && let Some(ino) = left.pop()
            {
                let old = store.peek(&Key::Attr(ino)).unwrap().attr().unwrap();
                let new = Attr {
                    mode: 0o600,
                    ..old.clone()
                };
                let (checks, writes) = (vec![], vec![Write::UpdateAttr { ino, old, new }]);
                store.apply(&Txn { checks, writes }).unwrap();
            }
            Verdict::Serve
        });
        let batch = stage
            .meta
            .unlink_batch(&ROOT, dir, names, Disposal::Trash)
            .await
            .unwrap();
        stage.store.clear_hook();
        assert_eq!(batch.removed.len(), 37);
        assert_eq!(batch.left.len(), 3);
        assert_eq!(stage.list(dir).await.len(), 3);
        stage.check_volume(&BTreeSet::new()).await;
    });
}

#[test]
fn a_batch_leaves_what_is_protected() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        stage.patch(dir, |attr| attr.mode = 0o1777);
        for (name, uid) in [("mine", 1000), ("theirs", 2000), ("frozen", 1000)] {
            let ino = stage.file(dir, name).await;
            stage.patch(ino, |attr| attr.uid = uid);
        }
        let frozen = stage.entry(dir, b"frozen").unwrap();
        stage.patch(frozen, |attr| attr.flags = attr_flags::APPEND);
        stage.mkdir(dir, "sub").await;
        let names: Vec<Name> = stage.list(dir).await.into_keys().collect();
        let batch = stage
            .meta
            .unlink_batch(&USER, dir, names, Disposal::Trash)
            .await
            .unwrap();
        assert_eq!(batch.removed.len(), 1);
        assert_eq!(batch.left, ["frozen", "sub", "theirs"]);
        let many = vec![Name::new(); limits::UNLINK_BATCH + 1];
        let answer = stage
            .meta
            .unlink_batch(&ROOT, dir, many, Disposal::Trash)
            .await;
        assert_eq!(errno(&answer), EINVAL);
    });
}

#[test]
fn a_tree_goes_to_the_trash_and_comes_back() {
    block_on(async {
        let stage = Stage::new(setting(1));
        let src = source(&stage).await;
        thaw(&stage, src).await;
        let before = picture(&stage, src).await;
        let total = stage.counter(Counter::TotalInodes);
        let gone = remove(&stage, "src", Disposal::Trash).await.unwrap();
        assert_eq!(gone as usize, before.len());
        assert_eq!(stage.entry(Ino::ROOT, b"src"), None);
        assert_eq!(stage.trash().await.len(), before.len());
        assert_eq!(stage.counter(Counter::TotalInodes), total + 1, "the hour");
        check_nothing_leaked(&stage).await;

        // Rebuilt within the trash: one entry is left to put back.
        let hour = b"2026-03-01-12";
        let rebuilt = stage
            .meta
            .restore_hour(hour, RestoreScope::Rebuild, 4)
            .await
            .unwrap();
        let moved = gone - 1;
        let expect = Restored {
            moved,
            skipped: 1,
            ..Restored::default()
        };
        assert_eq!(rebuilt, expect);
        assert_eq!(stage.trash().await.len(), 1);
        stage.check_volume(&BTreeSet::new()).await;
        // In the way.
        let squatter = stage.file(Ino::ROOT, "src").await;
        let answer = stage
            .meta
            .restore_hour(hour, RestoreScope::PutBack, 4)
            .await
            .unwrap();
        assert_eq!((answer.moved, answer.conflicts), (0, 1));
        assert_eq!(stage.entry(Ino::ROOT, b"src"), Some(squatter));
        let to = (Ino::ROOT, "squatter");
        stage
            .rename(&ROOT, (Ino::ROOT, "src"), to, RenameMode::Replace)
            .await
            .unwrap();
        let answer = stage
            .meta
            .restore_hour(hour, RestoreScope::PutBack, 4)
            .await
            .unwrap();
        assert_eq!(answer.moved, 1);
        let back = stage.entry(Ino::ROOT, b"src").unwrap();
        assert_eq!(back, src, "the same inodes");
        let after = picture(&stage, back).await;
        assert!(before.keys().eq(after.keys()));
        for (path, (old, ..)) in &before {
            let new = &after[path].0;
            let path = path.escape_ascii();
            assert_eq!((old.nlink, old.length), (new.nlink, new.length), "{path}");
        }
        check_nothing_leaked(&stage).await;
    });
}

#[test]
fn a_tree_is_put_back_in_one_go() {
    block_on(async {
        let stage = Stage::new(setting(1));
        let src = source(&stage).await;
        thaw(&stage, src).await;
        let count = remove(&stage, "src", Disposal::Trash).await.unwrap();
        // One at a time and in any order: a directory may come back before or after what is in it.
        for width in [1, 7] {
            let hour = b"2026-03-01-12";
            let answer = stage
                .meta
                .restore_hour(hour, RestoreScope::PutBack, width)
                .await
                .unwrap();
            assert_eq!(answer.moved, count);
            assert_eq!(stage.trash().await.len(), 0);
            check_nothing_leaked(&stage).await;
            remove(&stage, "src", Disposal::Trash).await.unwrap();
        }
        for (hour, expect) in [(&b"2026-03-01-11"[..], ENOENT), (b"yesterday", EINVAL)] {
            let answer = stage
                .meta
                .restore_hour(hour, RestoreScope::PutBack, 1)
                .await;
            assert_eq!(errno(&answer), expect);
        }
    });
}

#[test]
fn a_removal_killed_anywhere_is_repeated() {
    block_on(async {
        for disposal in [Disposal::Trash, Disposal::Delete] {
            let prepare = async || {
                let stage = Stage::new(setting(1));
                let src = source(&stage).await;
                thaw(&stage, src).await;
                stage
            };
            let stage = prepare().await;
            let (gone, count) = commits_of(&stage, remove(&stage, "src", disposal)).await;
            gone.unwrap();
            for nth in 1..=count {
                let stage = prepare().await;
                kill_at(&stage, nth);
                remove(&stage, "src", disposal).await.unwrap_err();
                stage.store.clear_hook();
                stage.check_volume(&BTreeSet::new()).await;
                remove(&stage, "src", disposal).await.unwrap();
                assert_eq!(stage.entry(Ino::ROOT, b"src"), None);
                reclaim_all(&stage).await;
                check_nothing_leaked(&stage).await;
            }
        }
    });
}

#[test]
fn a_directory_that_others_fill_is_removed_in_the_end() {
    block_on(async {
        for stubborn in [false, true] {
            let stage = Stage::new(setting(0));
            let dir = stage.mkdir(Ino::ROOT, "dir").await;
            let store = stage.store.clone();
            let mut added = 0;
            stage.store.on_request(move |request| {
                if let Request::Commit(txn) = request
                    && txn
                        .writes
                        .iter()
                        .any(|write| matches!(write, Write::DeleteDirStat(ino) if *ino == dir))
                    && (stubborn || added < 3)
                {
                    added += 1;
                    let name = format!("late{added}");
                    let other = other_client(&store, setting(0));
                    smol::block_on(other.mknod(&ROOT, dir, name.as_bytes(), &NEW_FILE)).unwrap();
                }
                Verdict::Serve
            });
            let answer = remove(&stage, "dir", Disposal::Delete).await;
            stage.store.clear_hook();
            match stubborn {
                false => assert_eq!(answer.unwrap(), 1 + 3),
                true => assert!(matches!(answer, Err(MetaError::NotEmpty))),
            }
        }
    });
}

#[test]
fn trees_are_removed_from_every_engine() {
    for kept in [Kept::Memory, Kept::Sqlite, Kept::Redis] {
        let stage = Stage::on(kept, setting(1));
        block_on(async {
            let src = source(&stage).await;
            thaw(&stage, src).await;
            let count = stage.walk().await.len() as u64;
            assert_eq!(
                remove(&stage, "src", Disposal::Trash).await.unwrap(),
                count,
                "{kept:?}"
            );
            assert_eq!(stage.entry(Ino::ROOT, b"src"), None);
            assert_eq!(stage.trash().await.len() as u64, count, "{kept:?}");
            stage.check_volume(&BTreeSet::new()).await;
            stage.pass(Duration::from_secs(30 * 3600));
            let expired = stage.meta.expire_trash(&Watch::default()).await.unwrap();
            assert_eq!((expired.hours, expired.entries), (1, count + 1), "{kept:?}");
            stage.check_volume(&BTreeSet::new()).await;
            assert_eq!(stage.counter(Counter::TotalInodes), 0, "{kept:?}");
            assert_eq!(reclaim_all(&stage).await.len(), 3, "{kept:?}");
        });
    }
}

/// Engines that have every verb.
const COMPLETE: [Kept; 3] = [Kept::Memory, Kept::Sqlite, Kept::Redis];

#[test]
fn trees_are_cloned_and_abandoned_in_every_engine() {
    for kept in COMPLETE {
        let stage = Stage::on(kept, setting(0));
        block_on(async {
            let src = source(&stage).await;
            thaw(&stage, src).await;
            let before = picture(&stage, src).await;
            let made = clone(&stage, src, "dst").await.unwrap();
            assert_eq!(picture(&stage, made.ino).await, before, "{kept:?}");
            assert_eq!(made.inodes as usize, before.len(), "{kept:?}");
            stage.check_volume(&BTreeSet::new()).await;
            assert_eq!(scanned(&stage, Scan::Detached).await, [], "{kept:?}");
            // A clone that was never linked, as far as the store can tell.
            let (parent, name) = (Ino::ROOT, Name::from_static(b"dst"));
            stage.apply(vec![
                Write::AddDetached {
                    ino: made.ino,
                    time: NOON,
                },
                Write::DeleteDentry { parent, name },
                Write::PatchDir {
                    ino: Ino::ROOT,
                    time: None,
                    nlink: -1,
                },
            ]);
            let sink = Watch::default();
            let cleaned = stage.meta.clean_detached(NOON, &sink).await.unwrap();
            assert_eq!(cleaned, 0, "{kept:?}: as young as asked for");
            let cleaned = stage.meta.clean_detached(NOON + 1, &sink).await.unwrap();
            assert_eq!(cleaned, 1, "{kept:?}");
            assert_eq!(reclaim_all(&stage).await, [], "{kept:?}");
            assert_eq!(picture(&stage, src).await, before, "{kept:?}");
            remove(&stage, "src", Disposal::Delete).await.unwrap();
            assert_eq!(reclaim_all(&stage).await.len(), 3, "{kept:?}");
            assert_eq!(stage.counter(Counter::TotalInodes), 0, "{kept:?}");
            assert_eq!(stage.counter(Counter::UsedSpace), 0, "{kept:?}");
            assert_eq!(scanned(&stage, Scan::DeadSlices).await, [], "{kept:?}");
            let size = 100;
            stage.apply(vec![
                Write::NewSliceRef {
                    id: SliceId(901),
                    size,
                },
                Write::NewSliceRef {
                    id: SliceId(902),
                    size,
                },
                Write::PutDelayedSlices {
                    id: SliceId(1000),
                    time: NOON - 10,
                    slices: vec![(SliceId(901), size), (SliceId(902), size)],
                },
            ]);
            let mut found = stage.meta.expire_delayed_slices().await.unwrap();
            found.sort_unstable();
            assert_eq!(found, dead(&[901, 902]), "{kept:?}");
            let mut found = stage.meta.collect_dead_slices().await.unwrap();
            found.sort_unstable();
            assert_eq!(found, dead(&[901, 902]), "{kept:?}");
        });
    }
}

#[test]
fn a_walk_stops_when_told() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let src = source(&stage).await;
        thaw(&stage, src).await;
        let watch = Watch {
            stop_after: Some(4),
            ..Watch::default()
        };
        let how = removal(&SUPER, Disposal::Delete, &watch);
        let end = stage.meta.remove_tree(Ino::ROOT, b"src", &how).await;
        assert_eq!(end.unwrap(), TreeEnd::Stopped);
        assert!(stage.entry(Ino::ROOT, b"src").is_some());
        stage.check_volume(&BTreeSet::new()).await;
    });
}

#[test]
fn removal_asks_every_directory() {
    block_on(async {
        let user = Credentials {
            caller: USER,
            groups: vec![50],
        };
        // Mode of root, of the directory, of the sub-directory with a file in it, and the answer.
        for (root, dir, sub, expect) in [
            (0o777, 0o777, 0o777, 0),
            (0o775, 0o777, 0o777, EACCES),
            (0o777, 0o755, 0o777, EACCES),
            (0o777, 0o777, 0o755, EACCES),
            (0o777, 0o777, 0o773, EACCES),
            (0o1777, 0o777, 0o777, EACCES),
            (0o777, 0o1777, 0o777, EACCES),
            (0o777, 0o770, 0o770, EACCES),
        ] {
            let stage = Stage::new(setting(0));
            let top = stage.mkdir(Ino::ROOT, "dir").await;
            let below = stage.mkdir(top, "sub").await;
            stage.file(below, "file").await;
            for (ino, mode) in [(Ino::ROOT, root), (top, dir), (below, sub)] {
                stage.patch(ino, |attr| attr.mode = mode);
            }
            let watch = Watch::default();
            let how = removal(&user, Disposal::Trash, &watch);
            let answer = stage.meta.remove_tree(Ino::ROOT, b"dir", &how).await;
            assert_eq!(errno(&answer), expect, "{root:o} {dir:o} {sub:o}");
            // With the directory's group it may.
            if expect != 0 && dir == 0o770 {
                for ino in [top, below] {
                    stage.patch(ino, |attr| attr.gid = 50);
                }
                let answer = stage.meta.remove_tree(Ino::ROOT, b"dir", &how).await;
                assert_eq!(errno(&answer), 0);
            }
        }
    });
}

#[test]
fn an_empty_directory_of_somebody_else_may_be_removed() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        stage.patch(dir, |attr| attr.mode = 0o700);
        let user = Credentials {
            caller: USER,
            groups: vec![],
        };
        let watch = Watch::default();
        let how = removal(&user, Disposal::Trash, &watch);
        let answer = stage.meta.remove_tree(Ino::ROOT, b"dir", &how).await;
        assert_eq!(errno(&answer), 0, "as rmdir(2) asks the parent only");
    });
}

/// Hour directories with one file each: hours before noon.
async fn hours(stage: &Stage, ages: &[u64]) {
    let oldest = ages.iter().max().unwrap();
    stage.clock.set(NOON - (oldest * 3600).cast_signed());
    let mut now = *oldest;
    let mut ages = ages.to_vec();
    ages.sort_unstable_by(|a, b| b.cmp(a));
    for age in ages {
        stage.pass(Duration::from_secs((now - age) * 3600));
        now = age;
        let name = format!("{age}");
        let ino = stage.file(Ino::ROOT, &name).await;
        let data = slice(stage, 0, 10).await;
        write(stage, ino, vec![(0, data)], 10).await;
        stage
            .meta
            .unlink(&ROOT, Ino::ROOT, name.as_bytes())
            .await
            .unwrap();
    }
    stage.pass(Duration::from_secs(now * 3600));
    assert_eq!(stage.meta.now().sec, NOON);
}

/// A directory in the trash that is no hour.
fn odd_entry(stage: &Stage) -> Ino {
    let (ino, kind) = (Ino(Ino::TRASH.0 + 5000), FileKind::Directory);
    let attr = stage.attr(Ino::TRASH).unwrap();
    let counted = [(Counter::UsedSpace, 4096), (Counter::TotalInodes, 1)];
    let mut writes = vec![
        Write::InsertAttr {
            ino,
            attr: Attr {
                parent: Ino::TRASH,
                ..attr
            },
        },
        Write::InsertDentry {
            parent: Ino::TRASH,
            name: Name::from_static(b"not-an-hour"),
            dentry: Dentry { kind, ino },
        },
    ];
    let count = |(counter, delta)| Write::AddCounter { counter, delta };
    writes.extend(counted.map(count));
    stage.apply(writes);
    ino
}

#[test]
fn the_trash_keeps_its_days_and_two_hours() {
    block_on(async {
        // A day and two hours before noon sharp the directory of 10:00 is exactly old enough to stay.
        for (past_noon, left) in [(0, vec!["0", "25", "26"]), (1, vec!["0", "25"])] {
            let stage = Stage::new(setting(1));
            hours(&stage, &[0, 25, 26, 27, 49, 1000]).await;
            stage.pass(Duration::from_secs(past_noon));
            let odd = odd_entry(&stage);
            let sink = Watch::default();
            let expired = stage.meta.expire_trash(&sink).await.unwrap();
            let gone = 6 - left.len() as u64;
            assert_eq!((expired.hours, expired.entries), (gone, 2 * gone));
            assert_eq!(sink.files.borrow().len() as u64, gone);
            let names: BTreeSet<String> = stage
                .trash()
                .await
                .into_keys()
                .map(|name| String::from_utf8(name.to_vec()).unwrap())
                .collect();
            let kept: BTreeSet<String> = names
                .iter()
                .map(|name| name.rsplit('-').next().unwrap().to_owned())
                .collect();
            assert_eq!(kept, left.into_iter().map(str::to_owned).collect());
            assert_eq!(stage.entry(Ino::TRASH, b"not-an-hour"), Some(odd));
            assert_eq!(stage.dir_stat(Ino::TRASH), None);
            assert_eq!(reclaim_all(&stage).await.len() as u64, gone);
            check_nothing_leaked(&stage).await;
        }
    });
}

#[test]
fn an_hour_with_a_tree_in_it_goes_whole() {
    block_on(async {
        let stage = Stage::new(setting(1));
        let src = source(&stage).await;
        thaw(&stage, src).await;
        remove(&stage, "src", Disposal::Trash).await.unwrap();
        let hour = b"2026-03-01-12";
        stage
            .meta
            .restore_hour(hour, RestoreScope::Rebuild, 2)
            .await
            .unwrap();
        stage.pass(Duration::from_secs(40 * 3600));
        let sink = Watch::default();
        let expired = stage.meta.expire_trash(&sink).await.unwrap();
        assert_eq!(expired.hours, 1);
        assert_eq!(reclaim_all(&stage).await.len(), 3);
        check_nothing_leaked(&stage).await;
        assert_eq!(stage.counter(Counter::TotalInodes), 0);
        assert_eq!(stage.counter(Counter::UsedSpace), 0);
    });
}

#[test]
fn one_client_in_an_hour_empties_the_trash() {
    block_on(async {
        let stage = Stage::new(setting(1));
        let (first, second) = (
            stage.meta.take_trash_job().await.unwrap(),
            stage.meta.take_trash_job().await.unwrap(),
        );
        assert_eq!((first, second), (true, false));
        stage.pass(Duration::from_secs(3239));
        assert!(!stage.meta.take_trash_job().await.unwrap());
        stage.pass(Duration::from_secs(1));
        assert!(stage.meta.take_trash_job().await.unwrap());
    });
}

#[test]
fn a_job_ends_when_its_time_is_over() {
    block_on(async {
        let stage = Stage::new(setting(1));
        hours(&stage, &[100, 101, 102]).await;
        let clock = std::rc::Rc::clone(&stage.clock);
        // Every file that goes takes an hour.
        struct Slow(std::rc::Rc<stage::Clock>);
        impl FileSink for Slow {
            fn deleted(&self, _: DeletedFile) {
                self.0.set(self.0.now().sec + 3600);
            }
        }
        let expired = stage.meta.expire_trash(&Slow(clock)).await.unwrap();
        assert_eq!(expired.hours, 1, "what was begun is ended, no more");
        assert_eq!(stage.trash().await.len(), 2);
    });
}

/// A compaction's note: slices `ids` of 100 bytes were replaced at `time`.
fn delay(stage: &Stage, by: u64, time: i64, ids: &[u64]) {
    let size = 100;
    let mut writes: Vec<Write> = Vec::new();
    for &id in ids {
        let id = SliceId(id);
        if stage.peek(Key::SliceRefs { id, size }).is_none() {
            writes.push(Write::NewSliceRef { id, size });
        } else {
            let delta = 1;
            writes.push(Write::AddSliceRef { id, size, delta });
        }
        stage.apply(std::mem::take(&mut writes));
    }
    let slices = ids.iter().map(|&id| (SliceId(id), size)).collect();
    let id = SliceId(by);
    stage.apply(vec![Write::PutDelayedSlices { id, time, slices }]);
}

fn dead(ids: &[u64]) -> Vec<DeadSlice> {
    let dead = |&id: &u64| DeadSlice {
        id: SliceId(id),
        size: 100,
    };
    ids.iter().map(dead).collect()
}

#[test]
fn replaced_slices_go_when_the_trash_would() {
    block_on(async {
        let stage = Stage::new(setting(1));
        let day = 24 * 3600;
        delay(&stage, 100, NOON - day - 1, &[1, 2, 3]);
        delay(&stage, 101, NOON - day, &[4]);
        // Two notes about one slice, one of them young; and one slice twice in a note.
        delay(&stage, 102, NOON - 5, &[3]);
        delay(&stage, 103, NOON - 2 * day, &[5, 5]);
        let mut found = stage.meta.expire_delayed_slices().await.unwrap();
        found.sort_unstable();
        assert_eq!(found, dead(&[1, 2, 5]));
        // The answer was lost: the other job finds them.
        assert_eq!(
            stage.meta.collect_dead_slices().await.unwrap(),
            dead(&[1, 2, 5])
        );
        for slice in found {
            stage.meta.forget_slice(slice.id, slice.size).await.unwrap();
        }
        assert_eq!(stage.meta.collect_dead_slices().await.unwrap(), []);
        stage.pass(Duration::from_secs(3240));
        assert_eq!(stage.meta.collect_dead_slices().await.unwrap(), []);
        assert_eq!(
            stage.meta.expire_delayed_slices().await.unwrap(),
            dead(&[4])
        );
        stage.pass(Duration::from_secs(day.unsigned_abs()));
        assert_eq!(
            stage.meta.expire_delayed_slices().await.unwrap(),
            dead(&[3])
        );
    });
}

#[test]
fn two_clients_release_a_note_once() {
    block_on(async {
        let stage = Stage::new(setting(0));
        delay(&stage, 100, NOON - 10, &[1, 2]);
        // One reference of each is somebody's.
        for id in [1, 2] {
            let (id, size, delta) = (SliceId(id), 100, 1);
            stage.apply(vec![Write::AddSliceRef { id, size, delta }]);
        }
        let store = stage.store.clone();
        let done = Arc::new(AtomicBool::new(false));
        let once = Arc::clone(&done);
        stage.store.on_request(move |request| {
            if matches!(request, Request::Commit(_)) && !once.swap(true, Ordering::Relaxed) {
                let other = other_client(&store, setting(0));
                let found = smol::block_on(other.expire_delayed_slices());
                assert_eq!(found.unwrap(), []);
            }
            Verdict::Serve
        });
        assert_eq!(stage.meta.expire_delayed_slices().await.unwrap(), []);
        assert!(done.load(Ordering::Relaxed));
        for id in [1, 2] {
            let (id, size) = (SliceId(id), 100);
            let refs = stage.peek(Key::SliceRefs { id, size }).unwrap();
            assert_eq!(refs.count().unwrap(), 1);
        }
    });
}

#[test]
fn a_read_only_mount_does_none_of_it() {
    block_on(async {
        let options = sluice_meta::client::MetaOptions {
            read_only: true,
            ..Default::default()
        };
        let stage = Stage::with(Kept::Memory, setting(1), options);
        let sink = Watch::default();
        const EROFS: i32 = 30;
        assert_eq!(errno(&stage.meta.take_trash_job().await), EROFS);
        assert_eq!(errno(&stage.meta.expire_trash(&sink).await), EROFS);
        assert_eq!(errno(&stage.meta.expire_delayed_slices().await), EROFS);
        assert_eq!(errno(&stage.meta.collect_dead_slices().await), EROFS);
        assert_eq!(errno(&stage.meta.clean_detached(NOON, &sink).await), EROFS);
        assert_eq!(errno(&clone(&stage, Ino::ROOT, "x").await), EROFS);
        assert_eq!(errno(&remove(&stage, "x", Disposal::Trash).await), EROFS);
    });
}
