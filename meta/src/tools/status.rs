//! `status`: the setting without its secrets, the sessions, and the volume's usage, in the JSON shape of
//! JuiceFS's command of the same name.

use bytes::Bytes;
use serde::Serialize;

use super::load_volume;
use crate::engine::{Counter, Engine, Item, Key, Record, Scan};
use crate::jobs::session::{SessionInfo, rfc3339};
use crate::limits;
use crate::ops::StatFs;
use crate::types::Timestamp;
use crate::volume::{Setting, VolumeError};

/// All that `status` shows.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    /// The setting, secrets replaced by `removed`.
    pub setting: Setting,
    /// Registered sessions, by number. Read-only mounts do not register.
    pub sessions: Vec<SessionStatus>,
    /// Usage.
    pub stat: Usage,
}

/// A session: a mount, gateway or other client that may write.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SessionStatus {
    /// Its number.
    pub sid: u64,
    /// When it counts as dead unless it is heard of again, RFC 3339.
    pub expire: String,
    /// What it said of itself.
    #[serde(flatten)]
    pub info: SessionInfo,
}

/// The volume's usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Usage {
    /// Bytes used.
    pub used_space: u64,
    /// Bytes free.
    pub available_space: u64,
    /// Inodes used.
    pub used_inodes: u64,
    /// Inodes free.
    pub available_inodes: u64,
}

/// Looks at the volume behind `engine`.
pub async fn status(engine: &impl Engine) -> Result<Status, VolumeError> {
    let setting = load_volume(engine).await?;
    let sessions = sessions(engine).await?;
    let stat = usage(engine, &setting).await?;
    Ok(Status {
        setting: setting.without_secrets(),
        sessions,
        stat,
    })
}

async fn sessions(engine: &impl Engine) -> Result<Vec<SessionStatus>, VolumeError> {
    let mut sessions = Vec::new();
    let mut cursor = None;
    loop {
        let page = engine
            .scan(&Scan::Sessions, cursor.as_ref(), limits::SESSION_PAGE)
            .await?;
        for item in page.items {
            if let Item::Session { sid, expire, info } = item {
                let expire = rfc3339(Timestamp {
                    sec: expire,
                    nsec: 0,
                });
                sessions.push(SessionStatus {
                    sid: sid.0,
                    expire,
                    info: decode_info(&info),
                });
            }
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    sessions.sort_by_key(|session| session.sid);
    sessions.dedup_by_key(|session| session.sid);
    Ok(sessions)
}

/// A session whose description is lost or damaged is still shown: it may hold locks and open files.
fn decode_info(raw: &Bytes) -> SessionInfo {
    serde_json::from_slice(raw).unwrap_or_default()
}

async fn usage(engine: &impl Engine, setting: &Setting) -> Result<Usage, VolumeError> {
    let keys = [
        Key::Counter(Counter::UsedSpace),
        Key::Counter(Counter::TotalInodes),
    ];
    let mut sums = [0; 2];
    for (sum, record) in sums.iter_mut().zip(engine.read(&keys).await?) {
        *sum = record.map(Record::count).transpose()?.unwrap_or(0);
    }
    let stat = StatFs::of(setting, sums[0], sums[1]);
    Ok(Usage {
        used_space: stat.total - stat.available,
        available_space: stat.available,
        used_inodes: stat.inodes_used,
        available_inodes: stat.inodes_available,
    })
}
