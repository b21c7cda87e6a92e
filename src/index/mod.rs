//! Who is in which group: objects in, memberships out.
//!
//! PURE and synchronous: `apply` and `delete` take the current state of one object and say what they changed. The controller
//! keeps one index of the whole cluster; an agent keeps one in which the only targets are its own.

mod digest;
mod feed;
mod machines;
mod networks;
mod objects;
mod selection;
mod slices;

#[cfg(test)]
mod tests;

pub use digest::AddressDigest;
pub use feed::{Feed, Indexed, Update};
pub use machines::{Machine, MachineSource};
pub use networks::{NETWORKS, OnNetwork, attached};
pub use objects::{
    Binding, DeclaredDevice, Group, SelectorKind, Target, TargetKind, TargetName, addresses_of, is_own, name_of,
};
pub use selection::Selection;
pub use slices::RemoteMembers;

use crate::policy::NamespacedName;
use ipnet::IpNet;
use machines::Machines;
use selection::Matched;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// What a call changed. Whoever writes anything looks the current state up by these keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Group and target: the target joined, left, or has other addresses.
    pub members: BTreeSet<(NamespacedName, TargetName)>,
    /// Binding and target: likewise, of what the binding selects.
    pub targets: BTreeSet<(NamespacedName, TargetName)>,
    /// Groups that came, went, or say something else.
    pub groups: BTreeSet<NamespacedName>,
    /// Bindings that came, went, or say something else.
    pub bindings: BTreeSet<NamespacedName>,
    /// Network interfaces that have other groups, or whose addresses are their own or not any more.
    pub interfaces: BTreeSet<NamespacedName>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn note(&mut self, target: &TargetName) {
        if target.kind == TargetKind::NetworkInterface {
            self.interfaces.insert(target.name.clone());
        }
    }

    /// Adds what another call changed.
    pub fn extend(&mut self, other: Self) {
        let Self { members, targets, groups, bindings, interfaces } = other;
        self.members.extend(members);
        self.targets.extend(targets);
        self.groups.extend(groups);
        self.bindings.extend(bindings);
        self.interfaces.extend(interfaces);
    }
}

/// What a node knows of a pod on networks that are not Kubernetes'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// The uid of the pod.
    pub uid: String,
    /// Its addresses by network.
    pub addresses: BTreeMap<NamespacedName, BTreeSet<IpAddr>>,
}

/// Targets, groups and bindings, and how they relate.
#[derive(Debug, Default)]
pub struct Index {
    targets: HashMap<TargetName, Target>,
    groups: BTreeMap<NamespacedName, Group>,
    bindings: BTreeMap<NamespacedName, Binding>,
    selection: Selection,
    machines: Machines,
    /// Of each group, its members, each with the number of bindings that make it one.
    members: HashMap<NamespacedName, BTreeMap<TargetName, usize>>,
    /// The bindings that name a group, whether it exists or not.
    bound_by: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    /// The groups that name a group as a remote, whether it exists or not.
    named_by: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    /// The addresses that nodes know of pods on networks that are not Kubernetes', by pod and node.
    attached: HashMap<NamespacedName, BTreeMap<String, Attached>>,
    /// Addresses that nodes know better than the status of these pods does, with the uid they are true of.
    known: BTreeMap<NamespacedName, (String, BTreeSet<IpAddr>)>,
    /// The live targets that claim an address: more than one, and it belongs to none of them (S10).
    claims: HashMap<IpAddr, BTreeSet<TargetName>>,
    /// Addresses of nodes, each with the nodes that have it. They never enter a set.
    node_addresses: HashMap<IpAddr, BTreeSet<String>>,
    nodes: HashMap<String, BTreeSet<IpAddr>>,
    /// Service ranges. Their addresses never enter a set either.
    service_networks: Vec<IpNet>,
}

