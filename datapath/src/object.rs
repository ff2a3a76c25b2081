//! Objects: named byte strings in a store, and blocks of slices kept in them.
//!
//! Reading order: `key` names the objects of blocks; `local` and `memory` are stores; `codec` and `crypt`
//! turn the bytes of a block into those of its object (`keyfile` reads the volume's key); `blocks` puts the
//! four together as [`BlockStore`], which the cache calls. Knows keys and bytes, nothing of files.
//!
//! Invariants: `block-immutable` (a key is written once, a repeated put writes the same bytes),
//! `missing-is-error` (a get of what is not there fails, it never answers with zeros). Failure: every error
//! is an [`ObjectError`] that names the key.
//!
//! Counters kept by [`BlockStore`], in objects and bytes as stored. Handles are taken when a store is made, so
//! the recorder must be installed before.
//!
//! | name | counts |
//! |---|---|
//! | `sluice_object_gets_total`, `sluice_object_get_bytes_total` | gets that succeeded, their bytes |
//! | `sluice_object_puts_total`, `sluice_object_put_bytes_total` | puts that succeeded, their bytes |
//! | `sluice_object_deletes_total` | deletes that succeeded |
//! | `sluice_object_errors_total`, label `action`: `get`, `put`, `delete` | calls that failed |

pub mod blocks;
pub mod codec;
pub mod crypt;
pub mod key;
pub mod keyfile;
pub mod local;
pub mod memory;

use std::ops::Range;

use bytes::Bytes;

pub use blocks::{BlockStore, Layout};
pub use codec::Codec;
pub use crypt::{Cipher, Crypt};
pub use key::Naming;
pub use local::{LocalStore, ObjectSync};
pub use memory::MemoryStore;

use crate::error::ObjectError;

/// A place for objects. One per core; what cores share is inside.
#[expect(
    async_fn_in_trait,
    reason = "used by the core that owns it; futures need not be Send"
)]
pub trait ObjectStore {
    /// The object, or exactly the bytes `range` of it: a shorter object is damaged.
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError>;
    /// As `get` of the range, in pieces of `piece_bytes` (the last one shorter), each its own allocation.
    async fn get_pieces(
        &self,
        key: &str,
        range: Range<u64>,
        piece_bytes: u64,
    ) -> Result<Vec<Bytes>, ObjectError>;
    /// Stores an object whose bytes are those of `data` in order. When this returns, the object is there as
    /// a whole, and as durable as the store promises; if it fails or is dropped, either as a whole or not.
    async fn put(&self, key: &str, data: Vec<Bytes>) -> Result<(), ObjectError>;
    /// What is directly below `dir` (a key without a slash at its end; empty for the top), in no order. A
    /// directory that is not there is empty. Objects on their way are left out.
    async fn list(&self, dir: &str) -> Result<Vec<Listed>, ObjectError>;
    /// Removes a directory if it is empty, where the store has such.
    async fn remove_dir(&self, dir: &str) -> Result<(), ObjectError>;
    /// Deletes an object; one that is not there is deleted already.
    async fn delete(&self, key: &str) -> Result<(), ObjectError>;
}

/// One thing in a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Whole key.
    pub key: String,
    /// Whether it is a directory, with more below.
    pub is_dir: bool,
    /// Bytes as stored.
    pub bytes: u64,
    /// When it was written, unix s.
    pub modified: i64,
}

/// The stores there are.
pub enum AnyStore {
    /// A directory.
    Local(LocalStore),
    /// A map, for tests.
    Memory(MemoryStore),
}

impl ObjectStore for AnyStore {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        match self {
            AnyStore::Local(store) => store.get(key, range).await,
            AnyStore::Memory(store) => store.get(key, range).await,
        }
    }

    async fn get_pieces(
        &self,
        key: &str,
        range: Range<u64>,
        piece_bytes: u64,
    ) -> Result<Vec<Bytes>, ObjectError> {
        match self {
            AnyStore::Local(store) => store.get_pieces(key, range, piece_bytes).await,
            AnyStore::Memory(store) => store.get_pieces(key, range, piece_bytes).await,
        }
    }

    async fn put(&self, key: &str, data: Vec<Bytes>) -> Result<(), ObjectError> {
        match self {
            AnyStore::Local(store) => store.put(key, data).await,
            AnyStore::Memory(store) => store.put(key, data).await,
        }
    }

    async fn list(&self, dir: &str) -> Result<Vec<Listed>, ObjectError> {
        match self {
            AnyStore::Local(store) => store.list(dir).await,
            AnyStore::Memory(store) => store.list(dir).await,
        }
    }

    async fn remove_dir(&self, dir: &str) -> Result<(), ObjectError> {
        match self {
            AnyStore::Local(store) => store.remove_dir(dir).await,
            AnyStore::Memory(store) => store.remove_dir(dir).await,
        }
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        match self {
            AnyStore::Local(store) => store.delete(key).await,
            AnyStore::Memory(store) => store.delete(key).await,
        }
    }
}

/// Bytes in all pieces.
pub(crate) fn total_len(data: &[Bytes]) -> usize {
    data.iter().map(Bytes::len).sum()
}
