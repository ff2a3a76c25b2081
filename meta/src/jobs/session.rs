//! This process's session: registered at mount, kept alive by heartbeats, ended at unmount.
//!
//! A session is what other clients know of us. While its entry is fresh, files that were deleted while we
//! hold them open stay; after [`limits::SESSION_BEATS`] missed beats anybody may take them away. A mount that
//! was only slow comes back with its next beat, without those files.
//!
//! The heartbeat also carries news the other way: the setting is read again and changes of it take effect,
//! or tell the server to stop ([`StopReason`]) when going on could harm the volume.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future;
use serde::{Deserialize, Serialize};

use super::DeletedFile;
use crate::client::{Meta, MetaResult};
use crate::engine::{Counter, Engine, Key, Record, Txn, Write};
use crate::limits;
use crate::types::{SessionId, Timestamp};
use crate::volume::{CLIENT_VERSION, Setting, VolumeError};

/// What a session says of itself, in the form that JuiceFS's `status` reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SessionInfo {
    /// The JuiceFS release we follow, with our own version as its build, which comparisons ignore.
    pub version: String,
    /// Name of the machine.
    pub host_name: String,
    /// Its addresses.
    #[serde(rename = "IPAddrs", skip_serializing_if = "Vec::is_empty")]
    pub ip_addrs: Vec<String>,
    /// Where the volume is mounted.
    pub mount_point: String,
    /// Since when, RFC 3339.
    pub mount_time: String,
    /// By which process.
    #[serde(rename = "ProcessID")]
    pub process_id: u64,
}

impl Default for SessionInfo {
    /// Nothing known. A time is a time all the same: readers in Go would refuse an empty one.
    fn default() -> Self {
        SessionInfo {
            version: String::new(),
            host_name: String::new(),
            ip_addrs: Vec::new(),
            mount_point: String::new(),
            mount_time: "0001-01-01T00:00:00Z".into(),
            process_id: 0,
        }
    }
}

impl SessionInfo {
    /// Describes this process; the caller may add addresses.
    pub fn of_this_process(mount_point: &str, now: Timestamp) -> SessionInfo {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        SessionInfo {
            version: format!("{CLIENT_VERSION}+sluice-{}", env!("CARGO_PKG_VERSION")),
            host_name: host.trim_end().into(),
            ip_addrs: Vec::new(),
            mount_point: mount_point.into(),
            mount_time: rfc3339(now),
            process_id: u64::from(std::process::id()),
        }
    }
}

/// Why a mount must not go on.
#[derive(Debug, thiserror::Error)]
pub enum StopReason {
    /// The setting is gone.
    #[error(
        "the volume's setting has vanished from the metadata store, as if the volume was destroyed; unmount, and check the store"
    )]
    Vanished,
    /// Another volume took its place.
    #[error(
        "the metadata store now holds another volume (UUID {is}, was {was}); unmount, since open files belong to the old one"
    )]
    OtherVolume {
        /// UUID at mount.
        was: String,
        /// UUID now.
        is: String,
    },
    /// Not to be honoured by this client any more: a newer layout, or damage.
    #[error("the volume's setting was changed: {0}")]
    Setting(VolumeError),
    /// A feature was turned on that a writer has to keep up and that we do not build.
    #[error("{} was turned on for the volume, which this client cannot keep up when it writes; unmount, and mount again with --read-only or with JuiceFS", .0.join(" and "))]
    Unsupported(Vec<&'static str>),
}

/// What reading the setting again came to.
#[derive(Debug)]
pub enum Reload {
    /// As before.
    Unchanged,
    /// Changed; the new values are in force ([`crate::client::Shared::setting`]).
    Changed,
    /// The mount has to stop.
    Stop(StopReason),
}

/// A registered session.
#[derive(Debug)]
pub struct Session {
    sid: SessionId,
    info: Bytes,
    beat: Duration,
}

impl Session {
    /// Registers this process, which will send a heartbeat every `beat`. From now on unlinked open files are
    /// kept. Read-only mounts have no session.
    pub async fn register(meta: &Meta, info: &SessionInfo, beat: Duration) -> MetaResult<Session> {
        meta.check_writable()?;
        let sid = SessionId(meta.engine.alloc(Counter::NextSession, 1).await?);
        let info = serde_json::to_vec(info)
            .expect("strings and numbers always serialise")
            .into();
        let session = Session { sid, info, beat };
        session.put(meta).await?;
        meta.shared.session.store(sid.0, Ordering::Release);
        meta.refresh_usage().await?;
        meta.load_quotas().await?;
        Ok(session)
    }

