//! The index against its own definition, recomputed the slow way after every step.

use super::*;
use crate::policy::Group as Rules;
use kube::core::Selector;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn name(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

fn pod(pod: &str) -> TargetName {
    TargetName::pod(name(pod))
}

fn mk_interface(interface: &str, labels: Value, addresses: &[&str]) -> Target {
    let interface: crate::api::NetworkInterface = serde_json::from_value(json!({
        "apiVersion": "ringfence.io/v1alpha1",
        "kind": "NetworkInterface",
        "metadata": { "name": interface, "namespace": "shop", "labels": labels },
        "spec": { "nodeName": "n1", "device": "tap0", "macAddress": "52:54:00:00:00:01", "addresses": addresses },
    }))
    .unwrap();
    Target::from(&interface)
}

fn mk_pod(pod: &str, labels: Value, ips: &[&str]) -> Target {
    mk_pod_with(pod, labels, ips, json!({ "nodeName": "n1" }), "Running")
}

fn mk_pod_with(pod: &str, labels: Value, ips: &[&str], spec: Value, phase: &str) -> Target {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    let mut spec = spec;
    spec["containers"] = json!([]);
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
        "metadata": { "name": pod, "namespace": "shop", "labels": labels },
        "spec": spec,
        "status": { "phase": phase, "podIPs": ips },
    }))
    .unwrap();
    Target::from(&pod)
}

fn mk_binding(binding: &str, groups: &[&str], selector: Option<Selector>) -> Binding {
    Binding {
        name: name(binding),
        uid: format!("uid-{binding}"),
        generation: 1,
        groups: groups.iter().map(|g| name(g)).collect(),
        selector: selector.map(|selector| (SelectorKind::Pod, selector)),
        networks: BTreeSet::new(),
        error: None,
    }
}

fn mk_group(group: &str) -> Group {
    Group {
        name: name(group),
        uid: format!("uid-{group}"),
        generation: 1,
        deleting: false,
        rules: Some(Arc::new(Rules::default())),
        rules_generation: 1,
        error: None,
    }
}

fn app() -> Option<Selector> {
    Some([("app", "web")].into_iter().collect())
}

fn addresses(index: &Index, group: &str) -> Vec<String> {
    let mut all: Vec<String> =
        index.members(&name(group)).flat_map(|p| index.addresses(p)).map(|a| a.to_string()).collect();
    all.sort();
    all
}

fn mk_launcher(pod: &str, machine: &str, labels: Value, ips: &[&str]) -> Target {
    let mut launcher = mk_pod(pod, labels, ips);
    launcher.machine = Some(machine.to_owned());
    launcher
}

fn mk_machine(uid: &str, labels: &[(&str, &str)]) -> Machine {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Machine { uid: uid.to_owned(), labels: Arc::new(labels) }
}

fn mk_machine_binding(binding: &str, groups: &[&str]) -> Binding {
    let selector = app().map(|selector| (SelectorKind::VirtualMachine, selector));
    Binding { selector, ..mk_binding(binding, groups, None) }
}

const HERE: MachineSource = MachineSource(0);
const COMING: MachineSource = MachineSource(1);

#[test]
fn a_machine_is_selected_by_its_own_labels_and_before_they_are_known_by_its_pods() {
    let mut index = Index::default();
    index.apply_binding(mk_machine_binding("vm", &["web"]));
    index.apply_target(mk_pod("other", json!({"app": "web"}), &["10.0.0.9"]));
    index.apply_target(mk_launcher("launcher", "u1", json!({"app": "web"}), &["10.0.0.1"]));
    assert_eq!(addresses(&index, "web"), ["10.0.0.1"], "only of machines, and at once");

    let changes = index.apply_machine(HERE, mk_machine("u1", &[("app", "web"), ("tier", "db")]));
    assert!(changes.is_empty(), "{changes:?}");
    let changes = index.apply_machine(HERE, mk_machine("u1", &[("tier", "db")]));
    assert_eq!(changes.members, [(name("web"), pod("launcher"))].into());
    assert_eq!(addresses(&index, "web"), [""; 0], "whatever the pod still says");
    index.apply_target(mk_launcher("launcher", "u1", json!({"app": "web", "more": "so"}), &["10.0.0.1"]));
    assert_eq!(addresses(&index, "web"), [""; 0], "and goes on to say");

    // Selectors of pods see the pod.
    index.apply_binding(mk_binding("pods", &["pods"], app()));
    assert_eq!(addresses(&index, "pods"), ["10.0.0.1", "10.0.0.9"]);
    index.apply_machine(HERE, mk_machine("u1", &[("app", "web")]));
    assert_eq!(index.bindings_of(&pod("launcher")).map(|b| &*b.name.name).collect::<Vec<_>>(), ["pods", "vm"]);
    index.delete_target(&pod("launcher"));
    assert_eq!((addresses(&index, "web"), index.runs_machines()), (vec![], false));
}

