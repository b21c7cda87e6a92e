//! From watch events to calls of the cluster, one sink per kind.

use super::Shared;
use super::cluster::{Cluster, Seen};
use crate::api::{
    ConnectionHandover, NetworkInterface, NodeEnforcement, NodeUsage, SecurityGroup, SecurityGroupBinding,
    SecurityGroupSlice,
};
use crate::index::{Feed, Indexed, TargetKind, Update, name_of};
use crate::policy::NamespacedName;
use crate::runtime::watch::{Malformed, Sink};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use std::collections::{BTreeMap, BTreeSet};

/// Targets, groups and bindings: into the index, and what is ours to write of them into the cluster's memory.
pub struct Objects(pub Shared);

/// A kind that goes into the index, and of which we may write a part.
pub trait Tracked: Indexed + Resource {
    /// Remembers an object as the API server shows it.
    fn see(&self, _: &mut Cluster) {}
    /// Remembers one that cannot be read.
    fn see_malformed(_: &ObjectMeta, _: &mut Cluster) {}
    /// Forgets it.
    fn forget(_: NamespacedName, _: &mut Cluster) {}
    /// The names of all that are known.
    fn known(_: &Cluster) -> Vec<NamespacedName> {
        Vec::new()
    }
}

impl Tracked for Pod {}

impl Tracked for NetworkInterface {
    fn see(&self, cluster: &mut Cluster) {
        cluster.see_interface(name_of(&self.metadata), Some(self.into()));
    }

    fn forget(name: NamespacedName, cluster: &mut Cluster) {
        cluster.see_interface(name, None);
    }

    fn known(cluster: &Cluster) -> Vec<NamespacedName> {
        cluster.index.of_kind(TargetKind::NetworkInterface).map(|interface| interface.name.clone()).collect()
    }
}

impl Tracked for SecurityGroup {
    fn see(&self, cluster: &mut Cluster) {
        cluster.see_group(name_of(&self.metadata), Some(self.into()));
    }

    fn see_malformed(metadata: &ObjectMeta, cluster: &mut Cluster) {
        let seen = Seen { metadata: metadata.clone(), ours: Default::default() };
        cluster.see_group(name_of(metadata), Some(seen));
    }

    fn forget(name: NamespacedName, cluster: &mut Cluster) {
        cluster.see_group(name, None);
    }

    fn known(cluster: &Cluster) -> Vec<NamespacedName> {
        cluster.index.groups().map(|g| g.name.clone()).collect()
    }
}

impl Tracked for SecurityGroupBinding {
    fn see(&self, cluster: &mut Cluster) {
        cluster.see_binding(name_of(&self.metadata), Some(self.into()));
    }

    fn see_malformed(metadata: &ObjectMeta, cluster: &mut Cluster) {
        let seen = Seen { metadata: metadata.clone(), ours: Default::default() };
        cluster.see_binding(name_of(metadata), Some(seen));
    }

    fn forget(name: NamespacedName, cluster: &mut Cluster) {
        cluster.see_binding(name, None);
    }

    fn known(cluster: &Cluster) -> Vec<NamespacedName> {
        cluster.index.bindings().map(|b| b.name.clone()).collect()
    }
}

/// Takes in a list of all there is.
///
/// What was seen before is forgotten first: versions run backwards when the API server was restored from a backup, and what is
/// remembered would pass for newer than anything it shows from then on.
pub fn take_list<K: Tracked>(cluster: &mut Cluster, objects: Vec<K>, malformed: Vec<Malformed>) {
    for known in K::known(cluster) {
        K::forget(known, cluster);
    }
    objects.iter().for_each(|object| object.see(cluster));
    malformed.iter().for_each(|m| K::see_malformed(&m.meta, cluster));
    Feed(|update: Update| cluster.update(update)).reset(objects, malformed);
}

