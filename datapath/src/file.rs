//! File data on one core: reading, writing, flushing and changing the length of files.
//!
//! The dispatcher of a core calls [`Files`] for every request that touches data. Parts, in reading order:
//! `read` plans a read and fetches its pieces; `view` gets slice lists and lengths; [`overlay`] says which
//! bytes come from where; `write` admits a write; `dirty` and `buffer` hold uncommitted data; `upload`
//! stores blocks; `flush` commits; `change` truncates and reserves; `budget` is what tasks of a core wait on.
//!
//! **Who owns what.** `Files` holds a [`FileState`] for exactly those inodes whose data this core owns
//! (`shard::inode`): from the claim until there is neither dirty data nor a request in progress. All of it
//! belongs to one thread; what other cores may know is published in the table of inodes.
//!
//! **Life of a write.** Room is taken from the core's buffer budget (waiting for it makes the oldest dirty
//! inode flush); the bytes are copied once into a slice; the dirty length is published; the reply leaves. A
//! full block is uploaded at once. A flush (fsync, close, age, pressure) freezes the slices, waits for their
//! uploads and makes one commit for all of them. `compact` rewrites lists that many commits have made long.
//!
//! **What the dispatcher does.** A read, seek, flush or fsync goes where [`Files::route_read`] says; a write,
//! truncate or fallocate is preceded by [`Files::claim`], with no await in between, on the core that then
//! serves it. Attributes that any metadata operation answers pass through `InodeTable::patch_attr` on their
//! way to the kernel. An explicit change of mtime goes through [`Files::change`] (claimed, too), so that a
//! later flush of earlier writes does not undo it. Open and release count handles in the table.
//!
//! Invariants: `single-owner` (only the owner has dirty data), `data-before-name` (a slice record is
//! committed after its blocks are stored), `ack-after-commit` (a flush answers after the commit),
//! `block-immutable` (a block is written once), `missing-is-error` (only holes read as zeros). No `RefCell`
//! borrow lives across an await. The futures of requests must run to their end: one that is dropped between
//! sending a commit and its answer leaves its outcome unknown.
//!
//! **Failure.** Outages are retried within a budget of growing pauses. Data that cannot be stored or
//! committed is dropped, its blocks are removed, and the inode is marked: every write and flush fails with
//! `WriteLost` until the last handle is closed.

mod budget;
mod buffer;
mod change;
pub mod compact;
mod dirty;
mod flush;
pub mod overlay;
mod read;
mod upload;
mod view;
mod write;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use async_lock::{Mutex, RwLock, Semaphore};
use sluice_meta::client::Meta;
use sluice_meta::error::MetaError;
use sluice_meta::runtime::Runtime;
use sluice_meta::types::{Ino, SliceId};

use crate::cache::BlockIo;
use crate::error::{FsError, FsResult};
use crate::shard::inode::{Claim, CoreId, InodeShared, InodeTable, Route};

use self::budget::{Budget, Signal};
use self::dirty::Dirty;

pub(crate) use self::read::join_all;
pub use self::write::WriteOptions;

/// What one core may use, and how patient it is.
#[derive(Clone, Copy, Debug)]
pub struct FilesOptions {
    /// This core.
    pub core: CoreId,
    /// Bytes of write buffers on this core.
    pub buffer_bytes: u64,
    /// Blocks being uploaded at the same time by this core.
    pub uploads: usize,
    /// Further attempts after an outage.
    pub io_retries: u32,
    /// Pause before the first further attempt; before the n-th it is n^2 times as long, up to 10 s.
    pub retry_pause: Duration,
}

impl FilesOptions {
    /// The share of one core of what the whole process may use.
    pub fn share(
        core: CoreId,
        cores: usize,
        buffer_bytes: u64,
        uploads: usize,
        io_retries: u32,
    ) -> FilesOptions {
        let cores = cores.max(1);
        FilesOptions {
            core,
            buffer_bytes: buffer_bytes / cores as u64,
            uploads: uploads.div_ceil(cores).max(1),
            io_retries,
            // 10 attempts then take 38 s in all.
            retry_pause: Duration::from_millis(100),
        }
    }
}

