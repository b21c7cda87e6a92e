//! What is denied is told: to who follows, in the log, as a metric; and nodes say what their kernels do, when they are asked.

use super::cluster::{Namespace, SOON, agent, alone, calm, eventually, get, kubectl, on_node};
use super::disruption::SYSTEM;
use super::plugin::{said, sg, sg_command};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};

const ANYWHERE: &str = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";

/// `kubectl sg drops --follow`, for as long as it is held.
struct Following {
    sg: Child,
    lines: Receiver<Value>,
    heard: Vec<Value>,
}

impl Following {
    fn start(arguments: &[&str]) -> Self {
        let mut sg = sg_command(&[&["drops", "--follow", "-o", "json"], arguments].concat());
        let mut child = sg.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { sg: child, lines: heard, heard: Vec::new() }
    }

    /// One that is like this: of those that came, or that comes.
    fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some(found) = self.heard.iter().find(|denied| is(denied)) {
                return found.clone();
            }
            let next = self.lines.recv_timeout(SOON);
            self.heard.push(next.unwrap_or_else(|error| panic!("{what}: {error}; heard: {:?}", self.heard)));
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.sg.kill();
        let _ = self.sg.wait();
    }
}

/// The pod of a node's agent.
fn agent_pod(node: &str) -> String {
    let pods = get(&["-n", SYSTEM, "pods", "-l", "app.kubernetes.io/component=agent"]);
    let on_node = pods["items"].as_array().unwrap().iter().find(|pod| pod["spec"]["nodeName"] == node);
    on_node.unwrap()["metadata"]["name"].as_str().unwrap().to_owned()
}

#[test]
fn a_denied_connection_shows_with_both_ends_and_the_nearest_rule() {
    let _calm = calm();
    let namespace = Namespace::new("drops");
    let pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    namespace.group(
        "server",
        "[{protocol: TCP, ports: [80], remote: {securityGroup: {name: server}}, description: each other}]",
        None,
    );
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let (server, client) = (&pods["server"], &pods["client"]);
    let mut follow = Following::start(&["-n", &namespace.0]);
    assert!(!client.reaches(server, 80));
    for (source, destination) in client.addresses.iter().zip(&server.addresses) {
        let denied = follow.until(destination, |denied| denied["destination"]["address"] == **destination);
        assert_eq!(denied["source"]["address"], **source, "{denied}");
        assert_eq!(denied["source"]["name"], "pod/e2e-drops/client", "{denied}");
        assert_eq!(denied["destination"]["name"], "pod/e2e-drops/server", "{denied}");
        assert_eq!(denied["l4"], serde_json::json!({ "ports": ["tcp", 80] }), "{denied}");
        assert_eq!(denied["direction"], "ingress", "{denied}");
        assert_eq!(denied["node"], "n1", "{denied}");
        assert_eq!(denied["groups"], serde_json::json!(["e2e-drops/server"]), "{denied}");
        assert_eq!(denied["nearest"]["text"], "TCP 80 from sg/server", "{denied}");
        assert_eq!(denied["nearest"]["miss"], "remote", "{denied}");
    }
    drop(follow);

    // Who comes later sees it too, and who asks about somebody else does not.
    let of = |target: &str| said(&sg(&["drops", "-n", &namespace.0, target]));
    let seen = of("pod/client");
    for word in ["pod/e2e-drops/client", "TCP 80", "into TO", "e2e-drops/server", "same port, other remote"] {
        assert!(seen.contains(word), "{word}: {seen}");
    }
    assert!(of("192.0.2.77").contains("nothing was denied lately"));
    let elsewhere = said(&sg(&["drops", "-n", "default"]));
    assert!(!elsewhere.contains("e2e-drops"), "{elsewhere}");

    let pod = agent_pod("n1");
    let log = kubectl(&["-n", SYSTEM, "logs", &pod, "--since=5m"]);
    for address in &client.addresses {
        let words = ["connection denied", "e2e-drops/server", address.as_str()];
        assert!(log.lines().any(|line| words.iter().all(|word| line.contains(*word))), "{address}: {log}");
    }
    let metrics = kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}:9181/proxy/metrics")]);
    let counted = "ringfence_agent_denied_connections_total{direction=\"ingress\",namespace=\"e2e-drops\"} 2";
    assert!(metrics.contains(counted), "{metrics}");

    // Who can reach the node cannot ask it.
    let listening = on_node("n1", &["ss", "--listening", "--tcp", "--numeric", "--no-header"]);
    let ports: Vec<&str> = listening.lines().filter(|line| line.contains(":9182 ")).collect();
    assert!(ports.len() == 1 && ports[0].contains("127.0.0.1:9182"), "{listening}");
    let tenant = ["auth", "can-i", "create", "pods/portforward", "-n", SYSTEM, "--as=tenant"];
    assert!(super::cluster::attempt(kubectl_command(&tenant), "").is_err());
}

