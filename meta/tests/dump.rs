//! Dumps and loads: real volumes' dumps come back byte for byte, everything a volume can hold survives, and
//! what is no dump leaves the store as empty as it was.
#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and does not get fails it"
)]

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/stage.rs"]
#[allow(dead_code, reason = "not every test binary needs every helper")]
mod stage;

use std::collections::BTreeMap;
use std::process::Command;

use bytes::Bytes;
use sluice_meta::engine::memory::{Memory, Request, Verdict};
use sluice_meta::engine::sqlite::{Database, OpenMode, Sqlite};
use sluice_meta::engine::{Counter, Engine, Key, Write};
use sluice_meta::tools::dump::{DumpError, DumpOptions, dump};
use sluice_meta::tools::load::{LoadError, load};
use sluice_meta::types::{
    AclRule, Attr, ChunkIndex, Dentry, DirStat, FileKind, Ino, Name, Quota, QuotaKey, Slice,
    SliceId,
};
use stage::{Kept, NOON, Stage, block_on, setting};

/// The dump that JuiceFS made of a golden volume.
fn golden(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/../tests/golden/{name}.json.gz",
        env!("CARGO_MANIFEST_DIR")
    );
    let output = Command::new("gzip").args(["-dc", &path]).output().unwrap();
    assert!(output.status.success(), "{path}");
    output.stdout
}

fn text_of(engine: &impl Engine, options: &DumpOptions) -> String {
    let mut out = Vec::new();
    block_on(dump(engine, options, &mut out)).unwrap();
    String::from_utf8(out).unwrap()
}

fn keep() -> DumpOptions {
    DumpOptions {
        keep_secrets: true,
        ..DumpOptions::default()
    }
}

fn fill(engine: &impl Engine, text: &str) {
    block_on(load(engine, &mut text.as_bytes())).unwrap();
}

/// The first line that differs, which says more than half a megabyte does.
fn assert_same(found: &str, expected: &str, what: &str) {
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of {what}", number + 1);
    }
    assert_eq!(found, expected, "{what}");
}

#[test]
fn dumps_of_juicefs_come_back_as_they_are() {
    for name in ["plain", "lz4", "hashed", "zstd-encrypted"] {
        let text = String::from_utf8(golden(name)).unwrap();
        let memory = Memory::new();
        fill(&memory, &text);
        assert_same(&text_of(&memory, &keep()), &text, name);

        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("meta.db"), OpenMode::Create).unwrap();
        let stage = Stage::new(setting(0));
        let sqlite = Sqlite::connect(&database, stage.clock.clone()).unwrap();
        fill(&sqlite, &text);
        assert_same(&text_of(&sqlite, &keep()), &text, name);
    }
}

fn attr(kind: FileKind, parent: Ino) -> Attr {
    Attr {
        kind,
        length: if kind == FileKind::Directory { 4096 } else { 0 },
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        ..fixture::file_attr(parent)
    }
}

fn entry(parent: Ino, name: &[u8], ino: Ino, kind: FileKind) -> Write {
    Write::InsertDentry {
        parent,
        name: Name::copy_from_slice(name),
        dentry: Dentry { kind, ino },
    }
}

fn rule() -> AclRule {
    AclRule {
        owner: 7,
        group: 5,
        mask: 7,
        other: 0,
        users: vec![(1001, 6)],
        groups: Vec::new(),
    }
}

