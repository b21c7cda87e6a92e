//! Which bindings select which pods: label-sets × selectors, never pods × bindings.
//!
//! Pods of a namespace with the same labels share one entry, so a Deployment's thousandth pod costs no matching at all; and a
//! selector that asks for a label is only tried on label-sets that have it.

use crate::policy::NamespacedName;
use kube::core::{Expression, Selector, SelectorExt};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The labels of a pod.
pub type Labels = Arc<BTreeMap<String, String>>;

/// A binding began or ceased to select a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Matched {
    /// The binding.
    pub binding: NamespacedName,
    /// The pod.
    pub pod: NamespacedName,
    /// Whether it does now.
    pub selected: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Selection {
    namespaces: HashMap<String, Namespace>,
}

#[derive(Debug, Default)]
struct Namespace {
    label_sets: HashMap<Labels, LabelSet>,
    pods: HashMap<NamespacedName, Labels>,
    bindings: HashMap<NamespacedName, Bound>,
    /// The bindings whose selector asks for this label, among others.
    by_label: HashMap<(String, String), BTreeSet<NamespacedName>>,
    /// The bindings whose selector asks for no label by value.
    by_none: BTreeSet<NamespacedName>,
}

#[derive(Debug, Default)]
struct LabelSet {
    pods: BTreeSet<NamespacedName>,
    bindings: BTreeSet<NamespacedName>,
}

#[derive(Debug)]
struct Bound {
    selector: Selector,
    key: Option<(String, String)>,
    label_sets: Vec<Labels>,
}

impl Selection {
    /// A pod has these labels now.
    pub fn set_pod(&mut self, pod: &NamespacedName, labels: Labels) -> Vec<Matched> {
        let namespace = self.namespaces.entry(pod.namespace.clone()).or_default();
        if namespace.pods.get(pod) == Some(&labels) {
            return Vec::new();
        }
        let before = namespace.leave(pod);
        let after = namespace.enter(pod, labels);
        let matched =
            |binding: &NamespacedName, selected| Matched { binding: binding.clone(), pod: pod.clone(), selected };
        let lost = before.difference(&after).map(|b| matched(b, false));
        lost.chain(after.difference(&before).map(|b| matched(b, true))).collect()
    }

    /// A pod is gone.
    pub fn remove_pod(&mut self, pod: &NamespacedName) -> Vec<Matched> {
        let Some(namespace) = self.namespaces.get_mut(&pod.namespace) else { return Vec::new() };
        let before = namespace.leave(pod);
        self.tidy(&pod.namespace);
        before.into_iter().map(|binding| Matched { binding, pod: pod.clone(), selected: false }).collect()
    }

    /// A binding selects by this now; by nothing, if `None`.
    pub fn set_binding(&mut self, binding: &NamespacedName, selector: Option<Selector>) {
        self.remove_binding(binding);
        if let Some(selector) = selector {
            self.namespaces.entry(binding.namespace.clone()).or_default().bind(binding, selector);
        }
    }

    /// A binding is gone.
    pub fn remove_binding(&mut self, binding: &NamespacedName) {
        if let Some(namespace) = self.namespaces.get_mut(&binding.namespace) {
            namespace.unbind(binding);
            self.tidy(&binding.namespace);
        }
    }

    /// The bindings that select a pod.
    pub fn bindings_of(&self, pod: &NamespacedName) -> impl Iterator<Item = &NamespacedName> {
        self.namespaces
            .get(&pod.namespace)
            .and_then(|n| n.label_sets.get(n.pods.get(pod)?))
            .into_iter()
            .flat_map(|set| &set.bindings)
    }

    /// The pods that a binding selects.
    pub fn pods_of(&self, binding: &NamespacedName) -> impl Iterator<Item = NamespacedName> + '_ {
        let namespace = self.namespaces.get(&binding.namespace);
        let bound = namespace.and_then(|n| n.bindings.get(binding));
        bound
            .into_iter()
            .flat_map(|b| &b.label_sets)
            .filter_map(move |labels| namespace?.label_sets.get(labels))
            .flat_map(|set| set.pods.iter().cloned())
    }

    fn tidy(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(|n| n.pods.is_empty() && n.bindings.is_empty()) {
            self.namespaces.remove(namespace);
        }
    }
}

impl Namespace {
    /// Takes a pod out of its label-set, and tells which bindings selected it.
    fn leave(&mut self, pod: &NamespacedName) -> BTreeSet<NamespacedName> {
        let Some(labels) = self.pods.remove(pod) else { return BTreeSet::new() };
        let Some(set) = self.label_sets.get_mut(&labels) else { return BTreeSet::new() };
        set.pods.remove(pod);
        if !set.pods.is_empty() {
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

    /// Puts a pod into its label-set, and tells which bindings select it.
    fn enter(&mut self, pod: &NamespacedName, labels: Labels) -> BTreeSet<NamespacedName> {
        self.pods.insert(pod.clone(), labels.clone());
        if let Some(set) = self.label_sets.get_mut(&labels) {
            set.pods.insert(pod.clone());
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
        self.label_sets.insert(labels, LabelSet { pods: [pod.clone()].into(), bindings: bindings.clone() });
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
