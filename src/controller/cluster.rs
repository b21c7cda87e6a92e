//! The controller's view of the whole cluster: what it has seen, and what that leaves to be done.
//!
//! PURE: updates in, keys of work out. Writers look up what to write when they get to it, so work is never out of date.

use super::ahead::Ahead;
use super::handovers::Handovers;
use super::lock_out::{AdminPorts, Before, Notice};
use super::membership::Membership;
use super::reports::{Differences, Reports};
use super::shards::Shards;
use super::usage::{Identity, Usages};
use crate::api::{
    ConnectionHandover, NetworkInterface, NetworkInterfaceStatus, NodeEnforcement, NodeUsageSpec, SecurityGroup,
    SecurityGroupBinding, SecurityGroupBindingStatus, SecurityGroupSlice, SecurityGroupSliceSpec, SecurityGroupStatus,
    SliceMember,
};
use crate::index::{Changes, Index, TargetKind, TargetName, Update, addresses_of, name_of};
use crate::policy::NamespacedName;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Something to be brought in line; of what is to be done at once, in this order: nodes wait for slices.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// One slice, by its group and its own name.
    Slice(NamespacedName, String),
    /// The finalizer and the status of a group.
    Group(NamespacedName),
    /// The status of a binding.
    Binding(NamespacedName),
    /// The status of a network interface.
    Interface(NamespacedName),
    /// Where what one node hands over is to go.
    Handover(String),
}

/// An object as the API server last showed it, as far as it is ours to write.
#[derive(Clone, Debug)]
pub struct Seen<S> {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What of it is ours.
    pub ours: S,
}

/// A node that there is.
#[derive(Clone, PartialEq, Eq)]
struct Standing {
    boot: Option<String>,
    /// Another node may have had the name.
    uid: Option<String>,
}

/// See the module.
#[derive(Default)]
pub struct Cluster {
    /// Targets, groups and bindings.
    pub index: Index,
    /// What nodes report.
    pub reports: Reports,
    /// What they count.
    pub usages: Usages,
    /// What they hand over.
    pub handovers: Handovers,
    admin_ports: AdminPorts,
    notices: Vec<Notice>,
    ahead: Ahead,
    groups: HashMap<NamespacedName, Seen<SecurityGroupStatus>>,
    bindings: HashMap<NamespacedName, Seen<SecurityGroupBindingStatus>>,
    interfaces: HashMap<NamespacedName, Seen<NetworkInterfaceStatus>>,
    slices: HashMap<NamespacedName, BTreeMap<String, Seen<SecurityGroupSliceSpec>>>,
    members: HashMap<NamespacedName, Membership>,
    targets: HashMap<NamespacedName, Membership>,
    /// The nodes that there are.
    nodes: HashMap<String, Standing>,
    /// The remotes of each group, as of the last look: when they change, the old ones are concerned too.
    remotes: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    deleting: BTreeSet<NamespacedName>,
    shards: HashMap<NamespacedName, Shards>,
    work: BTreeSet<Work>,
}

impl Cluster {
    /// Knows of nothing yet; will notice when one of these ports is closed.
    pub fn new(admin_ports: AdminPorts) -> Self {
        Self { admin_ports, ..Self::default() }
    }

    /// What is left to be done since the last call.
    pub fn take_work(&mut self) -> BTreeSet<Work> {
        std::mem::take(&mut self.work)
    }

    /// What changes since the last call did to the ways in on admin ports.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Everything there is to look at, for a new leader.
    pub fn all_work(&self) -> BTreeSet<Work> {
        let groups = self.index.groups().map(|g| Work::Group(g.name.clone()));
        let bindings = self.index.bindings().map(|b| Work::Binding(b.name.clone()));
        let wanted = self.shards.iter().flat_map(|(g, s)| s.names().map(|n| Work::Slice(g.clone(), n.clone())));
        let present = self.slices.iter().flat_map(|(g, s)| s.keys().map(|n| Work::Slice(g.clone(), n.clone())));
        let interfaces = self.interfaces.keys().cloned().map(Work::Interface);
        let handovers = self.handovers.names().cloned().map(Work::Handover);
        groups.chain(bindings).chain(interfaces).chain(handovers).chain(wanted).chain(present).collect()
    }

    /// Puts members where the slices that there are have them, so that taking over from another leader writes nothing.
    ///
    /// To be called once everything was seen: until then members look gone that are not, and another leader has put who
    /// came since into other slices than ours would be.
    pub fn adopt_slices(&mut self) {
        let groups: Vec<_> = self.index.groups().map(|g| (g.name.clone(), g.uid.clone())).collect();
        for (name, uid) in groups {
            self.start_shards(&name, uid);
        }
    }