fn kubectl_command(arguments: &[&str]) -> std::process::Command {
    let mut kubectl = super::cluster::command("kubectl");
    kubectl.args(arguments);
    kubectl
}

/// A node whose agent is cut off from the API server, until it is dropped. So is its kubelet, but that is asked, and does not ask.
struct CutOff(&'static str);

impl CutOff {
    fn new(node: &'static str) -> Self {
        on_node(
            node,
            &[
                "nft",
                "table inet e2e_cut_off { chain out { type filter hook output priority 10; tcp dport 6443 drop; }; \
                 chain in { type filter hook input priority 10; tcp sport 6443 drop; }; }",
            ],
        );
        Self(node)
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        on_node(self.0, &["nft", "delete table inet e2e_cut_off"]);
    }
}

#[test]
fn s15_nodes_say_what_their_kernels_do_and_whether_they_are_behind() {
    let _alone = alone();
    let namespace = Namespace::new("live");
    let pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    let allow = |port: u16| {
        namespace.group("server", &format!("[{{protocol: TCP, ports: [{port}], remote: {ANYWHERE}}}]"), None)
    };
    allow(443);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let explain = |to: &str| {
        let output = sg(&["explain", "-n", &namespace.0, "--live", "pod/client", to]);
        (output.status.code(), said(&output))
    };
    for (to, code, word) in [("pod/server:443", 0, "ALLOWED"), ("pod/server:80", 1, "DENIED")] {
        let (ended, said) = explain(to);
        assert_eq!(ended, Some(code), "{said}");
        let agreed = ["kernel of n1, in: agrees", "kernel of n2, out: agrees"];
        assert!(said.starts_with(word) && agreed.iter().all(|line| said.contains(line)), "{said}");
    }

    // The API says something that n1 has not heard.
    let cut_off = CutOff::new("n1");
    allow(80);
    namespace.until("sg", "server", "Enforced", "False", "Pending");
    let (ended, told) = explain("pod/server:80");
    assert!(ended == Some(1) && told.starts_with("ALLOWED"), "{told}");
    for line in ["kernel of n1, in: does NOT agree", "it has generation 1 of e2e-live/server, the API has 2"] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(!pods["client"].reaches(&pods["server"], 80), "it is as the node says");
    drop(cut_off);
    namespace.enforced();
    let (ended, told) = explain("pod/server:80");
    assert!(ended == Some(0) && told.contains("kernel of n1, in: agrees"), "{told}");

    // Somebody else opens what is closed: it is closed again by the time anybody can say so, and that is said.
    on_node("n1", &["nft", "insert rule inet ringfence denied_ingress accept"]);
    let (_, told) = explain("pod/server:443");
    assert!(told.contains("kernel of n1, in: agrees") && told.contains("changed table inet ringfence"), "{told}");

    // An agent that does not answer is not taken for one that agrees.
    let paused = super::disruption::Paused::new(agent("n1"));
    let (ended, told) = explain("pod/server:80");
    drop(paused);
    assert!(ended == Some(1) && told.contains("kernel of n1, in: cannot say"), "{told}");
    eventually("n1 answers again", || explain("pod/server:80").0 == Some(0));
}
