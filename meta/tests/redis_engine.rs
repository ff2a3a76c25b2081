//! What only the Redis engine can be asked: bytes in the server, lost connections, other clients.

#[path = "support/redis_server.rs"]
mod redis_server;
mod support;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_io::{AsyncRead, AsyncWrite};
use futures_lite::future::{self, zip};
use redis_server::RedisServer;
use sluice_meta::engine::redis::Redis;
use sluice_meta::engine::{
    AttrFields, Check, Counter, Engine, EngineResult, Item, Key, Outcome, Record, Scan, Txn, Write,
};
use sluice_meta::error::EngineError;
use sluice_meta::limits;
use sluice_meta::runtime::{Address, LocalFuture, Runtime, Stream};
use sluice_meta::types::{
    AclRule, Attr, ChunkIndex, Dentry, DirStat, FileKind, Flock, Ino, Plock, PlockRange, Quota,
    QuotaKey, QuotaKind, SessionId, Slice, SliceId, Timestamp,
};
use sluice_meta::url::RedisUrl;
use support::{SmolRuntime, block_on};

/// Runs `test` with a server and an engine connected to it.
fn with_redis<F: Future<Output = ()>>(test: impl FnOnce(Rc<RedisServer>, Redis) -> F) {
    let server = Rc::new(RedisServer::start(&[]));
    block_on(|runtime| async move {
        let engine = Redis::connect(&server.url(), runtime)
            .await
            .expect("connected");
        test(Rc::clone(&server), engine).await;
    });
}

fn attr(kind: FileKind) -> Attr {
    let time = Timestamp {
        sec: 1_700_000_000,
        nsec: 5,
    };
    Attr {
        flags: 0,
        kind,
        mode: 0o755,
        uid: 1000,
        gid: 100,
        atime: time,
        mtime: time,
        ctime: time,
        nlink: 2,
        length: 4096,
        rdev: 0,
        parent: Ino::ROOT,
        access_acl: 0,
        default_acl: 0,
        tier: 0,
    }
}

fn name(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn write(engine: &Redis, writes: Vec<Write>) -> EngineResult<Vec<i64>> {
    match engine
        .commit(Txn {
            checks: Vec::new(),
            writes,
        })
        .await?
    {
        Outcome::Committed(results) => Ok(results),
        Outcome::Conflict { check } => panic!("check {check} failed where there is none"),
    }
}

async fn read_attr(engine: &Redis, ino: Ino) -> EngineResult<Option<Attr>> {
    let record = engine.read(&[Key::Attr(ino)]).await?.remove(0);
    record.map(Record::attr).transpose()
}

/// Runs a command of another client.
fn ask<T: redis::FromRedisValue>(client: &mut redis::Connection, words: &[&str]) -> T {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command
        .query(client)
        .unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

fn get(client: &mut redis::Connection, key: &str) -> Option<Vec<u8>> {
    ask(client, &["GET", key])
}

/// The line of `CLIENT LIST` of the engine's connection.
fn engine_client(client: &mut redis::Connection) -> Option<String> {
    let list: String = ask(client, &["CLIENT", "LIST"]);
    list.lines()
        .find(|line| line.contains("name=sluice"))
        .map(str::to_owned)
}

fn kill_engine_client(client: &mut redis::Connection) {
    let line = engine_client(client).expect("the engine is connected");
    let id = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("id="));
    let killed: i64 = ask(
        client,
        &["CLIENT", "KILL", "ID", id.expect("a client has an id")],
    );
    assert_eq!(killed, 1);
}

/// Waits, without holding up the executor, until `reached`.
async fn until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        future::yield_now().await;
    }
}

#[test]
fn keys_and_values_are_those_of_juicefs() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let file = attr(FileKind::File);
        let slice = Slice {
            pos: 0,
            id: SliceId(7),
            size: 100,
            off: 0,
            len: 100,
        };
        let dentry = Dentry {
            kind: FileKind::File,
            ino: Ino(2),
        };
        let sid = SessionId(4);
        let stat = DirStat {
            length: 1,
            space: 2,
            inodes: 3,
        };
        let delta = DirStat {
            length: -10,
            space: -20,
            inodes: -30,
        };
        let (ino, parent) = (Ino(2), Ino::ROOT);
        let index = ChunkIndex(3);
        let results = write(
            &engine,
            vec![
                Write::InsertAttr { ino, attr: file },
                Write::InsertDentry {
                    parent,
                    name: name("a"),
                    dentry,
                },
                Write::AppendChunk {
                    ino,
                    index,
                    slices: vec![slice, slice],
                },
                Write::AppendChunkIfPresent {
                    ino,
                    index,
                    slices: vec![slice],
                },
                Write::AppendChunkIfPresent {
                    ino,
                    index: ChunkIndex(4),
                    slices: vec![slice],
                },
                Write::NewSliceRef {
                    id: SliceId(7),
                    size: 100,
                },
                Write::AddSliceRef {
                    id: SliceId(7),
                    size: 100,
                    delta: 2,
                },
                Write::AddSliceRef {
                    id: SliceId(8),
                    size: 9,
                    delta: -1,
                },
                Write::PutSymlink {
                    ino,
                    target: name("/t"),
                },
                Write::PutXattr {
                    ino,
                    name: name("user.k"),
                    value: name("v"),
                },
                Write::AddParent {
                    ino,
                    parent,
                    delta: 2,
                },
                Write::AddCounter {
                    counter: Counter::UsedSpace,
                    delta: -4096,
                },
                Write::SetCounter {
                    counter: Counter::LastCleanupFiles,
                    value: 77,
                },
                Write::PutDirStat { ino: parent, stat },
                Write::AddDirStat { ino: parent, delta },
                Write::AddDirStat {
                    ino: Ino(99),
                    delta,
                },
                Write::PutSession {
                    sid,
                    expire: 1234,
                    info: Some(name("{}")),
                },
                Write::AddSustained { sid, ino },
                Write::AddDeletedFile {
                    ino,
                    length: 100,
                    time: 55,
                },
                Write::PutSetting(name("{\"Name\":\"v\"}")),
            ],
        )
        .await
        .expect("committed");
        assert_eq!(
            results,
            [
                0, 0, 2, 3, 0, 0, 3, 0, 0, 0, 0, -4096, 0, 0, 1, 0, 0, 0, 0, 0
            ]
        );

        assert_eq!(get(&mut client, "i2").map(|raw| raw.len()), Some(72));
        let entry: Vec<u8> = ask(&mut client, &["HGET", "d1", "a"]);
        assert_eq!(entry, [1, 0, 0, 0, 0, 0, 0, 0, 2]);
        let records: Vec<Vec<u8>> = ask(&mut client, &["LRANGE", "c2_3", "0", "-1"]);
        assert_eq!(records, vec![slice.encode().to_vec(); 3]);
        for (words, expected) in [
            (vec!["HGET", "sliceRef", "k7_100"], "2"),
            (vec!["HGET", "sliceRef", "k8_9"], "-1"),
            (vec!["GET", "s2"], "/t"),
            (vec!["HGET", "x2", "user.k"], "v"),
            (vec!["HGET", "p2", "1"], "2"),
            (vec!["GET", "usedSpace"], "-4096"),
            (vec!["GET", "lastCleanupFiles"], "77"),
            (vec!["HGET", "dirDataLength", "1"], "-9"),
            (vec!["HGET", "dirUsedSpace", "1"], "-18"),
            (vec!["HGET", "dirUsedInodes", "1"], "-27"),
            (vec!["ZSCORE", "allSessions", "4"], "1234"),
            (vec!["HGET", "sessionInfos", "4"], "{}"),
            (vec!["SISMEMBER", "session4", "2"], "1"),
            (vec!["ZSCORE", "delfiles", "2:100"], "55"),
            (vec!["GET", "setting"], "{\"Name\":\"v\"}"),
            (vec!["EXISTS", "c2_4"], "0"),
            (vec!["DBSIZE"], "17"),
        ] {
            let found: String = ask(&mut client, &words);
            assert_eq!(found, expected, "{words:?}");
        }
        assert!(engine.is_formatted().await.expect("answered"));

        write(
            &engine,
            vec![
                Write::DeleteAttr(ino),
                Write::DeleteDentry {
                    parent,
                    name: name("a"),
                },
                Write::DeleteChunk { ino, index },
                Write::DeleteSliceRef {
                    id: SliceId(7),
                    size: 100,
                },
                Write::DeleteSliceRef {
                    id: SliceId(8),
                    size: 9,
                },
                Write::DeleteSymlink(ino),
                Write::DeleteXattrs(ino),
                Write::DeleteParents(ino),
                Write::DeleteDirStat(parent),
                Write::DeleteSession(sid),
                Write::DeleteSustained { sid, ino },
                Write::DeleteDeletedFile { ino, length: 100 },
            ],
        )
        .await
        .expect("committed");
        let left: Vec<String> = ask(&mut client, &["KEYS", "*"]);
        assert_eq!(left.len(), 3, "{left:?}");
    });
}