    /// Takes in what a node hands over, as the API server shows it.
    pub fn see_handover(&mut self, handover: &ConnectionHandover) {
        let name = self.handovers.see(handover);
        self.work.insert(Work::Handover(name));
    }

    /// Takes in news of targets, groups or bindings.
    pub fn update(&mut self, update: Update) {
        let now = match &update {
            Update::Target(target) => std::slice::from_ref(target),
            Update::Targets(_, targets) => targets,
            _ => &[],
        };
        now.iter().for_each(|target| self.handovers.note(self.index.target(&target.key()), Some(target)));
        if let Update::NoTarget(name) = &update {
            self.handovers.note(self.index.target(name), None);
        }
        let pods = match &update {
            Update::Target(target) if target.kind == TargetKind::Pod => [target.name.clone()].into(),
            Update::NoTarget(TargetName { kind: TargetKind::Pod, name, .. }) => [name.clone()].into(),
            Update::Targets(TargetKind::Pod, _) => self.ahead.pods(),
            _ => BTreeSet::new(),
        };
        let before = Before::look(&self.index, &self.admin_ports, &update);
        let changes = self.index.update(update);
        self.notices.extend(before.and_then(|before| before.compare(&self.index)));
        self.changed(changes);
        self.look_ahead(pods);
    }

    /// Lets what nodes know of these pods hold.
    fn look_ahead(&mut self, pods: BTreeSet<NamespacedName>) {
        for pod in pods {
            let known = self.ahead.of(&self.index, &pod);
            let changes = self.index.set_known_addresses(&pod, known);
            self.changed(changes);
        }
    }

    /// Remembers what the API server shows of a group, `None` if it is gone.
    pub fn see_group(&mut self, name: NamespacedName, seen: Option<Seen<SecurityGroupStatus>>) {
        let identity = |seen: &Seen<SecurityGroupStatus>| {
            let uid = seen.metadata.uid.clone().unwrap_or_default();
            Identity { name: name.clone(), uid }
        };
        let gone = self.groups.get(&name).filter(|_| seen.is_none()).map(identity);
        if see(&mut self.groups, name.clone(), seen) {
            if let Some(gone) = gone {
                self.usages.said(&gone, &[]);
            }
            if let Some(seen) = self.groups.get(&name) {
                self.usages.said(&identity(seen), &seen.ours.usage);
            }
            self.work.insert(Work::Group(name));
        }
    }

    /// Remembers what the API server shows of a binding, `None` if it is gone.
    pub fn see_binding(&mut self, name: NamespacedName, seen: Option<Seen<SecurityGroupBindingStatus>>) {
        let work = Work::Binding(name.clone());
        if see(&mut self.bindings, name, seen) {
            self.work.insert(work);
        }
    }

    /// Remembers what the API server shows of a network interface, `None` if it is gone.
    pub fn see_interface(&mut self, name: NamespacedName, seen: Option<Seen<NetworkInterfaceStatus>>) {
        let work = Work::Interface(name.clone());
        if see(&mut self.interfaces, name, seen) {
            self.work.insert(work);
        }
    }

    /// Remembers what the API server shows of a slice.
    pub fn see_slice(&mut self, slice: SecurityGroupSlice) {
        let name = name_of(&slice.metadata);
        let group = NamespacedName::new(name.namespace, &slice.spec.group);
        self.work.insert(Work::Slice(group.clone(), name.name.clone()));
        let seen = Seen { metadata: slice.metadata, ours: slice.spec };
        let slices = self.slices.entry(group).or_default();
        if slices.get(&name.name).is_none_or(|old| is_newer(&old.metadata, &seen.metadata)) {
            slices.insert(name.name, seen);
        }
    }

