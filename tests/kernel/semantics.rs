//! The cases worth a name, one by one.

use crate::bench::{Bench, Established, allow_in, allow_out, any, app, tcp, udp};
use crate::support::lab;
use crate::support::scenario::{anyone, cidrs, ports, rule};
use crate::support::topology::{Network, Topology};
use crate::support::traffic::{self, Expect, Flow};
use crate::support::wire::{self, Kind, Probe, Wire};
use ringfence::policy::{Group, IcmpMatch, Rule, Traffic, Transport};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

#[test]
fn s3_replies_and_errors_need_no_rule() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    let beyond = &bench.topology.outside.netns;
    // Behind outside there is a narrow link: what is too long for it is answered with an error, through the node.
    beyond.ip("link add narrow mtu 1280 type veth peer name end\nlink set end up\nlink set narrow up\nroute add 203.0.113.0/24 dev narrow\nroute add 2001:db8:beef::/64 dev narrow");
    beyond.sysctl("net/ipv4/ip_forward", "1");
    beyond.sysctl("net/ipv6/conf/all/forwarding", "1");
    bench.guard(&[(0, &allow_out([udp(7000, anyone())])), (1, &allow_in([udp(7000, app())]))], &[0]);

    for (client, server) in bench.both(0, 1) {
        let from = traffic::udp(bench.pod(0), client, 0);
        from.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        from.connect((server, 7000)).unwrap();
        from.send(b"question").unwrap();
        let refused = from.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "nobody listens, and says so");

        let to = traffic::udp(bench.pod(1), server, 7000);
        to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        from.send(b"question").unwrap();
        let (_, asker) = to.recv_from(&mut [0; 16]).unwrap();
        to.send_to(b"answer", asker).unwrap();
        assert_eq!(from.recv(&mut [0; 16]).unwrap(), 6);
    }

    for (client, far) in [(bench.pod(0).v4(), "203.0.113.9"), (bench.pod(0).v6(), "2001:db8:beef::9")] {
        let far: IpAddr = far.parse().unwrap();
        let socket = traffic::udp(bench.pod(0), client, 0);
        let mtu = |socket: &UdpSocket| {
            use rustix::net::sockopt;
            if far.is_ipv4() { sockopt::ip_mtu(socket) } else { sockopt::ipv6_mtu(socket) }.unwrap()
        };
        if far.is_ipv4() {
            let never_cut = rustix::net::sockopt::Ipv4PathMtuDiscovery::DO;
            rustix::net::sockopt::set_ip_mtu_discover(&socket, never_cut).unwrap();
        }
        socket.connect((far, 7000)).unwrap();
        assert_eq!(mtu(&socket), 1500);
        socket.send(&[0; 1400]).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while mtu(&socket) != 1280 {
            assert!(Instant::now() < until, "the error about {far} never came");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What takes away the access that `s4` is about, and leaves its neighbour alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Rule,
    Member,
    ClientIsGuarded,
}

#[test]
fn s4_what_is_removed_stops_at_once_in_both_directions() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    // Conntrack forgets an idle connection after a second, not after five days.
    bench.topology.node.netns.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", "1");
    bench.topology.node.netns.sysctl("net/netfilter/nf_conntrack_sctp_timeout_established", "1");
    let mut wire = Wire::new(&bench.topology);
    let everyone: Vec<String> =
        bench.pod(0).addresses.iter().map(|a| format!("{a}/{}", if a.is_ipv4() { 32 } else { 128 })).collect();
    let neighbour = udp(7000, cidrs(everyone.iter().map(String::as_str)));
    let icmp = rule(Traffic::Icmp(IcmpMatch::Both), app());
    let sctp = rule(ports(Transport::Sctp, [8000..=8000]), app());
    // Open egress, as by default: what the server sends must not pass for a connection of its own.
    let open = vec![any(anyone())];
    let with = Group {
        ingress: vec![tcp(8000, app()), udp(8000, app()), sctp, icmp, neighbour.clone()],
        egress: open.clone(),
    };
    let without = Group { ingress: vec![neighbour], egress: open };
    let only_neighbour = allow_out([udp(7000, anyone())]);

    for cut in [Cut::Rule, Cut::Member, Cut::ClientIsGuarded] {
        bench.guard(&[(1, &with)], &[0]);
        let flow = {
            let socket = |pod: usize, port| traffic::udp(bench.pod(pod), bench.pod(pod).v4(), port);
            Flow::start(socket(0, 7001), socket(1, 7000), Expect::All)
        };
        let mut connections = Vec::new();
        let mut idle = Vec::new();
        let mut packets = Vec::new();
        for (client, server) in bench.both(0, 1) {
            let open = |port| Established::open(bench.pod(0), bench.pod(1), SocketAddr::new(server, port)).unwrap();
            let mut connection = open(8000);
            assert_eq!(connection.passes(&mut wire), (true, true));
            connections.push(connection);
            idle.push(open(8000));
            packets.extend([
                Probe::new(client, server, Kind::Udp(20_000, 8000)),
                // One way, from the server: nothing from the client keeps it open.
                Probe::new(server, client, Kind::Udp(8000, 20_000)),
                Probe::new(client, server, Kind::Icmp(wire::echo(client), 77)),
                Probe::new(client, server, Kind::Sctp(20_001, 8000)),
            ]);
        }
        for probe in &packets {
            assert!(wire.passes(*probe), "before {cut:?}: {probe:?}");
        }

        match cut {
            Cut::Rule => bench.guard(&[(1, &without)], &[0]),
            Cut::Member => bench.guard(&[(1, &with)], &[2]),
            Cut::ClientIsGuarded => bench.guard(&[(0, &only_neighbour), (1, &with)], &[0]),
        }
        for connection in &mut connections {
            assert_eq!(connection.passes(&mut wire), (false, false), "{cut:?}");
        }
        for probe in &packets {
            assert!(!wire.passes(*probe), "after {cut:?}: {probe:?}");
        }

        // Whether conntrack knows them makes no difference.
        bench.topology.node.netns.forget_connections();
        for connection in &mut connections {
            assert_eq!(connection.passes(&mut wire), (false, false), "forgotten after {cut:?}");
        }

        // Idle out of conntrack, then go on in the middle: from either end, the server's egress being open.
        drop(connections);
        std::thread::sleep(Duration::from_millis(2_500));
        for connection in &mut idle {
            assert_eq!(connection.passes(&mut wire), (false, false), "picked up after {cut:?}");
        }
        for (client, server) in bench.both(0, 1) {
            for kind in [Kind::TcpMiddle(8000, 30_000), Kind::SctpMiddle(8000, 30_000)] {
                assert!(!wire.passes(Probe::new(server, client, kind)), "picked up after {cut:?}: {kind:?}");
            }
        }

        bench.guard(&[(1, &with)], &[0]);
        for probe in &packets {
            assert!(wire.passes(*probe), "allowed again after {cut:?}: {probe:?}");
        }
        for (_, server) in bench.both(0, 1) {
            let mut again =
                Established::open(bench.pod(0), bench.pod(1), SocketAddr::new(server, 8000)).expect("allowed again");
            assert_eq!(again.passes(&mut wire), (true, true), "new, after {cut:?}");
        }
        let carried = flow.stop();
        assert!(carried.lost == 0 && carried.received > 0, "the neighbour of {cut:?}: {carried:?}");
    }
}

