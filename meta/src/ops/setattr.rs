//! `setattr`: mode, owner, group and times. Size changes are `truncate`.
//!
//! Round trips of an attempt: one read, one commit; none of the latter if nothing changes. ctime moves only
//! with a change. What the kernel has checked already (permission to write for the times, membership in the
//! new group) is not checked again: the caller's supplementary groups are not known here.

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{AttrFields, Check, Key, Write};
use crate::error::MetaError;
use crate::ops::{Caller, SetAttr, SetTime};
use crate::types::{Attr, FileKind, Ino, Timestamp};

use super::plan::{Applied, Plan};

const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;
/// Bits a mode may differ in when somebody other than the owner (a write) clears suid and sgid.
const FIXED_FOR_OTHERS: u16 = 0o1777;

impl Meta {
    /// Changes attributes; answers the new ones.
    pub async fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> MetaResult<Attr> {
        if ino.is_trash() {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        self.run(|| self.try_setattr(caller, ino, set)).await
    }

    async fn try_setattr(
        &self,
        caller: &Caller,
        ino: Ino,
        set: &SetAttr,
    ) -> MetaResult<Attempt<Attr>> {
        let old = self
            .fetch(&[Key::Attr(ino)])
            .await?
            .attr()?
            .ok_or(MetaError::NotFound)?;
        if old.in_trash() {
            return Err(MetaError::NotPermitted);
        }
        let Some(new) = merged(caller, &old, set, self.now())? else {
            return Ok(Attempt::Done(old));
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

/// The attributes after the change; `None` if nothing changes.
fn merged(caller: &Caller, old: &Attr, set: &SetAttr, now: Timestamp) -> MetaResult<Option<Attr>> {
    let mut new = old.clone();
    let mut mode = set.mode.map(|mode| mode & 0o7777);
    let mut changed = set_owner(caller, old, set, &mut new, &mut mode)?;
    if let Some(mode) = mode.filter(|mode| *mode != old.mode) {
        check_mode(caller, old, mode)?;
        new.mode = mode;
    }
    for (time, field) in [(set.atime, &mut new.atime), (set.mtime, &mut new.mtime)] {
        match time {
            None => {}
            Some(SetTime::Now) => {
                *field = now;
                changed = true;
            }
            Some(SetTime::At(at)) if at != *field => {
                // Others may set a time to now if they may write, but only owners may choose one.
                if old.uid == 0 && !caller.is_root() {
                    return Err(MetaError::NotPermitted);
                }
                *field = at;
            }
            Some(SetTime::At(_)) => {}
        }
    }
    if !changed && new == *old {
        return Ok(None);
    }
    new.ctime = now;
    Ok(Some(new))
}

/// Owner and group, and the suid and sgid bits that do not survive their change. Answers whether that alone
/// counts as a change.
fn set_owner(
    caller: &Caller,
    old: &Attr,
    set: &SetAttr,
    new: &mut Attr,
    mode: &mut Option<u16>,
) -> MetaResult<bool> {
    if set.uid.is_none() && set.gid.is_none() {
        return Ok(false);
    }
    let special = old.mode & (SET_UID | SET_GID);
    if let Some(mode) = mode {
        *mode |= special;
    }
    if special != 0 && old.kind != FileKind::Directory {
        // Without group execution sgid once meant mandatory locking: it stays when root changes owners.
        let both = !caller.is_root() || old.mode & GROUP_EXECUTE != 0;
        let keep = if both { !(SET_UID | SET_GID) } else { !SET_UID };
        new.mode &= keep;
        if let Some(mode) = mode {
            *mode &= keep;
        }
    }
    if let Some(gid) = set.gid {
        if !caller.is_root() && caller.uid != old.uid {
            return Err(MetaError::NotPermitted);
        }
        new.gid = gid;
    }
    if let Some(uid) = set.uid.filter(|uid| *uid != old.uid) {
        if !caller.is_root() {
            return Err(MetaError::NotPermitted);
        }
        new.uid = uid;
    }
    Ok(special != 0)
}

/// Only owners change permission bits or add suid and sgid; others (by writing) take the latter away.
fn check_mode(caller: &Caller, old: &Attr, mode: u16) -> MetaResult<()> {
    let adds_special = mode & !old.mode & (SET_UID | SET_GID) != 0;
    let differs = (mode ^ old.mode) & FIXED_FOR_OTHERS != 0;
    if !caller.is_root() && caller.uid != old.uid && (differs || adds_special) {
        return Err(MetaError::NotPermitted);
    }
    if old.access_acl != 0 && (mode ^ old.mode) & 0o777 != 0 {
        // The permission bits are part of the ACL's rule, and rules cannot be written yet.
        return Err(MetaError::NotSupported);
    }
    Ok(())
}
