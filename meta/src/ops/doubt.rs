//! Commits whose answer was lost ([`EngineError::UnknownFate`]): whether they were applied is found out before the
//! operation goes on, so that it is neither done twice nor reported as failed when it was done.
//!
//! Called by [`Meta::apply`](super::plan) only. What tells is what the commit itself would have left behind, the
//! surest first:
//! - it makes inodes: their numbers are nobody else's, so they exist exactly if it was applied;
//! - it changes entries: those it sets name its inodes, those it removes no longer name theirs, and the inodes it
//!   deletes are gone;
//! - it changes inodes: their records are those it wrote, with a ctime of our clock;
//! - it deletes inodes, or sets extended attributes: they are gone, or have its values.
//!
//! Without such a trace the same commit is sent again. Should the lost one still arrive, then one of the two
//! fails, for each of them undoes what both check (what checks nothing of the kind can be done twice); if ours
//! is the one that fails, the trace is looked for once more.
//!
//! What cannot be told apart: another client did the same thing (removed the same entry) before ours came, in the
//! same moment or, if the attempt rests on memory, since that was read; or it undid ours before we looked. The
//! first counts as done by us; the second is done again, as if it had come after.
//!
//! Round trips: none without a lost answer; else one to look, and one for each commit sent again.

use crate::client::Meta;
use crate::engine::{Check, Engine, EngineResult, Key, Outcome, Record, Txn, Write};
use crate::error::EngineError;
use crate::limits::DOUBT_LOOKS_MAX;
use crate::types::{Attr, Dentry, Ino, Name};

use bytes::Bytes;

/// A record that a commit would have left.
enum Trace {
    /// The inode exists.
    Exists,
    /// The inode does not exist.
    Gone,
    /// The inode's record is this.
    Is(Attr),
    /// The entry names this inode.
    Names(Ino),
    /// The entry does not name this inode; `None`: it is not there at all.
    NamesNot(Option<Ino>),
    /// The extended attribute has this value; `None`: it is not there.
    Holds(Option<Bytes>),
}

impl Trace {
    fn matches(self, found: Option<Record>) -> EngineResult<bool> {
        Ok(match self {
            Trace::Exists => found.is_some(),
            Trace::Gone => found.is_none(),
            Trace::Is(attr) => found.map(Record::attr).transpose()? == Some(attr),
            Trace::Names(ino) => names(found)? == Some(ino),
            Trace::NamesNot(Some(ino)) => names(found)? != Some(ino),
            Trace::NamesNot(None) => found.is_none(),
            Trace::Holds(value) => found.map(Record::bytes).transpose()? == value,
        })
    }
}

fn names(found: Option<Record>) -> EngineResult<Option<Ino>> {
    let dentry = found.map(Record::dentry).transpose()?;
    Ok(dentry.map(|dentry: Dentry| dentry.ino))
}

impl Meta {
    /// Commits `txn`; if the answer is lost, finds out what became of it. `Committed` comes without results then.
    /// `UnknownFate` is left if the store stays away for longer than the engine's patience.
    pub(super) async fn commit_surely(&self, txn: Txn) -> EngineResult<Outcome> {
        let mut doubt = match self.commit_marked(txn.clone()).await {
            Err(doubt @ EngineError::UnknownFate { .. }) => doubt,
            certain => return certain,
        };
        for _ in 0..DOUBT_LOOKS_MAX {
            tracing::debug!(error = %doubt, "looking whether a change was applied");
            match self.left_traces(&txn).await {
                Ok(true) => return Ok(Outcome::Committed(Vec::new())),
                Ok(false) => {}
                Err(error) if error.is_transient() => continue,
                Err(_) => return Err(doubt),
            }
            match self.commit_marked(txn.clone()).await {
                Ok(Outcome::Conflict { check }) => {
                    // Of the lost one that arrived meanwhile, perhaps.
                    return Ok(match self.left_traces(&txn).await {
                        Ok(true) => Outcome::Committed(Vec::new()),
                        Ok(false) => Outcome::Conflict { check },
                        Err(error) if error.is_transient() => continue,
                        Err(_) => return Err(doubt),
                    });
                }
                Err(error @ EngineError::UnknownFate { .. }) => doubt = error,
                Err(error) if error.is_transient() => {}
                // Also if it is refused for good: the lost one may not have been.
                Err(_) => return Err(doubt),
                committed => return committed,
            }
        }
        Err(doubt)
    }

    /// Whether the store is as `txn` would have left it, as far as that tells something.
    async fn left_traces(&self, txn: &Txn) -> EngineResult<bool> {
        let (keys, traces): (Vec<Key>, Vec<Trace>) = traces(txn).into_iter().unzip();
        if keys.is_empty() {
            return Ok(false);
        }
        let found = self.engine.read(&keys).await?;
        for (trace, found) in traces.into_iter().zip(found) {
            if !trace.matches(found)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The records that tell whether a commit was applied.
fn traces(txn: &Txn) -> Vec<(Key, Trace)> {
    let collect = |of: fn(&Txn, &Write) -> Option<(Key, Trace)>| -> Vec<(Key, Trace)> {
        txn.writes
            .iter()
            .filter_map(|write| of(txn, write))
            .collect()
    };
    let made = collect(of_new_inode);
    if !made.is_empty() {
        return made;
    }
    let mut moved = collect(of_entry);
    if !moved.is_empty() {
        moved.extend(collect(of_deleted));
        return moved;
    }
    for of in [of_record, of_deleted, of_xattr] {
        let found = collect(of);
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn of_new_inode(_: &Txn, write: &Write) -> Option<(Key, Trace)> {
    match write {
        Write::InsertAttr { ino, .. } => Some((Key::Attr(*ino), Trace::Exists)),
        _ => None,
    }
}

fn of_entry(txn: &Txn, write: &Write) -> Option<(Key, Trace)> {
    let key = |parent: &Ino, name: &Name| Key::Dentry {
        parent: *parent,
        name: name.clone(),
    };
    match write {
        Write::InsertDentry {
            parent,
            name,
            dentry,
        }
        | Write::ReplaceDentry {
            parent,
            name,
            dentry,
        } => Some((key(parent, name), Trace::Names(dentry.ino))),
        Write::DeleteDentry { parent, name } => {
            let before = txn.checks.iter().find_map(|check| match check {
                Check::Dentry {
                    parent: dir,
                    name: entry,
                    expect,
                } if (dir, entry) == (parent, name) => *expect,
                _ => None,
            });
            let before = before.map(|dentry| dentry.ino);
            Some((key(parent, name), Trace::NamesNot(before)))
        }
        _ => None,
    }
}

fn of_deleted(_: &Txn, write: &Write) -> Option<(Key, Trace)> {
    match write {
        Write::DeleteAttr(ino) => Some((Key::Attr(*ino), Trace::Gone)),
        _ => None,
    }
}

fn of_record(_: &Txn, write: &Write) -> Option<(Key, Trace)> {
    match write {
        Write::UpdateAttr { ino, new, .. } => Some((Key::Attr(*ino), Trace::Is(new.clone()))),
        _ => None,
    }
}

fn of_xattr(_: &Txn, write: &Write) -> Option<(Key, Trace)> {
    let key = |ino: &Ino, name: &Name| Key::Xattr {
        ino: *ino,
        name: name.clone(),
    };
    match write {
        Write::PutXattr { ino, name, value } => {
            Some((key(ino, name), Trace::Holds(Some(value.clone()))))
        }
        Write::DeleteXattr { ino, name } => Some((key(ino, name), Trace::Holds(None))),
        _ => None,
    }
}
