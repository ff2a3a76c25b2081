//! SQLite files as JuiceFS writes them: the schema to the byte, rows in every form found in real volumes,
//! files that must be refused, and a file shared with other processes and threads.
#![allow(
    clippy::unwrap_used,
    reason = "what a test needs and does not get fails it"
)]

mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future;
use rusqlite::Connection;
use sluice_meta::engine::sqlite::{Database, OpenMode, Sqlite};
use sluice_meta::engine::{
    Check, Counter, Engine, EngineResult, Item, Key, Outcome, Record, Scan, Txn, Write,
};
use sluice_meta::error::EngineError;
use sluice_meta::runtime::{Address, LocalFuture, Runtime, Stream};
use sluice_meta::types::{
    Attr, ChunkIndex, Dentry, FileKind, Ino, Name, QuotaKey, QuotaKind, Slice, SliceId, Timestamp,
};
use support::{SmolRuntime, block_on};
use tempfile::TempDir;

/// Tables and indexes of a file that JuiceFS 1.4.1 formatted, in the order of their names.
const SCHEMA: &str = include_str!("golden_sqlite/schema.sql");

struct Fixture {
    dir: TempDir,
}

impl Fixture {
    /// An empty volume, as `format` starts from.
    fn new() -> Fixture {
        let fixture = Fixture {
            dir: tempfile::tempdir().unwrap(),
        };
        drop(fixture.open(OpenMode::Create).unwrap());
        fixture
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("meta.db")
    }

    fn raw(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    fn execute(&self, sql: &str) {
        self.raw().execute_batch(sql).unwrap();
    }

    fn value<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.raw().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn open(&self, mode: OpenMode) -> EngineResult<Arc<Database>> {
        Database::open(&self.path(), mode)
    }

    fn engine(&self, runtime: &Rc<SmolRuntime>) -> Sqlite {
        Sqlite::connect(&self.open(OpenMode::Existing).unwrap(), runtime.clone()).unwrap()
    }
}

async fn get(engine: &Sqlite, key: Key) -> EngineResult<Option<Record>> {
    Ok(engine.read(&[key]).await?.remove(0))
}

async fn apply(engine: &Sqlite, writes: Vec<Write>) -> Vec<i64> {
    match engine
        .commit(Txn {
            checks: vec![],
            writes,
        })
        .await
        .unwrap()
    {
        Outcome::Committed(results) => results,
        conflict => panic!("{conflict:?} without a check"),
    }
}

fn schema_of(connection: &Connection) -> String {
    let sql = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name<>'sqlite_sequence' \
               ORDER BY type DESC, name";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement
        .query_map([], |row| row.get::<_, String>(0))
        .unwrap();
    rows.map(|sql| sql.unwrap() + ";\n").collect()
}

#[test]
fn a_new_file_has_the_schema_and_settings_of_juicefs() {
    let fixture = Fixture::new();
    let raw = fixture.raw();
    assert_eq!(schema_of(&raw), SCHEMA);
    for (pragma, expect) in [
        ("page_size", 4096),
        ("auto_vacuum", 0),
        ("user_version", 0),
        ("application_id", 0),
    ] {
        let found: i64 = raw
            .pragma_query_value(None, pragma, |row| row.get(0))
            .unwrap();
        assert_eq!(found, expect, "{pragma}");
    }
    for (pragma, expect) in [("journal_mode", "wal"), ("encoding", "UTF-8")] {
        let found: String = raw
            .pragma_query_value(None, pragma, |row| row.get(0))
            .unwrap();
        assert_eq!(found, expect, "{pragma}");
    }
}

#[test]
fn creating_again_keeps_what_is_there() {
    let fixture = Fixture::new();
    assert!(
        !fixture
            .open(OpenMode::Existing)
            .unwrap()
            .is_formatted()
            .unwrap()
    );
    fixture.execute("INSERT INTO jfs_setting VALUES ('format','{}'); DROP TABLE jfs_flock;");
    let database = fixture.open(OpenMode::Create).unwrap();
    assert!(database.is_formatted().unwrap());
    drop(database);
    assert_eq!(schema_of(&fixture.raw()), SCHEMA);
}

#[test]
fn the_first_setting_brings_the_counters_of_a_fresh_volume() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        apply(
            &engine,
            vec![Write::PutSetting(Bytes::from_static(b"{\"Name\":\"a\"}"))],
        )
        .await;
        let add = Write::AddCounter {
            counter: Counter::UsedSpace,
            delta: 5,
        };
        apply(&engine, vec![add]).await;
        apply(
            &engine,
            vec![Write::PutSetting(Bytes::from_static(b"{\"Name\":\"b\"}"))],
        )
        .await;
        let counters: String = fixture.value(
            "SELECT group_concat(name||'='||value, ' ') FROM (SELECT * FROM jfs_counter ORDER BY name)",
        );
        let expect =
            "nextChunk=1 nextCleanupSlices=0 nextInode=2 nextSession=0 totalInodes=0 usedSpace=5";
        assert_eq!(counters, expect);
        let setting: String = fixture.value("SELECT name||typeof(value)||value FROM jfs_setting");
        assert_eq!(setting, "formattext{\"Name\":\"b\"}");
    });
}

