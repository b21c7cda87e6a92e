//! One watch per remote group that the node's rules name: its traffic grows with what the node uses, not with the cluster.

use super::Shared;
use crate::api::{GROUP_LABEL, SecurityGroupSlice};
use crate::index::name_of;
use crate::policy::NamespacedName;
use crate::runtime::admin::Readiness;
use crate::runtime::coalesce::Coalescer;
use crate::runtime::watch::{Malformed, Sink, Watches, feed};
use kube::Api;
use kube::runtime::watcher;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long a commit waits for the members of a group that is named for the first time. After that it matches nobody yet.
const PATIENCE: Duration = Duration::from_millis(500);

/// The running watches.
pub struct Remotes {
    cluster: Watches,
    state: Shared,
    dirty: Arc<Coalescer>,
    watches: BTreeMap<NamespacedName, Watch>,
}

struct Watch {
    since: Instant,
    synced: Readiness,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Remotes {
    /// Watches nothing yet.
    pub fn new(cluster: Watches, state: Shared, dirty: Arc<Coalescer>) -> Self {
        Self { cluster, state, dirty, watches: BTreeMap::new() }
    }

    /// Whether each of these is watched and was listed. A watch that was stopped may still have let something in since.
    pub fn know(&self, groups: &BTreeSet<NamespacedName>) -> bool {
        let state = self.state.lock();
        groups.iter().all(|group| self.watches.contains_key(group) && state.remotes.knows(group))
    }

    /// Starts the watches that are missing, and waits for their first lists: as long as it takes, or not for long.
    pub async fn need(&mut self, groups: &BTreeSet<NamespacedName>, as_long_as_it_takes: bool) {
        for group in groups {
            if !self.watches.contains_key(group) {
                let watch = self.watch(group);
                self.watches.insert(group.clone(), watch);
            }
        }
        for watch in groups.iter().filter_map(|group| self.watches.get(group)) {
            if as_long_as_it_takes {
                watch.synced.ready().await;
            }
            // A watch that is late is waited for once, not at every commit; when it comes, it asks for one.
            let _ = tokio::time::timeout_at(watch.since + PATIENCE, watch.synced.ready()).await;
        }
    }

    /// Stops the watches that are needed no more.
    pub fn keep_only(&mut self, groups: &BTreeSet<NamespacedName>) {
        let state = &self.state;
        self.watches.retain(|group, _| {
            let needed = groups.contains(group);
            if !needed {
                state.lock().remotes.forget(group);
            }
            needed
        });
    }

    fn watch(&self, group: &NamespacedName) -> Watch {
        let api = Api::namespaced(self.cluster.client.clone(), &group.namespace);
        let config = watcher::Config::default().labels(&format!("{GROUP_LABEL}={}", group.name));
        let sink = Slices { group: group.clone(), state: self.state.clone(), dirty: self.dirty.clone() };
        let synced = Readiness::default();
        let handle = synced.register("slices");
        let task = tokio::spawn(feed(api, config, sink, handle, self.cluster.timeline.clone())).abort_handle();
        Watch { since: Instant::now(), synced, task }
    }
}

/// Takes in the slices of one group.
struct Slices {
    group: NamespacedName,
    state: Shared,
    dirty: Arc<Coalescer>,
}

impl Sink<SecurityGroupSlice> for Slices {
    fn reset(&mut self, slices: Vec<SecurityGroupSlice>, _: Vec<Malformed>) {
        self.state.lock().remotes.reset(&self.group, slices);
        self.dirty.notify();
    }

    fn apply(&mut self, slice: SecurityGroupSlice) {
        if self.state.lock().remotes.apply(&self.group, slice) {
            self.dirty.notify();
        }
    }

    fn delete(&mut self, slice: SecurityGroupSlice) {
        if self.state.lock().remotes.delete(&self.group, &name_of(&slice.metadata).name) {
            self.dirty.notify();
        }
    }

    // Only the controller writes slices: what it wrote before stands until it writes better.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, slice: Malformed) {
        if self.state.lock().remotes.delete(&self.group, &name_of(&slice.meta).name) {
            self.dirty.notify();
        }
    }
}
