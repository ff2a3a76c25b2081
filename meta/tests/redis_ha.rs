//! The Redis engine and servers that fail: restarts, pauses, full memory, replicas, sentinels, clusters.

#[path = "support/redis_server.rs"]
mod redis_server;
mod support;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::future::zip;
use redis_server::RedisServer;
use sluice_meta::engine::redis::Redis;
use sluice_meta::engine::{
    Counter, Engine, EngineResult, Item, Key, Outcome, Record, Scan, Txn, Write,
};
use sluice_meta::error::EngineError;
use sluice_meta::limits;
use sluice_meta::types::{
    Attr, ChunkIndex, Dentry, FileKind, Flock, Ino, PlockRange, QuotaKey, QuotaKind, SessionId,
    Slice, SliceId, Timestamp,
};
use sluice_meta::url::{MetaUrl, RedisUrl};
use support::block_on;

/// Runs `test` with a server and an engine connected to it.
fn with_server<F: Future<Output = ()>>(
    extra: &[&str],
    test: impl FnOnce(Rc<RefCell<RedisServer>>, Redis) -> F,
) {
    let server = Rc::new(RefCell::new(RedisServer::start(extra)));
    block_on(|runtime| async move {
        let url = server.borrow().url();
        let engine = Redis::connect(&url, runtime).await.expect("connected");
        test(Rc::clone(&server), engine).await;
    });
}

async fn write(engine: &Redis, writes: Vec<Write>) -> EngineResult<Vec<i64>> {
    let checks = Vec::new();
    match engine.commit(Txn { checks, writes }).await? {
        Outcome::Committed(results) => Ok(results),
        Outcome::Conflict { check } => panic!("check {check} failed where there is none"),
    }
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

fn setting() -> Vec<Write> {
    vec![Write::PutSetting("{}".into())]
}

async fn pause(millis: u64) {
    smol::Timer::after(Duration::from_millis(millis)).await;
}

/// Commits that add one to a number of their own, so that one lost or applied twice is seen.
#[derive(Default)]
struct Commits {
    next: Cell<u64>,
    done: RefCell<Vec<u64>>,
    unknown: RefCell<Vec<u64>>,
}

impl Commits {
    /// Commits until `ended`.
    async fn run(&self, engine: &Redis, ended: &Cell<bool>) {
        while !ended.get() {
            let id = self.next.get();
            self.next.set(id + 1);
            let add = Write::AddSliceRef {
                id: SliceId(id),
                size: 1,
                delta: 1,
            };
            match write(engine, vec![add]).await {
                Ok(results) => {
                    assert_eq!(results, [2], "commit {id}");
                    self.done.borrow_mut().push(id);
                }
                Err(EngineError::UnknownFate { .. }) => self.unknown.borrow_mut().push(id),
                Err(error) => panic!("commit {id}: {error}"),
            }
        }
    }

    fn acknowledged(&self) -> usize {
        self.done.borrow().len()
    }

    /// Every acknowledged one is there once, the others at most once.
    async fn check(&self, engine: &Redis) {
        for id in 0..self.next.get() {
            let key = Key::SliceRefs {
                id: SliceId(id),
                size: 1,
            };
            let found = engine.read(&[key]).await.expect("read").remove(0);
            // A slice is referred to once as long as nothing is recorded.
            let applied = match found {
                Some(Record::Count(1)) => false,
                Some(Record::Count(2)) => true,
                other => panic!("commit {id}: {other:?}"),
            };
            assert!(applied || !self.done.borrow().contains(&id), "commit {id}");
        }
    }
}

#[test]
fn a_durable_server_killed_under_commits_loses_and_repeats_nothing() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    with_server(&durable, |server, engine| async move {
        let (commits, ended) = (Commits::default(), Cell::new(false));
        let streams = async {
            let stream = || commits.run(&engine, &ended);
            zip(zip(stream(), stream()), zip(stream(), stream())).await;
        };
        let killer = async {
            for _ in 0..3 {
                let before = commits.acknowledged();
                while commits.acknowledged() < before + 50 {
                    pause(5).await;
                }
                server.borrow_mut().stop();
                pause(100).await;
                server.borrow_mut().start_again();
            }
            let before = commits.acknowledged();
            while commits.acknowledged() < before + 50 {
                pause(5).await;
            }
            ended.set(true);
        };
        zip(streams, killer).await;
        assert!(!commits.unknown.borrow().is_empty());
        commits.check(&engine).await;
    });
}