/// A volume with one of everything.
fn rich(kept: Kept) -> Stage {
    let mut all = setting(1);
    all.name = "rich".into();
    all.uuid = "5f6f24b9-6a77-4255-b1e8-5304ca55aa66".into();
    all.secret_key = "secret <&>".into();
    all.user_group_quota = true;
    let stage = Stage::on(kept, all.clone());
    let (dir, linked, large) = (Ino(2), Ino(3), Ino(4));
    stage.apply(vec![
        Write::PutSetting(Bytes::from(all.render())),
        entry(Ino::ROOT, b"d\xff %\"\\", dir, FileKind::Directory),
        Write::InsertAttr {
            ino: dir,
            attr: attr(FileKind::Directory, Ino::ROOT),
        },
        Write::PatchDir {
            ino: Ino::ROOT,
            time: None,
            nlink: 1,
        },
        Write::InsertAcl(rule()),
    ]);
    let acl = |attr: &mut Attr| attr.access_acl = 1;
    stage.patch(dir, acl);
    let mut file = attr(FileKind::File, Ino::NONE);
    (file.nlink, file.length, file.tier) = (3, 100, 2);
    let mut writes = vec![
        Write::InsertAttr {
            ino: linked,
            attr: file,
        },
        entry(Ino::ROOT, b"one", linked, FileKind::File),
        entry(dir, b"two", linked, FileKind::File),
        entry(dir, "drei \u{fffd}".as_bytes(), linked, FileKind::File),
        Write::PutXattr {
            ino: linked,
            name: Name::from_static(b"user.<x>"),
            value: Bytes::from_static(b"\0\x01 %<&>\xff"),
        },
    ];
    for (parent, delta) in [(Ino::ROOT, 1), (dir, 2)] {
        writes.push(Write::AddParent {
            ino: linked,
            parent,
            delta,
        });
    }
    let shared = fixture::slice(0, 9, 100);
    writes.extend([
        append(linked, 0, vec![shared]),
        Write::NewSliceRef {
            id: SliceId(9),
            size: 100,
        },
    ]);
    let mut file = attr(FileKind::File, dir);
    file.length = (5 << 26) + 1;
    writes.extend([
        Write::InsertAttr {
            ino: large,
            attr: file,
        },
        entry(dir, b"large", large, FileKind::File),
        append(large, 0, vec![shared, Slice::hole(4096, 4096)]),
        append(large, 2, vec![shared, fixture::slice(200, 10, 5)]),
        append(large, 5, vec![fixture::slice(0, 11, 1)]),
        Write::AddSliceRef {
            id: SliceId(9),
            size: 100,
            delta: 2,
        },
    ]);
    for id in [10, 11] {
        writes.push(Write::NewSliceRef {
            id: SliceId(id),
            size: if id == 10 { 5 } else { 1 },
        });
    }
    stage.apply(writes);
    others(&stage, dir);
    stage
}

fn append(ino: Ino, index: u32, slices: Vec<Slice>) -> Write {
    Write::AppendChunk {
        ino,
        index: ChunkIndex(index),
        slices,
    }
}

/// A symlink, a device, something in the trash, quotas, a deleted file, counters.
fn others(stage: &Stage, dir: Ino) {
    let (link, device, hour, gone) = (Ino(5), Ino(6), Ino(Ino::TRASH.0 + 1), Ino(7));
    let mut writes = Vec::new();
    let mut symlink = attr(FileKind::Symlink, dir);
    symlink.length = 6;
    let mut node = attr(FileKind::CharDev, Ino::ROOT);
    node.rdev = 0x103;
    let mut file = attr(FileKind::File, hour);
    file.length = 5000;
    for (ino, attr, parent, name) in [
        (link, symlink, dir, &b"link"[..]),
        (device, node, Ino::ROOT, b"null"),
        (
            hour,
            attr(FileKind::Directory, Ino::TRASH),
            Ino::TRASH,
            b"2026-03-01-12",
        ),
        (gone, file, hour, b"1-7-gone"),
    ] {
        writes.push(entry(parent, name, ino, attr.kind));
        writes.push(Write::InsertAttr { ino, attr });
    }
    let quotas = [QuotaKey::Dir(dir), QuotaKey::User(1000)];
    writes.extend(quotas.map(|key| Write::PutQuotaLimits {
        key,
        max_space: 1 << 40,
        max_inodes: -1,
    }));
    writes.extend([
        Write::PutSymlink {
            ino: link,
            target: Bytes::from_static(b"a b\xfe%"),
        },
        Write::AddDeletedFile {
            ino: Ino(99),
            length: 7,
            time: NOON,
        },
    ]);
    for (counter, value) in [
        (Counter::NextInode, 1025),
        (Counter::NextSlice, 4097),
        (Counter::NextSession, 3),
        (Counter::NextTrash, 2),
        // Two files of 100 and 5000 bytes, a large one, four of 4 KiB.
        (
            Counter::UsedSpace,
            4096 + 8192 + (5 << 26) + 4096 + 4 * 4096,
        ),
        (Counter::TotalInodes, 7),
    ] {
        writes.push(Write::SetCounter { counter, value });
    }
    stage.apply(writes);
}

