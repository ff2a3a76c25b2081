//! Tests of reading and writing through the cache: bytes, faults, one fetch at a time, restart.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_lite::future;
use proptest::prelude::*;
use sluice_meta::types::SliceId;

use super::*;
use crate::cache::{CacheOptions, DiskOptions};
use crate::object::crypt::tests::test_key;
use crate::object::memory::Action;
use crate::object::{
    AnyStore, Cipher, Codec, Crypt, Layout, LocalStore, MemoryStore, Naming, ObjectSync,
};
use crate::runtime::{Cores, Remote, Tasks, allowed_cpus, breathe, run_on_one};

const PAGE: u32 = 128 << 10;
const BLOCK_BYTES: u32 = 1 << 20;

fn plain() -> Layout {
    Layout {
        naming: Naming::Plain,
        block_bytes: BLOCK_BYTES,
        codec: Codec::None,
        crypt: None,
    }
}

async fn memory_cache(bytes: usize, layout: &Layout) -> Arc<PageCache> {
    let options = CacheOptions {
        memory_bytes: bytes,
        disk: None,
    };
    Arc::new(PageCache::open(options, layout).await.unwrap())
}

fn blocks_over(memory: &MemoryStore, cache: &Arc<PageCache>, layout: Layout) -> Blocks {
    let store = BlockStore::new(AnyStore::Memory(memory.clone()), layout);
    Blocks::new(Arc::clone(cache), store, CacheWrites::Small)
}

async fn fresh() -> (Blocks, MemoryStore) {
    let (memory, cache) = (MemoryStore::new(), memory_cache(64 << 20, &plain()).await);
    (blocks_over(&memory, &cache, plain()), memory)
}

fn block(slice: u64, size: u32) -> BlockId {
    BlockId {
        slice: SliceId(slice),
        index: 0,
        size,
    }
}

/// Bytes that tell their position.
fn pattern(block: BlockId) -> Bytes {
    let seed = block.slice.0 as u32;
    let words = (0..block.size.div_ceil(4)).flat_map(|n| (n ^ seed << 24).to_le_bytes());
    words.take(block.size as usize).collect::<Vec<_>>().into()
}

fn part(block: BlockId, range: Range<u32>) -> Bytes {
    pattern(block).slice(range.start as usize..range.end as usize)
}

fn io_error(key: &str) -> ObjectError {
    ObjectError::Io {
        action: "get",
        key: key.into(),
        cause: "injected".into(),
    }
}

/// Puts a block into the store, past the cache.
fn store_block(memory: &MemoryStore, block: BlockId) {
    memory.insert(&Naming::Plain.key(block), pattern(block));
}

#[test]
fn a_miss_fetches_only_what_is_missing() {
    run_on_one(|| async {
        let (blocks, memory) = fresh().await;
        let id = block(1, BLOCK_BYTES);
        store_block(&memory, id);
        let read = async |range: Range<u32>| {
            let pieces = blocks.read(id, range.clone()).await.unwrap();
            assert_eq!(pieces.concat(), part(id, range));
        };
        read(0..0).await;
        read(PAGE * 2 + 5..PAGE * 2 + 6).await;
        read(PAGE - 1..PAGE * 5 + 1).await;
        read(0..BLOCK_BYTES).await;
        read(0..BLOCK_BYTES).await;
        let pages = |from: u32, to: u32| Some(u64::from(from * PAGE)..u64::from(to * PAGE));
        let ranges: Vec<_> = memory.gets().into_iter().map(|(_, range)| range).collect();
        assert_eq!(ranges, [pages(2, 3), pages(0, 2), pages(3, 6), pages(6, 8)]);
    })
    .unwrap();
}

#[test]
fn hits_are_the_cached_pages_themselves() {
    run_on_one(|| async {
        let (blocks, memory) = fresh().await;
        let id = block(1, BLOCK_BYTES);
        store_block(&memory, id);
        blocks.read(id, 0..10).await.unwrap();
        let one = blocks.read(id, 0..PAGE).await.unwrap();
        let other = blocks.read(id, 7..PAGE).await.unwrap();
        assert_eq!(one[0][7..].as_ptr(), other[0].as_ptr());
        assert_eq!(memory.gets().len(), 1);
    })
    .unwrap();
}