#[test]
fn many_ports_are_found_among_wide_ranges() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    // Single ports, narrow ranges and wide ones, for whom they are differing from one to the next.
    let mut rules: Vec<Rule> = (0..20).map(|i| tcp(8001 + 2 * i, if i % 2 == 0 { app() } else { anyone() })).collect();
    rules.extend(
        [(100..=109, anyone()), (10_000..=20_000, app()), (30_000..=65_535, anyone())]
            .map(|(range, remote)| rule(ports(Transport::Tcp, [range]), remote)),
    );
    for (guards, client, server, in_app) in [
        (vec![(1, allow_in(rules.clone()))], 0, 1, true),
        (vec![(1, allow_in(rules.clone()))], 2, 1, false),
        (vec![(1, allow_out(rules.clone()))], 1, 0, true),
        (vec![(1, allow_out(rules.clone()))], 1, 2, false),
    ] {
        let guards: Vec<(usize, &Group)> = guards.iter().map(|(pod, group)| (*pod, group)).collect();
        bench.guard(&guards, &[0]);
        let singles = (8000..=8041).map(|port| (port, port % 2 == 1 && port < 8040 && (in_app || port % 4 == 3)));
        let narrow = [(99, false), (100, true), (109, true), (110, false)];
        let wide = [(9_999, false), (10_000, in_app), (20_000, in_app), (20_001, false)];
        let last = [(29_999, false), (30_000, true), (65_535, true)];
        for (source, destination) in bench.both(client, server) {
            let cases: Vec<(u16, bool)> = singles.clone().chain(narrow).chain(wide).chain(last).collect();
            let probes: Vec<Probe> =
                cases.iter().map(|(port, _)| Probe::new(source, destination, Kind::Tcp(25_000, *port))).collect();
            for ((port, expected), outcome) in cases.iter().zip(wire.send(&probes)) {
                assert_eq!(outcome.arrived, *expected, "{source} to {destination}, port {port}");
            }
        }
    }
}

