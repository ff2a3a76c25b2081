//! `link`: another name for an inode.
//!
//! Round trips of an attempt: one read (parent, entry, inode), one commit. The first hard link of an inode
//! moves its parent out of the attributes into the list of parents, for good. Directories cannot be linked.

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{AttrFields, Check, Key, Write};
use crate::error::MetaError;
use crate::ops::Caller;
use crate::quota::Usage;
use crate::types::{Attr, Dentry, FileKind, Ino, Name};

use super::growth::inode_usage;
use super::plan::{Applied, Plan};
use super::{names, rules};

impl Meta {
    /// Gives `ino` another name.
    pub async fn link(
        &self,
        caller: &Caller,
        ino: Ino,
        parent: Ino,
        name: &[u8],
    ) -> MetaResult<Attr> {
        let name = names::new_entry(parent, name)?;
        if parent.is_trash() {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        self.check_new_name(parent, &name).await?;
        self.run(async |sight| self.try_link(sight, caller, ino, parent, &name).await)
            .await
    }

    async fn try_link(
        &self,
        sight: &Sight,
        caller: &Caller,
        ino: Ino,
        parent: Ino,
        name: &Name,
    ) -> MetaResult<Attempt<Attr>> {
        let dentry_key = Key::Dentry {
            parent,
            name: name.clone(),
        };
        let mut answers = self
            .fetch_at(sight, &[Key::Attr(parent), dentry_key, Key::Attr(ino)])
            .await?;
        let parent_attr = rules::growing_directory(answers.attr()?)?;
        if answers.dentry()?.is_some() {
            return Err(MetaError::Exists);
        }
        // Without links it is only still there because somebody has it open.
        let old = answers
            .attr()?
            .filter(|attr| attr.nlink > 0)
            .ok_or(MetaError::NotFound)?;
        if old.kind == FileKind::Directory {
            return Err(MetaError::NotPermitted);
        }
        rules::check_not_frozen(&old)?;
        let more = inode_usage(&old);
        // Owners pay for an inode once, but who may have no more of them gets no more names either.
        self.check_owner(&old, Usage { space: 0, ..more })?;
        self.check_dir(parent, more).await?;
        let nlink = old.nlink.checked_add(1).ok_or(MetaError::TooManyLinks)?;

        let now = self.now();
        let new = Attr {
            nlink,
            ctime: now,
            parent: Ino::NONE,
            ..old.clone()
        };
        let dentry = Dentry {
            kind: old.kind,
            ino,
        };
        let mut plan = Plan::default();
        plan.check(rules::parent_check(caller, parent, &parent_attr));
        plan.check(Check::Dentry {
            parent,
            name: name.clone(),
            expect: None,
        });
        plan.check(Check::Attr {
            ino,
            fields: AttrFields::ALL,
            expect: old.clone(),
        });
        plan.write(Write::InsertDentry {
            parent,
            name: name.clone(),
            dentry,
        });
        plan.patch_dir(self, parent, &parent_attr, 0, now);
        plan.write(Write::UpdateAttr {
            ino,
            old: old.clone(),
            new: new.clone(),
        });
        if old.parent != Ino::NONE {
            plan.write(Write::AddParent {
                ino,
                parent: old.parent,
                delta: 1,
            });
        }
        plan.write(Write::AddParent {
            ino,
            parent,
            delta: 1,
        });
        plan.note(parent, rules::entry_stat(Some(&new)));
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => Attempt::Done(new),
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }
}
