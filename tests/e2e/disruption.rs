//! Parts of Ringfence stop, and what is programmed stays (S8); what is not programmed is not called enforced (S15).

use super::cluster::{
    Namespace, Running, agent, alone, command, eventually, folder, kubectl, nobody_is_leaving, output_of,
};
use super::reach::{Pod, target};
use std::path::Path;
use std::time::Duration;

const ANYWHERE: &str = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";
/// Where Ringfence runs.
pub const SYSTEM: &str = "ringfence-system";

/// A server on n2 with port 80 open, and a client on n1.
fn scene(name: &str) -> (Namespace, Pod, Pod) {
    let namespace = Namespace::new(name);
    let mut pods = namespace.pods(&[("server", "server", "n2"), ("client", "client", "n1")]);
    allow(&namespace, 80);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let (server, client) = (pods.remove("server").unwrap(), pods.remove("client").unwrap());
    (namespace, server, client)
}

fn allow(namespace: &Namespace, port: u16) {
    namespace.group("server", &format!("[{{protocol: TCP, ports: [{port}], remote: {ANYWHERE}}}]"), None);
}

/// Stops a process until it is dropped.
pub struct Paused(String);

impl Paused {
    /// Stops it.
    pub fn new(pid: String) -> Self {
        signal(&pid, "STOP");
        Self(pid)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        signal(&self.0, "CONT");
    }
}

fn signal(pid: &str, signal: &str) {
    assert!(std::process::Command::new("kill").args([&format!("-{signal}"), pid]).status().unwrap().success());
}

#[test]
fn s15_a_node_that_has_not_committed_keeps_enforced_false() {
    let _alone = alone();
    let (namespace, server, client) = scene("behind");
    let paused = Paused::new(agent("n2"));
    allow(&namespace, 443);
    let message = namespace.until("sg", "server", "Enforced", "False", "Pending");
    assert!(message.contains("n2"), "{message}");
    let wait = |timeout: &str| {
        let mut wait = command("kubectl");
        wait.args(["-n", &namespace.0, "wait", "--for=condition=Enforced", "sg/server", timeout]);
        wait.output().unwrap().status.success()
    };
    assert!(!wait("--timeout=3s"), "it is not in the kernel");
    assert!(client.reaches(&server, 80) && !client.reaches(&server, 443), "the last revision stays in force");
    drop(paused);
    assert!(wait("--timeout=30s"));
    assert!(client.reaches(&server, 443) && !client.reaches(&server, 80));
}

#[test]
fn s8_restarts_of_agents_and_controllers_open_nothing_and_cut_nothing() {
    let _alone = alone();
    let (namespace, server, client) = scene("restarts");
    let mut allowed = client.probes().probe();
    allowed.args(["stream", "tcp", &server.addresses[0], "80", "--interval", "10ms", "--duration", "40s"]);
    let mut denied = client.probes().probe();
    denied.args([
        "hammer",
        "tcp",
        &server.addresses[0],
        "443",
        "--interval",
        "10ms",
        "--duration",
        "40s",
        "--timeout",
        "300ms",
    ]);
    let (allowed, denied) = (Running::start(allowed), Running::start(denied));
    let started = std::time::Instant::now();
    for workload in ["daemonset/ringfence-agent", "deployment/ringfence-controller"] {
        kubectl(&["-n", SYSTEM, "rollout", "restart", workload]);
        kubectl(&["-n", SYSTEM, "rollout", "status", workload, "--timeout=60s"]);
    }
    // Killed, not asked to end.
    signal(&agent("n2"), "KILL");
    std::thread::sleep(Duration::from_secs(1));
    eventually("the agent is back", || {
        let ready =
            kubectl(&["-n", SYSTEM, "get", "daemonset", "ringfence-agent", "-o", "jsonpath={.status.numberReady}"]);
        ready == "2"
    });
    println!("restarts took {:.1} s", started.elapsed().as_secs_f64());
    let (allowed, denied) = (allowed.last_line(), denied.last_line());
    assert!(allowed.contains(" lost 0 "), "{allowed}");
    assert!(denied.contains(" open 0 "), "{denied}");
    // And all is as live as before.
    allow(&namespace, 443);
    namespace.enforced();
    assert!(client.reaches(&server, 443) && !client.reaches(&server, 80));
}

