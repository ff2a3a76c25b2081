//! Names: opening, renaming, linking, removing, listing.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;
use sluice_tests::harness::{Engine, Volume, run_ok};
use sluice_tests::on_both_engines;

use crate::errno::{must_fail, same};

on_both_engines!(
    opening_follows_its_flags,
    names_up_to_255_bytes,
    rename_replaces_what_posix_allows,
    rename_flags_noreplace_and_exchange,
    link_counts_follow_every_name,
    removal_refuses_what_is_not_empty_or_of_the_wrong_type,
    listing_while_the_directory_changes,
    listing_again_shows_new_entries,
    symlinks_resolve_and_loop,
);

fn opening_follows_its_flags(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let path = mount.path("file");
    must_fail("open", File::open(&path), Errno::NOENT)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(&path)?;
    file.write_all(b"12345")?;
    drop(file);
    must_fail("O_EXCL", File::create_new(&path), Errno::EXIST)?;
    same("O_CREAT keeps content", fs::read(&path)?, b"12345".to_vec())?;
    same("mode", fs::metadata(&path)?.mode(), 0o100640)?;
    let directory = mount.path("directory");
    fs::create_dir(&directory)?;
    must_fail("write a directory", File::create(&directory), Errno::ISDIR)?;
    let open_flags = |path: &Path, flags: OFlags| {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).map(drop)
    };
    must_fail(
        "O_DIRECTORY",
        open_flags(&path, OFlags::DIRECTORY),
        Errno::NOTDIR,
    )?;
    must_fail("below a file", File::open(path.join("x")), Errno::NOTDIR)?;
    symlink("file", mount.path("link"))?;
    must_fail(
        "O_NOFOLLOW",
        open_flags(&mount.path("link"), OFlags::NOFOLLOW),
        Errno::LOOP,
    )?;
    same(
        "through a link",
        fs::read(mount.path("link"))?,
        b"12345".to_vec(),
    )?;
    must_fail(
        "write to a read handle",
        File::open(&path)?.write(b"x"),
        Errno::BADF,
    )?;
    // An unnamed file is either offered and works, or refused as not supported.
    match open_flags(&directory, OFlags::TMPFILE | OFlags::RDWR) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
        Err(error) => anyhow::bail!("O_TMPFILE: {error}"),
    }
    mount.unmount()
}

fn names_up_to_255_bytes(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let (long, too_long) = ("n".repeat(255), "n".repeat(256));
    fs::write(mount.path(&long), b"x")?;
    same("found again", fs::read(mount.path(&long))?, b"x".to_vec())?;
    must_fail(
        "create",
        File::create(mount.path(&too_long)),
        Errno::NAMETOOLONG,
    )?;
    must_fail(
        "lookup",
        fs::metadata(mount.path(&too_long)),
        Errno::NAMETOOLONG,
    )?;
    must_fail(
        "mkdir",
        fs::create_dir(mount.path(&too_long)),
        Errno::NAMETOOLONG,
    )?;
    must_fail(
        "rename",
        fs::rename(mount.path(&long), mount.path(&too_long)),
        Errno::NAMETOOLONG,
    )?;
    must_fail(
        "link",
        fs::hard_link(mount.path(&long), mount.path(&too_long)),
        Errno::NAMETOOLONG,
    )?;
    // Names differ by bytes: no folding of case or of Unicode forms.
    for (index, name) in ["a", "A", "\u{e4}", "a\u{308}"].into_iter().enumerate() {
        fs::write(mount.path(name), index.to_string())?;
    }
    same("case", fs::read(mount.path("a"))?, b"0".to_vec())?;
    same("composed", fs::read(mount.path("\u{e4}"))?, b"2".to_vec())?;
    mount.unmount()
}

fn rename_replaces_what_posix_allows(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let at = |name: &str| mount.path(name);
    fs::write(at("one"), b"one")?;
    fs::write(at("two"), b"two")?;
    let ino = fs::metadata(at("one"))?.ino();
    fs::rename(at("one"), at("two"))?;
    same("content", fs::read(at("two"))?, b"one".to_vec())?;
    same("inode", fs::metadata(at("two"))?.ino(), ino)?;
    must_fail("old name", fs::metadata(at("one")), Errno::NOENT)?;
    fs::hard_link(at("two"), at("twin"))?;
    fs::rename(at("two"), at("twin"))?;
    same(
        "two names of one file stay",
        fs::metadata(at("two"))?.nlink(),
        2,
    )?;
    fs::create_dir_all(at("dir/sub/below"))?;
    fs::create_dir(at("empty"))?;
    fs::rename(at("empty"), at("dir/other"))?;
    same(
        "parent gained a directory",
        fs::metadata(at("dir"))?.nlink(),
        4,
    )?;
    must_fail(
        "onto a full directory",
        fs::rename(at("dir/other"), at("dir/sub")),
        Errno::NOTEMPTY,
    )?;
    fs::rename(at("dir/sub"), at("dir/other"))?;
    ensure!(
        at("dir/other/below").is_dir(),
        "the directory came with what it holds"
    );
    same("parent lost one", fs::metadata(at("dir"))?.nlink(), 3)?;
    must_fail(
        "file onto directory",
        fs::rename(at("two"), at("dir")),
        Errno::ISDIR,
    )?;
    must_fail(
        "directory onto file",
        fs::rename(at("dir"), at("two")),
        Errno::NOTDIR,
    )?;
    must_fail(
        "into itself",
        fs::rename(at("dir"), at("dir/other/x")),
        Errno::INVAL,
    )?;
    must_fail("nothing", fs::rename(at("nothing"), at("x")), Errno::NOENT)?;
    fs::create_dir(at("far"))?;
    fs::rename(at("dir/other"), at("far/moved"))?;
    let parent = fs::metadata(at("far/moved/.."))?.ino();
    same("dot-dot follows", parent, fs::metadata(at("far"))?.ino())?;
    mount.unmount()
}

