//! Which reads are legal while many threads write one file: a register per page, and the order of time.
//!
//! Every write fills a whole page with a stamp that no other write uses. Around every call a clock that all
//! threads share ticks, so that two calls are ordered if one ended before the other began, and concurrent
//! otherwise. A read of a page may answer the stamp of a write that had begun when the read ended, unless
//! another write of that page lies wholly between the two. A truncation is a write of zeros, to every page it
//! cuts off. A page whose bytes are not one stamp is torn, which is never legal.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// Size of a page, the unit of a stamp.
pub const PAGE_BYTES: usize = 4096;

/// What a page without data reads as.
const ZEROS: u64 = 0;

#[derive(Clone, Copy, Debug)]
struct Event {
    stamp: u64,
    begun: u64,
    /// `u64::MAX` while it is under way.
    ended: u64,
}

/// The history of the pages of one file.
pub struct Oracle {
    clock: AtomicU64,
    stamps: AtomicU64,
    pages: Vec<Mutex<Vec<Event>>>,
}

/// A call that changes pages and has begun.
pub struct Change {
    first: usize,
    count: usize,
    /// What it writes; 0 for zeros.
    pub stamp: u64,
    begun: u64,
}

impl Oracle {
    /// A file of this many pages, all zeros.
    pub fn new(pages: usize) -> Oracle {
        let empty = Event {
            stamp: ZEROS,
            begun: 0,
            ended: 0,
        };
        Oracle {
            clock: AtomicU64::new(1),
            stamps: AtomicU64::new(1),
            pages: (0..pages).map(|_| Mutex::new(vec![empty])).collect(),
        }
    }

    /// The time now; every call gives a later one.
    pub fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Before a write of `count` pages from page `first` on.
    pub fn begin_write(&self, first: usize, count: usize) -> Result<Change> {
        let stamp = self.stamps.fetch_add(1, Ordering::SeqCst);
        self.begin(first, count, stamp)
    }

    /// Before a truncation to the start of page `first`.
    pub fn begin_cut(&self, first: usize) -> Result<Change> {
        self.begin(first, self.pages.len() - first, ZEROS)
    }

    fn begin(&self, first: usize, count: usize, stamp: u64) -> Result<Change> {
        let begun = self.now();
        for page in first..first + count {
            self.page(page)?.push(Event {
                stamp,
                begun,
                ended: u64::MAX,
            });
        }
        Ok(Change {
            first,
            count,
            stamp,
            begun,
        })
    }

    /// After it.
    pub fn end(&self, change: &Change) -> Result<()> {
        let ended = self.now();
        for page in change.first..change.first + change.count {
            let mut events = self.page(page)?;
            let event = events
                .iter_mut()
                .find(|event| event.begun == change.begun)
                .context("a change that never began")?;
            event.ended = ended;
        }
        Ok(())
    }

    /// Judges what a read, begun at `begun` and ended by now, found in `page`.
    pub fn judge(&self, page: usize, bytes: &[u8], begun: u64) -> Result<()> {
        let ended = self.now();
        let stamp = stamp_of(bytes).with_context(|| format!("page {page}"))?;
        let events = self.page(page)?;
        let legal = |event: &Event| {
            let hidden = events
                .iter()
                .any(|other| other.begun > event.ended && other.ended < begun);
            event.stamp == stamp && event.begun < ended && !hidden
        };
        if events.iter().any(legal) {
            return Ok(());
        }
        let latest = events
            .iter()
            .filter(|event| event.ended < begun)
            .max_by_key(|event| event.ended);
        let read = events.iter().filter(|event| event.stamp == stamp);
        bail!(
            "page {page}: a read from {begun} to {ended} found stamp {stamp}, written {:?}; last written before it: \
             {latest:?}",
            read.max_by_key(|event| event.begun)
        )
    }

    fn page(&self, page: usize) -> Result<std::sync::MutexGuard<'_, Vec<Event>>> {
        let page = self.pages.get(page).context("beyond the file")?;
        page.lock().map_err(|_| anyhow!("another thread panicked"))
    }
}

/// Fills a page-aligned buffer with stamped pages, the first of which is page `first` of the file.
pub fn stamp(buffer: &mut [u8], first: usize, stamp: u64) {
    for (index, page) in buffer.chunks_mut(PAGE_BYTES).enumerate() {
        let word = stamp << 24 | (first + index) as u64;
        for bytes in page.chunks_mut(8) {
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
    }
}

/// The stamp of a page; an error if it is torn.
fn stamp_of(bytes: &[u8]) -> Result<u64> {
    let words = || {
        bytes.chunks_exact(8).map(|word| {
            word.iter()
                .rev()
                .fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
        })
    };
    let first = words().next().context("an empty page")?;
    if let Some(at) = words().position(|word| word != first) {
        let other = words().nth(at).unwrap_or_default();
        bail!(
            "torn: stamp {} up to byte {}, then stamp {}",
            first >> 24,
            at * 8,
            other >> 24
        );
    }
    Ok(first >> 24)
}

/// Judges that a page lies where it was written to: stamps hold the page's number.
pub fn check_place(page: usize, bytes: &[u8]) -> Result<()> {
    let stamp = stamp_of(bytes)?;
    let mut wanted = vec![0; bytes.len()];
    self::stamp(&mut wanted, page, stamp);
    ensure!(
        stamp == ZEROS || wanted == bytes,
        "page {page} holds another page's data, stamp {stamp}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: usize, stamped: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        if stamped != ZEROS {
            stamp(&mut bytes, number, stamped);
        }
        bytes
    }

    #[test]
    fn old_values_are_legal_only_while_the_new_one_is_under_way() {
        let oracle = Oracle::new(4);
        let one = oracle.begin_write(1, 2).expect("begin");
        let before = oracle.now();
        oracle.judge(1, &page(1, ZEROS), before).expect("not yet");
        oracle
            .judge(1, &page(1, one.stamp), before)
            .expect("already");
        oracle.end(&one).expect("end");
        oracle
            .judge(1, &page(1, ZEROS), before)
            .expect("began before");
        let after = oracle.now();
        oracle.judge(2, &page(2, one.stamp), after).expect("there");
        oracle.judge(2, &page(2, ZEROS), after).expect_err("lost");
        let cut = oracle.begin_cut(2).expect("begin");
        oracle.end(&cut).expect("end");
        let after = oracle.now();
        oracle
            .judge(2, &page(2, one.stamp), after)
            .expect_err("cut off");
        oracle.judge(1, &page(1, one.stamp), after).expect("kept");
        oracle
            .judge(1, &page(1, 99), after)
            .expect_err("never written");
    }

    #[test]
    fn torn_and_misplaced_pages_are_found() {
        let mut torn = page(3, 5);
        torn[2048..].copy_from_slice(&page(3, 6)[2048..]);
        let error = stamp_of(&torn).expect_err("torn").to_string();
        assert!(error.contains("up to byte 2048"), "{error}");
        check_place(3, &page(3, 5)).expect("in place");
        check_place(4, &page(3, 5)).expect_err("misplaced");
    }
}