#[test]
fn inode_numbers_come_from_the_shared_counter() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let next = Key::Counter(Counter::NextInode);
        let next = async || {
            engine
                .read(std::slice::from_ref(&next))
                .await
                .map(|mut found| found.remove(0))
        };
        assert_eq!(next().await.unwrap(), Some(Record::Count(2)));
        assert_eq!(engine.alloc(Counter::NextInode, 1024).await.unwrap(), 2);
        assert_eq!(
            get(&mut client, "nextinode").as_deref(),
            Some(b"1025".as_slice())
        );
        assert_eq!(next().await.unwrap(), Some(Record::Count(1026)));
        assert_eq!(engine.alloc(Counter::NextInode, 10).await.unwrap(), 1026);
        // Another client takes some: the number it is answered with is the last of its own.
        let theirs: u64 = ask(&mut client, &["INCRBY", "nextinode", "100"]);
        assert_eq!(
            engine.alloc(Counter::NextInode, 1).await.unwrap(),
            theirs + 1
        );
        assert_eq!(engine.alloc(Counter::NextSlice, 4096).await.unwrap(), 1);
        assert_eq!(engine.alloc(Counter::NextSession, 1).await.unwrap(), 1);
        for (counter, count) in [(Counter::UsedSpace, 1), (Counter::NextSlice, 0)] {
            let refused = engine.alloc(counter, count).await;
            assert!(
                matches!(refused, Err(EngineError::Refused { .. })),
                "{refused:?}"
            );
        }
    });
}

#[test]
fn lookup_finds_inodes_of_any_size() {
    with_redis(|_server, engine| async move {
        let inos = [
            1,
            u64::from(u32::MAX) + 1,
            (1 << 53) - 1,
            1 << 53,
            (1 << 53) + 1,
            10_u64.pow(16),
            10_u64.pow(16) + 1,
            9_007_200_000_000_001,
            Ino::TRASH.0,
            Ino::TRASH.0 + 1,
            u64::MAX - 1,
            u64::MAX,
        ];
        for (n, ino) in inos.into_iter().enumerate() {
            let name = name(&format!("{n}"));
            let dentry = Dentry {
                kind: FileKind::Directory,
                ino: Ino(ino),
            };
            let mine = Attr {
                length: n as u64,
                ..attr(FileKind::Directory)
            };
            let parent = Ino::ROOT;
            write(
                &engine,
                vec![
                    Write::InsertAttr {
                        ino: Ino(ino),
                        attr: mine.clone(),
                    },
                    Write::InsertDentry {
                        parent,
                        name: name.clone(),
                        dentry,
                    },
                ],
            )
            .await
            .expect("committed");
            let found = engine
                .read(&[Key::Entry {
                    parent,
                    name: name.clone(),
                }])
                .await
                .unwrap();
            assert_eq!(found, [Some(Record::Entry(dentry, Some(mine)))], "{ino}");
            write(&engine, vec![Write::DeleteAttr(Ino(ino))])
                .await
                .expect("committed");
            let found = engine.read(&[Key::Entry { parent, name }]).await.unwrap();
            assert_eq!(found, [Some(Record::Entry(dentry, None))], "{ino}");
        }
    });
}

#[test]
fn results_beyond_the_precision_of_a_double() {
    with_redis(|_server, engine| async move {
        let base = (1_i64 << 60) + 1;
        for (counter, delta, expected) in [
            (Counter::UsedSpace, base, base),
            (Counter::UsedSpace, 1, base + 1),
            (Counter::TotalInodes, -base, -base),
            (Counter::TotalInodes, base - 3, -3),
        ] {
            let results = write(&engine, vec![Write::AddCounter { counter, delta }])
                .await
                .unwrap();
            assert_eq!(results, [expected]);
        }
        let (id, size) = (SliceId(1), 1);
        let results = write(
            &engine,
            vec![Write::AddSliceRef {
                id,
                size,
                delta: base,
            }],
        )
        .await;
        assert_eq!(results.unwrap(), [base + 1]);
    });
}

