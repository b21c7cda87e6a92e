//! The networks that a pod is attached to beside the one that Kubernetes gives it, as Multus writes them into its annotation.
//!
//! Who may write a pod may write that annotation. It is believed where it names networks, which decides what bindings of the
//! pod's own namespace select, and nowhere else: addresses are what the pod's node knows of them.

use super::Attached;
use crate::api::ReportedAttachment;
use crate::policy::NamespacedName;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Where Multus says what it has attached: the specification of the Network Plumbing Working Group, version 1.3, section 5.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

#[derive(Deserialize)]
struct Status {
    name: String,
    #[serde(default)]
    interface: String,
    #[serde(default)]
    default: bool,
}

/// The networks of a pod by its interfaces, without the one of Kubernetes. Nothing can be said of what cannot be read.
pub fn of_status(namespace: &str, annotation: &str) -> BTreeMap<String, NamespacedName> {
    let statuses: Vec<Status> = serde_json::from_str(annotation).unwrap_or_default();
    let secondary = statuses.into_iter().filter(|status| !status.default && !status.interface.is_empty());
    secondary.map(|Status { name, interface, default: _ }| (interface, network(namespace, &name))).collect()
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
        let expected = [("net1", "storage"), ("net2", "backup")]
            .map(|(interface, name)| (interface.to_owned(), NamespacedName::new("shop", name)));
        assert_eq!(of_status("shop", status), expected.into());
        assert!(of_status("shop", "?").is_empty());
    }
}
