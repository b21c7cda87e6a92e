//! What the kernel tells of every change to any table of its network namespace: bytes in, notifications out.
//!
//! PURE. A transaction is told as one message for each thing it adds or deletes, then one that says that all of them are in
//! force, and who did it. Of the things no more is read than whose they are. What is not known is skipped: a newer kernel
//! may tell of more.

use super::question::message;
use std::fmt;

/// A netlink message begins with its length, its type, flags, a sequence number and a port.
pub(super) const HEADER: usize = 16;
/// Then comes the family, with a version and an id that say nothing here.
pub(super) const FAMILY_HEADER: usize = 4;
/// Messages and attributes begin at multiples of this.
const ALIGNMENT: usize = 4;
/// The high byte of the type.
const NFTABLES: u8 = 10;
/// The low byte: a transaction is in force.
const NEW_GENERATION: u8 = 15;
/// The low byte: a packet was traced.
const TRACE: u8 = 17;
/// The low byte: which generation is this? It is answered like a notification of one.
const GET_GENERATION: u8 = 16;
/// Flag of a question.
pub(super) const REQUEST: u16 = 1;
/// The name of the table, whatever the message tells of.
const TABLE_NAME: u16 = 1;
const GENERATION_ID: u16 = 1;
const PROCESS_ID: u16 = 2;
const PROCESS_NAME: u16 = 3;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification<'a> {
    /// A transaction that comes from this port changes something in this table.
    Changes(Port, Table<'a>),
    /// The transaction whose changes were told before this is in force.
    Committed(Transaction),
}

/// The socket that a transaction came from. Meanwhile no other has the same.
pub type Port = u32;

/// A table, by family and name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    family: u8,
    name: &'a [u8],
}

impl<'a> Table<'a> {
    #[cfg(test)]
    pub(super) fn new(family: u8, name: &'a str) -> Self {
        Self { family, name: name.as_bytes() }
    }

    /// Whether it is this one, named as in scripts: `inet ringfence`.
    pub fn is(&self, table: &str) -> bool {
        table.split_once(' ').is_some_and(|(family, name)| family == self.family() && name.as_bytes() == self.name)
    }

    fn family(&self) -> &'static str {
        match self.family {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "unknown",
        }
    }
}

impl fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family(), String::from_utf8_lossy(self.name))
    }
}

/// The number of a transaction, and who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Where it came from, as its changes did.
    pub port: Port,
    /// Counts the namespace's transactions.
    pub generation: u32,
    /// Who made it.
    pub process: Process,
}

/// A process as the kernel names it: by the id that it has outside all containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub id: u32,
    /// The name of its program, at most 15 bytes of it.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.id)
    }
}

/// A message that ends before its content does. What it and those behind it told of is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message is cut off")]
pub struct CutOff;

/// The messages of one datagram.
pub fn notifications(datagram: &[u8]) -> impl Iterator<Item = Result<Notification<'_>, CutOff>> {
    readable(datagram, notification)
}

/// What can be read of each message of a datagram; those of which nothing can are left out.
pub(super) fn readable<'a, T>(
    datagram: &'a [u8],
    read: impl Fn(&'a [u8]) -> Option<T>,
) -> impl Iterator<Item = Result<T, CutOff>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let Some((message, after)) = split(rest, HEADER, |header| u32_at(header, 0).map(|length| length as usize))
            else {
                rest = &[];
                return Some(Err(CutOff));
            };
            rest = after;
            if let Some(content) = read(message) {
                return Some(Ok(content));
            }
        }
        None
    })
}

/// Asks for the generation that is in force.
pub fn generation_request() -> Vec<u8> {
    message(u16::from_be_bytes([NFTABLES, GET_GENERATION]), REQUEST, [0; FAMILY_HEADER], &[])
}

fn notification(message: &[u8]) -> Option<Notification<'_>> {
    let [subsystem, kind] = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?).to_be_bytes();
    if subsystem != NFTABLES || kind == TRACE {
        return None;
    }
    let (port, family) = (u32_at(message, 12)?, *message.get(HEADER)?);
    let mut attributes = attributes(message.get(HEADER + FAMILY_HEADER..)?);
    if kind != NEW_GENERATION {
        let name = attributes.find(|(kind, _)| *kind == TABLE_NAME)?.1;
        return Some(Notification::Changes(port, Table { family, name: text(name) }));
    }
    let mut transaction = Transaction { port, generation: 0, process: Process::default() };
    for (kind, value) in attributes {
        let number = || value.try_into().map(u32::from_be_bytes).unwrap_or_default();
        match kind {
            GENERATION_ID => transaction.generation = number(),
            PROCESS_ID => transaction.process.id = number(),
            PROCESS_NAME => transaction.process.name = String::from_utf8_lossy(text(value)).into_owned(),
            _ => {}
        }
    }
    Some(Notification::Committed(transaction))
}

