//! The networks that a pod is attached to beside the one that Kubernetes gives it, as Multus writes them into its annotation.
//!
//! Who may write a pod may write that annotation. It is believed where it names networks, which decides what bindings of the
//! pod's own namespace select, and nowhere else: addresses are what the pod's node knows of them.

use super::Attached;
use crate::api::ReportedAttachment;
use crate::policy::NamespacedName;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Where a pod says which networks it wants: the specification of the Network Plumbing Working Group, version 1.3, section 4.1.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Where Multus says what it has attached: likewise, section 5.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// The network that an interface of a pod is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnNetwork {
    /// The network.
    pub network: NamespacedName,
    /// Multus has said so. Else the pod only asks for it: the interface may not be there yet.
    pub attached: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    interface: String,
    /// As it was called before.
    #[serde(default)]
    interface_request: String,
}

#[derive(Deserialize)]
struct Status {
    name: String,
    #[serde(default)]
    interface: String,
    #[serde(default)]
    default: bool,
}

/// The networks of a pod by its interfaces, without the one of Kubernetes: those that Multus says it has attached, and those that
/// the pod asks for. Nothing can be said of what cannot be read.
pub fn of_pod(namespace: &str, asked: &str, status: &str) -> BTreeMap<String, OnNetwork> {
    let statuses: Vec<Status> = serde_json::from_str(status).unwrap_or_default();
    let secondary = statuses.into_iter().filter(|status| !status.default);
    let told: Vec<_> = secondary.map(|status| (status.interface, network(namespace, &status.name))).collect();
    let asked = selection(namespace, asked).into_iter().map(|(interface, network)| {
        // Of some devices it says the network alone.
        let attached = told.iter().any(|(interface, other)| interface.is_empty() && *other == network);
        (interface, OnNetwork { network, attached })
    });
    let named = told.iter().filter(|(interface, _)| !interface.is_empty()).cloned();
    asked.chain(named.map(|(interface, network)| (interface, OnNetwork { network, attached: true }))).collect()
}

/// What a pod asks for, as a list of names or as JSON, with the interfaces that Multus makes of it.
fn selection(namespace: &str, text: &str) -> Vec<(String, NamespacedName)> {
    let asked: Vec<Asked> = if text.contains(['[', '{', '"']) {
        serde_json::from_str(text).unwrap_or_default()
    } else {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let split = |name: &str| {
            let (name, interface) = name.split_once('@').unwrap_or((name, ""));
            Asked { name: name.to_owned(), interface: interface.to_owned(), ..Asked::default() }
        };
        names.map(split).collect()
    };
    let numbered = asked.into_iter().zip(1..);
    let named = numbered.map(|(Asked { name, namespace: own, interface, interface_request }, number)| {
        let given = [interface, interface_request].into_iter().find(|interface| !interface.is_empty());
        let interface = given.unwrap_or_else(|| format!("net{number}"));
        (interface, network(if own.is_empty() { namespace } else { &own }, &name))
    });
    named.collect()
}

/// A network as people and Multus write it: of this namespace, unless another is named.
pub fn network(namespace: &str, text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    NamespacedName::new(namespace, name)
}

/// What a node's report says of its pods on such networks.
pub fn attached<'a>(reported: impl IntoIterator<Item = &'a ReportedAttachment>) -> BTreeMap<NamespacedName, Attached> {
    let mut pods: BTreeMap<NamespacedName, Attached> = BTreeMap::new();
    for said in reported {
        let Ok(network) = said.network.parse() else { continue };
        let pod = pods.entry(NamespacedName::new(&said.namespace, &said.name)).or_default();
        pod.uid.clone_from(&said.uid);
        pod.addresses.insert(network, said.addresses.iter().copied().collect());
    }
    pods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_multus_writes() {
        let status = r#"[
            {"name": "cbr0", "interface": "eth0", "ips": ["10.244.1.7"], "mac": "aa:bb:cc:00:00:07", "default": true, "dns": {}},
            {"name": "shop/storage", "interface": "net1", "ips": ["10.30.1.7"], "mac": "aa:bb:cc:00:01:07", "dns": {}},
            {"name": "backup", "interface": "net2", "dns": {}},
            {"name": "shop/vf", "dns": {}, "device-info": {"type": "pci"}}
        ]"#;
        assert_eq!(written("", status), ["net1 shop/storage", "net2 shop/backup"]);
        assert!(written("", "?").is_empty());
    }

    #[test]
    fn what_pods_ask_for() {
        let expected = ["fast ? shop/backup", "net1 ? shop/storage", "net3 ? infra/vlan"];
        assert_eq!(written("storage, backup@fast,infra/vlan", ""), expected);
        let json = r#"[{"name": "storage"}, {"name": "backup", "interfaceRequest": "fast"}, {"name": "vlan", "namespace": "infra"}]"#;
        assert_eq!(written(json, ""), expected);
        let status = r#"[
            {"name": "shop/storage", "interface": "net1"},
            {"name": "shop/vf"},
            {"name": "shop/renamed", "interface": "net3"}
        ]"#;
        let expected = ["net1 shop/storage", "net2 shop/vf", "net3 shop/renamed", "net4 ? shop/new"];
        assert_eq!(written("storage,vf,vlan,new", status), expected);
        let twice = ["net1 shop/storage", "net2 ? shop/storage"];
        assert_eq!(written("storage,storage", r#"[{"name": "shop/storage", "interface": "net1"}]"#), twice);
        assert!(written("[{", "").is_empty() && written(",", "").is_empty());
    }

    /// Interfaces and networks; with a question mark what nobody has said to be attached.
    fn written(asked: &str, status: &str) -> Vec<String> {
        let networks = of_pod("shop", asked, status).into_iter();
        networks.map(|(i, on)| format!("{i} {}{}", if on.attached { "" } else { "? " }, on.network)).collect()
    }
}
