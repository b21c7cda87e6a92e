//! What the node should enforce, computed from what its watches have seen.
//!
//! PURE: the same news in any order leads to the same ruleset.

use super::attachments::{Attachments, Settled};
use super::committed::{Committed, End, Revision};
use super::extra_addresses::{Allowances, Extra};
use super::handover::{Mover, Present};
use super::networks::PodNetworks;
use crate::api::conditions::{GATE_READY, Verdict};
use crate::api::{
    AttachmentState, EnforcedBinding, EnforcedGroup, EnforcedRemote, EnforcementFailure, PodAttachment,
    ReportedAttachment,
};
use crate::index::{AddressDigest, Index, OnNetwork, RemoteMembers, Target, TargetKind, TargetName, Update};
use crate::nft::{Profile, Ruleset, compile};
use crate::policy::{Interface, NamespacedName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

/// A revision that the kernel refused, and what is enforced in its stead.
#[derive(Clone, Debug)]
pub struct HeldBack {
    /// The uid and generation that were refused: any other is tried again.
    pub refused: (String, i64),
    /// The last good revision; `None`: there is none, so the group allows nothing.
    pub instead: Option<Revision>,
    /// What the kernel said.
    pub message: String,
}

/// Whether new pods wait for their rules, and why not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Nobody asked for it.
    #[default]
    Off,
    /// It is to be, and not yet.
    Starting,
    /// They do.
    Ready,
    /// The plugin could not be put in its place.
    Failing(String),
}

impl Gate {
    /// As a condition.
    pub fn verdict(&self) -> Verdict {
        let (status, reason, message) = match self {
            Self::Off => (false, "Disabled", "new pods do not wait for their rules: the gate is turned off".to_owned()),
            Self::Starting => (false, "Starting", "the gate is not in its place yet".to_owned()),
            Self::Ready => (true, "Installed", "new pods wait until their rules are in the kernel".to_owned()),
            Self::Failing(why) => (false, "NotInstalled", format!("new pods do not wait for their rules: {why}")),
        };
        Verdict { type_: GATE_READY, status, reason, message }
    }
}

/// See the module.
pub struct State {
    /// The node's pods and network interfaces, and all groups and bindings.
    pub index: Index,
    /// The addresses of remote groups.
    pub remotes: RemoteMembers,
    /// What the CNI gate was told.
    pub attachments: Attachments,
    /// What targets may use beside their own addresses.
    pub allowances: Allowances,
    /// How the CNI gate is.
    pub gate: Gate,
    /// What bridges do not hand to the rules does not pass.
    pub bridges_are_closed: bool,
    /// Or it is meant not to.
    pub bridges_are_to_be_closed: bool,
    networks: BTreeMap<NamespacedName, PodNetworks>,
    /// The addresses on them that were given back, and whose devices are still there.
    leaving: BTreeSet<IpAddr>,
    /// The revision of the attachments that both are of.
    networks_revision: u64,
    /// Revisions that the kernel refused.
    pub held_back: BTreeMap<NamespacedName, HeldBack>,
    /// See [`Ruleset::told`].
    pub told: Option<NonZeroU32>,
    node_addresses: BTreeSet<IpAddr>,
    /// Of the last round, by the rules they were compiled from. Not by generation: a restored API server counts some anew.
    profiles: BTreeMap<Arc<Interface>, Arc<Profile>>,
}

/// The groups of some targets, and what they are compiled to.
#[derive(Clone)]
struct Guarding {
    interface: Arc<Interface>,
    profile: Arc<Profile>,
}

/// A ruleset, and what may be said of it once it is in the kernel.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// For the kernel.
    pub ruleset: Ruleset,
    /// The same, for whoever asks what is in force.
    pub committed: Arc<Committed>,
    /// The groups that its rules name and that exist: their slices are needed.
    pub remotes: BTreeSet<NamespacedName>,
    /// The attachments that it takes into account.
    pub settled: Settled,
    /// For the report.
    pub report: Report,
}

