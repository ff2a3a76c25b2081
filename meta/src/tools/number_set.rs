//! A set of numbers that were handed out by a counter: inodes, slices.

use std::collections::HashMap;

/// A set of numbers from a counter, so dense: one bit for each number of a range of 32768 in which there is
/// any, that is 4 KiB for each such range.
#[derive(Default)]
pub(crate) struct NumberSet {
    ranges: HashMap<u64, Box<[u64; 512]>>,
}

impl NumberSet {
    /// Whether the number is new.
    pub(crate) fn insert(&mut self, number: u64) -> bool {
        let range = self
            .ranges
            .entry(number >> 15)
            .or_insert_with(|| Box::new([0; 512]));
        let word = &mut range[(number >> 6 & 511) as usize];
        let bit = 1 << (number & 63);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Whether the number is there.
    pub(crate) fn contains(&self, number: u64) -> bool {
        self.ranges
            .get(&(number >> 15))
            .is_some_and(|range| range[(number >> 6 & 511) as usize] & (1 << (number & 63)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::NumberSet;

    #[test]
    fn numbers_are_new_once() {
        let mut set = NumberSet::default();
        for number in [0, 1, 63, 64, 32767, 32768, u64::MAX, 1 << 40] {
            assert!(set.insert(number), "{number}");
            assert!(!set.insert(number), "{number}");
        }
        assert!(!set.contains(2) && set.contains(64));
    }
}
