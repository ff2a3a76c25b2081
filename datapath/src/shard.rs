//! Shards: what one core owns, and the tables that cores have in common.
//!
//! A [`Shard`] takes requests from its own queue and from other cores, and serves each to its end. Reading
//! order: [`dispatch`] is the one big match, `data` decides what the owner of an inode's data must do,
//! `listing` and [`dir`] serve directories, [`inode`] says who owns what and publishes the rest.
//!
//! At the end (the file system was unmounted) a shard stops taking requests, waits for those in flight, makes
//! all dirty data durable and ends. Nothing is detached: requests are counted, other tasks have an owner.

mod atime;
pub mod attrs;
pub mod coherence;
mod copy_range;
pub mod data;
pub mod dir;
pub mod dispatch;
pub mod flush_all;
pub mod handed;
pub mod handle;
pub mod inode;
mod ioctl;
pub mod keep_cache;
pub mod listing;
pub mod locks;
pub mod reclaim;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};

use futures_lite::future;
use metrics_exporter_prometheus::PrometheusHandle;
use sluice_meta::client::Meta;
use sluice_meta::error::MetaError;
use sluice_meta::ops::Removed;
use sluice_meta::types::{Attr, FileKind, Ino};

use self::atime::Atimes;
use self::attrs::Timeouts;
use self::coherence::Coherence;
use self::dispatch::Answer;
use self::flush_all::FlushOrder;
use self::handle::Handles;
use self::inode::{CoreId, InodeTable};
use self::keep_cache::KeepCache;
use self::locks::table::LockTable;
use self::reclaim::Unused;
use crate::cache::Blocks;
use crate::commands::Where;
use crate::error::{FsError, FsResult};
use crate::file::Files;
use crate::fuse::notify::Notifier;
use crate::fuse::queue::{QueueError, RequestQueue};
use crate::fuse::request::Request;
use crate::runtime::{Mailbox, PostError, Tasks};

/// What the cores of a mount share.
pub struct Common {
    /// Inode served as the root: 1, or that of `--subdir`.
    pub root: Ino,
    /// How long the kernel may keep what it is told, while changes by others are heard if they have to be.
    pub cache_times: Timeouts,
    /// What must be taken back from the kernel when others change it; `None` if cache times are short or the
    /// store does not tell.
    pub coherence: Option<Coherence>,
    /// `.trash` stays out of listings.
    pub hide_internal: bool,
    /// Handle numbers and open directories.
    pub handles: Handles,
    /// What the kernel may keep at an open.
    pub keep_cache: KeepCache,
    /// Requests for the owner of an inode's data, by core.
    pub mailboxes: Vec<Mailbox<Request>>,
    /// Orders to stop taking requests, by core.
    pub stop: Vec<Mailbox<()>>,
    /// Who holds and who waits for locks.
    pub locks: Arc<LockTable>,
    /// The process's counters.
    pub counters: PrometheusHandle,
    /// Answer to the virtual attribute that tools ask for.
    pub whereabouts: Where,
    /// Orders to flush everything or one file, by core.
    pub flushes: Vec<Mailbox<FlushOrder>>,
    /// Tells the kernel what to forget; there once it is mounted.
    pub notifier: OnceLock<Notifier>,
}

impl Common {
    /// How long the kernel may keep what it is told now.
    pub fn timeouts(&self) -> Timeouts {
        match &self.coherence {
            Some(coherence) => coherence.bounded(self.cache_times),
            None => self.cache_times,
        }
    }
}

/// One core's part of the server.
pub struct Shard {
    core: CoreId,
    common: Arc<Common>,
    table: Arc<InodeTable>,
    meta: Rc<Meta>,
    files: Rc<Files<Blocks>>,
    blocks: Rc<Blocks>,
    /// Serves what hops here; waited for at the end.
    tasks: Tasks,
    /// Access times to be committed.
    atimes: Atimes,
    /// Deletes data; dropped at the end.
    background: Tasks,
    /// What is still to be deleted.
    unused: RefCell<VecDeque<Unused>>,
    /// Tasks that work on `unused`.
    reclaimers: Cell<u32>,
    /// Requests being served.
    in_flight: Cell<u32>,
    /// Who waits for that to become none.
    idle: RefCell<Option<Waker>>,
}

impl Shard {
    /// For core `core`.
    pub fn new(
        core: CoreId,
        common: Arc<Common>,
        table: Arc<InodeTable>,
        meta: Rc<Meta>,
        files: Rc<Files<Blocks>>,
        blocks: Rc<Blocks>,
    ) -> Rc<Shard> {
        Rc::new(Shard {
            core,
            common,
            table,
            meta,
            files,
            blocks,
            tasks: Tasks::new(),
            atimes: Atimes::default(),
            background: Tasks::new(),
            unused: RefCell::new(VecDeque::new()),
            reclaimers: Cell::new(0),
            in_flight: Cell::new(0),
            idle: RefCell::new(None),
        })
    }

    /// This core's file data.
    pub fn files(&self) -> &Rc<Files<Blocks>> {
        &self.files
    }

    /// The directory served as the root.
    pub fn root(&self) -> Ino {
        self.common.root
    }

    /// This core's metadata.
    pub fn meta(&self) -> &Rc<Meta> {
        &self.meta
    }

