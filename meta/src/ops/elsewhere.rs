//! Telling other clients' changes from our own, when the store says that something changed.
//!
//! A store that pushes changes does not say whose they are. What this process knows of a record
//! ([`crate::recall`]) has its own changes in it, so a record that still reads as it is remembered was not
//! changed by anybody else. Called by the task that follows the store's pushes, with what gathered in a few
//! milliseconds; one round trip for each [`limits::ELSEWHERE_KEYS`] records that are remembered, none for others.
//!
//! In doubt (nothing remembered, or a commit of ours is on its way) a change counts as somebody else's: the
//! kernel then asks again for what it could have kept.

use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Key, Record};
use crate::limits;
use crate::types::{Attr, Dentry, Ino, Name};

/// An inode that somebody else changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangedInode {
    /// Which.
    pub ino: Ino,
    /// Whether its content may have changed as well: mtime or length did.
    pub content: bool,
}

impl Meta {
    /// Of `inodes`, those that others changed, or may have.
    pub async fn inodes_changed_elsewhere(&self, inodes: &[Ino]) -> MetaResult<Vec<ChangedInode>> {
        let mut changed = Vec::new();
        for inodes in inodes.chunks(limits::ELSEWHERE_KEYS) {
            let mut known: Vec<(Ino, Attr)> = Vec::with_capacity(inodes.len());
            for &ino in inodes {
                match self.shared.recall.attr(ino) {
                    Some(attr) => known.push((ino, attr)),
                    None => changed.push(ChangedInode { ino, content: true }),
                }
            }
            let keys: Vec<Key> = known.iter().map(|(ino, _)| Key::Attr(*ino)).collect();
            for ((ino, known), found) in known.into_iter().zip(self.look(&keys).await?) {
                let found = found.map(Record::attr).transpose()?;
                if found.as_ref() != Some(&known) {
                    // A commit of ours on its way may have kept the new record from being remembered.
                    self.shared.recall.correct(ino, found.as_ref());
                    let content = found.is_none_or(|found| {
                        (found.mtime, found.length) != (known.mtime, known.length)
                    });
                    changed.push(ChangedInode { ino, content });
                }
            }
        }
        Ok(changed)
    }

    /// Of `names` in `parent`, those that others changed, or may have.
    pub async fn names_changed_elsewhere(
        &self,
        parent: Ino,
        names: &[Name],
    ) -> MetaResult<Vec<Name>> {
        let mut changed = Vec::new();
        for names in names.chunks(limits::ELSEWHERE_KEYS) {
            let mut known: Vec<(Name, Option<Dentry>)> = Vec::with_capacity(names.len());
            for name in names {
                match self.shared.recall.entry(parent, name) {
                    Some(dentry) => known.push((name.clone(), dentry)),
                    None => changed.push(name.clone()),
                }
            }
            let key = |name: &Name| Key::Dentry {
                parent,
                name: name.clone(),
            };
            let keys: Vec<Key> = known.iter().map(|(name, _)| key(name)).collect();
            for ((name, known), found) in known.into_iter().zip(self.look(&keys).await?) {
                if found.map(Record::dentry).transpose()? != known {
                    changed.push(name);
                }
            }
        }
        Ok(changed)
    }

    /// Reads and remembers.
    async fn look(&self, keys: &[Key]) -> MetaResult<Vec<Option<Record>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let asked = self.now();
        let records = self.engine.read(keys).await?;
        self.shared.recall.learn(keys, &records, asked);
        Ok(records)
    }
}
