//! Members come, go and move; nobody touches a group.

use super::cluster::{Namespace, calm, eventually, get, kubectl, table};
use super::reach::{Pod, target};

/// A Deployment of one pod that serves.
fn deployment(name: &str, node: &str) -> String {
    let pod = super::reach::pod_manifest(name, name, node);
    let spec = pod.split_once("spec:\n").unwrap().1.replace('\n', "\n    ");
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
    {spec}
"
    )
}

fn only_pod(namespace: &Namespace, app: &str) -> Option<Pod> {
    let pods = get(&["-n", &namespace.0, "pods", "-l", &format!("app={app}")]);
    let pods = pods["items"].as_array().unwrap();
    let live: Vec<_> = pods.iter().filter(|pod| pod["metadata"].get("deletionTimestamp").is_none()).collect();
    let [pod] = live.as_slice() else { return None };
    let has_addresses = pod["status"]["podIPs"].as_array().is_some_and(|ips| ips.len() == 2);
    has_addresses.then(|| namespace.pod(pod["metadata"]["name"].as_str().unwrap()))
}

#[test]
fn s5_a_replaced_pod_is_reached_and_reaches_again_and_its_old_address_is_gone() {
    let _calm = calm();
    let namespace = Namespace::new("replaced");
    namespace.apply(&deployment("app", "n1"));
    namespace.apply(&deployment("db", "n2"));
    namespace.kubectl(&["wait", "--for=condition=Available", "deployment", "--all", "--timeout=60s"]);
    namespace.group("app", "[{protocol: TCP, ports: [22], remote: {securityGroup: {name: db}}}]", None);
    namespace.group("db", "[{protocol: TCP, ports: [3306], remote: {securityGroup: {name: app}}}]", None);
    namespace.bind("app", &["app"], "app");
    namespace.bind("db", &["db"], "db");
    namespace.enforced();
    let (app, db) = (only_pod(&namespace, "app").unwrap(), only_pod(&namespace, "db").unwrap());
    assert!(app.reaches(&db, 3306) && db.reaches(&app, 22));

    for (moved, node) in [("app", "n2"), ("db", "n1")] {
        let old = only_pod(&namespace, moved).unwrap();
        let patch = format!(
            "{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{{\"kubernetes.io/hostname\":\"{node}\"}}}}}}}}}}"
        );
        namespace.kubectl(&["patch", "deployment", moved, "-p", &patch]);
        namespace.kubectl(&["rollout", "status", &format!("deployment/{moved}"), "--timeout=60s"]);
        eventually("the old pod is gone", || only_pod(&namespace, moved).is_some_and(|p| p.addresses != old.addresses));
        namespace.enforced();
        let (app, db) = (only_pod(&namespace, "app").unwrap(), only_pod(&namespace, "db").unwrap());
        assert!(app.reaches(&db, 3306) && db.reaches(&app, 22), "after {moved} moved");
        assert!(!app.reaches(&db, 22) && !db.reaches(&app, 3306));
        for node in ["n1", "n2"] {
            let table = table(node);
            for address in &old.addresses {
                let found =
                    table.split(|c: char| !(c.is_ascii_hexdigit() || ".:".contains(c))).any(|word| word == address);
                assert!(!found, "{address} is still in the kernel of {node}:\n{table}");
            }
        }
    }
}

