//! The verdict cache: what is remembered is what both directions accept under the rules in force, and is never more.

use crate::bench::{Bench, Established, allow_in, allow_out, any, app, tcp, udp};
use crate::support::lab;
use crate::support::scenario::{anyone, ports, rule};
use crate::support::table;
use crate::support::topology::Network;
use crate::support::traffic::{self, Expect, Flow};
use crate::support::wire::{self, Kind, Probe, Wire};
use ringfence::policy::{Group, IcmpMatch, Remote, Rule, Traffic, Transport};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Whether connections from here to there, to this port, are remembered.
fn remembered(bench: &Bench, (client, server): (IpAddr, IpAddr), protocol: u8, port: u16) -> bool {
    let set = if client.is_ipv4() { "accepted_4" } else { "accepted_6" };
    let element = format!("{{ {client} . {server} . {protocol} . {port} }}");
    bench.topology.node.netns.enter(|| {
        let mut get = Command::new("nft");
        get.args(["get", "element", "inet", "ringfence", set, &element]).output().unwrap().status.success()
    })
}

/// How much is remembered.
fn size(bench: &Bench) -> usize {
    let list = |set| bench.topology.node.netns.nft(&["list", "set", "inet", "ringfence", set]);
    ["accepted_4", "accepted_6"].map(|set| list(set).matches(" expires ").count()).iter().sum()
}

fn sctp(port: u16, remote: Remote) -> Rule {
    rule(ports(Transport::Sctp, [port..=port]), remote)
}

#[test]
fn s4_what_is_remembered_stops_at_the_commit_in_both_directions() {
    if !lab::ready() {
        return;
    }
    for network in [Network::Routed, Network::Bridged] {
        let mut bench = Bench::new(network);
        bench.topology.pin_neighbours();
        let mut wire = Wire::new(&bench.topology);
        let neighbour = udp(7000, anyone());
        let open = vec![any(anyone())];
        let with = Group {
            ingress: vec![tcp(8000, app()), udp(8000, app()), sctp(8000, app()), neighbour.clone()],
            egress: open.clone(),
        };
        let without = Group { ingress: vec![neighbour], egress: open };
        for member_goes in [true, false] {
            bench.guard(&[(1, &with)], &[0]);
            bench.settle();
            let flow = {
                let socket = |pod: usize, port| traffic::udp(bench.pod(pod), bench.pod(pod).v4(), port);
                Flow::start(socket(0, 7001), socket(1, 7000), Expect::All)
            };
            let mut connections = Vec::new();
            let mut packets = Vec::new();
            for (client, server) in bench.both(0, 1) {
                let server_at = SocketAddr::new(server, 8000);
                let mut connection = Established::open(bench.pod(0), bench.pod(1), server_at).unwrap();
                assert_eq!(connection.passes(&mut wire), (true, true));
                connections.push(connection);
                packets.extend([
                    Probe::new(client, server, Kind::Udp(20_000, 8000)),
                    Probe::new(server, client, Kind::Udp(8000, 20_000)),
                    Probe::new(client, server, Kind::Sctp(20_001, 8000)),
                ]);
            }
            let all_remembered = |bench: &Bench| {
                let each = bench.both(0, 1).map(|ends| [TCP, UDP, SCTP].map(|p| remembered(bench, ends, p, 8000)));
                each.concat()
            };
            for probe in &packets {
                assert!(wire.passes(*probe), "before: {probe:?}");
            }
            assert_eq!(all_remembered(&bench), [true; 6]);

            match member_goes {
                true => bench.guard(&[(1, &with)], &[2]),
                false => bench.guard(&[(1, &without)], &[0]),
            }
            for settled in [false, true] {
                for connection in &mut connections {
                    assert_eq!(connection.passes(&mut wire), (false, false), "{member_goes}, {settled}");
                }
                for probe in &packets {
                    assert!(!wire.passes(*probe), "after: {probe:?}, member: {member_goes}, settled: {settled}");
                }
                bench.settle();
            }
            assert_eq!(all_remembered(&bench), [false; 6]);
            let carried = flow.stop();
            assert!(carried.lost == 0 && carried.received > 0, "the neighbour: {carried:?}");
        }
    }
}

#[test]
fn what_one_direction_accepts_is_not_remembered() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    let all = [tcp(8000, anyone()), udp(8000, anyone()), sctp(8000, anyone())];
    let (out, inwards, closed) = (allow_out(all.clone()), allow_in(all.clone()), Group::default());
    for (client, server, expected) in [(&out, &closed, false), (&closed, &inwards, false), (&out, &inwards, true)] {
        bench.guard(&[(0, client), (1, server)], &[]);
        bench.settle();
        for ends in bench.both(0, 1) {
            for (protocol, kind) in
                [(TCP, Kind::Tcp(20_000, 8000)), (UDP, Kind::Udp(20_000, 8000)), (SCTP, Kind::Sctp(20_000, 8000))]
            {
                for attempt in 0..3 {
                    let passes = wire.passes(Probe::new(ends.0, ends.1, kind));
                    assert_eq!(passes, expected, "{kind:?}, attempt {attempt}: {client:?} {server:?}");
                }
                assert_eq!(remembered(&bench, ends, protocol, 8000), expected, "{kind:?}");
            }
        }
    }
}