/// Records of other lengths than ours: of releases before and after the format this code knows.
#[test]
fn attribute_records_of_other_lengths() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let ino = Ino(2);
        let old = attr(FileKind::Directory);
        write(
            &engine,
            vec![Write::InsertAttr {
                ino,
                attr: old.clone(),
            }],
        )
        .await
        .unwrap();
        let short = get(&mut client, "i2").expect("stored");
        let (fixed, acl) = (&short[..71], [0, 0, 0, 7, 0, 0, 0, 0]);
        let (none, with_acl) = (vec![0], [&acl[..], &[0]].concat());
        let later = [&acl[..], &[1, 0xAA, 0xBB, 0xCC]].concat();
        let no_parent = [&fixed[..63], &[0]].concat();
        for (before, after_tail, after_len) in [
            ([fixed, &none].concat(), none.clone(), 72),
            (fixed.to_vec(), none.clone(), 72),
            (no_parent, none, 72),
            ([fixed, &acl].concat(), with_acl.clone(), 80),
            ([fixed, &with_acl].concat(), with_acl, 80),
            ([fixed, &[2, 0]].concat(), vec![2, 0], 73),
            ([fixed, &later].concat(), later, 83),
        ] {
            redis::cmd("SET")
                .arg("i2")
                .arg(&before)
                .exec(&mut client)
                .unwrap();
            let old = read_attr(&engine, ino).await.unwrap().expect("there");
            let new = Attr {
                uid: 5,
                ..old.clone()
            };
            let expect = old.clone();
            let time = Some(Timestamp { sec: 9, nsec: 8 });
            let txn = Txn {
                checks: vec![Check::Attr {
                    ino,
                    fields: AttrFields::ALL,
                    expect,
                }],
                writes: vec![
                    Write::UpdateAttr {
                        ino,
                        old,
                        new: new.clone(),
                    },
                    Write::PatchDir {
                        ino,
                        time,
                        nlink: -1,
                    },
                ],
            };
            let outcome = engine.commit(txn).await.unwrap();
            assert_eq!(
                outcome,
                Outcome::Committed(vec![0, 0]),
                "{} bytes",
                before.len()
            );
            let raw = get(&mut client, "i2").expect("stored");
            assert_eq!(raw.len(), after_len, "from {} bytes", before.len());
            assert!(raw.ends_with(&after_tail), "{raw:02x?}");
            let time = Timestamp { sec: 9, nsec: 8 };
            let expected = Attr {
                mtime: time,
                ctime: time,
                nlink: 1,
                ..new
            };
            assert_eq!(read_attr(&engine, ino).await.unwrap(), Some(expected));
        }
    });
}

#[test]
fn adding_and_removing_acl_and_tier() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let ino = Ino(2);
        let mut old = attr(FileKind::File);
        write(
            &engine,
            vec![Write::InsertAttr {
                ino,
                attr: old.clone(),
            }],
        )
        .await
        .unwrap();
        for (access_acl, tier, len) in [(0, 1, 73), (9, 1, 81), (9, 0, 80), (0, 0, 72), (9, 2, 81)]
        {
            let new = Attr {
                access_acl,
                tier,
                ..old.clone()
            };
            write(
                &engine,
                vec![Write::UpdateAttr {
                    ino,
                    old,
                    new: new.clone(),
                }],
            )
            .await
            .unwrap();
            assert_eq!(get(&mut client, "i2").map(|raw| raw.len()), Some(len));
            assert_eq!(read_attr(&engine, ino).await.unwrap().as_ref(), Some(&new));
            old = new;
        }
    });
}

#[test]
fn long_lists_and_many_arguments() {
    with_redis(|_server, engine| async move {
        let (ino, index) = (Ino(2), ChunkIndex(0));
        let slices: Vec<Slice> = (1..=2500)
            .map(|n| Slice {
                pos: n,
                id: SliceId(u64::from(n)),
                size: 8,
                off: 0,
                len: 8,
            })
            .collect();
        let append = Write::AppendChunk {
            ino,
            index,
            slices: slices.clone(),
        };
        assert_eq!(write(&engine, vec![append]).await.unwrap(), [2500]);
        let found = engine
            .read(&[Key::Chunk { ino, index }])
            .await
            .unwrap()
            .remove(0);
        assert_eq!(found, Some(Record::Slices(slices.clone())));
        let prefix = slices[..2499].to_vec();
        for (prefix, whole, holds) in [
            (prefix.clone(), false, true),
            (prefix, true, false),
            (slices, true, true),
        ] {
            let check = Check::Chunk {
                ino,
                index,
                prefix,
                whole,
            };
            let outcome = engine
                .commit(Txn {
                    checks: vec![check],
                    writes: Vec::new(),
                })
                .await;
            assert_eq!(outcome.unwrap() == Outcome::Committed(Vec::new()), holds);
        }
        // Nothing to append: how many there are.
        let append = Write::AppendChunk {
            ino,
            index,
            slices: Vec::new(),
        };
        assert_eq!(write(&engine, vec![append]).await.unwrap(), [2500]);
    });
}

#[test]
fn reads_survive_a_lost_connection() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let ino = Ino(2);
        let file = attr(FileKind::File);
        write(
            &engine,
            vec![Write::InsertAttr {
                ino,
                attr: file.clone(),
            }],
        )
        .await
        .unwrap();
        for _ in 0..3 {
            kill_engine_client(&mut client);
            assert_eq!(read_attr(&engine, ino).await.unwrap(), Some(file.clone()));
        }
        // Many at once share one new connection.
        kill_engine_client(&mut client);
        let keys = [Key::Attr(ino)];
        let (first, second) = zip(engine.read(&keys), engine.read(&keys)).await;
        assert_eq!(first.unwrap(), second.unwrap());
        let list: String = ask(&mut client, &["CLIENT", "LIST"]);
        assert_eq!(list.matches("name=sluice").count(), 1, "{list}");
    });
}

#[test]
fn a_commit_cut_off_in_flight_has_an_unknown_fate() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        // Writes wait in the server, so that the commit is there and not answered.
        let _: () = ask(&mut client, &["CLIENT", "PAUSE", "600000", "WRITE"]);
        let insert = Write::InsertAttr {
            ino: Ino(2),
            attr: attr(FileKind::File),
        };
        let mut cut = server.client();
        let cut_off = async {
            until(|| engine_client(&mut cut).is_some_and(|line| line.contains("cmd=evalsha")))
                .await;
            kill_engine_client(&mut cut);
        };
        let (result, ()) = zip(write(&engine, vec![insert]), cut_off).await;
        assert!(
            matches!(result, Err(EngineError::UnknownFate { .. })),
            "{result:?}"
        );
        let _: () = ask(&mut client, &["CLIENT", "UNPAUSE"]);
        assert_eq!(read_attr(&engine, Ino(2)).await.unwrap(), None);
        // The engine goes on.
        let insert = Write::InsertAttr {
            ino: Ino(3),
            attr: attr(FileKind::File),
        };
        write(&engine, vec![insert])
            .await
            .expect("committed on a new connection");
    });
}

