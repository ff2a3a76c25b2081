//! [`Plan`]: one attempt of an operation, as it grows from rules into a commit; and [`Meta::apply`], which
//! carries it out.
//!
//! An operation fills a plan without awaiting, then applies it once. Everything that only may change after
//! `Committed` travels with the plan and is done by `apply`: the process's copy of the volume's sums, pending
//! directory statistics, the mark of a sustained inode in the table of open ones.
//!
//! Pins: an inode that is about to lose its last link while a handle is open here must not be closed between
//! that decision and the commit. [`Meta::pin_open`] counts one more handle; `apply` gives it back in every
//! case, through `Meta::close` if it turned out to be the last, so that the inode is then deleted there.

use std::sync::atomic::Ordering;

use crate::client::{Meta, MetaResult};
use crate::engine::{Check, Counter, Engine, Key, Outcome, Record, Txn, Write};
use crate::types::{Attr, Dentry, DirStat, Ino, SessionId, Timestamp};

use super::rules;

/// Checks and writes of one attempt, with what follows from its success.
#[derive(Default)]
pub(crate) struct Plan {
    txn: Txn,
    stats: Vec<(Ino, DirStat)>,
    space: i64,
    inodes: i64,
    pinned: Option<Ino>,
    /// Which check is the one of a removed directory's emptiness: if it fails, the answer is `NotEmpty`,
    /// for all checks before it held.
    pub(crate) emptiness: Option<usize>,
    /// Which check says that a name in the trash is free.
    pub(crate) trash_name: Option<usize>,
}

/// How a plan ended.
pub(crate) enum Applied {
    /// Everything is done.
    Committed {
        /// One for each write.
        results: Vec<i64>,
        /// Length of the pinned file, if giving back the pin deleted it.
        deleted: Option<u64>,
    },
    /// Nothing happened.
    Conflict {
        /// Index of the failed check.
        check: usize,
        /// The inode it is about.
        ino: Ino,
    },
}

impl Plan {
    /// Relies on a fact. Answers the index of the check.
    pub(crate) fn check(&mut self, check: Check) -> usize {
        self.txn.checks.push(check);
        self.txn.checks.len() - 1
    }

    /// Adds an effect. Answers the index of the write.
    pub(crate) fn write(&mut self, write: Write) -> usize {
        self.txn.writes.push(write);
        self.txn.writes.len() - 1
    }

    /// Changes the volume's sums.
    pub(crate) fn charge(&mut self, space: i64, inodes: i64) {
        self.space += space;
        self.inodes += inodes;
    }

    /// Changes a directory's statistics, after the commit.
    pub(crate) fn note(&mut self, dir: Ino, delta: DirStat) {
        self.stats.push((dir, delta));
    }

    /// Hands the pin on an open inode over to `apply`.
    pub(crate) fn pin(&mut self, ino: Ino) {
        self.pinned = Some(ino);
    }

    /// Moves a parent's times and link count. Trash directories are never touched; times of the others move
    /// if the link count does or if they are old enough.
    pub(crate) fn patch_dir(
        &mut self,
        meta: &Meta,
        ino: Ino,
        attr: &Attr,
        nlink: i32,
        now: Timestamp,
    ) {
        let skip = meta.shared.options.skip_dir_mtime;
        if ino.is_trash() || (nlink == 0 && !rules::mtime_due(attr.mtime, now, skip)) {
            return;
        }
        self.write(Write::PatchDir {
            ino,
            time: Some(now),
            nlink,
        });
    }

    fn charge_counters(&mut self) -> [Option<usize>; 2] {
        [
            (Counter::UsedSpace, self.space),
            (Counter::TotalInodes, self.inodes),
        ]
        .map(|(counter, delta)| {
            (delta != 0).then(|| self.write(Write::AddCounter { counter, delta }))
        })
    }
}

