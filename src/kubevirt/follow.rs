//! Watches machines for as long as there are pods that run some. Who has none asks nothing of the API server, so KubeVirt may
//! come and go, and its kinds are never asked for where they do not exist.

use super::{MIGRATION_TARGET_NODE_NAME, NODE_NAME, VirtualMachineInstance};
use crate::index::{Machine, MachineSource, Update};
use crate::runtime::admin::Readiness;
use crate::runtime::watch::{Malformed, Sink, Watches};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use std::time::Duration;
use tokio::sync::watch::{Receiver, channel};
use tokio::task::JoinSet;

/// How long whoever starts waits for the labels of machines. After that, the labels that their pods were created with do.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the machines are known that there are pods of.
pub struct Followed(Receiver<bool>);

impl Followed {
    /// Waits until they are, but not for ever: a KubeVirt that does not answer must not hold up everything else.
    pub async fn known(&mut self) {
        if tokio::time::timeout(PATIENCE, self.0.wait_for(|known| *known)).await.is_err() {
            tracing::warn!("virtual machines cannot be listed; until they can, their pods' labels stand for theirs");
        }
    }
}

/// Begins to watch whenever `wanted` is true: on a node, the machines that run there or are about to; otherwise all there are.
pub fn follow<F>(watches: Watches, node: Option<&str>, mut wanted: Receiver<bool>, news: F) -> Followed
where
    F: FnMut(Update) + Clone + Send + 'static,
{
    let all = watcher::Config::default;
    // Two watches, as labels that differ in their keys cannot be asked for in one; KubeVirt's own agents do the same.
    let configs = match node {
        Some(node) => [NODE_NAME, MIGRATION_TARGET_NODE_NAME].map(|key| all().labels(&format!("{key}={node}"))).into(),
        None => vec![all()],
    };
    let (known, followed) = channel(!*wanted.borrow_and_update());
    tokio::spawn(async move {
        loop {
            let mut running = JoinSet::new();
            let synced = Readiness::default();
            if *wanted.borrow_and_update() {
                for (source, config) in configs.iter().enumerate() {
                    let sink = Machines { source: MachineSource(source), news: news.clone() };
                    let feed = watches.metadata_feed(config.clone(), sink, synced.register("virtualmachineinstances"));
                    running.spawn(feed);
                }
            }
            tokio::select! {
                () = synced.ready() => {}
                changed = wanted.changed() => if changed.is_ok() { continue } else { return },
            }
            known.send_replace(true);
            if wanted.changed().await.is_err() {
                return;
            }
        }
    });
    Followed(followed)
}

/// Takes in the machines of one watch.
struct Machines<F> {
    source: MachineSource,
    news: F,
}

impl<F: FnMut(Update)> Sink<PartialObjectMeta<VirtualMachineInstance>> for Machines<F> {
    fn reset(&mut self, objects: Vec<PartialObjectMeta<VirtualMachineInstance>>, _: Vec<Malformed>) {
        (self.news)(Update::Machines(
            self.source,
            objects.iter().map(|object| Machine::from(&object.metadata)).collect(),
        ));
    }

    fn apply(&mut self, object: PartialObjectMeta<VirtualMachineInstance>) {
        (self.news)(Update::Machine(self.source, Machine::from(&object.metadata)));
    }

    fn delete(&mut self, object: PartialObjectMeta<VirtualMachineInstance>) {
        (self.news)(Update::NoMachine(self.source, Machine::from(&object.metadata).uid));
    }

    // Metadata can be read of whatever there is.
    fn malformed(&mut self, _: Malformed) {}

    fn delete_malformed(&mut self, _: Malformed) {}
}
