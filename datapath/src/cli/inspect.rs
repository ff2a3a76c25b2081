//! Looking without changing: `status`, `info` and `summary`.

use std::path::PathBuf;

use clap::Args;

/// `sluice status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Only this session, with its locks and the deleted files it keeps open
    #[arg(short, long, value_name = "SID")]
    pub session: Option<u64>,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
}

/// `sluice info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// For directories, totals of everything below
    #[arg(short, long)]
    pub recursive: bool,
    /// With --recursive: add up every entry instead of using directory statistics
    #[arg(long, requires = "recursive")]
    pub strict: bool,
    /// Files or directories on a mounted volume
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// `sluice summary`.
#[derive(Debug, Args)]
pub struct SummaryArgs {
    /// Levels of directories to show, 0 to 10
    #[arg(short, long, value_name = "COUNT", default_value = "2")]
    pub depth: String,
    /// Entries of each directory to show, the largest first, up to 100
    #[arg(short, long, value_name = "COUNT", default_value = "10")]
    pub entries: String,
    /// Add up every entry instead of using directory statistics
    #[arg(long)]
    pub strict: bool,
    /// As comma-separated values, sizes in bytes
    #[arg(long)]
    pub csv: bool,
    /// File or directory on a mounted volume
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}
