//! Keeping a volume in order: `gc`, `fsck`, `compact` and `quota`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `sluice gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Delete what is found
    #[arg(long)]
    pub delete: bool,
    /// Compact all chunks first
    #[arg(long)]
    pub compact: bool,
    /// Deletes and compactions at the same time
    #[arg(short = 'p', long, value_name = "COUNT", default_value = "10")]
    pub threads: String,
    /// Directory of the object store, if it is not where the setting says
    #[arg(long, value_name = "DIR")]
    pub bucket: Option<String>,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
}

/// `sluice fsck`.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Check only this directory of the volume, and not the objects
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// Repair what can be repaired
    #[arg(long)]
    pub repair: bool,
    /// Check everything below, too
    #[arg(short, long)]
    pub recursive: bool,
    /// Hold statistics of directories against their entries
    #[arg(long)]
    pub sync_dir_stat: bool,
    /// Permission bits of directories whose attributes are lost, octal
    #[arg(long, value_name = "MODE", default_value = "0755")]
    pub repair_dir_mode: String,
    /// Directory of the object store, if it is not where the setting says
    #[arg(long, value_name = "DIR")]
    pub bucket: Option<String>,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
}

/// `sluice compact`.
#[derive(Debug, Args)]
pub struct CompactArgs {
    /// Chunks at the same time
    #[arg(short = 'p', long, value_name = "COUNT", default_value = "10")]
    pub threads: String,
    /// Directory of the object store, if it is not where the setting says
    #[arg(long, value_name = "DIR")]
    pub bucket: Option<String>,
    /// Files or directories on a mounted volume
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// `sluice quota`.
#[derive(Debug, Subcommand)]
pub enum QuotaCommand {
    /// Set limits; counts what is there if the quota is new
    Set(QuotaSetArgs),
    /// Show one quota
    Get(QuotaArgs),
    /// Show all quotas
    #[command(alias = "ls")]
    List(QuotaArgs),
    /// Delete a quota
    #[command(alias = "del")]
    Delete(QuotaArgs),
    /// Hold usage against a fresh count: of a directory, or else of all users and groups
    Check(QuotaCheckArgs),
}

/// Whose quota.
#[derive(Debug, Args, Clone)]
pub struct QuotaTarget {
    /// Directory, as a path from the root of the volume
    #[arg(long, value_name = "PATH")]
    pub path: Option<String>,
    /// User
    #[arg(long, value_name = "ID")]
    pub uid: Option<String>,
    /// Group
    #[arg(long, value_name = "ID")]
    pub gid: Option<String>,
}

/// `sluice quota get`, `list` and `delete`.
#[derive(Debug, Args)]
pub struct QuotaArgs {
    /// Whose.
    #[command(flatten)]
    pub target: QuotaTarget,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
}

/// `sluice quota set`.
#[derive(Debug, Args)]
pub struct QuotaSetArgs {
    /// Whose.
    #[command(flatten)]
    pub target: QuotaTarget,
    /// Most bytes, plain numbers are GiB; 0 for no limit
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<String>,
    /// Most inodes; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    pub inodes: Option<String>,
    /// Make the directory if it is not there
    #[arg(long, requires = "path")]
    pub create: bool,
    /// Count every entry instead of using directory statistics
    #[arg(long)]
    pub strict: bool,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
}

/// `sluice quota check`.
#[derive(Debug, Args)]
pub struct QuotaCheckArgs {
    /// Whose.
    #[command(flatten)]
    pub target: QuotaTarget,
    /// Set usage to what was counted
    #[arg(long)]
    pub repair: bool,
    /// Count every entry instead of using directory statistics
    #[arg(long)]
    pub strict: bool,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
}
