//! Removing many entries of one directory in one commit.
//!
//! Called by the walks that remove trees and empty the trash. Effects are those of `unlink` for each entry
//! ([`super::removal`]), with the parent's record and the volume's sums touched once.
//!
//! Round trips: one read of the parent and all entries, one commit, for up to [`limits::UNLINK_BATCH`] names;
//! two more for each attempt that loses. An entry that changes between read and commit fails the commit: it is
//! left out and the rest tried again. What needs more than a batch can do is left out from the start:
//! directories, files held open here (they need a pin each), further names of a file that is in the batch
//! already, and entries whose rules say no. The caller removes those one by one and gets their own errors.

use std::cell::RefCell;
use std::collections::HashSet;

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{Check, Key, Write};
use crate::error::MetaError;
use crate::limits;
use crate::ops::{Caller, Disposal, Removed};
use crate::types::{Attr, FileKind, Ino, Name};

use super::plan::{Answers, Applied, Plan};
use super::removal::{Fate, Victim};
use super::rules;

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct BatchRemoved {
    /// What is gone.
    pub removed: Vec<Removed>,
    /// Names that are to be removed one by one. Names that were not there are in neither list.
    pub left: Vec<Name>,
}

/// A batch as its attempts see it.
struct Batch<'a> {
    caller: &'a Caller,
    parent: Ino,
    disposal: Disposal,
    /// Still to be tried together.
    names: RefCell<Vec<Name>>,
    /// Not to be.
    left: RefCell<Vec<Name>>,
}

impl Meta {
    /// Removes entries of one directory, at most [`limits::UNLINK_BATCH`]. Names come from a listing.
    pub async fn unlink_batch(
        &self,
        caller: &Caller,
        parent: Ino,
        names: Vec<Name>,
        disposal: Disposal,
    ) -> MetaResult<BatchRemoved> {
        if names.len() > limits::UNLINK_BATCH {
            return Err(MetaError::Invalid("too many names for one commit"));
        }
        if parent.is_trash() && !caller.is_root() {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        let batch = Batch {
            caller,
            parent,
            disposal,
            names: RefCell::new(names),
            left: RefCell::default(),
        };
        let removed = self
            .run(async |_| self.try_unlink_batch(&batch).await)
            .await?;
        let left = batch.left.into_inner();
        Ok(BatchRemoved { removed, left })
    }

    async fn try_unlink_batch(&self, batch: &Batch<'_>) -> MetaResult<Attempt<Vec<Removed>>> {
        let (names, parent) = (batch.names.borrow().clone(), batch.parent);
        let mut keys = vec![Key::Attr(parent)];
        keys.extend(names.iter().map(|name| Key::Entry {
            parent,
            name: name.clone(),
        }));
        let mut answers = self.fetch(&keys).await?;
        let parent_attr = rules::directory(answers.attr()?)?;
        let (victims, left) = self.victims(batch, &parent_attr, names, &mut answers)?;
        if victims.is_empty() {
            batch.left.borrow_mut().extend(left);
            return Ok(Attempt::Done(Vec::new()));
        }

        let now = self.now();
        let mut plan = Plan::default();
        plan.check(rules::parent_check(batch.caller, parent, &parent_attr));
        plan.patch_dir(self, parent, &parent_attr, 0, now);
        let mut planned: Vec<(usize, Victim, Fate)> = Vec::with_capacity(victims.len());
        for victim in victims {
            let fate = self.staying(&victim, now, false, batch.disposal).await?;
            let fate = fate.unwrap_or(Fate::Deleted);
            let name = victim.name.clone();
            let first = plan.check(Check::Dentry {
                parent,
                name: name.clone(),
                expect: Some(victim.dentry),
            });
            plan.write(Write::DeleteDentry { parent, name });
            plan.remove(&victim, &fate, now);
            planned.push((first, victim, fate));
        }
        // Only now: an attempt that ends in an error leaves the batch as it was.
        let applied = self.apply(plan).await?;
        batch.left.borrow_mut().extend(left);
        match applied {
            Applied::Committed { .. } => {
                let mut removed = Vec::with_capacity(planned.len());
                for (_, victim, fate) in &planned {
                    removed.push(self.removed(victim, fate, None).await);
                }
                Ok(Attempt::Done(removed))
            }
            Applied::Conflict { check, ino } => {
                batch.leave_out(check, planned);
                Ok(Attempt::Conflict(ino))
            }
        }
    }

    /// What can be removed together, and the names of everything else that is there.
    fn victims(
        &self,
        batch: &Batch<'_>,
        parent_attr: &Attr,
        names: Vec<Name>,
        answers: &mut Answers,
    ) -> MetaResult<(Vec<Victim>, Vec<Name>)> {
        let mut left = Vec::new();
        let mut seen = HashSet::new();
        let mut victims = Vec::with_capacity(names.len());
        for name in names {
            let Some((dentry, attr)) = answers.entry()? else {
                continue;
            };
            let victim = Victim {
                parent: batch.parent,
                name,
                dentry,
                attr,
            };
            if seen.insert(dentry.ino)
                && !self.is_open(dentry.ino)
                && batch.allows(parent_attr, &victim)
            {
                victims.push(victim);
            } else {
                left.push(victim.name);
            }
        }
        Ok((victims, left))
    }

    fn is_open(&self, ino: Ino) -> bool {
        let open = self.shared.open.lock();
        open.get(&ino).is_some_and(|entry| entry.handles > 0)
    }
}

impl Batch<'_> {
    fn allows(&self, parent: &Attr, victim: &Victim) -> bool {
        if victim.kind() == FileKind::Directory {
            return false;
        }
        let Some(attr) = &victim.attr else {
            return true;
        };
        self.disposal == Disposal::Discard
            || (rules::check_not_frozen(parent).is_ok()
                && rules::check_not_frozen(attr).is_ok()
                && rules::check_sticky(self.caller, parent, attr.uid).is_ok())
    }

    /// After a conflict: the entry that check number `check` is about is left, the others are tried again. If
    /// many were left already, the directory is too lively for batches and all are.
    fn leave_out(&self, check: usize, planned: Vec<(usize, Victim, Fate)>) {
        let mut left = self.left.borrow_mut();
        let lively = left.len() >= limits::UNLINK_BATCH_LEFT;
        // The entry's own checks start at its first; checks before all of them are about the parent.
        let culprit = planned.iter().rposition(|(first, ..)| *first <= check);
        let mut names = Vec::with_capacity(planned.len());
        for (index, (_, victim, _)) in planned.into_iter().enumerate() {
            if lively || Some(index) == culprit {
                left.push(victim.name);
            } else {
                names.push(victim.name);
            }
        }
        self.names.replace(names);
    }
}
