//! POSIX ACL rules: what they grant, how a new inode inherits them, and the bytes Linux exchanges for them.
//!
//! Rules are immutable records, named by number in the attributes of inodes. This is the reading side.
//!
//! Wire form of `system.posix_acl_access|default` (Linux `posix_acl_xattr.h`, version 2, little-endian):
//! version u32, then for each entry tag u16, permissions u16, id u32 (all ones where the tag names nobody).

use bytes::{BufMut, Bytes, BytesMut};

use crate::client::{Meta, MetaResult};
use crate::engine::Key;
use crate::engine::Record;
use crate::error::EngineError;
use crate::ops::Caller;
use crate::types::{AclRule, Attr};

/// The access ACL's name as an extended attribute.
pub(crate) const ACCESS_NAME: &[u8] = b"system.posix_acl_access";
/// The default ACL's name as an extended attribute.
pub(crate) const DEFAULT_NAME: &[u8] = b"system.posix_acl_default";

/// An entry that a rule does not have.
const UNSET: u16 = 0xFFFF;

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const TAG_USER_OBJ: u16 = 0x01;
const TAG_USER: u16 = 0x02;
const TAG_GROUP_OBJ: u16 = 0x04;
const TAG_GROUP: u16 = 0x08;
const TAG_MASK: u16 = 0x10;
const TAG_OTHER: u16 = 0x20;

/// Whether the rule says no more than permission bits can.
pub(crate) fn is_minimal(rule: &AclRule) -> bool {
    rule.users.is_empty() && rule.groups.is_empty() && rule.mask == UNSET
}

/// The permission bits a rule shows as: the mask stands in for the group if there is one.
pub(crate) fn mode_bits(rule: &AclRule) -> u16 {
    let group = if rule.mask == UNSET {
        rule.group
    } else {
        rule.mask
    };
    ((rule.owner & 7) << 6) | ((group & 7) << 3) | (rule.other & 7)
}

/// The access rule of an inode created with `mode` under this default rule (with a mask).
pub(crate) fn narrowed(rule: &AclRule, mode: u16) -> AclRule {
    AclRule {
        owner: rule.owner & (mode >> 6) & 7,
        mask: rule.mask & (mode >> 3) & 7,
        other: rule.other & mode & 7,
        ..rule.clone()
    }
}

/// Permission bits the rule grants: the first of owner, named user, groups, others that fits the caller
/// decides; of several groups that fit each may grant.
pub(crate) fn granted(rule: &AclRule, caller: &Caller, attr: &Attr) -> u16 {
    if caller.uid == attr.uid {
        return rule.owner & 7;
    }
    if let Some((_, bits)) = rule.users.iter().find(|(uid, _)| *uid == caller.uid) {
        return bits & rule.mask & 7;
    }
    let own = (attr.gid, rule.group);
    let groups = std::iter::once(&own).chain(&rule.groups);
    let fitting = groups
        .filter(|(gid, _)| *gid == caller.gid)
        .map(|(_, bits)| bits & rule.mask & 7);
    fitting
        .reduce(|all, bits| all | bits)
        .unwrap_or(rule.other & 7)
}

/// The rule as Linux wants it.
pub(crate) fn to_wire(rule: &AclRule) -> Bytes {
    let mut out = BytesMut::with_capacity(4 + 8 * (4 + rule.users.len() + rule.groups.len()));
    out.put_u32_le(VERSION);
    let mut put = |tag: u16, bits: u16, id: u32| {
        if bits != UNSET {
            out.put_u16_le(tag);
            out.put_u16_le(bits & 7);
            out.put_u32_le(id);
        }
    };
    put(TAG_USER_OBJ, rule.owner, NO_ID);
    rule.users
        .iter()
        .for_each(|(uid, bits)| put(TAG_USER, *bits, *uid));
    put(TAG_GROUP_OBJ, rule.group, NO_ID);
    rule.groups
        .iter()
        .for_each(|(gid, bits)| put(TAG_GROUP, *bits, *gid));
    put(TAG_MASK, rule.mask, NO_ID);
    put(TAG_OTHER, rule.other, NO_ID);
    out.freeze()
}

impl Meta {
    /// A rule that an inode names.
    pub(crate) async fn acl_rule(&self, id: u32) -> MetaResult<AclRule> {
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
        Ok(rule.ok_or_else(missing)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::trash;
    use crate::types::{Ino, Timestamp};

    fn rule() -> AclRule {
        let (users, groups) = (vec![(7, 6)], vec![(70, 4), (71, 2)]);
        AclRule {
            owner: 7,
            group: 5,
            mask: 6,
            other: 0,
            users,
            groups,
        }
    }

    #[test]
    fn wire_golden_bytes() {
        let minimal = AclRule {
            owner: 6,
            group: 4,
            mask: UNSET,
            other: 0,
            users: vec![],
            groups: vec![],
        };
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0,
            1, 0, 6, 0, 255, 255, 255, 255,
            4, 0, 4, 0, 255, 255, 255, 255,
            0x20, 0, 0, 0, 255, 255, 255, 255,
        ];
        assert_eq!(to_wire(&minimal)[..], expected);
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0,
            1, 0, 7, 0, 255, 255, 255, 255,
            2, 0, 6, 0, 7, 0, 0, 0,
            4, 0, 5, 0, 255, 255, 255, 255,
            8, 0, 4, 0, 70, 0, 0, 0,
            8, 0, 2, 0, 71, 0, 0, 0,
            0x10, 0, 6, 0, 255, 255, 255, 255,
            0x20, 0, 0, 0, 255, 255, 255, 255,
        ];
        assert_eq!(to_wire(&rule())[..], expected);
    }

    #[test]
    fn first_fit_decides() {
        let attr = Attr {
            uid: 1,
            gid: 10,
            ..trash::directory(Ino::ROOT, Timestamp::default())
        };
        for (uid, gid, bits) in [
            (1, 10, 7),
            (7, 10, 6),
            (2, 10, 4),
            (2, 70, 4),
            (2, 71, 2),
            (2, 9, 0),
        ] {
            assert_eq!(
                granted(&rule(), &Caller { uid, gid, pid: 0 }, &attr),
                bits,
                "{uid} {gid}"
            );
        }
    }

    #[test]
    fn new_inodes_get_at_most_what_they_asked_for() {
        assert_eq!(mode_bits(&rule()), 0o760);
        let child = narrowed(&rule(), 0o640);
        assert_eq!(
            (child.owner, child.group, child.mask, child.other),
            (6, 5, 4, 0)
        );
        assert_eq!(mode_bits(&child), 0o640);
        assert_eq!(narrowed(&rule(), 0o777), rule());
    }
}
