//! The page cache of the process: memory, and a disk tier if a directory was given. foyer is named here only.
//!
//! Opened by the server, shared by all cores. Clean data only: an insert may be dropped (the disk tier does
//! so when its write buffers are full), and what it holds can be fetched again. The disk tier uses foyer's
//! psync engine (its io_uring engine spins and has an open use-after-free), writes at insertion so that
//! pages survive a restart, checks what it reads, and runs on the remote thread's reactor.
//!
//! Memory: a hit is one lock of a shard and one reference count. The eviction order is plain least recently
//! used, because pages read ahead must live until they are read; scan-resistant orders evict exactly those.
//! The disk tier holds up to `FLUSH_BYTES` twice while it fills, and one descriptor per `EVICTION_BYTES`.
//!
//! Failure: opening reports [`CacheError`]; afterwards a fault of the disk is a miss, and logged.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use foyer::{
    BlockEngineConfig, Cache, CacheBuilder, Code, DeviceBuilder, FsDeviceBuilder, HybridCache,
    HybridCacheBuilder, HybridCachePolicy, LruConfig, PsyncIoEngineConfig, Spawner,
};
use sluice_meta::types::SliceId;
use tokio::runtime::Handle;

use super::BlockId;
use super::single_flight::Flights;
use crate::object::Layout;

/// Page of a plain volume: small enough for random reads, large enough that a page costs one request.
const PAGE_BYTES: u32 = 128 << 10;
/// Beside a page's bytes in memory: key, links, reference counts.
const ENTRY_BYTES: usize = 128;
/// Entries each shard of the memory tier has room for, at least: shards share the capacity evenly.
const SHARD_ENTRIES_MIN: usize = 32;
/// Shards of the memory tier at most.
const SHARDS_MAX: usize = 64;
/// What the disk tier evicts at once, and one file: 100 GB are 1600 open files.
const EVICTION_BYTES: usize = 64 << 20;
/// Eviction units without which the disk tier would throw away most of what it holds.
const EVICTION_UNITS_MIN: usize = 8;
/// Pages on their way to the disk; more are dropped.
const FLUSH_BYTES: usize = 64 << 20;

// A whole block of the largest kind (16 MiB) fits an eviction unit and the write buffer.
const _: () = assert!(EVICTION_BYTES > 2 * (16 << 20) && FLUSH_BYTES > 2 * (16 << 20));

/// What a page of a volume is: see [`PageCache::page_bytes`].
pub fn page_bytes(layout: &Layout) -> u32 {
    if layout.is_plain() {
        PAGE_BYTES.min(layout.block_bytes)
    } else {
        layout.block_bytes
    }
}

/// How large, and where.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Memory for pages.
    pub memory_bytes: usize,
    /// The disk tier, if there is to be one.
    pub disk: Option<DiskOptions>,
}

/// A disk tier.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Directory, of this volume and this mount alone.
    pub dir: PathBuf,
    /// Room it may use.
    pub bytes: usize,
    /// Where its tasks run.
    pub remote: Handle,
}

/// Why a cache could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Less room than a disk tier needs.
    #[error("a disk cache of {bytes} bytes is too small, at least {least} are needed")]
    TooSmall {
        /// Room it was given.
        bytes: usize,
        /// Room it needs.
        least: usize,
    },
    /// Another process has it.
    #[error("the cache directory {dir} is in use by another mount: give each mount its own")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be used.
    #[error("the cache directory {dir} cannot be used: {cause}")]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What the attempt ended with.
        cause: String,
    },
}

/// A page of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct PageKey {
    pub(super) slice: SliceId,
    pub(super) block: u32,
    pub(super) page: u32,
}

impl PageKey {
    pub(super) fn new(block: BlockId, page: u32) -> PageKey {
        PageKey {
            slice: block.slice,
            block: block.index,
            page,
        }
    }

    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.slice.0.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.block.to_be_bytes());
        bytes[12..].copy_from_slice(&self.page.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; 16]) -> PageKey {
        let number = u128::from_be_bytes(bytes);
        PageKey {
            slice: SliceId((number >> 64) as u64),
            block: (number >> 32) as u32,
            page: number as u32,
        }
    }
}

