//! Sessions, heartbeats and background upkeep, over the engine in memory and a clock set by the test.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, too"
)]

#[path = "support/fixture.rs"]
mod fixture;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use fixture::{Client, Direct, START, block_on, file_attr, stat_of, unknown_fate};
use sluice_meta::client::{Meta, MetaOptions};
use sluice_meta::engine::memory::{Memory, Request, Verdict};
use sluice_meta::engine::{AnyEngine, Counter, Engine, Item, Key, Record, Scan, Txn, Write};
use sluice_meta::error::{EngineError, MetaError};
use sluice_meta::jobs::DeletedFile;
use sluice_meta::jobs::session::{Reload, Session, SessionInfo, StopReason};
use sluice_meta::limits::HEARTBEAT;
use sluice_meta::ops::{Caller, OpenFlags};
use sluice_meta::tools::status::status;
use sluice_meta::types::{Attr, Dentry, DirStat, FileKind, Ino, SessionId};
use sluice_meta::volume::{Setting, Version, VolumeError};

const DIR: Ino = Ino(5);

fn register(client: &Client) -> Session {
    let info = SessionInfo::of_this_process("/mnt/data", client.meta.now());
    block_on(Session::register(&client.meta, &info, HEARTBEAT)).unwrap()
}

/// (number, expiry) of all sessions.
fn sessions(memory: &Memory) -> Vec<(u64, i64)> {
    let page = block_on(memory.scan(&Scan::Sessions, None, 1000)).unwrap();
    let items = page.items.into_iter().map(|item| match item {
        Item::Session { sid, expire, .. } => (sid.0, expire),
        other => panic!("{other:?}"),
    });
    items.collect()
}

fn setting(memory: &Memory) -> Setting {
    Setting::decode(
        &memory
            .peek(&Key::Setting)
            .map(Record::bytes)
            .unwrap()
            .unwrap(),
    )
    .unwrap()
}

fn change_setting(memory: &Memory, change: impl FnOnce(&mut Setting)) {
    let mut setting = setting(memory);
    change(&mut setting);
    memory.put(vec![Write::PutSetting(setting.render().into())]);
}

/// Puts an inode without links there that session `sid` keeps.
fn sustain(memory: &Memory, sid: u64, ino: Ino, length: u64) {
    memory.add_file(ino, DIR);
    memory.set_attr(ino, |attr| (attr.nlink, attr.length) = (0, length));
    memory.put(vec![Write::AddSustained {
        sid: SessionId(sid),
        ino,
    }]);
}

#[test]
fn a_session_is_seen_by_others() {
    let client = Client::new();
    client.put(vec![Write::AddCounter {
        counter: Counter::UsedSpace,
        delta: 4096,
    }]);
    let session = register(&client);
    assert_eq!(
        (session.sid(), client.meta.shared().session()),
        (SessionId(1), Some(SessionId(1)))
    );
    assert_eq!(
        client.meta.shared().used_space.load(Ordering::Relaxed),
        4096
    );
    assert_eq!(register(&client).sid(), SessionId(2));

    let shown = block_on(status(&client.memory)).unwrap();
    let info = &shown.sessions[0].info;
    assert_eq!(
        (info.mount_point.as_str(), info.process_id),
        ("/mnt/data", std::process::id().into())
    );
    assert_eq!(info.mount_time, "2027-01-15T08:00:00.000001Z");
    assert_eq!(shown.sessions[0].expire, "2027-01-15T08:01:00Z");
    assert!(!info.host_name.is_empty());
    // What JuiceFS compares with a volume's limits is the release that we follow.
    assert_eq!(Version::parse(&info.version), Version::parse("1.4.1"));
    assert!(info.version.starts_with("1.4.1+sluice-"));

    let read_only = MetaOptions {
        read_only: true,
        ..MetaOptions::default()
    };
    let reader = Client::of(&client.memory, read_only);
    let refused = block_on(Session::register(&reader.meta, info, HEARTBEAT));
    assert!(matches!(refused, Err(MetaError::ReadOnly)));
}

