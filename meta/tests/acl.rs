//! POSIX ACLs and inode flags, rule by rule, on the engine in memory.

#![allow(
    clippy::unwrap_used,
    reason = "a test's helper may panic like the test"
)]

#[path = "support/stage.rs"]
mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Key, Write};
use sluice_meta::error::{EngineError, MetaError};
use sluice_meta::ops::{
    AclKind, Caller, FallocateMode, FlagChange, NewInode, OpenFlags, RenameMode, SetAttr, SetTime,
    SgidRule, XattrMode,
};
use sluice_meta::tools::format::{FormatOptions, format};
use sluice_meta::types::{AclRule, Attr, FileKind, Ino, Timestamp, attr_flags};
use sluice_meta::volume::Setting;

use stage::{Kept, NOON, Stage, block_on, errno, setting};

const ROOT: Caller = Caller::ROOT;
const USER: Caller = Caller {
    uid: 1000,
    gid: 1000,
    pid: 1,
};
const OTHER: Caller = Caller {
    uid: 2000,
    gid: 2000,
    pid: 2,
};
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const UNSET: u16 = 0xFFFF;

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ENODATA: i32 = 61;
const EOPNOTSUPP: i32 = 95;

fn with_acls() -> Setting {
    Setting {
        enable_acl: true,
        ..setting(0)
    }
}

/// owner rwx, user 7 rw-, group r-x, group 70 r--, mask as given, others none.
fn named(mask: u16) -> AclRule {
    AclRule {
        owner: 7,
        group: 5,
        mask,
        other: 0,
        users: vec![(7, 6)],
        groups: vec![(70, 4)],
    }
}

fn minimal(owner: u16, group: u16, other: u16) -> AclRule {
    AclRule {
        owner,
        group,
        mask: UNSET,
        other,
        users: vec![],
        groups: vec![],
    }
}

/// A rule in the form of Linux.
fn wire(rule: &AclRule) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0];
    let mut put = |tag: u16, bits: u16, id: u32| {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&bits.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    };
    put(1, rule.owner, u32::MAX);
    rule.users.iter().for_each(|(id, bits)| put(2, *bits, *id));
    put(4, rule.group, u32::MAX);
    rule.groups.iter().for_each(|(id, bits)| put(8, *bits, *id));
    if rule.mask != UNSET {
        put(0x10, rule.mask, u32::MAX);
    }
    put(0x20, rule.other, u32::MAX);
    out
}

async fn set(stage: &Stage, caller: &Caller, ino: Ino, name: &[u8], rule: &AclRule) -> i32 {
    let value = wire(rule);
    let done = stage
        .meta
        .setxattr(caller, ino, name, &value, XattrMode::Any);
    errno(&done.await)
}

/// Rules in the store, by number.
fn rules(stage: &Stage) -> Vec<AclRule> {
    let rule = |id| stage.peek(Key::Acl(id)).map(|record| record.acl().unwrap());
    (1..).map_while(rule).collect()
}

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
fn an_acl_is_shown_as_it_was_set() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let ino = stage.file(Ino::ROOT, "f").await;
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        stage.pass(Duration::from_secs(5));
        assert_eq!(set(&stage, &ROOT, ino, ACCESS, &named(6)).await, 0);
        assert_eq!(set(&stage, &ROOT, dir, DEFAULT, &named(6)).await, 0);
        assert_eq!(set(&stage, &ROOT, dir, ACCESS, &named(3)).await, 0);
        let get = async |ino, name| stage.meta.getxattr(ino, name).await.unwrap();
        assert_eq!(get(ino, ACCESS).await, wire(&named(6)));
        assert_eq!(get(dir, DEFAULT).await, wire(&named(6)));
        assert_eq!(get(dir, ACCESS).await, wire(&named(3)));
        assert_eq!(stage.meta.listxattr(ino).await.unwrap(), [ACCESS]);
        assert_eq!(stage.meta.listxattr(dir).await.unwrap(), [ACCESS, DEFAULT]);
        assert_eq!(rules(&stage), [named(6), named(3)], "rules are shared");
        let attr = stage.attr(ino).unwrap();
        assert_eq!(
            (attr.mode, attr.access_acl, attr.default_acl),
            (0o760, 1, 0)
        );
        assert_eq!((attr.ctime.sec, attr.mtime.sec), (NOON + 5, NOON));
        let attr = stage.attr(dir).unwrap();
        assert_eq!(
            (attr.mode, attr.access_acl, attr.default_acl),
            (0o730, 2, 1)
        );

        // The same again is no change.
        stage.pass(Duration::from_secs(1));
        let rule = named(6);
        let (again, checks) = stage
            .checks_of(set(&stage, &ROOT, ino, ACCESS, &rule))
            .await;
        assert_eq!((again, checks.len()), (0, 0));
        assert_eq!(stage.attr(ino).unwrap().ctime.sec, NOON + 5);
    });
}

