//! A reply sink for tests: remembers every answer and fails on demand.

use std::io::{self, IoSlice};
use std::sync::Arc;

use parking_lot::Mutex;
use zerocopy::FromBytes;

use super::abi::OutHeader;
use super::reply::ReplySink;

/// Answers, in order.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    answers: Mutex<Vec<Vec<u8>>>,
    /// Errors of the next sends, last one first.
    errors: Mutex<Vec<i32>>,
}

impl Recorder {
    pub(super) fn new() -> Arc<Recorder> {
        Arc::new(Recorder::default())
    }

    /// Every send fails with one of these, in order, until none is left.
    pub(super) fn failing(errors: &[i32]) -> Arc<Recorder> {
        let errors = errors.iter().rev().copied().collect();
        Arc::new(Recorder {
            errors: Mutex::new(errors),
            ..Recorder::default()
        })
    }

    /// Takes all answers as header and body; checks that each is as long as it says.
    pub(super) fn take(&self) -> Vec<(OutHeader, Vec<u8>)> {
        let answers = std::mem::take(&mut *self.answers.lock());
        answers
            .into_iter()
            .map(|answer| {
                let (header, body) = OutHeader::read_from_prefix(&answer).unwrap();
                assert_eq!(header.len as usize, answer.len());
                (header, body.to_vec())
            })
            .collect()
    }
}

impl ReplySink for Recorder {
    fn send(&self, unique: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        assert!(
            pieces.len() <= 1024,
            "more pieces than a vectored write takes"
        );
        let answer = pieces
            .iter()
            .flat_map(|piece| piece.iter().copied())
            .collect::<Vec<u8>>();
        let (header, _) = OutHeader::read_from_prefix(&answer).unwrap();
        assert_eq!(header.unique, unique);
        self.answers.lock().push(answer);
        match self.errors.lock().pop() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}
