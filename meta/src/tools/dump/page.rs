//! The records of a page of entries, in two round trips: attributes and names of extended attributes first,
//! then what they say is there.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::Dumper;
use crate::engine::{Engine, Key, Record};
use crate::error::EngineError;
use crate::types::{Attr, ChunkIndex, Dentry, FileKind, Name, Slice};

/// An entry with all its records but the chunks after the first.
pub(super) struct Loaded {
    pub(super) name: Name,
    pub(super) dentry: Dentry,
    /// `None` when the entry dangles.
    pub(super) attr: Option<Attr>,
    /// By name.
    pub(super) xattrs: Vec<(Name, Bytes)>,
    /// The first chunk's list, if the file has one.
    pub(super) chunk: Option<Vec<Slice>>,
    /// Of a symlink.
    pub(super) target: Option<Bytes>,
}

impl Loaded {
    /// As the inode says, or the entry if there is no inode.
    pub(super) fn kind(&self) -> FileKind {
        self.attr
            .as_ref()
            .map_or(self.dentry.kind, |attr| attr.kind)
    }
}

impl<E: Engine> Dumper<'_, E> {
    pub(super) async fn load(
        &mut self,
        entries: Vec<(Name, Dentry)>,
    ) -> Result<VecDeque<Loaded>, EngineError> {
        if entries.is_empty() {
            return Ok(VecDeque::new());
        }
        let keys: Vec<Key> = entries
            .iter()
            .flat_map(|(_, dentry)| [Key::Attr(dentry.ino), Key::XattrNames(dentry.ino)])
            .collect();
        let mut records = self.engine.read(&keys).await?.into_iter();
        let mut loaded = VecDeque::with_capacity(entries.len());
        let mut keys = Vec::new();
        for (name, dentry) in entries {
            let attr = records.next().flatten().map(Record::attr).transpose()?;
            let names = records.next().flatten().map(Record::names).transpose()?;
            let mut names = names.unwrap_or_default();
            names.sort_unstable();
            let ino = dentry.ino;
            let xattrs: Vec<_> = names.into_iter().map(|name| (name, Bytes::new())).collect();
            keys.extend(xattrs.iter().map(|(name, _)| Key::Xattr {
                ino,
                name: name.clone(),
            }));
            match attr.as_ref().map(|attr| (attr.kind, attr.length)) {
                Some((FileKind::File, 1..)) => keys.push(Key::Chunk {
                    ino,
                    index: ChunkIndex(0),
                }),
                Some((FileKind::Symlink, _)) => keys.push(Key::Symlink(ino)),
                _ => {}
            }
            loaded.push_back(Loaded {
                name,
                dentry,
                attr,
                xattrs,
                chunk: None,
                target: None,
            });
        }
        self.complete(keys, &mut loaded).await?;
        Ok(loaded)
    }

    /// The second round trip; `keys` are in the order in which the answers are taken here.
    async fn complete(
        &mut self,
        mut keys: Vec<Key>,
        loaded: &mut VecDeque<Loaded>,
    ) -> Result<(), EngineError> {
        let attrs = loaded.iter().filter_map(|entry| entry.attr.as_ref());
        let named: BTreeSet<u32> = attrs
            .flat_map(|attr| [attr.access_acl, attr.default_acl])
            .filter(|id| *id != 0 && !self.acls.contains_key(id))
            .collect();
        keys.extend(named.iter().map(|id| Key::Acl(*id)));
        if keys.is_empty() {
            return Ok(());
        }
        let mut records = self.engine.read(&keys).await?.into_iter();
        for entry in loaded {
            // One that was removed meanwhile is left out.
            let mut present = Vec::with_capacity(entry.xattrs.len());
            for (name, _) in std::mem::take(&mut entry.xattrs) {
                if let Some(record) = records.next().flatten() {
                    present.push((name, record.bytes()?));
                }
            }
            entry.xattrs = present;
            match entry.attr.as_ref().map(|attr| (attr.kind, attr.length)) {
                Some((FileKind::File, 1..)) => {
                    entry.chunk = records.next().flatten().map(Record::slices).transpose()?;
                }
                Some((FileKind::Symlink, _)) => {
                    entry.target = records.next().flatten().map(Record::bytes).transpose()?;
                }
                _ => {}
            }
        }
        for id in named {
            if let Some(record) = records.next().flatten() {
                self.acls.insert(id, record.acl()?);
            }
        }
        Ok(())
    }
}
