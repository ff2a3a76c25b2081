//! Objects kept open for reading on one core, the least recently used closed first.
//!
//! Called by gets and deletes of `local`. Finding one is one hash lookup; making room looks at all of them
//! (256, once per object opened). A file that is closed here while a read uses it closes after that read.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use crate::runtime::BufferedFile;

/// See the module.
pub(super) struct OpenFiles<F = BufferedFile> {
    files: RefCell<HashMap<Box<str>, Open<F>>>,
    capacity: usize,
    /// Counts uses; the time of a use.
    clock: Cell<u64>,
}

struct Open<F> {
    file: Rc<F>,
    used: u64,
}

impl<F> OpenFiles<F> {
    pub(super) fn new(capacity: usize) -> OpenFiles<F> {
        OpenFiles {
            files: RefCell::default(),
            capacity,
            clock: Cell::new(0),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Rc<F>> {
        let mut files = self.files.borrow_mut();
        let open = files.get_mut(key)?;
        open.used = self.tick();
        Some(Rc::clone(&open.file))
    }

    pub(super) fn insert(&self, key: &str, file: Rc<F>) {
        let used = self.tick();
        let mut files = self.files.borrow_mut();
        if files.len() >= self.capacity && !files.contains_key(key) {
            let oldest = files.iter().min_by_key(|(_, open)| open.used);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                files.remove(&key);
            }
        }
        files.insert(key.into(), Open { file, used });
    }

    pub(super) fn remove(&self, key: &str) {
        let removed = self.files.borrow_mut().remove(key);
        drop(removed);
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes() {
        let files = OpenFiles::new(2);
        files.insert("a", Rc::new(1));
        files.insert("b", Rc::new(2));
        assert_eq!(files.get("a").as_deref(), Some(&1));
        files.insert("c", Rc::new(3));
        assert_eq!(files.get("b"), None);
        files.insert("a", Rc::new(4));
        assert_eq!(files.get("a").as_deref(), Some(&4));
        assert_eq!(files.get("c").as_deref(), Some(&3));
        files.remove("c");
        assert_eq!(files.get("c"), None);
    }
}
