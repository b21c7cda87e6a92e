//! The agent of one node: watches -> index -> nft -> report.
//!
//! Owns its node's tables, its `NodeEnforcement` and its `NodeUsage`, and writes nothing else. It removes nothing when it stops: what is
//! programmed stays enforced (S8).

mod announce;
pub mod attachments;
mod bridges;
mod check;
mod committed;
pub(crate) mod data_path;
mod declared;
mod denials;
mod devices;
mod drops;
mod enforcer;
mod extra_addresses;
pub(crate) mod gate;
mod handover;
pub mod kernel;
mod metrics;
mod namespaces;
pub(crate) mod networks;
mod notices;
mod observer;
mod own_addresses;
mod published;
mod remotes;
pub(crate) mod report;
mod routes;
pub(crate) mod state;
mod usage;

#[cfg(test)]
mod tests;

use crate::api::{ConnectionHandover, NetworkInterface, SecurityGroup, SecurityGroupBinding};
use crate::index::{Feed, Update, addresses_of};
use crate::kubevirt;
use crate::nft::exec::Nft;
use crate::nft::monitor::Monitor;
use crate::runtime::admin::{Admin, Readiness};
use crate::runtime::backoff::Backoff;
use crate::runtime::coalesce::Coalescer;
use crate::runtime::timeline::Timeline;
use crate::runtime::watch::Watches;
use crate::runtime::{Shutdown, chain};
use announce::Announcer;
use anyhow::Context;
use attachments::{Attachments, Settled};
use denials::Denials;
use enforcer::Enforcer;
use extra_addresses::Allowances;
use handover::{Present, Taken};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kernel::Kernel;
use kube::runtime::watcher;
use kube::{Api, Client};
use metrics::Metrics;
use namespaces::AllowanceSink;
use notices::Notices;
use observer::Observer;
use own_addresses::{AntiSpoofing, OwnAddresses, Said, Told};
use published::{Examiner, Published};
use remotes::Remotes;
use report::Reporter;
use state::{Gate, State};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch::{Receiver, Sender, channel};
use usage::Usage;

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
    /// How often to compare this node's rules with what was committed, in seconds. What someone else changes is noticed
    /// and repaired at once; this is for what was not noticed.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub compare_every: u64,
    /// Where to answer kubectl sg: an address of loopback, which is reached through the API server.
    #[arg(long, default_value = "127.0.0.1:9182", value_parser = on_loopback)]
    pub observe: SocketAddr,
    /// How denied connections are told of.
    #[command(flatten)]
    pub denied: denials::Telling,
    #[command(flatten)]
    anti_spoofing: AntiSpoofing,
    /// How new pods are made to wait.
    #[command(flatten)]
    pub gate: gate::Args,
    /// Take Ringfence off this node, rules and all, and do nothing else from then on.
    #[arg(long, env = "RINGFENCE_REMOVE")]
    pub remove: bool,
}

/// The state that watches write and the enforcer reads. Never held across an await.
#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<State>>,
    runs_machines: Sender<bool>,
}

impl Shared {
    fn new(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)), runs_machines: Sender::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere left the state as it was before or after some update; both are states to enforce.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a piece of news; tells whether it may change what is desired.
    fn update(&self, update: Update) -> bool {
        let mut state = self.lock();
        let news = state.update(update);
        let runs_machines = state.index.runs_machines();
        self.runs_machines.send_if_modified(|before| std::mem::replace(before, runs_machines) != runs_machines);
        news
    }
}

