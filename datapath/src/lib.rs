//! SluiceFS server: from a FUSE request to the object store and back, on the core where it arrived.
//!
//! Reading order: `fuse` takes requests from the kernel, `shard` serves them on a core, `file` reads and
//! writes file data, `cache` and `object` hold and fetch blocks, `runtime` is everything we use of
//! glommio and tokio-uring. Arrows only point that way: nothing calls back up.
#![deny(unsafe_code)]

pub mod cache;
pub mod cli;
pub mod commands;
pub mod config;
pub mod error;
pub mod file;
pub mod fuse;
pub mod object;
pub mod runtime;
pub mod server;
pub mod shard;
pub mod volume_store;
