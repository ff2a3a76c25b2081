//! The command line of `sluice-bench`, the only place with defaults.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::target::Target;

/// Measures file systems side by side.
#[derive(Parser, Debug)]
#[command(version)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Creates, stats, sequential and random I/O on each target, in turns
    FirstLight(Measure),
    /// Calls that change directories, by 1 and by 8 threads, in directories of their own and in one, in turns
    Metadata(Measure),
}

/// How much is measured, of what, and where the results go.
#[derive(Args, Serialize, Debug)]
pub(crate) struct Measure {
    /// A directory to measure; the processes that serve it are charged for their work. Ratios are to the first
    #[arg(long = "target", value_name = "NAME=DIR[:PID,...]", required = true)]
    pub(crate) targets: Vec<Target>,
    /// Where the run's folder is made
    #[arg(long, value_name = "DIR", default_value = "bench/runs")]
    pub(crate) out: PathBuf,
    /// Rounds: each case is run once on each target in each round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Files made, looked at and removed in a case
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=10_000_000))]
    pub(crate) files: u32,
    /// MiB of the file that is written and read
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) file_size: u64,
    /// Seconds of each case with random reads
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,
    /// How the kernel is made to forget what it knows of a target
    #[arg(long, value_enum, default_value_t = Forgetting::Auto)]
    pub(crate) caches: Forgetting,
    /// With --caches expire: the longest that any mount lets the kernel keep entries and attributes, in ms
    #[arg(long, default_value_t = 1100)]
    pub(crate) expiry_ms: u64,
    /// A program whose --version is recorded
    #[arg(long = "program", value_name = "PATH")]
    pub(crate) programs: Vec<PathBuf>,
    /// A line for the summary, such as the command that mounted a target
    #[arg(long = "note", value_name = "TEXT")]
    pub(crate) notes: Vec<String>,
}

/// How the kernel is made to forget.
#[derive(ValueEnum, Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Forgetting {
    /// `drop` where this user may, else `expire`
    Auto,
    /// /proc/sys/vm/drop_caches: the whole machine forgets
    Drop,
    /// Entries: wait until they have expired. Data: only what fio invalidates of its own file
    Expire,
}
