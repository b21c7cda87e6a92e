//! Nobody behind a device sends with what is not its own (S9): real frames between network namespaces, routed and bridged.
//!
//! A witness listens at each pod's device, right behind our table: it counts what the table let through. Every attack is first
//! seen to reach the witness without the table, or the test would prove nothing.
//!
//! Needs root, `nft` and `ip`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use ringfence::nft::Layout;
use ringfence::nft::listing::{Fingerprints, difference};
use ringfence::nft::own::{self, Device, DeviceName, Devices, Tunnels, Watched};
use rustix::net::{self, AddressFamily, Protocol, SendFlags, SocketFlags, SocketType};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};
use support::lab::{self, Netns};
use support::packet::{self, Ends};
use support::table;
use support::topology::{Host, Network, Topology};
use support::traffic::{self, Expect, Flow};
use support::wire::{self, Kind, Probe, Wire};

const PATIENCE: Duration = Duration::from_secs(20);
/// Nobody's address, in the pods' own networks.
const STOLEN: [&str; 2] = ["10.77.0.250", "fd77::250"];
/// To this port goes what is honest and only tells that all before it has arrived.
const BARRIER: u16 = 9;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(i: usize) -> DeviceName {
    format!("pod{i}").parse().unwrap()
}

fn device(pod: &Host) -> Device {
    let addresses = pod.addresses.iter().chain(&pod.free).copied().collect();
    Device { index: 1, addresses, mac: Some(pod.mac.parse().unwrap()) }
}

fn devices(topology: &Topology) -> Devices {
    topology.pods.iter().enumerate().map(|(i, pod)| (name(i), device(pod))).collect()
}

/// The link-local address of a pod, which its kernel makes of its link address.
fn link_local(pod: &Host) -> Ipv6Addr {
    let last = u16::from_str_radix(pod.mac.rsplit(':').next().unwrap(), 16).unwrap();
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x00ff, 0xfe00, last)
}

fn replace(topology: &Topology, devices: &Devices) {
    replace_in(&topology.node.netns, devices);
}

fn replace_in(node: &Netns, devices: &Devices) {
    node.apply(own::replacement(&Tunnels::default(), devices).scripts());
}

fn wait_until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Counts of a named counter of a table.
fn count(netns: &Netns, table: &str, counter: &str) -> u64 {
    let (family, table) = table.split_once(' ').unwrap();
    let text = netns.nft(&["list", "counter", family, table, counter]);
    let mut words = text.split_whitespace();
    words.find(|word| *word == "packets").unwrap();
    words.next().unwrap().parse().unwrap()
}

/// Listens behind our table at one device.
struct Witness<'a>(&'a Netns);

impl<'a> Witness<'a> {
    const TABLE: &'static str = "netdev witness";

    /// Counts frames that match, and those of the barrier.
    fn new(node: &'a Netns, device: &str, matching: &str) -> Self {
        let table = Self::TABLE;
        node.apply([format!(
            "add table {table}\ndelete table {table}\ntable {table} {{\n\
            counter seen {{ }}\ncounter barrier {{ }}\n\
            chain behind {{\ntype filter hook ingress device \"{device}\" priority 0; policy accept;\n\
            {matching} counter name seen\nudp dport {BARRIER} counter name barrier\n}}\n}}\n"
        )
        .as_str()]);
        Self(node)
    }

    fn seen(&self) -> u64 {
        count(self.0, Self::TABLE, "seen")
    }

    fn barrier(&self) -> u64 {
        count(self.0, Self::TABLE, "barrier")
    }
}

/// Sends whole packets from a pod, whatever they say.
struct Raw<'a> {
    pod: &'a Host,
    sockets: [OwnedFd; 2],
    scope: u32,
}