impl Index {
    /// Takes in a target as it is now.
    pub fn apply_target(&mut self, target: Target) -> Changes {
        let name = target.key();
        if target.finished {
            return self.delete_target(&name);
        }
        let is_pod = name.kind == TargetKind::Pod && name.network.is_none();
        let known = Some(&name.name).filter(|_| is_pod).and_then(|pod| self.known.get(pod));
        let known = known.filter(|(uid, _)| *uid == target.uid);
        let target = target.with_known(known.map(|(_, addresses)| addresses));
        if self.targets.get(&name) == Some(&target) {
            return Changes::default();
        }
        let mut changes = Changes::default();
        self.touch(&name, &mut changes);
        let before = self.targets.get(&name).map(|p| p.claimed().clone()).unwrap_or_default();
        self.claim(&name, before, target.claimed().clone(), &mut changes);
        let own = self.selection.set_labels(name.kind.into(), &name, Some(target.labels.clone()));
        let before = self.targets.insert(name.clone(), target.clone());
        self.rematch(own, &mut changes);
        self.set_machine(&name, before.as_ref(), Some(&target), &mut changes);
        self.touch(&name, &mut changes);
        self.set_networks(&name, before.as_ref(), Some(&target), &mut changes);
        changes
    }

    /// Forgets a target.
    pub fn delete_target(&mut self, name: &TargetName) -> Changes {
        let mut changes = Changes::default();
        let Some(target) = self.targets.remove(name) else { return changes };
        self.touch(name, &mut changes);
        self.claim(name, target.claimed().clone(), BTreeSet::new(), &mut changes);
        let own = self.selection.set_labels(name.kind.into(), name, None);
        self.rematch(own, &mut changes);
        self.set_machine(name, Some(&target), None, &mut changes);
        self.set_networks(name, Some(&target), None, &mut changes);
        changes
    }

    /// Takes in a virtual machine as a watch shows it now.
    pub fn apply_machine(&mut self, source: MachineSource, machine: Machine) -> Changes {
        let mut changes = Changes::default();
        let (uid, labels) = (machine.uid.clone(), machine.labels.clone());
        if !self.machines.see(source, machine) {
            return changes;
        }
        let pods: Vec<TargetName> = self.machines.pods(&uid).cloned().collect();
        for pod in pods {
            let matched = self.selection.set_labels(SelectorKind::VirtualMachine, &pod, Some(labels.clone()));
            self.rematch(matched, &mut changes);
        }
        changes
    }

    /// A watch does not show a virtual machine any more.
    pub fn lose_machine(&mut self, source: MachineSource, uid: &str) {
        self.machines.lose(source, uid);
    }

    /// The uids of the virtual machines that a watch has shown.
    pub fn machines_seen_by(&self, source: MachineSource) -> impl Iterator<Item = &String> {
        self.machines.seen_by(source)
    }

    /// The live pods that run a virtual machine of a namespace: two while it migrates.
    pub fn runners(&self, namespace: &str, machine: &str) -> impl Iterator<Item = &Target> {
        let pods = self.machines.pods(machine).filter(move |pod| pod.name.namespace == namespace);
        pods.filter_map(|pod| self.targets.get(pod))
    }

    /// Whether any live pod runs a virtual machine.
    pub fn runs_machines(&self) -> bool {
        self.machines.are_run()
    }

    /// Takes in what the node of a pod with this uid knows of its addresses; `None`: nothing beyond the pod's status.
    pub fn set_known_addresses(&mut self, pod: &NamespacedName, known: Option<(String, BTreeSet<IpAddr>)>) -> Changes {
        let before = match known.clone() {
            Some(known) => self.known.insert(pod.clone(), known),
            None => self.known.remove(pod),
        };
        if before == known {
            return Changes::default();
        }
        match self.pod(pod).cloned() {
            Some(pod) => self.apply_target(pod),
            None => Changes::default(),
        }
    }

    /// Takes in what a node knows of a pod on networks that are not Kubernetes'; `None`: nothing. It counts if the pod is on
    /// that node.
    pub fn set_attached(&mut self, pod: &NamespacedName, node: &str, attached: Option<Attached>) -> Changes {
        let nodes = self.attached.entry(pod.clone()).or_default();
        let before = match attached.clone() {
            Some(attached) => nodes.insert(node.to_owned(), attached),
            None => nodes.remove(node),
        };
        if nodes.is_empty() {
            self.attached.remove(pod);
        }
        let mut changes = Changes::default();
        if let Some(target) = self.pod(pod).filter(|_| before != attached).cloned() {
            self.set_networks(&TargetName::pod(pod.clone()), Some(&target), Some(&target), &mut changes);
        }
        changes
    }

    /// The pods of which something is known beyond their status, whether they exist or not.
    pub fn with_known_addresses(&self) -> impl Iterator<Item = (&NamespacedName, &(String, BTreeSet<IpAddr>))> {
        self.known.iter()
    }