#[test]
fn a_server_that_stands_still_is_waited_for() {
    with_server(&[], |server, engine| async move {
        let mut client = server.borrow().client();
        let began = Instant::now();
        let _: () = ask(&mut client, &["CLIENT", "PAUSE", "1000", "WRITE"]);
        write(&engine, setting()).await.expect("committed after it");
        assert!(began.elapsed() >= Duration::from_millis(900));

        let began = Instant::now();
        server.borrow().signal("STOP");
        let wake = async {
            pause(2000).await;
            server.borrow().signal("CONT");
        };
        let (result, ()) = zip(write(&engine, setting()), wake).await;
        result.expect("committed when it goes on");
        assert!(began.elapsed() >= Duration::from_secs(2));
    });
}

#[test]
fn a_demoted_master_is_waited_for_and_left() {
    with_server(&[], |server, engine| async move {
        let mut client = server.borrow().client();
        let sluice = |client: &mut redis::Connection| {
            let list: String = ask(client, &["CLIENT", "LIST"]);
            let line = list.lines().find(|line| line.contains("name=sluice"));
            let id = line.and_then(|line| line.split_whitespace().next());
            id.expect("the engine is connected").to_owned()
        };
        let before = sluice(&mut client);
        let _: () = ask(&mut client, &["REPLICAOF", "127.0.0.1", "1"]);
        let promote = async {
            pause(500).await;
            let _: () = ask(&mut client, &["REPLICAOF", "NO", "ONE"]);
        };
        let (result, ()) = zip(write(&engine, setting()), promote).await;
        result.expect("committed at the new master");
        assert_ne!(sluice(&mut client), before);

        // Not for ever.
        let _: () = ask(&mut client, &["REPLICAOF", "127.0.0.1", "1"]);
        let began = Instant::now();
        let error = write(&engine, setting())
            .await
            .expect_err("still a replica");
        assert!(matches!(&error, EngineError::Busy { .. }), "{error}");
        assert!(error.to_string().contains("READONLY"), "{error}");
        assert!(began.elapsed() >= limits::REDIS_CONNECT_BUDGET);
    });
}

#[test]
fn missing_replicas_are_waited_for() {
    with_server(&[], |server, engine| async move {
        let mut client = server.borrow().client();
        let _: () = ask(
            &mut client,
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
        );
        let relax = async {
            pause(300).await;
            let _: () = ask(
                &mut client,
                &["CONFIG", "SET", "min-replicas-to-write", "0"],
            );
        };
        let (result, ()) = zip(write(&engine, setting()), relax).await;
        result.expect("committed when there are enough");
    });
}

#[test]
fn full_memory_is_no_space_at_once_and_deleting_makes_room() {
    with_server(
        &["--maxmemory-policy", "noeviction"],
        |server, engine| async move {
            let mut client = server.borrow().client();
            let session = |sid, info: usize| Write::PutSession {
                sid: SessionId(sid),
                expire: 1,
                info: Some(vec![b'x'; info].into()),
            };
            for sid in 0..64 {
                write(&engine, vec![session(sid, 100_000)])
                    .await
                    .expect("there is room");
            }
            let used: String = ask(&mut client, &["INFO", "memory"]);
            let used = used
                .lines()
                .find_map(|line| line.strip_prefix("used_memory:"));
            let used: u64 = used.expect("a size").trim().parse().expect("a number");
            let limit = (used - 1_000_000).to_string();
            let _: () = ask(&mut client, &["CONFIG", "SET", "maxmemory", &limit]);
            let began = Instant::now();
            let error = write(&engine, vec![session(99, 10)])
                .await
                .expect_err("full");
            assert!(matches!(&error, EngineError::NoSpace { .. }), "{error}");
            assert!(began.elapsed() < Duration::from_secs(2));
            for sid in 0..64 {
                let delete = Write::DeleteSession(SessionId(sid));
                write(&engine, vec![delete]).await.expect("deleting works");
            }
            write(&engine, vec![session(99, 10)])
                .await
                .expect("there is room again");
        },
    );
}

