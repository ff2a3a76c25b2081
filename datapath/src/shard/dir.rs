//! Open directories: a listing, loaded page by page and served by position.
//!
//! Called by `dispatch` for OPENDIR, READDIR, READDIRPLUS and RELEASEDIR. Position 0 is `.`, 1 is `..`, in the
//! root 2 is `.trash`, then come the entries in the order in which the store gave them; the kernel's offset
//! is the position *after* an entry. Reading from offset 0 starts afresh, as rewinddir(3) asks for.
//! While a page is served the next one is read ahead, on the core that was asked for the first: the kernel and the
//! store then work at the same time.
//! Memory is bounded whatever the directory's size: of what was served only the last [`BEHIND`] entries are
//! kept. Who seeks back further makes the listing start again and be skipped to that position, which is the same
//! entry's as long as nothing changes. Redis may answer a name twice in a row of pages while its hash shrinks, so
//! names that are kept are dropped the second time.
//!
//! Any core may serve any read of a handle; the stream is taken out of its slot while a page is loaded, and a
//! second reader of the same handle (the kernel sends none) starts a stream of its own.

use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sluice_meta::changes::Moment;
use sluice_meta::client::{Meta, MetaResult};
use sluice_meta::engine::Cursor;
use sluice_meta::limits;
use sluice_meta::ops::{DirEntry, DirPage};
use sluice_meta::types::{Ino, Name};

use crate::runtime::{Mailbox, Tasks};

/// Entries kept behind the one that was served last: more than the largest reply holds.
const BEHIND: usize = 8192;
/// Entries of the first page: a listing begins soon, and small directories are one page all the same.
const FIRST_PAGE: usize = 512;

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
    /// Read ahead, from this place.
    Coming(Ahead, Cursor),
    Nothing,
}

/// The loaded part of a listing.
#[derive(Debug)]
pub struct DirStream {
    entries: VecDeque<(DirEntry, Instant, Moment)>,
    /// Entries that came before those.
    gone: usize,
    /// Names among `entries`.
    names: HashSet<Name>,
    rest: Rest,
    attrs: bool,
}

/// A page that is read ahead, for whichever core wants it.
type Ahead = Arc<Mailbox<MetaResult<DirPage>>>;

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
            _ => DirStream::new(attrs),
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
    fn new(attrs: bool) -> DirStream {
        DirStream {
            entries: VecDeque::new(),
            gone: 0,
            names: HashSet::new(),
            rest: Rest::Start,
            attrs,
        }
    }

    /// Entry number `index` (0 is the first that is neither `.` nor `..`), loading pages as needed; `None`
    /// at the end.
    pub async fn entry(
        &mut self,
        meta: &Rc<Meta>,
        tasks: &Tasks,
        dir: Ino,
        index: usize,
    ) -> MetaResult<Option<Positioned<'_>>> {
        if index < self.gone {
            *self = DirStream::new(self.attrs);
        }
        while index >= self.gone + self.entries.len() {
            let page = match &self.rest {
                Rest::Start => meta.readdir(dir, None, FIRST_PAGE, self.attrs).await?,
                Rest::After(cursor) => read(meta, dir, cursor, self.attrs).await?,
                Rest::Coming(ahead, cursor) => {
                    let page = ahead.recv().await;
                    // Whatever became of it: read anew from the same place if this one fails.
                    self.rest = Rest::After(cursor.clone());
                    match page {
                        Some(page) => page?,
                        None => continue,
                    }
                }
                Rest::Nothing => return Ok(None),
            };
            let loaded = Instant::now();
            for entry in page.entries {
                if self.names.insert(entry.name.clone()) {
                    self.entries.push_back((entry, loaded, page.read));
                }
            }
            self.trim(index);
            self.rest = match page.next {
                Some(next) => {
                    let ahead = read_ahead(meta, tasks, dir, next.clone(), self.attrs);
                    Rest::Coming(ahead, next)
                }
                None => Rest::Nothing,
            };
        }
        let found = self.entries.get(index - self.gone);
        Ok(found.map(|(entry, loaded, read)| Positioned {
            entry,
            age: loaded.elapsed(),
            read: *read,
        }))
    }

    /// Forgets what is far behind entry number `index`.
    fn trim(&mut self, index: usize) {
        while self.gone + BEHIND < index
            && let Some((entry, ..)) = self.entries.pop_front()
        {
            self.names.remove(&entry.name);
            self.gone += 1;
        }
    }
}

async fn read(meta: &Meta, dir: Ino, cursor: &Cursor, attrs: bool) -> MetaResult<DirPage> {
    meta.readdir(dir, Some(cursor), limits::DIR_PAGE_ENTRIES, attrs)
        .await
}

/// Begins to read the page at `cursor`. Nobody may want it any more when it has come.
fn read_ahead(meta: &Rc<Meta>, tasks: &Tasks, dir: Ino, cursor: Cursor, attrs: bool) -> Ahead {
    let ahead: Ahead = Arc::new(Mailbox::new(1));
    let (meta, coming) = (Rc::clone(meta), Closing(Arc::clone(&ahead)));
    tasks.spawn(async move {
        let page = read(&meta, dir, &cursor, attrs).await;
        let _ = coming.0.post(page);
    });
    ahead
}

/// Tells whoever waits that nothing comes any more, when the task that reads ahead is over or dropped.
struct Closing(Ahead);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
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

#[cfg(test)]
mod tests {
    use sluice_meta::types::FileKind;

    use super::*;

    #[test]
    fn what_is_far_behind_is_forgotten() {
        let mut stream = DirStream::new(false);
        let moment = sluice_meta::changes::Changes::default().now();
        for at in 0..3 * BEHIND {
            let name = Name::from(format!("{at}"));
            stream.names.insert(name.clone());
            let entry = DirEntry {
                name,
                ino: Ino(at as u64 + 2),
                kind: FileKind::File,
                attr: None,
            };
            stream.entries.push_back((entry, Instant::now(), moment));
            stream.trim(at);
            assert!(stream.entries.len() <= BEHIND + 1);
            assert_eq!(stream.names.len(), stream.entries.len());
        }
        assert_eq!(stream.gone + stream.entries.len(), 3 * BEHIND);
    }
}
