//! The offline tools over the engine in memory: config, destroy, check, leaks.
#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and does not get fails it"
)]

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{Client, Direct, START, block_on, file_attr, slice, stat_of};
use sluice_meta::engine::{Counter, Engine, Item, Key, Scan, Write};
use sluice_meta::tools::check::{CheckOptions, check_tree, check_usage};
use sluice_meta::tools::config::{ConfigOptions, apply, plan};
use sluice_meta::tools::destroy::{DestroyError, destroy, examine};
use sluice_meta::tools::leaks::{
    Use, delayed, delete_chunk, delete_inode, orphans, release, slices, wrong_references,
};
use sluice_meta::tools::load_volume;
use sluice_meta::types::{
    Attr, ChunkIndex, Dentry, DirStat, FileKind, Ino, Name, QuotaKey, SessionId, SliceId, Timestamp,
};
use sluice_meta::volume::VolumeError;

const NOW: Timestamp = Timestamp {
    sec: START,
    nsec: 0,
};

fn entry(parent: Ino, name: &'static str, ino: Ino, kind: FileKind) -> Write {
    Write::InsertDentry {
        parent,
        name: Name::from_static(name.as_bytes()),
        dentry: Dentry { kind, ino },
    }
}

/// A directory in the root, right in every respect.
fn add_dir(client: &Client, ino: Ino, name: &'static str) {
    let attr = Attr {
        kind: FileKind::Directory,
        nlink: 2,
        length: 4096,
        ..file_attr(Ino::ROOT)
    };
    client.put(vec![
        Write::InsertAttr { ino, attr },
        entry(Ino::ROOT, name, ino, FileKind::Directory),
        Write::PatchDir {
            ino: Ino::ROOT,
            time: None,
            nlink: 1,
        },
        Write::InitDirStat(ino),
        Write::AddCounter {
            counter: Counter::UsedSpace,
            delta: 4096,
        },
        Write::AddCounter {
            counter: Counter::TotalInodes,
            delta: 1,
        },
    ]);
}

fn named_file(client: &Client, parent: Ino, name: &'static str, ino: Ino) {
    client.add_file(ino, parent);
    client.put(vec![
        entry(parent, name, ino, FileKind::File),
        Write::AddDirStat {
            ino: parent,
            delta: stat_of(0),
        },
    ]);
}

fn findings(client: &Client, repair: bool) -> Vec<(String, bool)> {
    let options = CheckOptions {
        recursive: true,
        repair,
        sync_dir_stat: true,
        dir_mode: 0o755,
    };
    let mut found = Vec::new();
    let mut report = |finding: sluice_meta::tools::check::Finding| {
        found.push((finding.text, finding.repaired));
    };
    let top = (Ino::ROOT, Ino::ROOT, "/".to_owned());
    block_on(check_tree(&client.memory, top, options, NOW, &mut report)).unwrap();
    found
}

#[test]
fn directories_are_checked_and_repaired() {
    let client = Client::new();
    let (dir, lost) = (Ino(5), Ino(6));
    add_dir(&client, dir, "d");
    add_dir(&client, lost, "lost");
    named_file(&client, dir, "f", Ino(7));
    assert_eq!(findings(&client, false), []);

    client.set_attr(dir, |attr| (attr.nlink, attr.parent) = (9, Ino(77)));
    client.put(vec![
        Write::PutDirStat {
            ino: dir,
            stat: DirStat::default(),
        },
        Write::DeleteAttr(lost),
        entry(dir, "ghost", Ino(99), FileKind::File),
    ]);
    let texts: Vec<String> = findings(&client, false)
        .into_iter()
        .map(|one| one.0)
        .collect();
    let all = texts.join("\n");
    for what in [
        "/d: it has 9 links and should have 2, its parent is 77 and should be 1",
        "/d: its statistics are",
        "/lost: its attributes are missing",
        "/d/ghost: inode 99",
    ] {
        assert!(all.contains(what), "{what} in {all}");
    }
    assert_eq!(texts.len(), 4, "{all}");
    let repaired = findings(&client, true);
    assert_eq!(
        repaired.iter().filter(|one| one.1).count(),
        3,
        "{repaired:?}"
    );
    // A lost file stays lost.
    let left = findings(&client, false);
    assert!(left.len() == 1 && left[0].0.contains("ghost"), "{left:?}");
    assert_eq!(client.attr(lost).unwrap().mode, 0o755);
}

