//! Taking a deleted file's slices out of the metadata.
//!
//! Order of things, so that a crash at any point leaves work to do and never data lost: the chunk list goes
//! in the same commit that drops its references; slices whose last reference that was are answered, their
//! objects deleted by the caller, then their record ([`Meta::forget_slice`]); the note that the file awaits
//! deletion goes last. Everything may be repeated.
//!
//! Every commit relies on the inode being gone: a note about a file that lives again deletes nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{Check, Engine, Item, Key, Outcome, Record, Scan, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::types::{ChunkIndex, Ino, Slice, SliceId};

/// A slice by id and stored size.
type StoredSlice = (SliceId, u32);

impl Meta {
    /// Deletes the chunk lists of a deleted file; answers the slices whose last reference that was: their
    /// objects are to be deleted, then `forget_slice` called for each. `Invalid` if the file is not deleted.
    ///
    /// A fault midway is an error only if nothing was found yet: what was found is answered, since nobody
    /// else would learn of it, and the note of deletion stays for the rest.
    pub async fn reclaim(&self, ino: Ino, length: u64) -> MetaResult<Vec<(SliceId, u32)>> {
        self.check_writable()?;
        let mut unused = BTreeSet::new();
        match self.reclaim_chunks(ino, length, &mut unused).await {
            Err(error) if unused.is_empty() => return Err(error),
            Err(error) => {
                tracing::warn!(%ino, %error, "a deleted file is not reclaimed to its end")
            }
            Ok(()) => {}
        }
        Ok(unused.into_iter().collect())
    }

    async fn reclaim_chunks(
        &self,
        ino: Ino,
        length: u64,
        unused: &mut BTreeSet<StoredSlice>,
    ) -> MetaResult<()> {
        let scan = Scan::Chunks { ino, length };
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&scan, cursor.as_ref(), limits::CHUNK_PAGE)
                .await?;
            for item in page.items {
                if let Item::Chunk { index, slices } = item {
                    unused.extend(self.delete_chunk(ino, index, slices).await?);
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        let done = Txn {
            checks: vec![Check::NoAttr(ino)],
            writes: vec![Write::DeleteDeletedFile { ino, length }],
        };
        match self.engine.commit(done).await? {
            Outcome::Committed(_) => Ok(()),
            Outcome::Conflict { .. } => Err(ALIVE),
        }
    }

    /// Deletes one chunk's list, expected to be `slices`; answers the slices that nothing refers to any more.
    async fn delete_chunk(
        &self,
        ino: Ino,
        index: ChunkIndex,
        slices: Vec<Slice>,
    ) -> MetaResult<Vec<StoredSlice>> {
        let expected = RefCell::new(slices);
        // The list of a commit of unknown fate.
        let doubt = RefCell::new(None);
        self.run(async |_| self.try_delete_chunk(ino, index, &expected, &doubt).await)
            .await
    }

    async fn try_delete_chunk(
        &self,
        ino: Ino,
        index: ChunkIndex,
        expected: &RefCell<Vec<Slice>>,
        doubt: &RefCell<Option<Vec<Slice>>>,
    ) -> MetaResult<Attempt<Vec<StoredSlice>>> {
        let slices = expected.borrow().clone();
        if slices.is_empty() {
            // Somebody has deleted the list; if that was our own commit, its results were lost.
            let lost = doubt.borrow().clone().unwrap_or_default();
            return Ok(Attempt::Done(self.unreferenced(stored(&lost)).await?));
        }
        let references: Vec<StoredSlice> = stored(&slices).collect();
        let drop_reference = |&(id, size): &_| Write::AddSliceRef {
            id,
            size,
            delta: -1,
        };
        let mut txn = Txn {
            checks: vec![
                Check::NoAttr(ino),
                Check::Chunk {
                    ino,
                    index,
                    prefix: slices.clone(),
                    whole: true,
                },
            ],
            writes: vec![Write::DeleteChunk { ino, index }],
        };
        txn.writes.extend(references.iter().map(drop_reference));
        match self.engine.commit(txn).await {
            Ok(Outcome::Committed(results)) => {
                let left = references.into_iter().zip(results.into_iter().skip(1));
                let unused = left.filter_map(|(slice, left)| (left <= 0).then_some(slice));
                return Ok(Attempt::Done(unused.collect()));
            }
            Ok(Outcome::Conflict { check: 0 }) => return Err(ALIVE),
            Ok(Outcome::Conflict { .. }) => {}
            Err(EngineError::UnknownFate { cause, .. }) => {
                tracing::debug!(%ino, cause, "looking whether a chunk list was deleted");
                *doubt.borrow_mut() = Some(slices);
            }
            Err(error) => return Err(error.into()),
        }
        *expected.borrow_mut() = self.chunk(ino, index).await?;
        Ok(Attempt::Conflict(ino))
    }

    /// Those of `slices` that nothing refers to.
    pub(crate) async fn unreferenced(
        &self,
        slices: impl Iterator<Item = StoredSlice>,
    ) -> MetaResult<Vec<StoredSlice>> {
        let slices: Vec<StoredSlice> = slices.collect();
        let keys: Vec<Key> = slices
            .iter()
            .map(|&(id, size)| Key::SliceRefs { id, size })
            .collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut unused = Vec::new();
        for (slice, record) in slices.into_iter().zip(self.engine.read(&keys).await?) {
            if record
                .map(Record::count)
                .transpose()?
                .is_some_and(|references| references <= 0)
            {
                unused.push(slice);
            }
        }
        Ok(unused)
    }

    /// The objects of this slice are deleted.
    pub async fn forget_slice(&self, id: SliceId, size: u32) -> MetaResult<()> {
        self.check_writable()?;
        let writes = vec![Write::DeleteSliceRef { id, size }];
        self.engine
            .commit(Txn {
                checks: Vec::new(),
                writes,
            })
            .await?;
        Ok(())
    }
}

/// A note of deletion was wrong: the inode exists.
const ALIVE: MetaError = MetaError::Invalid("the file is not deleted, its data stays");

/// The slices with objects among `records`, one for each record: that is the unit of references.
fn stored(records: &[Slice]) -> impl Iterator<Item = StoredSlice> {
    let stored = records.iter().filter(|slice| slice.id != SliceId::HOLE);
    stored.map(|slice| (slice.id, slice.size))
}