#[test]
fn counters_keep_the_conventions_of_juicefs() {
    let fixture = Fixture::new();
    fixture.execute(
        "INSERT INTO jfs_counter VALUES ('nextInode',1026),('nextChunk',4097),('nextSession',3)",
    );
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        for (counter, row, first, stored) in [
            (Counter::NextInode, "nextInode", 1026, 1036),
            (Counter::NextSlice, "nextChunk", 4097, 4107),
            (Counter::NextSession, "nextSession", 4, 13),
            (Counter::NextTrash, "nextTrash", 1, 10),
        ] {
            assert_eq!(engine.alloc(counter, 10).await.unwrap(), first, "{row}");
            let sql = format!("SELECT value FROM jfs_counter WHERE name='{row}'");
            assert_eq!(fixture.value::<i64>(&sql), stored, "{row}");
        }
        // Inodes 0 and 1 are never given out, whatever the row says.
        fixture.execute("UPDATE jfs_counter SET value=0 WHERE name='nextInode'");
        assert_eq!(engine.alloc(Counter::NextInode, 1).await.unwrap(), 2);
    });
}

/// A node as JuiceFS inserts it; the times are columns of their own.
const NODE: &str = "INSERT INTO jfs_node (inode,type,flags,mode,uid,gid,atime,mtime,ctime,atimensec,\
    mtimensec,ctimensec,nlink,length,rdev,parent,access_acl_id,default_acl_id,tier_id) VALUES ";

#[test]
fn attributes_are_read_from_every_form_of_a_node() {
    let fixture = Fixture::new();
    fixture.execute(&format!(
        "{NODE} (2,1,32,420,1000,100,1700000000123456,-1,0,789,-999,-1,1,12345,0,1,0,0,2),\
         (3,2,0,493,0,0,-8446744074709551,1,2,-616,0,0,2,4096,NULL,NULL,NULL,NULL,NULL)"
    ));
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let at = |sec, nsec| Timestamp { sec, nsec };
        let file = Attr {
            flags: 32,
            kind: FileKind::File,
            mode: 0o644,
            uid: 1000,
            gid: 100,
            atime: at(1_700_000_000, 123_456_789),
            mtime: at(-1, 999_998_001),
            ctime: at(-1, 999_999_999),
            nlink: 1,
            length: 12345,
            rdev: 0,
            parent: Ino::ROOT,
            access_acl: 0,
            default_acl: 0,
            tier: 2,
        };
        assert_eq!(
            get(&engine, Key::Attr(Ino(2))).await.unwrap(),
            Some(Record::Attr(file))
        );
        // NULL is zero; and a time that wrapped when it was written stays what it became.
        let old = Attr {
            flags: 0,
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            atime: at(-8_446_744_075, 290_448_384),
            mtime: at(0, 1000),
            ctime: at(0, 2000),
            nlink: 2,
            length: 4096,
            rdev: 0,
            parent: Ino::NONE,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        };
        assert_eq!(
            get(&engine, Key::Attr(Ino(3))).await.unwrap(),
            Some(Record::Attr(old.clone()))
        );
        // Columns that did not change stay NULL.
        let new = Attr {
            uid: 7,
            ..old.clone()
        };
        apply(
            &engine,
            vec![Write::UpdateAttr {
                ino: Ino(3),
                old,
                new,
            }],
        )
        .await;
        let sql = "SELECT uid||coalesce(tier_id,'NULL')||atime FROM jfs_node WHERE inode=3";
        assert_eq!(fixture.value::<String>(sql), "7NULL-8446744074709551");
    });
}

#[test]
fn nodes_are_written_as_juicefs_writes_them() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let attr = Attr {
            flags: 0,
            kind: FileKind::CharDev,
            mode: 0o4755,
            uid: 4_294_967_294,
            gid: 5,
            atime: Timestamp {
                sec: 1_700_000_000,
                nsec: 123_456_789,
            },
            mtime: Timestamp { sec: -2, nsec: 1 },
            ctime: Timestamp {
                sec: 10_000_000_000,
                nsec: 0,
            },
            nlink: 1,
            length: 9,
            rdev: 0x501,
            parent: Ino(Ino::TRASH.0 + 1),
            access_acl: 3,
            default_acl: 0,
            tier: 0,
        };
        apply(&engine, vec![Write::InsertAttr { ino: Ino(9), attr }]).await;
        let found: String = fixture.value(
            "SELECT concat_ws(' ',type,flags,mode,uid,gid,atime,atimensec,mtime,mtimensec,ctime,\
             ctimensec,nlink,length,rdev,parent,access_acl_id,default_acl_id,tier_id) \
             FROM jfs_node WHERE inode=9",
        );
        let expect = "6 0 2541 4294967294 5 1700000000123456 789 -1999999 -999 9223372036854775 807 \
                      1 9 1281 9223372032828243969 3 0 0";
        assert_eq!(found, expect);
    });
}