fn rename_flags_noreplace_and_exchange(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let at = |name: &str| mount.path(name);
    let rename = |from: &str, to: &str, flags| {
        renameat_with(CWD, mount.path(from), CWD, mount.path(to), flags)
    };
    fs::write(at("one"), b"one")?;
    fs::write(at("two"), b"two")?;
    must_fail(
        "NOREPLACE",
        rename("one", "two", RenameFlags::NOREPLACE),
        Errno::EXIST,
    )?;
    same("untouched", fs::read(at("two"))?, b"two".to_vec())?;
    rename("one", "three", RenameFlags::NOREPLACE)?;
    rename("three", "two", RenameFlags::EXCHANGE)?;
    same("exchanged", fs::read(at("three"))?, b"two".to_vec())?;
    same("exchanged", fs::read(at("two"))?, b"one".to_vec())?;
    must_fail(
        "EXCHANGE",
        rename("two", "nothing", RenameFlags::EXCHANGE),
        Errno::NOENT,
    )?;
    // A file and a directory in different directories change places, and the link counts with them.
    fs::create_dir_all(at("left/directory"))?;
    fs::create_dir(at("right"))?;
    fs::write(at("left/directory/inside"), b"")?;
    fs::write(at("right/file"), b"file")?;
    rename("left/directory", "right/file", RenameFlags::EXCHANGE)?;
    same("file", fs::read(at("left/directory"))?, b"file".to_vec())?;
    ensure!(at("right/file/inside").exists(), "the directory moved");
    same("left", fs::metadata(at("left"))?.nlink(), 2)?;
    same("right", fs::metadata(at("right"))?.nlink(), 3)?;
    must_fail(
        "both flags",
        rename(
            "two",
            "three",
            RenameFlags::EXCHANGE | RenameFlags::NOREPLACE,
        ),
        Errno::INVAL,
    )?;
    mount.unmount()
}

fn link_counts_follow_every_name(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let at = |name: &str| mount.path(name);
    fs::write(at("file"), b"shared")?;
    fs::create_dir(at("dir"))?;
    for (count, name) in [(2, "second"), (3, "dir/third")] {
        fs::hard_link(at("file"), at(name))?;
        same("nlink", fs::metadata(at("file"))?.nlink(), count)?;
        same(
            "one inode",
            fs::metadata(at(name))?.ino(),
            fs::metadata(at("file"))?.ino(),
        )?;
    }
    fs::write(at("dir/third"), b"written through another name")?;
    same(
        "content",
        fs::read(at("file"))?,
        b"written through another name".to_vec(),
    )?;
    must_fail(
        "onto a name",
        fs::hard_link(at("file"), at("second")),
        Errno::EXIST,
    )?;
    must_fail(
        "of a directory",
        fs::hard_link(at("dir"), at("x")),
        Errno::PERM,
    )?;
    fs::remove_file(at("file"))?;
    same("nlink", fs::metadata(at("second"))?.nlink(), 2)?;
    fs::remove_file(at("dir/third"))?;
    same("nlink", fs::metadata(at("second"))?.nlink(), 1)?;
    same(
        "content",
        fs::read(at("second"))?,
        b"written through another name".to_vec(),
    )?;
    for (count, name) in [(3, "dir/a"), (4, "dir/b")] {
        fs::create_dir(at(name))?;
        same(
            "a directory's dot-dot counts",
            fs::metadata(at("dir"))?.nlink(),
            count,
        )?;
    }
    fs::remove_dir(at("dir/a"))?;
    same("nlink", fs::metadata(at("dir"))?.nlink(), 3)?;
    mount.unmount()
}

