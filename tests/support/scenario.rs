//! Random policies, and random edits of them, over the addresses and ports that a test can reach.

use super::random::Random;
use ipnet::IpNet;
use ringfence::nft::{self, Ruleset};
use ringfence::policy::{
    CidrSet, Direction, Group, IcmpMatch, IcmpType, Interface, NamespacedName, Policy, PortSet, Remote, Rule, Traffic,
    Transport,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The ports that rules and connections choose from: few, so that they meet, with both ends of the range.
pub const PORTS: [u16; 9] = [1, 22, 80, 81, 443, 8000, 8080, 65534, 65535];
/// ICMP types that begin a conversation: echo, timestamp, information and mask requests.
pub const ICMP_TYPES: [u8; 4] = [8, 13, 15, 17];
/// ICMPv6 types that begin a conversation: echo and node information requests.
pub const ICMPV6_TYPES: [u8; 2] = [128, 139];

/// Prefix lengths that cut near an address, at its byte boundaries, and nowhere.
const V4_LENGTHS: [u8; 10] = [0, 1, 7, 8, 16, 24, 29, 30, 31, 32];
const V6_LENGTHS: [u8; 10] = [0, 1, 16, 32, 64, 96, 125, 126, 127, 128];

/// A pod with one interface.
#[derive(Clone)]
pub struct Pod {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The groups its bindings name, which may not exist; `None`: nobody guards it.
    pub groups: Option<BTreeSet<NamespacedName>>,
}

/// All that a verdict depends on, in the form in which users edit it.
#[derive(Clone)]
pub struct Scenario {
    /// The groups that exist.
    pub groups: BTreeMap<NamespacedName, Arc<Group>>,
    /// The pods.
    pub pods: Vec<Pod>,
    /// Who is in which group; also of groups that only exist elsewhere.
    pub members: BTreeMap<NamespacedName, Arc<BTreeSet<IpAddr>>>,
    /// What CIDRs are made around, and members taken from.
    around: Vec<IpAddr>,
}

/// A group's name in the namespace that the tests use.
pub fn name(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

/// A rule from its parts.
pub fn rule(traffic: Traffic, remote: Remote) -> Rule {
    Rule { traffic, remote }
}

/// Ports of a transport, from ranges.
pub fn ports(transport: Transport, ranges: impl IntoIterator<Item = std::ops::RangeInclusive<u16>>) -> Traffic {
    Traffic::Ports(transport, ranges.into_iter().collect())
}

/// CIDRs as a remote.
pub fn cidrs<'a>(list: impl IntoIterator<Item = &'a str>) -> Remote {
    Remote::Cidrs(list.into_iter().map(|cidr| ringfence::policy::parse_cidr(cidr).unwrap()).collect())
}

/// Anyone as a remote.
pub fn anyone() -> Remote {
    cidrs(["0.0.0.0/0", "::/0"])
}

/// One group as all that is attached to an interface.
pub fn interface(group: Group) -> Interface {
    [(name("only"), Arc::new(group))].into()
}

impl Scenario {
    /// Nobody is guarded, and there are no groups.
    pub fn new(pods: impl IntoIterator<Item = Vec<IpAddr>>, others: impl IntoIterator<Item = IpAddr>) -> Self {
        let pods: Vec<Pod> = pods.into_iter().map(|addresses| Pod { addresses, groups: None }).collect();
        let around = pods.iter().flat_map(|pod| pod.addresses.iter().copied()).chain(others).collect();
        Self { groups: BTreeMap::new(), pods, members: BTreeMap::new(), around }
    }

    /// Random groups, members and bindings.
    pub fn fill(&mut self, random: &mut Random) {
        self.groups.clear();
        self.members.clear();
        for _ in 0..2 + random.below(4) {
            let group = Group { ingress: self.rules(random), egress: self.rules(random) };
            self.groups.insert(group_name(random), Arc::new(group));
        }
        for _ in 0..6 {
            let members = (0..random.below(6)).map(|_| *random.pick(&self.around)).collect();
            self.members.insert(group_name(random), Arc::new(members));
        }
        for pod in 0..self.pods.len() {
            self.pods[pod].groups =
                random.percent(75).then(|| (0..random.below(4)).map(|_| group_name(random)).collect());
        }
    }

    /// Changes one thing, and says what.
    pub fn edit(&mut self, random: &mut Random) -> String {
        let pod = random.below(self.pods.len());
        match random.below(8) {
            0 | 1 => self.edit_rules(random),
            2..=4 => {
                let group = group_name(random);
                let address = *random.pick(&self.around);
                let members = Arc::make_mut(self.members.entry(group.clone()).or_default());
                let comes = members.insert(address) || !members.remove(&address);
                format!("{address} {} {group}", if comes { "joins" } else { "leaves" })
            }
            5 | 6 => {
                let group = group_name(random);
                let groups = self.pods[pod].groups.get_or_insert_default();
                let comes = groups.insert(group.clone()) || !groups.remove(&group);
                format!("{group} {} pod {pod}", if comes { "attached to" } else { "detached from" })
            }
            _ => {
                let guarded = self.pods[pod].groups.is_some();
                self.pods[pod].groups = (!guarded).then(|| [group_name(random)].into());
                format!("pod {pod} {} guarded", if guarded { "no longer" } else { "now" })
            }
        }
    }

    fn edit_rules(&mut self, random: &mut Random) -> String {
        let key = group_name(random);
        if self.groups.contains_key(&key) && random.percent(10) {
            self.groups.remove(&key);
            return format!("{key} deleted");
        }
        let added = self.rule(random);
        let group = Arc::make_mut(self.groups.entry(key.clone()).or_default());
        let (direction, rules) = match random.below(2) {
            0 => (Direction::Ingress, &mut group.ingress),
            _ => (Direction::Egress, &mut group.egress),
        };
        if rules.is_empty() || random.percent(50) {
            let text = format!("{key} {direction:?} + {added}");
            rules.push(added);
            text
        } else {
            let removed = rules.swap_remove(random.below(rules.len()));
            format!("{key} {direction:?} - {removed}")
        }
    }

    fn rules(&self, random: &mut Random) -> Vec<Rule> {
        (0..random.below(7)).map(|_| self.rule(random)).collect()
    }

    fn rule(&self, random: &mut Random) -> Rule {
        let traffic = match random.below(20) {
            0 | 1 => Traffic::Any,
            2..=7 => Traffic::Ports(Transport::Tcp, some_ports(random)),
            8..=12 => Traffic::Ports(Transport::Udp, some_ports(random)),
            13 | 14 => Traffic::Ports(Transport::Sctp, some_ports(random)),
            15 | 16 => Traffic::Icmp(IcmpMatch::Both),
            17 => Traffic::Icmp(IcmpMatch::V4(some_type(random, &ICMP_TYPES))),
            18 => Traffic::Icmp(IcmpMatch::V6(Some(some_type(random, &ICMPV6_TYPES)))),
            _ => Traffic::Icmp(IcmpMatch::V6(None)),
        };
        let remote = if random.percent(50) {
            Remote::Group(group_name(random))
        } else {
            Remote::Cidrs((0..1 + random.below(4)).map(|_| self.cidr(random)).collect())
        };
        Rule { traffic, remote }
    }

    fn cidr(&self, random: &mut Random) -> IpNet {
        let address = *random.pick(&self.around);
        let lengths = if address.is_ipv4() { &V4_LENGTHS } else { &V6_LENGTHS };
        // Mostly narrow: what admits everybody hides the other rules.
        let length = if random.percent(70) { random.pick(&lengths[6..]) } else { random.pick(lengths) };
        IpNet::new(address, *length).unwrap().trunc()
    }

    /// As the reference semantics want it.
    pub fn policy(&self) -> Policy {
        let hosts = |addresses: &BTreeSet<IpAddr>| addresses.iter().copied().map(IpNet::from).collect::<CidrSet>();
        Policy {
            interfaces: self.guarded().collect(),
            members: self.members.iter().map(|(group, addresses)| (group.clone(), hosts(addresses))).collect(),
        }
    }

    /// As the kernel wants it.
    pub fn ruleset(&self) -> Ruleset {
        let profiles: Vec<_> = self.guarded().map(|(address, groups)| (address, nft::compile(&groups))).collect();
        let members = |group: &NamespacedName| self.members.get(group).cloned().unwrap_or_default();
        Ruleset::new(profiles.iter().map(|(address, profile)| (*address, profile)), members)
    }

    fn guarded(&self) -> impl Iterator<Item = (IpAddr, Interface)> {
        self.pods.iter().flat_map(|pod| {
            let groups: Option<Interface> = pod.groups.as_ref().map(|names| {
                names.iter().filter_map(|name| Some((name.clone(), self.groups.get(name)?.clone()))).collect()
            });
            pod.addresses.iter().filter_map(move |address| Some((*address, groups.clone()?)))
        })
    }
}

/// One of few names, of which some exist.
fn group_name(random: &mut Random) -> NamespacedName {
    const NAMES: [(&str, &str); 8] = [
        ("a", "bc"),
        ("ab", "c"),
        ("shop", "web"),
        ("shop", "app"),
        ("shop", "db"),
        ("bank", "web"),
        ("bank", "x"),
        ("bank", "y"),
    ];
    let (namespace, name) = *random.pick(&NAMES);
    NamespacedName::new(namespace, name)
}

fn some_ports(random: &mut Random) -> PortSet {
    if random.percent(15) {
        return PortSet::all();
    }
    let range = |random: &mut Random| {
        let (a, b) = (*random.pick(&PORTS), *random.pick(&PORTS));
        if random.percent(60) { a..=a } else { a.min(b)..=a.max(b) }
    };
    (0..1 + random.below(3)).map(|_| range(random)).collect()
}

fn some_type(random: &mut Random, types: &[u8]) -> IcmpType {
    IcmpType { type_: *random.pick(types), code: random.percent(50).then(|| random.below(2) as u8) }
}

/// Everything, for the message of a test that fails.
impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, group) in &self.groups {
            writeln!(f, "group {name}")?;
            for (arrow, rules) in [("in ", &group.ingress), ("out", &group.egress)] {
                for rule in rules {
                    writeln!(f, "  {arrow} {rule}")?;
                }
            }
        }
        for (group, addresses) in &self.members {
            writeln!(f, "members of {group}: {addresses:?}")?;
        }
        for (i, pod) in self.pods.iter().enumerate() {
            let groups = pod.groups.as_ref().map(|g| g.iter().map(ToString::to_string).collect::<Vec<_>>());
            writeln!(f, "pod {i} {:?}: {groups:?}", pod.addresses)?;
        }
        Ok(())
    }
}
