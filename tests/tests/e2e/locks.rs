//! `flock(2)` and `fcntl(2)` locks between processes of one mount, of two mounts, and of JuiceFS: who is kept
//! out, who is woken and when, how waits end, and that nothing is left behind.

mod agent;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sluice_tests::deadline::{patience, wait_until};
use sluice_tests::harness::{Engine, Volume, check};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::mount::Mount;
use sluice_tests::on_both_engines;

use crate::errno::same;

use self::agent::Agent;

on_both_engines!(
    locks_hold_between_mounts,
    flocks_belong_to_open_files,
    ranges_are_kept_apart_and_reported,
    waiters_of_the_same_mount_are_woken_at_once,
    waiters_of_another_mount_are_woken_soon,
    waits_can_be_ended,
    deadlocks_of_one_mount_are_found,
    locks_of_a_killed_mount_become_free,
    unmounting_releases_locks,
    nothing_is_lost_under_a_lock,
    a_lock_shows_what_was_written_under_it,
    databases_on_the_mount_keep_every_row,
    locks_hold_against_juicefs,
);

/// A process with the file "lock" of a mount open as "f".
fn process(root: &Path) -> Result<Agent> {
    let mut agent = Agent::start()?;
    let path = root.join("lock");
    if !path.exists() {
        fs::write(&path, b"")?;
    }
    agent.must(&format!("open f rw {}", path.display()))?;
    Ok(agent)
}

fn processes<const N: usize>(roots: [&Path; N]) -> Result<[Agent; N]> {
    let agents: Vec<Agent> = roots.into_iter().map(process).collect::<Result<_>>()?;
    agents.try_into().ok().context("as many as roots")
}

/// Locks in the metadata store, of all sessions, and Redis' lists of them.
fn records(volume: &Volume) -> Result<usize> {
    if let Some(server) = &volume.redis {
        let mut connection = server.connection(1)?;
        return ["lockf*", "lockp*", "locked*"]
            .iter()
            .try_fold(0, |sum, pattern| {
                let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query(&mut connection)?;
                Ok(sum + keys.len())
            });
    }
    let database = rusqlite::Connection::open(volume.sqlite_path()?)?;
    let sql = "SELECT (SELECT COUNT(*) FROM jfs_flock) + (SELECT COUNT(*) FROM jfs_plock)";
    let count: i64 = database.query_row(sql, [], |row| row.get(0))?;
    Ok(usize::try_from(count)?)
}

/// Release may be answered after close(2) has returned.
fn no_lock_is_left(volume: &Volume) -> Result<()> {
    wait_until(
        "no lock is left",
        patience(20),
        || Ok(records(volume)? == 0),
    )
}

const EXCLUSIVE: [&str; 2] = ["flock f EX NB", "setlk f EX 0 0"];
const SHARED: [&str; 2] = ["flock f SH NB", "setlk f SH 0 0"];
const UNLOCK: [&str; 2] = ["flock f UN", "setlk f UN 0 0"];
const WAIT: [&str; 2] = ["flock f EX", "setlkw f EX 0 0"];

/// Both kinds: shared locks stand beside each other, exclusive ones alone, conversions either way, and the two
/// kinds know nothing of each other.
fn exclusion(one: &mut Agent, two: &mut Agent) -> Result<()> {
    for kind in 0..2 {
        one.must(SHARED[kind])?;
        two.must(SHARED[kind])?;
        two.must_say(EXCLUSIVE[kind], "EAGAIN")?;
        one.must(UNLOCK[kind])?;
        two.must(EXCLUSIVE[kind])?;
        one.must_say(SHARED[kind], "EAGAIN")?;
        one.must_say(EXCLUSIVE[kind], "EAGAIN")?;
        one.must(EXCLUSIVE[1 - kind])?;
        one.must(UNLOCK[1 - kind])?;
        two.must(SHARED[kind])?;
        one.must(SHARED[kind])?;
        two.must(UNLOCK[kind])?;
        one.must(EXCLUSIVE[kind])?;
        one.must(UNLOCK[kind])?;
    }
    Ok(())
}

