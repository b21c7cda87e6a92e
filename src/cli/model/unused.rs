//! Rules that no connection used.
//!
//! PURE. What is said of a rule is never more than what is known: silence counts from when connections were counted for it, and
//! not where a node has fallen silent itself.

use super::describe::said;
use super::findings::{Finding, Level};
use super::inventory::Inventory;
use crate::api::{NodeUsage, RuleDirection};
use crate::index::name_of;
use crate::policy::{Direction, NamespacedName, parse_group};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The check's name and what it looks for.
pub const UNUSED: (&str, &str) = ("unused-rule", "No connection used the rule");
/// A day's first match is told, and later ones are not: the last may be so much later.
const DAY: Duration = Duration::from_hours(24);
/// An agent speaks once a day, whatever happens. One that is silent for longer may have seen what it did not tell.
const SILENT: Duration = Duration::from_hours(36);

/// Rules of groups, in one namespace or in all, that were not used for so many days; 0: that were never used since anybody
/// counts.
pub fn unused(inventory: &Inventory, scope: Option<&str>, days: u32, now: Timestamp) -> Vec<Finding> {
    let Some(usages) = &inventory.usages else { return Vec::new() };
    let silent = silent_groups(inventory, usages, now);
    let mut found = Vec::new();
    let groups = inventory.groups.iter().filter(|(name, _)| scope.is_none_or(|scope| name.namespace == scope));
    for (name, group) in groups.filter(|(name, _)| !silent.contains(*name)) {
        let (Some(status), Ok(rules)) = (&group.status, parse_group(&name.namespace, &group.spec)) else { continue };
        for direction in Direction::ALL {
            for rule in rules.rules(direction) {
                let id = rule.id().to_string();
                let used = status.usage.iter().find(|u| u.direction == RuleDirection::from(direction) && u.id == id);
                let Some(used) = used else { continue };
                let last = used.last_matched.as_ref().map(|time| time.0);
                let from = last.map_or(used.since.0, |last| last + DAY);
                let quiet = u64::try_from(now.duration_since(from).as_hours() / 24).unwrap_or_default();
                let is_unused = if days == 0 { last.is_none() } else { quiet >= u64::from(days) };
                if !is_unused {
                    continue;
                }
                let text = said(name, direction, rule);
                let message = match last {
                    Some(last) => format!("{text} was last used on {}: remove it if nothing needs it", day(last)),
                    None => format!(
                        "{text} was not used since connections are counted for it, {}: remove it if nothing needs it",
                        used.since.0.strftime("%Y-%m-%d %H:%M UTC")
                    ),
                };
                found.push(Finding {
                    check: UNUSED.0,
                    level: Level::Note,
                    object: format!("sg/{}", name.name),
                    namespace: name.namespace.clone(),
                    rule: Some(id),
                    message,
                    file: inventory.origins.get(name).cloned(),
                });
            }
        }
    }
    found
}

/// Nodes of which nothing can be said, and up to when they told what they counted.
pub fn silent_nodes(inventory: &Inventory, now: Timestamp) -> BTreeMap<String, Option<Timestamp>> {
    let Some(usages) = &inventory.usages else { return BTreeMap::new() };
    let told: BTreeMap<String, Timestamp> =
        usages.iter().map(|usage| (name_of(&usage.metadata).name, usage.spec.until.0)).collect();
    let enforcing = inventory.reports.iter().filter(|report| report.status.iter().any(|s| !s.groups.is_empty()));
    let enforcing = enforcing.map(|report| name_of(&report.metadata).name);
    let untold = enforcing.filter(|node| !told.contains_key(node)).map(|node| (node, None));
    let silent = told.iter().filter(|(_, until)| now.duration_since(**until).unsigned_abs() > SILENT);
    silent.map(|(node, until)| (node.clone(), Some(*until))).chain(untold).collect()
}

/// The groups of nodes that have not told for long what they counted, and those of which nodes that have them told nothing yet.
fn silent_groups(inventory: &Inventory, usages: &[NodeUsage], now: Timestamp) -> BTreeSet<NamespacedName> {
    let silent = silent_nodes(inventory, now);
    let mut counted: BTreeMap<String, BTreeSet<(NamespacedName, &str)>> = BTreeMap::new();
    for usage in usages {
        let groups = usage.spec.groups.iter();
        let groups = groups.map(|group| (NamespacedName::new(&group.namespace, &group.name), group.uid.as_str()));
        counted.insert(name_of(&usage.metadata).name, groups.collect());
    }
    let outdated = counted.iter().filter(|(node, _)| silent.contains_key(*node)).flat_map(|(_, groups)| groups);
    let mut groups: BTreeSet<NamespacedName> = outdated.map(|(name, _)| name.clone()).collect();
    for report in &inventory.reports {
        let counted = counted.get(&name_of(&report.metadata).name);
        for group in report.status.iter().flat_map(|status| &status.groups) {
            let name = NamespacedName::new(&group.namespace, &group.name);
            let Some(uid) = &group.uid else { continue };
            if !counted.is_some_and(|counted| counted.contains(&(name.clone(), uid))) {
                groups.insert(name);
            }
        }
    }
    groups
}

