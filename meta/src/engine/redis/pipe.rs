//! One live connection: requests go out in the order they were made, replies come back in the same order.
//!
//! Made by [`super::conn`]. A driver task owns the stream; requests append to an output buffer and wake it,
//! so requests made in one turn of the executor leave in one write. Invariants: a reply belongs to the
//! oldest pending request that lacks one; no `RefCell` is borrowed across an await or while a waker runs.
//! It fails once and for good: every pending request then ends with [`Lost`], which says whether the server
//! can have seen it. A server that stays silent for [`limits::REDIS_SILENCE_MAX`] counts as lost.
//!
//! What the server says unasked (RESP3 pushes) is kept for whoever listens, on connections made for that.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use async_lock::SemaphoreGuardArc;
use bytes::BytesMut;
use futures_io::{AsyncRead, AsyncWrite};
use redis::{Value, ValueCodec};
use tokio_util::codec::Decoder;

use crate::limits;
use crate::runtime::{LocalFuture, Runtime, Stream};

/// Bytes taken from the stream at once.
const READ_BYTES: usize = 64 << 10;

/// Commands that travel together.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    commands: usize,
    /// Put before every key.
    prefix: Rc<str>,
}

impl Batch {
    /// For commands on a volume whose keys have this prefix.
    pub(super) fn new(prefix: Rc<str>) -> Batch {
        Batch {
            prefix,
            ..Batch::default()
        }
    }

    /// Adds a command on one key of the volume.
    pub(super) fn key(&mut self, verb: &str, key: &str, operands: &[&[u8]]) {
        self.keys(verb, std::iter::once(key), operands);
    }

    /// Adds a command on several keys of the volume.
    pub(super) fn keys(
        &mut self,
        verb: &str,
        keys: impl Iterator<Item = impl AsRef<str>>,
        operands: &[&[u8]],
    ) {
        let mut command = redis::cmd(verb);
        for key in keys {
            command.arg(self.full(key.as_ref()));
        }
        for operand in operands {
            command.arg(*operand);
        }
        self.push(&command);
    }

    /// Adds a call of a loaded script with one key; the script is told the prefix and then the operands.
    pub(super) fn script(&mut self, sha: &str, key: &str, operands: &[&[u8]]) {
        let mut command = redis::cmd("EVALSHA");
        command.arg(sha).arg(1).arg(self.full(key));
        command.arg(self.prefix.as_bytes());
        for operand in operands {
            command.arg(*operand);
        }
        self.push(&command);
    }

    fn full<'a>(&self, key: &'a str) -> Cow<'a, str> {
        if self.prefix.is_empty() {
            return Cow::Borrowed(key);
        }
        Cow::Owned([self.prefix.as_ref(), key].concat())
    }

    /// Logs in, if there is a password.
    pub(super) fn authenticate(&mut self, user: Option<&str>, password: Option<&str>) {
        match (user, password) {
            (Some(user), Some(password)) => {
                self.push_words(&[b"AUTH", user.as_bytes(), password.as_bytes()]);
            }
            (None, Some(password)) => self.push_words(&[b"AUTH", password.as_bytes()]),
            (_, None) => {}
        }
    }

    /// Adds a command.
    pub(super) fn push(&mut self, command: &redis::Cmd) {
        command.write_packed_command(&mut self.bytes);
        self.commands += 1;
    }

    /// Adds a command given by its words.
    pub(super) fn push_words(&mut self, words: &[&[u8]]) {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        self.push(&command);
    }

    /// Adds all commands of another batch.
    pub(super) fn extend(&mut self, other: &Batch) {
        self.bytes.extend_from_slice(&other.bytes);
        self.commands += other.commands;
    }

    /// Number of commands, and so of replies.
    pub(super) fn len(&self) -> usize {
        self.commands
    }
}

/// The connection was lost before all replies of a request arrived.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// Whether the server can have seen the request as a whole. If not, its last command has not run.
    pub(super) sent: bool,
    /// What happened.
    pub(super) cause: String,
}

/// A connection's user side. Dropping it ends the driver.
pub(super) struct Link {
    pipe: Rc<Pipe>,
}

impl Link {
    /// Takes over a fresh stream; the driver runs on `runtime`.
    pub(super) fn start(stream: Box<dyn Stream>, runtime: &Rc<dyn Runtime>) -> Link {
        Link::over(stream, runtime, Pipe::default())
    }

    /// As [`Link::start`], for a connection on which the server also speaks unasked ([`Link::pushes`]).
    pub(super) fn start_listening(stream: Box<dyn Stream>, runtime: &Rc<dyn Runtime>) -> Link {
        let pipe = Pipe::default();
        pipe.state.borrow_mut().pushes = Some(Vec::new());
        Link::over(stream, runtime, pipe)
    }