#[test]
fn s8_without_the_api_server_everything_stays_and_afterwards_catches_up() {
    let _alone = alone();
    nobody_is_leaving();
    let (namespace, server, client) = scene("headless");
    let service = |action: &str| {
        let mut service = command("service");
        service.args([action, "control", "apiserver"]);
        output_of(service);
    };
    // The pod command asks the API server where the pod is.
    let mut denied = client.probes().probe();
    denied.args([
        "hammer",
        "tcp",
        &server.addresses[0],
        "443",
        "--interval",
        "10ms",
        "--duration",
        "6s",
        "--timeout",
        "300ms",
    ]);
    let mut allowed = client.probes().probe();
    allowed.args(["stream", "tcp", &server.addresses[0], "80", "--interval", "10ms", "--duration", "6s"]);
    let (denied, allowed) = (Running::start(denied), Running::start(allowed));
    std::thread::sleep(Duration::from_millis(700));
    service("stop");
    let (allowed, denied) = (allowed.last_line(), denied.last_line());
    service("start");
    assert!(allowed.contains(" lost 0 ") && denied.contains(" open 0 "), "{allowed}; {denied}");
    eventually("the API server is back", || {
        command("kubectl").args(["get", "--raw", "/readyz"]).output().unwrap().status.success()
    });
    allow(&namespace, 443);
    // Watches that had failed often come back within half a minute.
    namespace.kubectl(&["wait", "--for=condition=Enforced", "sg/server", "--timeout=60s"]);
    assert!(client.reaches(&server, 443) && !client.reaches(&server, 80));
}

/// etcd as it was, whatever has happened since. Whoever holds a watch is not told, and has seen versions that are yet to come:
/// Kubernetes' documentation says to restart its own components then. Ringfence notices by itself.
#[test]
fn s8_a_restored_etcd_is_believed() {
    let _alone = alone();
    nobody_is_leaving();
    let (namespace, server, client) = scene("restored");
    let service = |action: &str, host: &str, name: &str| {
        let mut service = command("service");
        service.args([action, host, name]);
        output_of(service);
    };
    let (data, backup) = (folder().join("control/var/lib/etcd"), folder().join("control/var/lib/etcd.backup"));
    let copy = |from: &Path, to: &Path| {
        let _ = std::fs::remove_dir_all(to);
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a").args([from, to]);
        output_of(copy);
    };
    let while_stopped = |work: &dyn Fn()| {
        service("stop", "control", "apiserver");
        service("stop", "control", "etcd");
        work();
        service("start", "control", "etcd");
        service("start", "control", "apiserver");
    };
    while_stopped(&|| copy(&data, &backup));
    namespace.kubectl(&["wait", "--for=condition=Enforced", "sg/server", "--timeout=60s"]);

    // More versions go by than a cluster that starts again goes through by itself.
    let filler: String =
        (0..400).map(|i| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: filler-{i}}}\n")).collect();
    namespace.apply(&filler);
    // What will not have been: a rule for another one, and a group that closes the client.
    allow(&namespace, 443);
    namespace.kubectl(&["wait", "--for=condition=Enforced", "sg/server", "--timeout=60s"]);
    namespace.group("client", "[]", Some("[]"));
    namespace.bind("client", &["client"], "client");
    namespace.enforced();
    assert!(!client.reaches(&server, 443), "the client is closed");

    let mut denied = client.probes().probe();
    let interval = ["--interval", "10ms", "--duration", "60s", "--timeout", "300ms"];
    denied.args(["hammer", "tcp", &server.addresses[0], "3306"]).args(interval);
    let denied = Running::start(denied);
    while_stopped(&|| copy(&backup, &data));
    std::fs::remove_dir_all(&backup).unwrap();
    for (host, name) in [
        ("control", "controller-manager"),
        ("control", "scheduler"),
        ("n1", "kube-proxy"),
        ("n2", "kube-proxy"),
        ("n1", "kubelet"),
        ("n2", "kubelet"),
    ] {
        service("restart", host, name);
    }
    let restored = std::time::Instant::now();
    let reaches = |port| client.probes().reaches_one(&target("tcp", &server.addresses[0], port));
    while !reaches(80) || reaches(443) {
        assert!(restored.elapsed() < Duration::from_secs(90), "what was restored is not in force");
    }
    println!("what was restored was in force {:.1} s after the cluster was", restored.elapsed().as_secs_f64());
    // And it goes on from there.
    allow(&namespace, 443);
    namespace.kubectl(&["wait", "--for=condition=Enforced", "sg/server", "--timeout=60s"]);
    assert!(client.reaches(&server, 443) && !client.reaches(&server, 80));
    let denied = denied.stop();
    assert!(denied.contains(" open 0 "), "{denied}");
}

#[test]
fn a_second_controller_takes_over_and_writes_only_differences() {
    let _alone = alone();
    let (namespace, server, client) = scene("takeover");
    let slice_versions = || {
        namespace.kubectl(&["get", "securitygroupslices,sg,sgb", "-o", "jsonpath={.items[*].metadata.resourceVersion}"])
    };
    let holder =
        || kubectl(&["-n", SYSTEM, "get", "lease", "ringfence-controller", "-o", "jsonpath={.spec.holderIdentity}"]);
    let (leader, before) = (holder(), slice_versions());
    kubectl(&["-n", SYSTEM, "delete", "pod", &leader, "--wait=false"]);
    eventually("another leads", || !holder().is_empty() && holder() != leader);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(slice_versions(), before, "taking over writes nothing where nothing differs");
    allow(&namespace, 443);
    namespace.enforced();
    assert!(client.reaches(&server, 443) && !client.reaches(&server, 80));
}
