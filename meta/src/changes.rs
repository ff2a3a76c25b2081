//! Which inodes this process has changed lately: how an attribute that was read a while ago is known to be old.
//!
//! [`crate::client::Meta`] marks every inode whose attributes or names a commit of this process touched; a listing,
//! whose attributes reach the kernel some time after they were read, asks before it hands each of them out. One
//! clock for all cores; an inode's last change is kept in one of a fixed number of slots, which inodes share.
//! So the answer "unchanged" is always right and "changed" may be about another inode.
//!
//! Cost: two atomic operations per changed inode, one load per question.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Write;
use crate::types::Ino;

/// Inodes that were changed by different commits of one listing's life should rarely share a slot.
const SLOTS: usize = 4096;

/// A moment, by the changes that came before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(u64);

/// The changes of one process.
#[derive(Debug)]
pub struct Changes {
    clock: AtomicU64,
    last: Box<[AtomicU64]>,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes {
            clock: AtomicU64::new(0),
            last: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Changes {
    /// The present moment: to be taken before attributes are read.
    pub fn now(&self) -> Moment {
        Moment(self.clock.load(Ordering::SeqCst))
    }

    /// Marks an inode as changed, after the change and before anybody is told of it.
    pub fn mark(&self, ino: Ino) {
        let moment = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        self.slot(ino).fetch_max(moment, Ordering::SeqCst);
    }

    /// Whether attributes of `ino` that were read after `read` are still what this process made them.
    pub fn unchanged_since(&self, ino: Ino, read: Moment) -> bool {
        self.slot(ino).load(Ordering::SeqCst) <= read.0
    }

    fn slot(&self, ino: Ino) -> &AtomicU64 {
        // Numbers come in rows: neighbours have slots of their own.
        &self.last[ino.0 as usize % SLOTS]
    }
}

/// The inodes whose attributes or names these writes touch.
pub(crate) fn touched(writes: &[Write]) -> Vec<Ino> {
    writes
        .iter()
        .filter_map(|write| match write {
            Write::UpdateAttr { ino, .. }
            | Write::PatchDir { ino, .. }
            | Write::DeleteAttr(ino) => Some(*ino),
            // Its other name, where it had one, is gone.
            Write::ReplaceDentry { dentry, .. } => Some(dentry.ino),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_old() {
        let changes = Changes::default();
        let before = changes.now();
        assert!(changes.unchanged_since(Ino(7), before));
        changes.mark(Ino(7));
        assert!(!changes.unchanged_since(Ino(7), before));
        assert!(changes.unchanged_since(Ino(8), before));
        assert!(changes.unchanged_since(Ino(7), changes.now()));
    }

    #[test]
    fn a_shared_slot_may_only_say_too_much() {
        let changes = Changes::default();
        let before = changes.now();
        changes.mark(Ino(7));
        assert!(!changes.unchanged_since(Ino(7 + SLOTS as u64), before));
    }
}
