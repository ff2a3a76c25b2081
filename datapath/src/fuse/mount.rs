//! Mounting and unmounting: by mount(2) as root, through `fusermount3` as an ordinary user.
//!
//! Called by the command line and by `session`. Owns nothing: [`mount`] returns the descriptor of the
//! new connection, non-blocking and closed on exec, whose INIT waits to be answered. Before that answer
//! any access to the mount point blocks, so nothing here looks at it once it is mounted.
//!
//! Fails with one sentence that says what is wrong and what to do; nothing is left half mounted.
#![allow(
    unsafe_code,
    reason = "mount(2), umount2(2) and geteuid(2) have no safe wrapper"
)]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use super::mount_options::{MountOptions, OptionError};
use super::{fusermount, mountinfo, queue_dev};

/// What to mount where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// Shown as the source; `-o fsname=` overrides it.
    pub fsname: String,
    /// Shown as the type, after `fuse.`.
    pub subtype: String,
    /// Bytes of the largest READ.
    pub max_read: u32,
    /// Options of `-o`.
    pub options: MountOptions,
    /// Who mounts.
    pub method: MountMethod,
}

impl MountSpec {
    /// A mount with default options.
    pub fn new(mountpoint: impl Into<PathBuf>, fsname: impl Into<String>) -> MountSpec {
        MountSpec {
            mountpoint: mountpoint.into(),
            fsname: fsname.into(),
            subtype: "sluice".to_owned(),
            max_read: 1 << 20,
            options: MountOptions::default(),
            method: MountMethod::Auto,
        }
    }

    /// The source to show.
    pub(super) fn source(&self) -> &str {
        self.options.fsname.as_deref().unwrap_or(&self.fsname)
    }
}

/// Who talks to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountMethod {
    /// Direct as root, otherwise the helper.
    #[default]
    Auto,
    /// mount(2).
    Direct,
    /// `fusermount3`.
    Helper,
}

/// A fresh mount, waiting for the answer to INIT.
#[derive(Debug)]
pub struct Mounted {
    /// The connection.
    pub fd: OwnedFd,
    /// Absolute path of the mount point.
    pub mountpoint: PathBuf,
    /// `st_dev` of the mount, if it could be found.
    pub device_number: Option<(u32, u32)>,
}

/// Why mounting or unmounting failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No such path.
    #[error("mount point {0} does not exist: create the directory first")]
    Missing(PathBuf),
    /// Not a directory.
    #[error("mount point {0} is not a directory")]
    NotDirectory(PathBuf),
    /// Has entries.
    #[error(
        "mount point {0} is not empty: mounting would hide its files; use -o nonempty if that is meant"
    )]
    NotEmpty(PathBuf),
    /// A FUSE file system is there already.
    #[error("{fsname} is already mounted on {mountpoint}")]
    AlreadyMounted {
        /// Where.
        mountpoint: PathBuf,
        /// Its source.
        fsname: String,
    },
    /// A FUSE mount whose server is gone.
    #[error(
        "the server of the mount on {0} is gone (transport endpoint is not connected): \
         clear it with `sluice umount {0}`"
    )]
    Dead(PathBuf),
    /// Not permitted.
    #[error("no permission to {action} {path}: {cause}")]
    Permission {
        /// `mount on`, `open`.
        action: &'static str,
        /// What.
        path: PathBuf,
        /// The kernel's words.
        cause: io::Error,
    },
    /// No FUSE in this kernel.
    #[error(
        "/dev/fuse does not exist: load the kernel module with `modprobe fuse`, or pass the device into the container"
    )]
    NoDevice,
    /// Helper not installed.
    #[error("fusermount3 is not installed: install the package fuse3, or run as root")]
    NoHelper,
    /// The helper refused.
    #[error("fusermount3 failed: {0}")]
    Helper(String),
    /// Nothing to unmount.
    #[error("nothing is mounted on {0}")]
    NotMounted(PathBuf),
    /// Not ours to unmount.
    #[error("{mountpoint} is a mount of type {kind}, not FUSE: use umount(8)")]
    NotFuse {
        /// Where.
        mountpoint: PathBuf,
        /// Its type.
        kind: String,
    },
    /// In use.
    #[error("{0} is in use: close its files, or detach it with `sluice umount --force {0}`")]
    Busy(PathBuf),
    /// Anything else.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's words.
        cause: io::Error,
    },
}