#[test]
fn a_heartbeat_keeps_the_session_and_brings_news() {
    let client = Client::new();
    let session = register(&client);
    client.clock.set(START + 12);
    assert!(matches!(
        block_on(session.heartbeat(&client.meta)).unwrap(),
        Reload::Unchanged
    ));
    assert_eq!(sessions(&client.memory), [(1, START + 72)]);

    change_setting(&client.memory, |setting| {
        (setting.capacity, setting.trash_days, setting.dir_stats) = (1 << 40, 9, false);
        // Limits on client versions are for mounts, not for those that are mounted.
        setting.min_client_version = "9.9".into();
    });
    client.put(vec![Write::AddCounter {
        counter: Counter::TotalInodes,
        delta: 6,
    }]);
    assert!(matches!(
        block_on(session.heartbeat(&client.meta)).unwrap(),
        Reload::Changed
    ));
    let now = client.meta.shared().setting();
    assert_eq!(
        (now.capacity, now.trash_days, now.dir_stats),
        (1 << 40, 9, false)
    );
    assert_eq!(client.meta.shared().total_inodes.load(Ordering::Relaxed), 6);

    // Somebody took us for dead: the next beat brings the session back.
    client.put(vec![Write::DeleteSession(SessionId(1))]);
    block_on(session.heartbeat(&client.meta)).unwrap();
    assert_eq!(sessions(&client.memory), [(1, START + 72)]);
}

#[test]
fn a_heartbeat_tells_when_to_stop() {
    type Change = fn(&Memory);
    type Expect = fn(&StopReason) -> bool;
    let cases: [(Change, Expect); 4] = [
        (
            |memory| change_setting(memory, |setting| setting.uuid = "other".into()),
            |reason| matches!(reason, StopReason::OtherVolume { is, .. } if is == "other"),
        ),
        (
            |memory| change_setting(memory, |setting| setting.meta_version = 2),
            |reason| {
                matches!(
                    reason,
                    StopReason::Setting(VolumeError::NewerLayout { version: 2 })
                )
            },
        ),
        (
            |memory| change_setting(memory, |setting| setting.change_log = true),
            |reason| matches!(reason, StopReason::Unsupported(names) if names.len() == 1),
        ),
        (
            |memory| memory.put(vec![Write::PutSetting("{".into())]),
            |reason| matches!(reason, StopReason::Setting(VolumeError::Damaged { .. })),
        ),
    ];
    for (number, (change, expect)) in cases.into_iter().enumerate() {
        let client = Client::new();
        let session = register(&client);
        change(&client.memory);
        let before = client.meta.shared().setting();
        let Reload::Stop(reason) = block_on(session.heartbeat(&client.meta)).unwrap() else {
            panic!("case {number} goes on");
        };
        assert!(expect(&reason), "case {number}: {reason}");
        assert_eq!(client.meta.shared().setting(), before);
    }
}

#[test]
fn a_volume_that_vanished_stops_its_mounts() {
    // No verb removes a setting, so the same mount looks at an empty store.
    let client = Client::new();
    let engine = AnyEngine::Memory(Memory::new()).into();
    let meta = Meta::new(
        engine,
        client.clock.clone(),
        Arc::clone(client.meta.shared()),
    );
    let reload = block_on(meta.reload_setting()).unwrap();
    assert!(
        matches!(reload, Reload::Stop(StopReason::Vanished)),
        "{reload:?}"
    );
}

#[test]
fn readers_go_on_with_features_they_need_not_keep_up() {
    let client = Client::new();
    let read_only = MetaOptions {
        read_only: true,
        ..MetaOptions::default()
    };
    let reader = Client::of(&client.memory, read_only);
    change_setting(&client.memory, |setting| setting.enable_acl = true);
    assert!(matches!(
        block_on(reader.meta.reload_setting()).unwrap(),
        Reload::Changed
    ));
}

