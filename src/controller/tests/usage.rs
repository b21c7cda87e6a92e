//! What statuses say of how rules are used, and that they say it only when it is news.

use super::objects::{allows, key};
use super::world::World;
use crate::api::{NodeUsageSpec, RuleUsage};
use crate::controller::cluster::Work;
use jiff::Timestamp;
use serde_json::{Value, json};

const DAY: i64 = 86_400;

fn at(second: i64) -> String {
    Timestamp::from_second(second).unwrap().to_string()
}

/// A group with one rule, on two nodes, that nobody has counted yet.
struct Scene {
    world: World,
    rule: String,
    uid: String,
}

impl Scene {
    fn new() -> Self {
        let mut world = World::new(&["n1", "n2"]);
        world.cluster.usages.complete();
        world.group("db", allows(&["app"]));
        world.write();
        let group = world.cluster.index.group(&key("db")).unwrap();
        let rule = group.rules.as_ref().unwrap().ingress[0].id().to_string();
        let uid = group.uid.clone();
        Self { world, rule, uid }
    }

    fn spec(&self, connections: i64, last: Option<i64>, since: i64, gap: Option<i64>) -> NodeUsageSpec {
        let mut rule = json!({
            "id": self.rule, "direction": "ingress", "connections": connections, "since": at(since),
        });
        if let Some(last) = last {
            rule["lastMatched"] = json!(at(last));
        }
        let gone = json!({ "id": "gone", "direction": "ingress", "connections": 9, "since": at(0) });
        let group = json!({ "namespace": "shop", "name": "db", "uid": self.uid, "rules": [rule, gone] });
        let mut spec = json!({ "epoch": 1, "until": at(0), "groups": [group] });
        if let Some(gap) = gap {
            spec["gap"] = json!(at(gap));
        }
        serde_json::from_value(spec).unwrap()
    }

    /// A node tells something: how often the group is written, and what its status says then.
    fn tells(&mut self, node: &str, spec: NodeUsageSpec) -> (usize, Value) {
        self.after(|world| world.cluster.set_usage(node, None, spec))
    }

    /// Something happens: how often the group is written, and what its status says then.
    fn after(&mut self, happens: impl FnOnce(&mut World)) -> (usize, Value) {
        let before = self.world.writes.len();
        happens(&mut self.world);
        self.world.write();
        let writes = &self.world.writes[before..];
        assert!(writes.iter().all(|work| *work == Work::Group(key("db"))), "{writes:?}");
        (writes.len(), self.said())
    }

    fn said(&self) -> Value {
        let usage = &self.world.groups[&key("db")].status.as_ref().unwrap().usage;
        assert!(usage.len() <= 1, "a rule that is not there: {usage:?}");
        usage.first().map_or(
            Value::Null,
            |RuleUsage { id, direction: _, connections, departed, last_matched, since }| {
                assert_eq!(*id, self.rule);
                let second = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| time.0.as_second();
                json!([connections, departed, last_matched.as_ref().map(second), second(since)])
            },
        )
    }
}

#[test]
fn nodes_are_summed_and_only_news_is_written() {
    let mut scene = Scene::new();
    assert_eq!(scene.said(), Value::Null);
    let mut tells = |node: &str, connections, last, gap, expected: (usize, Value)| {
        let spec = scene.spec(connections, last, if node == "n1" { 100 } else { 500 }, gap);
        assert_eq!(scene.tells(node, spec), expected, "{node} {connections} {last:?} {gap:?}");
    };
    tells("n1", 0, None, None, (1, json!([0, 0, null, 100])));
    // A node that comes later has missed nothing.
    tells("n2", 0, None, None, (0, json!([0, 0, null, 100])));
    tells("n2", 4, Some(600), None, (1, json!([4, 0, 600, 100])));
    tells("n1", 3, Some(900), None, (0, json!([4, 0, 600, 100])));
    tells("n1", 4, Some(DAY - 1), None, (1, json!([8, 0, DAY - 1, 100])));
    tells("n1", 5, Some(2 * DAY - 2), None, (0, json!([8, 0, DAY - 1, 100])));
    tells("n1", 5, Some(2 * DAY - 1), None, (1, json!([9, 0, 2 * DAY - 1, 100])));
    tells("n2", 5, Some(900), None, (0, json!([9, 0, 2 * DAY - 1, 100])));
    tells("n2", 5, Some(900), Some(DAY + 5), (1, json!([10, 0, 2 * DAY - 1, DAY + 5])));
}

