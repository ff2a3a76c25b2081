//! Whether the kernel may keep its page cache at an open: yes if the content is the one that it saw at an
//! earlier open, which a change of mtime tells (every change of content changes it, on every client).
//!
//! A fixed table: an inode that shares its slot with another is forgotten, which costs the kernel a page
//! cache, never correctness. One relaxed-size lock (of 64) for each open.

use parking_lot::Mutex;
use sluice_meta::types::{Ino, Timestamp};

const LOCKS: usize = 64;
const SLOTS_PER_LOCK: usize = 1024;

/// Last content seen at an open, for some inodes.
#[derive(Debug)]
pub struct KeepCache {
    slots: Vec<Mutex<Vec<(Ino, Timestamp, u64)>>>,
}

impl Default for KeepCache {
    fn default() -> Self {
        let empty = || vec![(Ino::NONE, Timestamp::default(), 0); SLOTS_PER_LOCK];
        KeepCache {
            slots: (0..LOCKS).map(|_| Mutex::new(empty())).collect(),
        }
    }
}

impl KeepCache {
    /// Notes an open that sees this mtime and length; whether the last one saw the same.
    pub fn seen(&self, ino: Ino, mtime: Timestamp, length: u64) -> bool {
        let index = ino.0 as usize;
        let mut slots = self.slots[index % LOCKS].lock();
        let slot = &mut slots[(index / LOCKS) % SLOTS_PER_LOCK];
        let now = (ino, mtime, length);
        let same = *slot == now;
        *slot = now;
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_content_is_kept() {
        let cache = KeepCache::default();
        let at = |sec| Timestamp { sec, nsec: 5 };
        assert!(!cache.seen(Ino(9), at(1), 10));
        assert!(cache.seen(Ino(9), at(1), 10));
        assert!(!cache.seen(Ino(9), at(2), 10));
        let twin = Ino(9 + (LOCKS * SLOTS_PER_LOCK) as u64);
        assert!(!cache.seen(twin, at(2), 10));
        assert!(!cache.seen(Ino(9), at(2), 10), "forgotten, not mixed up");
    }
}
