//! S15: what must hold before anything is called enforced.

use super::objects::{allows, from_group, key, mk_group, mk_pod};
use super::world::{Kind, World};
use crate::api::{EnforcedGroup, EnforcementFailure};
use crate::controller::truth;
use serde_json::json;

/// A group with a member on each of two nodes, all of it settled.
fn world() -> World {
    let mut world = World::new(&["n1", "n2"]);
    world.group("db", json!({}));
    world.binding("b", &["db"], "db");
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    world.pod("p2", "db", "n2", &["10.0.0.2"]);
    world
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

fn catch_up(world: &mut World, node: &str) {
    Kind::ALL.into_iter().for_each(|kind| world.sync(node, kind));
    world.commit(node);
    world.report(node);
}

#[test]
fn s15_every_node_that_hosts_a_member_must_have_said_so() {
    let mut world = world();
    assert_eq!(world.enforced("db"), is("False", "NoReport"));
    catch_up(&mut world, "n1");
    assert_eq!(world.enforced("db"), is("False", "NoReport"));
    assert_eq!(world.groups[&key("db")].status.as_ref().unwrap().nodes.as_ref().unwrap().summary, "1/2");
    catch_up(&mut world, "n2");
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
    assert_eq!(world.binding_enforced("b"), is("True", "Enforced"));
    let nodes = world.groups[&key("db")].status.as_ref().unwrap().nodes.clone().unwrap();
    assert_eq!((nodes.desired, nodes.enforced), (2, 2));
}

#[test]
fn s15_each_part_of_what_a_node_says_counts() {
    let mut world = world();
    world.settle();
    let good = world.reports["n2"].status.clone().unwrap();
    let mut other = |edit: fn(&mut EnforcedGroup)| {
        world.edit_report("n2", |status| edit(&mut status.groups[0]));
        let said = world.enforced("db");
        world.put_report("n2", good.clone());
        assert_eq!(world.enforced("db"), is("True", "Enforced"));
        said
    };
    assert_eq!(other(|g| g.uid = Some("another".into())), is("False", "Pending"));
    assert_eq!(other(|g| g.uid = None), is("False", "Pending"));
    assert_eq!(other(|g| g.generation += 1), is("False", "Pending"));
    assert_eq!(other(|g| g.generation -= 1), is("False", "Pending"));
    assert_eq!(other(|g| g.digest = "0".repeat(32)), is("False", "Pending"));
    assert_eq!(other(|g| g.namespace = "bank".into()), is("False", "Pending"));

    let mut binding = |edit: fn(&mut crate::api::EnforcedBinding)| {
        world.edit_report("n2", |status| edit(&mut status.bindings[0]));
        let said = world.binding_enforced("b");
        world.put_report("n2", good.clone());
        assert_eq!(world.binding_enforced("b"), is("True", "Enforced"));
        said
    };
    assert_eq!(binding(|b| b.uid = "another".into()), is("False", "Pending"));
    assert_eq!(binding(|b| b.generation += 1), is("False", "Pending"));
    assert_eq!(binding(|b| b.digest = "0".repeat(32)), is("False", "Pending"));
    assert_eq!(binding(|b| b.name = "c".into()), is("False", "Pending"));
}

#[test]
fn s15_a_change_of_rules_or_members_is_not_enforced_before_it_is() {
    let mut world = world();
    world.settle();
    world.group("db", json!({ "ingress": [from_group("db")] }));
    assert_eq!(world.enforced("db"), is("False", "Pending"));
    world.settle();
    assert_eq!(world.enforced("db"), is("True", "Enforced"));

    world.pod("p3", "db", "n2", &["10.0.0.3"]);
    assert_eq!(world.enforced("db"), is("False", "Pending"));
    assert_eq!(world.binding_enforced("b"), is("False", "Pending"));
    assert!(world.group_condition("db", "Enforced").2.ends_with(": n1, n2"), "n1 has it as a remote");
    catch_up(&mut world, "n2");
    assert_eq!(world.binding_enforced("b"), is("True", "Enforced"));
    assert_eq!(world.enforced("db"), is("False", "Pending"));
    catch_up(&mut world, "n1");
    assert_eq!(world.enforced("db"), is("True", "Enforced"));

    world.delete_pod(&key("p3"));
    assert_eq!(world.enforced("db"), is("False", "Pending"));
    world.settle();
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
}

#[test]
fn s5_members_of_a_remote_concern_the_nodes_of_those_who_name_it() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    world.group("bank/web", json!({}));
    world.binding("bank/b", &["web"], "web");
    world.group("db", allows(&["bank/web"]));
    world.binding("b", &["db"], "db");
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    world.settle();
    assert_eq!(world.enforced("bank/web"), is("True", "Enforced"));
    assert_eq!(world.enforced("db"), is("True", "Enforced"));

    world.pod("bank/w", "web", "n2", &["10.0.1.1"]);
    catch_up(&mut world, "n2");
    for group in ["bank/web", "db"] {
        assert_eq!(world.enforced(group), is("False", "Pending"));
        assert!(world.group_condition(group, "Enforced").2.ends_with(": n1"), "{group}");
    }
    catch_up(&mut world, "n1");
    assert_eq!(world.enforced("bank/web"), is("True", "Enforced"));
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
    let nodes = world.groups[&key("bank/web")].status.as_ref().unwrap().nodes.clone().unwrap();
    assert_eq!(nodes.desired, 2, "n3 has nothing to do with it");

    // The rule goes: as long as the node holds the set, the members are still let in there.
    world.group("db", json!({}));
    assert_eq!(world.enforced("bank/web"), is("False", "Pending"));
    catch_up(&mut world, "n1");
    assert_eq!(world.enforced("bank/web"), is("True", "Enforced"));
}

