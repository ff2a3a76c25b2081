//! Quotas over the engine in memory: who is refused, who is charged, and that usage is what a recount of the
//! volume says, whatever was done and however commits ended.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, too"
)]

#[path = "support/stage.rs"]
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sluice_meta::client::MetaResult;
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Key, Write};
use sluice_meta::error::EngineError;
use sluice_meta::ops::summary::{Summary, Walk};
use sluice_meta::ops::{Caller, FallocateMode, NewInode, RenameMode, SetAttr};
use sluice_meta::quota::Usage;
use sluice_meta::tools::quota::{self, QuotaError};
use sluice_meta::tools::summary::{self, Shape};
use sluice_meta::types::{
    Attr, DirStat, FileKind, Ino, Name, Quota, QuotaKey, align_4k, attr_flags,
};
use sluice_meta::volume::Setting;
use stage::{SESSION, Stage, block_on, errno, setting};

const EDQUOT: i32 = 122;
const ENOSPC: i32 = 28;

/// A volume that accounts users and groups, too.
fn accounted(trash_days: u32) -> Setting {
    Setting {
        user_group_quota: true,
        ..setting(trash_days)
    }
}

/// Sets limits as another client would; they are in force after a load.
async fn limit(stage: &Stage, key: QuotaKey, max_space: i64, max_inodes: i64) {
    stage.apply(vec![Write::PutQuotaLimits {
        key,
        max_space,
        max_inodes,
    }]);
    stage.meta.load_quotas().await.unwrap();
}

fn stored(stage: &Stage, key: QuotaKey) -> Option<Quota> {
    let record = stage.peek(Key::Quota(key));
    record.map(|record| record.quota().unwrap())
}

fn used(stage: &Stage, key: QuotaKey) -> (i64, i64) {
    let quota = stage.meta.shared().quotas.get(key).unwrap_or_default();
    (quota.used_space, quota.used_inodes)
}

fn charged(attr: &Attr) -> i64 {
    match attr.kind {
        FileKind::File => align_4k(attr.length),
        _ => 4096,
    }
}

/// Usage of every quota as a walk over the volume finds it.
async fn recount(stage: &Stage) -> BTreeMap<QuotaKey, (i64, i64)> {
    let mut found: BTreeMap<QuotaKey, (i64, i64)> = BTreeMap::new();
    let mut add = |key, space| {
        let (bytes, inodes) = found.entry(key).or_default();
        *bytes += space;
        *inodes += 1;
    };
    let mut inodes: BTreeSet<Ino> = stage.sustained();
    for ((dir, _), ino) in stage.walk().await {
        let space = charged(&stage.attr(ino).unwrap());
        inodes.insert(ino);
        let mut at = dir;
        while !at.is_trash() {
            add(QuotaKey::Dir(at), space);
            if at == Ino::ROOT {
                break;
            }
            at = stage.attr(at).unwrap().parent;
        }
    }
    for attr in inodes.into_iter().filter_map(|ino| stage.attr(ino)) {
        add(QuotaKey::User(attr.uid), charged(&attr));
        add(QuotaKey::Group(attr.gid), charged(&attr));
    }
    found
}

/// Everything pending is written, and the store's usage is that of a recount.
async fn check_usage(stage: &Stage, keys: &[QuotaKey]) {
    stage.meta.flush_quotas().await.unwrap();
    assert_eq!(stage.meta.flush_quotas().await.unwrap(), 0, "left pending");
    let found = recount(stage).await;
    for key in keys {
        let quota = stored(stage, *key).unwrap_or_default();
        let expect = found.get(key).copied().unwrap_or_default();
        assert_eq!((quota.used_space, quota.used_inodes), expect, "{key:?}");
        assert_eq!(used(stage, *key), expect, "{key:?} in memory");
    }
}

fn user(uid: u32) -> Caller {
    Caller {
        uid,
        gid: uid,
        pid: 1,
    }
}

async fn make(stage: &Stage, caller: &Caller, parent: Ino, name: &str) -> MetaResult<Ino> {
    let new = NewInode {
        kind: FileKind::File,
        mode: 0o644,
        umask: 0,
        rdev: 0,
    };
    let made = stage.meta.mknod(caller, parent, name.as_bytes(), &new);
    made.await.map(|(ino, _)| ino)
}

async fn resize(stage: &Stage, ino: Ino, length: u64) -> i32 {
    let resized = stage.meta.truncate(&Caller::ROOT, ino, length, true);
    errno(&resized.await)
}

