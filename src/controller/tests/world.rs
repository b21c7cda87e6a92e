//! A cluster in memory: what the API server holds, the controller's view of it, and nodes whose agents may lag behind.

use super::objects::{key, mk_binding, mk_group, mk_node, mk_pod};
use crate::agent::attachments::Attachments;
use crate::agent::data_path::Problems;
use crate::agent::report::status;
use crate::agent::state::{Desired, State};
use crate::api::{
    GROUP_LABEL, NodeEnforcement, NodeEnforcementSpec, NodeEnforcementStatus, SecurityGroup, SecurityGroupBinding,
    SecurityGroupSlice,
};
use crate::controller::cluster::{Cluster, Work};
use crate::controller::feeds::Tracked;
use crate::controller::writers::{SliceWrite, Write, binding_write, group_write, interface_write, slice_write};
use crate::index::{Indexed, TargetKind, TargetName, Update, name_of};
use crate::policy::NamespacedName;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The time of every write.
pub const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// What an agent may be late with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Pods,
    Groups,
    Bindings,
    Slices,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Pods, Self::Groups, Self::Bindings, Self::Slices];
}

/// One node's agent, and the kernel under it.
pub struct Agent {
    pub state: State,
    pub kernel: Desired,
    watched: BTreeSet<NamespacedName>,
    boot: String,
}

/// See the module.
#[derive(Default)]
pub struct World {
    pub cluster: Cluster,
    pub pods: BTreeMap<NamespacedName, Pod>,
    pub groups: BTreeMap<NamespacedName, SecurityGroup>,
    pub bindings: BTreeMap<NamespacedName, SecurityGroupBinding>,
    pub slices: BTreeMap<NamespacedName, SecurityGroupSlice>,
    pub nodes: BTreeMap<String, Node>,
    pub reports: BTreeMap<String, NodeEnforcement>,
    pub agents: BTreeMap<String, Agent>,
    /// What the controller still has to do.
    pub pending: BTreeSet<Work>,
    /// Writes so far.
    pub writes: Vec<Work>,
    counter: u64,
}

impl World {
    pub fn new(nodes: &[&str]) -> Self {
        let mut world = Self::default();
        for (i, node) in nodes.iter().enumerate() {
            world.boot(node, &format!("172.30.0.{}", i + 1));
        }
        world
    }

    fn next(&mut self) -> String {
        self.counter += 1;
        self.counter.to_string()
    }

    /// A node boots: its kernel is empty, and its agent knows nothing yet.
    pub fn boot(&mut self, node: &str, address: &str) {
        let boot = format!("boot-{}", self.next());
        let state = State::new([address.parse().unwrap()].into());
        let agent = Agent { state, kernel: Desired::default(), watched: BTreeSet::new(), boot: boot.clone() };
        self.agents.insert(node.to_owned(), agent);
        self.nodes.insert(node.to_owned(), mk_node(node, &boot, address));
        self.cluster.set_node(node, self.nodes.get(node));
        Kind::ALL.into_iter().for_each(|kind| self.sync(node, kind));
    }

    /// A node is gone, and with it its agent and, by its owner reference, its report.
    pub fn remove_node(&mut self, node: &str) {
        self.agents.remove(node);
        self.nodes.remove(node);
        self.cluster.set_node(node, None);
        self.reports.remove(node);
        self.cluster.set_report(node, None);
    }

    pub fn put_pod(&mut self, pod: Pod) {
        self.cluster.update(Update::Target(pod.keep()));
        self.pods.insert(name_of(&pod.metadata), pod);
    }

    pub fn pod(&mut self, pod: &str, app: &str, node: &str, ips: &[&str]) {
        self.put_pod(mk_pod(pod, app, Some(node), ips));
    }

    pub fn delete_pod(&mut self, pod: &NamespacedName) {
        self.cluster.update(Update::NoTarget(TargetName::pod(pod.clone())));
        self.pods.remove(pod);
    }

    /// Creates or updates a group.
    pub fn put_group(&mut self, mut group: SecurityGroup) {
        let name = name_of(&group.metadata);
        let old = self.groups.get(&name);
        if old.is_some_and(|old| old.spec == group.spec) {
            return;
        }
        match old {
            Some(old) => {
                group.metadata = old.metadata.clone();
                group.status = old.status.clone();
                group.metadata.generation = old.metadata.generation.map(|g| g + 1);
            }
            None => group.metadata.uid = Some(format!("uid-{}", self.next())),
        }
        group.metadata.resource_version = Some(self.next());
        self.show_group(group);
    }

