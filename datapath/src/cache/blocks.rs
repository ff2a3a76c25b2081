//! Blocks of one core: the process's page cache over this core's object store.
//!
//! A read whose pages are all in memory does not suspend; it allocates the vector of its answer and nothing
//! else, and the answer's pieces are the cached pages themselves. Pages it misses are claimed
//! (`single_flight`); those it leads are looked for on the cache's disk and then fetched with one request
//! per run of neighbours. They are checked for length before anyone sees them.
//!
//! A write goes to the store, and into the cache afterwards if it is a small block (or as [`CacheWrites`]
//! says): small blocks are likely to be read soon (small files, tails of appends), while full blocks of a
//! large sequential write would push out everything else. JuiceFS chooses the same.
//!
//! Failure: that of the store, for the range asked for. A reader that waited for a wider fetch than its own
//! and sees it fail asks once more for just its own pages.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use metrics::Counter;
use sluice_meta::runtime::LocalFuture;

use super::hybrid::{PageCache, PageKey};
use super::single_flight::{Claim, Flight, Lead};
use super::{BlockId, BlockIo};
use crate::error::ObjectError;
use crate::object::{BlockStore, total_len};
use crate::runtime::blocking;

/// Most bytes that are copied on the core at once: some 20 us.
const INLINE_COPY_BYTES: u32 = 128 << 10;
/// Hits after which a core adds what it counted to the process's counters.
const HITS_BATCH: u64 = 64;

/// Which written blocks the cache keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheWrites {
    /// Those shorter than a full block.
    #[default]
    Small,
    /// All.
    All,
}

/// See the module.
pub struct Blocks {
    cache: Arc<PageCache>,
    store: BlockStore,
    writes: CacheWrites,
    counters: Counters,
}

impl Blocks {
    /// Blocks of `store` through `cache`, which must have been opened for the same layout.
    pub fn new(cache: Arc<PageCache>, store: BlockStore, writes: CacheWrites) -> Blocks {
        assert_eq!(
            cache.page_bytes(),
            super::page_bytes(store.layout()),
            "the cache was opened for this store's layout"
        );
        Blocks {
            cache,
            store,
            writes,
            counters: Counters::new(),
        }
    }

    /// The store below.
    pub fn store(&self) -> &BlockStore {
        &self.store
    }

    /// Length of a page of a block.
    fn page_len(&self, block: BlockId, page: u32) -> u32 {
        let page_bytes = self.cache.page_bytes();
        (block.size - page * page_bytes).min(page_bytes)
    }

    /// A page that memory has. The disk tier may have brought it there, so its length is checked.
    fn in_memory(&self, block: BlockId, page: u32) -> Option<Bytes> {
        let bytes = self.cache.in_memory(PageKey::new(block, page))?;
        (bytes.len() == self.page_len(block, page) as usize).then_some(bytes)
    }

    /// The part of `page` that lies in `range` of the block.
    fn slice(&self, page: u32, bytes: &Bytes, range: &Range<u32>) -> Bytes {
        let start = page * self.cache.page_bytes();
        let from = range.start.saturating_sub(start) as usize;
        let to = bytes.len().min((range.end - start) as usize);
        bytes.slice(from..to)
    }

    /// The rest of a read that found `pieces` in memory and then missed a page.
    async fn read_missing(
        &self,
        block: BlockId,
        range: Range<u32>,
        pages: Range<u32>,
        mut pieces: Vec<Bytes>,
    ) -> Result<Vec<Bytes>, ObjectError> {
        let first = pages.start + pieces.len() as u32;
        let mut found: Vec<Option<Bytes>> = vec![None];
        found.extend((first + 1..pages.end).map(|page| self.in_memory(block, page)));
        for page in found.iter().flatten() {
            self.counters.hit(1, page.len());
        }
        self.fill(block, first, &mut found).await?;
        for (page, bytes) in (first..).zip(found.iter().flatten()) {
            pieces.push(self.slice(page, bytes, &range));
        }
        assert_eq!(
            total_len(&pieces),
            range.len(),
            "{range:?} of {block:?} is read as a whole"
        );
        Ok(pieces)
    }