#[test]
fn a_commit_before_the_loss_is_noticed_goes_out_again_or_says_so() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        kill_engine_client(&mut client);
        // Its driver has not run since the kill, so either outcome is right; a wrong one would be to
        // apply it twice or to claim that it was applied when it was not.
        let (id, size) = (SliceId(1), 1);
        let result = write(&engine, vec![Write::AddSliceRef { id, size, delta: 1 }]).await;
        let stored: Option<i64> = ask(&mut client, &["HGET", "sliceRef", "k1_1"]);
        match result {
            Ok(results) => assert_eq!((results, stored), (vec![2], Some(1))),
            Err(EngineError::UnknownFate { .. }) => assert_eq!(stored, None),
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn a_server_that_comes_back_is_found_again() {
    let mut server = RedisServer::start(&[]);
    block_on(|runtime| async move {
        let engine = Redis::connect(&server.url(), runtime).await.unwrap();
        server.stop();
        let mut reading = std::pin::pin!(read_attr(&engine, Ino(2)));
        // Tries in vain at first.
        assert!(future::poll_once(&mut reading).await.is_none());
        server.start_again();
        // Its scripts are gone with its memory.
        assert_eq!(reading.await.unwrap(), None);
        let insert = Write::InsertAttr {
            ino: Ino(2),
            attr: attr(FileKind::File),
        };
        write(&engine, vec![insert]).await.expect("committed");
    });
}

#[test]
fn nobody_there() {
    let mut server = RedisServer::start(&[]);
    server.stop();
    block_on(|runtime| async move {
        let url = RedisUrl {
            password: Some("secret".to_owned()),
            ..server.url()
        };
        let Err(error) = Redis::connect(&url, runtime).await else {
            panic!("connected")
        };
        let address = server.socket().display().to_string();
        assert!(matches!(&error, EngineError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&address) && !error.to_string().contains("secret"));
    });
}

#[test]
fn scripts_that_the_server_lost_are_loaded_again() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let parent = Ino::ROOT;
        let dentry = Dentry {
            kind: FileKind::File,
            ino: Ino(2),
        };
        let key = Key::Entry {
            parent,
            name: name("a"),
        };
        let _: () = ask(&mut client, &["SCRIPT", "FLUSH"]);
        let insert = Write::InsertDentry {
            parent,
            name: name("a"),
            dentry,
        };
        write(&engine, vec![insert]).await.expect("committed");
        let _: () = ask(&mut client, &["SCRIPT", "FLUSH"]);
        let found = engine
            .read(&[Key::Attr(Ino(9)), key, Key::Setting])
            .await
            .unwrap();
        assert_eq!(found, [None, Some(Record::Entry(dentry, None)), None]);
    });
}

#[test]
fn out_of_memory_is_no_space_and_applies_nothing() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let ino = Ino(2);
        let file = attr(FileKind::File);
        write(
            &engine,
            vec![Write::InsertAttr {
                ino,
                attr: file.clone(),
            }],
        )
        .await
        .unwrap();
        let _: () = ask(&mut client, &["CONFIG", "SET", "maxmemory", "1"]);
        let result = write(
            &engine,
            vec![
                Write::AddCounter {
                    counter: Counter::TotalInodes,
                    delta: 1,
                },
                Write::InsertAttr {
                    ino: Ino(3),
                    attr: file.clone(),
                },
            ],
        )
        .await;
        assert!(
            matches!(result, Err(EngineError::NoSpace { .. })),
            "{result:?}"
        );
        assert_eq!(get(&mut client, "totalInodes"), None);
        assert_eq!(read_attr(&engine, ino).await.unwrap(), Some(file));
        // Deleting still works.
        write(&engine, vec![Write::DeleteAttr(ino)])
            .await
            .expect("committed");
    });
}

/// JuiceFS clients guard their transactions with WATCH: each of our changes must abort theirs.
#[test]
fn commits_abort_watching_clients() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let parent = Ino::ROOT;
        let old = attr(FileKind::Directory);
        write(
            &engine,
            vec![Write::InsertAttr {
                ino: parent,
                attr: old.clone(),
            }],
        )
        .await
        .unwrap();
        let dentry = Dentry {
            kind: FileKind::File,
            ino: Ino(2),
        };
        let new = Attr {
            uid: 7,
            ..old.clone()
        };
        let time = Some(Timestamp { sec: 1, nsec: 1 });
        for (key, change) in [
            (
                "i1",
                Some(Write::PatchDir {
                    ino: parent,
                    time,
                    nlink: 0,
                }),
            ),
            (
                "i1",
                Some(Write::PatchDir {
                    ino: parent,
                    time: None,
                    nlink: 1,
                }),
            ),
            (
                "i1",
                Some(Write::UpdateAttr {
                    ino: parent,
                    old,
                    new,
                }),
            ),
            (
                "d1",
                Some(Write::InsertDentry {
                    parent,
                    name: name("a"),
                    dentry,
                }),
            ),
            (
                "d1",
                Some(Write::DeleteDentry {
                    parent,
                    name: name("a"),
                }),
            ),
            ("i1", None),
        ] {
            let _: () = ask(&mut client, &["WATCH", key]);
            let changed = change.is_some();
            write(&engine, change.into_iter().collect()).await.unwrap();
            let _: () = ask(&mut client, &["MULTI"]);
            let _: () = ask(&mut client, &["SET", "theirs", "1"]);
            let executed: Option<Vec<String>> = ask(&mut client, &["EXEC"]);
            assert_eq!(executed.is_none(), changed, "{key}");
        }
    });
}

