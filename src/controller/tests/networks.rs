//! Secondary networks: a group on one interface of a pod is not on another, and what rules do not reach is not called enforced.

use super::objects::{allows, key, mk_binding, mk_pod};
use super::world::World;
use crate::agent::networks::{Attached, PodNetworks};
use crate::api::{AttachmentState, SecurityGroupBinding};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

/// A pod with a second interface on `shop/storage`.
fn two_interfaces(node: &str) -> Pod {
    let mut pod = mk_pod("db", "db", Some(node), &["10.0.0.1"]);
    let status = json!([
        {"name": "pods", "interface": "eth0", "default": true},
        // Whatever it says of addresses.
        {"name": "shop/storage", "interface": "net1", "ips": ["10.0.0.9"]},
    ]);
    let status = ("k8s.v1.cni.cncf.io/network-status".to_owned(), status.to_string());
    pod.metadata.annotations = Some([status].into());
    pod
}

/// `front` on the pod's interface on the network of Kubernetes, `back` on the one on `storage`, which others let in.
fn world() -> World {
    let mut world = World::new(&["n1", "n2"]);
    world.binding("front", &["front"], "db");
    let mut back = serde_json::to_value(mk_binding("back", &["back"], json!({"matchLabels": {"app": "db"}}))).unwrap();
    back["spec"]["networks"] = json!(["storage"]);
    world.put_binding(serde_json::from_value::<SecurityGroupBinding>(back).unwrap());
    for group in ["front", "back"] {
        world.group(group, json!({}));
    }
    world.group("backup", allows(&["back"]));
    world.binding("backup", &["backup"], "backup");
    world.pod("backup", "backup", "n2", &["10.0.2.1"]);
    world.put_pod(two_interfaces("n1"));
    world
}

/// The agent of n1 looks at what the CNI plugins said.
fn look(world: &mut World, uid: &str, state: AttachmentState, address: Option<&str>) {
    let addresses = address.iter().map(|address| address.parse().unwrap()).collect();
    let attached = Attached { state, message: "so it is".into(), addresses, unfiltered: false };
    let networks = [(key("storage"), attached)].into();
    let networks = PodNetworks { node: "n1".into(), uid: uid.into(), networks };
    world.agents.get_mut("n1").unwrap().state.set_networks(0, [(key("db"), networks)].into(), |_| true);
}

fn published(world: &World, group: &str) -> Vec<String> {
    let members = world.slices.values().filter(|s| s.spec.group == group).flat_map(|s| &s.spec.members);
    members.flat_map(|m| m.addresses.iter().map(|a| format!("{} {a}", m.target))).collect()
}

fn enforced(world: &mut World, binding: &str) -> (String, String) {
    // One round for what the node says, one for what others make of it.
    world.settle();
    world.settle();
    world.binding_enforced(binding)
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn s15_groups_of_each_interface_are_its_own() {
    let mut world = world();
    look(&mut world, "uid-db", AttachmentState::Guarded, Some("10.30.0.1"));
    assert_eq!(enforced(&mut world, "back"), is("True", "Enforced"));
    assert_eq!(world.binding_enforced("front"), is("True", "Enforced"));
    assert_eq!(published(&world, "front"), ["pod/db 10.0.0.1"]);
    assert_eq!(published(&world, "back"), ["pod/db@shop/storage 10.30.0.1"]);
    assert_eq!(world.enforced("backup"), is("True", "Enforced"));
    let guards = &world.agents["n1"].kernel.ruleset.guards;
    let chains = ["10.0.0.1", "10.30.0.1"].map(|address| &guards[&address.parse().unwrap()].chains);
    assert_eq!(guards.len(), 2);
    assert_eq!(chains[0], chains[1], "the same rules");
    world.group("back", json!({"ingress": [{"protocol": "TCP", "remote": {"cidrs": ["10.30.0.0/16"]}}]}));
    assert_eq!(enforced(&mut world, "back"), is("True", "Enforced"));
    let guards = &world.agents["n1"].kernel.ruleset.guards;
    let chains = ["10.0.0.1", "10.30.0.1"].map(|address| &guards[&address.parse().unwrap()].chains);
    assert_ne!(chains[0], chains[1]);
}

#[test]
fn s15_what_rules_do_not_reach_is_not_enforced() {
    let mut world = world();
    assert_eq!(enforced(&mut world, "back"), is("False", "Bypassed"), "nobody has looked yet");
    look(&mut world, "uid-db", AttachmentState::Bypassing, None);
    assert_eq!(enforced(&mut world, "back"), is("False", "Bypassed"));
    assert_eq!(world.enforced("back"), is("False", "Bypassed"));
    let (.., message) = world.binding_condition("back", "Enforced");
    assert_eq!(message, "traffic does not pass the rules on: n1 (shop/db on shop/storage: so it is)");
    assert_eq!(world.binding_enforced("front"), is("True", "Enforced"), "the other interface is not concerned");
    look(&mut world, "uid-db", AttachmentState::Closed, Some("10.30.0.1"));
    assert_eq!(enforced(&mut world, "back"), is("False", "Closed"));
    assert_eq!(world.enforced("back"), is("False", "Closed"));
    assert!(world.agents["n1"].kernel.ruleset.guards.contains_key(&"10.30.0.1".parse().unwrap()), "rules judge it");
    look(&mut world, "another", AttachmentState::Guarded, Some("10.30.0.1"));
    assert_eq!(enforced(&mut world, "back"), is("False", "Bypassed"), "that was another pod of the same name");
    assert_eq!(published(&world, "back"), [""; 0]);
    look(&mut world, "uid-db", AttachmentState::Guarded, Some("10.30.0.1"));
    assert_eq!(enforced(&mut world, "back"), is("True", "Enforced"));
}

#[test]
fn s15_a_node_that_does_not_know_of_an_interface_is_behind() {
    let mut world = world();
    world.pods.get_mut(&key("db")).unwrap().metadata.annotations = None;
    world.settle();
    // The API server shows the annotation, and the agent has not seen it.
    world.put_pod(two_interfaces("n1"));
    assert_eq!(world.binding_enforced("back"), is("False", "Pending"));
}

#[test]
fn s9_a_node_is_believed_about_its_own_pods() {
    let mut world = world();
    look(&mut world, "uid-db", AttachmentState::Guarded, Some("10.30.0.1"));
    world.settle();
    world.settle();
    let said = world.reports["n1"].status.clone().unwrap().networks;
    world.edit_report("n2", |status| {
        status.networks = said;
        status.networks[0].addresses = vec!["10.0.9.9".parse().unwrap()];
    });
    world.write();
    assert_eq!(published(&world, "back"), ["pod/db@shop/storage 10.30.0.1"]);
    world.edit_report("n1", |status| status.networks.clear());
    world.write();
    assert_eq!(published(&world, "back"), [""; 0]);
}
