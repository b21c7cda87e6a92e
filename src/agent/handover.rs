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
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// After so long the ends have given up, or the connections are others.
const TOO_LATE: Duration = Duration::from_mins(1);
const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(5) };

/// What may leave a node for another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mover {
    /// An interface that is declared, or a pod that runs a virtual machine of KubeVirt.
    pub name: NamespacedName,
    /// The uid of that machine.
    pub machine: Option<String>,
}

/// The interfaces whose device is on this node, and the pods that run machines here, with their addresses.
pub type Present = BTreeMap<Mover, BTreeSet<IpAddr>>;

/// Tells of machines that leave.
pub async fn follow(client: Client, node: String, mut present: watch::Receiver<Present>, shutdown: Shutdown) {
    let mut before = Present::new();
    loop {
        tokio::select! {
            changed = present.changed() => if changed.is_err() { return },
            () = shutdown.signalled() => return,
        }
        let now = present.borrow_and_update().clone();
        for (mover, addresses) in before.into_iter().filter(|(mover, _)| !now.contains_key(mover)) {
            let (client, node) = (client.clone(), node.clone());
            tokio::spawn(async move {
                if let Err(error) = hand_over(client, node, &mover, addresses).await {
                    tracing::warn!(%mover, error = chain(&*error), "cannot hand over connections: they will end");
                }
            });
        }
        before = now;
    }
}

async fn hand_over(client: Client, node: String, mover: &Mover, addresses: BTreeSet<IpAddr>) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut connections = tokio::task::spawn_blocking(move || conntrack::established(&addresses)).await??;
    if connections.is_empty() {
        return Ok(());
    }
    if connections.len() > MAX_CONNECTIONS {
        tracing::warn!(%mover, connections = connections.len(), "of that many connections some will end");
        connections = connections.into_iter().take(MAX_CONNECTIONS).collect();
    }
    let spec = ConnectionHandoverSpec {
        node_name: node,
        namespace: mover.name.namespace.clone(),
        network_interface: mover.machine.is_none().then(|| mover.name.name.clone()),
        virtual_machine_instance: mover.machine.clone(),
        to_node: None,
        connections: connections.iter().map(HandedConnection::from).collect(),
    };
    let mut handover = ConnectionHandover::new("", spec);
    handover.metadata.name = None;
    handover.metadata.generate_name = Some(format!("{}-", mover.name.name));
    let api: Api<ConnectionHandover> = Api::all(client);
    let mut failures = 0;
    loop {
        match api.create(&PostParams::default(), &handover).await {
            Ok(_) => {
                tracing::info!(%mover, connections = connections.len(), "handed over");
                return Ok(());
            }
            Err(error) if started.elapsed() > TOO_LATE || is_final(&error) => return Err(error.into()),
            Err(error) => {
                failures += 1;
                tracing::debug!(%mover, error = chain(&error), "cannot hand over yet");
                sleep(RETRY.delay(failures, jitter())).await;
            }
        }
    }
}

/// Whether the same would be refused again.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 413 | 422))
}

impl Display for Mover {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.machine.is_some() { "pod" } else { "networkinterface" }, self.name)
    }
}

impl From<&Established> for HandedConnection {
    fn from(Established { source, destination, backend }: &Established) -> Self {
        let backend = backend.map(|backend| backend.to_string());
        Self { source: source.to_string(), destination: destination.to_string(), backend }
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
        let ConnectionHandoverSpec { namespace, virtual_machine_instance, connections, .. } = handover.spec;
        let connections = of(&self.addresses(&namespace, virtual_machine_instance.as_ref()), &connections);
        if connections.is_empty() {
            return;
        }
        let handover = handover.metadata.name.unwrap_or_default();
        tokio::task::spawn_blocking(move || match conntrack::make_known(&connections) {
            Ok(new) => tracing::info!(handover, connections = connections.len(), new, "taken over"),
            Err(error) => {
                tracing::warn!(handover, error = chain(&error), "cannot take over all connections: some will end")
            }
        });
    }

    /// The addresses of the pods of a namespace that run this machine here; without one, of the interfaces of the namespace that
    /// are declared for this node.
    fn addresses(&self, namespace: &str, machine: Option<&String>) -> BTreeSet<IpAddr> {
        let state = self.0.lock();
        let own = state.index.all_targets().filter(|target| {
            target.name.namespace == namespace
                && match machine {
                    Some(_) => target.machine.as_ref() == machine,
                    None => target.kind == TargetKind::NetworkInterface,
                }
        });
        own.flat_map(|target| state.own_addresses(target).collect::<Vec<_>>()).collect()
    }
}

/// Of what is told only what one of these addresses takes part in is believed.
fn of(addresses: &BTreeSet<IpAddr>, told: &[HandedConnection]) -> BTreeSet<Established> {
    let read = told.iter().filter_map(|HandedConnection { source, destination, backend }| {
        let backend = backend.as_ref().map(|backend| backend.parse()).transpose().ok()?;
        Some(Established { source: source.parse().ok()?, destination: destination.parse().ok()?, backend })
    });
    let possible = read.filter(|Established { source, destination, backend }| {
        let family = source.is_ipv4();
        family == destination.is_ipv4() && backend.is_none_or(|backend| family == backend.is_ipv4())
    });
    // Only for what the machine itself began a destination is translated.
    let is_its = |c: &Established| {
        addresses.contains(&c.source.ip()) || (c.backend.is_none() && addresses.contains(&c.destination.ip()))
    };
    possible.filter(is_its).collect()
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
            backend: None,
        };
        let by = |backend: &str, connection| HandedConnection { backend: Some(backend.to_owned()), ..connection };
        let all = [
            told("10.0.0.1:40000", "10.0.0.2:3306"),
            told("10.0.0.2:40000", "192.0.2.1:443"),
            told("[fd00::1]:40000", "[fd00::2]:3306"),
            by("10.0.0.7:8080", told("10.0.0.2:40000", "10.96.0.1:80")),
            by("10.0.0.7:8080", told("10.0.0.1:40000", "10.0.0.2:80")),
            by("[fd00::7]:8080", told("10.0.0.2:40000", "10.96.0.1:80")),
            by("nobody", told("10.0.0.2:40000", "10.96.0.1:80")),
            told("10.0.0.8:40000", "10.0.0.9:3306"),
            told("10.0.0.2:40000", "[fd00::1]:443"),
            told("somebody", "10.0.0.2:3306"),
        ];
        let here = ["10.0.0.2", "fd00::2"].map(|address| address.parse().unwrap()).into();
        let expected: Vec<HandedConnection> = all[..4].to_vec();
        let believed: BTreeSet<HandedConnection> = of(&here, &all).iter().map(HandedConnection::from).collect();
        assert_eq!(believed, expected.into_iter().collect());
        assert!(of(&BTreeSet::new(), &all).is_empty());
    }
}