    /// Its number.
    pub fn sid(&self) -> SessionId {
        self.sid
    }

    /// Keeps the session alive and reads setting, usage and quotas again: all asked at once, one round trip
    /// unless there are more quotas than a page holds.
    pub async fn heartbeat(&self, meta: &Meta) -> MetaResult<Reload> {
        let (put, reload) = future::zip(self.put(meta), meta.reload_setting()).await;
        put?;
        reload
    }

    /// Ends the session after the last file was closed: flushes this core's statistics, deletes what it still
    /// sustains, writes the usage that all cores have charged and forgets it. If anything fails, the session stays
    /// for others to clean up when it is stale.
    pub async fn end(self, meta: &Meta) -> MetaResult<Vec<DeletedFile>> {
        meta.flush_dir_stats().await?;
        meta.flush_quotas().await?;
        let mut files = Vec::new();
        meta.drop_session(self.sid, &mut files).await?;
        // What was sustained is not charged any more.
        meta.flush_quotas().await?;
        meta.shared.session.store(0, Ordering::Release);
        Ok(files)
    }

    async fn put(&self, meta: &Meta) -> MetaResult<()> {
        let expire = (self.beat * limits::SESSION_BEATS).as_secs().cast_signed();
        let expire = meta.now().sec.saturating_add(expire);
        let info = Some(self.info.clone());
        let writes = vec![Write::PutSession {
            sid: self.sid,
            expire,
            info,
        }];
        meta.commit(Txn {
            checks: Vec::new(),
            writes,
        })
        .await?;
        Ok(())
    }
}

impl Meta {
    /// Reads setting, usage and quotas again and puts them in force. Also for read-only mounts, which have no
    /// session. All of it is asked at once; quotas once more if the setting has turned some on or off.
    pub async fn reload_setting(&self) -> MetaResult<Reload> {
        let setting = [Key::Setting];
        let usage = future::zip(self.refresh_usage(), self.load_quotas());
        let (setting, (usage, quotas)) = future::zip(self.engine.read(&setting), usage).await;
        let record = setting?.pop().flatten();
        let reload = match record.map(Record::bytes).transpose()? {
            Some(raw) => self.apply_setting(&raw),
            None => Reload::Stop(StopReason::Vanished),
        };
        usage?;
        match reload {
            Reload::Unchanged => quotas?,
            Reload::Changed => self.load_quotas().await?,
            Reload::Stop(_) => {}
        }
        Ok(reload)
    }

    fn apply_setting(&self, raw: &[u8]) -> Reload {
        let new = match Setting::decode(raw) {
            Ok(new) => new,
            Err(error) => return Reload::Stop(StopReason::Setting(error)),
        };
        let old = self.shared.setting();
        if new.uuid != old.uuid {
            let (was, is) = (old.uuid.clone(), new.uuid);
            return Reload::Stop(StopReason::OtherVolume { was, is });
        }
        if new == *old {
            return Reload::Unchanged;
        }
        let unsupported = new.unsupported_for_writing();
        if !self.shared.options.read_only && !unsupported.is_empty() {
            return Reload::Stop(StopReason::Unsupported(unsupported));
        }
        if new.enable_acl && !old.enable_acl {
            tracing::warn!(
                "POSIX ACLs were turned on for the volume: the kernel checks those of this mount only after it is \
                 mounted again"
            );
        }
        *self.shared.setting.write() = Arc::new(new);
        Reload::Changed
    }
}

/// A time in UTC as RFC 3339 writes it, without trailing zeros in the fraction.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    let (days, second) = (time.sec.div_euclid(86_400), time.sec.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut fraction = String::new();
    if time.nsec != 0 {
        fraction = format!(".{:09}", time.nsec);
        fraction.truncate(fraction.trim_end_matches('0').len());
    }
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Year, month and day of a day counted from 1970-01-01. Years are counted from March here, so that the leap
/// day is a year's last; 400 years have 146 097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_text() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_399, 500_000_000, "2000-02-28T23:59:59.5Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_795_381_943, 690_466_286, "2026-11-22T21:12:23.690466286Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
        ];
        for (sec, nsec, text) in cases {
            assert_eq!(rfc3339(Timestamp { sec, nsec }), text);
        }
    }
}
