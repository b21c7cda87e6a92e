//! What statuses say, and that they say it only when it is news.

use super::objects::{allows, from_group, key, mk_pod};
use super::world::{NOW, World};
use crate::api::FINALIZER;
use crate::controller::cluster::{Cluster, Seen, Work};
use crate::controller::feeds::{Tracked, take_list};
use crate::controller::status;
use crate::controller::writers::{Write, binding_write, group_write};
use crate::index::{Indexed, Update};
use crate::policy::NamespacedName;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

fn group_patch(cluster: &Cluster, name: &NamespacedName) -> Option<(&'static str, Value)> {
    Some(match group_write(cluster, name, NOW)? {
        Write::Finalizers(patch) => ("finalizers", patch),
        Write::Status(patch) => ("status", patch),
    })
}

#[test]
fn s14_the_finalizer_comes_first_and_spares_those_of_others() {
    let mut world = World::new(&["n1"]);
    world.group("db", json!({}));
    let group = world.groups.get_mut(&key("db")).unwrap();
    group.metadata.finalizers = Some(vec!["example.com/theirs".into()]);
    group.see(&mut world.cluster);
    let (what, patch) = group_patch(&world.cluster, &key("db")).unwrap();
    assert_eq!(what, "finalizers");
    assert_eq!(patch["metadata"]["finalizers"], json!(["example.com/theirs", FINALIZER]));
    assert_eq!(patch["metadata"]["resourceVersion"], json!(world.groups[&key("db")].metadata.resource_version));

    world.write();
    assert_eq!(world.writes, [Work::Group(key("db")), Work::Group(key("db"))], "the finalizer and the status, no more");
    assert_eq!(group_patch(&world.cluster, &key("db")), None);

    world.delete_group(&key("db"));
    let (what, patch) = group_patch(&world.cluster, &key("db")).unwrap();
    assert_eq!((what, &patch["metadata"]["finalizers"]), ("finalizers", &json!(["example.com/theirs"])));
}

#[test]
fn s14_a_group_in_use_stays_enforced_and_names_its_users() {
    let mut world = World::new(&["n1"]);
    world.group("db", allows(&["db"]));
    world.group("web", allows(&["db"]));
    world.binding("b", &["db"], "db");
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    world.settle();
    world.delete_group(&key("db"));
    world.settle();
    assert!(world.groups.contains_key(&key("db")));
    assert_eq!(world.enforced("db").0, "True");
    let (status, reason, message) = world.group_condition("db", "DeletionBlocked");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "InUse"));
    assert!(message.contains("bindings shop/b") && message.contains("groups shop/web"), "{message}");

    world.delete_binding(&key("b"));
    world.write();
    let (_, _, message) = world.group_condition("db", "DeletionBlocked");
    assert!(!message.contains("shop/b") && message.contains("shop/web"), "{message}");
    world.group("web", json!({}));
    world.write();
    assert!(!world.groups.contains_key(&key("db")), "nobody uses it any more");
}

#[test]
fn s14_groups_deleted_together_go_together() {
    let mut world = World::new(&["n1"]);
    world.group("a", allows(&["b"]));
    world.group("b", allows(&["a"]));
    world.binding("x", &["a"], "web");
    world.write();
    world.delete_group(&key("a"));
    world.delete_group(&key("b"));
    world.write();
    assert_eq!(world.groups.len(), 2, "a is bound, and a's rules name b");
    world.delete_binding(&key("x"));
    world.write();
    assert!(world.groups.is_empty());
}

