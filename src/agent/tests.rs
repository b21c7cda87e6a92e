//! What a node is to enforce, from what its watches have seen.

use super::attachments::Attachment;
use super::check::find_refused;
use super::committed::Revision;
use super::networks::{Attached, PodNetworks};
use super::state::{Desired, HeldBack, State};
use crate::api::{AttachmentState, SecurityGroup, SecurityGroupBinding, SecurityGroupSlice};
use crate::index::{AddressDigest, Indexed, TargetName, Update};
use crate::nft::{Guard, Name, View, compile};
use crate::policy::{Family, Interface, NamespacedName};
use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

const NODE: &str = "172.30.0.1";

fn name(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn mk_pod(pod: &str, app: &str, ips: &[&str]) -> Pod {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    serde_json::from_value(json!({
        "metadata": { "namespace": "shop", "name": pod, "labels": { "app": app } },
        "spec": { "containers": [], "nodeName": "n1" },
        "status": { "phase": "Running", "podIPs": ips },
    }))
    .unwrap()
}

fn mk_group(group: &str, generation: i64, remotes: &[&str]) -> SecurityGroup {
    let rule =
        |r: &&str| json!({ "protocol": "TCP", "ports": [generation], "remote": { "securityGroup": { "name": r } } });
    let ingress: Vec<Value> = remotes.iter().map(rule).collect();
    serde_json::from_value(json!({
        "apiVersion": "ringfence.io/v1alpha1",
        "kind": "SecurityGroup",
        "metadata": { "namespace": "shop", "name": group, "uid": format!("uid-{group}"), "generation": generation },
        "spec": { "ingress": ingress },
    }))
    .unwrap()
}

fn mk_binding(binding: &str, groups: &[&str], app: &str) -> SecurityGroupBinding {
    let groups: Vec<Value> = groups.iter().map(|g| json!({ "name": g })).collect();
    serde_json::from_value(json!({
        "apiVersion": "ringfence.io/v1alpha1",
        "kind": "SecurityGroupBinding",
        "metadata": { "namespace": "shop", "name": binding, "uid": format!("uid-{binding}"), "generation": 1 },
        "spec": { "securityGroups": groups, "target": { "podSelector": { "matchLabels": { "app": app } } } },
    }))
    .unwrap()
}

fn mk_slice(group: &str, uid: &str, addresses: &[&str]) -> SecurityGroupSlice {
    serde_json::from_value(json!({
        "apiVersion": "ringfence.io/v1alpha1",
        "kind": "SecurityGroupSlice",
        "metadata": { "namespace": "shop", "name": format!("{group}-{uid}") },
        "spec": { "group": group, "groupUID": uid, "members": [{ "target": "pod/x", "addresses": addresses }] },
    }))
    .unwrap()
}

fn state() -> State {
    State::new([ip(NODE)].into())
}

impl State {
    fn pod(&mut self, pod: &str, app: &str, ips: &[&str]) {
        self.index.update(Update::Target(mk_pod(pod, app, ips).keep()));
    }

    fn group(&mut self, group: &str, generation: i64, remotes: &[&str]) {
        self.index.update(Update::Group(mk_group(group, generation, remotes).keep()));
    }

    fn binding(&mut self, binding: &str, groups: &[&str], app: &str) {
        self.index.update(Update::Binding(mk_binding(binding, groups, app).keep()));
    }

    fn rules(&self, group: &str) -> Arc<crate::policy::Group> {
        self.index.group(&name(group)).unwrap().rules.clone().unwrap()
    }
}

/// What an address with exactly these groups is guarded by.
fn guard(state: &State, groups: &[&str], family: Family) -> Guard {
    let interface: Interface = groups.iter().map(|g| (name(g), state.rules(g))).collect();
    Guard { chains: compile(&interface).chains[&family].clone() }
}

fn closed() -> Guard {
    Guard { chains: compile(&Interface::new()).chains[&Family::V4].clone() }
}

fn guards(desired: &Desired) -> Vec<String> {
    // Who asks what is in force is told of the same.
    let told = desired.committed.ends.iter().map(|(address, end)| {
        let guard = Guard { chains: compile(&end.rules).chains[&Family::of(*address)].clone() };
        (*address, guard)
    });
    assert_eq!(told.collect::<BTreeMap<_, _>>(), desired.ruleset.guards);
    desired.ruleset.guards.keys().map(ToString::to_string).collect()
}

/// The addresses in the kernel's set of a group.
fn set(desired: &Desired, group: &str) -> Vec<String> {
    let (_, addresses) = &desired.ruleset.groups[&Name::group_set(&name(group), Family::V4)];
    addresses.iter().map(ToString::to_string).collect()
}

/// How a pod is attached to a network, as a look at the node tells.
fn attached(uid: &str, addresses: &[&str]) -> BTreeMap<NamespacedName, PodNetworks> {
    let state = AttachmentState::Guarded;
    let on = Attached {
        state,
        message: String::new(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        unfiltered: false,
    };
    let networks = [(name("storage"), on)].into();
    [(name("db"), PodNetworks { node: "n1".into(), uid: uid.into(), networks })].into()
}

#[test]
fn s7_s10_on_another_network_a_pod_waits_until_it_was_looked_at_and_leaves_when_it_was() {
    let mut state = state();
    state.group("a", 1, &[]);
    let mut binding = mk_binding("x", &["a"], "db");
    binding.spec.networks = Some(vec!["storage".into()]);
    state.index.update(Update::Binding(binding.keep()));
    let attachment = Attachment {
        pod: name("db"),
        uid: "u".into(),
        container_id: "c".into(),
        interface: "net1".into(),
        network: Some("storage".into()),
        device: Some("veth1".into()),
        mac: None,
        addresses: [ip("10.30.0.1")].into(),
    };
    let revision = state.attachments.attach(attachment.clone());
    let waits = |state: &mut State| {
        let settled = state.desired().settled;
        settled.revision < revision || !settled.attached.contains(&attachment.key())
    };
    let mut pod = mk_pod("db", "db", &["10.0.0.1"]);
    pod.metadata.uid = Some("u".into());
    let asks = |pod: &Pod, networks: &str| {
        let mut pod = pod.clone();
        pod.metadata.annotations = Some([("k8s.v1.cni.cncf.io/networks".to_owned(), networks.to_owned())].into());
        Update::Target(pod.keep())
    };
    assert!(waits(&mut state), "nobody knows the pod");
    // A look at what is known of other pods is none at this one.
    assert!(state.set_networks(revision, attached("another", &["10.30.0.9"]), |_| true));
    assert!(state.update(asks(&pod, "backup@net2")) && waits(&mut state), "nobody knows which network it is");
    assert!(state.update(asks(&pod, "storage")) && waits(&mut state), "it was not looked at since");
    assert!(state.desired().report.networks.is_empty(), "and nothing is said of what may not be there");
    // On a bridge that hands nothing to the rules it waits until that is closed, if it is to be.
    let mut unfiltered = attached("u", &[]);
    unfiltered.values_mut().flat_map(|pod| pod.networks.values_mut()).for_each(|on| {
        (on.state, on.unfiltered) = (AttachmentState::Bypassing, true);
    });
    assert!(state.set_networks(revision, unfiltered, |_| true));
    assert!(!waits(&mut state), "it is to stay open, and is said to be");
    state.bridges_are_to_be_closed = true;
    assert!(waits(&mut state));
    assert!(state.set_networks(revision, attached("u", &["10.30.0.1"]), |_| true));
    assert!(!waits(&mut state), "with these addresses it is guarded");
    assert_eq!(guards(&state.desired()), ["10.30.0.1"]);
    assert_eq!(state.desired().report.networks.len(), 1);

    // The address goes before the interface does, and is closed until the pod is gone.
    let revision = state.attachments.release(&attachment.key(), None);
    assert!(state.desired().settled.revision < revision, "not looked at since");
    assert!(state.set_networks(revision, attached("u", &[]), |_| true));
    let desired = state.desired();
    assert_eq!(desired.settled.revision, revision);
    assert_eq!(desired.ruleset.guards[&ip("10.30.0.1")], closed());
    // Another look at what is as it was wakes nobody, and when its device is gone the address may be another node's.
    assert!(!state.set_networks(revision, attached("u", &[]), |_| true));
    assert!(state.set_networks(revision, attached("u", &[]), |_| false));
    assert!(state.desired().ruleset.guards.is_empty());
}

#[test]
fn s9_extra_addresses_are_guarded_like_own_ones_and_are_no_members() {
    let mut state = state();
    state.allowances.set("shop", Some("10.9.0.0/16,172.30.0.1"));
    state.group("db", 1, &["db"]);
    state.group("web", 1, &[]);
    state.binding("db", &["db"], "db");
    state.binding("web", &["web"], "web");
    let declaring = |pod: &str, app: &str, own: &str, extra: &str| {
        let mut pod = mk_pod(pod, app, &[own]);
        pod.metadata.annotations = Some([("ringfence.io/extra-addresses".to_owned(), extra.to_owned())].into());
        Update::Target(pod.keep())
    };
    // One is shared by two of a kind, one by two that are guarded differently; one is another pod's, and one is the node's.
    state.index.update(declaring("db-0", "db", "10.0.0.1", "10.9.0.1, 10.9.0.2, 10.9.0.3, 172.30.0.1"));
    state.index.update(declaring("db-1", "db", "10.0.0.2", "10.9.0.1"));
    state.index.update(declaring("web", "web", "10.0.0.3", "10.9.0.2"));
    state.index.update(declaring("unguarded", "else", "10.9.0.3", "10.9.0.4"));
    let desired = state.desired();
    assert_eq!(guards(&desired), ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.9.0.1", "10.9.0.2"]);
    let of = |address: &str| &desired.ruleset.guards[&ip(address)];
    assert_eq!(of("10.9.0.1"), of("10.0.0.1"));
    assert_eq!(*of("10.9.0.2"), closed(), "whose it is, cannot be told");
    assert_eq!(desired.report.interfaces, 3);
    let pod = state.index.pod(&name("db-0")).unwrap();
    let digests: Vec<_> = desired.report.groups.iter().map(|g| g.digest.clone()).collect();
    assert!(
        digests.contains(&AddressDigest::from(&[ip("10.0.0.1"), ip("10.0.0.2")].into()).to_string()),
        "{digests:?}"
    );
    assert_eq!(state.extra_addresses(pod).refused.len(), 2);

    state.allowances.set("shop", None);
    assert_eq!(guards(&state.desired()), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
}

#[test]
fn who_is_not_selected_passes_untouched() {
    let mut state = state();
    state.group("db", 1, &[]);
    state.binding("b", &["db"], "db");
    state.pod("p1", "web", &["10.0.0.1"]);
    let desired = state.desired();
    assert!(desired.ruleset.guards.is_empty() && desired.ruleset.groups.is_empty());
    assert_eq!(desired.report, Default::default());
}

#[test]
fn s6_a_binding_to_a_missing_group_closes() {
    let mut state = state();
    state.binding("b", &["missing"], "db");
    state.pod("p1", "db", &["10.0.0.1"]);
    let desired = state.desired();
    assert_eq!(desired.ruleset.guards, [(ip("10.0.0.1"), closed())].into());
    assert!(desired.ruleset.constants.contains_key(&closed().chains[&View::Ingress]));
    let group = &desired.report.groups[0];
    assert_eq!((group.name.as_str(), group.uid.as_ref(), group.generation), ("missing", None, 0));
    assert_eq!(desired.report.bindings[0].uid, "uid-b");
    assert_eq!((desired.report.interfaces, desired.remotes.len()), (1, 0));

    // Another group of the same pod is what it was.
    state.group("db", 1, &["db"]);
    state.binding("c", &["db"], "db");
    let desired = state.desired();
    assert_eq!(desired.ruleset.guards[&ip("10.0.0.1")], guard(&state, &["db"], Family::V4));
}

#[test]
fn s6_a_missing_or_empty_remote_is_nobody() {
    let mut state = state();
    state.group("db", 1, &["missing", "empty"]);
    state.group("empty", 1, &[]);
    state.binding("b", &["db"], "db");
    state.pod("p1", "db", &["10.0.0.1"]);
    // Slices may outlive their group for a moment.
    state.remotes.reset(&name("missing"), vec![mk_slice("missing", "uid-missing", &["10.0.9.9"])]);
    let desired = state.desired();
    assert!(set(&desired, "missing").is_empty() && set(&desired, "empty").is_empty());
    assert_eq!(desired.remotes, [name("empty")].into(), "there are no slices of a group that is not there");
    let nobody = AddressDigest::default().to_string();
    assert!(desired.report.remotes.iter().all(|r| r.digest == nobody && r.addresses == 0));
    assert_eq!(desired.report.remotes.len(), 2);
}

#[test]
fn s2_bindings_add_up() {
    let mut state = state();
    for group in ["a", "b"] {
        state.group(group, 1, &[group]);
    }
    state.binding("x", &["a"], "db");
    state.pod("p1", "db", &["10.0.0.1", "fd00::1"]);
    assert_eq!(state.desired().ruleset.guards[&ip("10.0.0.1")], guard(&state, &["a"], Family::V4));
    state.binding("y", &["b"], "db");
    let desired = state.desired();
    assert_eq!(desired.ruleset.guards[&ip("10.0.0.1")], guard(&state, &["a", "b"], Family::V4));
    assert_eq!(desired.ruleset.guards[&ip("fd00::1")], guard(&state, &["a", "b"], Family::V6));
    assert_ne!(guard(&state, &["a", "b"], Family::V4), guard(&state, &["a"], Family::V4));
    assert_eq!(desired.report.interfaces, 1);
}

#[test]
fn s10_an_address_that_two_pods_of_the_node_claim_is_closed() {
    let mut state = state();
    state.group("db", 1, &["db"]);
    state.binding("b", &["db"], "db");
    state.pod("p1", "db", &["10.0.0.1", "10.0.0.2"]);
    state.pod("p2", "web", &["10.0.0.1"]);
    let desired = state.desired();
    assert_eq!(desired.ruleset.guards[&ip("10.0.0.1")], closed());
    assert_eq!(desired.ruleset.guards[&ip("10.0.0.2")], guard(&state, &["db"], Family::V4));
    // Whoever is left alone with it has it for its own.
    state.index.update(Update::NoTarget(TargetName::pod(name("p2"))));
    assert_eq!(state.desired().ruleset.guards[&ip("10.0.0.1")], guard(&state, &["db"], Family::V4));
}

#[test]
fn the_nodes_own_address_is_never_guarded() {
    let mut state = state();
    state.group("db", 1, &[]);
    state.binding("b", &["db"], "db");
    state.pod("liar", "db", &[NODE, "10.0.0.1"]);
    let mut host = mk_pod("host", "db", &[NODE, "10.0.0.9"]);
    host.spec.as_mut().unwrap().host_network = Some(true);
    state.index.update(Update::Target(host.keep()));
    let desired = state.desired();
    assert_eq!(guards(&desired), ["10.0.0.1"]);
    assert_eq!(desired.report.interfaces, 1, "pods on the host's network are no interfaces");
}

#[test]
fn s5_remotes_are_the_slices_of_the_groups_uid() {
    let mut state = state();
    state.group("db", 1, &["web"]);
    state.group("web", 1, &[]);
    state.binding("b", &["db"], "db");
    state.pod("p1", "db", &["10.0.0.1"]);
    assert_eq!(state.desired().remotes, [name("web")].into());
    let slices = vec![
        mk_slice("web", "uid-web", &["10.0.1.1", "fd00::1"]),
        mk_slice("web", "old", &["10.0.1.2"]),
        mk_slice("other", "uid-web", &["10.0.1.3"]),
    ];
    state.remotes.reset(&name("web"), slices);
    let desired = state.desired();
    assert_eq!(set(&desired, "web"), ["10.0.1.1"]);
    let expected: BTreeSet<IpAddr> = [ip("10.0.1.1"), ip("fd00::1")].into();
    assert_eq!(desired.report.remotes[0].digest, AddressDigest::from(&expected).to_string());
    assert_eq!(desired.report.remotes[0].addresses, 2);

    // A group of the same name, made anew: what it is given now is its own.
    let mut anew = mk_group("web", 1, &[]);
    anew.metadata.uid = Some("old".into());
    state.index.update(Update::Group(anew.keep()));
    assert_eq!(set(&state.desired(), "web"), ["10.0.1.2"]);
}

#[test]
fn every_remote_that_rules_name_is_reported_though_no_chain_looks_into_it() {
    let mut state = state();
    let mut open = mk_group("db", 1, &["web"]);
    open.spec.ingress.push(
        serde_json::from_value(json!({ "protocol": "Any", "remote": { "cidrs": ["0.0.0.0/0", "::/0"] } })).unwrap(),
    );
    state.index.update(Update::Group(open.keep()));
    state.group("web", 1, &[]);
    state.binding("b", &["db"], "db");
    state.pod("waiting", "db", &[]);
    let desired = state.desired();
    assert_eq!((guards(&desired).len(), desired.report.remotes.len()), (0, 1));
    assert_eq!(desired.remotes, [name("web")].into(), "its slices are there when the pod gets its address");
    state.pod("waiting", "db", &["10.0.0.1"]);
    let desired = state.desired();
    assert_eq!(desired.report.remotes.len(), 1);
    assert!(desired.ruleset.groups.is_empty(), "everyone is let in anyway");
}

#[test]
fn pods_with_the_same_groups_share_a_profile() {
    let mut state = state();
    for group in ["a", "b"] {
        state.group(group, 1, &[group]);
    }
    state.binding("x", &["a", "b"], "db");
    state.binding("y", &["a"], "web");
    state.binding("z", &["b"], "web");
    state.pod("p1", "db", &["10.0.0.1"]);
    let one = state.desired();
    state.pod("p2", "db", &["10.0.0.2"]);
    state.pod("p3", "web", &["10.0.0.3"]);
    let three = state.desired();
    assert_eq!(three.ruleset.guards.values().collect::<Vec<_>>(), vec![&one.ruleset.guards[&ip("10.0.0.1")]; 3]);
    assert_eq!(one.ruleset.constants.len(), three.ruleset.constants.len());
    for (name, constant) in &one.ruleset.constants {
        assert!(Arc::ptr_eq(constant, &three.ruleset.constants[name]), "compiled once");
    }
}

#[test]
fn s13_a_revision_that_the_kernel_refused_is_held_back_until_it_changes() {
    let mut state = state();
    state.group("db", 1, &["db"]);
    state.group("other", 1, &["other"]);
    state.binding("b", &["db", "other"], "db");
    state.pod("p1", "db", &["10.0.0.1"]);
    let good = state.desired();
    state.group("db", 2, &["web"]);
    let instead = good.committed.groups[&name("db")].clone();
    let held = HeldBack { refused: ("uid-db".into(), 2), instead: Some(instead), message: "no".repeat(1000) };
    state.held_back.insert(name("db"), held);
    let desired = state.desired();
    assert_eq!(desired.ruleset, good.ruleset);
    assert_eq!(desired.report.groups[0].generation, 1);
    assert_eq!(desired.remotes, [name("db"), name("other")].into(), "what is in force names these");
    let failure = &desired.report.failures[0];
    assert_eq!((failure.name.as_str(), failure.message.len()), ("db", 1000), "as much as the API takes");

    // Without anything good before, the group allows nothing; the others of the pod are what they are.
    state.held_back.get_mut(&name("db")).unwrap().instead = None;
    let desired = state.desired();
    assert_eq!(desired.ruleset.guards[&ip("10.0.0.1")], guard(&state, &["other"], Family::V4));
    assert_eq!((desired.report.groups[0].uid.as_ref(), desired.report.failures.len()), (None, 1));

    state.group("db", 3, &["db"]);
    let desired = state.desired();
    assert_eq!((desired.report.groups[0].generation, desired.report.failures.len()), (3, 0), "any other is tried");
}

/// One group was refused before, and another is now: the trials must not stumble over the first one again.
#[tokio::test]
async fn s13_what_is_held_back_already_does_not_fail_every_trial() {
    for good_before in [true, false] {
        let mut state = state();
        let groups = ["bad", "new", "worse"];
        state.binding("b", &groups, "db");
        state.pod("p1", "db", &["10.0.0.1"]);
        state.group("bad", 1, &["bad"]);
        let instead = state.desired().committed.groups.get(&name("bad")).cloned().filter(|_| good_before);
        state.group("bad", 66, &["bad"]);
        let held = HeldBack { refused: ("uid-bad".into(), 66), instead, message: "no".into() };
        state.held_back.insert(name("bad"), held);
        let good = state.desired().committed.groups.clone();
        state.group("new", 1, &["new"]);
        state.group("worse", 66, &["worse"]);
        let wanted = state.desired().committed.groups.clone();

        // The kernel has something against port 66.
        let refuses = |desired: &Desired| {
            desired.ruleset.constants.values().any(|c| format!("{c:?}").contains("66..=66")).then(|| "no".to_owned())
        };
        assert!(refuses(&state.desired()).is_some());
        let refused = find_refused(&good, &wanted, async |tried| refuses(&state.desired_with(&wanted, tried))).await;
        assert_eq!(refused.keys().collect::<Vec<_>>(), [&name("worse")], "good before: {good_before}");
        state.held_back.extend(refused);
        let desired = state.desired();
        assert!(refuses(&desired).is_none());
        assert!(desired.committed.groups.contains_key(&name("new")));
        assert_eq!(desired.report.failures.len(), 2);
    }
}

#[test]
fn a_trial_changes_nothing() {
    let mut state = state();
    state.group("db", 1, &["db"]);
    state.binding("b", &["db"], "db");
    state.pod("p1", "db", &["10.0.0.1"]);
    let before = state.desired();
    let closed_for_now = state.desired_with(&before.committed.groups, &BTreeMap::new());
    assert_eq!(closed_for_now.ruleset.guards[&ip("10.0.0.1")], closed());
    let older: BTreeMap<NamespacedName, Revision> =
        [(name("db"), Revision { uid: "uid-db".into(), generation: 0, rules: Arc::default() })].into();
    assert_eq!(state.desired_with(&before.committed.groups, &older).committed.groups, older);
    let after = state.desired();
    assert_eq!((after.ruleset, after.report), (before.ruleset, before.report));
    assert!(state.held_back.is_empty());
}

/// One piece of news, as a watch brings it.
#[derive(Clone, Debug)]
enum News {
    Pod(usize, usize, Vec<&'static str>),
    Group(usize, i64, Vec<usize>),
    Binding(usize, Vec<usize>, usize),
    Slice(usize, &'static str, Vec<&'static str>),
}

const GROUPS: [&str; 4] = ["a", "b", "c", "d"];
const APPS: [&str; 2] = ["db", "web"];

fn news() -> impl Strategy<Value = News> {
    let ips = || prop::sample::subsequence(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", NODE], 0..3);
    let groups = || prop::collection::vec(0..GROUPS.len(), 0..3);
    prop_oneof![
        (0..4usize, 0..APPS.len(), ips()).prop_map(|(pod, app, ips)| News::Pod(pod, app, ips)),
        (0..GROUPS.len(), 1..4i64, groups())
            .prop_map(|(group, generation, remotes)| News::Group(group, generation, remotes)),
        (0..3usize, groups(), 0..APPS.len()).prop_map(|(binding, groups, app)| News::Binding(binding, groups, app)),
        (0..GROUPS.len(), prop::sample::select(&["uid-a", "uid-b", "uid-c"]), ips())
            .prop_map(|(group, uid, ips)| News::Slice(group, uid, ips)),
    ]
}

impl News {
    /// What it is about: of one thing, order matters.
    fn subject(&self) -> (u8, usize, &'static str) {
        match self {
            Self::Pod(pod, ..) => (0, *pod, ""),
            Self::Group(group, ..) => (1, *group, ""),
            Self::Binding(binding, ..) => (2, *binding, ""),
            Self::Slice(group, uid, _) => (3, *group, uid),
        }
    }

    fn tell(&self, state: &mut State) {
        let groups = |list: &[usize]| list.iter().map(|g| GROUPS[*g]).collect::<Vec<_>>();
        match self {
            Self::Pod(pod, app, ips) => state.pod(&format!("p{pod}"), APPS[*app], ips),
            Self::Group(group, generation, remotes) => state.group(GROUPS[*group], *generation, &groups(remotes)),
            Self::Binding(binding, list, app) => state.binding(&format!("b{binding}"), &groups(list), APPS[*app]),
            Self::Slice(group, uid, ips) => {
                state.remotes.apply(&name(GROUPS[*group]), mk_slice(GROUPS[*group], uid, ips));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_order_of_news_does_not_matter(
        (news, shuffled) in prop::collection::vec(news(), 1..30).prop_flat_map(|all| {
            // Of each thing the last news only: what came before is the past.
            let latest: BTreeMap<_, News> = all.iter().map(|n| (n.subject(), n.clone())).collect();
            (Just(all), Just(latest.into_values().collect::<Vec<_>>()).prop_shuffle())
        })
    ) {
        let (mut first, mut second) = (state(), state());
        for n in &news {
            n.tell(&mut first);
            // Whatever was computed in between, and kept, must not show.
            first.desired();
        }
        shuffled.iter().for_each(|n| n.tell(&mut second));
        let (first, second) = (first.desired(), second.desired());
        prop_assert_eq!(first.ruleset, second.ruleset);
        prop_assert_eq!(first.report, second.report);
        prop_assert_eq!(&first.committed.groups, &second.committed.groups);
        prop_assert_eq!(first.remotes, second.remotes);
    }
}
