//! Which of the packets that the kernel tells of are worth a word: a connection is told of once in a while, with its count.
//!
//! PURE: the time comes with each packet. Bounded in every respect, whoever floods.

use crate::nft::nflog::Told;
use crate::policy::{Connection, Direction};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

/// So many connections are remembered.
const REMEMBERED: usize = 1_000;
/// Who follows hears of one connection no more often than this.
const TELL_AGAIN: SignedDuration = SignedDuration::from_secs(10);
/// The log has a line for one connection no more often than this, …
const LOG_AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// … and in such a time no more than so many lines for all of them.
const LOG_LINES: u32 = 60;

/// What makes packets the same to a reader: all but the port that the source happened to use.
type Key = (Direction, Connection);

/// A connection that is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its last packet.
    pub told: Told,
    /// When it was first seen, of what is counted here.
    pub first: Timestamp,
    /// When it was last seen.
    pub last: Timestamp,
    /// Packets.
    pub packets: u64,
}

/// What is to be done about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word<N> {
    /// The connection, with what came since it was last told of.
    pub entry: Entry,
    /// What is known of it.
    pub names: N,
    /// Whether it is worth a line in the log.
    pub log: bool,
}

/// See the module. With each connection goes what was known of it when it was last told of.
#[derive(Debug)]
pub struct Memory<N> {
    known: BTreeMap<Key, Known<N>>,
    /// By the number of the packet that was last of its connection: the one to forget comes first.
    order: BTreeMap<u64, Key>,
    count: u64,
    /// Since when lines are counted, how many there were, and how many were kept back.
    lines: Option<(Timestamp, u32, u64)>,
}

#[derive(Debug)]
struct Known<N> {
    number: u64,
    all: Entry,
    names: N,
    /// Of what nobody was told yet.
    untold: Option<Entry>,
    told: Timestamp,
    logged: Option<Timestamp>,
}

impl<N> Default for Memory<N> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), order: BTreeMap::new(), count: 0, lines: None }
    }
}

impl<N: Clone> Memory<N> {
    /// Takes in a packet; tells what to say, if there is something to be said.
    pub fn take(&mut self, told: Told, now: Timestamp, names: impl FnOnce() -> N) -> Option<Word<N>> {
        self.count += 1;
        let number = self.count;
        let key = (told.direction, told.connection);
        let known = self.known.get_mut(&key);
        let one = Entry { told, first: now, last: now, packets: 1 };
        let word = match known {
            Some(known) => {
                self.order.remove(&known.number);
                known.number = number;
                known.all.add(&one);
                let untold = known.untold.get_or_insert(Entry { packets: 0, ..one });
                untold.add(&one);
                let entry = *untold;
                // A clock that was set back must not silence anything.
                if now >= known.told && now.duration_since(known.told) < TELL_AGAIN {
                    None
                } else {
                    known.untold = None;
                    known.told = now;
                    known.names = names();
                    Some((entry, known.names.clone()))
                }
            }
            None => {
                let names = names();
                let known = Known { number, all: one, names: names.clone(), untold: None, told: now, logged: None };
                self.known.insert(key, known);
                Some((one, names))
            }
        };
        self.order.insert(number, key);
        while self.known.len() > REMEMBERED {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            self.known.remove(&oldest);
        }
        let (entry, names) = word?;
        Some(Word { entry, names, log: self.is_worth_a_line(&key, now) })
    }

    /// What is remembered, the latest last.
    pub fn remembered(&self) -> impl Iterator<Item = (&Entry, &N)> {
        self.order.values().filter_map(|key| self.known.get(key)).map(|known| (&known.all, &known.names))
    }

    /// How many lines were kept back, once that can be said. To be asked before each packet: then lines are counted anew.
    pub fn kept_back(&mut self, now: Timestamp) -> Option<u64> {
        let (since, _, kept_back) = self.lines?;
        if now >= since && now.duration_since(since) < LOG_AGAIN {
            return None;
        }
        self.lines = None;
        (kept_back > 0).then_some(kept_back)
    }

    fn is_worth_a_line(&mut self, key: &Key, now: Timestamp) -> bool {
        let Some(known) = self.known.get_mut(key) else { return false };
        if known.logged.is_some_and(|logged| now >= logged && now.duration_since(logged) < LOG_AGAIN) {
            return false;
        }
        let (_, lines, kept_back) = self.lines.get_or_insert((now, 0, 0));
        if *lines == LOG_LINES {
            *kept_back += 1;
            return false;
        }
        *lines += 1;
        known.logged = Some(now);
        true
    }
}

impl Entry {
    fn add(&mut self, later: &Self) {
        self.told = later.told;
        self.last = later.last;
        self.packets += later.packets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{L4, Transport};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn packet(port: u16) -> Told {
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let connection = Connection { source, destination, l4: L4::Ports(Transport::Tcp, port) };
        Told { direction: Direction::Ingress, connection, source_port: Some(port), established: false }
    }

    #[test]
    fn a_connection_is_told_of_once_in_a_while_with_its_count() {
        let mut memory = Memory::<()>::default();
        let mut words = Vec::new();
        for second in 0..130 {
            for source_port in [1, 2] {
                let told = Told { source_port: Some(source_port), ..packet(80) };
                words.extend(memory.take(told, at(second), || ()).map(|word| (second, word.entry.packets, word.log)));
            }
        }
        assert_eq!(words[..3], [(0, 1, true), (10, 20, false), (20, 20, false)]);
        assert_eq!(words.iter().filter(|(.., log)| *log).map(|word| word.0).collect::<Vec<_>>(), [0, 60, 120]);
        let all: Vec<_> = memory.remembered().collect();
        assert_eq!((all.len(), all[0].0.packets, all[0].0.first, all[0].0.last), (1, 260, at(0), at(129)));
        assert!(memory.take(packet(81), at(129), || ()).is_some(), "another one is told of at once");
        assert!(memory.take(packet(80), at(-500), || ()).is_some(), "though the clock was set back");
    }

    #[test]
    fn a_scan_neither_fills_the_memory_nor_the_log() {
        let mut memory = Memory::<()>::default();
        let mut lines = 0;
        for port in 0..5_000 {
            lines += u32::from(memory.take(packet(port), at(i64::from(port) / 1_000), || ()).unwrap().log);
        }
        assert_eq!((lines, memory.known.len(), memory.order.len()), (LOG_LINES, REMEMBERED, REMEMBERED));
        assert_eq!(memory.remembered().last().map(|(entry, ())| entry.told), Some(packet(4_999)));
        assert_eq!(memory.kept_back(at(5)), None);
        assert_eq!(memory.kept_back(at(60)), Some(5_000 - u64::from(LOG_LINES)));
        assert_eq!(memory.kept_back(at(61)), None);
        assert!(memory.take(packet(1), at(62), || ()).unwrap().log);
    }
}
