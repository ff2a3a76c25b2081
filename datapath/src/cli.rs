//! The command line as it is typed: names and defaults follow JuiceFS where the two share an option. No
//! checking beyond syntax; [`crate::config`] turns it into what the program uses.
//!
//! Here is the list of commands; their options are below, one file for each group.

use clap::{Parser, Subcommand};

mod admin;
mod inspect;
mod mount;
mod trees;
mod volume;

pub use self::admin::{
    CompactArgs, FsckArgs, GcArgs, QuotaArgs, QuotaCheckArgs, QuotaCommand, QuotaSetArgs,
    QuotaTarget,
};
pub use self::inspect::{InfoArgs, StatusArgs, SummaryArgs};
pub use self::mount::{MountArgs, UmountArgs};
pub use self::trees::{CloneArgs, RestoreArgs, RmrArgs};
pub use self::volume::{ConfigArgs, DestroyArgs, DumpArgs, FormatArgs, LoadArgs, VolumeArgs};

/// SluiceFS: an io_uring, thread-per-core file-system server on JuiceFS volumes.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Log more: once for progress, twice for every step.
    #[arg(short, long, action = clap::ArgAction::Count, global = true, alias = "debug", display_order = 1000)]
    pub verbose: u8,
    /// Log errors only.
    #[arg(short, long, global = true, display_order = 1001)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a volume, or change settings of one that exists.
    Format(Box<FormatArgs>),
    /// Serve a volume at a directory, until Ctrl-C or `sluice umount`.
    Mount(Box<MountArgs>),
    /// Take a mount away and wait until everything is durable.
    Umount(UmountArgs),
    /// Show a volume's setting, sessions and usage.
    Status(StatusArgs),
    /// Show inode, chunks, slices and objects of a file on a mounted volume.
    Info(InfoArgs),
    /// Show a volume's setting, or change what may change of it in use.
    Config(Box<ConfigArgs>),
    /// Delete a volume: all its objects and all its metadata.
    Destroy(DestroyArgs),
    /// Find what is left behind in a volume, and delete it.
    Gc(GcArgs),
    /// Check that a volume is whole.
    Fsck(FsckArgs),
    /// Write a volume's metadata as JSON, as JuiceFS does.
    Dump(DumpArgs),
    /// Make a volume of such a dump in an empty metadata engine.
    Load(LoadArgs),
    /// Rewrite files of many small slices as few large ones.
    Compact(CompactArgs),
    /// Remove files and trees on a mounted volume, fast.
    Rmr(RmrArgs),
    /// Copy a file or tree on a mounted volume without copying its data.
    Clone(CloneArgs),
    /// Bring back what was removed in an hour, from the trash.
    Restore(RestoreArgs),
    /// Show, set and check quotas of directories, users and groups.
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Show the largest directories and files below a path on a mounted volume.
    Summary(SummaryArgs),
}