#[test]
fn a_machine_that_no_watch_shows_any_more_keeps_its_groups_while_a_pod_runs_it() {
    let mut index = Index::default();
    index.apply_binding(mk_machine_binding("vm", &["web"]));
    index.update(Update::Machines(COMING, vec![mk_machine("u1", &[("app", "web")]), mk_machine("u2", &[])]));
    index.apply_target(mk_launcher("target", "u1", json!({}), &["10.0.0.1"]));
    assert_eq!(addresses(&index, "web"), ["10.0.0.1"]);
    // It has arrived: one watch begins to show it, the other ceases to.
    index.update(Update::Machine(HERE, mk_machine("u1", &[("app", "web")])));
    index.update(Update::Machines(COMING, vec![]));
    assert_eq!(index.machines_seen_by(HERE).collect::<Vec<_>>(), ["u1"]);
    index.update(Update::NoMachine(HERE, "u1".into()));
    index.apply_target(mk_launcher("target", "u1", json!({}), &["10.0.0.2"]));
    assert_eq!(addresses(&index, "web"), ["10.0.0.2"]);
    // What is gone altogether is forgotten; what comes with the name of the pod is another.
    index.delete_target(&pod("target"));
    index.apply_target(mk_launcher("target", "u1", json!({}), &["10.0.0.1"]));
    assert_eq!(addresses(&index, "web"), [""; 0]);
}

#[test]
fn s10_the_pods_of_one_machine_may_share_its_address() {
    let mut index = Index::default();
    index.apply_binding(mk_machine_binding("vm", &["web"]));
    let web = || json!({"app": "web"});
    index.apply_target(mk_launcher("source", "u1", web(), &["10.0.0.1"]));
    index.apply_target(mk_launcher("target", "u1", web(), &["10.0.0.1"]));
    assert_eq!(addresses(&index, "web"), ["10.0.0.1", "10.0.0.1"]);
    index.apply_target(mk_launcher("thief", "u2", web(), &["10.0.0.1"]));
    assert_eq!(addresses(&index, "web"), [""; 0]);
    index.apply_target(mk_pod("thief", json!({}), &["10.0.0.1"]));
    assert_eq!(addresses(&index, "web"), [""; 0]);
    index.delete_target(&pod("thief"));
    // Who owns a pod, whoever creates it says: in its own namespace that is their own affair.
    let mut stranger = mk_launcher("stranger", "u1", web(), &["10.0.0.1"]);
    stranger.name.namespace = "elsewhere".to_owned();
    let stranger_key = stranger.key();
    index.apply_target(stranger);
    assert_eq!(addresses(&index, "web"), [""; 0]);
    assert_eq!(index.runners("shop", "u1").count(), 2);
    index.delete_target(&stranger_key);
    index.delete_target(&pod("source"));
    assert_eq!(addresses(&index, "web"), ["10.0.0.1"]);
}

