//! What ordinary tools do with attributes beside the mode: setfacl and getfacl, chattr and lsattr, access times,
//! names without case. The judges are a local file system (the scratch directory's) and JuiceFS.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use rustix::io::Errno;
use sluice_tests::deadline::{patience, wait_until};
use sluice_tests::harness::{Engine, Volume, is_root, run, skip};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::mount::Mount;
use sluice_tests::on_both_engines;

use crate::errno::{must_fail, same};

on_both_engines!(
    acls_look_as_on_a_local_file_system,
    acls_are_enforced,
    acls_are_the_same_through_juicefs,
    flags_are_shown_and_hold,
    flags_are_the_same_through_juicefs,
    access_times_move_as_asked,
    names_may_ignore_case,
);

const NOBODY: u32 = 65534;

/// Runs a shell script in `directory` as user and group `id`.
fn sh_as(id: u32, directory: &Path, script: &str) -> Result<Output> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).current_dir(directory);
    if id != 0 {
        command.uid(id).gid(id);
    }
    run(&mut command, patience(60))
}

/// Runs it as root; it must succeed. Answers what it printed.
fn sh(directory: &Path, script: &str) -> Result<String> {
    let output = sh_as(0, directory, script)?;
    ensure!(output.status.success(), "{script}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

fn needs_root(what: &str) -> bool {
    if !is_root() {
        skip(&format!("{what}: only root can act as other users"));
    }
    is_root()
}

/// Everything there is to see of a tree's modes and ACLs.
const SHOW: &str = "LC_ALL=C; export LC_ALL; find . -mindepth 1 ! -name '.*' ! -path './.*' | sort | \
    while read name; do stat -c '%n %A %u %g' \"$name\"; test -L \"$name\" || getfacl -cpn \"$name\"; done";

/// Steps after each of which the tree must look alike everywhere.
const STEPS: [&str; 14] = [
    "umask 022; mkdir dir; touch dir/file; setfacl -m u:65534:rw,g:7:r dir/file",
    "setfacl -d -m u:65534:rwx,g:7:rx,o::- dir",
    "umask 077; mkdir dir/sub; touch dir/sub/file; mkfifo dir/fifo; ln -s file dir/link",
    "umask 000; mkdir -m 0700 dir/private; touch dir/wide; mknod dir/null c 1 3",
    "chmod 640 dir/file; chmod g+x,o+r dir/sub/file; chmod 4755 dir/wide",
    "setfacl -m m::r dir/sub; setfacl -m u:12:x dir/sub",
    "setfacl -x u:65534 dir/file; setfacl -b dir/wide",
    "setfacl -k dir/sub; mkdir dir/sub/none",
    "setfacl -m d:u::rwx,d:g::rx,d:o::- dir/private; umask 077; touch dir/private/f; mkdir dir/private/d",
    "chmod g+s dir; mkdir dir/setgid; touch dir/setgid/f; chgrp 9 dir/setgid; mkdir dir/setgid/below",
    "setfacl -m u:1:rwx dir/setgid; chmod 2711 dir/setgid",
    "cp -a dir copy; mv copy/file copy/moved",
    "setfacl -R -m u:4321:rx copy; setfacl --set u::rw,g::r,o::r copy/moved",
    "echo changed > copy/moved; chown 3:4 copy/moved; ln copy/moved copy/other",
];

fn acls_look_as_on_a_local_file_system(engine: Engine) -> Result<()> {
    if !needs_root("ACLs of files of other users") {
        return Ok(());
    }
    let volume = Volume::with_options(engine, &["--enable-acl"])?;
    let local = volume.scratch.dir("local")?;
    if !sh_as(0, &local, "setfacl -m u:7:rw . && setfacl -b .")?
        .status
        .success()
    {
        skip("ACLs beside a local file system: the scratch directory's has none");
        return Ok(());
    }
    let mount = volume.mount()?;
    fs::create_dir(mount.path("top"))?;
    for step in STEPS {
        sh(&local, step)?;
        sh(&mount.path("top"), step)?;
        let shown = sh(&mount.path("top"), SHOW)?;
        same(step, shown, sh(&local, SHOW)?)?;
    }
    // An owner who is not in the file's group does not keep sgid.
    for directory in [local.clone(), mount.path("top")] {
        sh(
            &directory,
            "touch g; chown 65534:9 g; chmod 2755 g; chmod o+rx .",
        )?;
        let set = sh_as(NOBODY, &directory, "setfacl -m u:5:rx g")?;
        ensure!(set.status.success(), "{set:?}");
    }
    let before = sh(&mount.path("top"), SHOW)?;
    same("set by the owner", before.clone(), sh(&local, SHOW)?)?;
    ensure!(before.contains("./g -rwxr-xr-x"), "without sgid: {before}");
    mount.unmount()?;
    let mount = volume.mount()?;
    same("after a remount", sh(&mount.path("top"), SHOW)?, before)?;
    // The kernel refuses most of what is no ACL itself.
    let refused = rustix::fs::setxattr(
        mount.path("top"),
        "system.posix_acl_access",
        &[2, 0, 0, 0, 1, 0],
        rustix::fs::XattrFlags::empty(),
    );
    must_fail("half an entry", refused, Errno::INVAL)?;
    mount.unmount()
}

fn acls_are_enforced(engine: Engine) -> Result<()> {
    if !needs_root("what ACLs grant to others") {
        return Ok(());
    }
    let volume = Volume::with_options(engine, &["--enable-acl"])?;
    let mount = volume.mount()?;
    let root = mount.root();
    sh(
        root,
        "echo text > file; chmod 600 file; mkdir dir; chmod 700 dir; touch dir/inside",
    )?;
    let nobody =
        |script: &str| -> Result<bool> { Ok(sh_as(NOBODY, root, script)?.status.success()) };
    ensure!(!nobody("cat file")?, "before there is an ACL");
    sh(root, "setfacl -m u:65534:r file; setfacl -m u:65534:rx dir")?;
    ensure!(nobody("cat file")?, "read is granted");
    ensure!(!nobody("echo x >> file")?, "write is not");
    ensure!(nobody("ls dir/inside")?, "and the directory is open");
    ensure!(!nobody("touch dir/new")?, "for looking");
    ensure!(
        !nobody("setfacl -m u:65534:rwx file")?,
        "only the owner may"
    );
    sh(root, "setfacl -m u:65534:rw file; setfacl -m m::r file")?;
    ensure!(!nobody("echo x >> file")?, "the mask takes it away");
    sh(root, "chmod 660 file")?;
    ensure!(nobody("echo x >> file")?, "chmod moves the mask");
    sh(root, "chmod 666 file; setfacl -m g::r,u:65534:- file")?;
    ensure!(
        !nobody("cat file")?,
        "what others may, a named user may not"
    );
    sh(
        root,
        "setfacl -x u:65534 file; setfacl -b file; chmod 644 file",
    )?;
    ensure!(nobody("cat file")?, "the ACL is gone");

    // What another mount changes holds here when attributes have run out.
    let other = volume.mount()?;
    sh(other.root(), "setfacl -m u:65534:- file")?;
    wait_until("the other mount's ACL holds", patience(30), || {
        Ok(!nobody("cat file")?)
    })?;
    other.unmount()?;
    mount.unmount()?;

    // Without the feature tools are told so.
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let refused = sh_as(0, mount.root(), "touch f; setfacl -m u:7:r f")?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(said.contains("not supported"), "{said}");
    mount.unmount()
}

fn acls_are_the_same_through_juicefs(engine: Engine) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("ACLs set on one side and read on the other") else {
        return Ok(());
    };
    if !needs_root("ACLs through JuiceFS") {
        return Ok(());
    }
    let volume = Volume::with_options(engine, &["--enable-acl"])?;
    let (ours, theirs) = (volume.mount()?, juicefs.mount(&volume, &[])?);
    for (mount, dir) in [(&ours, "ours"), (&theirs, "theirs")] {
        fs::create_dir(mount.path(dir))?;
        for step in STEPS {
            sh(&mount.path(dir), step).with_context(|| format!("in {dir}"))?;
        }
    }
    let show = |mount: &Mount, dir| sh(&mount.path(dir), SHOW);
    // The same steps have the same outcome, and each reads what the other wrote.
    same("outcome", show(&ours, "ours")?, show(&theirs, "theirs")?)?;
    same("ours there", show(&theirs, "ours")?, show(&ours, "ours")?)?;
    same(
        "theirs here",
        show(&ours, "theirs")?,
        show(&theirs, "theirs")?,
    )?;
    // Children of the other's directories.
    for (mount, dir) in [(&theirs, "ours"), (&ours, "theirs")] {
        sh(
            &mount.path(dir),
            "umask 027; mkdir dir/more; touch dir/more/file; chmod 751 dir/more",
        )?;
    }
    same("children", show(&ours, "ours")?, show(&theirs, "theirs")?)?;
    ours.unmount()?;
    theirs.unmount()?;
    juicefs.fsck(&volume)
}

/// The letters lsattr shows for a file.
fn flags(path: &Path) -> Result<String> {
    let parent = path.parent().context("a file in a directory")?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let shown = sh(parent, &format!("lsattr -d '{name}'"))?;
    let letters = shown.split_whitespace().next().unwrap_or_default();
    Ok(letters.chars().filter(|letter| *letter != '-').collect())
}

fn flags_are_shown_and_hold(engine: Engine) -> Result<()> {
    if !needs_root("flags, which are root's to set") {
        return Ok(());
    }
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    let (root, file) = (mount.root(), mount.path("file"));
    sh(
        root,
        "echo text > file; mkdir dir; touch dir/inside; chmod 777 . dir file",
    )?;
    same("a new file", flags(&file)?, String::new())?;
    sh(root, "chattr +i file dir")?;
    same("immutable", flags(&file)?, "i".to_owned())?;
    must_fail(
        "write",
        OpenOptions::new().write(true).open(&file),
        Errno::PERM,
    )?;
    must_fail("unlink", fs::remove_file(&file), Errno::PERM)?;
    must_fail("rename", fs::rename(&file, mount.path("f2")), Errno::PERM)?;
    must_fail("link", fs::hard_link(&file, mount.path("f2")), Errno::PERM)?;
    let cut = sh_as(0, root, "truncate -s 0 file")?;
    ensure!(!cut.status.success(), "truncation of an immutable file");
    must_fail(
        "create inside",
        File::create(mount.path("dir/new")),
        Errno::PERM,
    )?;
    must_fail(
        "unlink inside",
        fs::remove_file(mount.path("dir/inside")),
        Errno::PERM,
    )?;
    let refused = sh_as(0, root, "chmod 600 file")?;
    ensure!(!refused.status.success(), "chmod of an immutable file");
    sh(root, "chattr -i file dir; chattr +a file")?;
    same("append only", flags(&file)?, "a".to_owned())?;
    must_fail(
        "overwrite",
        OpenOptions::new().write(true).open(&file),
        Errno::PERM,
    )?;
    OpenOptions::new()
        .append(true)
        .open(&file)?
        .write_all(b"more\n")?;
    same("contents", fs::read(&file)?, b"text\nmore\n".to_vec())?;
    must_fail("unlink", fs::remove_file(&file), Errno::PERM)?;
    sh(root, "chattr -a file; chattr +s file")?;
    same("without trash", flags(&file)?, "s".to_owned())?;
    fs::remove_file(&file)?;
    let trash = sh(root, "find .trash -type f | wc -l")?;
    same("files in the trash", trash.trim(), "0")?;

    for (who, script) in [
        (0, "chattr +d dir"),
        (0, "chattr +c dir"),
        (NOBODY, "chattr +a dir"),
    ] {
        let refused = sh_as(who, root, script)?;
        ensure!(!refused.status.success(), "{who}: {script}");
    }
    let unknown = sh_as(0, root, "stty -F dir/inside")?;
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    ensure!(said.contains("Inappropriate ioctl"), "{said}");
    mount.unmount()
}

fn flags_are_the_same_through_juicefs(engine: Engine) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("flags set on one side and read on the other") else {
        return Ok(());
    };
    if !needs_root("flags through JuiceFS") {
        return Ok(());
    }
    let volume = Volume::new(engine)?;
    let (ours, theirs) = (
        volume.mount()?,
        juicefs.mount(&volume, &["--enable-ioctl"])?,
    );
    for (setter, reader, name) in [(&ours, &theirs, "ours"), (&theirs, &ours, "theirs")] {
        let (set, read) = (setter.path(name), reader.path(name));
        fs::write(&set, name)?;
        for (change, letters) in [("+i", "i"), ("-i", ""), ("+as", "sa"), ("=", "")] {
            sh(setter.root(), &format!("chattr {change} {name}"))?;
            same(change, flags(&set)?, letters.to_owned())?;
            wait_until("the other side shows it", patience(30), || {
                Ok(flags(&read)? == letters)
            })?;
            if change == "+i" {
                must_fail("unlink", fs::remove_file(&read), Errno::PERM)?;
            }
        }
    }
    ours.unmount()?;
    theirs.unmount()?;
    juicefs.fsck(&volume)
}

