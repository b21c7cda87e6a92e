//! What the kernel tells of packets that were denied: bytes in, connections out; and what it has to be asked for that.
//!
//! PURE. A packet comes with its headers and with a prefix, the one of the rule that told of it. The headers of a reply are
//! turned round: what is reported is the connection, as everywhere.

use super::notification::{CutOff, FAMILY_HEADER, HEADER, REQUEST, attributes, readable, text, u16_at, u32_at};
use super::question::{attribute, message};
use super::skeleton::{LOG_EGRESS, LOG_INGRESS, LOG_REPLY};
use crate::policy::{Connection, Direction, L4, Transport};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The high byte of the type.
const ULOG: u8 = 4;
/// The low byte: a packet.
const PACKET: u8 = 0;
/// The low byte: what is wanted, and how.
const CONFIG: u8 = 1;
/// The type of an answer to a request, good or bad.
const ERROR: u16 = 2;
/// Flag of a request: it is to be answered.
const ACK: u16 = 4;

const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Counts what the kernel told, or tried to.
    pub sequence: Option<u32>,
    /// What it says, if that can be read.
    pub told: Option<Told>,
}

/// What a packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which end denies it.
    pub direction: Direction,
    /// What it belongs to.
    pub connection: Connection,
    /// The source's port, where there are ports.
    pub source_port: Option<u16>,
    /// It is not the first of its connection: that had come to be before it was denied.
    pub established: bool,
}

/// The packets of one datagram.
pub fn packets(datagram: &[u8]) -> impl Iterator<Item = Result<Packet, CutOff>> {
    readable(datagram, packet)
}

fn packet(message: &[u8]) -> Option<Packet> {
    if u16_at(message, 4)?.to_be_bytes() != [ULOG, PACKET] {
        return None;
    }
    let (mut prefix, mut payload, mut sequence) = (None, None, None);
    for (kind, value) in attributes(message.get(HEADER + FAMILY_HEADER..)?) {
        match kind {
            PREFIX => prefix = std::str::from_utf8(text(value)).ok(),
            PAYLOAD => payload = Some(value),
            SEQUENCE => sequence = value.try_into().ok().map(u32::from_be_bytes),
            _ => {}
        }
    }
    Some(Packet { sequence, told: prefix.zip(payload).and_then(|(prefix, payload)| read(prefix, payload)) })
}

fn read(prefix: &str, packet: &[u8]) -> Option<Told> {
    let (direction, rest) = match prefix {
        prefix if prefix.starts_with(LOG_INGRESS) => (Direction::Ingress, &prefix[LOG_INGRESS.len()..]),
        prefix if prefix.starts_with(LOG_EGRESS) => (Direction::Egress, &prefix[LOG_EGRESS.len()..]),
        _ => return None,
    };
    let header = Header::read(packet)?;
    let (connection, source_port, established) = match rest {
        "" => header.as_it_is(),
        LOG_REPLY => header.turned_round(),
        _ => return None,
    }?;
    Some(Told { direction, connection, source_port, established })
}

/// Who sends what to whom.
struct Header<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// What comes behind it.
    carried: &'a [u8],
}

