//! [`Plan`]: one attempt of an operation, as it grows from rules into a commit; and [`Meta::apply`], which
//! carries it out.
//!
//! An operation fills a plan without awaiting, then applies it once. Everything that only may change after
//! `Committed` travels with the plan and is done by `apply`: the process's copy of the volume's sums, pending
//! directory statistics, usage of quotas, the mark of a sustained inode in the table of open ones.
//!
//! Pins: an inode that is about to lose its last link while a handle is open here must not be closed between
//! that decision and the commit. [`Meta::pin_open`] counts one more handle; `apply` gives it back in every
//! case, through `Meta::close` if it turned out to be the last, so that the inode is then deleted there.

use std::sync::atomic::Ordering;

use crate::client::{Meta, MetaResult, Sight};
use crate::engine::{Check, Counter, Engine, Key, Outcome, Record, Txn, Write};
use crate::error::EngineError;
use crate::quota::Usage;
use crate::types::{Attr, Dentry, DirStat, Ino, SessionId, Timestamp};

use super::{growth, rules};

/// Checks and writes of one attempt, with what follows from its success.
#[derive(Default)]
pub(crate) struct Plan {
    txn: Txn,
    stats: Vec<(Ino, DirStat)>,
    /// Trees that move, or appear: from, to, what is below their top.
    trees: Vec<(Option<Ino>, Ino, Usage)>,
    /// By user and group.
    owners: Vec<(u32, u32, Usage)>,
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
        /// One for each write; none if the answer was lost (see [`super::doubt`]).
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

    /// Changes the volume's sums, and after the commit the usage of an inode's owner and group.
    pub(crate) fn charge(&mut self, attr: &Attr, space: i64, inodes: i64) {
        self.space += space;
        self.inodes += inodes;
        self.charge_owner(attr, Usage { space, inodes });
    }

    /// Changes the usage of an inode's owner and group, after the commit.
    pub(crate) fn charge_owner(&mut self, attr: &Attr, change: Usage) {
        self.owners.push((attr.uid, attr.gid, change));
    }

    /// What is below the top of a tree moves from under one directory to under another: changes the usage of
    /// the directories with a quota above them, after the commit.
    pub(crate) fn move_tree(&mut self, from: Ino, to: Ino, below: Usage) {
        self.trees.push((Some(from), to, below));
    }

    /// The same for a tree that nobody saw before: a finished clone.
    pub(crate) fn add_tree(&mut self, to: Ino, below: Usage) {
        self.trees.push((None, to, below));
    }

    /// Changes a directory's statistics, and the usage of the quotas above it, after the commit. `.trash` itself
    /// has none.
    pub(crate) fn note(&mut self, dir: Ino, delta: DirStat) {
        if dir != Ino::TRASH {
            self.stats.push((dir, delta));
        }
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
        | Check::Chunk { ino, .. }
        | Check::Flocks { ino, .. }
        | Check::Plocks { ino, .. } => *ino,
        Check::Dentry { parent, .. } => *parent,
        Check::Counter { .. } | Check::Setting(_) | Check::DelayedSlices { .. } => Ino::NONE,
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

    /// The next answer, the inodes on a path; none if there is no such record.
    pub(crate) fn path(&mut self) -> MetaResult<Vec<(Ino, Attr)>> {
        let path = self.take().map(Record::path).transpose()?;
        Ok(path.unwrap_or_default())
    }

    /// The next answer, whatever it is.
    pub(crate) fn record(&mut self) -> Option<Record> {
        self.take()
    }
}

impl Meta {
    /// Reads `keys` for an attempt, from this core's memory where it may and can answer all of them.
    pub(crate) async fn fetch_at(&self, sight: &Sight, keys: &[Key]) -> MetaResult<Answers> {
        if sight.memory
            && let Some(records) = self.shared.recall.answers(keys)
        {
            sight.used.set(true);
            return Ok(Answers(records.into_iter()));
        }
        self.fetch(keys).await
    }

    /// Reads `keys` in one round trip.
    pub(crate) async fn fetch(&self, keys: &[Key]) -> MetaResult<Answers> {
        let asked = self.now();
        let records = self.engine.read(keys).await?;
        self.shared.recall.learn(keys, &records, asked);
        Ok(Answers(records.into_iter()))
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

    /// Learns the ways up from the directories that are to be charged: one round trip for each that is not known.
    async fn know_ways(
        &self,
        stats: &[(Ino, DirStat)],
        trees: &[(Option<Ino>, Ino, Usage)],
    ) -> Result<(), EngineError> {
        if !self.shared.quotas.watches_dirs() {
            return Ok(());
        }
        let ends = trees.iter().flat_map(|(from, to, _)| [*from, Some(*to)]);
        for dir in stats.iter().map(|(dir, _)| *dir).chain(ends.flatten()) {
            self.quota_dirs(dir).await?;
        }
        Ok(())
    }

    /// Commits a plan and, if it was applied, everything that follows from it. A commit whose answer is lost is
    /// found out about first.
    pub(crate) async fn apply(&self, mut plan: Plan) -> MetaResult<Applied> {
        let counters = plan.charge_counters();
        let subjects: Vec<Ino> = plan.txn.checks.iter().map(subject).collect();
        let places = match self.shared.quotas.watches_dirs() {
            true => growth::places(&plan.txn.writes),
            false => Vec::new(),
        };
        // Before the commit: after it, a store that has gone away would leave quotas without their charges.
        let outcome = match self.know_ways(&plan.stats, &plan.trees).await {
            Ok(()) => self.commit_surely(plan.txn).await,
            Err(error) => Err(error),
        };
        let mut deleted = None;
        if let Some(ino) = plan.pinned {
            // In doubt too: the last close looks whether there are links.
            let sustained = matches!(
                outcome,
                Ok(Outcome::Committed(_)) | Err(EngineError::UnknownFate { .. })
            );
            // The names are as asked whatever this comes to; the session's end deletes what stays behind.
            deleted = self.unpin(ino, sustained).await.unwrap_or_else(|error| {
                tracing::warn!(%ino, %error, "could not delete a file at its last close");
                None
            });
        }
        match outcome? {
            Outcome::Committed(results) => {
                let sums = [
                    (&self.shared.used_space, plan.space),
                    (&self.shared.total_inodes, plan.inodes),
                ];
                for ((sum, delta), write) in sums.into_iter().zip(counters) {
                    match write.map(|write| results.get(write)) {
                        None => {}
                        Some(Some(value)) => sum.store(*value, Ordering::Relaxed),
                        Some(None) => drop(sum.fetch_add(delta, Ordering::Relaxed)),
                    }
                }
                for (uid, gid, change) in plan.owners {
                    self.charge_owner(uid, gid, change);
                }
                self.learn_places(places);
                for (dir, delta) in plan.stats {
                    self.note_dir_stat(dir, delta);
                    self.charge_dir(dir, delta.into()).await;
                }
                for (from, to, below) in plan.trees {
                    if let Some(from) = from {
                        self.charge_dir(from, -below).await;
                    }
                    self.charge_dir(to, below).await;
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
