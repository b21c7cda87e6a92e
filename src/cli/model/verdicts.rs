//! Why a connection is allowed or not, at each of its ends.
//!
//! PURE. The verdict is the reference's; this says which rule it came from, what would have been needed, and what else
//! has a say.

use super::describe::{direction_name, local, remote, traffic};
use super::ends::Place;
use super::inventory::Inventory;
use super::snapshot::{Guard, Snapshot};
use crate::index::{Index, Target, TargetKind};
use crate::policy::{
    Connection, Direction, Family, Miss, NamespacedName, Remote, Rule, Verdict, World, carries, nearest, parse_rule,
};
use kube::core::{Selector, SelectorExt};
use serde::Serialize;
use std::net::IpAddr;

/// What one end says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndVerdict {
    /// `egress` of the source, `ingress` of the destination.
    pub direction: &'static str,
    /// Whether it lets the connection pass.
    pub allowed: bool,
    /// Why, in a word: `Unguarded`, `Rule`, `Itself`, `OwnNode` or `NoRule`.
    pub reason: &'static str,
    /// The groups attached to it.
    pub groups: Vec<String>,
    /// The rule that allows it, or the one that comes nearest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleAt>,
    /// What is wrong with the nearest rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Rules that would do if a group that they name existed, or had members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unresolved: Vec<String>,
    /// Network policies that select this end in this direction: they have a say as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_policies: Vec<String>,
}

/// A rule and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleAt {
    /// Its group.
    pub group: String,
    /// Its id.
    pub id: String,
    /// What it allows, and with whom.
    pub text: String,
    /// What it is for.
    pub description: String,
}

/// What is looked at.
pub struct Scene<'a> {
    /// The objects.
    pub inventory: &'a Inventory,
    /// Who is selected.
    pub index: &'a Index,
    /// Who is guarded.
    pub snapshot: &'a Snapshot,
}

