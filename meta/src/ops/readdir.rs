//! `readdir`: pages of a listing.
//!
//! Round trips: one scan a page. Only a first page without entries asks for the directory itself, to tell an
//! empty directory from none. Entries keep the order of the store; `.` and `..` are the front door's. An entry
//! present throughout is listed at least once. Names of no length are damage and hidden, as JuiceFS does.

use crate::client::{Meta, MetaResult};
use crate::engine::{Cursor, Engine, Item, Scan};
use crate::limits::DIR_PAGE_ENTRIES;
use crate::ops::{DirEntry, DirPage};
use crate::types::Ino;

use super::rules;

impl Meta {
    /// A page of a listing, `.` and `..` excluded; of the root, `.trash` excluded too. Attributes, if asked
    /// for, are missing in entries that dangle.
    pub async fn readdir(
        &self,
        dir: Ino,
        cursor: Option<&Cursor>,
        limit: usize,
        attrs: bool,
    ) -> MetaResult<DirPage> {
        let limit = limit.clamp(1, DIR_PAGE_ENTRIES);
        let read = self.shared.changes.now();
        let page = self
            .engine
            .scan(&Scan::Dir { parent: dir, attrs }, cursor, limit)
            .await?;
        let entries: Vec<DirEntry> = page.items.into_iter().filter_map(listed).collect();
        if entries.is_empty() && cursor.is_none() {
            rules::directory(Some(self.getattr(dir).await?))?;
        }
        Ok(DirPage {
            entries,
            next: page.next,
            read,
        })
    }
}

fn listed(item: Item) -> Option<DirEntry> {
    match item {
        Item::Entry { name, dentry, attr } if !name.is_empty() => Some(DirEntry {
            name,
            ino: dentry.ino,
            kind: dentry.kind,
            attr,
        }),
        _ => None,
    }
}
