//! One request from the kernel: its bytes, and the duty to answer it.
//!
//! Made by a `RequestQueue`, consumed by the dispatcher. A [`Request`] owns its buffer (returned to the
//! pool on drop) and its [`Reply`]; it is `Send`, so another core may answer it. A handler that has
//! taken what it needs calls [`Request::into_reply`], which frees the buffer at once: a request that
//! waits for the network should not sit on a megabyte.
//!
//! Invariant `one-answer`: a request is answered exactly once. The reply's methods consume it, and one
//! that is dropped unanswered answers EIO by itself.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use super::abi::InHeader;
use super::buffer::Buffer;
use super::decode::decode;
use super::op::{DecodeError, Op};
use super::reply::{Delivery, Permit, Reply, ReplySink};

/// A request and its reply slot.
#[derive(Debug)]
pub struct Request {
    header: InHeader,
    message: Message,
    /// Where the body lies within the message.
    body: Range<usize>,
    reply: Reply,
}

/// Where the bytes are.
#[derive(Debug)]
enum Message {
    /// In a buffer of the queue's pool.
    Pooled(Buffer),
    /// In memory of its own.
    Owned(Box<[u8]>),
}

impl Request {
    /// A request of `bytes` bytes read into the space of a pool's buffer.
    ///
    /// If the header's length is not what was received, the request is answered with the error at once
    /// (its header can be read) and the error is returned for the log.
    pub(super) fn from_buffer(
        buffer: Buffer,
        bytes: usize,
        sink: Arc<dyn ReplySink>,
        permit: Option<Permit>,
    ) -> Result<Request, DecodeError> {
        let header = parse_header(buffer.bytes().get(..bytes).unwrap_or_default())?;
        Request::assemble(
            header,
            bytes,
            Message::Pooled(buffer),
            Reply::new(sink, &header, permit),
        )
    }

    /// A request from a message in memory, answered through `sink`: for tests of what serves requests.
    pub fn from_message(message: &[u8], sink: Arc<dyn ReplySink>) -> Result<Request, DecodeError> {
        let header = parse_header(message)?;
        let reply = Reply::new(sink, &header, None);
        Request::assemble(header, message.len(), Message::Owned(message.into()), reply)
    }

    fn assemble(
        header: InHeader,
        bytes: usize,
        message: Message,
        reply: Reply,
    ) -> Result<Request, DecodeError> {
        if usize::try_from(header.len) != Ok(bytes) {
            let error = DecodeError::Length {
                stated: header.len,
                received: bytes,
            };
            reply.error(error.errno());
            return Err(error);
        }
        Ok(Request {
            header,
            message,
            body: size_of::<InHeader>()..bytes,
            reply,
        })
    }

    /// Who asks for what on which inode.
    pub fn header(&self) -> &InHeader {
        &self.header
    }

    /// The decoded operation; borrows from the buffer.
    pub fn op(&self) -> Result<Op<'_>, DecodeError> {
        let bytes = match &self.message {
            Message::Pooled(buffer) => buffer.bytes(),
            Message::Owned(bytes) => bytes,
        };
        decode(&self.header, &bytes[self.body.clone()])
    }

    /// Gives the buffer back and keeps the duty to answer.
    pub fn into_reply(self) -> Reply {
        self.reply
    }

    /// Answers with an error number.
    pub fn error(self, errno: i32) -> Delivery {
        self.into_reply().error(errno)
    }
}

fn parse_header(message: &[u8]) -> Result<InHeader, DecodeError> {
    match InHeader::read_from_prefix(message) {
        Ok((header, _)) => Ok(header),
        Err(_) => Err(DecodeError::Short {
            bytes: message.len(),
            part: "header",
        }),
    }
}

/// A whole message: header for `opcode` on `nodeid`, then `parts`. For tests of what serves requests.
pub fn encode_message(mut header: InHeader, parts: &[&[u8]]) -> Vec<u8> {
    let bytes = size_of::<InHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
    header.len = u32::try_from(bytes).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(bytes);
    message.extend_from_slice(header.as_bytes());
    for part in parts {
        message.extend_from_slice(part);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::super::abi::{OutHeader, opcode};
    use super::super::recorder::Recorder;
    use super::*;

    fn statfs(unique: u64) -> InHeader {
        InHeader {
            opcode: opcode::STATFS,
            unique,
            uid: 5,
            ..InHeader::default()
        }
    }

    fn assert_send<T: Send>(value: T) -> T {
        value
    }

    #[test]
    fn a_request_is_decoded_here_and_answered_elsewhere() {
        let sink = Recorder::new();
        let message = encode_message(statfs(3), &[]);
        let request = assert_send(Request::from_message(&message, sink.clone()).unwrap());
        assert_eq!((request.header().unique, request.header().uid), (3, 5));
        assert_eq!(request.op(), Ok(Op::Statfs));
        std::thread::spawn(move || request.into_reply().ok_empty())
            .join()
            .unwrap();
        assert_eq!(
            sink.take(),
            [(
                OutHeader {
                    len: 16,
                    error: 0,
                    unique: 3
                },
                Vec::new()
            )]
        );
    }

    #[test]
    fn an_unanswered_request_answers_eio() {
        let sink = Recorder::new();
        drop(Request::from_message(&encode_message(statfs(4), &[]), sink.clone()).unwrap());
        let eio = OutHeader {
            len: 16,
            error: -libc::EIO,
            unique: 4,
        };
        assert_eq!(sink.take(), [(eio, Vec::new())]);
    }

    #[test]
    fn false_lengths_are_answered_at_once() {
        let sink = Recorder::new();
        let mut message = encode_message(statfs(5), &[]);
        message.push(0);
        let error = Request::from_message(&message, sink.clone()).unwrap_err();
        assert_eq!(
            error,
            DecodeError::Length {
                stated: 40,
                received: 41
            }
        );
        let eio = OutHeader {
            len: 16,
            error: -libc::EIO,
            unique: 5,
        };
        assert_eq!(sink.take(), [(eio, Vec::new())]);
        let error = Request::from_message(&message[..39], sink.clone()).unwrap_err();
        assert_eq!(
            error,
            DecodeError::Short {
                bytes: 39,
                part: "header"
            }
        );
        assert!(sink.take().is_empty());
    }

    #[test]
    fn the_buffer_goes_back_before_the_answer() {
        let pool = super::super::buffer::BufferPool::new(4096, 1);
        let mut buffer = pool.take().unwrap();
        let message = encode_message(statfs(6), &[]);
        buffer.space()[..message.len()].copy_from_slice(&message);
        let sink = Recorder::new();
        let request = Request::from_buffer(buffer, message.len(), sink.clone(), None).unwrap();
        assert_eq!((request.op(), pool.idle_count()), (Ok(Op::Statfs), 0));
        let reply = request.into_reply();
        assert_eq!((pool.idle_count(), sink.take().len()), (1, 0));
        reply.ok_empty();
        assert_eq!(sink.take().len(), 1);
    }
}