/// The part of a node's report that a commit makes true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Guarded interfaces.
    pub interfaces: usize,
    /// See [`crate::api::NodeEnforcementStatus`].
    pub groups: Vec<EnforcedGroup>,
    /// Likewise.
    pub remotes: Vec<EnforcedRemote>,
    /// Likewise.
    pub bindings: Vec<EnforcedBinding>,
    /// Likewise.
    pub failures: Vec<EnforcementFailure>,
    /// Likewise.
    pub attachments: Vec<PodAttachment>,
    /// Likewise.
    pub networks: Vec<ReportedAttachment>,
    /// How the CNI gate is.
    pub gate: Gate,
}

impl State {
    /// A state that knows nothing but the addresses of its node.
    pub fn new(node_addresses: BTreeSet<IpAddr>) -> Self {
        Self {
            index: Index::default(),
            remotes: RemoteMembers::default(),
            attachments: Attachments::default(),
            allowances: Allowances::default(),
            gate: Gate::default(),
            bridges_are_closed: false,
            bridges_are_to_be_closed: false,
            networks: BTreeMap::new(),
            leaving: BTreeSet::new(),
            networks_revision: 0,
            held_back: BTreeMap::new(),
            told: None,
            node_addresses,
            profiles: BTreeMap::new(),
        }
    }

    /// Takes in a piece of news; tells whether it may change what is desired, or who may start.
    pub fn update(&mut self, update: Update) -> bool {
        let waiting = self.attachments.awaits_a_pod(&self.index);
        !self.index.update(update).is_empty() || waiting
    }

    /// Takes in how all pods are attached to secondary networks in this revision of the attachments, and which devices are there;
    /// tells whether that is news, or somebody waits for it.
    pub fn set_networks(
        &mut self,
        revision: u64,
        networks: BTreeMap<NamespacedName, PodNetworks>,
        is_there: impl Fn(&str) -> bool,
    ) -> bool {
        let waited_for = self.attachments.awaits_a_look(self.networks_revision);
        self.networks_revision = revision;
        let leaving = self.attachments.leaving(is_there);
        let left = std::mem::replace(&mut self.leaving, leaving) != self.leaving;
        if self.networks == networks {
            return waited_for || left;
        }
        let before = std::mem::replace(&mut self.networks, networks);
        for (pod, PodNetworks { node, .. }) in before.iter().filter(|(pod, _)| !self.networks.contains_key(*pod)) {
            self.index.set_attached(pod, node, None);
        }
        for (pod, networks) in &self.networks {
            self.index.set_attached(pod, &networks.node, Some(networks.attached()));
        }
        true
    }

