//! What a load writes: effects gathered into commits of bounded size.

use crate::engine::{Engine, Outcome, Txn, Write};
use crate::error::EngineError;

/// Effects of one commit: some milliseconds of a store's write lock.
const WRITES_MAX: usize = 400;
/// Slice records, bytes of values and the like of one commit.
const WEIGHT_MAX: usize = 1 << 20;

/// See the module.
pub(super) struct Batch<'a, E> {
    engine: &'a E,
    writes: Vec<Write>,
    weight: usize,
}

impl<'a, E: Engine> Batch<'a, E> {
    pub(super) fn new(engine: &'a E) -> Batch<'a, E> {
        Batch {
            engine,
            writes: Vec::new(),
            weight: 0,
        }
    }

    /// The store.
    pub(super) fn engine(&self) -> &'a E {
        self.engine
    }

    /// Adds an effect; commits what was gathered when it is enough.
    pub(super) async fn add(&mut self, write: Write) -> Result<(), EngineError> {
        self.weight += match &write {
            Write::AppendChunk { slices, .. } => slices.len() * crate::types::Slice::BYTES,
            Write::PutXattr { value, .. } => value.len(),
            Write::PutSymlink { target, .. } => target.len(),
            _ => 0,
        };
        self.writes.push(write);
        if self.writes.len() >= WRITES_MAX || self.weight >= WEIGHT_MAX {
            self.flush().await?;
        }
        Ok(())
    }

    /// Commits what was gathered.
    pub(super) async fn flush(&mut self) -> Result<(), EngineError> {
        let writes = std::mem::take(&mut self.writes);
        self.weight = 0;
        if writes.is_empty() {
            return Ok(());
        }
        self.commit(writes).await.map(drop)
    }

    /// Commits these effects at once; answers their results.
    pub(super) async fn commit(&self, writes: Vec<Write>) -> Result<Vec<i64>, EngineError> {
        let checks = Vec::new();
        match self.engine.commit(Txn { checks, writes }).await? {
            Outcome::Committed(results) => Ok(results),
            Outcome::Conflict { check } => Err(EngineError::Corrupt {
                record: "a load".into(),
                cause: format!("the store reports a conflict of check {check} and there was none"),
            }),
        }
    }
}