#[test]
fn s6_what_is_missing_is_named() {
    let mut world = World::new(&["n1"]);
    world.group("db", allows(&["bank/gone", "web"]));
    world.group("web", json!({}));
    world.binding("b", &["db", "lost"], "db");
    world.write();
    let (status, reason, message) = world.group_condition("db", "ResolvedRefs");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "GroupNotFound"));
    assert!(message.ends_with(": bank/gone"), "{message}");
    let (status, reason, message) = world.binding_condition("b", "ResolvedRefs");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "GroupNotFound"));
    assert!(message.ends_with(": lost"), "{message}");
    assert_eq!(world.binding_condition("b", "Accepted").0, "True");

    world.group("lost", json!({}));
    world.group("bank/gone", json!({}));
    world.binding("bank/b", &["gone"], "x");
    world.pod("bank/p", "x", "n1", &[]);
    world.write();
    assert_eq!(world.binding_condition("b", "ResolvedRefs").0, "True");
    let (status, reason, message) = world.group_condition("db", "ResolvedRefs");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "GroupEmpty"));
    assert!(message.ends_with(": bank/gone, shop/web"), "who has no address matches nobody: {message}");

    world.binding("w", &["web"], "web");
    world.pod("w", "web", "n1", &["10.0.0.1"]);
    world.pod("bank/p", "x", "n1", &["10.0.0.2"]);
    world.write();
    assert_eq!(world.group_condition("db", "ResolvedRefs").1, "Resolved");
}

#[test]
fn s10_bindings_say_whom_they_cannot_guard() {
    let mut world = World::new(&["n1"]);
    world.binding("b", &["db"], "db");
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    world.write();
    assert_eq!(world.binding_condition("b", "Accepted").1, "Accepted");
    world.pod("p2", "other", "n1", &["10.0.0.1"]);
    world.write();
    let (status, reason, message) = world.binding_condition("b", "Accepted");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "AddressConflict"));
    assert!(message.ends_with(": 10.0.0.1 (shop/p1, shop/p2)"), "{message}");
    world.pod("p3", "other", "n1", &["10.0.0.1"]);
    world.write();
    assert!(world.binding_condition("b", "Accepted").2.ends_with("(shop/p1, shop/p2, shop/p3)"));

    let mut host = mk_pod("host", "db", Some("n1"), &["172.30.0.1"]);
    host.spec.as_mut().unwrap().host_network = Some(true);
    world.put_pod(host);
    world.write();
    let (status, reason, message) = world.binding_condition("b", "Accepted");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "HostNetworkPods"));
    assert!(message.ends_with(": host"), "{message}");
    assert_eq!(world.bindings[&key("b")].status.as_ref().unwrap().targets, Some(1));
}

#[test]
fn s13_a_binding_that_cannot_be_evaluated_keeps_what_it_said() {
    let mut world = World::new(&["n1"]);
    world.group("db", json!({}));
    world.binding("b", &["db"], "db");
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    world.settle();
    let bad = json!({ "matchExpressions": [{ "key": "app", "operator": "Near" }] });
    world.put_binding(super::objects::mk_binding("b", &["other"], bad));
    world.settle();
    assert_eq!(world.binding_enforced("b"), ("False".into(), "NotAccepted".into()));
    assert!(world.binding_condition("b", "Accepted").2.starts_with("spec.target.podSelector: "));
    assert_eq!(world.enforced("db"), ("True".into(), "Enforced".into()));
    assert_eq!(world.groups[&key("db")].status.as_ref().unwrap().members, Some(1));

    // A new one of its name inherits nothing.
    let mut anew = world.bindings[&key("b")].clone();
    anew.metadata.uid = Some("another".into());
    world.cluster.update(Update::Binding(anew.keep()));
    assert_eq!(world.cluster.index.members(&key("db")).count(), 0);
}

#[test]
fn statuses_speak_of_the_generation_they_were_made_from() {
    let mut world = World::new(&["n1"]);
    world.group("db", allows(&["db"]));
    world.binding("b", &["db"], "db");
    world.settle();
    world.group("db", json!({ "ingress": [from_group("db"), from_group("web")] }));
    world.binding("b", &["db"], "web");
    world.settle();
    let group = &world.groups[&key("db")];
    let status = group.status.as_ref().unwrap();
    assert_eq!((group.metadata.generation, status.observed_generation), (Some(2), Some(2)));
    assert!(status.conditions.iter().all(|c| c.observed_generation == Some(2)));
    assert_eq!(status.rules.map(|r| (r.ingress, r.egress)), Some((2, 0)));
    let status = world.bindings[&key("b")].status.as_ref().unwrap();
    assert_eq!(status.observed_generation, Some(2));
    assert!(status.conditions.iter().all(|c| c.observed_generation == Some(2)));
}

