//! Addresses that nothing in two states of the rules tells apart, as one: thousands of pods, or half the Internet.
//!
//! PURE. Owns the partition: that no verdict about two addresses of one class differs, in either state. The property
//! tests of [`super::reach`] hold it against the reference.

use super::region::{Pieces, Region};
use super::snapshot::{Guard, Snapshot};
use crate::index::TargetName;
use crate::policy::{CidrSet, Family, NamespacedName, Remote, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Two states of the world: without a change, and with it.
#[derive(Clone, Copy)]
pub struct States<'a> {
    /// As it is.
    pub before: &'a Snapshot,
    /// As it would be.
    pub after: &'a Snapshot,
}

/// Addresses of one family that are treated alike.
#[derive(Debug)]
pub struct Class {
    /// Their family.
    pub family: Family,
    /// One of them.
    pub one: IpAddr,
    /// Another one, if there is.
    pub another: Option<IpAddr>,
    /// Who they are.
    pub who: Who,
    /// The change concerns what guards them, or whose members they are: only connections with one such end can come
    /// or go.
    pub concerned: bool,
    /// Nothing guards them before, and something does after.
    pub newly_guarded: bool,
}

/// Who has the addresses of a class.
#[derive(Clone, Debug)]
pub enum Who {
    /// Targets, and which of their addresses.
    Targets(BTreeSet<TargetName>, BTreeSet<IpAddr>),
    /// Nobody whom a binding could select.
    Addresses(Region),
}

type Guards<'a> = (Option<&'a Arc<Guard>>, Option<&'a Arc<Guard>>);

impl<'a> States<'a> {
    fn guards_of(&self, address: IpAddr) -> Guards<'a> {
        (self.before.guard_of(address), self.after.guard_of(address))
    }

    /// The groups that an address is a member of, in either state.
    fn memberships(&self, address: IpAddr) -> (BTreeSet<&'a NamespacedName>, BTreeSet<&'a NamespacedName>) {
        let of = |state: &'a Snapshot| state.at(address).into_iter().flat_map(|end| end.member_of.iter()).collect();
        (of(self.before), of(self.after))
    }

    /// Every address of a target, in either state.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.before.ends().chain(self.after.ends()).map(|(address, _)| address).collect()
    }

    /// The classes of a family. Of addresses that the change does not concern, only what makes a difference to
    /// concerned ones counts.
    pub fn classes(&self, family: Family) -> Vec<Class> {
        let addresses: Vec<IpAddr> =
            self.addresses().into_iter().filter(|address| Family::of(*address) == family).collect();
        let (mut narrow, mut wide): (BTreeSet<&CidrSet>, BTreeSet<&CidrSet>) = Default::default();
        let mut concerned = BTreeSet::new();
        // Whether rules differ, for each pair of guards: thousands of addresses share few.
        let mut known: BTreeMap<(Option<usize>, Option<usize>), bool> = BTreeMap::new();
        for address in &addresses {
            let guards = self.guards_of(*address);
            let rules_differ = *known.entry(ids(guards)).or_insert_with(|| {
                let rules = |guard: Option<&Arc<Guard>>| guard.map(|guard| guard.rules.clone());
                rules(guards.0) != rules(guards.1)
            });
            if rules_differ || self.memberships(*address).0 != self.memberships(*address).1 {
                concerned.insert(*address);
            }
        }
        let pairs: BTreeMap<_, Guards<'_>> =
            concerned.iter().map(|a| (ids(self.guards_of(*a)), self.guards_of(*a))).collect();
        pairs.into_values().for_each(|guards| narrow.extend(cidrs_of(guards)));
        for guard in self.before.guards().iter().chain(self.after.guards()) {
            wide.extend(cidrs_of((Some(guard), None)));
        }
        let narrow = Pieces::cut(family, narrow);
        let wide = Pieces::cut(family, wide);

        let mut classes: BTreeMap<_, Class> = BTreeMap::new();
        for address in addresses {
            let guards = self.guards_of(address);
            let concerned = concerned.contains(&address);
            let piece = if concerned { wide.of(address) } else { narrow.of(address) };
            let ends = [self.before.at(address), self.after.at(address)];
            let targets = ends.into_iter().flatten().flat_map(|end| end.targets.iter().cloned());
            let key = (ids(guards), self.memberships(address), concerned, piece);
            match classes.get_mut(&key) {
                Some(class) => {
                    class.another.get_or_insert(address);
                    if let Who::Targets(all, addresses) = &mut class.who {
                        all.extend(targets);
                        addresses.insert(address);
                    }
                }
                None => {
                    let who = Who::Targets(targets.collect(), [address].into());
                    let newly_guarded = guards.0.is_none() && guards.1.is_some();
                    classes.insert(key, Class { family, one: address, another: None, who, concerned, newly_guarded });
                }
            }
        }
        let mut classes: Vec<Class> = classes.into_values().collect();
        for region in narrow.regions() {
            // Where targets have every address of a piece, nobody else is in it.
            let stranger = |address| self.before.at(address).is_none() && self.after.at(address).is_none();
            if let Some(one) = region.find(stranger) {
                let another = region.find(|address| address != one && stranger(address));
                let who = Who::Addresses(region);
                classes.push(Class { family, one, another, who, concerned: false, newly_guarded: false });
            }
        }
        classes
    }
}

fn ids(guards: Guards<'_>) -> (Option<usize>, Option<usize>) {
    (guards.0.map(|guard| guard.id), guards.1.map(|guard| guard.id))
}

fn rules(guard: &Guard) -> impl Iterator<Item = &Rule> {
    guard.rules.values().flat_map(|group| group.ingress.iter().chain(&group.egress))
}

fn cidrs_of<'a>(guards: Guards<'a>) -> impl Iterator<Item = &'a CidrSet> {
    let guards = [guards.0, guards.1].into_iter().flatten();
    guards.flat_map(|guard| rules(guard)).filter_map(|rule| match &rule.remote {
        Remote::Cidrs(cidrs) => Some(cidrs),
        Remote::Group(_) => None,
    })
}
