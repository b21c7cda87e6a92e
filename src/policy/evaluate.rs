//! The reference semantics: would this connection be allowed, and by which rule?

use super::{CidrSet, Direction, Family, Group, IcmpMatch, NamespacedName, Remote, Rule, RuleId, Traffic, Transport};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// A connection as its first packet is seen between DNAT and SNAT (S12): true client, real backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Who opened it.
    pub source: IpAddr,
    /// Whom to.
    pub destination: IpAddr,
    /// What it carries.
    pub l4: L4,
}

/// What a connection carries, as far as rules can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum L4 {
    /// A transport, and the destination port.
    Ports(Transport, u16),
    /// ICMP of the family of the addresses: type and code.
    Icmp(u8, u8),
    /// Any other protocol.
    Other,
}

/// A guarded interface: the groups attached to it, missing ones left out (S6).
pub type Interface = BTreeMap<NamespacedName, Arc<Group>>;

/// Everything a verdict depends on besides the connection.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The guarded interfaces by address; who is not here passes untouched.
    pub interfaces: BTreeMap<IpAddr, Interface>,
    /// The addresses of groups. A group that is not here matches nobody.
    pub members: BTreeMap<NamespacedName, CidrSet>,
}

/// What one end of a connection says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No binding selects this end.
    Unguarded,
    /// A rule of a group allows it.
    Allowed {
        /// The group.
        group: NamespacedName,
        /// The rule.
        rule: RuleId,
    },
    /// A pod reaches itself through a Service.
    Itself,
    /// No rule allows it.
    Denied,
}

/// Both ends' verdicts. A connection needs both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Of the source, going out.
    pub egress: Verdict,
    /// Of the destination, coming in.
    pub ingress: Verdict,
}

impl Decision {
    /// Whether the connection comes to be.
    pub fn allowed(&self) -> bool {
        self.egress != Verdict::Denied && self.ingress != Verdict::Denied
    }
}

/// Where a connection's verdict is looked up: who is guarded by what, and who is in which group.
pub trait World {
    /// The groups attached to the interface with this address; `None`: unguarded.
    fn interface(&self, address: IpAddr) -> Option<&Interface>;
    /// Whether an address belongs to a member of a group.
    fn is_member(&self, group: &NamespacedName, address: IpAddr) -> bool;

    /// The verdict on a connection.
    fn evaluate(&self, connection: &Connection) -> Decision {
        Decision { egress: self.end(Direction::Egress, connection), ingress: self.end(Direction::Ingress, connection) }
    }

    /// The verdict of one end.
    fn end(&self, direction: Direction, connection: &Connection) -> Verdict {
        let Connection { source, destination, l4 } = *connection;
        let (own, remote) = match direction {
            Direction::Ingress => (destination, source),
            Direction::Egress => (source, destination),
        };
        let Some(groups) = self.interface(own) else {
            return Verdict::Unguarded;
        };
        if own == remote {
            return Verdict::Itself;
        }
        let family = Family::of(own);
        groups
            .iter()
            .flat_map(|(name, group)| group.rules(direction).iter().map(move |rule| (name, rule)))
            .find(|(_, rule)| carries(rule, family, l4) && self.is_remote(rule, remote))
            .map_or(Verdict::Denied, |(group, rule)| Verdict::Allowed { group: group.clone(), rule: rule.id() })
    }

    /// Whether a rule means this address as its remote.
    fn is_remote(&self, rule: &Rule, address: IpAddr) -> bool {
        match &rule.remote {
            Remote::Cidrs(cidrs) => cidrs.contains(address),
            Remote::Group(group) => self.is_member(group, address),
        }
    }
}

impl World for Policy {
    fn interface(&self, address: IpAddr) -> Option<&Interface> {
        self.interfaces.get(&address)
    }

    fn is_member(&self, group: &NamespacedName, address: IpAddr) -> bool {
        self.members.get(group).is_some_and(|addresses| addresses.contains(address))
    }
}

