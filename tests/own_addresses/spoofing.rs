//! What is not a pod's own does not pass, however it is wrapped.

use super::scene::{BARRIER, Raw, STOLEN, Witness, address, count, devices, link_local, replace, wait_until};
use crate::support::lab;
use crate::support::packet::{self, Ends};
use crate::support::topology::{Network, Topology};
use ringfence::nft::Layout;
use ringfence::nft::own::{self, Watched};
use std::net::{IpAddr, Ipv6Addr, UdpSocket};

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
