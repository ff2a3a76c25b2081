//! Mounting as an ordinary user: the setuid helper `fusermount3` mounts and hands over the descriptor.
//!
//! Called by `mount`. The helper gets one end of a socket pair as its standard input, named by
//! `_FUSE_COMMFD`, sends the opened `/dev/fuse` over it (SCM_RIGHTS) and exits. Its complaints on
//! standard error are the message of the error: it knows best, for example that `allow_other` needs a
//! line in `/etc/fuse.conf`.
#![allow(
    unsafe_code,
    reason = "receiving a descriptor needs recvmsg(2) and its control buffer"
)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::mount::{MountError, MountSpec};

const HELPER: &str = "fusermount3";

/// Mounts and returns the connection, non-blocking and closed on exec.
pub(super) fn mount(spec: &MountSpec, mountpoint: &Path) -> Result<OwnedFd, MountError> {
    let failed = |cause: io::Error| MountError::io("mount on", mountpoint, cause);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let arguments = [
        OsString::from("-o"),
        OsString::from(options(spec)),
        OsString::from("--"),
        mountpoint.as_os_str().to_owned(),
    ];
    // `run` drops the other end in this process, so that a helper that sends nothing ends the wait.
    run(&arguments, Some(theirs))?;
    let fd = receive_descriptor(&ours).map_err(failed)?;
    set_nonblocking(&fd).map_err(failed)?;
    Ok(fd)
}

/// Unmounts.
pub(super) fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let flag = OsString::from(if lazy { "-uz" } else { "-u" });
    let arguments = [
        flag,
        OsString::from("--"),
        mountpoint.as_os_str().to_owned(),
    ];
    match run(&arguments, None) {
        Err(MountError::Helper(text)) if text.contains("busy") => {
            Err(MountError::Busy(mountpoint.to_owned()))
        }
        result => result,
    }
}

/// The words of `-o`; commas and backslashes in names are escaped as the helper expects.
fn options(spec: &MountSpec) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(',', "\\,");
    let mut words: Vec<String> = spec
        .options
        .helper_words()
        .into_iter()
        .map(str::to_owned)
        .collect();
    words.push(format!("max_read={}", spec.max_read));
    words.push(format!("fsname={}", escape(spec.source())));
    words.push(format!("subtype={}", escape(&spec.subtype)));
    words.join(",")
}

/// Runs the helper to its end.
fn run(arguments: &[OsString], socket: Option<UnixStream>) -> Result<(), MountError> {
    let mut command = Command::new(HELPER);
    command
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    match socket {
        Some(socket) => command
            .stdin(OwnedFd::from(socket))
            .env("_FUSE_COMMFD", "0"),
        None => command.stdin(Stdio::null()),
    };
    let output = command.output().map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => MountError::NoHelper,
        _ => MountError::io("run", Path::new(HELPER), cause),
    })?;
    if output.status.success() {
        Ok(())
    } else {
        Err(MountError::Helper(complaint(&output)))
    }
}

/// The helper's words on one line, or its status if it said nothing.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.trim().replace('\n', "; ");
    let line = line.strip_prefix("fusermount3: ").unwrap_or(&line);
    if line.is_empty() {
        output.status.to_string()
    } else {
        line.to_owned()
    }
}

/// Receives the one descriptor the helper sent before it exited.
fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = 0u8;
    let mut iov = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // Control data needs the alignment of its header; 8 words of 8 bytes hold one header and one descriptor.
    let mut control = [0u64; 8];
    // SAFETY: all-zero is a valid `msghdr`: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to buffers of this frame, with their true sizes.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    let missing = || io::Error::other("fusermount3 sent no descriptor");
    // SAFETY: the kernel filled in the message; the macro checks the control length for a whole header.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() }.ok_or_else(missing)?;
    // SAFETY: pure arithmetic on a constant.
    let expected = unsafe { libc::CMSG_LEN(size_of::<libc::c_int>() as u32) } as usize;
    let is_rights = header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS;
    if !is_rights || header.cmsg_len != expected {
        return Err(missing());
    }
    // SAFETY: a SCM_RIGHTS message of this length carries one descriptor, at its data.
    let raw = unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::c_int>()
            .read_unaligned()
    };
    // SAFETY: the kernel has just opened it for this process; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: reads the flags of an open descriptor.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sets the flags of an open descriptor.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_for_the_helper() {
        let mut spec = MountSpec::new("/mnt", "a,b\\c");
        spec.max_read = 4096;
        let expected =
            "rw,nosuid,nodev,default_permissions,max_read=4096,fsname=a\\,b\\\\c,subtype=sluice";
        assert_eq!(options(&spec), expected);
    }

    #[test]
    fn complaints_are_one_line() {
        use std::os::unix::process::ExitStatusExt;
        let output = |stderr: &str| Output {
            status: std::process::ExitStatus::from_raw(256),
            stdout: Vec::new(),
            stderr: stderr.into(),
        };
        assert_eq!(
            complaint(&output("fusermount3: no such option\nsecond\n")),
            "no such option; second"
        );
        assert_eq!(complaint(&output("")), "exit status: 1");
    }
}