impl<'a> Header<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
                let length = usize::from(packet[0] & 15) * 4;
                // A later fragment has no ports; those that are tracked are put together first.
                let is_first = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff == 0;
                let carried = packet.get(length..).filter(|_| is_first).unwrap_or_default();
                let (source, destination) = (address(12)?.into(), address(16)?.into());
                Some(Self { source, destination, protocol: *packet.get(9)?, carried })
            }
            6 => {
                let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
                let (protocol, carried) = behind_extensions(*packet.get(6)?, packet.get(40..)?);
                Some(Self { source: address(8)?.into(), destination: address(24)?.into(), protocol, carried })
            }
            _ => None,
        }
    }

    /// The connection, if it is one of its packets on its way from source to destination.
    fn as_it_is(&self) -> Option<(Connection, Option<u16>, bool)> {
        let Self { source, destination, .. } = *self;
        let (l4, port) = match (self.protocol, self.carried) {
            (ICMP | ICMPV6, [type_, code, ..]) => (L4::Icmp(*type_, *code), None),
            _ => match (self.transport(), self.ports()) {
                (Some(transport), Some((from, to))) => (L4::Ports(transport, to), Some(from)),
                _ => (L4::Other, None),
            },
        };
        // A TCP connection begins with SYN, alone.
        let established = self.protocol == TCP && self.carried.get(13).is_some_and(|flags| flags & 0x17 != 0x02);
        is_conversation(self.protocol, l4).then_some((Connection { source, destination, l4 }, port, established))
    }

    /// The connection, if it is one of its replies.
    fn turned_round(&self) -> Option<(Connection, Option<u16>, bool)> {
        let (source, destination) = (self.destination, self.source);
        let (l4, port) = match (self.protocol, self.carried) {
            (ICMP | ICMPV6, [type_, code, ..]) => (L4::Icmp(asked_by(self.protocol, *type_)?, *code), None),
            _ => match (self.transport(), self.ports()) {
                (Some(transport), Some((from, to))) => (L4::Ports(transport, from), Some(to)),
                _ => (L4::Other, None),
            },
        };
        Some((Connection { source, destination, l4 }, port, true))
    }

    fn transport(&self) -> Option<Transport> {
        Transport::of_number(self.protocol)
    }

    fn ports(&self) -> Option<(u16, u16)> {
        match self.carried {
            [a, b, c, d, ..] => Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))),
            _ => None,
        }
    }
}

/// The protocol behind the headers that IPv6 may put between, and what it carries.
fn behind_extensions(mut protocol: u8, mut rest: &[u8]) -> (u8, &[u8]) {
    const FRAGMENT: u8 = 44;
    // Hop by hop, routing, destination.
    while let (0 | 43 | 60 | FRAGMENT, [next, length, ..]) = (protocol, rest) {
        let length = if protocol == FRAGMENT { 8 } else { (usize::from(*length) + 1) * 8 };
        (protocol, rest) = (*next, rest.get(length..).unwrap_or_default());
    }
    (protocol, rest)
}

/// Whether ICMP is of a conversation of its own. Redirects, of which no rule speaks, are about those of others.
fn is_conversation(protocol: u8, l4: L4) -> bool {
    !matches!((protocol, l4), (ICMP, L4::Icmp(3..=5 | 11 | 12, _)) | (ICMPV6, L4::Icmp(1..=4 | 137, _)))
}

/// The type of the request that is answered by this type.
fn asked_by(protocol: u8, type_: u8) -> Option<u8> {
    match (protocol, type_) {
        (ICMP, 0) => Some(8),
        (ICMP, 14 | 16 | 18) | (ICMPV6, 129 | 140) => Some(type_ - 1),
        _ => None,
    }
}

/// What to ask so that the kernel tells this socket of a group's packets, one request after the other.
pub fn requests(group: u16) -> Vec<Vec<u8>> {
    const COMMAND: u16 = 1;
    const MODE: u16 = 2;
    const TIMEOUT: u16 = 4;
    const THRESHOLD: u16 = 5;
    const FLAGS: u16 = 6;
    /// As much as the rule says, or this: the headers.
    const COPY: u32 = 128;
    const COPY_PACKET: u8 = 2;
    /// In hundredths of a second: nobody waits longer for a packet …
    const SOON: u32 = 10;
    /// … and so many come together.
    const TOGETHER: u32 = 32;
    const NUMBERED: u16 = 1;
    let [a, b, c, d] = COPY.to_be_bytes();
    let settings: [&[(u16, &[u8])]; 2] = [
        &[(COMMAND, &[1])],
        &[
            (MODE, &[a, b, c, d, COPY_PACKET, 0]),
            (TIMEOUT, &SOON.to_be_bytes()),
            (THRESHOLD, &TOGETHER.to_be_bytes()),
            (FLAGS, &NUMBERED.to_be_bytes()),
        ],
    ];
    let [high, low] = group.to_be_bytes();
    let request = |attributes: &[(u16, &[u8])]| {
        let body: Vec<u8> = attributes.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect();
        message(u16::from_be_bytes([ULOG, CONFIG]), REQUEST | ACK, [0, 0, high, low], &body)
    };
    settings.into_iter().map(request).collect()
}

