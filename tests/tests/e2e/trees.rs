//! `rmr`, `clone` and `restore` on real mounts, what becomes of trash that is old, and what JuiceFS thinks of it all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use sluice_tests::deadline::{patience, wait_until};
use sluice_tests::harness::{Engine, OtherUser, Volume, is_root, run, run_ok, skip, sluice};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::mount::Mount;
use sluice_tests::on_both_engines;
use sluice_tests::tree::{Tree, TreeOptions};

use crate::errno::{must_fail, same};

on_both_engines!(
    a_removed_tree_is_gone_and_forgotten,
    a_tree_comes_back_from_the_trash,
    removal_keeps_to_the_rules_of_the_kernel,
    only_names_can_be_forgotten,
    a_cloned_file_shares_its_data,
    a_cloned_tree_is_its_source,
    old_trash_is_emptied_with_its_data,
    juicefs_restores_what_we_removed_and_we_what_it_removed,
    statistics_survive_an_unmount_at_any_moment,
);

const JUICEFS_OPTIONS: [&str; 1] = ["--enable-xattr"];
const NOBODY: u32 = 65534;

fn small() -> TreeOptions {
    TreeOptions {
        directory_entries: 600,
        chunk_sizes: false,
        ..TreeOptions::default()
    }
}

/// A mount whose kernel keeps what it knows for an hour: nothing ends by itself within a test.
fn mount_that_remembers(volume: &Volume) -> Result<Mount> {
    let keep = |what: &str| [format!("--{what}"), "3600s".to_owned()];
    let options: Vec<String> = ["attr-cache", "entry-cache", "dir-entry-cache"]
        .into_iter()
        .flat_map(keep)
        .collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    volume.mount_with(&options)
}

fn tool(volume: &Volume, arguments: &[&str], paths: &[&Path]) -> Result<String> {
    run_ok(volume.command(arguments)?.args(paths))
}

/// What a tool says that must fail: one line.
fn refused(volume: &Volume, arguments: &[&str], paths: &[&Path]) -> Result<String> {
    let output = run(volume.command(arguments)?.args(paths), patience(60))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(
        output.status.code() == Some(1) && said.lines().count() == 1,
        "{arguments:?} {paths:?} ended with {}: {said}",
        output.status
    );
    Ok(said)
}

/// Names in a directory but `.trash`.
fn listed(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != ".trash");
    Ok(names)
}

/// The hour directories in the trash.
fn hours(mount: &Mount) -> Result<Vec<String>> {
    listed(&mount.path(".trash"))
}

// Everything happens in a directory `work`. The root has no statistics before somebody writes some: while two
// clients change it, whoever is first counts what the other has not written yet, and the other adds it again.

/// A tree that is made without removing anything, so that all that is in the trash later is this: by path, mode
/// and content or target.
fn plain_tree(root: &Path) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    for dir in ["", "a", "a/b", "a/b/c", "a/empty", "many"] {
        fs::create_dir(root.join(dir))?;
    }
    fs::write(root.join("a/file"), vec![3; 5_000_000])?;
    fs::write(root.join("a/b/c/deep"), b"deep")?;
    fs::hard_link(root.join("a/file"), root.join("a/b/twin"))?;
    std::os::unix::fs::symlink("../file", root.join("a/b/link"))?;
    fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o2750))?;
    for number in 0..600 {
        fs::write(root.join("many").join(format!("-{number}-")), b"x")?;
    }
    seen(root)
}

fn seen(root: &Path) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(path) = todo.pop() {
        let metadata = path.symlink_metadata()?;
        let content = if metadata.is_dir() {
            let names = listed(&path)?.into_iter();
            todo.extend(names.map(|name| path.join(name)));
            Vec::new()
        } else if metadata.is_symlink() {
            fs::read_link(&path)?.into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path)?
        };
        let relative = path.strip_prefix(root)?.to_path_buf();
        found.insert(relative, (metadata.mode(), content));
    }
    Ok(found)
}

