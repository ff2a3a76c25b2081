//! Many threads on one file, and many in one directory: nothing torn, nothing lost, one winner each.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use sluice_tests::aligned::Aligned;
use sluice_tests::harness::{Engine, Volume};
use sluice_tests::on_both_engines;
use sluice_tests::oracle::{Oracle, PAGE_BYTES, check_place, stamp};

use crate::errno::same;

on_both_engines!(
    direct_writers_and_readers_of_one_file,
    direct_writers_that_also_truncate,
    buffered_writers_of_one_file,
    appenders_lose_nothing,
    names_have_one_winner,
    listing_brings_nothing_back,
    one_directory_under_load,
);

/// Threads per test, half of them on each core where there are two.
const THREADS: usize = 8;

/// Runs `body` on `THREADS` threads, each held on one core; the first error, after all have ended.
fn on_all_cores(body: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|&core| allowed.is_set(core))
        .collect();
    let outcomes: Vec<Result<()>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..THREADS)
            .map(|thread| {
                let mut own = CpuSet::new();
                own.set(cores[thread % cores.len()]);
                let body = &body;
                scope.spawn(move || {
                    sched_setaffinity(None, &own)?;
                    body(thread).with_context(|| format!("thread {thread}"))
                })
            })
            .collect();
        let outcome = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
        };
        running.into_iter().map(outcome).collect()
    });
    outcomes.into_iter().collect()
}

/// Pages of the file under test: blocks of 64 KiB, and a chunk's border in the middle.
const PAGES: usize = 96;
/// Where the file's pages lie: around the border of the first chunk.
const BASE: u64 = (64 << 20) - (PAGES * PAGE_BYTES / 2) as u64;

fn offset(page: usize) -> u64 {
    BASE + (page * PAGE_BYTES) as u64
}

/// What the threads do besides reading and writing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Direct,
    DirectAndCut,
    /// Reads are judged at the end only: the kernel may show a reader half of a write to its page cache.
    Buffered,
}

fn direct_writers_and_readers_of_one_file(engine: Engine) -> Result<()> {
    hammer(engine, Access::Direct)
}

fn direct_writers_that_also_truncate(engine: Engine) -> Result<()> {
    hammer(engine, Access::DirectAndCut)
}

fn buffered_writers_of_one_file(engine: Engine) -> Result<()> {
    hammer(engine, Access::Buffered)
}

fn hammer(engine: Engine, access: Access) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--block-size", "64K"])?;
    let mount = volume.mount()?;
    let path = mount.path("file");
    File::create_new(&path)?.set_len(BASE)?;
    let oracle = Oracle::new(PAGES);
    on_all_cores(|thread| hammer_as(thread, &path, access, &oracle))?;
    judge_all(&path, &oracle).context("when all had ended")?;
    mount.unmount()?;
    let mount = volume.mount()?;
    judge_all(&mount.path("file"), &oracle).context("after a remount")?;
    mount.unmount()
}

fn hammer_as(thread: usize, path: &Path, access: Access, oracle: &Oracle) -> Result<()> {
    let flags = match access {
        Access::Buffered => OFlags::empty(),
        Access::Direct | Access::DirectAndCut => OFlags::DIRECT,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)?;
    let mut random = fastrand::Rng::with_seed(thread as u64);
    for round in 0..250 {
        let first = random.usize(0..PAGES);
        let count = random.usize(1..=16).min(PAGES - first);
        let mut pages = Aligned::new(count * PAGE_BYTES);
        let done = match random.u32(0..100) {
            0..50 => {
                let change = oracle.begin_write(first, count)?;
                stamp(pages.slice(), first, change.stamp);
                file.write_all_at(pages.slice(), offset(first))
                    .context("write")?;
                oracle.end(&change)
            }
            50..54 if access == Access::DirectAndCut => {
                let change = oracle.begin_cut(first)?;
                file.set_len(offset(first)).context("truncate")?;
                oracle.end(&change)
            }
            54..57 => file.sync_all().context("fsync"),
            57..60 => file.sync_data().context("fdatasync"),
            _ => read_and_judge(&file, first, pages, access, oracle),
        };
        done.with_context(|| format!("round {round}, pages {first} to {}", first + count))?;
    }
    Ok(())
}

