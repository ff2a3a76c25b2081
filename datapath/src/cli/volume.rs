//! Volumes as a whole: `format`, `config`, `destroy`, and their metadata as a file, `dump` and `load`.

use std::path::PathBuf;

use clap::Args;

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
    /// POSIX ACLs; cannot be turned off again, and existing mounts check them once they are mounted again
    #[arg(long)]
    pub enable_acl: bool,
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
    /// Metadata engine: sqlite3://PATH, redis://HOST:PORT/DB (redis://MASTER,SENTINEL:PORT/DB,
    /// redis://NODE:PORT,NODE:PORT/DB) or unix://PATH?db=N
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
    /// Name of the volume: 3 to 63 of a-z, 0-9 and '-'
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `sluice config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Directory of the object store, after the objects were moved there
    #[arg(long, value_name = "DIR")]
    pub bucket: Option<String>,
    /// Account at the object store
    #[arg(long, value_name = "KEY")]
    pub access_key: Option<String>,
    /// Its secret key; empty to remove it
    #[arg(long, value_name = "KEY")]
    pub secret_key: Option<String>,
    /// Its session token; empty to remove it
    #[arg(long, value_name = "TOKEN")]
    pub session_token: Option<String>,
    /// Encrypt secrets that were stored in clear
    #[arg(long)]
    pub encrypt_secret: bool,
    /// Most bytes the volume may hold, plain numbers are GiB; 0 for no limit
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<String>,
    /// Most inodes the volume may hold; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    pub inodes: Option<String>,
    /// Days for which removed files stay in .trash, 0 for none
    #[arg(long, value_name = "DAYS")]
    pub trash_days: Option<String>,
    /// Default upload bandwidth of a client in Mbit/s; 0 for no limit
    #[arg(long, value_name = "RATE")]
    pub upload_limit: Option<String>,
    /// Default download bandwidth of a client in Mbit/s; 0 for no limit
    #[arg(long, value_name = "RATE")]
    pub download_limit: Option<String>,
    /// Keep statistics of directories, which directory quotas need
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub dir_stats: Option<bool>,
    /// Account for usage by user and group
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub user_group_quota: Option<bool>,
    /// POSIX ACLs; cannot be switched off again
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub enable_acl: Option<bool>,
    /// Oldest client version that may connect; cannot be lowered
    #[arg(long, value_name = "VERSION")]
    pub min_client_version: Option<String>,
    /// Newest client version that may connect; empty for any
    #[arg(long, value_name = "VERSION")]
    pub max_client_version: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Neither check nor ask
    #[arg(long)]
    pub force: bool,
    /// Fixed at format; refused
    #[arg(long, value_name = "NAME", hide = true)]
    pub storage: Option<String>,
    /// Fixed at format; refused
    #[arg(long, value_name = "SIZE", hide = true)]
    pub block_size: Option<String>,
    /// Fixed at format; refused
    #[arg(long, value_name = "NAME", hide = true)]
    pub compress: Option<String>,
    /// Fixed at format; refused
    #[arg(long, value_name = "COUNT", hide = true)]
    pub shards: Option<String>,
    /// Fixed at format; refused
    #[arg(long, hide = true)]
    pub hash_prefix: bool,
    /// Fixed at format; refused
    #[arg(long, value_name = "FILE", hide = true)]
    pub encrypt_rsa_key: Option<PathBuf>,
    /// Fixed at format; refused
    #[arg(long, value_name = "NAME", hide = true)]
    pub encrypt_algo: Option<String>,
    /// Metadata engine: sqlite3://PATH, redis://HOST:PORT/DB (redis://MASTER,SENTINEL:PORT/DB,
    /// redis://NODE:PORT,NODE:PORT/DB) or unix://PATH?db=N
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
}

/// `sluice destroy`.
#[derive(Debug, Args)]
pub struct DestroyArgs {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Neither ask, nor mind sessions or a bucket that is not there
    #[arg(long)]
    pub force: bool,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
    /// The volume's UUID, as `sluice status` shows it
    #[arg(value_name = "UUID")]
    pub uuid: String,
}

/// `sluice dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// Dump only this directory, as the root
    #[arg(long, value_name = "DIR")]
    pub subdir: Option<String>,
    /// Leave secrets of the object store in the dump
    #[arg(long)]
    pub keep_secret_key: bool,
    /// Leave the trash out
    #[arg(long)]
    pub skip_trash: bool,
    /// Accepted for compatibility: a dump is always streamed
    #[arg(long)]
    pub fast: bool,
    /// Accepted for compatibility: records are read in pages
    #[arg(short = 'p', long, value_name = "COUNT", default_value = "10")]
    pub threads: String,
    /// Metadata engine
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
    /// File to write, packed if its name ends in .zstd [default: standard output]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `sluice load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Accepted for compatibility: records are written in pages
    #[arg(short = 'p', long, value_name = "COUNT", default_value = "10")]
    pub threads: String,
    /// Metadata engine, empty
    #[arg(value_name = "META-URL")]
    pub meta_url: String,
    /// Dump to read, packed if its name ends in .zstd [default: standard input]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}
