//! Two mounts of one volume, by two servers: each sees what the other finished, and nobody breaks what the
//! other holds. (The promise itself, close-to-open, is in `semantics`.)

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::io::Errno;
use sluice_tests::content::{Fill, Subject};
use sluice_tests::deadline::{patience, wait_until};
use sluice_tests::harness::{Engine, Volume, check};
use sluice_tests::mount::Mount;
use sluice_tests::on_both_engines;
use sluice_tests::tree::{Tree, TreeOptions};

use crate::errno::same;

on_both_engines!(
    tree_written_by_one_is_read_by_the_other,
    names_changed_by_one_change_for_the_other,
    both_create_in_one_directory,
    exclusive_create_has_one_winner,
    both_write_their_part_of_one_file,
    attributes_follow_within_the_cache_time,
);

fn two_mounts(engine: Engine) -> Result<(Volume, Mount, Mount)> {
    let volume = Volume::new(engine)?;
    let (one, two) = (volume.mount()?, volume.mount()?);
    Ok((volume, one, two))
}

fn tree_written_by_one_is_read_by_the_other(engine: Engine) -> Result<()> {
    let (_volume, one, two) = two_mounts(engine)?;
    let options = TreeOptions {
        directory_entries: 300,
        chunk_sizes: false,
        ..TreeOptions::default()
    };
    for (writer, reader, name) in [(&one, &two, "first"), (&two, &one, "second")] {
        fs::create_dir(writer.path(name))?;
        let tree = Tree::write(&writer.path(name), &options)?;
        tree.verify(&reader.path(name))
            .context("through the other mount")?;
    }
    two.unmount()?;
    one.unmount()
}

fn names_changed_by_one_change_for_the_other(engine: Engine) -> Result<()> {
    let (_volume, one, two) = two_mounts(engine)?;
    fs::write(one.path("old"), b"content")?;
    // The other one has looked the name up: it is in its kernel's cache.
    same("content", fs::read(two.path("old"))?, b"content".to_vec())?;
    fs::rename(one.path("old"), one.path("new"))?;
    same("new name", fs::read(two.path("new"))?, b"content".to_vec())?;
    wait_until("the old name is gone", patience(10), || {
        Ok(!two.path("old").exists())
    })?;
    fs::remove_file(one.path("new"))?;
    wait_until("the new name is gone", patience(10), || {
        Ok(!two.path("new").exists())
    })?;
    // A name used again is another file.
    fs::write(one.path("old"), b"another")?;
    wait_until("the name is the new file", patience(10), || {
        Ok(fs::read(two.path("old")).is_ok_and(|bytes| bytes == b"another"))
    })?;
    two.unmount()?;
    one.unmount()
}

fn both_create_in_one_directory(engine: Engine) -> Result<()> {
    const EACH: usize = 500;
    let (volume, one, two) = two_mounts(engine)?;
    fs::create_dir(one.path("dir"))?;
    let create = |mount: &Mount, tag: &str| -> Result<()> {
        for index in 0..EACH {
            fs::write(mount.path(format!("dir/{tag}{index}")), tag)?;
            fs::create_dir(mount.path(format!("dir/sub-{tag}{index}")))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| create(&two, "two"));
        let own = create(&one, "one");
        other.join().map_err(|_| anyhow!("panic"))?.and(own)
    })?;
    two.unmount()?;
    one.unmount()?;
    let mount = volume.mount()?;
    let names: BTreeSet<_> = fs::read_dir(mount.path("dir"))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    same("entries", names.len(), 4 * EACH)?;
    same(
        "links",
        fs::metadata(mount.path("dir"))?.nlink(),
        2 + 2 * EACH as u64,
    )?;
    let inodes: BTreeSet<u64> = fs::read_dir(mount.path("dir"))?
        .map(|entry| Ok(entry?.metadata()?.ino()))
        .collect::<Result<_>>()?;
    same("different inodes", inodes.len(), 4 * EACH)?;
    mount.unmount()
}

