//! Tells of repairs where an operator looks: in the log, in the metrics, and as events of the node.
//!
//! A fight with another program would be a flood of events: one in a while is written, and the metrics count all.

use super::kernel::Damage;
use super::metrics::Metrics;
use crate::runtime::{Shutdown, chain};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use std::time::Duration;
use tokio::sync::watch;

/// So far apart are two events at least.
const EVERY: Duration = Duration::from_secs(10);

/// Takes repairs; a task writes an event of the latest.
#[derive(Clone)]
pub struct Announcer {
    metrics: Metrics,
    latest: watch::Sender<Option<Damage>>,
}

impl Announcer {
    /// Starts the task.
    pub fn start(client: Client, node: &Node, metrics: Metrics, shutdown: Shutdown) -> Self {
        let (latest, repairs) = watch::channel(None);
        let reporter = Reporter { controller: "ringfence-agent".into(), instance: node.metadata.name.clone() };
        let (recorder, node) = (Recorder::new(client, reporter), node.object_ref(&()));
        tokio::spawn(async move {
            tokio::select! {
                () = announce(recorder, node, repairs) => {}
                () = shutdown.signalled() => {}
            }
        });
        Self { metrics, latest }
    }

    /// A table was damaged, and is whole again.
    pub fn repaired(&self, damage: Damage) {
        tracing::warn!(%damage, "repaired our table");
        self.metrics.repaired(&damage);
        self.latest.send_replace(Some(damage));
    }
}

async fn announce(recorder: Recorder, node: ObjectReference, mut repairs: watch::Receiver<Option<Damage>>) {
    while repairs.changed().await.is_ok() {
        let Some(damage) = repairs.borrow_and_update().clone() else { continue };
        // An event that could not be written is not worth a second try: the API server is away, and the log has it.
        if let Err(error) = recorder.publish(&event(&damage), &node).await {
            tracing::warn!(error = chain(&error), "cannot write an event of a repair");
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn event(damage: &Damage) -> Event {
    // Events of the same action become one with a count and the first one's note: so one for each program.
    let action = match damage {
        Damage::Foreign { process, .. } => format!("Repair after {}", process.name),
        Damage::Different { .. } => "Repair after comparison".to_owned(),
    };
    Event {
        type_: EventType::Warning,
        reason: "RulesRepaired".into(),
        // The API server takes 1 kB.
        note: Some(format!("{damage:.500}; it was replaced by what was committed")),
        action,
        secondary: None,
    }
}
