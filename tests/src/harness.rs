//! Volumes, the `sluice` binary, and the frame every test runs in.
//!
//! `check` runs a test's body; on failure it prints the cause with its chain and the tails of the logs
//! of all servers the test used. `Scratch` is a directory that goes away with the test. A `Volume` is
//! formatted on one `Engine` in a scratch directory of its own and mounts as often as asked, by `sluice`
//! or by JuiceFS (`juicefs.rs`). `sluice` finds the binary: `SLUICE`, else `sluice` beside the running
//! test (`cargo build` puts it there); that it is missing is an error, never a skipped test.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::deadline::{patience, wait_child};
use crate::mount::{Mount, MountPlan, detach_below};
use crate::redis::RedisServer;

/// How many lines of a server's log a failure shows.
const LOG_TAIL_LINES: usize = 80;

thread_local! {
    // Tails of the logs of servers that ended impolitely in the test running on this thread.
    static LOGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs a test's body; the one place where an error becomes a failed test.
pub fn check(body: impl FnOnce() -> Result<()>) {
    LOGS.with_borrow_mut(Vec::clear);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    if !matches!(outcome, Ok(Ok(()))) {
        LOGS.with_borrow(|logs| logs.iter().for_each(|log| println!("{log}")));
    }
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:#}"),
        Err(panic) => resume_unwind(panic),
    }
}

/// Keeps the end of a log for the case that the test fails.
pub fn remember_log(path: &Path) {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n");
    LOGS.with_borrow_mut(|logs| logs.push(format!("--- {} ---\n{tail}", path.display())));
}

/// Says that a comparison was left out, so that nobody mistakes it for a pass. Goes to the terminal
/// itself as well, since the test runner hides the output of tests that pass.
pub fn skip(why: &str) {
    let line = format!("SKIPPED: {why}\n");
    print!("{line}");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

/// Whether the tests run as root; some things only root can set up.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that is removed with the test.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// A new, empty directory that other users may enter (tests act as other users too).
    pub fn new() -> Result<Scratch> {
        let dir = tempfile::Builder::new().prefix("sluice-e2e.").tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Scratch { dir })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// A new directory in it.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        std::fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A server that mounted where it should have refused leaves a mount nobody owns.
        detach_below(self.dir.path());
    }
}

/// Where a volume's metadata lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Engine {
    /// A SQLite file.
    Sqlite,
    /// A Redis server of the test's own.
    Redis,
}

/// The path of the server binary under test.
pub fn sluice() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE") {
        return Ok(PathBuf::from(path));
    }
    // target/<profile>/deps/e2e-<hash> -> target/<profile>/sluice
    let test = std::env::current_exe()?;
    let beside = test
        .parent()
        .and_then(Path::parent)
        .map(|dir| dir.join("sluice"));
    match beside {
        Some(path) if path.exists() => Ok(path),
        _ => bail!(
            "no sluice binary beside {}: run `cargo build` first or set SLUICE",
            test.display()
        ),
    }
}

/// A command of the server binary, with an environment that holds nothing it could pick up by accident.
pub fn sluice_command<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Result<Command> {
    let mut command = Command::new(sluice()?);
    command
        .args(arguments)
        .env_remove("JFS_RSA_PASSPHRASE")
        .env_remove("META_PASSWORD");
    Ok(command)
}

/// Runs a command to its end, bounded; its output is returned whatever its exit code.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = match wait_child(&mut child, limit)? {
        Some(status) => status,
        None => {
            kill_process_group(Pid::from_child(&child), Signal::KILL)?;
            child.wait()?;
            bail!("{command:?} did not end within {limit:?}");
        }
    };
    let collect = |reader: Option<std::thread::JoinHandle<Vec<u8>>>| {
        reader
            .map(|thread| thread.join().unwrap_or_default())
            .unwrap_or_default()
    };
    Ok(Output {
        status,
        stdout: collect(stdout),
        stderr: collect(stderr),
    })
}