    /// Takes in a group as it is now. One that cannot be parsed keeps its last good rules (S13).
    pub fn apply_group(&mut self, mut group: Group) -> Changes {
        let name = group.name.clone();
        let old = self.groups.get(&name);
        if let (Some(old), true) = (old, group.rules.is_none()) {
            // The uid too: a group deleted and created anew inherits nothing.
            if old.uid == group.uid {
                group.rules = old.rules.clone();
                group.rules_generation = old.rules_generation;
            }
        }
        if old == Some(&group) {
            return Changes::default();
        }
        for remote in old.map(Group::remotes).unwrap_or_default() {
            remove_from(&mut self.named_by, &remote, &name);
        }
        for remote in group.remotes() {
            self.named_by.entry(remote).or_default().insert(name.clone());
        }
        self.groups.insert(name.clone(), group);
        Changes { groups: [name].into(), ..Changes::default() }
    }

    /// Forgets a group. Its bindings, and so its members, stay: they are guarded by what is left.
    pub fn delete_group(&mut self, name: &NamespacedName) -> Changes {
        let Some(group) = self.groups.remove(name) else { return Changes::default() };
        for remote in group.remotes() {
            remove_from(&mut self.named_by, &remote, name);
        }
        Changes { groups: [name.clone()].into(), ..Changes::default() }
    }

    /// Takes in a binding as it is now. One that cannot be parsed keeps what it last said (S13).
    pub fn apply_binding(&mut self, mut binding: Binding) -> Changes {
        let name = binding.name.clone();
        let mut changes = Changes::default();
        let old = self.bindings.get(&name).cloned();
        if let (Some(old), true) = (&old, binding.error.is_some())
            && old.uid == binding.uid
        {
            binding.groups.clone_from(&old.groups);
            binding.selector.clone_from(&old.selector);
            binding.networks.clone_from(&old.networks);
        }
        if old.as_ref() == Some(&binding) {
            return changes;
        }
        changes.bindings.insert(name.clone());
        // Out with the old memberships and in with the new; what is both, is touched, which costs little and lies to no one.
        let targets: Vec<TargetName> = self.selection.targets_of(&name).collect();
        for target in targets {
            self.attach(&name, &target, false, &mut changes);
        }
        for group in old.map(|b| b.groups).unwrap_or_default() {
            remove_from(&mut self.bound_by, &group, &name);
        }
        for group in &binding.groups {
            self.bound_by.entry(group.clone()).or_default().insert(name.clone());
        }
        self.selection.set_binding(&name, binding.selector.clone(), &binding.networks);
        self.bindings.insert(name.clone(), binding);
        let targets: Vec<TargetName> = self.selection.targets_of(&name).collect();
        for target in targets {
            self.attach(&name, &target, true, &mut changes);
        }
        changes
    }

    /// Forgets a binding.
    pub fn delete_binding(&mut self, name: &NamespacedName) -> Changes {
        let mut changes = Changes::default();
        let targets: Vec<TargetName> = self.selection.targets_of(name).collect();
        for target in targets {
            self.attach(name, &target, false, &mut changes);
        }
        if let Some(binding) = self.bindings.remove(name) {
            changes.bindings.insert(name.clone());
            for group in binding.groups {
                remove_from(&mut self.bound_by, &group, name);
            }
        }
        self.selection.remove_binding(name);
        changes
    }

    /// The addresses of a node; none when it is gone.
    pub fn set_node_addresses(&mut self, node: &str, addresses: BTreeSet<IpAddr>) -> Changes {
        let mut changes = Changes::default();
        let old = self.nodes.remove(node).unwrap_or_default();
        for address in old.difference(&addresses) {
            remove_from(&mut self.node_addresses, address, &node.to_owned());
        }
        for address in &addresses {
            self.node_addresses.entry(*address).or_default().insert(node.to_owned());
        }
        for address in old.symmetric_difference(&addresses) {
            for target in self.claims.get(address).cloned().unwrap_or_default() {
                self.touch(&target, &mut changes);
            }
        }
        if !addresses.is_empty() {
            self.nodes.insert(node.to_owned(), addresses);
        }
        changes
    }

