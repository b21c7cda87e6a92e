//! Sends packets between hosts and knows for certain which arrived.
//!
//! All packets leave from one thread on one processor, so they keep their order through every queue between the namespaces.
//! A round ends with packets that nothing may stop, over the longest way and back: when those are answered, what has not
//! arrived never will. "Denied" is therefore never concluded from time.

use super::packet::{self, Ends, Segment};
use super::topology::{Host, Topology};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const MARK: [u8; 8] = *b"ringfenc";
const PAYLOAD: u32 = 12;
/// The longest that a machine may be busy with something else.
const PATIENCE: Duration = Duration::from_secs(20);
/// At most so many packets are under way at once: a device's queue holds a thousand.
const ROUND: usize = 150;

/// A packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Where from and where to.
    pub ends: Ends,
    /// What it carries.
    pub kind: Kind,
}

/// What a packet is the first of, or just another one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP SYN, between these ports. The far end, which listens to nothing, answers with a reset.
    Tcp(u16, u16),
    /// A UDP datagram, between these ports. The far end answers with an ICMP error.
    Udp(u16, u16),
    /// An SCTP INIT, between these ports. Nobody answers.
    Sctp(u16, u16),
    /// An ICMP message: type and code, and its identifier. The far end answers echo requests.
    Icmp((u8, u8), u16),
    /// Any other protocol. Nobody answers.
    Other(u8),
    /// A TCP segment from the middle of a connection, between these ports.
    TcpMiddle(u16, u16),
    /// An SCTP heartbeat from the middle of an association, between these ports.
    SctpMiddle(u16, u16),
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// It reached its destination.
    pub arrived: bool,
    /// The answer came back.
    pub answered: bool,
}

impl Probe {
    /// A packet of this kind.
    pub fn new(source: IpAddr, destination: IpAddr, kind: Kind) -> Self {
        Self { ends: Ends { source, destination }, kind }
    }

    /// Whether every kernel at the far end answers. To some ICMP messages some do.
    pub fn must_be_answered(&self) -> bool {
        match self.kind {
            Kind::Tcp(..) | Kind::Udp(..) => true,
            Kind::Icmp(icmp, _) => icmp == echo(self.ends.source),
            Kind::Sctp(..) | Kind::Other(_) | Kind::TcpMiddle(..) | Kind::SctpMiddle(..) => false,
        }
    }

    fn packet(&self, id: u32) -> Vec<u8> {
        let payload = [&MARK[..], &id.to_be_bytes()].concat();
        match self.kind {
            Kind::Tcp(from, to) => {
                let segment = Segment { sequence: id, acknowledged: 0, flags: packet::SYN };
                packet::tcp(self.ends, (from, to), segment, &payload)
            }
            Kind::Udp(from, to) => packet::udp(self.ends, (from, to), &payload),
            Kind::Sctp(from, to) => packet::sctp_init(self.ends, (from, to), &payload),
            Kind::Icmp(icmp, identifier) => packet::icmp(self.ends, icmp, identifier, &payload),
            Kind::Other(protocol) => packet::other(self.ends, protocol, &payload),
            Kind::TcpMiddle(from, to) => {
                let segment = Segment { sequence: 1, acknowledged: 1, flags: packet::ACK };
                packet::tcp(self.ends, (from, to), segment, &payload)
            }
            Kind::SctpMiddle(from, to) => packet::sctp(self.ends, (from, to), 1, &packet::heartbeat(&payload)),
        }
    }
}

/// Type and code of an echo request in the family of an address.
pub fn echo(address: IpAddr) -> (u8, u8) {
    if address.is_ipv4() { (8, 0) } else { (128, 0) }
}

/// The sockets of all hosts of a topology.
pub struct Wire {
    stations: Vec<Station>,
    next: u32,
}

