//! The command line as it is typed: names and defaults follow JuiceFS where the two share an option. No
//! checking beyond syntax; [`crate::config`] turns it into what the program uses.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    #[arg(short, long, action = clap::ArgAction::Count, global = true, alias = "debug")]
    pub verbose: u8,
    /// Log errors only.
    #[arg(short, long, global = true)]
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
}

/// Where the data is and how it is stored.
#[derive(Debug, Args, Clone)]
pub struct VolumeArgs {
    /// Kind of object store [default: file]
    #[arg(long, value_name = "NAME")]
    pub storage: Option<String>,
    /// Directory of the object store [default: /var/jfs for root, ~/.juicefs/local otherwise]
    #[arg(long, value_name = "DIR")]
    pub bucket: Option<String>,
    /// Size of a block: 64K to 16M, a power of two; plain numbers are KiB [default: 4M]
    #[arg(long, value_name = "SIZE")]
    pub block_size: Option<String>,
    /// Compression of blocks: none, lz4 or zstd [default: none]
    #[arg(long, value_name = "NAME")]
    pub compress: Option<String>,
    /// Days for which removed files stay in .trash, 0 for none [default: 1]
    #[arg(long, value_name = "DAYS")]
    pub trash_days: Option<String>,
    /// Most bytes the volume may hold, plain numbers are GiB; 0 for no limit
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<String>,
    /// Most inodes the volume may hold; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    pub inodes: Option<String>,
    /// Put a hash in front of object names, for stores that shard by prefix
    #[arg(long)]
    pub hash_prefix: bool,
    /// RSA private key (PEM) to encrypt blocks with; its passphrase comes from JFS_RSA_PASSPHRASE
    #[arg(long, value_name = "FILE")]
    pub encrypt_rsa_key: Option<PathBuf>,
    /// Cipher of blocks: aes256gcm-rsa or chacha20-rsa [default: aes256gcm-rsa]
    #[arg(long, value_name = "NAME")]
    pub encrypt_algo: Option<String>,
}

/// `sluice format`.
#[derive(Debug, Args)]
pub struct FormatArgs {
    /// Store and encoding of the data.
    #[command(flatten)]
    pub volume: VolumeArgs,
    /// Leave an existing volume as it is
    #[arg(long)]
    pub no_update: bool,
    /// Metadata engine: sqlite3://PATH, redis://HOST:PORT/DB or unix://PATH?db=N
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
    /// Name of the volume: 3 to 63 of a-z, 0-9 and '-'
    #[arg(value_name = "NAME")]
    pub name: String,
}

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
    /// A parent's mtime younger than this is not written again
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    pub skip_dir_mtime: String,
    /// How often the session shows that it lives; after five times of silence others clean up after it
    #[arg(long, value_name = "TIME", default_value = "12s")]
    pub heartbeat: String,
    /// No background clean-up of deleted files and dead sessions
    #[arg(long)]
    pub no_bgjob: bool,
    /// Cores to serve on [default: all this process may use]
    #[arg(long, value_name = "COUNT")]
    pub cores: Option<String>,
    /// When an object of a local store counts as stored: commit (file and directory synced) or none
    #[arg(long, value_name = "WHEN", default_value = "commit")]
    pub object_sync: String,
    /// Metadata engine: sqlite3://PATH, redis://HOST:PORT/DB or unix://PATH?db=N
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

/// `sluice status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
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
    /// Files or directories on a mounted volume
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}
