//! Quotas between memory and store: loaded at the session's start and with each heartbeat, and the usage that
//! this process has charged written every [`limits::QUOTA_FLUSH`] and at the session's end.
//!
//! Usage is exact: a change stays pending until it is known to be in the store. A batch is one commit, so if
//! its answer is lost all of it was applied or none. Which of the two is asked of the usages: they are read
//! before a batch is written and again when its fate is unknown. Only if another client has changed every one
//! of them meanwhile does nothing tell; then the batch counts as written, for usage that is too low locks
//! nobody out, and the log says to run `quota check`.
//!
//! Round trips: loading reads a page for each kind in use; writing reads and commits once for
//! [`limits::QUOTA_BATCH`] quotas, and does nothing if nothing is pending.

use std::collections::HashMap;

use futures_lite::future;

use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Item, Key, Record, Scan, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::quota::Usage;
use crate::types::{Quota, QuotaKey, QuotaKind};

impl Meta {
    /// Takes over limits and usage from the store, as far as the setting has quotas in use.
    pub async fn load_quotas(&self) -> MetaResult<()> {
        let setting = self.shared.setting();
        let _upkeep = self.shared.quotas.upkeep.lock().await;
        let load = async |kind, in_use: bool| match in_use {
            true => quotas_of(&*self.engine, kind).await,
            false => Ok(HashMap::default()),
        };
        let owners = future::zip(
            load(QuotaKind::User, setting.user_group_quota),
            load(QuotaKind::Group, setting.user_group_quota),
        );
        let (dirs, (users, groups)) =
            future::zip(load(QuotaKind::Dir, setting.dir_stats), owners).await;
        let mut loaded = dirs?;
        loaded.extend(users?);
        loaded.extend(groups?);
        self.shared.quotas.load(&setting, loaded);
        Ok(())
    }

    /// Writes what this process has charged; answers to how many quotas. What could not be written stays
    /// pending.
    pub async fn flush_quotas(&self) -> MetaResult<usize> {
        let quotas = &self.shared.quotas;
        let nothing = quotas.pending().is_empty() && quotas.doubt.lock().is_empty();
        if nothing || self.shared.options.read_only {
            return Ok(0);
        }
        let _upkeep = quotas.upkeep.lock().await;
        self.settle_doubt().await?;
        let pending = quotas.pending();
        for batch in pending.chunks(limits::QUOTA_BATCH) {
            self.write_usage(batch).await?;
            self.settle_doubt().await?;
        }
        Ok(pending.len())
    }

