//! What the tools that work on trees have in common: whose path it is, who asks, and the volume's metadata with a
//! session of their own.
//!
//! A tool works past the mount it was pointed at, as another client of the volume, and tells the mount afterwards
//! what to forget ([`forget`]). Its session is for others to see who it is; while it works it beats and writes
//! statistics, at its end ([`Tool::close`]) both are settled. A tool that is killed leaves a session that others
//! clean up, as they do after a mount.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use futures_lite::future;
use rustix::fs::XattrFlags;
use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::jobs::session::{Session, SessionInfo};
use sluice_meta::limits;
use sluice_meta::ops::Caller;
use sluice_meta::ops::credentials::Credentials;
use sluice_meta::runtime::Runtime;
use sluice_meta::store::{Access, Store};
use sluice_meta::tools;
use sluice_meta::url::MetaUrl;

use super::{FORGET_XATTR, Failure, Where, whereabouts};
use crate::runtime::{GlommioRuntime, Mailbox, Tasks, Timer};

/// Directories that a tool may work on at the same time.
const THREADS_MAX: usize = 255;

/// A volume opened by a tool.
pub struct Tool {
    /// Its metadata.
    pub meta: Rc<Meta>,
    runtime: Rc<GlommioRuntime>,
    session: Rc<Session>,
    tasks: Tasks,
    stop: Rc<Mailbox<()>>,
}

impl Tool {
    /// Opens a volume for changes. `name` is what others see of the session. Runs on an executor.
    pub async fn open(url: &MetaUrl, name: &str) -> Result<Tool, Failure> {
        let runtime = Rc::new(GlommioRuntime::new());
        let services: Rc<dyn Runtime> = Rc::clone(&runtime) as _;
        let store = Store::open(url, Access::ReadWrite).map_err(Failure::from_error)?;
        let engine = store
            .connect(Rc::clone(&services))
            .await
            .map_err(Failure::from_store)?;
        let engine = Rc::new(engine);
        let setting = tools::load_volume(&*engine)
            .await
            .map_err(Failure::from_error)?;
        let missing = setting.unsupported_for_writing();
        if !missing.is_empty() {
            return Err(Failure(format!(
                "volume {} uses {}, which sluice does not keep up yet: change it with JuiceFS",
                setting.name,
                missing.join(", ")
            )));
        }
        let shared = Shared::new(setting, MetaOptions::default());
        let meta = Rc::new(Meta::new(engine, services, shared));
        let info = SessionInfo::of_this_process(name, meta.now());
        let session = Session::register(&meta, &info, limits::HEARTBEAT)
            .await
            .map_err(|error| Failure(format!("cannot register a session: {error}")))?;
        let tool = Tool {
            meta,
            runtime,
            session: Rc::new(session),
            tasks: Tasks::new(),
            stop: Rc::new(Mailbox::new(2)),
        };
        tool.start_tasks();
        Ok(tool)
    }

    fn start_tasks(&self) {
        let (meta, stop) = (Rc::clone(&self.meta), Rc::clone(&self.stop));
        let session = Rc::clone(&self.session);
        self.tasks.spawn(async move {
            let beats = limits::HEARTBEAT.as_secs() / limits::DIR_STAT_FLUSH.as_secs().max(1);
            let mut ticks = 0;
            while tick(&stop).await {
                if let Err(error) = meta.flush_dir_stats().await {
                    tracing::warn!(%error, "directory statistics stay for the next try");
                }
                if let Err(error) = meta.flush_quotas().await {
                    tracing::warn!(%error, "usage of quotas stays for the next try");
                }
                ticks += 1;
                if ticks % beats == 0
                    && let Err(error) = session.heartbeat(&meta).await
                {
                    tracing::warn!(%error, "heartbeat failed");
                }
            }
        });
    }

    /// Settles everything: statistics written, session ended, all durable.
    pub async fn close(self) -> Result<(), Failure> {
        // Full: it was told already.
        let _ = self.stop.post(());
        self.tasks.finished().await;
        let session = Rc::try_unwrap(self.session)
            .map_err(|_| Failure("the session is still in use at its end".to_owned()))?;
        let ended = session.end(&self.meta).await;
        let synced = self.meta.sync().await;
        self.runtime.shutdown();
        // Whoever deleted files leaves their data to the jobs of the volume's mounts: so does the session.
        ended.map_err(Failure::from_error)?;
        synced.map_err(Failure::from_error)
    }
}

/// Waits for the next tick; `false` when told to stop.
async fn tick(stop: &Mailbox<()>) -> bool {
    let tick = async {
        Timer::new(limits::DIR_STAT_FLUSH).await;
        true
    };
    let stopped = async {
        stop.recv().await;
        false
    };
    future::or(stopped, tick).await
}

/// This process's user with all its groups.
pub fn credentials() -> Result<Credentials, Failure> {
    let groups = rustix::process::getgroups()
        .map_err(|error| Failure(format!("cannot find out this user's groups: {error}")))?;
    Ok(Credentials {
        caller: Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            pid: std::process::id(),
        },
        groups: groups.into_iter().map(|gid| gid.as_raw()).collect(),
    })
}

/// A number of threads as typed, within what is allowed.
pub fn width(threads: usize) -> usize {
    threads.clamp(1, THREADS_MAX)
}

/// Who serves an existing path.
pub fn server_of(path: &Path) -> Result<Where, Failure> {
    whereabouts(path)
        .map_err(|error| Failure(format!("cannot look at {}: {error}", path.display())))?
        .ok_or_else(|| {
            Failure(format!(
                "{} is not on a sluice mount: name a path below one",
                path.display()
            ))
        })
}

/// The directory of a path, without symlinks and dots, and the name in it. The name need not exist.
pub fn split(path: &Path) -> Result<(PathBuf, &OsStr), Failure> {
    let name = match path.components().next_back() {
        Some(Component::Normal(name)) => name,
        _ => {
            return Err(Failure(format!(
                "{} does not end in a name: name an entry of a directory",
                path.display()
            )));
        }
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = parent
        .canonicalize()
        .map_err(|error| Failure(format!("cannot look at {}: {error}", parent.display())))?;
    Ok((parent, name))
}

/// Makes the kernel forget a name in a directory of a mount, and the directory's attributes. Without it they would
/// end with their timeouts, so a failure is not the tool's.
pub fn forget(directory: &Path, name: &OsStr) {
    let set = rustix::fs::setxattr(
        directory,
        FORGET_XATTR,
        name.as_bytes(),
        XattrFlags::empty(),
    );
    if let Err(error) = set {
        tracing::debug!(directory = %directory.display(), %error, "the mount was not told to forget a name");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_where_the_kernel_would() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("sub")).unwrap();
        std::os::unix::fs::symlink("sub", real.join("link")).unwrap();
        for (path, parent, name) in [
            ("sub", ".", "sub"),
            ("sub/", ".", "sub"),
            ("sub/new", "sub", "new"),
            ("link/new", "sub", "new"),
            ("link", ".", "link"),
            ("sub/../link/x", "sub", "x"),
        ] {
            let path = real.join(path);
            let (found, last) = split(&path).unwrap();
            assert_eq!(found, real.join(parent).canonicalize().unwrap());
            assert_eq!(last, name);
        }
        for path in ["/", "..", "sub/.."] {
            assert!(split(Path::new(path)).is_err(), "{path}");
        }
        assert!(split(&real.join("missing/x")).is_err());
    }
}
