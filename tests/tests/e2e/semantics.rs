//! The promises of the README's semantics table. Every line there has the test of the same name here.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use sluice_tests::content::{Fill, Subject};
use sluice_tests::deadline::{patience, wait_until};
use sluice_tests::harness::{Engine, Volume, check, is_root, run_ok, skip};
use sluice_tests::on_both_engines;

use crate::errno::same;

on_both_engines!(
    close_to_open_coherence_between_mounts,
    read_your_writes,
    fsync_survives_sigkill,
    rename_is_atomic,
    unlinked_open_file_stays_readable,
    unlinked_open_file_is_reclaimed_after_a_crash_of_its_holder,
    completed_namespace_changes_survive_sigkill,
    umount_leaves_everything_durable,
    signal_leaves_everything_durable,
    store_full_gives_enospc,
    failed_upload_is_reported_by_fsync,
    status_shows_who_holds_locks,
);

/// What one mount wrote and closed, another mount that opens it afterwards reads: new files, grown,
/// shrunk, and changed in place, even right after it read the old content.
fn close_to_open_coherence_between_mounts(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (one, two) = (volume.mount()?, volume.mount()?);
    let mut random = fastrand::Rng::with_seed(3);
    let mut old = Vec::new();
    for round in 0..40 {
        let (writer, reader) = if round % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        let len = match round % 4 {
            // In place: the same length, other bytes.
            1 => old.len(),
            _ => random.usize(1..600_000),
        };
        let mut bytes = vec![0; len];
        Fill::Noise(round).bytes(0, &mut bytes);
        fs::write(writer.path("shared"), &bytes)?;
        let seen = fs::read(reader.path("shared"))?;
        ensure!(
            seen == bytes,
            "round {round}: {} bytes were written and closed, {} were read{}",
            bytes.len(),
            seen.len(),
            if seen == old { " (the old ones)" } else { "" },
        );
        same(
            "read by the writer",
            fs::read(writer.path("shared"))? == bytes,
            true,
        )?;
        old = bytes;
    }
    // Part of a file, and appending.
    OpenOptions::new()
        .write(true)
        .open(one.path("shared"))?
        .write_all_at(b"CHANGED", 3)?;
    same("part", &fs::read(two.path("shared"))?[3..10], b"CHANGED")?;
    OpenOptions::new()
        .append(true)
        .open(two.path("shared"))?
        .write_all(b"THE END")?;
    ensure!(
        fs::read(one.path("shared"))?.ends_with(b"THE END"),
        "append by the other mount"
    );
    one.unmount()?;
    two.unmount()
}

/// Within one mount every write is seen by every later read, through any handle, before any fsync.
fn read_your_writes(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let mut subject = Subject::new(
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path("file"))?,
    );
    let reader = File::open(mount.path("file"))?;
    let mut random = fastrand::Rng::with_seed(4);
    for round in 0..200 {
        let start = random.u64(0..3_000_000);
        let range = start..start + random.u64(1..100_000);
        subject.write(range.clone(), Fill::Noise(round), 1 << 20)?;
        let mut seen = vec![0; (range.end - range.start) as usize];
        let mut wanted = seen.clone();
        reader.read_exact_at(&mut seen, range.start)?;
        subject.content.bytes(range.start, &mut wanted);
        ensure!(
            seen == wanted,
            "round {round}, {range:?}: an older state was read"
        );
        same("length", reader.metadata()?.len(), subject.content.len())?;
    }
    subject.content.verify(&reader)?;
    drop((subject.file, reader));
    mount.unmount()
}

/// SIGKILL after fsync: every byte of it is there. (`crash` kills at random moments under load.)
fn fsync_survives_sigkill(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let mut subject = Subject::new(
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path("file"))?,
    );
    subject.write(0..9_000_001, Fill::Noise(1), 1 << 20)?;
    subject.file.sync_all()?;
    subject.write(100_000..200_000, Fill::Noise(2), 1 << 20)?;
    subject.file.sync_data()?;
    mount.kill()?;
    let mount = volume.mount()?;
    subject.content.verify(&File::open(mount.path("file"))?)?;
    drop(subject.file);
    mount.unmount()
}