fn peek(memory: &Memory, key: Key) -> Option<sluice_meta::engine::Record> {
    memory.peek(&key)
}

#[test]
fn everything_survives_and_what_follows_is_counted_anew() {
    let text = text_of(&rich(Kept::Memory).store, &keep());
    let memory = Memory::new();
    fill(&memory, &text);
    assert_same(&text_of(&memory, &keep()), &text, "a rich volume");

    let linked = peek(&memory, Key::Attr(Ino(3))).unwrap().attr().unwrap();
    assert_eq!(
        (linked.parent, linked.nlink, linked.tier),
        (Ino::NONE, 3, 2)
    );
    let parents = peek(&memory, Key::Parents(Ino(3))).unwrap();
    assert_eq!(parents.parents().unwrap(), [(Ino::ROOT, 1), (Ino(2), 2)]);
    let references = |id: u64, size| {
        let id = SliceId(id);
        let record = peek(&memory, Key::SliceRefs { id, size });
        record.unwrap().count().unwrap()
    };
    assert_eq!(
        [references(9, 100), references(10, 5), references(11, 1)],
        [3, 1, 1]
    );
    let large = (5_i64 << 26) + 1;
    let stat = peek(&memory, Key::DirStat(Ino(2))).unwrap();
    let expected = DirStat {
        length: 200 + large,
        space: 3 * 4096 + large + 4095,
        inodes: 4,
    };
    assert_eq!(stat.dir_stat().unwrap(), expected);
    let quota = |key| peek(&memory, Key::Quota(key)).unwrap().quota().unwrap();
    let used = |quota: Quota| (quota.used_space, quota.used_inodes);
    // A directory's quota counts every entry; a user's every file and directory once.
    assert_eq!(used(quota(QuotaKey::Dir(Ino(2)))), (expected.space, 4));
    let owned = (5 << 26) + 4096 + 4096 + 8192 + 2 * 4096;
    assert_eq!(used(quota(QuotaKey::User(1000))), (owned, 5));
    assert_eq!(quota(QuotaKey::Group(1000)).max_space, -1);
    let acl = peek(&memory, Key::Acl(1)).unwrap();
    assert_eq!(acl.acl().unwrap(), rule());
}

#[test]
fn every_engine_dumps_the_same() {
    let expected = text_of(&**rich(Kept::Memory).meta.engine(), &keep());
    for kept in [Kept::Sqlite, Kept::Redis] {
        let text = text_of(&**rich(kept).meta.engine(), &keep());
        assert_same(&text, &expected, &format!("{kept:?}"));
    }
}

#[test]
fn a_volume_moves_between_engines() {
    let text = text_of(&rich(Kept::Memory).store, &keep());
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(&folder.path().join("meta.db"), OpenMode::Create).unwrap();
    let stage = Stage::new(setting(0));
    let sqlite = Sqlite::connect(&database, stage.clock.clone()).unwrap();
    fill(&sqlite, &text);
    assert_same(&text_of(&sqlite, &keep()), &text, "from memory to SQLite");
}

#[test]
fn secrets_and_trash_are_left_out_when_asked_for() {
    let stage = rich(Kept::Memory);
    let text = text_of(
        &stage.store,
        &DumpOptions {
            skip_trash: true,
            ..DumpOptions::default()
        },
    );
    assert!(text.contains("\"SecretKey\": \"removed\""));
    assert!(!text.contains("Trash\": {\n") && !text.contains("gone"));
    let kept = text_of(&stage.store, &keep());
    assert!(kept.contains(r"secret \u003c\u0026\u003e") && kept.contains("1-7-gone"));
}

