//! The Redis engine: JuiceFS's Redis schema, over one pipelined connection per core.
//!
//! Used through [`Engine`] by the operations. A `read` is one batch, a `commit` one call of a script that
//! checks and applies inside the server; other clients that `WATCH` a key see every change of it.
//!
//! - `keys`, `layout`: names and bytes of records; `read`, `scan`, `script` with `write`: verbs to commands
//!   and back;
//! - `whole`: all keys of a volume at once; `watch`: changes as the server tells them;
//! - `conn`: reconnects and repeats; `place`: which server to dial; `refusal`: error replies; `pipe`: one live
//!   connection.
//!
//! A commit cut off by a lost connection is not repeated: it ends with `UnknownFate`, because appends and
//! sums are not idempotent. Reads are repeated. Copies per operation: arguments are packed once and moved
//! once into the output buffer; replies are copied out of the input buffer once.

mod conn;
mod keys;
mod layout;
mod listing;
mod pipe;
mod place;
mod read;
mod refusal;
mod reply;
mod scan;
mod script;
pub(crate) mod watch;
mod whole;
mod write;

use std::rc::Rc;

use redis::Value;

use crate::engine::{Counter, Cursor, Engine, EngineResult, Key, Outcome, Page, Record, Scan, Txn};
use crate::error::EngineError;
use crate::runtime::Runtime;
use crate::url::RedisUrl;

use conn::{Connection, Repeat};
use pipe::Batch;

/// Name of this engine in errors.
const ENGINE: &str = "Redis";

/// Oldest server that replicates scripts by their effects, which ours need.
const VERSION_MIN: u32 = 5;

/// A volume's metadata in a Redis database or a Redis Cluster. One value per core.
pub struct Redis {
    /// Apart: [`crate::engine::AnyEngine`] holds engines by value, and this is the large part of this one.
    connection: Rc<Connection>,
}

impl Redis {
    /// Connects and looks whether the server will do: release 5 or later.
    pub async fn connect(url: &RedisUrl, runtime: Rc<dyn Runtime>) -> EngineResult<Redis> {
        let connection = Connection::open(url, runtime, script::SOURCES).await?;
        let redis = Redis {
            connection: Rc::new(connection),
        };
        let mut batch = Batch::default();
        batch.push_words(&[b"INFO"]);
        let reply = redis.connection.run(&batch, Repeat::Freely).await?.pop();
        let text = place::info_text(reply.unwrap_or_default());
        check_server(&ServerInfo::parse(&text))?;
        Ok(redis)
    }

    /// To follow the changes of the volume.
    pub(crate) fn watch(&self) -> watch::Watch {
        watch::Watch::new(Rc::clone(&self.connection))
    }

    /// Whether the database holds a volume.
    pub async fn is_formatted(&self) -> EngineResult<bool> {
        let mut batch = self.connection.batch();
        batch.key("EXISTS", keys::SETTING, &[]);
        let reply = self
            .connection
            .run(&batch, Repeat::Freely)
            .await?
            .pop()
            .unwrap_or_default();
        Ok(reply::number(keys::SETTING, reply)? == 1)
    }

    /// Adds to a counter of last used numbers. Repeated freely: numbers that nobody takes are lost, no more.
    async fn advance(&self, counter: Counter, count: i64) -> EngineResult<i64> {
        let key = keys::counter(counter);
        let mut batch = self.connection.batch();
        batch.key("INCRBY", key, &[count.to_string().as_bytes()]);
        let reply = self
            .connection
            .run(&batch, Repeat::Freely)
            .await?
            .pop()
            .unwrap_or_default();
        reply::number(key, reply)
    }
}

impl Engine for Redis {
    async fn read(&self, keys: &[Key]) -> EngineResult<Vec<Option<Record>>> {
        let mut batch = self.connection.batch();
        for key in keys {
            read::ask(key, |script| self.connection.sha(script), &mut batch);
        }
        let mut replies = self
            .connection
            .run(&batch, Repeat::Freely)
            .await?
            .into_iter();
        keys.iter()
            .map(|key| read::answer(key, &mut replies))
            .collect()
    }

    async fn scan(&self, scan: &Scan, cursor: Option<&Cursor>, limit: usize) -> EngineResult<Page> {
        scan::page(&self.connection, scan, cursor, limit).await
    }

    async fn commit(&self, txn: Txn) -> EngineResult<Outcome> {
        let call = script::Call::new(self.connection.prefix(), &txn);
        let mut batch = self.connection.batch();
        batch.push(&call.command(self.connection.sha(script::COMMIT)));
        let reply = self
            .connection
            .run(&batch, Repeat::IfNotRun)
            .await?
            .pop()
            .unwrap_or_default();
        outcome(&txn, &call.answers, reply)
    }

    async fn alloc(&self, counter: Counter, count: i64) -> EngineResult<u64> {
        if count < 1 || !layout::hands_out(counter) {
            let cause = format!("{count} numbers of {counter:?} cannot be had");
            return Err(EngineError::Refused {
                engine: ENGINE,
                cause,
            });
        }
        let least = layout::first_number(counter);
        let mut last = self.advance(counter, count).await?;
        if last.saturating_sub(count) + 1 < least {
            // A volume's first numbers: inode 1 is not to be had, so the run needs one more at its end. If
            // somebody came between, the run is not whole and is left unused.
            let more = self.advance(counter, 1).await?;
            last = if more == last + 1 {
                more
            } else {
                self.advance(counter, count).await?
            };
        }
        let first = last.saturating_sub(count) + 1;
        u64::try_from(first)
            .ok()
            .filter(|_| first >= least)
            .ok_or_else(|| layout::corrupt(keys::counter(counter), format!("it stands at {last}")))
    }

