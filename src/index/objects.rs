//! What the index keeps of Kubernetes objects: as little as it needs, parsed.

use super::networks::{self, NETWORK_STATUS, NETWORKS, OnNetwork};
use super::selection::Labels;
use crate::api::{self, EXTRA_ADDRESSES, LocalGroupReference, NetworkInterface, SecurityGroup, SecurityGroupBinding};
use crate::kubevirt;
use crate::policy::{self, NamespacedName, parse_group};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Selector;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The namespaced name in an object's metadata.
pub fn name_of(metadata: &ObjectMeta) -> NamespacedName {
    NamespacedName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// The addresses of a node: never a pod's.
pub fn addresses_of(node: &core::Node) -> BTreeSet<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter_map(|address| address.address.parse().ok()).collect()
}

/// The kinds of what a binding can select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetKind {
    /// A pod.
    Pod,
    /// An interface of a machine that Kubernetes does not run.
    NetworkInterface,
}

impl TargetKind {
    /// As people and slices write it.
    pub fn short_name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::NetworkInterface => "nic",
        }
    }
}

/// The kinds of selectors in bindings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SelectorKind {
    /// Selects pods.
    Pod,
    /// Selects virtual machines of KubeVirt, each of which is a pod as far as its network is concerned.
    VirtualMachine,
    /// Selects interfaces of machines that Kubernetes does not run.
    NetworkInterface,
}

impl SelectorKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pod, Self::VirtualMachine, Self::NetworkInterface];

    /// What it is that they select.
    pub fn target(self) -> TargetKind {
        match self {
            Self::Pod | Self::VirtualMachine => TargetKind::Pod,
            Self::NetworkInterface => TargetKind::NetworkInterface,
        }
    }
}

impl From<TargetKind> for SelectorKind {
    /// The selectors that see a target's own labels.
    fn from(kind: TargetKind) -> Self {
        match kind {
            TargetKind::Pod => Self::Pod,
            TargetKind::NetworkInterface => Self::NetworkInterface,
        }
    }
}

/// What identifies a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetName {
    /// Its kind.
    pub kind: TargetKind,
    /// Its name among its kind.
    pub name: NamespacedName,
    /// The network on which it is this target; `None`: the one that Kubernetes gives it.
    pub network: Option<NamespacedName>,
}

impl TargetName {
    /// What has this name, on the network of Kubernetes.
    pub fn new(kind: TargetKind, name: NamespacedName) -> Self {
        Self { kind, name, network: None }
    }

    /// A pod's.
    pub fn pod(name: NamespacedName) -> Self {
        Self::new(TargetKind::Pod, name)
    }

    /// A network interface's.
    pub fn network_interface(name: NamespacedName) -> Self {
        Self::new(TargetKind::NetworkInterface, name)
    }

    /// As slices write it, whose namespace is the target's.
    pub fn in_namespace(&self) -> String {
        let network = self.network.as_ref().map(|network| format!("@{network}")).unwrap_or_default();
        format!("{}/{}{network}", self.kind.short_name(), self.name.name)
    }

    /// Reads what slices of a namespace say.
    pub fn parse(namespace: &str, text: &str) -> Option<Self> {
        let (kind, name) = text.split_once('/')?;
        let kinds = [TargetKind::Pod, TargetKind::NetworkInterface];
        let kind = kinds.into_iter().find(|known| known.short_name() == kind)?;
        let (name, network) = match name.split_once('@') {
            Some((name, network)) => (name, Some(network.parse().ok()?)),
            None => (name, None),
        };
        Some(Self { kind, name: NamespacedName::new(namespace, name), network })
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TargetKind::Pod => write!(f, "{}", self.name)?,
            kind => write!(f, "{} {}", kind.short_name(), self.name)?,
        }
        self.network.iter().try_for_each(|network| write!(f, " on {network}"))
    }
}

/// The device that a `NetworkInterface` declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredDevice {
    /// Its name on its node.
    pub name: String,
    /// The link address of the machine behind it.
    pub mac: String,
    /// The link-local addresses that it declares: no group ever means them.
    pub link_local: BTreeSet<IpAddr>,
}

