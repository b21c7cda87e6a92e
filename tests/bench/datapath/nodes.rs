//! The nodes: one for each case, with a client, a guarded server, and connections between them.

use super::load::{self, Flows, Stream};
use super::rules::{self, PORT, Size};
use super::support::scenario::interface;
use super::support::table;
use super::support::topology::{Network, Topology};
use ringfence::nft::{self, Ruleset, usage};
use ringfence::policy::Family;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// The client has so many addresses, so that no lookup is always for the same.
const CLIENTS: u32 = 16;
/// Pods on the node besides the two, guarded too.
const NEIGHBOURS: u32 = 100;

/// What kube-proxy leaves in the way of every packet: connection tracking, and its two hooks.
const KUBE_PROXY: &str = "\
table inet proxy {
	map services { type inet_service : verdict; }
	chain before {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local tcp dport vmap @services
	}
	chain after {
		type nat hook postrouting priority srcnat; policy accept;
		ct status dnat masquerade
	}
}
";

/// What the others do.
const ESTABLISHED_ACCEPT: &str = "\
table inet others {
	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		meta l4proto { tcp, udp } th dport 8443 accept
	}
}
";

/// One thing to measure.
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// The family of all its traffic.
    pub family: Family,
    /// What the node has.
    pub table: Table,
}

/// What a node has in its kernel besides connection tracking.
pub enum Table {
    /// It drops what comes in: nothing but the sender's work is left.
    Stopped,
    /// Nothing else.
    Nothing,
    /// The yardstick.
    EstablishedAccept,
    /// Ours.
    Ringfence {
        /// How much of it.
        size: Size,
        /// Who is guarded besides the neighbours.
        ends: Ends,
        /// Whether there is room for these connections in the verdict cache.
        cached: bool,
        /// Whether connections are counted, as agents have it.
        counted: bool,
    },
}

/// The ends of the connections.
#[derive(Clone, Copy)]
pub enum Ends {
    /// Packets pass that are no concern of ours.
    Neither,
    /// The usual case on a node: the client is on another one.
    Server,
    /// The client is on the same node.
    Both,
}

/// A node ready to be measured.
pub struct Node {
    /// What it is for.
    pub case: &'static Case,
    topology: Topology,
    flows: Flows,
    /// Nothing gets as far as this on a node that drops all.
    beyond: Option<(TcpListener, Stream)>,
    clients: Vec<IpAddr>,
}

/// What one turn cost.
#[derive(Clone, Copy)]
pub struct Turn {
    /// Nanoseconds of processor time for a datagram.
    pub packet: f64,
    /// For a TCP connection, opened and closed.
    pub connection: Option<f64>,
    /// For a thousand bytes of a TCP stream.
    pub kilobyte: Option<f64>,
}

impl Node {
    /// Builds it, opens its connections, and puts the sink behind them.
    pub fn new(case: &'static Case) -> Self {
        let topology = Topology::new(Network::Routed, 2);
        let clients: Vec<IpAddr> = (1..=CLIENTS).map(|i| address(case.family, 0, i)).collect();
        let (bits, all) = if case.family == Family::V4 { (32, "10.200.0.0/16") } else { (128, "fd20::/96") };
        for client in &clients {
            topology.pods[1].netns.ip(&format!("addr add {client}/{bits} dev eth0"));
        }
        let node = &topology.node.netns;
        node.ip(&format!("route add {all} dev pod1"));
        node.apply([KUBE_PROXY]);
        let server = if case.family == Family::V4 { topology.pods[0].v4() } else { topology.pods[0].v6() };
        match &case.table {
            Table::Stopped | Table::Nothing => {}
            Table::EstablishedAccept => node.apply([ESTABLISHED_ACCEPT]),
            Table::Ringfence { size, ends, cached, counted } => {
                let ends_guarded = match ends {
                    Ends::Neither => vec![],
                    Ends::Server => vec![server],
                    Ends::Both => [&[server], &clients[..]].concat(),
                };
                node.apply([nft::full(&ruleset(case.family, *size, server, &ends_guarded, &clients)).as_str()]);
                if !cached {
                    table::fill_cache(node);
                }
                if *counted {
                    let neighbours = (1..=NEIGHBOURS).map(|i| address(case.family, 1, i));
                    let guarded = ends_guarded.iter().copied().chain(neighbours).collect();
                    node.apply([usage::start(1, &guarded, &BTreeSet::new()).as_str()]);
                }
            }
        }

        let server = SocketAddr::new(server, PORT);
        let flows = Flows::open(&topology.pods[1], &clients, &topology.pods[0], server);
        let beyond = (!matches!(case.table, Table::Stopped)).then(|| {
            let listener = topology.pods[0].netns.enter(|| TcpListener::bind(server).unwrap());
            let stream = Stream::open(&topology.pods[1], clients[0], &listener);
            (listener, stream)
        });
        match case.table {
            Table::Stopped => node.apply([sink("pod1").as_str()]),
            _ => topology.pods[0].netns.apply([sink("eth0").as_str()]),
        }
        Self { case, topology, flows, beyond, clients }
    }

    /// Measures each kind of traffic for a moment.
    pub fn turn(&self) -> Turn {
        Turn {
            packet: self.flows.nanoseconds_per_packet(),
            connection: self
                .beyond
                .as_ref()
                .map(|(listener, _)| load::nanoseconds_per_connection(&self.topology.pods[1], &self.clients, listener)),
            kilobyte: self.beyond.as_ref().map(|(_, stream)| stream.nanoseconds_per_kilobyte()),
        }
    }

    /// A price per packet means nothing if packets stayed on the way.
    pub fn assert_that_nothing_was_lost(&self) {
        let end = if matches!(self.case.table, Table::Stopped) { &self.topology.node } else { &self.topology.pods[0] };
        let counter = end.netns.nft(&["list", "counter", "netdev", "sink", "arrived"]);
        let arrived: Option<u64> =
            counter.split_whitespace().skip_while(|word| *word != "packets").nth(1).and_then(|n| n.parse().ok());
        assert_eq!(arrived, Some(self.flows.sent()), "{}", self.case.name);
    }
}

/// Counts datagrams as they reach a device, and drops them there: receivers would cost more than the node does.
fn sink(device: &str) -> String {
    format!(
        "table netdev sink {{\ncounter arrived {{ }}\nchain in {{\ntype filter hook ingress device {device} priority 0;\n\
         meta l4proto udp counter name arrived drop\n}}\n}}\n"
    )
}

fn ruleset(family: Family, size: Size, server: IpAddr, guarded: &[IpAddr], clients: &[IpAddr]) -> Ruleset {
    let profile = nft::compile(&interface(rules::group(size)));
    let neighbours = (1..=NEIGHBOURS).map(|i| address(family, 1, i));
    let guarded = guarded.iter().copied().chain(neighbours);
    Ruleset::new(guarded.map(|address| (address, &profile)), |group| {
        // Outwards the server is the remote, and let in by what lets the client in.
        let ends: Vec<IpAddr> = clients.iter().copied().chain([server]).collect();
        rules::members(size, family, rules::number(group), &ends)
    })
}

fn address(family: Family, subnet: u32, i: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(0x0ac8_0000 + subnet * 256 + i).into(),
        Family::V6 => Ipv6Addr::from_bits((0xfd20 << 112) | u128::from(subnet * 256 + i)).into(),
    }
}