#[test]
fn what_the_key_does_not_tell_apart_is_not_remembered() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);

    // A number of ICMP is no port, and an error about a connection no connection.
    let echo = allow_in([rule(Traffic::Icmp(IcmpMatch::Both), anyone())]);
    bench.guard(&[(1, &echo)], &[]);
    bench.settle();
    for (client, server) in bench.both(0, 1) {
        assert!(wire.passes(Probe::new(client, server, Kind::Icmp(wire::echo(client), 7))));
    }
    assert_eq!(size(&bench), 0);

    // DHCP is let out by its source port too.
    bench.guard(&[(0, &Group::default())], &[]);
    bench.settle();
    for (client, port, server) in [(4, 67, 68), (6, 547, 546)] {
        let ends = bench.both(0, 2)[usize::from(client == 6)];
        let asks = |from| Probe::new(ends.0, ends.1, Kind::Udp(from, port));
        assert!(wire.send(&[asks(server)])[0].arrived, "a client of DHCP");
        let answer = Probe::new(ends.1, ends.0, Kind::Udp(port, server));
        assert!(wire.send(&[answer])[0].arrived, "and its server's answer");
        assert!(!remembered(&bench, ends, UDP, port));
        assert!(!wire.passes(asks(20_000)), "it looks like one");
    }
    // And what goes the same way in the reply to something else.
    for (ends, port, other) in bench.both(0, 2).into_iter().zip([(68, 67), (546, 547)]).map(|(e, (p, o))| (e, p, o)) {
        bench.guard(&[(0, &allow_out([udp(port, anyone())]))], &[]);
        assert!(wire.passes(Probe::new(ends.0, ends.1, Kind::Udp(other, port))));
        bench.guard(&[(0, &Group::default())], &[]);
        let back = Probe::new(ends.1, ends.0, Kind::Udp(port, other));
        assert!(!wire.send(&[back])[0].arrived, "it only looks like a request");
        assert!(!wire.passes(Probe::new(ends.0, ends.1, Kind::Udp(20_000, port))));
    }
}

#[test]
fn s4_the_middle_of_a_connection_does_not_pass_for_one_that_is_remembered() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    bench.guard(&[(1, &allow_in([tcp(8000, anyone()), sctp(8000, anyone())]))], &[]);
    bench.settle();
    for ends in bench.both(0, 1) {
        for (protocol, whole, middle) in [
            (TCP, Kind::Tcp(20_000, 8000), Kind::TcpMiddle(20_001, 8000)),
            (SCTP, Kind::Sctp(20_000, 8000), Kind::SctpMiddle(20_001, 8000)),
        ] {
            assert!(wire.passes(Probe::new(ends.0, ends.1, whole)));
            assert!(remembered(&bench, ends, protocol, 8000));
            assert!(!wire.passes(Probe::new(ends.0, ends.1, middle)), "{middle:?}");
        }
    }
}

#[test]
fn with_a_full_cache_verdicts_are_the_same() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    let group = Group { ingress: vec![tcp(8000, app()), udp(8000, app())], egress: vec![] };
    bench.guard(&[(1, &group)], &[0]);
    bench.settle();
    table::fill_cache(&bench.topology.node.netns);
    let mut verdicts = |bench: &Bench| {
        let mut passed = Vec::new();
        for _ in 0..2 {
            for (client, expected) in [(0, true), (2, false)] {
                for (client, server) in bench.both(client, 1) {
                    for kind in [Kind::Tcp(20_000, 8000), Kind::Udp(20_000, 8000)] {
                        assert_eq!(wire.passes(Probe::new(client, server, kind)), expected, "{client}: {kind:?}");
                    }
                    passed.push(expected && remembered(bench, (client, server), UDP, 8000));
                }
            }
        }
        passed.contains(&true)
    };
    assert!(!verdicts(&bench), "there was room in it");
    // An element more or less makes no difference to a new one.
    bench.guard(&[(1, &group)], &[0, 1]);
    bench.guard(&[(1, &group)], &[0]);
    bench.settle();
    assert!(verdicts(&bench), "there is room again");
}

/// Datagrams as fast as they go, each to the next port: mostly to such as are not remembered yet.
struct Flood {
    family: usize,
    received: OwnedFd,
    orders: Sender<Order>,
}

/// What to send until there is another order. Every datagram names the number.
enum Order {
    /// Something to each port, over and over.
    Flood(u64),
    /// One more to each port, and then what nothing stops.
    End(u64),
}

