//! Serving a volume: `mount` and `umount`.

use std::path::PathBuf;

use clap::Args;

use super::volume::VolumeArgs;

/// `sluice mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Make the volume (and the mount point) if it is not there
    #[arg(long)]
    pub create: bool,
    /// With --create: name of the new volume
    #[arg(
        long,
        value_name = "NAME",
        default_value = "sluice",
        requires = "create"
    )]
    pub name: String,
    /// Store and encoding of the data; all but --storage and --bucket only with --create.
    #[command(flatten)]
    pub volume: VolumeArgs,
    /// Run in the background
    #[arg(short = 'd', long)]
    pub background: bool,
    /// With --background: where to log [default: /var/log/sluice.log for root, ~/.sluice/sluice.log otherwise]
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Mount options, as mount(8) has them
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// Serve this directory of the volume as the root
    #[arg(long, value_name = "DIR")]
    pub subdir: Option<String>,
    /// Keep a block cache on disk here as well (for a local object store memory is enough)
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Size of the disk cache, plain numbers are MiB
    #[arg(long, value_name = "SIZE", default_value = "100G")]
    pub cache_size: String,
    /// Memory for blocks: half for data on its way to the store, half as a cache of what was read
    #[arg(long, value_name = "SIZE", default_value = "300M")]
    pub buffer_size: String,
    /// How long the kernel may keep attributes
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub attr_cache: String,
    /// How long the kernel may keep entries of files
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub entry_cache: String,
    /// How long the kernel may keep entries of directories
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub dir_entry_cache: String,
    /// How long the kernel may remember that a name does not exist
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub negative_entry_cache: String,
    /// Do not list .trash in the root
    #[arg(long)]
    pub hide_internal: bool,
    /// Accepted for compatibility: extended attributes are always on
    #[arg(long)]
    pub enable_xattr: bool,
    /// Uploads at the same time
    #[arg(long, value_name = "COUNT", default_value = "20")]
    pub max_uploads: String,
    /// Further tries of a failed upload or commit
    #[arg(long, value_name = "COUNT", default_value = "10")]
    pub io_retries: String,
    /// When access times move: noatime, relatime (if older than the last change or a day) or strictatime
    #[arg(long, value_name = "MODE", default_value = "noatime")]
    pub atime_mode: String,
    /// Find names that differ by case alone (a miss then costs a listing of the directory)
    #[arg(long)]
    pub case_insensitive: bool,
    /// Show usage (df) as of the last heartbeat, without asking the metadata
    #[arg(long)]
    pub fast_statfs: bool,
    /// How long opens may take a file's attributes from memory: gives up close-to-open between mounts for that time
    #[arg(long, value_name = "TIME", default_value = "0s")]
    pub open_cache: String,
    /// Accepted for compatibility: what is remembered for --open-cache is bounded
    #[arg(long, value_name = "COUNT", default_value = "10000")]
    pub open_cache_limit: String,
    /// A parent's mtime younger than this is not written again
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    pub skip_dir_mtime: String,
    /// How often the session shows that it lives; after five times of silence others clean up after it
    #[arg(long, value_name = "TIME", default_value = "12s")]
    pub heartbeat: String,
    /// No background clean-up of deleted files, old trash, unused slices and dead sessions
    #[arg(long)]
    pub no_bgjob: bool,
    /// Cores to serve on [default: all this process may use]
    #[arg(long, value_name = "COUNT")]
    pub cores: Option<String>,
    /// When an object of a local store counts as stored: commit (file and directory synced) or none
    #[arg(long, value_name = "WHEN", default_value = "commit")]
    pub object_sync: String,
    /// Metadata engine: sqlite3://PATH, redis://HOST:PORT/DB (redis://MASTER,SENTINEL:PORT/DB,
    /// redis://NODE:PORT,NODE:PORT/DB) or unix://PATH?db=N
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
    /// Directory to mount at
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// `sluice umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Detach a busy mount at once; it ends when its last user does
    #[arg(short, long)]
    pub force: bool,
    /// Accepted for compatibility: umount always waits until everything is durable
    #[arg(long)]
    pub flush: bool,
    /// The mount point
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}