#[test]
fn commits_from_many_tasks_share_the_connection() {
    with_redis(|server, engine| async move {
        let parent = Ino::ROOT;
        let dir = attr(FileKind::Directory);
        write(
            &engine,
            vec![Write::InsertAttr {
                ino: parent,
                attr: dir.clone(),
            }],
        )
        .await
        .unwrap();
        let engine = Rc::new(engine);
        let tasks = smol::LocalExecutor::new();
        let creates: Vec<_> = (2..502)
            .map(|n| {
                let (engine, dir) = (Rc::clone(&engine), dir.clone());
                tasks.spawn(async move {
                    let name = name(&format!("f{n}"));
                    let dentry = Dentry {
                        kind: FileKind::Directory,
                        ino: Ino(n),
                    };
                    let fields = AttrFields::FLAGS.and(AttrFields::PARENT);
                    let expect = None;
                    let txn = Txn {
                        checks: vec![
                            Check::Attr {
                                ino: parent,
                                fields,
                                expect: dir.clone(),
                            },
                            Check::Dentry {
                                parent,
                                name: name.clone(),
                                expect,
                            },
                        ],
                        writes: vec![
                            Write::InsertAttr {
                                ino: Ino(n),
                                attr: dir,
                            },
                            Write::InsertDentry {
                                parent,
                                name,
                                dentry,
                            },
                            Write::PatchDir {
                                ino: parent,
                                time: None,
                                nlink: 1,
                            },
                            Write::AddCounter {
                                counter: Counter::TotalInodes,
                                delta: 1,
                            },
                        ],
                    };
                    engine.commit(txn).await
                })
            })
            .collect();
        let outcomes = tasks.run(async {
            let mut totals = Vec::new();
            for create in creates {
                match create.await.unwrap() {
                    Outcome::Committed(results) => totals.push(results[3]),
                    Outcome::Conflict { check } => panic!("check {check} failed"),
                }
            }
            totals
        });
        assert_eq!(outcomes.await, (1..=500).collect::<Vec<i64>>());
        assert_eq!(
            read_attr(&engine, parent)
                .await
                .unwrap()
                .map(|attr| attr.nlink),
            Some(502)
        );

        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let scan = Scan::Dir {
                parent,
                attrs: true,
            };
            let page = engine.scan(&scan, cursor.as_ref(), 100).await.unwrap();
            for item in page.items {
                let Item::Entry {
                    dentry,
                    attr: Some(_),
                    ..
                } = item
                else {
                    panic!("{item:?}")
                };
                seen.push(dentry.ino.0);
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (2..502).collect::<Vec<u64>>());

        drop(engine);
        let mut client = server.client();
        until(|| engine_client(&mut client).is_none()).await;
    });
}

#[test]
fn passwords_and_databases() {
    let server = RedisServer::start(&["--requirepass", "secret"]);
    block_on(|runtime| async move {
        let connect = async |user: Option<&str>, password: Option<&str>, db| {
            let (user, password) = (user.map(str::to_owned), password.map(str::to_owned));
            let url = RedisUrl {
                user,
                password,
                db,
                ..server.url()
            };
            let runtime: Rc<SmolRuntime> = Rc::clone(&runtime);
            Redis::connect(&url, runtime).await.map(|_| ())
        };
        assert!(connect(None, Some("secret"), 0).await.is_ok());
        assert!(connect(Some("default"), Some("secret"), 15).await.is_ok());
        for (user, password, db, words) in [
            (None, None, 0, "NOAUTH"),
            (None, Some("wrong"), 0, "WRONGPASS"),
            (Some("nobody"), Some("secret"), 0, "WRONGPASS"),
            (None, Some("secret"), 16, "DB index is out of range"),
        ] {
            let error = connect(user, password, db).await.expect_err("refused");
            assert!(matches!(error, EngineError::Refused { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(words) && !text.contains("wrong"), "{text}");
        }
    });
}

#[test]
fn damaged_records_are_errors_with_names() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        for words in [
            ["SET", "i2", "x", ""],
            ["HSET", "d3", "a", "x"],
            ["RPUSH", "c4_0", "x", ""],
            ["SET", "usedSpace", "many", ""],
            ["HSET", "acl", "1", "x"],
        ] {
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            let _: redis::Value = ask(&mut client, &words);
        }
        let parent = Ino(3);
        for (key, named) in [
            (Key::Attr(Ino(2)), "i2"),
            (
                Key::Dentry {
                    parent,
                    name: name("a"),
                },
                "d3",
            ),
            (
                Key::Entry {
                    parent,
                    name: name("a"),
                },
                "d3",
            ),
            (
                Key::Chunk {
                    ino: Ino(4),
                    index: ChunkIndex(0),
                },
                "c4_0",
            ),
            (Key::Counter(Counter::UsedSpace), "usedSpace"),
            (Key::Acl(1), "acl"),
        ] {
            match engine.read(&[key]).await {
                Err(EngineError::Corrupt { record, .. }) => assert_eq!(record, named),
                other => panic!("{named}: {other:?}"),
            }
        }
        // Of the wrong type altogether: the server's words.
        let _: redis::Value = ask(&mut client, &["SADD", "i5", "x"]);
        let found = engine.read(&[Key::Attr(Ino(5))]).await;
        assert!(
            matches!(found, Err(EngineError::Refused { .. })),
            "{found:?}"
        );
    });
}

/// A stream that moves a few bytes at a time.
struct Trickle(Box<dyn Stream>);

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<std::io::Result<usize>> {
        let len = buf.len().min(3);
        Pin::new(&mut self.0).poll_read(cx, &mut buf[..len])
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(7)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

/// A runtime with one oddity or another.
struct OddRuntime {
    inner: Rc<SmolRuntime>,
    /// Streams move a few bytes at a time.
    trickle: bool,
    /// A server is taken for dead this many times sooner.
    hurry: u32,
}

impl Runtime for OddRuntime {
    fn sleep(&self, pause: Duration) -> LocalFuture<'static, ()> {
        let silence = pause == limits::REDIS_SILENCE_MAX;
        self.inner
            .sleep(if silence { pause / self.hurry } else { pause })
    }

    fn spawn(&self, task: LocalFuture<'static, ()>) {
        self.inner.spawn(task);
    }

    fn connect(&self, address: &Address) -> LocalFuture<'static, std::io::Result<Box<dyn Stream>>> {
        let stream = self.inner.connect(address);
        let trickle = self.trickle;
        Box::pin(async move {
            let stream = stream.await?;
            Ok(if trickle {
                Box::new(Trickle(stream)) as Box<dyn Stream>
            } else {
                stream
            })
        })
    }

    fn fdatasync(
        &self,
        file: std::sync::Arc<std::fs::File>,
    ) -> LocalFuture<'static, std::io::Result<()>> {
        self.inner.fdatasync(file)
    }

    fn now(&self) -> Timestamp {
        self.inner.now()
    }
}

#[test]
fn requests_and_replies_in_small_pieces() {
    let server = RedisServer::start(&[]);
    block_on(|runtime| async move {
        let runtime = Rc::new(OddRuntime {
            inner: runtime,
            trickle: true,
            hurry: 1,
        });
        let engine = Redis::connect(&server.url(), runtime).await.unwrap();
        let file = attr(FileKind::File);
        let insert = Write::InsertAttr {
            ino: Ino(2),
            attr: file.clone(),
        };
        write(&engine, vec![insert]).await.unwrap();
        let keys = vec![Key::Attr(Ino(2)); 100];
        let found = engine.read(&keys).await.unwrap();
        assert_eq!(found, vec![Some(Record::Attr(file)); 100]);
        assert_eq!(engine.read(&[]).await.unwrap(), []);
    });
}

