//! What a core does beside requests: flush what is old, write statistics, and on core 0 keep the session
//! alive and clean up after others. Every pass is bounded and waits on a timer, never on a poll.
//!
//! The hourly round of core 0, each part under its own lock among all clients: deleted files that nobody
//! reclaimed, the trash, slices that compactions replaced, slices without references. Nothing is deleted here:
//! what the jobs find goes to the core's queue (`shard::reclaim`).
//!
//! At the end ([`Background::end`]) the statistics are waited for, so that none that were taken for writing are
//! lost; the rest is dropped where it is, for every commit of a job stands by itself and the next run goes on.

use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_lite::future;
use metrics::{counter, histogram};
use sluice_meta::client::MetaResult;
use sluice_meta::jobs::session::{Reload, Session};
use sluice_meta::jobs::trash::FileSink;
use sluice_meta::jobs::{DeadSlice, DeletedFile};
use sluice_meta::limits;

use super::gauges::Gauges;
use crate::commands::Failure;
use crate::runtime::{Mailbox, Tasks, Timer};
use crate::shard::Shard;

/// How often the hourly round is made.
const CLEAN_UP: Duration = Duration::from_secs(3600);

/// Usage of quotas is written with every so many statistics, by one core for all.
const QUOTA_TICKS: u64 = limits::QUOTA_FLUSH.as_secs() / limits::DIR_STAT_FLUSH.as_secs();

/// The tasks of a core.
pub struct Background {
    /// Heartbeat and jobs: dropped at the end.
    jobs: Tasks,
    /// Writes statistics: waited for at the end.
    flusher: Tasks,
    /// Tells the flusher to end.
    stop: Rc<Mailbox<()>>,
}

impl Background {
    /// No tasks yet.
    pub fn new() -> Background {
        Background {
            jobs: Tasks::new(),
            flusher: Tasks::new(),
            stop: Rc::new(Mailbox::new(1)),
        }
    }

    /// Ends all of them; completes when nothing of theirs is under way.
    pub async fn end(&self) {
        self.jobs.cancel();
        // Full: it was told already.
        let _ = self.stop.post(());
        self.flusher.finished().await;
    }
}

impl Default for Background {
    fn default() -> Background {
        Background::new()
    }
}

/// Starts the tasks of a core; `background` owns them.
pub fn start(
    shard: &Rc<Shard>,
    session: Option<Rc<Session>>,
    jobs: bool,
    heartbeat: Duration,
    background: &Background,
) {
    let (ticking, stop) = (Rc::clone(shard), Rc::clone(&background.stop));
    let charges = session.is_some();
    background.flusher.spawn(async move {
        let mut ticks: u64 = 0;
        while tick_due(&stop).await {
            ticks += 1;
            ticking.files().tick();
            if let Err(error) = ticking.meta().flush_dir_stats().await {
                tracing::warn!(%error, "directory statistics stay for the next try");
            }
            if charges
                && ticks.is_multiple_of(QUOTA_TICKS)
                && let Err(error) = ticking.meta().flush_quotas().await
            {
                tracing::warn!(%error, "usage of quotas stays for the next try");
            }
        }
    });
    let Some(session) = session else { return };
    let beating = Rc::clone(shard);
    background.jobs.spawn(async move {
        let mut gauges = Gauges::default();
        loop {
            gauges.refresh(&beating).await;
            Timer::new(heartbeat).await;
            beat(&beating, &session).await;
            if jobs {
                clean_up_sessions(&beating, heartbeat).await;
            }
        }
    });
    if jobs {
        let cleaning = Rc::clone(shard);
        background.jobs.spawn(async move {
            loop {
                clean_up(&cleaning).await;
                Timer::new(CLEAN_UP).await;
            }
        });
    }
}

/// Waits for the next tick; `false` when told to stop.
async fn tick_due(stop: &Mailbox<()>) -> bool {
    let tick = async {
        Timer::new(limits::DIR_STAT_FLUSH).await;
        true
    };
    let stopped = async {
        stop.recv().await;
        false
    };
    future::or(stopped, tick).await
}

/// Hears of other clients' changes, if the kernel may keep things for long and the store tells.
pub fn follow(shard: &Rc<Shard>, background: &Background) {
    if !shard.follows() {
        return;
    }
    if let Some(watch) = shard.meta().engine().watch() {
        background.jobs.spawn(Rc::clone(shard).follow(watch));
    }
}

