//! Whether a change took away the last way in on a port by which machines are administered.
//!
//! PURE. Asked before a change is taken in, and again after it: what targets lost between the two, whatever other groups and
//! bindings they have. What kubectl warns of beforehand knows one group only.

use crate::api::conditions::listed;
use crate::index::{Binding, Group, Index, Target, TargetName, Update};
use crate::policy::{Direction, NamespacedName, Traffic, Transport};
use std::collections::{BTreeMap, BTreeSet};

/// Ports such as SSH's and RDP's.
pub type AdminPorts = BTreeSet<u16>;

/// The object that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// A group; otherwise a binding.
    pub is_group: bool,
    /// Its name.
    pub name: NamespacedName,
    /// Its uid.
    pub uid: String,
}

/// What a change did to the ways in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The object that changed.
    pub subject: Subject,
    /// The ports that it does not open any more.
    pub ports: BTreeSet<u16>,
    /// The targets that nobody can reach on one of them any more. None: others let people in.
    pub lost: BTreeSet<TargetName>,
    /// The other groups that do.
    pub kept_by: BTreeSet<NamespacedName>,
}

impl Notice {
    /// What an operator should know.
    pub fn message(&self) -> String {
        let ports = listed(&self.ports);
        if self.lost.is_empty() {
            return format!("TCP {ports}: still let in on every target, by {}", listed(&self.kept_by));
        }
        let lost = listed(&self.lost);
        format!("TCP {ports}: no group lets anyone in any more on {lost}; open sessions were cut too")
    }
}

/// The targets of what is about to change, and the ports on which they were let in.
pub struct Before {
    subject: Subject,
    opened: BTreeSet<u16>,
    targets: BTreeMap<TargetName, BTreeSet<u16>>,
}

impl Before {
    /// Looks at what a change may take away; nothing for most changes, which take away no such port.
    pub fn look(index: &Index, ports: &AdminPorts, update: &Update) -> Option<Self> {
        let (subject, opened) = match update {
            Update::Group(new) => {
                let old = index.group(&new.name)?;
                // Rules that cannot be read change nothing.
                let (before, after) = (opened_by(old, ports), opened_by(new, ports));
                let lost: BTreeSet<u16> = before.difference(&after).copied().collect();
                (of_group(old), new.rules.as_ref().map(|_| lost)?)
            }
            Update::NoGroup(name) => {
                let old = index.group(name)?;
                (of_group(old), opened_by(old, ports))
            }
            Update::Binding(new) => {
                let old = index.binding(&new.name)?;
                let same = new.error.is_some() || old.groups == new.groups && old.selector == new.selector;
                let opened = if same { BTreeSet::new() } else { opened_through(index, old, ports) };
                (of_binding(old), opened)
            }
            Update::NoBinding(name) => {
                let old = index.binding(name)?;
                (of_binding(old), opened_through(index, old, ports))
            }
            // After a list nobody knows who changed what, and targets come and go.
            Update::Target(_)
            | Update::NoTarget(_)
            | Update::Targets(..)
            | Update::Groups(_)
            | Update::Bindings(_)
            | Update::Machine(..)
            | Update::NoMachine(..)
            | Update::Machines(..) => return None,
        };
        // Most changes end here: a status, a member, a description.
        if opened.is_empty() {
            return None;
        }
        let ways_in = |target: &Target| (target.key(), open(index, &target.key(), &opened));
        let targets: BTreeMap<_, _> = match subject.is_group {
            true => index.members(&subject.name).map(ways_in).collect(),
            false => index.targets(&subject.name).map(ways_in).collect(),
        };
        (!targets.is_empty()).then_some(Self { subject, opened, targets })
    }

    /// Compares with how it is now. Nothing to tell: what was changed still opens all of it.
    pub fn compare(self, index: &Index) -> Option<Notice> {
        let Self { subject, opened, targets } = self;
        let (mut lost, mut kept_by) = (BTreeSet::new(), BTreeSet::new());
        let mut ports = BTreeSet::new();
        for (target, before) in targets {
            let after = open(index, &target, &before);
            ports.extend(before.difference(&after).copied());
            if after != before {
                lost.insert(target);
                continue;
            }
            let groups = groups_of(index, &target).filter(|group| !opened_by(group, &opened).is_empty());
            kept_by.extend(groups.map(|group| group.name.clone()));
        }
        if lost.is_empty() {
            // A binding that still attaches what opens them.
            let own = index.binding(&subject.name).filter(|_| !subject.is_group);
            let by_itself = own.is_some_and(|binding| kept_by.is_subset(&binding.groups));
            return (!by_itself).then_some(Notice { subject, ports: opened, lost, kept_by });
        }
        Some(Notice { subject, ports, lost, kept_by })
    }
}

fn of_group(group: &Group) -> Subject {
    Subject { is_group: true, name: group.name.clone(), uid: group.uid.clone() }
}

fn of_binding(binding: &Binding) -> Subject {
    Subject { is_group: false, name: binding.name.clone(), uid: binding.uid.clone() }
}

/// The groups attached to a target.
fn groups_of<'a>(index: &'a Index, target: &TargetName) -> impl Iterator<Item = &'a Group> {
    let names: BTreeSet<&NamespacedName> = index.bindings_of(target).flat_map(|binding| &binding.groups).collect();
    names.into_iter().filter_map(|name| index.group(name))
}

/// Of some ports, those on which a target lets somebody in.
fn open(index: &Index, target: &TargetName, ports: &AdminPorts) -> BTreeSet<u16> {
    groups_of(index, target).flat_map(|group| opened_by(group, ports)).collect()
}

fn opened_through(index: &Index, binding: &Binding, ports: &AdminPorts) -> BTreeSet<u16> {
    binding.groups.iter().filter_map(|name| index.group(name)).flat_map(|group| opened_by(group, ports)).collect()
}

/// Of some ports, those on which a group lets somebody in.
fn opened_by(group: &Group, ports: &AdminPorts) -> BTreeSet<u16> {
    let rules = group.rules.iter().flat_map(|rules| rules.rules(Direction::Ingress));
    rules
        .flat_map(|rule| {
            ports.iter().copied().filter(|port| match &rule.traffic {
                Traffic::Any => true,
                Traffic::Ports(transport, open) => *transport == Transport::Tcp && open.contains(*port),
                Traffic::Icmp(_) => false,
            })
        })
        .collect()
}