impl MountError {
    pub(super) fn io(action: &'static str, path: &Path, cause: io::Error) -> MountError {
        let path = path.to_owned();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => MountError::Permission {
                action,
                path,
                cause,
            },
            _ => MountError::Io {
                action,
                path,
                cause,
            },
        }
    }
}

/// Whether `spec` could be mounted, as far as the mount point tells.
pub fn check(spec: &MountSpec) -> Result<(), MountError> {
    check_mountpoint(&spec.mountpoint, spec.options.nonempty).map(drop)
}

/// Mounts, and returns the connection.
pub fn mount(spec: &MountSpec) -> Result<Mounted, MountError> {
    let (mountpoint, root_mode) = check_mountpoint(&spec.mountpoint, spec.options.nonempty)?;
    let direct = match spec.method {
        MountMethod::Auto => is_root(),
        MountMethod::Direct => true,
        MountMethod::Helper => false,
    };
    let fd = match direct {
        true => mount_direct(spec, &mountpoint, root_mode)?,
        false => fusermount::mount(spec, &mountpoint)?,
    };
    let entry = mountinfo::find(&mountpoint)
        .ok()
        .flatten()
        .filter(mountinfo::MountEntry::is_fuse);
    Ok(Mounted {
        fd,
        mountpoint,
        device_number: entry.map(|entry| entry.device_number),
    })
}

/// Unmounts a FUSE mount; lazily means now for new users, later for present ones.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    let entry = find_mount(path)?.ok_or_else(|| MountError::NotMounted(path.to_owned()))?;
    let mountpoint = entry.mountpoint.clone();
    if !entry.is_fuse() {
        return Err(MountError::NotFuse {
            mountpoint,
            kind: entry.kind,
        });
    }
    if is_root() {
        unmount_direct(&mountpoint, lazy)
    } else {
        fusermount::unmount(&mountpoint, lazy)
    }
}

/// Sets the readahead of a mount, as far as permitted: a missed optimisation is no error.
pub fn raise_read_ahead(device_number: (u32, u32), kib: u32) {
    let (major, minor) = device_number;
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, kib.to_string()) {
        tracing::debug!(path, %error, "readahead of the mount stays at the kernel's default");
    }
}

/// The path without links, and its type bits, if it can be mounted on.
fn check_mountpoint(path: &Path, nonempty: bool) -> Result<(PathBuf, u32), MountError> {
    let known = find_mount(path)?.filter(mountinfo::MountEntry::is_fuse);
    let io_error = |cause: io::Error| match cause.raw_os_error() {
        Some(libc::ENOENT) => MountError::Missing(path.to_owned()),
        Some(libc::ENOTDIR) => MountError::NotDirectory(path.to_owned()),
        Some(libc::ENOTCONN | libc::ECONNABORTED) => MountError::Dead(path.to_owned()),
        _ => MountError::io("mount on", path, cause),
    };
    let metadata = std::fs::metadata(path).map_err(io_error)?;
    if let Some(entry) = known {
        let fsname = entry.source.to_string_lossy().into_owned();
        return Err(MountError::AlreadyMounted {
            mountpoint: entry.mountpoint,
            fsname,
        });
    }
    if !metadata.is_dir() {
        return Err(MountError::NotDirectory(path.to_owned()));
    }
    if !nonempty && std::fs::read_dir(path).map_err(io_error)?.next().is_some() {
        return Err(MountError::NotEmpty(path.to_owned()));
    }
    let mountpoint = path.canonicalize().map_err(io_error)?;
    Ok((mountpoint, metadata.mode() & libc::S_IFMT))
}

