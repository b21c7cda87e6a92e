//! Which bindings select which targets: label-sets × selectors, never targets × bindings.
//!
//! Targets of one kind and namespace with the same labels share one entry, so a Deployment's thousandth pod costs no matching at
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
    namespaces: HashMap<(String, SelectorKind), Namespace>,
    /// What each binding selects.
    kinds: HashMap<NamespacedName, SelectorKind>,
}

#[derive(Debug, Default)]
struct Namespace {
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
    pub fn set_labels(&mut self, kind: SelectorKind, name: &NamespacedName, labels: Option<Labels>) -> Vec<Matched> {
        let place = (name.namespace.clone(), kind);
        if self.namespaces.get(&place).and_then(|n| n.targets.get(name)) == labels.as_ref() {
            return Vec::new();
        }
        let namespace = self.namespaces.entry(place.clone()).or_default();
        let before = namespace.leave(name);
        let after = labels.map(|labels| namespace.enter(name, labels)).unwrap_or_default();
        self.tidy(&place);
        let target = TargetName { kind: kind.target(), name: name.clone() };
        let matched =
            |binding: &NamespacedName, selected| Matched { binding: binding.clone(), target: target.clone(), selected };
        let lost = before.difference(&after).map(|b| matched(b, false));
        lost.chain(after.difference(&before).map(|b| matched(b, true))).collect()
    }

    /// A binding selects by this now; by nothing, if `None`.
    pub fn set_binding(&mut self, binding: &NamespacedName, selector: Option<(SelectorKind, Selector)>) {
        self.remove_binding(binding);
        if let Some((kind, selector)) = selector {
            self.kinds.insert(binding.clone(), kind);
            self.namespaces.entry((binding.namespace.clone(), kind)).or_default().bind(binding, selector);
        }
    }

    /// A binding is gone.
    pub fn remove_binding(&mut self, binding: &NamespacedName) {
        let Some(kind) = self.kinds.remove(binding) else { return };
        let place = (binding.namespace.clone(), kind);
        if let Some(namespace) = self.namespaces.get_mut(&place) {
            namespace.unbind(binding);
            self.tidy(&place);
        }
    }

    /// The bindings that select a target.
    pub fn bindings_of(&self, target: &TargetName) -> impl Iterator<Item = &NamespacedName> {
        let label_sets = SelectorKind::ALL.map(|kind| {
            let namespace = self.namespaces.get(&(target.name.namespace.clone(), kind))?;
            let labels = namespace.targets.get(&target.name).filter(|_| kind.target() == target.kind)?;
            namespace.label_sets.get(labels)
        });
        label_sets.into_iter().flatten().flat_map(|set| &set.bindings)
    }

    /// The targets that a binding selects.
    pub fn targets_of(&self, binding: &NamespacedName) -> impl Iterator<Item = TargetName> + '_ {
        let found = self.kinds.get(binding).and_then(|kind| {
            let namespace = self.namespaces.get(&(binding.namespace.clone(), *kind))?;
            Some((kind.target(), namespace, namespace.bindings.get(binding)?))
        });
        found.into_iter().flat_map(|(kind, namespace, bound)| {
            let sets = bound.label_sets.iter().filter_map(|labels| namespace.label_sets.get(labels));
            sets.flat_map(|set| set.targets.iter().cloned()).map(move |name| TargetName { kind, name })
        })
    }

    fn tidy(&mut self, place: &(String, SelectorKind)) {
        if self.namespaces.get(place).is_some_and(|n| n.targets.is_empty() && n.bindings.is_empty()) {
            self.namespaces.remove(place);
        }
    }
}

impl Namespace {
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