#[test]
fn a_directory_refuses_what_goes_beyond_its_limits() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let top = stage.mkdir(Ino::ROOT, "top").await;
        let deep = stage.mkdir(top, "deep").await;
        let key = QuotaKey::Dir(top);
        limit(&stage, key, 4 * 4096, 3).await;
        // "deep" was there before the quota: usage is for whoever sets one to count.
        let file = stage.file(deep, "file").await;
        assert_eq!(used(&stage, key), (4096, 1));
        assert_eq!(resize(&stage, file, 4 * 4096 + 1).await, EDQUOT);
        assert_eq!(resize(&stage, file, 3 * 4096).await, 0);
        let other = stage.file(deep, "other").await;
        assert_eq!(used(&stage, key), (4 * 4096, 2));
        // Full: nothing grows, in none of the ways there are.
        assert_eq!(errno(&stage.make(FileKind::File, deep, "x").await), EDQUOT);
        assert_eq!(
            errno(&stage.make(FileKind::Directory, top, "x").await),
            EDQUOT
        );
        let link = stage
            .meta
            .symlink(&Caller::ROOT, deep, b"x", b"target")
            .await;
        assert_eq!(errno(&link), EDQUOT);
        let link = stage.meta.link(&Caller::ROOT, other, deep, b"x").await;
        assert_eq!(errno(&link), EDQUOT);
        let grown = stage
            .meta
            .fallocate(other, FallocateMode::Allocate, 0, 4097);
        assert_eq!(errno(&grown.await), EDQUOT);
        // What does not grow does, and elsewhere there is room.
        assert_eq!(resize(&stage, other, 4096).await, 0);
        stage.file(Ino::ROOT, "outside").await;
        assert_eq!(resize(&stage, file, 4096).await, 0);
        stage.file(deep, "x").await;
        assert_eq!(used(&stage, key), (3 * 4096, 3));
        assert_eq!(errno(&stage.make(FileKind::File, deep, "y").await), EDQUOT);
        stage.meta.unlink(&Caller::ROOT, deep, b"x").await.unwrap();
        stage.file(deep, "y").await;
    });
}

#[test]
fn owners_come_before_the_volume_and_directories_last() {
    block_on(async {
        let stage = Stage::new(Setting {
            inodes: 2,
            ..accounted(0)
        });
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        limit(&stage, QuotaKey::Dir(dir), -1, 1).await;
        limit(&stage, QuotaKey::User(1), -1, 1).await;
        limit(&stage, QuotaKey::Group(2), -1, 1).await;
        make(&stage, &user(1), dir, "a").await.unwrap();
        // Everything is full: user 1 by quota, group 2 not yet, the volume.
        assert_eq!(errno(&make(&stage, &user(1), dir, "b").await), EDQUOT);
        assert_eq!(errno(&make(&stage, &user(2), dir, "b").await), ENOSPC);
        assert_eq!(errno(&make(&stage, &user(3), Ino::ROOT, "b").await), ENOSPC);
        let mut roomy = (*stage.meta.shared().setting()).clone();
        roomy.inodes = 0;
        *stage.meta.shared().setting.write() = Arc::new(roomy);
        assert_eq!(errno(&make(&stage, &user(2), dir, "b").await), EDQUOT);
        make(&stage, &user(2), Ino::ROOT, "b").await.unwrap();
        assert_eq!(errno(&make(&stage, &user(2), Ino::ROOT, "c").await), EDQUOT);
        make(&stage, &user(3), Ino::ROOT, "c").await.unwrap();
        check_usage(
            &stage,
            &[QuotaKey::User(3), QuotaKey::Group(2), QuotaKey::Dir(dir)],
        )
        .await;
    });
}

#[test]
fn the_group_charged_is_the_one_the_file_gets() {
    block_on(async {
        let stage = Stage::new(accounted(0));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        stage.patch(dir, |attr| {
            attr.mode |= 0o2000;
            attr.gid = 9;
        });
        limit(&stage, QuotaKey::Group(9), 4096, -1).await;
        // Made before group 9 had it: only what is charged from now on counts.
        make(&stage, &user(1), dir, "a").await.unwrap();
        assert_eq!(errno(&make(&stage, &user(1), dir, "b").await), EDQUOT);
        assert_eq!(used(&stage, QuotaKey::Group(9)), (4096, 1));
        assert_eq!(used(&stage, QuotaKey::Group(1)), (0, 0));
    });
}

#[test]
fn a_new_owner_takes_the_usage_over() {
    block_on(async {
        let stage = Stage::new(accounted(0));
        let file = make(&stage, &user(1), Ino::ROOT, "a").await.unwrap();
        assert_eq!(resize(&stage, file, 5000).await, 0);
        for (uid, gid) in [(Some(2), None), (None, Some(3)), (Some(1), Some(1))] {
            let set = SetAttr {
                uid,
                gid,
                ..SetAttr::default()
            };
            stage.meta.setattr(&Caller::ROOT, file, &set).await.unwrap();
            let attr = stage.attr(file).unwrap();
            assert_eq!(used(&stage, QuotaKey::User(attr.uid)), (8192, 1));
            assert_eq!(used(&stage, QuotaKey::Group(attr.gid)), (8192, 1));
        }
        let keys = [1, 2, 3].map(QuotaKey::User);
        check_usage(&stage, &keys).await;
        check_usage(&stage, &[1, 2, 3].map(QuotaKey::Group)).await;
    });
}

