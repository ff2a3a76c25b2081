//! `unlink` and `rmdir`.
//!
//! Round trips of an attempt: one read (parent, entry with the inode behind it), one commit. A directory's
//! emptiness is not read but checked by the commit: as its last check but the trash's, so that its failure
//! alone is the answer `NotEmpty`. See [`super::removal`] for what becomes of the inode.

use std::cell::Cell;

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{Check, Key, Write};
use crate::error::MetaError;
use crate::ops::{Caller, Disposal, Removed};
use crate::types::{Attr, FileKind, Ino, Name};

use super::plan::{Applied, Plan};
use super::removal::Victim;
use super::{names, rules};

/// Which of the two calls it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Unlink,
    Rmdir,
}

/// What is asked.
struct Removing {
    call: Call,
    parent: Ino,
    name: Name,
    disposal: Disposal,
    /// An earlier attempt found the name in the trash taken.
    trash_taken: Cell<bool>,
}

impl Meta {
    /// Removes a name that is not a directory's.
    pub async fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> MetaResult<Removed> {
        self.unlink_by(caller, parent, name, Disposal::Trash).await
    }

    /// As [`Meta::unlink`], into the trash or past it.
    pub async fn unlink_by(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        disposal: Disposal,
    ) -> MetaResult<Removed> {
        let name = names::checked(name)?;
        if names::is_dot(&name) {
            return Err(MetaError::IsDirectory);
        }
        self.remove_entry(caller, Removing::new(Call::Unlink, parent, name, disposal))
            .await
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> MetaResult<Removed> {
        self.rmdir_by(caller, parent, name, Disposal::Trash).await
    }

    /// As [`Meta::rmdir`], into the trash or past it.
    pub async fn rmdir_by(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        disposal: Disposal,
    ) -> MetaResult<Removed> {
        let name = names::checked(name)?;
        match &*name {
            b"." => return Err(MetaError::Invalid("'.' cannot be removed")),
            b".." => return Err(MetaError::NotEmpty),
            _ if parent == Ino::TRASH => return Err(MetaError::NotPermitted),
            _ => {}
        }
        self.remove_entry(caller, Removing::new(Call::Rmdir, parent, name, disposal))
            .await
    }

    /// Removes an empty hour directory of the trash.
    pub(crate) async fn remove_trash_hour(&self, name: Name) -> MetaResult<()> {
        let hour = Removing::new(Call::Rmdir, Ino::TRASH, name, Disposal::Delete);
        self.remove_entry(&Caller::ROOT, hour).await.map(drop)
    }

    async fn remove_entry(&self, caller: &Caller, mut removing: Removing) -> MetaResult<Removed> {
        let parent = removing.parent;
        if names::is_reserved(parent, &removing.name) || (parent.is_trash() && !caller.is_root()) {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        removing.name = self.existing_name(parent, removing.name).await?;
        self.run(async |sight| self.try_remove(sight, caller, &removing).await)
            .await
    }

    async fn try_remove(
        &self,
        sight: &Sight,
        caller: &Caller,
        removing: &Removing,
    ) -> MetaResult<Attempt<Removed>> {
        let Removing {
            parent,
            ref name,
            disposal,
            ref trash_taken,
            ..
        } = *removing;
        let keys = [
            Key::Attr(parent),
            Key::Entry {
                parent,
                name: name.clone(),
            },
        ];
        let mut answers = self.fetch_at(sight, &keys).await?;
        let parent_attr = rules::directory(answers.attr()?)?;
        let (dentry, attr) = answers.entry()?.ok_or(MetaError::NotFound)?;
        let victim = Victim {
            parent,
            name: name.clone(),
            dentry,
            attr,
        };
        removing.check_rules(caller, &parent_attr, &victim)?;

        let is_dir = victim.kind() == FileKind::Directory;
        let now = self.now();
        let fate = self
            .fate_by(&victim, now, trash_taken.get(), disposal)
            .await?;
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

impl Removing {
    fn new(call: Call, parent: Ino, name: Name, disposal: Disposal) -> Removing {
        Removing {
            call,
            parent,
            name,
            disposal,
            trash_taken: Cell::new(false),
        }
    }

    /// Everything that can be decided from what was read.
    fn check_rules(&self, caller: &Caller, parent: &Attr, victim: &Victim) -> MetaResult<()> {
        let is_dir = victim.kind() == FileKind::Directory;
        match self.call {
            Call::Unlink if is_dir => return Err(MetaError::IsDirectory),
            Call::Rmdir if !is_dir => return Err(MetaError::NotDirectory),
            Call::Unlink | Call::Rmdir => {}
        }
        if self.disposal == Disposal::Discard {
            return Ok(());
        }
        rules::check_not_frozen(parent)?;
        if let Some(attr) = &victim.attr {
            rules::check_sticky(caller, parent, attr.uid)?;
            if self.call == Call::Unlink {
                // A directory's own flags protect its entries, not its name.
                rules::check_not_frozen(attr)?;
            }
        }
        Ok(())
    }
}
