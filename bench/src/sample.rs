//! One measurement, and the median of several.

use serde::Serialize;

use crate::accounting::Usage;

/// What a case's work says of itself.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct Work {
    /// Files made, reads answered, and so on.
    pub(crate) operations: u64,
    /// Bytes moved; 0 where only metadata is.
    pub(crate) bytes: u64,
    /// From the first request to the last answer; an fsync that belongs to the case is inside.
    pub(crate) seconds: f64,
    /// Half of the operations were answered within.
    pub(crate) latency_us_p50: f64,
    /// 99 of 100 operations were answered within.
    pub(crate) latency_us_p99: f64,
    /// Used by the processes or threads that asked.
    pub(crate) client: Usage,
}

/// One run of one case on one target.
#[derive(Serialize, Clone, Debug)]
pub(crate) struct Sample {
    /// Name of the case.
    pub(crate) case: &'static str,
    /// Name of the target.
    pub(crate) target: String,
    /// From 0.
    pub(crate) round: u32,
    /// The work and its client.
    #[serde(flatten)]
    pub(crate) work: Work,
    /// Time of a `sync` of the whole machine right after the work: what was acknowledged and not durable yet.
    pub(crate) drain_seconds: f64,
    /// Used by the target's servers from before the work until after the drain.
    pub(crate) server: Usage,
    /// Processor time of the whole machine in the same span: kernel threads and bystanders included.
    pub(crate) machine_cpu_seconds: f64,
}

impl Sample {
    /// Operations per second.
    pub(crate) fn rate(&self) -> f64 {
        per(self.work.operations as f64, self.work.seconds)
    }

    /// MiB per second.
    pub(crate) fn throughput(&self) -> f64 {
        per(
            self.work.bytes as f64 / f64::from(1 << 20),
            self.work.seconds,
        )
    }

    /// A total of this sample for each operation.
    pub(crate) fn per_operation(&self, total: f64) -> f64 {
        per(total, self.work.operations as f64)
    }
}

/// 0 where nothing was done, so that tables never show infinities.
fn per(total: f64, count: f64) -> f64 {
    if count > 0.0 { total / count } else { 0.0 }
}

/// Middle, least and greatest of some values.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub(crate) struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        Some(Spread {
            median: (values[lower] + values[upper]) / 2.0,
            min,
            max,
        })
    }
}

/// The value that `percent` of the sorted values do not exceed; 0 of no values.
pub(crate) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_of_sorted_values() {
        let check = |values: &[f64], expected: Option<(f64, f64, f64)>| {
            let expected = expected.map(|(median, min, max)| Spread { median, min, max });
            assert_eq!(Spread::of(values.iter().copied()), expected);
        };
        check(&[], None);
        check(&[7.0], Some((7.0, 7.0, 7.0)));
        check(&[9.0, 1.0, 4.0], Some((4.0, 1.0, 9.0)));
        check(&[4.0, 2.0, 1.0, 100.0], Some((3.0, 1.0, 100.0)));
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 50), 50);
        assert_eq!(percentile(&hundred, 99), 99);
        assert_eq!(percentile(&[5], 50), 5);
        assert_eq!(percentile(&[5, 8], 99), 8);
        assert_eq!(percentile(&[], 50), 0);
    }
}
