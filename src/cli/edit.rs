//! Writing to a cluster, and waiting until it is in force.
//!
//! Rules are an atomic list, of which a writer would have to send all: two people who edit at once would take each
//! other's away. So what is sent are JSON patches of one rule. To append one is safe as it is; to remove one, the patch
//! first tests that it is still the rule that was meant which has that place, and a patch that fails because it moved
//! is made anew.

use super::output::{Answer, counted};
use crate::api::SecurityGroup;
use crate::api::conditions::ENFORCED;
use crate::index::name_of;
use crate::policy::{Direction, NamespacedName};
use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DynamicObject, Patch, PatchParams, WatchEvent, WatchParams};
use kube::core::ApiResource;
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Who writes, in `managedFields`.
pub const MANAGER: &str = "kubectl-sg";
/// How often a patch that came too late is made anew.
const ATTEMPTS: usize = 5;
/// Between two looks when a watch is not to be had.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// Do it.
    #[default]
    None,
    /// Only say what would be sent.
    Client,
    /// Let the API server judge it and keep nothing.
    Server,
}

/// Flags of every command that writes.
#[derive(Clone, Debug, clap::Args)]
pub struct Writing {
    /// Do not do it: only say what would be sent, or let the API server judge it as well.
    #[arg(long, value_enum, default_value_t, value_name = "WHO")]
    pub dry_run: DryRun,
    /// Wait until every node concerned has it in its kernel.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_name = "BOOL")]
    pub wait: bool,
    /// For how many seconds to wait.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub timeout: u64,
}

impl Writing {
    /// How the API server is to take it.
    pub fn params(&self) -> PatchParams {
        PatchParams {
            dry_run: self.dry_run == DryRun::Server,
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        }
    }

    /// What to add to a sentence about something that was not really done.
    pub fn suffix(&self) -> &'static str {
        match self.dry_run {
            DryRun::None => "",
            DryRun::Client => " (dry run)",
            DryRun::Server => " (server dry run)",
        }
    }
}

/// One group of a cluster, to be edited.
pub struct GroupEditor {
    raw: Api<DynamicObject>,
    group: NamespacedName,
}

impl GroupEditor {
    /// For a group.
    pub fn new(client: Client, group: &NamespacedName) -> Self {
        let resource = ApiResource::erase::<SecurityGroup>(&());
        Self { raw: Api::namespaced_with(client, &group.namespace, &resource), group: group.clone() }
    }

    /// Appends a rule.
    pub async fn add(
        &self,
        direction: Direction,
        rule: &impl Serialize,
        params: &PatchParams,
    ) -> anyhow::Result<SecurityGroup> {
        let path = format!("{}/-", path(direction));
        let patch = json!([{ "op": "add", "path": path, "value": rule }]);
        let patched = self.send(patch, params).await;
        let patched = patched.with_context(|| format!("cannot change security group {}", self.group))?;
        Ok(patched.try_parse()?)
    }

    /// Removes the rule that a predicate knows; `None`: there is no such rule any more.
    pub async fn remove(
        &self,
        direction: Direction,
        is_meant: impl Fn(&Value) -> bool,
        params: &PatchParams,
    ) -> anyhow::Result<Option<SecurityGroup>> {
        let context = || format!("cannot change security group {}", self.group);
        let mut attempt = 1;
        loop {
            let Some((place, rule)) = self.find(direction, &is_meant).await.with_context(context)? else {
                return Ok(None);
            };
            let path = format!("{}/{place}", path(direction));
            let patch = json!([{ "op": "test", "path": path, "value": rule }, { "op": "remove", "path": path }]);
            match self.send(patch, params).await {
                Ok(patched) => return Ok(Some(patched.try_parse()?)),
                // A test that failed is answered like a refusal: it was one only if the rule has moved since.
                Err(kube::Error::Api(status))
                    if attempt < ATTEMPTS
                        && matches!(status.code, 409 | 422)
                        && self.find(direction, &is_meant).await.with_context(context)? != Some((place, rule)) =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error).with_context(context),
            }
        }
    }

    async fn find(
        &self,
        direction: Direction,
        is_meant: impl Fn(&Value) -> bool,
    ) -> Result<Option<(usize, Value)>, kube::Error> {
        let group = self.raw.get(&self.group.name).await?;
        let rules = group.data.pointer(path(direction)).and_then(Value::as_array);
        let found = rules.into_iter().flatten().enumerate().find(|(_, rule)| is_meant(rule));
        Ok(found.map(|(place, rule)| (place, rule.clone())))
    }

    async fn send(&self, patch: Value, params: &PatchParams) -> Result<DynamicObject, kube::Error> {
        let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
        self.raw.patch(&self.group.name, params, &Patch::Json::<()>(patch)).await
    }
}

