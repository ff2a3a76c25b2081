//! Inode flags: what `chattr` sets. Immutable (`i`), append only (`a`) and "remove without trash" (`s`).
//!
//! Round trips: one read, one commit; none of the latter if nothing changes. What the flags forbid is checked by
//! each operation at its commit; an already open handle keeps what was written through it before.

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{AttrFields, Check, Key, Write};
use crate::error::MetaError;
use crate::ops::Caller;
use crate::types::{Attr, Ino, attr_flags};

use super::plan::{Applied, Plan};

/// Flags to set and to clear: bits of [`attr_flags`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlagChange {
    /// Which flags are meant; all others stay.
    pub mask: u8,
    /// Which of those are to be set.
    pub flags: u8,
}

impl FlagChange {
    fn applied(self, flags: u8) -> u8 {
        (flags & !self.mask) | (self.flags & self.mask)
    }
}

impl Meta {
    /// Changes an inode's flags; answers its attributes. Only root may.
    pub async fn set_flags(
        &self,
        caller: &Caller,
        ino: Ino,
        change: FlagChange,
    ) -> MetaResult<Attr> {
        if change.mask & !attr_flags::CHANGEABLE != 0 {
            return Err(MetaError::NotSupported);
        }
        if ino.is_trash() {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        self.run(async |sight| self.try_set_flags(sight, caller, ino, change).await)
            .await
    }

    async fn try_set_flags(
        &self,
        sight: &Sight,
        caller: &Caller,
        ino: Ino,
        change: FlagChange,
    ) -> MetaResult<Attempt<Attr>> {
        let old = self
            .fetch_at(sight, &[Key::Attr(ino)])
            .await?
            .attr()?
            .ok_or(MetaError::NotFound)?;
        if old.in_trash() {
            return Err(MetaError::NotPermitted);
        }
        let flags = change.applied(old.flags);
        if flags == old.flags {
            return Ok(sight.done(old));
        }
        if !caller.is_root() {
            return Err(MetaError::NotPermitted);
        }
        let new = Attr {
            flags,
            ctime: self.now(),
            ..old.clone()
        };
        let mut plan = Plan::default();
        plan.check(Check::Attr {
            ino,
            fields: AttrFields::ALL,
            expect: old.clone(),
        });
        plan.write(Write::UpdateAttr {
            ino,
            old,
            new: new.clone(),
        });
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => Attempt::Done(new),
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }
}
