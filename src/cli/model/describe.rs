//! Rules and groups in words, and as data for programs.
//!
//! PURE.

use crate::api::SecurityGroupRule;
use crate::policy::{Direction, parse_rule};
use serde::Serialize;

pub use crate::policy::describe::{direction_name, local, remote, traffic};

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
