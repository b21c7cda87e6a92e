//! Virtual machines of KubeVirt: a machine is right at every moment of its migration, whichever pods run it.

use super::objects::{allows, key, mk_binding, mk_pod};
use super::world::World;
use crate::api::SecurityGroupBinding;
use crate::index::{Machine, MachineSource, Update};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A pod that runs the machine `db`.
fn launcher(pod: &str, node: &str, address: &str) -> Pod {
    let mut launcher = mk_pod(pod, "db", Some(node), &[address]);
    let owner = json!([{
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "db", "uid": "vmi", "controller": true,
    }]);
    launcher.metadata.owner_references = Some(serde_json::from_value(owner).unwrap());
    launcher
}

fn labelled(app: &str) -> Update {
    let labels = Arc::new(BTreeMap::from([("app".to_owned(), app.to_owned())]));
    Update::Machine(MachineSource(0), Machine { uid: "vmi".into(), labels })
}

/// A machine on n1 that is a member of a group, which a pod on n3 lets in.
fn world() -> World {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let mut binding = serde_json::to_value(mk_binding("db", &["db"], json!({}))).unwrap();
    binding["spec"]["target"] = json!({ "virtualMachineSelector": { "matchLabels": { "app": "db" } } });
    world.put_binding(serde_json::from_value::<SecurityGroupBinding>(binding).unwrap());
    world.group("db", json!({}));
    world.group("backup", allows(&["db"]));
    world.binding("backup", &["backup"], "backup");
    world.pod("backup", "backup", "n3", &["10.0.3.1"]);
    world.put_pod(launcher("source", "n1", "10.0.1.1"));
    world
}

fn published(world: &World) -> Vec<String> {
    let members = world.slices.values().filter(|s| s.spec.group == "db").flat_map(|s| &s.spec.members);
    members.flat_map(|m| m.addresses.iter().map(|a| format!("{} {a}", m.target))).collect()
}

fn assert_enforced(world: &mut World) {
    world.settle();
    let enforced = ("True".to_owned(), "Enforced".to_owned());
    assert_eq!((world.enforced("db"), world.binding_enforced("db")), (enforced.clone(), enforced.clone()));
    assert_eq!(world.enforced("backup"), enforced);
}

fn migrate(target: &str) {
    let mut world = world();
    assert_enforced(&mut world);
    world.put_pod(launcher("target", "n2", target));
    assert_enforced(&mut world);
    assert_eq!(published(&world), ["pod/source 10.0.1.1".to_owned(), format!("pod/target {target}")]);
    assert_eq!(world.groups[&key("db")].status.as_ref().unwrap().members, Some(2));

    let mut finished = launcher("source", "n1", "10.0.1.1");
    finished.status.as_mut().unwrap().phase = Some("Succeeded".into());
    world.put_pod(finished);
    assert_enforced(&mut world);
    assert_eq!(published(&world), [format!("pod/target {target}")]);
    world.delete_pod(&key("source"));
    assert_enforced(&mut world);
    assert_eq!(published(&world), [format!("pod/target {target}")]);
    let address = target.parse().unwrap();
    assert!(world.agents["n2"].kernel.ruleset.guards.contains_key(&address));
}

#[test]
fn s10_a_machine_that_migrates_gets_another_address() {
    migrate("10.0.2.1");
}

#[test]
fn s10_a_machine_that_migrates_takes_its_address_along() {
    migrate("10.0.1.1");
}

#[test]
fn s15_a_label_of_a_machine_counts_where_its_node_has_seen_it() {
    let mut world = world();
    assert_enforced(&mut world);
    world.cluster.update(labelled("other"));
    assert_eq!(world.binding_enforced("db"), ("False".to_owned(), "Pending".to_owned()));
    assert_eq!(published(&world), [""; 0]);
    world.agents.get_mut("n1").unwrap().state.index.update(labelled("other"));
    world.settle();
    assert_eq!(world.binding_enforced("db"), ("True".to_owned(), "Unused".to_owned()));
    assert!(world.agents["n1"].kernel.ruleset.guards.is_empty());
}
