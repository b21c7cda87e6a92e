//! What is counted of connections: each once, by its own tuple, if the table that guards lets it pass.

use crate::bench::{Bench, allow_in, allow_out, any, app, tcp, udp};
use crate::semantics::service;
use crate::support::lab;
use crate::support::packet::{EXPERIMENT, ICMP, ICMPV6, SCTP, TCP, UDP};
use crate::support::scenario::{anyone, ports, rule};
use crate::support::topology::Network;
use crate::support::traffic;
use crate::support::wire::{self, Kind, Probe, Wire};
use ringfence::nft::opened::{self, Opened};
use ringfence::nft::{self, usage};
use ringfence::policy::{Group, IcmpMatch, Traffic, Transport};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

type Counted = BTreeMap<Opened, u64>;

/// What was counted in an epoch; `None`: there are no such sets.
fn counted(bench: &Bench, epoch: usage::Epoch) -> Option<Counted> {
    let counted = bench.topology.node.netns.enter(|| opened::read(epoch)).unwrap()?;
    assert!(counted.iter().all(|(_, count)| count.ago < Duration::from_secs(60)), "{counted:?}");
    Some(counted.into_iter().map(|(opened, count)| (opened, count.connections)).collect())
}

/// Counts what is opened by these pods, and to them.
fn count(bench: &Bench, epoch: usage::Epoch, pods: &[usize], forgotten: &[usage::Epoch]) {
    let guarded: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| bench.pod(*pod).addresses.clone()).collect();
    let forgotten = forgotten.iter().copied().collect();
    bench.topology.node.netns.apply([usage::start(epoch, &guarded, &forgotten).as_str()]);
}

fn opened((source, destination): (IpAddr, IpAddr), protocol: u8, number: u16) -> Opened {
    Opened { source, destination, protocol, number }
}

#[test]
fn every_connection_that_passes_is_counted_once() {
    if !lab::ready() {
        return;
    }
    for network in [Network::Routed, Network::Bridged] {
        let mut bench = Bench::new(network);
        bench.topology.pin_neighbours();
        let mut wire = Wire::new(&bench.topology);
        let sctp = rule(ports(Transport::Sctp, [8000..=8000]), app());
        let icmp = rule(Traffic::Icmp(IcmpMatch::Both), app());
        bench.guard(&[(1, &allow_in([tcp(8000, app()), udp(8000, app()), sctp, icmp]))], &[0]);
        count(&bench, 1, &[1], &[]);
        let mut expected = Counted::new();
        for (client, server) in bench.both(0, 1) {
            let ends = (client, server);
            let echo = wire::echo(client);
            let (protocol, number) = if client.is_ipv4() { (ICMP, 8 << 8) } else { (ICMPV6, 128 << 8) };
            for (kinds, key, connections) in [
                // The second one's verdict is remembered.
                (vec![Kind::Tcp(20_000, 8000), Kind::Tcp(20_001, 8000)], (TCP, 8000), 2),
                // One way, and again: nobody has answered.
                (vec![Kind::Udp(20_000, 8000), Kind::Udp(20_000, 8000), Kind::Udp(20_000, 8000)], (UDP, 8000), 1),
                (vec![Kind::Sctp(20_000, 8000), Kind::Sctp(20_000, 8000)], (SCTP, 8000), 1),
                (vec![Kind::Icmp(echo, 7), Kind::Icmp(echo, 7), Kind::Icmp(echo, 8)], (protocol, number), 2),
            ] {
                for kind in kinds {
                    assert!(wire.send(&[Probe::new(client, server, kind)])[0].arrived, "{kind:?}");
                }
                expected.insert(opened(ends, key.0, key.1), connections);
            }

            // A question and its answer, three times.
            let (from, to) = (traffic::udp(bench.pod(0), client, 0), traffic::udp(bench.pod(1), server, 8000));
            for socket in [&from, &to] {
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            }
            for _ in 0..3 {
                from.send_to(b"question", (server, 8000)).unwrap();
                let (_, asker) = to.recv_from(&mut [0; 16]).unwrap();
                to.send_to(b"answer", asker).unwrap();
                from.recv(&mut [0; 16]).unwrap();
            }
            *expected.get_mut(&opened(ends, UDP, 8000)).unwrap() += 1;
        }

        // What is denied, and what is nobody's concern.
        for (from, to, kind, passes) in [
            (0, 1, Kind::Tcp(20_002, 8001), false),
            (2, 1, Kind::Tcp(20_002, 8000), false),
            (1, 0, Kind::Udp(20_002, 8000), false),
            (0, 1, Kind::TcpMiddle(20_003, 8000), false),
            (0, 2, Kind::Tcp(20_002, 8000), true),
        ] {
            for (client, server) in bench.both(from, to) {
                assert_eq!(wire.send(&[Probe::new(client, server, kind)])[0].arrived, passes, "{kind:?}");
            }
        }
        assert_eq!(counted(&bench, 1).unwrap(), expected, "{network:?}");
    }
}

