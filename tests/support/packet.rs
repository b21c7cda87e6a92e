//! Packets, byte by byte: what sockets cannot send here (SCTP, GRE, the middle of a TCP connection) can be sent all the same.

use std::net::IpAddr;

/// ICMP for IPv4, as a protocol number.
pub const ICMP: u8 = 1;
/// TCP, as a protocol number.
pub const TCP: u8 = 6;
/// UDP, as a protocol number.
pub const UDP: u8 = 17;
/// GRE, as a protocol number.
pub const GRE: u8 = 47;
/// ICMPv6, as a protocol number.
pub const ICMPV6: u8 = 58;
/// SCTP, as a protocol number.
pub const SCTP: u8 = 132;
/// A protocol that nobody knows, kept for experiments.
pub const EXPERIMENT: u8 = 253;

/// TCP flag.
pub const FIN: u8 = 1;
/// TCP flag.
pub const SYN: u8 = 2;
/// TCP flag.
pub const RST: u8 = 4;
/// TCP flag.
pub const ACK: u8 = 16;

/// Where from and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address.
    pub destination: IpAddr,
}

impl Ends {
    /// The way back.
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// The sequence number, acknowledged number and flags of a TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Of the first byte.
    pub sequence: u32,
    /// What is acknowledged.
    pub acknowledged: u32,
    /// `SYN` and the others.
    pub flags: u8,
}

/// A TCP segment.
pub fn tcp(ends: Ends, ports: (u16, u16), segment: Segment, payload: &[u8]) -> Vec<u8> {
    let mut l4 = ports_of(ports);
    l4.extend(segment.sequence.to_be_bytes());
    l4.extend(segment.acknowledged.to_be_bytes());
    l4.extend([0x50, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    l4.extend(payload);
    with_checksum(ends, TCP, l4, 16)
}

/// A UDP datagram.
pub fn udp(ends: Ends, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut l4 = ports_of(ports);
    l4.extend((8 + payload.len() as u16).to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(payload);
    with_checksum(ends, UDP, l4, 6)
}

/// An ICMP message, of the family of the addresses, with an identifier where messages with one have it.
pub fn icmp(ends: Ends, (type_, code): (u8, u8), identifier: u16, payload: &[u8]) -> Vec<u8> {
    let mut l4 = vec![type_, code, 0, 0];
    l4.extend(identifier.to_be_bytes());
    l4.extend([0, 1]);
    l4.extend(payload);
    let protocol = if ends.source.is_ipv4() { ICMP } else { ICMPV6 };
    with_checksum(ends, protocol, l4, 2)
}

/// The first packet of an SCTP association: an INIT chunk. The payload rides in a parameter that receivers skip.
pub fn sctp_init(ends: Ends, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let parameter = 4 + payload.len().next_multiple_of(4);
    let mut chunk = vec![1, 0];
    chunk.extend((20 + parameter as u16).to_be_bytes());
    chunk.extend([0x12, 0x34, 0x56, 0x78, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    chunk.extend([0xff, 0xff]);
    chunk.extend((4 + payload.len() as u16).to_be_bytes());
    chunk.extend(payload);
    chunk.resize(20 + parameter, 0);
    sctp(ends, ports, 0, &chunk)
}

/// An SCTP packet with one chunk.
pub fn sctp(ends: Ends, ports: (u16, u16), tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut l4 = ports_of(ports);
    l4.extend(tag.to_be_bytes());
    l4.extend([0; 4]);
    l4.extend(chunk);
    let sum = crc32c(&l4);
    l4[8..12].copy_from_slice(&sum.to_le_bytes());
    ip(ends, SCTP, &l4)
}

/// An SCTP chunk that asks whether the far end still lives.
pub fn heartbeat(payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut chunk = vec![4, 0];
    chunk.extend(length.to_be_bytes());
    chunk.extend([0, 1]);
    chunk.extend((length - 4).to_be_bytes());
    chunk.extend(payload);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// A packet of a protocol without ports.
pub fn other(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    // Four zero bytes are an empty GRE header with the protocol number left out.
    ip(ends, protocol, &[&[0; 4], payload].concat())
}

fn ports_of((source, destination): (u16, u16)) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

fn ip(ends: Ends, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(40 + l4.len());
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // The kernel fills in the checksum and the identification.
            packet.extend([0x45, 0]);
            packet.extend((20 + l4.len() as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((l4.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => panic!("two families in one packet: {ends:?}"),
    }
    packet.extend(l4);
    packet
}

fn with_checksum(ends: Ends, protocol: u8, mut l4: Vec<u8>, at: usize) -> Vec<u8> {
    let mut summed = Vec::new();
    if protocol != ICMP {
        for address in [ends.source, ends.destination] {
            match address {
                IpAddr::V4(address) => summed.extend(address.octets()),
                IpAddr::V6(address) => summed.extend(address.octets()),
            }
        }
        summed.extend((l4.len() as u32).to_be_bytes());
        summed.extend([0, 0, 0, protocol]);
    }
    summed.extend(&l4);
    let mut sum: u32 =
        summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = match !(sum as u16) {
        // To UDP 0 means "no checksum".
        0 => 0xffff,
        sum => sum,
    };
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    ip(ends, protocol, &l4)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn the_checksum_of_sctp_is_the_standards() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
