//! Trees of clones that were never finished.
//!
//! A clone is made under a detached root ([`crate::ops::clone`]). One that is older than
//! [`limits::DETACHED_AGE`] was abandoned: its tree is taken away. As with JuiceFS this is no job of a mount;
//! `gc` asks for it.

use super::trash::{FileSink, Reaping};
use crate::client::{Meta, MetaResult};
use crate::engine::{Engine, Item, Scan};
use crate::limits;
use crate::ops::remove_tree::TreeEnd;

impl Meta {
    /// Takes away trees of clones that were begun before `edge`, unix s (an ordinary one: now less
    /// [`limits::DETACHED_AGE`]). Answers how many. Files are passed to `sink` as they go.
    pub async fn clean_detached(&self, edge: i64, sink: &dyn FileSink) -> MetaResult<u64> {
        self.check_writable()?;
        let reaping = Reaping::new(self, sink);
        let mut abandoned = Vec::new();
        let mut cursor = None;
        loop {
            let page = self
                .engine
                .scan(&Scan::Detached, cursor.as_ref(), limits::SESSION_PAGE)
                .await?;
            abandoned.extend(page.items.into_iter().filter_map(|item| match item {
                Item::Detached { ino, time } if time < edge => Some(ino),
                _ => None,
            }));
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        let mut cleaned = 0;
        for root in abandoned {
            if self.discard_tree(root, &reaping).await? == TreeEnd::Stopped {
                break;
            }
            cleaned += 1;
        }
        Ok(cleaned)
    }
}
