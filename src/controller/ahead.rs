//! What nodes know of their pods' addresses ahead of the API server: a new pod's, and that one was given back.
//!
//! PURE. A node is believed about its own pods alone, as it is when it writes their status.

use crate::api::NodeEnforcementStatus;
use crate::index::{Index, Target};
use crate::policy::NamespacedName;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// The addresses of pods by their uid and name.
type Known = BTreeMap<(NamespacedName, String), BTreeSet<IpAddr>>;

/// See the module.
#[derive(Debug, Default)]
pub struct Ahead {
    nodes: HashMap<String, (Option<String>, Known)>,
    /// What holds for pods that a node has spoken of.
    held: BTreeMap<NamespacedName, Held>,
}

/// What a node said of a pod.
#[derive(Debug)]
struct Held {
    uid: String,
    node: String,
    boot: Option<String>,
    addresses: BTreeSet<IpAddr>,
    /// What the pod's status said when the node began to say so.
    status: BTreeSet<IpAddr>,
    /// What the pod's status said when the node said so no more.
    until_not: Option<BTreeSet<IpAddr>>,
}

impl Held {
    /// Whether a status is the one because of which the node says no more: it has nothing else than the node said, and lacks
    /// nothing but what it had before.
    fn is_told_by(&self, status: &BTreeSet<IpAddr>) -> bool {
        status.is_subset(&self.addresses) && self.addresses.difference(status).all(|gone| self.status.contains(gone))
    }
}

impl Ahead {
    /// Takes in a node's report; returns the pods of which it, or the one before, speaks.
    pub fn set(&mut self, node: &str, report: Option<&NodeEnforcementStatus>) -> BTreeSet<NamespacedName> {
        let new = report.map(|status| {
            let attachments = status.attachments.iter().map(|a| {
                let name = NamespacedName::new(&*a.namespace, &*a.name);
                ((name, a.uid.clone()), a.addresses.iter().copied().collect())
            });
            (status.boot_id.clone(), attachments.collect::<Known>())
        });
        let old = match &new {
            Some(new) => self.nodes.insert(node.to_owned(), new.clone()),
            None => self.nodes.remove(node),
        };
        if old == new {
            return BTreeSet::new();
        }
        let spoken_of = old.iter().chain(&new).flat_map(|(_, known)| known.keys().map(|(name, _)| name.clone()));
        let held = self.held.iter().filter(|(_, held)| held.node == node).map(|(name, _)| name.clone());
        spoken_of.chain(held).collect()
    }

    /// The pods of which a node has spoken.
    pub fn pods(&self) -> BTreeSet<NamespacedName> {
        let spoken_of = self.nodes.values().flat_map(|(_, known)| known.keys().map(|(name, _)| name));
        spoken_of.chain(self.held.keys()).cloned().collect()
    }

    /// What is known of a pod beyond its status.
    pub fn of(&mut self, index: &Index, name: &NamespacedName) -> Option<(String, BTreeSet<IpAddr>)> {
        let known = index.pod(name).and_then(|pod| self.of_pod(pod));
        if known.is_none() {
            self.held.remove(name);
        }
        known
    }

    fn of_pod(&mut self, pod: &Target) -> Option<(String, BTreeSet<IpAddr>)> {
        let node = pod.node.as_ref()?;
        let (boot, known) = self.nodes.get(node)?;
        let held = self.held.get_mut(&pod.name);
        let mut held = held.filter(|held| held.uid == pod.uid && held.node == *node && held.boot == *boot);
        let addresses = match known.get(&(pod.name.clone(), pod.uid.clone())) {
            Some(addresses) => {
                if held.is_none_or(|held| held.until_not.is_some() || held.addresses != *addresses) {
                    let held = Held {
                        uid: pod.uid.clone(),
                        node: node.clone(),
                        boot: boot.clone(),
                        addresses: addresses.clone(),
                        status: pod.reported().clone(),
                        until_not: None,
                    };
                    self.held.insert(pod.name.clone(), held);
                }
                addresses
            }
            // The node says it no more because the status says the same, or because the pod is gone. Here that news may be
            // late: until the status changes, what the node said last is truer.
            None => {
                let held = held.as_mut()?;
                let reported = pod.reported();
                let late = held.until_not.get_or_insert_with(|| reported.clone()) == reported;
                if !late || held.is_told_by(reported) {
                    return None;
                }
                &held.addresses
            }
        };
        Some((pod.uid.clone(), addresses.clone()))
    }
}
