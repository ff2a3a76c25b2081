//! [`Meta`]: what one core holds to reach the metadata; and [`Shared`], what all cores of a process have in
//! common. Operations are `impl Meta` blocks in `ops`.
//!
//! Owned here: the core's engine connection, its batches of ids, its pending directory statistics, link targets. Shared:
//! the volume's settings, the session, and the table of open inodes (one short lock for each open, close and
//! last unlink; none on reads and writes).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::acl_cache::AclCache;
use crate::changes::{self, Changes};
use crate::engine::{AnyEngine, Counter, Engine, Outcome, Txn};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::ops::locks::LockMemory;
use crate::ops::{AtimeMode, NameMatch, Value};
use crate::quota::Quotas;
use crate::recall::{Flight, Recall};
use crate::runtime::Runtime;
use crate::types::{ChunkIndex, DirStat, Ino, SessionId, SliceId, Timestamp};
use crate::volume::Setting;

/// Result of an operation.
pub type MetaResult<T> = Result<T, MetaError>;

/// Options of a mount that concern metadata.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    /// Refuse every change; no session is registered.
    pub read_only: bool,
    /// A parent's mtime younger than this is not written again (`--skip-dir-mtime`).
    pub skip_dir_mtime: std::time::Duration,
    /// When access times move (`--atime-mode`).
    pub atime: AtimeMode,
    /// Whether names differ by case (`--case-insensitive`).
    pub names: NameMatch,
    /// Usage is shown as of the last heartbeat and of this process's own changes since (`--fast-statfs`).
    pub fast_statfs: bool,
    /// For how long an open may take a file's attributes from memory (`--open-cache`).
    pub open_cache: std::time::Duration,
}

impl Default for MetaOptions {
    fn default() -> Self {
        MetaOptions {
            read_only: false,
            skip_dir_mtime: limits::SKIP_DIR_MTIME,
            atime: AtimeMode::default(),
            names: NameMatch::default(),
            fast_statfs: false,
            open_cache: std::time::Duration::ZERO,
        }
    }
}

/// State of an inode that this process holds open.
#[derive(Debug, Default, Clone, Copy)]
pub struct OpenInode {
    /// Open handles.
    pub handles: u32,
    /// It lost its last link while open: to be deleted at the last close, with this process's session as holder.
    pub sustained: bool,
}

/// What all cores of a process share.
#[derive(Debug)]
pub struct Shared {
    /// The volume's settings as last loaded.
    pub setting: RwLock<Arc<Setting>>,
    /// Mount options.
    pub options: MetaOptions,
    /// This process's session; 0 before registration and for tools: then nothing can be sustained.
    pub session: std::sync::atomic::AtomicU64,
    /// Inodes open in this process.
    pub open: Mutex<HashMap<Ino, OpenInode>>,
    /// Last known value of the volume's used-space sum, refreshed by commits and heartbeats.
    pub used_space: AtomicI64,
    /// Last known number of inodes.
    pub total_inodes: AtomicI64,
    /// The hour directory last used, with its name: (unix hour, inode).
    pub trash_hour: Mutex<Option<(i64, Ino)>>,
    /// Inodes that this process changed lately.
    pub changes: Changes,
    /// Quotas of directories, users and groups.
    pub quotas: Quotas,
    /// What it read or wrote lately.
    pub recall: Recall,
    /// ACL rules it knows.
    pub acls: AclCache,
}

impl Shared {
    /// For one mount or tool run.
    pub fn new(setting: Setting, options: MetaOptions) -> Arc<Shared> {
        let quotas = Quotas::new(&setting);
        Arc::new(Shared {
            setting: RwLock::new(Arc::new(setting)),
            options,
            session: std::sync::atomic::AtomicU64::new(0),
            open: Mutex::new(HashMap::new()),
            used_space: AtomicI64::new(0),
            total_inodes: AtomicI64::new(0),
            trash_hour: Mutex::new(None),
            changes: Changes::default(),
            quotas,
            recall: Recall::default(),
            acls: AclCache::default(),
        })
    }

    /// The settings now in force.
    pub fn setting(&self) -> Arc<Setting> {
        Arc::clone(&self.setting.read())
    }

    /// This process's session, if it has one.
    pub fn session(&self) -> Option<SessionId> {
        match self.session.load(Ordering::Acquire) {
            0 => None,
            sid => Some(SessionId(sid)),
        }
    }
}

