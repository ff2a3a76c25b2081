//! Quotas as this process sees them: limits and usage of directories, users and groups, what is not written
//! to the store yet, and which directory is below which.
//!
//! Owned here: [`Quotas`], one table for all cores ([`crate::client::Shared::quotas`]). It is filled and
//! written by [`crate::jobs::quotas`] (at the session's start, with each heartbeat, every few seconds),
//! asked and charged by the operations (`ops/growth.rs`). Nothing here does I/O.
//!
//! Rules: usage in memory is what the store said last plus what this process has not written yet, so limits
//! are soft by what other clients do between two heartbeats. A change leaves `pending` only when it is known
//! to be in the store. A directory's quota that vanishes takes its pending changes along; users and groups
//! are accounted whether or not they have limits, as long as the volume says so.
//!
//! Cost while the volume has no quota: one load of an atomic for each question. Else a short lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::types::{Ino, Quota, QuotaKey};
use crate::volume::Setting;

mod parents;

use parents::Parents;

/// Some directory has a quota.
const DIRS: u8 = 1;
/// Users and groups are accounted.
const OWNERS: u8 = 2;

/// Space and inodes: an amount of usage, or a change of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes, in multiples of 4096.
    pub space: i64,
    /// Inodes; in directory quotas names.
    pub inodes: i64,
}

impl Usage {
    /// Whether it is nothing.
    pub fn is_none(self) -> bool {
        self == Usage::default()
    }
}

impl std::ops::Add for Usage {
    type Output = Usage;

    fn add(self, more: Usage) -> Usage {
        Usage {
            space: self.space.saturating_add(more.space),
            inodes: self.inodes.saturating_add(more.inodes),
        }
    }
}

impl std::ops::Neg for Usage {
    type Output = Usage;

    fn neg(self) -> Usage {
        Usage {
            space: self.space.saturating_neg(),
            inodes: self.inodes.saturating_neg(),
        }
    }
}

impl std::ops::Sub for Usage {
    type Output = Usage;

    fn sub(self, less: Usage) -> Usage {
        self + -less
    }
}

impl Quota {
    /// Without limits and usage.
    pub const UNLIMITED: Quota = Quota {
        max_space: -1,
        max_inodes: -1,
        used_space: 0,
        used_inodes: 0,
    };

    /// What is used.
    pub fn used(&self) -> Usage {
        Usage {
            space: self.used_space,
            inodes: self.used_inodes,
        }
    }

    /// The same limits with another usage.
    #[must_use]
    pub fn with_used(self, used: Usage) -> Quota {
        Quota {
            used_space: used.space,
            used_inodes: used.inodes,
            ..self
        }
    }

    /// Whether so much more goes beyond a limit. What does not grow always fits.
    pub fn refuses(&self, more: Usage) -> bool {
        let over = |limit: i64, used: i64, more: i64| {
            limit > 0 && more > 0 && used.saturating_add(more) > limit
        };
        over(self.max_space, self.used_space, more.space)
            || over(self.max_inodes, self.used_inodes, more.inodes)
    }
}

/// One quota: as the store has it, and what is to be added there.
#[derive(Clone, Copy, Debug)]
struct Tally {
    stored: Quota,
    pending: Usage,
}

impl Tally {
    fn now(&self) -> Quota {
        self.stored.with_used(self.stored.used() + self.pending)
    }
}

/// A batch of changes whose commit may or may not have been applied: whose, how much, the usage before.
pub(crate) type Doubt = Vec<(QuotaKey, Usage, Usage)>;

/// The quotas of a volume, shared by the cores of a process.
#[derive(Debug)]
pub struct Quotas {
    active: AtomicU8,
    table: Mutex<HashMap<QuotaKey, Tally>>,
    parents: Parents,
    /// Loading and writing exclude each other, for both replace what the table says of the store.
    pub(crate) upkeep: async_lock::Mutex<()>,
    /// The last batch written, if its fate is unknown; its changes are still pending.
    pub(crate) doubt: Mutex<Doubt>,
}

impl Quotas {
    /// Nothing loaded yet; users and groups are accounted at once if `setting` says so.
    pub(crate) fn new(setting: &Setting) -> Quotas {
        let quotas = Quotas {
            active: AtomicU8::new(0),
            table: Mutex::new(HashMap::new()),
            parents: Parents::default(),
            upkeep: async_lock::Mutex::new(()),
            doubt: Mutex::new(Vec::new()),
        };
        quotas.load(setting, HashMap::new());
        quotas
    }

    fn is_active(&self, what: u8) -> bool {
        self.active.load(Ordering::Acquire) & what != 0
    }

    /// Whether any directory has a quota.
    pub fn watches_dirs(&self) -> bool {
        self.is_active(DIRS)
    }

    /// Whether users and groups are accounted.
    pub fn watches_owners(&self) -> bool {
        self.is_active(OWNERS)
    }