    async fn write_usage(&self, batch: &[(QuotaKey, Usage)]) -> MetaResult<()> {
        let quotas = &self.shared.quotas;
        let before = self.read_usage(batch.iter().map(|(key, _)| *key)).await?;
        let mut doubt = Vec::with_capacity(batch.len());
        for (&(key, change), before) in batch.iter().zip(before) {
            match before {
                None if matches!(key, QuotaKey::Dir(_)) => quotas.forget(key),
                before => doubt.push((key, change, before.unwrap_or_default())),
            }
        }
        if doubt.is_empty() {
            return Ok(());
        }
        let add = |&(key, change, _): &(QuotaKey, Usage, Usage)| Write::AddQuotaUsage {
            key,
            space: change.space,
            inodes: change.inodes,
        };
        let txn = Txn {
            checks: Vec::new(),
            writes: doubt.iter().map(add).collect(),
        };
        match self.commit(txn).await {
            Ok(results) => {
                let known = results.unwrap_or_default();
                for (index, (key, change, before)) in doubt.into_iter().enumerate() {
                    match (key, known.get(index)) {
                        // Deleted since it was read.
                        (QuotaKey::Dir(_), Some(0)) => quotas.forget(key),
                        _ => quotas.written(key, change, before + change),
                    }
                }
                Ok(())
            }
            Err(MetaError::Engine(EngineError::UnknownFate { cause, .. })) => {
                tracing::debug!(cause, "looking whether usage of quotas was written");
                *quotas.doubt.lock() = doubt;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out whether a batch of unknown fate was applied, if there is one.
    async fn settle_doubt(&self) -> MetaResult<()> {
        let quotas = &self.shared.quotas;
        let doubt = quotas.doubt.lock().clone();
        if doubt.is_empty() {
            return Ok(());
        }
        let found = self.read_usage(doubt.iter().map(|(key, ..)| *key)).await?;
        let applied = verdict(&doubt, &found);
        for ((key, change, _), now) in doubt.into_iter().zip(found) {
            match now {
                None if matches!(key, QuotaKey::Dir(_)) => quotas.forget(key),
                now if applied => quotas.written(key, change, now.unwrap_or_default()),
                _ => {}
            }
        }
        quotas.doubt.lock().clear();
        Ok(())
    }

    async fn read_usage(
        &self,
        keys: impl Iterator<Item = QuotaKey>,
    ) -> Result<Vec<Option<Usage>>, EngineError> {
        let keys: Vec<Key> = keys.map(Key::Quota).collect();
        let records = self.engine.read(&keys).await?.into_iter();
        records
            .map(|record| {
                let quota = record.map(Record::quota).transpose()?;
                Ok(quota.map(|quota| quota.used()))
            })
            .collect()
    }
}

/// Whether a batch was applied, by the usages it changes: those that others did not touch are as before or
/// exactly so much more.
fn verdict(doubt: &[(QuotaKey, Usage, Usage)], found: &[Option<Usage>]) -> bool {
    let (mut as_before, mut as_after) = (0, 0);
    for ((key, change, before), now) in doubt.iter().zip(found) {
        let now = match (now, key) {
            (Some(now), _) => *now,
            // Deleted: tells nothing.
            (None, QuotaKey::Dir(_)) => continue,
            // Still not made.
            (None, QuotaKey::User(_) | QuotaKey::Group(_)) => Usage::default(),
        };
        as_before += usize::from(now == *before);
        as_after += usize::from(now == *before + *change);
    }
    if as_before + as_after == 0 {
        tracing::warn!(
            "the metadata store lost its answer to a change of usage and others changed the same quotas: run `quota check`"
        );
        return true;
    }
    as_after > as_before
}

/// All quotas of a kind.
pub(crate) async fn quotas_of(
    engine: &impl Engine,
    kind: QuotaKind,
) -> Result<HashMap<QuotaKey, Quota>, EngineError> {
    let mut found = HashMap::new();
    let mut cursor = None;
    loop {
        let page = engine
            .scan(&Scan::Quotas(kind), cursor.as_ref(), limits::QUOTA_PAGE)
            .await?;
        found.extend(page.items.into_iter().filter_map(|item| match item {
            Item::Quota { key, quota } => Some((key, quota)),
            _ => None,
        }));
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Ino;

    #[test]
    fn a_lost_answer_is_found_out_by_the_usages() {
        let usage = |space| Usage { space, inodes: 1 };
        let key = |n| QuotaKey::Dir(Ino(n));
        let doubt = vec![
            (key(1), usage(4096), usage(8192)),
            (key(2), usage(4096), usage(0)),
        ];
        let more = |space| Some(Usage { space, inodes: 2 });
        let same = |space| Some(Usage { space, inodes: 1 });
        for (found, applied) in [
            ([same(8192), same(0)], false),
            ([more(12288), more(4096)], true),
            // Another client changed one of them, too.
            ([more(12288), more(65536)], true),
            ([same(8192), more(65536)], false),
            // One is gone: the other tells.
            ([None, more(4096)], true),
            ([None, same(0)], false),
            // Nothing tells.
            ([more(65536), more(65536)], true),
        ] {
            assert_eq!(verdict(&doubt, &found), applied, "{found:?}");
        }
    }
}
