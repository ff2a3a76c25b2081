//! Which server to dial: that of the URL, the master that the sentinels name, or the cluster node that owns the
//! volume's slot.
//!
//! Called by [`super::conn`] before every attempt to connect. It asks on connections of its own, which end with
//! the answer: one round trip for sentinels and clusters, none for a single server, which is asked once, at the
//! start, whether it is a node of a cluster. Places are asked in turn, another one first each time, so that one
//! that does not answer or is behind costs an attempt and no more. In a cluster all keys of a volume begin with
//! `{N}`, so one node has them all.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use redis::Value;

use crate::limits;
use crate::runtime::{Address, Runtime};
use crate::url::{RedisHosts, RedisUrl};

use super::ServerInfo;
use super::pipe::{Batch, Link};
use super::refusal::{DialError, dial_error, first_error};
use super::reply;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// The way to the volume's server.
pub(super) struct Place {
    url: RedisUrl,
    runtime: Rc<dyn Runtime>,
    /// Whether the server is a cluster's node. Known from the first successful [`Place::find`] on.
    clustered: OnceCell<bool>,
    /// Which place is asked first.
    turn: Cell<usize>,
    /// Nodes that the cluster told of.
    nodes: RefCell<Vec<Address>>,
    /// Where the slot is, by the word of the node that does not have it any more.
    moved: RefCell<Option<Address>>,
}

impl Place {
    pub(super) fn new(url: &RedisUrl, runtime: Rc<dyn Runtime>) -> Place {
        let clustered = match &url.hosts {
            RedisHosts::Single(_) => OnceCell::new(),
            RedisHosts::Sentinel { .. } => OnceCell::from(false),
            RedisHosts::Cluster(_) => OnceCell::from(true),
        };
        Place {
            url: url.clone(),
            runtime,
            clustered,
            turn: Cell::new(0),
            nodes: RefCell::default(),
            moved: RefCell::default(),
        }
    }

    /// The URL it follows.
    pub(super) fn url(&self) -> &RedisUrl {
        &self.url
    }

    /// Whether the volume is in a cluster; right once [`Place::find`] has succeeded.
    pub(super) fn in_cluster(&self) -> bool {
        self.clustered.get() == Some(&true)
    }

    /// Whether the server found must say that it is a master: sentinels may be behind.
    pub(super) fn must_be_master(&self) -> bool {
        matches!(self.url.hosts, RedisHosts::Sentinel { .. })
    }

    /// How long an attempt may take, where there is something else to try.
    pub(super) fn patience(&self) -> Option<Duration> {
        (self.must_be_master() || self.in_cluster()).then_some(limits::REDIS_ATTEMPT_MAX)
    }

    /// Takes the words of a `MOVED` reply, `SLOT HOST:PORT`: the next [`Place::find`] believes them.
    pub(super) fn moved(&self, words: &str) {
        *self.moved.borrow_mut() = moved_to(words);
    }

    /// The server to dial.
    pub(super) async fn find(&self) -> Result<Address, DialError> {
        match &self.url.hosts {
            RedisHosts::Single(address) => {
                if self.clustered.get().is_none() {
                    let clustered = self.asks_cluster(address).await?;
                    self.clustered.get_or_init(|| clustered);
                }
                if !self.in_cluster() {
                    return Ok(address.clone());
                }
                self.owner(std::slice::from_ref(address)).await
            }
            RedisHosts::Cluster(nodes) => self.owner(nodes).await,
            RedisHosts::Sentinel {
                master,
                sentinels,
                password,
            } => self.master(master, sentinels, password.as_deref()).await,
        }
    }

    async fn asks_cluster(&self, address: &Address) -> Result<bool, DialError> {
        let login = (self.url.user.as_deref(), self.url.password.as_deref());
        let reply = self.ask(address, login, &["INFO"]).await?;
        Ok(ServerInfo::parse(&info_text(reply)).cluster)
    }

