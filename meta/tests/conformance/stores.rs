//! The stores that the conformance suite runs on: for each engine, how to make an empty store, how to
//! connect to it, and how to put there what no commit can write.

use std::rc::Rc;
use std::sync::Arc;

use sluice_meta::engine::AnyEngine;
use sluice_meta::engine::memory::Memory;
use sluice_meta::engine::redis::Redis;
use sluice_meta::engine::sqlite::{Database, OpenMode, Sqlite};
use sluice_meta::runtime::LocalFuture;
use sluice_meta::types::{AclRule, Ino, Quota, QuotaKey};

use crate::redis_server::RedisServer;
use crate::support::SmolRuntime;

/// A store under test; dropping it removes it.
pub(crate) trait Store {
    /// Another handle: another core or client.
    fn connect(&self) -> LocalFuture<'_, AnyEngine>;
    /// Puts an ACL rule there.
    fn put_acl<'a>(&'a self, id: u32, rule: &'a AclRule) -> LocalFuture<'a, ()>;
    /// Puts a directory quota there.
    fn put_dir_quota(&self, dir: Ino, quota: Quota) -> LocalFuture<'_, ()>;
    /// Whether writes that contradict the records are refused, which no engine has to do.
    fn is_strict(&self) -> bool;
}

/// Makes an empty store.
pub(crate) type MakeStore = fn(Rc<SmolRuntime>) -> LocalFuture<'static, Box<dyn Store>>;

/// Every engine, with its name.
pub(crate) fn engines() -> Vec<(&'static str, MakeStore)> {
    vec![
        ("memory", MemoryStore::make),
        ("sqlite", SqliteStore::make),
        ("redis", RedisStore::make),
    ]
}

struct MemoryStore(Memory);

impl MemoryStore {
    fn make(_runtime: Rc<SmolRuntime>) -> LocalFuture<'static, Box<dyn Store>> {
        Box::pin(async { Box::new(MemoryStore(Memory::new())) as Box<dyn Store> })
    }
}

impl Store for MemoryStore {
    fn connect(&self) -> LocalFuture<'_, AnyEngine> {
        Box::pin(async { AnyEngine::Memory(self.0.clone()) })
    }

    fn put_acl<'a>(&'a self, id: u32, rule: &'a AclRule) -> LocalFuture<'a, ()> {
        Box::pin(async move { self.0.put_acl(id, rule.clone()) })
    }

    fn put_dir_quota(&self, dir: Ino, quota: Quota) -> LocalFuture<'_, ()> {
        Box::pin(async move { self.0.put_quota(QuotaKey::Dir(dir), quota) })
    }

    fn is_strict(&self) -> bool {
        true
    }
}

struct SqliteStore {
    runtime: Rc<SmolRuntime>,
    database: Arc<Database>,
    // Last: the file outlives its users.
    dir: tempfile::TempDir,
}

impl SqliteStore {
    fn make(runtime: Rc<SmolRuntime>) -> LocalFuture<'static, Box<dyn Store>> {
        Box::pin(async {
            let dir = tempfile::tempdir().unwrap();
            let database = Database::open(&dir.path().join("meta.db"), OpenMode::Create).unwrap();
            Box::new(SqliteStore {
                runtime,
                database,
                dir,
            }) as Box<dyn Store>
        })
    }

    fn execute(&self, sql: &str, params: impl rusqlite::Params) {
        let connection = rusqlite::Connection::open(self.dir.path().join("meta.db")).unwrap();
        assert_eq!(connection.execute(sql, params).unwrap(), 1);
    }
}

impl Store for SqliteStore {
    fn connect(&self) -> LocalFuture<'_, AnyEngine> {
        Box::pin(async {
            AnyEngine::Sqlite(Sqlite::connect(&self.database, self.runtime.clone()).unwrap())
        })
    }

    fn put_acl<'a>(&'a self, id: u32, rule: &'a AclRule) -> LocalFuture<'a, ()> {
        let list = |named: &[(u32, u16)]| -> Vec<u8> {
            let bytes =
                |(id, mode): &(u32, u16)| [&id.to_be_bytes()[..], &mode.to_be_bytes()].concat();
            named.iter().flat_map(bytes).collect()
        };
        Box::pin(async move {
            self.execute(
                "INSERT INTO jfs_acl VALUES (?,?,?,?,?,?,?)",
                (
                    id,
                    rule.owner,
                    rule.group,
                    rule.mask,
                    rule.other,
                    list(&rule.users),
                    list(&rule.groups),
                ),
            );
        })
    }

    fn put_dir_quota(&self, dir: Ino, quota: Quota) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            self.execute(
                "INSERT INTO jfs_dir_quota VALUES (?,?,?,?,?)",
                (
                    dir.0.cast_signed(),
                    quota.max_space,
                    quota.max_inodes,
                    quota.used_space,
                    quota.used_inodes,
                ),
            );
        })
    }

    fn is_strict(&self) -> bool {
        true
    }
}

struct RedisStore {
    runtime: Rc<SmolRuntime>,
    server: RedisServer,
}

impl RedisStore {
    fn make(runtime: Rc<SmolRuntime>) -> LocalFuture<'static, Box<dyn Store>> {
        Box::pin(async {
            let server = RedisServer::start(&[]);
            Box::new(RedisStore { runtime, server }) as Box<dyn Store>
        })
    }

    fn put(&self, hash: &str, field: u64, value: impl redis::ToRedisArgs) {
        let mut command = redis::Cmd::new();
        command.arg("HSET").arg(hash).arg(field).arg(value);
        command.exec(&mut self.server.client()).unwrap();
    }
}

impl Store for RedisStore {
    fn connect(&self) -> LocalFuture<'_, AnyEngine> {
        Box::pin(async {
            let redis = Redis::connect(&self.server.url(), self.runtime.clone()).await;
            AnyEngine::Redis(redis.unwrap())
        })
    }

    fn put_acl<'a>(&'a self, id: u32, rule: &'a AclRule) -> LocalFuture<'a, ()> {
        let mut raw = Vec::new();
        for bits in [rule.owner, rule.group, rule.mask, rule.other] {
            raw.extend(bits.to_be_bytes());
        }
        for named in [&rule.users, &rule.groups] {
            raw.extend((named.len() as u32).to_be_bytes());
            for (id, bits) in named {
                raw.extend(id.to_be_bytes());
                raw.extend(bits.to_be_bytes());
            }
        }
        Box::pin(async move { self.put("acl", id.into(), raw) })
    }

    fn put_dir_quota(&self, dir: Ino, quota: Quota) -> LocalFuture<'_, ()> {
        let limits = [
            quota.max_space.to_be_bytes(),
            quota.max_inodes.to_be_bytes(),
        ]
        .concat();
        Box::pin(async move {
            self.put("dirQuota", dir.0, limits);
            self.put("dirQuotaUsedSpace", dir.0, quota.used_space);
            self.put("dirQuotaUsedInodes", dir.0, quota.used_inodes);
        })
    }

    fn is_strict(&self) -> bool {
        false
    }
}
