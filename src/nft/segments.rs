//! Cuts the port axis where the answer changes, so that one map lookup replaces a walk over rules.

use crate::policy::PortSet;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Beyond this much work one rule after the other is the better layout: a tenant's odd rules must not cost the node.
const MAX_WEIGHT: usize = 20_000;

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
        }
    }
}
