//! Where a bridge hands no packets to the rules, what is guarded is closed to its other ports, and to nobody else.

use crate::bench::{Bench, allow_in, app, udp};
use crate::support::lab::{self, Netns};
use crate::support::scenario::anyone;
use crate::support::topology::{Host, Network};
use crate::support::traffic::{self, Expect, Flow};
use ringfence::nft::Layout;
use ringfence::nft::bridge::Closed;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Ports: for group app, for nobody, for anyone.
const APP: u16 = 7000;
const NOBODY: u16 = 7001;
const ANYONE: u16 = 7002;

type Family = fn(&Host) -> IpAddr;
const FAMILIES: [Family; 2] = [Host::v4, Host::v6];

fn flow(from: &Host, to: &Host, family: Family, port: u16, expect: Expect) -> Flow {
    Flow::start(traffic::udp(from, family(from), 0), traffic::udp(to, family(to), port), expect)
}

/// Whether datagrams pass: all of them do, or none.
fn passes(from: &Host, to: &Host, family: Family, port: u16) -> bool {
    let flow = flow(from, to, family, port, Expect::None);
    while flow.carried().sent < 100 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let carried = flow.stop();
    assert!([0, carried.sent].contains(&carried.received), "{carried:?}");
    carried.received > 0
}

fn both(from: &Host, to: &Host, port: u16) -> [bool; 2] {
    FAMILIES.map(|family| passes(from, to, family, port))
}

/// Whether the bridges of a node hand IPv4 and IPv6 to the rules.
fn filter(node: &Netns, [v4, v6]: [bool; 2]) {
    for (word, on) in [("iptables", v4), ("ip6tables", v6)] {
        node.sysctl(&format!("net/bridge/bridge-nf-call-{word}"), if on { "1" } else { "0" });
    }
}

fn closed(v4: &[&str], v6: &[&str]) -> Closed {
    let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    Closed { v4: names(v4), v6: names(v6) }
}

/// Pod 1 is guarded, pod 0 is in group app, and pod 2 and the world outside are nobody's.
fn scene() -> Bench {
    let mut bench = Bench::new(Network::Bridged);
    bench.topology.pin_neighbours();
    bench.guard(&[(1, &allow_in([udp(APP, app()), udp(ANYONE, anyone())]))], &[0]);
    bench
}

#[test]
fn s1_what_no_rule_can_judge_does_not_pass() {
    if !lab::ready() {
        return;
    }
    let bench = scene();
    let [app, db, other] = [0, 1, 2].map(|pod| bench.pod(pod));
    let (node, outside) = (&bench.topology.node, &bench.topology.outside);
    let ports = [APP, NOBODY, ANYONE];
    let reach = |from: &Host| ports.map(|port| both(from, db, port));
    let judged = [[true; 2], [false; 2], [true; 2]];
    let of_others = [[false; 2], [false; 2], [true; 2]];
    assert_eq!((reach(app), reach(other)), (judged, of_others));

    filter(&node.netns, [false, false]);
    assert_eq!((reach(app), reach(other)), ([[true; 2]; 3], [[true; 2]; 3]), "nothing judges it");
    let now = closed(&["pod1"], &["pod1"]);
    node.netns.apply([now.full().as_str()]);
    assert_eq!((reach(app), reach(other)), ([[false; 2]; 3], [[false; 2]; 3]), "nothing passes");
    for to in [app, other] {
        assert_eq!(both(db, to, ANYONE), [false; 2], "nor from it");
    }
    // What passes the node's IP layer is judged as ever, and who is not guarded is no concern.
    assert_eq!(reach(node), [[true; 2]; 3], "the node reaches its pods");
    assert_eq!(reach(outside), of_others, "what is routed is judged");
    assert_eq!((both(app, other, NOBODY), both(other, app, NOBODY)), ([true; 2], [true; 2]));

    // By family.
    filter(&node.netns, [true, false]);
    node.netns.apply(now.plan(&closed(&[], &["pod1"])).scripts());
    assert_eq!(reach(app), [[true, false], [false; 2], [true, false]]);
    filter(&node.netns, [false, true]);
    node.netns.apply(closed(&[], &["pod1"]).plan(&closed(&["pod1"], &[])).scripts());
    assert_eq!(reach(app), [[false, true], [false; 2], [false, true]]);

    // Filtered again, and open again.
    filter(&node.netns, [true, true]);
    node.netns.apply([Closed::removal().as_str()]);
    assert_eq!((reach(app), reach(other)), (judged, of_others));
}

/// While the table is replaced and edited: not one packet to the port that is closed, and not one lost to those that are not.
#[test]
fn s13_at_every_instant() {
    if !lab::ready() {
        return;
    }
    let bench = scene();
    let [app, db, other] = [0, 1, 2].map(|pod| bench.pod(pod));
    let node = &bench.topology.node.netns;
    filter(node, [false, false]);
    let (some, more) = (closed(&["pod1"], &["pod1"]), closed(&["gone", "pod1"], &["pod1", "tap9"]));
    node.apply([some.full().as_str()]);
    let edits = |flows: &[Flow]| {
        let (started, mut rounds) = (Instant::now(), 0);
        while rounds < 12 || flows.iter().any(|flow| flow.carried().sent < 2_000) {
            node.apply(some.plan(&more).scripts());
            node.apply(more.replacement().scripts());
            node.apply(more.plan(&some).scripts());
            node.apply(some.replacement().scripts());
            rounds += 1;
        }
        println!("{rounds} rounds, {:?}", started.elapsed());
    };
    let closed = FAMILIES.map(|family| flow(app, db, family, APP, Expect::None));
    edits(&closed);
    for flow in closed.map(Flow::stop) {
        assert_eq!(flow.received, 0, "{flow:?}");
    }
    let open = FAMILIES.map(|family| flow(app, other, family, NOBODY, Expect::All));
    edits(&open);
    for flow in open.map(Flow::stop) {
        assert_eq!((flow.lost, flow.received), (0, flow.sent), "{flow:?}");
    }
}

/// Who cannot speak to each other finds each other all the same, so that nobody has to when the bridge is filtered again.
#[test]
fn s11_neighbours_stay_known() {
    if !lab::ready() {
        return;
    }
    let bench = scene();
    let [app, db] = [0, 1].map(|pod| bench.pod(pod));
    let node = &bench.topology.node.netns;
    filter(node, [false, false]);
    node.apply([closed(&["pod1"], &["pod1"]).full().as_str()]);
    for [from, to] in [[app, db], [db, app]] {
        from.netns.ip("neigh flush all nud permanent");
        for family in FAMILIES {
            let socket = traffic::udp(from, family(from), 0);
            let deadline = Instant::now() + Duration::from_secs(20);
            let known = || {
                let (netns, address) = (from.netns.name(), family(to).to_string());
                let mut ip = std::process::Command::new("ip");
                let output = ip.args(["-netns", netns, "neigh", "show", &address]).output().unwrap();
                String::from_utf8(output.stdout).unwrap().contains(&to.mac)
            };
            while !known() {
                assert!(Instant::now() < deadline, "{} is not found", family(to));
                let _ = socket.send_to(b"?", (family(to), NOBODY));
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    let counters = node.nft(&["list", "counters", "table", "bridge", "ringfence"]);
    assert!(counters.contains("counter unfiltered") && !counters.contains("packets 0 "), "{counters}");
}