#[test]
fn a_pod_is_another_target_on_each_of_its_networks() {
    let storage = || name("storage");
    let mut index = Index::default();
    let mut db = mk_pod("db", json!({"app": "web"}), &["10.0.0.1"]);
    db.networks = [("net1".to_owned(), OnNetwork { network: storage(), attached: true })].into();
    index.apply_binding(mk_binding("front", &["web"], app()));
    index.apply_binding(Binding { networks: [storage()].into(), ..mk_binding("back", &["storage"], app()) });
    index.apply_target(db.clone());
    let on_storage = TargetName { network: Some(storage()), ..pod("db") };
    let attached = |uid: &str, address: &str| {
        Some(Attached { uid: uid.into(), addresses: [(storage(), [address.parse().unwrap()].into())].into() })
    };
    let members = |index: &Index| (addresses(index, "web"), addresses(index, "storage"));
    assert!(index.is_target(&name("back"), &on_storage) && !index.is_target(&name("back"), &pod("db")));
    assert_eq!(
        members(&index),
        (vec!["10.0.0.1".into()], vec![]),
        "what a pod says of its address there is not believed"
    );
    assert!(index.set_attached(&name("db"), "n2", attached("", "10.30.0.9")).is_empty(), "nor what another node says");
    assert!(index.set_attached(&name("db"), "n1", attached("another", "10.30.0.9")).is_empty(), "nor of another pod");
    let changes = index.set_attached(&name("db"), "n1", attached("", "10.30.0.1"));
    assert_eq!(changes.members, [(name("storage"), on_storage.clone())].into());
    assert_eq!(members(&index), (vec!["10.0.0.1".into()], vec!["10.30.0.1".into()]));
    assert_eq!((index.pods().count(), index.all_targets().count()), (1, 2));
    assert_eq!(TargetName::parse("shop", &on_storage.in_namespace()), Some(on_storage.clone()));

    // Of all networks that a binding names, and none else.
    index.apply_binding(Binding { networks: [name("other")].into(), ..mk_binding("back", &["storage"], app()) });
    assert_eq!(addresses(&index, "storage"), [""; 0]);
    index.apply_binding(Binding {
        networks: [name("other"), storage()].into(),
        ..mk_binding("back", &["storage"], app())
    });
    assert_eq!(addresses(&index, "storage"), ["10.30.0.1"]);
    // It leaves the network, comes again, and goes.
    db.networks.clear();
    index.apply_target(db.clone());
    assert_eq!(index.all_targets().count(), 1);
    db.networks = [("net1".to_owned(), OnNetwork { network: storage(), attached: true })].into();
    index.apply_target(db);
    assert_eq!(addresses(&index, "storage"), ["10.30.0.1"]);
    index.delete_target(&pod("db"));
    assert_eq!((members(&index), index.all_targets().count()), ((vec![], vec![]), 0));
}

#[test]
fn s10_finished_and_host_network_pods_are_no_members_terminating_ones_are() {
    let mut index = Index::default();
    index.apply_binding(mk_binding("b", &["web"], app()));
    index.apply_target(mk_pod("run", json!({"app": "web"}), &["10.0.0.1", "fd00::1"]));
    index.apply_target(mk_pod_with(
        "host",
        json!({"app": "web"}),
        &["172.30.0.1"],
        json!({"hostNetwork": true}),
        "Running",
    ));
    index.apply_target(mk_pod_with("done", json!({"app": "web"}), &["10.0.0.3"], json!({}), "Succeeded"));
    assert_eq!(addresses(&index, "web"), ["10.0.0.1", "fd00::1"]);

    let mut going = mk_pod("run", json!({"app": "web"}), &["10.0.0.1", "fd00::1"]);
    going.terminating = true;
    index.apply_target(going);
    assert_eq!(addresses(&index, "web"), ["10.0.0.1", "fd00::1"]);

    index.apply_target(mk_pod_with("run", json!({"app": "web"}), &["10.0.0.1"], json!({}), "Failed"));
    assert!(addresses(&index, "web").is_empty());
}

#[test]
fn s10_what_is_never_an_address_of_ones_own() {
    let mut index = Index::default();
    index.apply_binding(mk_binding("b", &["web"], app()));
    index.set_service_networks(vec!["10.96.0.0/16".parse().unwrap()]);
    index.set_node_addresses("n1", ["172.30.0.1".parse().unwrap()].into());
    index.apply_target(mk_pod(
        "liar",
        json!({"app": "web"}),
        &[
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "::1",
            "ff02::1",
            "0.0.0.0",
            "::ffff:10.0.0.1",
            "172.30.0.1",
            "10.96.0.1",
            "10.0.0.7",
        ],
    ));
    assert_eq!(addresses(&index, "web"), ["10.0.0.7"]);

    let changes = index.set_node_addresses("n2", ["10.0.0.7".parse().unwrap()].into());
    assert_eq!(changes.members, [(name("web"), pod("liar"))].into());
    assert!(addresses(&index, "web").is_empty());
    index.set_node_addresses("n2", BTreeSet::new());
    assert_eq!(addresses(&index, "web"), ["10.0.0.7"]);
}

