//! The parsed model: groups of rules in normal form.

use super::{CidrSet, PortSet};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// A namespaced name: of a group, a binding, a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl NamespacedName {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for NamespacedName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| format!("{text:?} is not namespace/name"))?;
        Ok(Self::new(namespace, name))
    }
}

/// Into the interface, or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// Towards the guarded interface; the remote is the source.
    Ingress,
    /// From the guarded interface; the remote is the destination.
    Egress,
}

impl Direction {
    /// Both, as groups list their rules.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As the API calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A group's rules, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// What may come in.
    pub ingress: Vec<Rule>,
    /// What may go out.
    pub egress: Vec<Rule>,
}

impl Group {
    /// The rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[Rule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The groups that rules name as their remote.
    pub fn remotes(&self) -> impl Iterator<Item = &NamespacedName> {
        self.ingress.iter().chain(&self.egress).filter_map(|rule| match &rule.remote {
            Remote::Group(key) => Some(key),
            Remote::Cidrs(_) => None,
        })
    }
}

/// One allow rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What kind of traffic.
    pub traffic: Traffic,
    /// With whom.
    pub remote: Remote,
}

impl Rule {
    /// The rule's id: a short hash of its normalised content, so that it survives reordering and rewording.
    pub fn id(&self) -> RuleId {
        let hash = Sha256::digest(self.to_string());
        RuleId(hash.iter().take(5).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// See [`Rule::id`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(String);

impl From<String> for RuleId {
    /// One that was written down.
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of traffic a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// Every protocol.
    Any,
    /// A transport and its destination ports.
    Ports(Transport, PortSet),
    /// ICMP of one or both families.
    Icmp(IcmpMatch),
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// All of them, in the order in which they are rendered.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol with this number, if it has ports.
    pub fn of_number(protocol: u8) -> Option<Self> {
        match protocol {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// Which ICMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IcmpMatch {
    /// ICMP for IPv4 and for IPv6, every type.
    Both,
    /// ICMP for IPv4, of one type.
    V4(IcmpType),
    /// ICMPv6; absent: every type.
    V6(Option<IcmpType>),
}

/// A type and, optionally, one code of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IcmpType {
    /// The type.
    pub type_: u8,
    /// The code; absent: every code.
    pub code: Option<u8>,
}

impl IcmpType {
    /// As conntrack keeps it: type * 256 + code.
    pub fn numbers(self) -> PortSet {
        let (low, high) = self.code.map_or((0, u8::MAX), |code| (code, code));
        PortSet::from_iter([u16::from_be_bytes([self.type_, low])..=u16::from_be_bytes([self.type_, high])])
    }
}

/// The other end. Never optional: nothing that is missing or empty may come to mean "anyone".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Remote {
    /// Addresses.
    Cidrs(CidrSet),
    /// The members of a group.
    Group(NamespacedName),
}

impl fmt::Display for IcmpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "{}/{code}", self.type_),
            None => write!(f, "{}", self.type_),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// The text form that tools and tests share: `TCP 22,8000-9000 203.0.113.10/32`, `ICMP 8/0 sg:shop/app`, `Any 0.0.0.0/0,::/0`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.traffic {
            Traffic::Any => write!(f, "Any ")?,
            Traffic::Ports(transport, ports) if ports.is_all() => write!(f, "{transport} ")?,
            Traffic::Ports(transport, ports) => write!(f, "{transport} {ports} ")?,
            Traffic::Icmp(IcmpMatch::Both) => write!(f, "ICMP ")?,
            Traffic::Icmp(IcmpMatch::V4(icmp)) => write!(f, "ICMP {icmp} ")?,
            Traffic::Icmp(IcmpMatch::V6(None)) => write!(f, "ICMPv6 ")?,
            Traffic::Icmp(IcmpMatch::V6(Some(icmp))) => write!(f, "ICMPv6 {icmp} ")?,
        }
        match &self.remote {
            Remote::Cidrs(cidrs) => write!(f, "{cidrs}"),
            Remote::Group(key) => write!(f, "sg:{key}"),
        }
    }
}