fn locks_hold_between_mounts(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (a, b) = (volume.mount()?, volume.mount()?);
    let [mut one, mut two, mut three] = processes([a.root(), b.root(), a.root()])?;
    exclusion(&mut one, &mut two).context("two mounts")?;
    exclusion(&mut two, &mut one).context("two mounts, the other way")?;
    exclusion(&mut one, &mut three).context("one mount")?;
    same("records", records(&volume)?, 0)?;
    // Closing a file and the death of a process release both kinds.
    for (kind, wait) in WAIT.iter().enumerate() {
        one.must(EXCLUSIVE[kind])?;
        one.must("close f")?;
        two.must(wait)?;
        two.must(UNLOCK[kind])?;
        one.must(&format!("open f rw {}", a.path("lock").display()))?;
    }
    for wait in WAIT {
        let mut dying = process(a.root())?;
        dying.must(wait)?;
        dying.end_by(Signal::KILL)?;
        two.must(wait)?;
    }
    drop((one, two, three));
    no_lock_is_left(&volume)?;
    a.unmount()?;
    b.unmount()
}

/// A BSD lock is one open file's: a duplicate and a child share it, another open of the same process does not.
fn flocks_belong_to_open_files(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (a, b) = (volume.mount()?, volume.mount()?);
    let [mut one, mut two] = processes([a.root(), b.root()])?;
    one.must(&format!("open g rw {}", a.path("lock").display()))?;
    one.must("flock f EX")?;
    one.must_say("flock g SH NB", "EAGAIN")?;
    one.must("dup f h")?;
    one.must("close f")?;
    two.must_say("flock f SH NB", "EAGAIN")?;
    one.must("flock h SH NB")?;
    one.must("flock g SH NB")?;
    one.must("close g")?;
    let child = one.ask("spawn h")?;
    one.must("close h")?;
    two.must_say("flock f EX NB", "EAGAIN")?;
    one.must(&format!("reap {child}"))?;
    two.must("flock f EX")?;
    drop((one, two));
    no_lock_is_left(&volume)?;
    a.unmount()?;
    b.unmount()
}

/// Ranges split and merge; GETLK shows the holder; any close of the file by the process releases its POSIX
/// locks, also of a descriptor that only reads; children inherit none.
fn ranges_are_kept_apart_and_reported(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (a, b) = (volume.mount()?, volume.mount()?);
    let [mut one, mut two, mut three] = processes([a.root(), b.root(), a.root()])?;
    one.must("setlk f EX 100 50")?;
    one.must("setlk f SH 120 10")?;
    two.must("setlk f EX 0 100")?;
    two.must("setlk f SH 125 5")?;
    two.must_say("setlk f SH 119 2", "EAGAIN")?;
    two.must_say("setlk f EX 150 0", "ok")?;
    let pid = one.pid();
    three.must_say("getlk f EX 100 20", &format!("EX 100 20 {pid}"))?;
    three.must_say("getlk f EX 122 1", &format!("SH 120 10 {pid}"))?;
    three.must_say("getlk f SH 122 1", "UN 122 1 0")?;
    // Of another mount the range, to the end of the file here, but no process.
    three.must_say("getlk f SH 9000 1", "EX 150 0 0")?;
    two.must_say("getlk f EX 100 1", "EX 100 20 0")?;
    two.must("setlk f UN 0 0")?;
    three.must_say("getlk f SH 9000 1", "UN 9000 1 0")?;
    let child = one.ask("spawn f")?;
    one.must(&format!("open g r {}", a.path("lock").display()))?;
    one.must("close g")?;
    two.must("setlk f EX 0 0")?;
    one.must(&format!("reap {child}"))?;
    two.must("setlk f UN 0 0")?;
    one.must_say("setlk f EX 5 3", "ok")?;
    one.must("setlk f UN 0 0")?;
    same("records", records(&volume)?, 0)?;
    drop((one, two, three));
    a.unmount()?;
    b.unmount()
}