/// What a binding can select, as far as groups are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What it is.
    pub kind: TargetKind,
    /// Its name.
    pub name: NamespacedName,
    /// The network on which it is this target; `None`: the one that Kubernetes gives it.
    pub network: Option<NamespacedName>,
    /// Its uid; a pod's as its node knows it.
    pub uid: String,
    /// The generation of what was last seen.
    pub generation: i64,
    /// Its labels.
    pub labels: Labels,
    /// The node it is on.
    pub node: Option<String>,
    /// It runs on the host's network: its addresses are the node's, so it has none, and no group can guard it.
    pub host_network: bool,
    /// It ran to its end (Succeeded, Failed): it is nobody's member, and its address may already be someone else's.
    pub finished: bool,
    /// It is being deleted. It stays what it is until it is gone: its connections drain.
    pub terminating: bool,
    /// What it asks for beside its own addresses, as its annotation says it. Whether it gets it is its node's business.
    pub extra_addresses: Option<String>,
    /// Where it says which device leads to it; of a pod the node finds out.
    pub device: Option<DeclaredDevice>,
    /// The uid of the virtual machine that runs in this pod.
    pub machine: Option<String>,
    /// The other networks that it is attached to, or about to be, by its interfaces.
    pub networks: BTreeMap<String, OnNetwork>,
    reported: BTreeSet<IpAddr>,
    /// What its node knows better than its status.
    known: Option<BTreeSet<IpAddr>>,
}

impl Target {
    /// What identifies it.
    pub fn key(&self) -> TargetName {
        TargetName { kind: self.kind, name: self.name.clone(), network: self.network.clone() }
    }

    /// Whether the same virtual machine is behind both: pods that run it, or interfaces that are declared for two nodes and are
    /// one on the link.
    pub fn is_machine_of(&self, other: &Self) -> bool {
        let in_namespace = self.name.namespace == other.name.namespace;
        if let (Some(device), Some(others)) = (&self.device, &other.device) {
            return device.mac.eq_ignore_ascii_case(&others.mac) && in_namespace && self.node != other.node;
        }
        // Who owns a pod, whoever creates it says; of its own namespace.
        self.machine.is_some() && self.machine == other.machine && in_namespace && self.name != other.name
    }

    /// The same pod on another network, where it has these addresses.
    pub(super) fn on(&self, network: NamespacedName, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            network: Some(network),
            networks: BTreeMap::new(),
            // What it asks for beside its own addresses, it asks for on the network of Kubernetes.
            extra_addresses: None,
            reported: addresses.into_iter().filter(|address| is_own(*address)).collect(),
            known: None,
            ..self.clone()
        }
    }

    /// The addresses that it claims and that could be one target's own.
    pub fn claimed(&self) -> &BTreeSet<IpAddr> {
        self.known.as_ref().unwrap_or(&self.reported)
    }

    /// Those that the API server shows.
    pub fn reported(&self) -> &BTreeSet<IpAddr> {
        &self.reported
    }

    /// The same, where its node knows its addresses better than the API server does.
    pub(super) fn with_known(mut self, known: Option<&BTreeSet<IpAddr>>) -> Self {
        self.known = known.map(|addresses| addresses.iter().copied().filter(|a| is_own(*a)).collect());
        self
    }
}

impl From<&core::Pod> for Target {
    fn from(pod: &core::Pod) -> Self {
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        let host_network = spec.and_then(|s| s.host_network).unwrap_or_default();
        let ips = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
        let addresses = ips.filter_map(|ip| ip.ip.parse().ok()).filter(|a| is_own(*a));
        let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(name));
        let name = name_of(&pod.metadata);
        Self {
            kind: TargetKind::Pod,
            network: None,
            name: name.clone(),
            // Of a static pod the API server shows a mirror, which has a uid of its own and says in an annotation which one
            // the node uses.
            uid: annotation("kubernetes.io/config.mirror").or(pod.metadata.uid.as_ref()).cloned().unwrap_or_default(),
            // Nothing that groups are concerned with changes it.
            generation: 0,
            labels: Arc::new(pod.metadata.labels.clone().unwrap_or_default()),
            node: spec.and_then(|s| s.node_name.clone()),
            host_network,
            finished: matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            extra_addresses: annotation(EXTRA_ADDRESSES).cloned(),
            device: None,
            machine: kubevirt::machine_of(&pod.metadata),
            networks: if host_network {
                BTreeMap::new()
            } else {
                let text = |name| annotation(name).map(String::as_str).unwrap_or_default();
                networks::of_pod(&name.namespace, text(NETWORKS), text(NETWORK_STATUS))
            },
            reported: if host_network { BTreeSet::new() } else { addresses.collect() },
            known: None,
        }
    }
}

impl From<&NetworkInterface> for Target {
    fn from(interface: &NetworkInterface) -> Self {
        let NetworkInterface { metadata, spec, status: _ } = interface;
        Self {
            kind: TargetKind::NetworkInterface,
            name: name_of(metadata),
            network: None,
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            labels: Arc::new(metadata.labels.clone().unwrap_or_default()),
            node: Some(spec.node_name.clone()),
            host_network: false,
            finished: false,
            terminating: metadata.deletion_timestamp.is_some(),
            extra_addresses: metadata.annotations.as_ref().and_then(|a| a.get(EXTRA_ADDRESSES)).cloned(),
            device: Some(DeclaredDevice {
                name: spec.device.clone(),
                mac: spec.mac_address.clone(),
                link_local: spec.addresses.iter().copied().filter(|a| !is_own(*a)).collect(),
            }),
            machine: None,
            networks: BTreeMap::new(),
            reported: spec.addresses.iter().copied().filter(|a| is_own(*a)).collect(),
            known: None,
        }
    }
}

