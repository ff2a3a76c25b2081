//! Usage of the volume, and whether there is room for more.
//!
//! The volume's sums live in two counters. This process keeps the values it saw last, from commits,
//! heartbeats and `statfs`; limits are checked against those, so they are soft by what other clients do
//! between two heartbeats.

use std::sync::atomic::Ordering;

use crate::client::{Meta, MetaResult};
use crate::engine::{Counter, Engine, Key, Record};
use crate::error::{EngineError, MetaError};
use crate::ops::StatFs;
use crate::volume::Setting;

/// Bytes shown in all while there is no capacity limit: 1 PiB, doubled while more than 80 % of it is used.
const UNLIMITED_BYTES: u64 = 1 << 50;
/// Inodes shown free while there is no limit: 10 Mi, doubled while more than four times that are used.
const UNLIMITED_INODES: u64 = 10 << 20;

impl StatFs {
    /// What a volume with this setting and these sums shows. Negative sums, which drift can leave, count as 0.
    pub fn of(setting: &Setting, used_space: i64, inodes: i64) -> StatFs {
        let used = used_space.max(0).unsigned_abs();
        let inodes_used = inodes.max(0).unsigned_abs();
        let total = match setting.capacity {
            0 => {
                let fits = |total: &u64| u128::from(*total) * 8 >= u128::from(used) * 10;
                doubled(UNLIMITED_BYTES, fits)
            }
            capacity => capacity.max(used),
        };
        let inodes_available = match setting.inodes {
            0 => doubled(UNLIMITED_INODES, |free| inodes_used.div_ceil(4) <= *free),
            limit => limit.saturating_sub(inodes_used),
        };
        StatFs {
            total,
            available: total - used,
            inodes_used,
            inodes_available,
        }
    }
}

fn doubled(start: u64, fits: impl Fn(&u64) -> bool) -> u64 {
    let doubles = std::iter::successors(Some(start), |value| value.checked_mul(2));
    let mut doubles = doubles.filter(|value| fits(value));
    doubles.next().unwrap_or(u64::MAX)
}

impl Meta {
    /// Usage of the volume. Answers from memory while the store cannot be reached: `df` shall not hang.
    pub async fn statfs(&self) -> MetaResult<StatFs> {
        match self.refresh_usage().await {
            Ok(()) => {}
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "usage shown from memory")
            }
            Err(error) => return Err(error.into()),
        }
        let used = self.shared.used_space.load(Ordering::Relaxed);
        let inodes = self.shared.total_inodes.load(Ordering::Relaxed);
        Ok(StatFs::of(&self.shared.setting(), used, inodes))
    }

    /// Reads the volume's sums into memory.
    pub(crate) async fn refresh_usage(&self) -> Result<(), EngineError> {
        let keys = [
            Key::Counter(Counter::UsedSpace),
            Key::Counter(Counter::TotalInodes),
        ];
        let known = [&self.shared.used_space, &self.shared.total_inodes];
        for (known, record) in known.into_iter().zip(self.engine.read(&keys).await?) {
            known.store(
                record.map(Record::count).transpose()?.unwrap_or(0),
                Ordering::Relaxed,
            );
        }
        Ok(())
    }

    /// `NoSpace` if the volume's limits have no room for so much more. Always fits what does not grow.
    pub(crate) fn check_room(&self, space: i64, inodes: i64) -> MetaResult<()> {
        let setting = self.shared.setting();
        let over = |limit: u64, used: i64, more: i64| {
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            limit > 0 && more > 0 && used.saturating_add(more) > limit
        };
        let used = self.shared.used_space.load(Ordering::Relaxed);
        let count = self.shared.total_inodes.load(Ordering::Relaxed);
        if over(setting.capacity, used, space) || over(setting.inodes, count, inodes) {
            return Err(MetaError::NoSpace);
        }
        Ok(())
    }

    /// After a commit that changed the used space by `delta`, to `value` if its result is known.
    pub(crate) fn note_used_space(&self, delta: i64, value: Option<i64>) {
        match value {
            Some(value) => self.shared.used_space.store(value, Ordering::Relaxed),
            None => drop(self.shared.used_space.fetch_add(delta, Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals() {
        const PIB: u64 = 1 << 50;
        const MI: u64 = 1 << 20;
        let tenths = |n: u64| PIB / 10 * n;
        // (capacity, inode limit, used, inodes) -> (total, available, inodes free)
        let cases = [
            (
                (0, 0, 364_605_440, 1640),
                (PIB, 1_125_899_542_237_184, 10 * MI),
            ),
            ((0, 0, -4096, -1), (PIB, PIB, 10 * MI)),
            (
                (0, 0, tenths(8).cast_signed(), 0),
                (PIB, PIB - tenths(8), 10 * MI),
            ),
            (
                (0, 0, tenths(9).cast_signed(), 0),
                (2 * PIB, 2 * PIB - tenths(9), 10 * MI),
            ),
            ((0, 0, i64::MAX, 40 << 20), (u64::MAX, 1 << 63, 10 * MI)),
            ((0, 0, 0, (40 << 20) + 1), (PIB, PIB, 20 * MI)),
            ((1000, 10, 400, 4), (1000, 600, 6)),
            ((1000, 10, 4000, 40), (4000, 0, 0)),
        ];
        for ((capacity, limit, used, inodes), (total, available, free)) in cases {
            let setting = Setting {
                capacity,
                inodes: limit,
                ..Setting::default()
            };
            let stat = StatFs::of(&setting, used, inodes);
            let shown = (stat.total, stat.available, stat.inodes_available);
            assert_eq!(shown, (total, available, free), "{used} {inodes}");
        }
    }
}
