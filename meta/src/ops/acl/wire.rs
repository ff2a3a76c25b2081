//! The bytes Linux exchanges for an ACL: `system.posix_acl_access|default`, `posix_acl_xattr.h`, version 2.
//!
//! Little-endian: version u32, then for each entry tag u16, permissions u16, id u32 (all ones where the tag names
//! nobody). Entries come in the order owner, named users, group, named groups, mask, other. Pure. The parser
//! accepts what Linux accepts (`posix_acl_valid`) and nothing else; that two entries may name the same user is
//! Linux's rule too, and the first of them counts.

use bytes::{BufMut, Bytes, BytesMut};

use crate::client::MetaResult;
use crate::error::MetaError;
use crate::types::AclRule;

use super::rule::UNSET;

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
const NO_ID: u32 = u32::MAX;
const TAG_USER_OBJ: u16 = 0x01;
const TAG_USER: u16 = 0x02;
const TAG_GROUP_OBJ: u16 = 0x04;
const TAG_GROUP: u16 = 0x08;
const TAG_MASK: u16 = 0x10;
const TAG_OTHER: u16 = 0x20;

/// The rule as Linux wants it.
pub(crate) fn to_wire(rule: &AclRule) -> Bytes {
    let entries = 4 + rule.users.len() + rule.groups.len();
    let mut out = BytesMut::with_capacity(HEADER_BYTES + ENTRY_BYTES * entries);
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

/// The rule in `wire`; `None` if it has no entry at all, which means that there shall be no ACL. `NotSupported`
/// for another version, `Invalid` for everything else that is wrong.
pub(crate) fn from_wire(wire: &[u8]) -> MetaResult<Option<AclRule>> {
    let Some((version, entries)) = wire.split_first_chunk::<HEADER_BYTES>() else {
        return Err(MetaError::Invalid("an ACL shorter than its version"));
    };
    if u32::from_le_bytes(*version) != VERSION {
        return Err(MetaError::NotSupported);
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let (entries, []) = entries.as_chunks::<ENTRY_BYTES>() else {
        return Err(MetaError::Invalid("an ACL with part of an entry"));
    };
    let mut parser = Parser::new();
    for entry in entries {
        let [tag0, tag1, bits0, bits1, id @ ..] = *entry;
        parser.take(
            u16::from_le_bytes([tag0, tag1]),
            u16::from_le_bytes([bits0, bits1]),
            u32::from_le_bytes(id),
        )?;
    }
    parser.end().map(Some)
}

/// What must come next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Owner,
    UserOrGroup,
    NamedGroup,
    Other,
    Nothing,
}

struct Parser {
    rule: AclRule,
    next: Next,
}

impl Parser {
    fn new() -> Parser {
        let rule = AclRule {
            owner: UNSET,
            group: UNSET,
            mask: UNSET,
            other: UNSET,
            users: Vec::new(),
            groups: Vec::new(),
        };
        Parser {
            rule,
            next: Next::Owner,
        }
    }

    fn take(&mut self, tag: u16, bits: u16, id: u32) -> MetaResult<()> {
        if bits > 7 {
            return Err(MetaError::Invalid("an ACL entry with unknown permissions"));
        }
        let rule = &mut self.rule;
        let names_somebody = id != NO_ID;
        let unnamed = rule.users.is_empty() && rule.groups.is_empty();
        match (tag, self.next) {
            (TAG_USER_OBJ, Next::Owner) => {
                rule.owner = bits;
                self.next = Next::UserOrGroup;
            }
            (TAG_USER, Next::UserOrGroup) if names_somebody => rule.users.push((id, bits)),
            (TAG_GROUP_OBJ, Next::UserOrGroup) => {
                rule.group = bits;
                self.next = Next::NamedGroup;
            }
            (TAG_GROUP, Next::NamedGroup) if names_somebody => rule.groups.push((id, bits)),
            (TAG_MASK, Next::NamedGroup) => {
                rule.mask = bits;
                self.next = Next::Other;
            }
            // Named entries need a mask before.
            (TAG_OTHER, Next::NamedGroup) if unnamed => {
                rule.other = bits;
                self.next = Next::Nothing;
            }
            (TAG_OTHER, Next::Other) => {
                rule.other = bits;
                self.next = Next::Nothing;
            }
            _ => {
                return Err(MetaError::Invalid(
                    "ACL entries out of order, missing, double or of an unknown kind",
                ));
            }
        }
        Ok(())
    }

    fn end(self) -> MetaResult<AclRule> {
        if self.next == Next::Nothing {
            Ok(self.rule)
        } else {
            Err(MetaError::Invalid("an ACL that ends too early"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> AclRule {
        AclRule {
            owner: 6,
            group: 4,
            mask: UNSET,
            other: 0,
            users: vec![],
            groups: vec![],
        }
    }

    fn named() -> AclRule {
        AclRule {
            owner: 7,
            group: 5,
            mask: 6,
            other: 0,
            users: vec![(7, 6)],
            groups: vec![(70, 4), (71, 2)],
        }
    }

    #[test]
    fn golden_bytes() {
        #[rustfmt::skip]
        let expected = [
            2, 0, 0, 0,
            1, 0, 6, 0, 255, 255, 255, 255,
            4, 0, 4, 0, 255, 255, 255, 255,
            0x20, 0, 0, 0, 255, 255, 255, 255,
        ];
        assert_eq!(to_wire(&minimal())[..], expected);
        assert_eq!(from_wire(&expected).unwrap(), Some(minimal()));
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
        assert_eq!(to_wire(&named())[..], expected);
        assert_eq!(from_wire(&expected).unwrap(), Some(named()));
    }

    /// Entries as (tag, bits, id).
    fn wire(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, bits, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&bits.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    #[test]
    fn what_linux_refuses_is_refused() {
        let (owner, group, other) = ((1, 7, NO_ID), (4, 5, NO_ID), (0x20, 0, NO_ID));
        let (user, named_group, mask) = ((2, 6, 9), (8, 6, 9), (0x10, 7, NO_ID));
        let good: [&[_]; 5] = [
            &[owner, group, other],
            &[owner, group, mask, other],
            &[owner, user, group, mask, other],
            &[owner, group, named_group, named_group, mask, other],
            &[owner, user, user, group, named_group, mask, other],
        ];
        for entries in good {
            assert!(from_wire(&wire(entries)).unwrap().is_some(), "{entries:?}");
        }
        let bad: [&[_]; 15] = [
            &[group, other],
            &[owner, other],
            &[owner, group],
            &[owner, owner, group, other],
            &[owner, group, group, other],
            &[owner, group, other, other],
            &[owner, group, mask, mask, other],
            &[group, owner, other],
            &[owner, group, user, mask, other],
            &[owner, named_group, group, mask, other],
            &[owner, user, group, other],
            &[owner, group, named_group, other],
            &[owner, (2, 6, NO_ID), group, mask, other],
            &[(1, 8, NO_ID), group, other],
            &[owner, group, (0x40, 0, NO_ID), other],
        ];
        for entries in bad {
            let refused = from_wire(&wire(entries));
            assert!(matches!(refused, Err(MetaError::Invalid(_))), "{entries:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_acl_are_refused() {
        assert_eq!(from_wire(&wire(&[])).unwrap(), None);
        let whole = to_wire(&named());
        for length in [0, 3, 5, 11, whole.len() - 1] {
            let cut = from_wire(&whole[..length]);
            assert!(matches!(cut, Err(MetaError::Invalid(_))), "{length}");
        }
        let other_version = from_wire(&[1, 0, 0, 0]);
        assert!(matches!(other_version, Err(MetaError::NotSupported)));
    }
}
