//! `status`: the setting without its secrets, the sessions, and the volume's usage; or one session with what it
//! holds. In the JSON shape of JuiceFS's command of the same name.
//!
//! Round trips: setting, sums and a page of sessions for the whole; for one session a page of sessions, its
//! sustained inodes and a page of its locks.

use bytes::Bytes;
use serde::Serialize;

use super::load_volume;
use crate::engine::{Counter, Engine, Item, Key, Record, Scan};
use crate::jobs::session::{SessionInfo, rfc3339};
use crate::limits;
use crate::ops::StatFs;
use crate::types::{Flock, Ino, Plock, PlockRange, SessionId, Timestamp};
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

/// A session with what it holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SessionDetail {
    /// The session.
    #[serde(flatten)]
    pub session: SessionStatus,
    /// Files without links that it keeps open.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sustained: Vec<u64>,
    /// Its BSD locks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flocks: Vec<HeldFlock>,
    /// Its POSIX locks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub plocks: Vec<HeldPlock>,
}

/// A BSD lock (`flock(2)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HeldFlock {
    /// On which inode.
    pub inode: u64,
    /// The kernel's number for the open file.
    pub owner: u64,
    /// `R` for a shared lock, `W` for an exclusive one.
    pub ltype: &'static str,
}

/// One owner's POSIX locks (`fcntl(2)`) on an inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HeldPlock {
    /// On which inode.
    pub inode: u64,
    /// The kernel's number for the process' table of files.
    pub owner: u64,
    /// By start, without overlap.
    pub records: Vec<HeldRange>,
}

/// A locked range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HeldRange {
    /// 0 for reading, 1 for writing, as `F_RDLCK` and `F_WRLCK`.
    pub r#type: u32,
    /// The process that took it.
    pub pid: u32,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive.
    pub end: u64,
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

/// Looks at one session; `None` if there is none of that number.
pub async fn session(
    engine: &impl Engine,
    sid: SessionId,
) -> Result<Option<SessionDetail>, VolumeError> {
    load_volume(engine).await?;
    let session = sessions(engine).await?;
    let Some(session) = session.into_iter().find(|session| session.sid == sid.0) else {
        return Ok(None);
    };
    let sustained = super::sustained_of(engine, sid).await?;
    let mut detail = SessionDetail {
        session,
        sustained: sustained.into_iter().map(|ino| ino.0).collect(),
        flocks: Vec::new(),
        plocks: Vec::new(),
    };
    for item in super::scan_all(engine, &Scan::SessionLocks(sid)).await? {
        match item {
            Item::Flock { ino, lock } => detail.flocks.push(held_flock(ino, &lock)),
            Item::Plock { ino, lock } => detail.plocks.push(held_plock(ino, &lock)),
            _ => {}
        }
    }
    detail.flocks.sort_by_key(|lock| (lock.inode, lock.owner));
    detail.plocks.sort_by_key(|lock| (lock.inode, lock.owner));
    Ok(Some(detail))
}

fn held_flock(ino: Ino, lock: &Flock) -> HeldFlock {
    HeldFlock {
        inode: ino.0,
        owner: lock.owner,
        ltype: if lock.exclusive { "W" } else { "R" },
    }
}

fn held_plock(ino: Ino, lock: &Plock) -> HeldPlock {
    let record = |range: &PlockRange| HeldRange {
        r#type: u32::from(range.write),
        pid: range.pid,
        start: range.start,
        end: range.end,
    };
    HeldPlock {
        inode: ino.0,
        owner: lock.owner,
        records: lock.ranges.iter().map(record).collect(),
    }
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
