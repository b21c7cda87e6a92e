//! The table while devices come and go, and while it is replaced.

use super::scene::{Raw, STOLEN, Witness, address, devices, name, replace, replace_in, wait_until};
use crate::support::lab::{self, Netns};
use crate::support::packet::{self, Ends};
use crate::support::topology::{Host, Network, Topology};
use crate::support::traffic::{self, Expect, Flow};
use crate::support::{random, table};
use ringfence::nft::Layout;
use ringfence::nft::listing::{Fingerprints, difference};
use ringfence::nft::own::{self, Device, Devices, Tunnels, Watched};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

/// While the table is replaced and edited, again and again: not one spoofed packet gets through, and not one honest one is lost.
fn at_every_instant(network: Network) {
    if !lab::ready() {
        return;
    }
    let topology = Topology::new(network, 4);
    topology.pin_neighbours();
    let (liar, honest) = (&topology.pods[0], &topology.pods[1]);
    let stolen = STOLEN.map(address);
    liar.netns.ip(&format!("addr add {}/32 dev eth0\naddr add {}/128 dev eth0 nodad", stolen[0], stolen[1]));
    let outside = &topology.outside;
    let flow = |host: &Host, from: IpAddr, port: u16, expect: Expect| {
        let to = if from.is_ipv4() { outside.v4() } else { outside.v6() };
        Flow::start(traffic::udp(host, from, port), traffic::udp(outside, to, port), expect)
    };
    for from in stolen {
        let lies = flow(liar, from, 5000, Expect::None);
        wait_until("without the table lies pass", || lies.carried().received > 0);
    }

    let all = devices(&topology);
    let mut some = all.clone();
    some.remove(&name(3));
    some.get_mut(&name(1)).unwrap().addresses.insert(address("10.77.0.240"));
    some.get_mut(&name(0)).unwrap().mac = None;
    replace(&topology, &all);
    let edits = |flows: &[Flow; 2]| {
        let (started, mut rounds) = (Instant::now(), 0);
        while rounds < 40 || flows.iter().any(|flow| flow.carried().sent < 2_000) {
            let node = &topology.node.netns;
            node.apply(own::plan(&all, &some).as_deref());
            node.apply(own::plan(&some, &all).as_deref());
            replace(&topology, &all);
            rounds += 1;
        }
        println!("{network:?}: {rounds} rounds, {:?}", started.elapsed());
    };
    // One after the other: what is dropped would wait in the same queues as what is not.
    let lies = [flow(liar, stolen[0], 5001, Expect::None), flow(liar, stolen[1], 5002, Expect::None)];
    edits(&lies);
    for lie in lies.map(Flow::stop) {
        assert_eq!(lie.received, 0, "{lie:?}");
    }
    let truths = [flow(honest, honest.v4(), 5003, Expect::All), flow(honest, honest.v6(), 5004, Expect::All)];
    edits(&truths);
    for truth in truths.map(Flow::stop) {
        assert_eq!((truth.lost, truth.received), (0, truth.sent), "{truth:?}");
    }
}

#[test]
fn s9_at_every_instant_routed() {
    at_every_instant(Network::Routed);
}

#[test]
fn s9_at_every_instant_bridged() {
    at_every_instant(Network::Bridged);
}

/// Devices that go, come back under their name, and change it, while nothing else stops working.
#[test]
fn s13_devices_come_and_go_as_they_please() {
    if !lab::ready() {
        return;
    }
    let topology = Topology::new(Network::Routed, 3);
    topology.pin_neighbours();
    let node = &topology.node.netns;
    let stolen = address(STOLEN[0]);
    let outside = topology.outside.v4();
    let passes = |pod: &Host, device: &str, source: IpAddr| {
        let raw = Raw::new(pod);
        let witness = Witness::new(node, device, &format!("ip saddr {source} udp dport 53"));
        let ends = Ends { source, destination: outside };
        raw.send(&packet::udp(ends, (53, 53), b"hello"), outside);
        raw.barrier(outside);
        wait_until("the barrier", || witness.barrier() == 1);
        witness.seen() == 1
    };

    let all = devices(&topology);
    replace(&topology, &all);
    let [first, second] = [&topology.pods[0], &topology.pods[1]];
    assert!(passes(first, "pod0", first.v4()) && !passes(first, "pod0", stolen));

    // Gone: every script for it still works, and so do the ones for others.
    node.ip("link del pod0");
    let mut without = all.clone();
    without.remove(&name(0));
    node.apply(own::plan(&all, &without).as_deref());
    replace(&topology, &without);
    assert!(passes(second, "pod1", second.v4()) && !passes(second, "pod1", stolen));

    // Back, with the same name and address, unknown to the table at first.
    node.apply(own::plan(&without, &all).as_deref());
    node.ip("link del pod1");
    for (i, pod) in [(0, first), (1, second)] {
        node.ip(&format!(
            "link add pod{i} type veth peer name eth0 address {} netns {}\nlink set pod{i} up",
            pod.mac,
            pod.netns.name()
        ));
        pod.netns.ip(&format!("link set eth0 up\naddr add {}/32 dev eth0\nroute add default dev eth0", pod.v4()));
        pod.netns.ip(&format!("neigh replace {outside} lladdr 02:00:00:00:00:01 dev eth0"));
    }
    let mut back = all.clone();
    back.get_mut(&name(0)).unwrap().index = 8;
    back.get_mut(&name(1)).unwrap().index = 9;
    node.apply(own::plan(&all, &back).as_deref());
    for (i, pod) in [(0, first), (1, second)] {
        let device = format!("pod{i}");
        assert!(passes(pod, &device, pod.v4()) && !passes(pod, &device, stolen), "{device} came back");
    }

    // Under another name: by that it is watched again.
    node.ip("link set pod0 down\nlink set pod0 name other\nlink set other up");
    let mut renamed = back.clone();
    let moved = renamed.remove(&name(0)).unwrap();
    renamed.insert("other".parse().unwrap(), moved);
    node.apply(own::plan(&back, &renamed).as_deref());
    assert!(passes(first, "other", first.v4()) && !passes(first, "other", stolen));
    node.apply(own::plan(&renamed, &Devices::new()).as_deref());
    assert!(passes(first, "other", stolen), "nothing is left behind");
}