const FLOODED: Range<u16> = 10_000..26_000;

impl Flood {
    /// From the first pod to the second.
    fn new(bench: &Bench, family: usize) -> Self {
        let (from, to) = (bench.pod(0), bench.pod(1));
        // That nobody listens is not worth an answer to each.
        to.netns.apply(["table inet quiet {\nchain out {\ntype filter hook output priority filter;\n\
             icmp type destination-unreachable drop\nicmpv6 type destination-unreachable drop\n}\n}\n"]);
        let (client, server) = bench.both(0, 1)[family];
        let guarded = (traffic::udp(from, client, 7001), server);
        let free = (traffic::udp(from, from.free[family], 7001), to.free[family]);
        let received = to.netns.enter(|| {
            let family = if family == 0 { AddressFamily::INET } else { AddressFamily::INET6 };
            let protocol = NonZeroU32::new(u32::from(UDP)).map(Protocol::from_raw);
            net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap()
        });
        sockopt::set_socket_recv_buffer_size_force(&received, 64 << 20).unwrap();
        sockopt::set_socket_timeout(&received, Timeout::Recv, Some(Duration::from_secs(20))).unwrap();
        let (orders, taken) = mpsc::channel();
        std::thread::spawn(move || flood(&guarded, &free, &taken));
        Self { family, received, orders }
    }

    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
    }

    /// The number that the next datagram names, and whether it is one that nothing stops.
    fn next(&self) -> (u64, bool) {
        let mut buffer = [0; 128];
        // Other tests' children end meanwhile, and with a time limit no call is begun anew by itself.
        let received = retry_on_intr(|| net::recv(&self.received, &mut buffer[..], RecvFlags::empty()));
        let (length, _) = received.unwrap();
        // IPv4 shows its header, IPv6 does not.
        let header = if self.family == 0 { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let payload = u64::from_be_bytes(buffer[header + 8..length].try_into().unwrap());
        (payload >> 1, payload & 1 == 1)
    }
}

fn flood(guarded: &(UdpSocket, IpAddr), free: &(UdpSocket, IpAddr), orders: &Receiver<Order>) {
    // On one processor, so that they keep their order.
    let mut processors = CpuSet::new();
    processors.set(rustix::thread::sched_getcpu());
    sched_setaffinity(None, &processors).unwrap();
    let send = |(socket, to): &(UdpSocket, IpAddr), port: u16, number: u64, end: bool| {
        let payload = number << 1 | u64::from(end);
        socket.send_to(&payload.to_be_bytes(), (*to, port)).unwrap();
    };
    let mut next = orders.recv().ok();
    while let Some(order) = next {
        next = match order {
            Order::Flood(number) => {
                let mut ports = FLOODED.cycle();
                loop {
                    send(guarded, ports.next().unwrap(), number, false);
                    match orders.try_recv() {
                        Err(TryRecvError::Empty) => {}
                        next => break next.ok(),
                    }
                }
            }
            Order::End(number) => {
                FLOODED.for_each(|port| send(guarded, port, number, false));
                // Again and again, as there may have been no room for the first.
                loop {
                    send(free, 9, number, true);
                    match orders.recv_timeout(Duration::from_millis(20)) {
                        Err(RecvTimeoutError::Timeout) => {}
                        next => break next.ok(),
                    }
                }
            }
        };
    }
}

#[test]
fn s4_nothing_is_remembered_beyond_the_commit_that_forbids_it() {
    if !lab::ready() {
        return;
    }
    const ROUNDS: u64 = 30;
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let flooded = ports(Transport::Udp, [FLOODED.start..=FLOODED.end]);
    let with = allow_in([rule(flooded, app())]);
    let closed = Group::default();
    for family in [0, 1] {
        bench.guard(&[(1, &with)], &[2]);
        let flood = Flood::new(&bench, family);
        let mut arrived = 0;
        for round in 0..ROUNDS {
            let (allowed, forbidden) = (2 * round, 2 * round + 1);
            bench.guard(&[(1, &with)], &[0, 2]);
            flood.order(Order::Flood(allowed));
            while flood.next() != (allowed, false) {}
            match round % 3 {
                0 => bench.guard(&[(1, &with)], &[2]),
                1 => bench.guard(&[(1, &closed)], &[2]),
                _ => bench.guard(&[(0, &closed), (1, &with)], &[0, 2]),
            }
            if round % 2 == 0 {
                bench.settle();
            }
            // What is sent from here on is sent after the commit.
            flood.order(Order::End(forbidden));
            loop {
                match flood.next() {
                    (number, false) if number == forbidden => panic!("family {family}, round {round}: open"),
                    (number, true) if number == forbidden => break,
                    _ => arrived += 1,
                }
            }
        }
        println!("family {family}: {arrived} datagrams in {ROUNDS} rounds");
    }
}