#[test]
fn a_silent_server_is_given_up() {
    let server = RedisServer::start(&[]);
    block_on(|runtime| async move {
        // 30 s become 30 ms.
        let runtime = Rc::new(OddRuntime {
            inner: runtime,
            trickle: false,
            hurry: 1000,
        });
        let engine = Redis::connect(&server.url(), runtime).await.unwrap();
        let mut client = server.client();
        for commit in [false, true] {
            let _: () = ask(&mut client, &["CLIENT", "PAUSE", "600000", "WRITE"]);
            let result = if commit {
                write(&engine, vec![Write::PutSetting(name("{}"))])
                    .await
                    .map(|_| ())
            } else {
                // Numbers are taken by a write, and may be taken again.
                engine.alloc(Counter::NextSlice, 1).await.map(|_| ())
            };
            match result {
                Err(EngineError::UnknownFate { cause, .. }) if commit => {
                    assert!(cause.contains("no answer for 30s"), "{cause}");
                }
                Err(EngineError::Unreachable { cause, .. }) if !commit => {
                    assert!(cause.contains("no answer for 30s"), "{cause}");
                }
                other => panic!("{other:?}"),
            }
            let _: () = ask(&mut client, &["CLIENT", "UNPAUSE"]);
        }
    });
}

#[test]
fn a_sessions_locks_go_with_it() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        for (key, field) in [
            ("lockf9", "7_00000000000000AB"),
            ("lockf9", "77_00000000000000AB"),
            ("lockp9", "7_00000000000000AC"),
            ("lockp10", "8_0000000000000001"),
        ] {
            let _: i64 = ask(&mut client, &["HSET", key, field, "W"]);
        }
        let _: i64 = ask(
            &mut client,
            &["SADD", "locked7", "lockf9", "lockp9", "lockp10"],
        );
        write(&engine, vec![Write::DeleteSession(SessionId(7))])
            .await
            .expect("written");
        let left =
            |client: &mut redis::Connection, key| -> Vec<String> { ask(client, &["HKEYS", key]) };
        assert_eq!(left(&mut client, "lockf9"), ["77_00000000000000AB"]);
        assert_eq!(left(&mut client, "lockp10"), ["8_0000000000000001"]);
        let gone: i64 = ask(&mut client, &["EXISTS", "lockp9", "locked7"]);
        assert_eq!(gone, 0);
    });
}

async fn one(engine: &Redis, key: Key) -> Option<Record> {
    engine.read(&[key]).await.expect("read").remove(0)
}

async fn scan_all(engine: &Redis, scan: Scan) -> Vec<Item> {
    let (mut items, mut cursor) = (Vec::new(), None);
    loop {
        let page = engine
            .scan(&scan, cursor.as_ref(), 10)
            .await
            .expect("scanned");
        items.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            return items;
        }
    }
}

/// Whether `check` holds.
async fn holds(engine: &Redis, check: Check) -> bool {
    let txn = Txn {
        checks: vec![check],
        writes: Vec::new(),
    };
    matches!(engine.commit(txn).await, Ok(Outcome::Committed(_)))
}

#[test]
fn locks_are_stored_as_juicefs_stores_them() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let (ino, sid) = (Ino(9), SessionId(7));
        let flock = |owner, exclusive| Flock {
            sid,
            owner,
            exclusive,
        };
        let ranges = vec![PlockRange {
            start: 0,
            end: 99,
            write: true,
            pid: 5,
        }];
        let plock = Plock {
            sid,
            owner: 0xAB,
            ranges: ranges.clone(),
        };
        let put_plock = |ranges: Vec<PlockRange>| Write::PutPlocks {
            ino,
            sid,
            owner: 0xAB,
            ranges,
        };
        let put = |lock| Write::PutFlock { ino, lock };
        write(
            &engine,
            vec![
                put(flock(0xAB, true)),
                put(flock(1, false)),
                put_plock(ranges),
            ],
        )
        .await
        .expect("committed");
        for (words, expected) in [
            (["HGET", "lockf9", "7_00000000000000AB"], "W"),
            (["HGET", "lockf9", "7_0000000000000001"], "R"),
            (["SISMEMBER", "locked7", "lockf9"], "1"),
            (["SISMEMBER", "locked7", "lockp9"], "1"),
        ] {
            let found: String = ask(&mut client, &words);
            assert_eq!(found, expected, "{words:?}");
        }
        let raw: Vec<u8> = ask(&mut client, &["HGET", "lockp9", "7_00000000000000AB"]);
        assert_eq!(
            raw,
            [
                0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99
            ]
        );

        let flocks = vec![flock(1, false), flock(0xAB, true)];
        let found = one(&engine, Key::Flocks(ino)).await;
        assert_eq!(found, Some(Record::Flocks(flocks.clone())));
        let found = one(&engine, Key::Plocks(ino)).await;
        assert_eq!(found, Some(Record::Plocks(vec![plock.clone()])));
        let expect = |expect| Check::Flocks { ino, expect };
        assert!(holds(&engine, expect(flocks.clone())).await);
        assert!(!holds(&engine, expect(vec![flock(0xAB, true)])).await);
        assert!(!holds(&engine, expect(vec![flock(1, true), flock(0xAB, true)])).await);
        let expect = |expect| Check::Plocks { ino, expect };
        assert!(holds(&engine, expect(vec![plock.clone()])).await);
        assert!(!holds(&engine, expect(Vec::new())).await);
        // A write lock of a client on macOS, and an owner that holds nothing.
        let other = [&[0, 0, 0, 3], &raw[4..]].concat();
        let _: i64 = redis::cmd("HSET")
            .arg("lockp9")
            .arg("7_00000000000000AB")
            .arg(other)
            .arg("8_0000000000000001")
            .arg("")
            .query(&mut client)
            .expect("stored");
        assert!(holds(&engine, expect(vec![plock.clone()])).await);

        let mut items = scan_all(&engine, Scan::SessionLocks(sid)).await;
        items.sort_by_key(|item| format!("{item:?}"));
        let mut expected: Vec<Item> = flocks
            .into_iter()
            .map(|lock| Item::Flock { ino, lock })
            .collect();
        expected.push(Item::Plock { ino, lock: plock });
        expected.sort_by_key(|item| format!("{item:?}"));
        assert_eq!(items, expected);

        // The note of the session goes with its last lock on the inode.
        for (owner, left) in [(1, 1), (0xAB, 0)] {
            let delete = Write::DeleteFlock { ino, sid, owner };
            write(&engine, vec![delete]).await.expect("committed");
            let noted: i64 = ask(&mut client, &["SISMEMBER", "locked7", "lockf9"]);
            assert_eq!(noted, left, "{owner}");
        }
        write(&engine, vec![put_plock(Vec::new())])
            .await
            .expect("committed");
        let noted: i64 = ask(&mut client, &["EXISTS", "locked7", "lockf9"]);
        assert_eq!(noted, 0);
        assert_eq!(one(&engine, Key::Plocks(ino)).await, None);
    });
}

