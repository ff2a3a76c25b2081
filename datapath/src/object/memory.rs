//! A store in memory: the twin of `local` for tests, with faults on demand.
//!
//! Clones share their objects, so that several cores of a test can use it. Gets can be held back to make a
//! race happen, are recorded, and any call can be made to fail by a hook.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_lock::{RwLock, RwLockWriteGuardArc};
use bytes::Bytes;
use parking_lot::Mutex;

use super::{Listed, ObjectStore};
use crate::error::ObjectError;

/// A call, to the hook that may fail it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Reading.
    Get,
    /// Writing.
    Put,
    /// Deleting.
    Delete,
    /// Listing.
    List,
}

/// Decides whether a call fails, by what and for which key.
pub type FaultHook = Box<dyn FnMut(Action, &str) -> Option<ObjectError> + Send>;

/// What a get asked for.
pub type Get = (String, Option<Range<u64>>);

/// See the module.
#[derive(Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    objects: Mutex<BTreeMap<String, Bytes>>,
    fault: Mutex<Option<FaultHook>>,
    gets: Mutex<Vec<Get>>,
    /// Held for writing while gets are held back.
    gate: Arc<RwLock<()>>,
}

impl MemoryStore {
    /// Empty and faultless.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// From now on asks `hook` before each call.
    pub fn set_fault(
        &self,
        hook: impl FnMut(Action, &str) -> Option<ObjectError> + Send + 'static,
    ) {
        *self.shared.fault.lock() = Some(Box::new(hook));
    }

    /// No more faults.
    pub fn clear_fault(&self) {
        *self.shared.fault.lock() = None;
    }

    /// Holds back gets until the guard is dropped; they are recorded when they arrive.
    pub async fn hold_gets(&self) -> RwLockWriteGuardArc<()> {
        self.shared.gate.write_arc().await
    }

    /// Gets so far, in order of arrival.
    pub fn gets(&self) -> Vec<Get> {
        self.shared.gets.lock().clone()
    }

    /// Names of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.shared.objects.lock().keys().cloned().collect()
    }

    /// An object's bytes.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.shared.objects.lock().get(key).cloned()
    }

    /// Puts an object in place, past the hook.
    pub fn insert(&self, key: &str, data: Bytes) {
        self.shared.objects.lock().insert(key.to_owned(), data);
    }

    fn fault(&self, action: Action, key: &str) -> Result<(), ObjectError> {
        let failed = self
            .shared
            .fault
            .lock()
            .as_mut()
            .and_then(|hook| hook(action, key));
        failed.map_or(Ok(()), Err)
    }
}

impl ObjectStore for MemoryStore {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        self.shared
            .gets
            .lock()
            .push((key.to_owned(), range.clone()));
        drop(self.shared.gate.read().await);
        self.fault(Action::Get, key)?;
        let object = self.object(key);
        let object = object.ok_or_else(|| ObjectError::NotFound {
            key: key.to_owned(),
        })?;
        let Some(range) = range else {
            return Ok(object);
        };
        if range.end > object.len() as u64 {
            return Err(super::local::too_short(key, range.end));
        }
        Ok(object.slice(range.start as usize..range.end as usize))
    }

    async fn get_pieces(
        &self,
        key: &str,
        range: Range<u64>,
        piece_bytes: u64,
    ) -> Result<Vec<Bytes>, ObjectError> {
        let bytes = self.get(key, Some(range)).await?;
        Ok(bytes
            .chunks(piece_bytes as usize)
            .map(Bytes::copy_from_slice)
            .collect())
    }

    async fn put(&self, key: &str, data: Vec<Bytes>) -> Result<(), ObjectError> {
        self.fault(Action::Put, key)?;
        self.insert(key, data.concat().into());
        Ok(())
    }

    async fn list(&self, dir: &str) -> Result<Vec<Listed>, ObjectError> {
        self.fault(Action::List, dir)?;
        let prefix = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        let mut found: Vec<Listed> = Vec::new();
        for (key, data) in self.shared.objects.lock().iter() {
            let Some(rest) = key.strip_prefix(&prefix) else {
                continue;
            };
            let (name, is_dir) = match rest.split_once('/') {
                Some((name, _)) => (name, true),
                None => (rest, false),
            };
            let key = format!("{prefix}{name}");
            if found.last().is_none_or(|last| last.key != key) {
                found.push(Listed {
                    key,
                    is_dir,
                    bytes: if is_dir { 0 } else { data.len() as u64 },
                    modified: 0,
                });
            }
        }
        Ok(found)
    }

    async fn remove_dir(&self, _dir: &str) -> Result<(), ObjectError> {
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<(), ObjectError> {
        self.fault(Action::Delete, key)?;
        self.shared.objects.lock().remove(key);
        Ok(())
    }
}