    /// The ranges from which Services get their addresses.
    pub fn set_service_networks(&mut self, networks: Vec<IpNet>) -> Changes {
        let mut changes = Changes::default();
        if networks == self.service_networks {
            return changes;
        }
        let old = std::mem::replace(&mut self.service_networks, networks);
        // Rare enough for a walk over every address.
        let concerned: BTreeSet<TargetName> = self
            .claims
            .iter()
            .filter(|(a, _)| old.iter().chain(&self.service_networks).any(|n| n.contains(*a)))
            .flat_map(|(_, targets)| targets.iter().cloned())
            .collect();
        for target in concerned {
            self.touch(&target, &mut changes);
        }
        changes
    }

    /// A pod that is live.
    pub fn pod(&self, name: &NamespacedName) -> Option<&Target> {
        self.target(&TargetName::pod(name.clone()))
    }

    /// Every live pod.
    pub fn pods(&self) -> impl Iterator<Item = &Target> {
        self.of_kind(TargetKind::Pod)
    }

    /// Every live target of a kind, each once, whatever networks it is on.
    pub fn of_kind(&self, kind: TargetKind) -> impl Iterator<Item = &Target> {
        self.all_targets().filter(move |target| target.kind == kind && target.network.is_none())
    }

    /// A target that is live.
    pub fn target(&self, name: &TargetName) -> Option<&Target> {
        self.targets.get(name)
    }

