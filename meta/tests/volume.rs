//! The setting record, its secrets, and the tools that create, change and show a volume.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, too"
)]

use sluice_meta::engine::memory::{Memory, Request, Verdict};
use sluice_meta::engine::{Key, Record, Txn, Write};
use sluice_meta::tools::format::{FormatOptions, Formatted, format};
use sluice_meta::tools::status::{session, status};
use sluice_meta::tools::{has_dir_quotas, load_volume};
use sluice_meta::types::{
    Attr, FileKind, Flock, Ino, PlockRange, Quota, QuotaKey, SessionId, Timestamp,
};
use sluice_meta::volume::{
    Cipher, Compression, Secret, Setting, VolumeError, check_name, round_block_kib,
};
use smol::block_on;

const START: i64 = 1_800_000_000;

/// As JuiceFS 1.4.1 wrote it into a new SQLite volume: `--compress zstd --block-size 300 --capacity 10
/// --inodes 1000 --access-key 'AK<&>' --secret-key tops3cret`.
const GOLDEN: &str = r#"{
"Name": "my-vol",
"UUID": "10bffdd0-2c2e-4596-a51f-667cf7f8eb96",
"Storage": "file",
"Tiers": {
"0": {
"ID": 0,
"StorageClass": "",
"Tag": ""
}
},
"Bucket": "/data/bkt/",
"AccessKey": "AK\u003c\u0026\u003e",
"SecretKey": "m27fN38Tm2MN2j6fyPj60CjSX9+YYKzt7VmSC3kYs2gb2vc2OA==",
"BlockSize": 256,
"Compression": "zstd",
"Capacity": 10737418240,
"Inodes": 1000,
"EncryptAlgo": "aes256gcm-rsa",
"KeyEncrypted": true,
"TrashDays": 1,
"MetaVersion": 1,
"MinClientVersion": "1.1.0-A",
"DirStats": true,
"EnableACL": false
}"#;

fn golden_with(from: &str, to: &str) -> String {
    assert!(GOLDEN.contains(from), "{from}");
    GOLDEN.replace(from, to)
}

#[test]
fn setting_is_read_and_written_as_juicefs_does() {
    let setting = Setting::parse(GOLDEN.as_bytes()).unwrap();
    assert_eq!(setting.render(), GOLDEN);
    assert_eq!(setting.name, "my-vol");
    assert_eq!(setting.access_key, "AK<&>");
    assert_eq!(
        (setting.block_size_kib, setting.compression),
        (256, Compression::Zstd)
    );
    assert_eq!(
        (setting.capacity, setting.inodes, setting.trash_days),
        (10 << 30, 1000, 1)
    );
    assert!(setting.dir_stats && setting.key_encrypted && !setting.enable_acl);
    assert_eq!(
        setting.cipher().unwrap(),
        None,
        "a cipher without a key encrypts nothing"
    );
    assert!(setting.unsupported_for_writing().is_empty());
}

