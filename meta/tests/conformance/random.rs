//! Random histories: the same transactions on the oracle and on every engine end alike, one by one, and
//! leave the same records.
//!
//! A transaction is one to three actions on different subjects. An action is what an operation would
//! commit: writes that rely on a record carry a check of it, with what the oracle has now or with a guess
//! that may be wrong, so that conflicts happen and must be the same ones.

use std::collections::HashSet;

use proptest::prelude::*;
use sluice_meta::engine::memory::Memory;

use super::*;

/// An action on one of a few subjects; `n` varies its values.
#[derive(Clone, Debug)]
struct Action {
    what: u8,
    subject: u8,
    n: u32,
    /// Check what the oracle has, so that the action succeeds; otherwise guess.
    informed: bool,
}

fn actions() -> impl Strategy<Value = Vec<Vec<Action>>> {
    let action = (0..23u8, 0..4u8, any::<u32>(), prop::bool::weighted(0.8));
    let action = action.prop_map(|(what, subject, n, informed)| Action {
        what,
        subject,
        n,
        informed,
    });
    prop::collection::vec(prop::collection::vec(action, 1..4), 1..40)
}

fn entry_of(subject: u8) -> Name {
    name([b'n', 0xF0 | subject])
}

fn random_attr(n: u32) -> Attr {
    Attr {
        flags: (n % 3) as u8,
        kind: if n.is_multiple_of(2) {
            FileKind::File
        } else {
            FileKind::Directory
        },
        mode: (n % 0o10_000) as u16,
        uid: n,
        atime: at(i64::from(n) - (1 << 31), n % 1_000_000_000),
        mtime: at(-i64::from(n), n % 1_000),
        nlink: n % 100 + 10,
        length: u64::from(n) << 20,
        parent: if n.is_multiple_of(5) {
            Ino::NONE
        } else {
            Ino::ROOT
        },
        tier: (n % 4) as u8,
        default_acl: n % 7,
        ..file()
    }
}

/// The transaction of some actions, given what the oracle holds.
fn txn_of(oracle: &Memory, actions: &[Action]) -> Txn {
    let mut txn = Txn::default();
    let mut touched = HashSet::new();
    for action in actions {
        if touched.insert((family(action.what), action.subject)) {
            act(oracle, action, &mut txn);
        }
    }
    txn
}

/// Actions that touch the same kind of record.
fn family(what: u8) -> u8 {
    match what {
        0..=3 => 0,
        4..=6 => 4,
        7..=9 | 16 => 7,
        14 | 17 | 18 => 14,
        other => other,
    }
}

fn act(oracle: &Memory, action: &Action, txn: &mut Txn) {
    let ino = Ino(u64::from(action.subject) + 100);
    match action.what {
        0..=3 => act_on_attr(oracle, action, ino, txn),
        4..=6 => act_on_entry(oracle, action, txn),
        7..=9 => act_on_chunk(oracle, action, ino, txn),
        10..=15 => act_on_rest(oracle, action, ino, txn),
        16 => replace_prefix(oracle, action, ino, txn),
        17 | 18 => act_on_lock(oracle, action, ino, txn),
        _ => act_on_note(oracle, action, ino, txn),
    }
}

fn act_on_attr(oracle: &Memory, action: &Action, ino: Ino, txn: &mut Txn) {
    let new = random_attr(action.n);
    let Some(Record::Attr(old)) = oracle.peek(&Key::Attr(ino)) else {
        txn.checks.push(Check::NoAttr(ino));
        txn.writes.push(Write::InsertAttr { ino, attr: new });
        return;
    };
    let expect = if action.informed {
        old.clone()
    } else {
        new.clone()
    };
    let fields = if action.what == 1 {
        AttrFields::EXISTS.and(AttrFields::FLAGS)
    } else {
        AttrFields::ALL
    };
    txn.checks.push(Check::Attr {
        ino,
        fields,
        expect,
    });
    txn.writes.push(match action.what {
        0 => Write::DeleteAttr(ino),
        1 => {
            let time = (!action.n.is_multiple_of(3)).then_some(new.mtime);
            Write::PatchDir {
                ino,
                time,
                nlink: (action.n % 5) as i32 - 2,
            }
        }
        // Some fields only, so that columns are updated in many combinations.
        2 => Write::UpdateAttr {
            ino,
            new: Attr {
                length: new.length,
                mtime: new.mtime,
                uid: new.uid,
                ..old.clone()
            },
            old,
        },
        _ => Write::UpdateAttr {
            ino,
            new: Attr {
                kind: old.kind,
                ..new
            },
            old,
        },
    });
}

