//! What a process remembers saves round trips and never an answer: counted on the memory engine, whose every
//! request is one round trip of a real one, and checked against changes made behind the operations' back.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may panic like the test"
)]

#[path = "support/stage.rs"]
mod stage;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice_meta::client::{MetaOptions, MetaResult};
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Counter, Key, Write};
use sluice_meta::jobs::session::{Session, SessionInfo};
use sluice_meta::ops::elsewhere::ChangedInode;
use sluice_meta::ops::{Caller, OpenFlags, Rename, RenameMode, SetAttr, WriteCommit};
use sluice_meta::types::{ChunkIndex, Dentry, FileKind, Ino, Name, Slice, SliceId};

use stage::{Kept, Stage, block_on, setting};

const ROOT: Caller = Caller::ROOT;

/// Counts the requests of `work`; numbers in batches, which many operations share, are not counted.
async fn trips<T>(stage: &Stage, work: impl Future<Output = MetaResult<T>>) -> (u32, T) {
    let count = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&count);
    stage.store.on_request(move |request| {
        if !matches!(request, Request::Alloc(_)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Verdict::Serve
    });
    let answer = work.await.unwrap();
    stage.store.clear_hook();
    (count.load(Ordering::Relaxed), answer)
}

/// A process that remembers nothing of the volume.
fn forgetful(stage: &Stage) -> sluice_meta::client::Meta {
    stage.colleague()
}

fn rename(from: (Ino, &'static str), to: (Ino, &'static str)) -> Rename {
    Rename {
        from_parent: from.0,
        from_name: Name::from_static(from.1.as_bytes()),
        to_parent: to.0,
        to_name: Name::from_static(to.1.as_bytes()),
        mode: RenameMode::Replace,
    }
}

#[test]
fn round_trips_when_the_records_are_at_hand() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let meta = &stage.meta;
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        let other = stage.mkdir(Ino::ROOT, "e").await;
        let file = stage.file(dir, "warm").await;
        let linked = stage.file(dir, "linked").await;
        let new = stage::new_inode(FileKind::File);
        let sub = stage::new_inode(FileKind::Directory);
        // What the kernel looks up before it renames.
        assert!(meta.lookup(dir, b"c").await.is_err());
        assert!(meta.lookup(other, b"s").await.is_err());
        let checks = [
            (
                "create",
                trips(&stage, meta.mknod(&ROOT, dir, b"a", &new)).await.0,
            ),
            (
                "mkdir",
                trips(&stage, meta.mknod(&ROOT, dir, b"s", &sub)).await.0,
            ),
            (
                "symlink",
                trips(&stage, meta.symlink(&ROOT, dir, b"l", b"t")).await.0,
            ),
            (
                "link",
                trips(&stage, meta.link(&ROOT, linked, dir, b"b")).await.0,
            ),
            (
                "rename",
                trips(&stage, meta.rename(&ROOT, &rename((dir, "a"), (dir, "c"))))
                    .await
                    .0,
            ),
            (
                "rename of a directory",
                trips(
                    &stage,
                    meta.rename(&ROOT, &rename((dir, "s"), (other, "s"))),
                )
                .await
                .0,
            ),
            (
                "setattr",
                trips(
                    &stage,
                    meta.setattr(
                        &ROOT,
                        file,
                        &SetAttr {
                            mode: Some(0o600),
                            ..SetAttr::default()
                        },
                    ),
                )
                .await
                .0,
            ),
            ("commit", trips(&stage, meta.write(file, &flush(1))).await.0),
            (
                "unlink",
                trips(&stage, meta.unlink(&ROOT, dir, b"c")).await.0,
            ),
            (
                "rmdir",
                trips(&stage, meta.rmdir(&ROOT, other, b"s")).await.0,
            ),
        ];
        for (name, count) in checks {
            assert_eq!(count, 1, "{name}");
        }
    });
}

fn flush(id: u64) -> WriteCommit {
    WriteCommit {
        slices: vec![(
            ChunkIndex(0),
            Slice {
                pos: 0,
                id: SliceId(id),
                size: 10,
                off: 0,
                len: 10,
            },
        )],
        length: 10,
        mtime: sluice_meta::types::Timestamp { sec: 5, nsec: 0 },
        kill_suid: false,
    }
}