#[test]
fn connections_are_counted_by_their_backend_and_also_to_the_node() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    bench.guard(&[(0, &allow_out([any(anyone())]))], &[]);
    count(&bench, 1, &[0], &[]);
    let mut expected = Counted::new();
    let services = service(&bench, 1);
    let nodes = [bench.topology.node.addresses[0], bench.topology.node.addresses[1]];
    for ((ends, service), node) in bench.both(0, 1).into_iter().zip(services).zip(nodes) {
        assert!(wire.passes(Probe::new(ends.0, service, Kind::Tcp(20_000, 80))));
        assert!(wire.passes(Probe::new(ends.0, ends.1, Kind::Tcp(20_001, 8080))));
        assert!(wire.send(&[Probe::new(ends.0, ends.1, Kind::Other(EXPERIMENT))])[0].arrived);
        assert!(wire.passes(Probe::new(ends.0, node, Kind::Udp(20_000, 53))));
        expected.insert(opened(ends, TCP, 8080), 2);
        expected.insert(opened(ends, EXPERIMENT, 0), 1);
        expected.insert(opened((ends.0, node), UDP, 53), 1);
    }
    assert_eq!(counted(&bench, 1).unwrap(), expected);
}

#[test]
fn counts_survive_what_becomes_of_the_table_that_guards() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    let (group, closed) = (allow_in([tcp(8000, app())]), Group::default());
    bench.guard(&[(1, &group)], &[0]);
    bench.settle();
    count(&bench, 7, &[1], &[]);
    let mut port = 20_000;
    let mut open = |bench: &Bench| {
        for (client, server) in bench.both(0, 1) {
            port += 1;
            assert!(wire.passes(Probe::new(client, server, Kind::Tcp(port, 8000))));
        }
    };
    let both = |bench: &Bench, connections| -> Option<Counted> {
        Some(bench.both(0, 1).map(|ends| (opened(ends, TCP, 8000), connections)).into())
    };
    open(&bench);
    bench.topology.node.netns.apply(nft::replacement(&bench.ruleset).scripts());
    open(&bench);
    bench.guard(&[(1, &closed)], &[]);
    bench.guard(&[(1, &group)], &[0]);
    bench.settle();
    open(&bench);
    bench.topology.node.netns.apply(["delete table inet ringfence\n", nft::full(&bench.ruleset).as_str()]);
    open(&bench);
    assert_eq!(counted(&bench, 7), both(&bench, 4));

    // Another epoch begins, and then another agent.
    let node = &bench.topology.node.netns;
    node.apply([usage::turn(8).as_str()]);
    open(&bench);
    count(&bench, 9, &[1], &[7]);
    open(&bench);
    assert_eq!([7, 8, 9].map(|epoch| counted(&bench, epoch)), [None, both(&bench, 1), both(&bench, 1)]);
    let listing = node.nft(&["-s", "-t", "list", "table", "inet", "ringfence_usage"]);
    assert_eq!(usage::epochs(&listing), [8, 9].into(), "{listing}");
    node.apply([usage::forget(&[8].into()).as_str()]);
    assert_eq!(counted(&bench, 8), None);

    // Who is not guarded any more is not counted.
    let guarded: BTreeSet<IpAddr> = bench.pod(1).addresses.iter().copied().collect();
    node.apply([usage::guard(&guarded, &BTreeSet::new()).as_str()]);
    open(&bench);
    assert_eq!(counted(&bench, 9), both(&bench, 1));
    node.apply([usage::removal().as_str()]);
    assert!(!node.nft(&["list", "tables"]).contains("usage"));
}
