//! A running file-system server and its mount point, from readiness to the last trace removed.
//!
//! `Mount::start` spawns the server in the foreground, in a process group of its own, and returns once
//! the kernel lists the mount. From then on a watchdog thread guards it: when the deadline passes, the
//! FUSE connection is aborted (every stuck system call in the test ends with an error) and the server is
//! killed, so a hang is a failed test and never a hung machine. `Mount` ends in one of three ways:
//! `unmount` (polite: the unmount command must succeed and the server must end with success), `kill`
//! (SIGKILL in the middle of whatever it does), or drop (polite first, then by force).
//!
//! The server's standard output and error go to one log file; when a mount did not end politely the tail
//! is left with `harness`, which shows it if the test fails.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use crate::deadline::{patience, wait_child, wait_until};
use crate::harness::remember_log;

/// What to start, and how to end it.
pub struct MountPlan {
    /// The server's command line; it must stay in the foreground.
    pub serve: Command,
    /// The command that unmounts, complete.
    pub unmount: Command,
    /// Where the server mounts.
    pub mount_point: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// When the watchdog breaks the mount.
    pub lifetime: Duration,
}

/// A mounted file system and the server behind it.
pub struct Mount {
    mount_point: PathBuf,
    log: PathBuf,
    unmount: Command,
    child: Child,
    device_minor: u32,
    // Dropping the sender tells the watchdog to go home.
    watchdog: Option<(Sender<()>, JoinHandle<()>)>,
    ended: bool,
}

impl Mount {
    /// Starts the server and waits until the mount is there.
    pub fn start(mut plan: MountPlan) -> Result<Mount> {
        std::fs::create_dir_all(&plan.mount_point)?;
        let output = File::options().create(true).append(true).open(&plan.log)?;
        plan.serve
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let mut child = plan
            .serve
            .spawn()
            .with_context(|| format!("starting {:?}", plan.serve))?;
        let ready = wait_ready(&mut child, &plan)
            .and_then(|minor| Ok((minor, watch(&child, minor, &plan)?)));
        match ready {
            Ok((device_minor, watchdog)) => Ok(Mount {
                mount_point: plan.mount_point,
                log: plan.log,
                unmount: plan.unmount,
                child,
                device_minor,
                watchdog: Some(watchdog),
                ended: false,
            }),
            Err(error) => {
                remember_log(&plan.log);
                // The group may be gone already: then there is nothing to kill.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                child.wait()?;
                detach(&plan.mount_point);
                Err(error.context(format!("{:?} did not mount", plan.serve)))
            }
        }
    }

    /// The mounted root.
    pub fn root(&self) -> &Path {
        &self.mount_point
    }

    /// A path below the mounted root.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.mount_point.join(relative)
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One of the server's numbers, without labels; 0 while it was never set.
    pub fn number(&self, name: &str) -> Result<f64> {
        let mut text = vec![0; 1 << 20];
        let length = rustix::fs::lgetxattr(self.root(), "sluice.stats", &mut text)?;
        let text = String::from_utf8_lossy(&text[..length]);
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = values.find_map(|rest| rest.strip_prefix(' '));
        Ok(value
            .map(|value| value.trim().parse())
            .transpose()?
            .unwrap_or(0.0))
    }

    /// What the server has written to standard output and error so far.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned())
    }

    /// Unmounts politely: the command succeeds, and by then or soon after the server has ended with
    /// success and the kernel no longer lists the mount.
    pub fn unmount(mut self) -> Result<()> {
        let mut command = std::mem::replace(&mut self.unmount, Command::new("true"));
        run_unmount(&mut command, patience(60))?;
        let status = wait_child(&mut self.child, patience(60))?
            .ok_or_else(|| anyhow!("the server is still running 60 s after {command:?}"))?;
        ensure!(
            status.success(),
            "the server ended with {status} after {command:?}"
        );
        ensure!(
            mounted_device(&self.mount_point)?.is_none(),
            "{} is still mounted after {command:?}",
            self.mount_point.display()
        );
        self.ended = true;
        Ok(())
    }

    /// Waits for a server that was told to end in another way (a signal, an `umount` by the test).
    pub fn wait_for_end(mut self, limit: Duration) -> Result<ExitStatus> {
        let status = wait_child(&mut self.child, limit)?
            .ok_or_else(|| anyhow!("the server is still running after {limit:?}"))?;
        ensure!(
            mounted_device(&self.mount_point)?.is_none(),
            "the server left its mount behind"
        );
        self.ended = true;
        Ok(status)
    }

    /// Sends the server a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(rustix::process::kill_process(
            Pid::from_child(&self.child),
            signal,
        )?)
    }

    /// SIGKILL, at once; then the dead mount is taken away.
    pub fn kill(mut self) -> Result<()> {
        kill_process_group(Pid::from_child(&self.child), Signal::KILL)?;
        self.child.wait()?;
        detach(&self.mount_point);
        self.ended = true;
        Ok(())
    }

    /// A way to kill the server from another thread while this one uses the mount.
    pub fn killer(&self) -> impl Fn() -> Result<()> + Send + use<> {
        let pid = Pid::from_child(&self.child);
        // The child is reaped only through `self`, so its id stays its own until then.
        move || Ok(kill_process_group(pid, Signal::KILL)?)
    }

    fn end_by_force(&mut self) {
        let mut command = std::mem::replace(&mut self.unmount, Command::new("true"));
        // The test is over and most likely failed: no long waiting for a server that hangs.
        let polite = run_unmount(&mut command, patience(5)).is_ok()
            && matches!(wait_child(&mut self.child, patience(5)), Ok(Some(_)));
        if !polite {
            abort_connection(self.device_minor);
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        let _ = self.child.wait();
        detach(&self.mount_point);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.ended {
            self.end_by_force();
            remember_log(&self.log);
        }
        if let Some((stop, thread)) = self.watchdog.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

fn run_unmount(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let Some(status) = wait_child(&mut child, limit)? else {
        child.kill()?;
        child.wait()?;
        bail!("{command:?} did not end within {limit:?}");
    };
    let mut stderr = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut stderr)?;
    }
    ensure!(
        status.success(),
        "{command:?} ended with {status}: {stderr}"
    );
    Ok(())
}

