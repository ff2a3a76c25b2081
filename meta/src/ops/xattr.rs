//! Extended attributes.
//!
//! Round trips: get one read; list one read; set and remove one read (inode) and one commit. POSIX ACLs are
//! no attributes of their own: they are made from the rules the inode names (one more read) and cannot be set
//! yet. As on JuiceFS no time of the inode moves. Which namespaces a caller may use is the kernel's decision.

use bytes::Bytes;

use crate::client::{Attempt, Meta, MetaResult};
use crate::engine::{AttrFields, Check, Key, Record, Write};
use crate::error::MetaError;
use crate::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::ops::{Caller, Value, XattrMode};
use crate::types::{Attr, Ino, Name};

use super::acl;
use super::plan::{Applied, Plan};
use super::rules;

fn checked(name: &[u8]) -> MetaResult<Name> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(MetaError::Range);
    }
    Ok(Bytes::copy_from_slice(name))
}

/// The rule behind an ACL's name, 0 = none.
fn acl_id(name: &[u8], attr: &Attr) -> u32 {
    if name == acl::ACCESS_NAME {
        attr.access_acl
    } else {
        attr.default_acl
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS_NAME || name == acl::DEFAULT_NAME
}

/// Name of an attribute that can be changed.
fn changeable(name: &[u8]) -> MetaResult<Name> {
    if is_acl(name) {
        return Err(MetaError::NotSupported);
    }
    checked(name)
}

impl Meta {
    /// Value of an extended attribute. ACLs appear as `system.posix_acl_access|default`.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> MetaResult<Value> {
        let name = checked(name)?;
        if is_acl(&name) {
            return match acl_id(&name, &self.getattr(ino).await?) {
                0 => Err(MetaError::NoAttribute),
                id => Ok(acl::to_wire(&self.acl_rule(id).await?)),
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
        for name in [acl::ACCESS_NAME, acl::DEFAULT_NAME] {
            if acl_id(name, &attr) != 0 {
                names.push(Bytes::from_static(name));
            }
        }
        Ok(names)
    }

    /// Sets an extended attribute.
    pub async fn setxattr(
        &self,
        _caller: &Caller,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> MetaResult<()> {
        let name = changeable(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(MetaError::Range);
        }
        self.check_writable()?;
        let value = Bytes::copy_from_slice(value);
        self.run(|| self.try_setxattr(ino, &name, &value, mode))
            .await
    }

    /// Removes an extended attribute.
    pub async fn removexattr(&self, _caller: &Caller, ino: Ino, name: &[u8]) -> MetaResult<()> {
        let name = changeable(name)?;
        self.check_writable()?;
        self.run(|| self.try_removexattr(ino, &name)).await
    }

    /// The start of every change: the inode lives and is not frozen.
    async fn xattr_plan(&self, ino: Ino) -> MetaResult<Plan> {
        let expect = self
            .fetch(&[Key::Attr(ino)])
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
        ino: Ino,
        name: &Name,
        value: &Bytes,
        mode: XattrMode,
    ) -> MetaResult<Attempt<()>> {
        let mut plan = self.xattr_plan(ino).await?;
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

    async fn try_removexattr(&self, ino: Ino, name: &Name) -> MetaResult<Attempt<()>> {
        let mut plan = self.xattr_plan(ino).await?;
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