#[test]
fn s11_the_node_reaches_its_pods_and_neighbours_are_found() {
    if !lab::ready() {
        return;
    }
    for network in [Network::Routed, Network::Bridged] {
        let mut bench = Bench::new(network);
        let between = Group { ingress: vec![tcp(8000, app())], egress: vec![tcp(8000, app())] };
        bench.guard(&[(0, &Group::default()), (1, &between), (2, &between)], &[1, 2]);
        let Topology { node, pods, .. } = &bench.topology;
        // Nobody knows anybody: who is asked for must be able to answer.
        for host in bench.topology.hosts() {
            host.netns.ip("neigh flush all");
        }
        for address in [pods[0].v4(), pods[0].v6()] {
            Established::open(node, &pods[0], SocketAddr::new(address, 8000))
                .unwrap_or_else(|error| panic!("{network:?}, node to closed pod {address}: {error}"));
        }
        for address in [pods[2].v4(), pods[2].v6()] {
            Established::open(&pods[1], &pods[2], SocketAddr::new(address, 8000))
                .unwrap_or_else(|error| panic!("{network:?}, pod to pod {address}: {error}"));
        }
    }
}

#[test]
fn a_pods_traffic_to_its_node_is_egress() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    bench.guard(
        &[(0, &allow_out([tcp(443, cidrs(["10.77.0.1/32", "fd77::1/128"]))])), (1, &allow_in([any(anyone())]))],
        &[],
    );
    for node in bench.topology.node.addresses.clone() {
        for (pod, port, expected) in [(0, 443, true), (0, 444, false), (1, 443, false), (2, 443, true)] {
            let pod = bench.pod(pod);
            let own = if node.is_ipv4() { pod.v4() } else { pod.v6() };
            assert_eq!(wire.passes(Probe::new(own, node, Kind::Tcp(20_000, port))), expected, "{own} to {node}:{port}");
        }
    }
}

/// Sends what goes to a service's address on to a pod, and hides the client behind the node afterwards, as kube-proxy does.
pub fn service(bench: &Bench, backend: usize) -> [IpAddr; 2] {
    let backend = bench.pod(backend);
    for (family, service, to) in
        [("ip", SERVICE[0], backend.v4().to_string()), ("ip6", SERVICE[1], format!("[{}]", backend.v6()))]
    {
        bench.topology.node.netns.apply([format!(
            "add table {family} testnat\ndelete table {family} testnat\n\
             table {family} testnat {{\n\
             chain before {{\ntype nat hook prerouting priority dstnat;\n{family} daddr {service} tcp dport 80 dnat to {to}:8080\n}}\n\
             chain after {{\ntype nat hook postrouting priority srcnat;\nct status dnat masquerade\n}}\n}}\n"
        )
        .as_str()]);
    }
    SERVICE.map(|address| address.parse().unwrap())
}

const SERVICE: [&str; 2] = ["10.96.0.10", "fd96::a"];

