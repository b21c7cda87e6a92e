//! What the tests have in common: a table for the pods of a topology, and frames made by hand.

use crate::support::lab::Netns;
use crate::support::packet::{self, Ends};
use crate::support::topology::{Host, Topology};
use ringfence::nft::own::{self, Device, DeviceName, Devices, Tunnels};
use rustix::net::{self, AddressFamily, Protocol, SendFlags, SocketFlags, SocketType};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(20);
/// Nobody's address, in the pods' own networks.
pub const STOLEN: [&str; 2] = ["10.77.0.250", "fd77::250"];
/// To this port goes what is honest and only tells that all before it has arrived.
pub const BARRIER: u16 = 9;

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn name(i: usize) -> DeviceName {
    format!("pod{i}").parse().unwrap()
}

pub fn device(pod: &Host) -> Device {
    let addresses = pod.addresses.iter().chain(&pod.free).copied().collect();
    Device { index: 1, addresses, mac: Some(pod.mac.parse().unwrap()) }
}

pub fn devices(topology: &Topology) -> Devices {
    topology.pods.iter().enumerate().map(|(i, pod)| (name(i), device(pod))).collect()
}

/// The link-local address of a pod, which its kernel makes of its link address.
pub fn link_local(pod: &Host) -> Ipv6Addr {
    let last = u16::from_str_radix(pod.mac.rsplit(':').next().unwrap(), 16).unwrap();
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x00ff, 0xfe00, last)
}

pub fn replace(topology: &Topology, devices: &Devices) {
    replace_in(&topology.node.netns, devices);
}

pub fn replace_in(node: &Netns, devices: &Devices) {
    node.apply(own::replacement(&Tunnels::default(), devices).scripts());
}

pub fn wait_until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Counts of a named counter of a table.
pub fn count(netns: &Netns, table: &str, counter: &str) -> u64 {
    let (family, table) = table.split_once(' ').unwrap();
    let text = netns.nft(&["list", "counter", family, table, counter]);
    let mut words = text.split_whitespace();
    words.find(|word| *word == "packets").unwrap();
    words.next().unwrap().parse().unwrap()
}

/// Listens behind our table at one device.
pub struct Witness<'a>(&'a Netns);

impl<'a> Witness<'a> {
    const TABLE: &'static str = "netdev witness";

    /// Counts frames that match, and those of the barrier.
    pub fn new(node: &'a Netns, device: &str, matching: &str) -> Self {
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

    pub fn seen(&self) -> u64 {
        count(self.0, Self::TABLE, "seen")
    }

    pub fn barrier(&self) -> u64 {
        count(self.0, Self::TABLE, "barrier")
    }
}

/// Sends whole packets from a pod, whatever they say.
pub struct Raw<'a> {
    pod: &'a Host,
    sockets: [OwnedFd; 2],
    scope: u32,
}

impl<'a> Raw<'a> {
    pub fn new(pod: &'a Host) -> Self {
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

    pub fn send(&self, packet: &[u8], to: IpAddr) {
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
    pub fn barrier(&self, to: IpAddr) {
        let ends = Ends { source: self.pod.v4(), destination: to };
        self.send(&packet::udp(ends, (BARRIER, BARRIER), b"barrier"), to);
    }
}
