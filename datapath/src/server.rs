//! The server of one mount: boot order and its mirror, the order of shutdown.
//!
//! Boot: 1. `prepare` opens the metadata store, loads the setting, builds what cores share; nothing is
//! changed yet. 2. Executors start, each connects to the metadata; if one cannot, none serves. 3. The mount and
//! its INIT handshake. 4. Core 0 registers the session. 5. All cores serve.
//!
//! Shutdown mirrors it: the kernel's unmount (or the stop order) ends every core's queue; when *all* have stopped
//! taking requests, each finishes what hopped to it and makes its dirty data durable; then core 0 ends the
//! session; then the executors end, the remote side stops and the process may exit.

pub mod gauges;
pub mod housekeeping;
pub mod prepare;
pub mod signals;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use async_lock::Barrier;
use metrics_exporter_prometheus::PrometheusBuilder;
use sluice_meta::client::Meta;
use sluice_meta::jobs::session::{Session as MetaSession, SessionInfo};

use self::housekeeping::Background;
use self::prepare::Prepared;
use crate::cache::Blocks;
use crate::commands::Failure;
use crate::file::Files;
use crate::fuse::mount::{MountSpec, Mounted};
use crate::fuse::session::{Session, SessionOptions};
use crate::runtime::{Cores, GlommioRuntime, Mailbox, Remote, run_on_one};
use crate::shard::inode::{CoreId, InodeTable};
use crate::shard::{Common, Shard};

/// What cores and the main thread tell each other.
struct Control {
    /// Told to each core after boot: the connection, or that there is none.
    start: Vec<Mailbox<Option<Arc<Session>>>>,
    /// All cores, at the steps of boot and shutdown.
    step: Barrier,
}

/// A core's report after its part of the boot.
type Report = Result<(), Failure>;

/// Mounts and serves until the file system is unmounted. `ready` is called once it is being served.
pub fn serve(
    prepared: Prepared,
    spec: &MountSpec,
    mount: impl FnOnce(&MountSpec) -> Result<Mounted, Failure>,
    ready: impl FnOnce(&Session) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let count = prepared.cores;
    // Before anything takes handles of counters.
    let counters = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| Failure(format!("cannot set up the counters: {error}")))?;
    let remote = match prepared.needs_remote() {
        true => Some(Remote::start().map_err(|error| {
            Failure(format!("cannot start the remote side's runtime: {error}"))
        })?),
        false => None,
    };
    let prepared = Arc::new(prepared);
    let cache = prepared.open_cache(remote.as_ref())?;
    let closing = Arc::clone(&cache);
    let control = Arc::new(Control {
        start: (0..count).map(|_| Mailbox::new(1)).collect(),
        step: Barrier::new(count),
    });
    let common = Arc::new(prepared.common(counters));
    let table = InodeTable::new();
    let (report, reports) = mpsc::channel();
    let cores = {
        let (prepared, control) = (Arc::clone(&prepared), Arc::clone(&control));
        let common = Arc::clone(&common);
        // Others know us by the whole path.
        let mountpoint =
            std::path::absolute(&spec.mountpoint).unwrap_or_else(|_| spec.mountpoint.clone());
        Cores::start(Some(count), move |index| {
            let core = Core {
                id: CoreId(index as u16),
                prepared: Arc::clone(&prepared),
                control: Arc::clone(&control),
                common: Arc::clone(&common),
                table: Arc::clone(&table),
                cache: cache.clone(),
                mountpoint: mountpoint.clone(),
            };
            let report = report.clone();
            async move { core.run(report).await }
        })
        .map_err(Failure::from_error)?
    };
    let mut options = prepared.session_options();
    // Without a session no lock can be held in the store.
    options.negotiate.locks = !prepared.read_only;
    let started = boot(&reports, &prepared, spec, &options, mount);
    let session = started.as_ref().ok().map(Arc::clone);
    match session.as_ref().map(|session| session.notifier()) {
        // The first and only time.
        Some(Ok(notifier)) => drop(common.notifier.set(notifier)),
        Some(Err(error)) => {
            tracing::warn!(%error, "no thread for notifications: caches end with their timeouts");
        }
        None => {}
    }
    for start in &control.start {
        // The mailbox is empty and its core waits at it.
        let _ = start.post(session.clone());
    }
    let outcome = match started {
        Ok(session) => run_mounted(&session, &common, &reports, count, ready),
        Err(failure) => Err(failure),
    };
    let finished = cores.join().map_err(Failure::from_error)?;
    if let Some(remote) = remote {
        run_on_one(|| async { closing.close().await }).map_err(Failure::from_error)?;
        remote.stop();
    }
    outcome?;
    finished.into_iter().collect()
}

/// Waits until every core is ready, then mounts.
fn boot(
    reports: &mpsc::Receiver<Report>,
    prepared: &Prepared,
    spec: &MountSpec,
    options: &SessionOptions,
    mount: impl FnOnce(&MountSpec) -> Result<Mounted, Failure>,
) -> Result<Arc<Session>, Failure> {
    collect(reports, prepared.cores)?;
    let mounted = mount(spec)?;
    let session = Session::start(mounted, options).map_err(Failure::from_error)?;
    Ok(Arc::new(session))
}

