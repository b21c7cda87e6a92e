//! What to say of groups, bindings and network interfaces.
//!
//! PURE. Statuses are computed from the cluster as it is, and written where they differ from what is there.

use super::cluster::Cluster;
use super::release::users;
use super::truth;
use crate::api::conditions::{self, ACCEPTED, DELETION_BLOCKED, ENFORCED, RESOLVED_REFS, Verdict, listed};
use crate::api::{NetworkInterfaceStatus, RuleCount, SecurityGroupBindingStatus, SecurityGroupStatus};
use crate::index::{AddressDigest, Binding, Group, Target, TargetName};
use crate::policy::NamespacedName;
use jiff::Timestamp;
use std::collections::BTreeSet;

/// The status of a group; `None` if there is no such group.
pub fn of_group(
    cluster: &Cluster,
    name: &NamespacedName,
    before: &SecurityGroupStatus,
    now: Timestamp,
) -> Option<SecurityGroupStatus> {
    let group = cluster.index.group(name)?;
    let (mut enforced, nodes) = truth::of_group(cluster, name);
    let accepted = group_accepted(group);
    if !accepted.status {
        enforced = not_accepted();
    }
    let mut verdicts = vec![accepted, group_refs(cluster, group), enforced];
    if group.deleting
        && let Some(users) = users(&cluster.index, name)
    {
        let message = format!("deletion waits, as the group is in use: {users}");
        verdicts.push(Verdict { type_: DELETION_BLOCKED, status: true, reason: "InUse", message });
    }
    let rules = group.rules.as_deref();
    Some(SecurityGroupStatus {
        observed_generation: Some(group.generation),
        conditions: conditions_of(&before.conditions, verdicts, group.generation, now),
        members: Some(count(cluster.members(name).map_or(0, |m| m.len()))),
        rules: Some(RuleCount {
            ingress: count(rules.map_or(0, |r| r.ingress.len())),
            egress: count(rules.map_or(0, |r| r.egress.len())),
        }),
        nodes: Some(nodes),
        usage: cluster.usages.of_group(group, &before.usage),
    })
}

/// The status of a binding; `None` if there is no such binding.
pub fn of_binding(
    cluster: &Cluster,
    name: &NamespacedName,
    before: &SecurityGroupBindingStatus,
    now: Timestamp,
) -> Option<SecurityGroupBindingStatus> {
    let binding = cluster.index.binding(name)?;
    let (mut enforced, nodes) = truth::of_binding(cluster, name);
    let accepted = binding_accepted(cluster, binding);
    if !accepted.status {
        enforced = not_accepted();
    }
    let verdicts = vec![accepted, binding_refs(cluster, binding), enforced];
    Some(SecurityGroupBindingStatus {
        observed_generation: Some(binding.generation),
        conditions: conditions_of(&before.conditions, verdicts, binding.generation, now),
        groups: Some(binding.groups.iter().map(|g| g.name.as_str()).collect::<Vec<_>>().join(",")),
        targets: Some(count(cluster.targets(name).map_or(0, |m| m.len()))),
        nodes: Some(nodes),
    })
}

/// The status of a network interface; `None` if there is no such interface.
pub fn of_interface(
    cluster: &Cluster,
    name: &NamespacedName,
    before: &NetworkInterfaceStatus,
    now: Timestamp,
) -> Option<NetworkInterfaceStatus> {
    let key = TargetName::network_interface(name.clone());
    let interface = cluster.index.target(&key)?;
    let groups: BTreeSet<&str> =
        cluster.index.bindings_of(&key).flat_map(|b| &b.groups).map(|group| group.name.as_str()).collect();
    let verdicts = vec![interface_accepted(cluster, interface), truth::of_interface(cluster, interface)];
    Some(NetworkInterfaceStatus {
        observed_generation: Some(interface.generation),
        conditions: conditions_of(&before.conditions, verdicts, interface.generation, now),
        // Always there: a patch leaves alone what it does not mention.
        groups: Some(groups.into_iter().collect::<Vec<_>>().join(",")),
    })
}

fn conditions_of(
    before: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
    verdicts: Vec<Verdict>,
    generation: i64,
    now: Timestamp,
) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    let mut conditions = before.to_vec();
    // What is not said any more is not kept either.
    conditions.retain(|c| verdicts.iter().any(|v| v.type_ == c.type_));
    for verdict in verdicts {
        conditions::set(&mut conditions, verdict, Some(generation), now);
    }
    conditions
}

fn not_accepted() -> Verdict {
    let message = "this revision was not accepted; see the condition Accepted".to_owned();
    Verdict { type_: ENFORCED, status: false, reason: "NotAccepted", message }
}