fn removal_refuses_what_is_not_empty_or_of_the_wrong_type(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let at = |name: &str| mount.path(name);
    fs::create_dir(at("dir"))?;
    fs::write(at("dir/file"), b"")?;
    must_fail("rmdir", fs::remove_dir(at("dir")), Errno::NOTEMPTY)?;
    must_fail("rmdir", fs::remove_dir(at("dir/file")), Errno::NOTDIR)?;
    must_fail("unlink", fs::remove_file(at("dir")), Errno::ISDIR)?;
    must_fail("unlink", fs::remove_file(at("nothing")), Errno::NOENT)?;
    must_fail("rmdir", fs::remove_dir(at("nothing")), Errno::NOENT)?;
    must_fail("mkdir", fs::create_dir(at("dir")), Errno::EXIST)?;
    must_fail("mkdir", fs::create_dir(at("nothing/x")), Errno::NOENT)?;
    must_fail("rmdir .", rustix::fs::rmdir(at("dir/.")), Errno::INVAL)?;
    fs::remove_file(at("dir/file"))?;
    let inside = File::open(at("dir"))?;
    fs::remove_dir(at("dir"))?;
    must_fail("gone", fs::metadata(at("dir")), Errno::NOENT)?;
    let orphan = rustix::fs::openat(
        &inside,
        "x",
        OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::RUSR,
    );
    must_fail("create in a removed directory", orphan, Errno::NOENT)?;
    drop(inside);
    mount.unmount()
}

fn listing_while_the_directory_changes(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let dir = mount.path("busy");
    fs::create_dir(&dir)?;
    for index in 0..3000 {
        File::create(dir.join(format!("stays-{index}")))?;
        if index % 10 == 0 {
            File::create(dir.join(format!("goes-{index}")))?;
        }
    }
    let mut seen = BTreeSet::new();
    let mut listed = 0;
    for entry in fs::read_dir(&dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy().into_owned();
        listed += 1;
        if listed % 10 == 0 {
            let index = (listed * 7) % 3000 / 10 * 10;
            // Gone already on a second visit.
            let _ = fs::remove_file(dir.join(format!("goes-{index}")));
            File::create(dir.join(format!("comes-{listed}")))?;
        }
        ensure!(seen.insert(name.clone()), "{name} was listed twice");
    }
    let stays = seen
        .iter()
        .filter(|name| name.starts_with("stays-"))
        .count();
    same("names that were there all the time", stays, 3000)?;
    // Emptying while listing, as `rm -r` does.
    run_ok(Command::new("rm").arg("-r").arg(&dir))?;
    must_fail("gone", fs::metadata(&dir), Errno::NOENT)?;
    mount.unmount()
}

fn listing_again_shows_new_entries(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::create_dir(mount.path("dir"))?;
    fs::write(mount.path("dir/first"), b"")?;
    let handle = rustix::fs::open(
        mount.path("dir"),
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut dir = rustix::fs::Dir::read_from(&handle)?;
    let names = |dir: &mut rustix::fs::Dir| -> Result<BTreeSet<Vec<u8>>> {
        let mut found = BTreeSet::new();
        while let Some(entry) = dir.read() {
            found.insert(entry?.file_name().to_bytes().to_vec());
        }
        Ok(found)
    };
    let wanted = |list: &[&str]| list.iter().map(|name| name.as_bytes().to_vec()).collect();
    same("names", names(&mut dir)?, wanted(&[".", "..", "first"]))?;
    fs::write(mount.path("dir/second"), b"")?;
    fs::remove_file(mount.path("dir/first"))?;
    dir.rewind();
    same(
        "after rewind",
        names(&mut dir)?,
        wanted(&[".", "..", "second"]),
    )?;
    drop((dir, handle));
    // Inode numbers and types of a listing are those of stat.
    for entry in fs::read_dir(mount.path("dir"))? {
        let entry = entry?;
        use std::os::unix::fs::DirEntryExt;
        same(
            "inode",
            entry.ino(),
            fs::symlink_metadata(entry.path())?.ino(),
        )?;
        ensure!(entry.file_type()?.is_file(), "type");
    }
    mount.unmount()
}

fn symlinks_resolve_and_loop(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let at = |name: &str| mount.path(name);
    fs::create_dir(at("dir"))?;
    fs::write(at("dir/file"), b"found")?;
    symlink("dir/file", at("link"))?;
    symlink("link", at("link-to-link"))?;
    symlink("dir", at("link-to-dir"))?;
    same("content", fs::read(at("link-to-link"))?, b"found".to_vec())?;
    same(
        "content",
        fs::read(at("link-to-dir/file"))?,
        b"found".to_vec(),
    )?;
    same("target", fs::read_link(at("link"))?, "dir/file".into())?;
    same("size", fs::symlink_metadata(at("link"))?.len(), 8)?;
    symlink("loop-b", at("loop-a"))?;
    symlink("loop-a", at("loop-b"))?;
    must_fail("loop", fs::read(at("loop-a")), Errno::LOOP)?;
    must_fail(
        "readlink of a file",
        fs::read_link(at("dir/file")),
        Errno::INVAL,
    )?;
    must_fail("onto a name", symlink("x", at("link")), Errno::EXIST)?;
    let long = "x/".repeat(2047) + "x";
    symlink(&long, at("long"))?;
    same("longest target", fs::read_link(at("long"))?, long.into())?;
    fs::remove_file(at("link-to-dir"))?;
    ensure!(at("dir/file").exists(), "only the link is removed");
    mount.unmount()
}
