//! Brings one object at a time in line with the cluster as it is, and writes only what differs.

use super::cluster::{Cluster, Seen, Work};
use super::events::{self, Progress, Said};
use super::handovers::Step;
use super::metrics::Metrics;
use super::{Shared, release, status};
use crate::api::conditions::ENFORCED;
use crate::api::{
    ConnectionHandover, FINALIZER, GROUP_LABEL, NetworkInterface, SecurityGroup, SecurityGroupBinding,
    SecurityGroupSlice, SecurityGroupSliceSpec,
};
use crate::policy::NamespacedName;
use crate::runtime::{Outcome, chain};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Somebody else wrote first: what they wrote is on its way to us.
const CONFLICT: Outcome = Outcome::RequeueAfter(Duration::from_millis(50));

/// All writers.
pub struct Writers {
    client: Client,
    shared: Shared,
    metrics: Metrics,
    progress: Mutex<Progress>,
}

/// One write to a group's metadata or status.
pub enum Write {
    /// A merge patch of the finalizers.
    Finalizers(Value),
    /// A merge patch of the status.
    Status(Value),
}

/// One write to a slice.
pub enum SliceWrite {
    /// It should be, and is not.
    Create(Box<SecurityGroupSlice>),
    /// It should say something else.
    Replace(Box<SecurityGroupSlice>),
    /// It should not be: this one, not one that comes to bear its name.
    Delete {
        /// Its uid.
        uid: Option<String>,
    },
}

impl Writers {
    /// Writers through this client.
    pub fn new(client: Client, shared: Shared, metrics: Metrics) -> Self {
        Self { client, shared, metrics, progress: Mutex::default() }
    }

    /// Does one piece of work.
    pub async fn run(&self, work: Work) -> Result<Outcome, String> {
        let result = match &work {
            Work::Group(name) => self.group(&work, name).await,
            Work::Binding(name) => self.binding(&work, name).await,
            Work::Interface(name) => self.interface(&work, name).await,
            Work::Slice(group, name) => self.slice(group, name).await,
            Work::Handover(name) => match self.handover(name).await {
                Ok(Some(left)) => return Ok(Outcome::RequeueAfter(left)),
                result => result.map(drop),
            },
        };
        if !self.shared.lock().shows(&work) {
            self.progress().forget(&work);
        }
        match result {
            Ok(()) => Ok(Outcome::Done),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(CONFLICT),
            // Deleted meanwhile; the watch will say so.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Outcome::Done),
            Err(error) => {
                self.metrics.failures.inc();
                Err(chain(&error))
            }
        }
    }

