//! From watch events to calls of the index.

use super::objects::name_of;
use super::{Binding, Changes, Group, Index, Machine, MachineSource, Target, TargetKind, TargetName};
use crate::api::{NetworkInterface, SecurityGroup, SecurityGroupBinding};
use crate::policy::NamespacedName;
use crate::runtime::watch::{Malformed, Sink};
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeSet;

/// One piece of news for an index.
#[derive(Debug)]
pub enum Update {
    /// A target as it is now.
    Target(Target),
    /// A group as it is now.
    Group(Group),
    /// A binding as it is now.
    Binding(Binding),
    /// There is no such target.
    NoTarget(TargetName),
    /// There is no such group.
    NoGroup(NamespacedName),
    /// There is no such binding.
    NoBinding(NamespacedName),
    /// All targets of a kind there are.
    Targets(TargetKind, Vec<Target>),
    /// All groups there are.
    Groups(Vec<Group>),
    /// All bindings there are.
    Bindings(Vec<Binding>),
    /// A virtual machine as a watch shows it now.
    Machine(MachineSource, Machine),
    /// A watch shows no virtual machine with this uid any more.
    NoMachine(MachineSource, String),
    /// All virtual machines that a watch shows.
    Machines(MachineSource, Vec<Machine>),
}

impl Index {
    /// Takes in a piece of news.
    pub fn update(&mut self, update: Update) -> Changes {
        match update {
            Update::Target(target) => self.apply_target(target),
            Update::Group(group) => self.apply_group(group),
            Update::Binding(binding) => self.apply_binding(binding),
            Update::NoTarget(name) => self.delete_target(&name),
            Update::NoGroup(name) => self.delete_group(&name),
            Update::NoBinding(name) => self.delete_binding(&name),
            Update::Targets(kind, targets) => {
                let gone = without(self.of_kind(kind).map(|t| &t.name), targets.iter().map(|t| &t.name));
                let gone = gone.into_iter().map(|name| Update::NoTarget(TargetName::new(kind, name)));
                self.update_all(gone.chain(targets.into_iter().map(Update::Target)))
            }
            Update::Groups(groups) => {
                let gone = without(self.groups().map(|g| &g.name), groups.iter().map(|g| &g.name));
                let gone = gone.into_iter().map(Update::NoGroup);
                self.update_all(gone.chain(groups.into_iter().map(Update::Group)))
            }
            Update::Bindings(bindings) => {
                let gone = without(self.bindings().map(|b| &b.name), bindings.iter().map(|b| &b.name));
                let gone = gone.into_iter().map(Update::NoBinding);
                self.update_all(gone.chain(bindings.into_iter().map(Update::Binding)))
            }
            Update::Machine(source, machine) => self.apply_machine(source, machine),
            Update::NoMachine(source, uid) => {
                self.lose_machine(source, &uid);
                Changes::default()
            }
            Update::Machines(source, machines) => {
                let gone = without(self.machines_seen_by(source), machines.iter().map(|m| &m.uid));
                let gone = gone.into_iter().map(|uid| Update::NoMachine(source, uid));
                self.update_all(gone.chain(machines.into_iter().map(|machine| Update::Machine(source, machine))))
            }
        }
    }

    fn update_all(&mut self, updates: impl Iterator<Item = Update>) -> Changes {
        updates.fold(Changes::default(), |mut changes, update| {
            changes.extend(self.update(update));
            changes
        })
    }
}

fn without<'a, T: Ord + Clone + 'a>(known: impl Iterator<Item = &'a T>, listed: impl Iterator<Item = &'a T>) -> Vec<T> {
    let listed: BTreeSet<&T> = listed.collect();
    known.filter(|name| !listed.contains(name)).cloned().collect()
}

/// A kind that the index knows.
pub trait Indexed: Sized {
    /// What the index keeps of it.
    type Kept;
    /// Parses it.
    fn keep(&self) -> Self::Kept;
    /// What the index keeps of one that cannot be read; `None`: nothing.
    fn keep_malformed(malformed: &Malformed) -> Option<Self::Kept>;
    /// The news that it is so now.
    fn one(kept: Self::Kept) -> Update;
    /// The news that these are all.
    fn all(kept: Vec<Self::Kept>) -> Update;
    /// The news that it is gone.
    fn none(name: NamespacedName) -> Update;
}

impl Indexed for core::Pod {
    type Kept = Target;

    fn keep(&self) -> Target {
        Target::from(self)
    }

    // The API server itself vouches for pods.
    fn keep_malformed(_: &Malformed) -> Option<Target> {
        None
    }

    fn one(target: Target) -> Update {
        Update::Target(target)
    }

    fn all(targets: Vec<Target>) -> Update {
        Update::Targets(TargetKind::Pod, targets)
    }

    fn none(name: NamespacedName) -> Update {
        Update::NoTarget(TargetName::pod(name))
    }
}

impl Indexed for NetworkInterface {
    type Kept = Target;

    fn keep(&self) -> Target {
        Target::from(self)
    }

    // The schema keeps everyone from writing one that cannot be read.
    fn keep_malformed(_: &Malformed) -> Option<Target> {
        None
    }

    fn one(target: Target) -> Update {
        Update::Target(target)
    }

    fn all(targets: Vec<Target>) -> Update {
        Update::Targets(TargetKind::NetworkInterface, targets)
    }

    fn none(name: NamespacedName) -> Update {
        Update::NoTarget(TargetName::network_interface(name))
    }
}

impl Indexed for SecurityGroup {
    type Kept = Group;

    fn keep(&self) -> Group {
        Group::from(self)
    }

    fn keep_malformed(malformed: &Malformed) -> Option<Group> {
        Some(Group::malformed(&malformed.meta, malformed.error.clone()))
    }

    fn one(group: Group) -> Update {
        Update::Group(group)
    }

    fn all(groups: Vec<Group>) -> Update {
        Update::Groups(groups)
    }

    fn none(name: NamespacedName) -> Update {
        Update::NoGroup(name)
    }
}

impl Indexed for SecurityGroupBinding {
    type Kept = Binding;

    fn keep(&self) -> Binding {
        Binding::from(self)
    }

    fn keep_malformed(malformed: &Malformed) -> Option<Binding> {
        Some(Binding::malformed(&malformed.meta, malformed.error.clone()))
    }

    fn one(binding: Binding) -> Update {
        Update::Binding(binding)
    }

    fn all(bindings: Vec<Binding>) -> Update {
        Update::Bindings(bindings)
    }

    fn none(name: NamespacedName) -> Update {
        Update::NoBinding(name)
    }
}

/// Turns the events of one watch into news.
pub struct Feed<F>(pub F);

impl<K, F> Sink<K> for Feed<F>
where
    K: Indexed + kube::Resource,
    F: FnMut(Update),
{
    fn reset(&mut self, objects: Vec<K>, malformed: Vec<Malformed>) {
        let malformed = malformed.iter().filter_map(K::keep_malformed);
        (self.0)(K::all(objects.iter().map(K::keep).chain(malformed).collect()));
    }

    fn apply(&mut self, object: K) {
        (self.0)(K::one(object.keep()));
    }

    fn delete(&mut self, object: K) {
        (self.0)(K::none(name_of(object.meta())));
    }

    fn malformed(&mut self, object: Malformed) {
        if let Some(kept) = K::keep_malformed(&object) {
            (self.0)(K::one(kept));
        }
    }

    fn delete_malformed(&mut self, object: Malformed) {
        (self.0)(K::none(name_of(&object.meta)));
    }
}
