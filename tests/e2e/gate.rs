//! The start gate: no pod passes a packet before its rules are in the kernel (S7), and it goes without a trace.

use super::cluster::{Namespace, agent, alone, calm, eventually, get, in_node, kubectl, number, output_of, table};
use super::disruption::{Paused, SYSTEM};
use super::reach::{Pod, pod_manifest};
use serde_json::Value;
use std::process::Command;

/// Those of the cluster.
pub const NODES: [&str; 2] = ["n1", "n2"];
const ENTRY: &str = "\"ringfence-cni\"";
/// The configuration of their pods' network.
pub const CONFLIST: &str = "/etc/cni/net.d/10-pods.conflist";
const PROGRAM: &str = "/opt/cni/bin/ringfence-cni";

/// What a command says there; nothing, if it fails.
pub fn on(node: &str, arguments: &[&str]) -> String {
    let output = in_node(node).args(arguments).output().unwrap();
    if output.status.success() { String::from_utf8(output.stdout).unwrap() } else { String::new() }
}

/// Whether the gate of a node is in its place, as its report and its files say.
pub fn is_in_place(node: &str) -> bool {
    on(node, &["cat", CONFLIST]).contains(ENTRY) && !on(node, &["ls", PROGRAM]).is_empty()
}

fn gate_condition(node: &str) -> String {
    let report = get(&["nodeenforcement", node]);
    let conditions = report["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let gate = conditions.into_iter().find(|c| c["type"] == "GateReady").unwrap_or_default();
    format!("{} {}", gate["status"].as_str().unwrap_or_default(), gate["reason"].as_str().unwrap_or_default())
}

/// A pod whose only program hammers a port from its first instruction on, and then ends.
pub fn hasty(name: &str, node: &str, address: &str, port: u16) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: hasty}}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
  - name: hasty
    image: ringfence.test/toolbox:1
    imagePullPolicy: Never
    command: [/bin/probe, hammer, tcp, '{address}', '{port}', --interval, 2ms, --duration, 1500ms, --timeout, 300ms]
"
    )
}

/// The attempts and the successes that a hasty pod counted.
pub fn counted(namespace: &Namespace, pod: &str) -> (u64, u64) {
    let said = namespace.kubectl(&["logs", pod]);
    (number(&said, "tried"), number(&said, "open"))
}

#[test]
fn s7_a_new_pod_never_reaches_what_it_may_not() {
    let _calm = calm();
    let namespace = Namespace::new("first-packet");
    let server = namespace.pods(&[("server", "server", "n2")]).remove("server").unwrap();
    // There before the pods are: the agents have them.
    namespace.group("caged", "[]", Some("[{protocol: TCP, ports: [443], remote: {cidrs: [\"0.0.0.0/0\", \"::/0\"]}}]"));
    namespace.bind("caged", &["caged"], "hasty");
    namespace.bind("witness", &["caged"], "server");
    namespace.enforced();
    namespace.kubectl(&["delete", "sgb", "witness"]);
    eventually("the server is open again", || {
        super::reach::From::Node("n1").reaches_one(&super::reach::target("tcp", &server.addresses[0], 80))
    });
    let mut names = Vec::new();
    for round in 0..4 {
        let mut manifests = String::new();
        for node in NODES {
            for (family, address) in server.addresses.iter().enumerate() {
                let name = format!("hasty-{node}-{family}-{round}");
                manifests += &hasty(&name, node, address, 80);
                names.push(name);
            }
        }
        namespace.apply(&manifests);
    }
    // And one that shows that there is something to be reached.
    namespace.apply(&hasty("allowed", "n1", &server.addresses[0], 443));
    names.push("allowed".into());
    for name in &names {
        let pod = format!("pod/{name}");
        namespace.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", &pod, "--timeout=120s"]);
        let (tried, open) = counted(&namespace, name);
        assert!(tried > 0, "{name} tried {tried} times");
        if name == "allowed" {
            assert!(open > 0, "nothing was reached though it may be");
        } else {
            assert_eq!(open, 0, "{name} reached what it may not, {open} times of {tried}");
        }
    }
}

