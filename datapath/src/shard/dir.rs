//! Open directories: a listing, loaded page by page and served by position.
//!
//! Called by `dispatch` for OPENDIR, READDIR, READDIRPLUS and RELEASEDIR. Position 0 is `.`, 1 is `..`, in the
//! root 2 is `.trash`, then come the entries in the order in which the store gave them; the kernel's offset
//! is the position *after* an entry. Reading from offset 0 starts afresh, as rewinddir(3) asks for.
//! A listing is kept while its handle is open: memory grows with the part that was read, not with the
//! directory. Redis may answer a name twice while its hash grows, so names are remembered and dropped the
//! second time.
//!
//! Any core may serve any read of a handle; the stream is taken out of its slot while a page is loaded, and a
//! second reader of the same handle (the kernel sends none) starts a stream of its own.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_meta::changes::Moment;
use sluice_meta::client::{Meta, MetaResult};
use sluice_meta::engine::Cursor;
use sluice_meta::limits;
use sluice_meta::ops::DirEntry;
use sluice_meta::types::{Ino, Name};

/// An open directory.
#[derive(Debug)]
pub struct DirHandle {
    ino: Ino,
    stream: Mutex<Option<DirStream>>,
}

/// What remains to be loaded.
#[derive(Debug)]
enum Rest {
    Start,
    After(Cursor),
    Nothing,
}

/// The loaded part of a listing.
#[derive(Debug)]
pub struct DirStream {
    entries: Vec<(DirEntry, Instant, Moment)>,
    names: HashSet<Name>,
    rest: Rest,
    attrs: bool,
}

/// An entry at a position.
#[derive(Debug)]
pub struct Positioned<'a> {
    /// The entry.
    pub entry: &'a DirEntry,
    /// How long ago its attributes were read.
    pub age: Duration,
    /// When they were read, by the changes of this process.
    pub read: Moment,
}

impl DirHandle {
    /// For directory `ino`.
    pub fn new(ino: Ino) -> DirHandle {
        DirHandle {
            ino,
            stream: Mutex::new(None),
        }
    }

    /// Takes the stream to read at `offset`, with or without attributes.
    pub fn take(&self, offset: u64, attrs: bool) -> DirStream {
        let kept = self.stream.lock().take();
        match kept {
            Some(stream) if offset != 0 && (stream.attrs || !attrs) => stream,
            // From the start, or attributes are wanted that were not loaded: list again. Positions stay
            // comparable because stores list in a stable order while nothing changes.
            _ => DirStream {
                entries: Vec::new(),
                names: HashSet::new(),
                rest: Rest::Start,
                attrs,
            },
        }
    }

    /// Gives the stream back for the next read.
    pub fn put(&self, stream: DirStream) {
        *self.stream.lock() = Some(stream);
    }

    /// The directory.
    pub fn ino(&self) -> Ino {
        self.ino
    }
}

impl DirStream {
    /// Entry number `index` (0 is the first that is neither `.` nor `..`), loading pages as needed; `None`
    /// at the end.
    pub async fn entry(
        &mut self,
        meta: &Meta,
        dir: Ino,
        index: usize,
    ) -> MetaResult<Option<Positioned<'_>>> {
        while index >= self.entries.len() {
            let cursor = match &self.rest {
                Rest::Start => None,
                Rest::After(cursor) => Some(cursor),
                Rest::Nothing => return Ok(None),
            };
            let page = meta
                .readdir(dir, cursor, limits::DIR_PAGE_ENTRIES, self.attrs)
                .await?;
            let loaded = Instant::now();
            for entry in page.entries {
                if self.names.insert(entry.name.clone()) {
                    self.entries.push((entry, loaded, page.read));
                }
            }
            self.rest = page.next.map_or(Rest::Nothing, Rest::After);
        }
        let (entry, loaded, read) = &self.entries[index];
        Ok(Some(Positioned {
            entry,
            age: loaded.elapsed(),
            read: *read,
        }))
    }
}

/// The made-up entries at the head of a listing.
pub fn leading(dir: Ino, parent: Ino, with_trash: bool) -> Vec<(&'static [u8], Ino)> {
    let mut entries: Vec<(&'static [u8], Ino)> = vec![(b".", dir), (b"..", parent)];
    if with_trash {
        entries.push((b".trash", Ino::TRASH));
    }
    entries
}
