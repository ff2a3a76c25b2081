//! What the command line does to a volume as a whole: create or change it, look at it, set quotas.
//!
//! Offline work over the engine's verbs, without a session. Everything fails with a
//! [`VolumeError`](crate::volume::VolumeError), whose text is meant for the person at the terminal.

use crate::engine::{Engine, EngineResult, Item, Key, Record, Scan};
use crate::types::{Ino, QuotaKind, SessionId};
use crate::volume::{Setting, VolumeError};

pub mod check;
pub mod config;
pub mod destroy;
pub mod dump;
pub mod format;
pub mod leaks;
pub mod load;
mod number_set;
pub mod quota;
pub mod restore;
pub mod status;
pub mod summary;

/// The setting of the volume behind `engine`, checked for a mount.
pub async fn load_volume(engine: &impl Engine) -> Result<Setting, VolumeError> {
    let raw = read_setting(engine)
        .await?
        .ok_or(VolumeError::NotFormatted)?;
    Setting::parse(&raw)
}

/// Whether any directory has a quota that limits something: then directory statistics must stay on.
pub async fn has_dir_quotas(engine: &impl Engine) -> Result<bool, VolumeError> {
    let quotas = scan_all(engine, &Scan::Quotas(QuotaKind::Dir)).await?;
    let limits = |item: &Item| matches!(item, Item::Quota { quota, .. } if quota.max_space > 0 || quota.max_inodes > 0);
    Ok(quotas.iter().any(limits))
}

/// Everything that `scan` enumerates, for what is known to be small: sessions, quotas, notes.
pub(crate) async fn scan_all(engine: &impl Engine, scan: &Scan) -> EngineResult<Vec<Item>> {
    let mut items = Vec::new();
    let mut cursor = None;
    loop {
        let page = engine.scan(scan, cursor.as_ref(), 1000).await?;
        items.extend(page.items);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(items),
        }
    }
}

/// Inodes that a session holds open although they are deleted, in order.
pub(crate) async fn sustained_of(engine: &impl Engine, sid: SessionId) -> EngineResult<Vec<Ino>> {
    let record = engine.read(&[Key::Sustained(sid)]).await?.pop().flatten();
    let mut inodes = record.map(Record::inodes).transpose()?.unwrap_or_default();
    inodes.sort_unstable();
    Ok(inodes)
}

/// The setting's text.
pub(crate) async fn read_setting(
    engine: &impl Engine,
) -> Result<Option<bytes::Bytes>, VolumeError> {
    let mut records = engine.read(&[Key::Setting]).await?;
    Ok(records.pop().flatten().map(Record::bytes).transpose()?)
}
