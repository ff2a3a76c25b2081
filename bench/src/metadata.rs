//! Loops of metadata calls: empty files and directories are made, looked at, renamed, removed.
//!
//! Each thread has names of its own, so threads contend for a shared directory and not for names. Every call is timed by itself; the clock costs some 30 ns of each. Any error ends the case.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use crate::accounting::{self, Usage};
use crate::sample::{Work, percentile};

/// One call, repeated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    /// open(O_CREAT | O_EXCL) and close. The directories are made first.
    Create,
    /// stat.
    Stat,
    /// readdir of everything and fstatat of each entry: one operation is one entry, its latency its share.
    List,
    /// rename to another name in the same directory, and afterwards back: two operations for each file.
    Rename,
    /// unlink. The directories are removed afterwards.
    Unlink,
    /// mkdir. The directories above are made first.
    Mkdir,
    /// rmdir. The directories above are removed afterwards.
    Rmdir,
}

/// Which directories the threads work in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    /// All in one.
    Shared,
    /// Each in its own.
    Private,
}

impl Layout {
    /// The directory of a thread.
    fn dir(self, dir: &Path, thread: u32) -> PathBuf {
        match self {
            Layout::Shared => dir.to_owned(),
            Layout::Private => dir.join(format!("thread.{thread}")),
        }
    }
}

impl Call {
    fn apply(self, path: &Path) -> io::Result<()> {
        match self {
            Call::Create => File::create_new(path).map(drop),
            Call::Stat | Call::List => path.symlink_metadata().map(drop),
            Call::Rename => std::fs::rename(path, moved(path)),
            Call::Unlink => std::fs::remove_file(path),
            Call::Mkdir => std::fs::create_dir(path),
            Call::Rmdir => std::fs::remove_dir(path),
        }
    }

    fn begins(self) -> bool {
        matches!(self, Call::Create | Call::Mkdir)
    }

    fn ends(self) -> bool {
        matches!(self, Call::Unlink | Call::Rmdir)
    }
}

/// The name that a rename gives a file.
fn moved(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".moved");
    PathBuf::from(name)
}

/// Applies the call to `files` names in `dir`, shared out among the threads.
pub(crate) fn run(
    call: Call,
    dir: &Path,
    layout: Layout,
    files: u32,
    threads: u32,
) -> Result<Work> {
    let all = || (0..threads).map(|thread| layout.dir(dir, thread));
    if call.begins() {
        for dir in all() {
            std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
    }
    let work = run_threads(call, dir, layout, files, threads)?;
    if call.ends() {
        let entries = || -> io::Result<()> {
            if layout == Layout::Private {
                all().try_for_each(std::fs::remove_dir)?;
            }
            std::fs::remove_dir(dir)
        };
        entries().with_context(|| format!("removing {}", dir.display()))?;
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

fn run_threads(call: Call, dir: &Path, layout: Layout, files: u32, threads: u32) -> Result<Work> {
    let barrier = Barrier::new(threads as usize);
    let shares: Vec<Share> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                let dir = layout.dir(dir, thread);
                let paths = names(&dir, files, threads, thread);
                scope.spawn(move || run_share(call, &dir, &paths, barrier))
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

fn run_share(call: Call, dir: &Path, paths: &[PathBuf], barrier: &Barrier) -> Result<Share> {
    let mut nanoseconds = Vec::with_capacity(paths.len());
    barrier.wait();
    let before = accounting::of_this_thread()?;
    let start = Instant::now();
    let mut last = start;
    let mut timed = |work: &mut dyn FnMut() -> io::Result<()>| -> io::Result<()> {
        work()?;
        let now = Instant::now();
        nanoseconds.push(u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX));
        last = now;
        Ok(())
    };
    if call == Call::List {
        let listing = || format!("listing {}", dir.display());
        let mut entries = std::fs::read_dir(dir).with_context(listing)?;
        let mut found = 0;
        let mut more = true;
        while more {
            timed(&mut || {
                more = match entries.next() {
                    Some(entry) => entry?.metadata().map(|_| found += 1).is_ok(),
                    None => false,
                };
                Ok(())
            })
            .with_context(listing)?;
        }
        ensure!(
            found == paths.len(),
            "{found} entries listed of {}",
            paths.len()
        );
    } else {
        for path in paths {
            timed(&mut || call.apply(path))
                .with_context(|| format!("{call:?} of {}", path.display()))?;
        }
    }
    if call == Call::Rename {
        for path in paths {
            timed(&mut || std::fs::rename(moved(path), path))
                .with_context(|| format!("{call:?} back of {}", path.display()))?;
        }
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
        let shared = [1, 2, 3].map(|threads| (threads, Layout::Shared, 7));
        for (threads, layout, entries) in shared.into_iter().chain([(3, Layout::Private, 3)]) {
            let scratch = tempfile::tempdir().unwrap();
            let dir = scratch.path().join("files");
            for (call, left, operations) in [
                (Call::Create, Some(entries), 7),
                (Call::Stat, Some(entries), 7),
                (Call::Rename, Some(entries), 14),
                (Call::Unlink, None, 7),
                (Call::Mkdir, Some(entries), 7),
                (Call::Rmdir, None, 7),
            ] {
                let work = run(call, &dir, layout, 7, threads).unwrap();
                assert_eq!((work.operations, work.bytes), (operations, 0), "{call:?}");
                assert!(work.seconds > 0.0 && work.latency_us_p50 <= work.latency_us_p99);
                let found = std::fs::read_dir(&dir).ok().map(Iterator::count);
                assert_eq!(found, left, "{call:?} by {threads}");
            }
        }
    }

    #[test]
    fn a_listing_is_complete_or_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("files");
        run(Call::Create, &dir, Layout::Shared, 7, 1).unwrap();
        let work = run(Call::List, &dir, Layout::Shared, 7, 1).unwrap();
        assert_eq!(work.operations, 8, "its end is one as well");
        let error = run(Call::List, &dir, Layout::Shared, 8, 1).unwrap_err();
        assert!(
            format!("{error:#}").contains("7 entries listed of 8"),
            "{error:#}"
        );
    }

    #[test]
    fn an_error_ends_the_case() {
        let scratch = tempfile::tempdir().unwrap();
        let error = run(
            Call::Stat,
            &scratch.path().join("none"),
            Layout::Shared,
            4,
            2,
        )
        .unwrap_err();
        assert!(format!("{error:#}").contains("Stat of"), "{error:#}");
    }
}