/// Longest pause between two attempts.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Ticks (seconds) that data may stay dirty before it is flushed unasked, as in JuiceFS.
const DIRTY_TICKS_MAX: u64 = 5;

/// The data of an inode that this core owns.
struct FileState {
    ino: Ino,
    shared: Arc<InodeShared>,
    /// Reads and writes share it; a change of the inode as a whole holds it alone.
    gate: RwLock<()>,
    /// Held by the one flush in progress; the next one finds what came in meanwhile.
    flush_turn: Mutex<()>,
    dirty: RefCell<Dirty>,
    /// An upload ended.
    progress: Signal,
    /// Requests in progress.
    busy: Cell<u32>,
    /// Changes of the inode as a whole in progress or waiting.
    exclusive: Cell<u32>,
    /// Since when there is data that no flush has taken up: tick, and order among all inodes.
    since: Cell<(u64, u64)>,
    /// A flush that nobody waits for is on its way.
    flushing: Cell<bool>,
}

impl FileState {
    fn is_idle(&self) -> bool {
        self.busy.get() == 0 && self.dirty.borrow().is_empty()
    }
}

/// A request in progress on an inode that this core owns; ownership ends with the last one if all is clean.
struct Owned<'a, B: BlockIo + 'static> {
    files: &'a Files<B>,
    state: Rc<FileState>,
}

impl<B: BlockIo + 'static> Deref for Owned<'_, B> {
    type Target = Rc<FileState>;

    fn deref(&self) -> &Rc<FileState> {
        &self.state
    }
}

impl<B: BlockIo + 'static> Drop for Owned<'_, B> {
    fn drop(&mut self) {
        self.state.busy.set(self.state.busy.get() - 1);
        self.files.settle(&self.state);
    }
}

/// All file data of one core.
pub struct Files<B: BlockIo + 'static> {
    me: Weak<Files<B>>,
    meta: Rc<Meta>,
    blocks: Rc<B>,
    runtime: Rc<dyn Runtime>,
    table: Arc<InodeTable>,
    options: FilesOptions,
    owned: RefCell<HashMap<Ino, Rc<FileState>>>,
    budget: Budget,
    uploads: Semaphore,
    /// Uploads started or waiting for their turn.
    uploads_pending: Cell<usize>,
    /// Slice ids in reserve, so that a write does not wait between its checks and its copy.
    spare_ids: RefCell<Vec<SliceId>>,
    /// Seconds, as counted by [`Self::tick`].
    ticks: Cell<u64>,
    /// Times an inode became dirty.
    dirtied: Cell<u64>,
    /// The task that makes room is running.
    relieving: Cell<bool>,
    /// Chunks being compacted.
    compacting: Cell<u32>,
}