#[test]
fn names_and_blobs_have_the_storage_classes_of_juicefs() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let name = Name::from_static(b"a\xFFb");
        let dentry = Dentry {
            kind: FileKind::File,
            ino: Ino(9),
        };
        let slices = vec![Slice::hole(0, 5)];
        let append = Write::AppendChunk {
            ino: Ino(9),
            index: ChunkIndex(0),
            slices,
        };
        let info = Some(Bytes::from_static(b"{}"));
        let sid = sluice_meta::types::SessionId(4);
        apply(
            &engine,
            vec![
                Write::InsertDentry {
                    parent: Ino(1),
                    name: name.clone(),
                    dentry,
                },
                Write::PutSymlink {
                    ino: Ino(9),
                    target: name.clone(),
                },
                Write::PutXattr {
                    ino: Ino(9),
                    name: name.clone(),
                    value: Bytes::new(),
                },
                append.clone(),
                append,
                Write::PutSession {
                    sid,
                    expire: 7,
                    info,
                },
            ],
        )
        .await;
        for (sql, expect) in [
            ("SELECT typeof(name)||hex(name) FROM jfs_edge", "blob61FF62"),
            (
                "SELECT typeof(target)||hex(target) FROM jfs_symlink",
                "blob61FF62",
            ),
            (
                "SELECT typeof(name)||hex(name) FROM jfs_xattr",
                "text61FF62",
            ),
            (
                "SELECT typeof(value)||length(value) FROM jfs_xattr",
                "blob0",
            ),
            (
                "SELECT typeof(slices)||length(slices) FROM jfs_chunk",
                "blob48",
            ),
            (
                "SELECT typeof(info)||hex(info) FROM jfs_session2",
                "blob7B7D",
            ),
        ] {
            assert_eq!(fixture.value::<String>(sql), expect, "{sql}");
        }
    });
}

#[test]
fn slice_lists_are_read_and_appended_to_whatever_their_storage_class() {
    let fixture = Fixture::new();
    let slice = |n: u32| Slice {
        pos: n,
        id: SliceId(300 + u64::from(n)),
        size: 256,
        off: 0,
        len: 256,
    };
    let raw = fixture.raw();
    let sql = "INSERT INTO jfs_chunk (inode, indx, slices) VALUES (5,0,?1) \
               ON CONFLICT (inode, indx) DO UPDATE SET slices=slices||?1";
    raw.execute(sql, [&slice(1).encode()[..]]).unwrap();
    raw.execute(sql, [&slice(2).encode()[..]]).unwrap();
    assert_eq!(
        fixture.value::<String>("SELECT typeof(slices) FROM jfs_chunk"),
        "text"
    );
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let key = Key::Chunk {
            ino: Ino(5),
            index: ChunkIndex(0),
        };
        let expect = Record::Slices(vec![slice(1), slice(2)]);
        assert_eq!(get(&engine, key.clone()).await.unwrap(), Some(expect));
        let more = |n| Write::AppendChunk {
            ino: Ino(5),
            index: ChunkIndex(0),
            slices: vec![slice(n)],
        };
        assert_eq!(apply(&engine, vec![more(3)]).await, [3]);
        fixture
            .raw()
            .execute(sql, [&slice(4).encode()[..]])
            .unwrap();
        let slices = vec![slice(5)];
        let if_present = Write::AppendChunkIfPresent {
            ino: Ino(5),
            index: ChunkIndex(0),
            slices,
        };
        assert_eq!(apply(&engine, vec![if_present]).await, [5]);
        let expect = Record::Slices((1..=5).map(slice).collect());
        assert_eq!(get(&engine, key).await.unwrap(), Some(expect));
        let page = engine
            .scan(
                &Scan::Chunks {
                    ino: Ino(5),
                    length: 1,
                },
                None,
                10,
            )
            .await
            .unwrap();
        assert_eq!(page.items.len(), 1);
    });
}

#[test]
fn acl_rules_are_lists_without_counts() {
    let fixture = Fixture::new();
    fixture.execute(
        "INSERT INTO jfs_acl VALUES (1,7,5,65535,4,x'000003E80007FFFFFFFE0000',x''),\
         (2,7,5,4,NULL,NULL,x'00000064')",
    );
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let rule = get(&engine, Key::Acl(1))
            .await
            .unwrap()
            .unwrap()
            .acl()
            .unwrap();
        assert_eq!(
            (rule.owner, rule.group, rule.mask, rule.other),
            (7, 5, 0xFFFF, 4)
        );
        assert_eq!(rule.users, [(1000, 7), (4_294_967_294, 0)]);
        assert_eq!(rule.groups, []);
        assert_corrupt(get(&engine, Key::Acl(2)).await, "jfs_acl 2");
    });
}

fn assert_corrupt<T: std::fmt::Debug>(result: EngineResult<T>, expect: &str) {
    match result {
        Err(EngineError::Corrupt { record, .. }) => assert_eq!(record, expect),
        other => panic!("{other:?} where {expect} is damaged"),
    }
}