fn path(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "/spec/ingress",
        Direction::Egress => "/spec/egress",
    }
}

/// What of an object's status says whether it is in force.
pub trait Enforceable: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned {
    /// Conditions, and nodes counted.
    fn progress(&self) -> Progress;
}

/// See [`Enforceable`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The generation that `Enforced` speaks of, and whether it is.
    enforced: Option<(i64, bool)>,
    /// Why not.
    reason: String,
    /// Nodes that have it, of those concerned.
    nodes: Option<(i64, i64)>,
}

impl Progress {
    fn new(
        conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
        nodes: Option<&crate::api::NodeCount>,
    ) -> Self {
        let condition = conditions.iter().find(|condition| condition.type_ == ENFORCED);
        Self {
            enforced: condition.map(|c| (c.observed_generation.unwrap_or_default(), c.status == "True")),
            reason: condition.map(|c| format!("{}: {}", c.reason, c.message)).unwrap_or_default(),
            nodes: nodes.map(|nodes| (nodes.enforced, nodes.desired)),
        }
    }

    fn is_done(&self, generation: i64) -> bool {
        self.enforced.is_some_and(|(observed, enforced)| enforced && observed >= generation)
    }
}

impl Enforceable for SecurityGroup {
    fn progress(&self) -> Progress {
        let status = self.status.as_ref();
        status.map(|status| Progress::new(&status.conditions, status.nodes.as_ref())).unwrap_or_default()
    }
}

impl Enforceable for crate::api::SecurityGroupBinding {
    fn progress(&self) -> Progress {
        let status = self.status.as_ref();
        status.map(|status| Progress::new(&status.conditions, status.nodes.as_ref())).unwrap_or_default()
    }
}

/// Waits until an object as it was just written is in force everywhere, and says how long that took.
pub async fn wait<K: Enforceable>(api: &Api<K>, written: &K, seconds: u64) -> (String, Answer) {
    let since = Instant::now();
    let name = name_of(written.meta()).name;
    let generation = written.meta().generation.unwrap_or_default();
    let mut last = written.progress();
    let waited = timeout(Duration::from_secs(seconds), async {
        let mut version = written.meta().resource_version.clone().unwrap_or_default();
        while !last.is_done(generation) {
            // A watch may end at any time; then it is looked at, and watched from there.
            match follow(api, &name, &version, &mut last, generation).await {
                Ok(()) => {}
                Err(_) => {
                    sleep(PAUSE).await;
                    if let Ok(object) = api.get(&name).await {
                        last = object.progress();
                        version = object.meta().resource_version.clone().unwrap_or_default();
                    }
                }
            }
        }
    });
    match waited.await {
        Ok(()) => {
            let nodes = match last.nodes {
                Some((_, desired)) => format!(" on {}", counted(usize::try_from(desired).unwrap_or_default(), "node")),
                None => String::new(),
            };
            (format!("enforced{nodes} after {} ms", since.elapsed().as_millis()), Answer::Yes)
        }
        Err(_) => {
            let nodes = last.nodes.map(|(enforced, desired)| format!(", {enforced} of {desired} nodes have it"));
            let reason = if last.reason.is_empty() { "no status yet" } else { &last.reason };
            (format!("not enforced after {seconds} s{}: {reason}", nodes.unwrap_or_default()), Answer::No)
        }
    }
}

async fn follow<K: Enforceable>(
    api: &Api<K>,
    name: &str,
    version: &str,
    last: &mut Progress,
    generation: i64,
) -> anyhow::Result<()> {
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = api.watch(&params, version).await?.boxed();
    while let Some(event) = events.try_next().await? {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => *last = object.progress(),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Deleted(_) => anyhow::bail!("it was deleted"),
            WatchEvent::Error(status) => anyhow::bail!("{}", status.message),
        }
        if last.is_done(generation) {
            return Ok(());
        }
    }
    anyhow::bail!("the watch has ended")
}