impl Code for PageKey {
    fn encode(&self, writer: &mut impl io::Write) -> foyer::Result<()> {
        writer
            .write_all(&self.to_bytes())
            .map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl io::Read) -> foyer::Result<Self> {
        let mut bytes = [0; 16];
        reader
            .read_exact(&mut bytes)
            .map_err(foyer::Error::io_error)?;
        Ok(PageKey::from_bytes(bytes))
    }

    fn estimated_size(&self) -> usize {
        16
    }
}

/// See the module.
pub struct PageCache {
    tiers: Tiers,
    page_bytes: u32,
    pub(super) flights: Flights,
}

enum Tiers {
    Memory(Cache<PageKey, Bytes>),
    Hybrid {
        cache: HybridCache<PageKey, Bytes>,
        remote: Handle,
        _lock: File,
    },
}

impl PageCache {
    /// Opens the cache of a volume. With a disk tier, waits until what it holds is known again.
    pub async fn open(options: CacheOptions, layout: &Layout) -> Result<PageCache, CacheError> {
        let page_bytes = page_bytes(layout);
        let tiers = match options.disk {
            None => Tiers::Memory(open_memory(options.memory_bytes, page_bytes)),
            Some(disk) => open_hybrid(options.memory_bytes, page_bytes, disk).await?,
        };
        Ok(PageCache {
            tiers,
            page_bytes,
            flights: Flights::new(),
        })
    }

    /// Bytes of a page: the last one of a block may be shorter.
    pub fn page_bytes(&self) -> u32 {
        self.page_bytes
    }

    /// Ends the disk tier, after writing what waits for it.
    pub async fn close(&self) {
        let Tiers::Hybrid { cache, remote, .. } = &self.tiers else {
            return;
        };
        let cache = cache.clone();
        match remote.spawn(async move { cache.close().await }).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the disk cache did not close well"),
            Err(error) => tracing::warn!(%error, "the disk cache did not close"),
        }
    }

    /// A page, if memory has it.
    pub(super) fn in_memory(&self, key: PageKey) -> Option<Bytes> {
        match &self.tiers {
            Tiers::Memory(cache) => cache.get(&key).map(|entry| entry.value().clone()),
            Tiers::Hybrid { cache, .. } => {
                cache.memory().get(&key).map(|entry| entry.value().clone())
            }
        }
    }

    /// Whether asking the disk tier is worth it.
    pub(super) fn may_be_on_disk(&self, key: PageKey) -> bool {
        match &self.tiers {
            Tiers::Memory(_) => false,
            Tiers::Hybrid { cache, .. } => cache.storage().may_contains(&key),
        }
    }

    /// A page, if the disk has it; it is in memory afterwards. Asks when called, so that many can be asked
    /// before the first is awaited.
    pub(super) fn on_disk(&self, key: PageKey) -> impl Future<Output = Option<Bytes>> + use<> {
        let asked = match &self.tiers {
            Tiers::Memory(_) => None,
            Tiers::Hybrid { cache, .. } => Some(cache.get(&key)),
        };
        async move {
            match asked?.await {
                Ok(entry) => entry.map(|entry| entry.value().clone()),
                Err(error) => {
                    tracing::warn!(%error, ?key, "the disk cache failed to read a page");
                    None
                }
            }
        }
    }

    /// Puts a page in.
    pub(super) fn insert(&self, key: PageKey, page: Bytes) {
        match &self.tiers {
            Tiers::Memory(cache) => drop(cache.insert(key, page)),
            Tiers::Hybrid { cache, .. } => drop(cache.insert(key, page)),
        }
    }

    /// Takes a page out.
    pub(super) fn remove(&self, key: PageKey) {
        match &self.tiers {
            Tiers::Memory(cache) => drop(cache.remove(&key)),
            Tiers::Hybrid { cache, .. } => cache.remove(&key),
        }
    }
}

fn weigh(_: &PageKey, page: &Bytes) -> usize {
    page.len() + ENTRY_BYTES
}