impl<B: BlockIo + 'static> Files<B> {
    /// For one core.
    pub fn new(
        meta: Rc<Meta>,
        blocks: Rc<B>,
        runtime: Rc<dyn Runtime>,
        table: Arc<InodeTable>,
        options: FilesOptions,
    ) -> Rc<Files<B>> {
        Rc::new_cyclic(|me| Files {
            me: Weak::clone(me),
            meta,
            blocks,
            runtime,
            table,
            options,
            owned: RefCell::new(HashMap::new()),
            budget: Budget::new(options.buffer_bytes),
            uploads: Semaphore::new(options.uploads),
            uploads_pending: Cell::new(0),
            spare_ids: RefCell::new(Vec::new()),
            ticks: Cell::new(0),
            dirtied: Cell::new(0),
            relieving: Cell::new(false),
            compacting: Cell::new(0),
        })
    }

    /// The table of inodes.
    pub fn table(&self) -> &Arc<InodeTable> {
        &self.table
    }

    /// Makes this core the owner of the inode's data, so that it can serve a write, truncate or fallocate
    /// right away; or says where that has to happen.
    pub fn claim(&self, ino: Ino) -> Claim {
        match self.state_of(ino) {
            Ok(_) => Claim::Mine,
            Err(other) => Claim::Other(other),
        }
    }

    /// Where a read, seek, flush or fsync is to be served.
    pub fn route_read(&self, ino: Ino) -> Route {
        if self.owned.borrow().contains_key(&ino) {
            return Route::Here;
        }
        self.table.route_read(ino, self.options.core)
    }

    fn state_of(&self, ino: Ino) -> Result<Rc<FileState>, CoreId> {
        if let Some(state) = self.owned.borrow().get(&ino) {
            return Ok(Rc::clone(state));
        }
        let shared = self.table.claim(ino, self.options.core)?;
        let state = Rc::new(FileState {
            ino,
            shared,
            gate: RwLock::new(()),
            flush_turn: Mutex::new(()),
            dirty: RefCell::new(Dirty::new(self.blocks.block_bytes())),
            progress: Signal::default(),
            busy: Cell::new(0),
            exclusive: Cell::new(0),
            since: Cell::new((0, 0)),
            flushing: Cell::new(false),
        });
        self.owned.borrow_mut().insert(ino, Rc::clone(&state));
        Ok(state)
    }

    fn begin(&self, state: Rc<FileState>) -> Owned<'_, B> {
        state.busy.set(state.busy.get() + 1);
        Owned { files: self, state }
    }

    /// Begins a change. The caller has claimed the inode on this core.
    fn own(&self, ino: Ino) -> FsResult<Owned<'_, B>> {
        match self.state_of(ino) {
            Ok(state) => Ok(self.begin(state)),
            Err(CoreId(other)) => {
                tracing::error!(%ino, other, "single-owner: a change arrived at a core without a claim");
                Err(FsError::Meta(MetaError::Contended { ino, attempts: 1 }))
            }
        }
    }

    /// Begins a request that needs the state of the inode only if this core owns it.
    fn owned(&self, ino: Ino) -> Option<Owned<'_, B>> {
        let state = self.owned.borrow().get(&ino).cloned()?;
        Some(self.begin(state))
    }

    /// Gives the inode back if nothing is going on.
    fn settle(&self, state: &Rc<FileState>) {
        let mut owned = self.owned.borrow_mut();
        let current = owned
            .get(&state.ino)
            .is_some_and(|now| Rc::ptr_eq(now, state));
        if current && state.is_idle() {
            owned.remove(&state.ino);
            drop(owned);
            self.table.give_back(state.ino, self.options.core);
        }
    }

    /// Runs `attempt` again, after growing pauses, while it fails in a way that may pass.
    async fn retried<T, E: std::fmt::Display>(
        &self,
        passes: impl Fn(&E) -> bool,
        mut attempt: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tries = 0;
        loop {
            match attempt().await {
                Err(error) if tries < self.options.io_retries && passes(&error) => {
                    tries += 1;
                    tracing::warn!(%error, tries, "trying again");
                    self.pause(tries).await;
                }
                answer => return answer,
            }
        }
    }

    async fn pause(&self, tries: u32) {
        let pause = self
            .options
            .retry_pause
            .saturating_mul(tries.saturating_mul(tries));
        self.runtime.sleep(pause.min(RETRY_PAUSE_MAX)).await;
    }

    /// Runs `task` on this core, owned by the runtime.
    fn spawn(&self, task: impl AsyncFnOnce(&Files<B>) + 'static) {
        let Some(files) = self.me.upgrade() else {
            return;
        };
        self.runtime
            .spawn(Box::pin(async move { task(&files).await }));
    }

    /// Once a second: flushes in the background what has been dirty for five, and gives idle inodes back.
    pub fn tick(&self) {
        let now = self.ticks.get() + 1;
        self.ticks.set(now);
        let owned: Vec<Rc<FileState>> = self.owned.borrow().values().cloned().collect();
        for state in owned {
            let aged = state.since.get().0 + DIRTY_TICKS_MAX <= now;
            if aged && state.dirty.borrow().has_open() {
                self.flush_behind(&state);
            }
            self.settle(&state);
        }
    }
}

/// Whether a metadata fault may pass by itself.
fn meta_passes(error: &MetaError) -> bool {
    match error {
        MetaError::Engine(error) => error.is_transient(),
        MetaError::Contended { .. } => true,
        _ => false,
    }
}