#[test]
fn s12_a_service_is_judged_by_its_backend_and_the_true_client() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    let to_backend = allow_out([tcp(8080, app())]);
    let to_service =
        allow_out([tcp(80, cidrs(SERVICE.map(|a| if a.contains(':') { "fd96::a/128" } else { "10.96.0.10/32" })))]);
    let from_client = allow_in([tcp(8080, app())]);
    let from_node = allow_in([any(cidrs(["10.77.0.1/32", "fd77::1/128"]))]);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    let addresses = service(&bench, 1);
    let mut port = 20_000;
    // The client and the backend are both in group app.
    for (client, server, expected) in [
        (&to_backend, &from_client, true),
        (&to_service, &from_client, false),
        (&to_backend, &from_node, false),
        (&allow_out([any(anyone())]), &allow_in([tcp(80, anyone())]), false),
    ] {
        bench.guard(&[(0, client), (1, server)], &[0, 1]);
        for (own, address) in [bench.pod(0).v4(), bench.pod(0).v6()].into_iter().zip(addresses) {
            port += 1;
            let passes = wire.passes(Probe::new(own, address, Kind::Tcp(port, 80)));
            assert_eq!(passes, expected, "{own} to {address}: {client:?} {server:?}");
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_a_service() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.guard(&[(0, &Group::default())], &[]);
    for (address, own) in service(&bench, 0).into_iter().zip([bench.pod(0).v4(), bench.pod(0).v6()]) {
        let listener = bench.pod(0).netns.enter(|| TcpListener::bind((own, 8080)).unwrap());
        let mut connection = Established::through(bench.pod(0), &listener, SocketAddr::new(address, 80)).unwrap();
        connection.client.write_all(b"hello").unwrap();
        connection.server.set_nonblocking(false).unwrap();
        assert_eq!(connection.server.read(&mut [0; 16]).unwrap(), 5);
    }
}

#[test]
fn packets_without_a_tuple_do_not_pass_a_guard() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    let raw = "table inet testraw {\nchain before {\ntype filter hook prerouting priority raw;\nudp dport { 53, 54 } notrack\n}\n}\n";
    bench.topology.node.netns.apply([raw]);
    let node = bench.topology.node.addresses.clone();
    let open = Group { ingress: vec![any(anyone())], egress: vec![any(anyone())] };
    let dns = allow_out([udp(53, cidrs(["10.77.0.1/32", "fd77::1/128"]))]);
    bench.guard(&[(0, &open), (1, &dns)], &[]);

    for (family, node) in node.into_iter().enumerate() {
        let of = |pod: usize| [bench.pod(pod).v4(), bench.pod(pod).v6()][family];
        let outside = [bench.topology.outside.v4(), bench.topology.outside.v6()][family];
        for (what, probe, expected) in [
            ("to the node as a rule says", Probe::new(of(1), node, Kind::Udp(20_000, 53)), true),
            ("to the node as no rule says", Probe::new(of(1), node, Kind::Udp(20_000, 54)), false),
            ("to the node, all allowed", Probe::new(of(0), node, Kind::Udp(20_000, 54)), true),
            ("to the node, unguarded", Probe::new(of(2), node, Kind::Udp(20_000, 54)), true),
            ("from a guarded pod", Probe::new(of(0), of(2), Kind::Udp(20_000, 53)), false),
            ("to a guarded pod", Probe::new(of(2), of(0), Kind::Udp(20_000, 53)), false),
            ("past the guarded", Probe::new(of(2), outside, Kind::Udp(20_000, 53)), true),
            ("TCP without a beginning, from", Probe::new(of(0), of(2), Kind::TcpMiddle(20_000, 80)), false),
            ("TCP without a beginning, to", Probe::new(of(2), of(0), Kind::TcpMiddle(20_000, 80)), false),
            ("TCP without a beginning, to the node", Probe::new(of(0), node, Kind::TcpMiddle(20_000, 80)), false),
            ("TCP without a beginning, past", Probe::new(of(2), outside, Kind::TcpMiddle(20_000, 80)), true),
            ("SCTP without a beginning, from", Probe::new(of(0), of(2), Kind::SctpMiddle(20_000, 80)), false),
            ("SCTP without a beginning, to", Probe::new(of(2), of(0), Kind::SctpMiddle(20_000, 80)), false),
            ("SCTP without a beginning, past", Probe::new(of(2), outside, Kind::SctpMiddle(20_000, 80)), true),
        ] {
            assert_eq!(wire.passes(probe), expected, "{what}: {probe:?}");
        }
    }
}
