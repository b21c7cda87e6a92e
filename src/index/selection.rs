//! Which bindings select which targets: label-sets × selectors, never targets × bindings.
//!
//! Targets of one kind, namespace and network with the same labels share one entry, so a Deployment's thousandth pod costs no matching at
//! all; and a selector that asks for a label is only tried on label-sets that have it. A target can have more than one set of
//! labels, each for another kind of selector: the pod of a virtual machine has its own and the machine's.

use super::objects::{SelectorKind, TargetName};
use crate::policy::NamespacedName;
use kube::core::{Expression, Selector, SelectorExt};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The labels of a target.
pub type Labels = Arc<BTreeMap<String, String>>;

/// A binding began or ceased to select a target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Matched {
    /// The binding.
    pub binding: NamespacedName,
    /// The target.
    pub target: TargetName,
    /// Whether it does now.
    pub selected: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Selection {
    places: HashMap<Place, Candidates>,
    /// Where each binding selects.
    bindings: HashMap<NamespacedName, Vec<Place>>,
}

/// What a selector is tried on: the targets of its namespace and kind, on one network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    namespace: String,
    kind: SelectorKind,
    network: Option<NamespacedName>,
}

impl Place {
    fn of(kind: SelectorKind, target: &TargetName) -> Self {
        Self { namespace: target.name.namespace.clone(), kind, network: target.network.clone() }
    }

    fn target(&self, name: NamespacedName) -> TargetName {
        TargetName { kind: self.kind.target(), name, network: self.network.clone() }
    }
}

#[derive(Debug, Default)]
struct Candidates {
    label_sets: HashMap<Labels, LabelSet>,
    targets: HashMap<NamespacedName, Labels>,
    bindings: HashMap<NamespacedName, Bound>,
    /// The bindings whose selector asks for this label, among others.
    by_label: HashMap<(String, String), BTreeSet<NamespacedName>>,
    /// The bindings whose selector asks for no label by value.
    by_none: BTreeSet<NamespacedName>,
}

#[derive(Debug, Default)]
struct LabelSet {
    targets: BTreeSet<NamespacedName>,
    bindings: BTreeSet<NamespacedName>,
}

#[derive(Debug)]
struct Bound {
    selector: Selector,
    key: Option<(String, String)>,
    label_sets: Vec<Labels>,
}

impl Selection {
    /// To selectors of this kind, a target has these labels now; `None`: it is none of theirs.
    pub fn set_labels(&mut self, kind: SelectorKind, target: &TargetName, labels: Option<Labels>) -> Vec<Matched> {
        let place = Place::of(kind, target);
        if self.places.get(&place).and_then(|n| n.targets.get(&target.name)) == labels.as_ref() {
            return Vec::new();
        }
        let candidates = self.places.entry(place.clone()).or_default();
        let before = candidates.leave(&target.name);
        let after = labels.map(|labels| candidates.enter(&target.name, labels)).unwrap_or_default();
        self.tidy(&place);
        let matched =
            |binding: &NamespacedName, selected| Matched { binding: binding.clone(), target: target.clone(), selected };
        let lost = before.difference(&after).map(|b| matched(b, false));
        lost.chain(after.difference(&before).map(|b| matched(b, true))).collect()
    }

    /// A binding selects by this now, on these networks, or if there are none on the one of Kubernetes; without a selector it
    /// selects nothing.
    pub fn set_binding(
        &mut self,
        binding: &NamespacedName,
        selector: Option<(SelectorKind, Selector)>,
        networks: &BTreeSet<NamespacedName>,
    ) {
        self.remove_binding(binding);
        let Some((kind, selector)) = selector else { return };
        let networks: Vec<Option<NamespacedName>> =
            if networks.is_empty() { vec![None] } else { networks.iter().cloned().map(Some).collect() };
        for network in networks {
            let place = Place { namespace: binding.namespace.clone(), kind, network };
            self.places.entry(place.clone()).or_default().bind(binding, selector.clone());
            self.bindings.entry(binding.clone()).or_default().push(place);
        }
    }

    /// A binding is gone.
    pub fn remove_binding(&mut self, binding: &NamespacedName) {
        for place in self.bindings.remove(binding).unwrap_or_default() {
            if let Some(candidates) = self.places.get_mut(&place) {
                candidates.unbind(binding);
                self.tidy(&place);
            }
        }
    }