    /// Every live target, of every kind and on every network.
    pub fn all_targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.values()
    }

    /// A group.
    pub fn group(&self, name: &NamespacedName) -> Option<&Group> {
        self.groups.get(name)
    }

    /// Every group.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// A binding.
    pub fn binding(&self, name: &NamespacedName) -> Option<&Binding> {
        self.bindings.get(name)
    }

    /// Every binding.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values()
    }

    /// The bindings that name a group.
    pub fn bound_by(&self, group: &NamespacedName) -> impl Iterator<Item = &NamespacedName> {
        self.bound_by.get(group).into_iter().flatten()
    }

    /// The groups that name a group as a remote, itself among them if it does.
    pub fn named_by(&self, group: &NamespacedName) -> impl Iterator<Item = &NamespacedName> {
        self.named_by.get(group).into_iter().flatten()
    }

    /// The targets to which a group is attached.
    pub fn members(&self, group: &NamespacedName) -> impl Iterator<Item = &Target> {
        self.members.get(group).into_iter().flat_map(BTreeMap::keys).filter_map(|name| self.targets.get(name))
    }

    /// Whether a group is attached to a target.
    pub fn is_member(&self, group: &NamespacedName, target: &TargetName) -> bool {
        self.members.get(group).is_some_and(|targets| targets.contains_key(target))
    }

    /// The targets that a binding selects.
    pub fn targets(&self, binding: &NamespacedName) -> impl Iterator<Item = &Target> {
        self.selection.targets_of(binding).filter_map(|name| self.targets.get(&name))
    }

    /// Whether a binding selects a target.
    pub fn is_target(&self, binding: &NamespacedName, target: &TargetName) -> bool {
        self.selection.bindings_of(target).any(|b| b == binding)
    }

    /// The bindings that select a target. None: it is not guarded.
    pub fn bindings_of(&self, target: &TargetName) -> impl Iterator<Item = &Binding> {
        self.selection.bindings_of(target).filter_map(|name| self.bindings.get(name))
    }

    /// The addresses that are a target's own beyond doubt, and may enter a set (S10).
    pub fn addresses<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = IpAddr> + 'a {
        let claimed = target.claimed().iter().copied();
        claimed.filter(|a| !self.is_contested(target, *a) && !self.is_reserved(*a))
    }

    /// The live targets that claim an address.
    pub fn claimants(&self, address: IpAddr) -> impl Iterator<Item = &TargetName> {
        self.claims.get(&address).into_iter().flatten()
    }

    /// Whether an address that a target claims is not its own, as others claim it too.
    ///
    /// Pods get theirs from the cluster's network; what people write into a `NetworkInterface` takes nothing from a pod. A
    /// virtual machine takes its address along when it migrates, and is on two nodes until it has.
    pub fn is_contested(&self, target: &Target, address: IpAddr) -> bool {
        let key = target.key();
        let mut others = self.claimants(address).filter(|other| **other != key && other.kind <= key.kind);
        others.any(|other| !self.targets.get(other).is_some_and(|other| target.is_machine_of(other)))
    }

    /// Whether an address is a node's or a Service's.
    pub fn is_reserved(&self, address: IpAddr) -> bool {
        self.node_addresses.contains_key(&address) || self.service_networks.iter().any(|n| n.contains(&address))
    }

    /// Every relation of a target may look different now.
    fn touch(&self, target: &TargetName, changes: &mut Changes) {
        changes.note(target);
        for binding in self.bindings_of(target) {
            changes.targets.insert((binding.name.clone(), target.clone()));
            changes.members.extend(binding.groups.iter().map(|group| (group.clone(), target.clone())));
        }
    }

    fn claim(&mut self, target: &TargetName, before: BTreeSet<IpAddr>, after: BTreeSet<IpAddr>, changes: &mut Changes) {
        for address in before.symmetric_difference(&after) {
            if after.contains(address) {
                self.claims.entry(*address).or_default().insert(target.clone());
            } else {
                remove_from(&mut self.claims, address, target);
            }
            // The others may have lost the address, or have it for their own again.
            for other in self.claims.get(address).cloned().unwrap_or_default() {
                self.touch(&other, changes);
            }
        }
    }

    /// A pod runs another virtual machine than before, or has other labels itself. A machine that is not known has those of
    /// its pod: KubeVirt creates the pod with the machine's.
    fn set_machine(&mut self, pod: &TargetName, before: Option<&Target>, now: Option<&Target>, changes: &mut Changes) {
        let machine = |target: Option<&Target>| target.and_then(|target| target.machine.clone());
        let (before, machine) = (machine(before), machine(now));
        if before.is_none() && machine.is_none() {
            return;
        }
        if let Some(before) = before.filter(|before| Some(before) != machine.as_ref()) {
            self.machines.end(&before, pod);
        }
        let labels = machine.zip(now).map(|(machine, now)| {
            self.machines.begin(&machine, pod);
            self.machines.labels(&machine).unwrap_or(&now.labels).clone()
        });
        let matched = self.selection.set_labels(SelectorKind::VirtualMachine, pod, labels);
        self.rematch(matched, changes);
    }

    /// A pod is what it is on each of its networks, and may have left some.
    fn set_networks(&mut self, pod: &TargetName, before: Option<&Target>, now: Option<&Target>, changes: &mut Changes) {
        let networks = |target: Option<&Target>| -> BTreeSet<NamespacedName> {
            target.into_iter().flat_map(|target| target.networks.values()).map(|on| on.network.clone()).collect()
        };
        let (before, after) = (networks(before), networks(now));
        for left in before.difference(&after) {
            changes.extend(self.delete_target(&TargetName { network: Some(left.clone()), ..pod.clone() }));
        }
        let Some(pod) = now else { return };
        for network in after {
            let attached = pod.node.as_ref().and_then(|node| self.attached.get(&pod.name)?.get(node));
            let attached = attached.filter(|attached| attached.uid == pod.uid);
            let addresses = attached.and_then(|attached| attached.addresses.get(&network)).cloned().unwrap_or_default();
            changes.extend(self.apply_target(pod.on(network, addresses)));
        }
    }

    fn rematch(&mut self, matched: Vec<Matched>, changes: &mut Changes) {
        for Matched { binding, target, selected } in matched {
            self.attach(&binding, &target, selected, changes);
        }
    }

    /// A binding begins or ceases to select a target.
    fn attach(&mut self, binding: &NamespacedName, target: &TargetName, selected: bool, changes: &mut Changes) {
        changes.note(target);
        changes.targets.insert((binding.clone(), target.clone()));
        let groups = self.bindings.get(binding).map(|b| b.groups.clone()).unwrap_or_default();
        for group in groups {
            changes.members.insert((group.clone(), target.clone()));
            let members = self.members.entry(group.clone()).or_default();
            let count = members.entry(target.clone()).or_default();
            *count = if selected { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                members.remove(target);
            }
            if members.is_empty() {
                self.members.remove(&group);
            }
        }
    }
}

/// Removes a value from a map of sets, and the set when it was the last.
fn remove_from<K, V>(map: &mut HashMap<K, BTreeSet<V>>, key: &K, value: &V)
where
    K: std::hash::Hash + Eq,
    V: Ord,
{
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
