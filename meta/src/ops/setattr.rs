//! `setattr`: mode, owner, group and times. Size changes are `truncate`.
//!
//! Round trips of an attempt: one read, one commit; none of the latter if nothing changes. chmod of an inode with an
//! access ACL changes that too, which costs one more for a rule this process has not met. ctime moves only with
//! a change. As on Linux nobody changes what `chattr` froze, but times of an append-only file may be set to now.
//! What the kernel has checked already (permission to write for the times, membership in the
//! new group) is not checked again: the caller's supplementary groups are not known here.

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{AttrFields, Check, Key, Write};
use crate::error::MetaError;
use crate::ops::{Caller, SetAttr, SetTime};
use crate::types::{Attr, FileKind, Ino, Timestamp, attr_flags};

use super::growth::inode_usage;
use super::plan::{Applied, Plan};
use super::rules;

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
        self.run(async |sight| self.try_setattr(sight, caller, ino, set).await)
            .await
    }

    async fn try_setattr(
        &self,
        sight: &Sight,
        caller: &Caller,
        ino: Ino,
        set: &SetAttr,
    ) -> MetaResult<Attempt<Attr>> {
        let old = self
            .fetch_at(sight, &[Key::Attr(ino)])
            .await?
            .attr()?
            .ok_or(MetaError::NotFound)?;
        if old.in_trash() {
            return Err(MetaError::NotPermitted);
        }
        check_settable(&old, set)?;
        let acl = self.acl_set(caller, &old, set).await?;
        let Some(new) = merged(caller, &old, set, acl, self.now())? else {
            return Ok(sight.done(old));
        };
        let mut plan = Plan::default();
        plan.check(Check::Attr {
            ino,
            fields: AttrFields::ALL,
            expect: old.clone(),
        });
        if (new.uid, new.gid) != (old.uid, old.gid) {
            let usage = inode_usage(&new);
            plan.charge_owner(&old, -usage);
            plan.charge_owner(&new, usage);
        }
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

    /// The access rule after the change: permission bits are part of it. Whoever may not change them makes no
    /// rules either, and is refused later.
    async fn acl_set(&self, caller: &Caller, old: &Attr, set: &SetAttr) -> MetaResult<u32> {
        match set.mode {
            Some(mode) if old.access_acl != 0 && (caller.is_root() || caller.uid == old.uid) => {
                self.acl_after_chmod(old.access_acl, mode).await
            }
            _ => Ok(old.access_acl),
        }
    }
}

/// `NotPermitted` if `chattr` froze what is to be changed.
fn check_settable(old: &Attr, set: &SetAttr) -> MetaResult<()> {
    let chosen = |time: Option<SetTime>| matches!(time, Some(SetTime::At(_)));
    let owner = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
    if owner || chosen(set.atime) || chosen(set.mtime) {
        return rules::check_not_frozen(old);
    }
    let touches = set.atime.is_some() || set.mtime.is_some();
    if touches && old.flags & attr_flags::IMMUTABLE != 0 {
        return Err(MetaError::NotPermitted);
    }
    Ok(())
}

/// The attributes after the change, `acl` being the access rule then; `None` if nothing changes.
fn merged(
    caller: &Caller,
    old: &Attr,
    set: &SetAttr,
    acl: u32,
    now: Timestamp,
) -> MetaResult<Option<Attr>> {
    let mut new = old.clone();
    new.access_acl = acl;
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
    Ok(())
}
