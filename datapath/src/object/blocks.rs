//! Blocks of slices in an object store: names, compression and encryption put together.
//!
//! Called by the cache, on every core with a store of its own; what is expensive (keys) is shared. Ranges are
//! read as such only from plain volumes; elsewhere a get fetches and decodes the whole block. Decoding and
//! encoding run on the blocking pool, except LZ4 of small blocks, which takes less than a hop there.
//!
//! Copies per block: none for plain volumes; for others one to join the pieces and one per transformation.
//!
//! Failure: see [`ObjectError`]; an object that does not decode is `Damaged`.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use metrics::Counter;

use super::{AnyStore, Codec, Crypt, Naming, ObjectStore, total_len};
use crate::cache::BlockId;
use crate::error::ObjectError;
use crate::runtime::blocking;

/// Largest block that is compressed or decompressed on the core: LZ4 does 32 KiB in well under 100 us.
const INLINE_BYTES: u32 = 32 << 10;

/// How a volume keeps its blocks: the same on every core.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Names.
    pub naming: Naming,
    /// Bytes of a full block.
    pub block_bytes: u32,
    /// Compression.
    pub codec: Codec,
    /// Encryption, if the volume has a key.
    pub crypt: Option<Arc<Crypt>>,
}

impl Layout {
    /// Whether objects hold the bytes of their blocks as they are, so that ranges can be read.
    pub fn is_plain(&self) -> bool {
        self.codec == Codec::None && self.crypt.is_none()
    }

    /// The object of a block. Takes milliseconds for megabytes.
    fn encode(&self, data: &[Bytes]) -> Result<Bytes, String> {
        let plain = data.concat();
        let packed = match self.codec {
            Codec::None => plain,
            codec => codec.encode(&plain)?,
        };
        match &self.crypt {
            None => Ok(packed.into()),
            Some(crypt) => crypt.encrypt(&packed).map(Bytes::from),
        }
    }

    /// The block of an object. Takes milliseconds for megabytes, and for every key.
    fn decode(&self, stored: &[u8], size: u32) -> Result<Bytes, String> {
        let decrypted;
        let packed = match &self.crypt {
            None => stored,
            Some(crypt) => {
                decrypted = crypt.decrypt(stored)?;
                &decrypted
            }
        };
        self.codec.decode(packed, size as usize).map(Bytes::from)
    }

    /// Whether a block of this size is encoded and decoded on the core.
    fn is_inline(&self, size: u32) -> bool {
        self.codec == Codec::Lz4 && self.crypt.is_none() && size <= INLINE_BYTES
    }
}

/// See the module.
pub struct BlockStore {
    store: AnyStore,
    layout: Arc<Layout>,
    counters: Counters,
}

impl BlockStore {
    /// Blocks of `layout` in `store`.
    pub fn new(store: AnyStore, layout: Layout) -> BlockStore {
        BlockStore {
            store,
            layout: Arc::new(layout),
            counters: Counters::new(),
        }
    }

    /// How blocks are kept.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The store itself, for objects that are not blocks.
    pub fn store(&self) -> &AnyStore {
        &self.store
    }

    /// Stores a block; `data` adds up to `block.size`.
    pub async fn put_block(&self, block: BlockId, data: Vec<Bytes>) -> Result<(), ObjectError> {
        assert_eq!(
            total_len(&data),
            block.size as usize,
            "the pieces of {block:?} are its bytes"
        );
        let key = self.layout.naming.key(block);
        let data = if self.layout.is_plain() {
            data
        } else {
            vec![self.encode(&key, block.size, data).await?]
        };
        let bytes = total_len(&data);
        let put = self.store.put(&key, data).await;
        self.counters.put(&put, bytes);
        put
    }

    /// Bytes `range` of a block; exactly as many.
    pub async fn get_block(&self, block: BlockId, range: Range<u32>) -> Result<Bytes, ObjectError> {
        assert!(
            range.start <= range.end && range.end <= block.size,
            "{range:?} is in {block:?}"
        );
        let key = self.layout.naming.key(block);
        if self.layout.is_plain() {
            let range = u64::from(range.start)..u64::from(range.end);
            let got = self.store.get(&key, Some(range)).await;
            self.counters.get(got.as_ref().map(std::slice::from_ref));
            return got;
        }
        let got = self.store.get(&key, None).await;
        self.counters.get(got.as_ref().map(std::slice::from_ref));
        let plain = self.decode(key, block.size, got?).await?;
        Ok(plain.slice(range.start as usize..range.end as usize))
    }

