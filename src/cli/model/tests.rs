//! What is computed over classes and pieces, against the reference asked about single connections.

use super::classes::States;
use super::ends::Place;
use super::inventory::Inventory;
use super::rows::{Change, Ends, Row, rows};
use super::snapshot::Snapshot;
use super::verdicts::Scene as Explained;
use crate::api::{SecurityGroup, SecurityGroupBinding};
use crate::index::{Binding, Index, name_of};
use crate::policy::{
    CidrSet, Connection, Direction, Family, Interface, L4, NamespacedName, Policy, Transport, Verdict, World, carries,
};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The addresses that pods have, and others that CIDRs hold or miss.
const ADDRESSES: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.1.1",
    "fd00::1",
    "fd00::2",
    "10.0.0.6",
    "192.0.2.1",
    "fd00:1::1",
];
const CIDRS: [&str; 9] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.0.0.0/30",
    "10.0.0.2/32",
    "10.0.0.4/31",
    "192.0.2.0/24",
    "fd00::/64",
    "fd00::1/128",
];
const GROUPS: [&str; 4] = ["a", "b", "c", "missing"];
const PORTS: [u16; 8] = [0, 1, 22, 79, 80, 81, 443, 65535];

fn rule() -> impl Strategy<Value = Value> {
    let ports = prop::option::of(prop::collection::vec(
        prop_oneof![
            prop::sample::select(&[1, 22, 80, 65535][..]).prop_map(|port| json!(port)),
            prop::sample::select(&["22-80", "80-443", "1-65535", "443-65535"][..]).prop_map(|range| json!(range)),
        ],
        1..3,
    ));
    let icmp = prop::option::of((prop::sample::select(&[0, 8, 128, 255][..]), prop::option::of(0..2)));
    let remote = prop_oneof![
        prop::sample::subsequence(&CIDRS[..], 1..4).prop_map(|cidrs| json!({ "cidrs": cidrs })),
        prop::sample::select(&GROUPS[..]).prop_map(|name| json!({ "securityGroup": { "name": name } })),
    ];
    let protocol = prop::sample::select(&["TCP", "UDP", "SCTP", "ICMP", "ICMPv6", "Any"][..]);
    (protocol, ports, icmp, remote).prop_map(|(protocol, ports, icmp, remote)| {
        let mut rule = json!({ "protocol": protocol, "remote": remote });
        match (protocol, ports, icmp) {
            ("TCP" | "UDP" | "SCTP", Some(ports), _) => rule["ports"] = json!(ports),
            ("ICMP" | "ICMPv6", _, Some((type_, None))) => rule["icmp"] = json!({ "type": type_ }),
            ("ICMP" | "ICMPv6", _, Some((type_, Some(code)))) => rule["icmp"] = json!({ "type": type_, "code": code }),
            _ => {}
        }
        rule
    })
}

/// Groups by name, pods by label and addresses, bindings from label to groups.
#[derive(Clone, Debug)]
struct Scene {
    groups: Vec<(usize, Vec<Value>, Vec<Value>)>,
    pods: Vec<(usize, Vec<usize>)>,
    bindings: Vec<(usize, Vec<usize>)>,
}

fn groups() -> impl Strategy<Value = Vec<(usize, Vec<Value>, Vec<Value>)>> {
    // Mostly closed one way and open the other, so that rules and not their absence decide.
    let default = json!({ "protocol": "Any", "remote": { "cidrs": ["0.0.0.0/0", "::/0"] } });
    let egress = prop_oneof![2 => Just(vec![default]), 1 => prop::collection::vec(rule(), 0..3)];
    prop::collection::vec((0..3usize, prop::collection::vec(rule(), 0..4), egress), 1..4)
}

fn bindings() -> impl Strategy<Value = Vec<(usize, Vec<usize>)>> {
    prop::collection::vec((0..3usize, prop::collection::vec(0..4usize, 1..3)), 1..4)
}

fn scene() -> impl Strategy<Value = Scene> {
    // A pod's addresses are mostly its own, and now and then another's too.
    let others = prop_oneof![6 => Just(vec![]), 1 => prop::collection::vec(0..7usize, 1..2)];
    let pods = prop::collection::vec((0..4usize, others), 2..8).prop_map(|pods| {
        let with_own = |(own, (label, others)): (usize, (usize, Vec<usize>))| (label, [vec![own], others].concat());
        pods.into_iter().enumerate().map(with_own).collect::<Vec<_>>()
    });
    (groups(), pods, bindings()).prop_map(|(groups, pods, bindings)| Scene { groups, pods, bindings })
}