/// Writes the configuration of a node's pod network as its owner would, who does not know of us.
pub fn rewrite(node: &str) {
    let mut config: Value = serde_json::from_str(&on(node, &["cat", CONFLIST])).unwrap();
    let ours = config["plugins"].as_array_mut().unwrap().pop().unwrap();
    assert_eq!(ours["type"], "ringfence-cni");
    config["added"] = "by its owner".into();
    on(node, &["sh", "-c", &format!("echo '{config}' > {CONFLIST}")]);
}

#[test]
fn the_plugins_place_is_kept_whoever_rewrites_it() {
    let _alone = alone();
    for node in NODES {
        eventually("the gate is in its place", || is_in_place(node) && gate_condition(node) == "True Installed");
        rewrite(node);
        eventually("its entry is back", || is_in_place(node));
        assert!(on(node, &["cat", CONFLIST]).contains("by its owner"), "the rest is as its owner wants it");
        on(node, &["rm", PROGRAM]);
        eventually("its program is back", || is_in_place(node));
        eventually("it says so", || gate_condition(node) == "True Installed");
    }
    let namespace = Namespace::new("rewritten");
    namespace.pods(&[("one", "one", "n1"), ("two", "two", "n2")]);
}

/// Why a pod does not start, if that is what its events say.
pub fn sandbox_failure(namespace: &Namespace, pod: &str) -> Option<String> {
    let field = format!("involvedObject.name={pod},reason=FailedCreatePodSandBox");
    let events = get(&["-n", &namespace.0, "events", "--field-selector", &field]);
    Some(events["items"].as_array()?.first()?["message"].as_str()?.to_owned())
}

fn is_running(namespace: &Namespace, pod: &str) -> bool {
    namespace.get("pod", pod)["status"]["phase"] == "Running"
}

#[test]
fn s7_a_pod_waits_for_an_agent_that_hangs() {
    let _alone = alone();
    let namespace = Namespace::new("hanging-agent");
    let paused = Paused::new(agent("n1"));
    namespace.apply(&pod_manifest("late", "late", "n1"));
    namespace.apply(&pod_manifest("elsewhere", "elsewhere", "n2"));
    eventually("the plugin gives up", || sandbox_failure(&namespace, "late").is_some());
    let why = sandbox_failure(&namespace, "late").unwrap();
    assert!(why.contains("are not known to be in this node's kernel"), "{why}");
    assert!(!is_running(&namespace, "late"));
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/elsewhere", "--timeout=30s"]);
    drop(paused);
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"]);
}

/// A small file system over a folder of an agent, which others see as it was, until this is dropped.
pub struct Covered {
    agent: String,
    folder: &'static str,
}

impl Covered {
    /// Covers it; with `ro`, for one, nothing can be written.
    pub fn new(agent: String, folder: &'static str, options: &str) -> Self {
        let covered = Self { agent, folder };
        covered.run(&["mount", "-t", "tmpfs", "-o", &format!("size=4k,{options}"), "tmpfs", folder]);
        covered
    }

    /// Runs a command that sees what the agent sees.
    fn run(&self, arguments: &[&str]) {
        let mut inside = Command::new("nsenter");
        inside.args(["--target", &self.agent, "--mount", "--"]).args(arguments);
        output_of(inside);
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        self.run(&["umount", self.folder]);
    }
}

