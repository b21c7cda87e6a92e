//! How rules are used, summed over nodes.
//!
//! PURE. A group's status is sent to every agent that watches it, so it is written when there is news, not when there is another
//! number: a first match, one a day after the last that was told, a count that has doubled. What a node tells costs as much as
//! that is, however many other nodes there are.

use crate::api::{NodeUsageSpec, RuleDirection, RuleUsage, UsedRule};
use crate::index::Group;
use crate::policy::{Direction, NamespacedName};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

type Key = (RuleDirection, String);

/// A group: others may have had its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Its name.
    pub name: NamespacedName,
    /// Its uid.
    pub uid: String,
}

/// What nodes tell of a rule.
#[derive(Clone, Debug, PartialEq)]
struct Sum {
    nodes: usize,
    /// Wide enough for whatever nodes write.
    connections: i128,
    last: Option<Timestamp>,
    since: Timestamp,
    gap: Option<Timestamp>,
}

/// What nodes tell.
#[derive(Debug, Default)]
pub struct Usages {
    /// The connections that each node tells of.
    nodes: HashMap<String, BTreeMap<Identity, BTreeMap<Key, i64>>>,
    /// Of nodes that are not there, or not yet, by name, with their uids.
    early: HashMap<String, (Option<String>, NodeUsageSpec)>,
    sums: HashMap<Identity, BTreeMap<Key, Sum>>,
    /// How many connections were counted by who counts them no more, until statuses say so.
    departed: HashMap<Identity, BTreeMap<Key, i64>>,
    complete: bool,
}

impl Usages {
    /// All nodes that tell something have told it: before, the sums are no sums.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Takes in what a node tells that is not there: it counts once the node is.
    pub fn set_early(&mut self, node: &str, uid: Option<String>, usage: NodeUsageSpec) {
        self.early.insert(node.to_owned(), (uid, usage));
    }

    /// What a node told that is not there, it does not tell any more.
    pub fn forget_early(&mut self, node: &str) {
        self.early.remove(node);
    }

    /// What a node told that was not there.
    pub fn take_early(&mut self, node: &str, uid: Option<&str>) -> Option<NodeUsageSpec> {
        let (of, usage) = self.early.remove(node)?;
        (of.as_deref() == uid).then_some(usage)
    }

