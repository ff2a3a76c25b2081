//! One suite for every engine: each verb, record, check and write of the contract in `engine.rs`.
//! Adding an engine is a line in `conformance/stores.rs`. Random histories are compared with the oracle in
//! `conformance/random.rs`.
#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and does not get fails it"
)]

#[path = "conformance/random.rs"]
mod random;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "conformance/stores.rs"]
mod stores;
mod support;

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use futures_lite::future;
use sluice_meta::engine::{
    AnyEngine, AttrFields, Check, Counter, Engine, Item, Key, Outcome, Record, Scan, Txn, Write,
};
use sluice_meta::error::EngineError;
use sluice_meta::runtime::Runtime;
use sluice_meta::types::{
    AclRule, Attr, ChunkIndex, Dentry, DirStat, FileKind, Flock, Ino, Name, PlockRange, Quota,
    QuotaKey, QuotaKind, SessionId, Slice, SliceId, Timestamp,
};
use stores::{Store, engines};
use support::{SmolRuntime, block_on};

/// A fresh store of one engine and a handle to it.
struct Case {
    runtime: Rc<SmolRuntime>,
    // Before the store: a handle must not outlive it.
    engine: AnyEngine,
    store: Box<dyn Store>,
}

/// Runs `test` on a fresh store of every engine.
fn each(test: impl AsyncFn(&Case)) {
    for (name, make) in engines() {
        println!("engine: {name}");
        block_on(|runtime| async {
            let store = make(runtime.clone()).await;
            let engine = store.connect().await;
            test(&Case {
                runtime,
                engine,
                store,
            })
            .await;
        });
    }
}

impl Case {
    async fn get(&self, key: Key) -> Option<Record> {
        self.engine
            .read(std::slice::from_ref(&key))
            .await
            .unwrap()
            .remove(0)
    }

    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> Outcome {
        self.engine.commit(Txn { checks, writes }).await.unwrap()
    }

    /// Commits without checks: the results.
    async fn apply(&self, writes: Vec<Write>) -> Vec<i64> {
        match self.commit(vec![], writes).await {
            Outcome::Committed(results) => results,
            conflict => panic!("{conflict:?} without a check"),
        }
    }

    async fn holds(&self, check: Check) -> bool {
        match self.commit(vec![check], vec![]).await {
            Outcome::Committed(results) => {
                assert!(results.is_empty());
                true
            }
            Outcome::Conflict { check } => {
                assert_eq!(check, 0);
                false
            }
        }
    }

    async fn scan_all(&self, scan: Scan, limit: usize) -> Vec<Item> {
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limit)
                .await
                .unwrap();
            all.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return all;
            }
        }
    }
}

fn name(bytes: impl AsRef<[u8]>) -> Name {
    Name::copy_from_slice(bytes.as_ref())
}

fn at(sec: i64, nsec: u32) -> Timestamp {
    Timestamp { sec, nsec }
}