#[test]
fn the_trash_frees_directories_but_not_owners() {
    block_on(async {
        let stage = Stage::new(accounted(1));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        limit(&stage, QuotaKey::Dir(dir), -1, -1).await;
        let file = make(&stage, &user(1), dir, "a").await.unwrap();
        stage.register();
        stage.open(file);
        stage.meta.unlink(&Caller::ROOT, dir, b"a").await.unwrap();
        assert_eq!(used(&stage, QuotaKey::Dir(dir)), (0, 0));
        assert_eq!(used(&stage, QuotaKey::User(1)), (4096, 1));
        // A put back is charged again; growing in the trash concerns the owner alone.
        let (name, _) = stage.trash().await.pop_first().unwrap();
        let hour = stage.attr(file).unwrap().parent;
        assert_eq!(resize(&stage, file, 8192).await, 0);
        assert_eq!(used(&stage, QuotaKey::Dir(dir)), (0, 0));
        let name = String::from_utf8(name.to_vec()).unwrap();
        let back = stage.rename(
            &Caller::ROOT,
            (hour, &name),
            (dir, "a"),
            RenameMode::NoReplace,
        );
        back.await.unwrap();
        assert_eq!(used(&stage, QuotaKey::Dir(dir)), (8192, 1));
        // Removed for good while open: the owner pays until the last close.
        stage.patch(file, |attr| attr.flags |= attr_flags::SKIP_TRASH);
        stage.meta.unlink(&Caller::ROOT, dir, b"a").await.unwrap();
        assert_eq!(used(&stage, QuotaKey::Dir(dir)), (0, 0));
        assert_eq!(used(&stage, QuotaKey::User(1)), (8192, 1));
        assert_eq!(resize(&stage, file, 12288).await, 0);
        assert_eq!(used(&stage, QuotaKey::User(1)), (12288, 1));
        check_usage(
            &stage,
            &[QuotaKey::User(1), QuotaKey::User(0), QuotaKey::Dir(dir)],
        )
        .await;
        stage.meta.close(file).await.unwrap();
        assert_eq!(used(&stage, QuotaKey::User(1)), (0, 0));
        check_usage(
            &stage,
            &[QuotaKey::User(1), QuotaKey::User(0), QuotaKey::Dir(dir)],
        )
        .await;
    });
}

#[test]
fn trees_move_between_quotas_as_a_whole() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let (a, b) = (
            stage.mkdir(Ino::ROOT, "a").await,
            stage.mkdir(Ino::ROOT, "b").await,
        );
        let keys = [QuotaKey::Dir(a), QuotaKey::Dir(b), QuotaKey::Dir(Ino::ROOT)];
        limit(&stage, keys[0], -1, -1).await;
        limit(&stage, keys[1], 5 * 4096, 4).await;
        let sub = stage.mkdir(a, "sub").await;
        let file = stage.file(sub, "file").await;
        stage.file(sub, "more").await;
        assert_eq!(resize(&stage, file, 3 * 4096).await, 0);
        // 5 blocks, 3 inodes: fits exactly, but not beside anything else.
        stage.file(b, "x").await;
        let go = |mode| stage.rename(&Caller::ROOT, (a, "sub"), (b, "sub"), mode);
        assert_eq!(errno(&go(RenameMode::Replace).await), EDQUOT);
        assert_eq!(used(&stage, keys[0]), (5 * 4096, 3), "nothing moved");
        stage.meta.unlink(&Caller::ROOT, b, b"x").await.unwrap();
        // What it replaces makes room.
        stage.mkdir(b, "sub").await;
        go(RenameMode::Replace).await.unwrap();
        assert_eq!(
            (used(&stage, keys[0]), used(&stage, keys[1])),
            ((0, 0), (5 * 4096, 3))
        );
        check_usage(&stage, &keys[..2]).await;
        // Back under a quota of its own, which moves along and speaks for the tree.
        limit(&stage, QuotaKey::Dir(sub), -1, -1).await;
        stage.apply(vec![Write::PutQuotaUsage {
            key: QuotaKey::Dir(sub),
            space: 4 * 4096,
            inodes: 2,
        }]);
        stage.meta.load_quotas().await.unwrap();
        let back = stage.rename(&Caller::ROOT, (b, "sub"), (a, "sub"), RenameMode::Replace);
        back.await.unwrap();
        check_usage(&stage, &[keys[0], keys[1], QuotaKey::Dir(sub)]).await;
        // An exchange must suit both sides.
        stage.file(b, "y").await;
        limit(&stage, keys[0], 5 * 4096, -1).await;
        let swap = || stage.rename(&Caller::ROOT, (a, "sub"), (b, "y"), RenameMode::Exchange);
        limit(&stage, keys[1], 4 * 4096, -1).await;
        assert_eq!(errno(&swap().await), EDQUOT);
        limit(&stage, keys[1], 5 * 4096, -1).await;
        swap().await.unwrap();
        check_usage(&stage, &[keys[0], keys[1], QuotaKey::Dir(sub)]).await;
        // A removed directory takes its quota along.
        for name in [&b"file"[..], b"more"] {
            stage.meta.unlink(&Caller::ROOT, sub, name).await.unwrap();
        }
        stage.meta.rmdir(&Caller::ROOT, b, b"y").await.unwrap();
        assert_eq!(stored(&stage, QuotaKey::Dir(sub)), None);
        check_usage(&stage, &keys[..2]).await;
    });
}