#[test]
fn a_clean_end_leaves_nothing() {
    let client = Client::new();
    let session = register(&client);
    client.put(vec![Write::InitDirStat(DIR)]);
    client.add_file(Ino(10), DIR);
    block_on(client.meta.truncate(&Caller::ROOT, Ino(10), 5000, false)).unwrap();
    sustain(&client.memory, 1, Ino(11), 7000);
    sustain(&client.memory, 2, Ino(12), 1);

    let files = block_on(session.end(&client.meta)).unwrap();
    assert_eq!(
        files,
        [DeletedFile {
            ino: Ino(11),
            length: 7000
        }]
    );
    assert_eq!(sessions(&client.memory), []);
    assert_eq!(client.meta.shared().session(), None);
    assert_eq!(
        (client.attr(Ino(11)), client.attr(Ino(12)).is_some()),
        (None, true)
    );
    assert_eq!(
        client.dir_stat(DIR),
        Some(DirStat {
            length: 5000,
            space: 4096,
            inodes: 0
        })
    );
}

#[test]
fn a_failed_end_leaves_the_session_to_others() {
    let client = Client::new();
    let session = register(&client);
    sustain(&client.memory, 1, Ino(11), 7000);
    client.memory.fail_next(EngineError::Refused {
        engine: "memory",
        cause: "injected".into(),
    });
    assert!(block_on(session.end(&client.meta)).is_err());
    assert_eq!(sessions(&client.memory).len(), 1);
    assert!(client.attr(Ino(11)).is_some());
}

#[test]
fn stale_sessions_are_cleaned_up_by_one_client() {
    let client = Client::new();
    let other = Client::of(&client.memory, MetaOptions::default());
    register(&client);
    register(&other);
    for (sid, expire) in [(7, START - 1), (8, START), (9, START - 500)] {
        let info = Some("{}".into());
        client.put(vec![Write::PutSession {
            sid: SessionId(sid),
            expire,
            info,
        }]);
    }
    sustain(&client.memory, 7, Ino(20), 100);
    sustain(&client.memory, 7, Ino(21), 5000);
    sustain(&client.memory, 8, Ino(22), 1);
    // A note whose inode is gone already does no harm.
    client.put(vec![Write::AddSustained {
        sid: SessionId(9),
        ino: Ino(99),
    }]);

    let files = block_on(client.meta.clean_stale_sessions(HEARTBEAT)).unwrap();
    let expect = [(20, 100), (21, 5000)].map(|(ino, length)| DeletedFile {
        ino: Ino(ino),
        length,
    });
    assert_eq!(files, expect);
    let left: Vec<u64> = sessions(&client.memory)
        .into_iter()
        .map(|(sid, _)| sid)
        .collect();
    assert_eq!(left, [1, 2, 8]);
    assert_eq!(client.memory.peek(&Key::Sustained(SessionId(7))), None);

    // Nobody looks again within 0.9 beats (10.8 s), then somebody may.
    other.clock.set(START + 9);
    assert_eq!(
        block_on(other.meta.clean_stale_sessions(HEARTBEAT)).unwrap(),
        []
    );
    other.clock.set(START + 10);
    let files = block_on(other.meta.clean_stale_sessions(HEARTBEAT)).unwrap();
    assert_eq!(
        files,
        [DeletedFile {
            ino: Ino(22),
            length: 1
        }]
    );
    // Our own entry is stale as well by now, but a beat will refresh it.
    other.clock.set(START + 1000);
    block_on(other.meta.clean_stale_sessions(HEARTBEAT)).unwrap();
    assert_eq!(sessions(&client.memory), [(2, START + 60)]);
}

#[test]
fn only_one_of_two_clients_takes_a_job() {
    let client = Client::new();
    let memory = client.memory.clone();
    // Another client moves the lock between our look and our commit.
    client.memory.on_request(move |request| {
        if matches!(request, Request::Commit(_)) {
            let lock = Counter::LastCleanupFiles;
            memory.put(vec![Write::SetCounter {
                counter: lock,
                value: START,
            }]);
        }
        Verdict::Serve
    });
    client.put(vec![Write::AddDeletedFile {
        ino: Ino(9),
        length: 1,
        time: 0,
    }]);
    assert_eq!(block_on(client.meta.collect_deleted_files()).unwrap(), []);
}