    /// Finds all pages that `found`, from page `first` on, lacks.
    async fn fill(
        &self,
        block: BlockId,
        first: u32,
        found: &mut [Option<Bytes>],
    ) -> Result<(), ObjectError> {
        let mut alone = false;
        loop {
            let lacking = (first..)
                .zip(found.iter())
                .filter(|(_, page)| page.is_none());
            let missing = lacking.map(|(page, _)| page);
            let flights = &self.cache.flights;
            let claims = flights.claim(block, missing, |page| self.in_memory(block, page));
            if claims.is_empty() {
                return Ok(());
            }
            let (mut leads, mut follows) = (Vec::new(), Vec::new());
            for claim in claims {
                match claim {
                    Claim::Cached(page, bytes) => found[(page - first) as usize] = Some(bytes),
                    Claim::Lead(lead) => leads.push(lead),
                    Claim::Follow(page, flight) => follows.push((page, flight)),
                }
            }
            for (page, bytes) in self.fetch_all(block, leads).await? {
                found[(page - first) as usize] = Some(bytes);
            }
            match self.follow_all(follows, first, found).await {
                Ok(()) => {}
                // The flight was another's, for more than our pages perhaps: see for ourselves, once.
                Err(_) if !alone => alone = true,
                Err(error) => return Err(error),
            }
        }
    }

    /// Fetches the pages of all leads at once.
    async fn fetch_all(
        &self,
        block: BlockId,
        leads: Vec<Lead<'_>>,
    ) -> Result<Vec<(u32, Bytes)>, ObjectError> {
        let fetches = leads.into_iter().map(|lead| -> LocalFuture<'_, _> {
            Box::pin(async move {
                let pages = lead.pages();
                let fetched = self.fetch(block, pages.clone()).await;
                lead.land(fetched.clone());
                Ok(pages.zip(fetched?).collect::<Vec<_>>())
            })
        });
        let fetched = join_all(fetches.collect()).await;
        fetched
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map(|runs| runs.concat())
    }

    /// Waits for pages that others fetch. Those whose leader gave up stay missing.
    async fn follow_all(
        &self,
        follows: Vec<(u32, Arc<Flight>)>,
        first: u32,
        found: &mut [Option<Bytes>],
    ) -> Result<(), ObjectError> {
        for (page, flight) in follows {
            self.counters.waits.increment(1);
            if let Some(landed) = flight.wait(page).await {
                found[(page - first) as usize] = Some(landed?);
            }
        }
        Ok(())
    }

    /// Consecutive pages from the cache's disk, else from the store; in memory afterwards.
    async fn fetch(&self, block: BlockId, pages: Range<u32>) -> Result<Vec<Bytes>, ObjectError> {
        let mut fetched = self.fetch_from_disk(block, pages.clone()).await;
        let mut at = 0;
        while at < fetched.len() {
            if fetched[at].is_some() {
                at += 1;
                continue;
            }
            let run = fetched[at..]
                .iter()
                .take_while(|page| page.is_none())
                .count();
            let start = pages.start + at as u32;
            let got = self
                .fetch_from_store(block, start..start + run as u32)
                .await?;
            for page in got {
                fetched[at] = Some(page);
                at += 1;
            }
        }
        Ok(fetched.into_iter().flatten().collect())
    }

    /// What the cache's disk has of some pages, all asked for at once.
    async fn fetch_from_disk(&self, block: BlockId, pages: Range<u32>) -> Vec<Option<Bytes>> {
        let asked: Vec<_> = pages
            .clone()
            .map(|page| PageKey::new(block, page))
            .map(|key| {
                self.cache
                    .may_be_on_disk(key)
                    .then(|| self.cache.on_disk(key))
            })
            .collect();
        let mut found = Vec::with_capacity(asked.len());
        for (page, asked) in pages.zip(asked) {
            let bytes = match asked {
                Some(asked) => asked.await,
                None => None,
            };
            let len = self.page_len(block, page) as usize;
            let bytes = bytes.filter(|bytes| bytes.len() == len);
            if bytes.is_some() {
                self.counters.disk_hits.increment(1);
                self.counters.disk_hit_bytes.increment(len as u64);
            }
            found.push(bytes);
        }
        found
    }

    async fn fetch_from_store(
        &self,
        block: BlockId,
        pages: Range<u32>,
    ) -> Result<Vec<Bytes>, ObjectError> {
        let got = self
            .store
            .get_pages(block, pages.clone(), self.cache.page_bytes())
            .await?;
        self.counters.misses.increment(pages.len() as u64);
        self.counters.miss_bytes.increment(total_len(&got) as u64);
        assert_eq!(
            got.len(),
            pages.len(),
            "the store returns all pages or an error"
        );
        for (page, bytes) in pages.zip(&got) {
            assert_eq!(
                bytes.len(),
                self.page_len(block, page) as usize,
                "page {page} of {block:?}"
            );
            self.cache.insert(PageKey::new(block, page), bytes.clone());
        }
        Ok(got)
    }

    /// Puts a block that was just stored into the cache.
    async fn keep(&self, block: BlockId, data: Vec<Bytes>) {
        let page_bytes = self.cache.page_bytes();
        let pages = if block.size <= INLINE_COPY_BYTES {
            split(&data, page_bytes)
        } else {
            blocking(move || split(&data, page_bytes)).await
        };
        for (page, bytes) in (0..).zip(pages) {
            self.cache.insert(PageKey::new(block, page), bytes);
        }
    }
}

