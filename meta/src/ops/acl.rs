//! POSIX ACLs: set, removed, inherited, followed by chmod.
//!
//! An inode names its access rule and, if it is a directory, its default rule by number. Rules are immutable
//! records shared by the whole volume ([`crate::acl_cache`] keeps those that were seen); a rule that is not known
//! yet is inserted by a commit of its own, and whoever gets no further than that leaves a rule nobody names,
//! which is harmless: there may be several of the same content, and none is ever removed. What a rule says is
//! in [`rule`], its form on Linux in [`wire`].
//!
//! An access rule that says no more than permission bits is kept as those alone. The permission bits of an inode
//! with an access rule always show what the rule says: owner, mask, others.
//!
//! Round trips: to set one read, one commit, and one more for a rule new to this process; to inherit none, beside
//! the create, for rules that are known.
//!
//! The kernel checks ACLs where the mount was told at its INIT that the volume has them.

use std::sync::Arc;

use crate::client::{Attempt, Meta, MetaResult, Sight};
use crate::engine::{AttrFields, Check, Engine, Item, Key, Record, Scan, Txn, Write};
use crate::error::{EngineError, MetaError};
use crate::limits;
use crate::ops::Caller;
use crate::types::{AclRule, Attr, FileKind, Ino};

use super::plan::{Applied, Plan};
use super::rules;

pub(crate) mod rule;
pub(crate) mod wire;

/// `S_ISGID`.
const SET_GID: u16 = 0o2000;

/// Which of an inode's two rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AclKind {
    /// Who may use the inode.
    Access,
    /// What new entries of the directory inherit.
    Default,
}

impl AclKind {
    /// Both, in the order in which they are listed.
    pub const BOTH: [AclKind; 2] = [AclKind::Access, AclKind::Default];

    /// Its name as an extended attribute.
    pub fn name(self) -> &'static [u8] {
        match self {
            AclKind::Access => b"system.posix_acl_access",
            AclKind::Default => b"system.posix_acl_default",
        }
    }

    /// From the name of an extended attribute.
    pub fn from_name(name: &[u8]) -> Option<AclKind> {
        Self::BOTH.into_iter().find(|kind| kind.name() == name)
    }

    /// The rule's number in the attributes, 0 = none.
    pub(crate) fn id(self, attr: &Attr) -> u32 {
        match self {
            AclKind::Access => attr.access_acl,
            AclKind::Default => attr.default_acl,
        }
    }

    fn set_id(self, attr: &mut Attr, id: u32) {
        match self {
            AclKind::Access => attr.access_acl = id,
            AclKind::Default => attr.default_acl = id,
        }
    }
}

/// Whether sgid survives a new ACL: it must not if the caller is not in the inode's group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgidRule {
    /// The kernel has looked: the caller may keep it.
    Keep,
    /// The kernel has looked: it goes.
    Clear,
    /// The kernel does not say: judged by the caller's first group, the only one known here.
    ByGroup,
}

impl SgidRule {
    fn clears(self, caller: &Caller, attr: &Attr) -> bool {
        match self {
            SgidRule::Keep => false,
            SgidRule::Clear => true,
            SgidRule::ByGroup => !caller.is_root() && caller.gid != attr.gid,
        }
    }
}

impl Meta {
    /// Sets an inode's ACL from its Linux form, or removes it (`None`). The permission bits follow an access
    /// ACL that is set and stay when it is removed. Only for root and the owner; `NotSupported` on a volume
    /// without ACLs.
    pub async fn set_acl(
        &self,
        caller: &Caller,
        ino: Ino,
        kind: AclKind,
        value: Option<&[u8]>,
        sgid: SgidRule,
    ) -> MetaResult<()> {
        if !self.shared.setting().enable_acl {
            return Err(MetaError::NotSupported);
        }
        let rule = value.map(wire::from_wire).transpose()?.flatten();
        if ino.is_trash() {
            return Err(MetaError::NotPermitted);
        }
        self.check_writable()?;
        let change = Change { kind, rule, sgid };
        self.run(async |sight| self.try_set_acl(sight, caller, ino, &change).await)
            .await
    }

    async fn try_set_acl(
        &self,
        sight: &Sight,
        caller: &Caller,
        ino: Ino,
        change: &Change,
    ) -> MetaResult<Attempt<()>> {
        let old = self
            .fetch_at(sight, &[Key::Attr(ino)])
            .await?
            .attr()?
            .ok_or(MetaError::NotFound)?;
        change.check(caller, &old)?;
        let id = match change.stored() {
            Some(rule) => self.acl_id(rule).await?,
            None => 0,
        };
        let mut new = change.applied(caller, &old, id);
        if new == old {
            return Ok(sight.done(()));
        }
        new.ctime = self.now();
        let mut plan = Plan::default();
        plan.check(Check::Attr {
            ino,
            fields: AttrFields::ALL,
            expect: old.clone(),
        });
        plan.write(Write::UpdateAttr { ino, old, new });
        Ok(match self.apply(plan).await? {
            Applied::Committed { .. } => Attempt::Done(()),
            Applied::Conflict { ino, .. } => Attempt::Conflict(ino),
        })
    }