#[test]
fn a_directory_becomes_a_volume() {
    let stage = rich(Kept::Memory);
    let subdir = |name: &'static [u8]| DumpOptions {
        subdir: vec![Name::from_static(name)],
        ..DumpOptions::default()
    };
    let text = text_of(&stage.store, &subdir(b"d\xff %\"\\"));
    assert!(text.contains("\"inode\":2,\"type\":\"directory\"") && !text.contains("\"Trash\""));
    let memory = Memory::new();
    fill(&memory, &text);
    let root = peek(&memory, Key::Attr(Ino::ROOT)).unwrap();
    assert_eq!(root.attr().unwrap().parent, Ino::ROOT);
    let linked = peek(&memory, Key::Attr(Ino(3))).unwrap().attr().unwrap();
    assert_eq!(linked.nlink, 2, "only links inside count");
    assert_eq!(peek(&memory, Key::Quota(QuotaKey::Dir(Ino(2)))), None);

    for name in [&b"none"[..], b"one"] {
        let mut out = Vec::new();
        let error = block_on(dump(&stage.store, &subdir(name), &mut out)).unwrap_err();
        assert!(matches!(error, DumpError::NoDirectory { .. }), "{error}");
        assert!(out.is_empty());
    }
}

#[test]
fn one_link_more_than_the_dump_says_is_counted() {
    let text = text_of(&rich(Kept::Memory).store, &keep());
    let text = text.replace("\"nlink\":3", "\"nlink\":1");
    let memory = Memory::new();
    fill(&memory, &text);
    let linked = peek(&memory, Key::Attr(Ino(3))).unwrap().attr().unwrap();
    // The root has a link to it and a directory below.
    assert_eq!((linked.parent, linked.nlink), (Ino::NONE, 3));
    let root = peek(&memory, Key::Attr(Ino::ROOT)).unwrap();
    assert_eq!(root.attr().unwrap().nlink, 3);
}

#[test]
fn what_is_no_dump_leaves_nothing() {
    let good = text_of(&rich(Kept::Memory).store, &keep());
    let cut = |at: usize| good[..at].to_owned();
    let trees = good.find("\"FSTree\"").unwrap();
    let cases: BTreeMap<&str, String> = BTreeMap::from([
        ("nothing", String::new()),
        ("a list", "[]".into()),
        ("no object", "{}".into()),
        ("half a head", cut(40)),
        ("half a tree", cut(good.len() - 200)),
        ("all but the end", cut(good.len() - 3)),
        ("more after the end", format!("{good}x")),
        ("trees first", format!("{{{}", &good[trees..])),
        ("no tree", format!("{}\"x\":0}}", &good[..trees])),
        ("an unknown type", good.replace("chardev", "turbine")),
        (
            "a bad setting",
            good.replace("\"BlockSize\": ", "\"BlockSize\": \"x\",\"y\":"),
        ),
        (
            "a slice beyond its chunk",
            good.replace("\"pos\":200", "\"pos\":67108864"),
        ),
        (
            "a directory twice",
            good.replace("\"inode\":6", "\"inode\":2")
                .replace("chardev", "directory"),
        ),
        ("inode zero", good.replace("\"inode\":6,", "\"inode\":0,")),
        ("a nameless entry", good.replace("\"null\": {", "\"\": {")),
    ]);
    for (what, text) in cases {
        assert_ne!(text, good, "{what}");
        let memory = Memory::new();
        let answer = block_on(load(&memory, &mut text.as_bytes()));
        let error = answer.expect_err(what);
        assert!(!error.to_string().contains('\n'), "{what}: {error}");
        assert!(block_on(memory.is_empty()).unwrap(), "{what}");
    }
}

#[test]
fn a_store_that_fails_is_emptied_and_a_full_one_is_refused() {
    let good = text_of(&rich(Kept::Memory).store, &keep());
    let memory = Memory::new();
    let mut commits = 0;
    memory.on_request(move |request| match request {
        Request::Commit(_) => {
            commits += 1;
            match commits {
                2 => Verdict::Fail(fixture::unknown_fate()),
                _ => Verdict::Serve,
            }
        }
        _ => Verdict::Serve,
    });
    let error = block_on(load(&memory, &mut good.as_bytes())).unwrap_err();
    assert!(matches!(error, LoadError::Engine(_)), "{error}");
    memory.clear_hook();
    fill(&memory, &good);
    let error = block_on(load(&memory, &mut good.as_bytes())).unwrap_err();
    assert!(matches!(error, LoadError::NotEmpty), "{error}");
    assert_same(&text_of(&memory, &keep()), &good, "untouched");
}
