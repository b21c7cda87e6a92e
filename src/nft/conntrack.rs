//! TCP connections that this node's conntrack knows: read, and made known to it.
//!
//! Owns: the netlink questions, and what their answers mean. Must not: decide which connections go where.
//!
//! A packet is judged by who began its connection, which only conntrack knows. A node that is told so by the one that saw the
//! beginning judges it like that one: nothing passes that its rules do not allow.

use super::notification::{FAMILY_HEADER, REQUEST, attributes};
use super::question::{Questions, attribute, message, one};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Messages of conntrack: its number is the high byte of the type.
const NEW: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
/// Flag of a question whose answer is a list.
const LIST: u16 = 0x300;
/// Flags of something new: that it came to be is to be said, and if it is there already, that.
const ANSWERED: u16 = 0x4;
const EXCLUSIVE: u16 = 0x600;
const FAMILIES: [u8; 2] = [2, 10];

/// Attributes of an entry.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL: u16 = 4;
const TIMEOUT: u16 = 7;
const TRANSLATION: u16 = 13;
/// Of a tuple.
const ADDRESSES: u16 = 1;
const PORTS: u16 = 2;
/// Of its addresses: source and destination, by family.
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];
/// Of its protocol.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const TCP: u8 = 6;
/// Of the translation of its destination: the first and the last address that will do, by family, and the first and the last port.
const BACKENDS: [[u16; 2]; 2] = [[1, 2], [4, 5]];
const BACKEND_PORTS: u16 = 3;
const PORT_RANGE: [u16; 2] = [1, 2];
/// Of what is known of TCP.
const OF_TCP: u16 = 1;
const STATE: u16 = 1;
const FLAGS: [u16; 2] = [4, 5];
const ESTABLISHED: u8 = 3;
/// Windows are not known, so no packet is out of one.
const LIBERAL: u8 = 0x08;
/// Both ends were heard, and for longer than a handshake: it goes last when the table is full. That it is in the table has to
/// be said as well.
const KNOWN: u32 = 0x2 | 0x4 | 0x8;
/// An attribute that has attributes in it.
const NESTED: u16 = 0x8000;

/// How long a connection is known that nobody uses. Applications that keep one alive do so every two hours, by default.
const LIFETIME: Duration = Duration::from_hours(3);

/// An established TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Established {
    /// Who began it.
    pub source: SocketAddr,
    /// With whom.
    pub destination: SocketAddr,
    /// Who answers in its place, if who began it is here and the node translates: a backend of a Service.
    pub backend: Option<SocketAddr>,
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
}

/// One entry, by what goes each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    original: Tuple,
    reply: Tuple,
}

impl Entry {
    /// As one of these addresses sees it. `None`: it is nobody's of these, or its answers come to an address of this node.
    fn seen_by(&self, addresses: &BTreeSet<IpAddr>) -> Option<Established> {
        let Self { original: Tuple { source, destination }, reply } = *self;
        if addresses.contains(&reply.source.ip()) {
            return Some(Established { source: reply.destination, destination: reply.source, backend: None });
        }
        let backend = Some(reply.source).filter(|backend| *backend != destination);
        let is_its = addresses.contains(&source.ip()) && reply.destination == source;
        is_its.then_some(Established { source, destination, backend })
    }
}

/// The established connections of these addresses.
pub fn established(addresses: &BTreeSet<IpAddr>) -> io::Result<BTreeSet<Established>> {
    let mut found = BTreeSet::new();
    let mut questions = Questions::open()?;
    for family in FAMILIES {
        let question = message(GET, REQUEST | LIST, [family, 0, 0, 0], &[]);
        questions.list(&question, NEW, |body| found.extend(entry(body).and_then(|entry| entry.seen_by(addresses))))?;
    }
    Ok(found)
}

/// Makes connections known that began elsewhere, each whatever becomes of the others. Returns how many were not known before.
pub fn make_known<'a>(connections: impl IntoIterator<Item = &'a Established>) -> io::Result<usize> {
    let mut questions = Questions::open()?;
    let mut made = Ok(0);
    for connection in connections {
        match questions.command(&request(connection)) {
            Ok(()) => made = made.map(|new| new + 1),
            // It goes on here by itself, or another one has its ports by now.
            Err(Errno::EXIST) => {}
            Err(error) => made = Err(error.into()),
        }
    }
    made
}

/// An entry for an established TCP connection.
fn entry(body: &[u8]) -> Option<Entry> {
    let (mut original, mut reply, mut state) = (None, None, None);
    for (kind, value) in attributes(body.get(FAMILY_HEADER..)?) {
        match kind {
            ORIGINAL => original = tuple(value),
            REPLY => reply = tuple(value),
            PROTOCOL => state = one(value, OF_TCP).and_then(|tcp| one(tcp, STATE)).and_then(|state| state.first()),
            _ => {}
        }
    }
    (state == Some(&ESTABLISHED)).then_some(Entry { original: original?, reply: reply? })
}