#[test]
fn a_session_that_cannot_be_cleaned_up_stays() {
    let client = Client::new();
    client.put(vec![Write::PutSession {
        sid: SessionId(7),
        expire: 0,
        info: None,
    }]);
    sustain(&client.memory, 7, Ino(20), 100);
    client.memory.on_request(|request| match request {
        Request::Commit(txn) if txn.writes.contains(&Write::DeleteAttr(Ino(20))) => {
            Verdict::Fail(EngineError::Refused {
                engine: "memory",
                cause: "injected".into(),
            })
        }
        _ => Verdict::Serve,
    });
    assert_eq!(
        block_on(client.meta.clean_stale_sessions(HEARTBEAT)).unwrap(),
        []
    );
    assert_eq!(sessions(&client.memory), [(7, 0)]);
}

#[test]
fn deleted_files_are_collected_when_they_are_old() {
    let client = Client::new();
    let files = [(30, START - 3601), (31, START - 3600), (32, START - 9999)];
    let add = |(ino, time)| Write::AddDeletedFile {
        ino: Ino(ino),
        length: ino * 10,
        time,
    };
    client.put(files.map(add).into());
    let found = block_on(client.meta.collect_deleted_files()).unwrap();
    let expect = [(30, 300), (32, 320)].map(|(ino, length)| DeletedFile {
        ino: Ino(ino),
        length,
    });
    assert_eq!(found, expect);
    client.clock.set(START + 3239);
    assert_eq!(block_on(client.meta.collect_deleted_files()).unwrap(), []);
    client.clock.set(START + 3240);
    assert_eq!(
        block_on(client.meta.collect_deleted_files()).unwrap().len(),
        3
    );
}

#[test]
fn a_mount_that_dies_with_open_files_loses_nothing_else() {
    let client = Client::new();
    register(&client);
    client.add_file(Ino(10), DIR);
    let read = OpenFlags {
        read: true,
        write: false,
        append: false,
        truncate: false,
    };
    block_on(client.meta.open(Ino(10), read)).unwrap();
    client.set_attr(Ino(10), |attr| (attr.nlink, attr.length) = (0, 9));
    client.put(vec![Write::AddSustained {
        sid: SessionId(1),
        ino: Ino(10),
    }]);

    let heir = Client::of(&client.memory, MetaOptions::default());
    heir.clock.set(START + 60);
    assert_eq!(
        block_on(heir.meta.clean_stale_sessions(HEARTBEAT)).unwrap(),
        []
    );
    assert!(heir.attr(Ino(10)).is_some(), "five beats are not over");
    heir.clock.set(START + 80);
    let files = block_on(heir.meta.clean_stale_sessions(HEARTBEAT)).unwrap();
    assert_eq!(
        files,
        [DeletedFile {
            ino: Ino(10),
            length: 9
        }]
    );
    assert_eq!(heir.counter(Counter::TotalInodes), 0);
}

// ---------------------------------------------------------------------------------------------------------
// Directory statistics.

fn add_dir(memory: &Memory, ino: Ino) {
    let attr = Attr {
        kind: FileKind::Directory,
        nlink: 2,
        length: 4096,
        ..file_attr(Ino::ROOT)
    };
    memory.put(vec![Write::InsertAttr { ino, attr }]);
}

fn add_entry(memory: &Memory, parent: Ino, number: u64, kind: FileKind, length: Option<u64>) {
    let ino = Ino(number);
    let name = format!("n{number}").into();
    memory.put(vec![Write::InsertDentry {
        parent,
        name,
        dentry: Dentry { kind, ino },
    }]);
    if let Some(length) = length {
        let attr = Attr {
            kind,
            length,
            ..file_attr(parent)
        };
        memory.put(vec![Write::InsertAttr { ino, attr }]);
    }
}

/// Makes a file of 5000 bytes in `dir`; its growth from nothing is noted in the statistics of `dir`.
fn grow_in(client: &Client, ino: Ino, dir: Ino) {
    client.add_file(ino, dir);
    block_on(client.meta.truncate(&Caller::ROOT, ino, 5000, false)).unwrap();
}

fn flush(client: &Client) -> Result<usize, MetaError> {
    block_on(client.meta.flush_dir_stats())
}