/// The same as a Redis server counts: a round trip is one read of our connection by the server.
#[test]
fn round_trips_counted_by_redis() {
    let stage = Stage::on(Kept::Redis, setting(0));
    block_on(async {
        let mut client = stage.redis_client();
        let mut reads = || -> u64 {
            let info: redis::InfoDict = redis::cmd("INFO").arg("stats").query(&mut client).unwrap();
            info.get("total_reads_processed").unwrap()
        };
        macro_rules! trips {
            ($work:expr) => {{
                let before = reads();
                $work.await.unwrap();
                // The question itself is one.
                reads() - before - 1
            }};
        }
        let meta = &stage.meta;
        let (file, dir) = (
            stage::new_inode(FileKind::File),
            stage::new_inode(FileKind::Directory),
        );
        // Takes numbers for all that follows.
        let top = stage.mkdir(Ino::ROOT, "top").await;
        let cold = stage.colleague();
        cold.mknod(&ROOT, Ino::ROOT, b"numbers", &file)
            .await
            .unwrap();
        let old = stage.file(top, "old").await;
        for (known, meta) in [(true, meta), (false, &stage.colleague())] {
            let tag = if known { "warm" } else { "cold" };
            let most = if known { 1 } else { 2 };
            let check = |what: &str, most: u64, count: u64| {
                assert!(count <= most, "{tag} {what}: {count} round trips");
            };
            if !known {
                let (ino, _) = meta
                    .mknod(&ROOT, Ino::ROOT, b"cold numbers", &file)
                    .await
                    .unwrap();
                assert!(ino > old);
            }
            let name = |what: &str| format!("{what} {tag}").into_bytes();
            check(
                "create",
                most,
                trips!(meta.mknod(&ROOT, top, &name("c"), &file)),
            );
            check("mkdir", 1, trips!(meta.mknod(&ROOT, top, &name("d"), &dir)));
            check("lookup", 1, trips!(meta.lookup(top, b"old")));
            check("getattr", 1, trips!(meta.getattr(old)));
            let read = OpenFlags {
                read: true,
                write: false,
                append: false,
                truncate: false,
            };
            check("open", 1, trips!(meta.open(old, read)));
            check(
                "setattr",
                most,
                trips!(meta.setattr(&ROOT, old, &owner(if known { 1 } else { 2 }))),
            );
            check(
                "commit",
                most,
                trips!(meta.write(old, &flush(if known { 11 } else { 12 }))),
            );
            check("link", most, trips!(meta.link(&ROOT, old, top, &name("l"))));
            check("unlink", most, trips!(meta.unlink(&ROOT, top, &name("l"))));
            assert!(meta.lookup(top, &name("r")).await.is_err());
            let from = Name::from(name("c"));
            let to = Rename {
                from_parent: top,
                from_name: from,
                to_parent: top,
                to_name: Name::from(name("r")),
                mode: RenameMode::Replace,
            };
            check("rename", most, trips!(meta.rename(&ROOT, &to)));
        }
    });
}

#[test]
fn heartbeats_and_listings_counted_by_redis() {
    let stage = Stage::on(Kept::Redis, setting(0));
    block_on(async {
        let mut client = stage.redis_client();
        let mut reads = || -> u64 {
            let info: redis::InfoDict = redis::cmd("INFO").arg("stats").query(&mut client).unwrap();
            info.get("total_reads_processed").unwrap()
        };
        let setting = stage.meta.shared().setting().render();
        stage.apply(vec![Write::PutSetting(setting.into())]);
        let info = SessionInfo::of_this_process("/mnt", stage.meta.now());
        let beat = Duration::from_secs(12);
        let session = Session::register(&stage.meta, &info, beat).await.unwrap();
        let before = reads();
        session.heartbeat(&stage.meta).await.unwrap();
        assert_eq!(reads() - before - 1, 1, "heartbeat");

        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        const ENTRIES: u64 = 5000;
        for at in 0..ENTRIES {
            stage.file(dir, &format!("file{at}")).await;
        }
        let before = reads();
        let (mut cursor, mut found) = (None, 0);
        loop {
            let page = stage
                .meta
                .readdir(dir, cursor.as_ref(), 1000, true)
                .await
                .unwrap();
            found += page.entries.len() as u64;
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        let trips = reads() - before - 1;
        assert!(
            found >= ENTRIES && trips <= ENTRIES / 1000 + 2,
            "{trips} round trips"
        );
    });
}

fn owner(uid: u32) -> SetAttr {
    SetAttr {
        uid: Some(uid),
        ..SetAttr::default()
    }
}

#[test]
fn round_trips_when_nothing_is_known() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let (dir, other) = (
            stage.mkdir(Ino::ROOT, "d").await,
            stage.mkdir(Ino::ROOT, "e").await,
        );
        let sub = stage.mkdir(dir, "s").await;
        stage.mkdir(sub, "t").await;
        let file = stage.file(dir, "f").await;
        let linked = stage.file(dir, "h").await;
        stage.file(dir, "g").await;
        let new = stage::new_inode(FileKind::File);
        let cold = || forgetful(&stage);
        let checks = [
            ("lookup", 1, trips(&stage, cold().lookup(dir, b"f")).await.0),
            ("getattr", 1, trips(&stage, cold().getattr(file)).await.0),
            (
                "create",
                2,
                trips(&stage, cold().mknod(&ROOT, dir, b"a", &new)).await.0,
            ),
            (
                "link",
                2,
                trips(&stage, cold().link(&ROOT, linked, dir, b"b")).await.0,
            ),
            (
                "rename",
                2,
                trips(
                    &stage,
                    cold().rename(&ROOT, &rename((dir, "a"), (other, "a"))),
                )
                .await
                .0,
            ),
            (
                "rename of a directory",
                2,
                trips(
                    &stage,
                    cold().rename(&ROOT, &rename((sub, "t"), (other, "t"))),
                )
                .await
                .0,
            ),
            (
                "commit",
                2,
                trips(&stage, cold().write(file, &flush(2))).await.0,
            ),
            (
                "unlink",
                2,
                trips(&stage, cold().unlink(&ROOT, dir, b"g")).await.0,
            ),
            (
                "rmdir",
                2,
                trips(&stage, cold().rmdir(&ROOT, dir, b"s")).await.0,
            ),
        ];
        for (name, most, count) in checks {
            assert!(count <= most, "{name}: {count}");
        }
    });
}