    /// What the node should enforce now. To be asked once every watch has synced.
    pub fn desired(&mut self) -> Desired {
        self.settle_addresses();
        let mut desired = Desired { settled: self.settled(), ..Desired::default() };
        let mut revisions = BTreeMap::new();
        // Targets with the same groups share one.
        let mut profiles: BTreeMap<BTreeSet<&NamespacedName>, Guarding> = BTreeMap::new();
        // Who guards an address; `None` when more than one target claims it.
        let mut guarded: BTreeMap<IpAddr, Option<Guarding>> = BTreeMap::new();
        let mut extra: BTreeMap<IpAddr, Option<Guarding>> = BTreeMap::new();
        let mut ends: BTreeMap<IpAddr, Arc<End>> = BTreeMap::new();
        let mut groups: BTreeMap<NamespacedName, AddressDigest> = BTreeMap::new();
        let mut bindings: BTreeMap<NamespacedName, AddressDigest> = BTreeMap::new();
        let mut given_back = self.leaving.clone();
        let mut targets: Vec<&Target> = self.index.all_targets().filter(|target| !target.host_network).collect();
        targets.sort_by(|a, b| (a.kind, &a.name, &a.network).cmp(&(b.kind, &b.name, &b.network)));
        for target in targets {
            let mut attached = BTreeSet::new();
            let mut is_guarded = false;
            for binding in self.index.bindings_of(&target.key()) {
                is_guarded = true;
                attached.extend(&binding.groups);
                add_all(bindings.entry(binding.name.clone()).or_default(), target);
            }
            if !is_guarded {
                continue;
            }
            desired.report.interfaces += 1;
            for group in &attached {
                add_all(groups.entry((*group).clone()).or_default(), target);
                if let Some(revision) = self.revision(group) {
                    revisions.insert((*group).clone(), revision);
                }
            }
            match &target.network {
                None => given_back.extend(self.attachments.given_back(target)),
                Some(network) => desired.report.networks.extend(self.attachment(target, network)),
            }
            let names = attached.iter().map(|group| (*group).clone()).collect();
            let guarding = profiles.entry(attached).or_insert_with_key(|groups| self.profile(groups, &revisions));
            let end = Arc::new(End { target: Some(target.key()), attached: names, rules: guarding.interface.clone() });
            for address in target.claimed() {
                // Who claims the node's address must not close the node, and what is declared takes nothing from a pod.
                if self.node_addresses.contains(address) || self.is_a_pods(target, *address) {
                    continue;
                }
                let contested = self.index.is_contested(target, *address);
                guarded.insert(*address, (!contested).then(|| guarding.clone()));
                ends.insert(*address, if contested { End::closed(Some(target.key())) } else { end.clone() });
            }
            for address in self.extra_addresses(target).addresses {
                // One that targets share is guarded if they are guarded alike.
                let shared = extra.entry(address).or_insert_with(|| Some(guarding.clone()));
                if shared.as_ref().is_some_and(|other| !Arc::ptr_eq(&other.profile, &guarding.profile)) {
                    *shared = None;
                }
                let end = if shared.is_some() { end.clone() } else { End::closed(Some(target.key())) };
                ends.insert(address, end);
            }
        }
        self.profiles = profiles.into_values().map(|guarding| (guarding.interface, guarding.profile)).collect();
        guarded.extend(extra);
        for address in given_back {
            // The device is taken down after we were told: until the pod is gone, or the address is somebody else's, nothing
            // passes, whoever still sends from a dying sandbox.
            if self.index.claimants(address).next().is_none() && !self.node_addresses.contains(&address) {
                guarded.insert(address, None);
                ends.insert(address, End::closed(None));
            }
        }

        let closed = compile(&Interface::new());
        let index = &self.index;
        // All that the rules name, though a profile needs no set of a remote that a wider rule covers, nor of any while its
        // pods have no address: the controller, which does not compile, expects to hear of each.
        let named: BTreeSet<NamespacedName> =
            revisions.values().flat_map(|revision| revision.rules.remotes()).cloned().collect();
        let addresses: BTreeMap<NamespacedName, Arc<BTreeSet<IpAddr>>> = named
            .into_iter()
            .map(|group| {
                let uid = index.group(&group).map(|g| g.uid.as_str());
                let addresses = self.remotes.addresses(&group, uid);
                (group, addresses)
            })
            .collect();
        let guarded = guarded.iter().map(|(a, by)| (*a, by.as_ref().map_or(&closed, |by| by.profile.as_ref())));
        // Every remote of every profile is in the map: profiles are made of these revisions.
        desired.ruleset = Ruleset::new(guarded, |group| addresses.get(group).cloned().unwrap_or_default());
        desired.ruleset.told = self.told;
        desired.report.failures = self.failures(&revisions);
        let node = self.node_addresses.clone();
        desired.committed = Arc::new(Committed { ends, members: addresses.clone(), groups: revisions, node });
        desired.remotes = addresses.keys().filter(|group| index.group(group).is_some()).cloned().collect();
        desired.report.groups =
            groups.into_iter().map(|(group, digest)| desired.enforced_group(group, digest)).collect();
        desired.report.remotes =
            addresses.into_iter().map(|(group, addresses)| enforced_remote(group, &addresses)).collect();
        desired.report.bindings = bindings
            .into_iter()
            .filter_map(|(name, digest)| {
                let binding = index.binding(&name)?;
                Some(EnforcedBinding {
                    namespace: name.namespace,
                    name: name.name,
                    uid: binding.uid.clone(),
                    generation: binding.generation,
                    digest: digest.to_string(),
                })
            })
            .collect();
        let ahead = index
            .with_known_addresses()
            .filter(|(pod, _)| index.bindings_of(&TargetName::pod((*pod).clone())).next().is_some());
        desired.report.attachments = ahead
            .map(|(pod, (uid, addresses))| PodAttachment {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: uid.clone(),
                addresses: addresses.iter().copied().collect(),
            })
            .collect();
        desired.report.gate = self.gate.clone();
        desired
    }