impl<K: Tracked> Sink<K> for Objects {
    fn reset(&mut self, objects: Vec<K>, malformed: Vec<Malformed>) {
        self.0.change(|cluster| take_list(cluster, objects, malformed));
    }

    fn apply(&mut self, object: K) {
        self.0.change(|cluster| {
            object.see(cluster);
            cluster.update(K::one(object.keep()));
        });
    }

    fn delete(&mut self, object: K) {
        self.0.change(|cluster| {
            K::forget(name_of(object.meta()), cluster);
            cluster.update(K::none(name_of(object.meta())));
        });
    }

    fn malformed(&mut self, object: Malformed) {
        self.0.change(|cluster| {
            K::see_malformed(&object.meta, cluster);
            if let Some(kept) = K::keep_malformed(&object) {
                cluster.update(K::one(kept));
            }
        });
    }

    fn delete_malformed(&mut self, object: Malformed) {
        self.0.change(|cluster| {
            K::forget(name_of(&object.meta), cluster);
            cluster.update(K::none(name_of(&object.meta)));
        });
    }
}

/// Our own slices, as they are in the API server.
pub struct Slices(pub Shared);

impl Sink<SecurityGroupSlice> for Slices {
    fn reset(&mut self, slices: Vec<SecurityGroupSlice>, _: Vec<Malformed>) {
        self.0.change(|cluster| {
            // As above: what was seen before says nothing about what is listed now.
            for (group, slice) in cluster.slice_names() {
                cluster.forget_slice(&group, &slice);
            }
            slices.into_iter().for_each(|slice| cluster.see_slice(slice));
        });
    }

    fn apply(&mut self, slice: SecurityGroupSlice) {
        self.0.change(|cluster| cluster.see_slice(slice));
    }

    fn delete(&mut self, slice: SecurityGroupSlice) {
        let NamespacedName { namespace, name } = name_of(&slice.metadata);
        let group = NamespacedName { namespace, name: slice.spec.group };
        self.0.change(|cluster| cluster.forget_slice(&group, &name));
    }

    // The schema keeps everyone from writing one that cannot be read; agents ignore it likewise.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, _: Malformed) {}
}

/// What nodes report.
pub struct Reported(pub Shared);

impl Sink<NodeEnforcement> for Reported {
    fn reset(&mut self, reports: Vec<NodeEnforcement>, _: Vec<Malformed>) {
        self.0.change(|cluster| {
            let listed: BTreeSet<String> = reports.iter().map(|r| name_of(&r.metadata).name).collect();
            let known: Vec<String> = cluster.reports.nodes().cloned().collect();
            for gone in known.into_iter().filter(|node| !listed.contains(node)) {
                cluster.set_report(&gone, None);
            }
            for report in reports {
                cluster.set_report(&name_of(&report.metadata).name, Some(report));
            }
        });
    }

    fn apply(&mut self, report: NodeEnforcement) {
        self.0.change(|cluster| cluster.set_report(&name_of(&report.metadata).name, Some(report)));
    }

    fn delete(&mut self, report: NodeEnforcement) {
        self.0.change(|cluster| cluster.set_report(&name_of(&report.metadata).name, None));
    }

    // What cannot be read says nothing: the node has to be taken for one that is not enforced.
    fn malformed(&mut self, report: Malformed) {
        self.delete_malformed(report);
    }

    fn delete_malformed(&mut self, report: Malformed) {
        self.0.change(|cluster| cluster.set_report(&name_of(&report.meta).name, None));
    }
}

/// What nodes count.
pub struct Counted(pub Shared);

impl Sink<NodeUsage> for Counted {
    fn reset(&mut self, usages: Vec<NodeUsage>, _: Vec<Malformed>) {
        // One by one: they may be many, and others wait for the cluster.
        usages.into_iter().for_each(|usage| self.apply(usage));
        self.0.change(Cluster::all_usages_are_known);
    }

