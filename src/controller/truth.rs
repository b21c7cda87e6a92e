//! Is it enforced? (S15)
//!
//! PURE. A node has a group's revision if its report says so for everything that the group means there: the rules, the
//! addresses they guard, the members of the remotes they name, and the group's own members where others' rules name it.

use super::cluster::Cluster;
use super::reports::Bypass;
use crate::api::conditions::{CLOSED, ENFORCED, READY, Verdict, listed};
use crate::api::{AttachmentState, DeviceState, NodeCount};
use crate::index::{AddressDigest, Target, TargetName};
use crate::policy::NamespacedName;
use std::collections::BTreeSet;

/// What one node lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lacks {
    Nothing,
    /// It has not said so yet.
    Behind,
    /// No agent speaks for it.
    Report,
    /// Its kernel refused.
    Refused(String),
    /// Traffic there does not pass the rules.
    Bypassed(String),
    /// What would not pass the rules does not pass at all.
    Closed(String),
}

/// The nodes concerned, sorted by what they lack.
#[derive(Debug, Default)]
struct Tally {
    enforced: usize,
    behind: Vec<String>,
    silent: Vec<String>,
    refused: Vec<String>,
    bypassed: Vec<String>,
    closed: Vec<String>,
}

impl Tally {
    fn of(nodes: BTreeSet<&String>, lacks: impl Fn(&str) -> Lacks) -> Self {
        let mut tally = Self::default();
        for node in nodes {
            match lacks(node) {
                Lacks::Nothing => tally.enforced += 1,
                Lacks::Behind => tally.behind.push(node.clone()),
                Lacks::Report => tally.silent.push(node.clone()),
                Lacks::Refused(message) => tally.refused.push(format!("{node} ({message})")),
                Lacks::Bypassed(message) => tally.bypassed.push(format!("{node} ({message})")),
                Lacks::Closed(message) => tally.closed.push(format!("{node} ({message})")),
            }
        }
        tally
    }

    fn count(&self) -> NodeCount {
        let Self { enforced, behind, silent, refused, bypassed, closed } = self;
        let lacking = [behind, silent, refused, bypassed, closed].map(Vec::len).iter().sum::<usize>();
        NodeCount::new(*enforced, enforced + lacking)
    }

    fn verdict(&self) -> Verdict {
        let no = |reason, message| Verdict { type_: ENFORCED, status: false, reason, message };
        if !self.refused.is_empty() {
            return no(
                "Refused",
                format!("the kernel refused these rules, the last good ones stay, on: {}", listed(&self.refused)),
            );
        }
        if !self.bypassed.is_empty() {
            return no("Bypassed", format!("traffic does not pass the rules on: {}", listed(&self.bypassed)));
        }
        if !self.closed.is_empty() {
            return no(CLOSED, format!("closed, as traffic would not pass the rules, on: {}", listed(&self.closed)));
        }
        if !self.silent.is_empty() {
            return no("NoReport", format!("no agent has reported since the boot of: {}", listed(&self.silent)));
        }
        if !self.behind.is_empty() {
            return no("Pending", format!("waiting for: {}", listed(&self.behind)));
        }
        let (reason, message) = match self.enforced {
            0 => ("Unused", "no node is concerned".to_owned()),
            nodes => ("Enforced", format!("in the kernel of every node concerned, {nodes} in all")),
        };
        Verdict { type_: ENFORCED, status: true, reason, message }
    }
}

/// Whether every node concerned has a group's current revision, and how many do.
pub fn of_group(cluster: &Cluster, name: &NamespacedName) -> (Verdict, NodeCount) {
    let mut nodes: BTreeSet<&String> =
        cluster.reports.naming_group(name).filter(|n| cluster.boot_of(n).is_some()).collect();
    nodes.extend(cluster.members(name).into_iter().flat_map(|m| m.nodes()));
    for user in cluster.index.named_by(name) {
        nodes.extend(cluster.members(user).into_iter().flat_map(|m| m.nodes()));
    }
    let tally = Tally::of(nodes, |node| group_on(cluster, name, node));
    (tally.verdict(), tally.count())
}

/// Whether every node concerned has a binding's current revision, and how many do.
pub fn of_binding(cluster: &Cluster, name: &NamespacedName) -> (Verdict, NodeCount) {
    let mut nodes: BTreeSet<&String> =
        cluster.reports.naming_binding(name).filter(|n| cluster.boot_of(n).is_some()).collect();
    nodes.extend(cluster.targets(name).into_iter().flat_map(|m| m.nodes()));
    let tally = Tally::of(nodes, |node| binding_on(cluster, name, node));
    (tally.verdict(), tally.count())
}