/// How long a waiter still waited after `release` began.
fn woken_after(
    waiter: &mut Agent,
    kind: usize,
    release: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    waiter.wait_for(WAIT[kind])?;
    let start = Instant::now();
    release()?;
    same("woken", waiter.answer(patience(20))?.as_str(), "ok")?;
    let took = start.elapsed();
    waiter.must(UNLOCK[kind])?;
    Ok(took)
}

/// Rounds of waiting and releasing, by unlock, close and death in turn; the median.
fn median_wait(holders: &Mount, waiters: &Mount) -> Result<Duration> {
    let mut waiter = process(waiters.root())?;
    let mut took = Vec::new();
    for round in 0..12 {
        let kind = round % 2;
        let mut holder = process(holders.root())?;
        holder.must(EXCLUSIVE[kind])?;
        let waited = woken_after(&mut waiter, kind, || match round % 3 {
            0 => holder.must(UNLOCK[kind]),
            1 => holder.must("close f"),
            _ => holder.end_by(Signal::KILL),
        });
        took.push(waited.with_context(|| format!("round {round}"))?);
    }
    took.sort_unstable();
    Ok(took[took.len() / 2])
}

fn waiters_of_the_same_mount_are_woken_at_once(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let median = median_wait(&mount, &mount)?;
    // One that is not called looks every second: half of one on average.
    ensure!(
        median < Duration::from_millis(250),
        "woken after {median:?}"
    );
    no_lock_is_left(&volume)?;
    mount.unmount()
}

fn waiters_of_another_mount_are_woken_soon(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (a, b) = (volume.mount()?, volume.mount()?);
    let median = median_wait(&a, &b)?;
    ensure!(median < Duration::from_secs(1), "woken after {median:?}");
    no_lock_is_left(&volume)?;
    a.unmount()?;
    b.unmount()
}

/// By a signal with a handler (EINTR), by SIGTERM and by SIGKILL; what they waited for is not theirs afterwards.
fn waits_can_be_ended(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (a, b) = (volume.mount()?, volume.mount()?);
    let mut holder = process(a.root())?;
    for kind in 0..2 {
        holder.must(EXCLUSIVE[kind])?;
        for root in [a.root(), b.root()] {
            let mut waiter = process(root)?;
            waiter.must("alarm 0.3")?;
            waiter.must_say(WAIT[kind], "EINTR")?;
            waiter.must_say(SHARED[kind], "EAGAIN")?;
            for signal in [Signal::TERM, Signal::KILL] {
                let mut waiter = process(root)?;
                waiter.wait_for(WAIT[kind])?;
                waiter.end_by(signal)?;
            }
        }
        same(
            "records",
            records(&volume)?,
            1 + usize::from(volume.redis.is_some()),
        )?;
        holder.must(UNLOCK[kind])?;
        process(b.root())?.must(EXCLUSIVE[kind])?;
        no_lock_is_left(&volume)?;
    }
    drop(holder);
    a.unmount()?;
    b.unmount()
}

fn deadlocks_of_one_mount_are_found(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let [mut one, mut two] = processes([mount.root(); 2])?;
    one.must("setlk f EX 0 10")?;
    two.must("setlk f EX 10 10")?;
    one.wait_for("setlkw f EX 10 10")?;
    two.must_say("setlkw f SH 5 1", "EDEADLK")?;
    // The one that was refused gives way.
    two.must("setlk f UN 10 10")?;
    same("the other", one.answer(patience(20))?.as_str(), "ok")?;
    drop((one, two));
    no_lock_is_left(&volume)?;
    mount.unmount()
}

