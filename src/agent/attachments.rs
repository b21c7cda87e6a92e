//! Who is attached to this node's network, as the CNI gate was told, and what follows for the addresses of pods.
//!
//! PURE. The gate knows an address about a second before the API server does, and knows that one was given back while the
//! pod's status still shows it: what it says beats the status of a pod of this node.

use crate::index::{Index, Target};
use crate::policy::NamespacedName;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// One interface of a pod, as the runtime made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The pod.
    pub pod: NamespacedName,
    /// The pod's uid: a name may be used again.
    pub uid: String,
    /// The sandbox.
    pub container_id: String,
    /// The interface's name in the pod.
    pub interface: String,
    /// The name of the CNI network, where it is another one than Kubernetes gives pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// The device on the node's side, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The MAC address on the pod's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The pod's addresses on this interface.
    pub addresses: BTreeSet<IpAddr>,
}

/// What identifies an attachment, to the runtime as to us.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// The sandbox.
    pub container_id: String,
    /// The interface's name in the pod.
    pub interface: String,
}

/// An attachment, and whether it still is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// What was attached.
    pub attachment: Attachment,
    /// Of two that have the same address, the later one has it.
    pub sequence: u64,
    /// It was given back. Remembered until the pod is gone, whose status may show the address until then.
    pub released: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Attachments {
    records: BTreeMap<Key, Record>,
    sequence: u64,
    revision: u64,
    /// Of the last change that concerned another network than the one of Kubernetes.
    elsewhere: u64,
}

/// The part of the attachments that a ruleset takes into account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Everything that was told up to this revision.
    pub revision: u64,
    /// The attachments whose pods and networks are known, and so their groups.
    pub attached: BTreeSet<Key>,
}

impl Attachment {
    /// Whether it is this pod's.
    pub fn is_of(&self, pod: &Target) -> bool {
        self.pod == pod.name && self.uid == pod.uid
    }

    /// Whether it is on the network that Kubernetes gives pods.
    fn is_primary(&self) -> bool {
        self.network.is_none()
    }

    /// What identifies it.
    pub fn key(&self) -> Key {
        Key { container_id: self.container_id.clone(), interface: self.interface.clone() }
    }
}

impl Attachments {
    /// Those that an earlier run of the agent knew.
    pub fn restore(records: impl IntoIterator<Item = Record>) -> Self {
        let records: BTreeMap<Key, Record> = records.into_iter().map(|r| (r.attachment.key(), r)).collect();
        let sequence = records.values().map(|r| r.sequence).max().unwrap_or_default();
        Self { records, sequence, revision: 0, elsewhere: 0 }
    }

    /// Takes in an attachment. An earlier one of the same pod and interface has ended, whether anybody said so or not.
    ///
    /// Returns the revision from which it is taken into account.
    pub fn attach(&mut self, attachment: Attachment) -> u64 {
        let key = attachment.key();
        if self.records.get(&key).is_some_and(|r| r.attachment == attachment && !r.released) {
            return self.revision;
        }
        for record in self.records.values_mut() {
            let Attachment { uid, interface, .. } = &record.attachment;
            if *uid == attachment.uid && *interface == attachment.interface {
                record.released = true;
            }
        }
        self.sequence += 1;
        self.records.insert(key.clone(), Record { attachment, sequence: self.sequence, released: false });
        self.changed([key])
    }

    /// An attachment has ended. `described` is what the runtime says of it, for one that was made before there was a gate.
    pub fn release(&mut self, key: &Key, described: Option<Attachment>) -> u64 {
        let known = match self.records.get_mut(key) {
            Some(record) => !std::mem::replace(&mut record.released, true),
            None => match described.filter(|a| a.key() == *key && !self.is_attached_anew(a)) {
                Some(attachment) => {
                    let record = Record { attachment, sequence: 0, released: true };
                    self.records.insert(key.clone(), record);
                    true
                }
                None => false,
            },
        };
        self.changed(known.then(|| key.clone()))
    }