/// A reader that opens a name while others rename over it finds the old or the new file, never none and
/// never a mixture.
fn rename_is_atomic(engine: Engine) -> Result<()> {
    const RENAMES: u8 = 200;
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::write(mount.path("name"), vec![0; 5000])?;
    // The kernel looks a name up twice at most: each rename waits for a read that began before it, so
    // that no read meets two of them.
    let reads = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                let bytes = fs::read(mount.path("name")).context("the name was gone")?;
                same("length", bytes.len(), 5000)?;
                ensure!(
                    bytes.iter().all(|byte| *byte == bytes[0]),
                    "a mixture of two files"
                );
                reads.fetch_add(1, Ordering::Release);
            }
            Ok(())
        });
        let rename = || -> Result<()> {
            for round in 1..=RENAMES {
                fs::write(mount.path("new"), vec![round; 5000])?;
                let before = reads.load(Ordering::Acquire);
                fs::rename(mount.path("new"), mount.path("name"))?;
                while reads.load(Ordering::Acquire) == before && !reader.is_finished() {
                    std::thread::yield_now();
                }
            }
            Ok(())
        };
        let renamed = rename();
        done.store(true, Ordering::Release);
        reader
            .join()
            .map_err(|_| anyhow!("the reader panicked"))??;
        renamed
    })?;
    same(
        "the last one",
        fs::read(mount.path("name"))?,
        vec![RENAMES; 5000],
    )?;
    mount.unmount()
}

/// A file whose last name is gone stays whole for those who have it open, for reading and for writing.
fn unlinked_open_file_stays_readable(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (mount, other) = (volume.mount()?, volume.mount()?);
    let open = |name: &str| -> Result<Subject> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path(name))?;
        let mut subject = Subject::new(file);
        subject.write(0..5_000_000, Fill::Noise(1), 1 << 20)?;
        subject.file.sync_all()?;
        Ok(subject)
    };
    let (mut by_unlink, by_rename, elsewhere) = (open("a")?, open("b")?, open("c")?);
    fs::remove_file(mount.path("a"))?;
    fs::write(mount.path("over-b"), b"")?;
    fs::rename(mount.path("over-b"), mount.path("b"))?;
    let third = File::open(other.path("c"))?;
    drop(elsewhere.file);
    fs::remove_file(other.path("c"))?;
    same("no name left", by_unlink.file.metadata()?.nlink(), 0)?;
    by_unlink.write(3_000_000..3_500_000, Fill::Noise(2), 1 << 20)?;
    by_unlink.file.sync_all()?;
    by_unlink.verify().context("unlinked")?;
    by_rename.verify().context("replaced by a rename")?;
    elsewhere
        .content
        .verify(&third)
        .context("unlinked through the mount that has it open")?;
    ensure!(!mount.path("a").exists(), "the name is gone");
    drop((by_unlink, by_rename, third));
    other.unmount()?;
    mount.unmount()
}

/// The holder of an unlinked open file crashes: once its session counts as dead, a living mount gives the
/// space back.
fn unlinked_open_file_is_reclaimed_after_a_crash_of_its_holder(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let heartbeat = ["--heartbeat", "2"];
    let (holder, living) = (
        volume.mount_with(&heartbeat)?,
        volume.mount_with(&heartbeat)?,
    );
    let before = rustix::fs::statvfs(living.root())?.f_bavail;
    fs::write(holder.path("file"), vec![7; 10 << 20])?;
    let open = File::open(holder.path("file"))?;
    fs::remove_file(holder.path("file"))?;
    let mut byte = [0];
    open.read_exact_at(&mut byte, 5 << 20)?;
    holder.kill()?;
    drop(open);
    wait_until("the dead session's files are removed", patience(60), || {
        Ok(count_objects(&volume.bucket)? == 0
            && rustix::fs::statvfs(living.root())?.f_bavail == before)
    })?;
    living.unmount()
}

fn count_objects(dir: &Path) -> Result<usize> {
    let mut count = 0;
    // Objects and directories may go while we look.
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(0);
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count += count_objects(&entry.path())?;
        } else if entry
            .path()
            .components()
            .any(|part| part.as_os_str() == "chunks")
        {
            count += 1;
        }
    }
    Ok(count)
}

