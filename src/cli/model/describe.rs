//! Rules and groups in words, and as data for programs.
//!
//! PURE.

use crate::api::SecurityGroupRule;
use crate::policy::{Direction, Family, IcmpMatch, NamespacedName, Remote, Rule, Traffic, parse_rule};
use serde::Serialize;

/// A rule as a tool shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleView {
    /// Short hash of its content: stable over reordering and rewording.
    pub id: String,
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// What it allows: "TCP 22,80".
    pub traffic: String,
    /// With whom.
    pub remote: String,
    /// What it is for.
    pub description: String,
}

/// A rule of a group of this namespace, as a tool shows it; one that cannot be parsed as what is wrong with it.
pub fn rule_view(namespace: &str, direction: Direction, rule: &SecurityGroupRule) -> RuleView {
    let description = rule.description.clone().unwrap_or_default();
    let direction = direction_name(direction);
    match parse_rule(namespace, rule) {
        Ok(rule) => RuleView {
            id: rule.id().to_string(),
            direction,
            traffic: traffic(&rule),
            remote: remote(&rule.remote, namespace),
            description,
        },
        Err(error) => RuleView {
            id: String::new(),
            direction,
            traffic: format!("{:?}", rule.protocol),
            remote: format!("not valid: {}: {}", error.field, error.message),
            description,
        },
    }
}

/// As the API calls it.
pub fn direction_name(direction: Direction) -> &'static str {
    direction.name()
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

/// A rule of a group in a few words: "ingress TCP 22 from anywhere".
pub fn said(group: &NamespacedName, direction: Direction, rule: &Rule) -> String {
    let preposition = if direction == Direction::Ingress { "from" } else { "to" };
    format!("{} {} {preposition} {}", direction_name(direction), traffic(rule), remote(&rule.remote, &group.namespace))
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
