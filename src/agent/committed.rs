//! What was committed to the kernel, as the reference semantics see it: who is guarded by which rules, who is in which group.
//!
//! PURE. Made with each ruleset, from the same parts, so that whoever asks for a verdict is told of the rules in force, not of
//! those that are on their way.

use crate::index::TargetName;
use crate::nft::usage::Guarded;
use crate::policy::{self, Connection, Direction, Interface, NamespacedName, Verdict, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The rules of a group at one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The group's uid.
    pub uid: String,
    /// The generation of the rules.
    pub generation: i64,
    /// The rules.
    pub rules: Arc<policy::Group>,
}

/// What guards an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Whose address it is; of several claimants, which is nobody's, the last.
    pub target: Option<TargetName>,
    /// The groups attached, whether they exist or not.
    pub attached: BTreeSet<NamespacedName>,
    /// Their rules.
    pub rules: Arc<Interface>,
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
    /// The groups that are attached to something.
    pub groups: BTreeMap<NamespacedName, Revision>,
    /// The node's own addresses: from these it reaches its pods (S11).
    pub node: BTreeSet<IpAddr>,
}

impl Committed {
    /// The addresses whose connections are to be counted.
    pub fn guarded(&self) -> Guarded {
        self.ends.keys().copied().collect()
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
        self.ends.get(&address).map(|end| end.rules.as_ref())
    }

    fn is_member(&self, group: &NamespacedName, address: IpAddr) -> bool {
        self.members.get(group).is_some_and(|members| members.contains(&address))
    }
}
