//! Differences for people: the same traffic from many to many is one row.
//!
//! PURE. A row is exact: each of its sources gains or loses all of its traffic to each of its destinations.

use super::classes::{Class, States, Who};
use super::reach::{Delta, compare};
use super::region::Region;
use super::traffic::TrafficSet;
use crate::index::TargetName;
use crate::policy::Family;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// They become possible.
    Opens,
    /// They are cut.
    Cuts,
    /// They stay possible, while all others to that destination are cut: nothing guarded it before.
    Keeps,
}

/// The one side of a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// Targets.
    pub targets: BTreeSet<TargetName>,
    /// Which of their addresses: nearly always all.
    pub addresses: BTreeSet<IpAddr>,
    /// Nobody's addresses, by family.
    pub regions: BTreeMap<Family, Region>,
    /// Everybody who is not here, where these are fewer than those who are.
    pub all_but: Option<Box<Self>>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What becomes of the connections.
    pub change: Change,
    /// Who opens them.
    pub from: Ends,
    /// Whom to.
    pub to: Ends,
    /// What they carry.
    pub traffic: TrafficSet,
    /// Over which IP.
    pub families: BTreeSet<Family>,
    /// Nothing guarded the destinations before.
    pub newly_guarded: bool,
}

impl Row {
    /// Pairs of targets, one of which can or could open connections to the other.
    pub fn pairs(&self) -> usize {
        let same = self.from.targets.intersection(&self.to.targets).count();
        self.from.targets.len() * self.to.targets.len() - same
    }

    /// What it carries, in words.
    pub fn traffic_text(&self) -> String {
        self.traffic.describe(self.families.first().copied().unwrap_or(Family::V4))
    }
}

impl Ends {
    fn extend(&mut self, other: Self) {
        let Self { targets: _, addresses, regions, all_but } = other;
        self.addresses.extend(addresses);
        self.regions.extend(regions);
        self.all_but = match (self.all_but.take(), all_but) {
            (Some(mut ours), Some(theirs)) if ours.targets == theirs.targets => {
                ours.extend(*theirs);
                Some(ours)
            }
            _ => None,
        };
    }
}

/// All that a change opens and cuts.
pub fn rows(states: States<'_>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for family in Family::ALL {
        let classes = states.classes(family);
        let deltas = compare(states, &classes);
        for change in [Change::Cuts, Change::Keeps, Change::Opens] {
            let part = |delta: &Delta| match change {
                Change::Opens => delta.opened.clone(),
                Change::Cuts => delta.cut.clone(),
                Change::Keeps => delta.kept.clone(),
            };
            for (Sources { from, traffic, newly_guarded }, to) in rectangles(&classes, &deltas, part) {
                // A single address is there for "anyone" to be said, and goes where all are listed.
                let itself = |place: &usize| {
                    to.len() == 1
                        && to.contains(place)
                        && classes.get(*place).is_some_and(|class| class.another.is_none())
                };
                let itself = from.iter().copied().filter(itself).collect();
                let (from, to) = (ends(&classes, &from, &itself), ends(&classes, &to, &Classes::new()));
                // Said of one family already: then it is about both.
                let same = |row: &&mut Row| {
                    row.change == change
                        && row.traffic == traffic
                        && row.newly_guarded == newly_guarded
                        && alike(&row.from, &from, family)
                        && alike(&row.to, &to, family)
                };
                match rows.iter_mut().find(same) {
                    Some(row) => {
                        row.families.insert(family);
                        row.from.extend(from);
                        row.to.extend(to);
                    }
                    None => rows.push(Row { change, from, to, traffic, families: [family].into(), newly_guarded }),
                }
            }
        }
    }
    rows.sort_by(|a, b| (a.change, &a.to, &a.from, &a.traffic).cmp(&(b.change, &b.to, &b.from, &b.traffic)));
    rows
}

/// Whether the ends of a row of the other family are the same people.
fn alike(known: &Ends, new: &Ends, family: Family) -> bool {
    known.targets == new.targets
        && known.regions.is_empty() == new.regions.is_empty()
        && !known.regions.contains_key(&family)
}

type Classes = BTreeSet<usize>;

/// What destinations have in common that make one row.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Sources {
    from: Classes,
    traffic: TrafficSet,
    newly_guarded: bool,
}

/// Sources with the same traffic to a destination together, then destinations with the same sources.
fn rectangles(classes: &[Class], deltas: &[Delta], part: impl Fn(&Delta) -> TrafficSet) -> BTreeMap<Sources, Classes> {
    let mut by_destination: BTreeMap<usize, BTreeMap<TrafficSet, Classes>> = BTreeMap::new();
    for delta in deltas {
        let traffic = part(delta);
        if !traffic.is_empty() {
            by_destination.entry(delta.to).or_default().entry(traffic).or_default().insert(delta.from);
        }
    }
    let mut by_sources: BTreeMap<Sources, Classes> = BTreeMap::new();
    for (to, sources) in by_destination {
        let most = sources.values().map(BTreeSet::len).max().unwrap_or_default();
        let mut alone = classes.get(to).is_some_and(|class| class.another.is_none());
        for (traffic, mut from) in sources {
            // Nobody guards an address from itself, so that it fits in with the most, and "everybody" can be said.
            if alone && from.len() == most && from.len() * 2 >= classes.len() - 1 {
                from.insert(to);
                alone = false;
            }
            let newly_guarded = classes.get(to).is_some_and(|class| class.newly_guarded);
            by_sources.entry(Sources { from, traffic, newly_guarded }).or_default().insert(to);
        }
    }
    by_sources
}

fn ends(classes: &[Class], chosen: &Classes, unlisted: &Classes) -> Ends {
    let mut ends = only(classes, &(chosen - unlisted));
    if chosen.len() * 2 > classes.len() {
        let rest = (0..classes.len()).filter(|place| !chosen.contains(place)).collect();
        ends.all_but = Some(Box::new(only(classes, &rest)));
    }
    ends
}

fn only(classes: &[Class], chosen: &Classes) -> Ends {
    let mut ends = Ends::default();
    for class in chosen.iter().filter_map(|place| classes.get(*place)) {
        match &class.who {
            Who::Targets(targets, addresses) => {
                ends.targets.extend(targets.iter().cloned());
                ends.addresses.extend(addresses);
            }
            Who::Addresses(region) => {
                ends.regions.entry(class.family).or_insert_with(|| Region::none(class.family)).add(region);
            }
        }
    }
    ends
}
