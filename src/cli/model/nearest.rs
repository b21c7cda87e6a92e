//! Of the rules that do not allow a connection, the one that comes nearest.
//!
//! PURE. What a rule matches is asked of the reference, about worlds that hold this one rule.

use super::snapshot::Guard;
use super::traffic::Steps;
use crate::policy::{
    CidrSet, Connection, Direction, Family, Group, Interface, L4, NamespacedName, Policy, Remote, Rule, Verdict, World,
};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// In what a rule differs from one that would do; the first is the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Miss {
    /// It means this remote and this protocol, and other ports or types.
    Port,
    /// It means this traffic, and other remotes.
    Remote,
    /// It means this remote, and other protocols.
    Protocol,
}

/// A rule that does not allow a connection, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nearest<'a> {
    /// Its group.
    pub group: &'a NamespacedName,
    /// The rule.
    pub rule: &'a Rule,
    /// In what it differs.
    pub miss: Miss,
}

/// The nearest rule of a guard that denies a connection; of equals the first, by group and place in it. None: nothing
/// in common.
pub fn nearest<'a>(
    world: &impl World,
    guard: &'a Guard,
    direction: Direction,
    connection: &Connection,
) -> Option<Nearest<'a>> {
    let rules =
        guard.rules.iter().flat_map(|(name, group)| group.rules(direction).iter().map(move |rule| (name, rule)));
    let found = rules
        .filter_map(|(group, rule)| Some(Nearest { group, rule, miss: miss(world, rule, direction, connection)? }));
    found.min_by_key(|nearest| nearest.miss)
}

fn miss(world: &impl World, rule: &Rule, direction: Direction, connection: &Connection) -> Option<Miss> {
    let remote = match direction {
        Direction::Ingress => connection.source,
        Direction::Egress => connection.destination,
    };
    let family = Family::of(remote);
    match (world.is_remote(rule, remote), carries(rule, direction, connection)) {
        (true, true) => None,
        (false, true) => Some(Miss::Remote),
        (false, false) => None,
        (true, false) => {
            let with = |l4| carries(rule, direction, &Connection { l4, ..*connection });
            let allowed = Steps::of([rule]).allowed(with);
            let same_protocol = match connection.l4 {
                L4::Ports(transport, _) => !allowed.ports(transport).is_empty(),
                L4::Icmp(..) => allowed.describe(family).contains("ICMP"),
                L4::Other => false,
            };
            Some(if same_protocol { Miss::Port } else { Miss::Protocol })
        }
    }
}

/// Whether the rule's traffic is a connection's, whoever its remote is.
pub fn carries(rule: &Rule, direction: Direction, connection: &Connection) -> bool {
    let (own, remote) = match direction {
        Direction::Ingress => (connection.destination, connection.source),
        Direction::Egress => (connection.source, connection.destination),
    };
    let anyone = Rule { remote: Remote::Cidrs(CidrSet::from_iter([IpNet::from(remote)])), ..rule.clone() };
    let mut group = Group::default();
    match direction {
        Direction::Ingress => group.ingress.push(anyone),
        Direction::Egress => group.egress.push(anyone),
    }
    let interface: Interface = [(NamespacedName::new("", ""), Arc::new(group))].into();
    let world = Policy { interfaces: BTreeMap::<IpAddr, Interface>::from([(own, interface)]), ..Policy::default() };
    matches!(world.end(direction, connection), Verdict::Allowed { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_rule;
    use serde_json::{Value, json};

    fn rule(value: Value) -> Rule {
        parse_rule("shop", &serde_json::from_value(value).unwrap()).unwrap()
    }

    fn ask(rules: Vec<Value>, l4: L4) -> Option<(usize, Miss)> {
        let rules: Vec<Rule> = rules.into_iter().map(rule).collect();
        let group = Group { ingress: rules.clone(), egress: vec![] };
        let name = NamespacedName::new("shop", "db");
        let interface: Interface = [(name, Arc::new(group))].into();
        let guard = Guard { id: 0, attached: interface.keys().cloned().collect(), rules: interface };
        let connection =
            Connection { source: "10.0.0.1".parse().unwrap(), destination: "10.0.0.2".parse().unwrap(), l4 };
        let found = nearest(&Policy::default(), &guard, Direction::Ingress, &connection)?;
        Some((rules.iter().position(|rule| rule == found.rule)?, found.miss))
    }

    #[test]
    fn ports_before_remotes_before_protocols() {
        let from = |cidr: &str, protocol: &str, ports: Value| {
            let remote = json!({ "cidrs": [cidr] });
            json!({ "protocol": protocol, "ports": ports, "remote": remote })
        };
        let (us, them) = ("10.0.0.0/8", "192.0.2.0/24");
        let port = from(us, "TCP", json!([22]));
        let remote = from(them, "TCP", json!([80]));
        let protocol = from(us, "UDP", json!([80]));
        let tcp = L4::Ports(crate::policy::Transport::Tcp, 80);
        assert_eq!(ask(vec![protocol.clone(), remote.clone(), port], tcp), Some((2, Miss::Port)));
        assert_eq!(ask(vec![protocol.clone(), remote], tcp), Some((1, Miss::Remote)));
        assert_eq!(ask(vec![protocol], tcp), Some((0, Miss::Protocol)));
        assert_eq!(ask(vec![from(them, "UDP", json!([80]))], tcp), None, "it has nothing in common");
        assert_eq!(ask(vec![from(us, "TCP", json!(["1-100"]))], tcp), None, "it allows it");
    }

    #[test]
    fn types_of_icmp_are_like_ports() {
        let echo = json!({ "protocol": "ICMP", "icmp": { "type": 8 }, "remote": { "cidrs": ["10.0.0.0/8"] } });
        assert_eq!(ask(vec![echo.clone()], L4::Icmp(13, 0)), Some((0, Miss::Port)));
        assert_eq!(ask(vec![echo], L4::Other), Some((0, Miss::Protocol)));
    }
}
