//! Writes the node's `NodeUsage`: the latest counts, for as long as it takes.

use crate::api::{NodeUsage, NodeUsageSpec};
use crate::runtime::backoff::{Backoff, jitter};
use crate::runtime::{Shutdown, chain};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Counts can wait.
const RETRY: Backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_mins(1) };

/// What became of a write.
#[derive(Clone, Debug)]
pub enum Done {
    /// That is what is written there now.
    Written(NodeUsageSpec),
    /// There is nothing to add to: the node was deleted, and is back as another one. What the one before counted, counts on.
    Replaced,
}

/// What is to be written.
type Wanted<T> = (watch::Sender<Option<T>>, watch::Receiver<Option<T>>);

/// Reads and writes one object.
pub struct Writer {
    api: Api<NodeUsage>,
    nodes: Api<Node>,
    node: String,
    /// With the node goes what it counted.
    owner: Option<OwnerReference>,
    shutdown: Shutdown,
}

impl Writer {
    /// Of this node's.
    pub fn new(client: Client, node: &Node, shutdown: Shutdown) -> Self {
        let name = node.metadata.name.clone().unwrap_or_default();
        let nodes = Api::all(client.clone());
        Self { api: Api::all(client), nodes, node: name, owner: node.owner_ref(&()), shutdown }
    }

    /// What is written there of this node, and not of an earlier one of its name, as soon as that can be known.
    pub async fn find(&self) -> Option<NodeUsageSpec> {
        let mut failures = 0;
        loop {
            match self.api.get_opt(&self.node).await {
                Ok(found) => return found.filter(|object| self.is_own(object)).map(|object| object.spec),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = chain(&error), failures, "cannot read what this node counted, will retry");
                    sleep(RETRY.delay(failures, jitter())).await;
                }
            }
        }
    }

    /// Starts to write what is sent to the one, and to tell by the other what became of it.
    pub fn start(self) -> (watch::Sender<Option<NodeUsageSpec>>, watch::Receiver<Option<Done>>) {
        let (snapshots, wanted): Wanted<NodeUsageSpec> = watch::channel(None);
        let (done, written) = watch::channel(None);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = self.run(wanted, done) => {}
                () = shutdown.signalled() => {}
            }
        });
        (snapshots, written)
    }

    async fn run(mut self, mut wanted: watch::Receiver<Option<NodeUsageSpec>>, done: watch::Sender<Option<Done>>) {
        let (mut object, mut failures) = (None, 0);
        while wanted.changed().await.is_ok() {
            loop {
                let Some(spec) = wanted.borrow_and_update().clone() else { break };
                match self.write(&mut object, &spec).await {
                    Ok(became) => {
                        failures = 0;
                        done.send_replace(Some(became));
                        break;
                    }
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(
                            error = chain(&error),
                            failures,
                            "cannot write what this node counted, will retry"
                        );
                        sleep(RETRY.delay(failures, jitter())).await;
                    }
                }
            }
        }
    }

    /// `object` is what was last read or written; nobody else writes it.
    async fn write(&mut self, object: &mut Option<NodeUsage>, spec: &NodeUsageSpec) -> kube::Result<Done> {
        let known = match object.take() {
            Some(known) => Some(known),
            None => self.api.get_opt(&self.node).await?,
        };
        if !known.as_ref().is_some_and(|known| self.is_own(known)) {
            let owner = self.nodes.get(&self.node).await?.owner_ref(&());
            if owner != self.owner {
                self.owner = owner;
                return Ok(Done::Replaced);
            }
        }
        let mut new = NodeUsage::new(&self.node, spec.clone());
        new.metadata.owner_references = self.owner.clone().map(|owner| vec![owner]);
        let written = match known {
            Some(known) => {
                new.metadata.resource_version = known.metadata.resource_version;
                self.api.replace(&self.node, &PostParams::default(), &new).await?
            }
            None => self.api.create(&PostParams::default(), &new).await?,
        };
        *object = Some(written);
        Ok(Done::Written(spec.clone()))
    }

    fn is_own(&self, object: &NodeUsage) -> bool {
        let owner = self.owner.as_ref().map(|owner| &owner.uid);
        object.metadata.owner_references.iter().flatten().any(|of| Some(&of.uid) == owner)
    }
}