#[test]
fn usage_is_counted_and_set_right() {
    let client = Client::new();
    add_dir(&client, Ino(5), "d");
    named_file(&client, Ino(5), "f", Ino(7));
    // Held open though it has no name; and one that is neither.
    client.add_file(Ino(8), Ino::ROOT);
    client.set_attr(Ino(8), |attr| attr.nlink = 0);
    client.put(vec![
        Write::PutSession {
            sid: SessionId(1),
            expire: START,
            info: Some("{}".into()),
        },
        Write::AddSustained {
            sid: SessionId(1),
            ino: Ino(8),
        },
    ]);
    let (said, counted) = block_on(check_usage(&client.memory, false)).unwrap();
    assert_eq!(said, counted);
    assert_eq!((counted.space, counted.inodes), (3 * 4096, 3));
    client.put(vec![Write::AddCounter {
        counter: Counter::UsedSpace,
        delta: 5,
    }]);
    let (said, _) = block_on(check_usage(&client.memory, true)).unwrap();
    assert_ne!(said, counted);
    assert_eq!(client.counter(Counter::UsedSpace), 3 * 4096);
}

#[test]
fn slices_are_known_by_what_keeps_them() {
    let client = Client::new();
    named_file(&client, Ino::ROOT, "f", Ino(7));
    let slice_ref = |id| Write::NewSliceRef {
        id: SliceId(id),
        size: 10,
    };
    client.put(vec![
        Write::AppendChunk {
            ino: Ino(7),
            index: ChunkIndex(0),
            slices: vec![slice(0, 1, 10), slice(5, 1, 10)],
        },
        slice_ref(1),
        slice_ref(2),
        slice_ref(3),
        Write::AddSliceRef {
            id: SliceId(3),
            size: 10,
            delta: -1,
        },
        Write::PutDelayedSlices {
            id: SliceId(9),
            time: START,
            slices: vec![(SliceId(2), 10)],
        },
    ]);
    let known = block_on(slices(&client.memory)).unwrap();
    let usage = |id| known.get(SliceId(id)).map(|known| known.usage);
    assert_eq!(
        [usage(1), usage(2), usage(3), usage(4)],
        [Some(Use::Live), Some(Use::Delayed), Some(Use::Dead), None]
    );
    // Slice 1 has two records and one reference.
    let wrong = block_on(wrong_references(&client.memory, &known)).unwrap();
    assert_eq!(wrong, [(SliceId(1), 2, 1)]);

    let notes = block_on(delayed(&client.memory)).unwrap();
    let dead = block_on(release(&client.memory, &notes[0])).unwrap();
    assert_eq!(dead, [(SliceId(2), 10)]);
    assert_eq!(block_on(release(&client.memory, &notes[0])).unwrap(), []);
}

#[test]
fn orphans_are_told_from_what_is_in_use() {
    let client = Client::new();
    named_file(&client, Ino::ROOT, "f", Ino(7));
    let age = |ino, sec| client.set_attr(ino, |attr| attr.ctime.sec = sec);
    for (ino, ctime) in [(20, START - 7200), (21, START - 60), (22, START - 7200)] {
        client.add_file(Ino(ino), Ino::ROOT);
        age(Ino(ino), ctime);
    }
    age(Ino(7), START - 7200);
    let chunk = |ino| Write::AppendChunk {
        ino: Ino(ino),
        index: ChunkIndex(0),
        slices: vec![slice(0, ino, 10)],
    };
    let slice_ref = |id| Write::NewSliceRef {
        id: SliceId(id),
        size: 10,
    };
    client.put(vec![
        Write::PutSession {
            sid: SessionId(1),
            expire: START,
            info: Some("{}".into()),
        },
        Write::AddSustained {
            sid: SessionId(1),
            ino: Ino(22),
        },
        chunk(20),
        slice_ref(20),
        chunk(30),
        slice_ref(30),
        chunk(31),
        slice_ref(31),
        Write::AddDeletedFile {
            ino: Ino(31),
            length: 10,
            time: START,
        },
    ]);
    let found = block_on(orphans(&client.memory, NOW)).unwrap();
    let inodes: Vec<Ino> = found.inodes.iter().map(|one| one.0).collect();
    let chunks: Vec<Ino> = found.chunks.iter().map(|one| one.0).collect();
    assert_eq!((inodes, chunks), (vec![Ino(20)], vec![Ino(30)]));

    let (ino, attr) = &found.inodes[0];
    assert!(block_on(delete_inode(&client.memory, *ino, attr, NOW)).unwrap());
    assert!(!block_on(delete_inode(&client.memory, *ino, attr, NOW)).unwrap());
    let dead = block_on(delete_chunk(&client.memory, &found.chunks[0])).unwrap();
    assert_eq!(dead, [(SliceId(30), 10)]);
    let files = block_on(client.memory.scan(&Scan::DeletedFiles, None, 10)).unwrap();
    assert_eq!(files.items.len(), 2, "its data is filed for deletion");
    let (said, counted) = block_on(check_usage(&client.memory, false)).unwrap();
    assert_eq!(said, counted);
}