#[test]
fn unknown_fields_survive() {
    let text = golden_with(
        "\"EnableACL\": false",
        "\"EnableACL\": false,\n\"New\": {\n\"A\": [\n1,\n\"b\"\n]\n}",
    );
    let text = text.replace("\"Tag\": \"\"", "\"Tag\": \"\",\n\"Later\": 7");
    assert_eq!(Setting::parse(text.as_bytes()).unwrap().render(), text);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    // (from, to, words of the message)
    let cases = [
        (
            "\"MetaVersion\": 1",
            "\"MetaVersion\": 2",
            "metadata version 2",
        ),
        ("1.1.0-A", "1.4.2-A", "from version 1.4.2-A on"),
        ("1.1.0-A", "soon", "\"soon\", which is not a version"),
        (
            "\"DirStats\"",
            "\"MaxClientVersion\": \"1.4.0\",\n\"DirStats\"",
            "up to version 1.4.0",
        ),
        ("\"zstd\"", "\"brotli\"", "compressed with \"brotli\""),
        ("aes256gcm-rsa", "sm4gcm", "encrypted with \"sm4gcm\""),
        (
            "\"BlockSize\": 256",
            "\"BlockSize\": 300",
            "block size is 300 KiB",
        ),
        (
            "\"BlockSize\": 256",
            "\"BlockSize\": 32",
            "block size is 32 KiB",
        ),
        (
            "\"Capacity\"",
            "\"Shards\": 4,\n\"Capacity\"",
            "over 4 buckets",
        ),
        ("\"Name\": \"my-vol\"", "\"Name\": \"\"", "Name is missing"),
        (
            "\"TrashDays\": 1",
            "\"TrashDays\": \"x\"",
            "setting is damaged",
        ),
        ("\"EnableACL\": false\n}", "", "setting is damaged"),
    ];
    for (from, to, words) in cases {
        let error = Setting::parse(golden_with(from, to).as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
        assert!(error.contains(';'), "says what to do: {error}");
    }
    // Limits on client versions hold at mounts only, and their own version is admitted.
    assert!(Setting::decode(golden_with("1.1.0-A", "9.0").as_bytes()).is_ok());
    assert!(Setting::parse(golden_with("1.1.0-A", "1.4.1").as_bytes()).is_ok());
    let one_bucket = golden_with("\"Capacity\"", "\"Shards\": 1,\n\"Capacity\"");
    assert!(Setting::parse(one_bucket.as_bytes()).is_ok());
}

#[test]
fn features_that_only_reading_can_ignore() {
    type Change = fn(&mut Setting);
    let on = |change: Change| {
        let mut setting = Setting::fresh("abc", "u");
        change(&mut setting);
        setting.unsupported_for_writing()
    };
    let cases: [(Change, &str); 3] = [
        (|setting| setting.change_log = true, "ChangeLog"),
        (|setting| setting.kerb_conf = "x".into(), "KerbConf"),
        (
            |setting| {
                setting.storage = "s3".into();
                setting.tiers.insert("2".into(), Default::default());
            },
            "Tiers",
        ),
    ];
    for (change, name) in cases {
        let names = on(change);
        assert!(names.len() == 1 && names[0].contains(name), "{names:?}");
    }
    // Quotas are kept up.
    assert!(on(|setting| setting.user_group_quota = true).is_empty());
}

#[test]
fn secrets_are_those_of_juicefs() {
    let mut setting = Setting::parse(GOLDEN.as_bytes()).unwrap();
    assert_eq!(setting.open_secret(Secret::SecretKey).unwrap(), "tops3cret");
    assert_eq!(setting.open_secret(Secret::SessionToken).unwrap(), "");

    setting.set_secret(Secret::SessionToken, "token").unwrap();
    setting
        .set_secret(Secret::EncryptKey, "-----BEGIN\n")
        .unwrap();
    assert!(!setting.render().contains("token") && !setting.render().contains("BEGIN"));
    let again = Setting::parse(setting.render().as_bytes()).unwrap();
    for (which, clear) in [
        (Secret::SecretKey, "tops3cret"),
        (Secret::SessionToken, "token"),
        (Secret::EncryptKey, "-----BEGIN\n"),
    ] {
        assert_eq!(again.open_secret(which).unwrap(), clear);
    }
    assert_eq!(again.cipher().unwrap(), Some(Cipher::Aes256Gcm));

    let shown = again.without_secrets();
    assert_eq!(
        (shown.secret_key.as_str(), shown.session_token.as_str()),
        ("removed", "removed")
    );
    let error = shown.open_secret(Secret::SecretKey).unwrap_err();
    assert!(
        matches!(error, VolumeError::SecretRemoved { field: "SecretKey" }),
        "{error}"
    );
    let mut other = again.clone();
    other.uuid = "another".into();
    assert!(matches!(
        other.open_secret(Secret::SecretKey),
        Err(VolumeError::SecretDamaged { .. })
    ));
    for text in ["?", "AAAA"] {
        other.secret_key = text.into();
        assert!(matches!(
            other.open_secret(Secret::SecretKey),
            Err(VolumeError::SecretDamaged { .. })
        ));
    }
}

#[test]
fn secrets_in_clear_are_sealed_when_one_is_set() {
    let mut setting = Setting::fresh("abc", "u");
    setting.secret_key = "old".into();
    assert_eq!(setting.open_secret(Secret::SecretKey).unwrap(), "old");
    setting.set_secret(Secret::SessionToken, "new").unwrap();
    assert!(setting.key_encrypted && setting.secret_key != "old");
    assert_eq!(setting.open_secret(Secret::SecretKey).unwrap(), "old");
    setting.set_secret(Secret::SecretKey, "").unwrap();
    assert_eq!(setting.secret_key, "");
}

#[test]
fn names_and_block_sizes() {
    let longest = "a".repeat(63);
    for name in ["abc", "a-b", "0a9", &longest] {
        assert!(check_name(name).is_ok(), "{name}");
    }
    let too_long = "a".repeat(64);
    for name in [
        "", "ab", "-ab", "ab-", "Abc", "a_b", "a/b", "äbc", &too_long,
    ] {
        assert!(
            matches!(check_name(name), Err(VolumeError::Name { .. })),
            "{name}"
        );
    }
    let sizes = [
        (0, 64),
        (65, 64),
        (127, 64),
        (300, 256),
        (4096, 4096),
        (16384, 16384),
        (99999, 16384),
    ];
    for (asked, kib) in sizes {
        assert_eq!(round_block_kib(asked), kib);
    }
}

fn options() -> FormatOptions {
    FormatOptions {
        name: "vol".into(),
        bucket: Some("/data/b".into()),
        ..FormatOptions::default()
    }
}

fn run(memory: &Memory, options: &FormatOptions) -> Result<Formatted, VolumeError> {
    block_on(format(
        memory,
        options,
        Timestamp {
            sec: START,
            nsec: 7,
        },
    ))
}

fn attr(memory: &Memory, ino: Ino) -> Option<Attr> {
    memory
        .peek(&Key::Attr(ino))
        .map(|record| record.attr().unwrap())
}

fn text(memory: &Memory) -> String {
    let raw = memory
        .peek(&Key::Setting)
        .map(Record::bytes)
        .unwrap()
        .unwrap();
    String::from_utf8(raw.to_vec()).unwrap()
}

#[test]
fn format_creates_a_volume() {
    let memory = Memory::new();
    assert!(matches!(
        block_on(load_volume(&memory)),
        Err(VolumeError::NotFormatted)
    ));
    let done = run(&memory, &options()).unwrap();
    assert!(done.created);

    let uuid = done.setting.uuid.clone();
    assert_eq!(uuid.len(), 36);
    let expect = golden_with("10bffdd0-2c2e-4596-a51f-667cf7f8eb96", &uuid)
        .replace("my-vol", "vol")
        .replace("/data/bkt/", "/data/b/")
        .replace("\"BlockSize\": 256", "\"BlockSize\": 4096")
        .replace("\"zstd\"", "\"none\"")
        .lines()
        .filter(|line| {
            !["Key\"", "Capacity", "Inodes", "KeyEncrypted"]
                .iter()
                .any(|word| line.contains(word))
        })
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(text(&memory), expect);
    assert_eq!(block_on(load_volume(&memory)).unwrap(), done.setting);

    for (ino, mode) in [(Ino::ROOT, 0o777), (Ino::TRASH, 0o555)] {
        let dir = attr(&memory, ino).unwrap();
        assert_eq!(
            (dir.kind, dir.mode, dir.nlink),
            (FileKind::Directory, mode, 2)
        );
        assert_eq!(
            (dir.length, dir.parent, dir.uid, dir.gid),
            (4096, Ino::ROOT, 0, 0)
        );
        assert_eq!(
            dir.mtime,
            Timestamp {
                sec: START,
                nsec: 7
            }
        );
    }
}

#[test]
fn format_without_trash_makes_none_until_it_is_turned_on() {
    let memory = Memory::new();
    run(
        &memory,
        &FormatOptions {
            trash_days: Some(0),
            ..options()
        },
    )
    .unwrap();
    assert_eq!(attr(&memory, Ino::TRASH), None);
    run(
        &memory,
        &FormatOptions {
            trash_days: Some(2),
            ..options()
        },
    )
    .unwrap();
    assert!(attr(&memory, Ino::TRASH).is_some());
}

#[test]
fn format_again_changes_what_may_change() {
    let memory = Memory::new();
    let first = run(&memory, &options()).unwrap().setting;
    // What this client does not know is kept by a change too.
    let with_news =
        text(&memory).replace("\"EnableACL\": false", "\"EnableACL\": false,\n\"New\": 1");
    let put = Write::PutSetting(with_news.clone().into());
    memory
        .apply(&Txn {
            checks: Vec::new(),
            writes: vec![put],
        })
        .unwrap();

    let same = run(&memory, &options()).unwrap();
    assert!(!same.created);
    assert_eq!(text(&memory), with_news);

    let change = FormatOptions {
        bucket: Some("/elsewhere/".into()),
        capacity: Some(5 << 30),
        inodes: Some(77),
        trash_days: Some(3),
        access_key: Some("me".into()),
        secret_key: Some("word".into()),
        block_size_kib: Some(5000),
        compression: Some(Compression::None),
        ..options()
    };
    run(&memory, &change).unwrap();
    let after = block_on(load_volume(&memory)).unwrap();
    assert_eq!(after.open_secret(Secret::SecretKey).unwrap(), "word");
    assert_eq!(after.other["New"], 1);
    let expect = Setting {
        bucket: "/elsewhere/".into(),
        capacity: 5 << 30,
        inodes: 77,
        trash_days: 3,
        access_key: "me".into(),
        secret_key: after.secret_key.clone(),
        key_encrypted: true,
        other: after.other.clone(),
        ..first
    };
    assert_eq!(after, expect);
}

#[test]
fn format_refuses_what_data_is_laid_out_by() {
    let memory = Memory::new();
    run(
        &memory,
        &FormatOptions {
            encrypt_key: Some("pem".into()),
            ..options()
        },
    )
    .unwrap();
    let before = text(&memory);
    let some = |text: &str| Some(text.to_owned());
    let cases = [
        (
            FormatOptions {
                name: "other".into(),
                ..options()
            },
            "name",
        ),
        (
            FormatOptions {
                storage: some("s3"),
                ..options()
            },
            "kind of object store",
        ),
        (
            FormatOptions {
                block_size_kib: Some(1024),
                ..options()
            },
            "block size in KiB",
        ),
        (
            FormatOptions {
                compression: Some(Compression::Lz4),
                ..options()
            },
            "compression",
        ),
        (
            FormatOptions {
                hash_prefix: Some(true),
                ..options()
            },
            "hash prefix",
        ),
        (
            FormatOptions {
                encrypt_key: some("new"),
                ..options()
            },
            "encryption key",
        ),
        (
            FormatOptions {
                encrypt_algo: some("chacha20-rsa"),
                ..options()
            },
            "cipher",
        ),
    ];
    for (change, name) in cases {
        match run(&memory, &change) {
            Err(VolumeError::Immutable { what, .. }) => assert_eq!(what, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    run(
        &memory,
        &FormatOptions {
            encrypt_key: some("pem"),
            ..options()
        },
    )
    .unwrap();
    assert_eq!(text(&memory), before);
}

#[test]
fn format_is_all_or_nothing() {
    for bad in [
        FormatOptions {
            name: "NO".into(),
            ..options()
        },
        FormatOptions {
            bucket: None,
            ..options()
        },
        FormatOptions {
            encrypt_algo: Some("rot13".into()),
            ..options()
        },
    ] {
        let memory = Memory::new();
        assert!(run(&memory, &bad).is_err(), "{bad:?}");
        assert_eq!(attr(&memory, Ino::ROOT), None);
        assert_eq!(memory.peek(&Key::Setting), None);
    }

    // Another client formats between our read and our commit.
    let memory = Memory::new();
    let other = memory.clone();
    memory.on_request(move |request| {
        if matches!(request, Request::Commit(_)) {
            let put = Write::PutSetting(GOLDEN.into());
            other
                .apply(&Txn {
                    checks: Vec::new(),
                    writes: vec![put],
                })
                .unwrap();
        }
        Verdict::Serve
    });
    assert!(matches!(run(&memory, &options()), Err(VolumeError::Raced)));
    memory.clear_hook();
    assert_eq!(text(&memory), GOLDEN);

    // An interrupted format of another client (setting but no root) is completed.
    let same_name = FormatOptions {
        name: "my-vol".into(),
        bucket: None,
        ..options()
    };
    assert!(!run(&memory, &same_name).unwrap().created);
    assert!(attr(&memory, Ino::ROOT).is_some());

    // A root without a setting is somebody's file system.
    let memory = Memory::new();
    run(&memory, &options()).unwrap();
    let root = attr(&memory, Ino::ROOT).unwrap();
    let memory = Memory::new();
    let insert = Write::InsertAttr {
        ino: Ino::ROOT,
        attr: root,
    };
    memory
        .apply(&Txn {
            checks: Vec::new(),
            writes: vec![insert],
        })
        .unwrap();
    assert!(matches!(
        run(&memory, &options()),
        Err(VolumeError::Leftovers)
    ));
}

#[test]
fn only_quotas_that_limit_count() {
    let memory = Memory::new();
    assert!(!block_on(has_dir_quotas(&memory)).unwrap());
    let unlimited = Quota {
        max_space: -1,
        max_inodes: -1,
        used_space: 9,
        used_inodes: 1,
    };
    memory.put_quota(QuotaKey::Dir(Ino(5)), unlimited);
    assert!(!block_on(has_dir_quotas(&memory)).unwrap());
    memory.put_quota(
        QuotaKey::Dir(Ino(6)),
        Quota {
            max_inodes: 10,
            ..unlimited
        },
    );
    assert!(block_on(has_dir_quotas(&memory)).unwrap());
}

#[test]
fn status_has_the_shape_of_juicefs() {
    let memory = Memory::new();
    run(
        &memory,
        &FormatOptions {
            secret_key: Some("word".into()),
            ..options()
        },
    )
    .unwrap();
    let info = br#"{"Version":"1.4.1+2026-01-01.abc","HostName":"h","IPAddrs":["10.0.0.1"],"MountPoint":"/mnt","MountTime":"2026-11-22T18:32:23.69+02:00","ProcessID":12}"#;
    let session = |sid, info: &'static [u8]| Write::PutSession {
        sid: SessionId(sid),
        expire: START,
        info: Some(info.into()),
    };
    let sum = |counter, delta| Write::AddCounter { counter, delta };
    let writes = vec![
        session(2, b"broken"),
        session(1, info),
        sum(sluice_meta::engine::Counter::UsedSpace, 8192),
        sum(sluice_meta::engine::Counter::TotalInodes, 2),
    ];
    memory
        .apply(&Txn {
            checks: Vec::new(),
            writes,
        })
        .unwrap();

    let shown = serde_json::to_value(block_on(status(&memory)).unwrap()).unwrap();
    let keys: Vec<&String> = shown.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["Setting", "Sessions", "Stat"]);
    assert_eq!(shown["Setting"]["SecretKey"], "removed");
    assert_eq!(
        serde_json::to_string(&shown["Sessions"][0]).unwrap(),
        r#"{"Sid":1,"Expire":"2027-01-15T08:00:00Z","Version":"1.4.1+2026-01-01.abc","HostName":"h","IPAddrs":["10.0.0.1"],"MountPoint":"/mnt","MountTime":"2026-11-22T18:32:23.69+02:00","ProcessID":12}"#
    );
    assert_eq!(shown["Sessions"][1]["Sid"], 2);
    assert_eq!(
        serde_json::to_string(&shown["Stat"]).unwrap(),
        format!(
            r#"{{"UsedSpace":8192,"AvailableSpace":{},"UsedInodes":2,"AvailableInodes":10485760}}"#,
            (1_u64 << 50) - 8192
        )
    );
}

#[test]
fn a_session_is_shown_with_what_it_holds() {
    let memory = Memory::new();
    run(&memory, &options()).unwrap();
    let register = |sid| Write::PutSession {
        sid: SessionId(sid),
        expire: START,
        info: Some(b"{}"[..].into()),
    };
    let flock = |sid, exclusive| Flock {
        sid: SessionId(sid),
        owner: 7,
        exclusive,
    };
    let range = |start, end, write| PlockRange {
        start,
        end,
        write,
        pid: 12,
    };
    let writes = vec![
        register(1),
        register(2),
        Write::AddSustained {
            sid: SessionId(1),
            ino: Ino(9),
        },
        Write::PutFlock {
            ino: Ino(5),
            lock: flock(1, true),
        },
        Write::PutFlock {
            ino: Ino(4),
            lock: flock(1, false),
        },
        Write::PutFlock {
            ino: Ino(6),
            lock: flock(2, true),
        },
        Write::PutPlocks {
            ino: Ino(5),
            sid: SessionId(1),
            owner: 8,
            ranges: vec![range(0, 9, true), range(20, 29, false)],
        },
    ];
    let checks = Vec::new();
    memory.apply(&Txn { checks, writes }).unwrap();

    let shown = |sid| block_on(session(&memory, SessionId(sid))).unwrap();
    let one = serde_json::to_value(shown(1).unwrap()).unwrap();
    assert_eq!(
        (&one["Sid"], &one["Sustained"]),
        (&1.into(), &vec![9].into())
    );
    assert_eq!(
        serde_json::to_string(&one["Flocks"]).unwrap(),
        r#"[{"Inode":4,"Owner":7,"Ltype":"R"},{"Inode":5,"Owner":7,"Ltype":"W"}]"#
    );
    assert_eq!(
        serde_json::to_string(&one["Plocks"]).unwrap(),
        r#"[{"Inode":5,"Owner":8,"Records":[{"Type":1,"Pid":12,"Start":0,"End":9},{"Type":0,"Pid":12,"Start":20,"End":29}]}]"#
    );
    let two = serde_json::to_value(shown(2).unwrap()).unwrap();
    assert_eq!(two["Flocks"][0]["Inode"], 6);
    assert_eq!((two.get("Sustained"), two.get("Plocks")), (None, None));
    assert_eq!(shown(3), None);
}