impl BlockIo for Blocks {
    fn block_bytes(&self) -> u32 {
        self.store.layout().block_bytes
    }

    async fn read(&self, block: BlockId, range: Range<u32>) -> Result<Vec<Bytes>, ObjectError> {
        assert!(
            range.start <= range.end && range.end <= block.size,
            "{range:?} is in {block:?}"
        );
        let page_bytes = self.cache.page_bytes();
        let pages = range.start / page_bytes..range.end.div_ceil(page_bytes);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut pieces = Vec::with_capacity(pages.len());
        for page in pages.clone() {
            let Some(bytes) = self.in_memory(block, page) else {
                self.counters.hit(pieces.len() as u64, total_len(&pieces));
                return self.read_missing(block, range, pages, pieces).await;
            };
            pieces.push(self.slice(page, &bytes, &range));
        }
        self.counters.hit(pieces.len() as u64, range.len());
        Ok(pieces)
    }

    async fn write(&self, block: BlockId, data: Vec<Bytes>) -> Result<(), ObjectError> {
        let keep = self.writes == CacheWrites::All || block.size < self.block_bytes();
        // Clones of references, not of bytes.
        let kept = if keep { data.clone() } else { Vec::new() };
        self.store.put_block(block, data).await?;
        if keep {
            self.keep(block, kept).await;
        }
        Ok(())
    }

    async fn remove(&self, block: BlockId) -> Result<(), ObjectError> {
        for page in 0..block.size.div_ceil(self.cache.page_bytes()) {
            self.cache.remove(PageKey::new(block, page));
        }
        self.store.delete_block(block).await
    }
}

/// The bytes of all pieces in pages of their own.
fn split(data: &[Bytes], page_bytes: u32) -> Vec<Bytes> {
    let page_bytes = page_bytes as usize;
    let mut pages = Vec::with_capacity(total_len(data).div_ceil(page_bytes));
    let mut left = total_len(data);
    let mut page = BytesMut::with_capacity(left.min(page_bytes));
    for mut piece in data.iter().cloned() {
        while !piece.is_empty() {
            let part = piece.split_to(piece.len().min(page_bytes - page.len()));
            page.extend_from_slice(&part);
            left -= part.len();
            if page.len() == page_bytes {
                let next = BytesMut::with_capacity(left.min(page_bytes));
                pages.push(std::mem::replace(&mut page, next).freeze());
            }
        }
    }
    if !page.is_empty() {
        pages.push(page.freeze());
    }
    pages
}

/// Runs all to their end at once; results in their order.
async fn join_all<T>(mut futures: Vec<LocalFuture<'_, T>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut all_ready = true;
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if result.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *result = Some(value),
                    Poll::Pending => all_ready = false,
                }
            }
        }
        if all_ready {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

/// The counters of `cache`'s table. Hits are counted here first: adding each one to a number that all cores
/// share would cost more than the hit.
struct Counters {
    hits_here: Cell<u64>,
    hit_bytes_here: Cell<u64>,
    hits: Counter,
    hit_bytes: Counter,
    disk_hits: Counter,
    disk_hit_bytes: Counter,
    misses: Counter,
    miss_bytes: Counter,
    waits: Counter,
}

impl Counters {
    fn new() -> Counters {
        Counters {
            hits_here: Cell::new(0),
            hit_bytes_here: Cell::new(0),
            hits: metrics::counter!("sluice_cache_hits_total"),
            hit_bytes: metrics::counter!("sluice_cache_hit_bytes_total"),
            disk_hits: metrics::counter!("sluice_cache_disk_hits_total"),
            disk_hit_bytes: metrics::counter!("sluice_cache_disk_hit_bytes_total"),
            misses: metrics::counter!("sluice_cache_misses_total"),
            miss_bytes: metrics::counter!("sluice_cache_miss_bytes_total"),
            waits: metrics::counter!("sluice_cache_waits_total"),
        }
    }

    fn hit(&self, pages: u64, bytes: usize) {
        self.hits_here.set(self.hits_here.get() + pages);
        self.hit_bytes_here
            .set(self.hit_bytes_here.get() + bytes as u64);
        if self.hits_here.get() >= HITS_BATCH {
            self.flush();
        }
    }

    fn flush(&self) {
        self.hits.increment(self.hits_here.take());
        self.hit_bytes.increment(self.hit_bytes_here.take());
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests;
