//! What the kernel does with packets is what the reference semantics say: random policies and connections, and the cases
//! worth a name, sent through the real table between network namespaces.
//!
//! Needs root, `nft` and `ip`. A failure of a random test prints how to repeat it.

mod support;

use ringfence::nft::{self, Ruleset};
use ringfence::policy::{Connection, L4, Policy, Transport, World};
use std::net::IpAddr;
use std::time::Instant;
use support::lab;
use support::traffic::{self, Expect, Flow};
use support::packet::{self, Ends};
use support::random::{self, Random};
use support::scenario::{ICMP_TYPES, ICMPV6_TYPES, PORTS, Scenario};
use support::table;
use support::topology::{Network, Topology};
use support::wire::{Kind, Probe, Wire};

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
    let started = Instant::now();
    for seed in random::seeds([1]) {
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

/// Two flows between pods: the first always allowed, the second never.
struct Watched {
    allowed: Connection,
    denied: Connection,
}

impl Watched {
    const PORT: u16 = 7000;

    fn new(topology: &Topology) -> Self {
        let pods = &topology.pods;
        let l4 = L4::Ports(Transport::Udp, Self::PORT);
        Self {
            allowed: Connection { source: pods[0].v4(), destination: pods[1].v4(), l4 },
            denied: Connection { source: pods[2].v4(), destination: pods[3].v4(), l4 },
        }
    }

    fn holds(&self, scenario: &Scenario) -> bool {
        let policy = scenario.policy();
        policy.evaluate(&self.allowed).allowed() && !policy.evaluate(&self.denied).allowed()
    }

    fn start(&self, topology: &Topology) -> (Flow, Flow) {
        let flow = |connection: &Connection, expect| {
            let socket = |address, port| {
                let host = topology.pods.iter().find(|pod| pod.addresses.contains(&address)).unwrap();
                traffic::udp(host, address, port)
            };
            Flow::start(socket(connection.source, 7001), socket(connection.destination, Self::PORT), expect)
        };
        (flow(&self.allowed, Expect::All), flow(&self.denied, Expect::None))
    }
}

/// A policy with which both flows are what they should be.
fn watched_scenario(topology: &Topology, watched: &Watched, random: &mut Random) -> Scenario {
    let mut scenario = Scenario::new(topology.pods.iter().map(|p| p.addresses.clone()), topology.outside.addresses.clone());
    loop {
        scenario.fill(random);
        if watched.holds(&scenario) {
            return scenario;
        }
    }
}

#[test]
fn edits_lose_no_allowed_packet_and_let_no_denied_one_through() {
    if !lab::ready() {
        return;
    }
    const EDITS: usize = 1_000;
    let started = Instant::now();
    for seed in random::seeds([3]).into_iter().take(1) {
        let topology = Topology::new(Network::Routed, 10);
        topology.pin_neighbours();
        let watched = Watched::new(&topology);
        let mut random = Random::new(seed);
        let mut scenario = watched_scenario(&topology, &watched, &mut random);
        let mut ruleset = scenario.ruleset();
        let node = &topology.node.netns;
        node.apply([nft::full(&ruleset).as_str()]);
        let (allowed, denied) = watched.start(&topology);
        let mut done = 0;
        while done < EDITS {
            let before = scenario.clone();
            scenario.edit(&mut random);
            let next = scenario.ruleset();
            if next == ruleset || !watched.holds(&scenario) {
                scenario = before;
                continue;
            }
            node.apply(nft::plan(&ruleset, &next).scripts());
            ruleset = next;
            done += 1;
        }
        let (allowed, denied) = (allowed.stop(), denied.stop());
        println!("{EDITS} edits in {:?}, {}: allowed {allowed:?}, denied {denied:?}", started.elapsed(), random::repeat(seed));
        table::assert_same(&table::read(node), &table::from_nothing(&ruleset), &random::repeat(seed));
        assert_eq!(allowed.lost, 0, "{allowed:?}");
        assert_eq!(denied.received, 0, "{denied:?}");
    }
}

#[test]
fn s8_replacing_the_table_by_itself_lets_nothing_through() {
    if !lab::ready() {
        return;
    }
    let started = Instant::now();
    let topology = Topology::new(Network::Routed, 10);
    topology.pin_neighbours();
    let watched = Watched::new(&topology);
    let mut random = Random::new(5);
    let scenario = watched_scenario(&topology, &watched, &mut random);
    let replacement = nft::replacement(&scenario.ruleset());
    let node = &topology.node.netns;
    node.apply(replacement.iter().map(String::as_str));
    let (allowed, denied) = watched.start(&topology);
    for _ in 0..500 {
        node.apply(replacement.iter().map(String::as_str));
    }
    let (allowed, denied) = (allowed.stop(), denied.stop());
    println!("{:?}: allowed {allowed:?}, denied {denied:?}", started.elapsed());
    assert_eq!(allowed.lost, 0, "{allowed:?}");
    assert_eq!(denied.received, 0, "{denied:?}");
}