#[test]
fn s15_a_node_that_hosts_it_no_more_must_say_so_too() {
    let mut world = world();
    world.settle();
    world.delete_pod(&key("p2"));
    assert_eq!(world.enforced("db"), is("False", "Pending"));
    assert_eq!(world.binding_enforced("b"), is("False", "Pending"));
    assert!(world.group_condition("db", "Enforced").2.ends_with(": n2"));
    catch_up(&mut world, "n2");
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
    assert_eq!(world.binding_enforced("b"), is("True", "Enforced"));
}

#[test]
fn s15_a_rebooted_kernel_is_empty_whatever_was_reported_before() {
    let mut world = world();
    world.settle();
    world.boot("n2", "172.30.0.2");
    assert_eq!(world.enforced("db"), is("False", "NoReport"));
    assert_eq!(world.binding_enforced("b"), is("False", "NoReport"));
    world.settle();
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
    // Without a boot there is nothing to compare.
    world.edit_report("n2", |status| status.boot_id = None);
    assert_eq!(world.enforced("db"), is("False", "NoReport"));
}

#[test]
fn s13_what_a_kernel_refuses_is_said_with_its_words() {
    let mut world = world();
    world.settle();
    let failure = EnforcementFailure { namespace: "shop".into(), name: "db".into(), message: "no room".into() };
    world.edit_report("n1", |status| status.failures.push(failure.clone()));
    assert_eq!(world.enforced("db"), is("False", "Refused"));
    assert!(world.group_condition("db", "Enforced").2.contains("n1 (no room)"));
    assert_eq!(world.binding_enforced("b"), is("True", "Enforced"), "the binding itself is in force");
    world.edit_report("n1", |status| status.failures.clear());
    assert_eq!(world.enforced("db"), is("True", "Enforced"));

    // Another group, or one that is not attached there, is another matter.
    let other = EnforcementFailure { name: "other".into(), ..failure };
    world.edit_report("n1", |status| status.failures.push(other));
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
}

#[test]
fn s15_rules_that_traffic_goes_around_are_not_enforced() {
    let mut world = world();
    world.settle();
    world.report_with("n1", vec!["pods are attached to bridge cni0".to_owned()]);
    assert_eq!(world.enforced("db"), is("False", "Bypassed"));
    assert!(world.group_condition("db", "Enforced").2.contains("n1 (pods are attached to bridge cni0)"));
    assert_eq!(world.binding_enforced("b"), is("False", "Bypassed"));
    world.edit_report("n1", |status| {
        status.conditions.iter_mut().filter(|c| c.type_ == "DataPathReady").for_each(|c| c.reason = "Closed".into());
    });
    assert_eq!(world.enforced("db"), is("False", "Closed"));
    assert_eq!(world.binding_enforced("b"), is("False", "Closed"));
    world.report("n1");
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
}

#[test]
fn s15_what_no_node_is_concerned_with_is_enforced() {
    let mut world = World::new(&["n1"]);
    world.group("db", allows(&["web"]));
    world.binding("b", &["db"], "db");
    world.put_pod(mk_pod("waiting", "db", None, &[]));
    assert_eq!(world.enforced("db"), is("True", "Unused"));
    assert_eq!(world.binding_enforced("b"), is("True", "Unused"));
}