    /// How a pod is attached to a secondary network, for the report; `None`: it is not.
    fn attachment(&self, target: &Target, network: &NamespacedName) -> Option<ReportedAttachment> {
        let (state, message) = match self.networks.get(&target.name).filter(|pod| pod.uid == target.uid) {
            Some(pod) => pod.networks.get(network).map(|attached| (attached.state, attached.message.clone()))?,
            None => {
                let networks = &self.index.pod(&target.name)?.networks;
                networks.values().find(|on| on.attached && on.network == *network)?;
                (AttachmentState::NotFound, "it was not looked at yet".to_owned())
            }
        };
        Some(ReportedAttachment {
            namespace: target.name.namespace.clone(),
            name: target.name.name.clone(),
            uid: target.uid.clone(),
            network: network.to_string(),
            state,
            message,
            addresses: target.claimed().iter().copied().collect(),
        })
    }

    /// Whether an address that somebody else claims is a pod's.
    fn is_a_pods(&self, target: &Target, address: IpAddr) -> bool {
        target.kind != TargetKind::Pod && self.index.claimants(address).any(|other| other.kind == TargetKind::Pod)
    }

    /// What a target may use beside its own addresses.
    pub fn extra_addresses(&self, target: &Target) -> Extra {
        self.allowances.grant(target, |address| {
            if self.node_addresses.contains(&address) {
                return Some("this node".to_owned());
            }
            self.index.claimants(address).find(|owner| **owner != target.key()).map(ToString::to_string)
        })
    }

    /// All that may come out of the device of a target, beside what is link-local.
    pub fn own_addresses<'a>(&'a self, target: &'a Target) -> impl Iterator<Item = IpAddr> + 'a {
        let own = self.index.addresses(target).filter(|address| !self.node_addresses.contains(address));
        own.chain(self.extra_addresses(target).addresses)
    }

    /// The pods that run virtual machines, and their addresses on all networks.
    pub fn running(&self) -> Present {
        let mut running = Present::new();
        for pod in self.index.all_targets().filter(|target| target.machine.is_some()) {
            let addresses: Vec<IpAddr> = self.own_addresses(pod).collect();
            if !addresses.is_empty() {
                let mover = Mover { name: pod.name.clone(), machine: pod.machine.clone() };
                running.entry(mover).or_default().extend(addresses);
            }
        }
        running
    }

    /// The attachments that a ruleset made now would take into account.
    pub fn settled(&self) -> Settled {
        self.attachments.settled(&self.index, self.networks_revision, |attachment| {
            let Some(pod) = self.index.pod(&attachment.pod) else { return false };
            let Some(OnNetwork { network, .. }) = pod.networks.get(&attachment.interface) else { return false };
            let looked_at = self.networks.get(&attachment.pod).filter(|known| known.uid == attachment.uid);
            let Some(attached) = looked_at.and_then(|known| known.networks.get(network)) else { return false };
            let target = TargetName { network: Some(network.clone()), ..pod.key() };
            let is_guarded = self.index.bindings_of(&target).next().is_some();
            let is_to_be_closed = attached.unfiltered && self.bridges_are_to_be_closed && is_guarded;
            attached.takes_in(attachment) && !is_to_be_closed
        })
    }

