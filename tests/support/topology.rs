//! A node with pods and a world outside, made of namespaces.
//!
//! ```text
//!   pod 0   pod 1   …        each its own namespace, two families, some with several addresses
//!      \      |              routed: a veth and a host route each; bridged: one bridge, one subnet
//!       node ── outside      the node forwards, and has our table; outside has many addresses
//! ```

use super::lab::Netns;
use std::fmt::Write;
use std::net::IpAddr;

/// How pods reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Through the node's routing table, as the ptp CNI plugin has it.
    Routed,
    /// Through a bridge, with its packets shown to the node's filters.
    Bridged,
}

/// One namespace and where it is found.
pub struct Host {
    /// The namespace.
    pub netns: Netns,
    /// Its addresses, both families.
    pub addresses: Vec<IpAddr>,
    /// One more address of each family, that tests leave unguarded: for what must always arrive.
    pub free: [IpAddr; 2],
    /// Its link address.
    pub mac: String,
}

impl Host {
    /// Its first address of IPv4.
    pub fn v4(&self) -> IpAddr {
        *self.addresses.iter().find(|a| a.is_ipv4()).unwrap()
    }

    /// Its first address of IPv6.
    pub fn v6(&self) -> IpAddr {
        *self.addresses.iter().find(|a| a.is_ipv6()).unwrap()
    }
}

/// A node, its pods, and the world.
pub struct Topology {
    /// The node.
    pub node: Host,
    /// Its pods.
    pub pods: Vec<Host>,
    /// Everyone else.
    pub outside: Host,
    network: Network,
}