#[test]
fn s10_an_address_two_pods_claim_belongs_to_neither_and_comes_back() {
    let mut index = Index::default();
    index.apply_binding(mk_binding("b", &["web"], app()));
    index.apply_target(mk_pod("a", json!({"app": "web"}), &["10.0.0.1"]));
    let changes = index.apply_target(mk_pod("b", json!({}), &["10.0.0.1"]));
    assert!(changes.members.contains(&(name("web"), pod("a"))), "a member lost its address: {changes:?}");
    assert!(addresses(&index, "web").is_empty());
    let changes = index.delete_target(&pod("b"));
    assert!(changes.members.contains(&(name("web"), pod("a"))));
    assert_eq!(addresses(&index, "web"), ["10.0.0.1"]);
}

#[test]
fn a_binding_selects_one_kind_and_names_of_different_kinds_are_different() {
    let mut index = Index::default();
    index.apply_target(mk_pod("db", json!({"app": "web"}), &["10.0.0.1"]));
    index.apply_target(mk_interface("db", json!({"app": "web"}), &["10.0.0.2", "fe80::2"]));
    index.apply_binding(mk_binding("pods", &["pods"], app()));
    let of_interfaces = app().map(|selector| (SelectorKind::NetworkInterface, selector));
    index.apply_binding(Binding { selector: of_interfaces.clone(), ..mk_binding("nics", &["nics"], None) });
    assert_eq!(
        (addresses(&index, "pods"), addresses(&index, "nics")),
        (vec!["10.0.0.1".into()], vec!["10.0.0.2".into()])
    );
    // It says that it selects the others now.
    index.apply_binding(Binding { selector: of_interfaces, generation: 2, ..mk_binding("pods", &["pods"], None) });
    assert_eq!(addresses(&index, "pods"), ["10.0.0.2"]);
    index.delete_target(&TargetName::network_interface(name("db")));
    assert!(addresses(&index, "pods").is_empty() && index.target(&pod("db")).is_some());
}

#[test]
fn s10_what_is_declared_takes_no_address_from_a_pod() {
    let mut index = Index::default();
    index.apply_binding(mk_binding("b", &["web"], app()));
    index.apply_target(mk_pod("a", json!({"app": "web"}), &["10.0.0.1"]));
    let greedy = mk_interface("greedy", json!({}), &["10.0.0.1", "10.0.0.9"]);
    index.apply_target(greedy.clone());
    assert_eq!(addresses(&index, "web"), ["10.0.0.1"]);
    assert_eq!(index.addresses(&greedy).map(|a| a.to_string()).collect::<Vec<_>>(), ["10.0.0.9"]);
    index.apply_target(mk_interface("second", json!({}), &["10.0.0.9"]));
    assert_eq!(index.addresses(&greedy).count(), 0, "of two that are declared it belongs to neither");
}

#[test]
fn s2_two_bindings_make_one_member_until_both_are_gone() {
    let mut index = Index::default();
    index.apply_target(mk_pod("a", json!({"app": "web"}), &["10.0.0.1"]));
    index.apply_binding(mk_binding("one", &["web", "other"], app()));
    index.apply_binding(mk_binding("two", &["web"], Some(Selector::default())));
    assert_eq!(index.bindings_of(&pod("a")).count(), 2);
    index.delete_binding(&name("one"));
    assert_eq!((addresses(&index, "web").len(), addresses(&index, "other").len()), (1, 0));
    index.delete_binding(&name("two"));
    assert!(addresses(&index, "web").is_empty());
    assert_eq!(index.bindings_of(&pod("a")).count(), 0);
}

#[test]
fn s13_bad_revisions_keep_the_last_good_ones() {
    let mut index = Index::default();
    index.apply_target(mk_pod("a", json!({"app": "web"}), &["10.0.0.1"]));
    index.apply_group(mk_group("web"));
    index.apply_binding(mk_binding("b", &["web"], app()));
    let bad = Group { generation: 2, rules: None, rules_generation: 0, error: Some("bad".into()), ..mk_group("web") };
    index.apply_group(bad.clone());
    let kept = index.group(&name("web")).unwrap();
    assert!(kept.rules.is_some() && kept.error.is_some());
    assert_eq!((kept.generation, kept.rules_generation), (2, 1));

    index.apply_group(Group { uid: "another".into(), ..bad });
    assert!(index.group(&name("web")).unwrap().rules.is_none(), "a new group inherits nothing");

    index.apply_binding(Binding {
        error: Some("bad".into()),
        groups: BTreeSet::new(),
        generation: 2,
        ..mk_binding("b", &[], None)
    });
    assert_eq!(addresses(&index, "web"), ["10.0.0.1"]);
}

