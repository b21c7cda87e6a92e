//! Slices: published is who is a member beyond doubt, and a change of leader changes nothing.

use super::objects::{key, mk_pod};
use super::world::World;
use crate::api::GROUP_LABEL;
use crate::controller::cluster::{Cluster, Work};
use crate::controller::feeds::Tracked;
use crate::controller::shards::MAX_MEMBERS;
use crate::controller::writers::slice_write;
use crate::index::{Indexed, TargetKind, TargetName, Update};
use serde_json::json;
use std::collections::BTreeSet;

fn world(pods: usize) -> World {
    let mut world = World::new(&["n1"]);
    world.group("web", json!({}));
    world.binding("b", &["web"], "web");
    for n in 0..pods {
        world.pod(&format!("p{n}"), "web", "n1", &[&format!("10.0.{}.{}", n / 256, n % 256)]);
    }
    world.write();
    world
}

fn published(world: &World) -> BTreeSet<String> {
    let members = world.slices.values().flat_map(|s| &s.spec.members);
    members.flat_map(|m| m.addresses.iter().map(|a| format!("{} {a}", m.target))).collect()
}

fn slice_writes(world: &World) -> usize {
    world.writes.iter().filter(|w| matches!(w, Work::Slice(..))).count()
}

#[test]
fn a_slice_is_labelled_and_owned_by_its_group() {
    let world = world(1);
    let (name, slice) = world.slices.first_key_value().unwrap();
    assert_eq!(name.namespace, "shop");
    assert_eq!(slice.metadata.labels.as_ref().unwrap()[GROUP_LABEL], "web");
    let owner = &slice.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("SecurityGroup", "web"));
    assert_eq!(Some(&owner.uid), world.groups[&key("web")].metadata.uid.as_ref());
    assert_eq!(owner.uid, slice.spec.group_uid);
    assert_eq!(slice.spec.members[0].node.as_deref(), Some("n1"));
    assert_eq!(published(&world), ["pod/p0 10.0.0.0".to_owned()].into());
}

#[test]
fn s10_only_addresses_that_are_beyond_doubt_are_published() {
    let mut world = world(0);
    world.pod("a", "web", "n1", &["10.0.0.1", "fd00::1"]);
    world.pod("none", "web", "n1", &[]);
    world.pod("node", "web", "n1", &["172.30.0.1"]);
    world.write();
    assert_eq!(published(&world), ["pod/a 10.0.0.1".to_owned(), "pod/a fd00::1".to_owned()].into());
    let targets: Vec<&str> = world.slices.values().flat_map(|s| &s.spec.members).map(|m| m.target.as_str()).collect();
    assert_eq!(targets, ["pod/a"], "who has no address to publish is not published");

    world.pod("thief", "other", "n1", &["10.0.0.1"]);
    world.write();
    assert_eq!(published(&world), ["pod/a fd00::1".to_owned()].into());
    world.put_pod({
        let mut done = mk_pod("thief", "other", Some("n1"), &["10.0.0.1"]);
        done.status.as_mut().unwrap().phase = Some("Succeeded".into());
        done
    });
    world.write();
    assert_eq!(published(&world).len(), 2);

    world.cluster.set_service_networks(vec!["10.0.0.0/24".parse().unwrap()]);
    world.write();
    assert_eq!(published(&world), ["pod/a fd00::1".to_owned()].into());
}

#[test]
fn one_member_more_is_one_slice_written() {
    let mut world = world(2 * MAX_MEMBERS);
    assert_eq!(world.slices.len(), 2);
    let before = slice_writes(&world);
    world.pod("p0", "web", "n1", &["10.9.9.9"]);
    world.write();
    assert_eq!(slice_writes(&world), before + 1);
    world.pod("another", "web", "n1", &["10.9.9.8"]);
    world.write();
    assert_eq!((slice_writes(&world), world.slices.len()), (before + 2, 3));
}

