//! What is said of network interfaces, and of what selects them.

use super::objects::{key, mk_binding, mk_group, mk_node, mk_pod};
use super::world::NOW;
use crate::api::{NetworkInterface, NodeEnforcement, SecurityGroupBinding};
use crate::controller::cluster::{Cluster, Work};
use crate::controller::feeds::Tracked;
use crate::controller::{status, truth};
use crate::index::Update;
use serde_json::{Value, json};

fn interface(name: &str, addresses: &[&str]) -> NetworkInterface {
    serde_json::from_value(json!({
        "apiVersion": "ringfence.io/v1alpha1",
        "kind": "NetworkInterface",
        "metadata": { "namespace": "shop", "name": name, "uid": name, "generation": 2, "labels": { "app": "db" } },
        "spec": { "nodeName": "n1", "device": "tap0", "macAddress": "52:54:00:00:00:01", "addresses": addresses },
    }))
    .unwrap()
}

fn report(generation: i64, state: &str) -> NodeEnforcement {
    let said = json!({
        "namespace": "shop", "name": "vm", "uid": "vm", "generation": generation, "state": state, "message": "so it is",
    });
    serde_json::from_value(json!({
        "apiVersion": "ringfence.io/v1alpha1", "kind": "NodeEnforcement", "metadata": { "name": "n1" }, "spec": {},
        "status": { "bootID": "boot", "networkInterfaces": [said] },
    }))
    .unwrap()
}

fn take<K: Tracked>(cluster: &mut Cluster, object: &K) {
    object.see(cluster);
    cluster.update(K::one(object.keep()));
}

/// A group on an interface of a node.
fn scene() -> Cluster {
    let mut cluster = Cluster::default();
    take(&mut cluster, &mk_group("db", json!({})));
    let mut binding: Value = serde_json::to_value(mk_binding("db", &["db"], json!({}))).unwrap();
    binding["spec"]["target"] = json!({ "networkInterfaceSelector": { "matchLabels": { "app": "db" } } });
    take(&mut cluster, &serde_json::from_value::<SecurityGroupBinding>(binding).unwrap());
    take(&mut cluster, &interface("vm", &["10.20.0.5", "fe80::5"]));
    cluster.set_node("n1", Some(&mk_node("n1", "boot", "172.30.0.1")));
    cluster
}

fn said(cluster: &Cluster, type_: &str) -> (String, String) {
    let status = status::of_interface(cluster, &key("vm"), &Default::default(), NOW).unwrap();
    let condition = status.conditions.into_iter().find(|c| c.type_ == type_).unwrap();
    (condition.status, condition.reason)
}

fn is(cluster: &Cluster, type_: &str, status: &str, reason: &str) {
    assert_eq!(said(cluster, type_), (status.to_owned(), reason.to_owned()));
}

#[test]
fn it_is_a_member_and_published_as_one() {
    let cluster = scene();
    let (_, slice) = cluster
        .all_work()
        .into_iter()
        .find_map(|work| match work {
            Work::Slice(group, name) => Some((group, name)),
            _ => None,
        })
        .unwrap();
    let members = cluster.wanted_slice(&key("db"), &slice).unwrap().members;
    assert_eq!(
        serde_json::to_value(members).unwrap(),
        json!([{ "target": "nic/vm", "addresses": ["10.20.0.5"], "node": "n1" }])
    );
    let status = status::of_interface(&cluster, &key("vm"), &Default::default(), NOW).unwrap();
    assert_eq!((status.groups.as_deref(), status.observed_generation), (Some("db"), Some(2)));
}

#[test]
fn s15_it_is_ready_when_its_node_says_so_of_this_revision() {
    let mut cluster = scene();
    is(&cluster, "Ready", "False", "Pending");
    cluster.set_report("n1", Some(report(1, "Watched")));
    is(&cluster, "Ready", "False", "Pending");
    cluster.take_work();
    cluster.set_report("n1", Some(report(2, "Watched")));
    assert!(cluster.take_work().contains(&Work::Interface(key("vm"))));
    is(&cluster, "Ready", "True", "Watched");
    cluster.set_report("n1", Some(report(2, "WhatALaterAgentMaySay")));
    is(&cluster, "Ready", "False", "Unknown");
    cluster.set_node("n1", None);
    is(&cluster, "Ready", "False", "NodeNotFound");
}

