//! Whole trees at once: `rmr`, `clone` and `restore`.

use std::path::PathBuf;

use clap::Args;

/// `sluice rmr`.
#[derive(Debug, Args, Clone)]
pub struct RmrArgs {
    /// Delete at once instead of moving to the trash (for root)
    #[arg(long)]
    pub skip_trash: bool,
    /// Directories to work on at the same time, at most 255
    #[arg(short = 'p', long, value_name = "COUNT", default_value_t = 50)]
    pub threads: usize,
    /// Files or directories on a mounted volume
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// `sluice clone`.
#[derive(Debug, Args, Clone)]
pub struct CloneArgs {
    /// Keep owner, mode and times [default: the caller's, less the umask, and now]
    #[arg(short, long)]
    pub preserve: bool,
    /// Directories to work on at the same time, at most 255
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    pub threads: usize,
    /// File or directory on a mounted volume
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Its copy, on the same mount; with a slash at the end, the directory for it
    #[arg(value_name = "DST")]
    pub target: PathBuf,
}

/// `sluice restore`.
#[derive(Debug, Args, Clone)]
pub struct RestoreArgs {
    /// Move everything back to the directory it was in [default: rebuild trees within the trash]
    #[arg(long)]
    pub put_back: bool,
    /// Entries to move at the same time, at most 255
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    pub threads: usize,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
    /// Hours of the trash: YYYY-MM-DD-HH, in UTC
    #[arg(value_name = "HOUR", required = true)]
    pub hours: Vec<String>,
}