/// The inode a check is about, for the report of an operation that never wins.
fn subject(check: &Check) -> Ino {
    match check {
        Check::Attr { ino, .. }
        | Check::NoAttr(ino)
        | Check::DirEmpty(ino)
        | Check::Xattr { ino, .. }
        | Check::Chunk { ino, .. } => *ino,
        Check::Dentry { parent, .. } => *parent,
        Check::Counter { .. } | Check::Setting(_) => Ino::NONE,
    }
}

/// Answers of one `read`, taken in the order of its keys.
pub(crate) struct Answers(std::vec::IntoIter<Option<Record>>);

impl Answers {
    fn take(&mut self) -> Option<Record> {
        self.0.next().flatten()
    }

    /// The next answer, attributes.
    pub(crate) fn attr(&mut self) -> MetaResult<Option<Attr>> {
        Ok(self.take().map(Record::attr).transpose()?)
    }

    /// The next answer, a dentry.
    pub(crate) fn dentry(&mut self) -> MetaResult<Option<Dentry>> {
        Ok(self.take().map(Record::dentry).transpose()?)
    }

    /// The next answer, a dentry with attributes.
    pub(crate) fn entry(&mut self) -> MetaResult<Option<(Dentry, Option<Attr>)>> {
        Ok(self.take().map(Record::entry).transpose()?)
    }

    /// The next answer, whatever it is.
    pub(crate) fn record(&mut self) -> Option<Record> {
        self.take()
    }
}

impl Meta {
    /// Reads `keys` in one round trip.
    pub(crate) async fn fetch(&self, keys: &[Key]) -> MetaResult<Answers> {
        Ok(Answers(self.engine.read(keys).await?.into_iter()))
    }

    /// Counts one more handle of an inode that is open here, if a session could hold it after its last link
    /// is gone. The pin must go to [`Plan::pin`] without an await in between.
    pub(crate) fn pin_open(&self, ino: Ino) -> Option<SessionId> {
        let session = self.shared.session()?;
        let mut open = self.shared.open.lock();
        let entry = open.get_mut(&ino).filter(|entry| entry.handles > 0)?;
        entry.handles += 1;
        Some(session)
    }

    async fn unpin(&self, ino: Ino, sustained: bool) -> MetaResult<Option<u64>> {
        {
            let mut open = self.shared.open.lock();
            let Some(entry) = open.get_mut(&ino) else {
                return Ok(None);
            };
            entry.sustained |= sustained;
            if entry.handles > 1 {
                entry.handles -= 1;
                return Ok(None);
            }
        }
        self.close(ino).await
    }

    /// Commits a plan and, if it was applied, everything that follows from it.
    pub(crate) async fn apply(&self, mut plan: Plan) -> MetaResult<Applied> {
        let counters = plan.charge_counters();
        let subjects: Vec<Ino> = plan.txn.checks.iter().map(subject).collect();
        let outcome = self.commit_marked(plan.txn).await;
        let mut deleted = None;
        if let Some(ino) = plan.pinned {
            let sustained = matches!(outcome, Ok(Outcome::Committed(_)));
            // The names are as asked whatever this comes to; the session's end deletes what stays behind.
            deleted = self.unpin(ino, sustained).await.unwrap_or_else(|error| {
                tracing::warn!(%ino, %error, "could not delete a file at its last close");
                None
            });
        }
        match outcome? {
            Outcome::Committed(results) => {
                let sums = [&self.shared.used_space, &self.shared.total_inodes];
                for (sum, write) in sums.into_iter().zip(counters) {
                    if let Some(value) = write.and_then(|write| results.get(write)) {
                        sum.store(*value, Ordering::Relaxed);
                    }
                }
                for (dir, delta) in plan.stats {
                    self.note_dir_stat(dir, delta);
                }
                Ok(Applied::Committed { results, deleted })
            }
            Outcome::Conflict { check } => {
                let ino = subjects.get(check).copied().unwrap_or(Ino::NONE);
                if ino.is_trash() {
                    // The hour directory may be gone: look it up again.
                    self.forget_trash_hour();
                }
                Ok(Applied::Conflict { check, ino })
            }
        }
    }
}
