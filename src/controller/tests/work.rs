//! Which work a change leaves: all that differs, and of the rest not much. The former is also a property, in `agreement`.

use super::objects::{allows, key};
use super::world::World;
use crate::controller::cluster::Work;
use serde_json::json;
use std::collections::BTreeSet;

fn world() -> World {
    let mut world = World::new(&["n1", "n2"]);
    world.group("web", json!({}));
    world.group("db", allows(&["web"]));
    world.group("idle", json!({}));
    world.binding("b", &["db"], "db");
    world.binding("w", &["web"], "web");
    world.binding("i", &["idle"], "idle");
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    world.pod("p2", "web", "n2", &["10.0.0.2"]);
    world.settle();
    world
}

fn groups(work: &BTreeSet<Work>) -> Vec<&str> {
    work.iter().filter_map(|w| if let Work::Group(g) = w { Some(g.name.as_str()) } else { None }).collect()
}

fn bindings(work: &BTreeSet<Work>) -> Vec<&str> {
    work.iter().filter_map(|w| if let Work::Binding(b) = w { Some(b.name.as_str()) } else { None }).collect()
}

#[test]
fn a_pod_concerns_its_groups_and_those_who_name_them() {
    let mut world = world();
    world.pod("p3", "web", "n1", &["10.0.0.3"]);
    let work = world.collect();
    assert_eq!((groups(&work), bindings(&work)), (vec!["db", "web"], vec!["w"]));
    assert_eq!(work.iter().filter(|w| matches!(w, Work::Slice(g, _) if g.name == "web")).count(), 1);
    world.pod("nobody", "none", "n1", &["10.0.0.4"]);
    assert!(world.collect().is_empty());
}

#[test]
fn a_member_on_another_node_concerns_the_remotes_of_its_rules() {
    let mut world = world();
    world.pod("p4", "db", "n2", &["10.0.0.4"]);
    let work = world.collect();
    assert_eq!((groups(&work), bindings(&work)), (vec!["db", "web"], vec!["b"]), "web's members are needed on n2 now");
    world.write();
    world.delete_pod(&key("p4"));
    assert_eq!(groups(&world.collect()), ["db", "web"], "and no more");
}

#[test]
fn a_group_that_comes_or_goes_concerns_those_who_name_it() {
    let mut world = world();
    world.binding("m", &["missing"], "x");
    world.group("user", allows(&["missing"]));
    world.settle();
    world.group("missing", json!({}));
    let work = world.collect();
    assert_eq!((groups(&work), bindings(&work)), (vec!["missing", "user"], vec!["m"]));
}

#[test]
fn a_report_concerns_what_it_speaks_of_differently() {
    let mut world = world();
    world.report("n1");
    assert!(world.collect().is_empty(), "nothing new");
    world.edit_report("n1", |status| status.groups[0].generation = 7);
    assert_eq!(groups(&world.collect()), ["db"]);
    world.edit_report("n1", |status| status.remotes[0].digest = "x".into());
    let work = world.collect();
    assert_eq!(groups(&work), ["db", "web"], "the remote, and who names it");
    assert!(bindings(&work).is_empty());
    world.edit_report("n1", |status| status.bindings.clear());
    assert_eq!(bindings(&world.collect()), ["b"]);
}

#[test]
fn a_nodes_standing_concerns_all_that_it_has_or_should_have() {
    let mut world = world();
    world.pod("p3", "idle", "n1", &["10.0.0.3"]);
    world.write();
    // "idle" is not in the report yet.
    world.report_with("n1", vec!["a bridge".into()]);
    let work = world.collect();
    assert_eq!((groups(&work), bindings(&work)), (vec!["db", "idle", "web"], vec!["b", "i"]));
    world.write();
    assert_eq!(world.enforced("idle").1, "Bypassed");
    world.boot("n1", "172.30.0.1");
    let work = world.collect();
    assert_eq!((groups(&work), bindings(&work)), (vec!["db", "idle", "web"], vec!["b", "i"]));
}

#[test]
fn a_new_leader_looks_at_everything() {
    let mut world = world();
    world.collect();
    let all = world.cluster.all_work();
    assert_eq!((groups(&all), bindings(&all)), (vec!["db", "idle", "web"], vec!["b", "i", "w"]));
    assert_eq!(all.iter().filter(|w| matches!(w, Work::Slice(..))).count(), world.slices.len());
    assert_eq!(world.slices.len(), 2);
}
