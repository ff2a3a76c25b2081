//! Quotas on real mounts: refused where they end, shown by `df`, found consistent by `sluice quota check` and
//! by JuiceFS, whoever set them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs};
use rustix::io::Errno;
use sluice_tests::deadline::{patience, wait_until};
use sluice_tests::harness::{Engine, Volume, is_root, run, run_ok, skip};
use sluice_tests::juicefs::JuiceFs;
use sluice_tests::mount::Mount;
use sluice_tests::on_both_engines;

use crate::errno::{must_fail, same};

on_both_engines!(
    a_directory_quota_is_obeyed_and_shown,
    juicefs_finds_usage_exact_after_many_changes,
    a_quota_set_by_juicefs_is_honoured_after_a_heartbeat,
    summaries_of_a_mounted_tree,
);

const MIB: u64 = 1 << 20;
const HEARTBEAT: [&str; 2] = ["--heartbeat", "1s"];

/// `sluice quota` on the volume; its table or sentence.
fn quota(volume: &Volume, verb: &str, arguments: &[&str]) -> Result<String> {
    let mut command = volume.command(["quota", verb])?;
    run_ok(command.args(arguments).arg(&volume.meta_url))
}

/// Writes `bytes` zeros to a new file and waits until they are durable.
fn write(path: &Path, bytes: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&vec![0; usize::try_from(bytes).unwrap_or_default()])?;
    file.sync_all()
}

fn a_directory_quota_is_obeyed_and_shown(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let limits = [
        "--path",
        "/q/inner",
        "--create",
        "--capacity",
        "1M",
        "--inodes",
        "5",
    ];
    let table = quota(&volume, "set", &limits)?;
    ensure!(
        table.contains("1.0 MiB") && table.contains("IUse%"),
        "{table}"
    );
    quota(&volume, "set", &["--gid", "4242", "--inodes", "7"])?;
    let mount = volume.mount_with(&HEARTBEAT)?;
    let inner = mount.path("q/inner");
    write(&inner.join("half"), MIB / 2)?;
    must_fail("too much", write(&inner.join("more"), MIB), Errno::DQUOT)?;
    fs::remove_file(inner.join("more"))?;
    write(&mount.path("q/outside"), MIB)?;
    must_fail(
        "moved in",
        fs::rename(mount.path("q/outside"), inner.join("x")),
        Errno::DQUOT,
    )?;
    for name in ["1", "2", "3", "4"] {
        File::create(inner.join(name))?;
    }
    must_fail(
        "one name too many",
        File::create(inner.join("5")),
        Errno::DQUOT,
    )?;
    must_fail(
        "a link",
        fs::hard_link(inner.join("1"), inner.join("5")),
        Errno::DQUOT,
    )?;
    fs::remove_file(inner.join("half"))?;
    write(&inner.join("again"), MIB / 2)?;

    let shown = statvfs(&inner)?;
    ensure!(
        shown.f_blocks * shown.f_frsize > MIB,
        "the whole volume is not limited"
    );
    let beside = volume.mount_with(&["--subdir", "/q/inner", "--heartbeat", "1s"])?;
    let used = MIB / 2 + 4 * 4096;
    wait_until("df shows the quota", patience(20), || {
        let shown = statvfs(beside.root())?;
        let left = shown.f_bavail * shown.f_frsize;
        Ok(shown.f_blocks * shown.f_frsize == MIB && left == MIB - used && shown.f_files == 5)
    })?;
    let text = counters(&beside)?;
    ensure!(text.contains("juicefs_total_space 1048576"), "{text}");
    ensure!(text.contains("juicefs_dir_quota_max_inodes"), "{text}");
    let group = "juicefs_group_quota_max_inodes{gid=\"4242\"} 7";
    ensure!(text.contains(group), "{text}");
    beside.unmount()?;
    mount.unmount()?;
    let table = quota(&volume, "check", &["--path", "/q/inner", "--strict"])?;
    ensure!(
        table.contains("528 KiB") && table.contains("100%"),
        "{table}"
    );
    ensure!(
        quota(&volume, "list", &[])?.contains("/q/inner"),
        "not listed"
    );
    quota(&volume, "delete", &["--path", "/q/inner"])?;
    quota(&volume, "delete", &["--gid", "4242"])?;
    same("list", quota(&volume, "list", &[])?, String::new())
}

