//! An index as the reference semantics want to see it: who guards an address, and whose member it is.
//!
//! PURE. Owns the answers to the questions of [`World`], with the meaning that agents give them. Decides no verdict.

use crate::index::{Index, Target, TargetName};
use crate::policy::{Interface, NamespacedName, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What guards an interface: interfaces with the same groups share it.
#[derive(Debug)]
pub struct Guard {
    /// Its place in [`Snapshot::guards`].
    pub id: usize,
    /// The groups attached, whether they exist or not.
    pub attached: BTreeSet<NamespacedName>,
    /// Their rules.
    pub rules: Interface,
}

/// An address of a target.
#[derive(Debug)]
pub struct End {
    /// Whose it is; of several claimants, which is nobody's, all.
    pub targets: BTreeSet<TargetName>,
    /// What guards it; `None`: nothing does.
    pub guard: Option<Arc<Guard>>,
    /// The groups it is a member of.
    pub member_of: Arc<BTreeSet<NamespacedName>>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Snapshot {
    ends: BTreeMap<IpAddr, End>,
    guards: Vec<Arc<Guard>>,
}

impl Snapshot {
    /// Looks at an index.
    pub fn new(index: &Index) -> Self {
        let mut snapshot = Self::default();
        let mut guards: BTreeMap<BTreeSet<&NamespacedName>, Arc<Guard>> = BTreeMap::new();
        let mut memberships: BTreeMap<BTreeSet<&NamespacedName>, Arc<BTreeSet<NamespacedName>>> = BTreeMap::new();
        let mut targets: Vec<&Target> = index.all_targets().filter(|target| !target.host_network).collect();
        targets.sort_by_key(|target| (target.kind, &target.name, &target.network));
        for target in targets {
            let key = target.key();
            let mut bindings = index.bindings_of(&key).peekable();
            let guarded = bindings.peek().is_some();
            let attached: BTreeSet<&NamespacedName> = bindings.flat_map(|binding| &binding.groups).collect();
            let member_of: BTreeSet<&NamespacedName> =
                attached.iter().copied().filter(|group| index.group(group).is_some()).collect();
            let own: BTreeSet<IpAddr> = index.addresses(target).collect();
            for address in target.claimed() {
                // What is declared takes nothing from a pod; and who claims a node's address must not close the node.
                let stronger = index.claimants(*address).any(|other| other.kind < target.kind);
                if stronger || index.is_reserved(*address) {
                    continue;
                }
                // An address that several claim belongs to none of them, and is closed if any of them is guarded.
                let groups = if own.contains(address) { attached.clone() } else { BTreeSet::new() };
                let guard = guarded.then(|| {
                    let make = |groups: &BTreeSet<&NamespacedName>| snapshot.guard(index, groups);
                    guards.entry(groups).or_insert_with_key(make).clone()
                });
                let members = if own.contains(address) { member_of.clone() } else { BTreeSet::new() };
                let members = memberships
                    .entry(members)
                    .or_insert_with_key(|groups| Arc::new(groups.iter().map(|group| (*group).clone()).collect()));
                let end = snapshot.ends.entry(*address).or_insert_with(|| End {
                    targets: BTreeSet::new(),
                    guard: None,
                    member_of: members.clone(),
                });
                end.targets.insert(key.clone());
                end.guard = end.guard.take().or(guard);
            }
        }
        snapshot
    }

    fn guard(&mut self, index: &Index, groups: &BTreeSet<&NamespacedName>) -> Arc<Guard> {
        let rules = |name: &NamespacedName| Some((name.clone(), index.group(name)?.rules.clone()?));
        let guard = Arc::new(Guard {
            id: self.guards.len(),
            attached: groups.iter().map(|group| (*group).clone()).collect(),
            rules: groups.iter().filter_map(|name| rules(name)).collect(),
        });
        self.guards.push(guard.clone());
        guard
    }

    /// The address of a target; `None`: no target's.
    pub fn at(&self, address: IpAddr) -> Option<&End> {
        self.ends.get(&address)
    }

    /// Every address of a target.
    pub fn ends(&self) -> impl Iterator<Item = (IpAddr, &End)> {
        self.ends.iter().map(|(address, end)| (*address, end))
    }

    /// The distinct combinations of groups that guard something.
    pub fn guards(&self) -> &[Arc<Guard>] {
        &self.guards
    }

    /// What guards an address.
    pub fn guard_of(&self, address: IpAddr) -> Option<&Arc<Guard>> {
        self.ends.get(&address)?.guard.as_ref()
    }
}

impl World for Snapshot {
    fn interface(&self, address: IpAddr) -> Option<&Interface> {
        self.guard_of(address).map(|guard| &guard.rules)
    }

    fn is_member(&self, group: &NamespacedName, address: IpAddr) -> bool {
        self.ends.get(&address).is_some_and(|end| end.member_of.contains(group))
    }
}