/// Names made, moved and removed stay so when the server is killed right after the call returned.
fn completed_namespace_changes_survive_sigkill(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    for index in 0..50 {
        fs::create_dir(mount.path(format!("dir{index}")))?;
        File::create(mount.path(format!("dir{index}/file")))?;
        fs::rename(
            mount.path(format!("dir{index}/file")),
            mount.path(format!("moved{index}")),
        )?;
        if index % 2 == 0 {
            fs::remove_dir(mount.path(format!("dir{index}")))?;
        }
    }
    mount.kill()?;
    let mount = volume.mount()?;
    for index in 0..50 {
        same("moved", mount.path(format!("moved{index}")).exists(), true)?;
        same(
            "directory",
            mount.path(format!("dir{index}")).exists(),
            index % 2 == 1,
        )?;
        same(
            "old name",
            mount.path(format!("dir{index}/file")).exists(),
            false,
        )?;
    }
    mount.unmount()
}

/// Data that was written and closed, and never synced, is in the store when `sluice umount` returns.
fn umount_leaves_everything_durable(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let mut subject = Subject::new(File::create_new(mount.path("file"))?);
    subject.write(0..9_000_001, Fill::Noise(1), 1 << 20)?;
    drop(subject.file);
    let pid = mount.pid();
    run_ok(volume.command(["umount"])?.arg(mount.root()))?;
    // The command waited: the server holds nothing any more, it is gone or a zombie for us to reap.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    ensure!(
        matches!(state, None | Some('Z')),
        "umount returned before the server ended: {stat}"
    );
    ensure!(
        mount.wait_for_end(patience(20))?.success(),
        "the server ended with an error"
    );
    let mount = volume.mount()?;
    subject.content.verify(&File::open(mount.path("file"))?)?;
    mount.unmount()
}

/// Ctrl-C and SIGTERM end the server as `sluice umount` does.
fn signal_leaves_everything_durable(engine: Engine) -> Result<()> {
    use rustix::process::Signal;
    let volume = Volume::new(engine)?;
    for (name, signal) in [("int", Signal::INT), ("term", Signal::TERM)] {
        let mount = volume.mount()?;
        let mut subject = Subject::new(File::create_new(mount.path(name))?);
        subject.write(0..5_000_001, Fill::Noise(1), 1 << 20)?;
        drop(subject.file);
        mount.signal(signal)?;
        let status = mount.wait_for_end(patience(60))?;
        ensure!(
            status.success(),
            "the server ended with {status} after {signal:?}"
        );
        let mount = volume.mount()?;
        subject
            .content
            .verify(&File::open(mount.path(name))?)
            .context("after the signal")?;
        mount.unmount()?;
    }
    Ok(())
}

/// A full object store: the writer is told, what was stored before stays, and room made later is used.
fn store_full_gives_enospc(engine: Engine) -> Result<()> {
    on_a_store_of_its_own(engine, fill_the_store)
}

/// Runs `body` on a volume whose bucket is a file system of its own, of 24 MiB.
fn on_a_store_of_its_own(engine: Engine, body: fn(&Volume) -> Result<()>) -> Result<()> {
    if !is_root() {
        skip("a store of its own is a tmpfs: run as root");
        return Ok(());
    }
    let volume = Volume::unformatted(engine)?;
    let size = c"size=24m";
    rustix::mount::mount(
        "none",
        &volume.bucket,
        "tmpfs",
        MountFlags::empty(),
        Some(size),
    )?;
    let options = ["--trash-days", "0", "--block-size", "1M"];
    let outcome = volume
        .format_command(&options)
        .and_then(|mut format| run_ok(&mut format))
        .and_then(|_| body(&volume));
    rustix::mount::unmount(&volume.bucket, UnmountFlags::DETACH)?;
    outcome
}

fn fill_the_store(volume: &Volume) -> Result<()> {
    let mount = volume.mount()?;
    fs::write(mount.path("kept"), vec![5; 3 << 20])?;
    let mut subject = Subject::new(File::create_new(mount.path("large"))?);
    let outcome = subject
        .write(0..64 << 20, Fill::Noise(1), 1 << 20)
        .and_then(|()| Ok(subject.file.sync_all()?));
    let error = outcome
        .err()
        .context("64 MiB were synced into a store of 24 MiB")?;
    let errno = error
        .root_cause()
        .downcast_ref::<std::io::Error>()
        .and_then(Errno::from_io_error);
    same("errno", errno, Some(Errno::NOSPC))?;
    // Closing may report it once more; the file is given up.
    drop(subject.file);
    fs::remove_file(mount.path("large"))?;
    ensure!(
        fs::read(mount.path("kept"))? == vec![5; 3 << 20],
        "what was stored before"
    );
    let write_again = || -> std::io::Result<()> {
        let mut file = File::create(mount.path("again"))?;
        file.write_all(&vec![6; 3 << 20])?;
        file.sync_all()
    };
    wait_until("removing makes room", patience(60), || {
        Ok(write_again().is_ok())
    })?;
    ensure!(
        fs::read(mount.path("again"))? == vec![6; 3 << 20],
        "what was stored after"
    );
    mount.unmount()
}