struct Station {
    name: String,
    addresses: BTreeSet<IpAddr>,
    free: [IpAddr; 2],
    send: [OwnedFd; 2],
    receive: Vec<(u8, bool, OwnedFd)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrived(u32),
    Answered(u32),
}

impl Wire {
    /// Opens the sockets, and proves that every host reaches every other while nothing stops it.
    pub fn new(topology: &Topology) -> Self {
        let mut cpu = CpuSet::new();
        cpu.set(rustix::thread::sched_getcpu());
        sched_setaffinity(None, &cpu).unwrap();
        let mut wire = Self { stations: topology.hosts().map(Station::new).collect(), next: 1 };
        wire.control();
        wire
    }

    fn control(&mut self) {
        let mut probes = Vec::new();
        for (i, from) in self.stations.iter().enumerate() {
            for to in self.stations.iter().skip(i + 1) {
                for (source, destination) in pairs(from, to) {
                    probes.push(Probe { ends: Ends { source, destination }, kind: Kind::Icmp(echo(source), 1) });
                }
            }
        }
        let outcomes = self.send(&probes);
        for (probe, outcome) in probes.iter().zip(outcomes) {
            assert_eq!(outcome, Outcome { arrived: true, answered: true }, "without any table: {probe:?}");
        }
    }

    /// Sends packets, and tells of each what became of it.
    pub fn send(&mut self, probes: &[Probe]) -> Vec<Outcome> {
        probes.chunks(ROUND).flat_map(|probes| self.round(probes)).collect()
    }

    /// Waits until everything that was sent before, on this thread, has arrived or never will.
    pub fn settle(&mut self) {
        self.round(&[]);
    }

    /// Whether a packet arrived, and was answered if every kernel answers it.
    pub fn passes(&mut self, probe: Probe) -> bool {
        let outcome = self.send(&[probe])[0];
        assert!(!probe.must_be_answered() || outcome.arrived == outcome.answered, "{probe:?}: {outcome:?}");
        outcome.arrived
    }

    fn round(&mut self, probes: &[Probe]) -> Vec<Outcome> {
        let first = self.next;
        for probe in probes {
            self.emit(probe);
        }
        let last = self.next;
        // Every host to the next one, the last to the first: each is a sender and a receiver.
        let ring: Vec<Probe> = (0..self.stations.len())
            .flat_map(|i| {
                let (from, to) = (&self.stations[i], &self.stations[(i + 1) % self.stations.len()]);
                [0, 1].map(|family| {
                    let ends = Ends { source: from.free[family], destination: to.free[family] };
                    Probe { ends, kind: Kind::Icmp(echo(ends.source), 1) }
                })
            })
            .collect();
        for probe in &ring {
            self.emit(probe);
        }
        let mut events = BTreeSet::new();
        let deadline = Instant::now() + PATIENCE;
        while !(last..self.next).all(|id| events.contains(&Event::Answered(id))) {
            assert!(Instant::now() < deadline, "packets that nothing may stop did not arrive");
            self.receive(&mut events, Duration::from_millis(100));
        }
        // Whatever came before them is in some socket by now.
        self.receive(&mut events, Duration::ZERO);
        (first..last)
            .map(|id| Outcome {
                arrived: events.contains(&Event::Arrived(id)),
                answered: events.contains(&Event::Answered(id)),
            })
            .collect()
    }

    fn emit(&mut self, probe: &Probe) {
        let id = self.next;
        self.next += 1;
        let Ends { source, destination } = probe.ends;
        let station = self.at(source);
        let socket = &station.send[usize::from(source.is_ipv6())];
        // IPv6 wants no port where there is none to have.
        let to = SocketAddr::new(destination, 0);
        net::sendto(socket, &probe.packet(id), SendFlags::empty(), &to)
            .unwrap_or_else(|error| panic!("{} cannot send {probe:?}: {error}", station.name));
    }

    fn at(&self, address: IpAddr) -> &Station {
        self.stations.iter().find(|s| s.addresses.contains(&address)).unwrap_or_else(|| panic!("nobody has {address}"))
    }