/// Shards so large that unevenness does not matter.
fn shards(memory_bytes: usize, page_bytes: u32) -> usize {
    let shard_bytes = SHARD_ENTRIES_MIN * (page_bytes as usize + ENTRY_BYTES);
    (memory_bytes / shard_bytes).clamp(1, SHARDS_MAX)
}

fn open_memory(memory_bytes: usize, page_bytes: u32) -> Cache<PageKey, Bytes> {
    CacheBuilder::new(memory_bytes)
        .with_name("sluice")
        .with_shards(shards(memory_bytes, page_bytes))
        .with_eviction_config(LruConfig::default())
        .with_weighter(weigh)
        .build()
}

async fn open_hybrid(
    memory_bytes: usize,
    page_bytes: u32,
    disk: DiskOptions,
) -> Result<Tiers, CacheError> {
    let least = EVICTION_UNITS_MIN * EVICTION_BYTES;
    if disk.bytes < least {
        return Err(CacheError::TooSmall {
            bytes: disk.bytes,
            least,
        });
    }
    let DiskOptions { dir, bytes, remote } = disk;
    let unusable = |cause: String| CacheError::Unusable {
        dir: dir.clone(),
        cause,
    };
    // Pages of another size would be taken for pages of this one.
    let pages_dir = dir.join(format!("pages-{page_bytes}"));
    std::fs::create_dir_all(&pages_dir).map_err(|error| unusable(error.to_string()))?;
    let lock = lock(&dir)?;
    let device = FsDeviceBuilder::new(&pages_dir)
        .with_capacity(bytes)
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let engine = BlockEngineConfig::new(device)
        .with_block_size(EVICTION_BYTES)
        .with_buffer_pool_size(FLUSH_BYTES)
        .with_submit_queue_size_threshold(FLUSH_BYTES);
    let building = HybridCacheBuilder::new()
        .with_name("sluice")
        .with_policy(HybridCachePolicy::WriteOnInsertion)
        .with_flush_on_close(true)
        .memory(memory_bytes)
        .with_shards(shards(memory_bytes, page_bytes))
        .with_eviction_config(LruConfig::default())
        .with_weighter(weigh)
        .storage()
        .with_io_engine_config(PsyncIoEngineConfig::new())
        .with_engine_config(engine)
        .with_spawner(Spawner::from(remote.clone()))
        .build();
    // On the remote thread, since building it starts tasks.
    let built = remote
        .spawn(building)
        .await
        .map_err(|error| unusable(error.to_string()))?;
    let cache = built.map_err(|error| unusable(error.to_string()))?;
    Ok(Tiers::Hybrid {
        cache,
        remote,
        _lock: lock,
    })
}

/// Two processes would overwrite each other's pages.
fn lock(dir: &Path) -> Result<File, CacheError> {
    let unusable = |error: io::Error| CacheError::Unusable {
        dir: dir.to_owned(),
        cause: error.to_string(),
    };
    let file = File::create(dir.join("lock")).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CacheError::InUse {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(unusable(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_take_sixteen_bytes() {
        let key = PageKey {
            slice: SliceId(0x0102_0304_0506_0708),
            block: 0x090A_0B0C,
            page: 0x0D0E_0F10,
        };
        let bytes: [u8; 16] = std::array::from_fn(|at| at as u8 + 1);
        assert_eq!(key.to_bytes(), bytes);
        assert_eq!(PageKey::from_bytes(bytes), key);
        let mut written = Vec::new();
        key.encode(&mut written).unwrap();
        assert_eq!(written, bytes);
        assert_eq!(PageKey::decode(&mut &written[..]).unwrap(), key);
        assert!(PageKey::decode(&mut &written[..15]).is_err());
    }

    #[test]
    fn shards_have_room() {
        let check =
            |bytes, page, expected| assert_eq!(shards(bytes, page), expected, "{bytes} {page}");
        check(0, PAGE_BYTES, 1);
        check(256 << 20, PAGE_BYTES, 63);
        check(8 << 30, PAGE_BYTES, 64);
        check(256 << 20, 4 << 20, 1);
        check(1 << 30, 4 << 20, 7);
    }
}
