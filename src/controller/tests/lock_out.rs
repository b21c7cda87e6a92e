//! The last way in on an admin port: who lost it, and who has another.

use super::objects::{key, mk_binding, mk_group, mk_pod};
use crate::controller::lock_out::{AdminPorts, Before, Notice};
use crate::index::{Index, Indexed, TargetName, Update};
use serde_json::{Value, json};

fn rules(ports: Value) -> Value {
    json!({ "ingress": [{ "protocol": "TCP", "ports": ports, "remote": { "cidrs": ["0.0.0.0/0"] } }] })
}

fn group(name: &str, ports: Value) -> Update {
    Update::Group(mk_group(name, rules(ports)).keep())
}

fn binding(name: &str, groups: &[&str], app: &str) -> Update {
    Update::Binding(mk_binding(name, groups, json!({ "matchLabels": { "app": app } })).keep())
}

/// Two database pods, one of them also a bastion, which lets people in on its own account.
fn scene() -> Index {
    let mut index = Index::default();
    for update in [
        Update::Target(mk_pod("db-0", "db", Some("n1"), &["10.0.0.1"]).keep()),
        Update::Target(mk_pod("db-1", "db", Some("n1"), &["10.0.0.2"]).keep()),
        group("db", json!([22, 3306, 8080])),
        binding("db", &["db"], "db"),
    ] {
        index.update(update);
    }
    index
}

fn after(index: &mut Index, update: Update) -> Option<Notice> {
    let before = Before::look(index, &AdminPorts::from([22, 3306, 3389]), &update);
    index.update(update);
    before.and_then(|before| before.compare(index))
}

#[test]
fn the_last_rule_for_a_port_is_missed() {
    let mut index = scene();
    let notice = after(&mut index, group("db", json!(["3000-4000"]))).unwrap();
    assert_eq!(notice.ports, [22].into(), "3306 is in the range");
    assert_eq!(notice.lost, ["db-0", "db-1"].map(|pod| TargetName::pod(key(pod))).into());
    assert!(notice.subject.is_group && notice.message().starts_with("TCP 22: no group lets anyone in"), "{notice:?}");
    assert_eq!(after(&mut index, group("db", json!(["3000-4001"]))), None, "nothing was lost");
    assert_eq!(after(&mut index, group("db", json!(["3000-3500"]))), None, "and neither here");
}

#[test]
fn another_group_on_every_target_is_no_alarm() {
    let mut index = scene();
    index.update(group("ops", json!([22])));
    index.update(binding("ops", &["ops"], "db"));
    let notice = after(&mut index, group("db", json!([3306]))).unwrap();
    assert!(notice.lost.is_empty() && notice.kept_by == [key("ops")].into(), "{notice:?}");
    assert_eq!(notice.message(), format!("TCP 22: still let in on every target, by {}", key("ops")));
    // The other one is the last now.
    let notice = after(&mut index, Update::NoBinding(key("ops"))).unwrap();
    assert!(!notice.subject.is_group && notice.lost.len() == 2 && notice.ports == [22].into(), "{notice:?}");
}

#[test]
fn a_binding_that_goes_or_selects_others_takes_its_ways_in_with_it() {
    let mut index = scene();
    assert_eq!(after(&mut index, binding("db", &["db"], "db")), None, "it says the same");
    let notice = after(&mut index, binding("db", &["db"], "web")).unwrap();
    assert_eq!(notice.lost.len(), 2);
    let mut index = scene();
    assert_eq!(after(&mut index, Update::NoBinding(key("db"))).unwrap().ports, [22, 3306].into());
    let mut index = scene();
    index.update(Update::NoTarget(TargetName::pod(key("db-0"))));
    index.update(Update::NoTarget(TargetName::pod(key("db-1"))));
    assert_eq!(after(&mut index, Update::NoBinding(key("db"))), None, "nobody was there");
}
