//! What the kernel tells of denied packets: the connection, whichever way the packet goes, and of each address so many.

use crate::bench::{Bench, Established, any, app, tcp, udp};
use crate::support::lab;
use crate::support::scenario::{anyone, ports, rule};
use crate::support::topology::Network;
use crate::support::wire::{self, Kind, Probe, Wire};
use ringfence::nft::denied::Denied;
use ringfence::nft::listing::{Fingerprints, difference};
use ringfence::nft::nflog::Told;
use ringfence::nft::{self, Layout, Ruleset};
use ringfence::policy::{Connection, Direction, Group, IcmpMatch, L4, Traffic, Transport};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// What is sent to this port of the third pod, which is closed, says that all before it was told.
const MARK: u16 = 9;
const RECEIVE_BUFFER: usize = 1 << 20;
/// The longest that a machine may be busy with something else.
const PATIENCE: Duration = Duration::from_secs(20);

/// A table that tells, and who listens to it.
struct Ear {
    runtime: Runtime,
    denied: Denied,
    mark: (IpAddr, IpAddr),
    lost: u64,
}

fn telling(network: Network, rate: u32, buffer: usize) -> (Bench, Ear) {
    let bench = Bench::new(network);
    bench.topology.pin_neighbours();
    let told = NonZeroU32::new(rate);
    let node = &bench.topology.node.netns;
    node.apply([nft::full(&Ruleset { told, ..Ruleset::default() }).as_str()]);
    let (runtime, denied) = node.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let denied = runtime.block_on(async { Denied::with_buffer(buffer).unwrap() });
        (runtime, denied)
    });
    let ear = Ear { runtime, denied, mark: (bench.pod(0).v4(), bench.pod(2).v4()), lost: 0 };
    (bench, ear)
}

impl Ear {
    /// All that was told of what was sent before.
    fn heard(&mut self, wire: &mut Wire) -> Vec<Told> {
        let mark = Connection { source: self.mark.0, destination: self.mark.1, l4: L4::Ports(Transport::Udp, MARK) };
        let mut all = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the kernel tells nothing");
            // Again and again, as there may have been no room for the first.
            assert!(!wire.passes(Probe::new(self.mark.0, self.mark.1, Kind::Udp(MARK, MARK))));
            let (denied, patience) = (&mut self.denied, Duration::from_secs(1));
            while let Ok(news) = self.runtime.block_on(async { tokio::time::timeout(patience, denied.news()).await }) {
                let news = news.unwrap();
                self.lost += news.lost;
                all.extend(news.told);
                if all.iter().any(|told| told.connection == mark) {
                    all.retain(|told| told.connection != mark);
                    return all;
                }
            }
        }
    }
}

fn connection(source: IpAddr, destination: IpAddr, l4: L4) -> Connection {
    Connection { source, destination, l4 }
}

#[test]
fn what_is_denied_is_told_whatever_it_is() {
    if !lab::ready() {
        return;
    }
    for network in [Network::Routed, Network::Bridged] {
        let (mut bench, mut ear) = telling(network, 200, RECEIVE_BUFFER);
        let mut wire = Wire::new(&bench.topology);
        bench.guard(&[(1, &Group::default()), (2, &Group::default())], &[]);
        for family in [0, 1] {
            for (direction, (from, to)) in
                [(Direction::Ingress, bench.both(0, 1)[family]), (Direction::Egress, bench.both(1, 0)[family])]
            {
                let echo = wire::echo(from);
                for (kind, l4, port) in [
                    (Kind::Tcp(20_000, 8000), L4::Ports(Transport::Tcp, 8000), Some(20_000)),
                    (Kind::Udp(20_000, 8001), L4::Ports(Transport::Udp, 8001), Some(20_000)),
                    (Kind::Sctp(20_000, 8002), L4::Ports(Transport::Sctp, 8002), Some(20_000)),
                    (Kind::Icmp(echo, 7), L4::Icmp(echo.0, echo.1), None),
                    (Kind::Other(47), L4::Other, None),
                ] {
                    assert!(!wire.passes(Probe::new(from, to, kind)));
                    let expected =
                        Told { direction, connection: connection(from, to, l4), source_port: port, established: false };
                    assert_eq!(ear.heard(&mut wire), [expected], "{network:?} {kind:?}");
                }
            }
        }
        // A packet to the node itself is egress like any other.
        let node = bench.topology.node.v4();
        let from = bench.pod(1).v4();
        wire.passes(Probe::new(from, node, Kind::Udp(20_000, 8003)));
        let told = ear.heard(&mut wire);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].connection, connection(from, node, L4::Ports(Transport::Udp, 8003)));
        assert_eq!(told[0].direction, Direction::Egress);

        bench.settle();
        // What packets leave in the table is no damage; what somebody else puts there is.
        bench.ruleset.told = NonZeroU32::new(200);
        let list = || bench.topology.node.netns.nft(&["-s", "list", "table", "inet", "ringfence"]);
        let compared =
            |listing: &str| difference(listing, &bench.ruleset.expected(&bench.ruleset), &mut Fingerprints::default());
        let listing = list();
        assert!(listing.contains(&format!("{from} limit rate 200/second")), "{listing}");
        assert_eq!(compared(&listing), None);
        let foreign = "add element inet ringfence logged_4 { 192.0.2.1 timeout 1h }\n";
        bench.topology.node.netns.apply([foreign]);
        assert!(compared(&list()).unwrap().contains("logged_4"));
    }
}