    /// Pages `pages` of a block, each its own allocation. Blocks that are not plain have one page.
    pub async fn get_pages(
        &self,
        block: BlockId,
        pages: Range<u32>,
        page_bytes: u32,
    ) -> Result<Vec<Bytes>, ObjectError> {
        if !self.layout.is_plain() {
            assert!(
                page_bytes >= block.size && pages == (0..1),
                "{pages:?} of {block:?}"
            );
            return Ok(vec![self.get_block(block, 0..block.size).await?]);
        }
        let (start, end) = (
            pages.start * page_bytes,
            block.size.min(pages.end * page_bytes),
        );
        let range = u64::from(start)..u64::from(end);
        let key = self.layout.naming.key(block);
        let got = self.store.get_pieces(&key, range, page_bytes.into()).await;
        self.counters.get(got.as_deref());
        got
    }

    /// Deletes a block's object; one that is not there is deleted already.
    pub async fn delete_block(&self, block: BlockId) -> Result<(), ObjectError> {
        let key = self.layout.naming.key(block);
        let deleted = self.store.delete(&key).await;
        self.counters.delete(&deleted);
        deleted
    }

    async fn encode(&self, key: &str, size: u32, data: Vec<Bytes>) -> Result<Bytes, ObjectError> {
        let encoded = if self.layout.is_inline(size) {
            self.layout.encode(&data)
        } else {
            let layout = Arc::clone(&self.layout);
            blocking(move || layout.encode(&data)).await
        };
        encoded.map_err(|cause| ObjectError::Io {
            action: "put",
            key: key.to_owned(),
            cause,
        })
    }

    async fn decode(&self, key: String, size: u32, stored: Bytes) -> Result<Bytes, ObjectError> {
        let decoded = if self.layout.is_inline(size) {
            self.layout.decode(&stored, size)
        } else {
            let layout = Arc::clone(&self.layout);
            blocking(move || layout.decode(&stored, size)).await
        };
        decoded.map_err(|cause| {
            self.counters.get_errors.increment(1);
            ObjectError::Damaged { key, cause }
        })
    }
}

/// The counters of `object`'s table.
struct Counters {
    gets: Counter,
    get_bytes: Counter,
    get_errors: Counter,
    puts: Counter,
    put_bytes: Counter,
    put_errors: Counter,
    deletes: Counter,
    delete_errors: Counter,
}

impl Counters {
    fn new() -> Counters {
        let errors = |action: &'static str| metrics::counter!("sluice_object_errors_total", "action" => action);
        Counters {
            gets: metrics::counter!("sluice_object_gets_total"),
            get_bytes: metrics::counter!("sluice_object_get_bytes_total"),
            get_errors: errors("get"),
            puts: metrics::counter!("sluice_object_puts_total"),
            put_bytes: metrics::counter!("sluice_object_put_bytes_total"),
            put_errors: errors("put"),
            deletes: metrics::counter!("sluice_object_deletes_total"),
            delete_errors: errors("delete"),
        }
    }

    fn get(&self, got: Result<&[Bytes], &ObjectError>) {
        match got {
            Ok(pieces) => {
                self.gets.increment(1);
                self.get_bytes.increment(total_len(pieces) as u64);
            }
            Err(_) => self.get_errors.increment(1),
        }
    }

    fn put(&self, put: &Result<(), ObjectError>, bytes: usize) {
        match put {
            Ok(()) => {
                self.puts.increment(1);
                self.put_bytes.increment(bytes as u64);
            }
            Err(_) => self.put_errors.increment(1),
        }
    }