#[test]
fn times_move_with_statuses_and_nothing_is_written_twice() {
    let mut world = World::new(&["n1"]);
    world.group("db", json!({}));
    world.binding("b", &["db"], "db");
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    world.settle();
    let late = Timestamp::from_second(1_000_000).unwrap();
    assert!(group_write(&world.cluster, &key("db"), late).is_none());
    assert!(binding_write(&world.cluster, &key("b"), late).is_none());

    world.group("db", allows(&["db"]));
    let before = world.groups[&key("db")].status.clone().unwrap();
    let after = status::of_group(&world.cluster, &key("db"), &before, late).unwrap();
    let time = |status: &crate::api::SecurityGroupStatus, type_: &str| {
        status.conditions.iter().find(|c| c.type_ == type_).unwrap().last_transition_time.0
    };
    assert_eq!(time(&after, "Accepted"), NOW, "still true");
    assert_eq!(time(&after, "Enforced"), late, "not true any more");
    let writes = world.writes.len();
    world.settle();
    assert_ne!(world.writes.len(), writes);
    let writes = world.writes.len();
    world.pending = world.cluster.all_work();
    world.write();
    assert_eq!(world.writes.len(), writes, "a new leader has nothing to write");
}

#[test]
fn what_a_watch_shows_late_is_ignored() {
    let mut world = World::new(&["n1"]);
    world.group("db", json!({}));
    world.binding("b", &["db"], "db");
    let (old_group, old_binding) = (world.groups[&key("db")].clone(), world.bindings[&key("b")].clone());
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    world.write();
    let old_slice = world.slices.values().next().unwrap().clone();
    world.pod("p1", "db", "n1", &["10.0.0.2"]);
    world.write();

    old_group.see(&mut world.cluster);
    old_binding.see(&mut world.cluster);
    world.cluster.see_slice(old_slice.clone());
    world.collect();
    for work in std::mem::take(&mut world.pending) {
        assert!(!world.differs(&work), "{work:?}");
    }
    assert!(world.cluster.seen_group(&key("db")).unwrap().metadata.finalizers.is_some());

    // Versions are of one object: a new one of the same name begins anew, with whatever number.
    let mut anew: Seen<_> = (&old_group).into();
    anew.metadata.uid = Some("another".into());
    anew.metadata.resource_version = Some("1".into());
    world.cluster.see_group(key("db"), Some(anew));
    assert_eq!(world.cluster.seen_group(&key("db")).unwrap().metadata.uid.as_deref(), Some("another"));
}

#[test]
fn what_a_list_shows_counts_though_its_versions_are_older() {
    let mut world = World::new(&["n1"]);
    world.group("db", json!({}));
    world.binding("b", &["db"], "db");
    let (old_group, old_binding) = (world.groups[&key("db")].clone(), world.bindings[&key("b")].clone());
    world.settle();

    // The API server was restored from a backup.
    take_list(&mut world.cluster, vec![old_group.clone()], vec![]);
    take_list(&mut world.cluster, vec![old_binding.clone()], vec![]);
    let seen = |m: &ObjectMeta| m.resource_version.clone();
    assert_eq!(seen(&world.cluster.seen_group(&key("db")).unwrap().metadata), seen(&old_group.metadata));
    assert_eq!(seen(&world.cluster.seen_binding(&key("b")).unwrap().metadata), seen(&old_binding.metadata));
    assert!(matches!(group_write(&world.cluster, &key("db"), NOW), Some(Write::Finalizers(_))), "all over again");
}

#[test]
fn nothing_is_written_of_what_is_not_known_as_a_whole() {
    let mut world = World::new(&["n1"]);
    world.group("db", json!({}));
    world.cluster.update(Update::NoGroup(key("db")));
    assert!(group_write(&world.cluster, &key("db"), NOW).is_none(), "the index does not know it");
    let group = world.groups[&key("db")].clone();
    world.cluster.see_group(key("db"), None);
    world.cluster.update(Update::Group(group.keep()));
    assert!(group_write(&world.cluster, &key("db"), NOW).is_none(), "its metadata is not known");
}
