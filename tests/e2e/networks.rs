//! Secondary networks: one pod, two interfaces, and a group on each. A plugin of the test cluster attaches pods to them as Multus
//! does, which itself does not run here.

use super::cluster::{Namespace, Running, SOON, agent, alone, calm, eventually, kubectl, within};
use super::disruption::{Paused, SYSTEM};
use super::gate::{counted, hasty, is_in_kernel, sandbox_failure};
use super::lifecycle::agents_are_ready;
use super::plugin::{said, sg};
use super::reach::{From, Pod, both, pod_manifest};
use serde_json::Value;

pub const DEFINITIONS: &str = include_str!("../cluster/manifests/networks.yaml");

/// A pod's manifest with what it asks for of networks.
pub fn asking(manifest: &str, networks: &str) -> String {
    manifest.replace("labels: {", &format!("annotations: {{k8s.v1.cni.cncf.io/networks: '{networks}'}}, labels: {{"))
}

/// Creates pods, given as name, app, node and what they ask for of networks, and waits until they are ready.
pub fn pods<const N: usize>(namespace: &Namespace, pods: [(&str, &str, &str, &str); N]) -> [Pod; N] {
    let manifests = pods.map(|(name, app, node, networks)| asking(&pod_manifest(name, app, node), networks));
    namespace.apply(&manifests.concat());
    pods.map(|(name, ..)| {
        namespace.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        namespace.pod(name)
    })
}