#[test]
fn s15_a_bridge_that_goes_around_the_rules_shows_on_all_that_select_it() {
    let mut cluster = scene();
    cluster.set_report("n1", Some(report(2, "BridgeNotFiltered")));
    is(&cluster, "Ready", "False", "BridgeNotFiltered");
    assert_eq!(truth::of_group(&cluster, &key("db")).0.reason, "Bypassed");
    assert_eq!(truth::of_binding(&cluster, &key("db")).0.reason, "Bypassed");
    let work = cluster.take_work();
    assert!(work.contains(&Work::Group(key("db"))) && work.contains(&Work::Binding(key("db"))));
    cluster.set_report("n1", Some(report(2, "Closed")));
    is(&cluster, "Ready", "False", "Closed");
    assert_eq!(truth::of_group(&cluster, &key("db")).0.reason, "Closed");
    assert_eq!(truth::of_binding(&cluster, &key("db")).0.reason, "Closed");
}

#[test]
fn s10_addresses_of_others_are_not_its_own() {
    let mut cluster = scene();
    is(&cluster, "Accepted", "True", "Accepted");
    take(&mut cluster, &mk_pod("web", "web", Some("n1"), &["10.20.0.5"]));
    is(&cluster, "Accepted", "False", "AddressConflict");
    take(&mut cluster, &interface("vm", &["172.30.0.1"]));
    is(&cluster, "Accepted", "False", "AddressReserved");
}

/// While it migrates, a machine has an interface on each of two nodes.
#[test]
fn s10_a_machine_takes_its_address_along() {
    let mut cluster = scene();
    let mut target = interface("target", &["10.20.0.5"]);
    let accepted = |cluster: &mut Cluster, target: &NetworkInterface| {
        take(cluster, target);
        let status = status::of_interface(cluster, &key("vm"), &Default::default(), NOW).unwrap();
        status.conditions.into_iter().find(|c| c.type_ == "Accepted").unwrap().reason
    };
    assert_eq!(accepted(&mut cluster, &target), "AddressConflict", "two of one node are two");
    target.spec.node_name = "n2".into();
    assert_eq!(accepted(&mut cluster, &target), "Accepted");
    target.spec.mac_address = "52:54:00:00:00:02".into();
    assert_eq!(accepted(&mut cluster, &target), "AddressConflict", "another on the link is another");
    target.spec.mac_address = "52:54:00:00:00:01".into();
    assert_eq!(accepted(&mut cluster, &target), "Accepted");
    let mut elsewhere = target.clone();
    elsewhere.metadata.namespace = Some("another".into());
    elsewhere.spec.node_name = "n3".into();
    assert_eq!(accepted(&mut cluster, &elsewhere), "AddressConflict", "whoever writes there has no say here");
}

#[test]
fn one_that_nothing_selects_is_told_of_conflicts_too_and_is_written_once() {
    let mut cluster = scene();
    cluster.update(Update::NoBinding(key("db")));
    let status = |cluster: &Cluster, before| status::of_interface(cluster, &key("vm"), &before, NOW).unwrap();
    let written = status(&cluster, Default::default());
    assert_eq!(written.groups.as_deref(), Some(""), "a patch takes nothing away that it does not mention");
    assert_eq!(status(&cluster, written.clone()), written);
    cluster.take_work();
    take(&mut cluster, &mk_pod("web", "web", Some("n1"), &["10.20.0.5"]));
    assert!(cluster.take_work().contains(&Work::Interface(key("vm"))));
    cluster.set_service_networks(vec!["10.20.0.0/16".parse().unwrap()]);
    assert!(cluster.take_work().contains(&Work::Interface(key("vm"))));
}
