//! What passes between two ends, as a set: ports of each transport, types of ICMP, everything else.
//!
//! PURE. Owns the points at which a verdict can change, and the algebra of what lies between them. The verdict itself
//! is the reference's, asked once for each piece.

use crate::policy::{Family, IcmpMatch, L4, PortSet, Rule, Traffic, Transport};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// Some of all that two addresses of one family can send each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficSet {
    tcp: PortSet,
    udp: PortSet,
    sctp: PortSet,
    /// Type and code as one number, type * 256 + code.
    icmp: PortSet,
    other: bool,
}

impl TrafficSet {
    /// Everything.
    pub fn all() -> Self {
        let all = PortSet::all;
        Self { tcp: all(), udp: all(), sctp: all(), icmp: all(), other: true }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it holds this.
    pub fn contains(&self, l4: L4) -> bool {
        match l4 {
            L4::Ports(transport, port) => self.ports(transport).contains(port),
            L4::Icmp(type_, code) => self.icmp.contains(u16::from_be_bytes([type_, code])),
            L4::Other => self.other,
        }
    }

    /// The ports of a transport.
    pub fn ports(&self, transport: Transport) -> &PortSet {
        match transport {
            Transport::Tcp => &self.tcp,
            Transport::Udp => &self.udp,
            Transport::Sctp => &self.sctp,
        }
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.minus(&Self::all().minus(other))
    }

    /// What is in this and not in the other.
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            tcp: minus(&self.tcp, &other.tcp),
            udp: minus(&self.udp, &other.udp),
            sctp: minus(&self.sctp, &other.sctp),
            icmp: minus(&self.icmp, &other.icmp),
            other: self.other && !other.other,
        }
    }

    /// In words: "TCP 22,80; ICMP 8", or the exceptions where these are fewer. What ICMP is called depends on the
    /// family.
    pub fn describe(&self, family: Family) -> String {
        let rest = Self::all().minus(self);
        match (self.pieces(family), rest.pieces(family)) {
            (mine, _) if mine.is_empty() => "nothing".to_owned(),
            (_, exceptions) if exceptions.is_empty() => "everything".to_owned(),
            (mine, exceptions) if self.ranges() > rest.ranges() || mine.len() > 3 => {
                format!("everything but {}", exceptions.join("; "))
            }
            (mine, _) => mine.join("; "),
        }
    }

    fn ranges(&self) -> usize {
        let ports = [&self.tcp, &self.udp, &self.sctp, &self.icmp];
        ports.iter().map(|set| set.ranges().count()).sum::<usize>() + usize::from(self.other)
    }

    fn pieces(&self, family: Family) -> Vec<String> {
        let mut pieces = Vec::new();
        for transport in Transport::ALL {
            let ports = self.ports(transport);
            if ports.is_all() {
                pieces.push(transport.to_string());
            } else if !ports.is_empty() {
                pieces.push(format!("{transport} {ports}"));
            }
        }
        let icmp = if family == Family::V4 { "ICMP" } else { "ICMPv6" };
        if self.icmp.is_all() {
            pieces.push(icmp.to_owned());
        } else if !self.icmp.is_empty() {
            let types: Vec<String> = self.icmp.ranges().map(types).collect();
            pieces.push(format!("{icmp} {}", types.join(",")));
        }
        if self.other {
            pieces.push("other protocols".to_owned());
        }
        pieces
    }
}

/// "8", "8/0", "3-8", "8/1-8/4".
fn types(range: RangeInclusive<u16>) -> String {
    let ([low, first], [high, last]) = (range.start().to_be_bytes(), range.end().to_be_bytes());
    match (first, last) {
        (0, u8::MAX) if low == high => low.to_string(),
        (0, u8::MAX) => format!("{low}-{high}"),
        _ if range.start() == range.end() => format!("{low}/{first}"),
        _ => format!("{low}/{first}-{high}/{last}"),
    }
}

fn minus(from: &PortSet, what: &PortSet) -> PortSet {
    let mut left = Vec::new();
    for range in from.ranges() {
        let (mut low, high) = (u32::from(*range.start()), u32::from(*range.end()));
        for hole in what.ranges() {
            let (start, end) = (u32::from(*hole.start()), u32::from(*hole.end()));
            if end < low || start > high {
                continue;
            }
            left.extend(piece(low, start.wrapping_sub(1)).filter(|_| start > low));
            low = end + 1;
        }
        left.extend(piece(low, high));
    }
    left.into_iter().collect()
}

