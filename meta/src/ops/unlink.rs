//! `unlink` and `rmdir`.
//!
//! Round trips of an attempt: one read (parent, entry with the inode behind it), one commit. A directory's
//! emptiness is not read but checked by the commit: as its last check but the trash's, so that its failure
//! alone is the answer `NotEmpty`. See [`super::removal`] for what becomes of the inode.

use std::cell::Cell;

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{Check, Key, Write};
use crate::error::MetaError;
use crate::ops::{Caller, Removed};
use crate::types::{FileKind, Ino, Name};

use super::plan::{Applied, Plan};
use super::removal::Victim;
use super::{names, rules};

/// Which of the two calls it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Unlink,
    Rmdir,
}

impl Meta {
    /// Removes a name that is not a directory's.
    pub async fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> MetaResult<Removed> {
        let name = names::checked(name)?;
        if names::is_dot(&name) {
            return Err(MetaError::IsDirectory);
        }
        self.remove_entry(Call::Unlink, caller, parent, name).await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> MetaResult<Removed> {
        let name = names::checked(name)?;
        match &*name {
            b"." => return Err(MetaError::Invalid("'.' cannot be removed")),
            b".." => return Err(MetaError::NotEmpty),
            _ if parent == Ino::TRASH => return Err(MetaError::NotPermitted),
            _ => {}
        }
        self.remove_entry(Call::Rmdir, caller, parent, name).await
    }

    async fn remove_entry(
        &self,
        call: Call,
        caller: &Caller,
        parent: Ino,
        name: Name,
    ) -> MetaResult<Removed> {
        if names::is_reserved(parent, &name) || (parent.is_trash() && !caller.is_root()) {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        let trash_taken = Cell::new(false);
        self.run(|| self.try_remove(call, caller, parent, &name, &trash_taken))
            .await
    }

    async fn try_remove(
        &self,
        call: Call,
        caller: &Caller,
        parent: Ino,
        name: &Name,
        trash_taken: &Cell<bool>,
    ) -> MetaResult<Attempt<Removed>> {
        let keys = [
            Key::Attr(parent),
            Key::Entry {
                parent,
                name: name.clone(),
            },
        ];
        let mut answers = self.fetch(&keys).await?;
        let parent_attr = rules::directory(answers.attr()?)?;
        let (dentry, attr) = answers.entry()?.ok_or(MetaError::NotFound)?;
        let victim = Victim {
            parent,
            name: name.clone(),
            dentry,
            attr,
        };
        let is_dir = victim.kind() == FileKind::Directory;
        match call {
            Call::Unlink if is_dir => return Err(MetaError::IsDirectory),
            Call::Rmdir if !is_dir => return Err(MetaError::NotDirectory),
            Call::Unlink | Call::Rmdir => {}
        }
        rules::check_not_frozen(&parent_attr)?;
        if let Some(attr) = &victim.attr {
            rules::check_sticky(caller, &parent_attr, attr.uid)?;
            if call == Call::Unlink {
                // A directory's own flags protect its entries, not its name.
                rules::check_not_frozen(attr)?;
            }
        }

        let now = self.now();
        let fate = self.fate(&victim, now, trash_taken.get()).await?;
        let mut plan = Plan::default();
        plan.check(rules::parent_check(caller, parent, &parent_attr));
        plan.check(Check::Dentry {
            parent,
            name: name.clone(),
            expect: Some(dentry),
        });
        plan.write(Write::DeleteDentry {
            parent,
            name: name.clone(),
        });
        plan.patch_dir(self, parent, &parent_attr, -i32::from(is_dir), now);
        plan.remove(&victim, &fate, now);

        let (emptiness, trash_name) = (plan.emptiness, plan.trash_name);
        match self.apply(plan).await? {
            Applied::Committed { deleted, .. } => {
                Ok(Attempt::Done(self.removed(&victim, &fate, deleted).await))
            }
            Applied::Conflict { check, .. } if Some(check) == emptiness => Err(MetaError::NotEmpty),
            Applied::Conflict { check, ino } => {
                if Some(check) == trash_name {
                    trash_taken.set(!trash_taken.get());
                }
                Ok(Attempt::Conflict(ino))
            }
        }
    }
}
