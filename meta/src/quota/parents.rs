//! Which directory is in which: what the walk from a directory to the quotas above it needs.
//!
//! Learnt from what passes by (lookups, attributes, creates, renames) while some directory has a quota. No
//! entry expires; one that another client made wrong by a rename is put right when the directory is seen
//! again, as in JuiceFS. When the map is full it starts anew: what is missing is read again.

use std::collections::HashMap;

use parking_lot::RwLock;

use crate::limits::{DIR_DEPTH_MAX, QUOTA_PARENTS_MAX};
use crate::types::Ino;

/// Directory -> parent.
#[derive(Debug, Default)]
pub(super) struct Parents(RwLock<HashMap<Ino, Ino>>);

impl Parents {
    pub(super) fn learn(&self, dir: Ino, parent: Ino) {
        if dir == Ino::ROOT || dir.is_trash() || parent == Ino::NONE {
            return;
        }
        // Most is known already: no need to exclude the readers.
        if self.0.read().get(&dir) == Some(&parent) {
            return;
        }
        let mut map = self.0.write();
        if map.len() >= QUOTA_PARENTS_MAX {
            map.clear();
        }
        map.insert(dir, parent);
    }

    pub(super) fn forget(&self, dir: Ino) {
        self.0.write().remove(&dir);
    }

    pub(super) fn clear(&self) {
        *self.0.write() = HashMap::new();
    }

    /// The directories from `dir` to the root, and the one whose parent is not known, if any. Nothing for
    /// what is in the trash.
    pub(super) fn upwards(&self, dir: Ino) -> (Vec<Ino>, Option<Ino>) {
        let map = self.0.read();
        let mut path = Vec::new();
        let mut at = dir;
        while path.len() < DIR_DEPTH_MAX {
            if at.is_trash() {
                return (Vec::new(), None);
            }
            path.push(at);
            if at == Ino::ROOT {
                return (path, None);
            }
            match map.get(&at) {
                Some(parent) => at = *parent,
                None => return (path, Some(at)),
            }
        }
        // Two clients that moved directories below each other, or damage: better no quota than a wrong one.
        (Vec::new(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_and_strangers_end_the_walk() {
        let parents = Parents::default();
        parents.learn(Ino(2), Ino(3));
        parents.learn(Ino(3), Ino(2));
        assert_eq!(parents.upwards(Ino(2)), (vec![], None));
        assert_eq!(parents.upwards(Ino(9)), (vec![Ino(9)], Some(Ino(9))));
        parents.learn(Ino(9), Ino::NONE);
        assert_eq!(parents.upwards(Ino(9)).1, Some(Ino(9)));
        assert_eq!(parents.upwards(Ino::ROOT), (vec![Ino::ROOT], None));
        parents.clear();
        assert_eq!(parents.upwards(Ino(2)), (vec![Ino(2)], Some(Ino(2))));
    }
}
