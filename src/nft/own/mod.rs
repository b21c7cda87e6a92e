//! The second table: what may come out of each pod's device (S9). PURE.
//!
//! Group remotes are addresses, so nothing on a node may send with an address that is not its own, guarded or not. This
//! table judges frames where they enter the node, before bridges, routes and conntrack see them:
//!
//! - The link address, where it is known, and no link layer but plain Ethernet: no VLAN tags, no LLC, no PPPoE.
//! - IPv4 and IPv6 with an own source, ARP with an own sender or a probe for an own address, neighbour advertisements and
//!   duplicate address detection for an own address.
//! - The DHCP clients, whose source is no address yet.
//! - Link-local IPv6 addresses carry what IPv6 cannot do without (neighbour and router discovery, multicast listener reports,
//!   DHCPv6), and nothing else: no rule can name them, so all that passed between them would pass whatever groups say.
//! - Never what only routers and servers send (router advertisements, redirects, multicast queries, answers of DHCP), nor
//!   tunnels that a node might take the lid off.
//!
//! Every device has a base chain of its own, as nft 1.0.6 cannot add a device to one. Its few rules lead to chains shared by all,
//! which look into sets of devices and addresses: a pod that comes or goes is a few commands, and no rule of another changes.
//! Only hash sets, whose elements are there at the very instant of the commit; the lookups in interval sets lag.
//!
//! Devices come and go as they please. Until Linux 6.15 a chain goes with its device, and none can be made for a device that is
//! not there; since then chains stay, and take hold of any device of that name. So no script relies on a chain to be there or
//! not, and a device that came back under its name counts as changed.

mod elements;
mod expected;
mod skeleton;

use super::layout::GUARDS;
use super::listing::Contents;
use super::{Layout, Name, Plan, Replacement};
use elements::{Element, Set, elements};
use skeleton::skeleton;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Our table for devices.
pub const TABLE: &str = "netdev ringfence";

/// A copy of it, for as long as it takes to replace it. Who takes the product off a node takes off both.
pub const STAND_IN: &str = "netdev ringfence_stand_in";

/// More elements than this go into several commands: nft's cost for one command grows faster than its length.
const BATCH: usize = 2_000;

/// Why a device cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not a name that could be in a script.
    #[error("{0:?} is no name of a device that Ringfence takes: 1 to 15 letters, digits, dots, dashes and underscores")]
    Name(String),
    /// Not a link address.
    #[error("{0:?} is no link address like 02:00:00:00:00:01")]
    Mac(String),
}

/// The name of a network device, fit to stand in a script.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName(String);

impl FromStr for DeviceName {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        // The kernel takes 15 bytes, and neither of the two names that are folders everywhere.
        if (1..=15).contains(&name.len()) && name.chars().all(plain) && !matches!(name, "." | "..") {
            Ok(Self(name.to_owned()))
        } else {
            Err(Invalid::Name(name.to_owned()))
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl FromStr for Mac {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || Invalid::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or_else(invalid)?, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Mac {
    /// The link-local address that a kernel makes of it unless told otherwise (RFC 4291, appendix A).
    fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let pair = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
    }
}

/// What may come out of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The kernel's number for it, which tells it from the next device of its name.
    pub index: u32,
    /// The addresses of whoever is behind it. What cannot be anyone's address counts for nothing.
    pub addresses: BTreeSet<IpAddr>,
    /// Their link address, if it is known. If not, any link-local address passes for their own, as those are made of it.
    pub mac: Option<Mac>,
}

/// All devices that are watched.
pub type Devices = BTreeMap<DeviceName, Device>;

/// Encapsulations that a node might take for its own network's: what is inside would appear to come from anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnels {
    /// IP protocols.
    protocols: BTreeSet<u8>,
    /// Destination ports of UDP.
    udp_ports: BTreeSet<u16>,
}

impl Tunnels {
    /// TCP, UDP and both kinds of ICMP are no tunnels, and stay what they are.
    const NEVER: [u8; 4] = [1, 6, 17, 58];

