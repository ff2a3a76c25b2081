//! What a core does beside requests: flush what is old, write statistics, and on core 0 keep the session
//! alive and clean up after others. Every pass is bounded and waits on a timer, never on a poll.

use std::rc::Rc;
use std::time::Duration;

use sluice_meta::jobs::DeletedFile;
use sluice_meta::jobs::session::{Reload, Session};
use sluice_meta::limits;

use crate::commands::Failure;
use crate::runtime::{Tasks, Timer};
use crate::shard::Shard;

/// How often deleted files that nobody reclaimed are looked for.
const CLEAN_UP: Duration = Duration::from_secs(3600);

/// Starts the tasks of a core; `background` owns them.
pub fn start(
    shard: &Rc<Shard>,
    session: Option<Rc<Session>>,
    jobs: bool,
    heartbeat: Duration,
    background: &Tasks,
) {
    let ticking = Rc::clone(shard);
    background.spawn(async move {
        loop {
            Timer::new(limits::DIR_STAT_FLUSH).await;
            ticking.files().tick();
            if let Err(error) = ticking.meta().flush_dir_stats().await {
                tracing::warn!(%error, "directory statistics stay for the next try");
            }
        }
    });
    let Some(session) = session else { return };
    let beating = Rc::clone(shard);
    background.spawn(async move {
        loop {
            Timer::new(heartbeat).await;
            beat(&beating, &session).await;
            if jobs {
                clean_up_sessions(&beating, heartbeat).await;
            }
        }
    });
    if jobs {
        let cleaning = Rc::clone(shard);
        background.spawn(async move {
            loop {
                clean_up_files(&cleaning).await;
                Timer::new(CLEAN_UP).await;
            }
        });
    }
}

async fn beat(shard: &Rc<Shard>, session: &Session) {
    match session.heartbeat(shard.meta()).await {
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

async fn clean_up_files(shard: &Rc<Shard>) {
    match shard.meta().collect_deleted_files().await {
        Ok(files) => reclaim(shard, files),
        Err(error) => tracing::warn!(%error, "looking for deleted files failed"),
    }
}

fn reclaim(shard: &Rc<Shard>, files: Vec<DeletedFile>) {
    for DeletedFile { ino, length } in files {
        shard.reclaim(ino, length);
    }
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
