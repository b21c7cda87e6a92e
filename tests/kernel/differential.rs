//! Random policies and connections: the kernel agrees with the reference, also after edits.

use crate::support::lab;
use crate::support::packet::{self, Ends};
use crate::support::random::{self, Random};
use crate::support::scenario::{ICMP_TYPES, ICMPV6_TYPES, PORTS, Scenario};
use crate::support::table;
use crate::support::topology::{Network, Topology};
use crate::support::wire::{Kind, Probe, Wire};
use ringfence::nft::{self, Ruleset};
use ringfence::policy::{Connection, L4, Policy, Transport, World};
use std::net::IpAddr;
use std::time::Instant;

/// A connection, the packet that says it, and what should become of it.
struct Case {
    what: &'static str,
    connection: Connection,
    probe: Probe,
}

/// The differential test: one topology, many policies, each edited many times.
struct Differential {
    topology: Topology,
    wire: Wire,
    scenario: Scenario,
    random: Random,
    seed: u64,
    port: u16,
    /// Connections that came to be under this policy. Each is tried again after every edit, in both directions.
    open: Vec<Case>,
    log: Vec<String>,
    cases: usize,
    allowed: usize,
}

impl Differential {
    fn new(network: Network, seed: u64) -> Self {
        let topology = Topology::new(network, 6);
        topology.pin_neighbours();
        let wire = Wire::new(&topology);
        let others = topology.outside.addresses.iter().chain(&topology.node.addresses).copied();
        let scenario = Scenario::new(topology.pods.iter().map(|pod| pod.addresses.clone()), others);
        Self {
            wire,
            scenario,
            topology,
            random: Random::new(seed),
            seed,
            port: 10_000,
            open: Vec::new(),
            log: Vec::new(),
            cases: 0,
            allowed: 0,
        }
    }

    /// A random policy as a whole, then edits of it as differences.
    fn policy(&mut self, edits: usize) {
        self.log.clear();
        self.open.clear();
        self.scenario.fill(&mut self.random);
        let mut ruleset = self.scenario.ruleset();
        self.topology.node.netns.apply([nft::full(&ruleset).as_str()]);
        self.check(100, &ruleset);
        for _ in 0..edits {
            let edit = self.scenario.edit(&mut self.random);
            self.log.push(edit);
            let next = self.scenario.ruleset();
            self.topology.node.netns.apply(nft::plan(&ruleset, &next).scripts());
            ruleset = next;
            self.check(40, &ruleset);
        }
        let context = format!("{} after {:?}", random::repeat(self.seed), self.log);
        table::assert_same(&table::read(&self.topology.node.netns), &table::from_nothing(&ruleset), &context);
    }

    fn check(&mut self, count: usize, ruleset: &Ruleset) {
        let mut cases: Vec<Case> = std::mem::take(&mut self.open)
            .into_iter()
            .flat_map(|case| {
                let Case { connection, probe, .. } = case;
                let back = match probe.kind {
                    Kind::Udp(from, to) => Some(Probe { ends: probe.ends.reversed(), kind: Kind::Udp(to, from) }),
                    _ => None,
                };
                let back = back.map(|probe| Case { what: "back", connection, probe });
                [Some(Case { what: "again", ..case }), back].into_iter().flatten()
            })
            .collect();
        for _ in 0..count {
            cases.push(self.case());
        }

        let probes: Vec<Probe> = cases.iter().map(|case| case.probe).collect();
        let outcomes = self.wire.send(&probes);
        let policy = self.scenario.policy();
        let mut wrong = String::new();
        for (case, outcome) in cases.iter().zip(outcomes) {
            let expected = self.expected(&policy, case);
            let right = outcome.arrived == expected && (outcome.answered == expected || !case.probe.must_be_answered());
            if !right {
                let decision = policy.evaluate(&case.connection);
                wrong += &format!("{} {:?}: {outcome:?}, but {decision:?}\n", case.what, case.probe);
            }
            self.allowed += usize::from(expected);
        }
        self.cases += cases.len();
        assert!(
            wrong.is_empty(),
            "the kernel disagrees; repeat with {}\n{wrong}\nedits: {:#?}\n{}\n{ruleset:#?}\n{}",
            random::repeat(self.seed),
            self.log,
            self.scenario,
            table::text(&table::read(&self.topology.node.netns)),
        );
        let keeps = |case: &Case| {
            let known = matches!(case.probe.kind, Kind::Udp(..) | Kind::Icmp(..)) && case.what != "back";
            // Once open it stays so to conntrack, whatever an edit makes of it.
            known && (case.what == "again" || self.expected(&policy, case))
        };
        self.open = cases.into_iter().filter(keeps).collect();
        let surplus = self.open.len().saturating_sub(30);
        self.open.drain(..surplus);
    }

    /// The reference semantics, and S11: what the node opens is allowed, and what it sends arrives.
    fn expected(&self, policy: &Policy, case: &Case) -> bool {
        let of_node = |address| self.topology.node.addresses.contains(&address);
        of_node(case.connection.source)
            || of_node(case.probe.ends.source)
            || policy.evaluate(&case.connection).allowed()
    }

    /// A random connection between two hosts.
    fn case(&mut self) -> Case {
        let random = &mut self.random;
        let hosts: Vec<_> = self.topology.hosts().collect();
        let v6 = random.percent(50);
        let (from, to) = loop {
            let (from, to) = (random.below(hosts.len()), random.below(hosts.len()));
            if from != to {
                break (from, to);
            }
        };
        let mut address = |host: usize| -> IpAddr {
            let all: Vec<_> = hosts[host].addresses.iter().filter(|a| a.is_ipv6() == v6).collect();
            **random.pick(&all)
        };
        let ends = Ends { source: address(from), destination: address(to) };
        self.port = if self.port == 60_000 { 10_000 } else { self.port + 1 };
        let port = *random.pick(&PORTS);
        let (kind, l4) = match random.below(10) {
            0..=2 => (Kind::Tcp(self.port, port), L4::Ports(Transport::Tcp, port)),
            3..=5 => (Kind::Udp(self.port, port), L4::Ports(Transport::Udp, port)),
            6 => (Kind::Sctp(self.port, port), L4::Ports(Transport::Sctp, port)),
            // Conntrack cannot tell the directions of these apart: only ever one of them is tried.
            7 if from < to => (Kind::Other(*random.pick(&[packet::GRE, packet::EXPERIMENT])), L4::Other),
            _ => {
                let type_ = *random.pick(if v6 { &ICMPV6_TYPES[..] } else { &ICMP_TYPES[..] });
                let code = if random.percent(70) { 0 } else { 1 };
                (Kind::Icmp((type_, code), self.port), L4::Icmp(type_, code))
            }
        };
        let connection = Connection { source: ends.source, destination: ends.destination, l4 };
        Case { what: "new", connection, probe: Probe { ends, kind } }
    }
}

fn differential(network: Network, policies: usize) {
    if !lab::ready() {
        return;
    }
    for seed in random::seeds([1]) {
        let started = Instant::now();
        let mut test = Differential::new(network, seed);
        for _ in 0..policies {
            test.policy(8);
        }
        println!(
            "{network:?}, {}: {} cases, {} of them allowed, {policies} policies, {:?}",
            random::repeat(seed),
            test.cases,
            test.allowed,
            started.elapsed()
        );
    }
}

#[test]
fn random_policies_agree_with_the_reference_routed() {
    differential(Network::Routed, 20);
}

#[test]
fn random_policies_agree_with_the_reference_bridged() {
    differential(Network::Bridged, 10);
}