/// Outside: neighbours that share long prefixes, and both ends of both address spaces and of their halves.
const OUTSIDE: [&str; 20] = [
    "198.51.100.0",
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.3",
    "198.51.100.4",
    "198.51.100.255",
    "0.0.0.1",
    "126.255.255.255",
    "128.0.0.0",
    "255.255.255.254",
    "2001:db8::",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8::3",
    "2001:db8:0:1::",
    "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
    "1::",
    "7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "8000::",
    "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

const NODE_V4: &str = "10.77.0.1";
const NODE_V6: &str = "fd77::1";

impl Topology {
    /// A node with some pods. Neighbours find each other as anywhere.
    pub fn new(network: Network, pods: usize) -> Self {
        let node = Host {
            netns: Netns::new("node"),
            addresses: addresses([NODE_V4, NODE_V6]),
            free: [address("10.99.0.1"), address("fd99::1")],
            mac: mac(1),
        };
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
        ] {
            node.netns.sysctl(key, value);
        }
        // In a bridged network pods are its ports. In both it has the node's addresses.
        node.netns.ip("link add br0 address 02:00:00:00:00:01 type bridge\nlink set br0 up");
        for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            node.netns.sysctl(key, "1");
        }
        let own = [NODE_V4, NODE_V6].iter().chain(&["10.99.0.1", "fd99::1"]);
        let lengths = match network {
            Network::Routed => ["32", "128", "32", "128"],
            Network::Bridged => ["24", "64", "24", "64"],
        };
        for (own, length) in own.zip(lengths) {
            node.netns.ip(&format!("addr add {own}/{length} dev br0"));
        }

        let outside = Host {
            netns: Netns::new("outside"),
            addresses: addresses(OUTSIDE),
            free: [address("10.99.1.1"), address("fd99:1::1")],
            mac: mac(2),
        };
        let mut topology = Self { node, pods: Vec::new(), outside, network };
        topology.attach(&topology.outside, "out0", Network::Routed);
        topology
            .node
            .netns
            .ip("route add default via 10.99.1.1 dev out0 onlink\nroute add ::/0 via fd99:1::1 dev out0");
        for i in 0..pods {
            topology.add_pod(i);
        }
        topology.quiet();
        topology
    }

    fn add_pod(&mut self, i: usize) {
        let mut own = vec![format!("10.77.0.{}", 4 + 3 * i), format!("fd77::{:x}", 4 + 3 * i)];
        // Every other pod has a second address of each family, next to its first.
        if i % 2 == 1 {
            own.extend([format!("10.77.0.{}", 5 + 3 * i), format!("fd77::{:x}", 5 + 3 * i)]);
        }
        let pod = Host {
            netns: Netns::new(&format!("pod{i}")),
            addresses: addresses(own.iter().map(String::as_str)),
            free: [address(&format!("10.99.0.{}", 4 + i)), address(&format!("fd99::{:x}", 4 + i))],
            mac: mac(4 + i),
        };
        self.attach(&pod, &format!("pod{i}"), self.network);
        self.pods.push(pod);
    }

    /// Plugs a host in, and routes its addresses to it.
    fn attach(&self, host: &Host, device: &str, network: Network) {
        let (node, inside) = (&self.node.netns, &host.netns);
        node.ip(&format!("link add {device} type veth peer name eth0 address {} netns {}", host.mac, inside.name()));
        let (mut outer, mut inner) = (String::new(), String::new());
        match network {
            Network::Routed => {
                let _ = writeln!(outer, "link set {device} address {} up", self.node.mac);
                // IPv6 answers for an address on the device that has it only.
                let _ = writeln!(outer, "addr add {NODE_V6}/128 dev {device}");
            }
            Network::Bridged => {
                let _ = writeln!(outer, "link set {device} master br0 up");
            }
        }
        let _ = writeln!(inner, "link set eth0 up");
        let all: Vec<&IpAddr> = host.addresses.iter().chain(&host.free).collect();
        for own in &all {
            let (bits, subnet) = if own.is_ipv4() { (32, 24) } else { (128, 64) };
            // A deprecated address works, but nobody uses it who does not ask for it.
            let use_by_name = if own.is_ipv6() && host.free.contains(own) { " preferred_lft 0" } else { "" };
            match network {
                Network::Routed => {
                    let _ = writeln!(inner, "addr add {own}/{bits} dev eth0{use_by_name}");
                    let _ = writeln!(outer, "route add {own}/{bits} dev {device}");
                }
                Network::Bridged => {
                    let _ = writeln!(inner, "addr add {own}/{subnet} dev eth0{use_by_name}");
                }
            }
        }
        if network == Network::Routed {
            let _ = writeln!(inner, "route add {NODE_V4}/32 dev eth0\nroute add {NODE_V6}/128 dev eth0");
        }
        let _ = writeln!(inner, "route add default via {NODE_V4}\nroute add ::/0 via {NODE_V6}");
        inside.ip(&inner);
        node.ip(&outer);
        node.sysctl("net/ipv6/conf/all/forwarding", "1");
    }

    /// Every ICMP error is sent, however many there are.
    fn quiet(&self) {
        for host in self.hosts() {
            host.netns.sysctl("net/ipv4/icmp_ratemask", "0");
            host.netns.sysctl("net/ipv6/icmp/ratemask", "");
        }
    }

    /// Everyone's link addresses are known for good, so that packets keep their order from the first one on.
    pub fn pin_neighbours(&self) {
        for (device, host) in self.peers() {
            let mut outer = String::new();
            for own in host.addresses.iter().chain(&host.free) {
                let _ = writeln!(outer, "neigh replace {own} lladdr {} dev {device} nud permanent", host.mac);
            }
            self.node.netns.ip(&outer);
            let mut inner = String::new();
            let bridged = self.network == Network::Bridged && device == "br0";
            let others = bridged.then_some(&self.pods).into_iter().flatten();
            for other in others.chain([&self.node]).filter(|other| other.mac != host.mac) {
                for theirs in other.addresses.iter().chain(&other.free) {
                    let _ = writeln!(inner, "neigh replace {theirs} lladdr {} dev eth0 nud permanent", other.mac);
                }
            }
            host.netns.ip(&inner);
        }
    }

    fn peers(&self) -> impl Iterator<Item = (String, &Host)> {
        let device = |i| match self.network {
            Network::Routed => format!("pod{i}"),
            Network::Bridged => "br0".to_owned(),
        };
        let pods = self.pods.iter().enumerate().map(move |(i, pod)| (device(i), pod));
        pods.chain([("out0".to_owned(), &self.outside)])
    }

    /// Node, outside, and the pods after them.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.node, &self.outside].into_iter().chain(&self.pods)
    }
}

fn mac(i: usize) -> String {
    format!("02:00:00:00:00:{i:02x}")
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses<'a>(list: impl IntoIterator<Item = &'a str>) -> Vec<IpAddr> {
    list.into_iter().map(address).collect()
}