fn exclusive_create_has_one_winner(engine: Engine) -> Result<()> {
    let (_volume, one, two) = two_mounts(engine)?;
    for index in 0..100 {
        let name = format!("lock{index}");
        let outcomes = std::thread::scope(|scope| {
            let other = scope.spawn(|| File::create_new(two.path(&name)).map(drop));
            let own = File::create_new(one.path(&name)).map(drop);
            [
                own,
                other
                    .join()
                    .unwrap_or_else(|_| Err(std::io::Error::other("panic"))),
            ]
        });
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        same("winners", won, 1).with_context(|| format!("{name}: {outcomes:?}"))?;
        let lost = outcomes.iter().find_map(|outcome| outcome.as_ref().err());
        same(
            "loser's error",
            lost.and_then(Errno::from_io_error),
            Some(Errno::EXIST),
        )?;
    }
    two.unmount()?;
    one.unmount()
}

fn both_write_their_part_of_one_file(engine: Engine) -> Result<()> {
    const PART: u64 = 5_000_000;
    let (volume, one, two) = two_mounts(engine)?;
    File::create_new(one.path("shared"))?.set_len(2 * PART)?;
    let write = |mount: &Mount, part: u64| -> Result<()> {
        let mut subject = Subject::new(
            File::options()
                .read(true)
                .write(true)
                .open(mount.path("shared"))?,
        );
        subject.write(part * PART..(part + 1) * PART, Fill::Noise(part), 100_000)?;
        Ok(subject.file.sync_all()?)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| write(&two, 1));
        let own = write(&one, 0);
        other.join().map_err(|_| anyhow!("panic"))?.and(own)
    })?;
    let mut wanted = sluice_tests::content::Content::default();
    wanted.write(0..PART, Fill::Noise(0));
    wanted.write(PART..2 * PART, Fill::Noise(1));
    wanted
        .verify(&File::open(one.path("shared"))?)
        .context("first mount")?;
    wanted
        .verify(&File::open(two.path("shared"))?)
        .context("second mount")?;
    two.unmount()?;
    one.unmount()?;
    let mount = volume.mount()?;
    wanted
        .verify(&File::open(mount.path("shared"))?)
        .context("after a remount")?;
    mount.unmount()
}

fn attributes_follow_within_the_cache_time(engine: Engine) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let (_volume, one, two) = two_mounts(engine)?;
    fs::write(one.path("file"), b"12345")?;
    let seen = |mount: &Mount| -> Result<(u64, u32)> {
        let found = fs::metadata(mount.path("file"))?;
        Ok((found.len(), found.mode() & 0o7777))
    };
    let before = seen(&two)?;
    fs::set_permissions(one.path("file"), fs::Permissions::from_mode(0o640))?;
    File::options()
        .write(true)
        .open(one.path("file"))?
        .set_len(2)?;
    ensure!(before != (2, 0o640), "nothing to wait for");
    wait_until("length and mode are the new ones", patience(10), || {
        Ok(seen(&two)? == (2, 0o640))
    })?;
    two.unmount()?;
    one.unmount()
}

/// Whether `work` needs nothing of the store. Somebody's heartbeat may make it look as if it did.
fn without_asking(volume: &Volume, work: impl FnOnce() -> Result<()>) -> Result<bool> {
    let mut connection = volume.redis_server()?.connection(0)?;
    let mut commands = || -> Result<u64> {
        let info: redis::InfoDict = redis::cmd("INFO").arg("stats").query(&mut connection)?;
        let count = info.get("total_commands_processed");
        count.context("INFO without a count of commands")
    };
    let before = commands()?;
    work()?;
    // The first question is counted, too.
    Ok(commands()? == before + 1)
}

