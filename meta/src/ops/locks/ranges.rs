//! The algebra of byte ranges: what one owner's POSIX locks on a file become when a range of them is set or
//! cleared. Pure: no I/O, no clock, no await.
//!
//! An owner's ranges are in order and do not overlap; two that adjoin and agree in type and process are one.
//! So setting a range cuts what it meets at both of its ends (upgrade, downgrade and release in the middle of a
//! lock are the same step), and joins what it then continues.

use crate::types::PlockRange;

/// What the bytes of a range shall be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Paint {
    /// Not locked.
    Clear,
    /// Locked.
    Lock {
        /// For writing, or for reading.
        write: bool,
        /// By this process.
        pid: u32,
    },
}

/// `ranges` after the bytes `start..=end` became `paint`. Needs `start <= end`.
pub(crate) fn set(ranges: &[PlockRange], start: u64, end: u64, paint: Paint) -> Vec<PlockRange> {
    let mut out = Vec::with_capacity(ranges.len() + 2);
    for range in ranges {
        if let Some(before) = start.checked_sub(1).filter(|_| range.start < start) {
            out.push(PlockRange {
                end: range.end.min(before),
                ..*range
            });
        }
        if let Some(behind) = end.checked_add(1).filter(|_| range.end > end) {
            out.push(PlockRange {
                start: range.start.max(behind),
                ..*range
            });
        }
    }
    if let Paint::Lock { write, pid } = paint {
        out.push(PlockRange {
            start,
            end,
            write,
            pid,
        });
    }
    out.sort_unstable();
    join(out)
}

/// Makes one of neighbours that adjoin and agree in type and process.
fn join(ranges: Vec<PlockRange>) -> Vec<PlockRange> {
    let mut out: Vec<PlockRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if continues(last, &range) => last.end = range.end,
            Some(_) | None => out.push(range),
        }
    }
    out
}

fn continues(last: &PlockRange, next: &PlockRange) -> bool {
    last.end.checked_add(1) == Some(next.start) && (last.write, last.pid) == (next.write, next.pid)
}

/// The first of `ranges` that somebody else may not have while a lock of `start..=end` is held.
pub(crate) fn in_the_way(
    ranges: &[PlockRange],
    start: u64,
    end: u64,
    write: bool,
) -> Option<&PlockRange> {
    let mut met = ranges
        .iter()
        .filter(|range| range.start <= end && start <= range.end);
    met.find(|range| write || range.write)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of the model's file; the last one stands for the largest offset there is.
    const BYTES: u64 = 12;

    /// Offset of the model's byte `at`: the end of the file is where sums overflow.
    fn offset(at: u64) -> u64 {
        if at == BYTES - 1 { u64::MAX } else { at }
    }

    fn range(start: u64, end: u64, write: bool, pid: u32) -> PlockRange {
        PlockRange {
            start,
            end,
            write,
            pid,
        }
    }

    fn lock(write: bool, pid: u32) -> Paint {
        Paint::Lock { write, pid }
    }

    fn byte(ranges: &[PlockRange], at: u64) -> Paint {
        let of = ranges
            .iter()
            .find(|range| range.start <= at && at <= range.end);
        of.map_or(Paint::Clear, |range| lock(range.write, range.pid))
    }

    fn check_form(ranges: &[PlockRange]) {
        assert!(ranges.iter().all(|range| range.start <= range.end));
        for pair in ranges.windows(2) {
            assert!(pair[0].end < pair[1].start, "{ranges:?}");
            assert!(!continues(&pair[0], &pair[1]), "{ranges:?}");
        }
    }

    fn paints() -> impl Strategy<Value = Paint> {
        prop_oneof![
            Just(Paint::Clear),
            (any::<bool>(), 1..3_u32).prop_map(|(write, pid)| lock(write, pid)),
        ]
    }

    proptest! {
        #[test]
        fn ranges_are_what_a_byte_array_says(
            steps in prop::collection::vec((0..BYTES, 0..BYTES, paints()), 1..30),
        ) {
            let mut model = [Paint::Clear; BYTES as usize];
            let mut ranges = Vec::new();
            for (a, b, paint) in steps {
                let (first, last) = (a.min(b), a.max(b));
                ranges = set(&ranges, offset(first), offset(last), paint);
                model[first as usize..=last as usize].fill(paint);
                check_form(&ranges);
                for (at, paint) in (0..).zip(model) {
                    prop_assert_eq!(byte(&ranges, offset(at)), paint, "byte {} of {:?}", at, &ranges);
                }
            }
        }

        #[test]
        fn a_conflict_is_a_byte_that_both_want(
            held in prop::collection::vec((0..BYTES, 0..BYTES, paints()), 1..6),
            (a, b, write) in (0..BYTES, 0..BYTES, any::<bool>()),
        ) {
            let mut ranges = Vec::new();
            for (a, b, paint) in held {
                ranges = set(&ranges, offset(a.min(b)), offset(a.max(b)), paint);
            }
            let (first, last) = (a.min(b), a.max(b));
            let expected = (first..=last).any(|at| match byte(&ranges, offset(at)) {
                Paint::Clear => false,
                Paint::Lock { write: held, .. } => held || write,
            });
            let found = in_the_way(&ranges, offset(first), offset(last), write);
            prop_assert_eq!(found.is_some(), expected);
        }
    }

    #[test]
    fn a_lock_is_split_upgraded_and_joined_again() {
        let read = set(&[], 0, 99, lock(false, 7));
        let upgraded = set(&read, 40, 59, lock(true, 7));
        assert_eq!(
            upgraded,
            [
                range(0, 39, false, 7),
                range(40, 59, true, 7),
                range(60, 99, false, 7)
            ]
        );
        assert_eq!(set(&upgraded, 40, 59, lock(false, 7)), read);
        assert_eq!(
            set(&read, 40, 59, Paint::Clear),
            [range(0, 39, false, 7), range(60, 99, false, 7)]
        );
        // Another process that shares the table of files: its locks are its own to report.
        assert_eq!(
            set(&read, 100, 109, lock(false, 8)),
            [range(0, 99, false, 7), range(100, 109, false, 8)]
        );
        assert_eq!(set(&upgraded, 0, u64::MAX, Paint::Clear), []);
    }
}
