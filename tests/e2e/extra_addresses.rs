//! Addresses that a pod declares beside its own, and its namespace allows (S9).

use super::cluster::{Namespace, calm, command, eventually, get, kubectl, on_node, output_of};
use super::reach::{Pod, pod_manifest, target};

const EXTRA: [&str; 2] = ["10.99.0.1", "fd99::1"];
const NODES: [&str; 2] = ["n1", "n2"];

/// The manifest of a pod on n1 that declares extra addresses.
fn declaring(name: &str, declared: &str) -> String {
    pod_manifest(name, "vip", "n1")
        .replace("labels:", &format!("annotations: {{ringfence.io/extra-addresses: '{declared}'}}, labels:"))
}

fn allow(namespace: &Namespace, annotation: &str) {
    kubectl(&[
        "annotate",
        "namespace",
        &namespace.0,
        &format!("ringfence.io/allowed-extra-addresses={annotation}"),
        "--overwrite",
    ]);
}

/// The extra addresses are on a pod's interface, whether it may have them or not, and both nodes have routes to them.
struct Moved;

impl Moved {
    fn to(pod: &Pod) -> Self {
        let node = get(&["node", "n1"]);
        for (extra, own) in EXTRA.iter().zip(&pod.addresses) {
            let mut add = command("pod");
            add.args([&format!("{}/{}", pod.namespace, pod.name), "ip", "address", "replace", extra, "dev", "eth0"]);
            output_of(add);
            // The way to the pod's own address is the way to its extra one.
            let way = ip("n1", &["-oneline", "route", "get", own]);
            let device = way.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap();
            ip("n1", &["route", "replace", extra, "via", own, "dev", device, "onlink"]);
            let addresses = node["status"]["addresses"].as_array().unwrap().iter();
            let mut internal = addresses.filter(|a| a["type"] == "InternalIP").map(|a| a["address"].as_str().unwrap());
            let via = internal.find(|address| address.contains(':') == extra.contains(':')).unwrap();
            ip("n2", &["route", "replace", extra, "via", via]);
        }
        Self
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        for node in NODES {
            for extra in EXTRA {
                // It may not be there.
                let _ = command("node").args([node, "ip", "route", "delete", extra]).output();
            }
        }
    }
}

fn ip(node: &str, arguments: &[&str]) -> String {
    on_node(node, &[&["ip"], arguments].concat())
}

#[test]
fn s9_an_extra_address_is_refused_unless_the_namespace_allows_it() {
    let _calm = calm();
    let namespace = Namespace::new("refused-extra");
    let refused = |declared: &str| namespace.try_apply(&declaring("vip", declared)).unwrap_err();
    let message = refused("10.99.0.1");
    assert!(message.contains("namespace e2e-refused-extra does not allow 10.99.0.1/32"), "{message}");
    assert!(message.contains("annotation ringfence.io/allowed-extra-addresses, which is \"\""), "{message}");
    allow(&namespace, "10.99.0.0/16, fd99::/64, 0.0.0.0/0");
    for (declared, why) in [
        ("10.98.0.1", "does not allow 10.98.0.1/32"),
        ("10.99.0.1, fd98::1", "does not allow fd98::1/128"),
        ("10.99.0.0/24", "10.99.0.0/24 is too wide"),
        ("fd99::/64", "fd99::/64 is too wide"),
        ("10.99.0.1/28", "no prefix without host bits"),
        ("ten", "\"ten\" is no address"),
    ] {
        let message = refused(declared);
        assert!(message.contains(why), "{declared}: {message}");
    }
    namespace.apply(&declaring("vip", "10.99.0.0/28,fd99::1"));
    // What was admitted stays editable, whatever is allowed by now.
    allow(&namespace, "");
    namespace.kubectl(&["label", "pod", "vip", "edited=yes"]);
    let message = namespace.try_apply(&declaring("vip", "10.99.0.2")).unwrap_err();
    assert!(message.contains("does not allow"), "{message}");
}

#[test]
fn s9_an_extra_address_is_guarded_like_an_own_one_and_makes_no_member() {
    let _calm = calm();
    let namespace = Namespace::new("extra");
    allow(&namespace, "10.99.0.0/30, fd99::/126");
    namespace.apply(&declaring("vip", "10.99.0.1, fd99::1"));
    let pods = namespace.pods(&[("plain", "vip", "n1"), ("near", "client", "n1"), ("far", "client", "n2")]);
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/vip", "--timeout=60s"]);
    let clients = "{securityGroup: {name: client}}";
    namespace.group("vip", &format!("[{{protocol: TCP, ports: [80, 3306], remote: {clients}}}]"), None);
    let to_extra = "{protocol: TCP, ports: [80, 443], remote: {cidrs: ['10.99.0.0/30', 'fd99::/126']}}";
    let to_group = "{protocol: TCP, ports: [3306], remote: {securityGroup: {name: vip}}}";
    namespace.group("client", "[]", Some(&format!("[{to_extra}, {to_group}]")));
    for group in ["vip", "client"] {
        namespace.bind(group, &[group], group);
    }
    namespace.enforced();
    let reach = |client: &str, port| EXTRA.map(|extra| pods[client].probes().reaches_one(&target("tcp", extra, port)));
    let vip = namespace.pod("vip");
    let moved = Moved::to(&vip);
    for client in ["near", "far"] {
        eventually("it is reached", || reach(client, 80) == [true; 2]);
        assert_eq!(reach(client, 443), [false; 2], "{client}: the pod's groups do not allow it");
        assert_eq!(reach(client, 3306), [false; 2], "{client}: a rule that names the group means its members' own");
        assert!(pods[client].reaches(&vip, 3306));
    }
    assert_eq!(namespace.get("sg", "vip")["status"]["members"], 2);

    // One that declared nothing gets nothing, wherever the routes lead.
    drop(moved);
    let moved = Moved::to(&pods["plain"]);
    assert_eq!(
        (reach("near", 80), reach("far", 80)),
        ([false; 2], [false; 2]),
        "its answers come from what is not its own"
    );
    drop(moved);
    let _moved = Moved::to(&vip);
    eventually("it is back", || reach("far", 80) == [true; 2]);

    // The owner of the namespace takes it back.
    allow(&namespace, "10.99.0.2");
    eventually("it is taken away", || reach("far", 80) == [false; 2]);
    eventually("it is said", || {
        let report = get(&["nodeenforcement", "n1"]);
        let conditions = report["status"]["conditions"].as_array().unwrap().clone();
        let own = conditions.iter().find(|c| c["type"] == "OwnAddressesOnly").unwrap();
        let message = own["message"].as_str().unwrap();
        own["status"] == "True" && message.contains("/vip: 10.99.0.1: ringfence.io/allowed-extra-addresses")
    });
    assert!(pods["far"].reaches(&vip, 3306), "its own address is another matter");
}