fn group_accepted(group: &Group) -> Verdict {
    match (&group.error, &group.rules) {
        (None, _) => {
            Verdict { type_: ACCEPTED, status: true, reason: "Accepted", message: "the rules are valid".into() }
        }
        (Some(error), Some(_)) => Verdict {
            type_: ACCEPTED,
            status: false,
            reason: "Invalid",
            message: format!("{error}. The rules of generation {} stay in force", group.rules_generation),
        },
        (Some(error), None) => Verdict {
            type_: ACCEPTED,
            status: false,
            reason: "Invalid",
            message: format!("{error}. There are no earlier rules, so the group allows nothing"),
        },
    }
}

fn group_refs(cluster: &Cluster, group: &Group) -> Verdict {
    let remotes = group.remotes();
    let (found, missing): (BTreeSet<_>, BTreeSet<_>) = remotes.iter().partition(|r| cluster.index.group(r).is_some());
    let matches_nobody =
        |r: &&NamespacedName| cluster.members(r).is_none_or(|m| m.published == AddressDigest::default());
    let empty: Vec<_> = found.into_iter().filter(matches_nobody).collect();
    if !missing.is_empty() {
        let message = format!("rules name groups that do not exist and match nobody: {}", listed(missing));
        return Verdict { type_: RESOLVED_REFS, status: false, reason: "GroupNotFound", message };
    }
    let (reason, message) = match empty.as_slice() {
        [] => ("Resolved", "every group that rules name exists and has members".to_owned()),
        empty => {
            let message =
                format!("rules name groups that have no member with an address and match nobody: {}", listed(empty));
            ("GroupEmpty", message)
        }
    };
    Verdict { type_: RESOLVED_REFS, status: true, reason, message }
}

fn binding_accepted(cluster: &Cluster, binding: &Binding) -> Verdict {
    if let Some(error) = &binding.error {
        let message = format!("{error}. What the binding said before stays in force");
        return Verdict { type_: ACCEPTED, status: false, reason: "Invalid", message };
    }
    let host: Vec<&Target> = cluster.index.targets(&binding.name).filter(|pod| pod.host_network).collect();
    if !host.is_empty() {
        let names: BTreeSet<&str> = host.iter().map(|pod| pod.name.name.as_str()).collect();
        let message =
            format!("pods on the host's network have the node's address and cannot be guarded: {}", listed(names));
        return Verdict { type_: ACCEPTED, status: true, reason: "HostNetworkPods", message };
    }
    let contested: BTreeSet<String> =
        cluster.index.targets(&binding.name).flat_map(|t| contested(cluster, t)).collect();
    if !contested.is_empty() {
        let message =
            format!("addresses that several live targets claim belong to none of them: {}", listed(contested));
        return Verdict { type_: ACCEPTED, status: true, reason: "AddressConflict", message };
    }
    Verdict { type_: ACCEPTED, status: true, reason: "Accepted", message: "the binding is valid".into() }
}

fn interface_accepted(cluster: &Cluster, interface: &Target) -> Verdict {
    let no = |reason, message| Verdict { type_: ACCEPTED, status: false, reason, message };
    let contested: Vec<String> = contested(cluster, interface).collect();
    if !contested.is_empty() {
        return no(
            "AddressConflict",
            format!("addresses that others claim too, and that are not its own: {}", listed(contested)),
        );
    }
    let reserved: Vec<_> = interface.claimed().iter().filter(|a| cluster.index.is_reserved(**a)).collect();
    if !reserved.is_empty() {
        return no(
            "AddressReserved",
            format!("addresses of nodes or Services, which no group ever means: {}", listed(reserved)),
        );
    }
    Verdict { type_: ACCEPTED, status: true, reason: "Accepted", message: "its addresses are its own".into() }
}

/// The addresses of a target that are not its own because others claim them, and who those are.
fn contested<'a>(cluster: &'a Cluster, target: &'a Target) -> impl Iterator<Item = String> + 'a {
    let contested = target.claimed().iter().filter(|address| cluster.index.is_contested(target, **address));
    contested.map(|address| format!("{address} ({})", listed(cluster.index.claimants(*address))))
}

fn binding_refs(cluster: &Cluster, binding: &Binding) -> Verdict {
    let missing: Vec<&str> =
        binding.groups.iter().filter(|g| cluster.index.group(g).is_none()).map(|g| g.name.as_str()).collect();
    if missing.is_empty() {
        let message = "every group exists".to_owned();
        return Verdict { type_: RESOLVED_REFS, status: true, reason: "Resolved", message };
    }
    let message =
        format!("groups that do not exist allow nothing, the targets are guarded all the same: {}", listed(missing));
    Verdict { type_: RESOLVED_REFS, status: false, reason: "GroupNotFound", message }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
