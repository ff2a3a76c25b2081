//! The metadata store in memory: the oracle that the conformance suite holds every engine to.
//!
//! Used by tests of the operations and by the conformance suite; never by a mount. Handles are clones that
//! share one store behind a mutex, so that several of them act as several cores or clients.
//!
//! Invariants: a commit is applied whole or not at all, under one lock; records live in ordered maps, so a
//! scan is the order of its keys and its cursor is the last key given out.
//!
//! Stricter than the contract asks: a write that contradicts it (a second record under one key, a change of
//! a record that is not there) is refused with [`EngineError::Refused`] and nothing is applied, so that an
//! operation which forgot its check fails its tests. Other failures happen only where a test asks for
//! them through [`Memory::on_request`].

mod state;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::engine::{
    Counter, Cursor, Engine, EngineResult, Item, Key, Outcome, Page, Record, Scan, Txn,
};
use crate::error::EngineError;
use crate::types::{AclRule, ChunkIndex, Flock, Name, Plock, Quota, QuotaKey, SessionId, SliceId};

use state::{LockKey, State};

/// Name of this engine in errors.
const ENGINE: &str = "memory";

/// A request about to be served, as a fault hook sees it.
#[derive(Debug)]
pub enum Request<'a> {
    /// A read.
    Read(&'a [Key]),
    /// A page of an enumeration.
    Scan(&'a Scan),
    /// A commit.
    Commit(&'a Txn),
    /// Numbers wanted.
    Alloc(Counter),
    /// Durability wanted.
    Sync,
    /// Whether there is anything.
    Empty,
    /// An end of everything.
    Destroy,
}

/// What a fault hook makes of a request.
#[derive(Debug)]
pub enum Verdict {
    /// Serve it.
    Serve,
    /// Fail it; nothing is applied.
    Fail(EngineError),
    /// Serve it and then answer with this error all the same: a connection lost after the request was sent.
    ServeThenFail(EngineError),
    /// Answer a commit as if this check had failed; other requests are served.
    Conflict(usize),
}

type Hook = Box<dyn FnMut(Request<'_>) -> Verdict + Send>;

/// A handle to a store in memory.
#[derive(Clone, Default)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// Asks `hook` about every request through any handle of this store, before it is served and with no
    /// lock held: the hook may itself change the store with [`Memory::apply`], as another client would between
    /// an operation's read and its commit.
    pub fn on_request(&self, hook: impl FnMut(Request<'_>) -> Verdict + Send + 'static) {
        *self.hook.lock() = Some(Box::new(hook));
    }

    /// The next `n` commits are answered as conflicts of their first check.
    pub fn conflict_next(&self, n: usize) {
        let mut left = n;
        self.on_request(move |request| match request {
            Request::Commit(_) if left > 0 => {
                left -= 1;
                Verdict::Conflict(0)
            }
            _ => Verdict::Serve,
        });
    }

    /// The next request fails with `error`, later ones are served.
    pub fn fail_next(&self, error: EngineError) {
        let mut error = Some(error);
        self.on_request(move |_| error.take().map_or(Verdict::Serve, Verdict::Fail));
    }

    /// Serves every request again.
    pub fn clear_hook(&self) {
        *self.hook.lock() = None;
    }

    /// Applies `txn` at once, without asking the hook.
    pub fn apply(&self, txn: &Txn) -> EngineResult<Outcome> {
        self.state.lock().commit(txn)
    }

    /// Reads at once, without asking the hook.
    pub fn peek(&self, key: &Key) -> Option<Record> {
        self.state.lock().read(key)
    }

    /// Puts an ACL rule there under a number of the caller's choice.
    pub fn put_acl(&self, id: u32, rule: AclRule) {
        self.state.lock().acls.insert(id, rule);
    }

    /// Puts a quota there, limits and usage.
    pub fn put_quota(&self, key: QuotaKey, quota: Quota) {
        self.state.lock().quotas.insert(key, quota);
    }

    fn ask(&self, request: Request<'_>) -> Verdict {
        // Taken out while it runs, so that it may use the store.
        let Some(mut hook) = self.hook.lock().take() else {
            return Verdict::Serve;
        };
        let verdict = hook(request);
        self.hook.lock().get_or_insert(hook);
        verdict
    }

    fn serve<T>(
        &self,
        request: Request<'_>,
        work: impl FnOnce(&mut State) -> EngineResult<T>,
    ) -> EngineResult<T> {
        match self.ask(request) {
            Verdict::Serve | Verdict::Conflict(_) => work(&mut self.state.lock()),
            Verdict::Fail(error) => Err(error),
            Verdict::ServeThenFail(error) => work(&mut self.state.lock()).and(Err(error)),
        }
    }
}

impl Engine for Memory {
    async fn read(&self, keys: &[Key]) -> EngineResult<Vec<Option<Record>>> {
        self.serve(Request::Read(keys), |state| {
            Ok(keys.iter().map(|key| state.read(key)).collect())
        })
    }

    async fn scan(&self, scan: &Scan, cursor: Option<&Cursor>, limit: usize) -> EngineResult<Page> {
        self.serve(Request::Scan(scan), |state| {
            state.scan(scan, cursor, limit.max(1))
        })
    }

    async fn commit(&self, txn: Txn) -> EngineResult<Outcome> {
        match self.ask(Request::Commit(&txn)) {
            Verdict::Serve => self.apply(&txn),
            Verdict::Conflict(check) => Ok(Outcome::Conflict { check }),
            Verdict::Fail(error) => Err(error),
            Verdict::ServeThenFail(error) => self.apply(&txn).and(Err(error)),
        }
    }

    async fn alloc(&self, counter: Counter, count: i64) -> EngineResult<u64> {
        self.serve(Request::Alloc(counter), |state| state.alloc(counter, count))
    }

    async fn sync(&self) -> EngineResult<()> {
        self.serve(Request::Sync, |_| Ok(()))
    }

    async fn is_empty(&self) -> EngineResult<bool> {
        self.serve(Request::Empty, |state| Ok(*state == State::default()))
    }

    async fn destroy(&self) -> EngineResult<()> {
        self.serve(Request::Destroy, |state| {
            *state = State::default();
            Ok(())
        })
    }
}

impl State {
    fn scan(&self, scan: &Scan, cursor: Option<&Cursor>, limit: usize) -> EngineResult<Page> {
        let after = cursor.map(|cursor| &cursor.0);
        let number = || after.map(number_of).transpose();
        match *scan {
            Scan::Dir { parent, attrs } => {
                let entries = self.entries(parent).filter(|(name, _)| after < Some(name));
                Ok(page(
                    limit,
                    entries,
                    |name| name.clone(),
                    |name, dentry| Item::Entry {
                        attr: self.attrs.get(&dentry.ino).filter(|_| attrs).cloned(),
                        name,
                        dentry,
                    },
                ))
            }
            Scan::Xattrs(ino) => {
                let xattrs = self.xattrs_of(ino).filter(|(name, _)| after < Some(name));
                Ok(page(
                    limit,
                    xattrs,
                    |name| name.clone(),
                    |name, value| Item::Xattr { name, value },
                ))
            }
            Scan::Chunks { ino, .. } => {
                let after = number()?;
                let range = (ino, ChunkIndex(0))..=(ino, ChunkIndex(u32::MAX));
                let chunks = self
                    .chunks
                    .range(range)
                    .map(|(&(_, index), list)| (index, list));
                let chunks = chunks.filter(|(index, _)| after < Some(u64::from(index.0)));
                Ok(page(
                    limit,
                    chunks,
                    |index| number_cursor(u64::from(index.0)),
                    |index, list| Item::Chunk {
                        index,
                        slices: list.clone(),
                    },
                ))
            }
            Scan::DeletedFiles => {
                let after = number()?;
                let files = self.deleted_files.iter().map(|(&ino, &file)| (ino, file));
                let files = files.filter(|(ino, _)| after < Some(ino.0));
                Ok(page(
                    limit,
                    files,
                    |ino| number_cursor(ino.0),
                    |ino, (length, time)| Item::DeletedFile { ino, length, time },
                ))
            }
            Scan::Sessions => {
                let after = number()?;
                let sessions = self.sessions.iter().map(|(&sid, session)| (sid, session));
                let sessions = sessions.filter(|(sid, _)| after < Some(sid.0));
                Ok(page(
                    limit,
                    sessions,
                    |sid: &SessionId| number_cursor(sid.0),
                    |sid, session| Item::Session {
                        sid,
                        expire: session.0,
                        info: session.1.clone(),
                    },
                ))
            }
            Scan::Quotas(kind) => {
                let after = number()?;
                let quotas = self.quotas.iter().map(|(&key, &quota)| (key, quota));
                let quotas =
                    quotas.filter(|(key, _)| key.kind() == kind && after < Some(key.number()));
                Ok(page(
                    limit,
                    quotas,
                    |key: &QuotaKey| number_cursor(key.number()),
                    |key, quota| Item::Quota { key, quota },
                ))
            }
            Scan::Acls => {
                let after = number()?;
                let rules = self.acls.iter().map(|(&id, rule)| (id, rule.clone()));
                let rules = rules.filter(|(id, _)| after < Some(u64::from(*id)));
                Ok(page(
                    limit,
                    rules,
                    |id| number_cursor(u64::from(*id)),
                    |id, rule| Item::Acl { id, rule },
                ))
            }
            Scan::DeadSlices => {
                let after = number()?;
                let slices = self.slice_refs.iter().map(|(&id, &slice)| (id, slice));
                let dead = slices.filter(|(id, (_, refs))| *refs <= 0 && after < Some(id.0));
                Ok(page(
                    limit,
                    dead,
                    |id: &SliceId| number_cursor(id.0),
                    |id, (size, _)| Item::DeadSlice { id, size },
                ))
            }
            Scan::Detached => {
                let after = number()?;
                let inodes = self.detached.iter().map(|(&ino, &time)| (ino, time));
                let inodes = inodes.filter(|(ino, _)| after < Some(ino.0));
                Ok(page(
                    limit,
                    inodes,
                    |ino| number_cursor(ino.0),
                    |ino, time| Item::Detached { ino, time },
                ))
            }
            Scan::Inodes => {
                let after = number()?;
                let inodes = self.attrs.iter().map(|(&ino, attr)| (ino, attr.clone()));
                let inodes = inodes.filter(|(ino, _)| after < Some(ino.0));
                Ok(page(
                    limit,
                    inodes,
                    |ino| number_cursor(ino.0),
                    |ino, attr| Item::Inode { ino, attr },
                ))
            }
            Scan::AllChunks | Scan::DelayedSlices | Scan::SessionLocks(_) => {
                let skip = number()?.unwrap_or(0);
                let items = self
                    .numbered(scan)
                    .enumerate()
                    .map(|(at, item)| (at as u64 + 1, item));
                Ok(page(
                    limit,
                    items.filter(|(at, _)| *at > skip),
                    |at| number_cursor(*at),
                    |_, item| item,
                ))
            }
        }
    }
}

impl State {
    /// Enumerations without a number of their own: continued by position, which is good enough for a test.
    fn numbered(&self, scan: &Scan) -> Box<dyn Iterator<Item = Item> + '_> {
        match *scan {
            Scan::AllChunks => Box::new(self.chunks.iter().map(|(&(ino, index), list)| {
                let slices = list.clone();
                Item::FileChunk { ino, index, slices }
            })),
            Scan::DelayedSlices => Box::new(self.delayed.iter().map(|(&(id, time), slices)| {
                let slices = slices.clone();
                Item::DelayedSlices { id, time, slices }
            })),
            Scan::SessionLocks(sid) => {
                let mine = move |key: &LockKey| key.1 == sid;
                let flocks = self.flocks.iter().filter(move |(key, _)| mine(key));
                let flocks = flocks.map(|(&(ino, sid, owner), &exclusive)| Item::Flock {
                    ino,
                    lock: Flock {
                        sid,
                        owner,
                        exclusive,
                    },
                });
                let plocks = self.plocks.iter().filter(move |(key, _)| mine(key));
                let plocks = plocks.map(|(&(ino, sid, owner), ranges)| Item::Plock {
                    ino,
                    lock: Plock {
                        sid,
                        owner,
                        ranges: ranges.clone(),
                    },
                });
                Box::new(flocks.chain(plocks))
            }
            _ => Box::new(std::iter::empty()),
        }
    }
}

/// Collects up to `limit` of `found`; the cursor is the last key if there is more.
fn page<K, V>(
    limit: usize,
    found: impl Iterator<Item = (K, V)>,
    cursor: impl Fn(&K) -> Name,
    item: impl Fn(K, V) -> Item,
) -> Page {
    let mut items = Vec::new();
    let mut last = None;
    for (key, value) in found {
        if items.len() == limit {
            return Page {
                items,
                next: last.map(Cursor),
            };
        }
        last = Some(cursor(&key));
        items.push(item(key, value));
    }
    Page { items, next: None }
}

fn number_cursor(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn number_of(cursor: &Bytes) -> EngineResult<u64> {
    let number = <[u8; 8]>::try_from(cursor.as_ref());
    number
        .map(u64::from_be_bytes)
        .map_err(|_| refused("cursor is not of this enumeration"))
}

fn refused(cause: impl Into<String>) -> EngineError {
    EngineError::Refused {
        engine: ENGINE,
        cause: cause.into(),
    }
}