    /// The bindings that select a target.
    pub fn bindings_of(&self, target: &TargetName) -> impl Iterator<Item = &NamespacedName> {
        let label_sets = SelectorKind::ALL.map(|kind| {
            let candidates = self.places.get(&Place::of(kind, target)).filter(|_| kind.target() == target.kind)?;
            candidates.label_sets.get(candidates.targets.get(&target.name)?)
        });
        label_sets.into_iter().flatten().flat_map(|set| &set.bindings)
    }

    /// The targets that a binding selects.
    pub fn targets_of(&self, binding: &NamespacedName) -> impl Iterator<Item = TargetName> + '_ {
        let places = self.bindings.get(binding).into_iter().flatten();
        let found: Vec<(&Place, &Candidates, &Bound)> = places
            .filter_map(|place| {
                let candidates = self.places.get(place)?;
                Some((place, candidates, candidates.bindings.get(binding)?))
            })
            .collect();
        found.into_iter().flat_map(|(place, candidates, bound)| {
            let sets = bound.label_sets.iter().filter_map(|labels| candidates.label_sets.get(labels));
            sets.flat_map(|set| set.targets.iter().cloned()).map(|name| place.target(name))
        })
    }

    fn tidy(&mut self, place: &Place) {
        if self.places.get(place).is_some_and(|c| c.targets.is_empty() && c.bindings.is_empty()) {
            self.places.remove(place);
        }
    }
}

impl Candidates {
    /// Takes a target out of its label-set, and tells which bindings selected it.
    fn leave(&mut self, target: &NamespacedName) -> BTreeSet<NamespacedName> {
        let Some(labels) = self.targets.remove(target) else { return BTreeSet::new() };
        let Some(set) = self.label_sets.get_mut(&labels) else { return BTreeSet::new() };
        set.targets.remove(target);
        if !set.targets.is_empty() {
            return set.bindings.clone();
        }
        let bindings = self.label_sets.remove(&labels).map(|set| set.bindings).unwrap_or_default();
        for binding in &bindings {
            if let Some(bound) = self.bindings.get_mut(binding) {
                bound.label_sets.retain(|l| *l != labels);
            }
        }
        bindings
    }

    /// Puts a target into its label-set, and tells which bindings select it.
    fn enter(&mut self, target: &NamespacedName, labels: Labels) -> BTreeSet<NamespacedName> {
        self.targets.insert(target.clone(), labels.clone());
        if let Some(set) = self.label_sets.get_mut(&labels) {
            set.targets.insert(target.clone());
            return set.bindings.clone();
        }
        let keyed = labels.iter().filter_map(|(k, v)| self.by_label.get(&(k.clone(), v.clone()))).flatten();
        let candidates: BTreeSet<NamespacedName> = keyed.chain(&self.by_none).cloned().collect();
        let mut bindings = BTreeSet::new();
        for binding in candidates {
            if let Some(bound) = self.bindings.get_mut(&binding)
                && bound.selector.matches(&labels)
            {
                bound.label_sets.push(labels.clone());
                bindings.insert(binding);
            }
        }
        self.label_sets.insert(labels, LabelSet { targets: [target.clone()].into(), bindings: bindings.clone() });
        bindings
    }

    fn bind(&mut self, binding: &NamespacedName, selector: Selector) {
        // Any one label that the selector insists on will do to find it by.
        let key = selector.clone().into_iter().find_map(|expression| match expression {
            Expression::Equal(key, value) => Some((key, value)),
            _ => None,
        });
        match &key {
            Some(key) => self.by_label.entry(key.clone()).or_default().insert(binding.clone()),
            None => self.by_none.insert(binding.clone()),
        };
        let mut label_sets = Vec::new();
        #[expect(clippy::iter_over_hash_type, reason = "what comes of it is a set per binding; order shows nowhere")]
        for (labels, set) in &mut self.label_sets {
            if selector.matches(labels) {
                set.bindings.insert(binding.clone());
                label_sets.push(labels.clone());
            }
        }
        self.bindings.insert(binding.clone(), Bound { selector, key, label_sets });
    }

    fn unbind(&mut self, binding: &NamespacedName) {
        let Some(Bound { selector: _, key, label_sets }) = self.bindings.remove(binding) else { return };
        match key {
            Some(key) => super::remove_from(&mut self.by_label, &key, binding),
            None => {
                self.by_none.remove(binding);
            }
        }
        for labels in label_sets {
            if let Some(set) = self.label_sets.get_mut(&labels) {
                set.bindings.remove(binding);
            }
        }
    }
}
