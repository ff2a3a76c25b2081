//! Permission bits for callers that reach the metadata past the kernel.
//!
//! A mount leaves permission bits and ACLs to the kernel (`default_permissions`). The tools that work on trees
//! (`sluice rmr`, `sluice clone`) open the metadata themselves, so [`Meta::permits`] asks the same questions
//! with the same answers: `generic_permission` of Linux, supplementary groups included.
//!
//! Round trips: none; one read for an inode with an access ACL.

use crate::client::{Meta, MetaResult};
use crate::error::MetaError;
use crate::ops::Caller;
use crate::types::{AclRule, Attr, FileKind};

use super::acl::rule;

/// Read permission; of a directory: to list it.
pub(crate) const READ: u16 = 4;
/// Write permission; of a directory: to add and remove entries.
pub(crate) const WRITE: u16 = 2;
/// Execute permission; of a directory: to reach its entries.
pub(crate) const EXECUTE: u16 = 1;

/// A caller with all its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Effective user and group.
    pub caller: Caller,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// The super-user.
    pub const ROOT: Credentials = Credentials {
        caller: Caller::ROOT,
        groups: Vec::new(),
    };

    fn is_in(&self, gid: u32) -> bool {
        self.caller.gid == gid || self.groups.contains(&gid)
    }

    /// Bits granted by the mode.
    fn by_mode(&self, attr: &Attr) -> u16 {
        let shift = if self.caller.uid == attr.uid {
            6
        } else if self.is_in(attr.gid) {
            3
        } else {
            0
        };
        attr.mode >> shift & 7
    }

    /// Bits granted by an access ACL. Of several groups that fit, one must grant all that is wanted.
    fn by_acl(&self, acl: &AclRule, attr: &Attr, wanted: u16) -> u16 {
        // The mask of the rule is what the mode shows for the group.
        let mask = rule::mode_bits(acl) >> 3 & 7;
        if self.caller.uid == attr.uid {
            return acl.owner & 7;
        }
        if let Some((_, bits)) = acl.users.iter().find(|(uid, _)| *uid == self.caller.uid) {
            return bits & mask;
        }
        let own = (attr.gid, acl.group);
        let mut fits = false;
        for (gid, bits) in std::iter::once(&own).chain(&acl.groups) {
            if self.is_in(*gid) {
                fits = true;
                if bits & mask & wanted == wanted {
                    return wanted;
                }
            }
        }
        if fits { 0 } else { acl.other & 7 }
    }
}

impl Meta {
    /// `Access` unless `who` has all of `wanted` ([`READ`], [`WRITE`], [`EXECUTE`]) on an inode.
    pub(crate) async fn permits(
        &self,
        who: &Credentials,
        attr: &Attr,
        wanted: u16,
    ) -> MetaResult<()> {
        let granted = if who.caller.is_root() {
            // Root may everything but execute what nobody may execute.
            let executable = attr.kind == FileKind::Directory || attr.mode & 0o111 != 0;
            if executable { 7 } else { 6 }
        } else if attr.access_acl != 0 && attr.mode & 0o070 != 0 {
            let rule = self.acl_rule(attr.access_acl).await?;
            who.by_acl(&rule, attr, wanted)
        } else {
            who.by_mode(attr)
        };
        if wanted & !granted == 0 {
            Ok(())
        } else {
            Err(MetaError::Access)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trash;
    use crate::types::{Ino, Timestamp};

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials {
            caller: Caller { uid, gid, pid: 0 },
            groups: groups.to_vec(),
        }
    }

    fn dir(mode: u16) -> Attr {
        Attr {
            mode,
            uid: 1,
            gid: 10,
            ..trash::directory(Ino::ROOT, Timestamp::default())
        }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (who, mode, bits) in [
            (who(1, 99, &[]), 0o741, 7),
            (who(1, 10, &[]), 0o077, 0),
            (who(2, 10, &[]), 0o741, 4),
            (who(2, 99, &[10]), 0o741, 4),
            (who(2, 99, &[10]), 0o707, 0),
            (who(2, 99, &[11]), 0o741, 1),
        ] {
            assert_eq!(who.by_mode(&dir(mode)), bits, "{who:?} {mode:o}");
        }
    }

    #[test]
    fn acl_groups_each_grant_alone() {
        let rule = AclRule {
            owner: 7,
            group: 4,
            mask: 6,
            other: 1,
            users: vec![(5, 7)],
            groups: vec![(20, 2), (30, 7)],
        };
        let attr = dir(0o761);
        for (who, wanted, granted) in [
            (who(1, 99, &[]), 7, true),
            (who(5, 99, &[]), 6, true),
            (who(5, 99, &[]), 1, false),
            (who(2, 10, &[]), 4, true),
            // One group may read, another write: neither may both.
            (who(2, 10, &[20]), 6, false),
            (who(2, 30, &[]), 6, true),
            (who(2, 30, &[]), 1, false),
            (who(2, 99, &[]), 1, true),
        ] {
            let bits = who.by_acl(&rule, &attr, wanted);
            assert_eq!(wanted & !bits == 0, granted, "{who:?} {wanted}");
        }
    }
}