    fn delete(&self, deleted: &Result<(), ObjectError>) {
        match deleted {
            Ok(()) => self.deletes.increment(1),
            Err(_) => self.delete_errors.increment(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};
    use sluice_meta::types::SliceId;

    use super::*;
    use crate::object::crypt::tests::test_key;
    use crate::object::{Cipher, LocalStore, MemoryStore, ObjectSync, keyfile};
    use crate::runtime::run_on_one;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

    /// Volumes written by JuiceFS 1.4; a few of their objects are in the data directory, under their keys.
    fn golden(volume: &str) -> BlockStore {
        let pem = include_str!("../../tests/data/zstd-encrypted/rsa.pem");
        let crypt = || {
            let key = keyfile::private_key(pem, Some("golden-pass")).unwrap();
            Some(Arc::new(Crypt::new(Cipher::Aes256Gcm, key)))
        };
        let (naming, block_bytes, codec, crypt) = match volume {
            "plain" => (Naming::Plain, 4 << 20, Codec::None, None),
            "hashed" => (Naming::Hashed, 1 << 20, Codec::None, None),
            "lz4" => (Naming::Plain, 4 << 20, Codec::Lz4, None),
            "zstd-encrypted" => (Naming::Plain, 256 << 10, Codec::Zstd, crypt()),
            other => panic!("{other}"),
        };
        let layout = Layout {
            naming,
            block_bytes,
            codec,
            crypt,
        };
        BlockStore::new(
            AnyStore::Local(LocalStore::new(DATA, volume, ObjectSync::None)),
            layout,
        )
    }

    /// `.../<slice>_<index>_<size>`
    fn parse_key(key: &str) -> BlockId {
        let name = key.rsplit('/').next().unwrap();
        let numbers: Vec<u64> = name.split('_').map(|part| part.parse().unwrap()).collect();
        BlockId {
            slice: SliceId(numbers[0]),
            index: numbers[1] as u32,
            size: numbers[2] as u32,
        }
    }

    #[test]
    fn objects_of_real_volumes() {
        let list = include_str!("../../tests/data/objects.txt");
        let mut checked = 0;
        for line in list.lines() {
            let [volume, key, hash] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let block = parse_key(key);
            run_on_one(|| async move {
                let store = golden(volume);
                assert_eq!(store.layout().naming.key(block), key);
                let plain = store.get_block(block, 0..block.size).await.unwrap();
                assert_eq!(format!("{:x}", Sha256::digest(&plain)), hash, "{line}");
                let (from, to) = (block.size / 3, block.size - block.size / 4);
                let middle = store.get_block(block, from..to).await.unwrap();
                assert_eq!(middle, plain.slice(from as usize..to as usize), "{line}");
            })
            .unwrap();
            checked += 1;
        }
        assert_eq!(checked, 10);
    }

    fn layouts() -> Vec<Layout> {
        let crypt = |cipher| Some(Arc::new(Crypt::new(cipher, test_key())));
        let layout = |codec, crypt| Layout {
            naming: Naming::Plain,
            block_bytes: 1 << 20,
            codec,
            crypt,
        };
        vec![
            layout(Codec::None, None),
            layout(Codec::Lz4, None),
            layout(Codec::Zstd, None),
            layout(Codec::None, crypt(Cipher::ChaCha20Poly1305)),
            layout(Codec::Lz4, crypt(Cipher::Aes256Gcm)),
        ]
    }

    fn check_layouts<Fut: Future<Output = ()>>(check: impl Fn(BlockStore, MemoryStore) -> Fut) {
        for layout in layouts() {
            let memory = MemoryStore::new();
            let store = BlockStore::new(AnyStore::Memory(memory.clone()), layout);
            run_on_one(|| check(store, memory)).unwrap();
        }
    }

    fn block(size: u32) -> BlockId {
        BlockId {
            slice: SliceId(7),
            index: 0,
            size,
        }
    }

    #[test]
    fn what_is_put_comes_back() {
        check_layouts(|store, memory| async move {
            // Below and above the size that is encoded on the core.
            for size in [1, INLINE_BYTES, INLINE_BYTES + 1, 200_000] {
                let plain: Bytes = (0..size).map(|n| (n / 7) as u8).collect::<Vec<_>>().into();
                let cut = size as usize / 3;
                let pieces = vec![plain.slice(..cut), Bytes::new(), plain.slice(cut..)];
                store.put_block(block(size), pieces).await.unwrap();
                assert_eq!(store.get_block(block(size), 0..size).await.unwrap(), plain);
                let part = store.get_block(block(size), size / 2..size).await.unwrap();
                assert_eq!(part, plain.slice(size as usize / 2..));
                store.delete_block(block(size)).await.unwrap();
                store.delete_block(block(size)).await.unwrap();
                let gone = store.get_block(block(size), 0..size).await.unwrap_err();
                assert!(matches!(gone, ObjectError::NotFound { .. }), "{gone}");
            }
            assert!(memory.keys().is_empty());
        });
    }

    #[test]
    fn ranges_of_plain_volumes_are_read_as_such() {
        check_layouts(|store, memory| async move {
            store
                .put_block(block(1000), vec![Bytes::from(vec![5; 1000])])
                .await
                .unwrap();
            store.get_block(block(1000), 10..20).await.unwrap();
            let range = store.layout().is_plain().then_some(10..20);
            assert_eq!(memory.gets(), [("chunks/0/0/7_0_1000".to_owned(), range)]);
        });
    }

    #[test]
    fn damaged_objects_are_named() {
        check_layouts(|store, memory| async move {
            let key = "chunks/0/0/7_0_1000";
            store
                .put_block(block(1000), vec![Bytes::from(vec![5; 1000])])
                .await
                .unwrap();
            let stored = memory.object(key).unwrap();
            memory.insert(key, stored.slice(..stored.len() - 1));
            let error = store.get_block(block(1000), 0..1000).await.unwrap_err();
            assert!(
                matches!(&error, ObjectError::Damaged { key: named, .. } if named == key),
                "{error}"
            );
        });
    }
}