    /// Forgets a slice.
    pub fn forget_slice(&mut self, group: &NamespacedName, name: &str) {
        if let Some(slices) = self.slices.get_mut(group) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(group);
            }
        }
        self.work.insert(Work::Slice(group.clone(), name.to_owned()));
    }

    /// Every slice there is, by group and name.
    pub fn slice_names(&self) -> Vec<(NamespacedName, String)> {
        self.slices.iter().flat_map(|(g, s)| s.keys().map(|n| (g.clone(), n.clone()))).collect()
    }

    /// Takes in a node, `None` if it is gone.
    pub fn set_node(&mut self, name: &str, node: Option<&Node>) {
        let status = node.and_then(|n| n.status.as_ref());
        let addresses = node.map(addresses_of).unwrap_or_default();
        let boot = status.and_then(|s| s.node_info.as_ref()).map(|i| i.boot_id.clone());
        let now = node.map(|n| Standing { boot, uid: n.metadata.uid.clone() });
        let before = match now.clone() {
            Some(now) => self.nodes.insert(name.to_owned(), now),
            None => self.nodes.remove(name),
        };
        let (was, is) = (before.as_ref(), now.as_ref());
        if was.map(|n| &n.boot) != is.map(|n| &n.boot) {
            self.standing_changed(name);
        }
        if was.is_some() && was.map(|n| &n.uid) != is.map(|n| &n.uid) {
            self.count(name, None);
        }
        if let Some(usage) = is.and_then(|is| self.usages.take_early(name, is.uid.as_deref())) {
            self.count(name, Some(usage));
        }
        let changes = self.index.set_node_addresses(name, addresses);
        self.changed(changes);
    }

    /// The names of the nodes there are.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// The boot of a node; `None`: there is no such node.
    pub fn boot_of(&self, node: &str) -> Option<Option<&str>> {
        self.nodes.get(node).map(|node| node.boot.as_deref())
    }

    /// Takes in the report of a node, `None` if there is none any more.
    pub fn set_report(&mut self, node: &str, report: Option<NodeEnforcement>) {
        let ahead = self.ahead.set(node, report.as_ref().and_then(|r| r.status.as_ref()));
        self.look_ahead(ahead);
        let Differences { groups, remotes, bindings, interfaces, networks, attached, all } =
            self.reports.set(node, report);
        for (pod, attached) in attached {
            let changes = self.index.set_attached(&pod, node, attached);
            self.changed(changes);
        }
        for remote in remotes {
            self.work.extend(self.index.named_by(&remote).cloned().map(Work::Group));
        }
        self.work.extend(groups.into_iter().map(Work::Group));
        self.work.extend(bindings.into_iter().map(Work::Binding));
        let concerned = interfaces.iter().cloned().map(TargetName::network_interface).chain(networks);
        for target in concerned {
            for binding in self.index.bindings_of(&target) {
                self.work.insert(Work::Binding(binding.name.clone()));
                self.work.extend(binding.groups.iter().cloned().map(Work::Group));
            }
        }
        self.work.extend(interfaces.into_iter().map(Work::Interface));
        if all {
            self.standing_changed(node);
        }
    }

    /// Takes in what a node of this name and uid counts. What it does not tell any more, as somebody deleted it, it will tell
    /// again.
    pub fn set_usage(&mut self, node: &str, uid: Option<String>, usage: NodeUsageSpec) {
        if self.nodes.get(node).is_some_and(|standing| standing.uid == uid) {
            self.count(node, Some(usage));
        } else {
            self.usages.set_early(node, uid, usage);
        }
    }

    /// Whoever counts was heard: what statuses say can be judged.
    pub fn all_usages_are_known(&mut self) {
        self.usages.complete();
        let counted = self.groups.iter().filter(|(_, seen)| !seen.ours.usage.is_empty());
        self.work.extend(counted.map(|(name, _)| Work::Group(name.clone())));
    }

    fn count(&mut self, node: &str, usage: Option<NodeUsageSpec>) {
        let said = |identity: &Identity| {
            let seen = self.groups.get(&identity.name)?;
            (seen.metadata.uid.as_ref() == Some(&identity.uid)).then_some(seen.ours.usage.as_slice())
        };
        self.work.extend(self.usages.set(node, usage, said).into_iter().map(Work::Group));
    }

    /// Takes in the ranges of Service addresses.
    pub fn set_service_networks(&mut self, networks: Vec<ipnet::IpNet>) {
        let changes = self.index.set_service_networks(networks);
        self.changed(changes);
    }

    /// Whether the API server shows the object that some work is about. A slice is work whether it is there or not.
    pub fn shows(&self, work: &Work) -> bool {
        match work {
            Work::Slice(..) | Work::Handover(_) => true,
            Work::Group(name) => self.groups.contains_key(name),
            Work::Binding(name) => self.bindings.contains_key(name),
            Work::Interface(name) => self.interfaces.contains_key(name),
        }
    }

    /// What the API server last showed of a group.
    pub fn seen_group(&self, name: &NamespacedName) -> Option<&Seen<SecurityGroupStatus>> {
        self.groups.get(name)
    }

    /// What the API server last showed of a binding.
    pub fn seen_binding(&self, name: &NamespacedName) -> Option<&Seen<SecurityGroupBindingStatus>> {
        self.bindings.get(name)
    }

    /// What the API server last showed of a network interface.
    pub fn seen_interface(&self, name: &NamespacedName) -> Option<&Seen<NetworkInterfaceStatus>> {
        self.interfaces.get(name)
    }

    /// What the API server last showed of a slice.
    pub fn seen_slice(&self, group: &NamespacedName, name: &str) -> Option<&Seen<SecurityGroupSliceSpec>> {
        self.slices.get(group)?.get(name)
    }

    /// What a slice should say; `None`: it should not be.
    pub fn wanted_slice(&self, group: &NamespacedName, name: &str) -> Option<SecurityGroupSliceSpec> {
        let shards = self.shards.get(group)?;
        let members = shards.slice(name)?.values().cloned().collect();
        Some(SecurityGroupSliceSpec { group: group.name.clone(), group_uid: shards.uid().to_owned(), members })
    }

    /// The members of a group.
    pub fn members(&self, group: &NamespacedName) -> Option<&Membership> {
        self.members.get(group)
    }

    /// The targets of a binding.
    pub fn targets(&self, binding: &NamespacedName) -> Option<&Membership> {
        self.targets.get(binding)
    }

    fn changed(&mut self, changes: Changes) {
        let Changes { members, targets, groups, bindings, interfaces } = changes;
        for group in &groups {
            self.group_changed(group);
        }
        for (group, target) in members {
            self.member_changed(&group, &target);
        }
        for (binding, target) in targets {
            let selected = self.index.is_target(&binding, &target);
            let membership = self.targets.entry(binding.clone()).or_default();
            membership.update(&self.index, &target, selected);
            if membership.is_empty() {
                self.targets.remove(&binding);
            }
            self.work.insert(Work::Binding(binding));
        }
        if !(groups.is_empty() && bindings.is_empty()) {
            // What was in use may not be any more.
            self.work.extend(self.deleting.iter().cloned().map(Work::Group));
        }
        self.work.extend(bindings.into_iter().map(Work::Binding));
        self.work.extend(interfaces.into_iter().map(Work::Interface));
    }

    fn group_changed(&mut self, name: &NamespacedName) {
        let group = self.index.group(name);
        let (uid, deleting) = (group.map(|g| g.uid.clone()), group.is_some_and(|g| g.deleting));
        let now = group.map(|g| g.remotes()).unwrap_or_default();
        if deleting {
            self.deleting.insert(name.clone())
        } else {
            self.deleting.remove(name)
        };
        let before =
            if uid.is_some() { self.remotes.insert(name.clone(), now.clone()) } else { self.remotes.remove(name) };
        // Which nodes a remote concerns depends on who names it.
        self.work.extend(before.unwrap_or_default().into_iter().chain(now).map(Work::Group));
        // Whether a reference is resolved depends on what exists.
        self.work.extend(self.index.named_by(name).cloned().map(Work::Group));
        self.work.extend(self.index.bound_by(name).cloned().map(Work::Binding));
        self.work.insert(Work::Group(name.clone()));

        if self.shards.get(name).map(Shards::uid) != uid.as_deref() {
            if let Some(old) = self.shards.remove(name) {
                self.work.extend(old.names().map(|slice| Work::Slice(name.clone(), slice.clone())));
            }
            if let Some(uid) = uid {
                self.start_shards(name, uid);
            }
        }
    }

    /// Shards for a group that came to be known: with the slices that are there already, if they are its own.
    fn start_shards(&mut self, name: &NamespacedName, uid: String) {
        let mut shards = Shards::new(name.clone(), uid.clone());
        let present = self.slices.get(name).into_iter().flatten();
        for (slice, seen) in present.filter(|(_, seen)| seen.ours.group_uid == uid) {
            for member in &seen.ours.members {
                shards.adopt(slice, member.clone());
            }
        }
        let stale: Vec<String> = shards.targets().filter(|t| !self.is_target_of(name, t)).cloned().collect();
        for target in stale {
            shards.set(&target, None);
        }
        for member in self.index.members(name).map(|member| member.key()) {
            shards.set(&member.in_namespace(), self.slice_member(name, &member));
        }
        self.work.extend(shards.names().map(|slice| Work::Slice(name.clone(), slice.clone())));
        self.work.extend(
            self.slices.get(name).into_iter().flat_map(BTreeMap::keys).map(|s| Work::Slice(name.clone(), s.clone())),
        );
        self.shards.insert(name.clone(), shards);
    }

    fn is_target_of(&self, group: &NamespacedName, target: &str) -> bool {
        TargetName::parse(&group.namespace, target).is_some_and(|target| self.index.is_member(group, &target))
    }

    fn member_changed(&mut self, group: &NamespacedName, target: &TargetName) {
        let belongs = self.index.is_member(group, target);
        let membership = self.members.entry(group.clone()).or_default();
        let moved = membership.update(&self.index, target, belongs);
        if membership.is_empty() {
            self.members.remove(group);
        }
        self.work.insert(Work::Group(group.clone()));
        if moved.addresses {
            self.work.extend(self.index.named_by(group).cloned().map(Work::Group));
        }
        if moved.nodes {
            // The remotes of its rules are needed elsewhere now.
            self.work.extend(self.remotes.get(group).into_iter().flatten().cloned().map(Work::Group));
        }
        let member = self.slice_member(group, target);
        let shards = self.shards.get_mut(group);
        if let Some(slice) = shards.and_then(|shards| shards.set(&target.in_namespace(), member)) {
            self.work.insert(Work::Slice(group.clone(), slice));
        }
    }

    /// What slices should say of a target; nothing, if it is no member or has no address to publish.
    fn slice_member(&self, group: &NamespacedName, name: &TargetName) -> Option<SliceMember> {
        let target = self.index.target(name).filter(|_| self.index.is_member(group, name))?;
        let addresses: Vec<_> = self.index.addresses(target).collect();
        (!addresses.is_empty()).then(|| SliceMember {
            target: name.in_namespace(),
            addresses,
            node: target.node.clone(),
        })
    }

    /// A node's word counts differently now, and with it all that the node has or should have. Rare enough for a walk.
    fn standing_changed(&mut self, node: &str) {
        let hosted = self.members.iter().filter(|(_, m)| m.on_node(node).is_some()).map(|(group, _)| group);
        for group in hosted {
            self.work.insert(Work::Group(group.clone()));
            self.work.extend(self.remotes.get(group).into_iter().flatten().cloned().map(Work::Group));
        }
        let selected = self.targets.iter().filter(|(_, m)| m.on_node(node).is_some());
        self.work.extend(selected.map(|(binding, _)| Work::Binding(binding.clone())));
        let interfaces = self.index.of_kind(TargetKind::NetworkInterface);
        let hosted = interfaces.filter(|interface| interface.node.as_deref() == Some(node));
        self.work.extend(hosted.map(|interface| Work::Interface(interface.name.clone())));
        let Some(report) = self.reports.of(node) else { return };
        self.work.extend(report.groups.keys().chain(report.remotes.keys()).cloned().map(Work::Group));
        self.work.extend(report.bindings.keys().cloned().map(Work::Binding));
    }
}

