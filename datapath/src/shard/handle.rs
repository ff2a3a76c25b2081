//! Handle numbers and open directories of a mount.
//!
//! A file's handle number says all that is needed to serve it: it is odd when the file was opened for reading
//! only, even when it may be written. So reads and writes of files look nothing up. Directories have state and
//! a table: one short lock for each directory read, none for files.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_meta::types::Ino;

use super::dir::DirHandle;

/// Table of one mount, shared by its cores.
#[derive(Debug, Default)]
pub struct Handles {
    last: AtomicU64,
    dirs: Mutex<HashMap<u64, Arc<DirHandle>>>,
}

impl Handles {
    /// A number for a newly opened file.
    pub fn file(&self, writable: bool) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        (number << 1) | u64::from(!writable)
    }

    /// Whether a file handle may write.
    pub fn is_writable(fh: u64) -> bool {
        fh & 1 == 0
    }

    /// Opens a directory.
    pub fn open_dir(&self, ino: Ino) -> u64 {
        let fh = self.file(false);
        self.dirs.lock().insert(fh, Arc::new(DirHandle::new(ino)));
        fh
    }

    /// An open directory.
    pub fn dir(&self, fh: u64) -> Option<Arc<DirHandle>> {
        self.dirs.lock().get(&fh).cloned()
    }

    /// Closes a directory.
    pub fn close_dir(&self, fh: u64) {
        self.dirs.lock().remove(&fh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_tells_whether_it_may_write() {
        let handles = Handles::default();
        let (reader, writer) = (handles.file(false), handles.file(true));
        assert!(!Handles::is_writable(reader) && Handles::is_writable(writer));
        assert_ne!(reader, writer);
        let dir = handles.open_dir(Ino(7));
        assert_eq!(handles.dir(dir).unwrap().ino(), Ino(7));
        handles.close_dir(dir);
        assert!(handles.dir(dir).is_none());
    }
}