/// What a read-only mount needs instead of a session: setting, usage and quotas as they change.
pub fn watch(shard: &Rc<Shard>, heartbeat: Duration, background: &Background) {
    let watching = Rc::clone(shard);
    background.jobs.spawn(async move {
        let mut gauges = Gauges::default();
        loop {
            gauges.refresh(&watching).await;
            Timer::new(heartbeat).await;
            heed(&watching, watching.meta().reload_setting().await);
        }
    });
}

async fn beat(shard: &Rc<Shard>, session: &Session) {
    heed(shard, session.heartbeat(shard.meta()).await);
}

fn heed(shard: &Shard, reload: MetaResult<Reload>) {
    match reload {
        Ok(Reload::Unchanged) => {}
        Ok(Reload::Changed) => tracing::info!("the volume's setting changed and is in force"),
        Ok(Reload::Stop(reason)) => shard.stop(&reason),
        Err(error) => tracing::error!(%error, "heartbeat failed"),
    }
}

/// One client of the volume at a time does this, once per heartbeat.
async fn clean_up_sessions(shard: &Rc<Shard>, heartbeat: Duration) {
    match shard.meta().clean_stale_sessions(heartbeat).await {
        Ok(files) => reclaim(shard, files),
        Err(error) => tracing::warn!(%error, "cleaning up after dead sessions failed"),
    }
}

/// The hourly round.
async fn clean_up(shard: &Rc<Shard>) {
    let meta = shard.meta();
    count("cleanupFiles", async {
        let files = meta.collect_deleted_files().await?;
        let count = files.len() as u64;
        reclaim(shard, files);
        Ok(count)
    })
    .await;
    match meta.take_trash_job().await {
        Ok(true) => {
            count("cleanTrashFile", async {
                let expired = meta.expire_trash(&Reclaimer(shard)).await?;
                Ok(expired.entries)
            })
            .await;
            count("cleanDelayedSlice", async {
                Ok(reclaim_slices(shard, meta.expire_delayed_slices().await?))
            })
            .await;
        }
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "whether to empty the trash could not be found out"),
    }
    count("cleanupSlices", async {
        Ok(reclaim_slices(shard, meta.collect_dead_slices().await?))
    })
    .await;
}

/// Runs a job and counts what it found, by the names that JuiceFS's counters use.
async fn count(job: &'static str, work: impl Future<Output = MetaResult<u64>>) {
    let start = Instant::now();
    let status = match work.await {
        Ok(found) => {
            counter!("sluice_bgjob_deletions_total", "job" => job).increment(found);
            if found > 0 {
                tracing::info!(job, found, "background job");
            }
            "success"
        }
        Err(error) => {
            tracing::warn!(job, %error, "background job failed and goes on in an hour");
            "fail"
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    histogram!("sluice_bgjob_duration_seconds", "job" => job, "status" => status).record(seconds);
}

/// Queues what the trash lets go of.
struct Reclaimer<'a>(&'a Rc<Shard>);

impl FileSink for Reclaimer<'_> {
    fn deleted(&self, file: DeletedFile) {
        self.0.reclaim(file.ino, file.length);
    }
}

fn reclaim(shard: &Rc<Shard>, files: Vec<DeletedFile>) {
    for DeletedFile { ino, length } in files {
        shard.reclaim(ino, length);
    }
}

fn reclaim_slices(shard: &Rc<Shard>, slices: Vec<DeadSlice>) -> u64 {
    let count = slices.len() as u64;
    for slice in slices {
        shard.reclaim_slice(slice);
    }
    count
}

/// Ends the session after all cores have finished, and deletes what it was the last to hold.
pub async fn end_session(shard: &Rc<Shard>, session: Rc<Session>) -> Result<(), Failure> {
    let session = Rc::try_unwrap(session)
        .map_err(|_| Failure("the session is still in use at its end".to_owned()))?;
    let files = session
        .end(shard.meta())
        .await
        .map_err(|error| Failure(format!("the session could not be ended: {error}")))?;
    for DeletedFile { ino, length } in files {
        shard.reclaim_now(ino, length).await;
    }
    shard.meta().sync().await.map_err(Failure::from_error)
}
