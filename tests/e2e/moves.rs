//! A machine that moves to another node: with its power off, and while it runs. What is forbidden is at every instant, on both.

use super::cluster::{Namespace, Running, calm, command, eventually, number, output_of};
use super::machines::{Machine, bind_interfaces, from_groups};
use super::reach::Pod;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const HERE: Machine =
    Machine { name: "mover", node: "n1", mac: "52:54:00:00:00:30", addresses: ["10.20.1.30", "fd20:0:0:1::30"] };

/// What is asked all the time, from pods of both nodes.
fn forbidden(pods: &BTreeMap<String, Pod>) -> Vec<Running> {
    let from = ["stranger", "lost"].into_iter().flat_map(|pod| HERE.addresses.map(|address| (pod, address)));
    let attempts = from.map(|(pod, address)| pods[pod].probes().hammer(address, "3306", ["10ms", "200ms"]));
    attempts.collect()
}

fn assert_forbidden(attempts: Vec<Running>) {
    for said in attempts.into_iter().map(Running::stop) {
        assert!(said.contains(" open 0 ") && said.contains(" refused 0 ") && !said.contains("tried 0 "), "{said}");
    }
}

#[test]
fn s4_s10_a_machine_moves_to_another_node_and_its_groups_with_it() {
    let _calm = calm();
    let namespace = Namespace::new("mover");
    let pods = namespace.pods(&[
        ("app", "app", "n1"),
        ("far", "app", "n2"),
        ("stranger", "stranger", "n1"),
        ("lost", "stranger", "n2"),
        ("log", "log", "n1"),
    ]);
    let mut guest = HERE.boot(false);
    HERE.declare(&namespace, "db");
    let udp_rule = "{protocol: UDP, ports: [5353], remote: {securityGroup: {name: app}}}";
    let tcp_rule = "{protocol: TCP, ports: [3306], remote: {securityGroup: {name: app}}}";
    namespace.group("app", "[]", None);
    namespace.bind("app", &["app"], "app");
    namespace.group("db", &format!("[{tcp_rule}, {udp_rule}]"), None);
    bind_interfaces(&namespace, "db", "db");
    namespace.group("log", &from_groups(&["db"]), None);
    namespace.bind("log", &["log"], "log");
    namespace.enforced();
    let works = || {
        // While it moves one family may be there before the other.
        let all = |answers: Vec<bool>| answers.into_iter().all(|answered| answered);
        let in_ = ["app", "far"].into_iter().all(|pod| all(pods[pod].probes().reaches(&HERE.on(3306))));
        in_ && all(HERE.reaches(None, &pods["log"].on("tcp", 3306)))
    };
    assert!(works());
    let stream = |pod: &str, protocol: &str, port: &str| {
        HERE.addresses.map(|address| {
            let mut stream = pods[pod].probes().probe();
            stream.args(["stream", protocol, address, port, "--interval", "10ms", "--duration", "10m"]);
            Running::start(stream)
        })
    };

    // While it runs: declared for both nodes until it has moved.
    let attempts = forbidden(&pods);
    let udp = ["app", "far"].map(|pod| stream(pod, "udp", "5353"));
    let (kept, cut) = (stream("app", "tcp", "3306"), stream("app", "tcp", "3306"));
    let there = |name: &str| {
        namespace.apply(&format!(
            "{{apiVersion: ringfence.io/v1alpha1, kind: NetworkInterface, metadata: {{name: {name}, labels: {{app: db}}}}, \
             spec: {{nodeName: n2, device: {}, macAddress: '{}', addresses: ['{}']}}}}",
            HERE.device(),
            HERE.mac,
            HERE.addresses.join("', '")
        ));
    };
    there("mover-n2");
    namespace.until("nic", "mover-n2", "Ready", "False", "DeviceNotFound");
    namespace.enforced();
    assert!(works(), "two interfaces of one machine");
    assert_eq!(namespace.get("sg", "db")["status"]["nodes"]["summary"], "2/2");
    let since = Instant::now();
    let mut migrate = command("guest");
    migrate.args(["migrate", HERE.name, "n2"]);
    output_of(migrate);
    let migrated = since.elapsed();
    eventually("new connections", works);
    println!("migrated in {migrated:?}, new connections after {:?}", since.elapsed());
    namespace.until("nic", "mover-n2", "Ready", "True", "Watched");
    namespace.until("nic", "mover", "Ready", "False", "DeviceNotFound");
    namespace.kubectl(&["delete", "nic", "mover"]);
    namespace.enforced();
    assert_eq!(namespace.get("sg", "db")["status"]["members"], 1);
    assert!(works(), "the old node took nothing away");
    // What TCP sends again comes after some seconds.
    std::thread::sleep(Duration::from_secs(10));
    for said in udp.into_iter().flatten().map(Running::stop) {
        println!("UDP: {said}");
        // It goes on by itself: its last answers are of after the move.
        assert!(u128::from(number(&said, "longest-gap-ms")) < since.elapsed().as_millis() - 400, "{said}");
    }
    // Of TCP that the new node never saw begin, the old one has told.
    for said in kept.map(Running::stop) {
        println!("TCP: {said}");
        // It comes in order, so what is missing was under way at the end.
        assert!(!said.contains("broken") && number(&said, "lost") < 50 && number(&said, "received") > 500, "{said}");
    }
    // And what the rule alone allowed goes with it.
    namespace.group("db", &format!("[{udp_rule}]"), None);
    namespace.enforced();
    std::thread::sleep(Duration::from_secs(1));
    for said in cut.map(Running::stop) {
        assert!(number(&said, "lost") > 30 && number(&said, "received") > 500, "{said}");
    }
    namespace.group("db", &format!("[{tcp_rule}, {udp_rule}]"), None);
    namespace.enforced();
    assert_forbidden(attempts);

    // With its power off: the one object moves, before the machine starts again.
    let attempts = forbidden(&pods);
    drop(guest);
    namespace.until("nic", "mover-n2", "Ready", "False", "DeviceNotFound");
    namespace.kubectl(&["patch", "nic", "mover-n2", "--type=merge", "-p", "{\"spec\": {\"nodeName\": \"n1\"}}"]);
    namespace.until("nic", "mover-n2", "Ready", "False", "DeviceNotFound");
    namespace.enforced();
    guest = HERE.boot(false);
    let since = Instant::now();
    eventually("it works on the other node", works);
    println!("new connections {:?} after its start", since.elapsed());
    namespace.until("nic", "mover-n2", "Ready", "True", "Watched");
    assert_forbidden(attempts);
    drop(guest);
}