/// The same pod, at its addresses on a secondary network.
pub fn on(namespace: &Namespace, pod: &Pod, network: &str) -> Pod {
    let annotations = &namespace.get("pod", &pod.name)["metadata"]["annotations"];
    let statuses: Vec<Value> =
        serde_json::from_str(annotations["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap()).unwrap();
    let name = format!("{}/{network}", namespace.0);
    let status = statuses.iter().find(|status| status["name"] == name.as_str()).unwrap();
    let addresses = status["ips"].as_array().unwrap().iter().map(|ip| ip.as_str().unwrap().to_owned());
    Pod { addresses: addresses.collect(), ..pod.clone() }
}

pub fn bind(namespace: &Namespace, name: &str, app: &str, networks: &str) {
    namespace.apply(&format!(
        "{{apiVersion: ringfence.io/v1alpha1, kind: SecurityGroupBinding, metadata: {{name: {name}}}, spec: \
         {{securityGroups: [{{name: {name}}}], target: {{podSelector: {{matchLabels: {{app: {app}}}}}}}, networks: {networks}}}}}"
    ));
}

fn mysql_from(group: &str) -> String {
    format!("[{{protocol: TCP, ports: [3306], remote: {{securityGroup: {{name: {group}}}}}}}]")
}

#[test]
fn s2_s4_each_interface_of_a_pod_has_groups_of_its_own() {
    let _calm = calm();
    let namespace = Namespace::new("networks");
    namespace.apply(DEFINITIONS);
    let [db, app, far, other] = pods(
        &namespace,
        [
            ("db", "db", "n1", "bridge"),
            ("app", "app", "n1", "bridge"),
            ("far", "app", "n2", "bridge"),
            ("other", "other", "n2", "bridge"),
        ],
    );
    let back = on(&namespace, &db, "bridge");
    for pod in [&app, &far, &other] {
        assert!(pod.reaches(&db, 22) && pod.reaches(&back, 22), "{}: not guarded yet", pod.name);
    }
    let anywhere = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";
    namespace.group("front", &format!("[{{protocol: TCP, ports: [80], remote: {anywhere}}}]"), None);
    namespace.bind("front", &["front"], "db");
    namespace.group("back-app", "[]", None);
    let attached = sg(&[
        "attach",
        "-n",
        &namespace.0,
        "back-app",
        "--to",
        "app=app",
        "--name",
        "back-app",
        "--networks",
        "bridge",
    ]);
    assert!(attached.status.success() && said(&attached).contains("selects 2 targets"), "{}", said(&attached));
    namespace.group("back", &mysql_from("back-app"), Some("[]"));
    bind(&namespace, "back", "db", &format!("[{}/bridge]", namespace.0));
    namespace.enforced();
    assert_eq!(namespace.get("sg", "back-app")["status"]["members"], 2);
    let reach = |from: &Pod, to: &Pod, ports: [u16; 3]| ports.map(|port| from.reaches(to, port));
    for pod in [&app, &far] {
        assert_eq!(reach(pod, &db, [80, 3306, 22]), [true, false, false], "{}: at the front", pod.name);
        assert_eq!(reach(pod, &back, [80, 3306, 22]), [false, true, false], "{}: at the back", pod.name);
    }
    assert_eq!(reach(&other, &back, [80, 3306, 22]), [false; 3], "it is no member there");
    assert!(db.reaches(&other, 22), "out by the front, which has the default rule");
    let elsewhere = on(&namespace, &other, "bridge");
    assert!(!db.reaches(&elsewhere, 22), "and not by the back");
    // The members of the back are addresses of the back alone.
    for (source, address) in app.addresses.iter().zip(&back.addresses) {
        let mut probe = From::Pod(&app).probe();
        probe.args(["tcp", address, "3306", "--timeout", "1s", "--source", source]);
        assert!(!probe.output().unwrap().status.success(), "from {source}, which is of another network");
    }

    // A rule that goes cuts what is open, on that interface alone.
    let stream = |to: &Pod, port: &str| {
        let mut stream = far.probes().probe();
        stream.args(["stream", "tcp", &to.addresses[0], port, "--interval", "10ms", "--duration", "10m"]);
        Running::start(stream)
    };
    let (at_front, at_back) = (stream(&db, "80"), stream(&back, "3306"));
    std::thread::sleep(std::time::Duration::from_secs(1));
    namespace.group("back", "[]", Some("[]"));
    namespace.enforced();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let (at_front, at_back) = (at_front.stop(), at_back.stop());
    assert!(at_front.contains(" lost 0 ") && !at_front.contains("sent 0 "), "{at_front}");
    assert!(!at_back.contains(" lost 0 ") && !at_back.contains("received 0 "), "{at_back}");
    assert!(!both(&app.probes().reaches(&back.on("tcp", 3306))));
}

#[test]
fn s15_what_passes_no_rules_is_never_called_enforced() {
    // What it does to the node's condition OwnAddressesOnly is nothing for others to see.
    let _alone = alone();
    let namespace = Namespace::new("unreachable-networks");
    namespace.apply(DEFINITIONS);
    let macvlan = "[{\"name\": \"macvlan\", \"ips\": [\"10.31.0.21/24\", \"fd31::21/64\"]}, {\"name\": \"layer2\"}]";
    pods(&namespace, [("db", "db", "n1", macvlan)]);
    namespace.group("macvlan", "[]", Some("[]"));
    bind(&namespace, "macvlan", "db", "[macvlan]");
    namespace.group("layer2", "[]", Some("[]"));
    bind(&namespace, "layer2", "db", "[layer2]");
    for (network, why) in [("macvlan", "as with macvlan"), ("layer2", "gives net2 no address")] {
        for kind in ["sgb", "sg"] {
            let message = namespace.until(kind, network, "Enforced", "False", "Bypassed");
            let about = format!("n1 ({0}/db on {0}/{network}: ", namespace.0);
            assert!(message.contains(&about) && message.contains(why), "{message}");
        }
    }
    // The pod's other interfaces are not guarded by it.
    namespace.group("unused", "[]", None);
    bind(&namespace, "unused", "db", "[elsewhere]");
    namespace.until("sgb", "unused", "Enforced", "True", "Unused");

    let refused = namespace.try_apply(
        "{apiVersion: ringfence.io/v1alpha1, kind: SecurityGroupBinding, metadata: {name: bad}, spec: \
         {securityGroups: [{name: macvlan}], target: {networkInterfaceSelector: {}}, networks: [macvlan]}}",
    );
    assert!(refused.unwrap_err().contains("a NetworkInterface is one interface of its own: leave networks out"));
}

#[test]
fn s8_agents_that_start_anew_leave_no_interface_open() {
    let _alone = alone();
    let namespace = Namespace::new("networks-restart");
    namespace.apply(DEFINITIONS);
    let [db, app] = pods(&namespace, [("db", "db", "n1", "bridge"), ("app", "app", "n2", "bridge")]);
    let back = on(&namespace, &db, "bridge");
    namespace.group("back", "[]", Some("[]"));
    bind(&namespace, "back", "db", "[bridge]");
    namespace.enforced();
    let attempts = back.addresses.iter().map(|address| app.probes().hammer(address, "22", ["2ms", "300ms"]));
    let attempts: Vec<Running> = attempts.collect();
    kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/ringfence-agent"]);
    agents_are_ready();
    for said in attempts.into_iter().map(Running::stop) {
        assert!(said.contains(" open 0 ") && !said.contains("tried 0 "), "{said}");
    }
}

#[test]
fn s7_where_the_network_calls_the_plugin_a_pod_waits_for_its_rules_there() {
    let _alone = alone();
    let namespace = Namespace::new("gated-network");
    namespace.apply(DEFINITIONS);
    let [server, doomed] = pods(&namespace, [("server", "server", "n2", "gated"), ("doomed", "doomed", "n1", "gated")]);
    let back = on(&namespace, &server, "gated");
    namespace.group("caged", "[]", Some("[{protocol: TCP, ports: [443], remote: {cidrs: [\"0.0.0.0/0\", \"::/0\"]}}]"));
    bind(&namespace, "caged", "hasty", "[gated]");
    namespace.group("doomed", "[]", None);
    bind(&namespace, "doomed", "doomed", "[gated]");
    namespace.enforced();

    let paused = Paused::new(agent("n1"));
    let mut names = Vec::new();
    for (family, address) in back.addresses.iter().enumerate() {
        for (what, port) in [("forbidden", 80), ("allowed", 443)] {
            let name = format!("{what}-{family}");
            namespace.apply(&asking(&hasty(&name, "n1", address, port), "gated"));
            names.push(name);
        }
    }
    // After it the runtime calls the plugin to take down what was set up, and that waits, too.
    within(2 * SOON, "the plugin gives up", || names.iter().all(|name| sandbox_failure(&namespace, name).is_some()));
    for name in &names {
        let why = sandbox_failure(&namespace, name).unwrap();
        let about = format!("network {}/gated", namespace.0);
        assert!(why.contains(&about) && why.contains("are not known to be in this node's kernel"), "{why}");
    }
    drop(paused);
    for name in &names {
        let pod = format!("pod/{name}");
        namespace.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", &pod, "--timeout=120s"]);
        let (tried, open) = counted(&namespace, name);
        assert!(tried > 0 && (open > 0) == name.starts_with("allowed"), "{name}: {open} of {tried}");
    }

    // And its address there is nobody's before anybody else can have it.
    let addresses = on(&namespace, &doomed, "gated").addresses;
    assert!(addresses.iter().all(|address| is_in_kernel("n1", address)));
    namespace.kubectl(&["delete", "pod", "doomed", "--timeout=30s"]);
    eventually("its addresses are out", || !addresses.iter().any(|address| is_in_kernel("n1", address)));
}
