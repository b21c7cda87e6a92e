//! Takes Ringfence off every node before the chart's objects are deleted: `helm uninstall` runs this first.
//!
//! The agents' own DaemonSet does it, so that it works with agents that do not: its pods are replaced by ones that remove
//! everything from their node and are ready when they have.

use crate::agent::gate::has_plugin;
use crate::api::conditions::listed;
use crate::api::{ConnectionHandover, NodeEnforcement, NodeUsage};
use crate::cni::PLUGIN;
use crate::index::name_of;
use crate::runtime::{Shutdown, chain};
use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at how far it has come.
const PAUSE: Duration = Duration::from_millis(500);

/// How to uninstall.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Namespace of the agents.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Name of the agents' DaemonSet.
    #[arg(long)]
    daemonset: String,
    /// For how many seconds to wait for the nodes.
    #[arg(long, default_value_t = 180)]
    timeout: u64,
}

/// Runs until every node is done.
pub async fn run(args: Args, client: Client, shutdown: Shutdown) -> anyhow::Result<()> {
    let Args { namespace, daemonset, timeout } = args;
    let calling = networks_that_call_us(&client).await.context("cannot list NetworkAttachmentDefinitions")?;
    if !calling.is_empty() {
        bail!("without Ringfence no pod could start on these networks: take {PLUGIN} out of {}", listed(calling));
    }
    let deadline = Instant::now() + Duration::from_secs(timeout);
    let agents: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
    let patched = agents.patch(&daemonset, &PatchParams::default(), &Patch::Strategic(patch())).await;
    let generation = match patched {
        Ok(patched) => patched.metadata.generation,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            tracing::warn!(daemonset, "there are no agents; what is left on nodes stays there");
            return Ok(());
        }
        Err(error) => return Err(error).context("cannot tell the agents to remove themselves"),
    };
    loop {
        match agents.get(&daemonset).await {
            Ok(now) => match progress(&now, generation) {
                Progress::Done => break,
                Progress::Waiting(what) if Instant::now() > deadline => {
                    bail!("{what}. Their pods' logs say why; new pods may not start there until it is done")
                }
                Progress::Waiting(_) => {}
            },
            Err(error) if Instant::now() > deadline => return Err(error).context("cannot see how far it has come"),
            Err(error) => tracing::warn!(error = chain(&error), "cannot see how far it has come, will look again"),
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = shutdown.signalled() => bail!("told to stop"),
        }
    }
    // What they say is not true any more, and a later installation must not believe it.
    delete_all::<NodeEnforcement>(&client).await.context("cannot delete the nodes' reports")?;
    delete_all::<NodeUsage>(&client).await.context("cannot delete what the nodes counted")?;
    delete_all::<ConnectionHandover>(&client).await.context("cannot delete what the nodes handed over")?;
    tracing::info!("Ringfence is off every node");
    Ok(())
}

/// The NetworkAttachmentDefinitions that have our plugin among theirs. Nobody but their owner can take it out.
async fn networks_that_call_us(client: &Client) -> kube::Result<Vec<String>> {
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition"));
    let resource = ApiResource { plural: "network-attachment-definitions".to_owned(), ..resource };
    let networks: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    match networks.list(&ListParams::default()).await {
        Ok(list) => Ok(list
            .items
            .iter()
            .filter(|network| calls_us(&network.data))
            .map(|network| name_of(&network.metadata).to_string())
            .collect()),
        // There are no such networks.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn calls_us(network: &Value) -> bool {
    network["spec"]["config"].as_str().is_some_and(has_plugin)
}

async fn delete_all<K>(client: &Client) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    match Api::<K>::all(client.clone()).delete_collection(&DeleteParams::default(), &ListParams::default()).await {
        Ok(_) => Ok(()),
        // The definition is gone already.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

/// All nodes at once, and with the folder above the agents' own, which cannot be removed from within.
fn patch() -> Value {
    json!({ "spec": {
        "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "100%", "maxSurge": 0 } },
        "template": { "spec": {
            "containers": [{
                "name": "agent",
                "env": [
                    { "name": "RINGFENCE_REMOVE", "value": "true" },
                    { "name": "RINGFENCE_RUN_DIR", "value": "/host/run/ringfence" },
                ],
                "volumeMounts": [{ "name": "host-run", "mountPath": "/host/run" }],
            }],
            "volumes": [{ "name": "host-run", "hostPath": { "path": "/run" } }],
        } },
    } })
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Done,
    Waiting(String),
}

fn progress(agents: &DaemonSet, generation: Option<i64>) -> Progress {
    let Some(status) = agents.status.as_ref().filter(|s| s.observed_generation >= generation) else {
        return Progress::Waiting("the change of the agents is not seen by the cluster's controllers".into());
    };
    let (wanted, updated) = (status.desired_number_scheduled, status.updated_number_scheduled.unwrap_or_default());
    // Those that are ready may still be agents as they were.
    let done = status.number_ready.min(updated);
    if done >= wanted {
        return Progress::Done;
    }
    Progress::Waiting(format!("Ringfence could not be removed from {} of {wanted} nodes", wanted - done))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agents(observed: i64, wanted: i32, updated: i32, ready: i32) -> DaemonSet {
        serde_json::from_value(json!({ "status": {
            "observedGeneration": observed, "desiredNumberScheduled": wanted, "updatedNumberScheduled": updated,
            "numberReady": ready, "currentNumberScheduled": wanted, "numberMisscheduled": 0,
        } }))
        .unwrap()
    }

    #[test]
    fn networks_that_call_the_plugin_are_found() {
        let network = |config: &str| json!({ "spec": { "config": config } });
        let list = |kind: &str| network(&json!({ "plugins": [{ "type": "bridge" }, { "type": kind }] }).to_string());
        assert!(calls_us(&list("ringfence-cni")));
        assert!(!calls_us(&list("tuning")) && !calls_us(&network("?")) && !calls_us(&json!({ "spec": {} })));
    }

    #[test]
    fn done_is_when_the_pods_that_remove_are_ready_everywhere() {
        let done = |observed, wanted, updated, ready| {
            progress(&agents(observed, wanted, updated, ready), Some(2)) == Progress::Done
        };
        assert!(done(2, 3, 3, 3) && done(2, 0, 0, 0));
        assert!(!done(1, 3, 3, 3), "the status is of before");
        assert!(!done(2, 3, 2, 3), "one agent still enforces");
        assert!(!done(2, 3, 3, 2));
        assert_eq!(
            progress(&DaemonSet::default(), Some(2)),
            Progress::Waiting("the change of the agents is not seen by the cluster's controllers".into())
        );
    }
}
