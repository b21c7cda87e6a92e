//! Virtual machines and the pods that run them: more than one while a machine migrates.
//!
//! A machine is known by its uid: one that is deleted and created anew is another, whatever its name.

use super::objects::TargetName;
use super::selection::Labels;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A virtual machine, as far as groups are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
}

impl From<&ObjectMeta> for Machine {
    fn from(metadata: &ObjectMeta) -> Self {
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            labels: Arc::new(metadata.labels.clone().unwrap_or_default()),
        }
    }
}

/// Which of several watches a machine was seen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineSource(pub usize);

/// See the module.
#[derive(Debug, Default)]
pub struct Machines {
    known: HashMap<String, Known>,
    pods: HashMap<String, BTreeSet<TargetName>>,
}

#[derive(Debug)]
struct Known {
    labels: Labels,
    seen_by: BTreeSet<MachineSource>,
}

impl Machines {
    /// A watch shows a machine; tells whether its labels are news.
    pub fn see(&mut self, source: MachineSource, machine: Machine) -> bool {
        let Machine { uid, labels } = machine;
        let mut news = false;
        let known = self.known.entry(uid).or_insert_with(|| {
            news = true;
            Known { labels: labels.clone(), seen_by: BTreeSet::new() }
        });
        known.seen_by.insert(source);
        news |= known.labels != labels;
        known.labels = labels;
        news
    }

    /// A watch does not show a machine any more. While a pod runs it, what was last seen of it holds: a machine that has just
    /// been migrated is shown to another node, and the pod it leaves keeps its groups to the end.
    pub fn lose(&mut self, source: MachineSource, uid: &str) {
        if let Some(known) = self.known.get_mut(uid) {
            known.seen_by.remove(&source);
        }
        self.tidy(uid);
    }

    /// The machines that a watch has shown.
    pub fn seen_by(&self, source: MachineSource) -> impl Iterator<Item = &String> {
        self.known.iter().filter(move |(_, known)| known.seen_by.contains(&source)).map(|(uid, _)| uid)
    }

    /// A pod runs a machine.
    pub fn begin(&mut self, uid: &str, pod: &TargetName) {
        self.pods.entry(uid.to_owned()).or_default().insert(pod.clone());
    }

    /// A pod does not run a machine any more.
    pub fn end(&mut self, uid: &str, pod: &TargetName) {
        super::remove_from(&mut self.pods, &uid.to_owned(), pod);
        self.tidy(uid);
    }

    /// The labels of a machine, if it is known.
    pub fn labels(&self, uid: &str) -> Option<&Labels> {
        self.known.get(uid).map(|known| &known.labels)
    }

    /// The pods that run a machine.
    pub fn pods(&self, uid: &str) -> impl Iterator<Item = &TargetName> {
        self.pods.get(uid).into_iter().flatten()
    }

    /// Whether any pod runs a machine.
    pub fn are_run(&self) -> bool {
        !self.pods.is_empty()
    }

    fn tidy(&mut self, uid: &str) {
        if self.known.get(uid).is_some_and(|known| known.seen_by.is_empty()) && !self.pods.contains_key(uid) {
            self.known.remove(uid);
        }
    }
}