/// Remembers the newer of two sights of an object; tells whether that was the new one.
fn see<S>(seen: &mut HashMap<NamespacedName, Seen<S>>, name: NamespacedName, new: Option<Seen<S>>) -> bool {
    match new {
        None => seen.remove(&name).is_some(),
        Some(new) if seen.get(&name).is_none_or(|old| is_newer(&old.metadata, &new.metadata)) => {
            seen.insert(name, new);
            true
        }
        Some(_) => false,
    }
}

/// A watch may show us, late, what our own write has long replaced. Versions of one object compare as numbers.
fn is_newer(old: &ObjectMeta, new: &ObjectMeta) -> bool {
    let version = |m: &ObjectMeta| m.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
    match (version(old), version(new)) {
        (Some(old_version), Some(new_version)) if old.uid == new.uid => new_version >= old_version,
        _ => true,
    }
}

impl From<&SecurityGroup> for Seen<SecurityGroupStatus> {
    fn from(group: &SecurityGroup) -> Self {
        Self { metadata: without_managers(&group.metadata), ours: group.status.clone().unwrap_or_default() }
    }
}

impl From<&NetworkInterface> for Seen<NetworkInterfaceStatus> {
    fn from(interface: &NetworkInterface) -> Self {
        Self { metadata: without_managers(&interface.metadata), ours: interface.status.clone().unwrap_or_default() }
    }
}

impl From<&SecurityGroupBinding> for Seen<SecurityGroupBindingStatus> {
    fn from(binding: &SecurityGroupBinding) -> Self {
        Self { metadata: without_managers(&binding.metadata), ours: binding.status.clone().unwrap_or_default() }
    }
}

/// Who wrote which field is often longer than the rest.
fn without_managers(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta { managed_fields: None, ..metadata.clone() }
}