    /// These protocols and ports.
    pub fn new(protocols: impl IntoIterator<Item = u8>, udp_ports: impl IntoIterator<Item = u16>) -> Self {
        let protocols = protocols.into_iter().filter(|protocol| !Self::NEVER.contains(protocol)).collect();
        Self { protocols, udp_ports: udp_ports.into_iter().collect() }
    }
}

impl Default for Tunnels {
    /// IPIP and 6in4; VXLAN by its own port and by Linux' old one, and Geneve.
    fn default() -> Self {
        Self::new([4, 41], [4789, 8472, 6081])
    }
}

/// All that varies in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// What may not come out of any device. The same for as long as an agent runs: only a replacement changes it.
    pub tunnels: Tunnels,
    /// The devices.
    pub devices: Devices,
}

impl Layout for Watched {
    const TABLE: &'static str = TABLE;
    const STAND_IN: &'static str = STAND_IN;

    fn full(&self) -> String {
        full(&self.tunnels, &self.devices)
    }

    fn plan(&self, next: &Self) -> Plan {
        Plan { switch: plan(&self.devices, &next.devices), ..Plan::default() }
    }

    fn replacement(&self) -> Replacement {
        replacement(&self.tunnels, &self.devices)
    }

    fn expected(&self, next: &Self) -> Contents<'_> {
        expected::expected(self, next)
    }
}

/// The transactions from any state of the table, or none, to this one, with one or the other in force at every instant.
///
/// [`full`] alone is not enough over a table in use. A frame that meets the new chain of its device just before the generation
/// flips, and the old one just after, meets two chains that are empty for it; and one that is inside the old chains when it
/// flips finds nothing in their maps any more, and is dropped. So a copy stands in while the table is replaced, and no frame is
/// inside of either when it goes.
pub fn replacement(tunnels: &Tunnels, devices: &Devices) -> Replacement {
    let full = full(tunnels, devices);
    let mut retired = Script::default();
    retired.line(format_args!("add table {TABLE}"));
    for chain in devices.keys().map(chain_of) {
        // "add" first, as flushing what is not there would fail. Chains of other devices go as they are.
        retired.line(format_args!("add chain {TABLE} {chain}"));
        retired.line(format_args!("flush chain {TABLE} {chain}"));
    }
    // A space is in no name: the table's is nowhere else.
    let stand_in = |script: &str| script.replace(TABLE, STAND_IN);
    let cover = format!("{}add counter {STAND_IN} {GUARDS}\n", stand_in(&full));
    let uncover = format!("{}delete counter {STAND_IN} {GUARDS}\n", stand_in(&retired.text));
    Replacement { cover: vec![cover], replace: vec![retired.text, full, uncover, format!("delete table {STAND_IN}\n")] }
}

/// One transaction from any state of the table, or none, to this one. For a table that no frame meets: see [`replacement`].
pub fn full(tunnels: &Tunnels, devices: &Devices) -> String {
    let mut script = Script::default();
    // "add" first, as deleting what is not there would fail.
    script.line(format_args!("add table {TABLE}"));
    script.line(format_args!("delete table {TABLE}"));
    script.text.push_str(&skeleton(tunnels));
    script.change(&Devices::new(), devices);
    script.text
}

/// The one transaction from one state of the table to another; nothing, if they are the same.
pub fn plan(old: &Devices, new: &Devices) -> Option<String> {
    let mut script = Script::default();
    script.change(old, new);
    Some(script.text).filter(|text| !text.is_empty())
}

#[derive(Default)]
struct Script {
    text: String,
}

impl Script {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    fn change(&mut self, old: &Devices, new: &Devices) {
        let differs = |(name, device): &(&DeviceName, &Device), other: &Devices| other.get(*name) != Some(*device);
        let gone: Vec<_> = old.iter().filter(|entry| differs(entry, new)).collect();
        let come: Vec<_> = new.iter().filter(|entry| differs(entry, old)).collect();

        let (before, after) = (elements(gone.iter().copied()), elements(come.iter().copied()));
        self.elements("delete", before.difference(&after));
        self.elements("add", after.difference(&before));

