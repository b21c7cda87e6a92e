//! Port sets in normal form.

use std::fmt;
use std::ops::RangeInclusive;

/// Why a text is no port or range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Not a number from 1 to 65535, nor two of them.
    #[error("{0:?} is not a port from 1 to 65535, or a range of two such numbers like \"8000-9000\"")]
    Syntax(String),
    /// The range runs backwards.
    #[error("{0:?} runs backwards; a port range goes from the lower number to the higher")]
    Backwards(String),
}

/// Sorted, disjoint, non-adjacent ranges. Also holds ICMP type and code as one number, type * 256 + code.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// Every port.
    pub fn all() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// Whether every port is in the set.
    pub fn is_all(&self) -> bool {
        self.0 == [(0, u16::MAX)]
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&port))
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> {
        self.0.iter().map(|&(low, high)| low..=high)
    }

    /// The ports of either set.
    pub fn union(&self, other: &Self) -> Self {
        self.ranges().chain(other.ranges()).collect()
    }
}

impl FromIterator<RangeInclusive<u16>> for PortSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|r| !r.is_empty()).map(RangeInclusive::into_inner).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (low, high) in ranges {
            match merged.last_mut() {
                // Saturating: nothing lies beyond 65535 that it could wrongly touch.
                Some((_, end)) if low <= end.saturating_add(1) => *end = high.max(*end),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }
}

/// Parses one entry of a rule's ports: "80" or "8000-9000".
pub(super) fn parse_range(text: &str) -> Result<RangeInclusive<u16>, PortError> {
    let port = |digits: &str| -> Result<u16, PortError> {
        let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        digits.parse().ok().filter(|_| plain).ok_or_else(|| PortError::Syntax(text.to_owned()))
    };
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (port(low)?, port(high)?),
        None => (port(text)?, port(text)?),
    };
    if low > high { Err(PortError::Backwards(text.to_owned())) } else { Ok(low..=high) }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, &(low, high)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if low == high { write!(f, "{comma}{low}")? } else { write!(f, "{comma}{low}-{high}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict() {
        assert_eq!(parse_range("8000-65535").unwrap(), 8000..=65535);
        assert_eq!(parse_range("1").unwrap(), 1..=1);
        for bad in
            ["", "-", "0", "00", "080", "70000", "65536", "+80", " 80", "80-", "-80", "80-90-100", "http", "0-80"]
        {
            assert!(matches!(parse_range(bad), Err(PortError::Syntax(_))), "{bad}");
        }
        assert!(matches!(parse_range("9000-8000"), Err(PortError::Backwards(_))));
    }

    #[test]
    fn normal_form() {
        let ports: PortSet = [8000..=9000, 80..=80, 81..=90, 8500..=9500, 65535..=65535].into_iter().collect();
        assert_eq!(ports.to_string(), "80-90,8000-9500,65535");
        assert!(ports.contains(65535) && ports.contains(90) && !ports.contains(91));
        assert!([0..=65535, 5..=6].into_iter().collect::<PortSet>().is_all());
    }
}