#[test]
fn settings_change_and_unknown_fields_stay() {
    let client = Client::new();
    let mut setting = block_on(load_volume(&client.memory)).unwrap();
    setting.other.insert("Novel".into(), 7.into());
    client.put(vec![Write::PutSetting(setting.render().into())]);
    let options = ConfigOptions {
        capacity: Some(1 << 30),
        trash_days: Some(7),
        upload_limit: Some(100),
        enable_acl: Some(true),
        secret_key: Some("abc".into()),
        ..ConfigOptions::default()
    };
    let planned = block_on(plan(&client.memory, &options)).unwrap();
    assert_eq!(planned.changes.len(), 6, "{:?}", planned.changes);
    assert!(planned.warnings.is_empty() && planned.moves_data());
    block_on(apply(&client.memory, &planned, NOW)).unwrap();
    let now = block_on(load_volume(&client.memory)).unwrap();
    assert_eq!(
        (now.capacity, now.trash_days, now.upload_limit),
        (1 << 30, 7, 100)
    );
    assert!(now.enable_acl && now.key_encrypted && now.other.contains_key("Novel"));
    assert_eq!(now.min_client_version, "1.2.0-A");

    // The second of two that planned upon the same setting loses.
    let raced = block_on(apply(&client.memory, &planned, NOW)).unwrap_err();
    assert!(matches!(raced, VolumeError::Raced));
    let again = block_on(plan(
        &client.memory,
        &ConfigOptions {
            capacity: Some(1 << 30),
            ..ConfigOptions::default()
        },
    ));
    assert!(again.unwrap().changes.is_empty());
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let client = Client::new();
    let base = ConfigOptions::default;
    let change = |options: ConfigOptions| block_on(plan(&client.memory, &options));
    block_on(apply(
        &client.memory,
        &change(ConfigOptions {
            enable_acl: Some(true),
            ..base()
        })
        .unwrap(),
        NOW,
    ))
    .unwrap();
    client.put(vec![Write::PutQuotaLimits {
        key: QuotaKey::Dir(Ino::ROOT),
        max_space: 5,
        max_inodes: -1,
    }]);
    for options in [
        ConfigOptions {
            enable_acl: Some(false),
            ..base()
        },
        ConfigOptions {
            dir_stats: Some(false),
            ..base()
        },
        ConfigOptions {
            min_client_version: Some("1.0.0".into()),
            ..base()
        },
        ConfigOptions {
            max_client_version: Some("new".into()),
            ..base()
        },
    ] {
        let error = change(options.clone()).expect_err(&format!("{options:?}"));
        assert!(matches!(error, VolumeError::Option { .. }), "{error}");
    }
    client.put(vec![Write::AddCounter {
        counter: Counter::UsedSpace,
        delta: 1 << 20,
    }]);
    let warned = change(ConfigOptions {
        capacity: Some(4096),
        trash_days: Some(0),
        ..base()
    });
    assert_eq!(warned.unwrap().warnings.len(), 2);
}

#[test]
fn features_that_come_on_are_counted() {
    let client = Client::new();
    add_dir(&client, Ino(5), "d");
    named_file(&client, Ino(5), "f", Ino(7));
    let switch = |on| ConfigOptions {
        dir_stats: Some(on),
        user_group_quota: Some(on),
        ..ConfigOptions::default()
    };
    let off = block_on(plan(&client.memory, &switch(false))).unwrap();
    block_on(apply(&client.memory, &off, NOW)).unwrap();
    client.put(vec![Write::DeleteDirStat(Ino(5))]);
    let on = block_on(plan(&client.memory, &switch(true))).unwrap();
    block_on(apply(&client.memory, &on, NOW)).unwrap();
    assert_eq!(client.dir_stat(Ino(5)), Some(stat_of(0)));
    let quota = client.peek(&Key::Quota(QuotaKey::User(1000))).unwrap();
    let quota = quota.quota().unwrap();
    assert_eq!(
        (quota.used_space, quota.used_inodes, quota.max_space),
        (8192, 2, -1)
    );
}

#[test]
fn only_the_named_volume_is_destroyed_and_nobody_may_use_it() {
    let client = Client::new();
    let uuid = block_on(load_volume(&client.memory)).unwrap().uuid;
    let session = |expire| Write::PutSession {
        sid: SessionId(1),
        expire,
        info: Some("{}".into()),
    };
    let look = |uuid: &str, force| block_on(examine(&client.memory, uuid, force, NOW));
    let other = look("another", true).unwrap_err();
    assert!(matches!(other, DestroyError::OtherVolume { .. }), "{other}");
    client.put(vec![session(START + 60)]);
    let used = look(&uuid, false).unwrap_err();
    assert!(
        matches!(used, DestroyError::InUse { count: 1, .. }),
        "{used}"
    );
    look(&uuid, true).unwrap();
    client.put(vec![session(START - 60)]);
    look(&uuid, false).unwrap();
    block_on(destroy(&client.memory)).unwrap();
    assert!(block_on(client.memory.is_empty()).unwrap());
    let page = block_on(client.memory.scan(&Scan::Inodes, None, 10)).unwrap();
    assert!(
        !page
            .items
            .iter()
            .any(|item| matches!(item, Item::Inode { .. }))
    );
}
