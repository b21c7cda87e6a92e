//! Everything at once, for minutes: groups are edited, pods come and go by the hundred, agents and controllers are killed and
//! replaced, the API server goes away; and all the while every forbidden pair and every permitted one is tried, over and over.
//!
//! Needs the cluster of `make cluster` with Ringfence installed; `make soak` runs it. Of what is forbidden nothing may come
//! through at any moment; the longest silence of what is permitted is printed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "likewise")]
#[path = "../e2e/reach.rs"]
mod reach;

use cluster::{Namespace, Running, command, eventually, find_number, kubectl, output_of};
use reach::Pod;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SYSTEM: &str = "ringfence-system";
const ANYWHERE: &str = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";

/// Pods that come and go, in waves.
const PODS: usize = 500;
const WAVE: usize = 25;

/// They do nothing but be members.
const CHURN: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: churn}
spec:
  replicas: 0
  selector: {matchLabels: {app: churn}}
  template:
    metadata: {labels: {app: churn}}
    spec:
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      enableServiceLinks: false
      containers:
      - name: churn
        image: ringfence.test/toolbox:1
        imagePullPolicy: Never
        command: [/bin/sleep, '3600']
";

/// Longer than it takes; flows are ended by us.
const TRAFFIC: &str = "60m";

fn main() {
    let started = Instant::now();
    let log = |what: &str| println!("{:5.1} s  {what}", started.elapsed().as_secs_f64());
    let namespace = Namespace::new("soak");
    let pods = scene(&namespace);
    let flows = Flows::start(&pods);

    let mut edits = 0;
    let mut churned = 0;
    let troubles: [(&str, fn()); 8] = [
        ("agents and controllers are replaced", replace),
        ("the agent of n1 is killed", || kill_agent("n1")),
        ("the agent of n2 is killed", || kill_agent("n2")),
        ("nft hangs on n1", || signal_nft("n1", "-STOP")),
        ("nft is killed on n2", || signal_nft("n2", "-KILL")),
        ("the leading controller is killed", kill_leader),
        ("there is no controller for twenty seconds", without_controller),
        ("the API server is gone for ten seconds", stop_api_server),
    ];
    let mut troubles = troubles.into_iter().cycle();
    while churned < PODS {
        log(&format!("{churned} pods came and went, {edits} edits"));
        namespace.kubectl(&["scale", "deployment", "churn", &format!("--replicas={WAVE}")]);
        for _ in 0..10 {
            edits += 1;
            edit(&namespace, edits);
        }
        namespace.kubectl(&["rollout", "status", "deployment/churn", "--timeout=180s"]);
        namespace.kubectl(&["scale", "deployment", "churn", "--replicas=0"]);
        churned += WAVE;
        if let Some((what, trouble)) = troubles.next() {
            log(what);
            trouble();
        }
        edits += 1;
        edit(&namespace, edits);
        eventually("the wave is gone", || {
            namespace.kubectl(&["get", "pods", "-l", "app=churn", "-o", "name"]).is_empty()
        });
    }
    namespace.enforced();
    log(&format!("{churned} pods came and went, {edits} edits, all enforced"));
    flows.assert();
}

/// Servers and clients on both nodes; "friend" may reach port 80 and 53 and ping, "stranger" nothing.
fn scene(namespace: &Namespace) -> BTreeMap<String, Pod> {
    // With a share of the processors: what has none is starved here, and its sockets overflow.
    for node in ["n1", "n2"] {
        let server = reach::pod_manifest(&format!("server-{}", &node[1..]), "server", node);
        namespace.apply(&server.replace("    image:", "    resources: {requests: {cpu: '1'}}\n    image:"));
    }
    let mut pods = namespace.pods(&[
        ("friend-1", "friend", "n1"),
        ("friend-2", "friend", "n2"),
        ("stranger-1", "stranger", "n1"),
        ("stranger-2", "stranger", "n2"),
    ]);
    namespace.group("friend", "[]", None);
    namespace.group("stranger", "[]", None);
    namespace.bind("friend", &["friend", "edited"], "friend");
    namespace.bind("stranger", &["stranger"], "stranger");
    namespace.bind("server", &["server", "edited"], "server");
    namespace.bind("churn", &["friend", "edited"], "churn");
    edit(namespace, 0);
    namespace.apply(CHURN);
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/server-1", "pod/server-2", "--timeout=60s"]);
    for server in ["server-1", "server-2"] {
        pods.insert(server.to_owned(), namespace.pod(server));
    }
    namespace.enforced();
    pods
}

