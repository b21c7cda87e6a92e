//! How the node's pods are attached to networks beside the one that Kubernetes gives them, and whether rules reach them there.
//!
//! PURE. A pod's annotation says which interface is on which network; what the interface is and which addresses it has, the
//! node's own CNI plugins said when they attached it, and nothing else is believed.

use super::attachments::Attachment;
use super::bridges::FILTER_BRIDGES;
use super::declared::{CLOSED, Nature};
use crate::api::AttachmentState;
use crate::index::{self, OnNetwork, Target};
use crate::policy::NamespacedName;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A pod's attachment to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Whether rules reach it.
    pub state: AttachmentState,
    /// Why, in a sentence.
    pub message: String,
    /// Its addresses there, as far as rules reach them.
    pub addresses: BTreeSet<IpAddr>,
    /// Rules do not reach it because its bridge hands nothing to them, and nothing keeps it closed.
    pub unfiltered: bool,
}

impl Attached {
    /// Whether this is said of an attachment, too, and not only of earlier ones.
    pub fn takes_in(&self, attachment: &Attachment) -> bool {
        match self.state {
            AttachmentState::Guarded | AttachmentState::Closed => attachment.addresses.is_subset(&self.addresses),
            AttachmentState::Bypassing | AttachmentState::AddressUnknown => true,
            AttachmentState::NotFound | AttachmentState::Unknown => false,
        }
    }
}

/// A pod's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetworks {
    /// The node that the pod is on.
    pub node: String,
    /// The pod's uid.
    pub uid: String,
    /// How it is attached to each.
    pub networks: BTreeMap<NamespacedName, Attached>,
}

impl PodNetworks {
    /// As the index takes it.
    pub fn attached(&self) -> index::Attached {
        let addresses = self.networks.iter().map(|(network, attached)| (network.clone(), attached.addresses.clone()));
        index::Attached { uid: self.uid.clone(), addresses: addresses.collect() }
    }
}

/// The networks of these pods, which these devices lead to. Of attachments of one interface the last counts. `has_left` tells of
/// an interface whether it is on its network no more, and `closes` of a device whether it passes nothing that its bridge does
/// not hand to the rules.
pub fn of_pods<'a>(
    pods: impl Iterator<Item = &'a Target>,
    attachments: &[Attachment],
    devices: &BTreeMap<String, Nature>,
    has_left: impl Fn(&Target, &str) -> bool,
    closes: impl Fn(&str) -> bool,
) -> BTreeMap<NamespacedName, PodNetworks> {
    let mut found = BTreeMap::new();
    for pod in pods.filter(|pod| !pod.networks.is_empty()) {
        let mut networks: BTreeMap<NamespacedName, Attached> = BTreeMap::new();
        for (interface, OnNetwork { network, attached }) in &pod.networks {
            // Whatever annotations say, the interface on the network of Kubernetes is on no other.
            let own =
                |a: &&Attachment| a.is_of(pod) && a.interface == *interface && a.addresses.is_disjoint(pod.claimed());
            let attachment = attachments.iter().rev().find(own);
            // What is not there passes nothing.
            if attachment.is_none() && (!attached || has_left(pod, interface)) {
                continue;
            }
            let attached = look_at(interface, attachment, devices, &closes);
            match networks.get_mut(network) {
                // Twice on one network: what is worse of one is said of it there, and rules know the addresses of both.
                Some(other) => {
                    other.addresses.extend(attached.addresses);
                    other.unfiltered |= attached.unfiltered;
                    if badness(attached.state) > badness(other.state) {
                        (other.state, other.message) = (attached.state, attached.message);
                    }
                }
                None => drop(networks.insert(network.clone(), attached)),
            }
        }
        let node = pod.node.clone().unwrap_or_default();
        found.insert(pod.name.clone(), PodNetworks { node, uid: pod.uid.clone(), networks });
    }
    found
}

