//! Which node a machine's connections are handed over to.
//!
//! PURE. Agents know what is on their node; where a machine went, is seen here.

use crate::api::ConnectionHandover;
use crate::index::{Index, Target, TargetKind, TargetName, name_of};
use crate::policy::NamespacedName;
use jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Where a machine went may be declared a moment later.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// So many departures are remembered.
const MAX_LEFT: usize = 4_000;

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
    /// A virtual machine of KubeVirt.
    Machine {
        /// Its namespace.
        namespace: String,
        /// Its uid.
        uid: String,
    },
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
pub struct Handovers {
    all: BTreeMap<String, Handover>,
    /// Who has left which node, the last one last.
    left: VecDeque<(Moved, String)>,
}

impl Moved {
    fn of(target: &Target) -> Option<Self> {
        let namespace = target.name.namespace.clone();
        let machine = target.machine.clone().map(|uid| Self::Machine { namespace, uid });
        machine.or_else(|| target.device.is_some().then(|| Self::Interface(target.name.clone())))
    }
}

impl Handovers {
    /// A target is this no more, and that now. Where a machine was, its connections may come from; of any other node nobody
    /// believes that it has some.
    pub fn note(&mut self, before: Option<&Target>, now: Option<&Target>) {
        let ended = now.filter(|target| target.finished);
        let stays = |was: &&Target| now.is_some_and(|is| !is.finished && is.node == was.node);
        let Some(left) = before.filter(|was| !stays(was)).or(ended) else { return };
        let departure = Moved::of(left).zip(left.node.clone());
        if let Some(departure) = departure.filter(|departure| !self.left.contains(departure)) {
            if self.left.len() == MAX_LEFT {
                self.left.pop_front();
            }
            self.left.push_back(departure);
        }
    }

    /// Forgets all that were seen.
    pub fn reset(&mut self) {
        self.all.clear();
    }

    /// Takes in one as the API server shows it.
    pub fn see(&mut self, object: &ConnectionHandover) -> String {
        let name = name_of(&object.metadata).name;
        let namespace = object.spec.namespace.clone();
        let handover = Handover {
            moved: match object.spec.virtual_machine_instance.clone() {
                Some(uid) => Moved::Machine { namespace, uid },
                None => {
                    let name = object.spec.network_interface.clone().unwrap_or_default();
                    Moved::Interface(NamespacedName { namespace, name })
                }
            },
            from: object.spec.node_name.clone(),
            to: object.spec.to_node.clone(),
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0).unwrap_or_default(),
        };
        self.all.insert(name.clone(), handover);
        name
    }

    /// One is gone.
    pub fn forget(&mut self, name: &str) {
        self.all.remove(name);
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.all.keys()
    }

    /// What is to be done about one, if it is still there.
    pub fn step(&self, name: &str, index: &Index, now: Timestamp) -> Option<Step> {
        let handover = self.all.get(name)?;
        let left = LIFETIME.checked_sub(now.duration_since(handover.created).unsigned_abs());
        Some(match (left, &handover.to) {
            (Some(left), Some(_)) => Step::Wait(left),
            (Some(left), None) => {
                let destination = destination(index, handover).filter(|_| self.was_there(index, handover));
                destination.map_or(Step::Wait(left.min(LOOK_AGAIN)), Step::Send)
            }
            (None, _) => Step::Delete,
        })
    }

    /// Whether the machine was on the node that says so.
    fn was_there(&self, index: &Index, Handover { moved, from, .. }: &Handover) -> bool {
        let there = |target: &Target| target.node.as_ref() == Some(from);
        let is = match moved {
            Moved::Machine { namespace, uid } => index.runners(namespace, uid).any(there),
            Moved::Interface(name) => index.target(&TargetName::network_interface(name.clone())).is_some_and(there),
        };
        is || self.left.iter().any(|(left, node)| left == moved && node == from)
    }
}