/// The number of an error, 0 for none, if this is an answer to a request.
pub fn answer(datagram: &[u8]) -> Option<i32> {
    if u16_at(datagram, 4)? != ERROR {
        return None;
    }
    Some(u32_at(datagram, HEADER)?.cast_signed().wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::super::skeleton::LOG_GROUP;
    use super::*;

    const UDP: u8 = 17;

    /// A message as kernel 6.18 sends it: of some attributes that are not read, and these.
    fn message(prefix: &str, payload: &[u8], sequence: u32) -> Vec<u8> {
        let mut body = vec![2, 0];
        body.extend(LOG_GROUP.to_be_bytes());
        let name = format!("{prefix}\0");
        let header: &[u8] = &[0x08, 0x00, 0x01, 0x00];
        for (kind, value) in
            [(1, header), (PREFIX, name.as_bytes()), (PAYLOAD, payload), (SEQUENCE, &sequence.to_be_bytes())]
        {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(u16::from_be_bytes([ULOG, PACKET]).to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(body);
        message
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    fn only(datagram: &[u8]) -> Option<Told> {
        let all: Vec<_> = packets(datagram).collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].unwrap().told
    }

    fn said(prefix: &str, payload: &[u8]) -> String {
        let Some(Told { direction, connection, source_port, established }) = only(&message(prefix, payload, 1)) else {
            return "nothing".to_owned();
        };
        let Connection { source, destination, l4 } = connection;
        format!("{direction:?} {source} {source_port:?} {destination} {l4:?} {established}")
    }

    /// Two UDP datagrams to port 53, as kernel 6.18 told of them in one datagram, by the rules of an earlier trial.
    #[cfg(target_endian = "little")]
    const RECORDED: &str = "\
        b400000000040000000000000000000002001455080001000800020016000a0072696e6766656e636520696e677265737300\
        0000080004000000000208000500000000031000080000060000fa8ab0383c61000006000f000001000006001100000e0000\
        12001000ee02df7b7d60fa8ab0383c610800000014000300000000006b07cbc300000000000e6a4e2800090045000024f38d\
        40003f1131260a0901020a090202e6440035001017377878787878787878c80000000004000000000000000000000a001455\
        0800010086dd020016000a0072696e6766656e636520696e6772657373000000080004000000000208000500000000031000\
        080000060000fa8ab0383c61000006000f000001000006001100000e000012001000ee02df7b7d60fa8ab0383c6186dd0000\
        14000300000000006b07cbc300000000000e6a893c0009006000dfe20010113ffd090001000000000000000000000002fd09\
        0002000000000000000000000002a2f800350010fa3b78787878787878781400000003000000000000000000000000001455";

    #[cfg(target_endian = "little")]
    #[test]
    fn what_was_recorded_is_read() {
        let recorded = bytes(RECORDED);
        let told: Vec<Told> = packets(&recorded).map(|packet| packet.unwrap().told.unwrap()).collect();
        let connection = |source: &str, destination: &str| Connection {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            l4: L4::Ports(Transport::Udp, 53),
        };
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].connection, connection("10.9.1.2", "10.9.2.2"));
        assert_eq!(told[1].connection, connection("fd09:1::2", "fd09:2::2"));
        assert_eq!((told[0].source_port, told[0].direction), (Some(58_948), Direction::Ingress));
        for length in 1..recorded.len() {
            // It says so, or it is whole up to there; and never panics.
            let _ = packets(&recorded[..length]).collect::<Vec<_>>();
        }
    }

    /// IPv4 from 10.0.0.1 to 10.0.0.2, or IPv6 from fd00::1 to fd00::2.
    fn packet_of(v6: bool, protocol: u8, carried: &[u8]) -> Vec<u8> {
        let mut packet = if v6 {
            let mut header = bytes("60000000000000400000000000000000");
            header[6] = protocol;
            header[4..6].copy_from_slice(&(carried.len() as u16).to_be_bytes());
            header.truncate(8);
            header.extend(bytes("fd000000000000000000000000000001fd000000000000000000000000000002"));
            header
        } else {
            let mut header = bytes("45000000000040004000000000000000");
            header[9] = protocol;
            header.truncate(12);
            header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            header
        };
        packet.extend(carried);
        packet
    }

    #[test]
    fn a_reply_is_reported_as_its_connection() {
        let mut tcp = bytes("1b58c350").to_vec();
        tcp.resize(20, 0);
        tcp[13] = 0x18;
        let v4 = packet_of(false, TCP, &tcp);
        let reply = "Ingress 10.0.0.2 Some(50000) 10.0.0.1 Ports(Tcp, 7000) true";
        assert_eq!(said("ringfence ingress reply", &v4), reply);
        assert_eq!(said("ringfence egress", &v4), "Egress 10.0.0.1 Some(7000) 10.0.0.2 Ports(Tcp, 50000) true");
        tcp[13] = 0x02;
        let syn = packet_of(true, TCP, &tcp);
        assert_eq!(said("ringfence egress", &syn), "Egress fd00::1 Some(7000) fd00::2 Ports(Tcp, 50000) false");
        let echo_reply = packet_of(false, ICMP, &[0, 0, 0, 0]);
        assert_eq!(said("ringfence egress reply", &echo_reply), "Egress 10.0.0.2 None 10.0.0.1 Icmp(8, 0) true");
        let echo_reply = packet_of(true, ICMPV6, &[129, 0, 0, 0]);
        assert_eq!(said("ringfence ingress reply", &echo_reply), "Ingress fd00::2 None fd00::1 Icmp(128, 0) true");
    }

    #[test]
    fn what_is_no_connection_or_not_ours_is_not_reported() {
        let redirect = packet_of(false, ICMP, &[5, 1, 0, 0]);
        assert_eq!(said("ringfence ingress", &redirect), "nothing");
        let echo = packet_of(false, ICMP, &[8, 0, 0, 0]);
        assert_eq!(said("somebody else's", &echo), "nothing");
        assert_eq!(said("ringfence ingress, but not quite", &echo), "nothing");
        assert_eq!(said("ringfence ingress", &echo[..19]), "nothing");
        let mut fragment = packet_of(false, UDP, &[0, 53, 0, 53]);
        fragment[7] = 1;
        assert_eq!(said("ringfence egress", &fragment), "Egress 10.0.0.1 None 10.0.0.2 Other false");
    }

    #[test]
    fn extension_headers_are_passed_over() {
        let udp = [0x12, 0x34, 0, 53, 0, 8, 0, 0];
        let hop_by_hop = [&[60, 0, 0, 0, 0, 0, 0, 0], &[UDP, 0, 0, 0, 0, 0, 0, 0], &udp[..]].concat();
        let expected = "Ingress fd00::1 Some(4660) fd00::2 Ports(Udp, 53) false";
        assert_eq!(said("ringfence ingress", &packet_of(true, 0, &hop_by_hop)), expected);
        // One that never ends.
        assert!(said("ringfence ingress", &packet_of(true, 0, &[0; 64])).ends_with("Other false"));
        let gre = packet_of(false, 47, &[0; 8]);
        assert_eq!(said("ringfence ingress", &gre), "Ingress 10.0.0.1 None 10.0.0.2 Other false");
    }

    #[test]
    fn numbers_are_known_of_what_cannot_be_read_too() {
        let both = [message("ringfence ingress", &[], 7), message("ringfence ingress", &[0x45], 8)].concat();
        let all: Vec<_> = packets(&both).map(|packet| packet.unwrap()).collect();
        assert_eq!(all, [7, 8].map(|sequence| Packet { sequence: Some(sequence), told: None }));
        assert_eq!(packets(&both[..both.len() - 1]).last(), Some(Err(CutOff)));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_answers_are_told_from_packets() {
        let error = bytes("24000000020000000000000000000000a1ffffff00000000000000000000000000000000");
        assert_eq!(answer(&error), Some(95));
        assert_eq!(answer(&message("ringfence ingress", &[], 1)), None);
        assert_eq!(answer(&[]), None);
        for request in requests(LOG_GROUP) {
            assert_eq!(request.len(), u32_at(&request, 0).unwrap() as usize);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = packets(&bytes).collect::<Vec<_>>();
            let _ = said("ringfence ingress reply", &bytes);
        }
    }
}