/// Compares without printing megabytes.
fn same_tree(root: &Path, wanted: &BTreeMap<PathBuf, (u32, Vec<u8>)>) -> Result<()> {
    let found = seen(root)?;
    let differs = |(path, entry): &(&PathBuf, &(u32, Vec<u8>))| found.get(*path) != Some(*entry);
    let missing: Vec<_> = wanted
        .iter()
        .filter(differs)
        .map(|(path, _)| path)
        .collect();
    let extra: Vec<_> = found
        .keys()
        .filter(|path| !wanted.contains_key(*path))
        .collect();
    ensure!(
        missing.is_empty() && extra.is_empty(),
        "{}: differs or is missing: {missing:?}, too much: {extra:?}",
        root.display()
    );
    Ok(())
}

fn trashed(mount: &Mount) -> Result<usize> {
    let count = |hour: String| Ok(fs::read_dir(mount.path(".trash").join(hour))?.count());
    hours(mount)?.into_iter().map(count).sum()
}

fn objects(volume: &Volume) -> Result<usize> {
    let mut count = 0;
    let mut todo = vec![volume.bucket.join("e2e").join("chunks")];
    while let Some(dir) = todo.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        for entry in entries {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => todo.push(entry.path()),
                false => count += 1,
            }
        }
    }
    Ok(count)
}

fn a_removed_tree_is_gone_and_forgotten(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = mount_that_remembers(&volume)?;
    let empty = rustix::fs::statvfs(mount.root())?;
    fs::create_dir(mount.path("tree"))?;
    let tree = Tree::write(&mount.path("tree"), &small())?;
    fs::write(mount.path("file"), b"alone")?;
    let said = tool(
        &volume,
        &["rmr"],
        &[&mount.path("tree"), &mount.path("file")],
    )?;
    let count = format!(": {} entries removed", tree.len());
    ensure!(said.contains(&count), "{said} does not say{count}");
    // The kernel would go by its memory for an hour.
    for name in ["tree", "file"] {
        let path = mount.path(name);
        wait_until("the name is forgotten", patience(20), || {
            Ok(path.symlink_metadata().is_err())
        })?;
        must_fail(name, path.symlink_metadata(), Errno::NOENT)?;
    }
    wait_until("the root has no directories", patience(20), || {
        Ok(fs::metadata(mount.root())?.nlink() == 2)
    })?;
    same("entries", listed(mount.root())?, vec![])?;
    let now = rustix::fs::statvfs(mount.root())?;
    same(
        "inodes",
        now.f_files - now.f_ffree,
        empty.f_files - empty.f_ffree,
    )?;
    // The name is free at once, and so is everything else.
    fs::create_dir(mount.path("tree"))?;
    Tree::write(&mount.path("tree"), &small())?.verify(&mount.path("tree"))?;
    mount.unmount()
}

fn a_tree_comes_back_from_the_trash(engine: Engine) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "1"])?;
    let mount = mount_that_remembers(&volume)?;
    fs::create_dir(mount.path("work"))?;
    let tree = plain_tree(&mount.path("work/tree"))?;
    tool(
        &volume,
        &["rmr", "--threads", "7"],
        &[&mount.path("work/tree")],
    )?;
    same("entries in the trash", trashed(&mount)?, tree.len())?;
    let before = hours(&mount)?;
    mount.unmount()?;
    let mut restore = volume.command(["restore", "--put-back"])?;
    run_ok(restore.arg(&volume.meta_url).args(&before))?;
    let mount = volume.mount()?;
    same("left in the trash", trashed(&mount)?, 0)?;
    same_tree(&mount.path("work/tree"), &tree)?;
    // Past the trash this time.
    tool(
        &volume,
        &["rmr", "--skip-trash"],
        &[&mount.path("work/tree")],
    )?;
    same("in the trash", trashed(&mount)?, 0)?;
    mount.unmount()?;
    let mut restore = volume.command(["restore"])?;
    let output = run(
        restore.arg(&volume.meta_url).arg("2020-01-01-00"),
        patience(60),
    )?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("no hour 2020-01-01-00"), "{said}");
    if let Some(juicefs) = JuiceFs::find("a tree removed, restored and removed") {
        juicefs.fsck(&volume)?;
        juicefs.fsck_statistics(&volume)?;
    }
    Ok(())
}