/// Who sends to whom, by TCP.
fn tuple(value: &[u8]) -> Option<Tuple> {
    let (addresses, ports) = (one(value, ADDRESSES)?, one(value, PORTS)?);
    if one(ports, NUMBER)? != [TCP] {
        return None;
    }
    let port = |kind| Some(u16::from_be_bytes(one(ports, kind)?.try_into().ok()?));
    let address = |kinds: [u16; 2]| {
        kinds.into_iter().find_map(|kind| {
            let value = one(addresses, kind)?;
            let v4 = <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
            v4.or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
        })
    };
    Some(Tuple {
        source: SocketAddr::new(address(SOURCES)?, port(SOURCE_PORT)?),
        destination: SocketAddr::new(address(DESTINATIONS)?, port(DESTINATION_PORT)?),
    })
}

fn request(connection: &Established) -> Vec<u8> {
    let Established { source, destination, backend } = *connection;
    let mut body = attribute(ORIGINAL | NESTED, &tuple_of(Tuple { source, destination }));
    // As if nothing were translated: the kernel makes of it what becomes of the translation.
    body.extend(attribute(REPLY | NESTED, &tuple_of(Tuple { source: destination, destination: source })));
    body.extend(backend.map(|backend| attribute(TRANSLATION | NESTED, &to_backend(backend))).unwrap_or_default());
    body.extend(attribute(STATUS, &KNOWN.to_be_bytes()));
    body.extend(attribute(TIMEOUT, &u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX).to_be_bytes()));
    let mut tcp = attribute(STATE, &[ESTABLISHED]);
    // Which flags, and which of them are to be as they are given.
    FLAGS.iter().for_each(|flags| tcp.extend(attribute(*flags, &[LIBERAL, LIBERAL])));
    body.extend(attribute(PROTOCOL | NESTED, &attribute(OF_TCP | NESTED, &tcp)));
    message(NEW, REQUEST | ANSWERED | EXCLUSIVE, [FAMILIES[usize::from(source.is_ipv6())], 0, 0, 0], &body)
}

fn tuple_of(Tuple { source, destination }: Tuple) -> Vec<u8> {
    let family = usize::from(source.is_ipv6());
    let addresses = [address(SOURCES[family], source.ip()), address(DESTINATIONS[family], destination.ip())].concat();
    let ports = [
        attribute(NUMBER, &[TCP]),
        attribute(SOURCE_PORT, &source.port().to_be_bytes()),
        attribute(DESTINATION_PORT, &destination.port().to_be_bytes()),
    ];
    [attribute(ADDRESSES | NESTED, &addresses), attribute(PORTS | NESTED, &ports.concat())].concat()
}

/// A range of one address and one port.
fn to_backend(backend: SocketAddr) -> Vec<u8> {
    let addresses = BACKENDS[usize::from(backend.is_ipv6())].map(|kind| address(kind, backend.ip()));
    let ports = PORT_RANGE.map(|kind| attribute(kind, &backend.port().to_be_bytes()));
    [addresses.concat(), attribute(BACKEND_PORTS | NESTED, &ports.concat())].concat()
}

fn address(kind: u16, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => attribute(kind, &address.octets()),
        IpAddr::V6(address) => attribute(kind, &address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::notification::messages;
    use super::*;

    fn connection(source: &str, destination: &str) -> Established {
        Established { source: source.parse().unwrap(), destination: destination.parse().unwrap(), backend: None }
    }

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn what_is_asked_for_is_read_as_it_was_meant() {
        for connection in [connection("10.0.0.1:40000", "10.0.0.2:3306"), connection("[fd00::1]:40000", "[fd00::2]:22")]
        {
            let request = request(&connection);
            let (kind, body) = messages(&request).next().unwrap();
            let Entry { original, reply } = entry(body).unwrap();
            let Established { source, destination, backend: _ } = connection;
            assert_eq!((kind, original), (NEW, Tuple { source, destination }));
            assert_eq!(reply, Tuple { source: destination, destination: source });
        }
    }

    #[test]
    fn a_machine_sees_connections_behind_translation() {
        let seen =
            |original: Tuple, reply: Tuple| Entry { original, reply }.seen_by(&["10.0.0.2".parse().unwrap()].into());
        let plain = connection("10.0.0.1:40000", "10.0.0.2:3306");
        let answers = tuple("10.0.0.2:3306", "10.0.0.1:40000");
        assert_eq!(seen(tuple("10.0.0.1:40000", "10.0.0.2:3306"), answers), Some(plain));
        assert_eq!(seen(tuple("10.0.0.1:40000", "10.96.0.9:80"), answers), Some(plain), "by a Service");
        let masqueraded = connection("192.0.2.1:50000", "10.0.0.2:3306");
        let answers = tuple("10.0.0.2:3306", "192.0.2.1:50000");
        assert_eq!(seen(tuple("10.0.0.1:40000", "10.0.0.2:3306"), answers), Some(masqueraded));
        let out = connection("10.0.0.2:40000", "192.0.2.1:443");
        let original = tuple("10.0.0.2:40000", "192.0.2.1:443");
        assert_eq!(seen(original, tuple("192.0.2.1:443", "10.0.0.2:40000")), Some(out));
        let to_service = Established { backend: Some("10.0.0.9:8443".parse().unwrap()), ..out };
        assert_eq!(seen(original, tuple("10.0.0.9:8443", "10.0.0.2:40000")), Some(to_service));
        assert_eq!(seen(original, tuple("192.0.2.1:443", "192.0.2.7:40000")), None, "answers come to this node");
        assert_eq!(seen(tuple("10.0.0.8:1", "10.0.0.9:2"), tuple("10.0.0.9:2", "10.0.0.8:1")), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = entry(&bytes);
        }
    }
}
