//! What nodes say they have in their kernels.
//!
//! PURE.

use crate::api::conditions::{CLOSED, DATA_PATH_READY};
use crate::api::{
    EnforcedBinding, EnforcedGroup, EnforcedRemote, EnforcementFailure, NodeEnforcement, NodeEnforcementStatus,
    ReportedAttachment, ReportedInterface,
};
use crate::index::{Attached, TargetKind, TargetName, attached};
use crate::policy::NamespacedName;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Traffic that does not pass the rules of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypass {
    /// It does not pass at all.
    pub closed: bool,
    /// What is wrong.
    pub message: String,
}

/// One node's report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The boot whose kernel it speaks of.
    pub boot_id: Option<String>,
    /// Uid, generation and digest of the groups attached there.
    pub groups: BTreeMap<NamespacedName, (Option<String>, i64, String)>,
    /// Digest of the remotes.
    pub remotes: BTreeMap<NamespacedName, String>,
    /// Uid, generation and digest of the bindings.
    pub bindings: BTreeMap<NamespacedName, (String, i64, String)>,
    /// Groups whose revision the kernel refused.
    pub failures: BTreeMap<NamespacedName, String>,
    /// Network interfaces, and how it is with their devices.
    pub interfaces: BTreeMap<NamespacedName, ReportedInterface>,
    /// Attachments of pods to secondary networks.
    pub networks: BTreeMap<TargetName, ReportedAttachment>,
    /// What bypasses the rules there, or would if it were not closed.
    pub bypassed: Option<Bypass>,
}

impl From<NodeEnforcementStatus> for Report {
    fn from(status: NodeEnforcementStatus) -> Self {
        let name = |namespace, name| NamespacedName { namespace, name };
        let NodeEnforcementStatus {
            boot_id,
            group_count: _,
            interfaces: _,
            groups,
            remotes,
            bindings,
            failures,
            attachments: _,
            network_interfaces,
            networks,
            conditions,
        } = status;
        let bypassed = conditions.into_iter().find(|c| c.type_ == DATA_PATH_READY && c.status == "False");
        Self {
            boot_id,
            groups: groups
                .into_iter()
                .map(|EnforcedGroup { namespace, name: n, uid, generation, digest }| {
                    (name(namespace, n), (uid, generation, digest))
                })
                .collect(),
            remotes: remotes
                .into_iter()
                .map(|EnforcedRemote { namespace, name: n, addresses: _, digest }| (name(namespace, n), digest))
                .collect(),
            bindings: bindings
                .into_iter()
                .map(|EnforcedBinding { namespace, name: n, uid, generation, digest }| {
                    (name(namespace, n), (uid, generation, digest))
                })
                .collect(),
            failures: failures
                .into_iter()
                .map(|EnforcementFailure { namespace, name: n, message }| (name(namespace, n), message))
                .collect(),
            interfaces: network_interfaces
                .into_iter()
                .map(|interface| (name(interface.namespace.clone(), interface.name.clone()), interface))
                .collect(),
            networks: networks
                .into_iter()
                .filter_map(|said| {
                    let pod = name(said.namespace.clone(), said.name.clone());
                    let network = Some(said.network.parse().ok()?);
                    Some((TargetName { network, ..TargetName::new(TargetKind::Pod, pod) }, said))
                })
                .collect(),
            bypassed: bypassed.map(|c| Bypass { closed: c.reason == CLOSED, message: c.message }),
        }
    }
}

/// What a new report speaks differently of.
#[derive(Debug, Default)]
pub struct Differences {
    /// Groups, as attached or as a remote.
    pub groups: BTreeSet<NamespacedName>,
    /// Remotes among them: what names them is concerned too.
    pub remotes: BTreeSet<NamespacedName>,
    /// Bindings.
    pub bindings: BTreeSet<NamespacedName>,
    /// Network interfaces: who selects one is concerned too.
    pub interfaces: BTreeSet<NamespacedName>,
    /// Attachments to secondary networks: likewise.
    pub networks: BTreeSet<TargetName>,
    /// What is known now of pods on secondary networks, where that changed.
    pub attached: BTreeMap<NamespacedName, Option<Attached>>,
    /// It speaks of another boot, or of another data path: that puts all that the node has, and has not, in another light.
    pub all: bool,
}

/// The reports of all nodes.
#[derive(Debug, Default)]
pub struct Reports {
    nodes: HashMap<String, Report>,
    /// The nodes that speak of a group at all: they are concerned until they do not any more.
    groups: HashMap<NamespacedName, BTreeSet<String>>,
    bindings: HashMap<NamespacedName, BTreeSet<String>>,
}

impl Reports {
    /// Takes in a node's report, `None` if it has none any more.
    pub fn set(&mut self, node: &str, object: Option<NodeEnforcement>) -> Differences {
        let new = object.and_then(|o| o.status).map(Report::from).unwrap_or_default();
        let old = self.nodes.remove(node).unwrap_or_default();
        let all = old.boot_id != new.boot_id || old.bypassed != new.bypassed;
        let mut differences = Differences { all, ..Differences::default() };
        differences.groups.extend(differing(&old.groups, &new.groups));
        differences.groups.extend(differing(&old.failures, &new.failures));
        differences.remotes.extend(differing(&old.remotes, &new.remotes));
        differences.groups.extend(differences.remotes.iter().cloned());
        differences.bindings.extend(differing(&old.bindings, &new.bindings));
        differences.interfaces.extend(differing(&old.interfaces, &new.interfaces));
        differences.networks.extend(differing(&old.networks, &new.networks));
        let mut now = attached(new.networks.values());
        let pods = differing(&attached(old.networks.values()), &now);
        differences.attached = pods
            .into_iter()
            .map(|pod| {
                let now = now.remove(&pod);
                (pod, now)
            })
            .collect();
        reindex(
            &mut self.groups,
            node,
            old.groups.keys().chain(old.remotes.keys()),
            new.groups.keys().chain(new.remotes.keys()),
        );
        reindex(&mut self.bindings, node, old.bindings.keys(), new.bindings.keys());
        if new != Report::default() {
            self.nodes.insert(node.to_owned(), new);
        }
        differences
    }

    /// A node's report.
    pub fn of(&self, node: &str) -> Option<&Report> {
        self.nodes.get(node)
    }

    /// The nodes whose reports there are.
    pub fn nodes(&self) -> impl Iterator<Item = &String> {
        self.nodes.keys()
    }

    /// The nodes that speak of a group.
    pub fn naming_group(&self, group: &NamespacedName) -> impl Iterator<Item = &String> {
        self.groups.get(group).into_iter().flatten()
    }

    /// The nodes that speak of a binding.
    pub fn naming_binding(&self, binding: &NamespacedName) -> impl Iterator<Item = &String> {
        self.bindings.get(binding).into_iter().flatten()
    }
}

fn differing<K: Ord + Clone, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    let keys: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    keys.into_iter().filter(|key| old.get(*key) != new.get(*key)).cloned().collect()
}

fn reindex<'a>(
    index: &mut HashMap<NamespacedName, BTreeSet<String>>,
    node: &str,
    old: impl Iterator<Item = &'a NamespacedName>,
    new: impl Iterator<Item = &'a NamespacedName>,
) {
    for name in old {
        if let Some(nodes) = index.get_mut(name) {
            nodes.remove(node);
            if nodes.is_empty() {
                index.remove(name);
            }
        }
    }
    for name in new {
        index.entry(name.clone()).or_default().insert(node.to_owned());
    }
}