    async fn group(&self, work: &Work, name: &NamespacedName) -> kube::Result<()> {
        let api: Api<SecurityGroup> = Api::namespaced(self.client.clone(), &name.namespace);
        // The finalizer first: a status may promise what only the finalizer keeps.
        loop {
            let write = {
                let cluster = self.shared.lock();
                group_write(&cluster, name, Timestamp::now())
                    .and_then(|write| Some((write, Said::from(&cluster.seen_group(name)?.ours))))
            };
            let Some((write, before)) = write.filter(|_| self.leads()) else { return Ok(()) };
            let object = match write {
                Write::Finalizers(patch) => {
                    api.patch(&name.name, &PatchParams::default(), &Patch::Merge(patch)).await?
                }
                Write::Status(patch) => {
                    let object = api.patch_status(&name.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                    self.tell(work, &object, &before, object.status.as_ref().map(Said::from));
                    object
                }
            };
            self.metrics.writes.inc();
            self.shared.lock().see_group(name.clone(), Some((&object).into()));
        }
    }

    async fn binding(&self, work: &Work, name: &NamespacedName) -> kube::Result<()> {
        let api: Api<SecurityGroupBinding> = Api::namespaced(self.client.clone(), &name.namespace);
        let patch = {
            let cluster = self.shared.lock();
            binding_write(&cluster, name, Timestamp::now())
                .and_then(|patch| Some((patch, Said::from(&cluster.seen_binding(name)?.ours))))
        };
        let Some((patch, before)) = patch.filter(|_| self.leads()) else { return Ok(()) };
        let object = api.patch_status(&name.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.tell(work, &object, &before, object.status.as_ref().map(Said::from));
        self.metrics.writes.inc();
        self.shared.lock().see_binding(name.clone(), Some((&object).into()));
        Ok(())
    }

    async fn interface(&self, work: &Work, name: &NamespacedName) -> kube::Result<()> {
        let api: Api<NetworkInterface> = Api::namespaced(self.client.clone(), &name.namespace);
        let patch = {
            let cluster = self.shared.lock();
            interface_write(&cluster, name, Timestamp::now())
                .and_then(|patch| Some((patch, Said::from(&cluster.seen_interface(name)?.ours))))
        };
        let Some((patch, before)) = patch.filter(|_| self.leads()) else { return Ok(()) };
        let object = api.patch_status(&name.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.tell(work, &object, &before, object.status.as_ref().map(Said::from));
        self.metrics.writes.inc();
        self.shared.lock().see_interface(name.clone(), Some((&object).into()));
        Ok(())
    }

    /// Tells a node that a machine's connections are for it, and deletes what is of no use any more. Returns after how long to
    /// look again.
    async fn handover(&self, name: &str) -> kube::Result<Option<Duration>> {
        let api: Api<ConnectionHandover> = Api::all(self.client.clone());
        let step = {
            let cluster = self.shared.lock();
            cluster.handovers.step(name, &cluster.index, Timestamp::now())
        };
        match step.filter(|_| self.leads()) {
            None => return Ok(None),
            Some(Step::Wait(left)) => return Ok(Some(left)),
            Some(Step::Send(node)) => {
                let patch = Patch::Merge(json!({ "spec": { "toNode": node } }));
                api.patch(name, &PatchParams::default(), &patch).await?;
            }
            Some(Step::Delete) => drop(api.delete(name, &DeleteParams::default()).await?),
        }
        self.metrics.writes.inc();
        Ok(None)
    }

    /// Tells what a status says that was written over another: by events, and how long it took.
    fn tell<K: Resource<DynamicType = ()>>(&self, work: &Work, object: &K, before: &Said, after: Option<Said>) {
        let Some(after) = after else { return };
        let regarding = object.object_ref(&());
        for event in events::of_conditions(&before.conditions, &after.conditions) {
            self.shared.events.publish(event, regarding.clone());
        }
        let enforced = after.conditions.iter().find(|c| c.type_ == ENFORCED && c.status == "True");
        let is_news = self.progress().advance(work, before.generation, after.generation, enforced.is_some());
        if let Some(enforced) = enforced.filter(|_| is_news) {
            self.metrics.enforced(object.meta(), Timestamp::now());
            let event = events::of_enforcement(after.generation.unwrap_or_default(), &enforced.message);
            self.shared.events.publish(event, regarding);
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // What a panic left half-done is at most one event.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn slice(&self, group: &NamespacedName, name: &str) -> kube::Result<()> {
        let api: Api<SecurityGroupSlice> = Api::namespaced(self.client.clone(), &group.namespace);
        let write = slice_write(&self.shared.lock(), group, name);
        let Some(write) = write.filter(|_| self.leads()) else { return Ok(()) };
        match write {
            SliceWrite::Create(slice) => {
                let slice = api.create(&PostParams::default(), &slice).await?;
                self.shared.lock().see_slice(slice);
            }
            SliceWrite::Replace(slice) => {
                let slice = api.replace(name, &PostParams::default(), &slice).await?;
                self.shared.lock().see_slice(slice);
            }
            SliceWrite::Delete { uid } => {
                let preconditions = Preconditions { uid, resource_version: None };
                api.delete(name, &DeleteParams::default().preconditions(preconditions)).await?;
                self.shared.lock().forget_slice(group, name);
            }
        }
        self.metrics.writes.inc();
        Ok(())
    }

    /// Asked between reading the cluster and writing: a leader that was is not one that is.
    fn leads(&self) -> bool {
        self.shared.leadership.is_leader()
    }
}

/// The next write that a group needs.
pub fn group_write(cluster: &Cluster, name: &NamespacedName, now: Timestamp) -> Option<Write> {
    let Seen { metadata, ours } = cluster.seen_group(name)?;
    let group = cluster.index.group(name)?;
    let finalizers = metadata.finalizers.clone().unwrap_or_default();
    let has_ours = finalizers.iter().any(|f| f == FINALIZER);
    let version = &metadata.resource_version;
    let finalizers = match (group.deleting, has_ours) {
        (false, false) => Some([finalizers.as_slice(), &[FINALIZER.to_owned()]].concat()),
        (true, true) if release::users(&cluster.index, name).is_none() => {
            Some(finalizers.into_iter().filter(|f| f != FINALIZER).collect())
        }
        _ => None,
    };
    if let Some(finalizers) = finalizers {
        // The version guards what others have in the same list.
        return Some(Write::Finalizers(
            json!({ "metadata": { "finalizers": finalizers, "resourceVersion": version } }),
        ));
    }
    let status = status::of_group(cluster, name, ours, now)?;
    (status != *ours).then(|| Write::Status(json!({ "metadata": { "resourceVersion": version }, "status": status })))
}

/// The status that a binding needs.
pub fn binding_write(cluster: &Cluster, name: &NamespacedName, now: Timestamp) -> Option<Value> {
    let Seen { metadata, ours } = cluster.seen_binding(name)?;
    let status = status::of_binding(cluster, name, ours, now)?;
    (status != *ours).then(|| json!({ "metadata": { "resourceVersion": metadata.resource_version }, "status": status }))
}

/// The status that a network interface needs.
pub fn interface_write(cluster: &Cluster, name: &NamespacedName, now: Timestamp) -> Option<Value> {
    let Seen { metadata, ours } = cluster.seen_interface(name)?;
    let status = status::of_interface(cluster, name, ours, now)?;
    (status != *ours).then(|| json!({ "metadata": { "resourceVersion": metadata.resource_version }, "status": status }))
}

/// The write that a slice needs.
pub fn slice_write(cluster: &Cluster, group: &NamespacedName, name: &str) -> Option<SliceWrite> {
    let wanted = cluster.wanted_slice(group, name);
    let seen = cluster.seen_slice(group, name);
    match (wanted, seen) {
        (None, None) => None,
        (None, Some(seen)) => Some(SliceWrite::Delete { uid: seen.metadata.uid.clone() }),
        (Some(wanted), None) => Some(SliceWrite::Create(Box::new(new_slice(group, name, wanted)))),
        (Some(wanted), Some(seen)) => {
            let mut slice = new_slice(group, name, wanted);
            let same = seen.ours == slice.spec
                && seen.metadata.labels == slice.metadata.labels
                && seen.metadata.owner_references == slice.metadata.owner_references;
            slice.metadata.resource_version = seen.metadata.resource_version.clone();
            (!same).then(|| SliceWrite::Replace(Box::new(slice)))
        }
    }
}

fn new_slice(group: &NamespacedName, name: &str, spec: SecurityGroupSliceSpec) -> SecurityGroupSlice {
    let owner = OwnerReference {
        api_version: SecurityGroup::api_version(&()).into_owned(),
        kind: SecurityGroup::kind(&()).into_owned(),
        name: group.name.clone(),
        uid: spec.group_uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    SecurityGroupSlice {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(group.namespace.clone()),
            labels: Some([(GROUP_LABEL.to_owned(), group.name.clone())].into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec,
    }
}