    pub fn group(&mut self, name: &str, spec: Value) {
        self.put_group(mk_group(name, spec));
    }

    /// What the API server does: finalizers hold.
    pub fn delete_group(&mut self, name: &NamespacedName) {
        let version = self.next();
        let Some(mut group) = self.groups.get(name).cloned() else { return };
        if group.metadata.finalizers.iter().flatten().next().is_none() {
            self.forget_group(name);
        } else if group.metadata.deletion_timestamp.is_none() {
            group.metadata.deletion_timestamp = Some(Time(NOW));
            group.metadata.generation = group.metadata.generation.map(|g| g + 1);
            group.metadata.resource_version = Some(version);
            self.show_group(group);
        }
    }

    fn show_group(&mut self, group: SecurityGroup) {
        group.see(&mut self.cluster);
        self.cluster.update(Update::Group(group.keep()));
        self.groups.insert(name_of(&group.metadata), group);
    }

    fn forget_group(&mut self, name: &NamespacedName) {
        self.groups.remove(name);
        SecurityGroup::forget(name.clone(), &mut self.cluster);
        self.cluster.update(Update::NoGroup(name.clone()));
    }

    /// Creates or updates a binding.
    pub fn put_binding(&mut self, mut binding: SecurityGroupBinding) {
        let name = name_of(&binding.metadata);
        let old = self.bindings.get(&name);
        if old.is_some_and(|old| old.spec == binding.spec) {
            return;
        }
        match old {
            Some(old) => {
                binding.metadata = old.metadata.clone();
                binding.status = old.status.clone();
                binding.metadata.generation = old.metadata.generation.map(|g| g + 1);
            }
            None => binding.metadata.uid = Some(format!("uid-{}", self.next())),
        }
        binding.metadata.resource_version = Some(self.next());
        self.show_binding(binding);
    }

    pub fn binding(&mut self, name: &str, groups: &[&str], app: &str) {
        self.put_binding(mk_binding(name, groups, json!({ "matchLabels": { "app": app } })));
    }

    pub fn delete_binding(&mut self, name: &NamespacedName) {
        self.bindings.remove(name);
        SecurityGroupBinding::forget(name.clone(), &mut self.cluster);
        self.cluster.update(Update::NoBinding(name.clone()));
    }

    fn show_binding(&mut self, binding: SecurityGroupBinding) {
        binding.see(&mut self.cluster);
        self.cluster.update(Update::Binding(binding.keep()));
        self.bindings.insert(name_of(&binding.metadata), binding);
    }

    /// Notes what the controller has to do; nothing is written.
    pub fn collect(&mut self) -> BTreeSet<Work> {
        let work = self.cluster.take_work();
        self.pending.extend(work.iter().cloned());
        work
    }

    /// The controller writes until there is nothing to do.
    pub fn write(&mut self) {
        self.collect();
        while let Some(work) = self.pending.pop_first() {
            let mut rounds = 0;
            while self.write_one(&work) {
                self.writes.push(work.clone());
                rounds += 1;
                assert!(rounds < 10, "{work:?} is written over and over");
            }
            self.collect();
        }
    }

    /// Whether the controller would write something for this, if it looked.
    pub fn differs(&self, work: &Work) -> bool {
        match work {
            Work::Group(name) => group_write(&self.cluster, name, NOW).is_some(),
            Work::Binding(name) => binding_write(&self.cluster, name, NOW).is_some(),
            Work::Interface(name) => interface_write(&self.cluster, name, NOW).is_some(),
            Work::Slice(group, name) => slice_write(&self.cluster, group, name).is_some(),
            // No machine moves in this world.
            Work::Handover(_) => false,
        }
    }

