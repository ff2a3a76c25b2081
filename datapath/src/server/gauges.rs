//! Usage of the volume, quotas of the mount's root, and those of users and groups as gauges, under JuiceFS's
//! names, refreshed with each heartbeat.

use std::collections::HashSet;

use sluice_meta::types::{Quota, QuotaKey};

use crate::shard::Shard;

/// Most users and groups that are shown: who has more asks `sluice quota list`.
const OWNERS_MAX: usize = 1000;

/// What was shown.
#[derive(Default)]
pub struct Gauges {
    quotas: HashSet<QuotaKey>,
}

impl Gauges {
    /// Shows the present state. Bounded as `statfs` is.
    pub async fn refresh(&mut self, shard: &Shard) {
        let (meta, root) = (shard.meta(), shard.root());
        match meta.statfs(root).await {
            Ok(usage) => {
                let used = usage.total - usage.available;
                set("juicefs_used_space", used);
                set("juicefs_total_space", usage.total);
                set("juicefs_used_inodes", usage.inodes_used);
                let inodes = usage.inodes_used.saturating_add(usage.inodes_available);
                set("juicefs_total_inodes", inodes);
            }
            Err(error) => tracing::debug!(%error, "usage is not shown"),
        }
        let dirs = meta.quotas_known_above(root).into_iter();
        let dirs = dirs.map(|(dir, quota)| (QuotaKey::Dir(dir), quota));
        let owners = meta.shared().quotas.limited_owners(OWNERS_MAX);
        let mut now = HashSet::new();
        for (key, quota) in dirs.chain(owners) {
            set_quota(key, quota);
            now.insert(key);
        }
        // A gauge cannot be taken back; no limit and no usage is what there is.
        let nothing = Quota {
            max_space: 0,
            max_inodes: 0,
            ..Quota::UNLIMITED
        };
        for gone in self.quotas.difference(&now) {
            set_quota(*gone, nothing);
        }
        self.quotas = now;
    }
}

fn set(name: &'static str, value: u64) {
    metrics::gauge!(name).set(value as f64);
}

fn set_quota(key: QuotaKey, quota: Quota) {
    let (label, id, names) = match key {
        QuotaKey::Dir(dir) => (
            "inode",
            dir.0,
            [
                "juicefs_dir_quota_max_space_bytes",
                "juicefs_dir_quota_max_inodes",
                "juicefs_dir_quota_used_space_bytes",
                "juicefs_dir_quota_used_inodes",
            ],
        ),
        QuotaKey::User(uid) => (
            "uid",
            uid.into(),
            [
                "juicefs_user_quota_max_space_bytes",
                "juicefs_user_quota_max_inodes",
                "juicefs_user_quota_used_space_bytes",
                "juicefs_user_quota_used_inodes",
            ],
        ),
        QuotaKey::Group(gid) => (
            "gid",
            gid.into(),
            [
                "juicefs_group_quota_max_space_bytes",
                "juicefs_group_quota_max_inodes",
                "juicefs_group_quota_used_space_bytes",
                "juicefs_group_quota_used_inodes",
            ],
        ),
    };
    let values = [
        quota.max_space,
        quota.max_inodes,
        quota.used_space,
        quota.used_inodes,
    ];
    for (name, value) in names.into_iter().zip(values) {
        metrics::gauge!(name, label => id.to_string()).set(value as f64);
    }
}
