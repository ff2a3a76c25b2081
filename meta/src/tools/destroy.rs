//! `destroy`: the metadata's part of the end of a volume. Its objects go first, by the caller, so that a
//! volume that is half gone can still be named and destroyed again.

use super::scan_all;
use super::status::{Status, status};
use crate::engine::{Engine, Item, Scan};
use crate::types::Timestamp;
use crate::volume::VolumeError;

/// Why a volume was not destroyed.
#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    /// Of the volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Another volume.
    #[error(
        "the volume here has the UUID {found} and not {wanted}, so it is left alone; check the URL, or take the UUID that `sluice status` shows"
    )]
    OtherVolume {
        /// The volume's.
        found: String,
        /// As given.
        wanted: String,
    },
    /// Somebody uses it.
    #[error(
        "the volume is in use by {count} sessions (one of them {first}), which would lose their data; unmount them, or give --force"
    )]
    InUse {
        /// How many.
        count: usize,
        /// One of them.
        first: String,
    },
}

/// Looks at the volume and refuses what must not be destroyed. Sessions that are stale do not count; none do
/// with `force`.
pub async fn examine(
    engine: &impl Engine,
    uuid: &str,
    force: bool,
    now: Timestamp,
) -> Result<Status, DestroyError> {
    let status = status(engine).await?;
    let found = &status.setting.uuid;
    if found != uuid {
        return Err(DestroyError::OtherVolume {
            found: found.clone(),
            wanted: uuid.to_owned(),
        });
    }
    let mut live = 0;
    for item in scan_all(engine, &Scan::Sessions)
        .await
        .map_err(VolumeError::from)?
    {
        live += usize::from(matches!(item, Item::Session { expire, .. } if expire >= now.sec));
    }
    match status.sessions.first() {
        Some(session) if live > 0 && !force => Err(DestroyError::InUse {
            count: live,
            first: format!("{} on {}", session.info.mount_point, session.info.host_name),
        }),
        _ => Ok(status),
    }
}

/// Removes every record. To be repeated if it fails.
pub async fn destroy(engine: &impl Engine) -> Result<(), DestroyError> {
    engine.destroy().await.map_err(VolumeError::from)?;
    engine.sync().await.map_err(VolumeError::from)?;
    Ok(())
}