/// Who waited gets the locks of a mount that died, once its session counts as dead.
fn locks_of_a_killed_mount_become_free(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let heartbeat = ["--heartbeat", "2"];
    let (dying, living) = (
        volume.mount_with(&heartbeat)?,
        volume.mount_with(&heartbeat)?,
    );
    let [mut one, mut two] = processes([dying.root(), living.root()])?;
    let mut three = process(living.root())?;
    for lock in EXCLUSIVE {
        one.must(lock)?;
    }
    two.wait_for(WAIT[0])?;
    three.wait_for(WAIT[1])?;
    dying.kill()?;
    two.answer(patience(60)).context("flock")?;
    three.answer(patience(60)).context("fcntl")?;
    drop((one, two, three));
    no_lock_is_left(&volume)?;
    living.unmount()
}

/// A mount that goes away under a lock (lazily: its file is still open) leaves none, and its waiters come free.
fn unmounting_releases_locks(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (leaving, staying) = (volume.mount()?, volume.mount()?);
    let [mut one, mut waiter, mut two] =
        processes([leaving.root(), leaving.root(), staying.root()])?;
    for lock in EXCLUSIVE {
        one.must(lock)?;
    }
    waiter.wait_for(WAIT[0])?;
    leaving.signal(Signal::TERM)?;
    let answer = waiter.answer(patience(60))?;
    ensure!(answer != "ok", "the waiter got the lock");
    let status = leaving.wait_for_end(patience(60))?;
    ensure!(status.success(), "the server ended with {status}");
    same("records", records(&volume)?, 0)?;
    for lock in EXCLUSIVE {
        two.must(lock)?;
    }
    drop((one, waiter, two));
    staying.unmount()
}

/// Processes of both mounts do `order` on the file, which counts from 0, at the same time.
fn hammer(roots: &[&Path], verb: &str, kind: &str, times: u32) -> Result<()> {
    let file = format!("{verb}-{kind}");
    for name in [file.clone(), format!("{file}.lock")] {
        fs::write(roots[0].join(name), b"0")?;
    }
    let mut agents = Vec::new();
    for root in roots {
        let mut agent = Agent::start()?;
        agent.send(&format!(
            "{verb} {} {times} {kind}",
            root.join(&file).display()
        ))?;
        agents.push(agent);
    }
    for agent in agents {
        same("count", agent.answer(patience(150))?.as_str(), "ok")?;
    }
    let wanted = (u32::try_from(roots.len())? * times).to_string();
    for root in roots {
        same(&file, fs::read_to_string(root.join(&file))?, wanted.clone())?;
    }
    Ok(())
}

fn nothing_is_lost_under_a_lock(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (a, b) = (volume.mount()?, volume.mount()?);
    let roots = [a.root(), b.root()].repeat(4);
    for kind in ["flock", "fcntl"] {
        hammer(&roots, "count", kind, 150)?;
    }
    no_lock_is_left(&volume)?;
    a.unmount()?;
    b.unmount()
}

/// A file that stays open on two mounts: whoever takes a lock on it reads what was written under the last one.
fn a_lock_shows_what_was_written_under_it(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (a, b) = (volume.mount()?, volume.mount()?);
    let roots = [a.root(), b.root()].repeat(2);
    for kind in ["flock", "fcntl"] {
        hammer(&roots, "count_in_place", kind, 100)?;
    }
    no_lock_is_left(&volume)?;
    a.unmount()?;
    b.unmount()
}

/// Processes add to one SQLite database at the same time, one for each path to it.
fn fill_database(paths: &[PathBuf], rows: i64) -> Result<()> {
    let tables = "CREATE TABLE t (n INTEGER); CREATE TABLE sum (n INTEGER); \
                  INSERT INTO sum VALUES (0);";
    rusqlite::Connection::open(&paths[0])?.execute_batch(tables)?;
    let mut agents = Vec::new();
    for path in paths {
        let mut agent = Agent::start()?;
        agent.send(&format!("fill {} {rows}", path.display()))?;
        agents.push(agent);
    }
    for agent in agents {
        same("filled", agent.answer(patience(150))?.as_str(), "ok")?;
    }
    let total = rows * i64::try_from(paths.len())?;
    for path in paths {
        let connection = rusqlite::Connection::open(path)?;
        let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        same("rows", count("SELECT COUNT(*) FROM t")?, total)?;
        same("sum", count("SELECT n FROM sum")?, total)?;
        let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        same("integrity", check.as_str(), "ok")?;
    }
    Ok(())
}