    /// Takes in what a node tells, `None` if it is gone for good. What it does not tell any more counts on. `said` is what the
    /// status of a group says. Returns the groups of which there is another thing to say.
    pub fn set<'a>(
        &mut self,
        node: &str,
        usage: Option<NodeUsageSpec>,
        said: impl Fn(&Identity) -> Option<&'a [RuleUsage]>,
    ) -> BTreeSet<NamespacedName> {
        let mut before = self.nodes.remove(node).unwrap_or_default();
        let mut told = BTreeMap::new();
        let mut differing = BTreeSet::new();
        let gap = usage.as_ref().and_then(|usage| usage.gap.as_ref()).map(|time| time.0);
        for group in usage.into_iter().flat_map(|usage| usage.groups) {
            let name = NamespacedName { namespace: group.namespace, name: group.name };
            let identity = Identity { name, uid: group.uid };
            if told.contains_key(&identity) {
                continue;
            }
            let mut known = before.remove(&identity).unwrap_or_default();
            let sums = self.sums.entry(identity.clone()).or_default();
            let (mut counts, mut differs) = (BTreeMap::new(), false);
            for rule in group.rules {
                if let Entry::Vacant(entry) = counts.entry((rule.direction, rule.id.clone())) {
                    let known = known.remove(entry.key());
                    differs |= add(sums, entry.key(), known, &rule, gap);
                    entry.insert(rule.connections);
                }
            }
            differs |= self.depart(&identity, known, &said);
            if differs {
                differing.insert(identity.name.clone());
            }
            told.insert(identity, counts);
        }
        for (identity, counts) in before {
            if self.depart(&identity, counts, &said) {
                differing.insert(identity.name);
            }
        }
        if !told.is_empty() {
            self.nodes.insert(node.to_owned(), told);
        }
        differing
    }

    /// What a node counted of a group and does not tell any more counts on. Tells whether there was anything.
    fn depart<'a>(
        &mut self,
        identity: &Identity,
        counts: BTreeMap<Key, i64>,
        said: impl Fn(&Identity) -> Option<&'a [RuleUsage]>,
    ) -> bool {
        let differs = !counts.is_empty();
        let sums = self.sums.entry(identity.clone()).or_default();
        for (key, connections) in counts {
            if let Some(sum) = sums.get_mut(&key) {
                sum.connections -= i128::from(connections);
                sum.nodes -= 1;
                if sum.nodes == 0 {
                    sums.remove(&key);
                }
            }
            // With a rule goes its count.
            let Some(said) = said(identity).and_then(|said| of_key(said, &key)) else { continue };
            let departed = self.departed.entry(identity.clone()).or_default().entry(key).or_default();
            *departed = (*departed).max(said.departed).saturating_add(connections);
        }
        if sums.is_empty() {
            self.sums.remove(identity);
        }
        differs
    }

    /// What the status of a group says.
    pub fn said(&mut self, identity: &Identity, said: &[RuleUsage]) {
        let Some(departed) = self.departed.get_mut(identity) else { return };
        departed.retain(|key, departed| of_key(said, key).is_some_and(|said| said.departed < *departed));
        if departed.is_empty() {
            self.departed.remove(identity);
        }
    }

    /// Statuses say it: for who begins to write them.
    pub fn forget_departed(&mut self) {
        self.departed.clear();
    }

    /// What to say of a group's rules: what was said before, unless there is news.
    pub fn of_group(&self, group: &Group, before: &[RuleUsage]) -> Vec<RuleUsage> {
        // That its rules cannot be read now says nothing about how they are used.
        let Some(rules) = group.rules.as_ref().filter(|_| self.complete) else { return before.to_vec() };
        let identity = Identity { name: group.name.clone(), uid: group.uid.clone() };
        let mut now = Vec::new();
        let mut seen = BTreeSet::new();
        for direction in Direction::ALL {
            for rule in rules.rules(direction) {
                let key = (RuleDirection::from(direction), rule.id().to_string());
                if seen.insert(key.clone()) {
                    now.extend(self.of_rule(&identity, key, before));
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

    fn of_rule(&self, identity: &Identity, key: Key, before: &[RuleUsage]) -> Option<RuleUsage> {
        let before = of_key(before, &key);
        let sum = self.sums.get(identity).and_then(|sums| sums.get(&key));
        let departed = self.departed.get(identity).and_then(|departed| departed.get(&key)).copied().unwrap_or_default();
        let departed = departed.max(before.map_or(0, |before| before.departed));
        let connections = sum.map_or(0, |sum| sum.connections) + i128::from(departed);
        let connections = i64::try_from(connections).unwrap_or(i64::MAX);
        let last = before.and_then(|before| before.last_matched.as_ref()).map(|time| time.0);
        // The first node to know the rule knew it when no other had it. What is missed anywhere, is missed.
        let begun = match before {
            Some(before) => before.since.0,
            None => sum?.since,
        };
        let (direction, id) = key;
        Some(RuleUsage {
            id,
            direction,
            // What went while nobody looked is not known: the number stays until others have made up for it.
            connections: connections.max(before.map_or(0, |before| before.connections)),
            departed,
            last_matched: last.max(sum.and_then(|sum| sum.last)).map(Time),
            since: Time(sum.and_then(|sum| sum.gap).map_or(begun, |gap| gap.max(begun))),
        })
    }
}

/// Adds what a node tells of a rule, of which it told so many connections before. Tells whether there is something else to say.
fn add(sums: &mut BTreeMap<Key, Sum>, key: &Key, known: Option<i64>, rule: &UsedRule, gap: Option<Timestamp>) -> bool {
    let last = rule.last_matched.as_ref().map(|time| time.0);
    let Some(sum) = sums.get_mut(key) else {
        let connections = i128::from(rule.connections);
        sums.insert(key.clone(), Sum { nodes: 1, connections, last, since: rule.since.0, gap });
        return true;
    };
    sum.nodes += usize::from(known.is_none());
    let before = sum.clone();
    sum.connections += i128::from(rule.connections) - i128::from(known.unwrap_or_default());
    if known.is_some_and(|known| rule.connections < known) {
        // The rule was taken away and is back: on other nodes as well.
        (sum.last, sum.since) = (last, rule.since.0);
    } else {
        (sum.last, sum.since) = (sum.last.max(last), sum.since.min(rule.since.0));
    }
    sum.gap = sum.gap.max(gap);
    *sum != before
}

fn of_key<'a>(usage: &'a [RuleUsage], key: &Key) -> Option<&'a RuleUsage> {
    usage.iter().find(|rule| rule.direction == key.0 && rule.id == key.1)
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