/// Waits for the mount to be listed; its device minor names the FUSE connection.
fn wait_ready(child: &mut Child, plan: &MountPlan) -> Result<u32> {
    let mut minor = None;
    wait_until("the mount is listed", patience(60), || {
        minor = mounted_device(&plan.mount_point)?;
        if let (None, Some(status)) = (minor, child.try_wait()?) {
            let log = std::fs::read(&plan.log)?;
            bail!(
                "the server ended with {status}: {}",
                String::from_utf8_lossy(&log)
            );
        }
        Ok(minor.is_some())
    })?;
    minor.ok_or_else(|| anyhow!("the mount has no device"))
}

/// The watchdog of one mount.
fn watch(
    child: &Child,
    device_minor: u32,
    plan: &MountPlan,
) -> Result<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = channel::<()>();
    // By descriptor, not by number: the owner may reap the server at any moment.
    let server = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let lifetime = plan.lifetime;
    let mount_point = plan.mount_point.clone();
    let thread = std::thread::spawn(move || {
        if stopped.recv_timeout(lifetime) == Err(RecvTimeoutError::Timeout) {
            eprintln!(
                "WATCHDOG: {} is older than {lifetime:?}: aborting its connection",
                mount_point.display()
            );
            abort_connection(device_minor);
            let _ = pidfd_send_signal(&server, Signal::KILL);
        }
    });
    Ok((stop, thread))
}

/// Minor device number of the file system mounted at `mount_point`, if one is. Looks only at the kernel's
/// list: touching the mount point could hang.
pub fn mounted_device(mount_point: &Path) -> Result<Option<u32>> {
    let found = mount_table()?
        .into_iter()
        .rfind(|(path, _)| path == mount_point);
    Ok(found.map(|(_, minor)| minor))
}

/// Takes every mount below a directory away, the latest first.
pub fn detach_below(directory: &Path) {
    for (path, _) in mount_table().unwrap_or_default().iter().rev() {
        if path.starts_with(directory) {
            detach(path);
        }
    }
}

/// Mount points and the minor device numbers of what is mounted there, oldest first.
fn mount_table() -> Result<Vec<(PathBuf, u32)>> {
    let list = std::fs::read("/proc/self/mountinfo")?;
    let mut table = Vec::new();
    for line in list
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        ensure!(
            fields.len() > 4,
            "mountinfo: {}",
            String::from_utf8_lossy(line)
        );
        let device = std::str::from_utf8(fields[2])?;
        let (_, minor) = device
            .split_once(':')
            .ok_or_else(|| anyhow!("device {device}"))?;
        table.push((
            PathBuf::from(OsString::from_vec(unescape(fields[4]))),
            minor.parse()?,
        ));
    }
    Ok(table)
}

/// The kernel writes blanks and backslashes of paths as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                path.push(value);
                rest = &tail[3..];
            }
            _ => {
                path.push(byte);
                rest = tail;
            }
        }
    }
    path
}

/// Makes every pending and future request of the connection fail. Where fusectl is not mounted (many
/// containers) it is mounted for the moment; without the right to do so, killing the server must do.
fn abort_connection(device_minor: u32) {
    let abort =
        |control: &Path| std::fs::write(control.join(device_minor.to_string()).join("abort"), b"1");
    if abort(Path::new("/sys/fs/fuse/connections")).is_ok() {
        return;
    }
    let Ok(control) = tempfile::tempdir() else {
        return;
    };
    if rustix::mount::mount("none", control.path(), "fusectl", MountFlags::empty(), None).is_ok() {
        let _ = abort(control.path());
        let _ = rustix::mount::unmount(control.path(), UnmountFlags::DETACH);
    }
}

/// Takes every mount at this place away, however broken.
fn detach(mount_point: &Path) {
    while matches!(mounted_device(mount_point), Ok(Some(_))) {
        if rustix::mount::unmount(mount_point, UnmountFlags::DETACH).is_ok() {
            continue;
        }
        let ended = Command::new("fusermount3")
            .args(["-u", "-z"])
            .arg(mount_point)
            .status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("CANNOT UNMOUNT {}", mount_point.display());
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn blanks_in_mount_points_are_read_back() {
        assert_eq!(unescape(b"/tmp/a\\040b\\134c"), b"/tmp/a b\\c");
        assert_eq!(unescape(b"/plain\\"), b"/plain\\");
    }
}
