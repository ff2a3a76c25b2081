//! Who may do what, and what every change leaves in the attributes: modes, owners, times, xattrs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use sluice_tests::deadline::patience;
use sluice_tests::harness::{Engine, Volume, is_root, run, skip};
use sluice_tests::on_both_engines;

use crate::errno::{must_fail, same};

on_both_engines!(
    sticky_directory_protects_other_users_files,
    permissions_are_enforced,
    chown_and_writes_clear_setuid,
    setgid_directory_passes_its_group_on,
    times_follow_changes_and_can_be_set,
    xattr_flags_and_errors,
    read_only_mount_refuses_changes,
);

/// Runs a shell script as the user nobody, in `directory`.
fn as_nobody(directory: &Path, script: &str) -> Result<Output> {
    let mut command = Command::new("/bin/sh");
    command
        .arg("-c")
        .arg(script)
        .current_dir(directory)
        .uid(65534)
        .gid(65534);
    run(&mut command, patience(60))
}

fn nobody_can(directory: &Path, script: &str) -> Result<()> {
    let output = as_nobody(directory, script)?;
    ensure!(
        output.status.success(),
        "nobody cannot: {script}: {output:?}"
    );
    Ok(())
}

fn nobody_cannot(directory: &Path, script: &str, words: &str) -> Result<()> {
    let output = as_nobody(directory, script)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "nobody can: {script}");
    ensure!(
        stderr.contains(words),
        "{script}: {stderr}, expected {words}"
    );
    Ok(())
}

fn sticky_directory_protects_other_users_files(engine: Engine) -> Result<()> {
    if !is_root() {
        skip("sticky directories need two users: run as root");
        return Ok(());
    }
    let volume = Volume::new(engine)?;
    let mount = volume.mount_with(&["-o", "allow_other"])?;
    let sticky = mount.path("sticky");
    fs::create_dir(&sticky)?;
    fs::set_permissions(&sticky, fs::Permissions::from_mode(0o1777))?;
    fs::write(sticky.join("of-root"), b"")?;
    nobody_can(&sticky, "echo x > own && mv own mine && rm mine")?;
    nobody_cannot(&sticky, "rm -f of-root", "not permitted")?;
    nobody_cannot(&sticky, "mv of-root elsewhere", "not permitted")?;
    nobody_cannot(&sticky, "touch over && mv -f over of-root", "not permitted")?;
    ensure!(
        sticky.join("of-root").exists(),
        "root's file is still there"
    );
    let open = mount.path("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    fs::write(open.join("of-root"), b"")?;
    nobody_can(&open, "rm -f of-root")?;
    mount.unmount()
}

fn permissions_are_enforced(engine: Engine) -> Result<()> {
    if !is_root() {
        skip("permissions need two users: run as root");
        return Ok(());
    }
    let volume = Volume::new(engine)?;
    let mount = volume.mount_with(&["-o", "allow_other"])?;
    let root = mount.root();
    fs::write(mount.path("secret"), b"secret")?;
    fs::set_permissions(mount.path("secret"), fs::Permissions::from_mode(0o600))?;
    fs::write(mount.path("public"), b"public")?;
    fs::set_permissions(mount.path("public"), fs::Permissions::from_mode(0o644))?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(mount.path("closed"))?;
    fs::write(mount.path("closed/inside"), b"")?;
    nobody_can(root, "cat public")?;
    nobody_cannot(root, "cat secret", "ermission denied")?;
    nobody_cannot(root, "echo x >> public", "ermission denied")?;
    nobody_cannot(root, "ls closed", "ermission denied")?;
    nobody_cannot(root, "cat closed/inside", "ermission denied")?;
    nobody_cannot(root, "chmod 666 public", "not permitted")?;
    nobody_cannot(root, "chown nobody public", "not permitted")?;
    nobody_can(
        root,
        "test -r public && ! test -w public && ! test -r secret",
    )?;
    mount.unmount()
}

fn chown_and_writes_clear_setuid(engine: Engine) -> Result<()> {
    if !is_root() {
        skip("clearing of setuid needs two users: run as root");
        return Ok(());
    }
    let volume = Volume::new(engine)?;
    let mount = volume.mount_with(&["-o", "allow_other"])?;
    let path = mount.path("tool");
    let mode = |path: &Path| Ok::<u32, std::io::Error>(fs::metadata(path)?.mode() & 0o7777);
    fs::write(&path, b"#!/bin/sh\n")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777))?;
    same("set", mode(&path)?, 0o6777)?;
    nobody_can(mount.root(), "echo true >> tool")?;
    same("write by another user", mode(&path)?, 0o777)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755))?;
    std::os::unix::fs::chown(&path, Some(65534), Some(65534))?;
    same("chown", mode(&path)?, 0o755)?;
    let owner = fs::metadata(&path)?;
    same("owner", (owner.uid(), owner.gid()), (65534, 65534))?;
    nobody_can(mount.root(), "chmod 4700 tool")?;
    same("the owner may set it", mode(&path)?, 0o4700)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6777))?;
    nobody_can(mount.root(), "truncate -s 3 tool || : > tool")?;
    same("truncation by its owner", mode(&path)? & 0o4000, 0)?;
    mount.unmount()
}