    fn over(stream: Box<dyn Stream>, runtime: &Rc<dyn Runtime>, pipe: Pipe) -> Link {
        let pipe = Rc::new(pipe);
        runtime.spawn(Box::pin(Driver {
            stream,
            pipe: Rc::clone(&pipe),
            // Weak: the executor owns the driver, so the driver must not keep the executor alive.
            runtime: Rc::downgrade(runtime),
            writing: Vec::new(),
            written: 0,
            chunk: vec![0; READ_BYTES],
            input: BytesMut::new(),
            codec: ValueCodec::default(),
            silence: None,
            heard: false,
        }));
        Link { pipe }
    }

    /// Whether requests have a chance.
    pub(super) fn is_up(&self) -> bool {
        self.pipe.state.borrow().down.is_none()
    }

    /// Ends it: who waits for something on it is told the cause.
    pub(super) fn end(&self, cause: &str) {
        self.pipe.fail(cause);
        let driver = self.pipe.state.borrow_mut().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Why it ended, if it did.
    pub(super) fn cause(&self) -> Option<String> {
        self.pipe.state.borrow().down.clone()
    }

    /// Waits until the server has said something unasked, and takes all of it.
    pub(super) async fn pushes(&self) -> Result<Vec<Value>, Lost> {
        poll_fn(|cx| {
            let mut state = self.pipe.state.borrow_mut();
            if let Some(pushes) = state.pushes.as_mut().filter(|pushes| !pushes.is_empty()) {
                return Poll::Ready(Ok(std::mem::take(pushes)));
            }
            if let Some(cause) = &state.down {
                let cause = cause.clone();
                return Poll::Ready(Err(Lost { sent: true, cause }));
            }
            state.listener = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Queues a batch at once and completes with its replies. `room` is given back with them.
    pub(super) fn send(&self, batch: &Batch, room: Option<SemaphoreGuardArc>) -> Reply {
        let slot = Rc::new(RefCell::new(Slot::default()));
        let driver = {
            let mut state = self.pipe.state.borrow_mut();
            if let Some(cause) = &state.down {
                let lost = Lost {
                    sent: false,
                    cause: cause.clone(),
                };
                slot.borrow_mut().result = Some(Err(lost));
                None
            } else if batch.len() == 0 {
                slot.borrow_mut().result = Some(Ok(Vec::new()));
                None
            } else {
                state.output.extend_from_slice(&batch.bytes);
                state.queued += batch.bytes.len() as u64;
                let pending = Pending {
                    end: state.queued,
                    expected: batch.len(),
                    replies: Vec::with_capacity(batch.len()),
                    slot: Rc::clone(&slot),
                    _room: room,
                };
                state.pending.push_back(pending);
                state.driver.take()
            }
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        Reply(slot)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end("it is no longer wanted");
    }
}

/// Replies to come. Dropping it gives up interest, not the request.
pub(super) struct Reply(Rc<RefCell<Slot>>);

impl Future for Reply {
    type Output = Result<Vec<Value>, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.borrow_mut();
        match slot.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                slot.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[derive(Default)]
struct Slot {
    result: Option<Result<Vec<Value>, Lost>>,
    waker: Option<Waker>,
}

fn complete(slot: &RefCell<Slot>, result: Result<Vec<Value>, Lost>) {
    let waker = {
        let mut slot = slot.borrow_mut();
        slot.result = Some(result);
        slot.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A request whose replies are not complete.
struct Pending {
    /// Value of [`State::queued`] behind its last byte.
    end: u64,
    expected: usize,
    replies: Vec<Value>,
    slot: Rc<RefCell<Slot>>,
    _room: Option<SemaphoreGuardArc>,
}

#[derive(Default)]
struct State {
    /// Bytes the driver has not taken yet.
    output: Vec<u8>,
    /// Bytes ever queued.
    queued: u64,
    /// Bytes the stream has accepted.
    sent: u64,
    pending: VecDeque<Pending>,
    driver: Option<Waker>,
    /// What the server said unasked, where that is expected.
    pushes: Option<Vec<Value>>,
    /// Who waits for it.
    listener: Option<Waker>,
    /// Why it ended.
    down: Option<String>,
}

/// What the driver and the users share.
#[derive(Default)]
struct Pipe {
    state: RefCell<State>,
}

impl Pipe {
    /// Ends every pending request. Only the first cause counts.
    fn fail(&self, cause: &str) {
        let (sent, pending, listener) = {
            let mut state = self.state.borrow_mut();
            if state.down.is_some() {
                return;
            }
            state.down = Some(cause.to_owned());
            let pending = std::mem::take(&mut state.pending);
            (state.sent, pending, state.listener.take())
        };
        if let Some(listener) = listener {
            listener.wake();
        }
        for request in pending {
            let lost = Lost {
                sent: request.end <= sent,
                cause: cause.to_owned(),
            };
            complete(&request.slot, Err(lost));
        }
    }

    /// Hands a reply to the oldest request; `false` if nobody asked.
    fn deliver(&self, value: Value) -> bool {
        if matches!(value, Value::Push { .. }) {
            return self.heard(value);
        }
        let done = {
            let mut state = self.state.borrow_mut();
            let Some(request) = state.pending.front_mut() else {
                return false;
            };
            request.replies.push(value);
            if request.replies.len() < request.expected {
                return true;
            }
            state.pending.pop_front()
        };
        if let Some(request) = done {
            complete(&request.slot, Ok(request.replies));
        }
        true
    }

    /// Keeps what the server said unasked; `false` if that is not expected, or too much to keep.
    fn heard(&self, value: Value) -> bool {
        let listener = {
            let mut state = self.state.borrow_mut();
            match &mut state.pushes {
                Some(pushes) if pushes.len() < limits::REDIS_PUSHES_MAX => pushes.push(value),
                _ => return false,
            }
            state.listener.take()
        };
        if let Some(listener) = listener {
            listener.wake();
        }
        true
    }

    fn is_idle(&self) -> bool {
        self.state.borrow().pending.is_empty()
    }
}

/// The task that moves bytes.
struct Driver {
    stream: Box<dyn Stream>,
    pipe: Rc<Pipe>,
    runtime: Weak<dyn Runtime>,
    /// Taken from the output buffer, and how much of it the stream has accepted.
    writing: Vec<u8>,
    written: usize,
    chunk: Vec<u8>,
    /// Received and not decoded yet.
    input: BytesMut,
    codec: ValueCodec,
    /// Runs while requests are pending; at its end something must have been heard.
    silence: Option<LocalFuture<'static, ()>>,
    heard: bool,
}

impl Driver {
    /// Completes with what ended the connection.
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        if let Some(cause) = self.pipe.state.borrow().down.clone() {
            return Poll::Ready(cause);
        }
        self.pipe.state.borrow_mut().driver = Some(cx.waker().clone());
        if let Err(cause) = self.write(cx) {
            return Poll::Ready(cause);
        }
        if let Err(cause) = self.read(cx) {
            return Poll::Ready(cause);
        }
        match self.watch_silence(cx) {
            Some(cause) => Poll::Ready(cause),
            None => Poll::Pending,
        }
    }

    /// Writes until the stream takes no more or nothing is left.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        let mut wrote = false;
        loop {
            if self.written == self.writing.len() {
                self.writing.clear();
                self.written = 0;
                std::mem::swap(&mut self.writing, &mut self.pipe.state.borrow_mut().output);
                if self.writing.is_empty() {
                    break;
                }
            }
            let rest = &self.writing[self.written..];
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err("the stream takes no more bytes".to_owned()),
                Poll::Ready(Ok(count)) => {
                    wrote = true;
                    self.written += count;
                    self.pipe.state.borrow_mut().sent += count as u64;
                }
                Poll::Ready(Err(error)) => return Err(error.to_string()),
                Poll::Pending => return Ok(()),
            }
        }
        if wrote && let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(cx) {
            return Err(error.to_string());
        }
        Ok(())
    }

    /// Reads and decodes until nothing more is there.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        loop {
            match Pin::new(&mut self.stream).poll_read(cx, &mut self.chunk) {
                Poll::Ready(Ok(0)) => return Err("the server closed the connection".to_owned()),
                Poll::Ready(Ok(count)) => {
                    self.heard = true;
                    self.input.extend_from_slice(&self.chunk[..count]);
                    self.decode()?;
                }
                Poll::Ready(Err(error)) => return Err(error.to_string()),
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn decode(&mut self) -> Result<(), String> {
        while !self.input.is_empty() {
            let value = self
                .codec
                .decode(&mut self.input)
                .map_err(|error| error.to_string())?;
            let Some(value) = value else { return Ok(()) };
            if !self.pipe.deliver(value) {
                return Err("the server sent a reply that nobody asked for".to_owned());
            }
        }
        Ok(())
    }

    /// The cause, once requests have waited too long without a byte from the server.
    fn watch_silence(&mut self, cx: &mut Context<'_>) -> Option<String> {
        loop {
            let Some(timer) = &mut self.silence else {
                if self.pipe.is_idle() {
                    return None;
                }
                let runtime = self.runtime.upgrade()?;
                self.silence = Some(runtime.sleep(limits::REDIS_SILENCE_MAX));
                self.heard = false;
                continue;
            };
            if timer.as_mut().poll(cx).is_pending() {
                return None;
            }
            self.silence = None;
            if !self.heard && !self.pipe.is_idle() {
                return Some(format!("no answer for {:?}", limits::REDIS_SILENCE_MAX));
            }
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.step(cx).map(|cause| self.pipe.fail(&cause))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.pipe
            .fail("the task that drives the connection was ended");
    }
}