#[test]
fn s4_after_a_revocation_replies_are_told_as_the_connection_they_belong_to() {
    if !lab::ready() {
        return;
    }
    let (mut bench, mut ear) = telling(Network::Routed, 200, RECEIVE_BUFFER);
    let mut wire = Wire::new(&bench.topology);
    let icmp = rule(Traffic::Icmp(IcmpMatch::Both), app());
    let sctp = rule(ports(Transport::Sctp, [8000..=8000]), app());
    // Open egress: what the server sends must not pass for a connection of its own.
    let open = vec![any(anyone())];
    let with = Group { ingress: vec![tcp(8000, app()), udp(8000, app()), sctp, icmp], egress: open.clone() };
    let closed = Group::default();
    for family in [0, 1] {
        bench.guard(&[(1, &with), (2, &closed)], &[0]);
        let (client, server) = bench.both(0, 1)[family];
        // Of the other family something is sent again and again, since it was cut.
        let mut heard = |wire: &mut Wire| {
            let mut told = ear.heard(wire);
            told.retain(|told| told.connection.source == client);
            told
        };
        let mut established = Established::open(bench.pod(0), bench.pod(1), SocketAddr::new(server, 8000)).unwrap();
        assert_eq!(established.passes(&mut wire), (true, true));
        let request = Probe::new(client, server, Kind::Udp(20_000, 8000));
        let reply = Probe::new(server, client, Kind::Udp(8000, 20_000));
        assert!(wire.passes(request) && wire.passes(reply));
        assert_eq!(heard(&mut wire), [], "nothing was denied yet");

        bench.guard(&[(1, &with), (2, &closed)], &[]);
        assert!(!wire.passes(reply));
        let udp = Told {
            direction: Direction::Ingress,
            connection: connection(client, server, L4::Ports(Transport::Udp, 8000)),
            source_port: Some(20_000),
            established: true,
        };
        assert_eq!(heard(&mut wire), [udp], "the server's datagram");
        assert_eq!(established.passes(&mut wire), (false, false));
        let told = heard(&mut wire);
        let port = established.client.local_addr().unwrap().port();
        let tcp = Told {
            connection: connection(client, server, L4::Ports(Transport::Tcp, 8000)),
            source_port: Some(port),
            ..udp
        };
        assert!(told.len() >= 2 && told.iter().all(|told| *told == tcp), "from either end: {told:?}");
    }
}

#[test]
fn one_that_is_flooded_does_not_silence_the_others() {
    if !lab::ready() {
        return;
    }
    const FLOOD: u16 = 1_000;
    let (mut bench, mut ear) = telling(Network::Routed, 5, RECEIVE_BUFFER);
    let mut wire = Wire::new(&bench.topology);
    bench.guard(&[(1, &Group::default()), (2, &Group::default())], &[]);
    for family in [0, 1] {
        let (from, to) = bench.both(0, 1)[family];
        let flood: Vec<Probe> = (0..FLOOD).map(|i| Probe::new(from, to, Kind::Udp(20_000, 1_000 + i))).collect();
        assert!(wire.send(&flood).iter().all(|outcome| !outcome.arrived));
        // The pod's other address has a rate of its own.
        let other = *bench.pod(1).addresses.iter().rfind(|a| a.is_ipv4() == to.is_ipv4()).unwrap();
        assert_ne!(other, to);
        assert!(!wire.passes(Probe::new(from, other, Kind::Udp(20_000, 80))));
        let told = ear.heard(&mut wire);
        let of = |address| told.iter().filter(|told| told.connection.destination == address).count();
        assert!((5..usize::from(FLOOD) / 2).contains(&of(to)), "{} of {FLOOD} packets", of(to));
        assert_eq!(of(other), 1);
    }
    assert_eq!(ear.lost, 0, "what is not told for want of rate is not lost");
}

#[test]
fn what_is_told_and_not_listened_to_is_counted() {
    if !lab::ready() {
        return;
    }
    let (mut bench, mut ear) = telling(Network::Routed, 1_000, 8 << 10);
    let mut wire = Wire::new(&bench.topology);
    bench.guard(&[(1, &Group::default()), (2, &Group::default())], &[]);
    let (from, to) = bench.both(0, 1)[0];
    // So that there is a first number.
    assert!(!wire.passes(Probe::new(from, to, Kind::Udp(20_000, 999))));
    assert_eq!(ear.heard(&mut wire).len(), 1);
    let flood: Vec<Probe> = (0..900).map(|i| Probe::new(from, to, Kind::Udp(20_000, 1_000 + i))).collect();
    wire.send(&flood);
    let told = ear.heard(&mut wire);
    assert!(ear.lost > 0 && told.len() < flood.len(), "{} told, {} lost", told.len(), ear.lost);
    // Marks for which there was no room are lost too.
    assert!(told.len() as u64 + ear.lost >= flood.len() as u64, "{} told, {} lost", told.len(), ear.lost);
}

#[test]
fn without_a_rate_there_is_nothing_that_tells() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.guard(&[(1, &Group::default())], &[]);
    let listing = bench.topology.node.netns.nft(&["list", "table", "inet", "ringfence"]);
    assert!(!listing.contains(" log ") && !listing.contains("logged_"), "{listing}");
}
