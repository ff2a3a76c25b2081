//! Looking things up: whole paths, spellings, link targets; and access times, which looking moves.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may panic like the test"
)]

#[path = "support/stage.rs"]
mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice_meta::client::MetaOptions;
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Key, Txn, Write};
use sluice_meta::error::MetaError;
use sluice_meta::ops::{AtimeMode, Caller, NameMatch, RenameMode};
use sluice_meta::types::{Dentry, FileKind, Ino, Name};

use stage::{Kept, NOON, Stage, block_on, errno, setting};

const ROOT: Caller = Caller::ROOT;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const ENOTEMPTY: i32 = 39;
const ELOOP: i32 = 40;

/// How many round trips `work` takes.
async fn requests<T>(stage: &Stage, work: impl Future<Output = T>) -> (T, u32) {
    let count = Arc::new(AtomicU32::new(0));
    let counting = Arc::clone(&count);
    stage.store.on_request(move |_| {
        counting.fetch_add(1, Ordering::Relaxed);
        Verdict::Serve
    });
    let answer = work.await;
    stage.store.clear_hook();
    (answer, count.load(Ordering::Relaxed))
}

#[test]
fn a_path_is_resolved_in_one_round_trip() {
    block_on(async {
        let stage = Stage::new(setting(1));
        let a = stage.mkdir(Ino::ROOT, "a").await;
        let b = stage.mkdir(a, "b").await;
        let file = stage.file(b, "file").await;
        let link = stage.meta.symlink(&ROOT, a, b"link", b"b").await.unwrap().0;
        for (path, expected) in [
            ("", Ok(Ino::ROOT)),
            ("/", Ok(Ino::ROOT)),
            ("/a/b/file", Ok(file)),
            ("a//./b/", Ok(b)),
            ("a/b/../b/file", Ok(file)),
            ("a/b/../../a/b", Ok(b)),
            ("../../a", Ok(a)),
            ("a/link", Ok(link)),
            (".trash", Ok(Ino::TRASH)),
            ("a/none", Err(ENOENT)),
            ("none/a", Err(ENOENT)),
            ("a/none/..", Err(ENOENT)),
            ("a/b/file/x", Err(ENOTDIR)),
            ("a/b/file/..", Err(ENOTDIR)),
            ("a/link/file", Err(ELOOP)),
            ("a/link/..", Err(ELOOP)),
        ] {
            let (answer, count) = requests(&stage, stage.meta.resolve(path.as_bytes())).await;
            let found = answer.as_ref().map(|(ino, attr)| {
                assert_eq!(Some(attr), stage.attr(*ino).as_ref(), "{path}");
                *ino
            });
            assert_eq!(found.map_err(MetaError::errno), expected, "{path}");
            assert_eq!(count, 1, "{path}");
        }
        let below = stage.meta.resolve_from(a, b"../../b/file").await.unwrap();
        assert_eq!(below.0, file, "not above the start");
    });
}

fn ignoring_case() -> Stage {
    let options = MetaOptions {
        names: NameMatch::IgnoreCase,
        skip_dir_mtime: Duration::ZERO,
        ..MetaOptions::default()
    };
    Stage::with(Kept::Memory, setting(0), options)
}

#[test]
fn case_may_be_ignored() {
    block_on(async {
        let stage = ignoring_case();
        let dir = stage.mkdir(Ino::ROOT, "Dir").await;
        let file = stage.file(dir, "ReadMe").await;
        // More than a page. By others: each create of ours would list them all.
        let attr = stage.attr(file).unwrap();
        let many = (0..5000).flat_map(|n| {
            let (ino, attr) = (Ino(1_000_000 + n), attr.clone());
            let (parent, name) = (dir, Name::from(format!("other{n}")));
            let kind = FileKind::File;
            let dentry = Dentry { kind, ino };
            [
                Write::InsertAttr { ino, attr },
                Write::InsertDentry {
                    parent,
                    name,
                    dentry,
                },
            ]
        });
        stage.apply(many.collect());
        let find = async |name: &[u8]| stage.meta.lookup(dir, name).await.map(|(ino, _)| ino);
        assert_eq!(find(b"ReadMe").await.unwrap(), file);
        assert_eq!(find(b"README").await.unwrap(), file);
        assert_eq!(
            find(b"OTHER4999").await.unwrap(),
            find(b"other4999").await.unwrap()
        );
        assert_eq!(errno(&find(b"readme.txt").await), ENOENT);
        assert_eq!(stage.meta.resolve(b"DIR/readme").await.unwrap().0, file);
        assert_eq!(errno(&stage.meta.resolve(b"DIR/readme/x").await), ENOTDIR);
        assert_eq!(
            errno(&stage.make(FileKind::File, dir, "README").await),
            EEXIST
        );
        assert_eq!(
            errno(&stage.meta.link(&ROOT, file, Ino::ROOT, b"DIR").await),
            EEXIST
        );
        assert_eq!(
            errno(&stage.meta.rmdir(&ROOT, Ino::ROOT, b"dir").await),
            ENOTEMPTY
        );
    });
}

