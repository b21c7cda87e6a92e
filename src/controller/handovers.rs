//! Which node a machine's connections are handed over to.
//!
//! PURE. Agents know what is on their node; where a machine went, is seen here.

use crate::api::ConnectionHandover;
use crate::index::{Index, TargetKind, TargetName, name_of};
use crate::policy::NamespacedName;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Where a machine went may be declared a moment later.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// After so long nobody uses what was handed over.
pub const LIFETIME: Duration = Duration::from_mins(1);

/// What one node hands over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// What left it.
    pub moved: Moved,
    /// The node.
    pub from: String,
    /// The node that it is for, if that was said.
    pub to: Option<String>,
    /// When it was written.
    pub created: Timestamp,
}

/// A machine that moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moved {
    /// By the interface that is declared for it.
    Interface(NamespacedName),
    /// A virtual machine of KubeVirt, by its uid.
    Machine(String),
}

/// What is to be done about one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// To say which node it is for.
    Send(String),
    /// To wait until it is of no use any more.
    Wait(Duration),
    /// To delete it.
    Delete,
}

/// All that there are.
#[derive(Debug, Default)]
pub struct Handovers(BTreeMap<String, Handover>);

impl Handovers {
    /// Takes in one as the API server shows it.
    pub fn see(&mut self, object: &ConnectionHandover) -> String {
        let name = name_of(&object.metadata).name;
        let interface = || {
            let name = object.spec.network_interface.as_deref().unwrap_or_default();
            Moved::Interface(NamespacedName::new(&object.spec.namespace, name))
        };
        let handover = Handover {
            moved: object.spec.virtual_machine_instance.clone().map_or_else(interface, Moved::Machine),
            from: object.spec.node_name.clone(),
            to: object.spec.to_node.clone(),
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0).unwrap_or_default(),
        };
        self.0.insert(name.clone(), handover);
        name
    }

    /// One is gone.
    pub fn forget(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// What is to be done about one, if it is still there.
    pub fn step(&self, name: &str, index: &Index, now: Timestamp) -> Option<Step> {
        let handover = self.0.get(name)?;
        let left = LIFETIME.checked_sub(now.duration_since(handover.created).unsigned_abs());
        Some(match (left, &handover.to) {
            (Some(left), Some(_)) => Step::Wait(left),
            (Some(left), None) => destination(index, handover).map_or(Step::Wait(left.min(LOOK_AGAIN)), Step::Send),
            (None, _) => Step::Delete,
        })
    }
}

/// The node that the machine is on now: where another pod runs it; or where the interface is declared by now, or another one
/// that is the same machine's.
fn destination(index: &Index, handover: &Handover) -> Option<String> {
    let elsewhere = |node: &Option<String>| node.clone().filter(|node| *node != handover.from);
    let interface = match &handover.moved {
        Moved::Machine(uid) => return index.runners(uid).find_map(|pod| elsewhere(&pod.node)),
        Moved::Interface(interface) => index.target(&TargetName::network_interface(interface.clone()))?,
    };
    elsewhere(&interface.node).or_else(|| {
        let all = interface.claimed().iter().flat_map(|address| index.claimants(*address));
        let same = all.filter(|name| name.kind == TargetKind::NetworkInterface).filter_map(|name| index.target(name));
        same.filter(|other| interface.is_machine_of(other)).find_map(|other| elsewhere(&other.node))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::NetworkInterface;
    use crate::index::{Indexed, Target, Update};
    use serde_json::json;

    fn declare(index: &mut Index, name: &str, node: &str, mac: &str) {
        let interface: NetworkInterface = serde_json::from_value(json!({
            "apiVersion": "ringfence.io/v1alpha1", "kind": "NetworkInterface",
            "metadata": { "name": name, "namespace": "shop", "uid": name, "generation": 1 },
            "spec": { "nodeName": node, "device": "tap0", "macAddress": mac, "addresses": ["10.0.0.2"] },
        }))
        .unwrap();
        index.apply_target(Target::from(&interface));
    }

    fn handovers(to: Option<&str>) -> Handovers {
        of(json!({ "nodeName": "n1", "namespace": "shop", "networkInterface": "db", "connections": [] }), to)
    }

    fn of(mut spec: serde_json::Value, to: Option<&str>) -> Handovers {
        to.iter().for_each(|to| spec["toNode"] = json!(to));
        let mut handovers = Handovers::default();
        let object = json!({
            "apiVersion": "ringfence.io/v1alpha1", "kind": "ConnectionHandover", "spec": spec,
            "metadata": { "name": "db.x", "creationTimestamp": "1970-01-01T00:01:40Z" },
        });
        assert_eq!(handovers.see(&serde_json::from_value(object).unwrap()), "db.x");
        handovers
    }

    fn step(index: &Index, to: Option<&str>, now: i64) -> Option<Step> {
        handovers(to).step("db.x", index, Timestamp::from_second(now).unwrap())
    }

    #[test]
    fn connections_go_where_the_machine_is_declared_to_be() {
        let mac = "52:54:00:00:00:01";
        let mut index = Index::default();
        declare(&mut index, "db", "n1", mac);
        assert_eq!(step(&index, None, 101), Some(Step::Wait(Duration::from_secs(1))), "nowhere yet");
        declare(&mut index, "other", "n3", "52:54:00:00:00:02");
        assert_eq!(step(&index, None, 101), Some(Step::Wait(LOOK_AGAIN)), "another machine, with its address");
        declare(&mut index, "db-n2", "n2", mac);
        assert_eq!(step(&index, None, 101), Some(Step::Send("n2".to_owned())), "declared a second time");
        declare(&mut index, "db", "n4", mac);
        assert_eq!(step(&index, None, 101), Some(Step::Send("n4".to_owned())), "declared for another node");
    }

    #[test]
    fn connections_go_where_another_pod_runs_the_machine() {
        let spec = json!({ "nodeName": "n1", "namespace": "shop", "virtualMachineInstance": "vm", "connections": [] });
        let handovers = of(spec, None);
        let mut index = Index::default();
        let mut launch = |name: &str, node: &str, machine: &str, phase: &str| {
            let owner = json!({ "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "controller": true,
                "name": "db", "uid": machine });
            let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
                "metadata": { "namespace": "shop", "name": name, "uid": name, "ownerReferences": [owner] },
                "spec": { "nodeName": node, "containers": [] },
                "status": { "phase": phase },
            }))
            .unwrap();
            index.update(Update::Target(pod.keep()));
            handovers.step("db.x", &index, Timestamp::from_second(101).unwrap())
        };
        assert_eq!(launch("source", "n1", "vm", "Running"), Some(Step::Wait(LOOK_AGAIN)));
        assert_eq!(launch("other", "n3", "another", "Running"), Some(Step::Wait(LOOK_AGAIN)));
        assert_eq!(launch("failed", "n4", "vm", "Failed"), Some(Step::Wait(LOOK_AGAIN)));
        assert_eq!(launch("target", "n2", "vm", "Running"), Some(Step::Send("n2".to_owned())));
        assert_eq!(launch("source", "n1", "vm", "Succeeded"), Some(Step::Send("n2".to_owned())));
    }

    #[test]
    fn what_was_handed_over_is_deleted_after_a_minute() {
        let index = Index::default();
        assert_eq!(step(&index, Some("n2"), 110), Some(Step::Wait(Duration::from_secs(50))));
        assert_eq!(step(&index, Some("n2"), 161), Some(Step::Delete));
        assert_eq!(step(&index, None, 161), Some(Step::Delete));
        assert_eq!(Handovers::default().step("db.x", &index, Timestamp::UNIX_EPOCH), None);
    }
}