#[test]
fn s14_slices_go_with_their_group_and_a_new_one_gets_its_own() {
    let mut world = world(3);
    let old: Vec<_> = world.slices.keys().cloned().collect();
    world.delete_binding(&key("b"));
    world.write();
    assert!(world.slices.is_empty(), "nobody is a member");
    world.binding("b", &["web"], "web");
    world.write();
    assert_eq!(world.slices.keys().cloned().collect::<Vec<_>>(), old);

    // The group vanishes without a word and is there again, as after a relist.
    let mut group = world.groups[&key("web")].clone();
    group.metadata.uid = Some("another".into());
    group.see(&mut world.cluster);
    world.cluster.update(Update::Group(group.keep()));
    world.groups.insert(key("web"), group);
    world.write();
    assert_eq!(published(&world).len(), 3);
    assert!(world.slices.values().all(|s| s.spec.group_uid == "another"));
    assert!(world.slices.keys().all(|name| !old.contains(name)));

    world.cluster.update(Update::NoGroup(key("web")));
    world.write();
    assert!(world.slices.is_empty());
}

#[test]
fn what_others_wrote_into_a_slice_is_put_right() {
    let mut world = world(2);
    let good = world.slices.clone();
    let (name, mut slice) = world.slices.first_key_value().map(|(n, s)| (n.clone(), s.clone())).unwrap();
    slice.spec.members.pop();
    slice.metadata.labels = None;
    world.show_slice(slice);
    world.write();
    assert_eq!(world.slices[&name].spec, good[&name].spec);
    assert_eq!(world.slices[&name].metadata.labels, good[&name].metadata.labels);

    let mut stray = good[&name].clone();
    stray.metadata.name = Some("stray".into());
    stray.metadata.uid = Some("stray".into());
    world.show_slice(stray);
    world.write();
    assert_eq!(world.slices.keys().collect::<Vec<_>>(), [&name]);
}

/// Another replica, which saw kinds in this order.
fn replica(world: &World, order: &[&str]) -> Cluster {
    let mut cluster = Cluster::default();
    for kind in order {
        match *kind {
            "pods" => {
                cluster.update(Update::Targets(TargetKind::Pod, world.pods.values().map(Indexed::keep).collect()))
            }
            "bindings" => {
                world.bindings.values().for_each(|b| b.see(&mut cluster));
                cluster.update(Update::Bindings(world.bindings.values().map(Indexed::keep).collect()));
            }
            "groups" => {
                world.groups.values().for_each(|g| g.see(&mut cluster));
                cluster.update(Update::Groups(world.groups.values().map(Indexed::keep).collect()));
            }
            _ => world.slices.values().for_each(|s| cluster.see_slice(s.clone())),
        }
    }
    for (name, node) in &world.nodes {
        cluster.set_node(name, Some(node));
    }
    cluster
}

#[test]
fn taking_over_writes_nothing_whatever_was_seen_first() {
    let mut world = world(3 * MAX_MEMBERS);
    // Two slices with room, in which nobody would be put as they are.
    for n in 0..MAX_MEMBERS {
        world.delete_pod(&key(&format!("p{}", 2 * n)));
    }
    world.write();
    world.pod("late", "web", "n1", &["10.9.9.9"]);
    world.write();
    let orders = [
        ["pods", "bindings", "groups", "slices"],
        ["groups", "slices", "bindings", "pods"],
        ["slices", "groups", "pods", "bindings"],
        ["slices", "pods", "bindings", "groups"],
    ];
    for order in orders {
        let mut cluster = replica(&world, &order);
        cluster.adopt_slices();
        for work in cluster.all_work() {
            if let Work::Slice(group, name) = &work {
                assert!(slice_write(&cluster, group, name).is_none(), "{order:?}: {work:?}");
            }
        }
    }
}

#[test]
fn a_replica_that_waited_takes_over_what_the_leader_made_meanwhile() {
    let mut world = world(MAX_MEMBERS);
    let mut waiting = replica(&world, &["groups", "bindings", "pods", "slices"]);
    world.pod("new", "web", "n1", &["10.9.9.9"]);
    world.delete_pod(&key("p0"));
    world.write();
    // The same news, in another order: it would have put the new one where the old one was.
    waiting.update(Update::NoTarget(TargetName::pod(key("p0"))));
    waiting.update(Update::Target(world.pods[&key("new")].keep()));
    world.slices.values().for_each(|s| waiting.see_slice(s.clone()));
    let differs = |cluster: &Cluster| {
        let all = cluster.all_work();
        all.iter().filter(|w| matches!(w, Work::Slice(g, n) if slice_write(cluster, g, n).is_some())).count()
    };
    assert_ne!(differs(&waiting), 0, "or else this tests nothing");
    waiting.adopt_slices();
    assert_eq!(differs(&waiting), 0);
}