/// SQLite relies on POSIX locks: processes of one mount and of two.
fn databases_on_the_mount_keep_every_row(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (a, b) = (volume.mount()?, volume.mount()?);
    fill_database(&[a.path("one.db"), a.path("one.db")], 20).context("one mount")?;
    fill_database(&[a.path("two.db"), b.path("two.db")], 20).context("two mounts")?;
    a.unmount()?;
    b.unmount()
}

/// Files that never had a lock are closed without a word to the metadata store, though another file is locked.
#[test]
fn closing_without_locks_costs_nothing() {
    check(|| {
        const CLOSES: u64 = 500;
        let volume = Volume::new(Engine::Redis)?;
        let mount = volume.mount()?;
        let mut agent = process(mount.root())?;
        fs::write(mount.path("file"), b"x")?;
        let files = (0..CLOSES).map(|_| fs::File::open(mount.path("file")));
        let files = files.collect::<std::io::Result<Vec<_>>>()?;
        EXCLUSIVE.iter().try_for_each(|lock| agent.must(lock))?;
        let before = commands(&volume)?;
        drop(files);
        agent.must(UNLOCK[0])?;
        let asked = commands(&volume)? - before;
        // Heartbeats and jobs in the background send a few.
        ensure!(asked < CLOSES / 2, "{asked} commands for {CLOSES} closes");
        drop(agent);
        mount.unmount()
    });
}

/// Commands that the volume's Redis has served.
fn commands(volume: &Volume) -> Result<u64> {
    let info: String = redis::cmd("INFO")
        .arg("stats")
        .query(&mut volume.redis_server()?.connection(1)?)?;
    let count = info
        .lines()
        .find_map(|line| line.strip_prefix("total_commands_processed:"));
    Ok(count.context("no count")?.parse()?)
}

/// A lock held through JuiceFS keeps us out and the reverse; each is woken by the other's release.
fn locks_hold_against_juicefs(engine: Engine) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("locks against JuiceFS") else {
        return Ok(());
    };
    let volume = Volume::new(engine)?;
    let (ours, theirs) = (volume.mount()?, juicefs.mount(&volume, &[])?);
    let [mut one, mut two] = processes([ours.root(), theirs.root()])?;
    exclusion(&mut one, &mut two).context("ours first")?;
    exclusion(&mut two, &mut one).context("theirs first")?;
    one.must("setlk f EX 100 50")?;
    two.must("setlk f EX 0 100")?;
    two.must_say("setlk f SH 149 1", "EAGAIN")?;
    one.must_say("setlk f SH 99 1", "EAGAIN")?;
    one.must_say("getlk f SH 0 0", "EX 0 100 0")?;
    two.must_say("getlk f SH 120 0", "EX 100 50 0")?;
    one.must(UNLOCK[1])?;
    two.must(UNLOCK[1])?;
    for kind in 0..2 {
        one.must(EXCLUSIVE[kind])?;
        woken_after(&mut two, kind, || one.must(UNLOCK[kind])).context("theirs waits")?;
        two.must(EXCLUSIVE[kind])?;
        woken_after(&mut one, kind, || two.must(UNLOCK[kind])).context("ours waits")?;
        hammer(
            &[ours.root(), theirs.root()],
            "count",
            ["flock", "fcntl"][kind],
            50,
        )?;
    }
    drop((one, two));
    theirs.unmount()?;
    same("records", records(&volume)?, 0)?;
    ours.unmount()
}