#[test]
fn nothing_changes_when_nothing_does() {
    let mut index = Index::default();
    let web = mk_pod("a", json!({"app": "web"}), &["10.0.0.1"]);
    assert!(index.apply_target(web.clone()).is_empty(), "no binding, no relation");
    assert!(!index.apply_binding(mk_binding("b", &["web"], app())).is_empty());
    assert!(!index.apply_group(mk_group("web")).is_empty());
    assert!(index.apply_target(web).is_empty());
    assert!(index.apply_binding(mk_binding("b", &["web"], app())).is_empty());
    assert!(index.apply_group(mk_group("web")).is_empty());
    assert!(index.delete_target(&pod("nobody")).is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Pod { pod: u8, label: Option<u8>, ip: u8, finished: bool },
    DeletePod(u8),
    Binding { binding: u8, groups: Vec<u8>, label: Option<u8> },
    DeleteBinding(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, prop::option::of(0u8..3), 0u8..5, prop::bool::weighted(0.1))
            .prop_map(|(pod, label, ip, finished)| Step::Pod { pod, label, ip, finished }),
        1 => (0u8..6).prop_map(Step::DeletePod),
        2 => (0u8..4, prop::collection::vec(0u8..3, 1..3), prop::option::of(0u8..3))
            .prop_map(|(binding, groups, label)| Step::Binding { binding, groups, label }),
        1 => (0u8..4).prop_map(Step::DeleteBinding),
    ]
}

/// What the members of every group are, by definition.
fn by_definition(
    pods: &BTreeMap<u8, (Option<u8>, u8)>,
    bindings: &BTreeMap<u8, (Vec<u8>, Option<u8>)>,
) -> Vec<Vec<String>> {
    let claims = |ip: u8| pods.values().filter(|(_, i)| *i == ip).count();
    let members = |group: u8| {
        let selects = |label: Option<u8>| {
            bindings.values().any(|(groups, by)| groups.contains(&group) && (by.is_none() || *by == label))
        };
        pods.values()
            .filter(|(label, ip)| selects(*label) && claims(*ip) == 1)
            .map(|(_, ip)| format!("10.0.0.{ip}"))
            .collect()
    };
    (0..3)
        .map(members)
        .map(|mut v: Vec<String>| {
            v.sort();
            v
        })
        .collect()
}

proptest! {
    #[test]
    fn agrees_with_its_definition_and_reports_every_change(steps in prop::collection::vec(step(), 1..60)) {
        let mut index = Index::default();
        let (mut pods, mut bindings) = (BTreeMap::new(), BTreeMap::new());
        let mut before = by_definition(&pods, &bindings);
        for step in steps {
            let changes = match step {
                Step::Pod { pod, label, ip, finished } => {
                    if finished { pods.remove(&pod); } else { pods.insert(pod, (label, ip)); }
                    let labels = label.map_or(json!({}), |l| json!({ "l": l.to_string() }));
                    let phase = if finished { "Failed" } else { "Running" };
                    index.apply_target(mk_pod_with(&pod.to_string(), labels, &[&format!("10.0.0.{ip}")], json!({}), phase))
                }
                Step::DeletePod(pod) => { pods.remove(&pod); index.delete_target(&TargetName::pod(name(&pod.to_string()))) }
                Step::Binding { binding, groups, label } => {
                    let names: Vec<String> = groups.iter().map(ToString::to_string).collect();
                    let selector = label.map_or(Selector::default(), |l| [("l".to_owned(), l.to_string())].into_iter().collect());
                    bindings.insert(binding, (groups, label));
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    index.apply_binding(mk_binding(&binding.to_string(), &names, Some(selector)))
                }
                Step::DeleteBinding(binding) => { bindings.remove(&binding); index.delete_binding(&name(&binding.to_string())) }
            };
            let now = by_definition(&pods, &bindings);
            for group in 0..3 {
                prop_assert_eq!(&addresses(&index, &group.to_string()), &now[group]);
                let told = changes.members.iter().any(|(g, _)| *g == name(&group.to_string()));
                prop_assert!(told || before[group] == now[group], "a change of group {} went unreported", group);
            }
            before = now;
        }
    }
}