#[test]
fn hard_links_count_for_each_name_in_directories_and_once_for_owners() {
    block_on(async {
        let stage = Stage::new(accounted(0));
        let (a, b) = (
            stage.mkdir(Ino::ROOT, "a").await,
            stage.mkdir(Ino::ROOT, "b").await,
        );
        limit(&stage, QuotaKey::Dir(a), 6 * 4096, -1).await;
        limit(&stage, QuotaKey::Dir(b), -1, -1).await;
        let file = make(&stage, &user(1), a, "1").await.unwrap();
        for (dir, name) in [(a, b"2"), (b, b"3")] {
            stage
                .meta
                .link(&Caller::ROOT, file, dir, name)
                .await
                .unwrap();
        }
        // Each name in "a" grows.
        assert_eq!(resize(&stage, file, 4 * 4096).await, EDQUOT);
        assert_eq!(resize(&stage, file, 3 * 4096).await, 0);
        assert_eq!(used(&stage, QuotaKey::Dir(a)), (6 * 4096, 2));
        assert_eq!(used(&stage, QuotaKey::Dir(b)), (3 * 4096, 1));
        assert_eq!(used(&stage, QuotaKey::User(1)), (3 * 4096, 1));
        stage.meta.unlink(&Caller::ROOT, a, b"1").await.unwrap();
        let keys = [QuotaKey::Dir(a), QuotaKey::Dir(b), QuotaKey::User(1)];
        check_usage(&stage, &keys).await;
    });
}

#[test]
fn nothing_is_asked_while_no_quota_is_there() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        let asked = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&asked);
        stage.store.on_request(move |request| {
            if let Request::Read(keys) = request {
                let ancestors = |key: &&Key| matches!(key, Key::Ancestors(_));
                seen.fetch_add(keys.iter().filter(ancestors).count(), Ordering::Relaxed);
            }
            Verdict::Serve
        });
        stage.file(dir, "a").await;
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        stage.apply(vec![Write::PutQuotaLimits {
            key: QuotaKey::Dir(dir),
            max_space: -1,
            max_inodes: -1,
        }]);
        stage.meta.load_quotas().await.unwrap();
        let deep = stage.mkdir(dir, "deep").await;
        assert_eq!(asked.load(Ordering::Relaxed), 1, "the way up, in one");
        let deeper = stage.mkdir(deep, "deeper").await;
        stage.file(deeper, "b").await;
        assert_eq!(asked.load(Ordering::Relaxed), 1, "learnt from then on");
        assert_eq!(used(&stage, QuotaKey::Dir(dir)), (3 * 4096, 3));
    });
}

#[test]
fn a_lost_answer_neither_loses_nor_doubles_a_change() {
    for applied in [false, true] {
        block_on(async {
            let stage = Stage::new(accounted(0));
            let dir = stage.mkdir(Ino::ROOT, "dir").await;
            limit(&stage, QuotaKey::Dir(dir), -1, -1).await;
            stage.file(dir, "a").await;
            let fault = || EngineError::UnknownFate {
                engine: "memory",
                cause: "injected".into(),
            };
            stage.store.on_request(move |request| match request {
                Request::Commit(_) if applied => Verdict::ServeThenFail(fault()),
                Request::Commit(_) => Verdict::Fail(fault()),
                _ => Verdict::Serve,
            });
            stage.meta.flush_quotas().await.unwrap();
            stage.store.clear_hook();
            check_usage(&stage, &[QuotaKey::Dir(dir), QuotaKey::User(0)]).await;
            // The store is away: the change waits.
            stage.file(dir, "b").await;
            stage.store.on_request(|_| {
                Verdict::Fail(EngineError::Busy {
                    engine: "memory",
                    cause: "injected".into(),
                })
            });
            assert!(stage.meta.flush_quotas().await.is_err());
            stage.store.clear_hook();
            check_usage(&stage, &[QuotaKey::Dir(dir), QuotaKey::User(0)]).await;
        });
    }
}