fn act_on_entry(oracle: &Memory, action: &Action, txn: &mut Txn) {
    let name = entry_of(action.subject);
    let found = match oracle.peek(&dentry_key(&name)) {
        Some(Record::Dentry(dentry)) => Some(dentry),
        _ => None,
    };
    let guess = (action.n.is_multiple_of(2)).then_some(dentry(u64::from(action.n % 8)));
    let expect = if action.informed { found } else { guess };
    txn.checks.push(Check::Dentry {
        parent: Ino(1),
        name: name.clone(),
        expect,
    });
    if action.what == 6 {
        txn.checks
            .push(Check::DirEmpty(Ino(u64::from(action.n % 3))));
    }
    let dentry = dentry(u64::from(action.n % 8) + 98);
    txn.writes.push(match (expect, action.n % 4) {
        (None, _) => Write::InsertDentry {
            parent: Ino(1),
            name,
            dentry,
        },
        (Some(_), 0) => Write::DeleteDentry {
            parent: Ino(1),
            name,
        },
        (Some(_), _) => Write::ReplaceDentry {
            parent: Ino(1),
            name,
            dentry,
        },
    });
}

fn act_on_chunk(oracle: &Memory, action: &Action, ino: Ino, txn: &mut Txn) {
    let index = ChunkIndex(action.n % 3);
    let slices = vec![slice(action.n % 1000); (action.n % 4) as usize + 1];
    if action.what == 9 {
        let list = match oracle.peek(&Key::Chunk { ino, index }) {
            Some(Record::Slices(list)) if action.informed => list,
            _ => slices.clone(),
        };
        let whole = action.n.is_multiple_of(2);
        let prefix = list[..if whole { list.len() } else { list.len() / 2 }].to_vec();
        txn.checks.push(Check::Chunk {
            ino,
            index,
            prefix,
            whole,
        });
        txn.writes.push(Write::DeleteChunk { ino, index });
    }
    txn.writes.push(match action.what {
        7 => Write::AppendChunkIfPresent { ino, index, slices },
        _ => Write::AppendChunk { ino, index, slices },
    });
}

fn act_on_rest(oracle: &Memory, action: &Action, ino: Ino, txn: &mut Txn) {
    let n = action.n;
    let (name, value) = (
        entry_of(action.subject),
        Bytes::copy_from_slice(&n.to_be_bytes()),
    );
    let stat = DirStat {
        length: i64::from(n) - 1000,
        space: -i64::from(n),
        inodes: 1,
    };
    let (id, size) = (SliceId(ino.0), 4096);
    match action.what {
        10 => {
            txn.checks.push(Check::Xattr {
                ino,
                name: name.clone(),
                present: n.is_multiple_of(2),
            });
            txn.writes.push(match n % 4 {
                0 => Write::DeleteXattrs(ino),
                1 | 2 => Write::PutXattr { ino, name, value },
                _ => Write::DeleteXattr { ino, name },
            });
        }
        11 => {
            let counter = Counter::UsedSpace;
            txn.writes.push(Write::AddCounter {
                counter,
                delta: i64::from(n) - (1 << 31),
            });
        }
        12 => txn.writes.push(match n % 4 {
            0 => Write::InitDirStat(ino),
            1 => Write::DeleteDirStat(ino),
            2 => Write::PutDirStat { ino, stat },
            _ => Write::AddDirStat { ino, delta: stat },
        }),
        13 => txn
            .writes
            .push(match oracle.peek(&Key::SliceRefs { id, size }) {
                None => Write::NewSliceRef { id, size },
                Some(Record::Count(0)) => Write::DeleteSliceRef { id, size },
                Some(_) => Write::AddSliceRef {
                    id,
                    size,
                    delta: i64::from(n % 2) * 2 - 1,
                },
            }),
        14 => {
            let sid = SessionId(u64::from(action.subject) + 1);
            txn.writes.push(match n % 5 {
                0 => Write::DeleteSession(sid),
                1 => Write::AddSustained { sid, ino },
                2 => Write::DeleteSustained { sid, ino },
                3 => Write::PutSession {
                    sid,
                    expire: n.into(),
                    info: None,
                },
                _ => Write::PutSession {
                    sid,
                    expire: n.into(),
                    info: Some(value),
                },
            });
        }
        _ => {
            let length = ino.0 * 7;
            txn.writes.push(match n % 4 {
                0 => Write::DeleteDeletedFile { ino, length },
                1 => Write::AddDeletedFile {
                    ino,
                    length,
                    time: n.into(),
                },
                2 => Write::PutSymlink { ino, target: value },
                _ => Write::DeleteSymlink(ino),
            });
        }
    }
}

