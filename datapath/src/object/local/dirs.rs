//! Directories of a local store: made once, synced in batches.
//!
//! Called by puts. Known here: directories that exist and whose names are durable, so that a put into a
//! known one costs one hash lookup; and the syncs that run or are waited for (`one-sync-for-many`).
//!
//! A sync runs as a task of its own: a put that is dropped does not take those along who share its sync.
//! Synced by `fsync`, not `fdatasync`: ext4 lets the latter skip directories whose size did not change.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::ObjectSync;
use crate::runtime::{Tasks, blocking};

/// A failed sync is told to everybody who shared it.
type SyncResult = Result<(), Arc<io::Error>>;

/// See the module.
pub(super) struct Dirs {
    bucket: PathBuf,
    sync: ObjectSync,
    known: RefCell<HashSet<PathBuf>>,
    syncs: Rc<Syncs>,
    tasks: Tasks,
}

/// Shared with the tasks that sync.
#[derive(Default)]
struct Syncs {
    /// Directories with a sync running, and the puts that wait for the one after it.
    waiting: RefCell<HashMap<PathBuf, Vec<oneshot::Sender<SyncResult>>>>,
    started: Cell<u64>,
}

impl Dirs {
    pub(super) fn new(bucket: PathBuf, sync: ObjectSync) -> Dirs {
        let (known, syncs) = (RefCell::default(), Rc::default());
        Dirs {
            bucket,
            sync,
            known,
            syncs,
            tasks: Tasks::new(),
        }
    }

    /// Syncs started so far.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.started.get()
    }

    /// Makes `dir` and those above it, up to the bucket, where they are missing.
    pub(super) async fn ensure(&self, dir: &Path) -> io::Result<()> {
        // From the first one that is known, or the bucket, downwards.
        let mut missing = Vec::new();
        for above in dir.ancestors() {
            if self.known.borrow().contains(above) {
                break;
            }
            missing.push(above.to_owned());
            if above == self.bucket {
                break;
            }
        }
        for dir in missing.into_iter().rev() {
            let (job, sync) = (dir.clone(), self.sync);
            blocking(move || make(&job, sync)).await?;
            self.known.borrow_mut().insert(dir);
        }
        Ok(())
    }

    /// `dir` turned out not to exist: look at it and those above it again.
    pub(super) fn forget(&self, dir: &Path) {
        let mut known = self.known.borrow_mut();
        for above in dir.ancestors() {
            known.remove(above);
        }
    }

    /// Completes when a sync of `dir` that started after this call has ended.
    pub(super) async fn sync(&self, dir: &Path) -> io::Result<()> {
        let (done, is_done) = oneshot::channel();
        if self.syncs.join(dir, done) == Joined::First {
            self.tasks
                .spawn(run_syncs(Rc::clone(&self.syncs), dir.to_owned()));
        }
        match is_done.await {
            Ok(result) => result.map_err(|error| io::Error::new(error.kind(), error.to_string())),
            Err(_) => Err(io::Error::other(
                "the store was closed before its directory was synced",
            )),
        }
    }
}

/// Whether somebody syncs the directory already.
#[derive(PartialEq, Eq)]
enum Joined {
    First,
    Others,
}

impl Syncs {
    fn join(&self, dir: &Path, done: oneshot::Sender<SyncResult>) -> Joined {
        let mut waiting = self.waiting.borrow_mut();
        match waiting.get_mut(dir) {
            Some(waiting) => {
                waiting.push(done);
                Joined::Others
            }
            None => {
                waiting.insert(dir.to_owned(), vec![done]);
                Joined::First
            }
        }
    }

    /// Those whom a sync that starts now serves. When there are none, nobody syncs `dir` any more.
    fn take(&self, dir: &Path) -> Option<Vec<oneshot::Sender<SyncResult>>> {
        let mut waiting = self.waiting.borrow_mut();
        let batch = waiting.get_mut(dir).map(std::mem::take).unwrap_or_default();
        if batch.is_empty() {
            waiting.remove(dir);
            return None;
        }
        self.started.set(self.started.get() + 1);
        Some(batch)
    }
}

/// Syncs `dir` until nobody waits for it.
async fn run_syncs(syncs: Rc<Syncs>, dir: PathBuf) {
    while let Some(batch) = syncs.take(&dir) {
        let job = dir.clone();
        let synced = blocking(move || fsync(&job)).await.map_err(Arc::new);
        for done in batch {
            // A put that was dropped does not listen.
            let _ = done.send(synced.clone());
        }
    }
}

/// Makes one directory and its name durable. Blocks.
fn make(dir: &Path, sync: ObjectSync) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // Only the bucket's parents can be missing: the others were made before.
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir_all(dir)?,
        Err(error) => return Err(error),
    }
    match (sync, dir.parent()) {
        // Also if it was there: whoever made it may not have synced it.
        (ObjectSync::Full, Some(parent)) if !parent.as_os_str().is_empty() => fsync(parent),
        _ => Ok(()),
    }
}

fn fsync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