fn read(netns: &Netns) -> table::Table {
    table::read_named(netns, own::TABLE)
}

#[test]
fn a_difference_makes_the_same_table_as_building_from_nothing() {
    if !lab::ready() {
        return;
    }
    let node = Netns::new("node");
    for i in 0..6 {
        node.ip(&format!("link add pod{i} type veth peer name peer{i}"));
    }
    let mut random = random::Random::new(random::seed());
    let mut state = Devices::new();
    let mut fingerprints = Fingerprints::default();
    node.apply([own::full(&Tunnels::default(), &state).as_str()]);
    for step in 0..40 {
        let next: Devices = (0..6)
            .filter_map(|i| {
                if random.percent(30) {
                    return None;
                }
                let v4 = (0..random.below(3)).map(|n| address(&format!("10.0.{i}.{n}")));
                let v6 = (0..random.below(3)).map(|n| address(&format!("{}::{i}:{n}", random.pick(&["fd00", "fe80"]))));
                let addresses = v4.collect::<Vec<_>>().into_iter().chain(v6.collect::<Vec<_>>()).collect();
                let mac = random.percent(50).then(|| format!("02:00:00:00:00:0{}", random.below(3)).parse().unwrap());
                Some((name(i), Device { index: random.below(2) as u32, addresses, mac }))
            })
            .collect();
        node.apply(own::plan(&state, &next).as_deref());
        state = next;
        let fresh = Netns::new("fresh");
        for i in 0..6 {
            fresh.ip(&format!("link add pod{i} type veth peer name peer{i}"));
        }
        fresh.apply([own::full(&Tunnels::default(), &state).as_str()]);
        table::assert_same(&read(&node), &read(&fresh), &format!("step {step}: {state:#?}"));
        let watched = Watched { devices: state.clone(), ..Watched::default() };
        let listing = node.nft(&["-s", "list", "table", "netdev", "ringfence"]);
        let difference = difference(&listing, &watched.expected(&watched), &mut fingerprints);
        assert_eq!(difference, None, "step {step}: {state:#?}\n{listing}");
    }
    node.apply([Watched::removal().as_str()]);
    assert_eq!(node.nft(&["list", "ruleset"]), "");
}

#[test]
fn golden() {
    if !lab::ready() {
        return;
    }
    let node = Netns::new("node");
    let devices: Devices =
        [("veth1", ["10.77.0.4", "fd77::4"], Some("02:00:00:00:00:04")), ("veth2", ["10.77.0.7", "fd77::7"], None)]
            .into_iter()
            .map(|(name, addresses, mac)| {
                node.ip(&format!("link add {name} type veth peer name {name}p"));
                let addresses = addresses.map(address).into();
                (name.parse().unwrap(), Device { index: 1, addresses, mac: mac.map(|mac| mac.parse().unwrap()) })
            })
            .collect();
    replace_in(&node, &devices);
    let mut actual = String::from("# What nft lists, sorted by kind and name.\n");
    let _ = write!(actual, "{}", table::text(&read(&node)));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/own-addresses.nft");
    if std::env::var_os("RINGFENCE_GOLDEN").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        actual == expected,
        "{} says otherwise; if that is meant: RINGFENCE_GOLDEN=1 cargo test --test own_addresses golden, and read the difference\n{actual}",
        path.display()
    );
}