fn badness(state: AttachmentState) -> u8 {
    match state {
        AttachmentState::Guarded => 0,
        AttachmentState::Closed => 1,
        _ => 2,
    }
}

fn look_at(
    interface: &str,
    attachment: Option<&Attachment>,
    devices: &BTreeMap<String, Nature>,
    closes: impl Fn(&str) -> bool,
) -> Attached {
    let out_of_reach = |state, message| Attached { state, message, addresses: BTreeSet::new(), unfiltered: false };
    let Some(attachment) = attachment else {
        let message = format!("no CNI plugin has said how {interface} is attached");
        return out_of_reach(AttachmentState::NotFound, message);
    };
    let Some((device, nature)) = attachment.device.as_ref().and_then(|device| devices.get_key_value(device)) else {
        let message = format!(
            "no device of this node leads to {interface}, as with macvlan, ipvlan, SR-IOV and host devices: what passes it \
             passes no rules"
        );
        return out_of_reach(AttachmentState::Bypassing, message);
    };
    if nature.bridged.is_some_and(|filtered| filtered.contains(&false)) {
        let message =
            format!("the bridge that {interface} is attached to hands no packets to the rules: {FILTER_BRIDGES}");
        if closes(device) {
            // What the node routes to it passes the rules as ever.
            let (message, addresses) = (message + CLOSED, attachment.addresses.clone());
            return Attached { state: AttachmentState::Closed, message, addresses, unfiltered: false };
        }
        return Attached { unfiltered: true, ..out_of_reach(AttachmentState::Bypassing, message) };
    }
    if attachment.addresses.is_empty() {
        let message = format!("the network gives {interface} no address, and rules are about addresses");
        return out_of_reach(AttachmentState::AddressUnknown, message);
    }
    Attached {
        state: AttachmentState::Guarded,
        message: format!("rules reach {interface}"),
        addresses: attachment.addresses.clone(),
        unfiltered: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Indexed;
    use serde_json::json;

    fn attachment(interface: &str, device: Option<&str>, addresses: &[&str]) -> Attachment {
        Attachment {
            pod: NamespacedName::new("shop", "db"),
            uid: "uid".into(),
            container_id: "c".into(),
            interface: interface.into(),
            device: device.map(str::to_owned),
            network: None,
            mac: None,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    /// How a pod with these interfaces is attached to the networks named after them.
    fn how(interfaces: &[(&str, &str)], attachments: &[Attachment]) -> Vec<(String, AttachmentState, usize)> {
        let status: Vec<_> = interfaces
            .iter()
            .map(|(interface, network)| json!({"name": network, "interface": interface, "ips": ["10.9.9.9"]}))
            .collect();
        of(json!({"k8s.v1.cni.cncf.io/network-status": json!(status).to_string()}), attachments)
    }

    fn of(annotations: serde_json::Value, attachments: &[Attachment]) -> Vec<(String, AttachmentState, usize)> {
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "db", "uid": "uid", "annotations": annotations},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"podIPs": [{"ip": "10.0.0.1"}]},
        }))
        .unwrap();
        let devices = [
            ("veth1", None),
            ("veth2", Some([true, true])),
            ("veth3", Some([true, false])),
            ("veth4", Some([false, true])),
        ];
        let devices = devices.map(|(name, bridged)| (name.to_owned(), Nature { bridged, ..Nature::default() })).into();
        let closes = |device: &str| device == "veth4";
        let found =
            of_pods([&pod.keep()].into_iter(), attachments, &devices, |_, interface| interface == "left", closes);
        let networks = found.into_values().flat_map(|pod| pod.networks);
        networks.map(|(network, a)| (network.to_string(), a.state, a.addresses.len())).collect()
    }

    #[test]
    fn what_the_plugins_of_the_node_say_counts_and_nothing_else() {
        use AttachmentState::{AddressUnknown, Bypassing, Closed, Guarded, NotFound};
        let one = |attachments: &[Attachment]| {
            let [(network, state, addresses)] = &how(&[("net1", "storage")], attachments)[..] else { panic!() };
            assert_eq!(network, "shop/storage");
            (*state, *addresses)
        };
        assert_eq!(one(&[attachment("net1", Some("veth1"), &["10.30.0.1", "fd30::1"])]), (Guarded, 2));
        assert_eq!(one(&[]), (NotFound, 0));
        assert_eq!(one(&[attachment("net2", Some("veth1"), &["10.30.0.1"])]), (NotFound, 0));
        let another = Attachment { uid: "another".into(), ..attachment("net1", Some("veth1"), &["10.30.0.1"]) };
        assert_eq!(one(&[another]), (NotFound, 0));
        assert_eq!(one(&[attachment("net1", None, &["10.30.0.1"])]), (Bypassing, 0));
        assert_eq!(one(&[attachment("net1", Some("gone"), &["10.30.0.1"])]), (Bypassing, 0));
        assert_eq!(
            one(&[attachment("net1", Some("veth2"), &["10.30.0.1"])]),
            (Guarded, 1),
            "a bridge that is filtered"
        );
        assert_eq!(one(&[attachment("net1", Some("veth3"), &["10.30.0.1"])]), (Bypassing, 0), "one that is not");
        assert_eq!(one(&[attachment("net1", Some("veth4"), &["10.30.0.1"])]), (Closed, 1), "and is closed");
        assert_eq!(one(&[attachment("net1", Some("veth1"), &[])]), (AddressUnknown, 0));
        let again = [attachment("net1", Some("veth1"), &["10.30.0.1"]), attachment("net1", None, &["10.30.0.1"])];
        assert_eq!(one(&again), (Bypassing, 0), "the last counts");
    }

    #[test]
    fn of_what_is_not_there_nothing_is_said() {
        let attachments = [attachment("net1", Some("veth1"), &["10.30.0.1"])];
        assert_eq!(how(&[("left", "storage")], &attachments), [], "it was given back");
        let asks = json!({"k8s.v1.cni.cncf.io/networks": "storage,backup"});
        let found = of(asks, &attachments);
        assert_eq!(found, [("shop/storage".to_owned(), AttachmentState::Guarded, 1)], "and one is to come");
    }

    #[test]
    fn the_interface_on_the_network_of_kubernetes_is_on_no_other() {
        let asks = json!({"k8s.v1.cni.cncf.io/networks": "storage@eth0"});
        assert_eq!(of(asks.clone(), &[attachment("eth0", Some("veth1"), &["10.0.0.1"])]), []);
        assert_eq!(of(asks, &[attachment("eth0", Some("veth1"), &["10.30.0.1"])]).len(), 1);
    }

    #[test]
    fn twice_on_one_network() {
        use AttachmentState::{Bypassing, Closed, Guarded};
        let twice = [("net1", "storage"), ("net2", "storage")];
        let (a, b) =
            (attachment("net1", Some("veth1"), &["10.30.0.1"]), attachment("net2", Some("veth2"), &["10.30.0.2"]));
        assert_eq!(how(&twice, &[a.clone(), b.clone()]), [("shop/storage".to_owned(), Guarded, 2)]);
        for (first, second) in [("veth1", "veth4"), ("veth4", "veth1")] {
            let [a, b] = [("net1", first, "10.30.0.1"), ("net2", second, "10.30.0.2")]
                .map(|(interface, device, address)| attachment(interface, Some(device), &[address]));
            assert_eq!(how(&twice, &[a, b]), [("shop/storage".to_owned(), Closed, 2)]);
        }
        for (a, b) in [(a.clone(), attachment("net2", None, &[])), (attachment("net1", None, &[]), b)] {
            assert_eq!(
                how(&twice, &[a, b]),
                [("shop/storage".to_owned(), Bypassing, 1)],
                "one is guarded all the same"
            );
        }
    }
}
