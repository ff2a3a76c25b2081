//! The engine's way to its server: dials, logs in, loads the scripts, and repeats what may be repeated.
//!
//! Called by the other files of the engine with batches of commands. Owns the one live [`Link`] of this
//! core and the bound on unanswered requests.
//!
//! How it fails:
//! - the connection is lost: a batch that may be repeated, or that the server cannot have run, goes out
//!   again on the next connection; any other ends with `UnknownFate`;
//! - no connection can be made within [`limits::REDIS_CONNECT_BUDGET`]: `Unreachable`, for all who waited;
//! - the server is loading its data, runs somebody's script, has lost its disk, its replicas or its master:
//!   waits and asks again within the same budget, then `Busy`; nothing of the request was applied;
//! - the volume's master is elsewhere (`READONLY`, `MOVED`): the same, each time on a new connection to the
//!   server that [`super::place`] finds; what is on its way on the old one is answered there;
//! - the server lost the scripts: sends them along with the same batch;
//! - any other error reply: [`super::refusal`].

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use async_lock::{Mutex, Semaphore};
use redis::{ServerError, Value};

use crate::engine::EngineResult;
use crate::error::EngineError;
use crate::limits;
use crate::runtime::{Address, Runtime, Stream};
use crate::url::RedisUrl;

use super::ENGINE;
use super::pipe::{Batch, Link};
use super::place::{Place, within};
use super::refusal::{
    DialError, dial_error, first_error, is_elsewhere, is_half_moved, refusal, words_of,
};

/// First pause between two attempts; it doubles up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What may be done with a batch whose connection was lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Running it twice does no harm.
    Freely,
    /// Its last command changes things: only if the server cannot have run it.
    IfNotRun,
}

/// A connection that is made again when it is lost.
pub(super) struct Connection {
    place: Place,
    /// Put before every key of the volume. Set when the first connection is made.
    prefix: OnceCell<Rc<str>>,
    runtime: Rc<dyn Runtime>,
    sources: &'static [&'static str],
    /// Names of the loaded scripts. They follow from the sources, so the first answer is good for ever.
    shas: OnceCell<Vec<String>>,
    /// Or why there is none any more.
    link: RefCell<Result<Rc<Link>, String>>,
    /// Where the last one led.
    address: RefCell<Option<Address>>,
    /// The connection that hears of changes, if there is one: it must lead to the same server.
    listening: RefCell<Weak<Link>>,
    /// Held by the one who dials.
    dialling: Mutex<()>,
    /// Rounds of dialling that ended, and how the last one failed.
    rounds: Cell<u64>,
    failure: RefCell<Option<DialError>>,
    room: Arc<Semaphore>,
}

