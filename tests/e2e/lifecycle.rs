//! On to the nodes, from one version to the next and back, and off again, with Helm and without (S8).

use super::cluster::{Namespace, SOON, alone, command, eventually, folder, kubectl, output_of};
use super::disruption::SYSTEM;
use super::gate::{CONFLIST, NODES, is_in_place, on};
use super::reach::Pod;
use super::traffic::Traffic;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const TREE: &str = env!("CARGO_MANIFEST_DIR");

/// Pods of one namespace, of which a server on n1 lets nobody in.
fn scene(name: &str) -> (Namespace, Pod, Pod) {
    let namespace = Namespace::new(name);
    let mut pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    namespace.group("server", "[]", None);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let (server, client) = (pods.remove("server").unwrap(), pods.remove("client").unwrap());
    assert!(!client.reaches(&server, 80));
    (namespace, server, client)
}

/// What is left of us on a node.
fn left(node: &str) -> Vec<&'static str> {
    let mut left = Vec::new();
    let mut note = |what, is_there: bool| {
        if is_there {
            left.push(what);
        }
    };
    note("an entry", on(node, &["cat", CONFLIST]).contains("ringfence"));
    note("files of CNI", on(node, &["ls", "-A", "/etc/cni/net.d", "/opt/cni/bin"]).contains("ringfence"));
    note("/run/ringfence", !on(node, &["ls", "-d", "/run/ringfence"]).is_empty());
    note("a table", on(node, &["nft", "list", "tables"]).contains("ringfence"));
    left
}

/// What is left of us in the API, of every kind there is, apart from the definitions of our kinds.
fn left_in_the_api() -> Vec<String> {
    let kinds = kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
    // Events tell of what was.
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let all = ["get", &kinds.join(","), "--all-namespaces", "--ignore-not-found", "-o", "name"];
    let listed = kubectl(&all);
    let ours = listed.lines().filter(|name| name.contains("ringfence"));
    let kept = ["customresourcedefinition.", "apiservice.", "namespace/", "securitygroup"];
    ours.filter(|name| !kept.iter().any(|kept| name.starts_with(kept))).map(str::to_owned).collect()
}

/// One of the scripts of a tree, with settings.
fn script(path: &Path, settings: &[(&str, &str)]) {
    let mut script = Command::new(path);
    script.env("RINGFENCE_CLUSTER_DIR", folder()).envs(settings.iter().copied());
    output_of(script);
}

/// This tree's product, as it was installed before: nothing is built.
fn install() {
    let built = [("BINARY", "target/release/ringfence"), ("CNI_PLUGIN", "target/image/ringfence-cni")];
    script(&Path::new(TREE).join("deploy/install.sh"), &built);
}

fn helm(arguments: &[&str]) {
    let mut helm = command("helm");
    helm.args(arguments).args(["--namespace", SYSTEM, "--wait", "--timeout", "3m"]);
    output_of(helm);
}

/// Waits until every agent has committed.
pub fn agents_are_ready() {
    kubectl(&["-n", SYSTEM, "rollout", "status", "daemonset/ringfence-agent", "--timeout=120s"]);
}

/// Ringfence installed again, whatever happens.
struct Reinstall;

impl Drop for Reinstall {
    fn drop(&mut self) {
        // A second panic would hide the first one's message, and every other test's.
        if std::panic::catch_unwind(install).is_err() && !std::thread::panicking() {
            panic!("it must come back for the other tests");
        }
    }
}

#[test]
fn s8_helm_uninstall_leaves_nothing_and_pods_start() {
    let _alone = alone();
    let (namespace, server, client) = scene("uninstalled");
    let others = Traffic::between(&client, &namespace.pods(&[("free", "free", "n1")])["free"], None);
    for node in NODES {
        assert_eq!(left(node).len(), 4, "{node}");
    }
    let reinstall = Reinstall;
    // Where a network calls the plugin, no pod could start without it.
    namespace.apply(
        "{apiVersion: k8s.cni.cncf.io/v1, kind: NetworkAttachmentDefinition, metadata: {name: storage}, \
         spec: {config: '{\"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"ringfence-cni\"}]}'}}",
    );
    let mut refused = command("helm");
    refused.args(["uninstall", "ringfence", "--namespace", SYSTEM, "--wait", "--timeout", "1m"]);
    assert!(!refused.output().unwrap().status.success());
    let why = kubectl(&["-n", SYSTEM, "logs", "job/ringfence-uninstall"]);
    assert!(why.contains(&format!("take ringfence-cni out of {}/storage", namespace.0)), "{why}");
    assert!(!client.reaches(&server, 80) && NODES.into_iter().all(is_in_place), "nothing has changed");
    namespace.kubectl(&["delete", "network-attachment-definitions", "storage"]);
    helm(&["uninstall", "ringfence"]);
    for node in NODES {
        assert!(left(node).is_empty(), "{node}: {:?}", left(node));
    }
    eventually("nothing is left in the API", || left_in_the_api().is_empty());
    assert!(client.reaches(&server, 80), "nobody guards it any more");
    namespace.pods(&[("after", "after", "n1")]);
    others.was_as_it_must_be("uninstalled");
    drop(reinstall);
    namespace.enforced();
    assert!(!client.reaches(&server, 80), "its group was kept, and is in force again");
    let started = Instant::now();
    eventually("the gate is back", || NODES.into_iter().all(is_in_place));
    assert!(started.elapsed() < SOON);
}