fn group_on(cluster: &Cluster, name: &NamespacedName, node: &str) -> Lacks {
    let report = match speaks_for(cluster, node) {
        Ok(report) => report,
        Err(lacks) => return lacks,
    };
    let group = cluster.index.group(name);
    let attached = cluster.members(name).and_then(|m| m.on_node(node));
    if attached.is_some()
        && let Some(message) = report.failures.get(name)
    {
        return Lacks::Refused(message.clone());
    }
    if let Some(lacks) = bypassing(report, |interface| cluster.index.is_member(name, interface)) {
        return lacks;
    }
    let own = match (attached, report.groups.get(name)) {
        (None, None) => true,
        (Some(members), Some((uid, generation, digest))) => {
            *uid == group.map(|g| g.uid.clone())
                && *generation == group.map_or(0, |g| g.generation)
                && *digest == members.claimed.to_string()
        }
        (None, Some(_)) | (Some(_), None) => false,
    };
    let has_members_of = |remote: &NamespacedName| {
        let published = match cluster.index.group(remote) {
            Some(_) => cluster.members(remote).map(|m| m.published).unwrap_or_default(),
            None => AddressDigest::default(),
        };
        report.remotes.get(remote).is_some_and(|digest| *digest == published.to_string())
    };
    let remotes = attached.is_none() || group.is_none_or(|g| g.remotes().iter().all(has_members_of));
    let named_here =
        cluster.index.named_by(name).any(|user| cluster.members(user).is_some_and(|m| m.on_node(node).is_some()));
    let as_remote = if named_here { has_members_of(name) } else { !report.remotes.contains_key(name) };
    if own && remotes && as_remote { Lacks::Nothing } else { Lacks::Behind }
}

fn binding_on(cluster: &Cluster, name: &NamespacedName, node: &str) -> Lacks {
    let report = match speaks_for(cluster, node) {
        Ok(report) => report,
        Err(lacks) => return lacks,
    };
    let binding = cluster.index.binding(name);
    let targets = cluster.targets(name).and_then(|m| m.on_node(node));
    if let Some(lacks) = bypassing(report, |interface| cluster.index.is_target(name, interface)) {
        return lacks;
    }
    let same = match (targets, report.bindings.get(name)) {
        (None, None) => true,
        (Some(targets), Some((uid, generation, digest))) => {
            binding.is_some_and(|b| b.uid == *uid && b.generation == *generation)
                && *digest == targets.claimed.to_string()
        }
        (None, Some(_)) | (Some(_), None) => false,
    };
    if same { Lacks::Nothing } else { Lacks::Behind }
}

/// Of the interfaces concerned, one whose traffic does not pass the rules of its node; if there is none, one that is closed.
fn bypassing(report: &super::reports::Report, concerned: impl Fn(&TargetName) -> bool) -> Option<Lacks> {
    let declared = report.interfaces.iter().filter_map(|(name, said)| {
        let closed = match said.state {
            DeviceState::BridgeNotFiltered => false,
            DeviceState::Closed => true,
            _ => return None,
        };
        Some((closed, TargetName::network_interface(name.clone()), &said.message))
    });
    let unreached = report.networks.iter().filter(|(_, said)| said.state != AttachmentState::Guarded);
    let unreached = unreached.map(|(name, said)| (said.state == AttachmentState::Closed, name.clone(), &said.message));
    let (closed, name, message) =
        declared.chain(unreached).filter(|(_, name, _)| concerned(name)).min_by_key(|(closed, ..)| *closed)?;
    let message = format!("{name}: {message}");
    Some(if closed { Lacks::Closed(message) } else { Lacks::Bypassed(message) })
}

/// What a node's agent says, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It speaks for the kernel that runs now.
    Reporting,
    /// It has not spoken since the node's boot.
    Silent,
    /// Traffic there does not pass the rules, or at all.
    Bypassed,
}

impl NodeState {
    /// As a label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reporting => "reporting",
            Self::Silent => "silent",
            Self::Bypassed => "bypassed",
        }
    }
}

/// How it is with a node.
pub fn state_of_node(cluster: &Cluster, node: &str) -> NodeState {
    match speaks_for(cluster, node) {
        Ok(_) => NodeState::Reporting,
        Err(Lacks::Bypassed(_) | Lacks::Closed(_)) => NodeState::Bypassed,
        Err(_) => NodeState::Silent,
    }
}

/// Whether nothing but what a network interface declares comes out of its device.
pub fn of_interface(cluster: &Cluster, interface: &Target) -> Verdict {
    let verdict = |status, reason, message| Verdict { type_: READY, status, reason, message };
    let node = interface.node.as_deref().unwrap_or_default();
    if cluster.boot_of(node).is_none() {
        return verdict(false, "NodeNotFound", format!("there is no node {node}"));
    }
    // That traffic there bypasses the rules says nothing about its devices.
    let said = cluster.reports.of(node).and_then(|report| report.interfaces.get(&interface.name));
    match said.filter(|said| said.uid == interface.uid && said.generation == interface.generation) {
        Some(said) => verdict(said.state == DeviceState::Watched, said.state.reason(), said.message.clone()),
        None => verdict(false, "Pending", format!("the agent on {node} has not spoken of this revision yet")),
    }
}

/// A node's report, if it counts: it speaks of the kernel that runs now, and traffic passes that kernel's rules.
fn speaks_for<'a>(cluster: &'a Cluster, node: &str) -> Result<&'a super::reports::Report, Lacks> {
    let report = cluster.reports.of(node).filter(|report| {
        report.boot_id.is_some() && cluster.boot_of(node).is_some_and(|boot| boot == report.boot_id.as_deref())
    });
    let report = report.ok_or(Lacks::Report)?;
    match &report.bypassed {
        Some(Bypass { closed: false, message }) => Err(Lacks::Bypassed(message.clone())),
        Some(Bypass { closed: true, message }) => Err(Lacks::Closed(message.clone())),
        None => Ok(report),
    }
}