fn read_and_judge(
    file: &File,
    first: usize,
    mut pages: Aligned,
    access: Access,
    oracle: &Oracle,
) -> Result<()> {
    let begun = oracle.now();
    let mut filled = 0;
    // Short reads end where the file does: what lies beyond reads as nothing, which stands for zeros.
    while filled < pages.slice().len() {
        match file
            .read_at(&mut pages.slice()[filled..], offset(first) + filled as u64)
            .context("read")?
        {
            0 => break,
            count => filled += count,
        }
    }
    pages.slice()[filled..].fill(0);
    if access == Access::Buffered {
        return Ok(());
    }
    for (index, bytes) in pages.slice().chunks(PAGE_BYTES).enumerate() {
        oracle.judge(first + index, bytes, begun)?;
        check_place(first + index, bytes)?;
    }
    Ok(())
}

/// Reads the whole file, when nobody writes any more.
fn judge_all(path: &Path, oracle: &Oracle) -> Result<()> {
    let file = File::open(path)?;
    let pages = Aligned::new(PAGES * PAGE_BYTES);
    read_and_judge(&file, 0, pages, Access::Direct, oracle)
}

/// O_APPEND from all threads: every record is there once, whole, and each thread's in its order.
fn appenders_lose_nothing(engine: Engine) -> Result<()> {
    const RECORDS: u64 = 150;
    const RECORD_BYTES: usize = 1000;
    let volume = Volume::with_options(engine, &["--trash-days", "0", "--block-size", "64K"])?;
    let mount = volume.mount()?;
    let path = mount.path("log");
    File::create_new(&path)?;
    on_all_cores(|thread| {
        use std::io::Write;
        let mut file = OpenOptions::new().append(true).open(&path)?;
        for record in 0..RECORDS {
            let mut line = format!("{thread} {record} ").into_bytes();
            line.resize(RECORD_BYTES - 1, b'a' + thread as u8);
            line.push(b'\n');
            file.write_all(&line)?;
            if record % 40 == 0 {
                file.sync_data()?;
            }
        }
        Ok(())
    })?;
    mount.unmount()?;
    let mount = volume.mount()?;
    let text = fs::read_to_string(mount.path("log"))?;
    let mut next = [0; THREADS];
    for (number, line) in text.lines().enumerate() {
        same("length of a record", line.len(), RECORD_BYTES - 1)?;
        let mut words = line.split(' ');
        let mut word = || words.next().context("a record's words");
        let thread: usize = word()?.parse()?;
        let record: u64 = word()?.parse()?;
        ensure!(
            next.get(thread) == Some(&record),
            "line {number} is record {record} of thread {thread}, expected {next:?}"
        );
        next[thread] += 1;
    }
    same("records of each thread", next, [RECORDS; THREADS])?;
    mount.unmount()
}

/// All threads do the same to the same names at the same time: exactly one of them succeeds, the others are
/// told why not.
fn names_have_one_winner(engine: Engine) -> Result<()> {
    const ROUNDS: usize = 40;
    type Step = fn(&Path, usize) -> Result<(), Errno>;
    // What is done to the name, and what those who come too late get.
    let steps: [(&str, Step, Errno); 6] = [
        (
            "create",
            |name, _| rustix::fs::open(name, OFlags::CREATE | OFlags::EXCL, 0o600.into()).map(drop),
            Errno::EXIST,
        ),
        (
            "link",
            |name, _| rustix::fs::link(name, name.with_extension("link")),
            Errno::EXIST,
        ),
        (
            "rename",
            |name, thread| rustix::fs::rename(name, name.with_extension(thread.to_string())),
            Errno::NOENT,
        ),
        (
            "unlink",
            |name, _| rustix::fs::unlink(name.with_extension("link")),
            Errno::NOENT,
        ),
        (
            "mkdir",
            |name, _| rustix::fs::mkdir(name, 0o700.into()),
            Errno::EXIST,
        ),
        ("rmdir", |name, _| rustix::fs::rmdir(name), Errno::NOENT),
    ];
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let barrier = Barrier::new(THREADS);
    let wins: Vec<AtomicU64> = (0..ROUNDS * steps.len())
        .map(|_| AtomicU64::new(0))
        .collect();
    on_all_cores(|thread| {
        let mut surprises = Vec::new();
        for round in 0..ROUNDS {
            let name = mount.path(format!("name{round}"));
            for (number, (what, step, too_late)) in steps.iter().enumerate() {
                // Nobody leaves early: the others would wait for ever.
                barrier.wait();
                match step(&name, thread) {
                    Ok(()) => {
                        wins[round * steps.len() + number].fetch_add(1, Ordering::SeqCst);
                    }
                    Err(error) if error == *too_late => {}
                    Err(error) => surprises.push(format!("round {round}, {what}: {error}")),
                }
            }
        }
        ensure!(surprises.is_empty(), "{surprises:?}");
        Ok(())
    })?;
    for (index, wins) in wins.iter().enumerate() {
        let (what, ..) = steps[index % steps.len()];
        ensure!(
            wins.load(Ordering::SeqCst) == 1,
            "round {}: {} threads succeeded with {what}",
            index / steps.len(),
            wins.load(Ordering::SeqCst)
        );
    }
    // Each file has the one name that its renamer gave it.
    let listed = names_and_inodes(mount.root())?;
    same("files left", listed.len(), ROUNDS)?;
    for name in listed.keys() {
        let nlink = fs::metadata(mount.path(name))?.nlink();
        same("nlink", nlink, 1)?;
    }
    mount.unmount()
}