    /// The node that owns the volume's slot, asked of the nodes known and of those of the URL.
    async fn owner(&self, seeds: &[Address]) -> Result<Address, DialError> {
        if let Some(address) = self.moved.take() {
            return Ok(address);
        }
        let mut places = self.nodes.borrow().clone();
        places.extend(
            seeds
                .iter()
                .filter(|seed| !places.contains(seed))
                .cloned()
                .collect::<Vec<_>>(),
        );
        let slot = slot_of(self.url.db);
        let login = (self.url.user.as_deref(), self.url.password.as_deref());
        let mut failure = DialError::Unreachable("no node to ask".to_owned());
        for address in self.in_turn(&places) {
            match self.ask(address, login, &["CLUSTER", "SLOTS"]).await {
                Ok(reply) => {
                    let map = slots(reply, address);
                    let owner = map.iter().find(|range| range.contains(slot));
                    if let Some(owner) = owner.map(|range| range.owner.clone()) {
                        *self.nodes.borrow_mut() = nodes_of(map);
                        return Ok(owner);
                    }
                    let cause = format!("{address}: no node of the cluster has slot {slot}");
                    failure = DialError::Busy(cause);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The master by the word of the first sentinel that knows it.
    async fn master(
        &self,
        name: &str,
        sentinels: &[Address],
        password: Option<&str>,
    ) -> Result<Address, DialError> {
        let mut failure = DialError::Unreachable("no sentinel to ask".to_owned());
        let words = ["SENTINEL", "get-master-addr-by-name", name];
        for address in self.in_turn(sentinels) {
            match self.ask(address, (None, password), &words).await {
                Ok(reply) => match socket_of(reply) {
                    Some(master) => return Ok(master),
                    None => {
                        let cause = format!("the sentinel at {address} knows no master `{name}`");
                        failure = DialError::Refused(cause);
                    }
                },
                Err(DialError::Refused(cause)) if cause.contains("AUTH") => {
                    let hint = "give the sentinels' password in SENTINEL_PASSWORD";
                    failure = DialError::Refused(format!("sentinel {cause}; {hint}"));
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// All of them, beginning with another one than the last time.
    fn in_turn<'a>(&self, places: &'a [Address]) -> impl Iterator<Item = &'a Address> {
        let first = self.turn.replace(self.turn.get().wrapping_add(1));
        let first = first.checked_rem(places.len()).unwrap_or_default();
        places[first..].iter().chain(&places[..first])
    }

    /// One question to one server.
    async fn ask(
        &self,
        address: &Address,
        (user, password): (Option<&str>, Option<&str>),
        words: &[&str],
    ) -> Result<Value, DialError> {
        let answer = async {
            let stream = self.runtime.connect(address).await;
            let stream = stream.map_err(|error| DialError::Unreachable(error.to_string()))?;
            let link = Link::start(stream, &self.runtime);
            let mut batch = Batch::default();
            batch.authenticate(user, password);
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            batch.push_words(&words);
            let replies = link.send(&batch, None).await;
            let mut replies = replies.map_err(|lost| DialError::Unreachable(lost.cause))?;
            match first_error(&replies) {
                Some(error) => Err(dial_error(error)),
                None => Ok(replies.pop().unwrap_or_default()),
            }
        };
        within(&self.runtime, self.patience(), answer)
            .await
            .map_err(|error| error.at(address))
    }
}

/// Gives an attempt up after `patience`, if there is a bound.
pub(super) async fn within<T>(
    runtime: &Rc<dyn Runtime>,
    patience: Option<Duration>,
    attempt: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    let Some(patience) = patience else {
        return attempt.await;
    };
    let late = async {
        runtime.sleep(patience).await;
        Err(DialError::Unreachable(format!(
            "no answer for {patience:?}"
        )))
    };
    futures_lite::future::or(attempt, late).await
}

/// What a server says about itself.
pub(super) fn info_text(reply: Value) -> String {
    match reply {
        Value::VerbatimString { text, .. } => text,
        Value::BulkString(raw) => String::from_utf8_lossy(&raw).into_owned(),
        _ => String::new(),
    }
}

/// A run of slots and where it is.
struct Range {
    first: i64,
    last: i64,
    owner: Address,
}

impl Range {
    fn contains(&self, slot: u16) -> bool {
        (self.first..=self.last).contains(&i64::from(slot))
    }
}

/// The reply to `CLUSTER SLOTS`; what is not of its form is left out. A node that does not know its own name is
/// at the address where it was asked.
fn slots(reply: Value, asked: &Address) -> Vec<Range> {
    const KEY: &str = "CLUSTER SLOTS";
    let range = |value: Value| {
        let mut parts = reply::list(KEY, value).ok()?.into_iter();
        let first = reply::number(KEY, parts.next()?).ok()?;
        let last = reply::number(KEY, parts.next()?).ok()?;
        let mut node = reply::list(KEY, parts.next()?).ok()?.into_iter();
        let host = reply::bytes(KEY, node.next()?).ok()?.unwrap_or_default();
        let port = u16::try_from(reply::number(KEY, node.next()?).ok()?).ok()?;
        let host = match (host.as_slice(), asked) {
            (b"" | b"?", Address::Tcp(host, _)) => host.clone(),
            (b"" | b"?", Address::Unix(_)) => "localhost".to_owned(),
            _ => String::from_utf8(host).ok()?,
        };
        let owner = Address::Tcp(host, port);
        Some(Range { first, last, owner })
    };
    let ranges = reply::list(KEY, reply).unwrap_or_default();
    ranges.into_iter().filter_map(range).collect()
}

fn nodes_of(map: Vec<Range>) -> Vec<Address> {
    let mut nodes = Vec::new();
    for range in map {
        if !nodes.contains(&range.owner) {
            nodes.push(range.owner);
        }
    }
    nodes
}

/// Host and port as a sentinel writes them.
fn socket_of(reply: Value) -> Option<Address> {
    const KEY: &str = "SENTINEL";
    let mut parts = reply::strings(KEY, reply).ok()?.into_iter();
    let host = String::from_utf8(parts.next()?).ok()?;
    let port = String::from_utf8(parts.next()?).ok()?.parse().ok()?;
    Some(Address::Tcp(host, port))
}

/// `None` if the reply does not say where.
fn moved_to(words: &str) -> Option<Address> {
    let (host, port) = words.split_whitespace().nth(1)?.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let known = !host.is_empty() && host != "?";
    known.then_some(Address::Tcp(host.to_owned(), port.parse().ok()?))
}

/// Slot of all keys that begin with `{db}`.
fn slot_of(db: u32) -> u16 {
    crc16(db.to_string().as_bytes()) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc: u16, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 {
                shifted
            } else {
                shifted ^ 0x1021
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    #[test]
    fn slots_of_volumes() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        // As `CLUSTER KEYSLOT {N}` answers.
        for (db, slot) in [(0, 13_907), (1, 9842), (15, 4178)] {
            assert_eq!(slot_of(db), slot, "{db}");
        }
    }

    #[test]
    fn where_a_slot_has_moved() {
        for (words, expected) in [
            ("3999 127.0.0.1:6381", Some(tcp("127.0.0.1", 6381))),
            ("3999 [::1]:6381", Some(tcp("::1", 6381))),
            ("3999 ::1:6381", Some(tcp("::1", 6381))),
            ("3999 :6381", None),
            ("3999 ?:6381", None),
            ("3999 host", None),
            ("3999", None),
            ("", None),
        ] {
            assert_eq!(moved_to(words), expected, "{words}");
        }
    }

    #[test]
    fn maps_of_slots() {
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port)]);
        let range =
            |first, last, node| Value::Array(vec![Value::Int(first), Value::Int(last), node]);
        let host = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let reply = Value::Array(vec![
            range(0, 99, node(host("a"), 1)),
            range(100, 199, node(host(""), 2)),
            range(200, 299, node(Value::Nil, 3)),
            range(300, 399, node(host("a"), 1)),
            range(400, 499, node(host("b"), -1)),
            Value::Array(vec![Value::Int(500)]),
            Value::Okay,
        ]);
        let map = slots(reply, &tcp("asked", 9));
        for (slot, owner) in [
            (0, Some(tcp("a", 1))),
            (199, Some(tcp("asked", 2))),
            (200, Some(tcp("asked", 3))),
            (399, Some(tcp("a", 1))),
            (400, None),
            (500, None),
        ] {
            let found = map.iter().find(|range| range.contains(slot));
            assert_eq!(found.map(|range| range.owner.clone()), owner, "{slot}");
        }
        assert_eq!(nodes_of(map).len(), 3);
        assert!(slots(Value::Nil, &tcp("asked", 9)).is_empty());
    }
}
