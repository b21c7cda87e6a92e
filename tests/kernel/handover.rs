//! TCP connections of a machine that comes from another node, which told who began them.

use crate::bench::{Bench, Established, allow_in, any, app, tcp};
use crate::support::lab;
use crate::support::scenario::anyone;
use crate::support::topology::Network;
use crate::support::wire::Wire;
use ringfence::nft::conntrack;
use ringfence::policy::Group;
use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// What was written while nothing passed comes when it is sent again.
fn goes_on(connection: &mut Established, wire: &mut Wire) {
    let until = Instant::now() + Duration::from_secs(20);
    while connection.passes(wire) != (true, true) {
        assert!(Instant::now() < until, "it does not go on");
    }
    wire.settle();
    for end in [&mut connection.client, &mut connection.server] {
        while end.read(&mut [0; 256]).is_ok_and(|count| count > 0) {}
    }
}

#[test]
fn s4_a_connection_that_began_elsewhere_is_judged_by_who_began_it() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    // Open egress, as by default: what the server sends must not pass for a connection of its own.
    let with = Group { egress: vec![any(anyone())], ..allow_in([tcp(8000, app())]) };
    let without = Group { ingress: vec![], ..with.clone() };
    bench.guard(&[(1, &with)], &[0]);
    let (mut into, mut out) = (Vec::new(), Vec::new());
    for (client, server) in bench.both(0, 1) {
        into.push(Established::open(bench.pod(0), bench.pod(1), SocketAddr::new(server, 8000)).unwrap());
        out.push(Established::open(bench.pod(1), bench.pod(0), SocketAddr::new(client, 9000)).unwrap());
    }
    let machine: BTreeSet<IpAddr> = bench.pod(1).addresses.iter().copied().collect();
    let known = bench.topology.node.netns.enter(|| conntrack::established(&machine)).unwrap();
    assert_eq!(known.len(), 4, "{known:?}");
    let make_known = || conntrack::make_known(&known).unwrap();

    // A node that knows nothing of them.
    bench.topology.node.netns.forget_connections();
    for connection in into.iter_mut().chain(&mut out) {
        assert_eq!(connection.passes(&mut wire), (false, false), "nobody has said who began it");
    }
    let taken = [(); 2].map(|()| bench.topology.node.netns.enter(make_known));
    assert_eq!(taken, [4, 0], "and none twice");
    for connection in into.iter_mut().chain(&mut out) {
        goes_on(connection, &mut wire);
    }

    // The rule goes, and takes what it allowed.
    bench.guard(&[(1, &without)], &[0]);
    for connection in &mut into {
        assert_eq!(connection.passes(&mut wire), (false, false), "no rule allows it any more");
    }
    for connection in &mut out {
        goes_on(connection, &mut wire);
    }

    // What no rule allows, nobody's word lets in.
    bench.topology.node.netns.forget_connections();
    assert_eq!(bench.topology.node.netns.enter(make_known), 4);
    for connection in &mut into {
        assert_eq!(connection.passes(&mut wire), (false, false), "told of, and denied");
    }
}

/// Addresses of a service.
const SERVICES: [(&str, &str); 2] = [("ip", "10.96.0.1:80"), ("ip6", "[fd96::1]:80")];

/// As kube-proxy does it: what is new goes to a backend.
fn translate(bench: &Bench, backend: usize) {
    let backends = [bench.pod(backend).v4(), bench.pod(backend).v6()];
    for ((family, service), backend) in SERVICES.iter().zip(backends) {
        let service: SocketAddr = service.parse().unwrap();
        let backend = SocketAddr::new(backend, 8000);
        let script = format!(
            "add table {family} services
            delete table {family} services
            add table {family} services
            add chain {family} services out {{ type nat hook prerouting priority dstnat; }}
            add rule {family} services out {family} daddr {} tcp dport {} dnat to {backend}
            ",
            service.ip(),
            service.port()
        );
        bench.topology.node.netns.apply([script.as_str()]);
    }
}

#[test]
fn s4_a_connection_to_a_service_goes_on_with_the_backend_that_the_other_node_chose() {
    if !lab::ready() {
        return;
    }
    let mut bench = Bench::new(Network::Routed);
    bench.topology.pin_neighbours();
    let mut wire = Wire::new(&bench.topology);
    translate(&bench, 0);
    let to_backend = Group { egress: vec![tcp(8000, app())], ingress: vec![] };
    let nowhere = Group { egress: vec![], ..to_backend.clone() };
    bench.guard(&[(1, &to_backend)], &[0]);
    let mut open = Vec::new();
    for ((_, service), backend) in SERVICES.iter().zip([bench.pod(0).v4(), bench.pod(0).v6()]) {
        let listener = bench.pod(0).netns.enter(|| TcpListener::bind((backend, 8000))).unwrap();
        open.push(Established::through(bench.pod(1), &listener, service.parse().unwrap()).unwrap());
    }
    let machine: BTreeSet<IpAddr> = bench.pod(1).addresses.iter().copied().collect();
    let node = &bench.topology.node.netns;
    let known = node.enter(|| conntrack::established(&machine)).unwrap();
    assert!(known.len() == 2 && known.iter().all(|c| c.backend.is_some_and(|b| b.port() == 8000)), "{known:?}");

    // A node that would choose another one.
    translate(&bench, 2);
    node.forget_connections();
    assert_eq!(node.enter(|| conntrack::make_known(&known)).unwrap(), 2);
    for connection in &mut open {
        goes_on(connection, &mut wire);
    }
    bench.guard(&[(1, &nowhere)], &[0]);
    for connection in &mut open {
        assert_eq!(connection.passes(&mut wire), (false, false), "no rule allows it any more");
    }
}
