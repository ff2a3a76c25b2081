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
    let action = (0..16u8, 0..4u8, any::<u32>(), prop::bool::weighted(0.8));
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
        7..=9 => 7,
        other => other,
    }
}

fn act(oracle: &Memory, action: &Action, txn: &mut Txn) {
    let ino = Ino(u64::from(action.subject) + 100);
    match action.what {
        0..=3 => act_on_attr(oracle, action, ino, txn),
        4..=6 => act_on_entry(oracle, action, txn),
        7..=9 => act_on_chunk(oracle, action, ino, txn),
        _ => act_on_rest(oracle, action, ino, txn),
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
    let rest = [Scan::DeletedFiles, Scan::Sessions];
    for scan in chunks.chain(xattrs).chain(dirs).chain(rest) {
        let expect = oracle.scan(&scan, None, 1000).await.unwrap().items;
        assert_eq!(
            sorted(case.scan_all(scan.clone(), 3).await),
            sorted(expect),
            "{scan:?}"
        );
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
        });
    });
}
