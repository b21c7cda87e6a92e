//! Who is meant, in few words: the ends of rows.
//!
//! PURE. Targets go by the groups that guard them, as many as they are; everybody else by addresses.

use super::classes::States;
use super::rows::Ends;
use crate::index::TargetName;
use crate::policy::{Family, NamespacedName};
use std::collections::{BTreeMap, BTreeSet};

/// Longer lists of networks, labels or names are cut.
const SHOWN: usize = 4;

/// What targets are called, and how many of each name there are.
pub struct Names {
    labels: BTreeMap<TargetName, String>,
    totals: BTreeMap<String, usize>,
}

impl Names {
    /// By the groups after the change; of what is guarded no more, by those before.
    pub fn new(states: States<'_>) -> Self {
        let mut labels = BTreeMap::new();
        for state in [states.before, states.after] {
            for (_, end) in state.ends() {
                for target in &end.targets {
                    let guarded = end.guard.as_ref().map(|guard| joined(&guard.attached));
                    match guarded {
                        Some(label) => labels.insert(target.clone(), label),
                        None => {
                            labels.get(target).cloned().or_else(|| labels.insert(target.clone(), UNGUARDED.to_owned()))
                        }
                    };
                }
            }
        }
        let mut totals = BTreeMap::new();
        for label in labels.values() {
            *totals.entry(label.clone()).or_default() += 1;
        }
        Self { labels, totals }
    }

    /// The ends of a row, each in a phrase of its own.
    pub fn phrases(&self, ends: &Ends) -> Vec<String> {
        let listed = self.listed(ends);
        let Some(rest) = &ends.all_but else { return listed };
        match self.listed(rest) {
            rest if rest.is_empty() => vec!["anyone".to_owned()],
            // "All but all but these" is nobody's language.
            rest if rest.len() < listed.len() && !rest.iter().any(|phrase| phrase.contains(" but ")) => {
                vec![format!("anyone but {}", shortened(&rest))]
            }
            _ => listed,
        }
    }

    fn listed(&self, ends: &Ends) -> Vec<String> {
        let mut by_label: BTreeMap<&str, Vec<&TargetName>> = BTreeMap::new();
        for target in &ends.targets {
            by_label.entry(self.labels.get(target).map_or(UNGUARDED, String::as_str)).or_default().push(target);
        }
        let mut phrases: Vec<String> = match ends.targets.len() {
            all if all > SHOWN && all == self.labels.len() => vec![format!("every target [{all}]")],
            _ => by_label.iter().map(|(label, targets)| self.phrase(label, targets)).collect(),
        };
        phrases.extend(addresses(ends));
        phrases
    }

    /// The same, in one line.
    pub fn line(&self, ends: &Ends) -> String {
        shortened(&self.phrases(ends))
    }

    fn phrase(&self, label: &str, targets: &[&TargetName]) -> String {
        let total = self.totals.get(label).copied().unwrap_or_default();
        match targets {
            [only] if total == 1 => format!("{label} [{}]", only.name.name),
            [only] => format!("{label} [{}, of {total}]", only.name.name),
            some if some.len() == total => format!("{label} [{total}]"),
            some => format!("{label} [{} of {total}]", some.len()),
        }
    }
}

const UNGUARDED: &str = "unguarded";

fn shortened(phrases: &[String]) -> String {
    match phrases.len() {
        n if n > SHOWN => format!("{} and {} more", phrases[..SHOWN - 1].join(", "), n - SHOWN + 1),
        _ => phrases.join(", "),
    }
}

fn joined(groups: &BTreeSet<NamespacedName>) -> String {
    match groups.first() {
        // An address that several claim is nobody's, and closed.
        None => "contested address".to_owned(),
        // All are of one namespace, that of the targets.
        Some(first) => {
            let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
            format!("{}/{}", first.namespace, names.join("+"))
        }
    }
}

/// "anywhere", "10.0.0.0/8", "anywhere but 203.0.113.10/32".
fn addresses(ends: &Ends) -> Option<String> {
    let whole = |family: &Family| ends.regions.get(family).is_some_and(super::region::Region::is_all);
    if ends.regions.is_empty() {
        return None;
    }
    if Family::ALL.iter().all(whole) {
        return Some("anywhere".to_owned());
    }
    let (mut listed, mut excepted) = (Vec::new(), Vec::new());
    for region in ends.regions.values() {
        listed.extend(region.nets());
        excepted.extend(region.complement().nets());
    }
    let list = |nets: &[ipnet::IpNet]| {
        let shown: Vec<String> = nets.iter().take(SHOWN).map(ToString::to_string).collect();
        let more = nets.len() - shown.len();
        if more == 0 { shown.join(", ") } else { format!("{} and {more} more networks", shown.join(", ")) }
    };
    if listed.len() <= excepted.len() {
        return Some(list(&listed));
    }
    let anywhere = match (ends.regions.contains_key(&Family::V4), ends.regions.contains_key(&Family::V6)) {
        (true, false) => "0.0.0.0/0",
        (false, true) => "::/0",
        _ => "anywhere",
    };
    Some(match excepted.is_empty() {
        true => anywhere.to_owned(),
        false => format!("{anywhere} but {}", list(&excepted)),
    })
}
