//! The controller: watches -> index -> slices, status, finalizers.
//!
//! Two replicas watch, the leader writes. It decides nothing about packets: agents enforce without it, and go on without it
//! (S8); what they take from it is who the members of remote groups are.

mod ahead;
mod cluster;
mod events;
mod feeds;
mod handovers;
mod lease;
pub mod lock_out;
mod membership;
mod metrics;
mod release;
mod reports;
mod shards;
mod status;
mod truth;
mod usage;
mod writers;

#[cfg(test)]
mod tests;

use crate::api::{
    ConnectionHandover, NetworkInterface, NodeEnforcement, NodeUsage, SecurityGroup, SecurityGroupBinding,
    SecurityGroupSlice,
};
use crate::kubevirt;
use crate::runtime::admin::{Admin, Readiness};
use crate::runtime::timeline::Timeline;
use crate::runtime::watch::Watches;
use crate::runtime::{Backoff, KeyedQueue, Shutdown};
use cluster::{Cluster, Work};
use events::Events;
use feeds::{Counted, HandedOver, Objects, Reported, Serving, Slices, Standing};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::runtime::watcher;
use kube::{Api, Client};
use lease::{LeaderElection, Leadership};
use lock_out::AdminPorts;
use metrics::{Census, Metrics};
use prometheus_client::metrics::gauge::Gauge;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch::Sender;
use writers::Writers;

/// Of one object, no two writes closer than this: a rollout changes a group's members many times a second.
const MIN_INTERVAL: Duration = Duration::from_millis(50);
/// A status leaves the way to slices, and waits for what nodes say of the change: most of them have it by then, and one write
/// says it all.
const STATUS_AFTER: Duration = Duration::from_millis(50);
const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };
/// Writes under way at once. The API server's fairness limits us long before that hurts it.
const CONCURRENCY: usize = 16;

/// How the controller is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Namespace of the lease by which replicas elect their leader.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of this replica, unlike every other's.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// The account that this replica runs as.
    #[arg(long, env = "SERVICE_ACCOUNT")]
    pub service_account: String,
    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:9180")]
    pub listen: SocketAddr,
    /// TCP ports by which machines are administered: an event tells when nobody can reach one any more.
    #[arg(long, value_delimiter = ',')]
    pub admin_ports: Vec<u16>,
}