#[test]
fn s5_groups_of_other_namespaces_cycles_and_self_reference() {
    let _calm = calm();
    let (shop, ops) = (Namespace::new("remote-shop"), Namespace::new("remote-ops"));
    let shop_pods = shop.pods(&[("a-1", "a", "n1"), ("a-2", "a", "n2"), ("x-1", "x", "n1")]);
    let ops_pods = ops.pods(&[("b-1", "b", "n1"), ("b-2", "b", "n2")]);
    let other =
        |namespace: &Namespace, name: &str| format!("{{securityGroup: {{name: {name}, namespace: {}}}}}", namespace.0);
    // a takes b and itself; b takes a.
    shop.group("a", &format!("[{{protocol: TCP, ports: [80], remote: {}}}, {{protocol: TCP, ports: [22], remote: {{securityGroup: {{name: a}}}}}}]", other(&ops, "b")), None);
    ops.group("b", &format!("[{{protocol: TCP, ports: [443], remote: {}}}]", other(&shop, "a")), None);
    shop.bind("a", &["a"], "a");
    ops.bind("b", &["b"], "b");
    shop.enforced();
    ops.enforced();
    for (a, peer) in [("a-1", "a-2"), ("a-2", "a-1")] {
        let (a, peer) = (&shop_pods[a], &shop_pods[peer]);
        assert!(peer.reaches(a, 22) && !peer.reaches(a, 80), "itself");
        assert!(!shop_pods["x-1"].reaches(a, 22) && !shop_pods["x-1"].reaches(a, 80), "not a member");
        for b in ops_pods.values() {
            assert!(b.reaches(a, 80) && !b.reaches(a, 22), "{} -> {}", b.name, a.name);
            assert!(a.reaches(b, 443) && !a.reaches(b, 80), "{} -> {}", a.name, b.name);
        }
    }

    // Leaving the group by a label ends it, joining begins it.
    shop.kubectl(&["label", "pod", "a-2", "app=x", "--overwrite"]);
    shop.kubectl(&["label", "pod", "x-1", "app=a", "--overwrite"]);
    eventually("a-2 left, x-1 joined", || {
        ops_pods.values().all(|b| !shop_pods["a-2"].reaches(b, 443) && shop_pods["x-1"].reaches(b, 443))
    });
    shop.enforced();
    ops.enforced();
    assert!(shop_pods["x-1"].reaches(&shop_pods["a-1"], 22) && !shop_pods["a-2"].reaches(&shop_pods["a-1"], 22));
}

#[test]
fn s10_host_network_and_finished_pods_are_no_members() {
    let _calm = calm();
    let namespace = Namespace::new("standing");
    let pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    namespace.group("server", "[{protocol: TCP, ports: [80], remote: {securityGroup: {name: clients}}}]", None);
    namespace.group("clients", "[]", None);
    namespace.bind("server", &["server"], "server");
    namespace.bind("clients", &["clients"], "client");
    namespace.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: host, labels: {app: client}}, spec: {hostNetwork: true, nodeSelector: {kubernetes.io/hostname: n2}, terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'ringfence.test/toolbox:1', imagePullPolicy: Never, command: [/bin/sleep, '3600']}]}}",
    );
    namespace.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: done, labels: {app: client}}, spec: {restartPolicy: Never, nodeSelector: {kubernetes.io/hostname: n2}, containers: [{name: c, image: 'ringfence.test/toolbox:1', imagePullPolicy: Never, command: [/bin/true]}]}}",
    );
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/host", "--timeout=60s"]);
    namespace.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/done", "--timeout=60s"]);
    let message = namespace.until("sgb", "clients", "Accepted", "True", "HostNetworkPods");
    assert!(message.contains("host"), "{message}");
    eventually("one member", || namespace.get("sg", "clients")["status"]["members"] == 1);
    namespace.enforced();
    assert!(pods["client"].reaches(&pods["server"], 80));
    let node = kubectl(&["get", "node", "n2", "-o", "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}"]);
    let slices = namespace.kubectl(&["get", "securitygroupslices", "-o", "yaml"]);
    for address in node.split_whitespace() {
        assert!(!slices.contains(address), "the node's address {address} is in a slice:\n{slices}");
    }
    // The remote node is a remote like any other, and not a member because a pod on its network is selected.
    assert!(!super::reach::From::Node("n2").reaches_one(&target("tcp", &pods["server"].addresses[0], 80)));
    assert!(
        super::reach::From::Node("n1").reaches_one(&target("tcp", &pods["server"].addresses[0], 80)),
        "S11: its own node"
    );
}