#[test]
fn what_permission_bits_can_say_is_kept_as_those() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let ino = stage.file(Ino::ROOT, "f").await;
        stage.patch(ino, |attr| attr.mode = 0o4755);
        assert_eq!(set(&stage, &ROOT, ino, ACCESS, &named(7)).await, 0);
        assert_eq!(stage.attr(ino).unwrap().mode, 0o4770);
        assert_eq!(set(&stage, &ROOT, ino, ACCESS, &minimal(6, 4, 1)).await, 0);
        let attr = stage.attr(ino).unwrap();
        assert_eq!((attr.mode, attr.access_acl), (0o4641, 0));
        let gone = stage.meta.getxattr(ino, ACCESS).await;
        assert_eq!(errno(&gone), ENODATA);
        // With a mask there is more to it than bits.
        let masked = AclRule {
            mask: 2,
            ..minimal(6, 4, 1)
        };
        assert_eq!(set(&stage, &ROOT, ino, ACCESS, &masked).await, 0);
        let attr = stage.attr(ino).unwrap();
        assert_eq!((attr.mode, attr.access_acl), (0o4621, 2));
        // Removing it leaves the bits as they are.
        let removed = stage.meta.removexattr(&ROOT, ino, ACCESS).await;
        assert_eq!(errno(&removed), 0);
        let attr = stage.attr(ino).unwrap();
        assert_eq!((attr.mode, attr.access_acl), (0o4621, 0));
        let again = stage.meta.removexattr(&ROOT, ino, ACCESS).await;
        assert_eq!(errno(&again), 0, "it need not be there");
        // So does a value without entries.
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        assert_eq!(set(&stage, &ROOT, dir, DEFAULT, &minimal(7, 5, 0)).await, 0);
        assert_eq!(stage.attr(dir).unwrap().default_acl, 3);
        assert_eq!(
            stage.attr(dir).unwrap().mode,
            0o755,
            "a default rule is no mode"
        );
        let empty = stage
            .meta
            .setxattr(&ROOT, dir, DEFAULT, &[2, 0, 0, 0], XattrMode::Any);
        assert_eq!(errno(&empty.await), 0);
        assert_eq!(stage.attr(dir).unwrap().default_acl, 0);
    });
}

#[test]
fn who_may_set_an_acl_and_where() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let ino = stage.file(Ino::ROOT, "f").await;
        let (link, _) = stage
            .meta
            .symlink(&USER, Ino::ROOT, b"l", b"t")
            .await
            .unwrap();
        stage.patch(ino, |attr| (attr.uid, attr.gid) = (1000, 1000));
        let rule = named(7);
        assert_eq!(set(&stage, &OTHER, ino, ACCESS, &rule).await, EPERM);
        assert_eq!(set(&stage, &USER, ino, ACCESS, &rule).await, 0);
        assert_eq!(set(&stage, &USER, ino, DEFAULT, &rule).await, EACCES);
        let nothing = stage.meta.removexattr(&USER, ino, DEFAULT).await;
        assert_eq!(errno(&nothing), 0);
        assert_eq!(set(&stage, &USER, link, ACCESS, &rule).await, EOPNOTSUPP);
        assert_eq!(set(&stage, &ROOT, Ino(99), ACCESS, &rule).await, ENOENT);
        assert_eq!(set(&stage, &ROOT, Ino::TRASH, DEFAULT, &rule).await, EPERM);
        let half = &wire(&rule)[..20];
        let half = stage
            .meta
            .setxattr(&USER, ino, ACCESS, half, XattrMode::Any);
        assert_eq!(errno(&half.await), EINVAL);
        for flag in [attr_flags::IMMUTABLE, attr_flags::APPEND] {
            stage.patch(ino, |attr| attr.flags = flag);
            assert_eq!(set(&stage, &ROOT, ino, ACCESS, &named(1)).await, EPERM);
            let removed = stage.meta.removexattr(&ROOT, ino, ACCESS).await;
            assert_eq!(errno(&removed), EPERM);
        }
        let trashed = Ino(Ino::TRASH.0 + 1);
        stage.patch(ino, |attr| (attr.flags, attr.parent) = (0, trashed));
        assert_eq!(set(&stage, &ROOT, ino, ACCESS, &named(1)).await, EPERM);
    });
}

