//! Controller and agents, coupled: what the one expects and what the others report, over arbitrary histories.

use super::objects::{allows, from_group, key, mk_binding, mk_group, mk_pod};
use super::world::{Kind, NOW, World};
use crate::agent::attachments::{Attachment, Attachments};
use crate::agent::state::{Desired, State};
use crate::api::conditions::{DATA_PATH_READY, ENFORCED};
use crate::api::{SecurityGroupBindingStatus, SecurityGroupStatus};
use crate::controller::cluster::Work;
use crate::controller::status;
use crate::index::{Target, name_of};
use crate::nft::Name;
use crate::policy::{Family, NamespacedName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

const GROUPS: [&str; 5] = ["shop/a", "shop/b", "shop/c", "bank/a", "bank/b"];
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Few enough to be claimed twice; a node's and a Service's among them.
const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "172.30.0.1", "10.96.0.5"];

#[derive(Clone, Debug)]
enum Step {
    Pod {
        pod: &'static str,
        app: &'static str,
        node: Option<&'static str>,
        ips: Vec<&'static str>,
        is: Is,
    },
    DeletePod(&'static str),
    /// The gate of the pod's node is told.
    Attach(&'static str, Vec<&'static str>),
    Detach(&'static str),
    Group(&'static str, Value),
    DeleteGroup(&'static str),
    Binding(&'static str, BTreeSet<&'static str>, Value),
    DeleteBinding(&'static str),
    Services(bool),
    Reboot(usize),
    RemoveNode(usize),
    Bypass(usize, bool),
    Write,
    Lead,
    Sync(usize, Kind),
    Commit(usize),
    Report(usize),
    Settle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Running,
    Finished,
    OnTheHostsNetwork,
}

fn rule() -> impl Strategy<Value = Value> {
    prop_oneof![
        6 => prop::sample::select(&GROUPS).prop_map(from_group),
        2 => prop::sample::select(&GROUPS).prop_map(|g| {
            let mut rule = from_group(g);
            rule["protocol"] = json!("Any");
            rule["ports"].take();
            rule
        }),
        2 => Just(json!({ "protocol": "TCP", "ports": [80], "remote": { "cidrs": ["0.0.0.0/0"] } })),
        1 => Just(json!({ "protocol": "Any", "remote": { "cidrs": ["0.0.0.0/0", "::/0"] } })),
    ]
}

fn spec() -> impl Strategy<Value = Value> {
    let rules = || prop::collection::vec(rule(), 0..3);
    (rules(), rules()).prop_map(|(ingress, egress)| json!({ "ingress": ingress, "egress": egress }))
}

fn step() -> impl Strategy<Value = Step> {
    let pod = || prop::sample::select(&["shop/p1", "shop/p2", "shop/p3", "shop/p4", "bank/p1", "bank/p2"]);
    let binding = || prop::sample::select(&["shop/x", "shop/y", "shop/z", "bank/x"]);
    let app = || prop::sample::select(&["web", "db"]);
    let group = || prop::sample::select(&GROUPS);
    let node = || 0..NODES.len();
    let is = prop_oneof![8 => Just(Is::Running), 1 => Just(Is::Finished), 1 => Just(Is::OnTheHostsNetwork)];
    let selector = prop_oneof![
        4 => app().prop_map(|app| json!({ "matchLabels": { "app": app } })),
        1 => Just(json!({})),
        1 => Just(json!({ "matchExpressions": [{ "key": "app", "operator": "NotIn", "values": ["web"] }] })),
    ];
    prop_oneof![
        8 => (pod(), app(), prop::option::weighted(0.9, prop::sample::select(&NODES)),
              prop::sample::subsequence(&ADDRESSES, 0..3), is)
            .prop_map(|(pod, app, node, ips, is)| Step::Pod { pod, app, node, ips, is }),
        2 => pod().prop_map(Step::DeletePod),
        4 => (pod(), prop::sample::subsequence(&ADDRESSES, 0..3)).prop_map(|(pod, ips)| Step::Attach(pod, ips)),
        2 => pod().prop_map(Step::Detach),
        5 => (group(), spec()).prop_map(|(group, spec)| Step::Group(group, spec)),
        2 => group().prop_map(Step::DeleteGroup),
        5 => (binding(), prop::sample::subsequence(&["a", "b", "c"], 1..3), selector)
            .prop_map(|(binding, groups, by)| Step::Binding(binding, groups.into_iter().collect(), by)),
        2 => binding().prop_map(Step::DeleteBinding),
        1 => any::<bool>().prop_map(Step::Services),
        1 => node().prop_map(Step::Reboot),
        1 => node().prop_map(Step::RemoveNode),
        1 => (node(), any::<bool>()).prop_map(|(node, bypass)| Step::Bypass(node, bypass)),
        4 => Just(Step::Write),
        1 => Just(Step::Lead),
        4 => (node(), prop::sample::select(&Kind::ALL)).prop_map(|(node, kind)| Step::Sync(node, kind)),
        4 => node().prop_map(Step::Commit),
        4 => node().prop_map(Step::Report),
        2 => Just(Step::Settle),
    ]
}

/// Uid and generation of rules.
type Revision = (String, i64);
/// The addresses they guard, and how many pods claim each. An address that goes from one pod to another at once is guarded as
/// before.
type Guarded = BTreeMap<IpAddr, usize>;

fn guarded<'a>(targets: impl Iterator<Item = &'a Target>) -> Guarded {
    let mut guarded = Guarded::new();
    for address in targets.flat_map(Target::claimed) {
        *guarded.entry(*address).or_default() += 1;
    }
    guarded
}

/// What is in a node's kernel, by name and address, no digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct View {
    groups: BTreeMap<NamespacedName, (Revision, Guarded)>,
    bindings: BTreeMap<NamespacedName, (Revision, Guarded)>,
    remotes: BTreeMap<NamespacedName, BTreeSet<IpAddr>>,
}

impl View {
    fn of(state: &mut State, desired: &Desired) -> Self {
        let mut view = Self::default();
        for group in state.index.groups() {
            let guarded = guarded(state.index.members(&group.name));
            view.groups.insert(group.name.clone(), ((group.uid.clone(), group.rules_generation), guarded));
        }
        for binding in state.index.bindings() {
            let guarded = guarded(state.index.targets(&binding.name));
            view.bindings.insert(binding.name.clone(), ((binding.uid.clone(), binding.generation), guarded));
        }
        view.groups.retain(|_, (_, guarded)| !guarded.is_empty());
        view.bindings.retain(|_, (_, guarded)| !guarded.is_empty());
        let is_here = |g: &&crate::index::Group| state.index.members(&g.name).any(|p| !p.host_network);
        let here: Vec<NamespacedName> = state.index.groups().filter(is_here).map(|g| g.name.clone()).collect();
        for group in &here {
            for remote in state.index.group(group).into_iter().flat_map(crate::index::Group::remotes) {
                let uid = state.index.group(&remote).map(|g| g.uid.clone());
                let addresses = state.remotes.addresses(&remote, uid.as_deref());
                for family in Family::ALL {
                    if let Some((_, kernel)) = desired.ruleset.groups.get(&Name::group_set(&remote, family)) {
                        let ours: BTreeSet<IpAddr> =
                            addresses.iter().copied().filter(|a| Family::of(*a) == family).collect();
                        assert_eq!(**kernel, ours, "the kernel's set of {remote}");
                    }
                }
                view.remotes.insert(remote, (*addresses).clone());
            }
        }
        view
    }
}

fn attachment(pod: &str, addresses: BTreeSet<IpAddr>) -> Attachment {
    Attachment {
        pod: key(pod),
        uid: format!("uid-{pod}"),
        // A sandbox has its addresses for life.
        container_id: format!("{pod} {addresses:?}"),
        interface: "eth0".into(),
        network: None,
        device: None,
        mac: None,
        addresses,
    }
}

#[derive(Default)]
struct Run {
    world: World,
    /// By node, as of the last report: what happened since then, nobody can know.
    kernels: BTreeMap<String, View>,
    committed: BTreeMap<String, View>,
    /// Likewise, what each node's gate was told.
    told: BTreeMap<String, Attachments>,
    committed_of_gates: BTreeMap<String, Attachments>,
    bypassed: BTreeSet<String>,
}

impl Run {
    fn step(&mut self, step: Step) {
        let world = &mut self.world;
        match step {
            Step::Pod { pod, app, node, ips, is } => {
                let mut pod = mk_pod(pod, app, node, &ips);
                match is {
                    Is::Running => {}
                    Is::Finished => pod.status.as_mut().unwrap().phase = Some("Succeeded".into()),
                    Is::OnTheHostsNetwork => pod.spec.as_mut().unwrap().host_network = Some(true),
                }
                world.put_pod(pod);
            }
            Step::DeletePod(pod) => world.delete_pod(&key(pod)),
            Step::Attach(pod, ips) => {
                let attachment = attachment(pod, ips.iter().map(|ip| ip.parse().unwrap()).collect());
                if let Some(attachments) = world.attachments_beside(&key(pod)) {
                    attachments.attach(attachment);
                }
            }
            Step::Detach(pod) => {
                if let Some(attachments) = world.attachments_beside(&key(pod)) {
                    let live = attachments.attached().find(|a| a.pod == key(pod)).map(Attachment::key);
                    live.map(|key| attachments.release(&key, None));
                }
            }
            Step::Group(group, spec) => world.put_group(mk_group(group, spec)),
            Step::DeleteGroup(group) => world.delete_group(&key(group)),
            Step::Binding(binding, groups, selector) => {
                let groups: Vec<&str> = groups.into_iter().collect();
                world.put_binding(mk_binding(binding, &groups, selector));
            }
            Step::DeleteBinding(binding) => world.delete_binding(&key(binding)),
            Step::Services(there) => {
                let networks = if there { vec!["10.96.0.0/16".parse().unwrap()] } else { Vec::new() };
                world.cluster.set_service_networks(networks);
            }
            Step::Reboot(node) => {
                self.kernels.remove(NODES[node]);
                self.committed.remove(NODES[node]);
                self.told.remove(NODES[node]);
                self.committed_of_gates.remove(NODES[node]);
                world.boot(NODES[node], &format!("172.30.0.{}", node + 1));
            }
            Step::RemoveNode(node) => {
                self.kernels.remove(NODES[node]);
                self.committed.remove(NODES[node]);
                self.told.remove(NODES[node]);
                self.committed_of_gates.remove(NODES[node]);
                world.remove_node(NODES[node]);
            }
            Step::Bypass(node, true) => {
                self.bypassed.insert(NODES[node].to_owned());
            }
            Step::Bypass(node, false) => {
                self.bypassed.remove(NODES[node]);
            }
            Step::Write => world.write(),
            Step::Lead => {
                world.cluster.adopt_slices();
                world.pending = world.cluster.all_work();
            }
            Step::Sync(node, kind) => world.sync(NODES[node], kind),
            Step::Commit(node) => self.commit(NODES[node]),
            Step::Report(node) => self.report(NODES[node]),
            Step::Settle => self.settle(),
        }
    }

    fn commit(&mut self, node: &str) {
        self.world.commit(node);
        if let Some(agent) = self.world.agents.get_mut(node) {
            self.committed.insert(node.to_owned(), View::of(&mut agent.state, &agent.kernel));
            let records = agent.state.attachments.records().values().cloned().map(|mut record| {
                if agent.state.index.pod(&record.attachment.pod).is_none() {
                    // It takes its address from others, but its own pod is not known yet.
                    record.attachment.uid = "not known".into();
                }
                record
            });
            self.committed_of_gates.insert(node.to_owned(), Attachments::restore(records));
        }
    }

    fn report(&mut self, node: &str) {
        let problems = if self.bypassed.contains(node) { vec!["a bridge".to_owned()] } else { Vec::new() };
        self.world.report_with(node, problems);
        if let Some(view) = self.committed.get(node) {
            self.kernels.insert(node.to_owned(), view.clone());
            self.told.insert(node.to_owned(), self.committed_of_gates[node].clone());
        }
    }

    fn settle(&mut self) {
        self.world.write();
        // Twice: whom a gate let in, others learn of from the first report.
        for node in NODES.into_iter().chain(NODES) {
            Kind::ALL.into_iter().for_each(|kind| self.world.sync(node, kind));
            self.commit(node);
            self.report(node);
            self.world.write();
        }
    }

    /// What each node's kernel should hold now.
    fn ideal(&self) -> BTreeMap<String, View> {
        let mut ideal = BTreeMap::new();
        for node in self.world.nodes.keys() {
            let mut state = self.world.state_of(node);
            // A pod whose node has not told of it yet has not started either.
            state.attachments = self.told.get(node).cloned().unwrap_or_default();
            let desired = state.desired();
            for group in &desired.remotes {
                let uid = self.world.groups[group].metadata.uid.clone().unwrap();
                let index = &self.world.cluster.index;
                let addresses: Vec<IpAddr> = index.members(group).flat_map(|p| index.addresses(p)).collect();
                let slice = serde_json::from_value(json!({
                    "metadata": { "namespace": group.namespace, "name": "all" },
                    "spec": { "group": group.name, "groupUID": uid, "members": [{ "target": "all", "addresses": addresses }] },
                }));
                state.remotes.reset(group, vec![slice.unwrap()]);
            }
            let desired = state.desired();
            ideal.insert(node.clone(), View::of(&mut state, &desired));
        }
        ideal
    }

    fn group_says(&self, name: &NamespacedName) -> Option<Condition> {
        let status = status::of_group(&self.world.cluster, name, &SecurityGroupStatus::default(), NOW)?;
        status.conditions.into_iter().find(|c| c.type_ == ENFORCED)
    }

    fn binding_says(&self, name: &NamespacedName) -> Option<Condition> {
        let status = status::of_binding(&self.world.cluster, name, &SecurityGroupBindingStatus::default(), NOW)?;
        status.conditions.into_iter().find(|c| c.type_ == ENFORCED)
    }

    /// S15: who is called enforced, is.
    fn nobody_is_called_enforced_who_is_not(&self) -> Result<(), TestCaseError> {
        let ideal = self.ideal();
        let nothing = View::default();
        let nodes = || ideal.iter().map(|(node, ideal)| (node, ideal, self.kernels.get(node).unwrap_or(&nothing)));
        for name in self.world.groups.keys() {
            if self.group_says(name).is_none_or(|c| c.status != "True") {
                continue;
            }
            let remotes = self.world.cluster.index.group(name).unwrap().remotes();
            for (node, ideal, kernel) in nodes() {
                prop_assert_eq!(kernel.groups.get(name), ideal.groups.get(name), "{} on {}", name, node);
                prop_assert_eq!(kernel.remotes.get(name), ideal.remotes.get(name), "remote {} on {}", name, node);
                if ideal.groups.contains_key(name) {
                    prop_assert!(!self.bypassed_report(node), "{} on {}", name, node);
                    for remote in &remotes {
                        prop_assert_eq!(
                            kernel.remotes.get(remote),
                            ideal.remotes.get(remote),
                            "{}'s remote {} on {}",
                            name,
                            remote,
                            node
                        );
                    }
                }
            }
        }
        for name in self.world.bindings.keys() {
            if self.binding_says(name).is_some_and(|c| c.status == "True") {
                for (node, ideal, kernel) in nodes() {
                    prop_assert_eq!(kernel.bindings.get(name), ideal.bindings.get(name), "{} on {}", name, node);
                }
            }
        }
        Ok(())
    }

    fn bypassed_report(&self, node: &str) -> bool {
        let report = self.world.reports.get(node).and_then(|r| r.status.as_ref());
        report.is_some_and(|s| s.conditions.iter().any(|c| c.type_ == DATA_PATH_READY && c.status == "False"))
    }

    /// What is not queued needs no write.
    fn all_that_differs_is_queued(&mut self) -> Result<(), TestCaseError> {
        self.world.collect();
        let all = self.world.cluster.all_work();
        let forgotten: Vec<&Work> =
            all.iter().filter(|work| !self.world.pending.contains(work) && self.world.differs(work)).collect();
        prop_assert!(forgotten.is_empty(), "these differ and are not queued: {:?}", forgotten);
        Ok(())
    }

    /// S15, the other way: nobody waits for what has happened.
    fn everybody_is_called_enforced(&self) -> Result<(), TestCaseError> {
        let accepted =
            |conditions: &[Condition]| conditions.iter().any(|c| c.type_ == "Accepted" && c.status == "True");
        for (name, group) in &self.world.groups {
            let conditions = &group.status.as_ref().unwrap().conditions;
            let says = self.group_says(name).unwrap();
            prop_assert!(says.status == "True" || !accepted(conditions), "group {}: {:?}", name, says);
        }
        for (name, binding) in &self.world.bindings {
            let conditions = &binding.status.as_ref().unwrap().conditions;
            let says = self.binding_says(name).unwrap();
            prop_assert!(says.status == "True" || !accepted(conditions), "binding {}: {:?}", name, says);
        }
        Ok(())
    }

    /// What agents take from slices is what the index says of members.
    fn slices_say_what_the_index_says(&self) -> Result<(), TestCaseError> {
        let index = &self.world.cluster.index;
        for (name, group) in &self.world.groups {
            let ours = self.world.slices.values().filter(|s| {
                name_of(&s.metadata).namespace == name.namespace
                    && s.spec.group == name.name
                    && Some(&s.spec.group_uid) == group.metadata.uid.as_ref()
            });
            let mut published: Vec<IpAddr> =
                ours.flat_map(|s| &s.spec.members).flat_map(|m| m.addresses.clone()).collect();
            published.sort();
            let mut by_index: Vec<IpAddr> = index.members(name).flat_map(|p| index.addresses(p)).collect();
            by_index.sort();
            prop_assert_eq!(published, by_index, "{}", name);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 3000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn s15_enforced_is_said_when_and_only_when_it_is_so(steps in prop::collection::vec(step(), 1..50)) {
        let mut run = Run { world: World::new(&NODES), ..Run::default() };
        for step in steps {
            run.step(step);
            run.all_that_differs_is_queued()?;
            run.nobody_is_called_enforced_who_is_not()?;
        }
        // Nodes come back, traffic takes its path again, and everybody has seen everything.
        for (i, node) in NODES.iter().enumerate() {
            if !run.world.nodes.contains_key(*node) {
                run.step(Step::Reboot(i));
            }
        }
        run.bypassed.clear();
        run.settle();
        run.all_that_differs_is_queued()?;
        run.nobody_is_called_enforced_who_is_not()?;
        run.everybody_is_called_enforced()?;
        run.slices_say_what_the_index_says()?;
    }
}

/// The same, for one history that has a bit of everything.
#[test]
fn s15_nobody_waits_for_what_has_happened() {
    let mut run = Run { world: World::new(&NODES), ..Run::default() };
    run.world.group("a", allows(&["a", "bank/missing"]));
    run.world.binding("x", &["a", "c"], "web");
    run.world.pod("p1", "web", "n1", &["10.0.0.1"]);
    run.world.pod("p2", "web", "n2", &["10.0.0.2"]);
    run.settle();
    run.nobody_is_called_enforced_who_is_not().unwrap();
    run.everybody_is_called_enforced().unwrap();
    assert_eq!(run.kernels["n1"].remotes[&key("a")].len(), 2);
}

/// A sandbox that went without a word, before any status showed its address; the next one has that by now.
#[test]
fn s10_s15_an_address_that_goes_on_to_another_pod_is_that_ones_alone() {
    let mut run = Run { world: World::new(&NODES), ..Run::default() };
    let pod = |pod| Step::Pod { pod, app: "web", node: Some("n1"), ips: vec![], is: Is::Running };
    run.world.group("a", allows(&["a"]));
    run.world.binding("x", &["a"], "web");
    for name in ["shop/p2", "shop/p1"] {
        run.step(pod(name));
        run.step(Step::Attach(name, vec!["10.0.0.4"]));
        run.settle();
        run.everybody_is_called_enforced().unwrap();
        let index = &run.world.cluster.index;
        let members: Vec<_> = index.members(&key("a")).filter(|p| index.addresses(p).next().is_some()).collect();
        assert_eq!(members.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>(), [key(name)]);
    }
}

/// A pod from before the gate was there gets another sandbox, and its status is known before its node's report.
#[test]
fn s10_s15_what_a_new_status_shows_no_more_is_over() {
    let mut run = Run { world: World::new(&NODES), ..Run::default() };
    let pod = |ip| Step::Pod { pod: "shop/p1", app: "web", node: Some("n1"), ips: vec![ip], is: Is::Running };
    run.world.group("a", allows(&["a"]));
    run.world.binding("x", &["a"], "web");
    run.step(pod("10.0.0.1"));
    run.step(Step::Attach("shop/p1", vec!["10.0.0.2"]));
    run.settle();
    run.step(pod("10.0.0.2"));
    run.settle();
    run.everybody_is_called_enforced().unwrap();
    run.slices_say_what_the_index_says().unwrap();
    let index = &run.world.cluster.index;
    let addresses: Vec<String> =
        index.members(&key("a")).flat_map(|pod| index.addresses(pod)).map(|address| address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.2"]);
}
