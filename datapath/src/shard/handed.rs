//! The names the kernel was told and may keep: what must be taken back when somebody else changes them.
//!
//! Kept only while `super::coherence` follows the store's changes; filled with every answer that names an entry,
//! or says that there is none. Names are filed under the directory's number in the store. Bounded: the oldest
//! name makes room for a new one and is taken back from the kernel, so the kernel never keeps a name for long
//! that is not here.
//!
//! Cost: one short lock on a part of the table for each entry handed out.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_meta::types::{Ino, Name};

/// Parts with a lock each.
const PARTS: usize = 16;
/// Names in a part. With its key twice and 40 bytes of overhead, a name of 20 bytes takes about 200.
const NAMES_MAX: usize = 4 << 10;

/// See the module.
#[derive(Debug)]
pub struct Handed {
    parts: Box<[Mutex<Part>]>,
}

/// A name that is taken back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TakenBack {
    /// Its directory.
    pub parent: Ino,
    /// The name.
    pub name: Name,
    /// What it named; [`Ino::NONE`] for a name that did not exist.
    pub ino: Ino,
}

#[derive(Debug, Default)]
struct Part {
    dirs: HashMap<Ino, HashMap<Name, Ino>>,
    /// In the order in which they were handed out; those taken back meanwhile are still here.
    order: VecDeque<(Ino, Name)>,
}

impl Default for Handed {
    fn default() -> Handed {
        Handed {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Handed {
    /// The kernel is told of an entry, or with [`Ino::NONE`] that there is none. Answers what it is to forget for
    /// that.
    #[must_use]
    pub fn note(&self, parent: Ino, name: &[u8], ino: Ino) -> Option<TakenBack> {
        let mut part = self.part(parent).lock();
        let names = part.dirs.entry(parent).or_default();
        if let Some(known) = names.get_mut(name) {
            *known = ino;
            return None;
        }
        let name = Bytes::copy_from_slice(name);
        names.insert(name.clone(), ino);
        part.order.push_back((parent, name));
        if part.order.len() <= NAMES_MAX {
            return None;
        }
        let (parent, name) = part.order.pop_front()?;
        part.forget(parent, &name)
    }

    /// The names that were handed out of a directory.
    pub fn names(&self, parent: Ino) -> Vec<Name> {
        let part = self.part(parent).lock();
        let names = part.dirs.get(&parent);
        names.map_or_else(Vec::new, |names| names.keys().cloned().collect())
    }

    /// Takes a name back, if it was handed out.
    pub fn take_back(&self, parent: Ino, name: &Name) -> Option<TakenBack> {
        self.part(parent).lock().forget(parent, name)
    }

    /// Takes everything back.
    pub fn take_all_back(&self) -> Vec<TakenBack> {
        let parts = self.parts.iter();
        let all = parts.flat_map(|part| std::mem::take(&mut *part.lock()).dirs);
        all.flat_map(|(parent, names)| {
            let taken = move |(name, ino)| TakenBack { parent, name, ino };
            names.into_iter().map(taken)
        })
        .collect()
    }

    fn part(&self, parent: Ino) -> &Mutex<Part> {
        &self.parts[parent.0 as usize % PARTS]
    }
}

impl Part {
    fn forget(&mut self, parent: Ino, name: &Name) -> Option<TakenBack> {
        let names = self.dirs.get_mut(&parent)?;
        let (name, ino) = names.remove_entry(name)?;
        if names.is_empty() {
            self.dirs.remove(&parent);
        }
        Some(TakenBack { parent, name, ino })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_name_makes_room() {
        let handed = Handed::default();
        let dir = Ino(5);
        for at in 0..NAMES_MAX {
            assert_eq!(handed.note(dir, at.to_string().as_bytes(), Ino(9)), None);
        }
        // Known already: nothing moves.
        assert_eq!(handed.note(dir, b"0", Ino(10)), None);
        let oldest = TakenBack {
            parent: dir,
            name: Name::from_static(b"0"),
            ino: Ino(10),
        };
        assert_eq!(handed.note(dir, b"new", Ino(9)), Some(oldest));
        assert_eq!(handed.names(dir).len(), NAMES_MAX);
    }

    #[test]
    fn names_are_taken_back_once() {
        let handed = Handed::default();
        assert_eq!(handed.note(Ino(5), b"a", Ino(6)), None);
        assert_eq!(handed.note(Ino(5), b"none", Ino::NONE), None);
        let name = Name::from_static(b"a");
        assert_eq!(
            handed.take_back(Ino(5), &name).map(|it| it.ino),
            Some(Ino(6))
        );
        assert_eq!(handed.take_back(Ino(5), &name), None);
        assert_eq!(handed.take_all_back().len(), 1);
        assert!(handed.names(Ino(5)).is_empty());
    }
}