/// Groups and bindings while a controller is there to release them.
fn delete_all_groups() {
    const KINDS: &str = "securitygroupbindings,securitygroups";
    kubectl(&["delete", KINDS, "--all", "--all-namespaces", "--wait=false"]);
    // kubectl's own wait would not say what holds them.
    let deadline = Instant::now() + 2 * SOON;
    while !kubectl(&["get", KINDS, "--all-namespaces", "-o", "name"]).is_empty() {
        let held = || kubectl(&["get", KINDS, "--all-namespaces", "-o", "yaml"]);
        assert!(Instant::now() < deadline, "still there:\n{}", held());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn without_helm_it_comes_and_goes_as_well() {
    let _alone = alone();
    let _reinstall = Reinstall;
    delete_all_groups();
    helm(&["uninstall", "ringfence"]);
    // They are kept, and Helm's: another's apply would be a conflict.
    kubectl(&["delete", "customresourcedefinitions", "--selector", "app.kubernetes.io/name=ringfence"]);

    let folder = format!("{TREE}/deploy");
    let (hook, all) = (format!("{folder}/uninstall.yaml"), format!("{folder}/ringfence.yaml"));
    kubectl(&["apply", "--server-side", "-k", &folder]);
    kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/ringfence-controller", "--timeout=120s"]);
    agents_are_ready();
    for condition in ["DataPathReady", "OwnAddressesOnly", "GateReady"] {
        kubectl(&["wait", &format!("--for=condition={condition}"), "nodeenforcement", "--all", "--timeout=60s"]);
    }
    let (namespace, server, client) = scene("kustomized");

    delete_all_groups();
    kubectl(&["apply", "-f", &hook]);
    kubectl(&["-n", SYSTEM, "wait", "--for=condition=Complete", "job/ringfence-uninstall", "--timeout=180s"]);
    for node in NODES {
        assert!(left(node).is_empty(), "{node}: {:?}", left(node));
    }
    kubectl(&["delete", "-f", &hook, "-f", &all, "--timeout=120s"]);
    eventually("nothing is left in the API", || left_in_the_api().is_empty());
    assert!(client.reaches(&server, 80));
    namespace.pods(&[("after", "after", "n2")]);
}

#[test]
fn s8_an_upgrade_and_a_rollback_open_nothing_and_cut_nothing() {
    let _alone = alone();
    script(&Path::new(TREE).join("tests/cluster/previous.sh"), &[]);
    let previous = Path::new(TREE).join("target/previous");
    let (namespace, server, client) = scene("upgraded");
    let near = namespace.pods(&[("near", "client", "n1")]).remove("near").unwrap();
    let _reinstall = Reinstall;
    helm(&["uninstall", "ringfence"]);
    script(
        &previous.join("deploy/install.sh"),
        &[("BINARY", "target/ringfence"), ("CNI_PLUGIN", "target/ringfence-cni")],
    );
    let rules = "[{protocol: TCP, ports: [80], remote: {securityGroup: {name: client}}}, \
        {protocol: UDP, ports: [53], remote: {securityGroup: {name: client}}}, \
        {protocol: ICMP, remote: {securityGroup: {name: client}}}, {protocol: ICMPv6, remote: {securityGroup: {name: client}}}]";
    namespace.group("client", "[]", None);
    namespace.bind("client", &["client"], "client");
    namespace.group("server", rules, None);
    namespace.enforced();
    let traffic = || [&client, &near].map(|from| Traffic::between(from, &server, Some(443)));

    let upgraded = traffic();
    install();
    namespace.enforced();
    upgraded.into_iter().for_each(|traffic| traffic.was_as_it_must_be("upgraded"));

    // The previous image under the name that both have.
    let mut load = command("load-image");
    load.arg(previous.join("target/image/ringfence.tar"));
    output_of(load);
    let back = traffic();
    helm(&["rollback", "ringfence"]);
    agents_are_ready();
    namespace.enforced();
    back.into_iter().for_each(|traffic| traffic.was_as_it_must_be("rolled back"));
}