#[test]
fn s8_a_full_disk_holds_up_new_pods_alone() {
    let _alone = alone();
    let namespace = Namespace::new("full-disk");
    let pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    namespace.group("server", "[{protocol: TCP, ports: [80], remote: {cidrs: [\"0.0.0.0/0\", \"::/0\"]}}]", None);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let full = Covered::new(agent("n1"), "/run/ringfence/attachments", "rw");
    full.run(&["sh", "-c", "! head -c 8192 /dev/zero > /run/ringfence/attachments/filler"]);
    namespace.apply(&pod_manifest("late", "server", "n1"));
    eventually("the plugin is told", || sandbox_failure(&namespace, "late").is_some());
    let why = sandbox_failure(&namespace, "late").unwrap();
    assert!(why.contains("cannot remember the attachment") && why.contains("No space left"), "{why}");
    assert!(!is_running(&namespace, "late"));
    namespace.group("server", "[{protocol: TCP, ports: [443], remote: {cidrs: [\"0.0.0.0/0\", \"::/0\"]}}]", None);
    namespace.enforced();
    assert!(pods["client"].reaches(&pods["server"], 443) && !pods["client"].reaches(&pods["server"], 80));
    drop(full);
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"]);
    let late = namespace.pod("late");
    assert!(pods["client"].reaches(&late, 443) && !pods["client"].reaches(&late, 80));
}

/// Agents on every node again, whatever happens.
struct AgentsBack;

impl AgentsBack {
    fn take_away() -> Self {
        let away = r#"{"spec":{"template":{"spec":{"nodeSelector":{"ringfence-test":"nowhere"}}}}}"#;
        kubectl(&["-n", SYSTEM, "patch", "daemonset", "ringfence-agent", "--patch", away]);
        let back = Self;
        eventually("the agents are gone", || {
            kubectl(&["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", "name"]).is_empty()
        });
        back
    }
}

impl Drop for AgentsBack {
    fn drop(&mut self) {
        let back = r#"[{"op": "remove", "path": "/spec/template/spec/nodeSelector"}]"#;
        kubectl(&["-n", SYSTEM, "patch", "daemonset", "ringfence-agent", "--type=json", "--patch", back]);
        kubectl(&["-n", SYSTEM, "rollout", "status", "daemonset/ringfence-agent", "--timeout=60s"]);
    }
}

#[test]
fn s8_without_agents_pods_stay_guarded_and_can_be_deleted_but_none_starts() {
    let _alone = alone();
    let namespace = Namespace::new("no-agents");
    let pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2"), ("doomed", "doomed", "n1")]);
    namespace.group("server", "[{protocol: TCP, ports: [80], remote: {cidrs: [\"0.0.0.0/0\", \"::/0\"]}}]", None);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let back = AgentsBack::take_away();
    namespace.kubectl(&["delete", "pod", "doomed", "--timeout=20s"]);
    namespace.apply(&pod_manifest("late", "server", "n1"));
    eventually("the plugin gives up", || sandbox_failure(&namespace, "late").is_some());
    assert!(sandbox_failure(&namespace, "late").unwrap().contains("does not answer"));
    assert!(!is_running(&namespace, "late"));
    assert!(NODES.into_iter().all(is_in_place), "only removing the product removes the plugin");
    assert!(pods["client"].reaches(&pods["server"], 80) && !pods["client"].reaches(&pods["server"], 443));
    drop(back);
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"]);
    let late = namespace.pod("late");
    assert!(pods["client"].reaches(&late, 80) && !pods["client"].reaches(&late, 443));
}

/// Whether the rules of a node speak of an address.
pub fn is_in_kernel(node: &str, address: &str) -> bool {
    let table = table(node);
    table.split(|c: char| !(c.is_ascii_hexdigit() || matches!(c, '.' | ':'))).any(|word| word == address)
}

#[test]
fn s10_a_deleted_pods_address_is_out_of_the_kernel_when_the_pod_is_gone() {
    let _calm = calm();
    let namespace = Namespace::new("taken-out");
    let pods = namespace.pods(&[("server", "server", "n1")]);
    namespace.group("server", "[]", None);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let held = |address: &String| is_in_kernel("n1", address);
    let Pod { addresses, .. } = &pods["server"];
    assert!(addresses.iter().all(held));
    let attached = || on("n1", &["sh", "-c", "cat /run/ringfence/attachments/*"]);
    assert!(attached().contains(&addresses[0]));
    namespace.kubectl(&["delete", "pod", "server", "--timeout=30s"]);
    eventually("its addresses are out", || !addresses.iter().any(held));
}