#[test]
fn a_quota_deleted_meanwhile_stays_deleted() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let dir = stage.mkdir(Ino::ROOT, "dir").await;
        limit(&stage, QuotaKey::Dir(dir), -1, -1).await;
        stage.file(dir, "a").await;
        stage.apply(vec![Write::DeleteQuota(QuotaKey::Dir(dir))]);
        stage.meta.flush_quotas().await.unwrap();
        assert_eq!(stored(&stage, QuotaKey::Dir(dir)), None);
        stage.meta.load_quotas().await.unwrap();
        assert!(!stage.meta.shared().quotas.watches_dirs());
    });
}

#[test]
fn df_shows_the_quota_of_the_directory_that_is_mounted() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let top = stage.mkdir(Ino::ROOT, "top").await;
        let sub = stage.mkdir(top, "sub").await;
        limit(&stage, QuotaKey::Dir(top), 1 << 20, 100).await;
        stage.file(sub, "a").await;
        for root in [top, sub] {
            let shown = stage.meta.statfs(root).await.unwrap();
            assert_eq!((shown.total, shown.available), (1 << 20, (1 << 20) - 4096));
            assert_eq!((shown.inodes_used, shown.inodes_available), (1, 99));
            assert_eq!(stage.meta.quotas_known_above(root).len(), 1);
        }
        let whole = stage.meta.statfs(Ino::ROOT).await.unwrap();
        assert_eq!(whole.total, 1 << 50);
        // The store is silent.
        stage.store.on_request(|_| {
            Verdict::Fail(EngineError::Busy {
                engine: "memory",
                cause: "injected".into(),
            })
        });
        assert_eq!(stage.meta.statfs(sub).await.unwrap().total, 1 << 20);
    });
}

#[test]
fn summaries_agree_and_missing_statistics_are_made() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let top = stage.mkdir(Ino::ROOT, "top").await;
        let mut dirs = vec![top];
        for n in 0..130 {
            dirs.push(stage.mkdir(dirs[n / 3], &format!("d{n}")).await);
        }
        for (n, dir) in dirs.iter().enumerate() {
            let file = stage.file(*dir, "file").await;
            assert_eq!(resize(&stage, file, n as u64 * 1000).await, 0);
            let link = stage.meta.symlink(&Caller::ROOT, *dir, b"link", b"to");
            link.await.unwrap();
        }
        stage.meta.flush_dir_stats().await.unwrap();
        let strict = stage.meta.summary(top, Walk::Strict).await.unwrap();
        let lengths = (0..131).map(|n| n * 1000);
        let expect = Summary {
            length: lengths.clone().sum(),
            size: lengths.map(|it| align_4k(it).unsigned_abs()).sum::<u64>() + 2 * 131 * 4096,
            files: 262,
            dirs: 131,
        };
        assert_eq!(strict, expect);
        assert_eq!(stage.meta.summary(top, Walk::Fast).await.unwrap(), expect);
        assert_eq!(
            strict.usage_below(),
            Usage {
                space: expect.size.cast_signed() - 4096,
                inodes: 392
            }
        );
        // Lost or impossible statistics are made anew.
        let before = stage.dir_stat(dirs[7]);
        let broken = DirStat {
            length: -1,
            ..DirStat::default()
        };
        stage.apply(vec![
            Write::DeleteDirStat(dirs[7]),
            Write::PutDirStat {
                ino: dirs[9],
                stat: broken,
            },
        ]);
        assert_eq!(stage.meta.summary(top, Walk::Fast).await.unwrap(), expect);
        assert_eq!(stage.dir_stat(dirs[7]), before);
        assert!(stage.dir_stat(dirs[9]).unwrap().length > 0);
    });
}

// ---------------------------------------------------------------------------------------------------------
// The commands.

/// A volume whose setting is in the store, with 3 files of user 1 in /top/sub.
async fn furnished(setting: Setting) -> (Stage, Ino, Ino) {
    let setting = Setting {
        dir_stats: setting.dir_stats,
        user_group_quota: setting.user_group_quota,
        trash_days: setting.trash_days,
        ..Setting::fresh("test", "1-2-3")
    };
    let stage = Stage::new(setting.clone());
    stage.apply(vec![Write::PutSetting(setting.render().into())]);
    let top = stage.mkdir(Ino::ROOT, "top").await;
    let sub = stage.mkdir(top, "sub").await;
    for name in ["a", "b", "c"] {
        let file = make(&stage, &user(1), sub, name).await.unwrap();
        assert_eq!(resize(&stage, file, 5000).await, 0);
    }
    stage.meta.flush_dir_stats().await.unwrap();
    (stage, top, sub)
}