#[test]
fn names_are_changed_as_they_are_spelled() {
    block_on(async {
        let stage = ignoring_case();
        let root = Ino::ROOT;
        let (one, two) = (stage.file(root, "One").await, stage.file(root, "Two").await);
        let rename = async |from, to, mode| {
            errno(&stage.rename(&ROOT, (root, from), (root, to), mode).await)
        };
        let names = async || -> Vec<String> {
            let list = stage.list(root).await;
            list.keys()
                .map(|name| String::from_utf8(name.to_vec()).unwrap())
                .collect()
        };
        assert_eq!(rename("ONE", "two", RenameMode::NoReplace).await, EEXIST);
        assert_eq!(
            rename("ONE", "one", RenameMode::NoReplace).await,
            0,
            "another spelling"
        );
        assert_eq!(names().await, ["Two", "one"]);
        assert_eq!(rename("ONE", "ONE", RenameMode::Replace).await, 0);
        assert_eq!(names().await, ["ONE", "Two"]);
        assert_eq!(rename("two", "one", RenameMode::Exchange).await, 0);
        assert_eq!(
            stage.list(root).await.into_values().collect::<Vec<_>>(),
            [two, one]
        );
        assert_eq!(rename("two", "one", RenameMode::Replace).await, 0);
        assert_eq!(names().await, ["ONE"]);
        stage.mkdir(root, "Empty").await;
        assert_eq!(errno(&stage.meta.rmdir(&ROOT, root, b"EMPTY").await), 0);
        assert_eq!(errno(&stage.meta.unlink(&ROOT, root, b"one").await), 0);
        assert_eq!(errno(&stage.meta.unlink(&ROOT, root, b"one").await), ENOENT);
    });
}

#[test]
fn case_matters_unless_asked_otherwise() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let one = stage.file(Ino::ROOT, "a").await;
        let other = stage.file(Ino::ROOT, "A").await;
        assert_ne!(one, other);
        let missing = stage.meta.lookup(Ino::ROOT, b"B").await;
        assert_eq!(errno(&missing), ENOENT);
        let miss = requests(&stage, stage.meta.lookup(Ino::ROOT, b"B")).await;
        assert_eq!(miss.1, 1, "no listing");
    });
}

#[test]
fn link_targets_are_read_once() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let (link, _) = stage
            .meta
            .symlink(&ROOT, Ino::ROOT, b"l", b"target")
            .await
            .unwrap();
        for trips in [1, 0, 0] {
            let (target, count) = requests(&stage, stage.meta.readlink(link)).await;
            assert_eq!((target.unwrap(), count), ("target".into(), trips));
        }
        let file = stage.file(Ino::ROOT, "f").await;
        for _ in 0..2 {
            assert_eq!(errno(&stage.meta.readlink(file).await), 22);
            assert_eq!(errno(&stage.meta.readlink(Ino(99)).await), ENOENT);
        }
    });
}

fn keeping(atime: AtimeMode, read_only: bool) -> Stage {
    let options = MetaOptions {
        atime,
        read_only,
        skip_dir_mtime: Duration::ZERO,
        ..MetaOptions::default()
    };
    Stage::with(Kept::Memory, setting(0), options)
}

#[test]
fn access_times_move_when_due() {
    block_on(async {
        // After so many seconds: whether an access moves the time.
        let cases = [
            (AtimeMode::Noatime, [(2, false), (90_000, false)]),
            (AtimeMode::Relatime, [(2, false), (90_000, true)]),
            (AtimeMode::Strictatime, [(2, true), (1, false)]),
        ];
        for (mode, steps) in cases {
            let stage = keeping(mode, false);
            let ino = stage.file(Ino::ROOT, "f").await;
            for (seconds, moves) in steps {
                let before = stage.attr(ino).unwrap();
                stage.pass(Duration::from_secs(seconds));
                assert_eq!(
                    stage.meta.touch_atime(ino).await.unwrap(),
                    moves,
                    "{mode:?} {seconds}"
                );
                let after = stage.attr(ino).unwrap();
                let expected = if moves {
                    stage.meta.now()
                } else {
                    before.atime
                };
                assert_eq!(after.atime, expected);
                assert_eq!((after.ctime, after.mtime), (before.ctime, before.mtime));
            }
            assert!(!stage.meta.touch_atime(Ino(99)).await.unwrap(), "gone");
        }
        let stage = keeping(AtimeMode::Strictatime, true);
        stage.pass(Duration::from_secs(9));
        let (touched, count) = requests(&stage, stage.meta.touch_atime(Ino::ROOT)).await;
        assert_eq!((touched.unwrap(), count), (false, 0), "read-only");
    });
}

#[test]
fn an_access_time_never_undoes_a_change() {
    block_on(async {
        let stage = keeping(AtimeMode::Strictatime, false);
        let ino = stage.file(Ino::ROOT, "f").await;
        stage.pass(Duration::from_secs(5));
        // Somebody else writes between the read and the commit.
        let store = stage.store.clone();
        let once = AtomicU32::new(0);
        stage.store.on_request(move |request| {
            if matches!(request, Request::Commit(_)) && once.fetch_add(1, Ordering::Relaxed) == 0 {
                let old = store.peek(&Key::Attr(ino)).unwrap().attr().unwrap();
                let mut new = old.clone();
                (new.length, new.mtime.sec) = (77, NOON + 4);
                let writes = vec![Write::UpdateAttr { ino, old, new }];
                let checks = Vec::new();
                store.apply(&Txn { checks, writes }).unwrap();
            }
            Verdict::Serve
        });
        assert!(stage.meta.touch_atime(ino).await.unwrap());
        stage.store.clear_hook();
        let attr = stage.attr(ino).unwrap();
        assert_eq!(
            (attr.length, attr.mtime.sec, attr.atime.sec),
            (77, NOON + 4, NOON + 5)
        );
    });
}
