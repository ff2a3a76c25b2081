//! Usage of the volume, and whether there is room for more.
//!
//! What `df` shows below a directory with a quota is that quota: total and used are those of the nearest one
//! from the mount's root upwards, and no more is free than any of them leaves.
//!
//! The volume's sums live in two counters. This process keeps the values it saw last, from commits,
//! heartbeats and `statfs`; limits are checked against those, so they are soft by what other clients do
//! between two heartbeats.

use std::sync::atomic::Ordering;

use crate::client::{Meta, MetaResult};
use crate::engine::{Counter, Engine, Key, Record};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::ops::StatFs;
use crate::types::{Ino, Quota, QuotaKey};
use crate::volume::Setting;

/// Bytes shown in all while there is no capacity limit: 1 PiB, doubled while more than 80 % of it is used.
const UNLIMITED_BYTES: u64 = 1 << 50;
/// Inodes shown free while there is no limit: 10 Mi, doubled while more than four times that are used.
const UNLIMITED_INODES: u64 = 10 << 20;

impl StatFs {
    /// The same as seen below directories with these quotas, nearest first. What exceeds a limit is shown as
    /// its limit; negative usage counts as 0.
    #[must_use]
    pub fn below(mut self, quotas: &[Quota]) -> StatFs {
        let left = |limit: i64, used: i64| limit.saturating_sub(used.max(0)).max(0).unsigned_abs();
        for quota in quotas {
            if quota.max_space > 0 {
                self.available = self.available.min(left(quota.max_space, quota.used_space));
            }
            if quota.max_inodes > 0 {
                let free = left(quota.max_inodes, quota.used_inodes);
                self.inodes_available = self.inodes_available.min(free);
            }
        }
        if let Some(nearest) = quotas.first() {
            let used = nearest.used_space.max(0).unsigned_abs();
            self.total = used.saturating_add(self.available);
            self.inodes_used = nearest.used_inodes.max(0).unsigned_abs();
        }
        self
    }

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
    /// Usage as a mount of directory `root` shows it. Two round trips at most, bounded by
    /// [`limits::STATFS_WAIT`]; while the store does not answer in time, from memory: `df` shall not hang.
    /// With `fast_statfs` the sums come from memory anyway, if they are known.
    pub async fn statfs(&self, root: Ino) -> MetaResult<StatFs> {
        let fresh = async {
            if !(self.shared.options.fast_statfs && self.knows_usage()) {
                self.refresh_usage().await?;
            }
            // From now on memory knows the way up.
            self.quota_dirs(root).await.map(drop)
        };
        let late = async {
            self.runtime.sleep(limits::STATFS_WAIT).await;
            Ok(())
        };
        match futures_lite::future::or(fresh, late).await {
            Ok(()) => {}
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "usage shown from memory")
            }
            Err(error) => return Err(error.into()),
        }
        Ok(self.statfs_known(root))
    }

    fn knows_usage(&self) -> bool {
        let sums = [&self.shared.used_space, &self.shared.total_inodes];
        sums.iter().any(|sum| sum.load(Ordering::Relaxed) != 0)
    }

    /// Quotas from `dir` upwards, nearest first, as far as memory knows.
    pub fn quotas_known_above(&self, dir: Ino) -> Vec<(Ino, Quota)> {
        let quotas = &self.shared.quotas;
        if !quotas.watches_dirs() {
            return Vec::new();
        }
        let quota = |dir: Ino| Some((dir, quotas.get(QuotaKey::Dir(dir))?));
        quotas.above(dir).0.into_iter().filter_map(quota).collect()
    }

    fn statfs_known(&self, root: Ino) -> StatFs {
        let limits = self.quotas_known_above(root);
        let limits: Vec<Quota> = limits.into_iter().map(|(_, quota)| quota).collect();
        let used = self.shared.used_space.load(Ordering::Relaxed);
        let inodes = self.shared.total_inodes.load(Ordering::Relaxed);
        StatFs::of(&self.shared.setting(), used, inodes).below(&limits)
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

    #[test]
    fn quotas_bound_what_is_shown() {
        const GIB: u64 = 1 << 30;
        let volume = StatFs {
            total: 100 * GIB,
            available: 90 * GIB,
            inodes_used: 1000,
            inodes_available: 5000,
        };
        let quota = |max_space: i64, used_space: i64, max_inodes, used_inodes| Quota {
            max_space: max_space << 30,
            used_space: used_space << 30,
            max_inodes,
            used_inodes,
        };
        // quotas, nearest first -> (total, available, inodes used, inodes free)
        let cases = [
            (vec![], (100, 90, 1000, 5000)),
            (vec![quota(10, 3, 50, 20)], (10, 7, 20, 30)),
            // The outer one leaves less; total and used stay those of the nearest.
            (
                vec![quota(10, 3, 50, 20), quota(20, 18, 30, 25)],
                (5, 2, 20, 5),
            ),
            // No limit of its own: what the volume has left.
            (vec![quota(0, 3, -1, 20)], (93, 90, 20, 5000)),
            // Used up and beyond.
            (vec![quota(10, 12, 5, 9)], (12, 0, 9, 0)),
            (vec![quota(10, -1, 5, -9)], (10, 10, 0, 5)),
        ];
        for (quotas, (total, available, used, free)) in cases {
            let shown = volume.below(&quotas);
            let expect = StatFs {
                total: total * GIB,
                available: available * GIB,
                inodes_used: used,
                inodes_available: free,
            };
            assert_eq!(shown, expect, "{quotas:?}");
        }
    }
}