impl Scene<'_> {
    /// What an end says of a connection. `own` is that end, `peer` the other one.
    pub fn end(&self, direction: Direction, connection: &Connection, own: &Place, peer: &Place) -> EndVerdict {
        let (address, remote_address) = match direction {
            Direction::Ingress => (connection.destination, connection.source),
            Direction::Egress => (connection.source, connection.destination),
        };
        let target = own.target.as_ref().and_then(|key| self.index.target(key));
        let guard = self.snapshot.guard_of(address);
        let mut verdict = EndVerdict {
            direction: direction_name(direction),
            allowed: true,
            reason: "Unguarded",
            groups: guard.iter().flat_map(|guard| &guard.attached).map(ToString::to_string).collect(),
            rule: None,
            why_not: None,
            unresolved: Vec::new(),
            network_policies: target.map(|target| self.network_policies(target, direction)).unwrap_or_default(),
        };
        let Some(guard) = guard else { return verdict };
        match self.snapshot.end(direction, connection) {
            Verdict::Unguarded => {}
            Verdict::Itself => verdict.reason = "Itself",
            Verdict::Allowed { group, rule } => {
                verdict.reason = "Rule";
                let rules = guard.rules.get(&group).map(|rules| rules.rules(direction)).unwrap_or_default();
                let found = rules.iter().find(|candidate| candidate.id() == rule);
                verdict.rule = found.map(|rule| self.rule_at(&group, direction, rule));
            }
            // Not a matter of rules: probes of the node's own kubelet, for one (S11).
            Verdict::Denied if direction == Direction::Ingress && self.is_own_node(target, remote_address) => {
                verdict.reason = "OwnNode";
            }
            Verdict::Denied => {
                verdict.allowed = false;
                verdict.reason = "NoRule";
                verdict.unresolved = self.unresolved(guard, direction, connection);
                if let Some(found) = nearest(self.snapshot, &guard.rules, direction, connection) {
                    verdict.rule = Some(self.rule_at(found.group, direction, found.rule));
                    verdict.why_not = Some(self.why_not(found.miss, found.rule, peer, remote_address));
                }
            }
        }
        verdict
    }

    fn rule_at(&self, group: &NamespacedName, direction: Direction, rule: &Rule) -> RuleAt {
        let raw = self.inventory.groups.get(group).map(|group| match direction {
            Direction::Ingress => group.spec.ingress.as_slice(),
            Direction::Egress => group.spec.egress.as_slice(),
        });
        let same = |raw: &&crate::api::SecurityGroupRule| parse_rule(&group.namespace, raw).as_ref() == Ok(rule);
        let preposition = if direction == Direction::Ingress { "from" } else { "to" };
        RuleAt {
            group: group.to_string(),
            id: rule.id().to_string(),
            text: format!("{} {preposition} {}", traffic(rule), remote(&rule.remote, &group.namespace)),
            description: raw
                .into_iter()
                .flatten()
                .find(same)
                .and_then(|raw| raw.description.clone())
                .unwrap_or_default(),
        }
    }

    fn why_not(&self, miss: Miss, rule: &Rule, peer: &Place, address: IpAddr) -> String {
        match (miss, &rule.remote) {
            (Miss::Port, _) => "same remote, other port".to_owned(),
            (Miss::Protocol, _) => "same remote, other protocol".to_owned(),
            (Miss::Remote, Remote::Cidrs(_)) => format!("same port, other remote: {address} is not in it"),
            (Miss::Remote, Remote::Group(group)) => {
                format!("same port, other remote: {} is no member of {group}", peer.name)
            }
        }
    }

    /// Rules that match but for a group that is missing or has no members (S6).
    fn unresolved(&self, guard: &Guard, direction: Direction, connection: &Connection) -> Vec<String> {
        let mut found = Vec::new();
        for (name, rule) in guard.rules.iter().flat_map(|(n, g)| g.rules(direction).iter().map(move |r| (n, r))) {
            let Remote::Group(group) = &rule.remote else { continue };
            let what = match self.index.group(group) {
                None => "does not exist",
                Some(_) if self.index.members(group).next().is_none() => "has no members",
                Some(_) => continue,
            };
            if carries(rule, Family::of(connection.source), connection.l4) {
                found.push(format!(
                    "rule {} of {name} names {}, which {what}",
                    rule.id(),
                    local(group, &name.namespace)
                ));
            }
        }
        found
    }

    fn is_own_node(&self, target: Option<&Target>, address: IpAddr) -> bool {
        let Some(node) = target.and_then(|target| target.node.as_deref()) else { return false };
        let nodes = self.inventory.nodes.iter().filter(|known| known.metadata.name.as_deref() == Some(node));
        let addresses = nodes.flat_map(|node| &node.status).flat_map(|status| status.addresses.iter().flatten());
        addresses.filter_map(|known| known.address.parse::<IpAddr>().ok()).any(|known| known == address)
    }

    fn network_policies(&self, target: &Target, direction: Direction) -> Vec<String> {
        if target.kind != TargetKind::Pod {
            return Vec::new();
        }
        let selects = |policy: &k8s_openapi::api::networking::v1::NetworkPolicy| {
            let Some(spec) = &policy.spec else { return false };
            let types = spec.policy_types.clone().unwrap_or_default();
            let concerned = match direction {
                // Where no types are written, ingress is always meant, and egress if there is a rule for it.
                Direction::Ingress => types.is_empty() || types.iter().any(|t| t == "Ingress"),
                Direction::Egress => types.is_empty() && spec.egress.is_some() || types.iter().any(|t| t == "Egress"),
            };
            let selector = Selector::try_from(spec.pod_selector.clone().unwrap_or_default());
            concerned && selector.is_ok_and(|selector| selector.matches(&target.labels))
        };
        let here = self.inventory.network_policies.iter().filter(|(name, _)| name.namespace == target.name.namespace);
        here.filter(|(_, policy)| selects(policy)).map(|(name, _)| name.name.clone()).collect()
    }
}