        for (name, _) in gone.into_iter().filter(|(name, _)| !new.contains_key(*name)) {
            let chain = chain_of(name);
            // "add" first: the chain may have gone with its device. Without a hook this changes nothing about one that is there.
            self.line(format_args!("add chain {TABLE} {chain}"));
            self.line(format_args!("flush chain {TABLE} {chain}"));
            self.line(format_args!("delete chain {TABLE} {chain}"));
        }
        for (name, device) in come {
            let chain = chain_of(name);
            self.line(format_args!(
                "add chain {TABLE} {chain} {{ type filter hook ingress device \"{name}\" priority -500; policy accept; }}"
            ));
            self.line(format_args!("flush chain {TABLE} {chain}"));
            if let Some(mac) = device.mac {
                self.line(format_args!("add rule {TABLE} {chain} ether saddr != {mac} counter name other_mac drop"));
            }
            self.line(format_args!("add rule {TABLE} {chain} goto own"));
        }
    }

    fn elements<'a>(&mut self, command: &str, elements: impl Iterator<Item = &'a Element<'a>>) {
        let mut by_set: BTreeMap<Set, Vec<String>> = BTreeMap::new();
        for element in elements {
            by_set.entry(element.set).or_default().push(element.to_string());
        }
        for (set, elements) in by_set {
            for batch in elements.chunks(BATCH) {
                self.line(format_args!("{command} element {TABLE} {set} {{ {} }}", batch.join(", ")));
            }
        }
    }
}

fn chain_of(device: &DeviceName) -> Name {
    Name::hashed("from", &device.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_rendered() {
        let parse = |name: &str| name.parse::<DeviceName>();
        for good in ["veth12ab34cd", "cali0123456789a", "eth0.100", "lxc_1-a", "..."] {
            assert_eq!(parse(good).map(|n| n.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", ".", "..", "sixteen-letters-", "a b", "a\"b", "a;b", "a/b", "v*", "veth\n", "vëth", "$v", "a@b"]
        {
            assert_eq!(parse(bad), Err(Invalid::Name(bad.to_owned())));
        }
    }

    #[test]
    fn link_addresses() {
        let parse = |text: &str| text.parse::<Mac>();
        let mac = parse("02:00:5E:10:00:fF").unwrap();
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        assert_eq!(mac.link_local().to_string(), "fe80::5eff:fe10:ff");
        for bad in
            ["", "02:00:5e:10:00", "02:00:5e:10:00:ff:00", "2:0:5e:10:0:ff", "+2:00:5e:10:00:ff", "020:0:5e:10:00:ff"]
        {
            assert_eq!(parse(bad), Err(Invalid::Mac(bad.to_owned())));
        }
    }

    pub fn devices(list: &[(&str, u32, &[&str], Option<&str>)]) -> Devices {
        let device = |index, addresses: &[&str], mac: Option<&str>| Device {
            index,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mac: mac.map(|mac| mac.parse().unwrap()),
        };
        list.iter()
            .map(|&(name, index, addresses, mac)| (name.parse().unwrap(), device(index, addresses, mac)))
            .collect()
    }

    #[test]
    fn a_change_concerns_its_device_alone() {
        let old = devices(&[("a", 1, &["10.0.0.1"], None), ("b", 2, &["10.0.0.2", "fd00::2"], None)]);
        assert_eq!(plan(&old, &old), None);
        let mut new = old.clone();
        new.get_mut(&"b".parse().unwrap()).unwrap().addresses =
            ["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()].into();
        let script = plan(&old, &new).unwrap();
        let elements: Vec<&str> = script.lines().filter(|line| line.contains("element")).collect();
        assert_eq!(
            elements,
            [
                "delete element netdev ringfence own_6 { \"b\" . fd00::2 }",
                "delete element netdev ringfence own_targets { \"b\" . 0xfd000000000000000000000000000002 }",
                "add element netdev ringfence own_4 { \"b\" . 10.0.0.3 }",
            ]
        );
        assert!(!script.contains(&chain_of(&"a".parse().unwrap()).to_string()), "{script}");
    }

    #[test]
    fn a_device_that_came_back_under_its_name_is_watched_anew() {
        let (old, new) = (devices(&[("a", 1, &["10.0.0.1"], None)]), devices(&[("a", 7, &["10.0.0.1"], None)]));
        let script = plan(&old, &new).unwrap();
        assert!(script.contains("device \"a\"") && !script.contains("element"), "{script}");
    }
}
