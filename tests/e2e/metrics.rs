//! What the programs tell of themselves: metrics, logs, and events of nodes.

use super::cluster::{Namespace, SOON, agent, alone, calm, command, eventually, get, kubectl, output_of};
use super::disruption::SYSTEM;
use super::gate::{Covered, NODES, rewrite};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What chart and documentation rely on.
const KNOWN: &str = include_str!("../chart/metrics.txt");

/// The pods of a component, and their nodes.
pub fn pods(component: &str) -> BTreeMap<String, String> {
    let selector = format!("app.kubernetes.io/component={component}");
    let listed = get(&["-n", SYSTEM, "pods", "-l", &selector]);
    let of = |pod: &Value| {
        let text = |path: &str| pod.pointer(path).unwrap().as_str().unwrap().to_owned();
        (text("/metadata/name"), text("/spec/nodeName"))
    };
    listed["items"].as_array().unwrap().iter().map(of).collect()
}

/// What a program serves.
pub fn metrics(pod: &str, port: u16) -> String {
    kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:{port}/proxy/metrics")])
}

/// Names as they are queried, and their types.
fn kinds(served: &str) -> BTreeSet<String> {
    let types = served.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total counter") } else { format!("{name} {kind}") })
        .collect()
}

/// The sum of a metric's samples that have these labels, or any.
pub fn sum(served: &str, name: &str, label: &str) -> f64 {
    let is =
        |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label);
    served.lines().filter(is).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn every_metric_that_is_served_is_known_and_every_known_one_is_served() {
    let _calm = calm();
    let known: BTreeSet<String> = KNOWN.lines().map(str::to_owned).collect();
    let mut served = BTreeSet::new();
    for (component, port) in [("controller", 9180), ("agent", 9181)] {
        let of_each: Vec<_> = pods(component).keys().map(|pod| kinds(&metrics(pod, port))).collect();
        assert_eq!(of_each.len(), 2, "{component}");
        // What is served from the start is an increase when it happens first.
        assert_eq!(of_each[0], of_each[1], "each {component} serves all of its own");
        served.extend(of_each.into_iter().flatten());
    }
    assert_eq!(served, known);
}

#[test]
fn what_happens_is_counted_and_its_cause_is_in_the_log() {
    let _calm = calm();
    let (agent, _) = pods("agent").into_iter().find(|(_, node)| node == "n1").unwrap();
    let of_n1 = || metrics(&agent, 9181);
    let delays = || {
        let counted = |pod| sum(&metrics(pod, 9180), "ringfence_controller_enforcement_delay_seconds_count", "");
        pods("controller").keys().map(|pod| counted(pod)).sum::<f64>()
    };
    let (before, delays_before) = (of_n1(), delays());
    let namespace = Namespace::new("counted");
    let pods_of = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    namespace.group("server", "[]", None);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let (server, client) = (&pods_of["server"], &pods_of["client"]);
    assert!(!client.reaches(server, 80));
    // With an address that is nobody's.
    let mut forge = command("pod");
    forge.args(["e2e-counted/server", "ip", "address", "add", "192.0.2.99/32", "dev", "eth0"]);
    output_of(forge);
    let mut forged = server.probes().probe();
    forged.args(["many", "--timeout", "1s", "--source", "192.0.2.99", &client.on("tcp", 80)[0]]);
    output_of(forged);

    let increased = |name: &str, label: &str| {
        eventually(name, || sum(&of_n1(), name, label) > sum(&before, name, label));
    };
    increased("ringfence_agent_commits_total", "");
    increased("ringfence_agent_commit_duration_seconds_count", "");
    increased("ringfence_agent_gate_waits_seconds_count", "");
    // Read from the kernel every 15 seconds.
    increased("ringfence_agent_dropped_packets_total", "direction=\"ingress\"");
    increased("ringfence_agent_spoofed_packets_total", "");
    eventually("the delay of the group and of the binding", || delays() >= delays_before + 2.0);

    let log = kubectl(&["-n", SYSTEM, "logs", &agent, "--since=2m"]);
    let causes = log.lines().filter(|line| line.contains("rules are in the kernel"));
    assert!(causes.into_iter().any(|line| line.contains("e2e-counted/server")), "{log}");
}

#[test]
fn a_gate_that_is_off_is_an_event_of_its_node() {
    let _alone = alone();
    let node = NODES[1];
    let told = || {
        let fields = format!("involvedObject.kind=Node,involvedObject.name={node},reason=GateOff");
        let events = get(&["-n", "default", "events", "--field-selector", &fields]);
        // One that was told before is counted on.
        let counted = |event: &Value| event["series"]["count"].as_u64().unwrap_or(1);
        events["items"].as_array().unwrap().iter().map(counted).sum::<u64>()
    };
    let before = told();
    // Its program cannot be put into its place, so neither is its entry.
    let covered = Covered::new(agent(node), "/host/cni/bin", "ro");
    rewrite(node);
    eventually("an event", || told() > before);
    drop(covered);
    kubectl(&["wait", "--for=condition=GateReady", "nodeenforcement", node, &format!("--timeout={}s", SOON.as_secs())]);
}
