//! Regions of the address space of one family, and how rules' CIDRs cut it into pieces.
//!
//! PURE.

use crate::policy::{CidrSet, Family};
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Sorted, disjoint ranges of addresses, by their numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Region {
    family: Family,
    ranges: Vec<(u128, u128)>,
}

impl Region {
    /// No address of a family.
    pub fn none(family: Family) -> Self {
        Self { family, ranges: Vec::new() }
    }

    /// Whether no address is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether every address of its family is in it.
    pub fn is_all(&self) -> bool {
        self.ranges == [(0, last(self.family))]
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (family, number) = (Family::of(address), number(address));
        family == self.family && self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&number))
    }

    /// With another region of the same family.
    pub fn add(&mut self, other: &Self) {
        self.ranges.extend(&other.ranges);
        self.ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(self.ranges.len());
        for (low, high) in self.ranges.drain(..) {
            match merged.last_mut() {
                // Saturating: nothing lies beyond the last address that it could wrongly touch.
                Some((_, end)) if low <= end.saturating_add(1) => *end = high.max(*end),
                _ => merged.push((low, high)),
            }
        }
        self.ranges = merged;
    }

    /// Every address of the family that is not in it.
    pub fn complement(&self) -> Self {
        let mut ranges = Vec::new();
        let mut next = Some(0);
        for (low, high) in &self.ranges {
            if let Some(start) = next.filter(|start| start < low) {
                ranges.push((start, low - 1));
            }
            next = high.checked_add(1).filter(|start| *start <= last(self.family));
        }
        ranges.extend(next.map(|start| (start, last(self.family))));
        Self { family: self.family, ranges }
    }

    /// The fewest networks that are the region.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.ranges.iter().flat_map(|(low, high)| -> Box<dyn Iterator<Item = IpNet>> {
            match (address(self.family, *low), address(self.family, *high)) {
                (IpAddr::V4(low), IpAddr::V4(high)) => Box::new(Ipv4Subnets::new(low, high, 0).map(IpNet::V4)),
                (IpAddr::V6(low), IpAddr::V6(high)) => Box::new(Ipv6Subnets::new(low, high, 0).map(IpNet::V6)),
                _ => Box::new(std::iter::empty()),
            }
        })
    }

    /// The first addresses that are in it, and that a predicate takes.
    pub fn find(&self, mut wanted: impl FnMut(IpAddr) -> bool) -> Option<IpAddr> {
        let all = self.ranges.iter().flat_map(|(low, high)| *low..=*high);
        all.map(|number| address(self.family, number)).find(|address| wanted(*address))
    }
}

/// The pieces into which CIDRs cut the addresses of a family: no set of CIDRs tells two addresses of one piece apart.
#[derive(Debug)]
pub struct Pieces {
    family: Family,
    /// Where each stretch begins, and the piece it belongs to.
    starts: Vec<(u128, usize)>,
}

impl Pieces {
    /// Cuts.
    pub fn cut<'a>(family: Family, sets: impl IntoIterator<Item = &'a CidrSet>) -> Self {
        let mut events: BTreeMap<u128, Vec<(usize, bool)>> = BTreeMap::from([(0, Vec::new())]);
        let sets: BTreeSet<&CidrSet> = sets.into_iter().collect();
        for (id, set) in sets.into_iter().enumerate() {
            for net in set.nets().filter(|net| Family::of(net.addr()) == family) {
                events.entry(number(net.network())).or_default().push((id, true));
                // What ends with the last address never ends.
                if let Some(end) = number(net.broadcast()).checked_add(1).filter(|end| *end <= last(family)) {
                    events.entry(end).or_default().push((id, false));
                }
            }
        }
        let (mut within, mut known) = (BTreeSet::new(), BTreeMap::new());
        let mut starts = Vec::with_capacity(events.len());
        for (start, changes) in events {
            // Ends first: in one set, one network may begin where another ends.
            for (id, begins) in changes.iter().filter(|(_, begins)| !begins).chain(changes.iter().filter(|(_, b)| *b)) {
                if *begins {
                    within.insert(*id)
                } else {
                    within.remove(id)
                };
            }
            let next = known.len();
            starts.push((start, *known.entry(within.clone()).or_insert(next)));
        }
        Self { family, starts }
    }

    /// The piece of an address of the family.
    pub fn of(&self, address: IpAddr) -> usize {
        let number = number(address);
        let after = self.starts.partition_point(|(start, _)| *start <= number);
        // The first stretch begins at 0, so that there is always one at or before a number.
        self.starts.get(after.saturating_sub(1)).map_or(0, |(_, piece)| *piece)
    }

    /// Each piece, as a region.
    pub fn regions(&self) -> Vec<Region> {
        let mut regions: BTreeMap<usize, Region> = BTreeMap::new();
        let ends = self.starts.iter().skip(1).map(|(start, _)| start - 1).chain([last(self.family)]);
        for ((start, piece), end) in self.starts.iter().zip(ends) {
            let region = regions.entry(*piece).or_insert_with(|| Region::none(self.family));
            region.ranges.push((*start, end));
        }
        regions.into_values().collect()
    }
}

fn last(family: Family) -> u128 {
    match family {
        Family::V4 => u32::MAX.into(),
        Family::V6 => u128::MAX,
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match (family, u32::try_from(number)) {
        (Family::V4, Ok(number)) => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_cidr;

    fn cidrs(list: &[&str]) -> CidrSet {
        list.iter().map(|cidr| parse_cidr(cidr).unwrap()).collect()
    }

    fn text(region: &Region) -> String {
        region.nets().map(|net| net.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_piece_is_what_no_cidr_tells_apart() {
        let sets = [cidrs(&["0.0.0.0/0"]), cidrs(&["10.0.0.0/8", "255.0.0.0/8"]), cidrs(&["10.1.0.0/16", "fd00::/8"])];
        let pieces = Pieces::cut(Family::V4, &sets);
        let at = |address: &str| pieces.of(address.parse().unwrap());
        assert_eq!(at("10.0.0.1"), at("255.255.255.255"));
        assert_eq!(at("0.0.0.0"), at("11.0.0.0"));
        assert_ne!(at("10.1.0.0"), at("10.2.0.0"));
        assert_eq!(pieces.regions().len(), 3);
        assert!(pieces.regions().iter().any(|region| text(region) == "10.1.0.0/16"));
        assert_eq!(Pieces::cut(Family::V6, &sets).regions().len(), 2);
    }

    #[test]
    fn neighbours_of_one_set_are_one_piece() {
        // The normal form merges what it can; these two it cannot.
        let sets = [cidrs(&["10.0.0.0/32", "10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"])];
        let regions = Pieces::cut(Family::V4, &sets).regions();
        assert_eq!(regions.len(), 2);
        let mut all = regions[0].clone();
        all.add(&regions[1]);
        assert!(all.is_all() && all.complement().is_empty());
        assert_eq!(regions[0].complement(), {
            let mut merged = Region::none(Family::V4);
            merged.add(&regions[1]);
            merged
        });
    }
}