/// The mount at `path`. Links in its parent are followed; its last part is not touched, since the mount
/// may be dead or slow to answer. Only if nothing is mounted there, a link is followed.
pub fn find_mount(path: &Path) -> Result<Option<mountinfo::MountEntry>, MountError> {
    let find = |path: &Path| {
        mountinfo::find(path).map_err(|cause| MountError::io("look up mount", path, cause))
    };
    let absolute =
        std::path::absolute(path).map_err(|cause| MountError::io("resolve", path, cause))?;
    if let Some(entry) = find(&absolute)? {
        return Ok(Some(entry));
    }
    let resolved = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().ok().map(|parent| parent.join(name)),
        _ => None,
    };
    let Some(resolved) = resolved else {
        return Ok(None);
    };
    if let Some(entry) = find(&resolved)? {
        return Ok(Some(entry));
    }
    match resolved.canonicalize() {
        Ok(target) => find(&target),
        Err(_) => Ok(None),
    }
}

/// Whether this process has the super-user's rights, mount(2) among them.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn mount_direct(
    spec: &MountSpec,
    mountpoint: &Path,
    root_mode: u32,
) -> Result<OwnedFd, MountError> {
    let device = queue_dev::open_device().map_err(|cause| match cause.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoDevice,
        _ => MountError::io("open", Path::new(queue_dev::DEV_FUSE), cause),
    })?;
    // The kernel takes the owner of the mount from here: who may enter without `allow_other`.
    let mut data = format!(
        "fd={},rootmode={root_mode:o},user_id=0,group_id=0,max_read={}",
        device.as_raw_fd(),
        spec.max_read
    );
    for word in spec.options.fuse_words() {
        data.push(',');
        data.push_str(word);
    }
    let source = c_string(OsStr::new(spec.source()), mountpoint)?;
    let target = c_string(mountpoint.as_os_str(), mountpoint)?;
    let kind = c_string(OsStr::new(&format!("fuse.{}", spec.subtype)), mountpoint)?;
    let data = c_string(OsStr::new(&data), mountpoint)?;
    // SAFETY: all pointers are NUL-terminated strings that live until after the call; the kernel keeps none.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            spec.options.flags(),
            data.as_ptr().cast(),
        )
    };
    if result < 0 {
        return Err(MountError::io(
            "mount on",
            mountpoint,
            io::Error::last_os_error(),
        ));
    }
    Ok(device)
}

fn unmount_direct(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let target = c_string(mountpoint.as_os_str(), mountpoint)?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: a NUL-terminated string that lives until after the call.
    if unsafe { libc::umount2(target.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    let cause = io::Error::last_os_error();
    Err(match cause.raw_os_error() {
        Some(libc::EBUSY) => MountError::Busy(mountpoint.to_owned()),
        Some(libc::EINVAL) => MountError::NotMounted(mountpoint.to_owned()),
        _ => MountError::io("unmount", mountpoint, cause),
    })
}

fn c_string(text: &OsStr, mountpoint: &Path) -> Result<CString, MountError> {
    CString::new(text.as_bytes()).map_err(|_| {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "a name contains a NUL byte");
        MountError::io("mount on", mountpoint, cause)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_checked_before_anything_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let check = |path: &Path, nonempty| check_mountpoint(path, nonempty);
        let missing = dir.path().join("missing");
        assert!(
            matches!(check(&missing, false), Err(MountError::Missing(path)) if path == missing)
        );
        assert!(matches!(
            check(&file, false),
            Err(MountError::NotDirectory(_))
        ));
        assert!(matches!(
            check(&file.join("below"), false),
            Err(MountError::NotDirectory(_))
        ));
        assert!(matches!(
            check(dir.path(), false),
            Err(MountError::NotEmpty(_))
        ));
        let (path, mode) = check(dir.path(), true).unwrap();
        assert_eq!(
            (path, mode),
            (dir.path().canonicalize().unwrap(), libc::S_IFDIR)
        );
    }

    #[test]
    fn only_fuse_mounts_are_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            unmount(dir.path(), false),
            Err(MountError::NotMounted(_))
        ));
        assert!(matches!(
            unmount(Path::new("/proc"), true),
            Err(MountError::NotFuse { .. })
        ));
    }

    #[test]
    fn links_to_a_mount_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert_eq!(
            find_mount(&link).unwrap().unwrap().mountpoint,
            Path::new("/proc")
        );
    }
}