    /// Every other attachment to this network has ended.
    pub fn keep_only(&mut self, network: Option<&str>, valid: &BTreeSet<Key>) -> u64 {
        let ended = self.records.iter_mut().filter(|(key, record)| {
            !record.released && record.attachment.network.as_deref() == network && !valid.contains(key)
        });
        let ended: Vec<Key> = ended
            .map(|(key, record)| {
                record.released = true;
                key.clone()
            })
            .collect();
        self.changed(ended)
    }

    /// Something was told of these.
    fn changed(&mut self, keys: impl IntoIterator<Item = Key>) -> u64 {
        let mut changed = keys.into_iter().filter_map(|key| Some(&self.records.get(&key)?.attachment)).peekable();
        if changed.peek().is_some() {
            self.revision += 1;
            if changed.any(|attachment| !attachment.is_primary()) {
                self.elsewhere = self.revision;
            }
        }
        self.revision
    }

    /// Forgets what has ended and whose pod is gone. To be called once all pods are known.
    pub fn forget_gone(&mut self, index: &Index) {
        self.records.retain(|_, record| !record.released || is_known(index, &record.attachment));
    }

    /// Forgets, up to this sequence, what must have ended while no agent was there to be told, as its pod is gone. Likewise.
    pub fn forget_missed(&mut self, index: &Index, up_to: u64) {
        self.records.retain(|_, record| record.sequence > up_to || is_known(index, &record.attachment));
    }

    /// How many there have been.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Counts what changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether an attachment waits for its pod to be known.
    pub fn awaits_a_pod(&self, index: &Index) -> bool {
        self.live().any(|(_, record)| !is_known(index, &record.attachment))
    }

    /// What a ruleset takes into account that is made of these, of this index, and of what `is_on` says how pods are attached
    /// to other networks than the one of Kubernetes, as was last looked at in this revision.
    pub fn settled(&self, index: &Index, looked_at: u64, is_on: impl Fn(&Attachment) -> bool) -> Settled {
        let known = self.live().filter(|(_, Record { attachment, .. })| {
            is_known(index, attachment) && (attachment.is_primary() || is_on(attachment))
        });
        let revision = if self.awaits_a_look(looked_at) { looked_at } else { self.revision };
        Settled { revision, attached: known.map(|(key, _)| key.clone()).collect() }
    }

    /// Whether there is news of other networks than the one of Kubernetes since this revision.
    pub fn awaits_a_look(&self, looked_at: u64) -> bool {
        looked_at < self.elsewhere
    }

    /// Whether an attachment was given back.
    pub fn has_ended(&self, attachment: &Attachment) -> bool {
        self.records.get(&attachment.key()).is_some_and(|record| record.released)
    }

    /// Whether what was an interface of a pod was given back.
    pub fn has_left(&self, pod: &Target, interface: &str) -> bool {
        let mut own = self.of(pod).filter(|record| record.attachment.interface == interface).peekable();
        own.peek().is_some() && own.all(|record| record.released)
    }

    /// Whether this is attached, with these addresses.
    pub fn has(&self, attachment: &Attachment) -> bool {
        let record = self.records.get(&attachment.key());
        record.is_some_and(|r| !r.released && r.attachment.addresses == attachment.addresses)
    }

    /// Every attachment, in the order of their keys.
    pub fn attached(&self) -> impl Iterator<Item = &Attachment> {
        self.live().map(|(_, record)| &record.attachment)
    }

    /// All that is to be remembered over a restart.
    pub fn records(&self) -> &BTreeMap<Key, Record> {
        &self.records
    }

