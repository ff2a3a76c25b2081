//! FUSE: requests from the kernel in, answers out. Knows bytes and opcodes, nothing of inodes' meaning.
//!
//! Called by the server, which mounts and starts a session, and by the dispatcher, which takes requests
//! from a queue and answers them. Parts, in reading order:
//!
//! - `abi`: the kernel's structs and numbers; `op`, `decode`: what a request asks;
//! - `request`, `buffer`: its bytes and who owns them; `reply`, `dirbuf`: answers; `notify`: invalidations;
//! - `mount` with `mount_options`, `mountinfo`, `fusermount`: getting a connection;
//! - `negotiate`, `session`: INIT and the life of the connection;
//! - `queue`: the seam to the dispatcher; `queue_dev`, `device`: requests by read(2) and write(2).
//!
//! Life of a request: a queue reads it into a pooled buffer on the core it serves and hands it out as a
//! [`Request`](request::Request); the dispatcher decodes it in place, may pass it to another core, and
//! consumes its [`Reply`](reply::Reply), which writes to the descriptor the request came from.
//! Copies: none besides the kernel's own. Allocations: one small vector per answer.

pub mod abi;
pub mod buffer;
pub mod decode;
pub mod device;
pub mod dirbuf;
mod fusermount;
pub mod mount;
pub mod mount_options;
pub mod mountinfo;
pub mod negotiate;
pub mod notify;
pub mod op;
pub mod queue;
pub mod queue_dev;
#[cfg(test)]
mod recorder;
pub mod reply;
pub mod request;
pub mod session;
