//! Connections are counted for the rules that allow them, and what no connection used is found.

use super::cluster::{Namespace, agent, alone, eventually, get, kubectl, on_node};
use super::disruption::SYSTEM;
use super::metrics::{metrics, pods, sum};
use super::plugin::sg;
use super::reach::{From, OFFICE, STRANGER, target};
use serde_json::Value;
use std::collections::BTreeSet;

/// The rules that the traffic of this test has nothing to do with.
const UNTOUCHED: [&str; 7] = [
    "sg/app-tier ingress TCP 22 from sg/bastion",
    "sg/bastion egress Any to anywhere",
    "sg/db-private egress Any to anywhere",
    "sg/db-private ingress TCP 22 from sg/bastion",
    "sg/web-public egress Any to anywhere",
    "sg/web-public ingress TCP 22 from 203.0.113.10/32, 2001:db8::10/128",
    "sg/web-public ingress TCP 443 from anywhere",
];

fn unused(namespace: &Namespace) -> BTreeSet<String> {
    let output = sg(&["audit", "-n", &namespace.0, "--unused-days", "0", "-o", "json"]);
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let of_check = found.iter().filter(|finding| finding["check"] == "unused-rule");
    let text = |finding: &Value| {
        let (message, object) = (finding["message"].as_str().unwrap(), finding["object"].as_str().unwrap());
        format!("{object} {}", message.split(" was not used").next().unwrap())
    };
    of_check.map(text).collect()
}

/// How many connections of a group's ingress the agent of a node has counted.
fn counted(node: &str, group: &str) -> Option<f64> {
    let agents = pods("agent");
    let (agent, _) = agents.iter().find(|(_, of)| *of == node)?;
    let label = format!("security_group=\"e2e-usage/{group}\",direction=\"ingress\"");
    let served = kubectl_metrics(agent)?;
    served.contains(&label).then(|| sum(&served, "ringfence_agent_rule_connections_total", &label))
}

/// Nothing while it starts.
fn kubectl_metrics(pod: &str) -> Option<String> {
    std::panic::catch_unwind(|| metrics(pod, 9181)).ok()
}

#[test]
fn rules_that_no_connection_used_are_found_and_counts_outlive_agents() {
    let _alone = alone();
    let namespace = Namespace::new("usage");
    let running =
        namespace.pods(&[("web", "web", "n1"), ("app", "app", "n2"), ("db", "db", "n1"), ("bastion", "bastion", "n2")]);
    for example in ["public-web", "internal-database", "bastion"] {
        let file = format!("{}/deploy/examples/{example}.yaml", env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read_to_string(file).unwrap();
        namespace.apply(
            &manifest.replace("namespace: shop", &format!("namespace: {}", namespace.0)).replace("{tier: ", "{app: "),
        );
    }
    namespace.enforced();

    let (app, db) = (&running["app"], &running["db"]);
    let web = target("tcp", &running["web"].addresses[0], 80);
    let bastion = target("tcp", &running["bastion"].addresses[1], 22);
    assert!(From::Outside(STRANGER).reaches_one(&web) && From::Outside(OFFICE).reaches_one(&bastion));
    assert!(app.reaches(db, 3306));
    // What is denied was not used.
    assert!(
        !From::Outside(STRANGER).reaches_one(&bastion) && !app.reaches(db, 22) && !app.reaches(&running["web"], 22)
    );

    let used = |group: &str, direction: &str| {
        let usage = namespace.get("sg", group)["status"]["usage"].clone();
        let rules = usage.as_array().cloned().unwrap_or_default();
        let of_direction = rules.iter().filter(|rule| rule["direction"] == direction);
        of_direction.map(|rule| rule["connections"].as_i64().unwrap()).sum::<i64>()
    };
    eventually("counts in the status", || {
        let all =
            [("web-public", "ingress"), ("bastion", "ingress"), ("db-private", "ingress"), ("app-tier", "egress")];
        all.iter().all(|(group, direction)| used(group, direction) > 0)
    });
    assert_eq!(used("web-public", "ingress"), 1);
    // Both families, of one rule. The first may have been told alone: that there is another one is no news.
    let told = used("db-private", "ingress");
    assert!((1..=2).contains(&told), "{told}");
    eventually("what is exact", || counted("n1", "db-private") == Some(2.0));
    let untouched: BTreeSet<String> = UNTOUCHED.map(str::to_owned).into();
    assert_eq!(unused(&namespace), untouched);
    let shown = sg(&["show", "-n", &namespace.0, "db-private"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let row = |port: &str| shown.lines().find(|line| line.contains(&format!("TCP {port} "))).unwrap().to_owned();
    assert!(row("3306").contains(&format!(" {told} ")) && row("3306").contains(" ago"), "{shown}");
    assert!(row("22").contains(" 0 ") && row("22").contains("not in "), "{shown}");
    assert!(get(&["nodeusage", "n1"])["spec"]["groups"].as_array().is_some_and(|groups| !groups.is_empty()));

    // Ended without a word, and in between there are connections that nobody looks at.
    let killed = agent("n1");
    assert!(std::process::Command::new("kill").args(["-KILL", &killed]).status().unwrap().success());
    assert!(app.reaches(db, 3306));
    kubectl(&["-n", SYSTEM, "rollout", "status", "daemonset/ringfence-agent", "--timeout=60s"]);
    eventually("what was counted before and meanwhile", || counted("n1", "db-private") == Some(4.0));
    assert_eq!(unused(&namespace), untouched);

    // Somebody takes the table away: what was read stays, and counting goes on.
    on_node("n1", &["nft", "delete", "table", "inet", "ringfence_usage"]);
    eventually("another table", || on_node("n1", &["nft", "list", "tables"]).contains("inet ringfence_usage\n"));
    assert!(app.reaches(db, 3306));
    eventually("what comes after that", || counted("n1", "db-private") == Some(6.0));
}