impl<'a> Raw<'a> {
    fn new(pod: &'a Host) -> Self {
        let open = |family| {
            let raw = NonZeroU32::new(255).map(Protocol::from_raw);
            let socket = net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, raw).unwrap();
            // Some go to broadcast and multicast addresses.
            net::sockopt::set_socket_broadcast(&socket, true).unwrap();
            socket
        };
        let (sockets, scope) = pod.netns.enter(|| {
            let sockets = [open(AddressFamily::INET), open(AddressFamily::INET6)];
            let scope = net::netdevice::name_to_index(&sockets[0], "eth0").unwrap();
            (sockets, scope)
        });
        Self { pod, sockets, scope }
    }

    fn send(&self, packet: &[u8], to: IpAddr) {
        let sent = match to {
            IpAddr::V4(_) => net::sendto(&self.sockets[0], packet, SendFlags::empty(), &SocketAddr::new(to, 0)),
            IpAddr::V6(to) => {
                let to = SocketAddrV6::new(to, 0, 0, self.scope);
                net::sendto(&self.sockets[1], packet, SendFlags::empty(), &to)
            }
        };
        sent.unwrap_or_else(|error| panic!("{} cannot send to {to}: {error}", self.pod.netns.name()));
    }

    /// An honest packet, behind everything that was sent before.
    fn barrier(&self, to: IpAddr) {
        let ends = Ends { source: self.pod.v4(), destination: to };
        self.send(&packet::udp(ends, (BARRIER, BARRIER), b"barrier"), to);
    }
}

/// Something that nobody may send.
struct Attack {
    what: &'static str,
    /// Where our table counts it.
    counter: &'static str,
    /// How the witness knows it.
    matching: String,
    packet: Vec<u8>,
    to: IpAddr,
}

/// A neighbour advertisement, or the like, about an address.
fn about(ends: Ends, type_: u8, target: Ipv6Addr) -> Vec<u8> {
    // Solicited and override, so that it is believed.
    packet::icmp(ends, (type_, 0), 0x6000, &target.octets())
}

/// The same packet with its transport header behind destination options.
fn behind_options(mut packet: Vec<u8>) -> Vec<u8> {
    let protocol = std::mem::replace(&mut packet[6], 60);
    packet.splice(40..40, [protocol, 0, 1, 4, 0, 0, 0, 0]);
    lengthen(packet, 8)
}