#[test]
fn volumes_without_acls_refuse_them() {
    block_on(async {
        let stage = Stage::new(setting(0));
        let ino = stage.file(Ino::ROOT, "f").await;
        assert_eq!(set(&stage, &ROOT, ino, ACCESS, &named(7)).await, EOPNOTSUPP);
        let removed = stage.meta.removexattr(&ROOT, ino, DEFAULT).await;
        assert_eq!(errno(&removed), EOPNOTSUPP);
        let options = MetaOptions {
            read_only: true,
            ..MetaOptions::default()
        };
        let stage = Stage::with(Kept::Memory, with_acls(), options);
        assert_eq!(
            set(&stage, &ROOT, Ino::ROOT, ACCESS, &named(7)).await,
            EROFS
        );
    });
}

#[test]
fn sgid_goes_with_an_acl_set_from_outside_the_group() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let ino = stage.file(Ino::ROOT, "f").await;
        let value = wire(&named(7));
        for (caller, gid, sgid, keeps) in [
            (USER, 1000, SgidRule::ByGroup, true),
            (USER, 5, SgidRule::ByGroup, false),
            (ROOT, 5, SgidRule::ByGroup, true),
            (USER, 5, SgidRule::Keep, true),
            (USER, 1000, SgidRule::Clear, false),
        ] {
            stage.patch(ino, |attr| {
                (attr.mode, attr.uid, attr.gid) = (0o2755, 1000, gid);
                attr.access_acl = 0;
            });
            let done = stage
                .meta
                .set_acl(&caller, ino, AclKind::Access, Some(&value), sgid)
                .await;
            assert_eq!(errno(&done), 0);
            let expected = if keeps { 0o2770 } else { 0o770 };
            assert_eq!(
                stage.attr(ino).unwrap().mode,
                expected,
                "{caller:?} {gid} {sgid:?}"
            );
        }
    });
}

#[test]
fn chmod_is_part_of_the_acl() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let ino = stage.file(Ino::ROOT, "f").await;
        set(&stage, &ROOT, ino, ACCESS, &named(6)).await;
        let chmod = async |caller: &Caller, mode| {
            let set = SetAttr {
                mode: Some(mode),
                ..SetAttr::default()
            };
            stage.meta.setattr(caller, ino, &set).await
        };
        let attr = chmod(&ROOT, 0o4641).await.unwrap();
        assert_eq!((attr.mode, attr.access_acl), (0o4641, 2));
        let changed = AclRule {
            owner: 6,
            other: 1,
            ..named(4)
        };
        assert_eq!(rules(&stage)[1], changed);
        assert_eq!(stage.attr(ino), Some(attr));
        // Only the special bits: the rule stays. Back: the first rule is found again.
        assert_eq!(chmod(&ROOT, 0o641).await.unwrap().access_acl, 2);
        assert_eq!(chmod(&ROOT, 0o760).await.unwrap().access_acl, 1);
        assert_eq!(rules(&stage).len(), 2);
        assert_eq!(errno(&chmod(&USER, 0o777).await), EPERM);
        assert_eq!(rules(&stage).len(), 2, "no rule for what is refused");
        // Bits that do not show the rule are put right.
        stage.patch(ino, |attr| attr.mode = 0o640);
        assert_eq!(chmod(&ROOT, 0o640).await.unwrap().access_acl, 3);
        assert_eq!(
            rules(&stage)[2],
            AclRule {
                owner: 6,
                ..named(4)
            }
        );
    });
}