#[test]
fn quotas_exist_by_their_used_inodes() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        for (key, hash) in [
            (QuotaKey::Dir(Ino(5)), "dirQuota"),
            (QuotaKey::User(5), "userQuota"),
            (QuotaKey::Group(5), "groupQuota"),
        ] {
            let used = format!("{hash}UsedInodes");
            let is_dir = key.kind() == QuotaKind::Dir;
            let add = Write::AddQuotaUsage {
                key,
                space: -4096,
                inodes: 2,
            };
            // Limits alone are not a quota.
            let _: i64 = ask(&mut client, &["HSET", hash, "5", "0123456789abcdef"]);
            assert_eq!(one(&engine, Key::Quota(key)).await, None);
            assert_eq!(scan_all(&engine, Scan::Quotas(key.kind())).await, []);
            let _: i64 = ask(&mut client, &["DEL", hash]);
            let put_usage = Write::PutQuotaUsage {
                key,
                space: 1,
                inodes: 1,
            };
            assert_eq!(write(&engine, vec![put_usage.clone()]).await.unwrap(), [0]);
            assert_eq!(write(&engine, vec![add.clone()]).await.unwrap(), [0]);
            let made: i64 = ask(&mut client, &["HEXISTS", &used, "5"]);
            assert_eq!(made, i64::from(!is_dir));
            let put = Write::PutQuotaLimits {
                key,
                max_space: 1 << 60,
                max_inodes: -1,
            };
            let known = i64::from(!is_dir);
            assert_eq!(write(&engine, vec![put]).await.unwrap(), [known]);
            let raw: Vec<u8> = ask(&mut client, &["HGET", hash, "5"]);
            assert_eq!(raw, [&[0x10, 0, 0, 0, 0, 0, 0, 0], &[0xFF; 8][..]].concat());
            assert_eq!(write(&engine, vec![put_usage, add]).await.unwrap(), [1, 1]);
            let quota = Quota {
                max_space: 1 << 60,
                max_inodes: -1,
                used_space: -4095,
                used_inodes: 3,
            };
            assert_eq!(
                one(&engine, Key::Quota(key)).await,
                Some(Record::Quota(quota))
            );
            let items = scan_all(&engine, Scan::Quotas(key.kind())).await;
            assert_eq!(items, [Item::Quota { key, quota }]);

            let delete = vec![Write::DeleteQuota(key)];
            assert_eq!(write(&engine, delete).await.unwrap(), [0]);
            let left = (!is_dir).then_some(Record::Quota(Quota {
                max_space: -1,
                ..quota
            }));
            assert_eq!(one(&engine, Key::Quota(key)).await, left);
        }
    });
}

#[test]
fn notes_and_rules_are_stored_as_juicefs_stores_them() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let rule = AclRule {
            owner: 7,
            group: 5,
            mask: 5,
            other: 0,
            users: vec![(1000, 6)],
            groups: Vec::new(),
        };
        let (id, time) = (SliceId(12), 1_700_000_000);
        let slices = vec![(SliceId(3), 100), (SliceId(4), 4096)];
        // Number 1 is in use although the counter does not know of it.
        let _: i64 = ask(&mut client, &["HSET", "acl", "1", "\0\0"]);
        let dead = |id, delta| Write::AddSliceRef {
            id: SliceId(id),
            size: 9,
            delta,
        };
        let results = write(
            &engine,
            vec![
                Write::InsertAcl(rule.clone()),
                Write::PutDelayedSlices {
                    id,
                    time,
                    slices: slices.clone(),
                },
                Write::AddDetached { ino: Ino(5), time },
                dead(20, -1),
                dead(21, 1),
            ],
        )
        .await
        .expect("committed");
        assert_eq!(results, [2, 0, 0, 0, 2]);
        let _: i64 = ask(&mut client, &["HDEL", "acl", "1"]);
        let last: String = ask(&mut client, &["GET", "aclMaxId"]);
        assert_eq!(last, "2");
        let raw: Vec<u8> = ask(&mut client, &["HGET", "delSlices", "12_1700000000"]);
        assert_eq!(
            raw,
            [
                0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 16, 0
            ]
        );
        let score: String = ask(&mut client, &["ZSCORE", "detachedNodes", "5"]);
        assert_eq!(score, "1700000000");
        assert_eq!(
            one(&engine, Key::Acl(2)).await,
            Some(Record::Acl(rule.clone()))
        );
        let note = slices.clone();
        for (scan, item) in [
            (Scan::Acls, Item::Acl { id: 2, rule }),
            (
                Scan::DelayedSlices,
                Item::DelayedSlices {
                    id,
                    time,
                    slices: note,
                },
            ),
            (Scan::Detached, Item::Detached { ino: Ino(5), time }),
            (
                Scan::DeadSlices,
                Item::DeadSlice {
                    id: SliceId(20),
                    size: 9,
                },
            ),
        ] {
            assert_eq!(scan_all(&engine, scan).await, [item]);
        }
        let check = |expect| Check::DelayedSlices { id, time, expect };
        assert!(holds(&engine, check(slices.clone())).await);
        assert!(!holds(&engine, check(slices[..1].to_vec())).await);
        let delete = vec![
            Write::DeleteDelayedSlices { id, time },
            Write::DeleteDetached(Ino(5)),
        ];
        write(&engine, delete).await.expect("committed");
        assert!(!holds(&engine, check(slices)).await);
        assert!(!holds(&engine, check(Vec::new())).await);
        let left: i64 = ask(&mut client, &["EXISTS", "delSlices", "detachedNodes"]);
        assert_eq!(left, 0);
    });
}

#[test]
fn a_chunks_front_is_replaced_in_order() {
    with_redis(|_server, engine| async move {
        let (ino, index) = (Ino(2), ChunkIndex(0));
        let slices = |ids: std::ops::Range<u64>| -> Vec<Slice> {
            ids.map(|id| Slice {
                pos: 0,
                id: SliceId(id),
                size: 1,
                off: 0,
                len: 1,
            })
            .collect()
        };
        let replace = |drop, slices| Write::ReplaceChunkPrefix {
            ino,
            index,
            drop,
            slices,
        };
        let append = Write::AppendChunk {
            ino,
            index,
            slices: slices(1..6),
        };
        // More than one command can push.
        for (step, count, expected) in [
            (append, 5, slices(1..6)),
            (
                replace(3, slices(100..2600)),
                2502,
                [slices(100..2600), slices(4..6)].concat(),
            ),
            (
                replace(2500, slices(7..9)),
                4,
                [slices(7..9), slices(4..6)].concat(),
            ),
            (
                replace(0, slices(6..7)),
                5,
                [slices(6..9), slices(4..6)].concat(),
            ),
            (replace(3, Vec::new()), 2, slices(4..6)),
        ] {
            assert_eq!(write(&engine, vec![step]).await.unwrap(), [count]);
            let found = one(&engine, Key::Chunk { ino, index }).await;
            assert_eq!(found, Some(Record::Slices(expected.clone())));
            let items = scan_all(&engine, Scan::AllChunks).await;
            let slices = expected;
            assert_eq!(items, [Item::FileChunk { ino, index, slices }]);
        }
        let all = vec![replace(9, Vec::new())];
        assert_eq!(write(&engine, all).await.unwrap(), [0]);
        assert_eq!(one(&engine, Key::Chunk { ino, index }).await, None);
    });
}

