//! `sluice mount`: serve a volume at a directory. In the foreground this process serves; with `--background`
//! it starts itself again, apart from the terminal, and waits until that process serves or has failed.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::format::Plan;
use super::{Failure, Outcome};
use crate::cli::MountArgs;
use crate::config::{MountConfig, default_log};
use crate::fuse::mount::{self, MountOptions, MountSpec, is_root};
use crate::fuse::session::Session;
use crate::runtime::run_on_one;
use crate::server::{self, prepare::prepare};

/// Set in the process that serves in the background.
const BACKGROUND_VARIABLE: &str = "SLUICE_IN_BACKGROUND";

/// Runs the command.
pub fn run(args: &MountArgs) -> Outcome {
    let config = MountConfig::new(args).map_err(Failure::from_error)?;
    let url = super::parse_url(&args.meta_url)?;
    let plan = match args.create {
        true => Some(Plan::new(&args.name, &args.volume, true)?),
        false => {
            refuse_format_options(args)?;
            None
        }
    };
    let mut spec = mount_spec(args, &config)?;
    if args.create {
        make_mountpoint(&args.mountpoint)?;
    }
    mount::check(&spec).map_err(Failure::from_error)?;
    let log = args.log.clone().unwrap_or_else(default_log);
    let served = std::env::var_os(BACKGROUND_VARIABLE).is_some();
    if args.background && !served {
        return start_in_background(&log);
    }
    if served {
        // The terminal's signals are not for us.
        rustix::process::setsid().map_err(Failure::from_error)?;
    }
    let log = served.then(|| open_log(&log)).transpose()?;
    let prepared =
        run_on_one(|| prepare(config, &url, plan.as_ref())).map_err(Failure::from_error)??;
    spec.options.read_only = prepared.read_only;
    let name = prepared.setting().name.clone();
    spec.fsname = format!("sluice:{name}");
    let announcement = format!(
        "mounted {name} at {} ({url}, data in {}{})",
        args.mountpoint.display(),
        prepared.bucket().display(),
        if prepared.read_only {
            ", read-only"
        } else {
            ""
        }
    );
    server::serve(
        prepared,
        &spec,
        |spec| mount::mount(spec).map_err(Failure::from_error),
        |_: &Session| announce(&announcement, log),
    )
}

/// Says on stdout that the mount is being served; in the background, that is the last the terminal hears.
fn announce(text: &str, log: Option<File>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    // Nobody may be listening; the mount is served all the same.
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    if let Some(log) = log {
        rustix::stdio::dup2_stderr(&log).map_err(Failure::from_error)?;
        rustix::stdio::dup2_stdout(&log).map_err(Failure::from_error)?;
    }
    Ok(())
}

/// Options that say what a volume shall be make no sense for one that is there.
fn refuse_format_options(args: &MountArgs) -> Result<(), Failure> {
    let volume = &args.volume;
    let given = [
        ("--block-size", volume.block_size.is_some()),
        ("--compress", volume.compress.is_some()),
        ("--trash-days", volume.trash_days.is_some()),
        ("--capacity", volume.capacity.is_some()),
        ("--inodes", volume.inodes.is_some()),
        ("--enable-acl", volume.enable_acl),
        ("--hash-prefix", volume.hash_prefix),
        ("--encrypt-rsa-key", volume.encrypt_rsa_key.is_some()),
        ("--encrypt-algo", volume.encrypt_algo.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Failure(format!(
            "{option} is an option of sluice format: use it there, or here together with --create"
        ))),
        None => Ok(()),
    }
}

fn mount_spec(args: &MountArgs, config: &MountConfig) -> Result<MountSpec, Failure> {
    let mut options = MountOptions {
        allow_other: is_root(),
        ..MountOptions::default()
    };
    options
        .parse(&config.fuse_options.join(","))
        .map_err(Failure::from_error)?;
    options.read_only = config.read_only;
    let mut spec = MountSpec::new(&args.mountpoint, "sluice");
    spec.options = options;
    Ok(spec)
}

fn make_mountpoint(path: &Path) -> Result<(), Failure> {
    // A dead mount there cannot be looked at, and need not be made.
    if path
        .symlink_metadata()
        .is_ok_and(|metadata| !metadata.is_dir())
    {
        return Ok(());
    }
    match std::fs::create_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure(format!(
            "mount point {} cannot be made: {error}; create the directory first",
            path.display()
        ))),
        // Whatever else is wrong with it, the check of mount points says it better.
        _ => Ok(()),
    }
}

fn open_log(path: &PathBuf) -> Result<File, Failure> {
    if let Some(parent) = path.parent() {
        // If it cannot be made, opening the log says why.
        let _ = std::fs::create_dir_all(parent);
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| {
            Failure(format!(
                "cannot write the log {}: {error}; choose another --log",
                path.display()
            ))
        })
}

fn start_in_background(log: &PathBuf) -> Outcome {
    drop(open_log(log)?);
    let program = std::env::current_exe().map_err(Failure::from_error)?;
    let mut server = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure(format!("cannot start the server: {error}")))?;
    let mut line = String::new();
    if let Some(stdout) = server.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(Failure::from_error)?;
    }
    if !line.is_empty() {
        print!("{line}");
        return Ok(());
    }
    let status = server.wait().map_err(Failure::from_error)?;
    // It has said why on stderr, which is ours too.
    std::process::exit(status.code().unwrap_or(1));
}
