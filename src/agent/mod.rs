//! The agent of one node: watches -> index -> nft -> report.
//!
//! Owns its node's table and its node's `NodeEnforcement`, and writes nothing else. It removes nothing when it stops: what is
//! programmed stays enforced (S8).

pub mod attachments;
mod check;
mod data_path;
mod enforcer;
mod gate;
mod metrics;
mod remotes;
pub(crate) mod report;
pub(crate) mod state;

#[cfg(test)]
mod tests;

use crate::api::{SecurityGroup, SecurityGroupBinding};
use crate::index::{Feed, Update};
use crate::runtime::admin::{Admin, Readiness};
use crate::runtime::backoff::Backoff;
use crate::runtime::coalesce::Coalescer;
use crate::runtime::watch::feed;
use crate::runtime::{Shutdown, chain};
use anyhow::Context;
use attachments::{Attachments, Settled};
use enforcer::Enforcer;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Api, Client};
use metrics::Metrics;
use remotes::Remotes;
use report::Reporter;
use state::{Gate, State};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch::channel;

/// Failures of nft are rare and mostly not of the moment; a short first delay is for those that are.
const RETRY: Backoff = Backoff { min: Duration::from_millis(50), max: Duration::from_secs(30) };

/// How the agent is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of the node this agent runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:9181")]
    pub listen: SocketAddr,
    /// How new pods are made to wait.
    #[command(flatten)]
    pub gate: gate::Args,
    /// Take Ringfence off this node, rules and all, and do nothing else from then on.
    #[arg(long, env = "RINGFENCE_REMOVE")]
    pub remove: bool,
}

/// The state that watches write and the enforcer reads. Never held across an await.
#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere left the state as it was before or after some update; both are states to enforce.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until shutdown.
pub async fn run(args: Args, client: Client, shutdown: Shutdown) -> anyhow::Result<()> {
    let Args { node_name, listen, gate, remove } = args;
    let places = gate::Places::from(gate);
    let readiness = Readiness::default();
    let mut registry = prometheus_client::registry::Registry::with_prefix("ringfence_agent");
    let metrics = Metrics::register(&mut registry);
    let admin = Admin::bind(listen, readiness.clone(), registry).await?;
    tokio::spawn(admin.serve({
        let shutdown = shutdown.clone();
        async move { shutdown.signalled().await }
    }));
    if remove {
        let removed = readiness.register("removed");
        gate::remove(places).await?;
        removed.set_ready(true);
        shutdown.signalled().await;
        return Ok(());
    }

    let node = tokio::select! {
        node = find_node(&client, &node_name) => node,
        () = shutdown.signalled() => return Ok(()),
    };
    let dirty = Arc::new(Coalescer::new(RETRY, None));
    let state = Shared(Arc::new(Mutex::new(State::new(addresses(&node)))));
    let (settled, at_gate) = channel(Settled::default());
    if places.wanted() {
        let store = gate::Store::open(places.attachments())?;
        {
            let mut state = state.lock();
            state.attachments = Attachments::restore(store.records());
            state.gate = Gate::Starting;
        }
        // The plugin may be in its place from before: who asks now waits for the first commit.
        let server = gate::Server::new(state.clone(), dirty.clone(), store, at_gate);
        tokio::spawn(server.listen(places.socket(), shutdown.clone())?);
    }

    let synced = Readiness::default();
    let own = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    watch::<Pod>(&client, own, &state, &dirty, &synced, "pods");
    watch::<SecurityGroup>(&client, watcher::Config::default(), &state, &dirty, &synced, "securitygroups");
    watch::<SecurityGroupBinding>(
        &client,
        watcher::Config::default(),
        &state,
        &dirty,
        &synced,
        "securitygroupbindings",
    );

    let committed = readiness.register("first commit");
    // Nothing is written before every watch has synced: half the truth would close or open what the whole does not.
    tokio::select! {
        () = synced.ready() => {}
        () = shutdown.signalled() => return Ok(()),
    }
    tracing::info!(node = %node_name, "watches are complete");
    let remotes = Remotes::new(client.clone(), state.clone(), dirty.clone());
    let reporter = Reporter::start(client, &node, shutdown.clone()).context("cannot read this boot's id")?;
    // Nobody is sent to a gate at which nobody could be let in yet.
    let mut first_commit = Some(gate::keep(places, state.clone(), dirty.clone(), shutdown.clone()));
    let mut enforcer = Enforcer::new(state, remotes, reporter, metrics, settled);
    dirty.notify();
    dirty
        .run(shutdown, async move |reason| {
            enforcer.run(reason).await?;
            committed.set_ready(true);
            if let Some(keep_gate) = first_commit.take() {
                tokio::spawn(keep_gate);
            }
            anyhow::Ok(())
        })
        .await;
    Ok(())
}

/// Watches one kind into the state.
fn watch<K>(
    client: &Client,
    config: watcher::Config,
    state: &Shared,
    dirty: &Arc<Coalescer>,
    synced: &Readiness,
    name: &str,
) where
    K: crate::index::Indexed + kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    let (state, dirty) = (state.clone(), dirty.clone());
    let sink = Feed(move |update: Update| {
        if state.lock().update(update) {
            dirty.notify();
        }
    });
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    tokio::spawn(feed(api, config, sink, synced.register(name)));
}

/// The node's own object: its addresses are never a pod's, and it owns the report.
async fn find_node(client: &Client, name: &str) -> Node {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut failures = 0;
    loop {
        match nodes.get(name).await {
            Ok(node) => return node,
            Err(error) => {
                tracing::warn!(
                    node = name,
                    error = chain(&error),
                    "cannot read this node, will retry; is --node-name right?"
                );
                failures += 1;
                tokio::time::sleep(RETRY.delay(failures, crate::runtime::backoff::jitter())).await;
            }
        }
    }
}

fn addresses(node: &Node) -> BTreeSet<IpAddr> {
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    addresses.filter_map(|a| a.address.parse().ok()).collect()
}