    /// The addresses of the pods of which more, or less, is known than their status says. Also of those that gave some back,
    /// or lost them to another, before their status ever showed it: who was told of such an address must be told that it is
    /// none any more.
    pub fn differing<'a>(&self, pods: impl Iterator<Item = &'a Target>) -> BTreeMap<NamespacedName, BTreeSet<IpAddr>> {
        let owners = self.owners();
        pods.filter(|pod| !pod.host_network)
            .filter_map(|pod| {
                let (mut now, mut given_back) = (pod.reported().clone(), BTreeSet::new());
                for record in self.of(pod).filter(|record| record.attachment.is_primary()) {
                    let addresses = if record.released { &mut given_back } else { &mut now };
                    addresses.extend(&record.attachment.addresses);
                }
                now.retain(|address| match owners.get(address) {
                    Some(owner) if *owner != pod.uid => {
                        given_back.insert(*address);
                        false
                    }
                    Some(_) => true,
                    None => !given_back.contains(address),
                });
                (now != *pod.reported() || !given_back.is_empty()).then(|| (pod.name.clone(), now))
            })
            .collect()
    }

    /// The addresses that a pod has given back on the network of Kubernetes.
    pub fn given_back<'a>(&'a self, pod: &'a Target) -> impl Iterator<Item = IpAddr> + 'a {
        let given_back = self.of(pod).filter(|record| record.released && record.attachment.is_primary());
        given_back.flat_map(|record| record.attachment.addresses.iter().copied())
    }

    /// What was given back of another network, and whose device is still there. Such an address may be used anew on another node,
    /// of which this one knows nothing: it is not nobody's for longer than that.
    pub fn leaving(&self, is_there: impl Fn(&str) -> bool) -> BTreeSet<IpAddr> {
        let leaving = self.records.values().filter(|Record { attachment, released, .. }| {
            *released && !attachment.is_primary() && attachment.device.as_deref().is_some_and(&is_there)
        });
        leaving.flat_map(|record| &record.attachment.addresses).copied().collect()
    }

    /// The uid of the pod that an address of the network of Kubernetes was attached to last.
    fn owners(&self) -> BTreeMap<IpAddr, &str> {
        let mut live: Vec<&Record> =
            self.live().map(|(_, record)| record).filter(|record| record.attachment.is_primary()).collect();
        live.sort_by_key(|record| record.sequence);
        let pairs = live.into_iter().map(|r| &r.attachment);
        pairs.flat_map(|a| a.addresses.iter().map(|address| (*address, a.uid.as_str()))).collect()
    }

    fn of<'a>(&'a self, pod: &'a Target) -> impl Iterator<Item = &'a Record> {
        self.records.values().filter(|record| record.attachment.is_of(pod))
    }

    fn live(&self) -> impl Iterator<Item = (&Key, &Record)> {
        self.records.iter().filter(|(_, record)| !record.released)
    }

    /// Whether the pod of an attachment that nobody knows has been attached again since: late news must not end that.
    fn is_attached_anew(&self, attachment: &Attachment) -> bool {
        self.live().any(|(_, r)| r.attachment.uid == attachment.uid && r.attachment.interface == attachment.interface)
    }
}