/// The time of an access to `path` as the mount tells it.
fn atime(path: &Path) -> Result<i64> {
    Ok(fs::symlink_metadata(path)?.atime())
}

fn set_times(path: &Path, access: i64, change: i64) -> Result<()> {
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
    let times = Timestamps {
        last_access: time(access),
        last_modification: time(change),
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn read_whole(path: &Path, flags: i32) -> Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    file.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn access_times_move_as_asked(engine: Engine) -> Result<()> {
    const OLD: i64 = 1_000_000_000;
    let volume = Volume::new(engine)?;
    let options = ["--atime-mode", "relatime", "--attr-cache", "0s"];
    let mount = volume.mount_with(&options)?;
    let (file, dir, link) = (mount.path("file"), mount.path("dir"), mount.path("link"));
    fs::write(&file, "text")?;
    fs::create_dir(&dir)?;
    std::os::unix::fs::symlink("file", &link)?;
    set_times(&file, OLD, OLD)?;
    set_times(&dir, OLD, OLD)?;
    // Without noting it if the caller asks for that.
    let noatime = rustix::fs::OFlags::NOATIME.bits().cast_signed();
    read_whole(&file, noatime)?;
    read_whole(&file, 0)?;
    wait_until("the file's time moved", patience(30), || {
        Ok(atime(&file)? > OLD)
    })?;
    fs::read_dir(&dir)?.count();
    wait_until("the directory's time moved", patience(30), || {
        Ok(atime(&dir)? > OLD)
    })?;
    // Later than the last change: it stays.
    let future = atime(&file)? + 3600;
    set_times(&file, future, OLD)?;
    sh(mount.root(), "touch -m -d @1000000000 file")?;
    mount.unmount()?;

    let mount = volume.mount_with(&["--atime-mode", "strictatime", "--attr-cache", "0s"])?;
    let (file, link) = (mount.path("file"), mount.path("link"));
    set_times(&file, OLD, OLD)?;
    set_times(&link, OLD, OLD)?;
    read_whole(&file, noatime)?;
    fs::read_link(&link)?;
    wait_until("the link's time moved", patience(30), || {
        Ok(atime(&link)? > OLD)
    })?;
    same("with O_NOATIME", atime(&file)?, OLD)?;
    read_whole(&file, 0)?;
    // What is noted is kept although the mount ends at once.
    mount.unmount()?;

    let mount = volume.mount_with(&["--attr-cache", "0s"])?;
    let file = mount.path("file");
    let moved = atime(&file)?;
    ensure!(moved > OLD, "strictatime, kept at the unmount");
    set_times(&file, OLD, OLD)?;
    read_whole(&file, 0)?;
    mount.unmount()?;
    let mount = volume.mount()?;
    same("noatime is the default", atime(&mount.path("file"))?, OLD)?;
    mount.unmount()
}

fn names_may_ignore_case(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount_with(&["--case-insensitive"])?;
    fs::create_dir(mount.path("Dir"))?;
    fs::write(mount.path("Dir/ReadMe"), "text")?;
    same(
        "another spelling",
        fs::read(mount.path("DIR/readme"))?,
        b"text".to_vec(),
    )?;
    must_fail(
        "a second one",
        fs::create_dir(mount.path("dIR")),
        Errno::EXIST,
    )?;
    fs::write(mount.path("dir/README"), "changed")?;
    same(
        "one file",
        fs::read(mount.path("Dir/ReadMe"))?,
        b"changed".to_vec(),
    )?;
    // To the kernel two names of one file are two links, and renaming one to the other is nothing to do.
    fs::rename(mount.path("dir/README"), mount.path("dir/Readme"))?;
    let names: Vec<_> = fs::read_dir(mount.path("Dir"))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    same("spelled as before", names, vec!["ReadMe".into()])?;
    fs::remove_file(mount.path("DIR/README"))?;
    fs::remove_dir(mount.path("DIR"))?;
    mount.unmount()?;
    let mount = volume.mount()?;
    fs::write(mount.path("a"), "1")?;
    must_fail("case matters", File::open(mount.path("A")), Errno::NOENT)?;
    mount.unmount()
}