/// The node that the machine is on now: where another pod runs it; or where the interface is declared by now, or another one
/// that is the same machine's.
fn destination(index: &Index, handover: &Handover) -> Option<String> {
    let elsewhere = |node: &Option<String>| node.clone().filter(|node| *node != handover.from);
    let interface = match &handover.moved {
        Moved::Machine { namespace, uid } => {
            return index.runners(namespace, uid).find_map(|pod| elsewhere(&pod.node));
        }
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
    use crate::index::{Indexed, Update};
    use serde_json::json;

    /// What is there, and what n1 hands over of its machine.
    struct World(Index, Handovers);

    impl World {
        fn new(to: Option<&str>, of: &str, which: &str) -> Self {
            let mut spec = json!({ "nodeName": "n1", "namespace": "shop", of: which, "connections": [] });
            to.iter().for_each(|to| spec["toNode"] = json!(to));
            let mut handovers = Handovers::default();
            let object = json!({
                "apiVersion": "ringfence.io/v1alpha1", "kind": "ConnectionHandover", "spec": spec,
                "metadata": { "name": "db.x", "creationTimestamp": "1970-01-01T00:01:40Z" },
            });
            assert_eq!(handovers.see(&serde_json::from_value(object).unwrap()), "db.x");
            Self(Index::default(), handovers)
        }

        fn see(&mut self, target: Target) -> Option<Step> {
            self.1.note(self.0.target(&target.key()), Some(&target));
            self.0.update(Update::Target(target));
            self.step(101)
        }

        fn declare(&mut self, name: &str, node: &str, mac: &str) -> Option<Step> {
            let interface: NetworkInterface = serde_json::from_value(json!({
                "apiVersion": "ringfence.io/v1alpha1", "kind": "NetworkInterface",
                "metadata": { "name": name, "namespace": "shop", "uid": name, "generation": 1 },
                "spec": { "nodeName": node, "device": "tap0", "macAddress": mac, "addresses": ["10.0.0.2"] },
            }))
            .unwrap();
            self.see(Target::from(&interface))
        }

        fn launch(&mut self, name: &str, node: &str, machine: &str, phase: &str) -> Option<Step> {
            let owner = json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "controller": true, "name": "db", "uid": machine,
            });
            let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
                "metadata": { "namespace": "shop", "name": name, "uid": name, "ownerReferences": [owner] },
                "spec": { "nodeName": node, "containers": [] },
                "status": { "phase": phase },
            }))
            .unwrap();
            self.see(pod.keep())
        }

        fn step(&self, now: i64) -> Option<Step> {
            self.1.step("db.x", &self.0, Timestamp::from_second(now).unwrap())
        }
    }

    fn send(node: &str) -> Option<Step> {
        Some(Step::Send(node.to_owned()))
    }

    const WAIT: Option<Step> = Some(Step::Wait(LOOK_AGAIN));

    #[test]
    fn connections_go_where_the_machine_is_declared_to_be() {
        let mac = "52:54:00:00:00:01";
        let mut world = World::new(None, "networkInterface", "db");
        assert_eq!(world.declare("db", "n1", mac), WAIT, "nowhere yet");
        assert_eq!(world.declare("other", "n3", "52:54:00:00:00:02"), WAIT, "another machine, with its address");
        assert_eq!(world.declare("db-n2", "n2", mac), send("n2"), "declared a second time");
        assert_eq!(world.declare("db", "n4", mac), send("n4"), "declared for another node");
    }

    #[test]
    fn connections_go_where_another_pod_runs_the_machine() {
        let mut world = World::new(None, "virtualMachineInstance", "vm");
        assert_eq!(world.launch("source", "n1", "vm", "Running"), WAIT);
        assert_eq!(world.launch("other", "n3", "another", "Running"), WAIT);
        assert_eq!(world.launch("failed", "n4", "vm", "Failed"), WAIT);
        assert_eq!(world.launch("target", "n2", "vm", "Running"), send("n2"));
        assert_eq!(world.launch("source", "n1", "vm", "Succeeded"), send("n2"));
    }

    #[test]
    fn a_node_on_which_a_machine_never_was_has_no_connections_of_it() {
        let mut world = World::new(None, "networkInterface", "db");
        assert_eq!(world.declare("db", "n2", "52:54:00:00:00:01"), WAIT);
        assert_eq!(world.declare("db", "n3", "52:54:00:00:00:01"), WAIT);
        let mut world = World::new(None, "virtualMachineInstance", "vm");
        assert_eq!(world.launch("another", "n1", "another", "Running"), WAIT);
        assert_eq!(world.launch("target", "n2", "vm", "Running"), WAIT);
        // A controller that starts sees that it was there.
        assert_eq!(world.launch("source", "n1", "vm", "Succeeded"), send("n2"));
        // It remembers as many departures as it can hold, each once.
        let mut target = world.0.pods().next().unwrap().clone();
        for number in 0..2 * MAX_LEFT {
            target.machine = Some(format!("vm{}", number / 2));
            world.1.note(Some(&target), None);
        }
        assert_eq!((world.1.left.len(), world.step(101)), (MAX_LEFT, WAIT));
    }

    #[test]
    fn what_was_handed_over_is_deleted_after_a_minute() {
        let sent = World::new(Some("n2"), "networkInterface", "db");
        assert_eq!(sent.step(110), Some(Step::Wait(Duration::from_secs(50))));
        assert_eq!(sent.step(161), Some(Step::Delete));
        assert_eq!(World::new(None, "networkInterface", "db").step(161), Some(Step::Delete));
        assert_eq!(Handovers::default().step("db.x", &sent.0, Timestamp::UNIX_EPOCH), None);
    }
}