/// A binary and an empty home that everybody may use.
fn for_nobody(volume: &mut Volume) -> Result<()> {
    let binary = volume.scratch.path("sluice");
    fs::copy(sluice()?, &binary)?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(volume.scratch.root(), fs::Permissions::from_mode(0o755))?;
    volume.user = Some(OtherUser { id: NOBODY, binary });
    Ok(())
}

fn removal_keeps_to_the_rules_of_the_kernel(engine: Engine) -> Result<()> {
    if !is_root() {
        skip("removal as another user needs root");
        return Ok(());
    }
    let mut volume = Volume::new(engine)?;
    let mount = volume.mount_with(&["-o", "allow_other"])?;
    let make = |name: &str, owner: u32, mode: u32| -> Result<PathBuf> {
        let dir = mount.path(name);
        fs::create_dir_all(dir.join("sub"))?;
        fs::write(dir.join("sub/file"), b"content")?;
        for path in [dir.join("sub/file"), dir.join("sub"), dir.clone()] {
            chown(&path, Some(owner), Some(owner))?;
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode))?;
        Ok(dir)
    };
    fs::set_permissions(mount.root(), fs::Permissions::from_mode(0o1777))?;
    let mine = make("mine", NOBODY, 0o755)?;
    let theirs = make("theirs", 0, 0o755)?;
    let sticky = make("sticky", 0, 0o777)?;
    for_nobody(&mut volume)?;
    // With access to the metadata (Redis) or without (the SQLite file is root's) it comes to the same.
    tool(&volume, &["rmr"], &[&mine])?;
    wait_until("it is gone", patience(20), || Ok(!mine.exists()))?;
    for path in [&theirs, &theirs.join("sub"), &sticky] {
        let said = refused(&volume, &["rmr"], &[path])?;
        ensure!(
            said.to_lowercase().contains("denied") || said.contains("not permitted"),
            "{said}"
        );
        ensure!(path.exists(), "{} is gone", path.display());
    }
    ensure!(theirs.join("sub/file").exists(), "a file of root's is gone");
    let said = refused(&volume, &["rmr", "--skip-trash"], &[&sticky])?;
    ensure!(said.contains("root"), "{said}");
    volume.user = None;
    for path in ["/", "/proc", mount.root().to_str().context("UTF-8")?] {
        refused(&volume, &["rmr"], &[Path::new(path)])?;
    }
    refused(&volume, &["rmr"], &[&mount.path("missing")])?;
    mount.unmount()
}

fn only_names_can_be_forgotten(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::write(mount.path("file"), b"")?;
    let forget = |path: &str, name: &[u8]| {
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(mount.path(path), "sluice.forget", name, flags)
    };
    forget("", b"file")?;
    forget("", b"never was there")?;
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        must_fail("no name", forget("", name), Errno::INVAL)?;
    }
    must_fail("no directory", forget("file", b"x"), Errno::INVAL)?;
    let mut value = [0u8; 16];
    let got = rustix::fs::getxattr(mount.root(), "sluice.forget", &mut value[..]);
    must_fail("it has no value", got, Errno::NODATA)?;
    fs::remove_file(mount.path("file"))?;
    mount.unmount()
}