#[test]
fn s15_a_node_that_is_gone_is_not_waited_for() {
    let mut world = world();
    world.settle();
    // Its pods first; what is left of it is its last report.
    world.delete_pod(&key("p2"));
    world.cluster.set_node("n2", None);
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
    assert_eq!(world.binding_enforced("b"), is("True", "Enforced"));
    world.cluster.set_report("n2", None);
    assert!(!world.cluster.reports.nodes().any(|n| n == "n2"));

    // Pods that are bound to a node which nobody knows may well run: nobody can say what holds for them.
    world.pod("p2", "db", "n2", &["10.0.0.2"]);
    assert_eq!(world.enforced("db"), is("False", "NoReport"));
}

#[test]
fn s10_pods_that_cannot_be_guarded_concern_nobody() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    world.group("db", json!({}));
    world.binding("b", &["db"], "db");
    let mut host = mk_pod("host", "db", Some("n1"), &["172.30.0.1"]);
    host.spec.as_mut().unwrap().host_network = Some(true);
    world.put_pod(host);
    let mut done = mk_pod("done", "db", Some("n2"), &["10.0.0.2"]);
    done.status.as_mut().unwrap().phase = Some("Failed".into());
    world.put_pod(done);
    assert_eq!(world.enforced("db"), is("True", "Unused"));
    assert_eq!(world.groups[&key("db")].status.as_ref().unwrap().members, Some(0));

    // One that has no address yet will have one.
    world.pod("soon", "db", "n3", &[]);
    assert_eq!(world.enforced("db"), is("False", "NoReport"));
    world.settle();
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
    assert_eq!(world.groups[&key("db")].status.as_ref().unwrap().members, Some(1));
}

#[test]
fn s6_a_binding_to_a_group_that_is_missing_is_enforced_once_its_targets_are_closed() {
    let mut world = World::new(&["n1"]);
    world.binding("b", &["missing"], "db");
    world.pod("p1", "db", "n1", &["10.0.0.1"]);
    assert_eq!(world.binding_enforced("b"), is("False", "NoReport"));
    world.settle();
    assert_eq!(world.binding_enforced("b"), is("True", "Enforced"));

    world.group("missing", json!({}));
    assert_eq!(world.enforced("missing"), is("False", "Pending"), "the node has it as missing");
    world.settle();
    assert_eq!(world.enforced("missing"), is("True", "Enforced"));
}

#[test]
fn s13_what_was_not_accepted_is_not_enforced_though_its_last_good_rules_are() {
    let mut world = world();
    world.settle();
    let bad = json!({ "ingress": [{ "protocol": "TCP", "ports": [0], "remote": { "cidrs": ["10.0.0.0/8"] } }] });
    world.put_group(mk_group("db", bad));
    world.settle();
    assert_eq!(world.enforced("db"), is("False", "NotAccepted"));
    assert_eq!(world.binding_enforced("b"), is("True", "Enforced"));
    let (status, reason, message) = world.group_condition("db", "Accepted");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Invalid"));
    assert!(message.contains("spec.ingress[0].ports[0]"), "{message}");
    assert!(message.ends_with("The rules of generation 1 stay in force"), "{message}");
}

/// Two rules of which one covers the other, pods without an address, addresses that are not to be guarded: all that the
/// agent leaves out of the kernel because it makes no difference is enforced all the same.
#[test]
fn s15_what_makes_no_difference_in_the_kernel_is_not_waited_for() {
    let anyone = json!({ "protocol": "Any", "remote": { "cidrs": ["0.0.0.0/0", "::/0"] } });
    for (ips, other) in [
        (vec!["10.0.0.1"], vec![]),
        (vec![], vec![]),
        (vec!["172.30.0.1"], vec![]),
        (vec!["10.0.0.1"], vec!["10.0.0.1"]),
    ] {
        let mut world = World::new(&["n1"]);
        world.group("web", json!({}));
        world.group("db", json!({ "ingress": [anyone, from_group("web")] }));
        world.binding("b", &["db"], "db");
        world.pod("p1", "db", "n1", &ips);
        world.pod("p2", "other", "n1", &other);
        world.settle();
        assert_eq!(world.enforced("db"), is("True", "Enforced"), "{ips:?} {other:?}");
        assert_eq!(world.enforced("web"), is("True", "Enforced"), "{ips:?} {other:?}");
    }
}

#[test]
fn a_new_group_of_an_old_name_is_another_one() {
    let mut world = world();
    world.settle();
    world.delete_binding(&key("b"));
    world.delete_group(&key("db"));
    world.write();
    assert!(!world.groups.contains_key(&key("db")));
    world.group("db", json!({}));
    world.binding("b", &["db"], "db");
    assert_eq!(world.enforced("db"), is("False", "Pending"));
    assert!(!truth::of_binding(&world.cluster, &key("b")).0.status);
    world.settle();
    assert_eq!(world.enforced("db"), is("True", "Enforced"));
}