impl Connection {
    /// Connects. Unlike later, an address at which nobody listens is an error at once.
    pub(super) async fn open(
        url: &RedisUrl,
        runtime: Rc<dyn Runtime>,
        sources: &'static [&'static str],
    ) -> EngineResult<Connection> {
        let connection = Connection {
            place: Place::new(url, Rc::clone(&runtime)),
            prefix: OnceCell::new(),
            runtime,
            sources,
            shas: OnceCell::new(),
            link: RefCell::new(Err(String::new())),
            address: RefCell::new(None),
            listening: RefCell::default(),
            dialling: Mutex::new(()),
            rounds: Cell::new(0),
            failure: RefCell::new(None),
            room: Arc::new(Semaphore::new(limits::REDIS_INFLIGHT_MAX)),
        };
        let dialled = connection
            .dial(|error| matches!(error, DialError::Busy(_)))
            .await;
        let link = dialled.map_err(|error| connection.engine_error(error))?;
        *connection.link.borrow_mut() = Ok(link);
        let prefix = match connection.place.in_cluster() {
            true => format!("{{{}}}", url.db),
            false => String::new(),
        };
        connection.prefix.get_or_init(|| prefix.into());
        Ok(connection)
    }

    /// What is put before every key of the volume.
    pub(super) fn prefix(&self) -> Rc<str> {
        self.prefix.get().map_or_else(|| "".into(), Rc::clone)
    }

    /// Whether the URL leads to one server and no other.
    pub(super) fn is_single(&self) -> bool {
        !self.place.in_cluster() && !self.place.must_be_master()
    }

    /// What it runs on.
    pub(super) fn runtime(&self) -> &Rc<dyn Runtime> {
        &self.runtime
    }

    /// For commands on the volume.
    pub(super) fn batch(&self) -> Batch {
        Batch::new(self.prefix())
    }

    /// Name of a loaded script.
    pub(super) fn sha(&self, script: usize) -> &str {
        let shas = self.shas.get();
        shas.and_then(|shas| shas.get(script))
            .map_or("", String::as_str)
    }

    /// Runs a batch: one reply for each command, none of them an error.
    pub(super) async fn run(&self, batch: &Batch, repeat: Repeat) -> EngineResult<Vec<Value>> {
        let mut with_scripts: Option<Batch> = None;
        let mut pauses = Pauses::default();
        let mut losses = 0;
        loop {
            let link = self.link().await?;
            let room = self.room.acquire_arc().await;
            let sent = with_scripts.as_ref().unwrap_or(batch);
            let mut replies = match link.send(sent, Some(room)).await {
                Ok(replies) => replies,
                Err(lost) if lost.sent && repeat == Repeat::IfNotRun => {
                    return Err(EngineError::UnknownFate {
                        engine: ENGINE,
                        cause: lost.cause,
                    });
                }
                Err(lost) if losses == limits::REDIS_RESENDS_MAX => {
                    return Err(self.engine_error(DialError::Unreachable(lost.cause)));
                }
                Err(_) => {
                    losses += 1;
                    continue;
                }
            };
            replies.drain(..sent.len() - batch.len());
            let Some(error) = first_error(&replies) else {
                return Ok(replies);
            };
            if error.code() == "NOSCRIPT" && with_scripts.is_none() {
                let mut loading = self.load_scripts();
                loading.extend(batch);
                with_scripts = Some(loading);
                continue;
            }
            if is_elsewhere(error) {
                self.leave(&link, error);
            }
            let refusal = refusal(error);
            let waits = matches!(refusal, EngineError::Busy { .. })
                || repeat == Repeat::Freely && is_half_moved(error);
            match pauses.next().filter(|_| waits) {
                Some(pause) => self.runtime.sleep(pause).await,
                None => return Err(refusal),
            }
        }
    }

    fn load_scripts(&self) -> Batch {
        let mut batch = Batch::default();
        for source in self.sources {
            batch.push_words(&[b"SCRIPT", b"LOAD", source.as_bytes()]);
        }
        batch
    }

    fn live(&self) -> Option<Rc<Link>> {
        let link = self.link.borrow();
        link.as_ref().ok().filter(|link| link.is_up()).cloned()
    }

    /// Uses the connection no more: its server sent us away.
    fn leave(&self, link: &Rc<Link>, error: &ServerError) {
        let mut current = self.link.borrow_mut();
        if !current
            .as_ref()
            .is_ok_and(|current| Rc::ptr_eq(current, link))
        {
            return;
        }
        if error.code() == "MOVED" {
            self.place.moved(error.details().unwrap_or_default());
        }
        *current = Err(words_of(error));
    }

    /// The live connection, or a new one. Many may wait for one round of dialling and share its failure.
    async fn link(&self) -> EngineResult<Rc<Link>> {
        if let Some(link) = self.live() {
            return Ok(link);
        }
        let round = self.rounds.get();
        let _dialling = self.dialling.lock().await;
        if let Some(link) = self.live() {
            return Ok(link);
        }
        if self.rounds.get() != round {
            let failure = self.failure.borrow().clone();
            if let Some(failure) = failure {
                return Err(self.engine_error(failure));
            }
        }
        let cause = match &*self.link.borrow() {
            Ok(link) => link.cause().unwrap_or_default(),
            Err(cause) => cause.clone(),
        };
        let server = self.place.url();
        tracing::warn!(%server, cause, "connection to Redis lost, connecting again");
        let dialled = self
            .dial(|error| !matches!(error, DialError::Refused(_)))
            .await;
        self.rounds.set(self.rounds.get() + 1);
        *self.failure.borrow_mut() = dialled.as_ref().err().cloned();
        let link = dialled.map_err(|error| self.engine_error(error))?;
        tracing::info!(%server, "connected to Redis again");
        *self.link.borrow_mut() = Ok(Rc::clone(&link));
        Ok(link)
    }

    /// Tries within the budget until it works or `again` says that it is hopeless.
    async fn dial(&self, again: impl Fn(&DialError) -> bool) -> Result<Rc<Link>, DialError> {
        let last = RefCell::new(DialError::Unreachable("no answer".to_owned()));
        let attempts = async {
            let mut pause = PAUSE_FIRST;
            loop {
                match self.dial_once().await {
                    Ok(link) => return Ok(Rc::new(link)),
                    Err(error) if !again(&error) => return Err(error),
                    Err(error) => *last.borrow_mut() = error,
                }
                self.runtime.sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        };
        let deadline = async {
            self.runtime.sleep(limits::REDIS_CONNECT_BUDGET).await;
            Err(last.borrow().clone())
        };
        futures_lite::future::or(attempts, deadline).await
    }

    async fn dial_once(&self) -> Result<Link, DialError> {
        let address = self.place.find().await?;
        let link = self.dial_at(&address, Link::start).await?;
        let before = self.address.replace(Some(address.clone()));
        if before.is_some_and(|before| before != address)
            && let Some(listening) = self.listening.borrow().upgrade()
        {
            listening.end("the volume is at another server now");
        }
        Ok(link)
    }

    /// Connects to the server there and logs in.
    async fn dial_at(
        &self,
        address: &Address,
        start: impl FnOnce(Box<dyn Stream>, &Rc<dyn Runtime>) -> Link,
    ) -> Result<Link, DialError> {
        let attempt = async {
            let stream = self.runtime.connect(address).await;
            let stream = stream.map_err(|error| DialError::Unreachable(error.to_string()))?;
            let link = start(stream, &self.runtime);
            self.log_in(&link).await?;
            Ok(link)
        };
        within(&self.runtime, self.place.patience(), attempt)
            .await
            .map_err(|error| error.at(address))
    }

    /// A connection of its own on which the server tells of every change of a key that begins with one of
    /// `prefixes`, within the budget of a reconnect.
    pub(super) async fn listen(&self, prefixes: &[&str]) -> EngineResult<Rc<Link>> {
        let mut pauses = Pauses::default();
        loop {
            match self.listen_once(prefixes).await {
                Ok(link) => {
                    let link = Rc::new(link);
                    *self.listening.borrow_mut() = Rc::downgrade(&link);
                    return Ok(link);
                }
                Err(error) => match pauses.next() {
                    Some(pause) if !matches!(error, DialError::Refused(_)) => {
                        self.runtime.sleep(pause).await;
                    }
                    _ => return Err(self.engine_error(error)),
                },
            }
        }
    }

    async fn listen_once(&self, prefixes: &[&str]) -> Result<Link, DialError> {
        let address = self.place.find().await?;
        let link = self.dial_at(&address, Link::start_listening).await?;
        let mut batch = Batch::default();
        batch.push_words(&[b"HELLO", b"3"]);
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in prefixes {
            let prefix = [self.prefix().as_ref(), *prefix].concat();
            tracking.arg("PREFIX").arg(prefix);
        }
        batch.push(&tracking);
        let replies = link.send(&batch, None).await;
        let replies = replies.map_err(|lost| DialError::Unreachable(lost.cause))?;
        match first_error(&replies) {
            Some(error) => Err(dial_error(error)),
            None => Ok(link),
        }
    }

    /// Password, role, database, a name for `CLIENT LIST`, scripts: one round trip.
    async fn log_in(&self, link: &Link) -> Result<(), DialError> {
        let url = self.place.url();
        let mut batch = Batch::default();
        batch.authenticate(url.user.as_deref(), url.password.as_deref());
        if self.place.must_be_master() {
            batch.push_words(&[b"ROLE"]);
        }
        if !self.place.in_cluster() {
            batch.push_words(&[b"SELECT", url.db.to_string().as_bytes()]);
        }
        let must_work = batch.len();
        batch.push_words(&[b"CLIENT", b"SETNAME", b"sluice"]);
        batch.extend(&self.load_scripts());
        let replies = link.send(&batch, None).await;
        let mut replies = replies.map_err(|lost| DialError::Unreachable(lost.cause))?;
        // A server may forbid CLIENT; nothing depends on the name.
        replies.remove(must_work);
        if let Some(error) = first_error(&replies) {
            return Err(dial_error(error));
        }
        if self.place.must_be_master() && !replies.iter().any(says_master) {
            let cause = "the sentinels' master says that it is none";
            return Err(DialError::Busy(cause.to_owned()));
        }
        let shas = replies
            .split_off(must_work)
            .into_iter()
            .map(text_of)
            .collect::<Option<Vec<_>>>();
        let shas = shas.ok_or_else(|| {
            DialError::Refused("SCRIPT LOAD was not answered with the name of a script".to_owned())
        })?;
        // Set on the first connection; the same on every later one.
        self.shas.get_or_init(|| shas);
        Ok(())
    }

    fn engine_error(&self, error: DialError) -> EngineError {
        match error {
            DialError::Unreachable(cause) => EngineError::Unreachable {
                engine: ENGINE,
                address: self.place.url().hosts.to_string(),
                cause,
            },
            DialError::Busy(cause) => EngineError::Busy {
                engine: ENGINE,
                cause,
            },
            DialError::Refused(cause) => EngineError::Refused {
                engine: ENGINE,
                cause,
            },
        }
    }
}

/// Pauses that double, until their sum reaches the budget of a reconnect.
#[derive(Default)]
struct Pauses {
    last: Duration,
    sum: Duration,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.sum >= limits::REDIS_CONNECT_BUDGET {
            return None;
        }
        self.last = (self.last * 2).clamp(PAUSE_FIRST, PAUSE_MAX);
        self.sum += self.last;
        Some(self.last)
    }
}

fn text_of(value: Value) -> Option<String> {
    match value {
        Value::BulkString(raw) => String::from_utf8(raw).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Whether it is a master's reply to `ROLE`.
fn says_master(reply: &Value) -> bool {
    let Value::Array(parts) = reply else {
        return false;
    };
    parts.first().cloned().and_then(text_of).as_deref() == Some("master")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_end_with_the_budget() {
        let pauses: Vec<Duration> = Pauses::default().collect();
        let sum: Duration = pauses.iter().sum();
        assert_eq!(pauses[..3], [20, 40, 80].map(Duration::from_millis));
        let budget = limits::REDIS_CONNECT_BUDGET;
        assert!(sum >= budget && sum < budget + PAUSE_MAX, "{sum:?}");
    }
}
