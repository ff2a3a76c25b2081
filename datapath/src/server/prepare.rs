//! What a mount needs before anything is mounted: the opened store, the checked setting, the volume's layout.
//! Nothing is changed here, except that `--create` makes the volume if it is not there.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use sluice_meta::client::{Meta, MetaOptions, Shared};
use sluice_meta::error::MetaError;
use sluice_meta::runtime::Runtime;
use sluice_meta::store::{Access, Store};
use sluice_meta::tools;
use sluice_meta::types::{FileKind, Ino};
use sluice_meta::url::{MetaUrl, SqliteUrl};
use sluice_meta::volume::Setting;

use crate::cache::{Blocks, CacheOptions, CacheWrites, DiskOptions, PageCache};
use crate::commands::{Failure, Where};
use crate::config::MountConfig;
use crate::file::FilesOptions;
use crate::fuse::negotiate::NegotiateOptions;
use crate::fuse::session::SessionOptions;
use crate::object::{AnyStore, BlockStore, Layout, LocalStore};
use crate::runtime::{GlommioRuntime, Mailbox, Remote, allowed_cpus, run_on_one};
use crate::shard::Common;
use crate::shard::attrs::Timeouts;
use crate::shard::coherence::Coherence;
use crate::shard::flush_all;
use crate::shard::inode::CoreId;
use crate::volume_store::{self, Bucket};

/// Requests that may wait for one core at a time. More than the kernel keeps in flight for all of them.
const HOPS_MAX: usize = 16 << 10;

/// The cache of the process, one handle per core.
pub type SharedCache = Arc<PageCache>;

/// Everything cores are built from.
pub struct Prepared {
    /// The metadata store.
    pub store: Store,
    /// What the cores' metadata clients share.
    pub shared: Arc<Shared>,
    /// No changes, no session.
    pub read_only: bool,
    /// Time between signs of life of the session.
    pub heartbeat: Duration,
    /// Background jobs run.
    pub jobs: bool,
    /// Number of executors.
    pub cores: usize,
    /// Names the volume to people: URL without secrets.
    pub meta_url: String,
    config: MountConfig,
    root: Ino,
    bucket: Bucket,
    layout: Layout,
}

/// Opens the volume for a mount. Runs on an executor.
pub async fn prepare(
    config: MountConfig,
    url: &MetaUrl,
    create: Option<&crate::commands::format::Plan>,
) -> Result<Prepared, Failure> {
    let runtime: Rc<dyn Runtime> = Rc::new(GlommioRuntime::new());
    if let Some(plan) = create {
        crate::commands::format::create_if_missing(url, plan, &runtime).await?;
    }
    let access = if config.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let store = Store::open(url, access).map_err(Failure::from_error)?;
    let engine = Rc::new(
        store
            .connect(Rc::clone(&runtime))
            .await
            .map_err(Failure::from_store)?,
    );
    let setting = tools::load_volume(&*engine)
        .await
        .map_err(Failure::from_error)?;
    let read_only = config.read_only || only_readable(&setting, &config)?;
    let bucket = volume_store::bucket(&setting, config.bucket.as_deref())?;
    let layout = volume_store::layout(&setting)?;
    let options = MetaOptions {
        read_only,
        skip_dir_mtime: config.skip_dir_mtime,
        fast_statfs: config.fast_statfs,
        open_cache: config.open_cache,
        atime: config.atime,
        names: config.names,
    };
    let shared = Shared::new(setting, options);
    let meta = Meta::new(engine, runtime, Arc::clone(&shared));
    if shared.setting().enable_acl {
        meta.load_acls().await.map_err(Failure::from_error)?;
    }
    let root = match &config.subdir {
        Some(path) => resolve(&meta, path).await?,
        None => Ino::ROOT,
    };
    let cores = match config.cores {
        Some(cores) => cores,
        None => allowed_cpus().map_err(Failure::from_error)?.len(),
    };
    Ok(Prepared {
        store,
        shared,
        read_only,
        heartbeat: config.heartbeat,
        jobs: config.jobs && !read_only,
        cores,
        meta_url: anywhere(url).to_string(),
        config,
        root,
        bucket,
        layout,
    })
}

/// The same address for tools that run in another directory.
fn anywhere(url: &MetaUrl) -> MetaUrl {
    match url {
        MetaUrl::Sqlite(url) => {
            let absolute = std::path::absolute(&url.path);
            MetaUrl::Sqlite(SqliteUrl {
                path: absolute.unwrap_or_else(|_| url.path.clone()),
                table_prefix: url.table_prefix.clone(),
            })
        }
        MetaUrl::Redis(_) => url.clone(),
    }
}

