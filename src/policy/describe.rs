//! Rules and connections in words: those that every tool and every log line uses.

use super::{Direction, Family, IcmpMatch, L4, NamespacedName, Remote, Rule, Traffic};

/// As the API calls it.
pub fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// What a rule allows, without with whom.
pub fn traffic(rule: &Rule) -> String {
    match &rule.traffic {
        Traffic::Any => "Any".to_owned(),
        Traffic::Ports(transport, ports) if ports.is_all() => transport.to_string(),
        Traffic::Ports(transport, ports) => format!("{transport} {ports}"),
        Traffic::Icmp(IcmpMatch::Both) => "ICMP".to_owned(),
        Traffic::Icmp(IcmpMatch::V4(icmp)) => format!("ICMP {icmp}"),
        Traffic::Icmp(IcmpMatch::V6(None)) => "ICMPv6".to_owned(),
        Traffic::Icmp(IcmpMatch::V6(Some(icmp))) => format!("ICMPv6 {icmp}"),
    }
}

/// With whom: groups of the own namespace by their name alone.
pub fn remote(remote: &Remote, namespace: &str) -> String {
    match remote {
        Remote::Cidrs(cidrs) if Family::ALL.iter().all(|family| cidrs.covers(*family)) => "anywhere".to_owned(),
        Remote::Cidrs(cidrs) => cidrs.to_string().replace(',', ", "),
        Remote::Group(group) => format!("sg/{}", local(group, namespace)),
    }
}

/// A name as it is written in a namespace.
pub fn local(name: &NamespacedName, namespace: &str) -> String {
    if name.namespace == namespace { name.name.clone() } else { name.to_string() }
}

/// "TCP 80", "ICMP 8/0".
pub fn l4_text(l4: L4) -> String {
    match l4 {
        L4::Ports(transport, port) => format!("{transport} {port}"),
        L4::Icmp(type_, code) => format!("ICMP {type_}/{code}"),
        L4::Other => "other protocols".to_owned(),
    }
}
