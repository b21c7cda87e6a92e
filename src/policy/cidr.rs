//! CIDRs: strict parsing, and the one normal form that interval sets need.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt;
use std::net::IpAddr;

/// Why a text is no CIDR, in words that say what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// No address and prefix length.
    #[error("{0:?} is not an address with a prefix length, like 203.0.113.10/32 or 2001:db8::/64")]
    Syntax(String),
    /// An IPv4 address in IPv6 clothes: two parsers could read it as two things.
    #[error("{0:?} is an IPv4-mapped IPv6 address; write it as IPv4")]
    Mapped(String),
    /// Bits behind the prefix are set: a typo in either part.
    #[error("{given:?} has host bits set; write {masked}, or a longer prefix to mean fewer addresses")]
    HostBits {
        /// What was written.
        given: String,
        /// The network it lies in.
        masked: IpNet,
    },
}

/// Parses a CIDR, refusing what two parsers could read differently: leading zeros, mapped addresses, host bits.
pub fn parse_cidr(text: &str) -> Result<IpNet, CidrError> {
    let syntax = || CidrError::Syntax(text.to_owned());
    let (address, length) = text.split_once('/').ok_or_else(syntax)?;
    // std refuses leading zeros and zones in addresses; the length is ours to judge.
    let address: IpAddr = address.parse().map_err(|_| syntax())?;
    let plain = length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    let length: u8 = length.parse().ok().filter(|_| plain).ok_or_else(syntax)?;
    if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err(CidrError::Mapped(text.to_owned()));
    }
    let net = IpNet::new(address, length).map_err(|_| syntax())?;
    match net.trunc() {
        masked if masked == net => Ok(net),
        masked => Err(CidrError::HostBits { given: text.to_owned(), masked }),
    }
}

/// The address family of an interface's address, and of all that is compiled for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in the order in which they are rendered.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A set of addresses in normal form: masked, sorted, disjoint, and merged as far as CIDRs can be.
/// Two sets are equal exactly if they hold the same addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CidrSet {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl CidrSet {
    /// Whether an address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        // Disjoint and sorted: only the last network that starts at or before the address can hold it.
        match address {
            IpAddr::V4(a) => {
                let after = self.v4.partition_point(|n| n.network() <= a);
                after > 0 && self.v4[after - 1].contains(&a)
            }
            IpAddr::V6(a) => {
                let after = self.v6.partition_point(|n| n.network() <= a);
                after > 0 && self.v6[after - 1].contains(&a)
            }
        }
    }

    /// The addresses of either set.
    pub fn union(&self, other: &Self) -> Self {
        self.nets().chain(other.nets()).collect()
    }

    /// The part of one family.
    pub fn family(&self, family: Family) -> Self {
        match family {
            Family::V4 => Self { v4: self.v4.clone(), v6: Vec::new() },
            Family::V6 => Self { v4: Vec::new(), v6: self.v6.clone() },
        }
    }

    /// Whether every address of the family is in the set: no lookup is needed then.
    pub fn covers(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4.first().is_some_and(|n| n.prefix_len() == 0),
            Family::V6 => self.v6.first().is_some_and(|n| n.prefix_len() == 0),
        }
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The disjoint networks, IPv4 first.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        self.v4.iter().copied().map(IpNet::V4).chain(self.v6.iter().copied().map(IpNet::V6))
    }
}

impl FromIterator<IpNet> for CidrSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net.trunc() {
                IpNet::V4(n) => v4.push(n),
                IpNet::V6(n) => v6.push(n),
            }
        }
        Self { v4: Ipv4Net::aggregate(&v4), v6: Ipv6Net::aggregate(&v6) }
    }
}

impl fmt::Display for CidrSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, net) in self.nets().enumerate() {
            write!(f, "{}{net}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(cidrs: &[&str]) -> CidrSet {
        cidrs.iter().map(|c| parse_cidr(c).unwrap()).collect()
    }

    #[test]
    fn strict_where_parsers_differ() {
        for ok in ["0.0.0.0/0", "::/0", "10.0.0.0/31", "fd00::/127", "255.255.255.255/32", "2001:DB8::/32"] {
            parse_cidr(ok).unwrap();
        }
        for bad in [
            "",
            "/",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "010.0.0.0/8",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/8 ",
            " 10.0.0.0/8",
            "10.0.0/8",
            "fe80::1%eth0/128",
            "10.0.0.0/0x8",
            "1.2.3.4.5/32",
        ] {
            assert!(matches!(parse_cidr(bad), Err(CidrError::Syntax(_))), "{bad}");
        }
        assert!(matches!(parse_cidr("::ffff:10.0.0.1/128"), Err(CidrError::Mapped(_))));
        assert!(matches!(parse_cidr("::ffff:0:0/96"), Err(CidrError::Mapped(_))));
        let host_bits = parse_cidr("10.1.2.3/8").unwrap_err().to_string();
        assert!(host_bits.contains("write 10.0.0.0/8"), "{host_bits}");
    }

    #[test]
    fn overlaps_and_neighbours_merge() {
        assert_eq!(set(&["10.1.0.0/16", "10.0.0.0/8"]).to_string(), "10.0.0.0/8");
        assert_eq!(set(&["10.0.0.0/8", "0.0.0.0/0"]).to_string(), "0.0.0.0/0");
        assert_eq!(set(&["0.0.0.0/1", "128.0.0.0/1"]).to_string(), "0.0.0.0/0");
        assert_eq!(set(&["255.255.255.255/32", "255.255.255.254/32"]).to_string(), "255.255.255.254/31");
        assert!(set(&["::/1", "8000::/1"]).covers(Family::V6));
        assert!(!set(&["::/0"]).covers(Family::V4));
    }

    proptest! {
        #[test]
        fn contains_what_its_networks_contain(nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..20), probe: u32) {
            let nets: Vec<IpNet> = nets.iter().map(|(a, l)| IpNet::V4(Ipv4Net::new((*a).into(), *l).unwrap())).collect();
            // Random addresses rarely hit small networks: probe their edges too.
            let edges = nets.iter().flat_map(|n| [n.network(), n.broadcast()]);
            let set: CidrSet = nets.iter().copied().collect();
            for address in edges.chain([IpAddr::V4(probe.into())]) {
                prop_assert_eq!(set.contains(address), nets.iter().any(|n| n.contains(&address)), "{}", address);
            }
        }
    }
}