    /// Reads every socket until it is empty, waiting for the first packet.
    fn receive(&self, events: &mut BTreeSet<Event>, wait: Duration) {
        let sockets: Vec<&(u8, bool, OwnedFd)> = self.stations.iter().flat_map(|s| &s.receive).collect();
        let mut polled: Vec<PollFd> = sockets.iter().map(|(_, _, fd)| PollFd::new(fd, PollFlags::IN)).collect();
        let wait = Timespec::try_from(wait).unwrap();
        poll(&mut polled, Some(&wait)).unwrap();
        let mut buffer = [0; 2048];
        for ((protocol, v6, socket), _) in
            sockets.iter().zip(&polled).filter(|(_, polled)| polled.revents().contains(PollFlags::IN))
        {
            loop {
                match net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                    Ok((length, _)) => {
                        let packet = &buffer[..length];
                        // IPv4 shows its header, IPv6 does not.
                        let l4 = if *v6 { packet } else { &packet[usize::from(packet[0] & 15) * 4..] };
                        events.extend(event(*protocol, l4));
                    }
                    Err(Errno::AGAIN) => break,
                    Err(error) => panic!("cannot receive: {error}"),
                }
            }
        }
    }
}

impl Station {
    fn new(host: &Host) -> Self {
        let open = |v6: bool, protocol: u8| {
            let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
            let protocol = NonZeroU32::new(u32::from(protocol)).map(Protocol::from_raw);
            let socket = net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap();
            net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
            socket
        };
        const RAW: u8 = 255;
        let icmp = |v6| if v6 { packet::ICMPV6 } else { packet::ICMP };
        let (send, receive) = host.netns.enter(|| {
            let receive = [false, true].into_iter().flat_map(|v6| {
                [icmp(v6), packet::TCP, packet::UDP, packet::SCTP, packet::GRE, packet::EXPERIMENT]
                    .map(|protocol| (protocol, v6, open(v6, protocol)))
            });
            ([open(false, RAW), open(true, RAW)], receive.collect())
        });
        let addresses = host.addresses.iter().chain(&host.free).copied().collect();
        Self { name: host.netns.name().to_owned(), addresses, free: host.free, send, receive }
    }
}

/// What a received packet says of one of ours.
fn event(protocol: u8, l4: &[u8]) -> Option<Event> {
    match protocol {
        packet::TCP => {
            let flags = *l4.get(13)?;
            if flags & packet::RST == 0 {
                return marked(l4).map(Event::Arrived);
            }
            let acknowledged = u32::from_be_bytes(l4.get(8..12)?.try_into().ok()?);
            // The SYN counts as a byte, and so do the ones it carried.
            Some(Event::Answered(acknowledged.wrapping_sub(1 + PAYLOAD)))
        }
        packet::ICMP => match l4.first()? {
            0 | 3 => marked(l4).map(Event::Answered),
            _ => marked(l4).map(Event::Arrived),
        },
        packet::ICMPV6 => match l4.first()? {
            129 | 1 => marked(l4).map(Event::Answered),
            _ => marked(l4).map(Event::Arrived),
        },
        _ => marked(l4).map(Event::Arrived),
    }
}

fn marked(bytes: &[u8]) -> Option<u32> {
    let at = bytes.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Every address of one host with one of the other, so that each takes part.
fn pairs(from: &Station, to: &Station) -> Vec<(IpAddr, IpAddr)> {
    let mut pairs = Vec::new();
    for v6 in [false, true] {
        let of = |station: &Station| -> Vec<IpAddr> {
            station.addresses.iter().copied().filter(|a| a.is_ipv6() == v6).collect()
        };
        let (from, to) = (of(from), of(to));
        for i in 0..from.len().max(to.len()) {
            pairs.push((from[i % from.len()], to[i % to.len()]));
        }
    }
    pairs
}