    /// Nothing to do: a commit is as durable as the server's `appendfsync` makes it, and a client cannot
    /// ask for more.
    async fn sync(&self) -> EngineResult<()> {
        Ok(())
    }

    async fn is_empty(&self) -> EngineResult<bool> {
        whole::is_empty(&self.connection).await
    }

    async fn destroy(&self) -> EngineResult<()> {
        whole::destroy(&self.connection).await
    }
}

/// Results of the writes from the script's answer.
fn outcome(txn: &Txn, answers: &[bool], reply: Value) -> EngineResult<Outcome> {
    const KEY: &str = "commit script";
    if let Value::Int(check) = reply {
        let check = usize::try_from(check)
            .ok()
            .filter(|check| *check < txn.checks.len());
        let check = check.ok_or_else(|| layout::corrupt(KEY, "no such check"))?;
        return Ok(Outcome::Conflict { check });
    }
    let mut numbers = reply::list(KEY, reply)?.into_iter();
    let mut results = Vec::with_capacity(txn.writes.len());
    for (write, answers) in txn.writes.iter().zip(answers) {
        results.push(if *answers {
            let number = reply::number(KEY, numbers.next().unwrap_or_default())?;
            write::result_of(write, number)
        } else {
            0
        });
    }
    Ok(Outcome::Committed(results))
}

/// What the server tells about itself.
struct ServerInfo<'a> {
    version: &'a str,
    cluster: bool,
    replica: bool,
    eviction: &'a str,
}

impl<'a> ServerInfo<'a> {
    fn parse(text: &'a str) -> ServerInfo<'a> {
        let field = |name: &str| {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or_default().trim()
        };
        ServerInfo {
            version: field("redis_version"),
            cluster: field("cluster_enabled") == "1",
            replica: field("role") == "slave",
            eviction: field("maxmemory_policy"),
        }
    }
}

fn check_server(info: &ServerInfo<'_>) -> EngineResult<()> {
    let major = info
        .version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    let refused = |cause: String| {
        Err(EngineError::Refused {
            engine: ENGINE,
            cause,
        })
    };
    if major.is_none_or(|major| major < VERSION_MIN) {
        let version = info.version;
        return refused(format!(
            "server version `{version}`: {VERSION_MIN}.0 or later is needed"
        ));
    }
    if info.replica {
        tracing::warn!(
            "the Redis server is a replica: it may be behind, and every change will fail"
        );
    }
    if !info.eviction.is_empty() && info.eviction != "noeviction" {
        tracing::warn!(
            policy = info.eviction,
            "Redis may drop metadata when its memory is full: set maxmemory-policy to noeviction"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Check, Write};
    use crate::types::Ino;

    #[test]
    fn servers_that_will_do() {
        for (info, refusal) in [
            (
                "# Server\r\nredis_version:7.0.15\r\ncluster_enabled:0\r\n",
                None,
            ),
            (
                "redis_version:5.0.0\r\nrole:slave\r\nmaxmemory_policy:allkeys-lru\r\n",
                None,
            ),
            ("redis_version:255.255.255\r\n", None),
            ("redis_version:4.0.14\r\n", Some("5.0 or later")),
            ("redis_version:\r\n", Some("5.0 or later")),
            ("", Some("5.0 or later")),
            ("redis_version:7.2.0\r\ncluster_enabled:1\r\n", None),
        ] {
            let checked = check_server(&ServerInfo::parse(info)).map_err(|error| error.to_string());
            match (checked, refusal) {
                (Ok(()), None) => {}
                (Err(text), Some(part)) => assert!(text.contains(part), "{text}"),
                (checked, _) => panic!("{info:?}: {checked:?}"),
            }
        }
        let info =
            ServerInfo::parse("maxmemory:0\r\nmaxmemory_policy:noeviction\r\nrole:master\r\n");
        assert_eq!(
            (info.eviction, info.replica, info.version),
            ("noeviction", false, "")
        );
    }

    #[test]
    fn answers_of_the_commit_script() {
        let add = Write::AddCounter {
            counter: Counter::UsedSpace,
            delta: 1,
        };
        let txn = Txn {
            checks: vec![Check::NoAttr(Ino(2))],
            writes: vec![Write::DeleteAttr(Ino(2)), add.clone(), add],
        };
        let answers = script::Call::new("".into(), &txn).answers;
        let big = Value::BulkString(b"9223372036854775807".to_vec());
        for (reply, expected) in [
            (Value::Int(0), Some(Outcome::Conflict { check: 0 })),
            (Value::Int(1), None),
            (Value::Int(-1), None),
            (
                Value::Array(vec![Value::Int(5), big]),
                Some(Outcome::Committed(vec![0, 5, i64::MAX])),
            ),
            (Value::Array(vec![Value::Int(5)]), None),
            (Value::Okay, None),
        ] {
            assert_eq!(outcome(&txn, &answers, reply).ok(), expected);
        }
    }
}
