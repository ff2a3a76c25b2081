//! Changes as the server tells them: RESP3 tracking in broadcast mode, on a connection of its own.
//!
//! Made by [`super::Redis::watch`] for a process that keeps records for long. The server names each key that
//! changed, whoever changed it, a moment after the change; several changes of one key may be told as one. While
//! the connection is lost nothing is heard, so every new connection begins with [`Change::Everything`].
//! Keys are told without their database: changes of another volume in the same server look like ours. They cost
//! a look and do no harm.
//!
//! A connection on which nothing was heard for [`limits::REDIS_LISTEN_PING`] is asked something, so that a
//! dead one is noticed within that and [`limits::REDIS_SILENCE_MAX`]. When the engine finds the volume at another
//! server, this connection ends and is made anew there.

use std::rc::Rc;

use futures_lite::future;
use redis::{PushKind, Value};

use crate::engine::{Change, EngineResult};
use crate::limits;
use crate::types::Ino;

use super::conn::Connection;
use super::keys;
use super::pipe::{Batch, Link, Lost};
use super::refusal::{first_error, words_of};

/// What the keys that matter begin with.
const PREFIXES: [&str; 4] = ["i", "d", "lockf", "lockp"];

/// Follows the changes of a volume.
pub(crate) struct Watch {
    connection: Rc<Connection>,
    link: Option<Rc<Link>>,
}

impl Watch {
    pub(super) fn new(connection: Rc<Connection>) -> Watch {
        Watch {
            connection,
            link: None,
        }
    }

    /// Waits for changes. After an error it may be called again.
    pub(crate) async fn next(&mut self) -> EngineResult<Vec<Change>> {
        loop {
            let Some(link) = &self.link else {
                self.link = Some(self.connection.listen(&PREFIXES).await?);
                return Ok(vec![Change::Everything]);
            };
            match self.hear(link).await {
                Ok(pushes) => {
                    let changes = self.changes(&pushes);
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
                Err(lost) => {
                    self.link = None;
                    let cause = lost.cause;
                    tracing::warn!(cause, "no news of changes from Redis: connecting again");
                    return Ok(vec![Change::Silence]);
                }
            }
        }
    }

    async fn hear(&self, link: &Link) -> Result<Vec<Value>, Lost> {
        loop {
            let heard = async { Some(link.pushes().await) };
            let quiet = async {
                self.connection
                    .runtime()
                    .sleep(limits::REDIS_LISTEN_PING)
                    .await;
                None
            };
            match future::or(heard, quiet).await {
                Some(heard) => return heard,
                None => {
                    let replies = link.send(&self.question(), None).await?;
                    if let Some(error) = first_error(&replies) {
                        let cause = words_of(error);
                        return Err(Lost { sent: true, cause });
                    }
                }
            }
        }
    }

    /// Asked of a quiet server. In a cluster it names a key, so that a node that has given the volume away
    /// says so.
    fn question(&self) -> Batch {
        let mut batch = self.connection.batch();
        if self.connection.is_single() {
            batch.push_words(&[b"PING"]);
        } else {
            batch.key("EXISTS", keys::SETTING, &[]);
        }
        batch
    }

    fn changes(&self, pushes: &[Value]) -> Vec<Change> {
        let prefix = self.connection.prefix();
        let mut changes = Vec::new();
        for push in pushes {
            let Value::Push {
                kind: PushKind::Invalidate,
                data,
            } = push
            else {
                continue;
            };
            match data.first() {
                Some(Value::Array(keys)) => {
                    changes.extend(keys.iter().filter_map(|key| change(&prefix, key)));
                }
                // The whole server was emptied.
                _ => changes.push(Change::Everything),
            }
        }
        changes
    }
}

/// What the change of a key means.
fn change(prefix: &str, key: &Value) -> Option<Change> {
    let key = match key {
        Value::BulkString(key) => key.as_slice(),
        Value::SimpleString(key) => key.as_bytes(),
        _ => return None,
    };
    let key = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    let number = |digits: &str| digits.parse().ok().map(Ino);
    if let Some(ino) = key
        .strip_prefix("lockf")
        .or_else(|| key.strip_prefix("lockp"))
    {
        return number(ino).map(Change::Locks);
    }
    match key.split_at_checked(1)? {
        ("i", ino) => number(ino).map(Change::Inode),
        ("d", ino) => number(ino).map(Change::Entries),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        for (prefix, key, expected) in [
            ("", "i7", Some(Change::Inode(Ino(7)))),
            ("", "d7", Some(Change::Entries(Ino(7)))),
            ("", "lockf7", Some(Change::Locks(Ino(7)))),
            ("", "lockp7", Some(Change::Locks(Ino(7)))),
            ("", "dirUsedSpace", None),
            ("", "i", None),
            ("", "", None),
            ("{3}", "{3}i7", Some(Change::Inode(Ino(7)))),
            ("{3}", "{4}i7", None),
        ] {
            let value = Value::BulkString(key.as_bytes().to_vec());
            assert_eq!(change(prefix, &value), expected, "{key}");
        }
    }
}