/// A range, unless it is empty or begins behind the last port.
fn piece(low: u32, high: u32) -> Option<RangeInclusive<u16>> {
    Some(u16::try_from(low).ok()?..=u16::try_from(high).ok()?).filter(|range| !range.is_empty())
}

/// The points at which the verdict over some rules can change: between two of them one question answers for all.
#[derive(Clone, Debug)]
pub struct Steps {
    ports: [BTreeSet<u16>; 3],
    icmp: BTreeSet<u16>,
}

impl Steps {
    /// Where any of these rules begins or ends to match.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Self {
        let start = BTreeSet::from([0]);
        let mut steps = Self { ports: [start.clone(), start.clone(), start.clone()], icmp: start };
        for rule in rules {
            match &rule.traffic {
                Traffic::Any | Traffic::Icmp(IcmpMatch::Both | IcmpMatch::V6(None)) => {}
                Traffic::Ports(transport, ports) => cut(&mut steps.ports[*transport as usize], ports),
                Traffic::Icmp(IcmpMatch::V4(icmp) | IcmpMatch::V6(Some(icmp))) => cut(&mut steps.icmp, &icmp.numbers()),
            }
        }
        steps
    }

    /// All that a verdict allows.
    pub fn allowed(&self, mut verdict: impl FnMut(L4) -> bool) -> TrafficSet {
        let mut ports = |transport| pieces(&self.ports[transport as usize], |port| verdict(L4::Ports(transport, port)));
        let [tcp, udp, sctp] = Transport::ALL.map(&mut ports);
        let icmp = pieces(&self.icmp, |number| {
            let [type_, code] = number.to_be_bytes();
            verdict(L4::Icmp(type_, code))
        });
        TrafficSet { tcp, udp, sctp, icmp, other: verdict(L4::Other) }
    }
}

fn cut(steps: &mut BTreeSet<u16>, set: &PortSet) {
    for range in set.ranges() {
        steps.insert(*range.start());
        steps.extend(range.end().checked_add(1));
    }
}

fn pieces(steps: &BTreeSet<u16>, mut allowed: impl FnMut(u16) -> bool) -> PortSet {
    let ends = steps.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    steps.iter().zip(ends).filter(|(start, _)| allowed(**start)).map(|(start, end)| *start..=end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(ranges: &[RangeInclusive<u16>]) -> TrafficSet {
        TrafficSet { tcp: ranges.iter().cloned().collect(), ..TrafficSet::default() }
    }

    #[test]
    fn the_shorter_description_wins() {
        let v4 = |set: &TrafficSet| set.describe(Family::V4);
        assert_eq!(v4(&TrafficSet::default()), "nothing");
        assert_eq!(v4(&TrafficSet::all()), "everything");
        assert_eq!(v4(&tcp(&[22..=22, 8000..=9000])), "TCP 22,8000-9000");
        assert_eq!(v4(&TrafficSet::all().minus(&tcp(&[80..=80, 443..=443]))), "everything but TCP 80,443");
        assert_eq!(v4(&tcp(&[0..=u16::MAX])), "TCP");
        let echo = TrafficSet { icmp: [0x0800..=0x08ff, 0x0d00..=0x0d00].into_iter().collect(), ..tcp(&[]) };
        assert_eq!(v4(&echo), "ICMP 8,13/0");
        assert_eq!(echo.describe(Family::V6), "ICMPv6 8,13/0");
    }

    fn ranges() -> impl Strategy<Value = Vec<RangeInclusive<u16>>> {
        let edge = prop_oneof![Just(0), Just(1), Just(u16::MAX), 0u16..12];
        prop::collection::vec((edge.clone(), edge).prop_map(|(a, b)| a.min(b)..=a.max(b)), 0..5)
    }

    proptest! {
        #[test]
        fn sets_behave_as_sets(a in ranges(), b in ranges(), port in prop_oneof![0u16..14, Just(u16::MAX)]) {
            let l4 = L4::Ports(Transport::Tcp, port);
            let (a, b) = (tcp(&a), tcp(&b));
            prop_assert_eq!(a.minus(&b).contains(l4), a.contains(l4) && !b.contains(l4));
            prop_assert_eq!(a.intersection(&b).contains(l4), a.contains(l4) && b.contains(l4));
        }
    }
}