/// A core's access to the metadata.
pub struct Meta {
    pub(crate) engine: Rc<AnyEngine>,
    pub(crate) runtime: Rc<dyn Runtime>,
    pub(crate) shared: Arc<Shared>,
    /// Inode numbers taken but not used yet.
    inode_ids: RefCell<Range<u64>>,
    /// Slice ids taken but not used yet.
    slice_ids: RefCell<Range<u64>>,
    /// Link targets this core has read: they never change.
    pub(crate) link_targets: RefCell<HashMap<Ino, Value>>,
    /// Only one task at a time refills a batch.
    refill: async_lock::Mutex<()>,
    /// Directory statistics not yet flushed (`jobs::usage`).
    pub(crate) dir_stats: RefCell<HashMap<Ino, DirStat>>,
    /// Chunk lists that commits have made long, to be compacted.
    pub(crate) long_lists: RefCell<BTreeSet<(Ino, ChunkIndex)>>,
    /// Commits that were retried, for the statistics.
    pub(crate) conflicts: Cell<u64>,
    /// Locks as this core last saw them.
    pub(crate) locks: LockMemory,
}

/// What an attempt of an operation came to.
pub(crate) enum Attempt<T> {
    /// Answer without a commit.
    Done(T),
    /// Try again from fresh reads: a check failed, on a record of this inode.
    Conflict(Ino),
    /// Try again likewise: the commit's answer was lost. To give up now would leave the caller not knowing.
    Doubt(Ino),
    /// There is nothing to commit, as far as memory tells: look again.
    Unsure,
}

/// Where an attempt may take what it reads from.
pub(crate) struct Sight {
    /// This core's memory may answer: whatever follows from it is checked by the commit, and an answer without
    /// a commit is asked for again.
    pub(crate) memory: bool,
    /// It did.
    pub(crate) used: Cell<bool>,
}

impl Sight {
    /// How an attempt ends that has nothing to commit.
    pub(crate) fn done<T>(&self, answer: T) -> Attempt<T> {
        if self.used.get() {
            Attempt::Unsure
        } else {
            Attempt::Done(answer)
        }
    }

    /// Memory may answer.
    pub(crate) fn memory() -> Sight {
        Sight {
            memory: true,
            used: Cell::new(false),
        }
    }

    /// The store must answer.
    pub(crate) fn fresh() -> Sight {
        Sight {
            memory: false,
            used: Cell::new(false),
        }
    }
}

impl Meta {
    /// For one core. `engine` is that core's own connection.
    pub fn new(engine: Rc<AnyEngine>, runtime: Rc<dyn Runtime>, shared: Arc<Shared>) -> Meta {
        Meta {
            engine,
            runtime,
            shared,
            inode_ids: RefCell::new(0..0),
            slice_ids: RefCell::new(0..0),
            link_targets: RefCell::new(HashMap::new()),
            refill: async_lock::Mutex::new(()),
            dir_stats: RefCell::new(HashMap::new()),
            long_lists: RefCell::new(BTreeSet::new()),
            conflicts: Cell::new(0),
            locks: LockMemory::default(),
        }
    }

    /// What the cores share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The engine, for tools.
    pub fn engine(&self) -> &Rc<AnyEngine> {
        &self.engine
    }

    /// Wall clock.
    pub fn now(&self) -> Timestamp {
        self.runtime.now()
    }

    /// Everything committed so far is durable, as far as the store lets us know.
    pub async fn sync(&self) -> MetaResult<()> {
        Ok(self.engine.sync().await?)
    }

    /// `ReadOnly` for a read-only mount.
    pub(crate) fn check_writable(&self) -> MetaResult<()> {
        if self.shared.options.read_only {
            Err(MetaError::ReadOnly)
        } else {
            Ok(())
        }
    }

