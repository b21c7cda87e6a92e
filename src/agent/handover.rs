//! Hands the TCP connections of a machine that left this node to the node that it went to, and takes in those of one that came.
//!
//! Owns: the `ConnectionHandover`s that this node writes. Nothing here is on the way of a change of rules, and nothing opens
//! anything: what a connection may do, the rules decide by who began it, and that is all that is told.

use super::Shared;
use crate::api::{ConnectionHandover, ConnectionHandoverSpec, HandedConnection, MAX_CONNECTIONS};
use crate::index::TargetKind;
use crate::nft::conntrack::{self, Established};
use crate::policy::NamespacedName;
use crate::runtime::backoff::{Backoff, jitter};
use crate::runtime::watch::{Malformed, Sink};
use crate::runtime::{Shutdown, chain};
use jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// After so long the ends have given up, or the connections are others.
const TOO_LATE: Duration = Duration::from_mins(1);
const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(5) };

/// The interfaces whose device is on this node, with their addresses.
pub type Present = BTreeMap<NamespacedName, BTreeSet<IpAddr>>;

/// Tells of machines that leave.
pub async fn follow(client: Client, node: String, mut present: watch::Receiver<Present>, shutdown: Shutdown) {
    let mut before = Present::new();
    loop {
        tokio::select! {
            changed = present.changed() => if changed.is_err() { return },
            () = shutdown.signalled() => return,
        }
        let now = present.borrow_and_update().clone();
        for (interface, addresses) in before.into_iter().filter(|(interface, _)| !now.contains_key(interface)) {
            let (client, node) = (client.clone(), node.clone());
            tokio::spawn(async move {
                if let Err(error) = hand_over(client, node, &interface, addresses).await {
                    tracing::warn!(%interface, error = chain(&*error), "cannot hand over connections: they will end");
                }
            });
        }
        before = now;
    }
}

async fn hand_over(
    client: Client,
    node: String,
    interface: &NamespacedName,
    addresses: BTreeSet<IpAddr>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut connections = tokio::task::spawn_blocking(move || conntrack::established(&addresses)).await??;
    if connections.is_empty() {
        return Ok(());
    }
    if connections.len() > MAX_CONNECTIONS {
        tracing::warn!(%interface, connections = connections.len(), "of that many connections some will end");
        connections = connections.into_iter().take(MAX_CONNECTIONS).collect();
    }
    let spec = ConnectionHandoverSpec {
        node_name: node,
        namespace: interface.namespace.clone(),
        network_interface: interface.name.clone(),
        to_node: None,
        connections: connections.iter().map(HandedConnection::from).collect(),
    };
    let mut handover = ConnectionHandover::new("", spec);
    handover.metadata.name = None;
    handover.metadata.generate_name = Some(format!("{}-", interface.name));
    let api: Api<ConnectionHandover> = Api::all(client);
    let mut failures = 0;
    loop {
        match api.create(&PostParams::default(), &handover).await {
            Ok(_) => {
                tracing::info!(%interface, connections = connections.len(), "handed over");
                return Ok(());
            }
            Err(error) if started.elapsed() > TOO_LATE => return Err(error.into()),
            Err(error) => {
                failures += 1;
                tracing::debug!(%interface, error = chain(&error), "cannot hand over yet");
                sleep(RETRY.delay(failures, jitter())).await;
            }
        }
    }
}

impl From<&Established> for HandedConnection {
    fn from(Established { source, destination }: &Established) -> Self {
        Self { source: source.to_string(), destination: destination.to_string() }
    }
}

/// Takes in what other nodes hand over to this one.
pub struct Taken(pub Shared);

impl Taken {
    fn take(&self, handover: ConnectionHandover) {
        let created = handover.metadata.creation_timestamp.map(|time| time.0).unwrap_or_default();
        // Agents that start see what was handed over before, and what was delayed is of no use any more.
        if Timestamp::now().duration_since(created).unsigned_abs() > TOO_LATE {
            return;
        }
        let ConnectionHandoverSpec { namespace, network_interface, connections, .. } = handover.spec;
        let connections = of(&self.addresses(&namespace), &connections);
        if connections.is_empty() {
            return;
        }
        let interface = NamespacedName::new(namespace, network_interface);
        tokio::task::spawn_blocking(move || match conntrack::make_known(&connections) {
            Ok(new) => tracing::info!(%interface, connections = connections.len(), new, "taken over"),
            Err(error) => {
                tracing::warn!(%interface, error = chain(&error), "cannot take over connections: they will end")
            }
        });
    }

    /// The addresses of the interfaces of a namespace that are declared for this node, and nobody else's.
    fn addresses(&self, namespace: &str) -> BTreeSet<IpAddr> {
        let state = self.0.lock();
        let interfaces = state.index.of_kind(TargetKind::NetworkInterface);
        let own = interfaces.filter(|target| target.name.namespace == namespace);
        own.flat_map(|target| state.own_addresses(target).collect::<Vec<_>>()).collect()
    }
}

/// Of what is told only what one of these addresses takes part in is believed.
fn of(addresses: &BTreeSet<IpAddr>, told: &[HandedConnection]) -> BTreeSet<Established> {
    let read = told.iter().filter_map(|HandedConnection { source, destination }| {
        Some(Established { source: source.parse().ok()?, destination: destination.parse().ok()? })
    });
    let possible = read.filter(|Established { source, destination }| source.is_ipv4() == destination.is_ipv4());
    possible.filter(|c| addresses.contains(&c.source.ip()) || addresses.contains(&c.destination.ip())).collect()
}

impl Sink<ConnectionHandover> for Taken {
    fn reset(&mut self, handovers: Vec<ConnectionHandover>, _: Vec<Malformed>) {
        handovers.into_iter().for_each(|handover| self.take(handover));
    }

    fn apply(&mut self, handover: ConnectionHandover) {
        self.take(handover);
    }

    fn delete(&mut self, _: ConnectionHandover) {}

    // The schema keeps everyone from writing one that cannot be read.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, _: Malformed) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_concerns_the_machine_is_believed() {
        let told = |source: &str, destination: &str| HandedConnection {
            source: source.to_owned(),
            destination: destination.to_owned(),
        };
        let all = [
            told("10.0.0.1:40000", "10.0.0.2:3306"),
            told("10.0.0.2:40000", "192.0.2.1:443"),
            told("[fd00::1]:40000", "[fd00::2]:3306"),
            told("10.0.0.8:40000", "10.0.0.9:3306"),
            told("10.0.0.2:40000", "[fd00::1]:443"),
            told("somebody", "10.0.0.2:3306"),
        ];
        let here = ["10.0.0.2", "fd00::2"].map(|address| address.parse().unwrap()).into();
        let expected: Vec<HandedConnection> = all[..3].to_vec();
        let believed: BTreeSet<HandedConnection> = of(&here, &all).iter().map(HandedConnection::from).collect();
        assert_eq!(believed, expected.into_iter().collect());
        assert!(of(&BTreeSet::new(), &all).is_empty());
    }
}