#[test]
fn damaged_records_are_errors_that_name_table_and_key() {
    let fixture = Fixture::new();
    fixture.execute(&format!(
        "{NODE} (2,9,0,420,0,0,0,0,0,0,0,0,1,0,0,1,0,0,0),\
         (3,1,0,420,-1,0,0,0,0,0,0,0,1,0,0,1,0,0,0),\
         (4,1,0,'rw-',0,0,0,0,0,0,0,0,1,0,0,1,0,0,0),\
         (5,1,0,420,0,0,0,0,0,0,0,0,1,-5,0,1,0,0,0);\
         INSERT INTO jfs_edge (parent,name,inode,type) VALUES (1,x'61',2,0),(1,x'62',-1,1);\
         INSERT INTO jfs_chunk (inode,indx,slices) VALUES (5,0,x'00'),(5,1,zeroblob(23)||x'FF');\
         INSERT INTO jfs_counter VALUES ('usedSpace',1.5),('nextInode',9223372036854775807);\
         INSERT INTO jfs_dir_stats VALUES (7,'x',0,0)"
    ));
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let name = |name: &'static [u8]| Name::from_static(name);
        for (key, expect) in [
            (Key::Attr(Ino(2)), "jfs_node 2"),
            (Key::Attr(Ino(3)), "jfs_node 3"),
            (Key::Attr(Ino(4)), "jfs_node 4"),
            (Key::Attr(Ino(5)), "jfs_node 5"),
            (
                Key::Dentry {
                    parent: Ino(1),
                    name: name(b"a"),
                },
                "jfs_edge 1",
            ),
            (
                Key::Entry {
                    parent: Ino(1),
                    name: name(b"b"),
                },
                "jfs_edge and jfs_node below 1",
            ),
            (
                Key::Chunk {
                    ino: Ino(5),
                    index: ChunkIndex(0),
                },
                "jfs_chunk 5 0",
            ),
            (Key::Counter(Counter::UsedSpace), "jfs_counter usedSpace"),
            (Key::DirStat(Ino(7)), "jfs_dir_stats 7"),
        ] {
            assert_corrupt(get(&engine, key).await, expect);
        }
        assert_corrupt(
            engine.alloc(Counter::NextInode, 1).await,
            "jfs_counter nextInode",
        );
        // A commit that meets one changes nothing.
        let writes = vec![
            Write::DeleteAttr(Ino(2)),
            Write::AppendChunk {
                ino: Ino(5),
                index: ChunkIndex(0),
                slices: vec![Slice::hole(0, 1)],
            },
        ];
        let result = engine
            .commit(Txn {
                checks: vec![],
                writes,
            })
            .await;
        assert_corrupt(result, "jfs_chunk 5 0");
        assert_eq!(fixture.value::<i64>("SELECT count(*) FROM jfs_node"), 4);
        let check = Check::NoAttr(Ino(99));
        let outcome = engine
            .commit(Txn {
                checks: vec![check],
                writes: vec![],
            })
            .await
            .unwrap();
        assert_eq!(outcome, Outcome::Committed(vec![]));
    });
}

#[test]
fn a_name_stored_as_text_is_not_listed_because_it_cannot_be_looked_up() {
    let fixture = Fixture::new();
    fixture.execute(
        "INSERT INTO jfs_edge (parent,name,inode,type) VALUES (1,'text',2,1),(1,x'61',3,1),(1,x'',4,1)",
    );
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let page = engine
            .scan(
                &Scan::Dir {
                    parent: Ino(1),
                    attrs: false,
                },
                None,
                10,
            )
            .await
            .unwrap();
        assert_eq!(page.items.len(), 1);
        let name = Name::from_static(b"text");
        assert_eq!(
            get(
                &engine,
                Key::Dentry {
                    parent: Ino(1),
                    name
                }
            )
            .await
            .unwrap(),
            None
        );
    });
}

fn refusal(result: EngineResult<Arc<Database>>) -> String {
    match result {
        Err(EngineError::Refused { cause, .. }) => cause,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn files_without_a_volume_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("empty"), b"").unwrap();
    std::fs::write(
        path("text"),
        "this is not a database at all, not even a little".repeat(99),
    )
    .unwrap();
    Connection::open(path("other"))
        .unwrap()
        .execute_batch("CREATE TABLE t (x)")
        .unwrap();
    for (name, expect) in [
        ("missing", "no such file"),
        ("empty", "no table jfs_setting"),
        ("text", "not a database"),
        ("other", "no table jfs_setting"),
    ] {
        for mode in [OpenMode::Existing, OpenMode::ReadOnly] {
            let before = std::fs::read(path(name)).ok();
            let cause = refusal(Database::open(&path(name), mode));
            assert!(cause.contains(expect), "{cause}");
            assert!(cause.contains(name), "{cause}");
            assert_eq!(std::fs::read(path(name)).ok(), before, "{name} {mode:?}");
        }
    }
}

/// Takes away what releases before 1.4 did not have.
const OLDER: &str = "DROP TABLE jfs_user_group_quota; DROP TABLE jfs_change_log; \
    DROP TABLE jfs_acl; DROP TABLE jfs_flock; DROP INDEX IDX_jfs_chunk_ref_refs; \
    ALTER TABLE jfs_node DROP COLUMN tier_id; ALTER TABLE jfs_node DROP COLUMN atimensec;";

#[test]
fn what_a_file_of_an_older_release_lacks_is_added_when_it_is_opened_for_writing() {
    let fixture = Fixture::new();
    fixture.execute(OLDER);
    drop(fixture.open(OpenMode::Existing).unwrap());
    let schema = schema_of(&fixture.raw());
    // Columns come last; everything else is as JuiceFS makes it.
    let node = |schema: &str| -> (String, BTreeSet<String>) {
        let (nodes, rest): (Vec<&str>, Vec<&str>) = schema
            .lines()
            .partition(|line| line.starts_with("CREATE TABLE `jfs_node`"));
        let columns = nodes.concat();
        let columns = columns.trim_end_matches(");").split(" (").nth(1).unwrap();
        let columns = columns.split(", ").map(str::to_owned).collect();
        (rest.join("\n"), columns)
    };
    assert_eq!(node(&schema), node(SCHEMA));
}