    /// Runs `attempt` until it is done or the budget is used up. Between attempts it pauses a random time
    /// that grows with the attempts. The first attempt may answer its reads from this core's memory; all
    /// others, also after an error that rests on memory, read afresh. While the fate of a commit is in doubt a
    /// store that has gone away is tried again some times.
    pub(crate) async fn run<T>(
        &self,
        mut attempt: impl AsyncFnMut(&Sight) -> MetaResult<Attempt<T>>,
    ) -> MetaResult<T> {
        let mut contended = Ino::NONE;
        let mut looks_left = 0;
        let mut sight = Sight::memory();
        for tries in 1..=limits::COMMIT_ATTEMPTS_MAX {
            let outcome = attempt(&sight).await;
            let remembered = std::mem::replace(&mut sight, Sight::fresh()).used.get();
            match outcome {
                Ok(Attempt::Done(value)) => return Ok(value),
                Ok(Attempt::Conflict(ino)) => contended = ino,
                Ok(Attempt::Doubt(ino)) => {
                    contended = ino;
                    looks_left = limits::DOUBT_LOOKS_MAX;
                }
                Ok(Attempt::Unsure) => continue,
                Err(error) if remembered && !error.is_fault() => continue,
                Err(MetaError::Engine(error @ EngineError::Busy { .. })) => {
                    tracing::debug!(%error, "metadata store busy, trying again");
                }
                Err(MetaError::Engine(error)) if error.is_transient() && looks_left > 0 => {
                    looks_left -= 1;
                }
                Err(error) => return Err(error),
            }
            self.conflicts.set(self.conflicts.get() + 1);
            if tries > 2 {
                let ceiling = limits::COMMIT_PAUSE_MAX.as_micros() as u64;
                let pause = fastrand::u64(0..=(u64::from(tries * tries) * 100).min(ceiling));
                self.runtime
                    .sleep(std::time::Duration::from_micros(pause))
                    .await;
            }
        }
        Err(MetaError::Contended {
            ino: contended,
            attempts: limits::COMMIT_ATTEMPTS_MAX,
        })
    }

    /// Commits `txn`: the results of its writes, or `None` on a conflict.
    pub(crate) async fn commit(&self, txn: Txn) -> MetaResult<Option<Vec<i64>>> {
        match self.commit_marked(txn).await? {
            Outcome::Committed(results) => Ok(Some(results)),
            Outcome::Conflict { .. } => Ok(None),
        }
    }

    /// Commits `txn` and marks what it changed. A commit of unknown fate counts: it may have changed it.
    pub(crate) async fn commit_marked(&self, txn: Txn) -> Result<Outcome, EngineError> {
        let touched = changes::touched(&txn.writes);
        let writes = txn.writes.clone();
        let recall = &self.shared.recall;
        let sent = self.now();
        let flight = Flight::begin(recall, &touched);
        let outcome = self.engine.commit(txn).await;
        match &outcome {
            Ok(outcome) => {
                if matches!(outcome, Outcome::Committed(_)) {
                    recall.apply(&writes, sent);
                }
                flight.land();
            }
            Err(_) => drop(flight),
        }
        for ino in touched {
            self.shared.changes.mark(ino);
        }
        outcome
    }

    /// A fresh inode number.
    pub(crate) async fn alloc_inode(&self) -> MetaResult<Ino> {
        let id = self
            .alloc(&self.inode_ids, Counter::NextInode, limits::INODE_BATCH)
            .await?;
        Ok(Ino(id))
    }

    /// A fresh slice id. Never handed out twice, by anybody, even if it stays unused.
    pub async fn alloc_slice(&self) -> MetaResult<SliceId> {
        Ok(SliceId(
            self.alloc(&self.slice_ids, Counter::NextSlice, limits::SLICE_BATCH)
                .await?,
        ))
    }

    async fn alloc(
        &self,
        batch: &RefCell<Range<u64>>,
        counter: Counter,
        size: i64,
    ) -> MetaResult<u64> {
        if let Some(id) = batch.borrow_mut().next() {
            return Ok(id);
        }
        let _refill = self.refill.lock().await;
        if let Some(id) = batch.borrow_mut().next() {
            return Ok(id);
        }
        let first = self.engine.alloc(counter, size).await?;
        *batch.borrow_mut() = first + 1..first + size.unsigned_abs();
        Ok(first)
    }

    /// Notes a change of a directory's statistics; `jobs::usage` writes it within a second.
    pub(crate) fn note_dir_stat(&self, dir: Ino, delta: DirStat) {
        if !self.shared.setting().dir_stats || delta == DirStat::default() {
            return;
        }
        let mut pending = self.dir_stats.borrow_mut();
        let entry = pending.entry(dir).or_default();
        entry.length += delta.length;
        entry.space += delta.space;
        entry.inodes += delta.inodes;
    }
}