const TEN_MIB: quota::Limits = quota::Limits {
    space: Some(10 << 20),
    inodes: None,
};

#[test]
fn a_new_directory_quota_knows_what_is_there() {
    block_on(async {
        for walk in [Walk::Fast, Walk::Strict] {
            let (stage, top, sub) = furnished(setting(0)).await;
            let meta = &stage.meta;
            assert_eq!(
                quota::directory(meta, "/top//sub/", false).await.unwrap(),
                sub
            );
            let key = QuotaKey::Dir(top);
            let made = quota::set(meta, key, TEN_MIB, walk).await.unwrap();
            let expect = Quota {
                max_space: 10 << 20,
                max_inodes: -1,
                used_space: 3 * 8192 + 4096,
                used_inodes: 4,
            };
            assert_eq!(made, expect);
            // Changing one limit leaves the other and the usage.
            let more = quota::Limits {
                space: None,
                inodes: Some(7),
            };
            let made = quota::set(meta, key, more, walk).await.unwrap();
            let expect = Quota {
                max_inodes: 7,
                ..expect
            };
            assert_eq!(made, expect);
            assert_eq!(quota::list(meta).await.unwrap(), [(key, expect)].into());
            assert_eq!(
                quota::path_of(meta, sub).await.unwrap().unwrap(),
                "/top/sub"
            );
            assert_eq!(quota::path_of(meta, Ino(999)).await.unwrap(), None);
            // Drift is found, and repaired on demand.
            assert_eq!(
                quota::check_dir(meta, top, walk, false).await.unwrap(),
                None
            );
            stage.apply(vec![Write::AddQuotaUsage {
                key,
                space: 4096,
                inodes: -1,
            }]);
            for repair in [false, true] {
                let found = quota::check_dir(meta, top, walk, repair).await.unwrap();
                assert_eq!(found.unwrap().counted, expect.used());
            }
            assert_eq!(
                quota::check_dir(meta, top, walk, false).await.unwrap(),
                None
            );
            quota::delete(meta, key).await.unwrap();
            assert!(quota::list(meta).await.unwrap().is_empty());
            let none = quota::check_dir(meta, top, walk, false).await;
            assert!(matches!(none, Err(QuotaError::None { .. })));
        }
    });
}

#[test]
fn a_directory_can_be_made_for_its_quota_and_is_charged_above() {
    block_on(async {
        let (stage, top, _) = furnished(setting(0)).await;
        let meta = &stage.meta;
        let key = QuotaKey::Dir(top);
        quota::set(meta, key, TEN_MIB, Walk::Strict).await.unwrap();
        meta.load_quotas().await.unwrap();
        let missing = quota::directory(meta, "/top/x/y", false).await;
        assert!(matches!(missing, Err(QuotaError::NoDirectory { .. })));
        let file = quota::directory(meta, "/top/sub/a", true).await;
        assert!(matches!(file, Err(QuotaError::NotDirectory { .. })));
        let trash = quota::directory(meta, "/.trash", false).await;
        assert!(matches!(trash, Err(QuotaError::Trash { .. })));
        let made = quota::directory(meta, "/top/x/y", true).await.unwrap();
        assert_eq!(
            quota::path_of(meta, made).await.unwrap().unwrap(),
            "/top/x/y"
        );
        let drift = quota::check_dir(meta, top, Walk::Strict, false).await;
        assert_eq!(drift.unwrap(), None);
    });
}

