//! Flush: freeze, wait for uploads, one commit. And fsync, close and shutdown, which are flushes too.
//!
//! Steps of one flush, of which an inode has one at a time:
//! 1. all slices become the batch; blocks still open are sealed and uploaded; writes go on in new slices;
//! 2. when every block of the batch is stored, one commit appends its records in the order of creation and
//!    sets length and times (so no later growth of the file is ever visible without the earlier one);
//! 3. without a suspension after the commit's answer: the batch leaves memory, its successor state is
//!    published. A reader sees the data in one place or in the other.
//!
//! A flush that waits for its turn finds only what came in meanwhile; so many callers share few commits.

use std::rc::Rc;

use sluice_meta::error::{EngineError, MetaError};
use sluice_meta::ops::WriteCommit;
use sluice_meta::types::{Attr, Ino};

use super::dirty::BatchState;
use super::read::join_all;
use super::{FileState, Files, meta_passes};
use crate::cache::{BlockId, BlockIo};
use crate::error::{FsError, FsResult};

/// Inodes flushed at the same time when everything is.
const FLUSHES_MAX: usize = 16;

/// A commit that did not succeed.
struct Refused {
    error: MetaError,
    /// Some attempt may have been applied all the same.
    doubtful: bool,
}

impl<B: BlockIo + 'static> Files<B> {
    /// Uploads and commits everything written before. Fails with `WriteLost` if any of it, or anything
    /// written since the file was first opened, is lost.
    pub async fn flush(&self, ino: Ino) -> FsResult<()> {
        match self.owned(ino) {
            Some(file) => self.flush_state(&file).await,
            None => self
                .table
                .get(ino)
                .map_or(Ok(()), |shared| shared.check_lost()),
        }
    }

    /// As [`Self::flush`], and durable in the metadata store too: also what was committed earlier.
    pub async fn fsync(&self, ino: Ino) -> FsResult<()> {
        self.flush(ino).await?;
        Ok(self
            .retried(meta_passes, async || self.meta.sync().await)
            .await?)
    }

    /// Flushes, then gives a handle back to the table of inodes.
    pub async fn release(&self, ino: Ino) -> FsResult<()> {
        let flushed = self.flush(ino).await;
        self.table.closed(ino);
        flushed
    }

    /// Flushes everything this core holds: for shutdown. Answers the first failure.
    pub async fn flush_all(&self) -> FsResult<()> {
        let mut answer = Ok(());
        loop {
            let some = self.some_dirty();
            if some.is_empty() {
                return answer;
            }
            for flushed in join_all(some.into_iter().map(|ino| self.flush(ino)).collect()).await {
                answer = answer.and(flushed);
            }
        }
    }

    /// Flushes what this core holds now, while writes go on. Answers the first failure.
    pub async fn flush_present(&self) -> FsResult<()> {
        let mut answer = Ok(());
        for some in self.dirty(usize::MAX).chunks(FLUSHES_MAX) {
            for flushed in join_all(some.iter().map(|ino| self.flush(*ino)).collect()).await {
                answer = answer.and(flushed);
            }
        }
        answer
    }

    fn some_dirty(&self) -> Vec<Ino> {
        self.dirty(FLUSHES_MAX)
    }

    /// Inodes with dirty data, at most `most`.
    fn dirty(&self, most: usize) -> Vec<Ino> {
        let owned = self.owned.borrow();
        let dirty = owned
            .values()
            .filter(|state| !state.dirty.borrow().is_empty());
        dirty.map(|state| state.ino).take(most).collect()
    }

    /// Starts a flush that nobody waits for, unless one is on its way.
    pub(super) fn flush_behind(&self, file: &Rc<FileState>) {
        if file.flushing.replace(true) {
            return;
        }
        let ino = file.ino;
        self.spawn(async move |files| {
            // Somebody else may have flushed meanwhile, and the inode may have been given back.
            let Some(file) = files.owned(ino) else { return };
            if let Err(error) = files.flush_state(&file).await {
                tracing::debug!(%ino, %error, "background flush failed");
            }
            file.flushing.set(false);
        });
    }

    pub(super) async fn flush_state(&self, file: &Rc<FileState>) -> FsResult<()> {
        if !file.dirty.borrow().is_empty() {
            let _turn = file.flush_turn.lock().await;
            self.flush_batch(file).await;
        }
        file.shared.check_lost()
    }

    async fn flush_batch(&self, file: &Rc<FileState>) {
        let blocks = file.dirty.borrow_mut().freeze();
        for at in blocks {
            self.start_upload(file, at);
        }
        let state = || file.dirty.borrow().batch_state();
        file.progress
            .until(|| state() != BatchState::Uploading)
            .await;
        let commit = file.dirty.borrow().batch_commit();
        let Some(commit) = commit else { return };
        if state() == BatchState::Failed {
            self.give_up(file, None, true).await;
            return;
        }
        match self.commit_batch(file.ino, &commit).await {
            Ok(attr) => {
                let mut dirty = file.dirty.borrow_mut();
                let held = dirty.take_batch().capacity;
                file.shared.committed(&attr, dirty.attr());
                drop(dirty);
                self.budget.release(held);
                self.compact_behind();
            }
            Err(Refused { error, doubtful }) => {
                // Blocks of slices that may have become visible must stay.
                self.give_up(file, Some(error), !doubtful).await;
            }
        }
    }

    /// Drops the batch. Without an error, uploads have failed and said why.
    async fn give_up(&self, file: &FileState, error: Option<MetaError>, remove: bool) {
        if let Some(error) = error {
            self.note_lost(file, FsError::Meta(error));
        }
        let blocks = self.drop_batch(file);
        if remove {
            self.remove_blocks(blocks).await;
        }
    }

    /// Forgets the batch; answers its blocks.
    fn drop_batch(&self, file: &FileState) -> Vec<BlockId> {
        let mut dirty = file.dirty.borrow_mut();
        let dropped = dirty.take_batch();
        file.shared.abandoned(dirty.attr());
        self.budget.release(dropped.capacity);
        dropped.blocks
    }

    async fn commit_batch(&self, ino: Ino, commit: &WriteCommit) -> Result<Attr, Refused> {
        let mut doubtful = false;
        let mut tries = 0;
        loop {
            let error = match self.commit_once(ino, commit, doubtful).await {
                Ok(attr) => return Ok(attr),
                Err(error) => error,
            };
            let may_pass = meta_passes(&error)
                || matches!(error, MetaError::Engine(EngineError::UnknownFate { .. }));
            doubtful |= !surely_not_applied(&error);
            if tries == self.options.io_retries || !may_pass {
                return Err(Refused { error, doubtful });
            }
            tries += 1;
            tracing::warn!(%ino, %error, tries, "committing again");
            self.pause(tries).await;
        }
    }

    /// One attempt; if an earlier one may have been applied, that is found out first: a slice appended twice
    /// would be counted as two references.
    async fn commit_once(
        &self,
        ino: Ino,
        commit: &WriteCommit,
        doubtful: bool,
    ) -> Result<Attr, MetaError> {
        if doubtful && let Some((chunk, slice)) = commit.slices.first() {
            let records = self.meta.chunk(ino, *chunk).await?;
            if records.iter().any(|record| record.id == slice.id) {
                return self.meta.getattr(ino).await;
            }
        }
        self.meta.write(ino, commit).await
    }
}

/// Whether a commit that ended so cannot have been applied. `Contended` can: it is also what `Meta` answers
/// after it has lost a connection and then could not find out.
fn surely_not_applied(error: &MetaError) -> bool {
    match error {
        MetaError::Contended { .. } => false,
        MetaError::Engine(error) => match error {
            EngineError::NoSpace { .. }
            | EngineError::Busy { .. }
            | EngineError::Unreachable { .. } => true,
            EngineError::UnknownFate { .. }
            | EngineError::Refused { .. }
            | EngineError::Corrupt { .. } => false,
        },
        _ => true,
    }
}