#[test]
fn new_entries_inherit() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        let make = async |kind, name: &[u8], mode| {
            let new = NewInode {
                kind,
                mode,
                umask: 0o077,
                rdev: 0,
            };
            let (ino, attr) = stage.meta.mknod(&USER, dir, name, &new).await.unwrap();
            assert_eq!(stage.attr(ino).as_ref(), Some(&attr));
            (attr.mode, attr.access_acl, attr.default_acl)
        };
        assert_eq!(make(FileKind::File, b"plain", 0o666).await, (0o600, 0, 0));
        // A rule of bits alone takes the umask's place.
        set(&stage, &ROOT, dir, DEFAULT, &minimal(7, 5, 0)).await;
        assert_eq!(make(FileKind::File, b"a", 0o666).await, (0o640, 0, 0));
        assert_eq!(
            make(FileKind::Directory, b"b", 0o2777).await,
            (0o2750, 0, 1)
        );
        // Any other is narrowed to what was asked for, as a rule of its own.
        set(&stage, &ROOT, dir, DEFAULT, &named(7)).await;
        assert_eq!(make(FileKind::Directory, b"c", 0o777).await, (0o770, 2, 2));
        assert_eq!(make(FileKind::File, b"d", 0o640).await, (0o640, 3, 0));
        assert_eq!(make(FileKind::Fifo, b"e", 0o4640).await, (0o4640, 3, 0));
        let narrowed = AclRule {
            owner: 6,
            ..named(4)
        };
        assert_eq!(rules(&stage)[2], narrowed);
        assert_eq!(rules(&stage).len(), 3);
        let (_, attr) = stage.meta.symlink(&USER, dir, b"s", b"t").await.unwrap();
        assert_eq!((attr.mode, attr.access_acl), (0o777, 0));
        // The group and sgid of the directory come on top.
        stage.patch(dir, |attr| (attr.mode, attr.gid) = (attr.mode | 0o2000, 9));
        assert_eq!(make(FileKind::Directory, b"f", 0o777).await, (0o2770, 2, 2));
        assert_eq!(make(FileKind::File, b"g", 0o666).await, (0o660, 4, 0));
    });
}

#[test]
fn a_default_rule_set_meanwhile_is_inherited() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        stage.store.put_acl(1, named(7));
        let store = stage.store.clone();
        let once = AtomicU32::new(0);
        stage.store.on_request(move |request| {
            // Between the read of the directory and the commit.
            if matches!(request, Request::Commit(_)) && once.fetch_add(1, Ordering::Relaxed) == 0 {
                let old = match store.peek(&Key::Attr(dir)) {
                    Some(record) => record.attr().unwrap(),
                    None => return Verdict::Serve,
                };
                let new = Attr {
                    default_acl: 1,
                    ..old.clone()
                };
                let writes = vec![Write::UpdateAttr { ino: dir, old, new }];
                let checks = Vec::new();
                store
                    .apply(&sluice_meta::engine::Txn { checks, writes })
                    .unwrap();
            }
            Verdict::Serve
        });
        let ino = stage.file(dir, "f").await;
        stage.store.clear_hook();
        let attr = stage.attr(ino).unwrap();
        assert_ne!(attr.access_acl, 0);
        assert_eq!(attr.mode, 0o750);
    });
}

#[test]
fn rules_of_others_are_asked_for_once() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let ino = stage.file(Ino::ROOT, "f").await;
        stage.store.put_acl(5, named(2));
        stage.patch(ino, |attr| attr.access_acl = 5);
        let get = || stage.meta.getxattr(ino, ACCESS);
        assert_eq!(requests(&stage, get()).await.1, 2);
        assert_eq!(requests(&stage, get()).await.1, 1);
        // A mount that has loaded them all does not ask, and finds the number for a rule it did not make.
        for id in 6..3006 {
            stage.store.put_acl(
                id,
                AclRule {
                    users: vec![(id, 7)],
                    ..named(1)
                },
            );
        }
        let shared = Shared::new(with_acls(), MetaOptions::default());
        let clock =
            std::rc::Rc::clone(&stage.clock) as std::rc::Rc<dyn sluice_meta::runtime::Runtime>;
        let late = Meta::new(std::rc::Rc::clone(stage.meta.engine()), clock, shared);
        late.load_acls().await.unwrap();
        let (value, count) = requests(&stage, late.getxattr(ino, ACCESS)).await;
        assert_eq!((value.unwrap(), count), (wire(&named(2)).into(), 1));
        let known = wire(&AclRule {
            users: vec![(2999, 7)],
            ..named(1)
        });
        let done = late.setxattr(&ROOT, ino, ACCESS, &known, XattrMode::Any);
        assert_eq!(errno(&done.await), 0);
        assert_eq!(stage.attr(ino).unwrap().access_acl, 2999);
        stage.patch(ino, |attr| attr.access_acl = 4444);
        let damaged = stage.meta.getxattr(ino, ACCESS).await;
        assert!(matches!(
            damaged,
            Err(MetaError::Engine(EngineError::Corrupt { .. }))
        ));
    });
}