#[test]
fn the_first_owner_quota_counts_the_volume() {
    block_on(async {
        let (stage, _, sub) = furnished(setting(1)).await;
        let meta = &stage.meta;
        // Left of an earlier time.
        stage.apply(vec![
            Write::PutQuotaLimits {
                key: QuotaKey::User(7),
                max_space: 1,
                max_inodes: 1,
            },
            Write::AddQuotaUsage {
                key: QuotaKey::Group(1),
                space: 99,
                inodes: 99,
            },
        ]);
        assert!(quota::check_owners(meta, false).await.is_err());
        // In the trash, and kept open without a name: both still somebody's.
        stage.register();
        let (a, b) = (
            stage.entry(sub, b"a").unwrap(),
            stage.entry(sub, b"b").unwrap(),
        );
        meta.unlink(&Caller::ROOT, sub, b"a").await.unwrap();
        stage.patch(b, |attr| attr.flags |= attr_flags::SKIP_TRASH);
        stage.open(b);
        meta.unlink(&Caller::ROOT, sub, b"b").await.unwrap();
        assert!(stage.attr(a).unwrap().in_trash() && stage.attr(b).is_some());
        let key = QuotaKey::User(1);
        let made = quota::set(meta, key, TEN_MIB, Walk::Fast).await.unwrap();
        assert_eq!(
            (made.max_space, made.used_space, made.used_inodes),
            (10 << 20, 3 * 8192, 3)
        );
        assert!(meta.shared().setting().user_group_quota);
        assert_eq!(quota::list(meta).await.unwrap().len(), 1, "no old limits");
        assert!(quota::check_owners(meta, false).await.unwrap().is_empty());
        let keys = [0, 1, 7].map(QuotaKey::User);
        meta.load_quotas().await.unwrap();
        check_usage(&stage, &keys).await;
        check_usage(&stage, &[0, 1, 7].map(QuotaKey::Group)).await;
        // Drift of one of them.
        stage.apply(vec![Write::AddQuotaUsage {
            key,
            space: 4096,
            inodes: 1,
        }]);
        let found = quota::check_owners(meta, true).await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].key, found[0].counted.inodes), (key, 3));
        assert!(quota::check_owners(meta, false).await.unwrap().is_empty());
        // Without limits it is accounted all the same.
        quota::delete(meta, key).await.unwrap();
        assert_eq!(
            quota::read(meta, key).await.unwrap().unwrap().used_inodes,
            3
        );
    });
}

#[test]
fn statistics_from_before_they_were_off_are_not_believed() {
    block_on(async {
        let off = Setting {
            dir_stats: false,
            ..setting(0)
        };
        let (stage, top, sub) = furnished(off).await;
        // As made by mkdir, and nobody counted since.
        assert_eq!(stage.dir_stat(sub), Some(DirStat::default()));
        let key = QuotaKey::Dir(top);
        let made = quota::set(&stage.meta, key, TEN_MIB, Walk::Fast)
            .await
            .unwrap();
        assert_eq!((made.used_space, made.used_inodes), (3 * 8192 + 4096, 4));
        assert!(stage.meta.shared().setting().dir_stats);
        assert_eq!(stage.dir_stat(sub).unwrap().inodes, 3);
    });
}

#[test]
fn a_tree_is_shown_with_its_largest_entries() {
    block_on(async {
        let (stage, top, sub) = furnished(setting(0)).await;
        let big = stage.file(sub, "big").await;
        assert_eq!(resize(&stage, big, 1 << 20).await, 0);
        stage.mkdir(top, "empty").await;
        stage.meta.flush_dir_stats().await.unwrap();
        for walk in [Walk::Fast, Walk::Strict] {
            let shape = |depth, entries| Shape {
                depth,
                entries,
                walk,
            };
            let shown = summary::tree(&stage.meta, top, "top", shape(2, 2))
                .await
                .unwrap();
            let total = 3 * 4096 + 3 * 8192 + (1 << 20);
            assert_eq!(
                (shown.totals.size, shown.totals.dirs, shown.totals.files),
                (total, 3, 4)
            );
            let names: Vec<_> = shown.children.iter().map(|it| &*it.path).collect();
            assert_eq!(names, ["top/sub", "top/empty"]);
            let names: Vec<_> = shown.children[0]
                .children
                .iter()
                .map(|it| &*it.path)
                .collect();
            assert_eq!(names, ["top/sub/big", "top/sub/a", "top/sub/..."]);
            assert_eq!(shown.children[0].children[2].totals.files, 2);
            let flat = summary::tree(&stage.meta, top, "top", shape(0, 2))
                .await
                .unwrap();
            assert_eq!((flat.totals, flat.children.len()), (shown.totals, 0));
            let file = summary::tree(&stage.meta, big, "big", shape(2, 2))
                .await
                .unwrap();
            assert_eq!((file.is_dir, file.totals.size), (false, 1 << 20));
        }
    });
}

// ---------------------------------------------------------------------------------------------------------
// Against a recount.