#[test]
fn what_a_file_of_an_older_release_lacks_is_empty_to_those_who_only_read() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let attr = Attr {
            flags: 0,
            kind: FileKind::File,
            mode: 0o644,
            uid: 1,
            gid: 2,
            atime: Timestamp { sec: 5, nsec: 0 },
            mtime: Timestamp { sec: 6, nsec: 7 },
            ctime: Timestamp { sec: 8, nsec: 9 },
            nlink: 1,
            length: 0,
            rdev: 0,
            parent: Ino::ROOT,
            access_acl: 0,
            default_acl: 0,
            tier: 0,
        };
        let ino = Ino(2);
        let write = Write::InsertAttr {
            ino,
            attr: attr.clone(),
        };
        apply(&engine, vec![write]).await;
        drop(engine);
        fixture.execute(OLDER);
        let before = schema_of(&fixture.raw());
        let database = fixture.open(OpenMode::ReadOnly).unwrap();
        let engine = Sqlite::connect(&database, runtime).unwrap();
        let found = get(&engine, Key::Attr(ino)).await.unwrap();
        assert_eq!(found, Some(Record::Attr(attr)));
        for key in [Key::Acl(1), Key::Flocks(ino), Key::Quota(QuotaKey::User(1))] {
            assert_eq!(get(&engine, key).await.unwrap(), None);
        }
        let quotas = Scan::Quotas(QuotaKind::Group);
        assert_eq!(engine.scan(&quotas, None, 9).await.unwrap().items, []);
        assert!(!engine.is_empty().await.unwrap());
        assert_eq!(schema_of(&fixture.raw()), before);
    });
}

#[test]
fn a_table_without_a_column_that_every_release_has_is_refused() {
    let fixture = Fixture::new();
    fixture.execute("ALTER TABLE jfs_node DROP COLUMN uid");
    for mode in [OpenMode::Existing, OpenMode::ReadOnly] {
        let cause = refusal(fixture.open(mode));
        assert!(
            cause.contains("column uid of table jfs_node is missing"),
            "{cause}"
        );
    }
}

#[test]
fn volumes_with_a_prefix_share_a_file_and_nothing_else() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let open =
            |prefix| Database::open_prefixed(&fixture.path(), prefix, OpenMode::Create).unwrap();
        let foo = open(Some("foo"));
        let engine = Sqlite::connect(&foo, runtime.clone()).unwrap();
        let setting = Bytes::from_static(b"{}");
        apply(&engine, vec![Write::PutSetting(setting.clone())]).await;
        assert_eq!(
            get(&engine, Key::Setting).await.unwrap(),
            Some(Record::Bytes(setting))
        );
        assert_eq!(fixture.value::<i64>("SELECT count(*) FROM jfs_setting"), 0);
        assert_eq!(
            fixture.value::<i64>("SELECT count(*) FROM jfs_foo_setting"),
            1
        );
        let ours: String = schema_of(&fixture.raw())
            .lines()
            .filter(|line| line.contains("jfs_foo_"))
            .map(|line| line.replace("jfs_foo_", "jfs_") + "\n")
            .collect();
        let sorted = |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
        assert_eq!(sorted(&ours), sorted(SCHEMA));
        engine.destroy().await.unwrap();
        assert_eq!(schema_of(&fixture.raw()), SCHEMA);
        for prefix in ["", "a b", "a`"] {
            let mode = OpenMode::Create;
            let refused = Database::open_prefixed(&fixture.path(), Some(prefix), mode);
            assert!(refusal(refused).contains("prefix"));
        }
    });
}

#[test]
fn dead_slices_and_pages_of_a_directory_are_ranges_of_an_index() {
    let fixture = Fixture::new();
    for (sql, index) in [
        (
            "SELECT refs, chunkid, size FROM jfs_chunk_ref WHERE refs<=0 AND refs>=1 \
             AND (refs>1 OR chunkid>2) ORDER BY refs, chunkid LIMIT 3",
            "USING INDEX IDX_jfs_chunk_ref_refs (refs>? AND refs<?)",
        ),
        (
            "SELECT name, type, inode FROM jfs_edge WHERE parent=1 AND name>x'00' \
             ORDER BY name LIMIT 3",
            "USING INDEX UQE_jfs_edge_edge (parent=? AND name>?)",
        ),
    ] {
        let raw = fixture.raw();
        let mut statement = raw.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = statement
            .query_map([], |row| row.get::<_, String>(3))
            .unwrap();
        let plan: Vec<String> = rows.map(Result::unwrap).collect();
        assert!(plan.len() == 1 && plan[0].contains(index), "{plan:?}");
    }
}

#[test]
fn reading_works_where_nothing_can_be_written() {
    let fixture = Fixture::new();
    fixture.execute("INSERT INTO jfs_counter VALUES ('usedSpace',7)");
    let path = fixture.path();
    assert!(
        !path.with_extension("db-wal").exists(),
        "the last one to leave removed the log"
    );
    // SQLite follows no link to shared memory: it can be had no more than in a directory that cannot be
    // written, and that for root too.
    std::os::unix::fs::symlink("elsewhere", path.with_extension("db-shm")).unwrap();
    let volume = &fixture;
    block_on(|runtime| async move {
        let database = volume.open(OpenMode::ReadOnly).unwrap();
        let engine = Sqlite::connect(&database, runtime.clone()).unwrap();
        let used = get(&engine, Key::Counter(Counter::UsedSpace))
            .await
            .unwrap();
        assert_eq!(used, Some(Record::Count(7)));
        let add = Write::AddCounter {
            counter: Counter::UsedSpace,
            delta: 1,
        };
        let refused = engine
            .commit(Txn {
                checks: vec![],
                writes: vec![add],
            })
            .await;
        assert!(
            matches!(refused, Err(EngineError::Refused { .. })),
            "{refused:?}"
        );
        let refused = engine.alloc(Counter::NextInode, 1).await;
        assert!(
            matches!(refused, Err(EngineError::Refused { .. })),
            "{refused:?}"
        );
        engine.sync().await.unwrap();
    });
    assert_eq!(
        std::fs::metadata(path.with_extension("db-wal")).map_or(0, |log| log.len()),
        0
    );
    // With changes only in the log, reading the main file alone would show an old state.
    std::fs::write(path.with_extension("db-wal"), b"something").unwrap();
    assert!(refusal(fixture.open(OpenMode::ReadOnly)).contains("its log holds changes"));
}