    /// Serves requests until the file system is unmounted and every request in flight is answered.
    ///
    /// A message in `stop` ends it although the mount is still there.
    pub async fn run(
        self: &Rc<Self>,
        queue: impl RequestQueue + 'static,
        stop: &Mailbox<()>,
    ) -> Result<(), QueueError> {
        let hops = Rc::clone(self);
        self.tasks.spawn(async move { hops.serve_hops().await });
        let flushes = Rc::clone(self);
        self.tasks
            .spawn(async move { flushes.serve_flushes().await });
        let ended = Rc::new(RefCell::new(Ok(())));
        let taking = Tasks::new();
        let (shard, end) = (Rc::clone(self), Rc::clone(&ended));
        taking.spawn(async move {
            let outcome = shard.serve_queue(&queue).await;
            *end.borrow_mut() = outcome;
        });
        let stopped = async {
            stop.recv().await;
            taking.cancel();
        };
        future::or(taking.finished(), stopped).await;
        // Who waits for a lock would wait for ever.
        self.common.locks.close();
        self.drained().await;
        ended.replace(Ok(()))
    }

    /// This mount must not go on: somebody changed the volume under it. Everything dirty is made durable first.
    pub fn stop(&self, reason: &dyn std::fmt::Display) {
        tracing::error!(%reason, "the mount stops");
        for stop in &self.common.stop {
            // Full: it was told already.
            let _ = stop.post(());
        }
    }

    async fn serve_queue(self: &Rc<Self>, queue: &impl RequestQueue) -> Result<(), QueueError> {
        loop {
            match queue.next().await {
                Ok(request) => self.begin(request),
                Err(QueueError::Unmounted | QueueError::Aborted) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn serve_hops(self: Rc<Self>) {
        let mailbox = &self.common.mailboxes[usize::from(self.core.0)];
        while let Some(request) = mailbox.recv().await {
            self.begin(request);
        }
    }

    /// Serves a request in a task of its own, which runs at once and, if it needs not wait, to its end.
    fn begin(self: &Rc<Self>, request: Request) {
        self.in_flight.set(self.in_flight.get() + 1);
        let shard = Rc::clone(self);
        let service = async move {
            Rc::clone(&shard).serve(request).await;
            shard.in_flight.set(shard.in_flight.get() - 1);
            if shard.in_flight.get() == 0
                && let Some(waiter) = shard.idle.take()
            {
                waiter.wake();
            }
        };
        drop(glommio::spawn_local(service).detach());
    }

    /// Waits until no request is in flight on this core.
    async fn drained(&self) {
        poll_fn(|context| {
            if self.in_flight.get() == 0 {
                return Poll::Ready(());
            }
            self.idle.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// After every core has stopped taking requests: what hopped here last, all dirty data, the statistics.
    /// Answers whether everything is durable.
    pub async fn finish(&self) -> FsResult<()> {
        self.common.mailboxes[usize::from(self.core.0)].close();
        self.common.flushes[usize::from(self.core.0)].close();
        self.tasks.finished().await;
        self.drained().await;
        self.atimes.finished().await;
        self.background.cancel();
        self.files.flush_all().await?;
        self.meta.flush_dir_stats().await?;
        self.meta.sync().await?;
        Ok(())
    }

    /// Passes a request to the core that owns the inode's data.
    fn hop(&self, core: CoreId, request: Request) {
        let Some(mailbox) = self.common.mailboxes.get(usize::from(core.0)) else {
            request.error(libc::EIO);
            return;
        };
        // Full: more hops outstanding than requests can be. Closed: the mount ends.
        if let Err(PostError::Full(request) | PostError::Closed(request)) = mailbox.post(request) {
            request.error(libc::EIO);
        }
    }

    /// The inode of a node id: the kernel calls the root 1, whatever is mounted there.
    fn ino(&self, nodeid: u64) -> Ino {
        if nodeid == Ino::ROOT.0 {
            self.common.root
        } else {
            Ino(nodeid)
        }
    }

    /// A tool changed something past this server: the kernel shall forget the name `value` in a directory, and
    /// the directory's attributes. Sent after the answer, for the kernel holds the directory's lock until then.
    async fn forget(&self, nodeid: u64, value: &[u8]) -> FsResult<Answer> {
        const NAME_BYTES_MAX: usize = 255;
        let is_name = !value.is_empty()
            && value.len() <= NAME_BYTES_MAX
            && !value.iter().any(|byte| matches!(byte, b'/' | 0))
            && !matches!(value, b"." | b"..");
        if !is_name {
            return Err(FsError::Invalid("not a name to forget"));
        }
        match self.meta.getattr(self.ino(nodeid)).await {
            Ok(attr) if attr.kind == FileKind::Directory => {}
            // Removed by the tool itself: its names go with it.
            Err(MetaError::NotFound) => {}
            Ok(_) => return Err(FsError::Invalid("only a directory has names to forget")),
            Err(error) => return Err(error.into()),
        }
        let Some(notifier) = self.common.notifier.get() else {
            return Err(FsError::NotSupported);
        };
        notifier.entry(nodeid, value);
        notifier.inode(nodeid, -1, 0);
        Ok(Answer::Empty)
    }

    /// An entry with attributes that are up to date.
    fn entry(&self, (ino, attr): (Ino, Attr)) -> FsResult<Answer> {
        Ok(Answer::Entry(self.common.timeouts().entry_reply(
            ino,
            &attr,
            Default::default(),
        )))
    }

    /// Starts deleting the data of a removed or replaced file.
    fn removed(self: &Rc<Self>, removed: Option<Removed>) {
        if let Some(Removed {
            ino,
            deleted: Some(length),
        }) = removed
        {
            self.reclaim(ino, length);
        }
    }
}