/// Inode numbers beyond 2^53 are met on the way: in the trash, and where a script must not round.
#[test]
fn walks_along_paths() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        let big = Ino((1 << 53) + 1);
        let hour = Ino(Ino::TRASH.0 + 1);
        let dir = |parent| Attr {
            parent,
            ..attr(FileKind::Directory)
        };
        let link = |parent, text: &str, ino| Write::InsertDentry {
            parent,
            name: name(text),
            dentry: Dentry {
                kind: FileKind::Directory,
                ino,
            },
        };
        let insert = |ino, attr| Write::InsertAttr { ino, attr };
        let file = Attr {
            parent: big,
            ..attr(FileKind::File)
        };
        let (root, top, last) = (dir(Ino::ROOT), dir(Ino::ROOT), Ino(u64::MAX));
        write(
            &engine,
            vec![
                insert(Ino::ROOT, root.clone()),
                insert(big, top.clone()),
                insert(last, file.clone()),
                insert(Ino::TRASH, dir(Ino::ROOT)),
                insert(hour, dir(Ino::TRASH)),
                insert(Ino(8), dir(hour)),
                link(Ino::ROOT, "a", big),
                link(big, "b", last),
                link(big, "gone", Ino(77)),
                link(last, "never", big),
            ],
        )
        .await
        .expect("committed");
        let both = vec![(big, top.clone()), (last, file)];
        for (names, expected) in [
            (vec!["a", "b"], both.clone()),
            (vec!["a", "b", "never"], both.clone()),
            (vec!["a", "gone", "x"], vec![(big, top.clone())]),
            (vec!["a", "missing", "b"], vec![(big, top.clone())]),
            (vec!["missing"], Vec::new()),
            (Vec::new(), Vec::new()),
        ] {
            let key = Key::Path {
                from: Ino::ROOT,
                names: names.iter().map(|text| name(text)).collect(),
            };
            assert_eq!(
                one(&engine, key).await,
                Some(Record::Path(expected)),
                "{names:?}"
            );
        }
        let trash = (Ino::TRASH, dir(Ino::ROOT));
        for (ino, expected) in [
            (last, vec![(big, top), (Ino::ROOT, root.clone())]),
            (big, vec![(Ino::ROOT, root)]),
            (Ino::ROOT, Vec::new()),
            (Ino::TRASH, Vec::new()),
            (Ino(99), Vec::new()),
            (Ino(8), vec![(hour, dir(Ino::TRASH)), trash]),
        ] {
            let found = one(&engine, Key::Ancestors(ino)).await;
            assert_eq!(found, Some(Record::Path(expected)), "{ino}");
        }
        let mut inos = Vec::new();
        let _: () = ask(&mut client, &["SET", "i7x", "not an inode"]);
        for item in scan_all(&engine, Scan::Inodes).await {
            let Item::Inode { ino, .. } = item else {
                panic!("{item:?}")
            };
            inos.push(ino.0);
        }
        inos.sort_unstable();
        assert_eq!(inos, [1, 8, big.0, Ino::TRASH.0, hour.0, u64::MAX]);

        // A damaged record on the way is an error, not an early end.
        let _: () = ask(&mut client, &["SET", "i9007199254740993", "x"]);
        let names = vec![name("a"), name("b")];
        for key in [
            Key::Path {
                from: Ino::ROOT,
                names,
            },
            Key::Ancestors(last),
        ] {
            let found = engine.read(&[key]).await;
            assert!(
                matches!(found, Err(EngineError::Corrupt { .. })),
                "{found:?}"
            );
        }
        // A directory that is its own parent ends the walk all the same.
        write(&engine, vec![insert(Ino(6), dir(Ino(6)))])
            .await
            .expect("committed");
        let Some(Record::Path(path)) = one(&engine, Key::Ancestors(Ino(6))).await else {
            panic!("a path")
        };
        assert_eq!(path.len(), limits::DIR_DEPTH_MAX);
    });
}

#[test]
fn what_entries_inherit_is_checked() {
    with_redis(|_server, engine| async move {
        let ino = Ino(2);
        let stored = Attr {
            access_acl: 3,
            default_acl: 4,
            tier: 1,
            ..attr(FileKind::Directory)
        };
        write(
            &engine,
            vec![Write::InsertAttr {
                ino,
                attr: stored.clone(),
            }],
        )
        .await
        .expect("committed");
        let check = |expect| Check::Attr {
            ino,
            fields: AttrFields::INHERITED,
            expect,
        };
        let nlink = Attr {
            nlink: 9,
            ..stored.clone()
        };
        assert!(holds(&engine, check(nlink)).await);
        for expect in [
            Attr {
                access_acl: 0,
                ..stored.clone()
            },
            Attr {
                default_acl: 0,
                ..stored.clone()
            },
            Attr { tier: 0, ..stored },
        ] {
            assert!(!holds(&engine, check(expect)).await);
        }
    });
}

#[test]
fn a_volume_is_removed_with_all_its_keys() {
    with_redis(|server, engine| async move {
        let mut client = server.client();
        assert!(engine.is_empty().await.unwrap());
        write(&engine, vec![Write::PutSetting(name("{}"))])
            .await
            .expect("committed");
        assert!(!engine.is_empty().await.unwrap());
        // Another database is another volume.
        let _: () = ask(&mut client, &["SELECT", "1"]);
        let _: () = ask(&mut client, &["SET", "setting", "{}"]);
        engine.destroy().await.expect("removed");
        assert!(engine.is_empty().await.unwrap());
        assert_eq!(get(&mut client, "setting").as_deref(), Some(&b"{}"[..]));
        // The scripts are still there.
        assert_eq!(one(&engine, Key::Attr(Ino(1))).await, None);
        write(&engine, vec![Write::PutSetting(name("{}"))])
            .await
            .expect("committed");
    });
}