    /// A quota with its usage, pending changes included.
    pub fn get(&self, key: QuotaKey) -> Option<Quota> {
        self.table.lock().get(&key).map(Tally::now)
    }

    /// Users and groups that have limits, in order; at most `most` of them.
    pub fn limited_owners(&self, most: usize) -> Vec<(QuotaKey, Quota)> {
        let table = self.table.lock();
        let limited = |(key, tally): (&QuotaKey, &Tally)| {
            let (is_dir, now) = (matches!(key, QuotaKey::Dir(_)), tally.now());
            let limits = now.max_space > 0 || now.max_inodes > 0;
            (limits && !is_dir).then_some((*key, now))
        };
        let mut found: Vec<_> = table.iter().filter_map(limited).collect();
        found.sort_unstable_by_key(|(key, _)| *key);
        found.truncate(most);
        found
    }

    /// Whether a quota has no room for so much more.
    pub(crate) fn refuses(&self, key: QuotaKey, more: Usage) -> bool {
        self.get(key).is_some_and(|quota| quota.refuses(more))
    }

    /// Charges usage. A directory without a quota is not charged.
    pub(crate) fn charge(&self, key: QuotaKey, change: Usage) {
        if change.is_none() {
            return;
        }
        let mut table = self.table.lock();
        if matches!(key, QuotaKey::Dir(_)) && !table.contains_key(&key) {
            return;
        }
        let tally = table.entry(key).or_insert(Tally {
            stored: Quota::UNLIMITED,
            pending: Usage::default(),
        });
        tally.pending = tally.pending + change;
    }

    /// Takes over what the store holds. Pending changes stay, but for directories whose quota is gone.
    pub(crate) fn load(&self, setting: &Setting, loaded: HashMap<QuotaKey, Quota>) {
        let mut table = self.table.lock();
        table.retain(|key, tally| match key {
            QuotaKey::Dir(_) => loaded.contains_key(key),
            QuotaKey::User(_) | QuotaKey::Group(_) => {
                setting.user_group_quota && (loaded.contains_key(key) || !tally.pending.is_none())
            }
        });
        for (key, stored) in loaded {
            let pending = table.get(&key).map_or(Usage::default(), |it| it.pending);
            table.insert(key, Tally { stored, pending });
        }
        self.activate(setting, &table);
    }

    fn activate(&self, setting: &Setting, table: &HashMap<QuotaKey, Tally>) {
        let dirs = setting.dir_stats && table.keys().any(|key| matches!(key, QuotaKey::Dir(_)));
        let dirs = if dirs { DIRS } else { 0 };
        let owners = if setting.user_group_quota { OWNERS } else { 0 };
        self.active.store(dirs | owners, Ordering::Release);
        if dirs == 0 {
            // Nobody keeps the map up to date from now on.
            self.parents.clear();
        }
    }

    /// All pending changes, for writing. They stay pending until [`Quotas::written`].
    pub(crate) fn pending(&self) -> Vec<(QuotaKey, Usage)> {
        let table = self.table.lock();
        let pending = table.iter().map(|(key, tally)| (*key, tally.pending));
        let mut pending: Vec<_> = pending.filter(|(_, it)| !it.is_none()).collect();
        // Clients that write the same quotas lock them in the same order.
        pending.sort_unstable_by_key(|(key, _)| *key);
        pending
    }

    /// The store has this change now, and `stored` in all.
    pub(crate) fn written(&self, key: QuotaKey, change: Usage, stored: Usage) {
        if let Some(tally) = self.table.lock().get_mut(&key) {
            tally.pending = tally.pending - change;
            tally.stored = tally.stored.with_used(stored);
        }
    }

    /// A quota that the store does not hold any more, of a directory that may be gone itself.
    pub(crate) fn forget(&self, key: QuotaKey) {
        self.table.lock().remove(&key);
    }

    /// Remembers that a directory is in another.
    pub(crate) fn learn(&self, dir: Ino, parent: Ino) {
        if self.watches_dirs() {
            self.parents.learn(dir, parent);
        }
    }

    /// A directory is gone, with its quota.
    pub(crate) fn removed(&self, dir: Ino) {
        self.parents.forget(dir);
        self.forget(QuotaKey::Dir(dir));
    }