/// Rules change all the time; what is permitted and what is forbidden never does.
fn edit(namespace: &Namespace, round: usize) {
    let friend = "remote: {securityGroup: {name: friend}}";
    let port = 1000 + round % 5000;
    let always = format!(
        "{{protocol: TCP, ports: [80], {friend}}}, {{protocol: UDP, ports: [53], {friend}}}, {{protocol: ICMP, {friend}}}"
    );
    let other = match round % 3 {
        0 => format!("{{protocol: TCP, ports: [{port}], remote: {ANYWHERE}}}"),
        1 => format!("{{protocol: UDP, ports: [\"{port}-{}\"], {friend}}}", port + 9),
        _ => format!("{{protocol: TCP, ports: [{port}], remote: {{cidrs: [\"192.0.2.{}/32\"]}}}}", round % 250),
    };
    namespace.group("server", &format!("[{always}, {other}]"), None);
    namespace.group("edited", &format!("[{{protocol: TCP, ports: [{}], remote: {ANYWHERE}}}]", 20_000 + round), None);
}

/// Every pair of a client and a server, each over both families and three protocols.
struct Flows {
    permitted: Vec<(String, Running)>,
    forbidden: Vec<(String, Running)>,
}

impl Flows {
    fn start(pods: &BTreeMap<String, Pod>) -> Self {
        let mut flows = Self { permitted: Vec::new(), forbidden: Vec::new() };
        for (client, server) in ["friend-1", "friend-2", "stranger-1", "stranger-2"]
            .into_iter()
            .flat_map(|client| ["server-1", "server-2"].map(|server| (client, server)))
        {
            for address in &pods[server].addresses {
                for (kind, arguments) in [
                    ("tcp", vec!["hammer", "tcp", address, "80", "--timeout", "500ms"]),
                    ("udp", vec!["stream", "udp", address, "53"]),
                    ("icmp", vec!["stream", "icmp", address]),
                ] {
                    let mut probe = pods[client].probes().probe();
                    probe.args(arguments).args(["--interval", "20ms", "--duration", TRAFFIC]);
                    let flow = (format!("{client} to {server}, {kind} to {address}"), Running::start(probe));
                    if client.starts_with("friend") { flows.permitted.push(flow) } else { flows.forbidden.push(flow) }
                }
            }
        }
        flows
    }

    fn assert(self) {
        let mut wrong = Vec::new();
        let (mut tried, mut longest) = (0, 0);
        for (what, flow) in self.forbidden {
            let said = flow.stop();
            tried += find_number(&said, "tried").or(find_number(&said, "sent")).unwrap();
            if find_number(&said, "open").or(find_number(&said, "received")) != Some(0) {
                wrong.push(format!("forbidden, and came through: {what}: {said}"));
            }
        }
        println!("forbidden pairs: {tried} attempts, {} pairs with a success", wrong.len());
        for (what, flow) in self.permitted {
            let said = flow.stop();
            longest = longest.max(find_number(&said, "longest-gap-ms").unwrap());
            println!("{what}: {said}");
        }
        println!("permitted pairs: the longest gap is {longest} ms");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

fn replace() {
    for workload in ["daemonset/ringfence-agent", "deployment/ringfence-controller"] {
        kubectl(&["-n", SYSTEM, "rollout", "restart", workload]);
        kubectl(&["-n", SYSTEM, "rollout", "status", workload, "--timeout=120s"]);
    }
}

fn kill_agent(node: &str) {
    let pid = cluster::agent(node);
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    std::thread::sleep(Duration::from_secs(1));
    eventually("the agent is back", || {
        kubectl(&["-n", SYSTEM, "get", "daemonset", "ringfence-agent", "-o", "jsonpath={.status.numberReady}"]) == "2"
    });
}

/// Every nft that is at work or waits for it; that it was so is found out by what comes next.
fn signal_nft(node: &str, signal: &str) {
    // A child is its thread's.
    let threads = std::fs::read_dir(format!("/proc/{}/task", cluster::agent(node))).unwrap();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).ok());
    let children = children.collect::<String>();
    assert!(!children.is_empty(), "the agent of {node} has no nft standing by");
    for pid in children.split_whitespace() {
        // What ended by itself meanwhile needs no signal.
        let _ = std::process::Command::new("kill").args([signal, pid]).status().unwrap();
    }
}

fn kill_leader() {
    let leader =
        kubectl(&["-n", SYSTEM, "get", "lease", "ringfence-controller", "-o", "jsonpath={.spec.holderIdentity}"]);
    kubectl(&["-n", SYSTEM, "delete", "pod", &leader, "--grace-period=0", "--force"]);
}

fn without_controller() {
    let scale = |replicas: &str| {
        kubectl(&["-n", SYSTEM, "scale", "deployment", "ringfence-controller", &format!("--replicas={replicas}")]);
    };
    scale("0");
    std::thread::sleep(Duration::from_secs(20));
    scale("2");
    kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/ringfence-controller", "--timeout=120s"]);
}

fn stop_api_server() {
    let service = |action: &str| {
        let mut service = command("service");
        service.args([action, "control", "apiserver"]);
        output_of(service);
    };
    service("stop");
    std::thread::sleep(Duration::from_secs(10));
    service("start");
    eventually("the API server is back", || {
        command("kubectl").args(["get", "--raw", "/readyz"]).output().unwrap().status.success()
    });
}
