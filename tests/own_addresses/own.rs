//! What is a pod's own passes.

use super::scene::{PATIENCE, STOLEN, Witness, address, devices, name, replace, wait_until};
use crate::support::lab;
use crate::support::packet;
use crate::support::topology::{Host, Network, Topology};
use crate::support::traffic;
use crate::support::wire::{self, Kind, Probe, Wire};
use ringfence::nft::own;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};

/// All that an honest pod needs, from neighbours that know nothing of each other on.
fn what_is_own_passes(network: Network) {
    if !lab::ready() {
        return;
    }
    let topology = Topology::new(network, 2);
    let devices = devices(&topology);
    replace(&topology, &devices);
    for host in topology.hosts() {
        host.netns.ip("neigh flush all");
    }
    let [first, second] = [&topology.pods[0], &topology.pods[1]];
    for (from, to) in [
        (first, second),
        (second, first),
        (first, &topology.outside),
        (&topology.outside, first),
        (first, &topology.node),
        (&topology.node, first),
    ] {
        for (source, to_address) in from.addresses.iter().flat_map(|a| to.addresses.iter().map(move |b| (*a, *b))) {
            // Those of the world outside are many, and all alike to us.
            let own = |host: &Host, address: IpAddr| address == host.v4() || address == host.v6();
            let is_one = own(from, source) && own(to, to_address);
            if is_one && source.is_ipv4() == to_address.is_ipv4() {
                conversation(from, source, to, to_address);
            }
        }
    }

    // A new address of its own, which it first asks everybody for.
    let (node, pod) = (&topology.node.netns, first);
    let extra = address(STOLEN[1]);
    let mut declared = devices.clone();
    declared.get_mut(&name(0)).unwrap().addresses.insert(extra);
    node.apply(own::plan(&devices, &declared).as_deref());
    let asking = Witness::new(node, "pod0", "ip6 saddr :: icmpv6 type nd-neighbor-solicit");
    pod.netns.sysctl("net/ipv6/conf/eth0/accept_dad", "1");
    pod.netns.ip(&format!("addr add {extra}/128 dev eth0"));
    wait_until("duplicate address detection", || asking.seen() > 0);

    // What a kernel says by itself when its link comes up, and a DHCP client after that.
    let reports = Witness::new(node, "pod1", "icmpv6 type mld2-listener-report");
    second.netns.ip("link set eth0 down\nlink set eth0 up");
    wait_until("multicast listener reports", || reports.seen() > 0);
    let dhcp = Witness::new(node, "pod1", "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp dport 67");
    second.netns.ip("addr flush dev eth0 scope global\nroute add 255.255.255.255 dev eth0");
    second.netns.enter(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 68)).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(b"discover", ("255.255.255.255", 67)).unwrap();
    });
    wait_until("a DHCP client", || dhcp.seen() == 1);
}

/// TCP both ways, and UDP with the answer.
fn conversation(from: &Host, source: IpAddr, to: &Host, destination: IpAddr) {
    let what = format!("{source} to {destination}");
    let listener = to.netns.enter(|| TcpListener::bind((destination, 0)).unwrap());
    let server = listener.local_addr().unwrap();
    // Neighbours are being looked for: the first SYN may have to wait.
    let mut client = from.netns.enter(|| TcpStream::connect_timeout(&server, PATIENCE)).expect(&what);
    let (mut accepted, _) = listener.accept().unwrap();
    let mut buffer = [0; 4];
    client.write_all(b"ping").unwrap();
    accepted.read_exact(&mut buffer).unwrap();
    accepted.write_all(b"pong").unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong", "{what}");
    let (here, there) = (traffic::udp(from, source, 0), traffic::udp(to, destination, 0));
    here.send_to(b"ping", there.local_addr().unwrap()).unwrap();
    there.set_read_timeout(Some(PATIENCE)).unwrap();
    let (_, back) = there.recv_from(&mut buffer).expect(&what);
    assert_eq!(back.ip(), source, "{what}");
    there.send_to(b"pong", back).unwrap();
    here.set_read_timeout(Some(PATIENCE)).unwrap();
    here.recv_from(&mut buffer).expect(&what);
}

#[test]
fn s9_what_is_own_passes_routed() {
    what_is_own_passes(Network::Routed);
}

#[test]
fn s9_what_is_own_passes_bridged() {
    what_is_own_passes(Network::Bridged);
}

#[test]
fn s9_pings_and_what_no_kernel_answers() {
    if !lab::ready() {
        return;
    }
    for network in [Network::Routed, Network::Bridged] {
        let topology = Topology::new(network, 2);
        topology.pin_neighbours();
        replace(&topology, &devices(&topology));
        let mut wire = Wire::new(&topology);
        for [from, to] in [[0, 1], [1, 0]] {
            for family in [Host::v4, Host::v6] {
                let (source, destination) = (family(&topology.pods[from]), family(&topology.pods[to]));
                for kind in [Kind::Icmp(wire::echo(source), 7), Kind::Sctp(1, 2), Kind::Other(packet::GRE)] {
                    assert!(wire.passes(Probe::new(source, destination, kind)), "{kind:?} from {source}");
                }
            }
        }
    }
}