/// Whether an address can be the own one of a single target (S10).
pub fn is_own(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
    };
    !(link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

/// A group: its rules, or why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: NamespacedName,
    /// Its uid: a name may be used again.
    pub uid: String,
    /// The generation of what was last seen.
    pub generation: i64,
    /// It is being deleted; while it is in use it stays enforced.
    pub deleting: bool,
    /// The last rules that could be parsed.
    pub rules: Option<Arc<policy::Group>>,
    /// The generation those rules are of.
    pub rules_generation: i64,
    /// What is wrong with the generation last seen.
    pub error: Option<String>,
}

impl Group {
    /// A group that could not even be read.
    pub fn malformed(metadata: &ObjectMeta, error: String) -> Self {
        Self {
            name: name_of(metadata),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            rules: None,
            rules_generation: 0,
            error: Some(error),
        }
    }

    /// The groups that the rules name as remotes, each once.
    pub fn remotes(&self) -> BTreeSet<NamespacedName> {
        self.rules.iter().flat_map(|rules| rules.remotes()).cloned().collect()
    }
}

impl From<&SecurityGroup> for Group {
    fn from(group: &SecurityGroup) -> Self {
        let name = name_of(&group.metadata);
        match parse_group(&name.namespace, &group.spec) {
            Ok(rules) => Self {
                rules: Some(Arc::new(rules)),
                rules_generation: group.metadata.generation.unwrap_or_default(),
                error: None,
                ..Self::malformed(&group.metadata, String::new())
            },
            Err(errors) => Self::malformed(&group.metadata, crate::api::conditions::listed(errors)),
        }
    }
}

/// A binding: which groups it attaches to which targets.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Its name.
    pub name: NamespacedName,
    /// Its uid.
    pub uid: String,
    /// The generation of what was last seen.
    pub generation: i64,
    /// The groups it attaches, whether they exist or not.
    pub groups: BTreeSet<NamespacedName>,
    /// What it selects; `None`: nothing.
    pub selector: Option<(SelectorKind, Selector)>,
    /// The networks on which it does; none: the one of Kubernetes.
    pub networks: BTreeSet<NamespacedName>,
    /// What is wrong with the generation last seen.
    pub error: Option<String>,
}

impl PartialEq for Binding {
    fn eq(&self, other: &Self) -> bool {
        let Self { name, uid, generation, groups, selector, networks, error } = self;
        // Selectors do not compare, but print all that they say.
        (name, uid, generation, groups, networks, error)
            == (&other.name, &other.uid, &other.generation, &other.groups, &other.networks, &other.error)
            && printed(selector.as_ref()) == printed(other.selector.as_ref())
    }
}

fn printed(selector: Option<&(SelectorKind, Selector)>) -> Option<(SelectorKind, String)> {
    selector.map(|(kind, selector)| (*kind, selector.to_string()))
}

impl Binding {
    /// A binding that could not even be read.
    pub fn malformed(metadata: &ObjectMeta, error: String) -> Self {
        Self {
            name: name_of(metadata),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            groups: BTreeSet::new(),
            selector: None,
            networks: BTreeSet::new(),
            error: Some(error),
        }
    }
}

impl From<&SecurityGroupBinding> for Binding {
    fn from(binding: &SecurityGroupBinding) -> Self {
        let (kind, field, selector) = match &binding.spec.target {
            api::Target::PodSelector(selector) => (SelectorKind::Pod, "podSelector", selector),
            api::Target::VirtualMachineSelector(selector) => {
                (SelectorKind::VirtualMachine, "virtualMachineSelector", selector)
            }
            api::Target::NetworkInterfaceSelector(selector) => {
                (SelectorKind::NetworkInterface, "networkInterfaceSelector", selector)
            }
        };
        let malformed = |error| Self::malformed(&binding.metadata, error);
        match Selector::try_from(selector.clone()) {
            Ok(selector) => {
                let mut parsed = malformed(String::new());
                let namespace = parsed.name.namespace.clone();
                let groups = binding.spec.security_groups.iter();
                parsed.groups =
                    groups.map(|LocalGroupReference { name }| NamespacedName::new(&*namespace, name)).collect();
                let networks = binding.spec.networks.iter().flatten();
                let networks = networks.map(|text| networks::network(&namespace, text)).collect();
                Self { selector: Some((kind, selector)), networks, error: None, ..parsed }
            }
            Err(error) => malformed(format!("spec.target.{field}: {error}")),
        }
    }
}