#[test]
fn concurrent_changes_of_an_acl_are_not_lost() {
    block_on(async {
        let stage = Stage::new(with_acls());
        let dir = stage.mkdir(Ino::ROOT, "d").await;
        let (one, two) = (named(1), named(2));
        let both = futures_lite::future::zip(
            set(&stage, &ROOT, dir, ACCESS, &one),
            set(&stage, &ROOT, dir, DEFAULT, &two),
        );
        assert_eq!(both.await, (0, 0));
        let attr = stage.attr(dir).unwrap();
        assert!(attr.access_acl != 0 && attr.default_acl != 0, "{attr:?}");
    });
}

#[test]
fn format_turns_acls_on_for_good() {
    block_on(async {
        let store = sluice_meta::engine::memory::Memory::new();
        let now = Timestamp::default();
        let run = async |enable_acl| {
            let options = FormatOptions {
                name: "test".into(),
                bucket: Some("/data".into()),
                enable_acl,
                ..FormatOptions::default()
            };
            format(&store, &options, now).await.map(|done| done.setting)
        };
        let plain = run(None).await.unwrap();
        assert_eq!(
            (plain.enable_acl, &*plain.min_client_version),
            (false, "1.1.0-A")
        );
        let on = run(Some(true)).await.unwrap();
        assert_eq!((on.enable_acl, &*on.min_client_version), (true, "1.2.0-A"));
        assert!(on.unsupported_for_writing().is_empty());
        assert_eq!(run(None).await.unwrap(), on);
        let refused = run(Some(false)).await.unwrap_err().to_string();
        assert!(
            refused.contains("POSIX ACLs cannot be turned off"),
            "{refused}"
        );
    });
}

async fn chattr(stage: &Stage, caller: &Caller, ino: Ino, mask: u8, flags: u8) -> i32 {
    let change = FlagChange { mask, flags };
    errno(&stage.meta.set_flags(caller, ino, change).await)
}

#[test]
fn flags_are_set_by_root_alone() {
    block_on(async {
        const ALL: u8 = attr_flags::CHANGEABLE;
        let stage = Stage::new(setting(1));
        let ino = stage.file(Ino::ROOT, "f").await;
        stage.patch(ino, |attr| attr.flags = 0b1_0100);
        stage.pass(Duration::from_secs(2));
        assert_eq!(
            chattr(&stage, &USER, ino, ALL, attr_flags::IMMUTABLE).await,
            EPERM
        );
        assert_eq!(
            chattr(&stage, &USER, ino, ALL, 0).await,
            0,
            "nothing changes"
        );
        assert_eq!(chattr(&stage, &ROOT, ino, 4, 4).await, EOPNOTSUPP);
        assert_eq!(
            chattr(&stage, &ROOT, ino, ALL, attr_flags::IMMUTABLE).await,
            0
        );
        let attr = stage.attr(ino).unwrap();
        assert_eq!(
            (attr.flags, attr.ctime.sec),
            (0b1_0101, NOON + 2),
            "others' flags stay"
        );
        assert_eq!(chattr(&stage, &ROOT, ino, ALL, attr_flags::APPEND).await, 0);
        assert_eq!(stage.attr(ino).unwrap().flags, 0b1_0110);
        assert_eq!(chattr(&stage, &ROOT, Ino(99), ALL, 0).await, ENOENT);
        assert_eq!(chattr(&stage, &ROOT, Ino::TRASH, ALL, 1).await, EPERM);
        // Without trash: nothing is left of it.
        assert_eq!(
            chattr(&stage, &ROOT, ino, ALL, attr_flags::SKIP_TRASH).await,
            0
        );
        stage.meta.unlink(&ROOT, Ino::ROOT, b"f").await.unwrap();
        assert_eq!(stage.attr(ino), None);
    });
}