/// The first fragment of the packet, cut inside its destination options.
fn cut_in_options(packet: Vec<u8>) -> Vec<u8> {
    let mut packet = behind_options(packet);
    // Options of 24 bytes, of which this fragment has the first 8.
    packet[41] = 2;
    packet.truncate(48);
    let options = std::mem::replace(&mut packet[6], 44);
    packet.splice(40..40, [options, 0, 0, 1, 0, 0, 0, 7]);
    let length = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

fn lengthen(mut packet: Vec<u8>, by: u16) -> Vec<u8> {
    let length = u16::from_be_bytes([packet[4], packet[5]]) + by;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

/// What pod 0 may not send, towards pod 1 and the world.
fn attacks(topology: &Topology) -> Vec<Attack> {
    let (pod, victim, outside) = (&topology.pods[0], &topology.pods[1], &topology.outside);
    let (own4, own6, own_ll) = (pod.v4(), pod.v6(), IpAddr::from(link_local(pod)));
    let IpAddr::V6(victim6) = victim.v6() else { unreachable!() };
    let victim_ll = link_local(victim);
    let all_nodes = address("ff02::1");
    let mut attacks = Vec::new();
    let mut attack = |what, counter, matching: String, ends: Ends, packet: Vec<u8>| {
        attacks.push(Attack { what, counter, matching, packet, to: ends.destination });
    };
    let ends = |source, destination| Ends { source, destination };

    for (what, source, to) in [
        ("a neighbour's address", victim.v4(), outside.v4()),
        ("nobody's address", address("203.0.113.9"), outside.v4()),
        ("the node's address", topology.node.v4(), outside.v4()),
        ("a loopback source", address("127.0.0.1"), outside.v4()),
        ("a link-local source", address("169.254.1.1"), outside.v4()),
        ("a multicast source", address("224.0.0.5"), outside.v4()),
        ("a broadcast source", address("255.255.255.255"), outside.v4()),
        ("a neighbour's address, v6", victim.v6(), outside.v6()),
        ("nobody's address, v6", address("2001:db8:9::9"), outside.v6()),
        ("the node's address, v6", topology.node.v6(), outside.v6()),
        ("a multicast source, v6", address("ff02::1"), outside.v6()),
    ] {
        let family = if source.is_ipv4() { "ip" } else { "ip6" };
        let ends = ends(source, to);
        let udp = packet::udp(ends, (53, 53), b"spoofed");
        attack(what, "other_address", format!("{family} saddr {source} udp sport 53"), ends, udp);
    }
    for (what, source, type_) in [
        ("advertises as a neighbour's link-local address", IpAddr::from(victim_ll), 136),
        ("solicits as a neighbour's link-local address", IpAddr::from(victim_ll), 135),
    ] {
        let ends = ends(source, all_nodes);
        let matching = format!("ip6 saddr {source} icmpv6 type {type_}");
        attack(what, "other_address", matching, ends, about(ends, type_, victim_ll));
    }

    for (what, source, target) in [
        ("claims a neighbour's address", own6, victim6),
        ("claims a neighbour's address, from the link-local one", own_ll, victim6),
        ("claims a neighbour's link-local address", own6, victim_ll),
        ("claims a neighbour's link-local address, from its own", own_ll, victim_ll),
    ] {
        let ends = ends(source, all_nodes);
        let matching = format!("ip6 saddr {source} icmpv6 type nd-neighbor-advert");
        attack(what, "other_neighbour", matching, ends, about(ends, 136, target));
    }

    for (what, source, type_) in [
        ("router advertisement", own_ll, 134),
        ("router advertisement from its own address", own6, 134),
        ("redirect", own_ll, 137),
        ("redirect from its own address", own6, 137),
        ("multicast query", own_ll, 130),
    ] {
        let ends = ends(source, all_nodes);
        let matching = format!("ip6 saddr {source} icmpv6 type {type_}");
        attack(what, "infrastructure", matching, ends, about(ends, type_, victim6));
    }
    let to_all = ends(own6, all_nodes);
    let advertisement = about(to_all, 134, victim6);
    let hidden = behind_options(advertisement.clone());
    attack("router advertisement behind options", "infrastructure", "ip6 nexthdr 60".into(), to_all, hidden);
    attack("options that never end", "other_protocol", "ip6 nexthdr 44".into(), to_all, cut_in_options(advertisement));
    for (what, source, to, ports) in [
        ("DHCP server", own4, victim.v4(), (67, 68)),
        ("DHCP server at another port", own4, victim.v4(), (4011, 68)),
        ("DHCPv6 server", own6, victim.v6(), (547, 546)),
    ] {
        let ends = ends(source, to);
        attack(what, "infrastructure", format!("udp dport {}", ports.1), ends, packet::udp(ends, ports, b"offer"));
    }
    let redirect = ends(own4, victim.v4());
    let packet = packet::icmp(redirect, (5, 1), 0, &[0; 28]);
    attack("redirect, v4", "infrastructure", "icmp type redirect".into(), redirect, packet);

    for (what, protocol, source, to) in [
        ("IPIP", 4, own4, topology.node.v4()),
        ("6in4", 41, own4, topology.node.v4()),
        ("4in6", 4, own6, topology.node.v6()),
        ("6in6", 41, own6, topology.node.v6()),
    ] {
        let ends = ends(source, to);
        attack(what, "tunnel", format!("meta l4proto {protocol}"), ends, packet::other(ends, protocol, &[0; 40]));
    }
    for (what, port) in [("VXLAN", 4789), ("Linux' old VXLAN", 8472), ("Geneve", 6081)] {
        for (source, to) in [(own4, topology.node.v4()), (own6, topology.node.v6())] {
            let ends = ends(source, to);
            let packet = packet::udp(ends, (40_000, port), &[8, 0, 0, 0, 0, 0, 1, 0]);
            attack(what, "tunnel", format!("udp dport {port}"), ends, packet);
        }
    }

    for (what, source) in [("UDP between link-local addresses", own_ll), ("UDP to a link-local address", own6)] {
        let ends = ends(source, victim_ll.into());
        let packet = packet::udp(ends, (53, 53), b"around the rules");
        attack(what, "link_local", format!("ip6 saddr {source} udp sport 53"), ends, packet);
    }
    let ping = ends(own_ll, victim_ll.into());
    let packet = packet::icmp(ping, (128, 0), 1, b"around the rules");
    attack("ping between link-local addresses", "link_local", "icmpv6 type echo-request".into(), ping, packet);
    attacks
}

fn nobody_sends_what_is_not_its_own(network: Network) {
    if !lab::ready() {
        return;
    }
    let topology = Topology::new(network, 2);
    topology.pin_neighbours();
    let (node, pod) = (&topology.node.netns, &topology.pods[0]);
    for pair in [[0, 1], [1, 0]] {
        let [from, to] = pair.map(|i| &topology.pods[i]);
        from.netns.ip(&format!("neigh replace {} lladdr {} dev eth0 nud permanent", link_local(to), to.mac));
    }
    let raw = Raw::new(pod);
    let attacks = attacks(&topology);
    for Attack { what, counter, matching, packet, to } in &attacks {
        let witness = Witness::new(node, "pod0", matching);
        node.apply([Watched::removal().as_str()]);
        raw.send(packet, *to);
        raw.barrier(topology.outside.v4());
        wait_until("the barrier", || witness.barrier() == 1);
        assert_eq!(witness.seen(), 1, "{what}: without the table it passes");

        replace(&topology, &devices(&topology));
        raw.send(packet, *to);
        raw.barrier(topology.outside.v4());
        wait_until("the barrier", || witness.barrier() == 2);
        assert_eq!(witness.seen(), 1, "{what}: passed");
        // Kernels chat among themselves, but not with any of these.
        assert!(count(node, own::TABLE, counter) >= 1, "{what}: not counted as {counter}");
    }
    println!("{network:?}: {} kinds of attack", attacks.len());
}

#[test]
fn s9_nobody_sends_what_is_not_its_own_routed() {
    nobody_sends_what_is_not_its_own(Network::Routed);
}

#[test]
fn s9_nobody_sends_what_is_not_its_own_bridged() {
    nobody_sends_what_is_not_its_own(Network::Bridged);
}

/// Frames that only a pod's own kernel can be brought to send.
fn nobody_poses_as_another_on_the_link(network: Network) {
    if !lab::ready() {
        return;
    }
    let topology = Topology::new(network, 2);
    let (node, pod) = (&topology.node.netns, &topology.pods[0]);
    let [stolen4, stolen6] = STOLEN.map(address);
    let own = pod.v4();
    let datagram = |from: IpAddr, to: IpAddr| {
        pod.netns.enter(|| {
            let socket = UdpSocket::bind((from, 0)).unwrap();
            let _ = socket.send_to(b"hello", (to, BARRIER));
        });
    };
    let outside = topology.outside.v4();
    let ip = |commands: &str| pod.netns.ip(commands);
    if network == Network::Routed {
        node.ip(&format!("route add {stolen6} dev pod0"));
    }
    let forget = || ip("neigh flush dev eth0");
    type Act<'a> = Box<dyn Fn() + 'a>;
    // Makes a frame with an honest packet inside a tag of the first four bytes of a packet that is sent.
    let tagged = |ether_type: &'static str| -> Act {
        Box::new(move || {
            pod.netns.apply([format!(
                "table netdev tag {{\nchain tag {{\ntype filter hook egress device \"eth0\" priority 0;\n\
                {ether_type} @ll,112,32 set 0x00070800 @ll,192,16 set 0\n}}\n}}\n"
            )
            .as_str()]);
            let ends = Ends { source: own, destination: outside };
            let inside = packet::udp(ends, (53, 53), b"tagged");
            // As far as the pod's kernel is concerned the packet begins with its tag.
            Raw::new(pod).send(&[&[0x45, 0, 0, 0], &inside[..]].concat(), outside);
            pod.netns.apply(["delete table netdev tag"]);
        })
    };
    let cases: [(&str, &str, String, Act, Act); 8] = [
        (
            "another link address",
            "other_mac",
            format!("ip saddr {own} udp dport {BARRIER}"),
            Box::new(|| {
                ip("link set eth0 address 02:00:00:00:00:fe");
                datagram(own, outside);
            }),
            Box::new(|| ip(&format!("link set eth0 address {}", pod.mac))),
        ),
        (
            "ARP for another's address",
            "other_arp",
            format!("arp saddr ip {stolen4}"),
            Box::new(|| {
                ip(&format!("addr add {stolen4}/32 dev eth0"));
                forget();
                datagram(stolen4, outside);
            }),
            Box::new(|| ip(&format!("addr del {stolen4}/32 dev eth0"))),
        ),
        (
            "duplicate address detection for another's address",
            "other_neighbour",
            "ip6 saddr :: icmpv6 type nd-neighbor-solicit".into(),
            Box::new(|| {
                pod.netns.sysctl("net/ipv6/conf/eth0/accept_dad", "1");
                ip(&format!("addr add {stolen6}/128 dev eth0"));
            }),
            Box::new(|| ip(&format!("addr del {stolen6}/128 dev eth0"))),
        ),
        (
            "an answer for another's address",
            // It comes from that address.
            "other_address",
            "icmpv6 type nd-neighbor-advert".into(),
            Box::new(|| {
                ip(&format!("addr add {stolen6}/128 dev eth0 nodad"));
                // The node asks who has it.
                node.enter(|| UdpSocket::bind("[::]:0").unwrap().send_to(b"hello", (stolen6, BARRIER)).unwrap());
            }),
            Box::new(|| {
                ip(&format!("addr del {stolen6}/128 dev eth0"));
                node.ip(&format!("neigh flush to {stolen6}"));
            }),
        ),
        ("a VLAN tag", "other_protocol", "ether type 8021q".into(), tagged("@ll,96,16 set 0x8100"), Box::new(|| ())),
        (
            "a provider's VLAN tag",
            "other_protocol",
            "ether type 0x88a8".into(),
            tagged("@ll,96,16 set 0x88a8"),
            Box::new(|| ()),
        ),
        ("PPPoE", "other_protocol", "ether type 0x8864".into(), tagged("@ll,96,16 set 0x8864"), Box::new(|| ())),
        ("LLC", "other_protocol", "ether type 0x0040".into(), tagged("@ll,96,16 set 0x0040"), Box::new(|| ())),
    ];
    let barrier = |witness: &Witness| {
        let before = witness.barrier();
        wait_until("the barrier", || {
            // The first ones may go while neighbours are being found.
            datagram(own, outside);
            witness.barrier() > before
        });
    };
    for (what, counter, matching, act, undo) in &cases {
        node.apply([Watched::removal().as_str()]);
        let witness = Witness::new(node, "pod0", matching);
        act();
        wait_until(&format!("{what}, without the table"), || witness.seen() > 0);
        undo();

        replace(&topology, &devices(&topology));
        barrier(&witness);
        let witness = Witness::new(
            node,
            "pod0",
            if *counter == "other_mac" { "ether saddr 02:00:00:00:00:fe" } else { matching },
        );
        act();
        wait_until(&format!("{what}, counted"), || count(node, own::TABLE, counter) > 0);
        undo();
        barrier(&witness);
        assert_eq!(witness.seen(), 0, "{what}: passed");
    }
}

#[test]
fn s9_nobody_poses_as_another_on_the_link_routed() {
    nobody_poses_as_another_on_the_link(Network::Routed);
}

#[test]
fn s9_nobody_poses_as_another_on_the_link_bridged() {
    nobody_poses_as_another_on_the_link(Network::Bridged);
}

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
    let mut random = support::random::Random::new(support::random::seed());
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
