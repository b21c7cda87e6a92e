//! Which groups that are being deleted may go (S14).
//!
//! PURE.

use crate::index::Index;
use crate::policy::NamespacedName;
use std::collections::BTreeSet;
use std::fmt;

/// Who still uses a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Bindings that attach it.
    pub bindings: BTreeSet<NamespacedName>,
    /// Groups that stay and whose rules name it.
    pub groups: BTreeSet<NamespacedName>,
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use crate::api::conditions::listed;
        let Self { bindings, groups } = self;
        match (bindings.is_empty(), groups.is_empty()) {
            (false, true) => write!(f, "attached by the bindings {}", listed(bindings)),
            (true, false) => write!(f, "named as a remote by the groups {}", listed(groups)),
            _ => write!(
                f,
                "attached by the bindings {}, and named as a remote by the groups {}",
                listed(bindings),
                listed(groups)
            ),
        }
    }
}

/// Who keeps a group that is being deleted from going; `None`: nobody, it may go.
///
/// Groups that are deleted together and only name each other do not hold each other: what holds one of them is a binding, or
/// the rules of a group that stays, be it directly or through others.
pub fn users(index: &Index, group: &NamespacedName) -> Option<Users> {
    let bindings = index.bound_by(group).cloned().collect::<BTreeSet<_>>();
    let groups = index.named_by(group).filter(|g| *g != group && stays(index, g)).cloned().collect::<BTreeSet<_>>();
    let users = Users { bindings, groups };
    (users != Users::default()).then_some(users)
}

/// Whether a group is live, or held by something that is.
fn stays(index: &Index, group: &NamespacedName) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![group];
    while let Some(group) = next.pop() {
        if !seen.insert(group) {
            continue;
        }
        let live = index.group(group).is_some_and(|g| !g.deleting);
        if live || index.bound_by(group).next().is_some() {
            return true;
        }
        next.extend(index.named_by(group));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Binding, Group};
    use crate::policy::{self, Remote, Rule, Traffic};
    use std::sync::Arc;

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("shop", name)
    }

    fn index(groups: &[(&str, bool, &[&str])]) -> Index {
        let mut index = Index::default();
        for (group, deleting, remotes) in groups {
            let rule = |remote: &&str| Rule { traffic: Traffic::Any, remote: Remote::Group(name(remote)) };
            let rules = policy::Group { ingress: remotes.iter().map(rule).collect(), egress: vec![] };
            index.apply_group(Group {
                name: name(group),
                uid: (*group).into(),
                generation: 1,
                deleting: *deleting,
                rules: Some(Arc::new(rules)),
                rules_generation: 1,
                error: None,
            });
        }
        index
    }

    #[test]
    fn s14_in_use_is_held_and_the_users_are_named() {
        let mut index = index(&[("db", true, &["db"]), ("web", false, &["db"])]);
        assert_eq!(users(&index, &name("db")).unwrap().to_string(), "named as a remote by the groups shop/web");
        index.delete_group(&name("web"));
        assert_eq!(users(&index, &name("db")), None, "naming oneself holds nobody");
        index.apply_binding(Binding {
            name: name("b"),
            uid: "b".into(),
            generation: 1,
            groups: [name("db")].into(),
            networks: BTreeSet::new(),
            selector: None,
            error: None,
        });
        assert_eq!(users(&index, &name("db")).unwrap().to_string(), "attached by the bindings shop/b");
    }

    #[test]
    fn s14_cycles_of_deleted_groups_do_not_hold_each_other() {
        let cycle = index(&[("a", true, &["b"]), ("b", true, &["c"]), ("c", true, &["a"])]);
        for group in ["a", "b", "c"] {
            assert_eq!(users(&cycle, &name(group)), None);
        }
        let held = index(&[("a", true, &["b"]), ("b", true, &["c"]), ("c", true, &["a"]), ("live", false, &["b"])]);
        // "live" needs b; b stays, so what b's rules name stays too: c, and through it a.
        for group in ["a", "b", "c"] {
            assert!(users(&held, &name(group)).is_some(), "{group}");
        }
    }
}