#[test]
fn reading_sees_what_others_write() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let database = fixture.open(OpenMode::ReadOnly).unwrap();
        let reader = Sqlite::connect(&database, runtime.clone()).unwrap();
        let writer = fixture.engine(&runtime);
        for value in 1..4 {
            let add = Write::AddCounter {
                counter: Counter::UsedSpace,
                delta: 1,
            };
            apply(&writer, vec![add]).await;
            let used = get(&reader, Key::Counter(Counter::UsedSpace))
                .await
                .unwrap();
            assert_eq!(used, Some(Record::Count(value)));
        }
    });
}

#[test]
fn a_lock_of_another_process_suspends_commits_and_nothing_else() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let other = fixture.raw();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let add = |delta| Write::AddCounter {
            counter: Counter::UsedSpace,
            delta,
        };
        let commit = |delta| {
            engine.commit(Txn {
                checks: vec![],
                writes: vec![add(delta)],
            })
        };
        let mut waiting = pin!(future::zip(commit(1), commit(2)));
        // Timers and reads go on while it waits.
        for _ in 0..5 {
            let pause = async {
                runtime.sleep(Duration::from_millis(3)).await;
                get(&engine, Key::Counter(Counter::UsedSpace))
                    .await
                    .unwrap()
            };
            let first = future::or(
                async {
                    (&mut waiting).await.0.unwrap();
                    None
                },
                pause,
            );
            assert_eq!(first.await, Some(Record::Count(0)));
        }
        other.execute_batch("COMMIT").unwrap();
        let (a, b) = waiting.await;
        assert!(matches!(a, Ok(Outcome::Committed(_))) && matches!(b, Ok(Outcome::Committed(_))));
        let used = get(&engine, Key::Counter(Counter::UsedSpace))
            .await
            .unwrap();
        assert_eq!(used, Some(Record::Count(3)));
    });
}

#[test]
fn a_commit_given_up_while_it_waits_is_not_applied_and_leaves_the_turn_to_others() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        let other = fixture.raw();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let add = |delta| Write::AddCounter {
            counter: Counter::UsedSpace,
            delta,
        };
        let commit = |delta| {
            engine.commit(Txn {
                checks: vec![],
                writes: vec![add(delta)],
            })
        };
        let mut second = pin!(commit(2));
        {
            // The first has the turn and sleeps; the second is in line behind it.
            let mut first = pin!(commit(1));
            for _ in 0..3 {
                assert!(future::poll_once(&mut first).await.is_none());
                assert!(future::poll_once(&mut second).await.is_none());
            }
        }
        other.execute_batch("COMMIT").unwrap();
        assert_eq!(second.await.unwrap(), Outcome::Committed(vec![2]));
    });
}

#[test]
fn commits_of_many_threads_are_combined_and_none_is_lost() {
    let fixture = Fixture::new();
    let database = fixture.open(OpenMode::Existing).unwrap();
    let (threads, tasks, rounds) = (4, 8, 25);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let database = &database;
            scope.spawn(move || {
                block_on(|runtime| async move {
                    let engine = Rc::new(Sqlite::connect(database, runtime.clone()).unwrap());
                    let (done, finished) = smol::channel::unbounded();
                    for task in 0..tasks {
                        let (engine, done) = (Rc::clone(&engine), done.clone());
                        runtime.spawn(Box::pin(async move {
                            for round in 0..rounds {
                                create(&engine, &format!("{thread}-{task}-{round}")).await;
                                if round % 10 == 0 {
                                    engine.sync().await.unwrap();
                                }
                            }
                            done.send(()).await.unwrap();
                        }));
                    }
                    for _ in 0..tasks {
                        finished.recv().await.unwrap();
                    }
                });
            });
        }
    });
    let all = threads * tasks * rounds;
    assert_eq!(fixture.value::<i64>("SELECT count(*) FROM jfs_edge"), all);
    let sum = "SELECT value FROM jfs_counter WHERE name='totalInodes'";
    assert_eq!(fixture.value::<i64>(sum), all);
    assert_eq!(fixture.value::<String>("PRAGMA integrity_check"), "ok");
    drop(database);
    assert!(
        !fixture.path().with_extension("db-wal").exists(),
        "a clean close folds the log in"
    );
}

async fn create(engine: &Sqlite, name: &str) {
    let name = Name::copy_from_slice(name.as_bytes());
    let ino = Ino(engine.alloc(Counter::NextInode, 1).await.unwrap());
    let dentry = Dentry {
        kind: FileKind::File,
        ino,
    };
    let checks = vec![Check::Dentry {
        parent: Ino(1),
        name: name.clone(),
        expect: None,
    }];
    let writes = vec![
        Write::InsertDentry {
            parent: Ino(1),
            name,
            dentry,
        },
        Write::AddCounter {
            counter: Counter::TotalInodes,
            delta: 1,
        },
    ];
    let outcome = engine.commit(Txn { checks, writes }).await.unwrap();
    assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
}

