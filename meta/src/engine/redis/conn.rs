//! The engine's way to its server: dials, logs in, loads the scripts, and repeats what may be repeated.
//!
//! Called by the other files of the engine with batches of commands. Owns the one live [`Link`] of this
//! core and the bound on unanswered requests.
//!
//! How it fails:
//! - the connection is lost: a batch that may be repeated, or that the server cannot have run, goes out
//!   again on the next connection; any other ends with `UnknownFate`;
//! - no connection can be made within [`limits::REDIS_CONNECT_BUDGET`]: `Unreachable`, for all who waited;
//! - the server is loading its data or runs somebody's script: waits and asks again, then `Busy`;
//! - the server lost the scripts: sends them along with the same batch;
//! - any other error reply: [`refusal`].

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_lock::{Mutex, Semaphore};
use redis::{ServerError, Value};

use crate::engine::EngineResult;
use crate::error::EngineError;
use crate::limits;
use crate::runtime::{Address, Runtime};
use crate::url::RedisUrl;

use super::ENGINE;
use super::pipe::{Batch, Link};

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

/// Why dialling failed.
#[derive(Clone)]
enum DialError {
    /// Nobody answers, or not for long: try again.
    Unreachable(String),
    /// The server says that it is not ready: try again.
    Busy(String),
    /// The server does not want us.
    Refused(String),
}

/// A connection that is made again when it is lost.
pub(super) struct Connection {
    url: RedisUrl,
    runtime: Rc<dyn Runtime>,
    sources: &'static [&'static str],
    /// Names of the loaded scripts. They follow from the sources, so the first answer is good for ever.
    shas: OnceCell<Vec<String>>,
    link: RefCell<Option<Rc<Link>>>,
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
            url: url.clone(),
            runtime,
            sources,
            shas: OnceCell::new(),
            link: RefCell::new(None),
            dialling: Mutex::new(()),
            rounds: Cell::new(0),
            failure: RefCell::new(None),
            room: Arc::new(Semaphore::new(limits::REDIS_INFLIGHT_MAX)),
        };
        let dialled = connection
            .dial(|error| matches!(error, DialError::Busy(_)))
            .await;
        let link = dialled.map_err(|error| connection.engine_error(error))?;
        *connection.link.borrow_mut() = Some(link);
        Ok(connection)
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
            let refusal = refusal(error);
            match pauses
                .next()
                .filter(|_| matches!(refusal, EngineError::Busy { .. }))
            {
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
        self.link.borrow().clone().filter(|link| link.is_up())
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
        let cause = self
            .link
            .borrow()
            .as_ref()
            .and_then(|link| link.cause())
            .unwrap_or_default();
        tracing::warn!(server = %self.url, cause, "connection to Redis lost, connecting again");
        let dialled = self
            .dial(|error| !matches!(error, DialError::Refused(_)))
            .await;
        self.rounds.set(self.rounds.get() + 1);
        *self.failure.borrow_mut() = dialled.as_ref().err().cloned();
        let link = dialled.map_err(|error| self.engine_error(error))?;
        tracing::info!(server = %self.url, "connected to Redis again");
        *self.link.borrow_mut() = Some(Rc::clone(&link));
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
        let unreachable = |error: std::io::Error| DialError::Unreachable(error.to_string());
        let stream = self
            .runtime
            .connect(&self.url.address)
            .await
            .map_err(unreachable)?;
        let link = Link::start(stream, &self.runtime);
        self.log_in(&link).await?;
        Ok(link)
    }

    /// Password, database, a name for `CLIENT LIST`, scripts: one round trip.
    async fn log_in(&self, link: &Link) -> Result<(), DialError> {
        let mut batch = Batch::default();
        match (&self.url.user, &self.url.password) {
            (Some(user), Some(password)) => {
                batch.push_words(&[b"AUTH", user.as_bytes(), password.as_bytes()]);
            }
            (None, Some(password)) => batch.push_words(&[b"AUTH", password.as_bytes()]),
            (_, None) => {}
        }
        batch.push_words(&[b"SELECT", self.url.db.to_string().as_bytes()]);
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
            DialError::Unreachable(cause) => {
                let address = match &self.url.address {
                    Address::Tcp(host, port) => format!("{host}:{port}"),
                    Address::Unix(path) => path.display().to_string(),
                };
                EngineError::Unreachable {
                    engine: ENGINE,
                    address,
                    cause,
                }
            }
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

fn first_error(replies: &[Value]) -> Option<&ServerError> {
    replies.iter().find_map(|reply| match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    })
}

