//! ACL rules this process knows, by number and by content.
//!
//! Owned by [`crate::client::Shared`], filled at mount by `Meta::load_acls` and by every rule that is read or made
//! afterwards. A rule never changes and never goes away, so what is here is always right; what is missing is asked
//! for. Two numbers may stand for the same rule (clients insert without asking each other): any of them will do.
//!
//! One lock, held for a hash look-up; taken by operations that meet an inode with an ACL and by nobody else.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::limits::ACL_RULES_MAX;
use crate::types::AclRule;

/// Rules by number and numbers by rule.
#[derive(Debug, Default)]
pub struct AclCache {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    rules: HashMap<u32, Arc<AclRule>>,
    ids: HashMap<Arc<AclRule>, u32>,
}

impl AclCache {
    /// The rule of that number.
    pub(crate) fn rule(&self, id: u32) -> Option<Arc<AclRule>> {
        self.known.read().rules.get(&id).cloned()
    }

    /// A number of that rule.
    pub(crate) fn id(&self, rule: &AclRule) -> Option<u32> {
        self.known.read().ids.get(rule).copied()
    }

    /// Whether no more fit without forgetting.
    pub(crate) fn is_full(&self) -> bool {
        self.known.read().rules.len() >= ACL_RULES_MAX
    }

    /// Remembers a rule. When there are too many, all others are forgotten: those in use come back soon.
    pub(crate) fn learn(&self, id: u32, rule: AclRule) -> Arc<AclRule> {
        let mut known = self.known.write();
        if let Some(rule) = known.rules.get(&id) {
            return Arc::clone(rule);
        }
        if known.rules.len() >= ACL_RULES_MAX {
            *known = Known::default();
        }
        let rule = Arc::new(rule);
        known.rules.insert(id, Arc::clone(&rule));
        known.ids.entry(Arc::clone(&rule)).or_insert(id);
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(owner: u16) -> AclRule {
        AclRule {
            owner,
            group: 0,
            mask: 7,
            other: 0,
            users: vec![(1, 7)],
            groups: vec![],
        }
    }

    #[test]
    fn a_rule_with_two_numbers_keeps_both() {
        let cache = AclCache::default();
        assert_eq!((cache.rule(1), cache.id(&rule(7))), (None, None));
        cache.learn(5, rule(7));
        cache.learn(9, rule(7));
        assert_eq!(cache.id(&rule(7)), Some(5));
        assert_eq!(cache.rule(9).as_deref(), Some(&rule(7)));
        assert_eq!(
            *cache.learn(5, rule(1)),
            rule(7),
            "numbers are never given again"
        );
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = AclCache::default();
        for id in 1..=ACL_RULES_MAX as u32 {
            assert!(!cache.is_full());
            cache.learn(id, rule(id as u16));
        }
        assert!(cache.is_full());
        cache.learn(u32::MAX, rule(3));
        assert!(!cache.is_full());
        assert_eq!(cache.id(&rule(3)), Some(u32::MAX));
        assert_eq!(cache.rule(1), None);
    }
}
