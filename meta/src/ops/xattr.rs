//! Extended attributes.
//!
//! Round trips: get one read; list one read; set and remove one read (inode) and one commit. POSIX ACLs are
//! no attributes of their own: they are made from the rules the inode names, and set by [`super::acl`]. As on
//! JuiceFS no time of the inode moves. Which namespaces a caller may use is the kernel's decision.

use bytes::Bytes;

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{AttrFields, Check, Key, Record, Write};
use crate::error::MetaError;
use crate::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::ops::{AclKind, Caller, SgidRule, Value, XattrMode};
use crate::types::{Ino, Name};

use super::acl::wire;
use super::plan::{Applied, Plan};
use super::rules;

fn checked(name: &[u8]) -> MetaResult<Name> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(MetaError::Range);
    }
    Ok(Bytes::copy_from_slice(name))
}

impl Meta {
    /// Value of an extended attribute. ACLs appear as `system.posix_acl_access|default`.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> MetaResult<Value> {
        let name = checked(name)?;
        if let Some(kind) = AclKind::from_name(&name) {
            return match kind.id(&self.getattr(ino).await?) {
                0 => Err(MetaError::NoAttribute),
                id => Ok(wire::to_wire(&*self.acl_rule(id).await?)),
            };
        }
        let value = self.fetch(&[Key::Xattr { ino, name }]).await?.record();
        value
            .map(Record::bytes)
            .transpose()?
            .ok_or(MetaError::NoAttribute)
    }

    /// Names of all extended attributes.
    pub async fn listxattr(&self, ino: Ino) -> MetaResult<Vec<Name>> {
        let mut answers = self.fetch(&[Key::Attr(ino), Key::XattrNames(ino)]).await?;
        let attr = answers.attr()?;
        let names = answers.record().map(Record::names).transpose()?;
        let mut names = names.unwrap_or_default();
        let attr = match attr {
            Some(attr) => attr,
            None => self.getattr(ino).await?,
        };
        for kind in AclKind::BOTH {
            if kind.id(&attr) != 0 {
                names.push(Bytes::from_static(kind.name()));
            }
        }
        Ok(names)
    }

    /// Sets an extended attribute. An ACL is set by the name under which it appears, whether it was there or not.
    pub async fn setxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> MetaResult<()> {
        if let Some(kind) = AclKind::from_name(name) {
            return self
                .set_acl(caller, ino, kind, Some(value), SgidRule::ByGroup)
                .await;
        }
        let name = checked(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(MetaError::Range);
        }
        self.check_writable()?;
        let value = Bytes::copy_from_slice(value);
        self.run(async |sight| self.try_setxattr(sight, ino, &name, &value, mode).await)
            .await
    }

    /// Removes an extended attribute. An ACL need not be there.
    pub async fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> MetaResult<()> {
        if let Some(kind) = AclKind::from_name(name) {
            return self
                .set_acl(caller, ino, kind, None, SgidRule::ByGroup)
                .await;
        }
        let name = checked(name)?;
        self.check_writable()?;
        self.run(async |sight| self.try_removexattr(sight, ino, &name).await)
            .await
    }

    /// The start of every change: the inode lives and is not frozen.
    async fn xattr_plan(&self, sight: &Sight, ino: Ino) -> MetaResult<Plan> {
        let expect = self
            .fetch_at(sight, &[Key::Attr(ino)])
            .await?
            .attr()?
            .ok_or(MetaError::NotFound)?;
        rules::check_not_frozen(&expect)?;
        let mut plan = Plan::default();
        plan.check(Check::Attr {
            ino,
            fields: AttrFields::FLAGS,
            expect,
        });
        Ok(plan)
    }

    async fn try_setxattr(
        &self,
        sight: &Sight,
        ino: Ino,
        name: &Name,
        value: &Bytes,
        mode: XattrMode,
    ) -> MetaResult<Attempt<()>> {
        let mut plan = self.xattr_plan(sight, ino).await?;
        let expected = match mode {
            XattrMode::Any => None,
            XattrMode::Create => Some(false),
            XattrMode::Replace => Some(true),
        };
        let presence = expected.map(|present| {
            plan.check(Check::Xattr {
                ino,
                name: name.clone(),
                present,
            })
        });
        plan.write(Write::PutXattr {
            ino,
            name: name.clone(),
            value: value.clone(),
        });
        match self.apply(plan).await? {
            Applied::Committed { .. } => Ok(Attempt::Done(())),
            Applied::Conflict { check, .. } if Some(check) == presence => Err(match mode {
                XattrMode::Create => MetaError::Exists,
                XattrMode::Replace | XattrMode::Any => MetaError::NoAttribute,
            }),
            Applied::Conflict { ino, .. } => Ok(Attempt::Conflict(ino)),
        }
    }

    async fn try_removexattr(
        &self,
        sight: &Sight,
        ino: Ino,
        name: &Name,
    ) -> MetaResult<Attempt<()>> {
        let mut plan = self.xattr_plan(sight, ino).await?;
        let write = plan.write(Write::DeleteXattr {
            ino,
            name: name.clone(),
        });
        match self.apply(plan).await? {
            Applied::Committed { results, .. } if results.get(write) == Some(&0) => {
                Err(MetaError::NoAttribute)
            }
            Applied::Committed { .. } => Ok(Attempt::Done(())),
            Applied::Conflict { ino, .. } => Ok(Attempt::Conflict(ino)),
        }
    }
}