/// Runs until shutdown.
pub async fn run(args: Args, client: Client, shutdown: Shutdown) -> anyhow::Result<()> {
    let Args { node_name, listen, compare_every, observe, denied, anti_spoofing, gate, remove } = args;
    let places = gate::Places::from(gate);
    let readiness = Readiness::default();
    let mut registry = prometheus_client::registry::Registry::with_prefix("ringfence_agent");
    let metrics = Metrics::register(&mut registry);
    let timeline = Timeline::register(&mut registry);
    let rows = usage::Rows::default();
    registry.register_collector(Box::new(rows.clone()));
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
    let coalescer = || Arc::new(Coalescer::new(RETRY, Some(Duration::from_secs(compare_every))));
    let (dirty, attached) = (coalescer(), coalescer());
    let state = Shared::new(State::new(addresses_of(&node)));
    let announcer = Announcer::start(client.clone(), &node, metrics.clone(), shutdown.clone());
    let monitor = Monitor::open().context("cannot listen to changes of tables")?;
    state.lock().allowances = Allowances::new(anti_spoofing.widest);
    let (published, in_force) = channel(None);
    let examiner = Examiner::new(dirty.clone());
    let synced = Readiness::default();
    let known = (state.clone(), in_force.clone());
    let denials = tell_of_denied(&denied, &node_name, known, (&dirty, &synced), metrics.clone(), shutdown.clone());
    let observer = Observer::new(denials, in_force, examiner.clone());
    tokio::spawn(observer.listen(observe, shutdown.clone()));

    let watches = Watches::new::<SecurityGroup>(client.clone(), timeline);
    let own = || watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    watches.watch::<Pod, _>(own(), Feed(news(&state, &dirty, Some(&attached))), &synced, "pods");
    let interfaces = news(&state, &dirty, Some(&attached));
    watches.watch::<NetworkInterface, _>(own(), Feed(interfaces), &synced, "networkinterfaces");
    let all = watcher::Config::default;
    watches.watch::<SecurityGroup, _>(all(), Feed(news(&state, &dirty, None)), &synced, "securitygroups");
    // Whether an interface is guarded decides what its bridge may pass.
    let bindings = news(&state, &dirty, Some(&attached));
    watches.watch::<SecurityGroupBinding, _>(all(), Feed(bindings), &synced, "securitygroupbindings");
    let allowances = AllowanceSink { state: state.clone(), told: [dirty.clone(), attached.clone()] };
    watches.watch::<Namespace, _>(all(), allowances, &synced, "namespaces");

    let (present, machines_here) = channel(Present::new());
    tokio::spawn(handover::follow(client.clone(), node_name.clone(), machines_here, shutdown.clone()));
    let known = (&state, &synced, present);
    let (own_addresses_only, watched, networks) =
        enforce_own_addresses(&anti_spoofing, known, [&dirty, &attached], &monitor, &announcer, &shutdown)?;
    let (settled, at_gate) = channel(Settled::default());
    let mut restored = 0;
    if places.wanted() {
        let store = gate::Store::open(places.attachments())?;
        {
            let mut state = state.lock();
            state.attachments = Attachments::restore(store.records());
            restored = state.attachments.sequence();
            state.gate = Gate::Starting;
        }
        // The plugin may be in its place from before: who asks now waits for the first commit.
        let server = gate::Server::new(
            state.clone(),
            [dirty.clone(), attached.clone()],
            store,
            at_gate,
            watched,
            metrics.clone(),
        );
        tokio::spawn(server.listen(places.socket(), shutdown.clone())?);
    }

    let committed = readiness.register("first commit");
    // Nothing is written before every watch has synced: half the truth would close or open what the whole does not.
    tokio::select! {
        () = synced.ready() => {}
        () = shutdown.signalled() => return Ok(()),
    }
    {
        let State { attachments, index, .. } = &mut *state.lock();
        attachments.forget_missed(index, restored);
    }
    let mut machines = kubevirt::follow(
        watches.clone(),
        Some(&node_name),
        state.runs_machines.subscribe(),
        news(&state, &dirty, Some(&attached)),
    );
    tokio::select! {
        ((), ()) = async { tokio::join!(machines.known(), networks.ready()) } => {}
        () = shutdown.signalled() => return Ok(()),
    }
    tracing::info!(node = %node_name, "watches are complete");
    let to_here = watcher::Config::default().fields(&format!("spec.toNode={node_name}"));
    watches.watch::<ConnectionHandover, _>(to_here, Taken(state.clone()), &Readiness::default(), "connectionhandovers");
    let writer = usage::Writer::new(client.clone(), &node, shutdown.clone());
    let usage = Usage::start(Nft::default(), &monitor, state.clone(), writer, rows, shutdown.clone());
    let remotes = Remotes::new(watches, state.clone(), dirty.clone());
    let reporter =
        Reporter::start(client, &node, own_addresses_only, readiness.register("first report"), shutdown.clone())
            .context("cannot read this boot's id")?;
    let kernel = Kernel::new(Nft::default().standing_by(), &monitor, {
        let dirty = dirty.clone();
        move || dirty.notify()
    });
    // Nobody is sent to a gate at which nobody could be let in yet.
    let mut first_commit = Some(gate::keep(places, state.clone(), dirty.clone(), announcer.clone(), shutdown.clone()));
    tokio::spawn(drops::follow(Nft::default(), metrics.clone(), shutdown.clone()));
    let told = enforcer::Told { settled, usage, published, examiner };
    let mut enforcer = Enforcer::new(state, remotes, reporter, metrics, announcer, kernel, told);
    dirty.notify();
    let enforce = dirty.run(shutdown, async move |reason| {
        enforcer.run(reason).await?;
        committed.set_ready(true);
        if let Some(keep_gate) = first_commit.take() {
            tokio::spawn(keep_gate);
        }
        anyhow::Ok(())
    });
    tokio::select! {
        () = enforce => Ok(()),
        // The rules stay. The next agent starts by replacing them, and can hear again.
        Err(error) = monitor.run() => Err(error).context("cannot listen to changes of tables any more"),
    }
}