fn is_known(index: &Index, attachment: &Attachment) -> bool {
    index.pod(&attachment.pod).is_some_and(|pod| attachment.is_of(pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Indexed, Update};
    use k8s_openapi::api::core::v1 as core;
    use serde_json::json;

    fn ips(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|a| a.parse().unwrap()).collect()
    }

    fn attachment(pod: &str, container: &str, addresses: &[&str]) -> Attachment {
        Attachment {
            pod: NamespacedName::new("shop", pod),
            uid: format!("uid-{pod}"),
            container_id: container.into(),
            interface: "eth0".into(),
            network: None,
            device: Some(format!("veth-{container}")),
            mac: None,
            addresses: ips(addresses),
        }
    }

    /// Pods and the addresses that their status shows.
    fn index(pods: &[(&str, &[&str])]) -> Index {
        let mut index = Index::default();
        for (name, addresses) in pods {
            let addresses: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
            let pod: core::Pod = serde_json::from_value(json!({
                "metadata": { "namespace": "shop", "name": name, "uid": format!("uid-{name}") },
                "spec": { "containers": [] },
                "status": { "podIPs": addresses },
            }))
            .unwrap();
            index.update(Update::Target(pod.keep()));
        }
        index
    }

    fn settled(attachments: &Attachments, index: &Index) -> Settled {
        attachments.settled(index, 0, |_| false)
    }

    fn differing(attachments: &Attachments, index: &Index) -> Vec<(String, BTreeSet<IpAddr>)> {
        attachments.differing(index.pods()).into_iter().map(|(pod, addresses)| (pod.name, addresses)).collect()
    }

    #[test]
    fn an_address_counts_before_the_status_shows_it() {
        let mut attachments = Attachments::default();
        attachments.attach(attachment("a", "c1", &["10.0.0.1", "fd00::1"]));
        assert_eq!(differing(&attachments, &index(&[("a", &[])])), [("a".into(), ips(&["10.0.0.1", "fd00::1"]))]);
        assert!(differing(&attachments, &index(&[("a", &["10.0.0.1", "fd00::1"])])).is_empty());
        assert!(differing(&attachments, &index(&[("b", &[])])).is_empty());
    }

    #[test]
    fn a_released_address_does_not_count_though_the_status_shows_it() {
        let mut attachments = Attachments::default();
        let a = attachment("a", "c1", &["10.0.0.1"]);
        attachments.attach(a.clone());
        attachments.release(&a.key(), None);
        let shown = index(&[("a", &["10.0.0.1"])]);
        assert_eq!(differing(&attachments, &shown), [("a".into(), ips(&[]))]);
        // A new sandbox: the status still shows the old address.
        attachments.attach(attachment("a", "c2", &["10.0.0.2"]));
        assert_eq!(differing(&attachments, &shown), [("a".into(), ips(&["10.0.0.2"]))]);
        // And one more, which has the first address again.
        attachments.attach(attachment("a", "c3", &["10.0.0.1"]));
        assert_eq!(differing(&attachments, &shown), [("a".into(), ips(&["10.0.0.1"]))]);
        assert_eq!(attachments.attached().count(), 1, "of the same interface there is one at a time");
    }

    #[test]
    fn an_address_that_was_given_back_before_the_status_showed_it_is_said_to_be_none() {
        let mut attachments = Attachments::default();
        let a = attachment("a", "c1", &["10.0.0.1"]);
        attachments.attach(a.clone());
        attachments.release(&a.key(), None);
        assert_eq!(differing(&attachments, &index(&[("a", &[])])), [("a".into(), ips(&[]))]);
    }

    #[test]
    fn on_another_network_it_is_no_address_of_the_pods_status() {
        let mut attachments = Attachments::default();
        let elsewhere = |pod: &str, network: &str, address: &str| Attachment {
            interface: "net1".into(),
            network: Some(network.into()),
            ..attachment(pod, &format!("c-{pod}"), &[address])
        };
        attachments.attach(attachment("a", "c-a", &["10.0.0.1"]));
        attachments.attach(elsewhere("a", "storage", "10.30.0.1"));
        // Whoever has the same address there takes nothing from who has it here.
        attachments.attach(elsewhere("b", "backup", "10.0.0.1"));
        let shown = index(&[("a", &["10.0.0.1"]), ("b", &[])]);
        assert!(differing(&attachments, &shown).is_empty());
        // Each network's runtime says of its own what there is.
        attachments.keep_only(None, &[attachment("a", "c-a", &[]).key()].into());
        attachments.keep_only(Some("storage"), &BTreeSet::new());
        let live: Vec<_> = attachments.attached().map(|a| (&*a.pod.name, a.network.as_deref())).collect();
        assert_eq!(live, [("a", None), ("b", Some("backup"))]);
        assert!(differing(&attachments, &shown).is_empty());
        let pod = shown.pod(&NamespacedName::new("shop", "a")).unwrap();
        assert_eq!(attachments.given_back(pod).count(), 0);
        let leaving = |device: &str| attachments.leaving(|there| there == device);
        assert_eq!((leaving("veth-c-a"), leaving("veth-c-b")), (ips(&["10.30.0.1"]), ips(&[])));
        assert!(
            attachments.has_left(pod, "net1")
                && !attachments.has_left(pod, "eth0")
                && !attachments.has_left(pod, "net2")
        );
    }

    #[test]
    fn the_later_attachment_has_the_address() {
        let mut attachments = Attachments::default();
        attachments.attach(attachment("new", "c2", &["10.0.0.1"]));
        let shown = index(&[("new", &[]), ("old", &["10.0.0.1"])]);
        let expected = [("new".into(), ips(&["10.0.0.1"])), ("old".into(), ips(&[]))];
        assert_eq!(differing(&attachments, &shown), expected, "against a status");
        // The end of the old pod's sandbox was never told.
        let mut attachments = Attachments::default();
        attachments.attach(attachment("old", "z", &["10.0.0.1"]));
        attachments.attach(attachment("new", "a", &["10.0.0.1"]));
        assert_eq!(differing(&attachments, &shown), expected, "against an attachment");
        let restored = Attachments::restore(attachments.records().values().cloned());
        assert_eq!(differing(&restored, &shown), expected, "after a restart too");
        // Told at last, it changes nothing.
        attachments.release(&attachment("old", "z", &[]).key(), None);
        assert_eq!(differing(&attachments, &shown), expected);
    }

    #[test]
    fn the_end_of_an_attachment_from_before_the_gate() {
        let mut attachments = Attachments::default();
        let old = attachment("a", "c1", &["10.0.0.1"]);
        let shown = index(&[("a", &["10.0.0.1"])]);
        assert_eq!(attachments.release(&old.key(), None), 0);
        assert!(differing(&attachments, &shown).is_empty(), "nothing is known of it");
        assert_eq!(attachments.release(&old.key(), Some(old.clone())), 1);
        assert_eq!(differing(&attachments, &shown), [("a".into(), ips(&[]))]);
        // It comes late, and the pod has a new sandbox with the same address.
        let mut attachments = Attachments::default();
        attachments.attach(attachment("a", "c2", &["10.0.0.1"]));
        attachments.release(&old.key(), Some(old.clone()));
        assert!(differing(&attachments, &shown).is_empty());
    }

    #[test]
    fn what_ended_is_remembered_as_long_as_its_pod_is_there() {
        let mut attachments = Attachments::default();
        for (pod, container) in [("a", "c1"), ("b", "c2"), ("c", "c3")] {
            attachments.attach(attachment(pod, container, &[]));
        }
        attachments.keep_only(None, &[attachment("c", "c3", &[]).key()].into());
        attachments.forget_gone(&index(&[("a", &[])]));
        let known: Vec<_> = attachments.records().values().map(|r| (&*r.attachment.container_id, r.released)).collect();
        assert_eq!(known, [("c1", true), ("c3", false)]);
        // Nobody was there to be told that it ended; what has just come is of a pod that is not known yet.
        let mut restored = Attachments::restore(attachments.records().values().cloned());
        let before = restored.sequence();
        restored.attach(attachment("d", "c4", &[]));
        restored.forget_missed(&index(&[("a", &[])]), before);
        let known: Vec<_> = restored.records().values().map(|r| &*r.attachment.container_id).collect();
        assert_eq!(known, ["c1", "c4"]);
    }

    #[test]
    fn settled_is_whose_pod_is_known() {
        let mut attachments = Attachments::default();
        let (a, b) = (attachment("a", "c1", &[]), attachment("b", "c2", &[]));
        assert_eq!((attachments.attach(a.clone()), attachments.attach(b.clone())), (1, 2));
        assert_eq!(attachments.attach(a.clone()), 2, "nothing new");
        let some = index(&[("a", &[])]);
        assert!(attachments.awaits_a_pod(&some));
        assert_eq!(settled(&attachments, &some), Settled { revision: 2, attached: [a.key()].into() });
        let all = index(&[("a", &[]), ("b", &[])]);
        assert!(!attachments.awaits_a_pod(&all));
        assert_eq!(settled(&attachments, &all).attached.len(), 2);
        attachments.release(&b.key(), None);
        assert_eq!(settled(&attachments, &all), Settled { revision: 3, attached: [a.key()].into() });
        assert!(attachments.has(&a) && !attachments.has(&b));
        assert!(!attachments.has(&attachment("a", "c1", &["10.0.0.1"])));
    }
}