/// Every name listed in a directory, with the inode that listing gave; none of them twice.
fn names_and_inodes(directory: &Path) -> Result<BTreeMap<String, u64>> {
    use std::os::unix::fs::DirEntryExt;
    let mut listed = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The volume's own directory is in the root as well.
        if name == ".trash" {
            continue;
        }
        let before = listed.insert(name, entry.ino());
        ensure!(before.is_none(), "{:?} is listed twice", entry.file_name());
    }
    Ok(listed)
}

/// A listing that began before a change goes on after it: what it brings along to the kernel is not the state
/// from before the change.
fn listing_brings_nothing_back(engine: Engine) -> Result<()> {
    // More than the kernel asks for at once.
    const FILES: usize = 1000;
    let volume = Volume::new(engine)?;
    // Long enough for the kernel to believe everything it is told until the test ends.
    let cached = ["--attr-cache", "60", "--entry-cache", "60"];
    let mount = volume.mount_with(&cached)?;
    let directory = mount.path("directory");
    fs::create_dir(&directory)?;
    fs::create_dir(mount.path("links"))?;
    let path = |number: usize| directory.join(format!("file{number}"));
    for number in 0..FILES {
        fs::write(path(number), b"12345")?;
    }
    mount.unmount()?;
    // The kernel knows nothing yet and asks for attributes with the listing.
    let mount = volume.mount_with(&cached)?;
    let directory = mount.path("directory");
    let path = |number: usize| directory.join(format!("file{number}"));
    let link = |number: usize| mount.path(format!("links/{number}"));
    let mut listing = fs::read_dir(&directory)?;
    listing.next().context("an empty listing")??;
    for number in 0..FILES {
        match number % 5 {
            0 => fs::hard_link(path(number), link(number))?,
            1 => fs::set_permissions(path(number), PermissionsExt::from_mode(0o4711))?,
            2 => fs::remove_file(path(number))?,
            3 => fs::rename(path(number), link(number))?,
            _ => fs::write(path(number), b"longer than before")?,
        }
    }
    let rest = listing.count();
    ensure!(rest >= FILES * 3 / 5, "only {rest} names were listed");
    for number in 0..FILES {
        let found = fs::symlink_metadata(path(number));
        let wrong = match (number % 5, found) {
            (2 | 3, Err(error)) => error.kind() != std::io::ErrorKind::NotFound,
            (0, Ok(found)) => found.nlink() != 2,
            (1, Ok(found)) => found.mode() & 0o7777 != 0o4711,
            (4, Ok(found)) => found.len() != 18 || fs::read(path(number))?.len() != 18,
            _ => true,
        };
        ensure!(
            !wrong,
            "file{number}, case {}: the old state is back: {:?}",
            number % 5,
            fs::symlink_metadata(path(number))
        );
    }
    mount.unmount()
}

/// Names that nobody touches while the others work around them.
const STEADY: usize = 300;