fn setgid_directory_passes_its_group_on(engine: Engine) -> Result<()> {
    if !is_root() {
        skip("setgid directories need a second group: run as root");
        return Ok(());
    }
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let dir = mount.path("team");
    fs::create_dir(&dir)?;
    std::os::unix::fs::chown(&dir, None, Some(4242))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775))?;
    fs::write(dir.join("file"), b"")?;
    fs::create_dir(dir.join("sub"))?;
    same("file's group", fs::metadata(dir.join("file"))?.gid(), 4242)?;
    let sub = fs::metadata(dir.join("sub"))?;
    same("directory's group", sub.gid(), 4242)?;
    same("directory's setgid bit", sub.mode() & 0o2000, 0o2000)?;
    mount.unmount()
}

fn times_follow_changes_and_can_be_set(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    // Directory times may be skipped while they are young: here every change counts.
    let mount = volume.mount_with(&["--skip-dir-mtime", "0s"])?;
    let path = mount.path("file");
    fs::write(&path, b"1")?;
    let set = |atime: Timespec, mtime: Timespec| {
        let times = Timestamps {
            last_access: atime,
            last_modification: mtime,
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())
    };
    let at = |seconds| Timespec {
        tv_sec: seconds,
        tv_nsec: 5,
    };
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_OMIT,
    };
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_NOW,
    };
    set(at(1000), at(2000))?;
    let found = fs::metadata(&path)?;
    same("atime", (found.atime(), found.atime_nsec()), (1000, 5))?;
    same("mtime", (found.mtime(), found.mtime_nsec()), (2000, 5))?;
    ensure!(
        found.ctime() > 1_500_000_000,
        "ctime is the clock's: {}",
        found.ctime()
    );
    set(omit, at(3000))?;
    same("omitted", fs::metadata(&path)?.atime(), 1000)?;
    set(now, omit)?;
    let found = fs::metadata(&path)?;
    ensure!(found.atime() > 1_500_000_000, "now");
    same("mtime stays", found.mtime(), 3000)?;
    let changed = |what: &str, change: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let moment = |meta: &fs::Metadata| (meta.ctime(), meta.ctime_nsec());
        let before = moment(&fs::metadata(&path)?);
        change()?;
        ensure!(
            moment(&fs::metadata(&path)?) > before,
            "{what} does not move ctime"
        );
        Ok(())
    };
    changed("chmod", &mut || {
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o600),
        )?)
    })?;
    changed("link", &mut || {
        Ok(fs::hard_link(&path, mount.path("link"))?)
    })?;
    changed("unlink", &mut || Ok(fs::remove_file(mount.path("link"))?))?;
    changed("setxattr", &mut || {
        Ok(rustix::fs::setxattr(
            &path,
            "user.x",
            b"",
            XattrFlags::empty(),
        )?)
    })
    .or_else(|error| {
        // JuiceFS leaves ctime alone here, and so may we: volumes are shared.
        skip(&format!("{error:#}"));
        Ok::<(), anyhow::Error>(())
    })?;
    changed("write", &mut || {
        let mut file = OpenOptions::new().append(true).open(&path)?;
        file.write_all(b"2")?;
        Ok(file.sync_all()?)
    })?;
    ensure!(
        fs::metadata(&path)?.mtime() > 1_500_000_000,
        "write moves mtime"
    );
    let moment = || fs::metadata(mount.root()).map(|meta| (meta.mtime(), meta.mtime_nsec()));
    let before = moment()?;
    fs::create_dir(mount.path("new"))?;
    ensure!(moment()? > before, "mkdir moves the parent's mtime");
    let before = moment()?;
    fs::remove_dir(mount.path("new"))?;
    ensure!(moment()? > before, "rmdir moves the parent's mtime");
    if is_root() {
        let mount = volume.mount_with(&["-o", "allow_other"])?;
        nobody_cannot(mount.root(), "touch -d @1 file", "ermi")?;
        mount.unmount()?;
    }
    mount.unmount()
}

