//! What is in the sets: which device may use which addresses.

use super::{Device, DeviceName};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// The sets of the skeleton.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Set {
    /// Devices with their IPv4 addresses.
    V4,
    /// Devices with their IPv6 addresses.
    V6,
    /// Devices with their link-local addresses.
    LinkLocal,
    /// Devices whose link-local addresses are not known.
    AnyLinkLocal,
    /// Devices with all their IPv6 addresses, once more, as a message about one carries it: nft 1.0.6 has no name for that field.
    Targets,
}

impl Set {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::V4, Self::V6, Self::LinkLocal, Self::AnyLinkLocal, Self::Targets];
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "own_4",
            Self::V6 => "own_6",
            Self::LinkLocal => "own_link_local",
            Self::AnyLinkLocal => "any_link_local",
            Self::Targets => "own_targets",
        })
    }
}

/// An element of one of the sets, which is displayed as in scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element<'a> {
    /// Where it is.
    pub set: Set,
    device: &'a str,
    /// In all sets but that of devices alone.
    address: Option<IpAddr>,
}

impl<'a> Element<'a> {
    /// Reads an element of a set as nft lists it: numbers without leading zeros, and addresses in a spelling of its own.
    pub fn parse(set: Set, listed: &'a str) -> Option<Self> {
        let (device, address) = match (set, listed.split_once(" . ")) {
            (Set::AnyLinkLocal, None) => (listed, None),
            (Set::AnyLinkLocal, Some(_)) | (_, None) => return None,
            (Set::Targets, Some((device, number))) => {
                let bits = u128::from_str_radix(number.strip_prefix("0x")?, 16).ok()?;
                (device, Some(Ipv6Addr::from_bits(bits).into()))
            }
            (_, Some((device, address))) => (device, Some(address.parse().ok()?)),
        };
        Some(Self { set, device: device.strip_prefix('"')?.strip_suffix('"')?, address })
    }
}

impl fmt::Display for Element<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, device, address } = self;
        match (set, address) {
            (Set::Targets, Some(IpAddr::V6(address))) => write!(f, "\"{device}\" . 0x{:032x}", address.to_bits()),
            (_, Some(address)) => write!(f, "\"{device}\" . {address}"),
            (_, None) => write!(f, "\"{device}\""),
        }
    }
}

/// The elements for these devices.
pub(super) fn elements<'a>(devices: impl IntoIterator<Item = (&'a DeviceName, &'a Device)>) -> BTreeSet<Element<'a>> {
    let mut elements = BTreeSet::new();
    for (DeviceName(device), Device { index: _, addresses, mac }) in devices {
        let made_of_mac = mac.map(|mac| IpAddr::V6(mac.link_local()));
        if made_of_mac.is_none() {
            elements.insert(Element { set: Set::AnyLinkLocal, device, address: None });
        }
        let owned = addresses.iter().copied().filter(|address| may_be_owned(*address));
        for address in owned.chain(made_of_mac) {
            let set = match address {
                IpAddr::V4(_) => Set::V4,
                IpAddr::V6(address) if address.is_unicast_link_local() => Set::LinkLocal,
                IpAddr::V6(_) => Set::V6,
            };
            elements.insert(Element { set, device, address: Some(address) });
            if address.is_ipv6() {
                elements.insert(Element { set: Set::Targets, device, address: Some(address) });
            }
        }
    }
    elements
}

fn may_be_owned(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast)
}

#[cfg(test)]
mod tests {
    use super::super::tests::devices;
    use super::*;

    #[test]
    fn nobody_owns_what_is_nobodys() {
        let nobodys = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"];
        let devices = devices(&[("a", 1, &nobodys, None)]);
        let any = Element { set: Set::AnyLinkLocal, device: "a", address: None };
        assert_eq!(elements(&devices), [any].into());
    }

    #[test]
    fn what_is_written_is_read_however_nft_spells_it() {
        let addresses = ["10.0.0.1", "fd00::1", "fe80::1", "::ffff:10.0.0.1"];
        let devices = devices(&[("eth0.1", 1, &addresses, None), ("b", 2, &[], Some("02:00:00:00:00:01"))]);
        for element in elements(&devices) {
            assert_eq!(Element::parse(element.set, &element.to_string()), Some(element));
        }
        let parse = |set, listed: &'static str| Element::parse(set, listed).map(|element| element.address.unwrap());
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(parse(Set::Targets, "\"a\" . 0xffff0a000001"), Some(mapped));
        assert_eq!(parse(Set::V6, "\"a\" . ::FFFF:a00:1"), Some(mapped));
        for (set, listed) in [
            (Set::V4, "\"a\""),
            (Set::V4, "\"a\" . 10.0.0"),
            (Set::V4, "a . 10.0.0.1"),
            (Set::AnyLinkLocal, "\"a\" . fe80::1"),
            (Set::Targets, "\"a\" . 10"),
            (Set::Targets, "\"a\" . 0x100000000000000000000000000000000"),
        ] {
            assert_eq!(Element::parse(set, listed), None, "{set} {listed}");
        }
    }
}