/// Has the kernel tell of denied packets, if it is to and can, and listens to it.
fn tell_of_denied(
    args: &denials::Telling,
    node: &str,
    known: (Shared, Receiver<Option<Published>>),
    (dirty, synced): (&Arc<Coalescer>, &Readiness),
    metrics: Metrics,
    shutdown: Shutdown,
) -> Denials {
    let Some(rate) = NonZeroU32::new(args.denied_rate) else {
        return Denials::new(
            node,
            Some("denied connections are not recorded: deniedConnections.enabled is false".into()),
        );
    };
    let denials = Denials::new(node, Some("it is not known yet whether this node's kernel can tell of them".into()));
    let (telling, tried) = (denials.clone(), synced.register("what the kernel can tell of"));
    let (state, dirty, log) = (known.0.clone(), dirty.clone(), args.denied_log);
    let tell = async move {
        let tells = || {
            state.lock().told = Some(rate);
            dirty.notify();
        };
        if telling.begin(&Nft::default(), rate, tried, tells).await {
            telling.run(known, metrics, log).await;
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = tell => {}
            () = shutdown.signalled() => {}
        }
    });
    denials
}

/// Who talks to whom is not for everybody who can reach the node.
fn on_loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| format!("{text:?} is not ADDRESS:PORT"))?;
    if address.ip().is_loopback() { Ok(address) } else { Err(format!("{} is not of loopback", address.ip())) }
}

/// Begins when every watch has synced: a table without what pods may use beside their own addresses would cut them off. Returns
/// what it says of itself, up to which revision of the attachments it is committed, and whether the networks of pods are known.
fn enforce_own_addresses(
    args: &AntiSpoofing,
    (state, synced, present): (&Shared, &Readiness, Sender<Present>),
    [dirty, attached]: [&Arc<Coalescer>; 2],
    monitor: &Arc<Monitor>,
    announcer: &Announcer,
    shutdown: &Shutdown,
) -> anyhow::Result<(Receiver<Option<Said>>, Receiver<u64>, Readiness)> {
    let notices = Notices::new(args.cni_cache.clone()).context("cannot listen for changes of network devices")?;
    let (said, own_addresses_only) = channel(None);
    let (settled, watched) = channel(0);
    let notify = || {
        let attached = attached.clone();
        move || attached.notify()
    };
    let kernel = Kernel::new(Nft::default(), monitor, notify());
    let bridges = Kernel::new(Nft::default(), monitor, notify());
    let networks = Readiness::default();
    let told = Told { dirty: dirty.clone(), networks: networks.register("networks of pods"), said, settled, present };
    let mut own_addresses = OwnAddresses::new(args, state.clone(), kernel, bridges, announcer.clone(), told);
    attached.notify();
    tokio::spawn(bridges::follow([dirty.clone(), attached.clone()], shutdown.clone()));
    std::thread::Builder::new().name("notices".to_owned()).spawn({
        let attached = attached.clone();
        move || {
            let Err(error) = notices.run(&attached);
            tracing::error!(%error, "changes of network devices are no longer noticed");
        }
    })?;
    let (attached, synced, shutdown) = (attached.clone(), synced.clone(), shutdown.clone());
    tokio::spawn(async move {
        synced.ready().await;
        attached.run(shutdown, async move |reason| own_addresses.run(reason).await).await;
    });
    Ok((own_addresses_only, watched, networks))
}

/// Into the state. `dirty` is told of what changes the index, `curious` of any news.
fn news(
    state: &Shared,
    dirty: &Arc<Coalescer>,
    curious: Option<&Arc<Coalescer>>,
) -> impl FnMut(Update) + Clone + use<> {
    let (state, dirty, curious) = (state.clone(), dirty.clone(), curious.cloned());
    move |update: Update| {
        if state.update(update) {
            dirty.notify();
        }
        curious.iter().for_each(|curious| curious.notify());
    }
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