fn one_directory_under_load(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let used = || -> Result<u64> {
        let found = rustix::fs::statvfs(mount.root())?;
        Ok(found.f_files - found.f_ffree)
    };
    let before = used()?;
    let directory = mount.path("busy");
    fs::create_dir(&directory)?;
    for number in 0..STEADY {
        File::create_new(directory.join(format!("steady{number}")))?;
    }
    let done = AtomicBool::new(false);
    let expected: Vec<BTreeMap<String, u64>> = std::thread::scope(|scope| {
        let lister = scope.spawn(|| list_until(&directory, &done));
        let results = std::sync::Mutex::new(Vec::new());
        let outcome = on_all_cores(|thread| {
            let names = shuffle_names(&directory, thread)?;
            results.lock().map_err(|_| anyhow!("poisoned"))?.push(names);
            Ok(())
        });
        done.store(true, Ordering::SeqCst);
        let listings = lister
            .join()
            .map_err(|_| anyhow!("the lister panicked"))??;
        outcome?;
        ensure!(listings > 0, "the lister never got a turn");
        results.into_inner().map_err(|_| anyhow!("poisoned"))
    })?;
    let mut wanted: BTreeMap<String, u64> = expected.into_iter().flatten().collect();
    for number in 0..STEADY {
        let name = format!("steady{number}");
        let inode = fs::metadata(directory.join(&name))?.ino();
        wanted.insert(name, inode);
    }
    same_names(&directory, &wanted)?;
    mount.unmount()?;
    let mount = volume.mount()?;
    let directory = mount.path("busy");
    same_names(&directory, &wanted).context("after a remount")?;
    let subdirectories = wanted.keys().filter(|name| name.contains("dir")).count();
    same(
        "nlink of the directory",
        fs::metadata(&directory)?.nlink(),
        2 + subdirectories as u64,
    )?;
    fs::remove_dir_all(&directory)?;
    let found = rustix::fs::statvfs(mount.root())?;
    same("inodes in use", found.f_files - found.f_ffree, before)?;
    mount.unmount()
}

/// Lists the directory again and again: what nobody touches is there every time.
fn list_until(directory: &Path, done: &AtomicBool) -> Result<usize> {
    let mut listings = 0;
    while !done.load(Ordering::SeqCst) {
        let listed = names_and_inodes(directory)?;
        let steady = listed
            .keys()
            .filter(|name| name.starts_with("steady"))
            .count();
        same("steady names in a listing", steady, STEADY)?;
        listings += 1;
    }
    Ok(listings)
}

/// Makes, renames, links and removes names of its own, and answers what must be left of them.
fn shuffle_names(directory: &Path, thread: usize) -> Result<BTreeMap<String, u64>> {
    let mut random = fastrand::Rng::with_seed(thread as u64);
    let mut present: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..250 {
        let new = format!("t{thread}-{round}");
        let old = random.choice(present.keys()).cloned();
        match (random.u32(0..7), old) {
            (0, Some(old)) => {
                // A directory's new name still says what it is.
                let new = if old.contains("dir") {
                    format!("{new}-dir")
                } else {
                    new
                };
                let inode = present.remove(&old).context("picked from there")?;
                fs::rename(directory.join(&old), directory.join(&new))
                    .with_context(|| format!("rename {old} {new}"))?;
                present.insert(new, inode);
            }
            (1, Some(old)) if !old.contains("dir") => {
                fs::hard_link(directory.join(&old), directory.join(&new))
                    .with_context(|| format!("link {old} {new}"))?;
                let inode = present[&old];
                present.insert(new, inode);
            }
            (2, Some(old)) => {
                present.remove(&old);
                remove(&directory.join(&old)).with_context(|| format!("remove {old}"))?;
            }
            (3, _) => {
                let name = format!("{new}-dir");
                fs::create_dir(directory.join(&name)).with_context(|| format!("mkdir {name}"))?;
                let inode = fs::metadata(directory.join(&name))?.ino();
                present.insert(name, inode);
            }
            _ => {
                let file = File::create_new(directory.join(&new))
                    .with_context(|| format!("create {new}"))?;
                present.insert(new, file.metadata()?.ino());
            }
        }
    }
    Ok(present)
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        fs::remove_dir(path)
    } else {
        fs::remove_file(path)
    }
}

fn same_names(directory: &Path, wanted: &BTreeMap<String, u64>) -> Result<()> {
    let listed = names_and_inodes(directory)?;
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(name, inode)| listed.get(*name) != Some(inode))
        .collect();
    let extra: Vec<_> = listed
        .keys()
        .filter(|name| !wanted.contains_key(*name))
        .collect();
    ensure!(
        missing.is_empty() && extra.is_empty(),
        "missing or another inode: {missing:?}, never made: {extra:?}"
    );
    let mut names: BTreeMap<u64, u64> = BTreeMap::new();
    for inode in wanted.values() {
        *names.entry(*inode).or_default() += 1;
    }
    for (name, inode) in wanted {
        let found = fs::symlink_metadata(directory.join(name))?;
        same("inode", found.ino(), *inode)?;
        if found.is_file() {
            same("nlink", found.nlink(), names[inode])?;
        }
    }
    Ok(())
}