#[test]
fn written_blocks_that_stay_in_the_cache() {
    let check = |writes, size, cached| {
        run_on_one(|| async move {
            let (memory, cache) = (MemoryStore::new(), memory_cache(64 << 20, &plain()).await);
            let store = BlockStore::new(AnyStore::Memory(memory.clone()), plain());
            let blocks = Blocks::new(cache, store, writes);
            let (id, whole) = (block(3, size), pattern(block(3, size)));
            let cut = size as usize / 3;
            blocks
                .write(id, vec![whole.slice(..cut), whole.slice(cut..)])
                .await
                .unwrap();
            assert_eq!(memory.object(&Naming::Plain.key(id)), Some(whole.clone()));
            let read = blocks.read(id, 0..size).await.unwrap();
            assert_eq!(read.concat(), whole);
            assert_eq!(memory.gets().is_empty(), cached, "{writes:?} {size}");
        })
        .unwrap();
    };
    for size in [1, PAGE - 1, PAGE, PAGE + 1, BLOCK_BYTES - 1] {
        check(CacheWrites::Small, size, true);
    }
    check(CacheWrites::Small, BLOCK_BYTES, false);
    check(CacheWrites::All, BLOCK_BYTES, true);
}

#[test]
fn removed_blocks_are_gone() {
    run_on_one(|| async {
        let (blocks, memory) = fresh().await;
        let id = block(3, PAGE * 3);
        blocks.write(id, vec![pattern(id)]).await.unwrap();
        blocks.remove(id).await.unwrap();
        assert!(memory.keys().is_empty());
        let error = blocks.read(id, 0..1).await.unwrap_err();
        assert!(matches!(error, ObjectError::NotFound { .. }));
        blocks.remove(id).await.unwrap();
    })
    .unwrap();
}

#[test]
fn a_damaged_object_fails_only_where_it_is_damaged() {
    run_on_one(|| async {
        let (blocks, memory) = fresh().await;
        let id = block(1, BLOCK_BYTES);
        // Cut within page 5.
        memory.insert(&Naming::Plain.key(id), part(id, 0..PAGE * 5 + 1));
        for range in [
            PAGE * 5..PAGE * 5 + 1,
            0..BLOCK_BYTES,
            PAGE * 7..PAGE * 7 + 1,
        ] {
            let error = blocks.read(id, range.clone()).await.unwrap_err();
            assert!(
                matches!(error, ObjectError::Damaged { .. }),
                "{range:?} {error}"
            );
        }
        let read = blocks.read(id, 10..PAGE * 5).await.unwrap();
        assert_eq!(read.concat(), part(id, 10..PAGE * 5));
    })
    .unwrap();
}

/// A page the follower wanted is fine, though the flight it followed failed for another one.
#[test]
fn a_follower_of_a_wider_failure_sees_for_itself() {
    run_on_one(|| async {
        let (blocks, memory) = fresh().await;
        let (blocks, id) = (Rc::new(blocks), block(1, BLOCK_BYTES));
        memory.insert(&Naming::Plain.key(id), part(id, 0..PAGE * 5));
        let held = memory.hold_gets().await;
        let (tasks, leader, follower) = (Tasks::new(), Rc::clone(&blocks), Rc::clone(&blocks));
        tasks.spawn(async move {
            leader.read(id, 0..BLOCK_BYTES).await.unwrap_err();
        });
        tasks.spawn(async move {
            let read = follower.read(id, PAGE..PAGE + 9).await.unwrap();
            assert_eq!(read.concat(), part(id, PAGE..PAGE + 9));
        });
        breathe().await;
        assert_eq!(memory.gets().len(), 1);
        drop(held);
        tasks.finished().await;
    })
    .unwrap();
}