fn replace_prefix(oracle: &Memory, action: &Action, ino: Ino, txn: &mut Txn) {
    let index = ChunkIndex(action.n % 3);
    let list = match oracle.peek(&Key::Chunk { ino, index }) {
        Some(Record::Slices(list)) if action.informed => list,
        _ => vec![],
    };
    let drop = list.len() * (action.n % 5) as usize / 4;
    txn.checks.push(Check::Chunk {
        ino,
        index,
        prefix: list[..drop].to_vec(),
        whole: false,
    });
    txn.writes.push(Write::ReplaceChunkPrefix {
        ino,
        index,
        drop,
        slices: vec![slice(action.n % 999); (action.n % 3) as usize],
    });
}

/// Owners beyond 63 bits and 32 bits are sorted by their unsigned number.
fn act_on_lock(oracle: &Memory, action: &Action, ino: Ino, txn: &mut Txn) {
    let n = action.n;
    let (sid, owner) = (
        SessionId(u64::from(n % 2) + 1),
        [7, u64::MAX - 1, 1 << 40][n as usize % 3],
    );
    if action.what == 17 {
        let expect = match oracle.peek(&Key::Flocks(ino)) {
            Some(Record::Flocks(locks)) if action.informed => locks,
            _ => vec![],
        };
        txn.checks.push(Check::Flocks { ino, expect });
        let exclusive = n.is_multiple_of(5);
        let lock = Flock {
            sid,
            owner,
            exclusive,
        };
        txn.writes.push(match n % 4 {
            0 => Write::DeleteFlock { ino, sid, owner },
            _ => Write::PutFlock { ino, lock },
        });
        return;
    }
    let expect = match oracle.peek(&Key::Plocks(ino)) {
        Some(Record::Plocks(locks)) if action.informed => locks,
        _ => vec![],
    };
    txn.checks.push(Check::Plocks { ino, expect });
    let range = |start: u64, end| PlockRange {
        start,
        end,
        write: n.is_multiple_of(2),
        pid: n,
    };
    let ranges = [
        range(0, 9),
        range(20, u64::from(n) + 20),
        range(1 << 40, u64::MAX >> 1),
    ];
    let ranges = ranges[..n as usize % 4].to_vec();
    txn.writes.push(Write::PutPlocks {
        ino,
        sid,
        owner,
        ranges,
    });
}

fn quota_key(subject: u8) -> QuotaKey {
    match subject {
        0 => QuotaKey::Dir(Ino(100)),
        1 => QuotaKey::User(0),
        2 => QuotaKey::User(u32::MAX),
        _ => QuotaKey::Group(u32::MAX),
    }
}

fn act_on_note(oracle: &Memory, action: &Action, ino: Ino, txn: &mut Txn) {
    let (n, key) = (action.n, quota_key(action.subject));
    let (space, inodes) = (i64::from(n) - 1000, -i64::from(n % 10));
    let id = SliceId(u64::from(action.subject) + 500);
    // One time for each slice, as there is in a volume.
    let time = id.0 as i64 * 10;
    let replaced = |n: u32| vec![(SliceId(u64::from(n) << 20), n); (n % 3) as usize + 1];
    txn.writes.push(match action.what {
        19 => match n % 5 {
            0 => Write::PutQuotaLimits {
                key,
                max_space: n.into(),
                max_inodes: -1,
            },
            1 => Write::PutQuotaUsage { key, space, inodes },
            2 => Write::DeleteQuota(key),
            _ => Write::AddQuotaUsage { key, space, inodes },
        },
        20 if n.is_multiple_of(3) => {
            let expect = replaced(n);
            txn.checks.push(Check::DelayedSlices { id, time, expect });
            Write::DeleteDelayedSlices { id, time }
        }
        20 if n % 3 == 1 => Write::DeleteDelayedSlices { id, time },
        20 => Write::PutDelayedSlices {
            id,
            time,
            slices: replaced(n),
        },
        21 if n.is_multiple_of(2) => Write::AddDetached {
            ino,
            time: n.into(),
        },
        21 => Write::DeleteDetached(ino),
        _ => {
            let next = (1..).find(|id| oracle.peek(&Key::Acl(*id)).is_none());
            let bits = (n % 8) as u16;
            let named = vec![(n, bits); (n % 3) as usize];
            let mask = if next.is_some_and(|id| id % 2 == 0) {
                0xFFFF
            } else {
                bits
            };
            Write::InsertAcl(AclRule {
                owner: bits,
                group: 5,
                mask,
                other: 0,
                users: named.clone(),
                groups: named[named.len() / 2..].to_vec(),
            })
        }
    });
}

