//! What was committed to the kernel, as the reference semantics see it: who is guarded by which rules, who is in which group.
//!
//! PURE. Made with each ruleset, from the same parts, so that whoever asks for a verdict is told of the rules in force, not of
//! those that are on their way.

use super::state::Revision;
use crate::index::TargetName;
use crate::policy::{Connection, Direction, Interface, NamespacedName, Verdict, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What guards an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Whose address it is; of several claimants, which is nobody's, the last.
    pub target: Option<TargetName>,
    /// The groups attached, whether they exist or not.
    pub attached: BTreeSet<NamespacedName>,
    /// Their rules.
    pub rules: Interface,
}

impl End {
    /// An address that nothing may use.
    pub fn closed(target: Option<TargetName>) -> Arc<Self> {
        Arc::new(Self { target, ..Self::default() })
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The guarded addresses.
    pub ends: BTreeMap<IpAddr, Arc<End>>,
    /// The addresses of groups that rules name.
    pub members: BTreeMap<NamespacedName, Arc<BTreeSet<IpAddr>>>,
    /// The generation of the rules of each group that is attached to something.
    pub generations: BTreeMap<NamespacedName, i64>,
    /// The node's own addresses: from these it reaches its pods (S11).
    pub node: BTreeSet<IpAddr>,
}

impl Committed {
    /// With these revisions.
    pub fn set_revisions(&mut self, revisions: &BTreeMap<NamespacedName, Revision>) {
        self.generations = revisions.iter().map(|(group, revision)| (group.clone(), revision.generation)).collect();
    }

    /// The groups, of those that rules here name or that are attached here, that an address is known to be in.
    pub fn groups_of(&self, address: IpAddr) -> BTreeSet<NamespacedName> {
        let attached = self.ends.get(&address).into_iter().flat_map(|end| end.attached.iter());
        let named = self.members.iter().filter(|(_, members)| members.contains(&address)).map(|(group, _)| group);
        attached.chain(named).cloned().collect()
    }

    /// The namespaces of what is guarded.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let targets = self.ends.values().filter_map(|end| end.target.as_ref());
        targets.map(|target| target.name.namespace.clone()).collect()
    }

    /// What an end that is here does with a connection; `None`: it is from the node itself, which is not asked.
    pub fn verdict(&self, direction: Direction, connection: &Connection) -> Option<Verdict> {
        let verdict = self.end(direction, connection);
        let probes = direction == Direction::Ingress && self.node.contains(&connection.source);
        (verdict == Verdict::Unguarded || !probes).then_some(verdict)
    }
}

impl World for Committed {
    fn interface(&self, address: IpAddr) -> Option<&Interface> {
        self.ends.get(&address).map(|end| &end.rules)
    }

    fn is_member(&self, group: &NamespacedName, address: IpAddr) -> bool {
        self.members.get(group).is_some_and(|members| members.contains(&address))
    }
}