/// Each operation on `file` and `dir`, both with `flags`: what it answers.
async fn everything_on(flags: u8) -> Vec<(&'static str, i32)> {
    let stage = Stage::new(with_acls());
    let meta = &stage.meta;
    let dir = stage.mkdir(Ino::ROOT, "dir").await;
    let inner = stage.file(dir, "inner").await;
    let file = stage.file(Ino::ROOT, "file").await;
    stage.file(Ino::ROOT, "free").await;
    for ino in [dir, file] {
        assert_eq!(chattr(&stage, &ROOT, ino, flags, flags).await, 0);
    }
    let root = Ino::ROOT;
    let chmod = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let now = SetAttr {
        mtime: Some(SetTime::Now),
        ..SetAttr::default()
    };
    let at = SetAttr {
        mtime: Some(SetTime::At(Timestamp { sec: 1, nsec: 0 })),
        ..SetAttr::default()
    };
    let open = |write, append, truncate| OpenFlags {
        read: true,
        write,
        append,
        truncate,
    };
    let replace = RenameMode::Replace;
    let read = errno(&meta.open(file, open(false, false, false)).await);
    let access = meta.open(file, open(true, false, false)).await;
    let append = meta.open(file, open(true, true, false)).await;
    let trunc = meta.open(file, open(true, true, true)).await;
    vec![
        ("read", read),
        ("write", errno(&access)),
        ("append", errno(&append)),
        ("O_TRUNC", errno(&trunc)),
        (
            "truncate",
            errno(&meta.truncate(&ROOT, file, 9, false).await),
        ),
        (
            "grow",
            errno(&meta.fallocate(file, FallocateMode::Allocate, 0, 9).await),
        ),
        (
            "punch",
            errno(&meta.fallocate(file, FallocateMode::PunchHole, 0, 9).await),
        ),
        ("touch", errno(&meta.setattr(&ROOT, file, &now).await)),
        ("utimes", errno(&meta.setattr(&ROOT, file, &at).await)),
        ("chmod", errno(&meta.setattr(&ROOT, file, &chmod).await)),
        (
            "setxattr",
            errno(
                &meta
                    .setxattr(&ROOT, file, b"user.a", b"", XattrMode::Any)
                    .await,
            ),
        ),
        ("setfacl", set(&stage, &ROOT, file, ACCESS, &named(7)).await),
        ("link", errno(&meta.link(&ROOT, file, root, b"other").await)),
        (
            "rename",
            errno(
                &stage
                    .rename(&ROOT, (root, "file"), (root, "f2"), replace)
                    .await,
            ),
        ),
        (
            "replace",
            errno(
                &stage
                    .rename(&ROOT, (root, "free"), (root, "file"), replace)
                    .await,
            ),
        ),
        ("unlink", errno(&meta.unlink(&ROOT, root, b"file").await)),
        (
            "create in",
            errno(&stage.make(FileKind::File, dir, "new").await),
        ),
        (
            "link into",
            errno(&meta.link(&ROOT, inner, dir, b"linked").await),
        ),
        ("unlink in", errno(&meta.unlink(&ROOT, dir, b"inner").await)),
    ]
}

#[test]
fn immutable_and_append_only_hold_everywhere() {
    block_on(async {
        let answers = everything_on(attr_flags::IMMUTABLE).await;
        for (what, answer) in answers {
            let expected = if what == "read" { 0 } else { EPERM };
            assert_eq!(answer, expected, "immutable: {what}");
        }
        let allowed = ["read", "append", "grow", "touch", "create in", "link into"];
        for (what, answer) in everything_on(attr_flags::APPEND).await {
            let expected = if allowed.contains(&what) { 0 } else { EPERM };
            assert_eq!(answer, expected, "append only: {what}");
        }
        for (what, answer) in everything_on(0).await {
            // The file was renamed: what comes after finds another one or none.
            if !["replace", "unlink"].contains(&what) {
                assert_eq!(answer, 0, "no flags: {what}");
            }
        }
    });
}