fn a_cloned_file_shares_its_data(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = mount_that_remembers(&volume)?;
    fs::create_dir(mount.path("work"))?;
    let content: Vec<u8> = (0..9_000_001u32).map(|at| (at % 251) as u8).collect();
    let (source, copy) = (mount.path("work/source"), mount.path("work/copy"));
    let mut file = File::create(&source)?;
    file.write_all(&content)?;
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(&source, "user.colour", b"blue", flags)?;
    fs::set_permissions(&source, fs::Permissions::from_mode(0o4640))?;
    // The kernel knows that it is not there.
    must_fail("copy", copy.symlink_metadata(), Errno::NOENT)?;
    // Not closed yet: it is flushed first.
    tool(&volume, &["clone", "--preserve"], &[&source, &copy])?;
    drop(file);
    let stored = objects(&volume)?;
    ensure!(fs::read(&copy)? == content, "the copy differs");
    let (old, new) = (fs::metadata(&source)?, fs::metadata(&copy)?);
    same("mode", new.mode(), old.mode())?;
    same(
        "mtime",
        (new.mtime(), new.mtime_nsec()),
        (old.mtime(), old.mtime_nsec()),
    )?;
    let mut value = [0u8; 16];
    let length = rustix::fs::getxattr(&copy, "user.colour", &mut value[..])?;
    same("xattr", &value[..length], b"blue")?;
    // Each goes its own way.
    File::options()
        .append(true)
        .open(&copy)?
        .write_all(b"more")?;
    ensure!(fs::read(&source)? == content, "the source changed with it");
    fs::remove_file(&source)?;
    let longer = [&content[..], b"more"].concat();
    mount.unmount()?;
    let mount = volume.mount()?;
    let copy = mount.path("work/copy");
    ensure!(fs::read(&copy)? == longer, "the copy lost data");
    ensure!(
        objects(&volume)? > stored - 1,
        "an object of the copy is gone"
    );
    for (from, to, why) in [
        ("work/copy", "work/copy", "exists"),
        ("missing", "work/x", "cannot look at"),
        ("work/copy", "missing/x", "cannot look at"),
        ("work", "work/x", "below"),
    ] {
        let said = refused(&volume, &["clone"], &[&mount.path(from), &mount.path(to)])?;
        ensure!(said.contains(why), "{said}");
    }
    let outside = volume.scratch.path("outside");
    refused(&volume, &["clone"], &[&copy, &outside])?;
    refused(
        &volume,
        &["clone"],
        &[&volume.scratch.path("bucket"), &mount.path("x")],
    )?;
    fs::remove_file(&copy)?;
    mount.unmount()?;
    if let Some(juicefs) = JuiceFs::find("a cloned file") {
        juicefs.fsck(&volume)?;
        juicefs.fsck_statistics(&volume)?;
        same("leaked objects", juicefs.leaked_objects(&volume)?, 0)?;
    }
    Ok(())
}

