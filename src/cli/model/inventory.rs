//! The objects that groups are about, from a cluster or from files.
//!
//! PURE. Owns the one way from objects to an [`Index`]. Interprets nothing itself.

use crate::api::{NetworkInterface, NodeEnforcement, NodeUsage, SecurityGroup, SecurityGroupBinding};
use crate::index::{Binding, Group, Index, Machine, MachineSource, Target, addresses_of, attached, name_of};
use crate::kubevirt::VirtualMachineInstance;
use crate::policy::NamespacedName;
use anyhow::{Context, bail};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

/// Objects by their names.
pub type Named<K> = BTreeMap<NamespacedName, K>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Security groups.
    pub groups: Named<SecurityGroup>,
    /// Groups that are there and cannot be read: their metadata, and why.
    pub malformed_groups: Named<(ObjectMeta, String)>,
    /// What attaches them.
    pub bindings: Named<SecurityGroupBinding>,
    /// Interfaces of machines.
    pub interfaces: Named<NetworkInterface>,
    /// Virtual machines of KubeVirt.
    pub machines: Vec<VirtualMachineInstance>,
    /// Pods.
    pub pods: Named<Pod>,
    /// Services, where they were asked for.
    pub services: Named<Service>,
    /// Network policies, where they were asked for.
    pub network_policies: Named<NetworkPolicy>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// What nodes report.
    pub reports: Vec<NodeEnforcement>,
    /// What nodes counted, where it was asked for and may be known.
    pub usages: Option<Vec<NodeUsage>>,
    /// Where Services get their addresses.
    pub service_networks: Vec<IpNet>,
    /// The files that groups came from.
    pub origins: Named<String>,
    /// What whoever reads the answer should know of what was looked at.
    pub notes: Vec<String>,
}

impl Inventory {
    /// Who is in which group.
    pub fn index(&self) -> Index {
        let mut index = Index::default();
        index.set_service_networks(self.service_networks.clone());
        for node in &self.nodes {
            index.set_node_addresses(&name_of(&node.metadata).name, addresses_of(node));
        }
        for attachment in self.reports.iter().flat_map(|report| &report.status).flat_map(|s| &s.attachments) {
            let pod = NamespacedName::new(&attachment.namespace, &attachment.name);
            let known = (attachment.uid.clone(), attachment.addresses.iter().copied().collect());
            index.set_known_addresses(&pod, Some(known));
        }
        for report in &self.reports {
            let node = name_of(&report.metadata).name;
            for (pod, attached) in attached(report.status.iter().flat_map(|status| &status.networks)) {
                index.set_attached(&pod, &node, Some(attached));
            }
        }
        for machine in &self.machines {
            index.apply_machine(MachineSource(0), Machine::from(&machine.metadata));
        }
        for group in self.groups.values() {
            index.apply_group(Group::from(group));
        }
        for (metadata, error) in self.malformed_groups.values() {
            index.apply_group(Group::malformed(metadata, error.clone()));
        }
        // Bindings last: a label-set that several pods share is then matched once.
        for target in self.pods.values().map(Target::from).chain(self.interfaces.values().map(Target::from)) {
            index.apply_target(target);
        }
        for binding in self.bindings.values() {
            index.apply_binding(Binding::from(binding));
        }
        index
    }

    /// A group that must be there.
    pub fn group(&self, name: &NamespacedName) -> anyhow::Result<&SecurityGroup> {
        if let Some((_, error)) = self.malformed_groups.get(name) {
            bail!("security group {name} cannot be read: {error}");
        }
        self.groups.get(name).with_context(|| {
            let elsewhere: Vec<&str> =
                self.groups.keys().filter(|other| other.name == name.name).map(|other| &*other.namespace).collect();
            match elsewhere.as_slice() {
                [] => format!("there is no security group {name}"),
                _ => format!("there is no security group {name}; there is one in namespace {}", elsewhere.join(", ")),
            }
        })
    }

    /// With the groups, bindings and interfaces of another in the place of those of the same name.
    pub fn with(&self, changes: &Self) -> Self {
        let mut after = self.clone();
        after.groups.extend(changes.groups.clone());
        after.bindings.extend(changes.bindings.clone());
        after.interfaces.extend(changes.interfaces.clone());
        after
    }

    /// The same targets, without any group or binding.
    pub fn unguarded(&self) -> Self {
        Self { groups: Named::new(), malformed_groups: Named::new(), bindings: Named::new(), ..self.clone() }
    }
}
