//! Compaction's commit: what it leaves, whom it loses against, and connections that break under it.
#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and does not get fails it"
)]

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{Client, Direct, START, block_on, slice, unknown_fate};
use sluice_meta::client::MetaOptions;
use sluice_meta::engine::memory::{Request, Verdict};
use sluice_meta::engine::{Engine, Item, Scan, Write};
use sluice_meta::error::{EngineError, MetaError};
use sluice_meta::ops::WriteCommit;
use sluice_meta::ops::compact::{Compacted, Compaction};
use sluice_meta::tools::format::FormatOptions;
use sluice_meta::types::{ChunkIndex, Ino, Slice, SliceId, Timestamp};

const FILE: Ino = Ino(9);
const CHUNK: ChunkIndex = ChunkIndex(0);
const NEW: SliceId = SliceId(50);

/// A volume, with a trash or without, and a file whose chunk has the records 1, 2 and 1 again.
fn client(trash_days: u32) -> Client {
    let options = FormatOptions {
        bucket: Some("/data".into()),
        trash_days: Some(trash_days),
        ..FormatOptions::default()
    };
    let client = Client::with(&options, MetaOptions::default());
    client.add_file(FILE, Ino::ROOT);
    let new_ref = |id| Write::NewSliceRef {
        id: SliceId(id),
        size: 100,
    };
    client.put(vec![
        append(vec![
            slice(0, 1, 100),
            slice(50, 2, 100),
            slice(200, 1, 100),
        ]),
        new_ref(1),
        new_ref(2),
        Write::AddSliceRef {
            id: SliceId(1),
            size: 100,
            delta: 1,
        },
    ]);
    client
}

fn append(slices: Vec<Slice>) -> Write {
    Write::AppendChunk {
        ino: FILE,
        index: CHUNK,
        slices,
    }
}

fn plan(client: &Client) -> Compaction {
    block_on(client.meta.plan_compaction(FILE, CHUNK))
        .unwrap()
        .unwrap()
}

fn commit(client: &Client, compaction: &Compaction) -> Compacted {
    block_on(client.meta.commit_compaction(compaction, NEW)).unwrap()
}

fn notes(client: &Client) -> Vec<Item> {
    block_on(client.memory.scan(&Scan::DelayedSlices, None, 10))
        .unwrap()
        .items
}

/// The new slice stands alone, before what came in meanwhile.
fn check_replaced(client: &Client, behind: &[Slice]) {
    let mut expected = vec![slice(0, NEW.0, 300)];
    expected.extend_from_slice(behind);
    assert_eq!(client.chunk(FILE, 0), expected);
    assert_eq!(client.references(NEW.0, 300), Some(1));
}

#[test]
fn without_a_trash_the_old_slices_are_dead() {
    let client = client(0);
    let before = client.attr(FILE);
    let compaction = plan(&client);
    client.put(vec![append(vec![slice(400, 3, 9)])]);
    let dead = vec![(SliceId(1), 100), (SliceId(2), 100)];
    assert_eq!(commit(&client, &compaction), Compacted::Done(dead));
    check_replaced(&client, &[slice(400, 3, 9)]);
    assert_eq!(client.attr(FILE), before, "the file is the same");
    assert!(notes(&client).is_empty());
}

#[test]
fn with_a_trash_they_wait() {
    let client = client(1);
    assert_eq!(commit(&client, &plan(&client)), Compacted::Done(Vec::new()));
    check_replaced(&client, &[]);
    assert_eq!(client.references(1, 100), Some(2));
    let expected = Item::DelayedSlices {
        id: NEW,
        time: START,
        slices: vec![(SliceId(1), 100), (SliceId(2), 100), (SliceId(1), 100)],
    };
    assert_eq!(notes(&client), [expected]);
}