    /// Tells the index where attachments know better than the status of pods.
    fn settle_addresses(&mut self) {
        self.attachments.forget_gone(&self.index);
        let known = self.attachments.differing(self.index.pods());
        let before: Vec<NamespacedName> = self.index.with_known_addresses().map(|(pod, _)| pod.clone()).collect();
        for pod in before.iter().filter(|pod| !known.contains_key(pod)) {
            self.index.set_known_addresses(pod, None);
        }
        for (pod, addresses) in known {
            let uid = self.index.pod(&pod).map(|p| p.uid.clone()).unwrap_or_default();
            self.index.set_known_addresses(&pod, Some((uid, addresses)));
        }
    }

    /// What would be desired if, of the wanted revisions, these were tried and the others left out.
    ///
    /// What is held back already stays so: one bad group must not make every trial fail.
    pub fn desired_with(
        &mut self,
        wanted: &BTreeMap<NamespacedName, Revision>,
        tried: &BTreeMap<NamespacedName, Revision>,
    ) -> Desired {
        let before = self.held_back.clone();
        for name in wanted.keys() {
            let Some(group) = self.index.group(name) else { continue };
            let latest = (group.uid.clone(), group.rules_generation);
            let instead = tried.get(name);
            if instead.is_none_or(|r| (&r.uid, r.generation) != (&latest.0, latest.1)) {
                let held = HeldBack { refused: latest, instead: instead.cloned(), message: String::new() };
                self.held_back.insert(name.clone(), held);
            }
        }
        let desired = self.desired();
        self.held_back = before;
        desired
    }

    /// The rules to enforce for a group; `None` if it is missing, or never had good ones.
    fn revision(&self, name: &NamespacedName) -> Option<Revision> {
        let group = self.index.group(name)?;
        let latest =
            Revision { uid: group.uid.clone(), generation: group.rules_generation, rules: group.rules.clone()? };
        match self.held_back.get(name) {
            Some(held) if held.refused == (latest.uid.clone(), latest.generation) => held.instead.clone(),
            _ => Some(latest),
        }
    }

    /// The profile for these groups: the last round's, if they say the same, or a new one.
    fn profile(
        &self,
        attached: &BTreeSet<&NamespacedName>,
        revisions: &BTreeMap<NamespacedName, Revision>,
    ) -> Guarding {
        let present = attached.iter().filter_map(|name| Some(((*name).clone(), revisions.get(*name)?.rules.clone())));
        let interface: Interface = present.collect();
        match self.profiles.get_key_value(&interface) {
            Some((interface, profile)) => Guarding { interface: interface.clone(), profile: profile.clone() },
            None => Guarding { profile: Arc::new(compile(&interface)), interface: Arc::new(interface) },
        }
    }

    fn failures(&self, revisions: &BTreeMap<NamespacedName, Revision>) -> Vec<EnforcementFailure> {
        let current = self.held_back.iter().filter(|(name, held)| {
            let group = self.index.group(name);
            group.is_some_and(|g| held.refused == (g.uid.clone(), g.rules_generation))
                && (held.instead.is_none() || revisions.contains_key(*name))
        });
        current
            .map(|(name, held)| EnforcementFailure {
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                message: held.message.chars().take(1000).collect(),
            })
            .collect()
    }
}

impl Desired {
    fn enforced_group(&self, name: NamespacedName, digest: AddressDigest) -> EnforcedGroup {
        let revision = self.committed.groups.get(&name);
        EnforcedGroup {
            uid: revision.map(|r| r.uid.clone()),
            generation: revision.map_or(0, |r| r.generation),
            namespace: name.namespace,
            name: name.name,
            digest: digest.to_string(),
        }
    }
}

fn enforced_remote(group: NamespacedName, addresses: &BTreeSet<IpAddr>) -> EnforcedRemote {
    EnforcedRemote {
        namespace: group.namespace,
        name: group.name,
        addresses: i64::try_from(addresses.len()).unwrap_or(i64::MAX),
        digest: AddressDigest::from(addresses).to_string(),
    }
}

fn add_all(digest: &mut AddressDigest, target: &Target) {
    target.network.iter().for_each(|network| digest.add_attachment(&target.uid, network));
    target.claimed().iter().for_each(|address| digest.add(*address));
}