#[test]
fn a_cancelled_leader_hands_over() {
    run_on_one(|| async {
        let (blocks, memory) = fresh().await;
        let (blocks, id) = (Rc::new(blocks), block(1, BLOCK_BYTES));
        store_block(&memory, id);
        let held = memory.hold_gets().await;
        let mut leader = Box::pin(blocks.read(id, 0..BLOCK_BYTES));
        assert!(future::poll_once(&mut leader).await.is_none());
        let (tasks, follower) = (Tasks::new(), Rc::clone(&blocks));
        tasks.spawn(async move {
            let read = follower.read(id, 5..PAGE * 2).await.unwrap();
            assert_eq!(read.concat(), part(id, 5..PAGE * 2));
        });
        breathe().await;
        assert_eq!(memory.gets().len(), 1);
        drop(leader);
        drop(held);
        tasks.finished().await;
        assert_eq!(memory.gets().len(), 2);
    })
    .unwrap();
}

/// Eight readers on each of two cores want the same cold pages, which are held back until all have asked.
fn crowd(memory: &MemoryStore, expected: fn(Result<Vec<Bytes>, ObjectError>)) -> usize {
    const READERS: usize = 8;
    let id = block(1, BLOCK_BYTES);
    let cache = run_on_one(async || memory_cache(64 << 20, &plain()).await).unwrap();
    let held = run_on_one(|| memory.hold_gets()).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let (store, counter) = (memory.clone(), Arc::clone(&asked));
    let cpus = allowed_cpus().unwrap();
    let cores = Cores::start_on(&[cpus[0], cpus[cpus.len() - 1]], move |_| {
        let (blocks, asked) = (
            Rc::new(blocks_over(&store, &cache, plain())),
            Arc::clone(&counter),
        );
        async move {
            let tasks = Tasks::new();
            for _ in 0..READERS {
                let (blocks, asked) = (Rc::clone(&blocks), Arc::clone(&asked));
                tasks.spawn(async move {
                    let mut read = Box::pin(blocks.read(id, PAGE..PAGE * 3));
                    // The first poll claims: from then on this reader leads or follows.
                    assert!(future::poll_once(&mut read).await.is_none());
                    asked.fetch_add(1, Ordering::SeqCst);
                    expected(read.await);
                });
            }
            tasks.finished().await;
        }
    })
    .unwrap();
    while asked.load(Ordering::SeqCst) < 2 * READERS {
        std::thread::yield_now();
    }
    let gets = memory.gets().len();
    drop(held);
    cores.join().unwrap();
    gets
}

#[test]
fn one_fetch_for_all_cores() {
    let memory = MemoryStore::new();
    store_block(&memory, block(1, BLOCK_BYTES));
    let gets = crowd(&memory, |read| {
        assert_eq!(
            read.unwrap().concat(),
            part(block(1, BLOCK_BYTES), PAGE..PAGE * 3)
        );
    });
    assert_eq!((gets, memory.gets().len()), (1, 1));
}

#[test]
fn a_failure_reaches_all_who_wait() {
    let memory = MemoryStore::new();
    memory.set_fault(|_, key| Some(io_error(key)));
    let gets = crowd(&memory, |read| {
        assert!(matches!(read.unwrap_err(), ObjectError::Io { .. }));
    });
    assert_eq!(gets, 1);
}

