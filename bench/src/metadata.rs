//! Loops of metadata calls: empty files of one directory are made, looked at, removed.
//!
//! Each thread has names of its own in the shared directory, so threads contend for the directory and not for
//! names. Every call is timed by itself; the clock costs some 30 ns of each. Any error ends the case.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use crate::accounting::{self, Usage};
use crate::sample::{Work, percentile};

/// One call, repeated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// open(O_CREAT | O_EXCL) and close. The directory is made first.
    Create,
    /// stat.
    Stat,
    /// unlink. The directory is removed afterwards.
    Unlink,
}

impl Call {
    fn apply(self, path: &Path) -> io::Result<()> {
        match self {
            Call::Create => File::create_new(path).map(drop),
            Call::Stat => path.symlink_metadata().map(drop),
            Call::Unlink => std::fs::remove_file(path),
        }
    }
}

/// Applies the call to `files` files in `dir`, shared out among the threads.
pub(crate) fn run(call: Call, dir: &Path, files: u32, threads: u32) -> Result<Work> {
    if call == Call::Create {
        std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let work = run_threads(call, dir, files, threads)?;
    if call == Call::Unlink {
        std::fs::remove_dir(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(work)
}

/// What one thread did.
struct Share {
    start: Instant,
    end: Instant,
    nanoseconds: Vec<u64>,
    usage: Usage,
}

fn run_threads(call: Call, dir: &Path, files: u32, threads: u32) -> Result<Work> {
    let barrier = Barrier::new(threads as usize);
    let shares: Vec<Share> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                let paths = names(dir, files, threads, thread);
                scope.spawn(move || run_share(call, &paths, barrier))
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect::<Result<_>>()
    })?;
    Ok(together(shares))
}

fn names(dir: &Path, files: u32, threads: u32, thread: u32) -> Vec<PathBuf> {
    (thread..files)
        .step_by(threads as usize)
        .map(|index| dir.join(format!("file.{index:08}")))
        .collect()
}

fn run_share(call: Call, paths: &[PathBuf], barrier: &Barrier) -> Result<Share> {
    let mut nanoseconds = Vec::with_capacity(paths.len());
    barrier.wait();
    let before = accounting::of_this_thread()?;
    let start = Instant::now();
    let mut last = start;
    for path in paths {
        call.apply(path)
            .with_context(|| format!("{call:?} of {}", path.display()))?;
        let now = Instant::now();
        nanoseconds.push(u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX));
        last = now;
    }
    Ok(Share {
        start,
        end: last,
        nanoseconds,
        usage: accounting::of_this_thread()? - before,
    })
}

fn together(shares: Vec<Share>) -> Work {
    let start = shares.iter().map(|share| share.start).min();
    let end = shares.iter().map(|share| share.end).max();
    let seconds = match (start, end) {
        (Some(start), Some(end)) => (end - start).as_secs_f64(),
        _ => 0.0,
    };
    let client = shares
        .iter()
        .fold(Usage::default(), |sum, share| sum + share.usage);
    let mut sorted: Vec<u64> = shares
        .into_iter()
        .flat_map(|share| share.nanoseconds)
        .collect();
    sorted.sort_unstable();
    Work {
        operations: sorted.len() as u64,
        bytes: 0,
        seconds,
        latency_us_p50: percentile(&sorted, 50) as f64 / 1e3,
        latency_us_p99: percentile(&sorted, 99) as f64 / 1e3,
        client,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_looked_at_and_removed() {
        for threads in [1, 2, 3] {
            let scratch = tempfile::tempdir().unwrap();
            let dir = scratch.path().join("files");
            for (call, left) in [
                (Call::Create, Some(7)),
                (Call::Stat, Some(7)),
                (Call::Unlink, None),
            ] {
                let work = run(call, &dir, 7, threads).unwrap();
                assert_eq!((work.operations, work.bytes), (7, 0), "{call:?}");
                assert!(work.seconds > 0.0 && work.latency_us_p50 <= work.latency_us_p99);
                let found = std::fs::read_dir(&dir).ok().map(Iterator::count);
                assert_eq!(found, left, "{call:?} by {threads}");
            }
        }
    }

    #[test]
    fn an_error_ends_the_case() {
        let scratch = tempfile::tempdir().unwrap();
        let error = run(Call::Stat, &scratch.path().join("none"), 4, 2).unwrap_err();
        assert!(format!("{error:#}").contains("Stat of"), "{error:#}");
    }
}