/// The server's counters, as Prometheus reads them.
fn counters(mount: &Mount) -> Result<String> {
    let mut text = vec![0; 1 << 20];
    let length = rustix::fs::lgetxattr(mount.root(), "sluice.stats", &mut text)?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

/// Waits until the volume's one mount has read quotas again: a heartbeat that was seen to begin after now has
/// ended when the next one is seen.
fn await_heartbeat(volume: &Volume) -> Result<()> {
    let expiry = || -> Result<String> {
        let mut command = volume.command(["status", "--json"])?;
        let status = run_ok(command.arg(&volume.meta_url))?;
        let line = status.lines().find(|line| line.contains("\"Expire\""));
        Ok(line.context("no session")?.to_owned())
    };
    for _ in 0..2 {
        let before = expiry()?;
        wait_until("a heartbeat has come", patience(20), || {
            Ok(expiry()? != before)
        })?;
    }
    Ok(())
}

fn juicefs_finds_usage_exact_after_many_changes(engine: Engine) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("usage of quotas, checked by JuiceFS") else {
        return Ok(());
    };
    let volume = Volume::with_options(engine, &["--trash-days", "1"])?;
    for path in ["/", "/a", "/a/in", "/b"] {
        quota(
            &volume,
            "set",
            &["--path", path, "--create", "--capacity", "1"],
        )?;
    }
    quota(&volume, "set", &["--uid", "1000", "--capacity", "1"])?;
    let mount = volume.mount_with(&HEARTBEAT)?;
    for round in 0..8 {
        churn(&mount, round).with_context(|| format!("round {round}"))?;
    }
    mount.unmount()?;
    for path in ["/", "/a", "/a/in", "/b"] {
        quota(&volume, "check", &["--path", path, "--strict"])?;
        juicefs.check_quota(&volume, &["--path", path, "--strict"])?;
        juicefs.check_quota(&volume, &["--path", path])?;
    }
    quota(&volume, "check", &[])?;
    juicefs.check_quota(&volume, &[])
}

/// All the ways in which usage moves, with sizes that depend on the round.
fn churn(mount: &Mount, round: u64) -> Result<()> {
    let at = |name: &str| mount.path(format!("{name}{round}"));
    fs::create_dir(at("a/in/tree"))?;
    for (number, size) in [0, 1, 4096, 70_000 + round * 5000].into_iter().enumerate() {
        write(&at("a/in/tree").join(number.to_string()), size)?;
    }
    fs::create_dir(at("a/in/tree").join("deep"))?;
    write(&at("a/in/tree").join("deep/file"), 9000)?;
    fs::hard_link(at("a/in/tree").join("3"), at("b/link"))?;
    fs::rename(at("a/in/tree"), at("b/tree"))?;
    write(&at("free"), 12_345)?;
    renameat_with(CWD, at("b/tree"), CWD, at("free"), RenameFlags::EXCHANGE)?;
    File::options()
        .write(true)
        .open(at("b/link"))?
        .write_all_at(b"longer", 200_000)?;
    File::options()
        .write(true)
        .open(at("free").join("deep/file"))?
        .set_len(round * 700)?;
    fs::rename(at("free").join("1"), at("free").join("2"))?;
    fs::remove_file(at("b/link"))?;
    if round.is_multiple_of(2) {
        fs::remove_dir_all(at("free"))?;
    } else {
        fs::rename(at("free"), at("a/in/back"))?;
    }
    if is_root() {
        std::os::unix::fs::chown(at("b/tree"), Some(1000), Some(1000))?;
        write(&at("mine"), 50_000)?;
        std::os::unix::fs::chown(at("mine"), Some(1000), None)?;
    }
    // Kept open without a name while its size changes.
    let file = File::create(at("a/open"))?;
    file.set_len(100_000)?;
    fs::remove_file(at("a/open"))?;
    file.set_len(300_000)?;
    Ok(file.sync_all()?)
}

