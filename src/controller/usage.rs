//! How rules are used, summed over nodes.
//!
//! PURE. A group's status is sent to every agent that watches it, so it is written when there is news, not when there is another
//! number: a first match, one a day after the last that was told, a count that has doubled.

use crate::api::{NodeUsageSpec, RuleDirection, RuleUsage, UsedGroup, UsedRule};
use crate::index::Group;
use crate::policy::{Direction, NamespacedName};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, BTreeSet, HashMap};

type Key = (RuleDirection, String);

/// What one node tells of one group.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    uid: String,
    gap: Option<Timestamp>,
    rules: BTreeMap<Key, UsedRule>,
}

/// What nodes tell.
#[derive(Debug, Default)]
pub struct Usages {
    nodes: BTreeMap<String, BTreeSet<NamespacedName>>,
    groups: HashMap<NamespacedName, BTreeMap<String, Told>>,
    /// How many connections nodes counted that are gone: what the status of the group said when the last of them went, and what
    /// that one had counted.
    departed: HashMap<NamespacedName, BTreeMap<Key, i64>>,
}

impl Usages {
    /// Takes in what a node tells, `None` if it tells nothing any more. Returns the groups of which that is another thing.
    pub fn set(&mut self, node: &str, usage: Option<NodeUsageSpec>) -> BTreeSet<NamespacedName> {
        let gap = usage.as_ref().and_then(|usage| usage.gap.as_ref()).map(|time| time.0);
        let told = usage.into_iter().flat_map(|usage| usage.groups).map(|group| {
            let UsedGroup { namespace, name, uid, rules } = group;
            let rules = rules.into_iter().map(|rule| ((rule.direction, rule.id.clone()), rule)).collect();
            (NamespacedName { namespace, name }, Told { uid, gap, rules })
        });
        let mut told: BTreeMap<NamespacedName, Told> = told.collect();
        let before = self.nodes.remove(node).unwrap_or_default();
        if !told.is_empty() {
            self.nodes.insert(node.to_owned(), told.keys().cloned().collect());
        }
        let all: BTreeSet<NamespacedName> = told.keys().cloned().chain(before).collect();
        let mut differing = BTreeSet::new();
        for name in all {
            let nodes = self.groups.entry(name.clone()).or_default();
            let now = told.remove(&name);
            let same = nodes.get(node) == now.as_ref();
            match now {
                Some(now) => drop(nodes.insert(node.to_owned(), now)),
                None => drop(nodes.remove(node)),
            }
            if nodes.is_empty() {
                self.groups.remove(&name);
            }
            if !same {
                differing.insert(name);
            }
        }
        differing
    }

    /// The names of the nodes that tell something.
    pub fn nodes(&self) -> impl Iterator<Item = &String> {
        self.nodes.keys()
    }

    /// A node is about to be forgotten, as it is gone for good: what it counted of groups counts on. `said` is what their
    /// statuses say.
    pub fn depart<'a>(&mut self, node: &str, said: impl Fn(&NamespacedName) -> Option<&'a [RuleUsage]>) {
        for name in self.nodes.get(node).into_iter().flatten() {
            let (Some(said), Some(told)) = (said(name), self.groups.get(name).and_then(|nodes| nodes.get(node))) else {
                continue;
            };
            let departed = self.departed.entry(name.clone()).or_default();
            for (key, rule) in &told.rules {
                let said = said.iter().find(|said| said.direction == key.0 && said.id == key.1);
                let before = departed.entry(key.clone()).or_default();
                *before = (*before).max(said.map_or(0, |said| said.departed)).saturating_add(rule.connections);
            }
        }
    }

    /// Statuses say it: for who begins to write them.
    pub fn forget_departed(&mut self) {
        self.departed.clear();
    }

    /// What to say of a group's rules: what was said before, unless there is news.
    pub fn of_group(&self, group: &Group, before: &[RuleUsage]) -> Vec<RuleUsage> {
        // That its rules cannot be read now says nothing about how they are used.
        let Some(rules) = &group.rules else { return before.to_vec() };
        let nodes: Vec<&Told> = self.groups.get(&group.name).into_iter().flat_map(BTreeMap::values).collect();
        let nodes: Vec<&Told> = nodes.into_iter().filter(|told| told.uid == group.uid).collect();
        let mut now = Vec::new();
        let mut seen = BTreeSet::new();
        for direction in Direction::ALL {
            for rule in rules.rules(direction) {
                let key = (RuleDirection::from(direction), rule.id().to_string());
                if seen.insert(key.clone()) {
                    let before = before.iter().find(|said| said.direction == key.0 && said.id == key.1);
                    now.extend(self.of_rule(&group.name, &nodes, key, before));
                }
            }
        }
        let same_rules = before.len() == now.len()
            && before.iter().zip(&now).all(|(a, b)| (a.direction, &a.id) == (b.direction, &b.id));
        if same_rules && !before.iter().zip(&now).any(|(before, now)| is_news(before, now)) {
            return before.to_vec();
        }
        now
    }

    fn of_rule(
        &self,
        group: &NamespacedName,
        nodes: &[&Told],
        key: Key,
        before: Option<&RuleUsage>,
    ) -> Option<RuleUsage> {
        let told: Vec<(&UsedRule, Option<Timestamp>)> =
            nodes.iter().filter_map(|told| Some((told.rules.get(&key)?, told.gap))).collect();
        let departed = self.departed.get(group).and_then(|departed| departed.get(&key)).copied().unwrap_or_default();
        let departed = departed.max(before.map_or(0, |before| before.departed));
        let here: i64 = told.iter().fold(0, |sum, (rule, _)| sum.saturating_add(rule.connections));
        let last = told.iter().filter_map(|(rule, _)| rule.last_matched.as_ref());
        let last = last.chain(before.and_then(|before| before.last_matched.as_ref())).map(|time| time.0).max();
        // The first node to know the rule knew it when no other had it. What is missed anywhere, is missed.
        let begun = match before {
            Some(before) => before.since.0,
            None => told.iter().map(|(rule, _)| rule.since.0).min()?,
        };
        let since = told.iter().filter_map(|(_, gap)| *gap).chain([begun]).max().unwrap_or(begun);
        let (direction, id) = key;
        Some(RuleUsage {
            id,
            direction,
            connections: here.saturating_add(departed),
            departed,
            last_matched: last.map(Time),
            since: Time(since),
        })
    }
}

fn is_news(before: &RuleUsage, now: &RuleUsage) -> bool {
    // A day of its own for each: with the calendar's, all groups would be written at midnight.
    let later = match [before, now].map(|usage| usage.last_matched.as_ref().map(|time| time.0)) {
        [Some(before), Some(now)] => now.duration_since(before).as_hours() >= 24,
        [before, now] => before != now,
    };
    later
        || before.since != now.since
        || before.departed != now.departed
        || now.connections >= before.connections.saturating_mul(2).max(1) && now.connections != before.connections
}