fn words_of(error: &ServerError) -> String {
    format!("{} {}", error.code(), error.details().unwrap_or_default())
}

fn dial_error(error: &ServerError) -> DialError {
    let words = words_of(error);
    // The server's words with which it turns away one connection too many.
    if words.contains("max number of clients") {
        return DialError::Unreachable(words);
    }
    match refusal(error) {
        EngineError::Busy { cause, .. } => DialError::Busy(cause),
        _ => match error.code() {
            "NOAUTH" | "WRONGPASS" => DialError::Refused(format!(
                "{words} (give the password in the metadata URL or in META_PASSWORD)"
            )),
            _ => DialError::Refused(words),
        },
    }
}

/// What an error reply means.
pub(super) fn refusal(error: &ServerError) -> EngineError {
    let cause = words_of(error);
    match error.code() {
        "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN" | "CLUSTERDOWN" => EngineError::Busy {
            engine: ENGINE,
            cause,
        },
        "OOM" => EngineError::NoSpace {
            engine: ENGINE,
            cause,
        },
        // Before release 7 an error within a script arrives wrapped in another.
        _ if cause.contains("OOM command not allowed") => EngineError::NoSpace {
            engine: ENGINE,
            cause,
        },
        _ => EngineError::Refused {
            engine: ENGINE,
            cause,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies() {
        for (reply, expected) in [
            ("LOADING Redis is loading the dataset in memory", "busy"),
            ("BUSY Redis is busy running a script.", "busy"),
            ("MASTERDOWN Link with MASTER is down", "busy"),
            ("TRYAGAIN later", "busy"),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                "full",
            ),
            // As releases 5 and 6 report it from within a script.
            (
                "ERR Error running script (call to f_0): @user_script:9: \
                 -OOM command not allowed when used memory > 'maxmemory'.",
                "full",
            ),
            (
                "READONLY You can't write against a read only replica.",
                "refused",
            ),
            ("NOAUTH Authentication required.", "refused"),
            ("WRONGPASS invalid username-password pair", "refused"),
            ("NOPERM this user has no permissions", "refused"),
            ("WRONGTYPE Operation against a key", "refused"),
            (
                "MISCONF Redis is configured to save RDB snapshots",
                "refused",
            ),
        ] {
            let value = redis::parse_redis_value(format!("-{reply}\r\n").as_bytes());
            let Ok(Value::ServerError(error)) = value else {
                panic!("{reply}: {value:?}")
            };
            let refusal = refusal(&error);
            let kind = match &refusal {
                EngineError::Busy { .. } => "busy",
                EngineError::NoSpace { .. } => "full",
                EngineError::Refused { .. } => "refused",
                _ => "other",
            };
            assert_eq!(kind, expected, "{reply}");
            assert!(refusal.to_string().contains(reply), "{refusal}");
        }
    }

    #[test]
    fn pauses_end_with_the_budget() {
        let pauses: Vec<Duration> = Pauses::default().collect();
        let sum: Duration = pauses.iter().sum();
        assert_eq!(pauses[..3], [20, 40, 80].map(Duration::from_millis));
        let budget = limits::REDIS_CONNECT_BUDGET;
        assert!(sum >= budget && sum < budget + PAUSE_MAX, "{sum:?}");
    }
}