/// The day of a time, as status tells days.
pub fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{SecurityGroup, SecurityGroupStatus};
    use serde_json::{Value, json};

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).unwrap()
    }

    /// A group with one rule, which is used like this.
    fn inventory(usage: impl Fn(&str) -> Value) -> Inventory {
        let mut group: SecurityGroup = serde_json::from_value(json!({
            "apiVersion": "ringfence.io/v1alpha1", "kind": "SecurityGroup", "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "ingress": [{ "protocol": "TCP", "ports": [80], "remote": { "cidrs": ["0.0.0.0/0"] } }], "egress": [] },
        }))
        .unwrap();
        let id = parse_group("shop", &group.spec).unwrap().ingress[0].id().to_string();
        let usage = serde_json::from_value(usage(&id)).unwrap();
        group.status = Some(SecurityGroupStatus { usage, ..SecurityGroupStatus::default() });
        let groups = [(NamespacedName::new("shop", "web"), group)].into();
        Inventory { groups, usages: Some(Vec::new()), ..Inventory::default() }
    }

    fn used(last: Option<i64>) -> Inventory {
        let time = |day| at(day).to_string();
        inventory(|id| {
            let mut rule = json!({ "id": id, "direction": "ingress", "connections": 1, "since": time(100) });
            if let Some(last) = last {
                rule["lastMatched"] = json!(time(last));
            }
            json!([rule])
        })
    }

    #[test]
    fn silence_counts_from_when_something_counted() {
        for (last, days, now, expected) in [
            (None, 7, 106, false),
            (None, 7, 107, true),
            (None, 0, 100, true),
            (Some(110), 0, 500, false),
            // A day's later matches are not told.
            (Some(110), 7, 117, false),
            (Some(110), 7, 118, true),
        ] {
            let found = unused(&used(last), None, days, at(now));
            assert_eq!(!found.is_empty(), expected, "{last:?} {days} {now}: {found:?}");
        }
        let found = unused(&used(None), Some("shop"), 7, at(107)).remove(0);
        assert!(found.message.contains("since connections are counted for it, 1970-04-11 00:00 UTC"), "{found:?}");
        assert_eq!((found.check, found.level), ("unused-rule", Level::Note));
        assert!(unused(&used(None), Some("bank"), 7, at(107)).is_empty());
        assert!(unused(&inventory(|_| json!([])), None, 0, at(107)).is_empty(), "nobody counts it");
    }

    #[test]
    fn where_a_node_is_silent_nothing_is_said() {
        let mut inventory = used(None);
        let usage = |node: &str, until: i64, groups: Value| -> NodeUsage {
            serde_json::from_value(json!({
                "apiVersion": "ringfence.io/v1alpha1", "kind": "NodeUsage", "metadata": { "name": node },
                "spec": { "epoch": 1, "until": at(until).to_string(), "groups": groups },
            }))
            .unwrap()
        };
        let groups = json!([{ "namespace": "shop", "name": "web", "uid": "u", "rules": [] }]);
        let silent = |inventory: &Inventory| silent_nodes(inventory, at(200)).into_keys().collect::<Vec<_>>();
        let n1 = usage("n1", 199, groups.clone());
        inventory.usages = Some(vec![n1.clone(), usage("n2", 150, json!([]))]);
        assert_eq!(unused(&inventory, None, 30, at(200)).len(), 1, "n2 has no part in it");
        assert_eq!(silent(&inventory), ["n2"]);
        inventory.usages = Some(vec![n1.clone(), usage("n3", 198, groups.clone())]);
        assert_eq!(unused(&inventory, None, 30, at(200)).len(), 0);
        assert_eq!(silent(&inventory), ["n3"]);

        // One that has the group has told nothing, or nothing of this one.
        let attached = json!([{ "namespace": "shop", "name": "web", "uid": "u", "generation": 1, "digest": "" }]);
        inventory.reports = vec![
            serde_json::from_value(json!({
                "apiVersion": "ringfence.io/v1alpha1", "kind": "NodeEnforcement", "metadata": { "name": "n4" }, "spec": {},
                "status": { "groups": attached },
            }))
            .unwrap(),
        ];
        let anew = json!([{ "namespace": "shop", "name": "web", "uid": "another", "rules": [] }]);
        for (told, expected) in [(None, 0), (Some(json!([])), 0), (Some(anew), 0), (Some(groups), 1)] {
            inventory.usages =
                Some(told.iter().map(|told| usage("n4", 199, told.clone())).chain([n1.clone()]).collect());
            assert_eq!(unused(&inventory, None, 30, at(200)).len(), expected, "{told:?}");
            assert_eq!(silent(&inventory).len(), usize::from(told.is_none()));
        }
        // One that has none has nothing to tell.
        inventory.reports[0].status = None;
        inventory.usages = Some(vec![n1]);
        assert_eq!((unused(&inventory, None, 30, at(200)).len(), silent(&inventory).len()), (1, 0));
        inventory.usages = None;
        assert!(unused(&inventory, None, 30, at(200)).is_empty(), "who may not know says nothing");
    }
}
