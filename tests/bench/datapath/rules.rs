//! Rules as a large tenant would have them, and the members of the groups they name.

use super::support::scenario::{cidrs, name, ports, rule};
use ringfence::nft::model::Addresses;
use ringfence::policy::{Family, Group, Remote, Rule, Traffic, Transport};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The port that is measured. What matches it is the last of all that is looked at.
pub const PORT: u16 = 8443;
/// Remote groups that rules choose from.
const GROUPS: usize = 20;

/// How much there is to look through.
#[derive(Clone, Copy)]
pub struct Size {
    /// Rules in the direction that is measured.
    pub rules: usize,
    /// Addresses of remote groups.
    pub addresses: usize,
    /// Groups that may use [`PORT`].
    pub port_groups: usize,
    /// What lets the client in.
    pub client: Client,
}

/// What lets the client in, and nothing else does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// It is in the last of the groups that may use [`PORT`].
    Member,
    /// It is in one of the networks that may, which are looked at after all groups.
    InNetwork,
}

/// Where the client and the server have their addresses.
const ENDS: [&str; 4] = ["10.77.0.0/24", "10.200.0.0/24", "fd77::/120", "fd20::/120"];

/// Rules for one direction. The first ones are about [`PORT`], to be met by all that follows; the rest is a mixture of
/// ports, ranges, groups and networks.
pub fn rules(size: Size) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(size.rules);
    for transport in [Transport::Tcp, Transport::Udp] {
        for group in GROUPS - size.port_groups..GROUPS {
            // Half of them mean the port by a range around it.
            let range = if group % 2 == 0 { PORT - 43..=PORT + 57 + group as u16 } else { PORT..=PORT };
            rules.push(rule(ports(transport, [range]), group_remote(group)));
        }
    }
    if size.rules > 2 {
        rules.push(rule(Traffic::Any, cidrs(["192.0.2.0/24", "2001:db8:1::/64"])));
        let ends = if size.client == Client::InNetwork { &ENDS[..] } else { &[] };
        rules.push(rule(ports(Transport::Udp, [8000..=9000]), networks(1, 40, ends)));
        rules.push(rule(ports(Transport::Tcp, [8000..=9000]), networks(2, 40, ends)));
    }
    for i in rules.len()..size.rules {
        let transport = if i % 4 == 3 { Transport::Udp } else { Transport::Tcp };
        let low = 1_000 + (i * 37 % 6_000) as u16;
        let ranges = match i % 5 {
            0 => vec![low..=low + 50],
            1 => vec![low..=low, 20_000 + low..=20_000 + low],
            _ => vec![low..=low],
        };
        let remote = if i % 7 == 6 { networks(i, 1 + i % 8, &[]) } else { group_remote(i % GROUPS) };
        rules.push(rule(ports(transport, ranges), remote));
    }
    assert_eq!(rules.len(), size.rules);
    rules
}

/// The group that is guarded, with the same rules inwards and outwards.
pub fn group(size: Size) -> Group {
    Group { ingress: rules(size), egress: rules(size) }
}

/// The members of the remote group with this number.
pub fn members(size: Size, family: Family, group: usize, ends: &[IpAddr]) -> Addresses {
    let count = size.addresses / GROUPS;
    let own = (group * count..(group + 1) * count).map(|i| remote(family, i as u32));
    let ends = ends.iter().copied().filter(|_| size.client == Client::Member && group == GROUPS - 1);
    Arc::new(own.chain(ends).collect::<BTreeSet<IpAddr>>())
}

/// The number in the name of a remote group.
pub fn number(group: &ringfence::policy::NamespacedName) -> usize {
    group.name.strip_prefix("remote-").and_then(|digits| digits.parse().ok()).unwrap()
}

fn group_remote(group: usize) -> Remote {
    Remote::Group(name(&format!("remote-{group:02}")))
}

/// Addresses scattered like those of pods on many nodes.
fn remote(family: Family, i: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(0x0a80_0000 + i * 5).into(),
        Family::V6 => Ipv6Addr::from_bits((0xfd10 << 112) | (u128::from(i / 100) << 64) | u128::from(i * 5)).into(),
    }
}

fn networks(seed: usize, count: usize, besides: &[&str]) -> Remote {
    let list: Vec<String> = (0..count)
        .flat_map(|i| {
            let (a, b) = (seed % 200, i * 3 % 256);
            [format!("172.{}.{b}.0/24", 16 + a % 16), format!("2001:db8:{a:x}:{b:x}::/64")]
        })
        .collect();
    cidrs(list.iter().map(String::as_str).chain(besides.iter().copied()))
}