    fn write_one(&mut self, work: &Work) -> bool {
        match work {
            Work::Handover(_) => return false,
            Work::Group(name) => {
                let Some(write) = group_write(&self.cluster, name, NOW) else { return false };
                let (Write::Finalizers(patch) | Write::Status(patch)) = write;
                let mut group = patched(&self.groups[name], patch);
                group.metadata.resource_version = Some(self.next());
                if group.metadata.deletion_timestamp.is_some() && group.metadata.finalizers.is_none() {
                    self.forget_group(name);
                } else {
                    self.show_group(group);
                }
            }
            Work::Binding(name) => {
                let Some(patch) = binding_write(&self.cluster, name, NOW) else { return false };
                let mut binding = patched(&self.bindings[name], patch);
                binding.metadata.resource_version = Some(self.next());
                self.show_binding(binding);
            }
            // Nobody declares one in this world.
            Work::Interface(_) => return false,
            Work::Slice(group, name) => {
                let Some(write) = slice_write(&self.cluster, group, name) else { return false };
                let key = NamespacedName::new(&*group.namespace, name);
                match write {
                    SliceWrite::Create(mut slice) => {
                        assert!(!self.slices.contains_key(&key), "created twice: {key}");
                        slice.metadata.uid = Some(format!("uid-{}", self.next()));
                        self.show_slice(*slice);
                    }
                    SliceWrite::Replace(mut slice) => {
                        let old = &self.slices[&key].metadata;
                        assert_eq!(slice.metadata.resource_version, old.resource_version);
                        slice.metadata.uid.clone_from(&old.uid);
                        self.show_slice(*slice);
                    }
                    SliceWrite::Delete { uid } => {
                        let old = self.slices.remove(&key).expect("there is nothing to delete");
                        assert_eq!(uid, old.metadata.uid);
                        self.cluster.forget_slice(group, name);
                    }
                }
            }
        }
        true
    }

    pub fn show_slice(&mut self, mut slice: SecurityGroupSlice) {
        slice.metadata.resource_version = Some(self.next());
        self.cluster.see_slice(slice.clone());
        self.slices.insert(name_of(&slice.metadata), slice);
    }

    /// A node's agent catches up with one kind.
    pub fn sync(&mut self, node: &str, kind: Kind) {
        let update = match kind {
            Kind::Pods => self.pods_of(node),
            Kind::Groups => Update::Groups(self.groups.values().map(Indexed::keep).collect()),
            Kind::Bindings => Update::Bindings(self.bindings.values().map(Indexed::keep).collect()),
            Kind::Slices => {
                let Some(agent) = self.agents.get_mut(node) else { return };
                for group in agent.watched.clone() {
                    agent.state.remotes.reset(&group, slices_of(&self.slices, &group));
                }
                return;
            }
        };
        if let Some(agent) = self.agents.get_mut(node) {
            agent.state.index.update(update);
        }
    }

    /// A state that has seen all there is now, slices aside.
    pub fn state_of(&self, node: &str) -> State {
        let mut state = State::new([self.address_of(node)].into());
        state.index.update(self.pods_of(node));
        state.index.update(Update::Groups(self.groups.values().map(Indexed::keep).collect()));
        state.index.update(Update::Bindings(self.bindings.values().map(Indexed::keep).collect()));
        state
    }

    /// What the gate of a pod's node was told.
    pub fn attachments_beside(&mut self, pod: &NamespacedName) -> Option<&mut Attachments> {
        let node = self.pods.get(pod)?.spec.as_ref()?.node_name.as_ref()?;
        Some(&mut self.agents.get_mut(node)?.state.attachments)
    }

    fn address_of(&self, node: &str) -> IpAddr {
        let addresses = self.nodes[node].status.iter().flat_map(|s| s.addresses.iter().flatten());
        addresses.filter_map(|a| a.address.parse().ok()).next().unwrap()
    }