/// Whether a rule's traffic is this, between addresses of this family, whoever its remote is.
pub fn carries(rule: &Rule, family: Family, l4: L4) -> bool {
    match (&rule.traffic, l4) {
        (Traffic::Any, _) => true,
        (Traffic::Ports(transport, ports), L4::Ports(t, port)) => *transport == t && ports.contains(port),
        (Traffic::Icmp(icmp), L4::Icmp(type_, code)) => match (icmp, family) {
            (IcmpMatch::Both, _) | (IcmpMatch::V6(None), Family::V6) => true,
            (IcmpMatch::V4(t), Family::V4) | (IcmpMatch::V6(Some(t)), Family::V6) => {
                t.type_ == type_ && t.code.is_none_or(|c| c == code)
            }
            (IcmpMatch::V4(_), Family::V6) | (IcmpMatch::V6(_), Family::V4) => false,
        },
        (Traffic::Ports(..), L4::Icmp(..) | L4::Other) | (Traffic::Icmp(_), L4::Ports(..) | L4::Other) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{IcmpType, PortSet, parse_cidr};

    const WEB: &str = "10.244.1.7";
    const APP: &str = "10.244.2.8";

    fn cidrs(list: &[&str]) -> CidrSet {
        list.iter().map(|c| parse_cidr(c).unwrap()).collect()
    }

    fn tcp(ports: std::ops::RangeInclusive<u16>, remote: Remote) -> Rule {
        Rule { traffic: Traffic::Ports(Transport::Tcp, PortSet::from_iter([ports])), remote }
    }

    fn app() -> NamespacedName {
        NamespacedName::new("shop", "app")
    }

    /// WEB is guarded by the given rules; APP is a member of shop/app, and unguarded.
    fn world(ingress: Vec<Rule>, egress: Vec<Rule>) -> Policy {
        let group = (NamespacedName::new("shop", "web"), Arc::new(Group { ingress, egress }));
        Policy {
            interfaces: [(WEB.parse().unwrap(), [group].into())].into(),
            members: [(app(), cidrs(&["10.244.2.8/32"]))].into(),
        }
    }

    fn connection(source: &str, destination: &str, l4: L4) -> Connection {
        Connection { source: source.parse().unwrap(), destination: destination.parse().unwrap(), l4 }
    }

    #[test]
    fn s1_default_deny_in_both_directions() {
        let closed = world(vec![], vec![]);
        let port = L4::Ports(Transport::Tcp, 80);
        assert_eq!(closed.evaluate(&connection(APP, WEB, port)).ingress, Verdict::Denied);
        assert_eq!(closed.evaluate(&connection(WEB, APP, port)).egress, Verdict::Denied);
        assert!(closed.evaluate(&connection(APP, "10.9.9.9", port)).allowed(), "nobody guards these");
    }

    #[test]
    fn s5_group_as_remote_and_destination_ports() {
        let world = world(vec![tcp(80..=90, Remote::Group(app()))], vec![]);
        let verdict =
            |source, port| world.evaluate(&connection(source, WEB, L4::Ports(Transport::Tcp, port))).allowed();
        assert!(verdict(APP, 80) && verdict(APP, 90));
        assert!(!verdict(APP, 91) && !verdict("10.244.2.9", 80));
        assert!(!world.evaluate(&connection(APP, WEB, L4::Ports(Transport::Udp, 80))).allowed());
    }

    #[test]
    fn s6_unknown_is_nobody() {
        let nobody = Remote::Group(NamespacedName::new("shop", "missing"));
        let world = world(vec![tcp(1..=65535, nobody)], vec![]);
        assert!(!world.evaluate(&connection(APP, WEB, L4::Ports(Transport::Tcp, 80))).allowed());
    }

    #[test]
    fn icmp_types_belong_to_their_family() {
        let rule = |icmp| Rule { traffic: Traffic::Icmp(icmp), remote: Remote::Cidrs(cidrs(&["0.0.0.0/0", "::/0"])) };
        let echo = IcmpType { type_: 8, code: Some(0) };
        let v4 = world(vec![rule(IcmpMatch::V4(echo))], vec![]);
        assert!(v4.evaluate(&connection(APP, WEB, L4::Icmp(8, 0))).allowed());
        assert!(!v4.evaluate(&connection(APP, WEB, L4::Icmp(8, 1))).allowed());
        assert!(!carries(&rule(IcmpMatch::V4(echo)), Family::V6, L4::Icmp(8, 0)));
        assert!(carries(&rule(IcmpMatch::Both), Family::V6, L4::Icmp(128, 0)));
        assert!(!carries(&rule(IcmpMatch::V6(None)), Family::V4, L4::Icmp(8, 0)));
    }

    #[test]
    fn a_pod_may_reach_itself_and_the_rule_is_named() {
        let world = world(vec![tcp(80..=80, Remote::Group(app()))], vec![]);
        assert_eq!(world.evaluate(&connection(WEB, WEB, L4::Other)).egress, Verdict::Itself);
        let Verdict::Allowed { group, rule } =
            world.evaluate(&connection(APP, WEB, L4::Ports(Transport::Tcp, 80))).ingress
        else {
            panic!("must be allowed")
        };
        assert_eq!(group, NamespacedName::new("shop", "web"));
        assert_eq!(rule, tcp(80..=80, Remote::Group(app())).id());
    }
}