/// Runs a command that must succeed; standard output as text.
pub fn run_ok(command: &mut Command) -> Result<String> {
    let output = run(command, patience(600))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

// Both pipes are read while the process runs, else it would stop when one is full.
fn drain(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the text early; the exit code tells the rest.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// A volume and everything it lives in.
pub struct Volume {
    /// Scratch directory of this volume: metadata, bucket, mount points, logs.
    pub scratch: Scratch,
    /// Its metadata URL.
    pub meta_url: String,
    /// The bucket directory.
    pub bucket: PathBuf,
    /// The Redis server, on that engine.
    pub redis: Option<RedisServer>,
    /// Environment of every command on this volume.
    pub environment: Vec<(OsString, OsString)>,
    /// Options added to every mount by `sluice`.
    pub mount_options: Vec<OsString>,
    /// Who runs every command on this volume, if not the user who runs the tests.
    pub user: Option<OtherUser>,
    mounts: AtomicU32,
}

/// A user for commands of the server.
pub struct OtherUser {
    /// User and group id.
    pub id: u32,
    /// A copy of the server binary where this user may read it.
    pub binary: PathBuf,
}

impl Volume {
    /// A place for a volume: metadata engine running, bucket there, nothing formatted.
    pub fn unformatted(engine: Engine) -> Result<Volume> {
        let scratch = Scratch::new()?;
        let bucket = scratch.dir("bucket")?;
        let (meta_url, redis) = match engine {
            Engine::Sqlite => (
                format!("sqlite3://{}", scratch.path("meta.db").display()),
                None,
            ),
            Engine::Redis => {
                let server = RedisServer::start(&scratch.dir("redis")?)?;
                (server.url(1), Some(server))
            }
        };
        Ok(Volume::from_parts(scratch, meta_url, bucket, redis))
    }

    /// A volume whose metadata and objects exist already.
    pub fn from_parts(
        scratch: Scratch,
        meta_url: String,
        bucket: PathBuf,
        redis: Option<RedisServer>,
    ) -> Volume {
        Volume {
            scratch,
            meta_url,
            bucket,
            redis,
            environment: Vec::new(),
            mount_options: Vec::new(),
            user: None,
            mounts: AtomicU32::new(0),
        }
    }

    /// A fresh volume with JuiceFS's defaults, trash switched off.
    pub fn new(engine: Engine) -> Result<Volume> {
        Volume::with_options(engine, &["--trash-days", "0"])
    }

    /// A fresh volume, formatted by `sluice format` with these options.
    pub fn with_options(engine: Engine, options: &[&str]) -> Result<Volume> {
        let volume = Volume::unformatted(engine)?;
        run_ok(&mut volume.format_command(options)?)?;
        Ok(volume)
    }

    /// `sluice format` of this volume.
    pub fn format_command(&self, options: &[&str]) -> Result<Command> {
        let mut command = self.command(["format", "--storage", "file", "--bucket"])?;
        command
            .arg(&self.bucket)
            .args(options)
            .arg(&self.meta_url)
            .arg("e2e");
        Ok(command)
    }

    /// A `sluice` command in this volume's environment.
    pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, arguments: I) -> Result<Command> {
        let mut command = match &self.user {
            None => sluice_command(arguments)?,
            Some(user) => {
                let mut command = Command::new(&user.binary);
                command.args(arguments).uid(user.id).gid(user.id);
                command
            }
        };
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }

    /// A mount point that was not used before.
    pub fn new_mount_point(&self) -> Result<PathBuf> {
        let number = self.mounts.fetch_add(1, Ordering::Relaxed);
        self.scratch.dir(&format!("mnt{number}"))
    }

    /// Mounts it with `sluice`.
    pub fn mount(&self) -> Result<Mount> {
        self.mount_with(&[])
    }

    /// Mounts it with `sluice` and these options.
    pub fn mount_with(&self, options: &[&str]) -> Result<Mount> {
        let mount_point = self.new_mount_point()?;
        let mut serve = self.command(["mount"])?;
        serve
            .args(&self.mount_options)
            .args(options)
            .arg(&self.meta_url)
            .arg(&mount_point);
        let mut unmount = self.command(["umount"])?;
        unmount.arg(&mount_point);
        Mount::start(self.plan(serve, unmount, mount_point, "sluice"))
    }

    /// The frame of a mount by any server.
    pub fn plan(
        &self,
        serve: Command,
        unmount: Command,
        mount_point: PathBuf,
        server: &str,
    ) -> MountPlan {
        let name = mount_point
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        MountPlan {
            serve,
            unmount,
            log: self.scratch.path(format!("{server}-{name}.log")),
            mount_point,
            lifetime: patience(240),
        }
    }

    /// The SQLite file of this volume.
    pub fn sqlite_path(&self) -> Result<PathBuf> {
        let path = self.meta_url.strip_prefix("sqlite3://").map(PathBuf::from);
        path.ok_or_else(|| anyhow!("{} is not an SQLite volume", self.meta_url))
    }

    /// The Redis server of this volume.
    pub fn redis_server(&self) -> Result<&RedisServer> {
        self.redis
            .as_ref()
            .ok_or_else(|| anyhow!("{} is not on Redis", self.meta_url))
    }
}
