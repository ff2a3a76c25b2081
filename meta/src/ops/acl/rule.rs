//! What a rule grants, and how rules follow from modes and from other rules. Pure.

use crate::ops::Caller;
use crate::types::{AclRule, Attr};

/// An entry that a rule does not have.
pub(crate) const UNSET: u16 = 0xFFFF;

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

/// The access rule after chmod(2): it shows as `mode`, and what it says of named users and groups stays.
pub(crate) fn with_mode(rule: &AclRule, mode: u16) -> AclRule {
    let class = (mode >> 3) & 7;
    let (group, mask) = if is_minimal(rule) {
        (class, UNSET)
    } else {
        (rule.group, class)
    };
    AclRule {
        owner: (mode >> 6) & 7,
        group,
        mask,
        other: mode & 7,
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

    #[test]
    fn chmod_changes_the_mask_where_there_is_one() {
        let changed = with_mode(&rule(), 0o4513);
        assert_eq!(
            (changed.owner, changed.group, changed.mask, changed.other),
            (5, 5, 1, 3)
        );
        assert_eq!(changed.users, rule().users);
        let bare = AclRule {
            mask: UNSET,
            users: vec![],
            groups: vec![],
            ..rule()
        };
        let changed = with_mode(&bare, 0o513);
        assert_eq!((changed.group, changed.mask), (1, UNSET));
        for mode in 0..0o1000 {
            assert_eq!(mode_bits(&with_mode(&rule(), mode)), mode);
            assert_eq!(mode_bits(&with_mode(&bare, mode)), mode);
        }
    }
}