/// The messages of an answer: what each is, and what follows its header. Those behind one that is cut off are left out.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (message, after) = split(rest, HEADER, |header| u32_at(header, 0).map(|length| length as usize))?;
        rest = after;
        Some((u16_at(message, 4)?, message.get(HEADER..)?))
    })
}

/// Kinds and values; those behind one that is cut off are left out.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const ATTRIBUTE_HEADER: usize = 4;
    /// The two high bits of a kind say how its value is written.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let (attribute, after) = split(rest, ATTRIBUTE_HEADER, |header| u16_at(header, 0).map(usize::from))?;
        rest = after;
        Some((u16_at(attribute, 2)? & KIND, attribute.get(ATTRIBUTE_HEADER..)?))
    })
}

/// Splits something off that says how long it is, and the padding behind it.
fn split(bytes: &[u8], header: usize, length: impl Fn(&[u8]) -> Option<usize>) -> Option<(&[u8], &[u8])> {
    let length = length(bytes).filter(|length| *length >= header)?;
    let first = bytes.get(..length)?;
    Some((first, bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default()))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Up to the zero byte that ends it.
pub(super) fn text(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kernel 6.18 told of `add element inet ringfence g { 10.0.0.1 }`, as little-endian machines see it.
    #[cfg(target_endian = "little")]
    const ELEMENT: &[u8] = b"\x44\0\0\0\x0c\x0a\0\x0c\x01\0\0\0\xd4\x6a\0\0\x01\0\0\x03\
        \x0e\0\x01\0ringfence\0\0\0\x06\0\x02\0g\0\0\0\x18\0\x03\x80\x14\0\x01\0\x10\0\x01\0\
        \x0c\0\x01\0\x0a\0\0\x01\0\0\0\0";
    #[cfg(target_endian = "little")]
    const GENERATION: &[u8] = b"\x2c\0\0\0\x0f\x0a\0\0\x01\0\0\0\xd4\x6a\0\0\0\0\0\x03\
        \x08\0\x01\0\0\0\0\x03\x08\0\x02\0\0\0\x6a\xa4\x08\0\x03\0nft\0";

    fn told(datagram: &[u8]) -> Vec<Result<Notification<'_>, CutOff>> {
        notifications(datagram).collect()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_transaction_is_its_changes_and_then_its_commit() {
        let both = [ELEMENT, GENERATION].concat();
        let [Ok(Notification::Changes(port, table)), Ok(Notification::Committed(transaction))] = &told(&both)[..]
        else {
            panic!("{:?}", told(&both));
        };
        assert!(table.is("inet ringfence") && !table.is("netdev ringfence") && !table.is("inet ringfenc"));
        assert_eq!(format!("{table:?}"), "inet ringfence");
        assert_eq!((*port, transaction.port, transaction.generation), (27_348, 27_348, 3));
        assert_eq!(transaction.process.to_string(), "nft (process 27300)");
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn what_is_cut_off_says_so_and_never_panics() {
        let both = [ELEMENT, GENERATION].concat();
        for length in 1..both.len() {
            let told = told(&both[..length]);
            let whole = length == ELEMENT.len();
            assert_eq!(told.last() == Some(&Err(CutOff)), !whole, "{length}: {told:?}");
        }
        // A length that would never end.
        assert_eq!(told(&[0; 16]), [Err(CutOff)]);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn what_is_not_known_is_skipped() {
        let mut other_subsystem = ELEMENT.to_vec();
        other_subsystem[5] = 1;
        let mut trace = ELEMENT.to_vec();
        trace[4] = TRACE;
        let unknown_kind = { [&ELEMENT[..4], &[0xee], &ELEMENT[5..]].concat() };
        let mut no_attributes = ELEMENT[..20].to_vec();
        no_attributes[0] = 20;
        let all = [&other_subsystem[..], &trace, &no_attributes, &unknown_kind].concat();
        let [Ok(Notification::Changes(_, table))] = told(&all)[..] else { panic!("{:?}", told(&all)) };
        assert!(table.is("inet ringfence"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = told(&bytes);
        }
    }
}