    fn pods_of(&self, node: &str) -> Update {
        let here = |p: &&Pod| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node);
        Update::Targets(TargetKind::Pod, self.pods.values().filter(here).map(Indexed::keep).collect())
    }

    /// A node's agent commits what it knows: a group that is named for the first time is looked up, as watches would.
    pub fn commit(&mut self, node: &str) {
        let Some(agent) = self.agents.get_mut(node) else { return };
        let needed = agent.state.desired().remotes;
        for group in needed.difference(&agent.watched) {
            agent.state.remotes.reset(group, slices_of(&self.slices, group));
        }
        for group in agent.watched.difference(&needed) {
            agent.state.remotes.forget(group);
        }
        agent.watched = needed;
        agent.kernel = agent.state.desired();
    }

    /// A node's agent reports what it has committed.
    pub fn report(&mut self, node: &str) {
        self.report_with(node, Vec::new());
    }

    /// Likewise, with what is wrong with the node's data path.
    pub fn report_with(&mut self, node: &str, bypassed: Vec<String>) {
        let problems = Problems { bypassed, ..Problems::default() };
        let Some(agent) = self.agents.get(node) else { return };
        let before = self.reports.get(node).and_then(|r| r.status.clone()).unwrap_or_default();
        let status = status(before, agent.kernel.report.clone(), problems, None, &agent.boot, NOW);
        self.put_report(node, status);
    }

    pub fn put_report(&mut self, node: &str, status: NodeEnforcementStatus) {
        let mut report = NodeEnforcement::new(node, NodeEnforcementSpec {});
        report.status = Some(status);
        // What is sent is JSON: what would not survive it must not be relied upon.
        let report: NodeEnforcement = serde_json::from_value(serde_json::to_value(report).unwrap()).unwrap();
        self.cluster.set_report(node, Some(report.clone()));
        self.reports.insert(node.to_owned(), report);
    }

    /// Changes what a node has reported.
    pub fn edit_report(&mut self, node: &str, edit: impl FnOnce(&mut NodeEnforcementStatus)) {
        let mut status = self.reports[node].status.clone().unwrap();
        edit(&mut status);
        self.put_report(node, status);
    }

    /// Everybody catches up with everything.
    pub fn settle(&mut self) {
        self.write();
        for node in self.agents.keys().cloned().collect::<Vec<_>>() {
            Kind::ALL.into_iter().for_each(|kind| self.sync(&node, kind));
            self.commit(&node);
            self.report(&node);
        }
        self.write();
    }

    /// Status, reason and message of a condition, as the API server has it.
    pub fn group_condition(&self, name: &str, type_: &str) -> (String, String, String) {
        let status = self.groups[&key(name)].status.as_ref().expect("no status was written");
        said(&status.conditions, type_)
    }

    /// Likewise, of a binding.
    pub fn binding_condition(&self, name: &str, type_: &str) -> (String, String, String) {
        let status = self.bindings[&key(name)].status.as_ref().expect("no status was written");
        said(&status.conditions, type_)
    }

    /// Writes, and tells status and reason of a group's condition Enforced.
    pub fn enforced(&mut self, name: &str) -> (String, String) {
        self.write();
        let (status, reason, _) = self.group_condition(name, "Enforced");
        (status, reason)
    }

    /// Likewise, of a binding.
    pub fn binding_enforced(&mut self, name: &str) -> (String, String) {
        self.write();
        let (status, reason, _) = self.binding_condition(name, "Enforced");
        (status, reason)
    }
}

fn said(conditions: &[Condition], type_: &str) -> (String, String, String) {
    let condition = conditions.iter().find(|c| c.type_ == type_);
    condition.map(|c| (c.status.clone(), c.reason.clone(), c.message.clone())).unwrap_or_default()
}

/// The slices that a watch by label shows.
fn slices_of(slices: &BTreeMap<NamespacedName, SecurityGroupSlice>, group: &NamespacedName) -> Vec<SecurityGroupSlice> {
    let labelled = |s: &&SecurityGroupSlice| s.metadata.labels.as_ref().unwrap()[GROUP_LABEL] == group.name;
    slices.iter().filter(|(n, _)| n.namespace == group.namespace).map(|(_, s)| s).filter(labelled).cloned().collect()
}

/// A JSON merge patch, as far as ours go: maps merge, all else is replaced.
fn patched<K: serde::Serialize + serde::de::DeserializeOwned>(object: &K, patch: Value) -> K {
    fn merge(into: &mut Value, patch: Value) {
        match (into, patch) {
            (Value::Object(into), Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }
    let mut json = serde_json::to_value(object).unwrap();
    let version = json["metadata"]["resourceVersion"].clone();
    assert_eq!(patch["metadata"]["resourceVersion"], version, "a patch of something else than the latest version");
    merge(&mut json, patch);
    // What is empty is not stored.
    if json["metadata"]["finalizers"] == json!([]) {
        json["metadata"]["finalizers"] = Value::Null;
    }
    serde_json::from_value(json).unwrap()
}
