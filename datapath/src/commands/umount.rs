//! `sluice umount`: take the mount away, then wait for its server to end, because only then is everything
//! durable. A mount whose server is dead is simply detached.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Failure, Outcome, Where, whereabouts};
use crate::cli::UmountArgs;
use crate::fuse::mount::{find_mount, unmount};

/// A server that hangs must not hang us: this is how long it may take to say who it is.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the server may take to make everything durable after the unmount.
const DRAIN_SECONDS: i64 = 600;

/// Runs the command.
pub fn run(args: &UmountArgs) -> Outcome {
    let path = &args.mountpoint;
    if find_mount(path).map_err(Failure::from_error)?.is_none() {
        return Err(Failure(format!(
            "{} is not a mount point: name the directory that was given to sluice mount",
            path.display()
        )));
    }
    let server = server_of(path)?;
    let process = server.as_ref().and_then(|server| {
        Pid::from_raw(server.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    });
    // A dead server cannot be asked to finish: detach what it left.
    let lazy = args.force || server.is_none();
    unmount(path, lazy).map_err(Failure::from_error)?;
    let Some(process) = process else {
        return Ok(());
    };
    if lazy {
        return Ok(());
    }
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: DRAIN_SECONDS,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) => Err(Failure(format!(
            "{} is unmounted but its server is still writing after {DRAIN_SECONDS} s: its log says \
             what it waits for",
            path.display()
        ))),
        Ok(_) => Ok(()),
        Err(error) => Err(Failure(format!(
            "cannot wait for the server to end: {error}"
        ))),
    }
}

/// Who serves `path`; `None` if its server is gone or does not answer.
fn server_of(path: &Path) -> Result<Option<Where>, Failure> {
    let (sender, receiver) = mpsc::channel();
    let asked = path.to_owned();
    // Asking may block for ever on a hung mount, so a thread of its own asks; it ends with the process.
    std::thread::spawn(move || sender.send(whereabouts(&asked)));
    match receiver.recv_timeout(ANSWER_TIMEOUT) {
        Ok(Ok(Some(server))) => Ok(Some(server)),
        Ok(Ok(None)) => Err(Failure(format!(
            "{} is not served by sluice: unmount it with umount(8)",
            path.display()
        ))),
        // "Transport endpoint is not connected": the server is dead. No answer: it hangs.
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}