fn a_cloned_tree_is_its_source(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = mount_that_remembers(&volume)?;
    fs::create_dir_all(mount.path("work/from/tree"))?;
    let tree = Tree::write(&mount.path("work/from/tree"), &small())?;
    let copy = tree.copied();
    fs::create_dir(mount.path("work/to"))?;
    // Written and neither closed nor synced.
    let mut open = Vec::new();
    for number in 0..20 {
        let mut file = File::create(mount.path(format!("work/from/open{number}")))?;
        file.write_all(&vec![number; 300_000])?;
        open.push(file);
    }
    tool(
        &volume,
        &["clone"],
        &[&mount.path("work/from"), &mount.path("work/dirty")],
    )?;
    for number in 0..20 {
        let copied = fs::read(mount.path(format!("work/dirty/open{number}")))?;
        ensure!(copied == vec![number; 300_000], "open{number} is not whole");
        fs::remove_file(mount.path(format!("work/from/open{number}")))?;
    }
    drop(open);
    tool(&volume, &["rmr"], &[&mount.path("work/dirty")])?;
    let mut into = mount.path("work/to").into_os_string();
    into.push("/");
    let said = tool(
        &volume,
        &["clone", "-p", "--threads", "9"],
        &[&mount.path("work/from/tree"), Path::new(&into)],
    )?;
    ensure!(said.contains(&format!("{} entries", tree.len())), "{said}");
    copy.verify(&mount.path("work/to/tree"))?;
    tree.verify(&mount.path("work/from/tree"))?;
    tool(&volume, &["rmr"], &[&mount.path("work/from")])?;
    copy.verify(&mount.path("work/to/tree"))?;
    refused(
        &volume,
        &["clone"],
        &[&mount.path("work/to"), &mount.path("work/to/tree/x")],
    )?;
    mount.unmount()?;
    let juicefs = JuiceFs::find("a cloned tree");
    if let Some(juicefs) = &juicefs {
        juicefs.fsck(&volume)?;
        juicefs.fsck_statistics(&volume)?;
        let mount = juicefs.mount(&volume, &JUICEFS_OPTIONS)?;
        copy.verify(&mount.path("work/to/tree"))
            .context("through JuiceFS")?;
        mount.unmount()?;
    }
    let mount = volume.mount()?;
    copy.verify(&mount.path("work/to/tree"))?;
    fs::remove_dir_all(mount.path("work/to"))?;
    mount.unmount()?;
    if let Some(juicefs) = &juicefs {
        juicefs.fsck(&volume)?;
        juicefs.fsck_statistics(&volume)?;
        same("leaked objects", juicefs.leaked_objects(&volume)?, 0)?;
    }
    Ok(())
}

/// Gives an hour directory of the trash another name, in the store: as if the clock had been put back.
fn age(volume: &Volume, hour: &str, older: &str) -> Result<()> {
    const TRASH: u64 = 0x7FFF_FFFF_1000_0000;
    if volume.redis.is_some() {
        let mut connection = volume.redis_server()?.connection(1)?;
        let key = format!("d{TRASH}");
        let entry: Vec<u8> = redis::cmd("HGET")
            .arg(&key)
            .arg(hour)
            .query(&mut connection)?;
        let _: () = redis::pipe()
            .atomic()
            .cmd("HDEL")
            .arg(&key)
            .arg(hour)
            .cmd("HSET")
            .arg(&key)
            .arg(older)
            .arg(entry)
            .query(&mut connection)?;
        return Ok(());
    }
    let database = rusqlite::Connection::open(volume.sqlite_path()?)?;
    let changed = database.execute(
        "UPDATE jfs_edge SET name = ?1 WHERE parent = ?2 AND name = ?3",
        (older.as_bytes(), TRASH.cast_signed(), hour.as_bytes()),
    )?;
    same("hours renamed", changed, 1)
}

fn old_trash_is_emptied_with_its_data(engine: Engine) -> Result<()> {
    let volume = Volume::with_options(engine, &["--trash-days", "1"])?;
    let mount = volume.mount()?;
    fs::write(mount.path("kept"), vec![7; 5_000_000])?;
    fs::create_dir(mount.path("work"))?;
    plain_tree(&mount.path("work/tree"))?;
    // Its data goes with the last of those who share it.
    let copy = mount.path("work/tree/a/copy");
    tool(
        &volume,
        &["clone"],
        &[&mount.path("work/tree/a/file"), &copy],
    )?;
    tool(&volume, &["rmr"], &[&mount.path("work/tree")])?;
    let found = hours(&mount)?;
    mount.unmount()?;
    let before = objects(&volume)?;
    // The volume's jobs ran when it was mounted; their lock is an hour's.
    forget_jobs(&volume)?;
    for (index, hour) in found.iter().enumerate() {
        age(&volume, hour, &format!("2020-02-28-{index:02}"))?;
    }
    let mount = volume.mount_with(&["--no-bgjob"])?;
    same("hours", hours(&mount)?.len(), found.len())?;
    mount.unmount()?;
    let mount = volume.mount()?;
    wait_until("the trash is empty", patience(60), || {
        Ok(hours(&mount)?.is_empty())
    })?;
    wait_until("its objects are gone", patience(60), || {
        Ok(objects(&volume)? == 2)
    })?;
    ensure!(before > 2, "there was nothing to delete");
    let mut stats = vec![0; 1 << 20];
    let length = rustix::fs::getxattr(mount.root(), "sluice.stats", &mut stats)?;
    let stats = String::from_utf8_lossy(&stats[..length]).into_owned();
    let counted = "sluice_bgjob_deletions_total{job=\"cleanTrashFile\"}";
    ensure!(stats.contains(counted), "{stats}");
    ensure!(fs::read(mount.path("kept"))? == vec![7; 5_000_000]);
    mount.unmount()?;
    if let Some(juicefs) = JuiceFs::find("trash that was emptied") {
        juicefs.fsck(&volume)?;
        juicefs.fsck_statistics(&volume)?;
        same("leaked objects", juicefs.leaked_objects(&volume)?, 0)?;
    }
    Ok(())
}

