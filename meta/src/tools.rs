//! What the command line does to a volume as a whole: create or change it, look at it.
//!
//! Offline work over the engine's verbs, without a session. Everything fails with a
//! [`VolumeError`](crate::volume::VolumeError), whose text is meant for the person at the terminal.

use crate::engine::{Engine, Item, Key, Record, Scan};
use crate::volume::{Setting, VolumeError};

pub mod format;
pub mod status;

/// The setting of the volume behind `engine`, checked for a mount.
pub async fn load_volume(engine: &impl Engine) -> Result<Setting, VolumeError> {
    let raw = read_setting(engine)
        .await?
        .ok_or(VolumeError::NotFormatted)?;
    Setting::parse(&raw)
}

/// Whether any directory has a quota that limits something; see [`Setting::unsupported_for_writing`].
pub async fn has_dir_quotas(engine: &impl Engine) -> Result<bool, VolumeError> {
    let mut cursor = None;
    loop {
        let page = engine.scan(&Scan::DirQuotas, cursor.as_ref(), 1000).await?;
        let limits = |item: &Item| matches!(item, Item::Quota { quota, .. } if quota.max_space > 0 || quota.max_inodes > 0);
        if page.items.iter().any(limits) {
            return Ok(true);
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(false),
        }
    }
}

/// The setting's text.
pub(crate) async fn read_setting(
    engine: &impl Engine,
) -> Result<Option<bytes::Bytes>, VolumeError> {
    let mut records = engine.read(&[Key::Setting]).await?;
    Ok(records.pop().flatten().map(Record::bytes).transpose()?)
}
