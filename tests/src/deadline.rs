//! Bounded waiting: for a process to end, for a condition to hold.
//!
//! Used by everything here that starts a process. No wait in the tests is without a deadline, and none
//! is a plain sleep: a process is waited for through its pidfd, a condition is looked at again and again
//! until it holds or the deadline passes. `SLUICE_TEST_PATIENCE` multiplies every deadline (a slow
//! machine, a debugger).

use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long a condition is left alone before it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// `seconds`, times the patience asked for.
pub fn patience(seconds: u64) -> Duration {
    let factor = std::env::var("SLUICE_TEST_PATIENCE")
        .ok()
        .and_then(|text| text.parse().ok());
    Duration::from_secs(seconds * factor.unwrap_or(1))
}

/// Waits until `holds` answers true; fails with `what` when `limit` has passed.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        if holds().with_context(|| format!("while waiting until {what}"))? {
            return Ok(());
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain until {what}");
        }
        std::thread::park_timeout(LOOK_AGAIN);
    }
}

/// Waits for `child` to end; `None` when it has not within `limit`.
pub fn wait_child(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    poll(
        &mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)],
        Some(&limit),
    )?;
    Ok(child.try_wait()?)
}