/// Takes the locks of the hourly jobs away.
fn forget_jobs(volume: &Volume) -> Result<()> {
    if volume.redis.is_some() {
        let mut connection = volume.redis_server()?.connection(1)?;
        let keys = ["lastCleanupTrash", "lastCleanupFiles", "nextCleanupSlices"];
        return Ok(redis::cmd("DEL").arg(&keys[..]).query(&mut connection)?);
    }
    let database = rusqlite::Connection::open(volume.sqlite_path()?)?;
    database.execute(
        "UPDATE jfs_counter SET value = 0 WHERE name LIKE '%Cleanup%'",
        (),
    )?;
    Ok(())
}

fn juicefs_restores_what_we_removed_and_we_what_it_removed(engine: Engine) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("restoring what the other side removed") else {
        return Ok(());
    };
    let volume = Volume::with_options(engine, &["--trash-days", "1"])?;
    let mount = volume.mount()?;
    fs::create_dir(mount.path("work"))?;
    let tree = plain_tree(&mount.path("work/tree"))?;
    tool(&volume, &["rmr"], &[&mount.path("work/tree")])?;
    let removed = hours(&mount)?;
    mount.unmount()?;
    juicefs.restore(&volume, &removed)?;
    let mount = juicefs.mount(&volume, &JUICEFS_OPTIONS)?;
    same_tree(&mount.path("work/tree"), &tree).context("restored by JuiceFS")?;
    fs::remove_dir_all(mount.path("work/tree"))?;
    mount.unmount()?;
    // Rebuilt in the trash first, then put back.
    let hours = {
        let mount = volume.mount()?;
        let found = hours(&mount)?;
        mount.unmount()?;
        found
    };
    let mut restore = volume.command(["restore"])?;
    run_ok(restore.arg(&volume.meta_url).args(&hours))?;
    let mut restore = volume.command(["restore", "--put-back"])?;
    run_ok(restore.arg(&volume.meta_url).args(&hours))?;
    let mount = volume.mount()?;
    same_tree(&mount.path("work/tree"), &tree).context("restored by us")?;
    mount.unmount()?;
    juicefs.fsck(&volume)?;
    juicefs.fsck_statistics(&volume)
}

/// Statistics are written once a second in the background: an unmount may come while they are on their way.
fn statistics_survive_an_unmount_at_any_moment(engine: Engine) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("statistics of directories") else {
        return Ok(());
    };
    let volume = Volume::new(engine)?;
    for round in 0..4 {
        let mount = volume.mount()?;
        let busy = Instant::now();
        let mut made = 0;
        // Around the moment of the first tick.
        while busy.elapsed() < Duration::from_millis(800 + 100 * round) {
            let dir = mount.path(format!("{round}-{}", made % 50));
            fs::create_dir_all(&dir)?;
            fs::write(dir.join(made.to_string()), b"counted")?;
            made += 1;
        }
        mount.unmount()?;
        juicefs
            .fsck_statistics(&volume)
            .with_context(|| format!("round {round}, {made} files"))?;
    }
    Ok(())
}
