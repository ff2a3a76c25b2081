//! Reads: a plan of pieces, then the pieces.
//!
//! Per request: one lookup of the inode, one lock for its length, two per chunk for its view; one allocation
//! for the plan and one per piece. Bytes are not copied here but for those of a still open block.
//!
//! A missing or damaged object under a slice usually means that the slice list is out of date (another
//! client compacted the chunk). The list is read again once; if the same slice fails again it is lost data,
//! and an error.

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use sluice_meta::types::{ChunkIndex, Ino, SliceId};

use super::buffer::Piece;
use super::dirty::cut;
use super::overlay::{Segment, Source};
use super::{FileState, Files};
use crate::cache::{BlockId, BlockIo};
use crate::error::{FsError, FsResult, ObjectError};
use crate::shard::inode::InodeShared;

/// Pieces of one read that are fetched at the same time.
const FETCHES_MAX: usize = 32;
/// Times one read looks at the slices again because objects are missing; each time for another slice.
const RELOADS_MAX: usize = 8;

static ZEROS: [u8; 128 << 10] = [0; 128 << 10];

/// A piece of the answer, in order.
enum Step {
    Zeros(u32),
    Memory(Bytes),
    Fetch(BlockId, Range<u32>),
}

/// How a read is answered.
struct Plan {
    /// Generation of its first chunk's view.
    generation: u64,
    steps: Vec<Step>,
}

/// A block that could not be read.
struct Fault {
    slice: SliceId,
    error: ObjectError,
}

impl<B: BlockIo + 'static> Files<B> {
    /// The bytes `[offset, offset + size)` of the file, less where it ends before that.
    pub async fn read(&self, ino: Ino, offset: u64, size: u32) -> FsResult<Vec<Bytes>> {
        let file = self.owned(ino);
        let _gate = match &file {
            Some(file) => Some(file.gate.read().await),
            None => None,
        };
        let shared = self.shared(ino, file.as_ref());
        let state = file.as_ref().map(|file| &*file.state);
        let mut blamed = Vec::new();
        loop {
            let plan = self.plan(&shared, state, offset, size).await?;
            let generation = plan.generation;
            let Fault { slice, error } = match self.fetch(plan.steps).await {
                Ok(pieces) => return Ok(pieces),
                Err(fault) => fault,
            };
            let stale = match &error {
                ObjectError::NotFound { .. } | ObjectError::Damaged { .. } => true,
                ObjectError::NoSpace { .. } | ObjectError::Io { .. } => false,
            };
            if !stale || blamed.contains(&slice) || blamed.len() == RELOADS_MAX {
                tracing::error!(%ino, slice = slice.0, %error, "file data cannot be read");
                return Err(FsError::Object(error));
            }
            tracing::info!(%ino, slice = slice.0, %error, "reading the slice list again");
            blamed.push(slice);
            shared.drop_views(generation);
        }
    }

    async fn plan(
        &self,
        shared: &InodeShared,
        file: Option<&FileState>,
        offset: u64,
        size: u32,
    ) -> FsResult<Plan> {
        let length = self.length(shared).await?;
        let end = offset.saturating_add(u64::from(size)).min(length);
        let mut plan = Plan {
            generation: 0,
            steps: Vec::new(),
        };
        for (nth, (chunk, range)) in cut(offset, end.saturating_sub(offset)).enumerate() {
            let snapshot = self.snapshot(shared, file, chunk, range).await?;
            // Nothing suspends between the snapshot and the last of its dirty bytes.
            for segment in &snapshot.segments {
                self.plan_segment(file, chunk, segment, &mut plan.steps);
            }
            if nth == 0 {
                plan.generation = snapshot.generation;
            }
        }
        Ok(plan)
    }

    fn plan_segment(
        &self,
        file: Option<&FileState>,
        chunk: ChunkIndex,
        segment: &Segment,
        steps: &mut Vec<Step>,
    ) {
        let Source::Slice { id, size, off } = segment.source else {
            steps.push(Step::Zeros(segment.len));
            return;
        };
        let range = off..off + segment.len;
        if let Some(file) = file {
            let mut pieces = Vec::new();
            if file
                .dirty
                .borrow()
                .read(chunk, id, range.clone(), &mut pieces)
            {
                steps.extend(pieces.into_iter().map(|piece| match piece {
                    Piece::Memory(bytes) => Step::Memory(bytes),
                    Piece::Stored { block, range } => Step::Fetch(block, range),
                }));
                return;
            }
        }
        let block_bytes = self.blocks.block_bytes();
        let mut at = range.start;
        while at < range.end {
            let index = at / block_bytes;
            let base = index * block_bytes;
            let block = BlockId {
                slice: id,
                index,
                size: (size - base).min(block_bytes),
            };
            let end = range.end.min(base + block.size);
            steps.push(Step::Fetch(block, at - base..end - base));
            at = end;
        }
    }

    async fn fetch(&self, steps: Vec<Step>) -> Result<Vec<Bytes>, Fault> {
        let mut out = Vec::with_capacity(steps.len());
        let fetches = steps
            .iter()
            .filter(|step| matches!(step, Step::Fetch(..)))
            .count();
        if fetches <= 1 {
            for step in steps {
                out.append(&mut self.take(step).await?);
            }
            return Ok(out);
        }
        let mut steps = steps.into_iter();
        loop {
            let window: Vec<_> = steps
                .by_ref()
                .take(FETCHES_MAX)
                .map(|step| self.take(step))
                .collect();
            if window.is_empty() {
                return Ok(out);
            }
            for pieces in join_all(window).await {
                out.append(&mut pieces?);
            }
        }
    }

    async fn take(&self, step: Step) -> Result<Vec<Bytes>, Fault> {
        match step {
            Step::Zeros(len) => Ok(zeros(len as usize)),
            Step::Memory(bytes) => Ok(vec![bytes]),
            Step::Fetch(block, range) => {
                let read = async || self.blocks.read(block, range.clone()).await;
                let passes = |error: &ObjectError| matches!(error, ObjectError::Io { .. });
                let fault = |error| Fault {
                    slice: block.slice,
                    error,
                };
                self.retried(passes, read).await.map_err(fault)
            }
        }
    }
}

fn zeros(mut len: usize) -> Vec<Bytes> {
    let mut out = Vec::with_capacity(len.div_ceil(ZEROS.len()));
    while len > 0 {
        let step = len.min(ZEROS.len());
        out.push(Bytes::from_static(&ZEROS[..step]));
        len -= step;
    }
    out
}

/// Runs all of them at the same time; answers in the same order.
pub(crate) async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (future, slot) in running.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => *slot = Some(output),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