#[test]
fn a_server_that_loads_its_data_is_waited_for() {
    let slow = [
        "--key-load-delay",
        "4000",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    with_server(&slow, |server, engine| async move {
        write(&engine, setting()).await.expect("committed");
        let mut client = server.borrow().client();
        for key in 0..400 {
            let _: () = ask(&mut client, &["SET", &format!("x{key}"), &"x".repeat(500)]);
        }
        let _: () = ask(&mut client, &["SAVE"]);
        server.borrow_mut().stop();
        server.borrow_mut().start_loading();
        let mut client = server.borrow().client();
        let answer: redis::RedisResult<String> = redis::cmd("GET").arg("x1").query(&mut client);
        let refusal = answer.expect_err("it loads");
        assert!(refusal.to_string().contains("loading"), "{refusal}");
        let found = engine.read(&[Key::Setting]).await.expect("read").remove(0);
        assert_eq!(found, Some(Record::Bytes("{}".into())));
    });
}

/// Ports that nobody listens on just now.
fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("an address").port())
}

fn parse(url: &str) -> RedisUrl {
    let url = MetaUrl::parse(url, None).expect("a URL");
    match url.with_sentinel_password(Some("sesame".to_owned())) {
        MetaUrl::Redis(url) => url,
        MetaUrl::Sqlite(url) => panic!("{url:?}"),
    }
}

/// Waits until `reached` without holding up the executor; the servers need their time.
async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < Duration::from_secs(60), "no {what}");
        pause(20).await;
    }
}