#[test]
fn nothing_but_holes_leaves_no_note() {
    let client = client(1);
    let hole = |pos| Slice::hole(pos, 10);
    let other = Ino(10);
    client.add_file(other, Ino::ROOT);
    client.put(vec![Write::AppendChunk {
        ino: other,
        index: CHUNK,
        slices: vec![hole(0), hole(5)],
    }]);
    let compaction = block_on(client.meta.plan_compaction(other, CHUNK))
        .unwrap()
        .unwrap();
    assert_eq!(commit(&client, &compaction), Compacted::Done(Vec::new()));
    assert!(notes(&client).is_empty());
    assert_eq!(client.chunk(other, 0), [slice(5, NEW.0, 1)]);
}

#[test]
fn a_list_that_changed_wins() {
    for change in [
        Write::ReplaceChunkPrefix {
            ino: FILE,
            index: CHUNK,
            drop: 1,
            slices: vec![slice(0, 7, 100)],
        },
        Write::DeleteChunk {
            ino: FILE,
            index: CHUNK,
        },
    ] {
        let client = client(0);
        let compaction = plan(&client);
        client.put(vec![change]);
        let list = client.chunk(FILE, 0);
        assert_eq!(commit(&client, &compaction), Compacted::Lost);
        assert_eq!(client.chunk(FILE, 0), list);
        assert_eq!(client.references(1, 100), Some(2));
    }
}

#[test]
fn a_broken_connection_is_looked_behind() {
    for applied in [true, false] {
        let client = client(0);
        let compaction = plan(&client);
        let mut first = true;
        client.on_request(move |request| match request {
            Request::Commit(_) if std::mem::take(&mut first) => match applied {
                true => Verdict::ServeThenFail(unknown_fate()),
                false => Verdict::Fail(unknown_fate()),
            },
            _ => Verdict::Serve,
        });
        let dead = vec![(SliceId(1), 100), (SliceId(2), 100)];
        let found = commit(&client, &compaction);
        assert_eq!(found, Compacted::Done(dead), "applied: {applied}");
        check_replaced(&client, &[]);
    }
}

/// Ours was applied and compacted again before we could look: its objects must stay.
#[test]
fn what_cannot_be_told_stays() {
    let client = client(0);
    let compaction = plan(&client);
    let memory = client.memory.clone();
    let mut first = true;
    client.on_request(move |request| match request {
        Request::Commit(_) if std::mem::take(&mut first) => Verdict::ServeThenFail(unknown_fate()),
        Request::Commit(_) => {
            memory.put(vec![Write::ReplaceChunkPrefix {
                ino: FILE,
                index: CHUNK,
                drop: 1,
                slices: vec![slice(0, 60, 300)],
            }]);
            Verdict::Serve
        }
        _ => Verdict::Serve,
    });
    assert_eq!(commit(&client, &compaction), Compacted::Unknown);
}

#[test]
fn faults_before_the_commit_change_nothing() {
    let client = client(0);
    let compaction = plan(&client);
    let list = client.chunk(FILE, 0);
    client.fail_next(EngineError::NoSpace {
        engine: "memory",
        cause: "injected".into(),
    });
    let answer = block_on(client.meta.commit_compaction(&compaction, NEW));
    assert!(matches!(
        answer,
        Err(MetaError::Engine(EngineError::NoSpace { .. }))
    ));
    assert_eq!(client.chunk(FILE, 0), list);
}

/// After each hundredth record, as JuiceFS.
#[test]
fn long_lists_are_noted() {
    let client = client(0);
    let mut noted = Vec::new();
    for records in 4..=352_u32 {
        let commit = WriteCommit {
            slices: vec![(CHUNK, slice(records * 10, 1000 + u64::from(records), 5))],
            length: 10_000,
            mtime: Timestamp {
                sec: START,
                nsec: records,
            },
            kill_suid: false,
        };
        block_on(client.meta.write(FILE, &commit)).unwrap();
        if client.meta.take_long_list() == Some((FILE, CHUNK)) {
            noted.push(records);
        }
    }
    assert_eq!(noted, [99, 199, 299, 351, 352]);
    assert!(!client.meta.has_long_lists());
}