fn a_quota_set_by_juicefs_is_honoured_after_a_heartbeat(engine: Engine) -> Result<()> {
    let Some(juicefs) = JuiceFs::find("quotas set by JuiceFS") else {
        return Ok(());
    };
    let volume = Volume::new(engine)?;
    let mount = volume.mount_with(&HEARTBEAT)?;
    fs::create_dir(mount.path("dir"))?;
    write(&mount.path("dir/old"), 10_000)?;
    juicefs.quota(
        &volume,
        "set",
        &["--path", "/dir", "--inodes", "3", "--strict"],
    )?;
    // What is made until the heartbeat is not charged: nothing is.
    await_heartbeat(&volume)?;
    for name in ["1", "2"] {
        File::create(mount.path("dir").join(name))?;
    }
    must_fail(
        "the fourth",
        File::create(mount.path("dir/3")),
        Errno::DQUOT,
    )?;
    if is_root() {
        juicefs.quota(&volume, "set", &["--uid", "1000", "--inodes", "1"])?;
        await_heartbeat(&volume)?;
        std::os::unix::fs::chown(mount.path("dir/1"), Some(1000), None)?;
        fs::write(mount.path("of-root"), b"")?;
        std::os::unix::fs::chown(mount.path("of-root"), Some(1000), None)?;
        let grown = fs::write(mount.path("of-root"), vec![0; 5000]);
        grown.context("inodes are limited, not bytes")?;
        let linked = fs::hard_link(mount.path("of-root"), mount.path("linked"));
        must_fail("a link of user 1000", linked, Errno::DQUOT)?;
    } else {
        skip("limits of another user: needs root");
    }
    mount.unmount()?;
    juicefs.check_quota(&volume, &["--path", "/dir", "--strict"])?;
    let theirs = juicefs.quota(&volume, "get", &["--path", "/dir"])?;
    ensure!(theirs.contains("100%"), "{theirs}");
    Ok(())
}

fn summaries_of_a_mounted_tree(engine: Engine) -> Result<()> {
    let volume = Volume::new(engine)?;
    let mount = volume.mount()?;
    fs::create_dir_all(mount.path("top/sub"))?;
    write(&mount.path("top/sub/big"), MIB)?;
    write(&mount.path("top/small"), 100)?;
    let expect = "PATH,SIZE,DIRS,FILES\n\
        top/,1060864,2,2\n\
        top/sub/,1052672,1,1\n\
        top/sub/big,1048576,0,1\n\
        top/small,4096,0,1\n";
    let summary = |options: &[&str]| {
        let mut command = volume.command(["summary"])?;
        run_ok(command.args(options).arg(mount.path("top")))
    };
    same("summary", summary(&["--csv", "--strict"])?.as_str(), expect)?;
    same("listed levels", summary(&["--csv"])?.as_str(), expect)?;
    // Statistics are written within a second.
    let total = "PATH,SIZE,DIRS,FILES\ntop/,1060864,2,2\n";
    wait_until("statistics are written", patience(20), || {
        Ok(summary(&["--csv", "--depth", "0"])? == total)
    })?;
    let mut command = volume.command(["summary", "--depth", "1", "--entries", "1"])?;
    let shown = run_ok(command.arg(mount.path("top")))?;
    ensure!(
        shown.contains("top/...") && shown.contains("1.0 MiB"),
        "{shown}"
    );
    let mut command = volume.command(["info", "-r"])?;
    let shown = run_ok(command.arg(mount.path("top")))?;
    ensure!(
        shown.contains("files   2") && shown.contains("dirs    2"),
        "{shown}"
    );
    let mut command = volume.command(["summary"])?;
    let refused = run(command.arg(volume.scratch.root()), patience(60))?;
    ensure!(!refused.status.success(), "a path that is on no mount");
    mount.unmount()
}