#[test]
fn the_log_starts_over_while_commits_go_on() {
    let fixture = Fixture::new();
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        // Counts, in the log's header, how often it was started over.
        let generation = || {
            let log = std::fs::read(fixture.path().with_extension("db-wal")).unwrap();
            log.get(12..16).map(<[u8]>::to_vec)
        };
        apply(&engine, vec![Write::PutSetting(Bytes::from_static(b"{}"))]).await;
        let first = generation();
        // Commits back to back, 4 MB between two looks.
        let value = Bytes::from(vec![7; 10_000]);
        for ino in 0..200 {
            for number in 0..400u32 {
                let name = Name::from(number.to_string());
                let put = Write::PutXattr {
                    ino: Ino(ino),
                    name,
                    value: value.clone(),
                };
                apply(&engine, vec![put]).await;
            }
            if generation() != first {
                return;
            }
        }
        panic!("the log holds all of 800 MB of writes");
    });
}

#[test]
fn what_was_synced_survives_the_loss_of_everything_unsynced() {
    // A copy of the files, taken while they are open, is what a crash of the process leaves.
    let fixture = Fixture::new();
    let crashed = tempfile::tempdir().unwrap();
    let (fixture, crashed) = (&fixture, &crashed);
    block_on(|runtime| async move {
        let engine = fixture.engine(&runtime);
        for number in 0..100 {
            create(&engine, &format!("file-{number}")).await;
        }
        engine.sync().await.unwrap();
        copy_database(&fixture.path(), crashed.path());
        let path = crashed.path().join("meta.db");
        let database = Database::open(&path, OpenMode::Existing).unwrap();
        let engine = Sqlite::connect(&database, runtime.clone()).unwrap();
        let scan = Scan::Dir {
            parent: Ino(1),
            attrs: false,
        };
        let page = engine.scan(&scan, None, 1000).await.unwrap();
        assert_eq!(page.items.len(), 100);
        assert!(
            page.items
                .iter()
                .all(|item| matches!(item, Item::Entry { .. }))
        );
    });
}

fn copy_database(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let mut source = from.as_os_str().to_owned();
        source.push(suffix);
        std::fs::copy(source, to.join(format!("meta.db{suffix}"))).unwrap();
    }
}

/// A runtime whose flushes a test counts and ends one by one.
struct Flushes {
    inner: Rc<SmolRuntime>,
    started: Cell<u32>,
    endings: smol::channel::Receiver<io::Result<()>>,
}

impl Runtime for Flushes {
    fn sleep(&self, pause: Duration) -> LocalFuture<'static, ()> {
        self.inner.sleep(pause)
    }

    fn spawn(&self, task: LocalFuture<'static, ()>) {
        self.inner.spawn(task);
    }

    fn connect(&self, address: &Address) -> LocalFuture<'static, io::Result<Box<dyn Stream>>> {
        self.inner.connect(address)
    }

    fn fdatasync(&self, _file: Arc<File>) -> LocalFuture<'static, io::Result<()>> {
        self.started.set(self.started.get() + 1);
        let endings = self.endings.clone();
        Box::pin(async move { endings.recv().await.unwrap() })
    }

    fn now(&self) -> Timestamp {
        self.inner.now()
    }
}

#[test]
fn waiters_share_a_flush_that_started_after_they_asked() {
    let fixture = Fixture::new();
    block_on(|inner| async move {
        let (end, endings) = smol::channel::unbounded();
        let flushes = Rc::new(Flushes {
            inner,
            started: Cell::new(0),
            endings,
        });
        let database = fixture.open(OpenMode::Existing).unwrap();
        let engine = Sqlite::connect(&database, flushes.clone()).unwrap();
        let other = Sqlite::connect(&database, flushes.clone()).unwrap();
        let mut first = pin!(engine.sync());
        assert!(future::poll_once(&mut first).await.is_none());
        assert_eq!(flushes.started.get(), 1);
        // These ask while that flush runs: it may have missed what they committed.
        let mut late = pin!(future::zip(engine.sync(), other.sync()));
        assert!(future::poll_once(&mut late).await.is_none());
        assert_eq!(flushes.started.get(), 1);
        end.send(Ok(())).await.unwrap();
        first.await.unwrap();
        assert!(future::poll_once(&mut late).await.is_none());
        assert_eq!(flushes.started.get(), 2);
        end.send(Ok(())).await.unwrap();
        let (a, b) = late.await;
        a.unwrap();
        b.unwrap();
        assert_eq!(flushes.started.get(), 2, "one flush for both");
    });
}

#[test]
fn a_flush_given_up_is_run_by_the_next_waiter() {
    let fixture = Fixture::new();
    block_on(|inner| async move {
        let (end, endings) = smol::channel::unbounded();
        let flushes = Rc::new(Flushes {
            inner,
            started: Cell::new(0),
            endings,
        });
        let database = fixture.open(OpenMode::Existing).unwrap();
        let engine = Sqlite::connect(&database, flushes.clone()).unwrap();
        let mut second = pin!(engine.sync());
        {
            let mut first = pin!(engine.sync());
            assert!(future::poll_once(&mut first).await.is_none());
            assert!(future::poll_once(&mut second).await.is_none());
        }
        end.send(Ok(())).await.unwrap();
        second.await.unwrap();
        assert_eq!(flushes.started.get(), 2);
    });
}