    fn apply(&mut self, usage: NodeUsage) {
        let owner = usage.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "Node");
        let uid = owner.map(|owner| owner.uid.clone());
        self.0.change(|cluster| cluster.set_usage(&name_of(&usage.metadata).name, uid, usage.spec));
    }

    fn delete(&mut self, usage: NodeUsage) {
        self.0.change(|cluster| cluster.usages.forget_early(&name_of(&usage.metadata).name));
    }

    // The schema keeps everyone from writing one that cannot be read.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, usage: Malformed) {
        self.0.change(|cluster| cluster.usages.forget_early(&name_of(&usage.meta).name));
    }
}

/// What nodes hand over.
pub struct HandedOver(pub Shared);

impl Sink<ConnectionHandover> for HandedOver {
    fn reset(&mut self, handovers: Vec<ConnectionHandover>, _: Vec<Malformed>) {
        self.0.change(|cluster| {
            cluster.handovers.reset();
            handovers.iter().for_each(|handover| cluster.see_handover(handover));
        });
    }

    fn apply(&mut self, handover: ConnectionHandover) {
        self.0.change(|cluster| cluster.see_handover(&handover));
    }

    fn delete(&mut self, handover: ConnectionHandover) {
        self.0.change(|cluster| cluster.handovers.forget(&name_of(&handover.metadata).name));
    }

    // The schema keeps everyone from writing one that cannot be read.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, handover: Malformed) {
        self.0.change(|cluster| cluster.handovers.forget(&name_of(&handover.meta).name));
    }
}

/// Nodes: their boots, and the addresses that are theirs.
pub struct Standing(pub Shared);

impl Sink<Node> for Standing {
    fn reset(&mut self, nodes: Vec<Node>, _: Vec<Malformed>) {
        self.0.change(|cluster| {
            let listed: BTreeSet<String> = nodes.iter().map(|n| name_of(&n.metadata).name).collect();
            for gone in cluster.node_names().into_iter().filter(|node| !listed.contains(node)) {
                cluster.set_node(&gone, None);
            }
            for node in nodes {
                cluster.set_node(&name_of(&node.metadata).name, Some(&node));
            }
        });
    }

    fn apply(&mut self, node: Node) {
        self.0.change(|cluster| cluster.set_node(&name_of(&node.metadata).name, Some(&node)));
    }

    fn delete(&mut self, node: Node) {
        self.0.change(|cluster| cluster.set_node(&name_of(&node.metadata).name, None));
    }

    // The API server itself vouches for nodes.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, _: Malformed) {}
}

/// Ranges of Service addresses.
pub struct Serving {
    shared: Shared,
    ranges: BTreeMap<String, Vec<IpNet>>,
}

impl Serving {
    /// Knows of no range yet.
    pub fn new(shared: Shared) -> Self {
        Self { shared, ranges: BTreeMap::new() }
    }

    fn set(&mut self, range: &ServiceCIDR) {
        let cidrs = range.spec.iter().flat_map(|s| s.cidrs.iter().flatten());
        let name = name_of(&range.metadata).name;
        self.ranges.insert(name, cidrs.filter_map(|c| c.parse().ok()).collect());
    }

    fn publish(&self) {
        let all = self.ranges.values().flatten().copied().collect();
        self.shared.change(|cluster| cluster.set_service_networks(all));
    }
}

impl Sink<ServiceCIDR> for Serving {
    fn reset(&mut self, ranges: Vec<ServiceCIDR>, _: Vec<Malformed>) {
        self.ranges.clear();
        ranges.iter().for_each(|range| self.set(range));
        self.publish();
    }

    fn apply(&mut self, range: ServiceCIDR) {
        self.set(&range);
        self.publish();
    }

    fn delete(&mut self, range: ServiceCIDR) {
        self.ranges.remove(&name_of(&range.metadata).name);
        self.publish();
    }

    // The API server itself vouches for them.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, _: Malformed) {}
}