impl Scene {
    fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        for (name, ingress, egress) in &self.groups {
            let group: SecurityGroup = serde_json::from_value(json!({
                "apiVersion": "ringfence.io/v1alpha1", "kind": "SecurityGroup",
                "metadata": { "namespace": "shop", "name": GROUPS[*name], "generation": 1 },
                "spec": { "ingress": ingress, "egress": egress },
            }))
            .unwrap();
            inventory.groups.insert(name_of(&group.metadata), group);
        }
        for (i, (label, addresses)) in self.pods.iter().enumerate() {
            let ips: Vec<Value> = addresses.iter().map(|address| json!({ "ip": ADDRESSES[*address] })).collect();
            let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
                "metadata": { "namespace": "shop", "name": format!("p{i}"), "labels": { "app": label.to_string() } },
                "spec": { "containers": [] }, "status": { "phase": "Running", "podIPs": ips },
            }))
            .unwrap();
            inventory.pods.insert(name_of(&pod.metadata), pod);
        }
        for (i, (label, groups)) in self.bindings.iter().enumerate() {
            let groups: BTreeSet<usize> = groups.iter().copied().collect();
            let names: Vec<Value> = groups.iter().map(|group| json!({ "name": GROUPS[*group] })).collect();
            let binding: SecurityGroupBinding = serde_json::from_value(json!({
                "apiVersion": "ringfence.io/v1alpha1", "kind": "SecurityGroupBinding",
                "metadata": { "namespace": "shop", "name": format!("b{i}"), "generation": 1 },
                "spec": {
                    "securityGroups": names,
                    "target": { "podSelector": { "matchLabels": { "app": label.to_string() } } },
                },
            }))
            .unwrap();
            inventory.bindings.insert(name_of(&binding.metadata), binding);
        }
        inventory
    }

    fn index(&self) -> Index {
        self.inventory().index()
    }
}

/// What the reference is asked about, written down anew: who is guarded by what, and who is a member.
fn policy(index: &Index) -> Policy {
    let mut policy = Policy::default();
    for target in index.all_targets() {
        let bindings: Vec<&Binding> = index.bindings_of(&target.key()).collect();
        let attached: BTreeSet<&NamespacedName> = bindings.iter().flat_map(|binding| &binding.groups).collect();
        let rules = |name: &&NamespacedName| Some(((*name).clone(), index.group(name)?.rules.clone()?));
        let interface: Interface = attached.iter().filter_map(rules).collect();
        for address in target.claimed().iter().filter(|_| !bindings.is_empty()) {
            let contested = index.claimants(*address).count() > 1;
            policy.interfaces.insert(*address, if contested { Interface::new() } else { interface.clone() });
        }
    }
    for group in index.groups() {
        let members = index.members(&group.name).flat_map(|member| index.addresses(member));
        policy.members.insert(group.name.clone(), members.map(IpNet::from).collect::<CidrSet>());
    }
    policy
}

fn connections() -> impl Iterator<Item = Connection> {
    let addresses = || ADDRESSES.iter().map(|address| address.parse::<IpAddr>().unwrap());
    let pairs = addresses().flat_map(move |source| addresses().map(move |destination| (source, destination)));
    let pairs = pairs.filter(|(a, b)| a.is_ipv4() == b.is_ipv4() && a != b);
    let ports = Transport::ALL.into_iter().flat_map(|t| PORTS.into_iter().map(move |port| L4::Ports(t, port)));
    let icmp = [(8, 0), (8, 1), (8, 2), (128, 0), (0, 0), (255, 1), (9, 0)].map(|(type_, code)| L4::Icmp(type_, code));
    let kinds: Vec<L4> = ports.chain(icmp).chain([L4::Other]).collect();
    pairs.flat_map(move |(source, destination)| {
        kinds.clone().into_iter().map(move |l4| Connection { source, destination, l4 })
    })
}

/// Whether a connection is among those that a row speaks of.
fn contains(row: &Row, connection: &Connection, index: &Index) -> bool {
    let Connection { source, destination, l4 } = *connection;
    let in_region = |ends: &Ends, address| {
        let region = ends.regions.get(&Family::of(address));
        region.is_some_and(|region| region.contains(address)) && index.claimants(address).next().is_none()
    };
    let is_end = |ends: &Ends, address| ends.addresses.contains(&address) || in_region(ends, address);
    row.families.contains(&Family::of(source))
        && row.traffic.contains(l4)
        && is_end(&row.from, source)
        && is_end(&row.to, destination)
}