/// A sentinel of the test's own.
struct Sentinel {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    /// Follows the master at `port` under the name `main`; asks for the password `sesame`.
    fn start(master: u16) -> Sentinel {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [port] = free_ports();
        let config = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\ndir {}\nrequirepass sesame\n\
             sentinel monitor main 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds main 1000\n\
             sentinel failover-timeout main 3000\n",
            dir.path().display()
        );
        std::fs::write(&config, text).expect("written");
        let child = Command::new("redis-server")
            .arg(&config)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed for this test: install redis-server");
        Sentinel {
            child,
            port,
            _dir: dir,
        }
    }

    /// The reply of the sentinel, if there is one.
    fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> Option<T> {
        let client = redis::Client::open(format!("redis://:sesame@127.0.0.1:{}", self.port));
        let mut client = client.expect("a URL").get_connection().ok()?;
        let mut command = redis::cmd("SENTINEL");
        for word in words {
            command.arg(*word);
        }
        command.query(&mut client).ok()
    }

    fn master(&self) -> Option<u16> {
        let place: Vec<String> = self.ask(&["get-master-addr-by-name", "main"])?;
        place.get(1)?.parse().ok()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn role(client: &mut redis::Connection) -> String {
    let role: Vec<redis::Value> = ask(client, &["ROLE"]);
    redis::from_redis_value(role[0].clone()).expect("a word")
}

#[test]
fn commits_follow_the_master_that_the_sentinels_name() {
    let [first, second, nobody] = free_ports();
    let (port, other) = (first.to_string(), second.to_string());
    let mut master = RedisServer::start(&["--port", &port]);
    let replica = RedisServer::start(&["--port", &other, "--replicaof", "127.0.0.1", &port]);
    block_on(|runtime| async move {
        // A failover ends the connections of all clients, so each question has its own.
        let offset = |server: &RedisServer, field: &str| {
            let info: String = ask(&mut server.client(), &["INFO", "replication"]);
            let line = info.lines().find_map(|line| line.strip_prefix(field));
            line.map(|line| line.trim().to_owned())
        };
        until("replica in step", || {
            offset(&replica, "master_link_status:").as_deref() == Some("up")
        })
        .await;
        let sentinel = Sentinel::start(first);
        until("sentinel that knows the replica", || {
            let known: Option<Vec<redis::Value>> = sentinel.ask(&["replicas", "main"]);
            known.is_some_and(|known| known.len() == 1)
        })
        .await;
        // The first sentinel is gone: the next one is asked.
        let url = parse(&format!(
            "redis://main,127.0.0.1:{nobody},127.0.0.1:{}/2",
            sentinel.port
        ));
        let engine = Redis::connect(&url, runtime).await.expect("connected");
        let (commits, ended) = (Commits::default(), Cell::new(false));
        let some = async || {
            let began = Instant::now();
            let enough = commits.acknowledged() + 50;
            ended.set(false);
            let stop = async {
                while commits.acknowledged() < enough {
                    pause(5).await;
                }
                ended.set(true);
            };
            zip(commits.run(&engine, &ended), stop).await;
            assert!(began.elapsed() < limits::REDIS_CONNECT_BUDGET);
        };
        some().await;

        // Planned: between two commits, when the replica has everything.
        let written = offset(&master, "master_repl_offset:");
        until("replica that has everything", || {
            let there = offset(&replica, "slave_repl_offset:");
            there.and_then(|there| there.parse::<u64>().ok())
                >= written.as_ref().and_then(|here| here.parse::<u64>().ok())
        })
        .await;
        // Refused until the sentinel has heard enough of the replica.
        until("replica that will do", || {
            sentinel.ask::<()>(&["failover", "main"]).is_some()
        })
        .await;
        until("failover", || {
            sentinel.master() == Some(second) && role(&mut replica.client()) == "master"
        })
        .await;
        until("demoted master", || role(&mut master.client()) == "slave").await;
        some().await;
        commits.check(&engine).await;
        let mut at_replica = replica.client();
        let _: () = ask(&mut at_replica, &["SELECT", "2"]);
        let there: u64 = ask(&mut at_replica, &["HLEN", "sliceRef"]);
        assert!(there >= 100, "{there} commits at the new master");

        // Unplanned: the new master is gone, the old one is in step again and takes over.
        until("old master in step", || {
            offset(&master, "master_link_status:").as_deref() == Some("up")
        })
        .await;
        until("sentinel that knows the old master as replica", || {
            let known: Option<Vec<std::collections::HashMap<String, String>>> =
                sentinel.ask(&["replicas", "main"]);
            known.is_some_and(|known| {
                known
                    .iter()
                    .any(|replica| replica["port"] == port && replica["flags"] == "slave")
            })
        })
        .await;
        pause(6000).await;
        drop(at_replica);
        drop(replica);
        some().await;
        assert_eq!(sentinel.master(), Some(first));
        master.stop();
    });
}

#[test]
fn what_sentinels_refuse() {
    let [master] = free_ports();
    let server = RedisServer::start(&["--port", &master.to_string()]);
    let sentinel = Sentinel::start(master);
    block_on(|runtime| async move {
        until("sentinel", || sentinel.master() == Some(master)).await;
        let hosts = format!("127.0.0.1:{}", sentinel.port);
        let unknown = parse(&format!("redis://other,{hosts}/0"));
        let locked = MetaUrl::parse(&format!("redis://main,{hosts}/0"), None);
        let Ok(MetaUrl::Redis(locked)) = locked else {
            panic!("{locked:?}")
        };
        for (url, part) in [
            (unknown, "knows no master `other`"),
            (locked, "SENTINEL_PASSWORD"),
        ] {
            let Err(error) = Redis::connect(&url, Rc::clone(&runtime) as _).await else {
                panic!("connected")
            };
            assert!(matches!(&error, EngineError::Refused { .. }), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
        drop(server);
    });
}

/// Three nodes with a third of the slots each.
struct Cluster {
    nodes: Vec<RedisServer>,
    ports: [u16; 3],
}

impl Cluster {
    async fn start() -> Cluster {
        let all: [u16; 6] = free_ports();
        let [ports, buses] = [[all[0], all[1], all[2]], [all[3], all[4], all[5]]];
        let node = |at: usize| {
            let (port, bus) = (ports[at].to_string(), buses[at].to_string());
            let words = [
                "--cluster-enabled",
                "yes",
                "--port",
                &port,
                "--cluster-port",
                &bus,
            ];
            RedisServer::start(&words)
        };
        let cluster = Cluster {
            nodes: vec![node(0), node(1), node(2)],
            ports,
        };
        for (at, slots) in [["0", "5460"], ["5461", "10922"], ["10923", "16383"]]
            .iter()
            .enumerate()
        {
            let mut client = cluster.nodes[at].client();
            let epoch = (at + 1).to_string();
            let _: () = ask(&mut client, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
            let _: () = ask(
                &mut client,
                &["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]],
            );
        }
        let mut client = cluster.nodes[0].client();
        for at in [1, 2] {
            let (port, bus) = (ports[at].to_string(), buses[at].to_string());
            let _: () = ask(&mut client, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        for node in &cluster.nodes {
            let mut client = node.client();
            until("cluster", || {
                let info: String = ask(&mut client, &["CLUSTER", "INFO"]);
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
            .await;
        }
        cluster
    }

    /// Gives a slot and its keys from one node to another; in between, some time passes.
    async fn give(&self, slot: &str, from: usize, to: usize) {
        let (mut source, mut target) = (self.nodes[from].client(), self.nodes[to].client());
        let source_id: String = ask(&mut source, &["CLUSTER", "MYID"]);
        let target_id: String = ask(&mut target, &["CLUSTER", "MYID"]);
        let set = ["CLUSTER", "SETSLOT", slot];
        let _: () = ask(
            &mut target,
            &[&set[..], &["IMPORTING", &source_id]].concat(),
        );
        let _: () = ask(
            &mut source,
            &[&set[..], &["MIGRATING", &target_id]].concat(),
        );
        pause(300).await;
        let keys: Vec<String> = ask(&mut source, &["CLUSTER", "GETKEYSINSLOT", slot, "1000"]);
        assert!(!keys.is_empty());
        let port = self.ports[to].to_string();
        let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        migrate.extend(keys.iter().map(String::as_str));
        let _: () = ask(&mut source, &migrate);
        let _: () = ask(&mut target, &[&set[..], &["NODE", &target_id]].concat());
        let _: () = ask(&mut source, &[&set[..], &["NODE", &target_id]].concat());
    }
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

/// Makes a file, writes, renames, locks, counts, and finds it all again.
async fn round_trip(engine: &Redis) {
    let ino = Ino(engine.alloc(Counter::NextInode, 1).await.expect("a number"));
    let sid = SessionId(7);
    let (parent, index) = (Ino::ROOT, ChunkIndex(0));
    let dentry = Dentry {
        kind: FileKind::File,
        ino,
    };
    let slice = Slice {
        pos: 0,
        id: SliceId(5),
        size: 9,
        off: 0,
        len: 9,
    };
    let lock = Flock {
        sid,
        owner: 1,
        exclusive: true,
    };
    let ranges = vec![PlockRange {
        start: 0,
        end: 9,
        write: true,
        pid: 5,
    }];
    let key = QuotaKey::User(5);
    let link = |name: &'static str| Write::InsertDentry {
        parent,
        name: name.into(),
        dentry,
    };
    write(
        engine,
        vec![
            Write::PutSetting("{}".into()),
            Write::InsertAttr {
                ino: parent,
                attr: attr(FileKind::Directory),
            },
            Write::InsertAttr {
                ino,
                attr: attr(FileKind::File),
            },
            link("a"),
            Write::AppendChunk {
                ino,
                index,
                slices: vec![slice],
            },
            Write::AddCounter {
                counter: Counter::UsedSpace,
                delta: 4096,
            },
        ],
    )
    .await
    .expect("made");
    let rename = Write::DeleteDentry {
        parent,
        name: "a".into(),
    };
    write(engine, vec![rename, link("b")])
        .await
        .expect("renamed");
    write(
        engine,
        vec![
            Write::PutFlock { ino, lock },
            Write::PutPlocks {
                ino,
                sid,
                owner: 1,
                ranges,
            },
            Write::PutQuotaLimits {
                key,
                max_space: 1,
                max_inodes: 2,
            },
            Write::PutQuotaUsage {
                key,
                space: 1,
                inodes: 1,
            },
        ],
    )
    .await
    .expect("locked and counted");

    let entry = |name: &'static str| Key::Entry {
        parent,
        name: name.into(),
    };
    let keys = [
        entry("a"),
        entry("b"),
        Key::Chunk { ino, index },
        Key::Ancestors(ino),
        Key::Setting,
    ];
    let found = engine.read(&keys).await.expect("read");
    assert_eq!(found[0], None);
    assert_eq!(
        found[1],
        Some(Record::Entry(dentry, Some(attr(FileKind::File))))
    );
    assert_eq!(found[2], Some(Record::Slices(vec![slice])));
    assert!(found[3].is_some() && found[4].is_some());
    assert!(engine.is_formatted().await.expect("answered"));
    for (scan, count) in [
        (Scan::Inodes, 2),
        (Scan::AllChunks, 1),
        (Scan::SessionLocks(sid), 2),
        (Scan::Quotas(QuotaKind::User), 1),
        (
            Scan::Dir {
                parent,
                attrs: true,
            },
            1,
        ),
    ] {
        assert_eq!(
            scan_all(engine, scan.clone()).await.len(),
            count,
            "{scan:?}"
        );
    }
    write(engine, vec![Write::DeleteSession(sid)])
        .await
        .expect("unlocked");
    assert_eq!(scan_all(engine, Scan::SessionLocks(sid)).await, []);
}

#[test]
fn volumes_in_a_cluster() {
    block_on(|runtime| async move {
        let cluster = Cluster::start().await;
        let [first, second, third] = cluster.ports;
        let list = format!("redis://127.0.0.1:{first},127.0.0.1:{second}");
        let one = format!("redis://127.0.0.1:{third}");
        // Their slots are at different nodes, or not at the one asked.
        let mut volumes = Vec::new();
        for url in [format!("{list}/0"), format!("{one}/1"), format!("{one}/15")] {
            let engine = Redis::connect(&parse(&url), Rc::clone(&runtime) as _).await;
            let engine = engine.expect("connected");
            assert!(engine.is_empty().await.expect("answered"), "{url}");
            round_trip(&engine).await;
            volumes.push(engine);
        }
        let keys =
            |at: usize| -> Vec<String> { ask(&mut cluster.nodes[at].client(), &["KEYS", "*"]) };
        // By `CLUSTER KEYSLOT`: {0} is in slot 13907, {1} in 9842, {15} in 4178.
        for (at, prefix) in [(0, "{15}"), (1, "{1}"), (2, "{0}")] {
            let found = keys(at);
            assert!(!found.is_empty());
            assert!(found.iter().all(|key| key.starts_with(prefix)), "{found:?}");
        }

        // Commits wait while the slot is on its way, and follow it.
        let insert = Write::InsertAttr {
            ino: Ino(77),
            attr: attr(FileKind::File),
        };
        let (result, ()) = zip(
            write(&volumes[0], vec![insert]),
            cluster.give("13907", 2, 0),
        )
        .await;
        result.expect("committed at the new node");
        assert!(keys(0).iter().any(|key| key == "{0}i77"), "{:?}", keys(0));
        assert_eq!(keys(2), Vec::<String>::new());
        assert_eq!(scan_all(&volumes[0], Scan::Inodes).await.len(), 3);

        // Nobody asked for a key since: the walk over the keys finds the new node by itself.
        cluster.give("13907", 0, 2).await;
        assert!(!volumes[0].is_empty().await.expect("answered"));
        cluster.give("13907", 2, 0).await;
        volumes[0].destroy().await.expect("removed");
        assert!(volumes[0].is_empty().await.expect("answered"));
        assert!(keys(0).iter().all(|key| key.starts_with("{15}")));
        assert!(!keys(0).is_empty() && !keys(1).is_empty());
    });
}

#[test]
fn juicefs_and_we_share_a_volume_in_a_cluster() {
    let Some(juicefs) = std::env::var_os("JUICEFS") else {
        println!("skipped: set JUICEFS to JuiceFS's binary");
        return;
    };
    block_on(|runtime| async move {
        let cluster = Cluster::start().await;
        let [first, second, third] = cluster.ports;
        let url = format!("redis://127.0.0.1:{first},127.0.0.1:{second}/3");
        let data = tempfile::tempdir().expect("a temporary directory");
        let bucket = format!("{}/", data.path().display());
        let run = |words: &[&str]| {
            let done = Command::new(&juicefs).args(words).output();
            let done = done.expect("JuiceFS can be run");
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{words:?}: {said}");
            String::from_utf8(done.stdout).expect("text")
        };
        let format = ["format", "--storage", "file", "--bucket", &bucket];
        run(&[&format[..], &[url.as_str(), "shared"]].concat());

        // By way of one node, which is told to be in a cluster only by itself.
        let ours = parse(&format!("redis://127.0.0.1:{third}/3"));
        let engine = Redis::connect(&ours, runtime).await.expect("connected");
        assert!(engine.is_formatted().await.expect("answered"));
        let found = engine.read(&[Key::Setting, Key::Attr(Ino::ROOT)]).await;
        let found = found.expect("read");
        let Some(Record::Bytes(setting)) = &found[0] else {
            panic!("{found:?}")
        };
        assert!(String::from_utf8_lossy(setting).contains("\"shared\""));
        assert!(matches!(&found[1], Some(Record::Attr(root)) if root.kind == FileKind::Directory));

        let ino = Ino(engine.alloc(Counter::NextInode, 1).await.expect("a number"));
        let dentry = Dentry {
            kind: FileKind::File,
            ino,
        };
        let link = Write::InsertDentry {
            parent: Ino::ROOT,
            name: "made-by-us".into(),
            dentry,
        };
        let file = Attr {
            nlink: 1,
            length: 0,
            ..attr(FileKind::File)
        };
        let insert = Write::InsertAttr { ino, attr: file };
        write(&engine, vec![insert, link]).await.expect("made");
        assert!(run(&["dump", &url]).contains("made-by-us"));
    });
}
