//! Cuts the port axis where the answer changes, so that one or two map lookups replace a walk over rules.

use crate::policy::PortSet;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Beyond this much work one rule after the other is the better layout: a tenant's odd rules must not cost the node.
const MAX_WEIGHT: usize = 20_000;

/// So few ranges are found as fast as a port in a hash map.
const FEW: usize = 8;

/// So many ports may be written out one by one.
const MAX_SINGLE: usize = 2_048;

/// The maximal ranges over which the same rows apply, with the indices of those rows; `None` if there would be too many.
pub fn segments(rows: &[PortSet]) -> Option<Vec<(RangeInclusive<u16>, BTreeSet<usize>)>> {
    // Where rows begin and end. u32, as a range may end behind 65535.
    let mut edges: BTreeMap<u32, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (row, ports) in rows.iter().enumerate() {
        for range in ports.ranges() {
            edges.entry(u32::from(*range.start())).or_default().0.push(row);
            edges.entry(u32::from(*range.end()) + 1).or_default().1.push(row);
        }
    }
    let mut weight = 0;
    let mut active = BTreeSet::new();
    let mut segments: Vec<(RangeInclusive<u16>, BTreeSet<usize>)> = Vec::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((start, (begin, end))) = edges.next() {
        for row in end {
            active.remove(&row);
        }
        active.extend(begin);
        // Behind the last edge nothing is active, and 65536 is no port.
        let (Some(&(next, _)), Ok(low)) = (edges.peek(), u16::try_from(start)) else { break };
        let Ok(high) = u16::try_from(next - 1) else { break };
        if active.is_empty() {
            continue;
        }
        weight += active.len();
        if weight > MAX_WEIGHT {
            return None;
        }
        segments.push((low..=high, active.clone()));
    }
    Some(segments)
}

/// Writes the narrowest ranges out port by port, for a hash map, and leaves the others. A lookup in a hash map costs the same
/// however much it holds; one in an interval map compares its way through it.
pub fn singles<T: Clone>(mut elements: Vec<(RangeInclusive<u16>, T)>) -> Cut<T> {
    if elements.len() <= FEW {
        return (Vec::new(), elements);
    }
    elements.sort_by_key(|(range, _)| range.len());
    let mut ports = 0;
    let narrow = elements.iter().take_while(|(range, _)| {
        ports += range.len();
        ports <= MAX_SINGLE
    });
    let mut wide = elements.split_off(narrow.count());
    wide.sort_by_key(|(range, _)| *range.start());
    let mut singles: Vec<(u16, T)> =
        elements.into_iter().flat_map(|(range, value)| range.map(move |port| (port, value.clone()))).collect();
    singles.sort_by_key(|(port, _)| *port);
    (singles, wide)
}

/// Ports one by one, and ranges; each ascending.
pub type Cut<T> = (Vec<(u16, T)>, Vec<(RangeInclusive<u16>, T)>);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ports(ranges: &[(u16, u16)]) -> PortSet {
        ranges.iter().map(|&(a, b)| a.min(b)..=a.max(b)).collect()
    }

    #[test]
    fn to_the_last_port() {
        let cut = segments(&[ports(&[(0, 65535)]), ports(&[(65535, 65535)])]).unwrap();
        assert_eq!(cut, [(0..=65534, [0].into()), (65535..=65535, [0, 1].into())]);
    }

    #[test]
    fn too_much_is_refused() {
        let rows: Vec<PortSet> = (0..400).map(|i| ports(&[(i * 10, 60_000 + i)])).collect();
        assert_eq!(segments(&rows), None);
    }

    #[test]
    fn the_narrowest_are_written_out() {
        let few: Vec<_> = (0..8u16).map(|i| (i..=i, ())).collect();
        assert_eq!(singles(few.clone()), (vec![], few));
        let mixed: Vec<_> = (0..20u16).map(|i| (i * 3_000..=i * 3_000 + i * 100, i)).collect();
        let (ports, ranges) = singles(mixed.clone());
        assert_eq!(ranges, mixed[6..]);
        let written: Vec<_> = mixed[..6].iter().flat_map(|(range, i)| range.clone().map(|port| (port, *i))).collect();
        assert_eq!(ports, written);
    }

    proptest! {
        #[test]
        fn every_port_gets_its_rows(rows in prop::collection::vec(prop::collection::vec((0u16..40, 0u16..40), 1..4), 0..6)) {
            let rows: Vec<PortSet> = rows.iter().map(|r| ports(r)).collect();
            let cut = segments(&rows).unwrap();
            for port in 0..=41u16 {
                let expected: BTreeSet<usize> = (0..rows.len()).filter(|&i| rows[i].contains(port)).collect();
                let hits: Vec<_> = cut.iter().filter(|(range, _)| range.contains(&port)).collect();
                prop_assert!(hits.len() <= 1);
                prop_assert_eq!(hits.first().map(|(_, r)| r.clone()).unwrap_or_default(), expected);
            }
            let (ports, ranges) = singles(cut.clone());
            let written = ports.into_iter().map(|(port, rows)| (port..=port, rows)).chain(ranges);
            let every = |of: Vec<(RangeInclusive<u16>, BTreeSet<usize>)>| -> BTreeMap<u16, BTreeSet<usize>> {
                of.into_iter().flat_map(|(range, rows)| range.map(move |port| (port, rows.clone()))).collect()
            };
            prop_assert_eq!(every(written.collect()), every(cut));
        }
    }
}