/// Each operation starts from memory that somebody else has made wrong, and must end as if it had read.
#[test]
fn wrong_memory_costs_a_round_trip_and_nothing_else() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let meta = &stage.meta;
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        let file = stage.file(dir, "f").await;
        let name = Name::from_static(b"f");
        let new = stage::new_inode(FileKind::File);

        // Somebody else made the name.
        let (parent, taken) = (dir, Name::from_static(b"taken"));
        let dentry = Dentry {
            kind: FileKind::File,
            ino: file,
        };
        stage.apply(vec![Write::InsertDentry {
            parent,
            name: taken,
            dentry,
        }]);
        let made = meta.mknod(&ROOT, dir, b"taken", &new).await;
        assert_eq!(stage::errno(&made), libc_like::EEXIST);

        // Somebody else removed it: memory says it is there.
        meta.lookup(dir, b"f").await.unwrap();
        stage.apply(vec![Write::DeleteDentry { parent, name }]);
        let removed = meta.unlink(&ROOT, dir, b"f").await;
        assert_eq!(stage::errno(&removed), libc_like::ENOENT);

        // Somebody else changed the owner; our change of the mode must keep it.
        meta.getattr(file).await.unwrap();
        stage.patch(file, |attr| attr.uid = 77);
        let set = SetAttr {
            mode: Some(0o640),
            ..SetAttr::default()
        };
        let attr = meta.setattr(&ROOT, file, &set).await.unwrap();
        assert_eq!((attr.uid, attr.mode), (77, 0o640));

        // Memory says that the mode is that already: it is not.
        stage.patch(file, |attr| attr.mode = 0o777);
        let attr = meta.setattr(&ROOT, file, &set).await.unwrap();
        assert_eq!(attr.mode, 0o640);

        // The parent's group is inherited as it is now.
        stage.patch(dir, |attr| {
            attr.mode |= 0o2000;
            attr.gid = 88;
        });
        let (_, attr) = meta.mknod(&ROOT, dir, b"heir", &new).await.unwrap();
        assert_eq!(attr.gid, 88);

        // The directory is gone.
        stage.apply(vec![
            Write::DeleteAttr(dir),
            Write::DeleteDentry {
                parent: Ino::ROOT,
                name: Name::from_static(b"d"),
            },
        ]);
        let made = meta.mknod(&ROOT, dir, b"late", &new).await;
        assert_eq!(stage::errno(&made), libc_like::ENOENT);
    });
}

/// Error numbers of Linux.
mod libc_like {
    pub(super) const ENOENT: i32 = 2;
    pub(super) const EEXIST: i32 = 17;
}

#[test]
fn directories_are_remembered_with_our_changes_and_not_for_long() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        let second = Duration::from_secs(1);
        stage.meta.getattr(dir).await.unwrap();
        stage.pass(Duration::from_millis(400));
        stage.mkdir(dir, "s").await;
        let (attr, age) = stage.meta.remembered_directory(dir, second).unwrap();
        assert_eq!(Some(attr), stage.attr(dir));
        assert_eq!(age, Duration::from_millis(400));
        stage.pass(Duration::from_millis(600));
        assert_eq!(stage.meta.remembered_directory(dir, second), None);
        let file = stage.file(dir, "f").await;
        stage.meta.getattr(file).await.unwrap();
        assert_eq!(stage.meta.remembered_directory(file, second), None);
    });
}