    /// The directories with a quota from `dir` upwards, nearest first; and the one whose parent is not known,
    /// if the walk had to end there. Nothing in the trash counts for a quota.
    pub(crate) fn above(&self, dir: Ino) -> (Vec<Ino>, Option<Ino>) {
        let (path, unknown) = self.parents.upwards(dir);
        let table = self.table.lock();
        let limited = |dir: &Ino| table.contains_key(&QuotaKey::Dir(*dir));
        (path.into_iter().filter(limited).collect(), unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(space: i64, inodes: i64) -> Usage {
        Usage { space, inodes }
    }

    fn limited(max_space: i64, max_inodes: i64, used: Usage) -> Quota {
        let limits = Quota {
            max_space,
            max_inodes,
            ..Quota::UNLIMITED
        };
        limits.with_used(used)
    }

    fn watching(quotas: &[(QuotaKey, Quota)]) -> Quotas {
        let setting = Setting {
            dir_stats: true,
            user_group_quota: true,
            ..Setting::default()
        };
        let table = Quotas::new(&setting);
        table.load(&setting, quotas.iter().copied().collect());
        table
    }

    const DIR: QuotaKey = QuotaKey::Dir(Ino(5));
    const USER: QuotaKey = QuotaKey::User(1000);

    #[test]
    fn owners_with_limits_are_listed_with_what_is_pending() {
        let group = QuotaKey::Group(3);
        let table = watching(&[
            (DIR, limited(1, 1, usage(0, 0))),
            (USER, limited(0, 9, usage(4096, 1))),
            (group, limited(9, 0, usage(0, 0))),
            (QuotaKey::User(2), Quota::UNLIMITED),
        ]);
        table.charge(USER, usage(4096, 1));
        let user = (USER, limited(0, 9, usage(8192, 2)));
        let all = vec![user, (group, limited(9, 0, usage(0, 0)))];
        assert_eq!(table.limited_owners(10), all);
        assert_eq!(table.limited_owners(1), [user]);
    }

    #[test]
    fn limits_refuse_only_growth_beyond_them() {
        let quota = limited(8192, 3, usage(4096, 2));
        for (more, refused) in [
            (usage(4096, 1), false),
            (usage(8192, 0), true),
            (usage(0, 2), true),
            (usage(-4096, 1), false),
            (usage(i64::MAX, 0), true),
        ] {
            assert_eq!(quota.refuses(more), refused, "{more:?}");
        }
        // Already beyond: what does not grow still fits, and 0 and -1 are no limits.
        assert!(!limited(4096, 1, usage(9 << 20, 9)).refuses(usage(0, 0)));
        assert!(!limited(0, -1, usage(1 << 40, 9)).refuses(usage(1 << 40, 1)));
    }

    #[test]
    fn changes_stay_pending_until_they_are_written() {
        let table = watching(&[(DIR, limited(1 << 20, -1, usage(4096, 1)))]);
        table.charge(DIR, usage(8192, 2));
        assert_eq!(table.get(DIR).unwrap().used(), usage(12288, 3));
        assert_eq!(table.pending(), [(DIR, usage(8192, 2))]);
        // More comes while the batch is written, and somebody else has written, too.
        table.charge(DIR, usage(4096, 1));
        table.written(DIR, usage(8192, 2), usage(20480, 5));
        assert_eq!(table.pending(), [(DIR, usage(4096, 1))]);
        assert_eq!(table.get(DIR).unwrap().used(), usage(24576, 6));
    }

    #[test]
    fn a_vanished_directory_quota_takes_its_changes_along_and_owners_keep_theirs() {
        let table = watching(&[(DIR, limited(1, 1, usage(0, 0)))]);
        table.charge(DIR, usage(4096, 1));
        table.charge(USER, usage(4096, 1));
        let setting = Setting {
            dir_stats: true,
            user_group_quota: true,
            ..Setting::default()
        };
        table.load(&setting, HashMap::new());
        assert_eq!(table.pending(), [(USER, usage(4096, 1))]);
        assert!(!table.watches_dirs() && table.watches_owners());
        // Charging what has no quota makes none.
        table.charge(DIR, usage(4096, 1));
        assert_eq!(table.get(DIR), None);
    }

    #[test]
    fn directory_quotas_count_only_with_statistics() {
        let table = watching(&[(DIR, limited(1, 1, usage(0, 0)))]);
        assert!(table.watches_dirs());
        let quotas = HashMap::from([(DIR, limited(1, 1, usage(0, 0)))]);
        table.load(&Setting::default(), quotas);
        assert!(!table.watches_dirs() && !table.watches_owners());
    }

    #[test]
    fn quotas_above_a_directory_nearest_first() {
        let quota = limited(1, 1, usage(0, 0));
        let root = QuotaKey::Dir(Ino::ROOT);
        let table = watching(&[(DIR, quota), (root, quota)]);
        table.learn(Ino(7), Ino(6));
        table.learn(Ino(6), Ino(5));
        assert_eq!(table.above(Ino(7)), (vec![Ino(5)], Some(Ino(5))));
        table.learn(Ino(5), Ino::ROOT);
        assert_eq!(table.above(Ino(7)), (vec![Ino(5), Ino::ROOT], None));
        table.learn(Ino(6), Ino(Ino::TRASH.0 + 1));
        assert_eq!(table.above(Ino(7)), (vec![], None));
        table.removed(Ino(5));
        assert_eq!(table.above(Ino(5)), (vec![], Some(Ino(5))));
    }
}