/// Waits until every core serves, says so, and watches for signals until the mount ends.
fn run_mounted(
    session: &Arc<Session>,
    common: &Arc<Common>,
    reports: &mpsc::Receiver<Report>,
    count: usize,
    ready: impl FnOnce(&Session) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let watch = {
        let (session, common) = (Arc::clone(session), Arc::clone(common));
        signals::watch(move |urgent| match urgent {
            false => session.unmount(false).or_else(|error| {
                tracing::warn!(%error, "the mount is in use: it is detached and ends with its last user");
                session.unmount(true)
            }),
            true => {
                common.stop.iter().for_each(|stop| drop(stop.post(())));
                Ok(())
            }
        })
        .map_err(|error| Failure(format!("cannot watch for signals: {error}")))?
    };
    let outcome = collect(reports, count).and_then(|()| ready(session));
    if let Err(failure) = outcome {
        if let Err(error) = session.unmount(true) {
            tracing::error!(%error, "cannot unmount");
        }
        common.stop.iter().for_each(|stop| drop(stop.post(())));
        drop(watch);
        return Err(failure);
    }
    // The last report of each core comes when it has ended.
    let ended = collect(reports, count);
    drop(watch);
    ended
}

/// One report from each core; the first failure among them.
fn collect(reports: &mpsc::Receiver<Report>, count: usize) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for _ in 0..count {
        let report = reports.recv().unwrap_or_else(|_| {
            Err(Failure(
                "a core ended unexpectedly: see its panic".to_owned(),
            ))
        });
        if outcome.is_ok() {
            outcome = report;
        }
    }
    outcome
}

/// What a core is given.
struct Core {
    id: CoreId,
    prepared: Arc<Prepared>,
    control: Arc<Control>,
    common: Arc<Common>,
    table: Arc<InodeTable>,
    cache: prepare::SharedCache,
    mountpoint: PathBuf,
}

impl Core {
    fn index(&self) -> usize {
        usize::from(self.id.0)
    }

    /// The life of a core. Reports three times: ready to serve, serving, ended.
    async fn run(self, report: mpsc::Sender<Report>) -> Result<(), Failure> {
        let runtime = Rc::new(GlommioRuntime::new());
        let shard = match self.connect(&runtime).await {
            Ok(shard) => {
                let _ = report.send(Ok(()));
                Some(shard)
            }
            Err(failure) => {
                let _ = report.send(Err(failure));
                None
            }
        };
        let session = self.control.start[self.index()].recv().await.flatten();
        let outcome = match (shard, session) {
            (Some(shard), Some(session)) => self.serve(&shard, &session, &report).await,
            // Another core could not start, or the mount failed: main has the reason.
            _ => Ok(()),
        };
        runtime.shutdown();
        outcome
    }

    async fn connect(&self, runtime: &Rc<GlommioRuntime>) -> Result<Rc<Shard>, Failure> {
        let runtime: Rc<dyn sluice_meta::runtime::Runtime> = Rc::clone(runtime) as _;
        let engine = self
            .prepared
            .store
            .connect(Rc::clone(&runtime))
            .await
            .map_err(Failure::from_store)?;
        let meta = Rc::new(Meta::new(
            Rc::new(engine),
            Rc::clone(&runtime),
            Arc::clone(&self.prepared.shared),
        ));
        let blocks: Rc<Blocks> = Rc::new(self.prepared.blocks(&self.cache));
        let files = Files::new(
            Rc::clone(&meta),
            Rc::clone(&blocks),
            runtime,
            Arc::clone(&self.table),
            self.prepared.files_options(self.id),
        );
        Ok(Shard::new(
            self.id,
            Arc::clone(&self.common),
            Arc::clone(&self.table),
            meta,
            files,
            blocks,
        ))
    }

    async fn serve(
        &self,
        shard: &Rc<Shard>,
        session: &Arc<Session>,
        report: &mpsc::Sender<Report>,
    ) -> Result<(), Failure> {
        let registered = self.register(shard).await;
        // Nobody serves before the session is there: without it an unlinked open file would be lost.
        self.control.step.wait().await;
        let queue = session.queue_for_core().map_err(Failure::from_error);
        let background = Background::new();
        let (session, served) = match (registered, queue) {
            (Ok(registered), Ok(queue)) => {
                let _ = report.send(Ok(()));
                housekeeping::start(
                    shard,
                    registered.as_ref().map(Rc::clone),
                    self.prepared.jobs,
                    self.prepared.heartbeat,
                    &background,
                );
                if self.index() == 0 && self.prepared.read_only {
                    housekeeping::watch(shard, self.prepared.heartbeat, &background);
                }
                if self.index() == 0 {
                    housekeeping::follow(shard, &background);
                }
                let stop = &self.common.stop[self.index()];
                let served = shard.run(queue, stop).await.map_err(Failure::from_error);
                (registered, served)
            }
            (Err(failure), _) | (_, Err(failure)) => {
                let _ = report.send(Err(failure));
                (None, Ok(()))
            }
        };
        self.control.step.wait().await;
        background.end().await;
        let finished = shard
            .finish()
            .await
            .map_err(|error| Failure(format!("not everything could be made durable: {error}")));
        self.control.step.wait().await;
        let ended = match session {
            Some(session) => housekeeping::end_session(shard, session).await,
            None => Ok(()),
        };
        let outcome = served.and(finished).and(ended);
        let _ = report.send(match &outcome {
            Ok(()) => Ok(()),
            Err(failure) => Err(Failure(failure.0.clone())),
        });
        outcome
    }

    /// Core 0 registers the session of the mount.
    async fn register(&self, shard: &Shard) -> Result<Option<Rc<MetaSession>>, Failure> {
        let meta = shard.meta();
        if self.index() != 0 {
            return Ok(None);
        }
        if self.prepared.read_only {
            // `df` shows them.
            let loaded = meta.load_quotas().await;
            return loaded
                .map(|()| None)
                .map_err(|error| Failure(format!("cannot load the quotas: {error}")));
        }
        let info = SessionInfo::of_this_process(&self.mountpoint.to_string_lossy(), meta.now());
        let session = MetaSession::register(meta, &info, self.prepared.heartbeat)
            .await
            .map_err(|error| Failure(format!("cannot register a session: {error}")))?;
        Ok(Some(Rc::new(session)))
    }
}