#[test]
fn changes_of_others_are_told_from_ours() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let meta = &stage.meta;
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        let file = stage.file(dir, "f").await;
        let (ours, theirs) = (Name::from_static(b"f"), Name::from_static(b"g"));
        let seen = Cell::new(Vec::new());
        let ask = async || {
            seen.set(meta.inodes_changed_elsewhere(&[dir, file]).await.unwrap());
            let names = [ours.clone(), theirs.clone()];
            meta.names_changed_elsewhere(dir, &names).await.unwrap()
        };
        assert_eq!(
            ask().await,
            std::slice::from_ref(&theirs),
            "never looked up"
        );
        assert_eq!(seen.take(), []);
        assert!(meta.lookup(dir, b"g").await.is_err());
        assert!(ask().await.is_empty());
        stage.patch(file, |attr| attr.uid = 5);
        stage.apply(vec![Write::InsertDentry {
            parent: dir,
            name: theirs.clone(),
            dentry: Dentry {
                kind: FileKind::File,
                ino: file,
            },
        }]);
        assert_eq!(ask().await, std::slice::from_ref(&theirs));
        let changed = ChangedInode {
            ino: file,
            content: false,
        };
        assert_eq!(seen.take(), [changed]);
        assert!(ask().await.is_empty(), "it has been told once");
        assert_eq!(seen.take(), []);
        stage.patch(file, |attr| attr.length = 9);
        ask().await;
        let changed = ChangedInode {
            content: true,
            ..changed
        };
        assert_eq!(seen.take(), [changed]);
        assert!(stage.peek(Key::Attr(file)).is_some());
    });
}

#[test]
fn usage_may_be_shown_without_asking() {
    block_on(async {
        let options = MetaOptions {
            fast_statfs: true,
            ..MetaOptions::default()
        };
        let stage = Stage::with(Kept::Memory, setting(0), options);
        stage.file(Ino::ROOT, "a").await;
        let (_, before) = trips(&stage, stage.meta.statfs(Ino::ROOT)).await;
        stage.file(Ino::ROOT, "b").await;
        let (asked, after) = trips(&stage, stage.meta.statfs(Ino::ROOT)).await;
        assert_eq!((asked, after.inodes_used), (0, before.inodes_used + 1));
        // Others' changes are seen with the next refresh.
        stage.apply(vec![Write::AddCounter {
            counter: Counter::TotalInodes,
            delta: 5,
        }]);
        let (asked, stale) = trips(&stage, stage.meta.statfs(Ino::ROOT)).await;
        assert_eq!((asked, stale), (0, after));

        let asks = Stage::new(setting(0));
        asks.file(Ino::ROOT, "a").await;
        assert_eq!(trips(&asks, asks.meta.statfs(Ino::ROOT)).await.0, 1);
    });
}

/// `--open-cache`: an open within the time asks nobody, sees our own changes, and never refuses from memory.
#[test]
fn opens_may_be_answered_from_memory() {
    block_on(async {
        let options = MetaOptions {
            open_cache: Duration::from_secs(10),
            ..MetaOptions::default()
        };
        let stage = Stage::with(Kept::Memory, setting(0), options);
        let meta = &stage.meta;
        let file = stage.file(Ino::ROOT, "f").await;
        let read = OpenFlags {
            read: true,
            write: false,
            append: false,
            truncate: false,
        };
        let (count, _) = trips(&stage, meta.open(file, read)).await;
        assert_eq!(count, 0, "it was made here a moment ago");
        meta.write(file, &flush(1)).await.unwrap();
        let (count, attr) = trips(&stage, meta.open(file, read)).await;
        assert_eq!((count, attr.length), (0, 10));
        stage.patch(file, |attr| attr.length = 20);
        assert_eq!(meta.open(file, read).await.unwrap().length, 10);
        stage.pass(Duration::from_secs(10));
        let (count, attr) = trips(&stage, meta.open(file, read)).await;
        assert_eq!((count, attr.length), (1, 20));
        // Frozen as far as memory knows, and no more.
        let write = OpenFlags {
            write: true,
            ..read
        };
        stage.patch(file, |attr| attr.flags = 1);
        meta.getattr(file).await.unwrap();
        stage.patch(file, |attr| attr.flags = 0);
        meta.open(file, write).await.unwrap();
    });
}