/// Does random things to a volume with quotas; answers how many of them were done.
async fn meddle(stage: &Stage, random: &mut fastrand::Rng, steps: usize) -> usize {
    let mut open: Vec<Ino> = Vec::new();
    let mut done = 0;
    for step in 0..steps {
        let entries: Vec<((Ino, Name), Ino)> = stage.walk().await.into_iter().collect();
        let kind = |ino: &Ino| stage.attr(*ino).unwrap().kind;
        let live = |(dir, _): &&(Ino, Name)| !dir.is_trash();
        let mut dirs: Vec<Ino> = entries
            .iter()
            .filter(|(at, ino)| live(&at) && kind(ino) == FileKind::Directory)
            .map(|(_, ino)| *ino)
            .collect();
        dirs.push(Ino::ROOT);
        let dir = dirs[random.usize(..dirs.len())];
        let caller = user(random.u32(..3));
        let name = format!("n{}", random.u32(..40));
        let some = |random: &mut fastrand::Rng| {
            (!entries.is_empty()).then(|| entries[random.usize(..entries.len())].clone())
        };
        let Some(((parent, entry), ino)) =
            some(random).or(Some(((Ino::ROOT, "x".into()), Ino::ROOT)))
        else {
            continue;
        };
        let text = String::from_utf8(entry.to_vec()).unwrap();
        let length = random.u64(..40_000);
        let answer = match random.u8(..14) {
            0 | 1 => errno(&make(stage, &caller, dir, &name).await),
            2 | 3 => errno(&stage.make(FileKind::Directory, dir, &name).await),
            4 => errno(
                &stage
                    .meta
                    .symlink(&caller, dir, name.as_bytes(), b"to")
                    .await,
            ),
            5 => errno(
                &stage
                    .meta
                    .link(&Caller::ROOT, ino, dir, name.as_bytes())
                    .await,
            ),
            6 => resize(stage, ino, length).await,
            7 => {
                let mode = FallocateMode::ZeroRange { keep_size: false };
                errno(&stage.meta.fallocate(ino, mode, length, 5000).await)
            }
            8 => errno(&stage.meta.unlink(&Caller::ROOT, parent, &entry).await),
            9 => errno(&stage.meta.rmdir(&Caller::ROOT, parent, &entry).await),
            10 | 11 => {
                let mode = match random.u8(..3) {
                    0 => RenameMode::Replace,
                    1 => RenameMode::NoReplace,
                    _ => RenameMode::Exchange,
                };
                let to = match some(random) {
                    Some(((to, name), _)) if random.bool() => {
                        (to, String::from_utf8(name.to_vec()).unwrap())
                    }
                    _ => (dir, name),
                };
                let from = (parent, &*text);
                errno(&stage.rename(&Caller::ROOT, from, (to.0, &to.1), mode).await)
            }
            12 => {
                let set = SetAttr {
                    uid: random.bool().then(|| random.u32(..3)),
                    gid: random.bool().then(|| random.u32(..3)),
                    ..SetAttr::default()
                };
                errno(&stage.meta.setattr(&Caller::ROOT, ino, &set).await)
            }
            _ => {
                if open.len() > 3 {
                    let ino = open.swap_remove(random.usize(..open.len()));
                    errno(&stage.meta.close(ino).await)
                } else if kind(&ino) == FileKind::File {
                    stage.open(ino);
                    open.push(ino);
                    0
                } else {
                    continue;
                }
            }
        };
        done += usize::from(answer == 0);
        stage.pass(Duration::from_secs(40));
        if step % 7 == 0 {
            stage.meta.flush_quotas().await.unwrap();
        }
    }
    for ino in open {
        stage.meta.close(ino).await.unwrap();
    }
    done
}

#[test]
fn usage_is_what_a_recount_says_after_anything() {
    for seed in 0..24 {
        block_on(async {
            let mut random = fastrand::Rng::with_seed(seed);
            let stage = Stage::new(accounted(u32::from(seed % 2 == 0)));
            stage.register();
            assert_eq!(stage.meta.shared().session(), Some(SESSION));
            let mut keys = vec![QuotaKey::Dir(Ino::ROOT)];
            limit(&stage, keys[0], 4 << 20, 200).await;
            let outer = stage.mkdir(Ino::ROOT, "outer").await;
            let inner = stage.mkdir(outer, "inner").await;
            let other = stage.mkdir(Ino::ROOT, "other").await;
            for dir in [outer, inner, other] {
                limit(&stage, QuotaKey::Dir(dir), 400_000, 30).await;
                keys.push(QuotaKey::Dir(dir));
            }
            // "inner" was charged to nobody but the root.
            stage.apply(vec![Write::PutQuotaUsage {
                key: QuotaKey::Dir(outer),
                space: 4096,
                inodes: 1,
            }]);
            stage.meta.load_quotas().await.unwrap();
            limit(&stage, QuotaKey::User(2), 200_000, 20).await;
            for id in 0..3 {
                keys.extend([QuotaKey::User(id), QuotaKey::Group(id)]);
            }
            for _ in 0..4 {
                let done = meddle(&stage, &mut random, 60).await;
                assert!(done > 5, "hardly anything was done");
                // A directory that was removed took its quota along; it may have come back from the trash.
                keys.retain(|key| match key {
                    QuotaKey::Dir(dir) => {
                        stored(&stage, *key).is_some() || {
                            let alive = stage.attr(*dir).is_some();
                            assert!(!alive || seed % 2 == 0, "{key:?} is lost");
                            false
                        }
                    }
                    _ => true,
                });
                check_usage(&stage, &keys).await;
                stage.meta.load_quotas().await.unwrap();
            }
        });
    }
}
