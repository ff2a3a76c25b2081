//! What others left behind: sessions that stopped beating with the files they kept, and deleted files whose
//! data nobody took away.
//!
//! Clients agree on who looks by a job lock in the store ([`Counter::LastCleanupSessions`],
//! [`Counter::LastCleanupFiles`]): whoever moves its time forward runs the job. A run that fails midway is
//! simply over; what it left is found by the next one.

use std::time::Duration;

use super::DeletedFile;
use crate::client::{Meta, MetaResult};
use crate::engine::{Check, Counter, Engine, Item, Key, Record, Scan, Txn, Write};
use crate::limits;
use crate::types::SessionId;

impl Meta {
    /// Deletes what stale sessions sustained, then the sessions. Does nothing if any client has looked within
    /// the last 0.9 beats. Answers files to reclaim.
    pub async fn clean_stale_sessions(&self, beat: Duration) -> MetaResult<Vec<DeletedFile>> {
        self.check_writable()?;
        let period = beat.mul_f64(0.9).as_secs().cast_signed();
        let mut files = Vec::new();
        if !self.take_job(Counter::LastCleanupSessions, period).await? {
            return Ok(files);
        }
        let now = self.now().sec;
        // Our own entry may look stale after the machine slept; the next beat refreshes it.
        let own = self.shared.session();
        let page = self
            .engine
            .scan(&Scan::Sessions, None, limits::SESSION_PAGE)
            .await?;
        for item in page.items {
            let Item::Session { sid, expire, .. } = item else {
                continue;
            };
            if expire >= now || Some(sid) == own {
                continue;
            }
            match self.drop_session(sid, &mut files).await {
                Ok(()) => tracing::info!(sid = sid.0, "cleaned up a stale session"),
                Err(error) => tracing::warn!(sid = sid.0, %error, "a stale session remains"),
            }
        }
        Ok(files)
    }

    /// Deletes what a session sustains, then the session itself.
    pub(crate) async fn drop_session(
        &self,
        sid: SessionId,
        files: &mut Vec<DeletedFile>,
    ) -> MetaResult<()> {
        let record = self
            .engine
            .read(&[Key::Sustained(sid)])
            .await?
            .pop()
            .flatten();
        for ino in record.map(Record::inodes).transpose()?.unwrap_or_default() {
            if let Some(length) = self.delete_sustained(sid, ino).await? {
                files.push(DeletedFile { ino, length });
            }
        }
        let writes = vec![Write::DeleteSession(sid)];
        self.commit(Txn {
            checks: Vec::new(),
            writes,
        })
        .await?;
        Ok(())
    }

    /// Deleted files whose data should be gone by now: to be reclaimed. Does nothing if any client has
    /// collected them within the last [`limits::DELETED_FILES_PERIOD`] seconds.
    pub async fn collect_deleted_files(&self) -> MetaResult<Vec<DeletedFile>> {
        self.check_writable()?;
        let mut files = Vec::new();
        if !self
            .take_job(Counter::LastCleanupFiles, limits::DELETED_FILES_PERIOD)
            .await?
        {
            return Ok(files);
        }
        let newest = self.now().sec - limits::DELETED_FILE_AGE;
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&Scan::DeletedFiles, cursor.as_ref(), 1000)
                .await?;
            files.extend(page.items.into_iter().filter_map(|item| match item {
                Item::DeletedFile { ino, length, time } if time < newest => {
                    Some(DeletedFile { ino, length })
                }
                _ => None,
            }));
            match page.next {
                Some(next) if files.len() < limits::DELETED_FILES_MAX => cursor = Some(next),
                _ => return Ok(files),
            }
        }
    }

    /// Whether this client is to run a job now that runs at most once in `period` seconds.
    pub(super) async fn take_job(&self, lock: Counter, period: i64) -> MetaResult<bool> {
        let record = self
            .engine
            .read(&[Key::Counter(lock)])
            .await?
            .pop()
            .flatten();
        let last = record.map(Record::count).transpose()?.unwrap_or(0);
        let now = self.now().sec;
        if last > now - period {
            return Ok(false);
        }
        let txn = Txn {
            checks: vec![Check::Counter {
                counter: lock,
                expect: last,
            }],
            writes: vec![Write::SetCounter {
                counter: lock,
                value: now,
            }],
        };
        Ok(self.commit(txn).await?.is_some())
    }
}