/// Every key that the actions can touch, but parents, which only some engines derive from the entries.
fn keys() -> Vec<Key> {
    let mut keys = vec![Key::Counter(Counter::UsedSpace), Key::Setting];
    for subject in 0..4 {
        let (ino, name) = (Ino(u64::from(subject) + 100), entry_of(subject));
        keys.extend([
            Key::Attr(ino),
            dentry_key(&name),
            entry_key(&name),
            Key::Symlink(ino),
            Key::Xattr { ino, name },
            Key::XattrNames(ino),
            Key::DirStat(ino),
            Key::Sustained(SessionId(u64::from(subject) + 1)),
            Key::Flocks(ino),
            Key::Plocks(ino),
            Key::Quota(quota_key(subject)),
            Key::Acl(u32::from(subject) + 1),
            Key::Ancestors(ino),
            Key::Path {
                from: Ino(1),
                names: vec![entry_of(subject), entry_of(1)],
            },
        ]);
        keys.extend((0..3).map(|index| Key::Chunk {
            ino,
            index: ChunkIndex(index),
        }));
    }
    keys
}

fn sorted<T: std::fmt::Debug>(mut list: Vec<T>) -> Vec<T> {
    list.sort_by_key(|item| format!("{item:?}"));
    list
}

/// Lists have no order that the contract promises.
fn normal(record: Option<Record>) -> Option<Record> {
    match record {
        Some(Record::Names(names)) => Some(Record::Names(sorted(names))),
        Some(Record::Inodes(inodes)) => Some(Record::Inodes(sorted(inodes))),
        other => other,
    }
}

async fn same_records(oracle: &Memory, case: &Case) {
    let keys = keys();
    let found = case.engine.read(&keys).await.unwrap();
    for (key, found) in keys.iter().zip(found) {
        assert_eq!(normal(found), normal(oracle.peek(key)), "{key:?}");
    }
    let length = 3 * (64 << 20);
    let chunks = (100..104).map(|ino| Scan::Chunks {
        ino: Ino(ino),
        length,
    });
    let xattrs = (100..104).map(|ino| Scan::Xattrs(Ino(ino)));
    let dirs = [false, true].map(|attrs| Scan::Dir {
        parent: Ino(1),
        attrs,
    });
    let rest = [
        Scan::DeletedFiles,
        Scan::Sessions,
        Scan::Quotas(QuotaKind::Dir),
        Scan::Quotas(QuotaKind::User),
        Scan::Quotas(QuotaKind::Group),
        Scan::Acls,
        Scan::DelayedSlices,
        Scan::DeadSlices,
        Scan::Detached,
        Scan::SessionLocks(SessionId(1)),
        Scan::SessionLocks(SessionId(2)),
        Scan::Inodes,
        Scan::AllChunks,
    ];
    for scan in chunks.chain(xattrs).chain(dirs).chain(rest) {
        let expect = oracle.scan(&scan, None, 1000).await.unwrap().items;
        let mut found = sorted(case.scan_all(scan.clone(), 3).await);
        if matches!(scan, Scan::Inodes | Scan::AllChunks) {
            found.dedup();
        }
        assert_eq!(found, sorted(expect), "{scan:?}");
    }
}

#[test]
fn random_histories_end_as_on_the_oracle() {
    let config = ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..Default::default()
    };
    proptest!(config, |(history in actions())| {
        each(async |case| {
            let oracle = Memory::new();
            for actions in &history {
                let txn = txn_of(&oracle, actions);
                let expect = oracle.apply(&txn).unwrap();
                let outcome = case.engine.commit(txn.clone()).await.unwrap();
                assert_eq!(outcome, expect, "{txn:?}");
            }
            same_records(&oracle, case).await;
            case.engine.destroy().await.unwrap();
            assert!(case.engine.is_empty().await.unwrap());
        });
    });
}
