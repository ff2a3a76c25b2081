//! Mounting without privileges, through fusermount3, as the user nobody (or as whoever runs the tests, if
//! that is not root).

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use sluice_tests::deadline::patience;
use sluice_tests::harness::{Engine, OtherUser, Volume, is_root, run, run_ok, sluice};
use sluice_tests::on_both_engines;

use crate::errno::{must_fail, same};

on_both_engines!(ordinary_user_mounts_and_unmounts);

const NOBODY: u32 = 65534;
const DEVICE: &str = "/dev/fuse";

/// Opens `/dev/fuse` to everyone, as distributions do, for as long as it lives. Tests of both engines may
/// hold it at once: the mode that was found is put back by whoever found it closed.
struct OpenDevice {
    found: Option<fs::Permissions>,
}

impl OpenDevice {
    fn new() -> Result<OpenDevice> {
        let found = fs::metadata(DEVICE).context("/dev/fuse")?.permissions();
        if found.mode() & 0o006 == 0o006 {
            return Ok(OpenDevice { found: None });
        }
        fs::set_permissions(DEVICE, fs::Permissions::from_mode(0o666))?;
        Ok(OpenDevice { found: Some(found) })
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        if let Some(found) = self.found.take()
            && let Err(error) = fs::set_permissions(DEVICE, found)
        {
            eprintln!("{DEVICE} keeps mode 666: {error}");
        }
    }
}

/// Runs a shell script in `directory` as the volume's user.
fn as_user(volume: &Volume, directory: &Path, script: &str) -> Result<String> {
    let mut command = Command::new("/bin/sh");
    // The shell enters the directory itself: root may not, on a mount of another user.
    command
        .args(["-ec", "cd \"$1\"; eval \"$2\"", "sh"])
        .arg(directory)
        .arg(script);
    if let Some(user) = &volume.user {
        command.uid(user.id).gid(user.id);
    }
    run_ok(&mut command)
}

/// An unformatted volume whose everything belongs to the ordinary user.
fn volume_of_user(engine: Engine) -> Result<Volume> {
    let mut volume = Volume::unformatted(engine)?;
    if is_root() {
        let binary = volume.scratch.path("sluice");
        fs::copy(sluice()?, &binary)?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
        for path in [volume.scratch.root(), &volume.bucket] {
            chown(path, Some(NOBODY), Some(NOBODY))?;
        }
        volume.user = Some(OtherUser { id: NOBODY, binary });
    }
    volume.environment = vec![("HOME".into(), volume.scratch.root().into())];
    Ok(volume)
}

fn ordinary_user_mounts_and_unmounts(engine: Engine) -> Result<()> {
    // One test at a time: both engines change the mode of the one device.
    static DEVICE_IN_USE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = DEVICE_IN_USE.lock();
    let _device = is_root().then(OpenDevice::new).transpose()?;
    let volume = volume_of_user(engine)?;
    run_ok(&mut volume.format_command(&["--trash-days", "0"])?)?;
    let mount_point = volume.new_mount_point()?;
    if is_root() {
        chown(&mount_point, Some(NOBODY), Some(NOBODY))?;
    }
    let mount = mount_at(&volume, &mount_point)?;
    as_user(
        &volume,
        mount.root(),
        "mkdir -p a/b; echo content > a/b/file; chmod 640 a/b/file; ln -s file a/b/link
         mv a/b/file a/b/renamed; head -c 9000001 /dev/urandom > large; cp large copy",
    )?;
    let script = "stat -c %u:%a a/b/renamed; cat a/b/renamed; cmp large copy; readlink a/b/link";
    let user = volume.user.as_ref().map(|user| user.id);
    let user = user.unwrap_or(rustix::process::geteuid().as_raw());
    same(
        "what was written",
        as_user(&volume, mount.root(), script)?,
        format!("{user}:640\ncontent\nfile\n"),
    )?;
    if is_root() {
        // The kernel keeps everybody else out, root too, unless allow_other is given.
        must_fail(
            "root looks into it",
            fs::read_dir(mount.root()),
            Errno::ACCESS,
        )?;
    }
    mount.unmount()?;
    let mount = mount_at(&volume, &mount_point)?;
    as_user(
        &volume,
        mount.root(),
        "cmp large copy && test \"$(cat a/b/renamed)\" = content",
    )?;
    mount.unmount()?;
    allow_other_is_refused_or_allowed_by_fuse_conf(&volume, &mount_point)
}

fn mount_at(volume: &Volume, mount_point: &Path) -> Result<sluice_tests::mount::Mount> {
    let mut serve = volume.command(["mount"])?;
    serve.arg(&volume.meta_url).arg(mount_point);
    let mut unmount = volume.command(["umount"])?;
    unmount.arg(mount_point);
    let plan = volume.plan(serve, unmount, mount_point.to_path_buf(), "sluice");
    sluice_tests::mount::Mount::start(plan)
}

/// `-o allow_other` needs the administrator's word; without it there is a sentence and no mount.
fn allow_other_is_refused_or_allowed_by_fuse_conf(volume: &Volume, place: &Path) -> Result<()> {
    let allowed = fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"));
    if allowed {
        return Ok(());
    }
    let mut mount = volume.command(["mount", "-o", "allow_other"])?;
    let output = run(mount.arg(&volume.meta_url).arg(place), patience(30))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    same("exit code", output.status.code(), Some(1))?;
    ensure!(
        stderr.contains("allow_other"),
        "allow_other is not named: {stderr}"
    );
    same("lines on stderr", stderr.trim().lines().count(), 1)
}