fn attr(kind: FileKind) -> Attr {
    Attr {
        flags: 0,
        kind,
        mode: 0o644,
        uid: 1000,
        gid: 100,
        atime: at(1, 2),
        mtime: at(3, 4),
        ctime: at(5, 6),
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        length: if kind == FileKind::Directory { 4096 } else { 0 },
        rdev: 0,
        parent: Ino::ROOT,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}

fn file() -> Attr {
    attr(FileKind::File)
}

fn dir() -> Attr {
    attr(FileKind::Directory)
}

fn dentry(ino: u64) -> Dentry {
    Dentry {
        kind: FileKind::File,
        ino: Ino(ino),
    }
}

fn slice(n: u32) -> Slice {
    Slice {
        pos: n * 10,
        id: SliceId(u64::from(n) + 1),
        size: n + 10,
        off: n,
        len: 10,
    }
}

fn dentry_key(name: &Name) -> Key {
    Key::Dentry {
        parent: Ino(1),
        name: name.clone(),
    }
}

fn entry_key(name: &Name) -> Key {
    Key::Entry {
        parent: Ino(1),
        name: name.clone(),
    }
}

fn insert(name: &Name, ino: u64) -> Write {
    Write::InsertDentry {
        parent: Ino(1),
        name: name.clone(),
        dentry: dentry(ino),
    }
}

fn chunk(index: u32) -> Key {
    Key::Chunk {
        ino: Ino(5),
        index: ChunkIndex(index),
    }
}

fn append(index: u32, slices: &[Slice]) -> Write {
    Write::AppendChunk {
        ino: Ino(5),
        index: ChunkIndex(index),
        slices: slices.to_vec(),
    }
}

#[test]
fn attributes_of_every_kind_and_extreme_read_back_as_inserted() {
    let kinds = [
        FileKind::File,
        FileKind::Directory,
        FileKind::Symlink,
        FileKind::Fifo,
        FileKind::BlockDev,
        FileKind::CharDev,
        FileKind::Socket,
    ];
    let mut attrs: Vec<Attr> = kinds.into_iter().map(attr).collect();
    attrs.push(Attr {
        flags: 0xFF,
        kind: FileKind::File,
        mode: 0o7777,
        uid: u32::MAX,
        gid: u32::MAX,
        atime: at(-1, 999_999_999),
        mtime: at(-9_000_000_000, 1),
        ctime: at(9_000_000_000, 123_456_789),
        nlink: u32::MAX,
        length: 1 << 57,
        rdev: u32::MAX,
        parent: Ino(Ino::TRASH.0 + 7),
        access_acl: 1,
        default_acl: u32::MAX,
        tier: 3,
    });
    attrs.push(Attr {
        access_acl: 0,
        default_acl: 9,
        ..file()
    });
    attrs.push(Attr { tier: 2, ..file() });
    attrs.push(Attr {
        parent: Ino::NONE,
        atime: at(0, 0),
        mtime: at(-1, 0),
        ..file()
    });
    each(async |case| {
        for (number, attr) in attrs.iter().enumerate() {
            let ino = Ino(number as u64 + 2);
            assert_eq!(case.get(Key::Attr(ino)).await, None);
            let results = case
                .apply(vec![Write::InsertAttr {
                    ino,
                    attr: attr.clone(),
                }])
                .await;
            assert_eq!(results, [0]);
            assert_eq!(
                case.get(Key::Attr(ino)).await,
                Some(Record::Attr(attr.clone()))
            );
        }
        let trash = Ino(Ino::TRASH.0 + 3);
        case.apply(vec![Write::InsertAttr {
            ino: trash,
            attr: dir(),
        }])
        .await;
        assert_eq!(case.get(Key::Attr(trash)).await, Some(Record::Attr(dir())));
        case.apply(vec![Write::DeleteAttr(trash), Write::DeleteAttr(Ino(999))])
            .await;
        assert_eq!(case.get(Key::Attr(trash)).await, None);
    });
}

/// `file()` changed in one field, and the set that field belongs to (`None`: only to all).
fn changes() -> Vec<(Attr, Option<AttrFields>)> {
    vec![
        (Attr { flags: 1, ..file() }, Some(AttrFields::FLAGS)),
        (
            Attr {
                mode: 0o600,
                ..file()
            },
            Some(AttrFields::OWNER),
        ),
        (Attr { uid: 7, ..file() }, Some(AttrFields::OWNER)),
        (Attr { gid: 7, ..file() }, Some(AttrFields::OWNER)),
        (
            Attr {
                parent: Ino(9),
                ..file()
            },
            Some(AttrFields::PARENT),
        ),
        (Attr { nlink: 2, ..file() }, Some(AttrFields::NLINK)),
        (
            Attr {
                atime: at(-7, 7),
                ..file()
            },
            None,
        ),
        (
            Attr {
                mtime: at(7, 0),
                ..file()
            },
            None,
        ),
        (
            Attr {
                ctime: at(0, 7),
                ..file()
            },
            None,
        ),
        (
            Attr {
                length: 7,
                ..file()
            },
            None,
        ),
        (Attr { rdev: 7, ..file() }, None),
        (
            Attr {
                access_acl: 7,
                ..file()
            },
            None,
        ),
        (
            Attr {
                default_acl: 7,
                ..file()
            },
            None,
        ),
        (Attr { tier: 1, ..file() }, None),
    ]
}

#[test]
fn updates_change_the_fields_that_differ_and_checks_compare_the_fields_asked_for() {
    each(async |case| {
        let ino = Ino(2);
        case.apply(vec![Write::InsertAttr { ino, attr: file() }])
            .await;
        for (changed, set) in changes() {
            let update = |old: Attr, new: Attr| Write::UpdateAttr { ino, old, new };
            let all = Check::Attr {
                ino,
                fields: AttrFields::ALL,
                expect: file(),
            };
            case.commit(vec![all.clone()], vec![update(file(), changed.clone())])
                .await;
            assert_eq!(
                case.get(Key::Attr(ino)).await,
                Some(Record::Attr(changed.clone()))
            );
            assert!(!case.holds(all).await, "{changed:?}");
            for fields in [
                AttrFields::EXISTS,
                AttrFields::FLAGS,
                AttrFields::OWNER,
                AttrFields::PARENT,
                AttrFields::NLINK,
            ] {
                let check = Check::Attr {
                    ino,
                    fields,
                    expect: file(),
                };
                assert_eq!(
                    case.holds(check).await,
                    Some(fields) != set,
                    "{fields:?} {changed:?}"
                );
            }
            let every = AttrFields::FLAGS
                .and(AttrFields::OWNER)
                .and(AttrFields::PARENT)
                .and(AttrFields::NLINK);
            let check = Check::Attr {
                ino,
                fields: every,
                expect: file(),
            };
            assert_eq!(case.holds(check).await, set.is_none(), "{changed:?}");
            case.apply(vec![update(changed, file())]).await;
        }
    });
}

#[test]
fn a_type_is_always_compared_and_an_absent_inode_fails_every_check() {
    each(async |case| {
        let check = |ino, expect| Check::Attr {
            ino: Ino(ino),
            fields: AttrFields::EXISTS,
            expect,
        };
        case.apply(vec![Write::InsertAttr {
            ino: Ino(2),
            attr: file(),
        }])
        .await;
        assert!(case.holds(check(2, file())).await);
        assert!(!case.holds(check(2, dir())).await);
        assert!(!case.holds(check(3, file())).await);
        assert!(case.holds(Check::NoAttr(Ino(3))).await);
        assert!(!case.holds(Check::NoAttr(Ino(2))).await);
    });
}

#[test]
fn an_update_leaves_fields_alone_that_others_changed() {
    each(async |case| {
        let ino = Ino(2);
        case.apply(vec![Write::InsertAttr { ino, attr: dir() }])
            .await;
        case.apply(vec![Write::PatchDir {
            ino,
            time: None,
            nlink: 1,
        }])
        .await;
        // As an operation that read the directory before would do; only the mode differs.
        let new = Attr {
            mode: 0o700,
            ..dir()
        };
        case.apply(vec![Write::UpdateAttr {
            ino,
            old: dir(),
            new: new.clone(),
        }])
        .await;
        let expect = Attr { nlink: 3, ..new };
        assert_eq!(case.get(Key::Attr(ino)).await, Some(Record::Attr(expect)));
    });
}

#[test]
fn patches_of_a_directory_add_links_and_set_times() {
    each(async |case| {
        let ino = Ino(2);
        case.apply(vec![Write::InsertAttr { ino, attr: dir() }])
            .await;
        let patch = |time, nlink| Write::PatchDir { ino, time, nlink };
        let steps = vec![
            patch(Some(at(100, 5)), 1),
            patch(None, 2),
            patch(None, 0),
            patch(Some(at(-100, 6)), -1),
        ];
        assert_eq!(case.apply(steps).await, [0, 0, 0, 0]);
        let expect = Attr {
            nlink: 4,
            mtime: at(-100, 6),
            ctime: at(-100, 6),
            ..dir()
        };
        assert_eq!(case.get(Key::Attr(ino)).await, Some(Record::Attr(expect)));
    });
}

#[test]
fn entries_keep_every_byte_of_a_name() {
    let mut names: Vec<Name> = (1..=255u8)
        .filter(|b| *b != b'/')
        .map(|b| name([b]))
        .collect();
    names.push(name([0xC3, 0x28]));
    names.push(name("ünïcode 名前"));
    names.push(name([0xFF; 255]));
    names.push(name((1..=255u8).filter(|b| *b != b'/').collect::<Vec<_>>()));
    each(async |case| {
        for (number, name) in names.iter().enumerate() {
            case.apply(vec![insert(name, number as u64 + 10)]).await;
        }
        for (number, name) in names.iter().enumerate() {
            let found = case.get(dentry_key(name)).await;
            assert_eq!(
                found,
                Some(Record::Dentry(dentry(number as u64 + 10))),
                "{name:?}"
            );
        }
        let listed = case
            .scan_all(
                Scan::Dir {
                    parent: Ino(1),
                    attrs: false,
                },
                17,
            )
            .await;
        let listed: BTreeSet<Name> = listed.into_iter().map(entry_name).collect();
        assert_eq!(listed, names.iter().cloned().collect());
    });
}

fn entry_name(item: Item) -> Name {
    match item {
        Item::Entry { name, .. } => name,
        other => panic!("{other:?} is no entry"),
    }
}

#[test]
fn entries_are_inserted_replaced_and_deleted() {
    each(async |case| {
        let (a, b) = (name("a"), name("b"));
        case.apply(vec![insert(&a, 10), insert(&b, 11)]).await;
        let other = Dentry {
            kind: FileKind::Directory,
            ino: Ino(12),
        };
        let replace = Write::ReplaceDentry {
            parent: Ino(1),
            name: a.clone(),
            dentry: other,
        };
        case.apply(vec![replace]).await;
        assert_eq!(case.get(dentry_key(&a)).await, Some(Record::Dentry(other)));
        // The same name elsewhere is another entry.
        assert_eq!(
            case.get(Key::Dentry {
                parent: Ino(2),
                name: a.clone()
            })
            .await,
            None
        );
        let delete = |name: &Name| Write::DeleteDentry {
            parent: Ino(1),
            name: name.clone(),
        };
        case.apply(vec![delete(&a), delete(&name("never there"))])
            .await;
        assert_eq!(case.get(dentry_key(&a)).await, None);
        assert_eq!(
            case.get(dentry_key(&b)).await,
            Some(Record::Dentry(dentry(11)))
        );
        // Away and back in one commit, as a rename onto itself would.
        case.apply(vec![delete(&b), insert(&b, 13)]).await;
        assert_eq!(
            case.get(dentry_key(&b)).await,
            Some(Record::Dentry(dentry(13)))
        );
    });
}

#[test]
fn an_entry_comes_with_its_attributes_or_tells_that_it_dangles() {
    each(async |case| {
        let (a, b) = (name("a"), name("b"));
        let attr = Write::InsertAttr {
            ino: Ino(10),
            attr: file(),
        };
        case.apply(vec![insert(&a, 10), insert(&b, 11), attr]).await;
        let keys = [entry_key(&a), entry_key(&b), entry_key(&name("c"))];
        let found = case.engine.read(&keys).await.unwrap();
        let expect = [
            Some(Record::Entry(dentry(10), Some(file()))),
            Some(Record::Entry(dentry(11), None)),
            None,
        ];
        assert_eq!(found, expect);
        for (attrs, of_a) in [(true, Some(file())), (false, None)] {
            let listed = case
                .scan_all(
                    Scan::Dir {
                        parent: Ino(1),
                        attrs,
                    },
                    100,
                )
                .await;
            let entry = |name: &Name, ino, attr| Item::Entry {
                name: name.clone(),
                dentry: dentry(ino),
                attr,
            };
            assert_eq!(listed.len(), 2);
            assert!(listed.contains(&entry(&a, 10, of_a)));
            assert!(listed.contains(&entry(&b, 11, None)));
        }
    });
}

#[test]
fn entry_and_emptiness_checks_hold_and_fail() {
    each(async |case| {
        let a = name("a");
        let check = |expect| Check::Dentry {
            parent: Ino(1),
            name: a.clone(),
            expect,
        };
        assert!(case.holds(check(None)).await);
        assert!(!case.holds(check(Some(dentry(10)))).await);
        assert!(case.holds(Check::DirEmpty(Ino(1))).await);
        case.apply(vec![insert(&a, 10)]).await;
        assert!(!case.holds(check(None)).await);
        assert!(case.holds(check(Some(dentry(10)))).await);
        assert!(!case.holds(check(Some(dentry(11)))).await);
        let as_dir = Dentry {
            kind: FileKind::Directory,
            ino: Ino(10),
        };
        assert!(!case.holds(check(Some(as_dir))).await);
        assert!(!case.holds(Check::DirEmpty(Ino(1))).await);
        assert!(case.holds(Check::DirEmpty(Ino(10))).await);
        case.apply(vec![Write::DeleteDentry {
            parent: Ino(1),
            name: a.clone(),
        }])
        .await;
        assert!(case.holds(Check::DirEmpty(Ino(1))).await);
    });
}

#[test]
fn the_first_failing_check_is_reported_and_nothing_is_applied() {
    each(async |case| {
        let a = name("a");
        case.apply(vec![Write::InsertAttr {
            ino: Ino(2),
            attr: file(),
        }])
        .await;
        let good = Check::Attr {
            ino: Ino(2),
            fields: AttrFields::ALL,
            expect: file(),
        };
        let bad = Check::NoAttr(Ino(2));
        for checks in [
            vec![bad.clone()],
            vec![good.clone(), bad.clone(), good.clone()],
            vec![good.clone(), good.clone(), bad.clone(), bad],
        ] {
            let failing = checks.iter().position(|check| *check != good).unwrap();
            let writes = vec![
                insert(&a, 10),
                Write::UpdateAttr {
                    ino: Ino(2),
                    old: file(),
                    new: Attr { uid: 5, ..file() },
                },
                Write::AddCounter {
                    counter: Counter::UsedSpace,
                    delta: 4096,
                },
                append(0, &[slice(0)]),
            ];
            let outcome = case.commit(checks, writes).await;
            assert_eq!(outcome, Outcome::Conflict { check: failing });
        }
        assert_eq!(case.get(dentry_key(&a)).await, None);
        assert_eq!(
            case.get(Key::Attr(Ino(2))).await,
            Some(Record::Attr(file()))
        );
        assert_eq!(
            case.get(Key::Counter(Counter::UsedSpace)).await,
            Some(Record::Count(0))
        );
        assert_eq!(case.get(chunk(0)).await, None);
    });
}

#[test]
fn checks_see_the_records_as_they_are_before_the_first_write() {
    each(async |case| {
        let a = name("a");
        let absent = Check::Dentry {
            parent: Ino(1),
            name: a.clone(),
            expect: None,
        };
        let checks = vec![absent, Check::NoAttr(Ino(10)), Check::DirEmpty(Ino(1))];
        let writes = || {
            vec![
                insert(&a, 10),
                Write::InsertAttr {
                    ino: Ino(10),
                    attr: file(),
                },
                Write::AddCounter {
                    counter: Counter::TotalInodes,
                    delta: 1,
                },
            ]
        };
        let outcome = case.commit(checks.clone(), writes()).await;
        assert_eq!(outcome, Outcome::Committed(vec![0, 0, 1]));
        assert_eq!(
            case.commit(checks, writes()).await,
            Outcome::Conflict { check: 0 }
        );
    });
}

#[test]
fn chunk_lists_grow_by_appending() {
    each(async |case| {
        assert_eq!(case.get(chunk(0)).await, None);
        assert_eq!(case.apply(vec![append(0, &[slice(0)])]).await, [1]);
        // One record is stored otherwise than an appended list on some engines.
        assert_eq!(
            case.get(chunk(0)).await,
            Some(Record::Slices(vec![slice(0)]))
        );
        let more = [slice(1), Slice::hole(0, 64 << 20), slice(2)];
        let results = case
            .apply(vec![append(0, &more), append(0, &[slice(3)])])
            .await;
        assert_eq!(results, [4, 5]);
        let list = vec![slice(0), more[0], more[1], more[2], slice(3)];
        assert_eq!(case.get(chunk(0)).await, Some(Record::Slices(list)));
        let if_present = |index| Write::AppendChunkIfPresent {
            ino: Ino(5),
            index: ChunkIndex(index),
            slices: vec![slice(4)],
        };
        assert_eq!(case.apply(vec![if_present(0), if_present(1)]).await, [6, 0]);
        assert_eq!(case.get(chunk(1)).await, None);
        let delete = |index| Write::DeleteChunk {
            ino: Ino(5),
            index: ChunkIndex(index),
        };
        case.apply(vec![delete(0), delete(1)]).await;
        assert_eq!(case.get(chunk(0)).await, None);
    });
}

#[test]
fn a_long_chunk_list_keeps_every_record() {
    each(async |case| {
        let list: Vec<Slice> = (0..400).map(slice).collect();
        for part in list.chunks(7) {
            case.apply(vec![append(3, part)]).await;
        }
        assert_eq!(case.get(chunk(3)).await, Some(Record::Slices(list)));
    });
}

#[test]
fn chunk_checks_compare_a_prefix_or_the_whole_list() {
    each(async |case| {
        let check = |index, prefix: &[Slice], whole| Check::Chunk {
            ino: Ino(5),
            index: ChunkIndex(index),
            prefix: prefix.to_vec(),
            whole,
        };
        case.apply(vec![append(0, &[slice(0), slice(1)])]).await;
        for (index, prefix, whole, holds) in [
            (0, &[][..], false, true),
            (0, &[], true, false),
            (0, &[slice(0)], false, true),
            (0, &[slice(0)], true, false),
            (0, &[slice(1)], false, false),
            (0, &[slice(0), slice(1)], true, true),
            (0, &[slice(0), slice(1)], false, true),
            (0, &[slice(0), slice(1), slice(2)], false, false),
            (1, &[], true, true),
            (1, &[], false, true),
            (1, &[slice(0)], false, false),
        ] {
            let expected = (index, prefix.len(), whole);
            assert_eq!(
                case.holds(check(index, prefix, whole)).await,
                holds,
                "{expected:?}"
            );
        }
    });
}

#[test]
fn chunks_of_a_file_are_enumerated() {
    each(async |case| {
        let length = 11 * (64 << 20);
        for index in [0, 2, 3, 7, 10] {
            case.apply(vec![append(index, &[slice(index)])]).await;
        }
        let other = Write::AppendChunk {
            ino: Ino(6),
            index: ChunkIndex(1),
            slices: vec![slice(9)],
        };
        case.apply(vec![other]).await;
        for limit in [1, 2, 100] {
            let mut found = case
                .scan_all(
                    Scan::Chunks {
                        ino: Ino(5),
                        length,
                    },
                    limit,
                )
                .await;
            found.sort_by_key(|item| match item {
                Item::Chunk { index, .. } => index.0,
                other => panic!("{other:?} is no chunk"),
            });
            let chunk = |index| Item::Chunk {
                index: ChunkIndex(index),
                slices: vec![slice(index)],
            };
            assert_eq!(found, [0, 2, 3, 7, 10].map(chunk));
        }
    });
}

#[test]
fn symlink_targets_are_bytes() {
    each(async |case| {
        let target = Bytes::from_static(b"../\xFF\xFEx\x01 /\xC3");
        let put = Write::PutSymlink {
            ino: Ino(7),
            target: target.clone(),
        };
        assert_eq!(case.get(Key::Symlink(Ino(7))).await, None);
        case.apply(vec![put]).await;
        assert_eq!(
            case.get(Key::Symlink(Ino(7))).await,
            Some(Record::Bytes(target))
        );
        case.apply(vec![
            Write::DeleteSymlink(Ino(7)),
            Write::DeleteSymlink(Ino(8)),
        ])
        .await;
        assert_eq!(case.get(Key::Symlink(Ino(7))).await, None);
    });
}

fn xattr(ino: u64, name: &Name) -> Key {
    Key::Xattr {
        ino: Ino(ino),
        name: name.clone(),
    }
}

fn put_xattr(ino: u64, name: &Name, value: &Bytes) -> Write {
    Write::PutXattr {
        ino: Ino(ino),
        name: name.clone(),
        value: value.clone(),
    }
}

#[test]
fn xattrs_are_set_listed_checked_and_removed() {
    each(async |case| {
        let pairs = [
            (name("user.a"), Bytes::from_static(b"")),
            (
                name(b"user.\xFF\xFE"),
                Bytes::from_static(b"\x00\xFF binary \x00"),
            ),
            (name("user.big"), Bytes::from(vec![0xA5; 65536])),
        ];
        assert_eq!(case.get(Key::XattrNames(Ino(7))).await, None);
        let writes = pairs
            .iter()
            .map(|(name, value)| put_xattr(7, name, value))
            .collect();
        case.apply(writes).await;
        for (name, value) in &pairs {
            assert_eq!(
                case.get(xattr(7, name)).await,
                Some(Record::Bytes(value.clone()))
            );
            assert_eq!(case.get(xattr(8, name)).await, None);
            let check = |present| Check::Xattr {
                ino: Ino(7),
                name: name.clone(),
                present,
            };
            assert!(case.holds(check(true)).await);
            assert!(!case.holds(check(false)).await);
        }
        let gone = Check::Xattr {
            ino: Ino(7),
            name: name("user.none"),
            present: false,
        };
        assert!(case.holds(gone).await);
        let names = case
            .get(Key::XattrNames(Ino(7)))
            .await
            .unwrap()
            .names()
            .unwrap();
        let names: BTreeSet<Name> = names.into_iter().collect();
        assert_eq!(names, pairs.iter().map(|(name, _)| name.clone()).collect());
        for limit in [1, 10] {
            let found = case.scan_all(Scan::Xattrs(Ino(7)), limit).await;
            assert_eq!(found.len(), pairs.len());
            for (name, value) in pairs.clone() {
                assert!(found.contains(&Item::Xattr { name, value }));
            }
        }
        let remove = |name: &Name| Write::DeleteXattr {
            ino: Ino(7),
            name: name.clone(),
        };
        let replaced = Bytes::from_static(b"other");
        let results = case
            .apply(vec![
                put_xattr(7, &pairs[0].0, &replaced),
                remove(&pairs[1].0),
                remove(&pairs[1].0),
            ])
            .await;
        assert_eq!(results, [0, 1, 0]);
        assert_eq!(
            case.get(xattr(7, &pairs[0].0)).await,
            Some(Record::Bytes(replaced))
        );
        case.apply(vec![
            put_xattr(8, &pairs[0].0, &pairs[2].1),
            Write::DeleteXattrs(Ino(7)),
        ])
        .await;
        assert_eq!(case.get(Key::XattrNames(Ino(7))).await, None);
        assert!(case.get(xattr(8, &pairs[0].0)).await.is_some());
    });
}

#[test]
fn parents_of_a_hard_link_are_the_directories_of_its_entries() {
    each(async |case| {
        // What `link` writes: the entry, and the count that some engines derive from it.
        let link = |parent, name: &Name| {
            vec![
                Write::InsertDentry {
                    parent: Ino(parent),
                    name: name.clone(),
                    dentry: dentry(10),
                },
                Write::AddParent {
                    ino: Ino(10),
                    parent: Ino(parent),
                    delta: 1,
                },
            ]
        };
        let unlink = |parent, name: &Name| {
            vec![
                Write::DeleteDentry {
                    parent: Ino(parent),
                    name: name.clone(),
                },
                Write::AddParent {
                    ino: Ino(10),
                    parent: Ino(parent),
                    delta: -1,
                },
            ]
        };
        let (a, b) = (name("a"), name("b"));
        let parents = async || {
            let found = case.get(Key::Parents(Ino(10))).await;
            let mut found = found.map_or(vec![], |record| record.parents().unwrap());
            found.sort();
            found
        };
        assert_eq!(parents().await, []);
        case.apply([link(1, &a), link(1, &b), link(3, &a)].concat())
            .await;
        assert_eq!(parents().await, [(Ino(1), 2), (Ino(3), 1)]);
        case.apply(unlink(3, &a)).await;
        assert_eq!(parents().await, [(Ino(1), 2)]);
        let rest = [
            unlink(1, &a),
            unlink(1, &b),
            vec![Write::DeleteParents(Ino(10))],
        ];
        case.apply(rest.concat()).await;
        assert_eq!(parents().await, []);
    });
}

#[test]
fn sums_and_job_locks_start_at_zero_add_set_and_compare() {
    each(async |case| {
        for counter in [
            Counter::UsedSpace,
            Counter::TotalInodes,
            Counter::LastCleanupSessions,
            Counter::LastCleanupFiles,
        ] {
            let check = |expect| Check::Counter { counter, expect };
            assert_eq!(
                case.get(Key::Counter(counter)).await,
                Some(Record::Count(0))
            );
            assert!(case.holds(check(0)).await);
            let add = |delta| Write::AddCounter { counter, delta };
            assert_eq!(
                case.apply(vec![add(4096), add(-5000), add(0)]).await,
                [4096, -904, -904]
            );
            assert_eq!(
                case.get(Key::Counter(counter)).await,
                Some(Record::Count(-904))
            );
            assert!(case.holds(check(-904)).await);
            assert!(!case.holds(check(0)).await);
            let set = Write::SetCounter {
                counter,
                value: 1_700_000_000,
            };
            let outcome = case.commit(vec![check(-904)], vec![set.clone()]).await;
            assert_eq!(outcome, Outcome::Committed(vec![0]));
            let outcome = case.commit(vec![check(-904)], vec![set]).await;
            assert_eq!(outcome, Outcome::Conflict { check: 0 });
            assert_eq!(
                case.get(Key::Counter(counter)).await,
                Some(Record::Count(1_700_000_000))
            );
        }
    });
}

const ALLOCATED: [(Counter, u64); 4] = [
    (Counter::NextInode, 2),
    (Counter::NextSlice, 1),
    (Counter::NextSession, 1),
    (Counter::NextTrash, 1),
];

#[test]
fn numbers_start_where_the_format_says_and_are_handed_out_once() {
    each(async |case| {
        let other = case.store.connect().await;
        for (counter, first) in ALLOCATED {
            let next = async || {
                case.get(Key::Counter(counter))
                    .await
                    .unwrap()
                    .count()
                    .unwrap()
            };
            assert_eq!(next().await, first.cast_signed(), "{counter:?}");
            let mut expect = first;
            for (turn, count) in [1, 1024, 1, 4096, 7].into_iter().enumerate() {
                let engine = if turn % 2 == 0 { &case.engine } else { &other };
                assert_eq!(
                    engine.alloc(counter, count).await.unwrap(),
                    expect,
                    "{counter:?}"
                );
                expect += count.unsigned_abs();
                assert_eq!(next().await, expect.cast_signed(), "{counter:?}");
            }
        }
    });
}

#[test]
fn numbers_taken_at_the_same_time_do_not_overlap() {
    each(async |case| {
        let other = case.store.connect().await;
        let take = async |engine: &AnyEngine| {
            let mut taken = Vec::new();
            for round in 0..50 {
                let count = round % 3 + 1;
                let first = engine.alloc(Counter::NextSlice, count).await.unwrap();
                taken.extend(first..first + count.unsigned_abs());
                future::yield_now().await;
            }
            taken
        };
        let (a, b) = future::zip(take(&case.engine), take(&other)).await;
        let all: BTreeSet<u64> = a.iter().chain(&b).copied().collect();
        assert_eq!(all.len(), a.len() + b.len());
        assert_eq!(all, (1..=all.len() as u64).collect());
    });
}

#[test]
fn slice_references_are_counted() {
    each(async |case| {
        let (id, size) = (SliceId(77), 4096);
        let add = |delta| Write::AddSliceRef { id, size, delta };
        let refs = async || case.get(Key::SliceRefs { id, size }).await;
        case.apply(vec![Write::NewSliceRef { id, size }]).await;
        assert_eq!(refs().await, Some(Record::Count(1)));
        assert_eq!(case.apply(vec![add(1), add(2), add(-1)]).await, [2, 4, 3]);
        assert_eq!(refs().await, Some(Record::Count(3)));
        assert_eq!(case.apply(vec![add(-2)]).await, [1]);
        assert_eq!(refs().await, Some(Record::Count(1)));
        assert_eq!(case.apply(vec![add(-1)]).await, [0]);
        assert_eq!(refs().await, Some(Record::Count(0)));
        case.apply(vec![Write::DeleteSliceRef { id, size }]).await;
        // An engine that keeps nothing for a single reference cannot tell "none" from "one".
        assert!(matches!(refs().await, None | Some(Record::Count(1))));
    });
}

#[test]
fn directory_statistics_are_added_only_where_they_exist() {
    each(async |case| {
        let ino = Ino(1);
        let stat = |n| DirStat {
            length: n,
            space: 4096 * n,
            inodes: -n,
        };
        let add = |n| Write::AddDirStat {
            ino,
            delta: stat(n),
        };
        let found = async || case.get(Key::DirStat(ino)).await;
        assert_eq!(case.apply(vec![add(1)]).await, [0]);
        assert_eq!(found().await, None);
        let results = case
            .apply(vec![Write::InitDirStat(ino), add(3), add(-1)])
            .await;
        assert_eq!(results, [0, 1, 1]);
        assert_eq!(found().await, Some(Record::DirStat(stat(2))));
        case.apply(vec![Write::PutDirStat {
            ino,
            stat: stat(-9),
        }])
        .await;
        assert_eq!(found().await, Some(Record::DirStat(stat(-9))));
        case.apply(vec![
            Write::DeleteDirStat(ino),
            Write::DeleteDirStat(Ino(2)),
        ])
        .await;
        assert_eq!(found().await, None);
        case.apply(vec![Write::PutDirStat { ino, stat: stat(1) }])
            .await;
        assert_eq!(found().await, Some(Record::DirStat(stat(1))));
    });
}

#[test]
fn directory_quotas_are_read_enumerated_and_deleted() {
    each(async |case| {
        let quota = |n| Quota {
            max_space: n,
            max_inodes: -1,
            used_space: -n,
            used_inodes: n,
        };
        for n in [3, 5, 8] {
            case.store
                .put_dir_quota(Ino(n), quota(n.cast_signed()))
                .await;
        }
        assert_eq!(
            case.get(Key::Quota(QuotaKey::Dir(Ino(5)))).await,
            Some(Record::Quota(quota(5)))
        );
        assert_eq!(case.get(Key::Quota(QuotaKey::Dir(Ino(4)))).await, None);
        case.apply(vec![
            Write::DeleteQuota(QuotaKey::Dir(Ino(5))),
            Write::DeleteQuota(QuotaKey::Dir(Ino(4))),
        ])
        .await;
        for limit in [1, 100] {
            let found = case.scan_all(Scan::Quotas(QuotaKind::Dir), limit).await;
            assert_eq!(found.len(), 2);
            for n in [3, 8] {
                let item = Item::Quota {
                    key: QuotaKey::Dir(Ino(n)),
                    quota: quota(n.cast_signed()),
                };
                assert!(found.contains(&item));
            }
        }
    });
}

#[test]
fn sessions_are_registered_refreshed_enumerated_and_forgotten() {
    each(async |case| {
        let info = |n: u64| Bytes::from(format!("{{\"ProcessID\":{n}}}"));
        let put = |sid, expire, info| Write::PutSession {
            sid: SessionId(sid),
            expire,
            info,
        };
        for sid in 1..=5 {
            case.apply(vec![put(sid, 100, Some(info(sid)))]).await;
        }
        let rest = vec![
            put(2, 200, None),
            put(3, 300, Some(info(33))),
            put(6, 600, None),
            Write::DeleteSession(SessionId(4)),
            Write::DeleteSession(SessionId(44)),
        ];
        case.apply(rest).await;
        let session = |sid, expire, info| Item::Session {
            sid: SessionId(sid),
            expire,
            info,
        };
        let expect = [
            session(1, 100, info(1)),
            session(2, 200, info(2)),
            session(3, 300, info(33)),
            session(5, 100, info(5)),
            session(6, 600, Bytes::new()),
        ];
        for limit in [1, 2, 100] {
            let found = case.scan_all(Scan::Sessions, limit).await;
            assert_eq!(found.len(), expect.len());
            assert!(
                expect.iter().all(|session| found.contains(session)),
                "{found:?}"
            );
        }
    });
}

#[test]
fn sustained_inodes_belong_to_one_session() {
    each(async |case| {
        let sid = SessionId(9);
        let add = |sid, ino| Write::AddSustained {
            sid: SessionId(sid),
            ino: Ino(ino),
        };
        let take = |sid, ino| Write::DeleteSustained {
            sid: SessionId(sid),
            ino: Ino(ino),
        };
        assert_eq!(case.get(Key::Sustained(sid)).await, None);
        case.apply(vec![add(9, 10), add(9, 11), add(9, 10), add(8, 12)])
            .await;
        let mut found = case
            .get(Key::Sustained(sid))
            .await
            .unwrap()
            .inodes()
            .unwrap();
        found.sort();
        assert_eq!(found, [Ino(10), Ino(11)]);
        case.apply(vec![take(9, 10), take(9, 12)]).await;
        assert_eq!(
            case.get(Key::Sustained(sid)).await,
            Some(Record::Inodes(vec![Ino(11)]))
        );
        case.apply(vec![take(9, 11)]).await;
        assert_eq!(case.get(Key::Sustained(sid)).await, None);
        let others = case.get(Key::Sustained(SessionId(8))).await;
        assert_eq!(others, Some(Record::Inodes(vec![Ino(12)])));
    });
}

#[test]
fn deleted_files_wait_until_their_data_is_gone() {
    each(async |case| {
        let add = |n: u64| Write::AddDeletedFile {
            ino: Ino(n),
            length: n << 30,
            time: 1_700_000_000 + n.cast_signed(),
        };
        case.apply((10..20).map(add).collect()).await;
        let gone = |n: u64| Write::DeleteDeletedFile {
            ino: Ino(n),
            length: n << 30,
        };
        case.apply(vec![gone(13), gone(99)]).await;
        for limit in [1, 3, 100] {
            let found = case.scan_all(Scan::DeletedFiles, limit).await;
            assert_eq!(found.len(), 9);
            for n in (10..20u64).filter(|n| *n != 13) {
                let time = 1_700_000_000 + n.cast_signed();
                let item = Item::DeletedFile {
                    ino: Ino(n),
                    length: n << 30,
                    time,
                };
                assert!(found.contains(&item));
            }
        }
    });
}

#[test]
fn the_setting_is_compared_as_text() {
    each(async |case| {
        let (old, new) = (
            Bytes::from_static(b"{\"Name\":\"v\"}"),
            Bytes::from_static(b"{} \xC3\xBC"),
        );
        assert_eq!(case.get(Key::Setting).await, None);
        assert!(case.holds(Check::Setting(None)).await);
        assert!(!case.holds(Check::Setting(Some(old.clone()))).await);
        case.apply(vec![Write::PutSetting(old.clone())]).await;
        assert!(!case.holds(Check::Setting(None)).await);
        assert!(case.holds(Check::Setting(Some(old))).await);
        case.apply(vec![Write::PutSetting(new.clone())]).await;
        assert_eq!(case.get(Key::Setting).await, Some(Record::Bytes(new)));
        // A fresh volume's counters are as they were before there was a setting.
        for (counter, first) in ALLOCATED {
            assert_eq!(
                case.engine.alloc(counter, 1).await.unwrap(),
                first,
                "{counter:?}"
            );
        }
    });
}

#[test]
fn acl_rules_are_read_by_number() {
    each(async |case| {
        let full = AclRule {
            owner: 7,
            group: 5,
            mask: 6,
            other: 0xFFFF,
            users: vec![(1000, 7), (u32::MAX, 0)],
            groups: vec![(100, 4)],
        };
        let bare = AclRule {
            mask: 0xFFFF,
            users: vec![],
            groups: vec![],
            ..full.clone()
        };
        case.store.put_acl(1, &full).await;
        case.store.put_acl(2, &bare).await;
        assert_eq!(case.get(Key::Acl(1)).await, Some(Record::Acl(full)));
        assert_eq!(case.get(Key::Acl(2)).await, Some(Record::Acl(bare)));
        assert_eq!(case.get(Key::Acl(3)).await, None);
    });
}

#[test]
fn answers_come_in_the_order_of_the_keys() {
    each(async |case| {
        let a = name("a");
        case.apply(vec![
            insert(&a, 10),
            Write::InsertAttr {
                ino: Ino(10),
                attr: file(),
            },
            append(0, &[slice(0)]),
        ])
        .await;
        let keys = [
            chunk(0),
            Key::Attr(Ino(11)),
            dentry_key(&a),
            Key::Attr(Ino(10)),
            Key::Setting,
            Key::Counter(Counter::NextInode),
            chunk(0),
        ];
        let expect = [
            Some(Record::Slices(vec![slice(0)])),
            None,
            Some(Record::Dentry(dentry(10))),
            Some(Record::Attr(file())),
            None,
            Some(Record::Count(2)),
            Some(Record::Slices(vec![slice(0)])),
        ];
        assert_eq!(case.engine.read(&keys).await.unwrap(), expect);
        assert_eq!(case.engine.read(&[]).await.unwrap(), []);
    });
}

#[test]
fn a_large_directory_is_listed_page_by_page() {
    each(async |case| {
        let names: Vec<Name> = (0..3000).map(|n| name(format!("entry-{n:05}"))).collect();
        for part in names.chunks(500) {
            let writes = part.iter().map(|name| insert(name, 10)).collect();
            case.apply(writes).await;
        }
        let all: BTreeSet<Name> = names.iter().cloned().collect();
        for (limit, attrs) in [(64, true), (1000, false), (3000, false), (10_000, true)] {
            let found = case
                .scan_all(
                    Scan::Dir {
                        parent: Ino(1),
                        attrs,
                    },
                    limit,
                )
                .await;
            assert_eq!(
                found.into_iter().map(entry_name).collect::<BTreeSet<_>>(),
                all
            );
        }
        assert_eq!(
            case.scan_all(
                Scan::Dir {
                    parent: Ino(2),
                    attrs: true
                },
                64
            )
            .await,
            []
        );
    });
}

#[test]
fn entries_present_throughout_are_listed_while_others_come_and_go() {
    each(async |case| {
        let kept: BTreeSet<Name> = (0..600).map(|n| name(format!("kept-{n:04}"))).collect();
        case.apply(kept.iter().map(|name| insert(name, 10)).collect())
            .await;
        let scan = Scan::Dir {
            parent: Ino(1),
            attrs: false,
        };
        let mut found = BTreeSet::new();
        let mut cursor = None;
        for round in 0.. {
            // Before and after the middle of the kept names, in each round.
            let fresh = [
                format!("a-{round}"),
                format!("kept-0300-{round}"),
                format!("z-{round}"),
            ];
            case.apply(fresh.iter().map(|fresh| insert(&name(fresh), 11)).collect())
                .await;
            let page = case.engine.scan(&scan, cursor.as_ref(), 50).await.unwrap();
            found.extend(page.items.into_iter().map(entry_name));
            let delete = |fresh| Write::DeleteDentry {
                parent: Ino(1),
                name: name(fresh),
            };
            case.apply(fresh.iter().map(delete).collect()).await;
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
            assert!(round < 1000, "the enumeration does not end");
        }
        assert!(found.is_superset(&kept));
    });
}

#[test]
fn commits_of_two_handles_at_the_same_time_all_count() {
    each(async |case| {
        let other = case.store.connect().await;
        case.apply(vec![Write::InsertAttr {
            ino: Ino(1),
            attr: dir(),
        }])
        .await;
        let work = async |engine: &AnyEngine, who: &str| {
            for round in 0..100 {
                let expect = Attr { nlink: 0, ..dir() };
                let fields = AttrFields::FLAGS.and(AttrFields::PARENT);
                let txn = Txn {
                    checks: vec![
                        Check::Attr {
                            ino: Ino(1),
                            fields,
                            expect,
                        },
                        Check::Dentry {
                            parent: Ino(1),
                            name: name(format!("{who}-{round}")),
                            expect: None,
                        },
                    ],
                    writes: vec![
                        insert(&name(format!("{who}-{round}")), 10),
                        Write::PatchDir {
                            ino: Ino(1),
                            time: Some(at(round, 0)),
                            nlink: 1,
                        },
                        Write::AddCounter {
                            counter: Counter::TotalInodes,
                            delta: 1,
                        },
                    ],
                };
                let outcome = engine.commit(txn).await.unwrap();
                assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
            }
        };
        future::zip(work(&case.engine, "a"), work(&other, "b")).await;
        let total = case.get(Key::Counter(Counter::TotalInodes)).await;
        assert_eq!(total, Some(Record::Count(200)));
        let parent = case.get(Key::Attr(Ino(1))).await.unwrap().attr().unwrap();
        assert_eq!(parent.nlink, 202);
        let listed = case
            .scan_all(
                Scan::Dir {
                    parent: Ino(1),
                    attrs: false,
                },
                64,
            )
            .await;
        assert_eq!(
            listed
                .into_iter()
                .map(entry_name)
                .collect::<BTreeSet<_>>()
                .len(),
            200
        );
    });
}

#[test]
fn of_commits_that_exclude_each_other_one_wins() {
    each(async |case| {
        let other = case.store.connect().await;
        for round in 0..50 {
            let name = name(format!("contended-{round}"));
            let create = async |engine: &AnyEngine, ino: u64| {
                let absent = Check::Dentry {
                    parent: Ino(1),
                    name: name.clone(),
                    expect: None,
                };
                let txn = Txn {
                    checks: vec![absent],
                    writes: vec![insert(&name, ino)],
                };
                engine.commit(txn).await.unwrap()
            };
            let (a, b) = future::zip(create(&case.engine, 10), create(&other, 11)).await;
            let won = |outcome: &Outcome| *outcome == Outcome::Committed(vec![0]);
            assert!(won(&a) != won(&b), "{a:?} {b:?}");
            let winner = if won(&a) { 10 } else { 11 };
            assert_eq!(
                case.get(dentry_key(&name)).await,
                Some(Record::Dentry(dentry(winner)))
            );
        }
    });
}

#[test]
fn what_one_handle_commits_the_other_reads() {
    each(async |case| {
        let other = case.store.connect().await;
        let key = [Key::Counter(Counter::UsedSpace)];
        for value in 1..20 {
            let add = Write::AddCounter {
                counter: Counter::UsedSpace,
                delta: 1,
            };
            case.apply(vec![add]).await;
            assert_eq!(
                other.read(&key).await.unwrap(),
                [Some(Record::Count(value))]
            );
        }
    });
}

#[test]
fn sync_completes_for_everybody_who_waits() {
    each(async |case| {
        let other = case.store.connect().await;
        let add = Write::AddCounter {
            counter: Counter::UsedSpace,
            delta: 1,
        };
        case.apply(vec![add]).await;
        let both = future::zip(case.engine.sync(), other.sync());
        let late = async {
            case.runtime.sleep(std::time::Duration::ZERO).await;
            case.engine.sync().await
        };
        let ((a, b), c) = future::zip(both, late).await;
        for result in [a, b, c] {
            result.unwrap();
        }
    });
}

#[test]
fn strict_engines_refuse_writes_that_contradict_the_records() {
    each(async |case| {
        if !case.store.is_strict() {
            return;
        }
        let a = name("a");
        case.apply(vec![
            insert(&a, 10),
            Write::InsertAttr {
                ino: Ino(10),
                attr: file(),
            },
            Write::NewSliceRef {
                id: SliceId(1),
                size: 5,
            },
        ])
        .await;
        let nowhere = Ino(99);
        for wrong in [
            insert(&a, 11),
            Write::InsertAttr {
                ino: Ino(10),
                attr: file(),
            },
            Write::NewSliceRef {
                id: SliceId(1),
                size: 5,
            },
            Write::PatchDir {
                ino: nowhere,
                time: None,
                nlink: 1,
            },
            Write::UpdateAttr {
                ino: nowhere,
                old: file(),
                new: dir(),
            },
            Write::ReplaceDentry {
                parent: nowhere,
                name: a.clone(),
                dentry: dentry(1),
            },
        ] {
            let first = Write::AddCounter {
                counter: Counter::UsedSpace,
                delta: 1,
            };
            let txn = Txn {
                checks: vec![],
                writes: vec![first, wrong.clone()],
            };
            let refused = case.engine.commit(txn).await;
            assert!(
                matches!(refused, Err(EngineError::Refused { .. })),
                "{wrong:?} {refused:?}"
            );
        }
        assert_eq!(
            case.get(Key::Counter(Counter::UsedSpace)).await,
            Some(Record::Count(0))
        );
    });
}

#[test]
fn a_store_is_empty_until_something_is_written_and_after_its_destruction() {
    each(async |case| {
        assert!(case.engine.is_empty().await.unwrap());
        let ino = Ino(7);
        let lock = Flock {
            sid: SessionId(3),
            owner: u64::MAX,
            exclusive: true,
        };
        case.apply(vec![Write::PutFlock { ino, lock }]).await;
        assert!(!case.engine.is_empty().await.unwrap());
        case.apply(vec![Write::DeleteSession(lock.sid)]).await;
        assert_eq!(case.get(Key::Flocks(ino)).await, None);
        assert!(case.engine.is_empty().await.unwrap());
        let setting = Bytes::from_static(b"{}");
        case.apply(vec![Write::PutSetting(setting), insert(&name("a"), 9)])
            .await;
        assert!(!case.engine.is_empty().await.unwrap());
        // Again, as after a failure.
        for _ in 0..2 {
            case.engine.destroy().await.unwrap();
            assert!(case.engine.is_empty().await.unwrap());
        }
    });
}

#[test]
fn counters_of_ids_are_set_and_read_as_the_next_to_hand_out() {
    each(async |case| {
        for counter in [
            Counter::NextInode,
            Counter::NextSlice,
            Counter::NextSession,
            Counter::NextTrash,
        ] {
            let set = Write::SetCounter { counter, value: 50 };
            case.apply(vec![set]).await;
            let next = case.get(Key::Counter(counter)).await;
            assert_eq!(next, Some(Record::Count(50)), "{counter:?}");
            assert_eq!(case.engine.alloc(counter, 2).await.unwrap(), 50);
            let next = case.get(Key::Counter(counter)).await;
            assert_eq!(next, Some(Record::Count(52)), "{counter:?}");
        }
        for counter in [Counter::NextCleanupSlices, Counter::LastCleanupTrash] {
            assert!(case.holds(Check::Counter { counter, expect: 0 }).await);
            let value = 1_700_000_000;
            case.apply(vec![Write::SetCounter { counter, value }]).await;
            let expect = value;
            assert!(case.holds(Check::Counter { counter, expect }).await);
        }
    });
}

#[test]
fn what_new_entries_inherit_is_checked_with_acls_and_tier() {
    each(async |case| {
        let ino = Ino(2);
        case.apply(vec![Write::InsertAttr { ino, attr: dir() }])
            .await;
        let inherits = |expect| Check::Attr {
            ino,
            fields: AttrFields::INHERITED,
            expect,
        };
        assert!(case.holds(inherits(Attr { uid: 9, ..dir() })).await);
        assert!(!case.holds(inherits(Attr { tier: 1, ..dir() })).await);
        let access_acl = 1;
        assert!(
            !case
                .holds(inherits(Attr {
                    access_acl,
                    ..dir()
                }))
                .await
        );
        let default_acl = 1;
        assert!(
            !case
                .holds(inherits(Attr {
                    default_acl,
                    ..dir()
                }))
                .await
        );
    });
}

#[test]
fn walks_go_down_and_up_as_far_as_records_reach() {
    each(async |case| {
        let below = |parent: u64| Attr {
            parent: Ino(parent),
            ..dir()
        };
        let entry = |parent: u64, text: &str, ino: u64| Write::InsertDentry {
            parent: Ino(parent),
            name: name(text),
            dentry: dentry(ino),
        };
        let put = |ino: u64, attr| Write::InsertAttr {
            ino: Ino(ino),
            attr,
        };
        let leaf = Attr {
            parent: Ino(3),
            ..file()
        };
        case.apply(vec![
            put(1, dir()),
            put(2, below(1)),
            put(3, below(2)),
            put(4, leaf.clone()),
            entry(1, "a", 2),
            entry(2, "b", 3),
            entry(3, "c", 4),
            entry(4, "d", 2),
            entry(3, "dangling", 99),
        ])
        .await;
        let walk = async |from: u64, path: &str| {
            let key = Key::Path {
                from: Ino(from),
                names: path.split_terminator('/').map(name).collect(),
            };
            let path = case.get(key).await.unwrap().path().unwrap();
            path.iter().map(|(ino, _)| ino.0).collect::<Vec<_>>()
        };
        assert!(walk(1, "").await.is_empty());
        assert_eq!(walk(1, "a/b/c").await, [2, 3, 4]);
        // A file has nothing below it, whatever entries say.
        assert_eq!(walk(1, "a/b/c/d").await, [2, 3, 4]);
        assert_eq!(walk(1, "a/x/c").await, [2]);
        assert_eq!(walk(2, "b/dangling/y").await, [3]);
        let up = async |ino: u64| {
            let path = case.get(Key::Ancestors(Ino(ino))).await.unwrap();
            path.path().unwrap()
        };
        assert_eq!(
            up(4).await,
            [(Ino(3), below(2)), (Ino(2), below(1)), (Ino(1), dir())]
        );
        assert_eq!(up(1).await, []);
        assert_eq!(up(99).await, []);
    });
}