    /// Reads the volume's rules, as many as are kept, so that no operation has to ask for them one by one. At
    /// mount, if the volume has ACLs.
    pub async fn load_acls(&self) -> MetaResult<()> {
        let mut cursor = None;
        while !self.shared.acls.is_full() {
            let page = self
                .engine
                .scan(&Scan::Acls, cursor.as_ref(), limits::ACL_PAGE)
                .await?;
            for item in page.items {
                if let Item::Acl { id, rule } = item
                    && !self.shared.acls.is_full()
                {
                    self.shared.acls.learn(id, rule);
                }
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        Ok(())
    }

    /// A rule that an inode names.
    pub(crate) async fn acl_rule(&self, id: u32) -> MetaResult<Arc<AclRule>> {
        if let Some(rule) = self.shared.acls.rule(id) {
            return Ok(rule);
        }
        let rule = self
            .fetch(&[Key::Acl(id)])
            .await?
            .record()
            .map(Record::acl)
            .transpose()?;
        let missing = || EngineError::Corrupt {
            record: format!("ACL rule {id}"),
            cause: "an inode names it, but it does not exist".into(),
        };
        Ok(self.shared.acls.learn(id, rule.ok_or_else(missing)?))
    }

    /// A number of that rule, which is inserted if this process has not seen it.
    async fn acl_id(&self, rule: &AclRule) -> MetaResult<u32> {
        if let Some(id) = self.shared.acls.id(rule) {
            return Ok(id);
        }
        let insert = Txn {
            checks: Vec::new(),
            writes: vec![Write::InsertAcl(rule.clone())],
        };
        // If its answer is lost there may be a rule that nobody names.
        let results = self
            .run(async |_| match self.commit(insert.clone()).await {
                Ok(Some(results)) => Ok(Attempt::Done(results)),
                Ok(None) => Ok(Attempt::Conflict(Ino::NONE)),
                Err(MetaError::Engine(EngineError::UnknownFate { .. })) => {
                    Ok(Attempt::Doubt(Ino::NONE))
                }
                Err(error) => Err(error),
            })
            .await?;
        let id = results.first().and_then(|id| u32::try_from(*id).ok());
        let id = id
            .filter(|id| *id != 0)
            .ok_or_else(|| EngineError::Corrupt {
                record: "a new ACL rule".into(),
                cause: format!("the store gave it the number {results:?}"),
            })?;
        self.shared.acls.learn(id, rule.clone());
        Ok(id)
    }

    /// The number of the access rule that `id` becomes by chmod(2) with `mode`.
    pub(crate) async fn acl_after_chmod(&self, id: u32, mode: u16) -> MetaResult<u32> {
        let old = self.acl_rule(id).await?;
        let new = rule::with_mode(&old, mode);
        if new == *old {
            Ok(id)
        } else {
            self.acl_id(&new).await
        }
    }

    /// Applies the parent's default ACL to a new inode, for which the mode `asked` was asked for. It takes the
    /// place of the umask. Symlinks inherit nothing.
    pub(crate) async fn inherit_acl(
        &self,
        parent: &Attr,
        asked: u16,
        attr: &mut Attr,
    ) -> MetaResult<()> {
        if parent.default_acl == 0 || attr.kind == FileKind::Symlink {
            return Ok(());
        }
        let default = self.acl_rule(parent.default_acl).await?;
        if attr.kind == FileKind::Directory {
            attr.default_acl = parent.default_acl;
        }
        let special = attr.mode & 0o7000;
        if rule::is_minimal(&default) {
            attr.mode = special | (asked & rule::mode_bits(&default));
            return Ok(());
        }
        let child = rule::narrowed(&default, asked);
        attr.mode = special | rule::mode_bits(&child);
        attr.access_acl = if child == *default {
            parent.default_acl
        } else {
            self.acl_id(&child).await?
        };
        Ok(())
    }
}

/// What is to become of an ACL.
struct Change {
    kind: AclKind,
    rule: Option<AclRule>,
    sgid: SgidRule,
}

impl Change {
    fn check(&self, caller: &Caller, old: &Attr) -> MetaResult<()> {
        if old.kind == FileKind::Symlink {
            return Err(MetaError::NotSupported);
        }
        if old.in_trash() || (!caller.is_root() && caller.uid != old.uid) {
            return Err(MetaError::NotPermitted);
        }
        rules::check_not_frozen(old)?;
        if self.kind == AclKind::Default && self.rule.is_some() && old.kind != FileKind::Directory {
            // As Linux answers: there is nothing that could inherit it.
            return Err(MetaError::Access);
        }
        Ok(())
    }

    /// The rule that needs a record: none if permission bits say it all.
    fn stored(&self) -> Option<&AclRule> {
        let rule = self.rule.as_ref()?;
        (self.kind == AclKind::Default || !rule::is_minimal(rule)).then_some(rule)
    }

    /// The attributes with that rule's number in place.
    fn applied(&self, caller: &Caller, old: &Attr, id: u32) -> Attr {
        let mut new = old.clone();
        if self.sgid.clears(caller, old) {
            new.mode &= !SET_GID;
        }
        self.kind.set_id(&mut new, id);
        if let (AclKind::Access, Some(rule)) = (self.kind, &self.rule) {
            new.mode = (new.mode & 0o7000) | rule::mode_bits(rule);
        }
        new
    }
}