#[test]
fn what_a_node_counted_outlives_it() {
    let mut scene = Scene::new();
    scene.tells("n1", scene.spec(5, Some(600), 100, Some(300)));
    scene.tells("n2", scene.spec(7, Some(700), 500, None));
    assert_eq!(scene.said(), json!([12, 0, 700, 300]));
    // Somebody deleted what it had written.
    assert_eq!(scene.tells("n2", scene.spec(7, Some(700), 500, None)).0, 0);

    assert_eq!(scene.after(|world| world.remove_node("n2")), (1, json!([12, 7, 700, 300])));
    // An agent that does not know yet that its node is gone.
    assert_eq!(scene.tells("n2", scene.spec(9, Some(900), 500, None)).0, 0);
    assert_eq!(scene.after(|world| world.remove_node("n1")), (1, json!([12, 12, 700, 300])));
    // Another leader begins, who knows the statuses.
    scene.world.cluster.usages.forget_departed();
    assert_eq!(scene.tells("n3", scene.spec(20, Some(DAY), 900, None)).0, 0, "nobody knows that node yet");
    assert_eq!(scene.after(|world| world.boot("n3", "172.30.0.3")), (1, json!([32, 12, DAY, 300])));
}

#[test]
fn what_an_earlier_node_of_the_name_counted_is_not_counted_again() {
    let mut scene = Scene::new();
    let node = |uid: &str| serde_json::from_value(json!({ "metadata": { "name": "n3", "uid": uid } })).unwrap();
    let told = |scene: &Scene, connections| scene.spec(connections, Some(600), 100, None);
    let (five, six, twenty) = (told(&scene, 5), told(&scene, 6), told(&scene, 20));
    let one = || Some("one".to_owned());
    scene.after(|world| {
        world.cluster.set_usage("n3", one(), five);
        world.cluster.set_node("n3", Some(&node("one")));
    });
    assert_eq!(scene.said(), json!([5, 0, 600, 100]));
    // It is back before anybody has cleared away what it had told.
    scene.after(|world| {
        world.cluster.set_node("n3", Some(&node("two")));
        world.cluster.set_usage("n3", one(), six);
    });
    assert_eq!(scene.said(), json!([5, 5, 600, 100]));
    scene.after(|world| world.cluster.set_usage("n3", Some("two".to_owned()), twenty));
    assert_eq!(scene.said(), json!([25, 5, 600, 100]));
}

#[test]
fn what_a_node_has_forgotten_counts_on() {
    let mut scene = Scene::new();
    scene.tells("n1", scene.spec(5, Some(600), 100, None));
    let nothing = || serde_json::from_value(json!({ "epoch": 2, "until": at(0), "groups": [] })).unwrap();
    assert_eq!(scene.tells("n1", nothing()), (1, json!([5, 5, 600, 100])));
    assert_eq!(scene.tells("n1", scene.spec(1, Some(700), 650, None)).1, json!([5, 5, 600, 100]), "no news");
    assert_eq!(scene.tells("n1", scene.spec(5, Some(700), 650, None)), (1, json!([10, 5, 700, 100])));

    // While nobody looked: what is said is never less than it was.
    let mut scene = Scene::new();
    scene.tells("n1", scene.spec(10, Some(700), 100, None));
    scene.world.cluster.usages = Default::default();
    scene.world.cluster.usages.complete();
    let later = Some(DAY + 700);
    assert_eq!(scene.tells("n1", scene.spec(4, later, 750, None)).1, json!([10, 0, DAY + 700, 100]));
    assert_eq!(scene.tells("n2", scene.spec(20, later, 750, None)).1[0], 24);
}

#[test]
fn a_rule_that_comes_again_begins_anew() {
    let mut scene = Scene::new();
    scene.tells("n1", scene.spec(5, Some(600), 100, None));
    scene.tells("n2", scene.spec(7, Some(700), 100, None));
    assert_eq!(scene.after(|world| world.remove_node("n2")).1, json!([12, 7, 700, 100]));
    scene.world.group("db", allows(&[]));
    scene.world.write();
    scene.tells("n1", scene.spec(0, None, 800, None));
    scene.world.group("db", allows(&["app"]));
    scene.world.write();
    assert_eq!(scene.said(), json!([0, 0, null, 800]));
    assert_eq!(scene.tells("n1", scene.spec(2, Some(900), 800, None)).1, json!([2, 0, 900, 800]));
}

#[test]
fn before_all_nodes_are_known_nothing_is_said() {
    let mut scene = Scene::new();
    scene.tells("n1", scene.spec(5, Some(600), 100, None));
    scene.world.cluster.usages = Default::default();
    assert_eq!(scene.tells("n2", scene.spec(50, Some(DAY), 100, None)).1, json!([5, 0, 600, 100]));
    scene.world.cluster.usages.complete();
    assert_eq!(scene.tells("n1", scene.spec(5, Some(600), 100, None)).1, json!([55, 0, DAY, 100]));
}

#[test]
fn another_group_of_the_same_name_inherits_nothing() {
    let mut scene = Scene::new();
    scene.uid = "another".into();
    assert_eq!(scene.tells("n1", scene.spec(5, Some(600), 100, None)).1, Value::Null);
}