/// Whether the volume needs something for writing that is not built: then it is mounted read-only with a
/// warning, as mount(8) does with write-protected devices, unless `-o rw` insists.
fn only_readable(setting: &Setting, config: &MountConfig) -> Result<bool, Failure> {
    let missing = setting.unsupported_for_writing();
    if missing.is_empty() {
        return Ok(false);
    }
    let features = missing.join(", ");
    if config.force_writable {
        return Err(Failure(format!(
            "volume {} cannot be mounted for writing because it uses {features}, which sluice does not \
             keep up yet: mount it without -o rw, which mounts it read-only, or write with JuiceFS",
            setting.name
        )));
    }
    eprintln!(
        "sluice: volume {} uses {features}, which sluice does not keep up yet: mounted read-only",
        setting.name
    );
    Ok(true)
}

/// The directory that `--subdir` names.
async fn resolve(meta: &Meta, path: &str) -> Result<Ino, Failure> {
    let refuse = |why: &dyn std::fmt::Display| Err(Failure(format!("--subdir {path} {why}")));
    match meta.resolve(path.as_bytes()).await {
        Ok((ino, attr)) if attr.kind == FileKind::Directory => Ok(ino),
        Ok(_) | Err(MetaError::NotDirectory) => refuse(&"is not a directory: name one"),
        Err(MetaError::NotFound) => refuse(&"does not exist on the volume: create it first"),
        Err(MetaError::SymlinkInPath) => {
            refuse(&"goes through a symlink: name the directory that it leads to")
        }
        Err(error) => refuse(&format_args!("cannot be looked up: {error}")),
    }
}

impl Prepared {
    /// What to agree on with the kernel.
    pub fn session_options(&self) -> SessionOptions {
        let negotiate = NegotiateOptions {
            posix_acl: self.setting().enable_acl,
            ..NegotiateOptions::default()
        };
        SessionOptions {
            negotiate,
            ..SessionOptions::default()
        }
    }

    /// The volume's setting.
    pub fn setting(&self) -> Arc<Setting> {
        self.shared.setting()
    }

    /// Where the objects are, for people.
    pub fn bucket(&self) -> &Path {
        self.bucket.path()
    }

    /// The block cache of the process; its disk tier works on the remote side.
    pub fn open_cache(&self, remote: Option<&Remote>) -> Result<SharedCache, Failure> {
        let disk = match (&self.config.cache_dir, remote) {
            (Some(dir), Some(remote)) => Some(DiskOptions {
                dir: dir.join(&self.setting().uuid),
                bytes: usize::try_from(self.config.cache_bytes).unwrap_or(usize::MAX),
                remote: remote.handle(),
            }),
            _ => None,
        };
        let memory_bytes = usize::try_from(self.config.cache_memory_bytes).unwrap_or(usize::MAX);
        let options = CacheOptions { memory_bytes, disk };
        run_on_one(|| async { PageCache::open(options, &self.layout).await })
            .map_err(Failure::from_error)?
            .map(Arc::new)
            .map_err(Failure::from_error)
    }

    /// Whether the remote side has anything to do.
    pub fn needs_remote(&self) -> bool {
        self.config.cache_dir.is_some()
    }

    /// A core's blocks.
    pub fn blocks(&self, cache: &SharedCache) -> Blocks {
        let local = LocalStore::new(
            self.bucket.path(),
            &self.setting().name,
            self.config.object_sync,
        );
        let store = BlockStore::new(AnyStore::Local(local), self.layout.clone());
        Blocks::new(Arc::clone(cache), store, CacheWrites::default())
    }

    /// A core's share of buffers and uploads.
    pub fn files_options(&self, core: CoreId) -> FilesOptions {
        FilesOptions::share(
            core,
            self.cores,
            self.config.dirty_bytes,
            self.config.uploads_max,
            self.config.io_retries,
        )
    }

    /// What the shards share.
    pub fn common(&self, counters: PrometheusHandle) -> Common {
        let cache_times = Timeouts {
            attr: self.config.attr_timeout,
            entry: self.config.entry_timeout,
            dir_entry: self.config.dir_entry_timeout,
            negative: self.config.negative_timeout,
        };
        let tells = matches!(self.store, Store::Redis(_));
        let coherence = tells.then(|| Coherence::wanted(&cache_times)).flatten();
        Common {
            counters,
            root: self.root,
            cache_times,
            coherence,
            hide_internal: self.config.hide_internal,
            handles: Default::default(),
            keep_cache: Default::default(),
            locks: Default::default(),
            mailboxes: (0..self.cores).map(|_| Mailbox::new(HOPS_MAX)).collect(),
            stop: (0..self.cores).map(|_| Mailbox::new(4)).collect(),
            whereabouts: Where {
                meta: self.meta_url.clone(),
                volume: self.setting().name.clone(),
                pid: std::process::id().cast_signed(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                inode: 0,
            },
            flushes: (0..self.cores).map(|_| flush_all::orders()).collect(),
            notifier: Default::default(),
        }
    }
}