/// With cache times of an hour on a store that tells its changes, others' changes are seen at once all the same:
/// names made, removed and replaced, names that did not exist, attributes, and content of files held open.
#[test]
fn push_invalidation() {
    check(|| {
        let volume = Volume::new(Engine::Redis)?;
        let long = [
            "--attr-cache=1h",
            "--entry-cache=1h",
            "--dir-entry-cache=1h",
            "--negative-entry-cache=1h",
        ];
        let (one, two) = (volume.mount_with(&long)?, volume.mount()?);
        fs::create_dir(two.path("dir"))?;
        fs::write(two.path("dir/file"), b"first")?;
        let soon = patience(10);

        // Everything is in the kernel's caches of the first mount.
        let kept = || -> Result<()> {
            let read = || -> Result<bool> {
                same(
                    "content",
                    fs::read(one.path("dir/file"))?,
                    b"first".to_vec(),
                )?;
                same("absent", one.path("dir/none").exists(), false)?;
                without_asking(&volume, || {
                    fs::metadata(one.path("dir/file"))?;
                    same("absent", one.path("dir/none").exists(), false)
                })
            };
            wait_until("the kernel keeps what it was told", soon, read)
        };
        kept()?;
        fs::write(two.path("dir/none"), b"made")?;
        wait_until("a name that did not exist", soon, || {
            Ok(fs::read(one.path("dir/none")).is_ok_and(|bytes| bytes == b"made"))
        })?;
        fs::remove_file(two.path("dir/none"))?;
        wait_until("a removed name", soon, || {
            Ok(!one.path("dir/none").exists())
        })?;

        kept()?;
        let open = File::open(one.path("dir/file"))?;
        fs::set_permissions(two.path("dir/file"), fs::Permissions::from_mode(0o600))?;
        wait_until("attributes", soon, || {
            Ok(open.metadata()?.mode() & 0o777 == 0o600)
        })?;
        fs::write(two.path("dir/file"), b"second, longer")?;
        wait_until("length and content behind an open file", soon, || {
            Ok(
                open.metadata()?.len() == 14
                    && fs::read(one.path("dir/file"))? == b"second, longer",
            )
        })?;
        fs::write(two.path("dir/other"), b"replaces")?;
        fs::rename(two.path("dir/other"), two.path("dir/file"))?;
        wait_until("a replaced name", soon, || {
            Ok(fs::read(one.path("dir/file")).is_ok_and(|bytes| bytes == b"replaces"))
        })?;

        drop(open);

        // What this mount changes itself is not taken back.
        fs::write(one.path("dir/own"), b"own")?;
        wait_until("own changes stay in the cache", soon, || {
            without_asking(&volume, || {
                fs::metadata(one.path("dir/own"))?;
                Ok(())
            })
        })?;
        two.unmount()?;
        one.unmount()
    });
}

/// While nothing is heard, the kernel keeps things for a second at most; afterwards they are long again.
#[test]
fn push_invalidation_survives_a_lost_connection() {
    check(|| {
        let volume = Volume::new(Engine::Redis)?;
        let long = [
            "--attr-cache=1h",
            "--entry-cache=1h",
            "--dir-entry-cache=1h",
        ];
        let (one, two) = (volume.mount_with(&long)?, volume.mount()?);
        fs::write(two.path("file"), b"first")?;
        let soon = patience(20);
        for content in [&b"second"[..], b"third"] {
            fs::metadata(one.path("file"))?;
            let mut connection = volume.redis_server()?.connection(0)?;
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL")
                .arg("TYPE")
                .arg("normal")
                .arg("SKIPME")
                .arg("yes");
            kill.query::<()>(&mut connection)?;
            fs::write(two.path("file"), content)?;
            wait_until("the change is seen", soon, || {
                Ok(fs::read(one.path("file")).is_ok_and(|bytes| bytes == content))
            })?;
        }
        wait_until("it is kept for long again", soon, || {
            let told = one.number("sluice_coherence_live")?;
            fs::metadata(one.path("file"))?;
            let kept = without_asking(&volume, || {
                fs::metadata(one.path("file"))?;
                Ok(())
            })?;
            Ok(told == 1.0 && kept)
        })?;
        two.unmount()?;
        one.unmount()
    });
}
