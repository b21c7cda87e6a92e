//! Of the rules that do not allow a connection, the one that comes nearest.

use super::{Connection, Direction, Family, IcmpMatch, Interface, L4, NamespacedName, Rule, Traffic, World, carries};
use serde::{Deserialize, Serialize};

/// In what a rule differs from one that would do; the first is the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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

/// The nearest rule of an interface that denies a connection; of equals the first, by group and place in it. None:
/// nothing in common.
pub fn nearest<'a>(
    world: &impl World,
    rules: &'a Interface,
    direction: Direction,
    connection: &Connection,
) -> Option<Nearest<'a>> {
    let rules = rules.iter().flat_map(|(name, group)| group.rules(direction).iter().map(move |rule| (name, rule)));
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
    match (world.is_remote(rule, remote), carries(rule, family, connection.l4)) {
        (true, true) | (false, false) => None,
        (false, true) => Some(Miss::Remote),
        (true, false) if is_same_protocol(rule, family, connection.l4) => Some(Miss::Port),
        (true, false) => Some(Miss::Protocol),
    }
}

fn is_same_protocol(rule: &Rule, family: Family, l4: L4) -> bool {
    match (&rule.traffic, l4) {
        (Traffic::Ports(transport, _), L4::Ports(other, _)) => *transport == other,
        (Traffic::Icmp(icmp), L4::Icmp(..)) => match icmp {
            IcmpMatch::Both => true,
            IcmpMatch::V4(_) => family == Family::V4,
            IcmpMatch::V6(_) => family == Family::V6,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Group, Policy, Transport, parse_rule};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn rule(value: Value) -> Rule {
        parse_rule("shop", &serde_json::from_value(value).unwrap()).unwrap()
    }

    fn ask(rules: Vec<Value>, l4: L4) -> Option<(usize, Miss)> {
        let rules: Vec<Rule> = rules.into_iter().map(rule).collect();
        let group = Group { ingress: rules.clone(), egress: vec![] };
        let name = NamespacedName::new("shop", "db");
        let interface: Interface = [(name, Arc::new(group))].into();
        let connection =
            Connection { source: "10.0.0.1".parse().unwrap(), destination: "10.0.0.2".parse().unwrap(), l4 };
        let found = nearest(&Policy::default(), &interface, Direction::Ingress, &connection)?;
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
        let tcp = L4::Ports(Transport::Tcp, 80);
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