#[test]
fn after_a_failed_flush_nothing_counts_as_durable_any_more() {
    let fixture = Fixture::new();
    block_on(|inner| async move {
        let (end, endings) = smol::channel::unbounded();
        let flushes = Rc::new(Flushes {
            inner,
            started: Cell::new(0),
            endings,
        });
        let engine =
            Sqlite::connect(&fixture.open(OpenMode::Existing).unwrap(), flushes.clone()).unwrap();
        end.send(Err(io::Error::other("medium error")))
            .await
            .unwrap();
        end.send(Ok(())).await.unwrap();
        for _ in 0..2 {
            match engine.sync().await {
                Err(EngineError::Refused { cause, .. }) => {
                    assert!(cause.contains("medium error"), "{cause}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(flushes.started.get(), 1);
    });
}

/// What a walk from the root and from the trash came across.
#[derive(Default, Debug, PartialEq, Eq)]
struct Walk {
    entries: usize,
    xattrs: usize,
    records: usize,
    dir_stats: usize,
    acls: usize,
}

/// Unpacks the metadata of a stored volume that JuiceFS wrote.
fn golden(name: &str) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let archive = format!(
        "{}/../tests/golden/{name}.tar.gz",
        env!("CARGO_MANIFEST_DIR")
    );
    let tar = std::process::Command::new("tar")
        .args([
            "--extract",
            "--gzip",
            "--wildcards",
            "--strip-components=1",
            "--file",
            &archive,
        ])
        .arg("--directory")
        .arg(dir.path())
        .arg(format!("{name}/meta.db*"))
        .status();
    assert!(tar.unwrap().success(), "{archive}");
    Fixture { dir }
}

#[test]
fn every_record_of_a_stored_volume_is_read() {
    for name in ["lz4", "hashed"] {
        let fixture = golden(name);
        assert!(
            fixture
                .open(OpenMode::ReadOnly)
                .unwrap()
                .is_formatted()
                .unwrap()
        );
        let count = |sql: &str| fixture.value::<i64>(&format!("SELECT {sql}")) as usize;
        // Files with several names are met several times.
        let by_name = "jfs_edge e JOIN";
        let expect = Walk {
            entries: count("count(*) FROM jfs_edge"),
            xattrs: count(&format!(
                "count(*) FROM {by_name} jfs_xattr x ON x.inode=e.inode"
            )),
            records: count(&format!(
                "sum(length(CAST(slices AS BLOB)))/24 FROM {by_name} jfs_chunk c ON c.inode=e.inode"
            )),
            dir_stats: count("count(*) FROM jfs_dir_stats WHERE inode<>1"),
            acls: count(&format!(
                "count(*) FROM {by_name} jfs_node n ON n.inode=e.inode WHERE access_acl_id>0"
            )),
        };
        assert!(
            expect.entries > 1000 && expect.records > 50 && expect.xattrs > 0,
            "{expect:?}"
        );
        assert_eq!(
            block_on(|runtime| walk(fixture.engine(&runtime))),
            expect,
            "{name}"
        );
    }
}

async fn walk(engine: Sqlite) -> Walk {
    let mut found = Walk::default();
    let mut dirs = vec![Ino::ROOT, Ino::TRASH];
    while let Some(parent) = dirs.pop() {
        let mut cursor = None;
        loop {
            let scan = Scan::Dir {
                parent,
                attrs: true,
            };
            let page = engine.scan(&scan, cursor.as_ref(), 100).await.unwrap();
            for item in page.items {
                let Item::Entry {
                    name,
                    dentry,
                    attr: Some(attr),
                } = item
                else {
                    panic!("{item:?}");
                };
                let key = Key::Entry { parent, name };
                let record = Record::Entry(dentry, Some(attr.clone()));
                assert_eq!(get(&engine, key).await.unwrap(), Some(record));
                visit(&engine, dentry, &attr, &mut found).await;
                if dentry.kind == FileKind::Directory {
                    dirs.push(dentry.ino);
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    found
}

async fn visit(engine: &Sqlite, dentry: Dentry, attr: &Attr, found: &mut Walk) {
    let ino = dentry.ino;
    found.entries += 1;
    assert_eq!(attr.kind, dentry.kind);
    assert!(
        (1_600_000_000..2_000_000_000).contains(&attr.ctime.sec),
        "{attr:?}"
    );
    if attr.kind == FileKind::Symlink {
        let target = get(engine, Key::Symlink(ino))
            .await
            .unwrap()
            .unwrap()
            .bytes()
            .unwrap();
        assert_eq!(target.len() as u64, attr.length);
    }
    if let Some(names) = get(engine, Key::XattrNames(ino)).await.unwrap() {
        found.xattrs += names.names().unwrap().len();
    }
    found.dir_stats += usize::from(get(engine, Key::DirStat(ino)).await.unwrap().is_some());
    if attr.access_acl > 0 {
        found.acls += 1;
        let rule = get(engine, Key::Acl(attr.access_acl))
            .await
            .unwrap()
            .unwrap()
            .acl()
            .unwrap();
        assert!(rule.users.len() + rule.groups.len() > 0, "{rule:?}");
    }
    let scan = Scan::Chunks {
        ino,
        length: attr.length,
    };
    for chunk in engine.scan(&scan, None, 10_000).await.unwrap().items {
        let Item::Chunk { slices, .. } = chunk else {
            panic!("{chunk:?}")
        };
        found.records += slices.len();
        for slice in slices.iter().filter(|slice| slice.id != SliceId::HOLE) {
            let refs = Key::SliceRefs {
                id: slice.id,
                size: slice.size,
            };
            let refs = get(engine, refs).await.unwrap().unwrap().count().unwrap();
            assert!(refs > 0, "{slice:?}");
        }
    }
}