/// A store that refuses uploads for another reason: fsync says EIO, and later writes work again.
fn failed_upload_is_reported_by_fsync(engine: Engine) -> Result<()> {
    on_a_store_of_its_own(engine, |volume| {
        let mount = volume.mount()?;
        fs::write(mount.path("kept"), b"stored before")?;
        let read_only = |flags| rustix::mount::mount_remount(&volume.bucket, flags, c"");
        read_only(MountFlags::RDONLY).context("making the store read-only")?;
        let mut file = File::create(mount.path("lost"))?;
        let outcome = file
            .write_all(&vec![1; 100_000])
            .and_then(|()| file.sync_all());
        drop(file);
        read_only(MountFlags::empty())?;
        let errno = outcome.err().as_ref().and_then(Errno::from_io_error);
        same("errno", errno, Some(Errno::IO))?;
        same(
            "content",
            fs::read(mount.path("kept"))?,
            b"stored before".to_vec(),
        )?;
        let mut file = File::create(mount.path("after"))?;
        file.write_all(b"works again")?;
        file.sync_all()?;
        drop(file);
        mount.unmount()
    })
}

/// A lock taken through one mount is in the way on the other, until it is released; `status` shows who holds it.
fn status_shows_who_holds_locks(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let (one, two) = (volume.mount()?, volume.mount()?);
    let create = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .clone();
    let (here, there) = (create.open(one.path("f"))?, create.open(two.path("f"))?);
    type Lock = fn(&File, FlockOperation) -> rustix::io::Result<()>;
    let kinds: [Lock; 2] = [
        |file, operation| rustix::fs::flock(file, operation),
        |file, operation| rustix::fs::fcntl_lock(file, operation),
    ];
    for (kind, lock) in kinds.into_iter().enumerate() {
        lock(&here, FlockOperation::NonBlockingLockExclusive)?;
        let refused = lock(&there, FlockOperation::NonBlockingLockShared);
        ensure!(
            matches!(refused, Err(Errno::WOULDBLOCK | Errno::ACCESS)),
            "{kind}: a lock held elsewhere was granted: {refused:?}"
        );
        let mut held = 0;
        for sid in 1..=2_u32 {
            let mut status = volume.command(["status", "--json", "--session"])?;
            status.arg(sid.to_string()).arg(&volume.meta_url);
            let shown: serde_json::Value = serde_json::from_str(&run_ok(&mut status)?)?;
            let list = shown[["Flocks", "Plocks"][kind]].as_array();
            held += list.map_or(0, Vec::len);
        }
        ensure!(held == 1, "{kind}: {held} sessions hold the lock");
        lock(&here, FlockOperation::NonBlockingUnlock)?;
        lock(&there, FlockOperation::NonBlockingLockShared)?;
        lock(&here, FlockOperation::NonBlockingLockShared)?;
        lock(&there, FlockOperation::NonBlockingUnlock)?;
        lock(&here, FlockOperation::NonBlockingUnlock)?;
    }
    drop((here, there));
    one.unmount()?;
    two.unmount()
}

/// The table in the README and this binary do not drift apart.
#[test]
fn every_promise_of_the_readme_has_its_test() {
    check(|| {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        let readme = fs::read_to_string(package.join("../README.md"))?;
        let mut sources = String::new();
        for entry in fs::read_dir(package.join("tests/e2e"))? {
            let path = entry?.path();
            if path.is_file() {
                sources += &fs::read_to_string(path)?;
            }
        }
        let rows = readme
            .lines()
            .skip_while(|line| *line != "| Promise | Test |")
            .skip(2);
        let mut promises = 0;
        for row in rows.take_while(|line| line.starts_with('|')) {
            let name = row
                .split('`')
                .rev()
                .nth(1)
                .with_context(|| format!("no test in {row}"))?;
            ensure!(
                sources.contains(&format!("fn {name}(")),
                "no test is called {name}"
            );
            promises += 1;
        }
        ensure!(promises > 5, "the table has {promises} rows");
        Ok(())
    });
}