fn xattr_flags_and_errors(engine: Engine) -> Result<()> {
    use rustix::fs::{getxattr, listxattr, removexattr, setxattr};
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let path = mount.path("file");
    fs::write(&path, b"")?;
    let mut buffer = [0; 100];
    must_fail(
        "get",
        getxattr(&path, "user.a", &mut buffer[..]),
        Errno::NODATA,
    )?;
    must_fail("remove", removexattr(&path, "user.a"), Errno::NODATA)?;
    must_fail(
        "replace",
        setxattr(&path, "user.a", b"1", XattrFlags::REPLACE),
        Errno::NODATA,
    )?;
    setxattr(&path, "user.a", b"1", XattrFlags::CREATE)?;
    must_fail(
        "create",
        setxattr(&path, "user.a", b"2", XattrFlags::CREATE),
        Errno::EXIST,
    )?;
    setxattr(&path, "user.a", b"value", XattrFlags::REPLACE)?;
    same("length", getxattr(&path, "user.a", &mut buffer[..])?, 5)?;
    same("value", &buffer[..5], b"value")?;
    must_fail(
        "short buffer",
        getxattr(&path, "user.a", &mut [0; 2][..]),
        Errno::RANGE,
    )?;
    setxattr(&path, "user.b", b"", XattrFlags::empty())?;
    let length = listxattr(&path, &mut buffer[..])?;
    let names: BTreeSet<&[u8]> = buffer[..length].split(|&byte| byte == 0).collect();
    same(
        "names",
        names,
        BTreeSet::from([&b""[..], b"user.a", b"user.b"]),
    )?;
    must_fail(
        "short list",
        listxattr(&path, &mut [0; 3][..]),
        Errno::RANGE,
    )?;
    removexattr(&path, "user.a")?;
    must_fail(
        "removed",
        getxattr(&path, "user.a", &mut buffer[..]),
        Errno::NODATA,
    )?;
    setxattr(
        &path,
        OsStr::new("user.ümlaut"),
        &[0xff; 65536],
        XattrFlags::empty(),
    )?;
    let mut large = vec![0; 65536];
    same(
        "largest",
        getxattr(&path, "user.ümlaut", &mut large[..])?,
        65536,
    )?;
    ensure!(large.iter().all(|&byte| byte == 0xff), "largest value");
    let before = fs::metadata(&path)?;
    fs::rename(&path, mount.path("renamed"))?;
    same(
        "attributes move along",
        getxattr(mount.path("renamed"), "user.b", &mut buffer[..])?,
        0,
    )?;
    same(
        "inode",
        fs::metadata(mount.path("renamed"))?.ino(),
        before.ino(),
    )?;
    mount.unmount()
}

fn read_only_mount_refuses_changes(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::write(mount.path("file"), b"content")?;
    fs::create_dir(mount.path("dir"))?;
    mount.unmount()?;
    let mount = volume.mount_with(&["--read-only"])?;
    let at = |name: &str| mount.path(name);
    same("reads", fs::read(at("file"))?, b"content".to_vec())?;
    must_fail("create", File::create(at("new")), Errno::ROFS)?;
    must_fail(
        "open",
        OpenOptions::new().write(true).open(at("file")),
        Errno::ROFS,
    )?;
    must_fail("mkdir", fs::create_dir(at("new")), Errno::ROFS)?;
    must_fail("unlink", fs::remove_file(at("file")), Errno::ROFS)?;
    must_fail("rmdir", fs::remove_dir(at("dir")), Errno::ROFS)?;
    must_fail("rename", fs::rename(at("file"), at("new")), Errno::ROFS)?;
    must_fail("link", fs::hard_link(at("file"), at("new")), Errno::ROFS)?;
    must_fail("symlink", symlink("x", at("new")), Errno::ROFS)?;
    let mode = fs::Permissions::from_mode(0o600);
    must_fail("chmod", fs::set_permissions(at("file"), mode), Errno::ROFS)?;
    let xattr = rustix::fs::setxattr(at("file"), "user.x", b"", XattrFlags::empty());
    must_fail("setxattr", xattr, Errno::ROFS)?;
    mount.unmount()
}
