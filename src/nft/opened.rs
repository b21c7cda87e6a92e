//! Reads the connections that [`usage`](super::usage) has counted, straight from the kernel.
//!
//! Owns: one netlink question, and what its answer means. Not by `nft`: for a full set it takes seconds and 200 MB, and sets are
//! read all the time.

use super::notification::{FAMILY_HEADER, attributes};
use super::question::{Questions, attribute, message, one};
use super::usage::{Epoch, LIFETIME, TABLE, set};
use crate::policy::{Connection, Family, L4, Transport};
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const GET_ELEMENTS: u16 = 10 << 8 | 13;
const NEW_ELEMENTS: u16 = 10 << 8 | 12;
/// Flags of a question whose answer is a list.
const LIST: u16 = 0x301;
/// The family `inet`.
const INET: u8 = 1;
/// Attributes of a list of elements.
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
/// Attributes of an element.
const KEY: u16 = 1;
const EXPIRATION: u16 = 5;
const EXPRESSION: u16 = 7;
/// Of a key.
const VALUE: u16 = 1;
/// Of an expression, and of a counter.
const DATA: u16 = 2;
const PACKETS: u16 = 2;

/// Connections that are the same to rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opened {
    /// Who opened them.
    pub source: IpAddr,
    /// Whom to, behind all translation of addresses.
    pub destination: IpAddr,
    /// The protocol's number.
    pub protocol: u8,
    /// The port there, or the type and code of ICMP; 0 with other protocols.
    pub number: u16,
}

/// How often, and when last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// So many connections.
    pub connections: u64,
    /// How long ago the last one was opened.
    pub ago: Duration,
}

impl Opened {
    /// As rules see them.
    pub fn connection(&self) -> Connection {
        let Self { source, destination, protocol, number } = *self;
        let [type_, code] = number.to_be_bytes();
        let l4 = match (Transport::of_number(protocol), protocol, Family::of(source)) {
            (Some(transport), ..) => L4::Ports(transport, number),
            (None, 1, Family::V4) | (None, 58, Family::V6) => L4::Icmp(type_, code),
            (None, ..) => L4::Other,
        };
        Connection { source, destination, l4 }
    }

    /// From the key of an element: each part of it begins at a multiple of four.
    fn read(key: &[u8]) -> Option<Self> {
        let (source, destination, rest) = if key.len() == 16 {
            let address = |at| Some(Ipv4Addr::from(<[u8; 4]>::try_from(key.get(at..at + 4)?).ok()?).into());
            (address(0)?, address(4)?, &key[8..])
        } else {
            let address = |at| Some(Ipv6Addr::from(<[u8; 16]>::try_from(key.get(at..at + 16)?).ok()?).into());
            (address(0)?, address(16)?, key.get(32..)?)
        };
        let number = u16::from_be_bytes(rest.get(4..6)?.try_into().ok()?);
        Some(Self { source, destination, protocol: *rest.first()?, number })
    }
}

/// What was counted in an epoch. `None`: there are no such sets. What is being added to meanwhile may be missing, or be there
/// twice.
pub fn read(epoch: Epoch) -> io::Result<Option<Vec<(Opened, Count)>>> {
    let mut counted = Vec::new();
    let mut questions = Questions::open()?;
    for family in Family::ALL {
        match questions.list(&question(&set(family, epoch)), NEW_ELEMENTS, |body| counted.extend(elements(body))) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(counted))
}

fn question(set: &str) -> Vec<u8> {
    let table = TABLE.split(' ').next_back().unwrap_or_default();
    // With the zero byte that ends it.
    let names =
        [(LIST_TABLE, table), (LIST_SET, set)].map(|(kind, name)| attribute(kind, &[name.as_bytes(), &[0]].concat()));
    message(GET_ELEMENTS, LIST, [INET, 0, 0, 0], &names.concat())
}

/// The elements in one piece of the answer. What is not as expected is left out.
fn elements(body: &[u8]) -> impl Iterator<Item = (Opened, Count)> {
    let lists = attributes(body.get(FAMILY_HEADER..).unwrap_or_default());
    let elements = lists.filter(|(kind, _)| *kind == LIST_ELEMENTS).flat_map(|(_, list)| attributes(list));
    elements.filter_map(|(_, element)| {
        let (mut opened, mut connections, mut left) = (None, None, LIFETIME);
        for (kind, value) in attributes(element) {
            match kind {
                KEY => opened = one(value, VALUE).and_then(Opened::read),
                EXPIRATION => left = Duration::from_millis(number(value)?),
                EXPRESSION => connections = one(one(value, DATA)?, PACKETS).and_then(number),
                _ => {}
            }
        }
        Some((opened?, Count { connections: connections?, ago: LIFETIME.saturating_sub(left) }))
    })
}

fn number(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_by_their_parts() {
        let v4 = [&[10, 0, 0, 1, 10, 0, 0, 2, 6, 0, 0, 0][..], &443u16.to_be_bytes(), &[0, 0]].concat();
        let opened = Opened::read(&v4).unwrap();
        assert_eq!((opened.source.to_string(), opened.destination.to_string()), ("10.0.0.1".into(), "10.0.0.2".into()));
        assert_eq!(opened.connection().l4, L4::Ports(Transport::Tcp, 443));
        let v6 = [&[0; 15][..], &[1], &[0; 15], &[2], &[58, 0, 0, 0, 128, 0, 0, 0]].concat();
        let opened = Opened::read(&v6).unwrap();
        assert_eq!((opened.source.to_string(), opened.destination.to_string()), ("::1".into(), "::2".into()));
        assert_eq!(opened.connection().l4, L4::Icmp(128, 0));
        assert_eq!(Opened { protocol: 47, number: 0, ..opened }.connection().l4, L4::Other);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = elements(&bytes).count();
            let _ = Opened::read(&bytes);
        }
    }
}