fn check(before: &Index, after: &Index) -> Result<Vec<Row>, TestCaseError> {
    let (old, new) = (Snapshot::new(before), Snapshot::new(after));
    let rows = rows(States { before: &old, after: &new });
    let (was, is) = (policy(before), policy(after));
    for connection in connections() {
        let (was, is) = (was.evaluate(&connection), is.evaluate(&connection));
        prop_assert_eq!(&old.evaluate(&connection), &was, "{:?}", connection);
        prop_assert_eq!(&new.evaluate(&connection), &is, "{:?}", connection);
        let said = |change| {
            let of_it = |row: &&Row| row.change == change && contains(row, &connection, after);
            rows.iter().filter(of_it).count()
        };
        let expected = (usize::from(!was.allowed() && is.allowed()), usize::from(was.allowed() && !is.allowed()));
        prop_assert_eq!((said(Change::Opens), said(Change::Cuts)), expected, "{:?} in {:#?}", connection, rows);
        let newly = old.guard_of(connection.destination).is_none() && new.guard_of(connection.destination).is_some();
        let kept = usize::from(newly && was.allowed() && is.allowed());
        prop_assert_eq!(said(Change::Keeps), kept, "{:?} in {:#?}", connection, rows);
    }
    Ok(rows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn rows_say_of_every_connection_what_the_reference_says(
        scene in scene(), groups in groups(), bindings in bindings(), rules: bool, who: bool,
    ) {
        let before = scene.index();
        // The rules change, or who has them, or both.
        let groups = if rules || !who { groups } else { scene.groups.clone() };
        let bindings = if who { bindings } else { scene.bindings.clone() };
        let after = Scene { groups, bindings, pods: scene.pods.clone() }.index();
        check(&before, &after)?;
    }

    #[test]
    fn nothing_changes_without_a_change(scene in scene()) {
        prop_assert_eq!(check(&scene.index(), &scene.index())?, vec![]);
    }

    #[test]
    fn an_explanation_is_the_references_verdict_and_its_rule(scene in scene()) {
        let inventory = scene.inventory();
        let index = inventory.index();
        let snapshot = Snapshot::new(&index);
        let explained = Explained { inventory: &inventory, index: &index, snapshot: &snapshot };
        let reference = policy(&index);
        for connection in connections().step_by(7) {
            let place = |address: IpAddr| {
                let target = index.claimants(address).next().cloned();
                Place { name: address.to_string(), target, addresses: vec![address], port: None }
            };
            let (source, destination) = (place(connection.source), place(connection.destination));
            for (direction, own, peer) in
                [(Direction::Egress, &source, &destination), (Direction::Ingress, &destination, &source)]
            {
                let said = explained.end(direction, &connection, own, peer);
                match reference.end(direction, &connection) {
                    Verdict::Unguarded => prop_assert_eq!((said.allowed, said.reason), (true, "Unguarded")),
                    Verdict::Itself => prop_assert_eq!((said.allowed, said.reason), (true, "Itself")),
                    Verdict::Allowed { group, rule } => {
                        let at = said.rule.map(|rule| (rule.group, rule.id));
                        prop_assert_eq!((said.allowed, at), (true, Some((group.to_string(), rule.to_string()))));
                    }
                    Verdict::Denied => {
                        prop_assert!(!said.allowed && said.why_not.is_some() == said.rule.is_some());
                        // The nearest shares one thing with what was asked, and not both.
                        for rule in said.rule.iter() {
                            let groups = index.groups().filter(|group| group.name.to_string() == rule.group);
                            let rules = groups.flat_map(|g| g.rules.iter().flat_map(|r| r.rules(direction).to_vec()));
                            let nearest = rules.into_iter().find(|r| r.id().to_string() == rule.id).unwrap();
                            let remote = match direction {
                                Direction::Ingress => connection.source,
                                Direction::Egress => connection.destination,
                            };
                            let carried = carries(&nearest, Family::of(remote), connection.l4);
                            prop_assert!(carried != reference.is_remote(&nearest, remote), "{nearest}");
                        }
                    }
                }
            }
        }
    }
}
