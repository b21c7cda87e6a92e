//! Edits and replacements under traffic: what is allowed loses nothing, and nothing else passes.

use crate::support::lab::{self, Netns};
use crate::support::random::{self, Random};
use crate::support::scenario::Scenario;
use crate::support::table;
use crate::support::topology::{Network, Topology};
use crate::support::traffic::{self, Expect, Flow};
use ringfence::nft::{self, Ruleset};
use ringfence::policy::{Connection, L4, Transport, World};
use std::time::{Duration, Instant};

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

    /// Whether both flows are what they should be, and neither only because nobody guards its ends.
    fn holds(&self, scenario: &Scenario) -> bool {
        let policy = scenario.policy();
        let ends = [self.allowed.source, self.allowed.destination, self.denied.destination];
        ends.iter().all(|end| policy.interfaces.contains_key(end))
            && policy.evaluate(&self.allowed).allowed()
            && !policy.evaluate(&self.denied).allowed()
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

/// Nothing was lost of the first flow, and nothing came of the second, which comes as soon as nobody is guarded.
fn assert_all_and_nothing(node: &Netns, ruleset: &Ruleset, (allowed, denied): (Flow, Flow), context: &str) {
    let allowed = allowed.stop();
    let through = denied.carried();
    println!("{context}: allowed {allowed:?}, denied {through:?}");
    node.apply(nft::plan(ruleset, &Ruleset::default()).scripts());
    let until = Instant::now() + Duration::from_secs(10);
    while denied.carried().received == through.received {
        assert!(Instant::now() < until, "the flow that was denied never comes");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(allowed.lost == 0 && allowed.received > 0, "{context}: {allowed:?}");
    assert_eq!(through.received, 0, "{context}: {through:?}");
}

/// A policy with which both flows are what they should be.
fn watched_scenario(topology: &Topology, watched: &Watched, random: &mut Random) -> Scenario {
    let mut scenario =
        Scenario::new(topology.pods.iter().map(|p| p.addresses.clone()), topology.outside.addresses.clone());
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
    let seed = random::seed();
    let topology = Topology::new(Network::Routed, 10);
    topology.pin_neighbours();
    let watched = Watched::new(&topology);
    let mut random = Random::new(seed);
    let mut scenario = watched_scenario(&topology, &watched, &mut random);
    let mut ruleset = scenario.ruleset();
    let node = &topology.node.netns;
    node.apply([nft::full(&ruleset).as_str()]);
    let flows = watched.start(&topology);
    let started = Instant::now();
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
    let context = format!("{EDITS} edits in {:?}, {}", started.elapsed(), random::repeat(seed));
    table::assert_same(&table::read(node), &table::from_nothing(&ruleset), &context);
    assert_all_and_nothing(node, &ruleset, flows, &context);
}

#[test]
fn s8_replacing_the_table_by_itself_lets_nothing_through() {
    if !lab::ready() {
        return;
    }
    const REPLACEMENTS: usize = 100;
    let seed = random::seed();
    let topology = Topology::new(Network::Routed, 10);
    topology.pin_neighbours();
    let watched = Watched::new(&topology);
    let ruleset = watched_scenario(&topology, &watched, &mut Random::new(seed)).ruleset();
    let replacement = nft::replacement(&ruleset);
    let node = &topology.node.netns;
    node.apply(replacement.scripts());
    let flows = watched.start(&topology);
    let started = Instant::now();
    for _ in 0..REPLACEMENTS {
        node.apply(replacement.scripts());
    }
    let context = format!("{REPLACEMENTS} replacements in {:?}, {}", started.elapsed(), random::repeat(seed));
    assert!(!node.nft(&["list", "tables"]).contains(nft::STAND_IN), "it stands in, and goes");
    assert_all_and_nothing(node, &ruleset, flows, &context);
}

/// What the table was like when each direction had a base chain: it takes datagrams to the second pod from the first.
fn earlier_layout(topology: &Topology) -> String {
    let [first, second, _, fourth] = [0, 1, 2, 3].map(|pod: usize| topology.pods[pod].v4());
    format!(
        "add table inet ringfence\ndelete table inet ringfence\n\
         table inet ringfence {{\n\
         set members {{ type ipv4_addr; elements = {{ {first} }}; }}\n\
         chain in {{\nct original ip saddr @members accept\ndrop\n}}\n\
         chain closed {{\ndrop\n}}\n\
         map egress_4 {{ type ipv4_addr : verdict; elements = {{ {fourth} : goto closed }}; }}\n\
         map ingress_4 {{ type ipv4_addr : verdict; elements = {{ {second} : goto in, {fourth} : goto closed }}; }}\n\
         chain egress {{\ntype filter hook forward priority filter - 1\nct original ip saddr vmap @egress_4\n}}\n\
         chain ingress {{\ntype filter hook forward priority filter\nct reply ip saddr vmap @ingress_4\n}}\n\
         }}\n"
    )
}

#[test]
fn s8_a_table_of_an_earlier_layout_is_replaced_like_any_other() {
    if !lab::ready() {
        return;
    }
    const REPLACEMENTS: usize = 50;
    let seed = random::seed();
    let topology = Topology::new(Network::Routed, 10);
    topology.pin_neighbours();
    let watched = Watched::new(&topology);
    let ruleset = watched_scenario(&topology, &watched, &mut Random::new(seed)).ruleset();
    let forwards = nft::replacement(&ruleset);
    let mut back = forwards.clone();
    // Its table in place of ours, which takes two steps.
    back.replace.splice(1..3, [earlier_layout(&topology)]);
    let node = &topology.node.netns;
    node.apply([earlier_layout(&topology).as_str()]);
    let flows = watched.start(&topology);
    for _ in 0..REPLACEMENTS {
        node.apply(forwards.scripts());
        node.apply(back.scripts());
    }
    node.apply(forwards.scripts());
    let context = format!("{REPLACEMENTS} replacements, {}", random::repeat(seed));
    table::assert_same(&table::read(node), &table::from_nothing(&ruleset), &context);
    assert_all_and_nothing(node, &ruleset, flows, &context);
}