/// The cluster, as watches write it and writers read it. Never held across an await.
#[derive(Clone)]
struct Shared {
    cluster: Arc<Mutex<Cluster>>,
    queue: Arc<KeyedQueue<Work>>,
    leadership: Leadership,
    events: Events,
    runs_machines: Sender<bool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Cluster> {
        // A panic elsewhere left the cluster as it was before or after some update; the next relist mends the difference.
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the cluster, and queues what that leaves to be done. Who does not lead only keeps its view up to date.
    fn change(&self, change: impl FnOnce(&mut Cluster)) {
        let mut cluster = self.lock();
        change(&mut cluster);
        let (work, notices) = (cluster.take_work(), cluster.take_notices());
        let runs_machines = cluster.index.runs_machines();
        self.runs_machines.send_if_modified(|before| std::mem::replace(before, runs_machines) != runs_machines);
        drop(cluster);
        if self.leadership.is_leader() {
            self.enqueue(work);
            notices.iter().for_each(|notice| self.events.notice(notice));
        }
    }

    fn enqueue(&self, work: impl IntoIterator<Item = Work>) {
        for work in work {
            let delay = if matches!(work, Work::Slice(..) | Work::Handover(_)) { Duration::ZERO } else { STATUS_AFTER };
            self.queue.add_after(work, delay);
        }
    }
}

/// Runs until shutdown.
pub async fn run(args: Args, client: Client, shutdown: Shutdown) -> anyhow::Result<()> {
    let Args { namespace, identity, service_account, listen, admin_ports } = args;
    let readiness = Readiness::default();
    let election = LeaderElection::new(client.clone(), &namespace, "ringfence-controller", &identity);
    let shared = Shared {
        cluster: Arc::new(Mutex::new(Cluster::new(AdminPorts::from_iter(admin_ports)))),
        queue: Arc::new(KeyedQueue::new(MIN_INTERVAL, RETRY)),
        leadership: election.leadership(),
        events: Events::start(client.clone(), &identity, shutdown.clone()),
        runs_machines: Sender::new(false),
    };
    let mut registry = prometheus_client::registry::Registry::with_prefix("ringfence_controller");
    let metrics = Metrics::register(&mut registry);
    registry.register_collector(Box::new(Census(shared.clone())));
    let timeline = Timeline::register(&mut registry);
    let admin = Admin::bind(listen, readiness.clone(), registry).await?;
    tokio::spawn(admin.serve({
        let shutdown = shutdown.clone();
        async move { shutdown.signalled().await }
    }));

    let (watches, all) = (Watches::new::<SecurityGroup>(client.clone(), timeline), watcher::Config::default);
    watches.watch::<Node, _>(all(), Standing(shared.clone()), &readiness, "nodes");
    watches.watch::<ServiceCIDR, _>(all(), Serving::new(shared.clone()), &readiness, "servicecidrs");
    watches.watch::<SecurityGroupSlice, _>(all(), Slices(shared.clone()), &readiness, "securitygroupslices");
    watches.watch::<NodeEnforcement, _>(all(), Reported(shared.clone()), &readiness, "nodeenforcements");
    watches.watch::<ConnectionHandover, _>(all(), HandedOver(shared.clone()), &readiness, "connectionhandovers");
    watches.watch::<Pod, _>(all(), Objects(shared.clone()), &readiness, "pods");
    watches.watch::<NetworkInterface, _>(all(), Objects(shared.clone()), &readiness, "networkinterfaces");
    watches.watch::<SecurityGroup, _>(all(), Objects(shared.clone()), &readiness, "securitygroups");
    watches.watch::<SecurityGroupBinding, _>(all(), Objects(shared.clone()), &readiness, "securitygroupbindings");
    // Who does not know the whole must not lead: what it has not seen yet would look deleted.
    tokio::select! {
        () = readiness.ready() => {}
        () = shutdown.signalled() => return Ok(()),
    }
    // Of what nobody waits for: it is much where there are many nodes, and says nothing about who may reach whom.
    watches.watch::<NodeUsage, _>(all(), Counted(shared.clone()), &Readiness::default(), "nodeusages");
    let mut machines = kubevirt::follow(watches, None, shared.runs_machines.subscribe(), {
        let shared = shared.clone();
        move |update| shared.change(|cluster| cluster.update(update))
    });
    tokio::select! {
        () = machines.known() => {}
        () = shutdown.signalled() => return Ok(()),
    }
    tracing::info!(%identity, "watches are complete");

    tokio::spawn(follow_leadership(shared.clone(), metrics.leader.clone()));
    let election = election.owned_by(Api::namespaced(client.clone(), &namespace), &service_account).await;
    let writers = Writers::new(client, shared.clone(), metrics);
    let (finished, writers_finished) = tokio::sync::oneshot::channel::<()>();
    let writing = async {
        shared.queue.clone().run(CONCURRENCY, shutdown, |work| writers.run(work)).await;
        // The election may already be over; there is nobody to tell then.
        let _ = finished.send(());
    };
    tokio::join!(
        writing,
        election.run(async {
            let _ = writers_finished.await;
        })
    );
    Ok(())
}

/// A new leader looks at everything once; after that it follows changes.
async fn follow_leadership(shared: Shared, gauge: Gauge<i64>) {
    let mut leadership = shared.leadership.clone();
    loop {
        let leads = leadership.changed().await;
        tracing::info!(leads, "leadership changed");
        gauge.set(leads.into());
        if leads {
            let mut cluster = shared.lock();
            cluster.adopt_slices();
            cluster.usages.forget_departed();
            let work = cluster.all_work();
            drop(cluster);
            shared.enqueue(work);
        } else {
            shared.queue.clear();
        }
    }
}
