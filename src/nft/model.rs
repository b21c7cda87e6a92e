//! What the table should hold, as data that can be compared.

use super::Profile;
use crate::policy::{Direction, Family, NamespacedName};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The name of something in the table. Made of hashes, never of what users wrote: lengths and characters are ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// A prefix that tells people what it is, and a hash that tells one from another. 96 bits: no one finds two alike.
    pub fn hashed(prefix: &str, content: &str) -> Self {
        let hash = Sha256::digest(content);
        let hex: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{prefix}_{hex}").into())
    }

    /// The set with a group's addresses of one family.
    pub fn group_set(group: &NamespacedName, family: Family) -> Self {
        // A slash is in neither part: "a/bc" and "ab/c" stay two.
        Self::hashed(&format!("g{}", digit(family)), &group.to_string())
    }

    /// As nft reads and writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// 4 or 6, as names and keywords want it.
pub(super) fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// Where a profile's chain is entered from, and so how it sees a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    /// Connections to the guarded interface, by their tuple.
    Ingress,
    /// Connections from the guarded interface, by their tuple.
    Egress,
    /// Packets from the guarded interface to its node that conntrack was told to leave alone (NodeLocal DNSCache): by their
    /// header, as there is no tuple.
    Untracked,
}

impl View {
    /// All of them, in the order in which they are rendered.
    pub const ALL: [Self; 3] = [Self::Ingress, Self::Egress, Self::Untracked];

    /// Whose rules apply.
    pub fn direction(self) -> Direction {
        match self {
            Self::Ingress => Direction::Ingress,
            Self::Egress | Self::Untracked => Direction::Egress,
        }
    }
}

/// Something that is written once, under a name made of its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constant {
    /// A chain, rule by rule.
    Chain(Vec<String>),
    /// An interval set of disjoint networks of one family.
    Cidrs(Family, Vec<IpNet>),
    /// An interval set of ports.
    Ports(Vec<RangeInclusive<u16>>),
    /// A hash map from ports to a verdict.
    SinglePortVerdicts(Vec<(u16, String)>),
    /// An interval map from ports to a verdict.
    PortVerdicts(Vec<(RangeInclusive<u16>, String)>),
}

/// The profile of one guarded address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The chain for each view.
    pub chains: BTreeMap<View, Name>,
}

/// An address set of a group. Shared, so that an unchanged one is known by its pointer.
pub type Addresses = Arc<BTreeSet<IpAddr>>;

/// All that varies in the table. The skeleton around it never does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains, sets and maps that are never edited.
    pub constants: BTreeMap<Name, Arc<Constant>>,
    /// The addresses of groups named as remotes.
    pub groups: BTreeMap<Name, (Family, Addresses)>,
    /// The guarded addresses.
    pub guards: BTreeMap<IpAddr, Guard>,
    /// Of how many denied packets a second the kernel tells, for each guarded address; `None`: of none. It may
    /// begin to tell, and goes on with that as long as there is the table.
    pub told: Option<NonZeroU32>,
}

impl Ruleset {
    /// The ruleset that guards these addresses with these profiles, given the addresses of groups.
    pub fn new<'a>(
        guarded: impl IntoIterator<Item = (IpAddr, &'a Profile)>,
        members: impl Fn(&NamespacedName) -> Addresses,
    ) -> Self {
        let mut ruleset = Self::default();
        let mut remotes = BTreeSet::new();
        for (address, profile) in guarded {
            // Of an address that comes twice, the first profile counts, whole.
            if let Entry::Vacant(guard) = ruleset.guards.entry(address) {
                guard.insert(Guard { chains: profile.chains[&Family::of(address)].clone() });
                ruleset.constants.extend(profile.constants.iter().map(|(n, c)| (n.clone(), c.clone())));
                remotes.extend(&profile.remotes);
            }
        }
        for group in remotes {
            let all = members(group);
            for family in Family::ALL {
                ruleset.groups.insert(Name::group_set(group, family), (family, only(family, &all)));
            }
        }
        ruleset
    }
}

fn only(family: Family, addresses: &Addresses) -> Addresses {
    // Single-family sets, the common case on one side, stay shared.
    if addresses.iter().all(|a| Family::of(*a) == family) {
        return addresses.clone();
    }
    Arc::new(addresses.iter().copied().filter(|a| Family::of(*a) == family).collect())
}
