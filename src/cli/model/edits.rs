//! What a change does to objects: groups with the rules that come and go, bindings, interfaces.
//!
//! PURE. Says nothing about connections; that is [`super::rows`].

use super::describe::{RuleView, rule_view};
use super::inventory::Inventory;
use crate::api::SecurityGroup;
use crate::policy::{Direction, NamespacedName};
use serde::Serialize;
use std::collections::BTreeSet;

/// One object that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Edit {
    /// `sg`, `sgb` or `nic`.
    pub kind: &'static str,
    /// Its namespace and name.
    pub name: String,
    /// `created`, `changed` or `deleted`.
    pub what: &'static str,
    /// Of a group: the rules that come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<RuleView>,
    /// Of a group: the rules that go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RuleView>,
}

/// What differs in a way that matters to connections.
pub fn edits(before: &Inventory, after: &Inventory) -> Vec<Edit> {
    let mut edits = Vec::new();
    for name in names(before.groups.keys(), after.groups.keys()) {
        let (old, new) = (rules(name, before.groups.get(name)), rules(name, after.groups.get(name)));
        let without = |rules: &[RuleView], other: &[RuleView]| -> Vec<RuleView> {
            let same = |a: &RuleView, b: &RuleView| (a.direction, &a.id) == (b.direction, &b.id);
            rules.iter().filter(|rule| !other.iter().any(|other| same(rule, other))).cloned().collect()
        };
        let (added, removed) = (without(&new, &old), without(&old, &new));
        let what = what(before.groups.contains_key(name), after.groups.contains_key(name));
        if what != "changed" || !added.is_empty() || !removed.is_empty() {
            edits.push(Edit { kind: "sg", name: name.to_string(), what, added, removed });
        }
    }
    let mut plain = |kind, name: &NamespacedName, was: bool, is: bool| {
        let (added, removed) = (Vec::new(), Vec::new());
        edits.push(Edit { kind, name: name.to_string(), what: what(was, is), added, removed });
    };
    for name in names(before.bindings.keys(), after.bindings.keys()) {
        let (old, new) = (before.bindings.get(name), after.bindings.get(name));
        if old.map(|binding| &binding.spec) != new.map(|binding| &binding.spec) {
            plain("sgb", name, old.is_some(), new.is_some());
        }
    }
    for name in names(before.interfaces.keys(), after.interfaces.keys()) {
        let (old, new) = (before.interfaces.get(name), after.interfaces.get(name));
        let labels = |interface: &crate::api::NetworkInterface| interface.metadata.labels.clone();
        if old.map(|i| (&i.spec, labels(i))) != new.map(|i| (&i.spec, labels(i))) {
            plain("nic", name, old.is_some(), new.is_some());
        }
    }
    edits
}

fn names<'a>(
    before: impl Iterator<Item = &'a NamespacedName>,
    after: impl Iterator<Item = &'a NamespacedName>,
) -> BTreeSet<&'a NamespacedName> {
    before.chain(after).collect()
}

fn what(was: bool, is: bool) -> &'static str {
    match (was, is) {
        (false, _) => "created",
        (_, false) => "deleted",
        _ => "changed",
    }
}

fn rules(name: &NamespacedName, group: Option<&SecurityGroup>) -> Vec<RuleView> {
    let Some(group) = group else { return Vec::new() };
    let view = |direction| move |rule| rule_view(&name.namespace, direction, rule);
    let ingress = group.spec.ingress.iter().map(view(Direction::Ingress));
    ingress.chain(group.spec.egress.iter().map(view(Direction::Egress))).collect()
}