#[derive(Clone, Debug)]
enum Step {
    Write { slice: u64, size: u32 },
    Remove { slice: u64 },
    Read { slice: u64, from: f64, len: f64 },
    Fail { per_cent: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let slice = 0..6_u64;
    let size = prop_oneof![
        1..200_u32,
        1..=BLOCK_BYTES,
        Just(BLOCK_BYTES),
        Just(PAGE),
        Just(PAGE + 1)
    ];
    prop_oneof![
        2 => (slice.clone(), size).prop_map(|(slice, size)| Step::Write { slice, size }),
        1 => slice.clone().prop_map(|slice| Step::Remove { slice }),
        6 => (slice, 0.0..1.0, 0.0..1.0_f64)
            .prop_map(|(slice, from, len)| Step::Read { slice, from, len: len * len }),
        1 => (0..60_u8).prop_map(|per_cent| Step::Fail { per_cent }),
    ]
}

/// Blocks as they should be: by slice, whether stored (a write that failed may have stored it or not).
#[derive(Default)]
struct Model {
    stored: HashMap<u64, BlockId>,
    /// Slice ids are never used again.
    next: u64,
    names: HashMap<u64, u64>,
}

async fn play(layout: Layout, cache_bytes: usize, steps: Vec<Step>, seed: u64) {
    let (memory, cache) = (MemoryStore::new(), memory_cache(cache_bytes, &layout).await);
    let blocks = blocks_over(&memory, &cache, layout);
    let mut model = Model::default();
    let mut faults = false;
    for step in steps {
        match step {
            Step::Fail { per_cent } => {
                faults = per_cent > 0;
                let mut random = fastrand::Rng::with_seed(seed);
                memory.set_fault(move |_: Action, key| {
                    (random.u8(..100) < per_cent).then(|| io_error(key))
                });
            }
            Step::Write { slice, size } => {
                model.next += 1;
                let id = block(model.next, size);
                let written = blocks.write(id, vec![pattern(id)]).await;
                assert!(written.is_ok() || faults);
                if written.is_ok() {
                    model.names.insert(slice, model.next);
                    model.stored.insert(model.next, id);
                }
            }
            Step::Remove { slice } => {
                let Some(name) = model.names.get(&slice) else {
                    continue;
                };
                match blocks.remove(model.stored[name]).await {
                    Ok(()) => drop(model.names.remove(&slice)),
                    Err(_) => assert!(faults),
                }
            }
            Step::Read { slice, from, len } => {
                let name = model.names.get(&slice).copied();
                // A block that was never stored, or was removed.
                let id = name.map_or(block(1_000_000, 77), |name| model.stored[&name]);
                let from = (f64::from(id.size) * from) as u32;
                let range = from..from + (f64::from(id.size - from) * len).ceil() as u32;
                match (blocks.read(id, range.clone()).await, name) {
                    (Ok(read), Some(_)) => {
                        assert_eq!(read.concat(), part(id, range.clone()), "{id:?}")
                    }
                    (Ok(read), None) => {
                        assert!(range.is_empty() && read.is_empty(), "{id:?} {range:?}")
                    }
                    (Err(ObjectError::NotFound { .. }), None) => {}
                    (Err(ObjectError::Io { .. }), _) => assert!(faults),
                    (Err(error), name) => panic!("{name:?} {error}"),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// In a cache of all, and in one that can hold two pages.
    #[test]
    fn reads_equal_the_model(steps in prop::collection::vec(step(), 1..60), seed: u64, large: bool) {
        let bytes = if large { 64 << 20 } else { 300 << 10 };
        run_on_one(|| play(plain(), bytes, steps, seed)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn reads_of_encoded_volumes_equal_the_model(
        steps in prop::collection::vec(step(), 1..20), seed: u64, encrypted: bool,
    ) {
        let crypt = encrypted.then(|| Arc::new(Crypt::new(Cipher::Aes256Gcm, test_key())));
        let layout = Layout { codec: Codec::Lz4, crypt, ..plain() };
        run_on_one(|| play(layout, 3 << 20, steps, seed)).unwrap();
    }
}

#[test]
fn pages_survive_a_restart_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::start().unwrap();
    let options = || CacheOptions {
        memory_bytes: 1 << 20,
        disk: Some(DiskOptions {
            dir: dir.path().to_owned(),
            bytes: 512 << 20,
            remote: remote.handle(),
        }),
    };
    let memory = MemoryStore::new();
    let ids: Vec<_> = (1..=6)
        .map(|slice| block(slice, BLOCK_BYTES - slice as u32))
        .collect();
    ids.iter().for_each(|&id| store_block(&memory, id));
    let read_all = async || {
        let cache = Arc::new(PageCache::open(options(), &plain()).await.unwrap());
        let blocks = blocks_over(&memory, &cache, plain());
        for &id in &ids {
            let read = blocks.read(id, 0..id.size).await.unwrap();
            assert_eq!(read.concat(), pattern(id));
        }
        cache.close().await;
    };
    run_on_one(|| async {
        read_all().await;
        assert_eq!(memory.gets().len(), ids.len());
        read_all().await;
        assert_eq!(
            memory.gets().len(),
            ids.len(),
            "everything came from the disk"
        );
    })
    .unwrap();
    remote.stop();
}

#[test]
fn one_mount_per_cache_directory() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Remote::start().unwrap();
    let options = |bytes| CacheOptions {
        memory_bytes: 1 << 20,
        disk: Some(DiskOptions {
            dir: dir.path().join("c"),
            bytes,
            remote: remote.handle(),
        }),
    };
    run_on_one(|| async {
        let words = |error: Option<crate::cache::CacheError>| error.unwrap().to_string();
        let small = PageCache::open(options(1 << 20), &plain()).await.err();
        assert!(words(small).contains("too small"));
        let cache = PageCache::open(options(512 << 20), &plain()).await.unwrap();
        let second = PageCache::open(options(512 << 20), &plain()).await.err();
        assert!(words(second).contains("in use by another mount"));
        cache.close().await;
        drop(cache);
        std::fs::write(dir.path().join("file"), "").unwrap();
        let mut unusable = options(512 << 20);
        unusable.disk.as_mut().unwrap().dir = dir.path().join("file");
        assert!(words(PageCache::open(unusable, &plain()).await.err()).contains("cannot be used"));
    })
    .unwrap();
    remote.stop();
}

/// The whole way: cache over a directory, two cores.
#[test]
fn blocks_in_a_directory_seen_by_two_cores() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = dir.path().to_owned();
    let cache = run_on_one(async || memory_cache(64 << 20, &plain()).await).unwrap();
    let blocks = move || {
        let store = AnyStore::Local(LocalStore::new(bucket.clone(), "vol", ObjectSync::Full));
        Blocks::new(
            Arc::clone(&cache),
            BlockStore::new(store, plain()),
            CacheWrites::Small,
        )
    };
    let cpus = allowed_cpus().unwrap();
    for read in [false, true] {
        let blocks = blocks.clone();
        Cores::start_on(&[cpus[0], cpus[cpus.len() - 1]], move |core| {
            let blocks = Rc::new(blocks());
            async move {
                let tasks = Tasks::new();
                for n in 0..8_u64 {
                    let blocks = Rc::clone(&blocks);
                    tasks.spawn(async move {
                        // A core writes its own blocks and reads the other's.
                        let id = block(
                            100 * (core as u64 ^ u64::from(read)) + n,
                            BLOCK_BYTES - 5 * n as u32,
                        );
                        if read {
                            let all = blocks.read(id, 0..id.size).await.unwrap();
                            assert_eq!(all.concat(), pattern(id));
                        } else {
                            blocks.write(id, vec![pattern(id)]).await.unwrap();
                        }
                    });
                }
                tasks.finished().await;
            }
        })
        .unwrap()
        .join()
        .unwrap();
    }
}

#[test]
fn splitting_keeps_the_bytes() {
    let check = |lens: &[usize], page: u32, expected: &[usize]| {
        let whole: Vec<u8> = (0..lens.iter().sum()).map(|n: usize| n as u8).collect();
        let mut left = Bytes::from(whole.clone());
        let data: Vec<_> = lens.iter().map(|&len| left.split_to(len)).collect();
        let pages = split(&data, page);
        assert_eq!(pages.concat(), whole);
        assert_eq!(
            pages.iter().map(Bytes::len).collect::<Vec<_>>(),
            expected,
            "{lens:?} {page}"
        );
    };
    check(&[], 4, &[]);
    check(&[0, 0], 4, &[]);
    check(&[4], 4, &[4]);
    check(&[3, 0, 2, 9], 4, &[4, 4, 4, 2]);
    check(&[1, 1, 1, 1, 1], 4, &[4, 1]);
    check(&[20], 7, &[7, 7, 6]);
}
