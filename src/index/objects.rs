//! What the index keeps of Kubernetes objects: as little as it needs, parsed.

use super::selection::Labels;
use crate::api::{EXTRA_ADDRESSES, LocalGroupReference, SecurityGroup, SecurityGroupBinding, Target};
use crate::policy::{self, NamespacedName, parse_group};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Selector;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// The namespaced name in an object's metadata.
pub fn name_of(metadata: &ObjectMeta) -> NamespacedName {
    NamespacedName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// A pod, as far as groups are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: NamespacedName,
    /// Its uid, as its node knows it.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// The node it is scheduled to.
    pub node: Option<String>,
    /// It runs on the host's network: its addresses are the node's, so it has none, and no group can guard it.
    pub host_network: bool,
    /// It ran to its end (Succeeded, Failed): it is nobody's member, and its address may already be someone else's.
    pub finished: bool,
    /// It is being deleted. It stays what it is until it is gone: its connections drain.
    pub terminating: bool,
    /// What it asks for beside its own addresses, as its annotation says it. Whether it gets it is its node's business.
    pub extra_addresses: Option<String>,
    reported: BTreeSet<IpAddr>,
    /// What its node knows better than its status.
    known: Option<BTreeSet<IpAddr>>,
}

impl Pod {
    /// The addresses that it claims and that could be one pod's own.
    pub fn claimed(&self) -> &BTreeSet<IpAddr> {
        self.known.as_ref().unwrap_or(&self.reported)
    }

    /// Those that its status claims.
    pub fn reported(&self) -> &BTreeSet<IpAddr> {
        &self.reported
    }

    /// The same pod, where its node knows its addresses better than its status does.
    pub(super) fn with_known(mut self, known: Option<&BTreeSet<IpAddr>>) -> Self {
        self.known = known.map(|addresses| addresses.iter().copied().filter(|a| is_own(*a)).collect());
        self
    }
}

impl From<&core::Pod> for Pod {
    fn from(pod: &core::Pod) -> Self {
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        let host_network = spec.and_then(|s| s.host_network).unwrap_or_default();
        let ips = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
        let addresses = ips.filter_map(|ip| ip.ip.parse().ok()).filter(|a| is_own(*a));
        let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|a| a.get(name));
        Self {
            name: name_of(&pod.metadata),
            // Of a static pod the API server shows a mirror, which has a uid of its own and says in an annotation which one
            // the node uses.
            uid: annotation("kubernetes.io/config.mirror").or(pod.metadata.uid.as_ref()).cloned().unwrap_or_default(),
            labels: Arc::new(pod.metadata.labels.clone().unwrap_or_default()),
            node: spec.and_then(|s| s.node_name.clone()),
            host_network,
            finished: matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            extra_addresses: annotation(EXTRA_ADDRESSES).cloned(),
            reported: if host_network { BTreeSet::new() } else { addresses.collect() },
            known: None,
        }
    }
}

/// Whether an address can be the own one of a single pod (S10).
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

/// A binding: which groups it attaches to which pods.
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
    /// How it selects pods; `None`: not at all.
    pub selector: Option<Selector>,
    /// What is wrong with the generation last seen.
    pub error: Option<String>,
}

impl PartialEq for Binding {
    fn eq(&self, other: &Self) -> bool {
        let Self { name, uid, generation, groups, selector, error } = self;
        // Selectors do not compare, but print all that they say.
        (name, uid, generation, groups, error)
            == (&other.name, &other.uid, &other.generation, &other.groups, &other.error)
            && selector.as_ref().map(ToString::to_string) == other.selector.as_ref().map(ToString::to_string)
    }
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
            error: Some(error),
        }
    }
}

impl From<&SecurityGroupBinding> for Binding {
    fn from(binding: &SecurityGroupBinding) -> Self {
        let Target::PodSelector(selector) = &binding.spec.target;
        let malformed = |error| Self::malformed(&binding.metadata, error);
        match Selector::try_from(selector.clone()) {
            Ok(selector) => {
                let mut parsed = malformed(String::new());
                let namespace = parsed.name.namespace.clone();
                let groups = binding.spec.security_groups.iter();
                parsed.groups =
                    groups.map(|LocalGroupReference { name }| NamespacedName::new(&*namespace, name)).collect();
                Self { selector: Some(selector), error: None, ..parsed }
            }
            Err(error) => malformed(format!("spec.target.podSelector: {error}")),
        }
    }
}