#[test]
fn statistics_are_added_or_recounted() {
    let client = Client::new();
    client.put(vec![Write::PutDirStat {
        ino: DIR,
        stat: stat_of(0),
    }]);
    grow_in(&client, Ino(10), DIR);
    // A directory without statistics is counted, entry by entry.
    let bare = Ino(6);
    add_dir(&client.memory, bare);
    add_entry(&client.memory, bare, 40, FileKind::File, Some(5000));
    add_entry(&client.memory, bare, 41, FileKind::File, Some(0));
    add_entry(&client.memory, bare, 42, FileKind::Directory, Some(4096));
    add_entry(&client.memory, bare, 43, FileKind::Symlink, Some(30));
    add_entry(&client.memory, bare, 44, FileKind::File, None);
    grow_in(&client, Ino(11), bare);
    // One that is gone is left alone.
    grow_in(&client, Ino(12), Ino(7));

    assert_eq!(flush(&client).unwrap(), 3);
    assert_eq!(client.dir_stat(DIR), Some(stat_of(5000)));
    let counted = DirStat {
        length: 5000,
        space: 8192 + 4 * 4096,
        inodes: 5,
    };
    assert_eq!(client.dir_stat(bare), Some(counted));
    assert_eq!(client.dir_stat(Ino(7)), None);
    assert_eq!(flush(&client).unwrap(), 0);
}

#[test]
fn many_directories_are_flushed_in_batches() {
    let client = Client::new();
    for number in 0..2500 {
        let dir = Ino(10_000 + number);
        client.put(vec![Write::InitDirStat(dir)]);
        grow_in(&client, Ino(20_000 + number), dir);
    }
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sizes);
    client.memory.on_request(move |request| {
        if let Request::Commit(Txn { writes, .. }) = request {
            seen.lock().unwrap().push(writes.len());
        }
        Verdict::Serve
    });
    assert_eq!(flush(&client).unwrap(), 2500);
    assert_eq!(*sizes.lock().unwrap(), [1000, 1000, 500]);
    for number in 0..2500 {
        assert_eq!(client.dir_stat(Ino(10_000 + number)).unwrap().length, 5000);
    }
}

#[test]
fn statistics_survive_a_store_that_is_away() {
    let client = Client::new();
    client.put(vec![Write::PutDirStat {
        ino: DIR,
        stat: stat_of(0),
    }]);
    grow_in(&client, Ino(10), DIR);
    client.memory.fail_next(EngineError::Refused {
        engine: "memory",
        cause: "injected".into(),
    });
    assert!(flush(&client).is_err());
    assert_eq!(client.dir_stat(DIR), Some(stat_of(0)));
    assert_eq!(flush(&client).unwrap(), 1);
    assert_eq!(client.dir_stat(DIR), Some(stat_of(5000)));
}

#[test]
fn an_unknown_fate_leads_to_a_recount() {
    for applied in [false, true] {
        let client = Client::new();
        add_dir(&client.memory, DIR);
        add_entry(&client.memory, DIR, 10, FileKind::File, None);
        client.put(vec![Write::PutDirStat {
            ino: DIR,
            stat: stat_of(0),
        }]);
        grow_in(&client, Ino(10), DIR);
        let mut first = true;
        client.memory.on_request(move |request| match request {
            Request::Commit(_) if std::mem::take(&mut first) => match applied {
                true => Verdict::ServeThenFail(unknown_fate()),
                false => Verdict::Fail(unknown_fate()),
            },
            _ => Verdict::Serve,
        });
        assert_eq!(flush(&client).unwrap(), 1);
        assert_eq!(
            client.dir_stat(DIR),
            Some(stat_of(5000)),
            "applied: {applied}"
        );
    }
}

#[test]
fn no_statistics_without_the_feature() {
    let client = Client::new();
    change_setting(&client.memory, |setting| setting.dir_stats = false);
    block_on(client.meta.reload_setting()).unwrap();
    grow_in(&client, Ino(10), DIR);
    assert_eq!(flush(&client).unwrap(), 0);
}
