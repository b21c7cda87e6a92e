//! Tells of repairs, and of a gate that is off, where an operator looks: in the log, in the metrics, and as events of the node.
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

/// Takes news; for each kind of it a task writes an event of the latest.
#[derive(Clone)]
pub struct Announcer {
    metrics: Metrics,
    damage: watch::Sender<Option<Damage>>,
    gate: watch::Sender<Option<String>>,
}

impl Announcer {
    /// Starts the tasks.
    pub fn start(client: Client, node: &Node, metrics: Metrics, shutdown: Shutdown) -> Self {
        let reporter = Reporter { controller: "ringfence-agent".into(), instance: node.metadata.name.clone() };
        let to = (Recorder::new(client, reporter), node.object_ref(&()));
        Self { metrics, damage: told(to.clone(), of_damage, shutdown.clone()), gate: told(to, of_gate, shutdown) }
    }

    /// A table was damaged, and is whole again.
    pub fn repaired(&self, damage: Damage) {
        tracing::warn!(%damage, "repaired our table");
        self.metrics.repaired(&damage);
        self.damage.send_replace(Some(damage));
    }

    /// New pods do not wait for their rules, though they should.
    pub fn gate_is_off(&self, problem: String) {
        tracing::warn!(%problem, "the gate is off");
        self.gate.send_replace(Some(problem));
    }
}

/// Starts a task that tells the latest of one kind of news.
fn told<T: Clone + Send + Sync + 'static>(
    (recorder, node): (Recorder, ObjectReference),
    event: impl Fn(T) -> Event + Send + 'static,
    shutdown: Shutdown,
) -> watch::Sender<Option<T>> {
    let (latest, mut news) = watch::channel(None::<T>);
    let announce = async move {
        while news.changed().await.is_ok() {
            let Some(told) = news.borrow_and_update().clone() else { continue };
            // An event that could not be written is not worth a second try: the API server is away, and the log has it.
            if let Err(error) = recorder.publish(&event(told), &node).await {
                tracing::warn!(error = chain(&error), "cannot write an event of this node");
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = announce => {}
            () = shutdown.signalled() => {}
        }
    });
    latest
}

fn of_gate(problem: String) -> Event {
    Event {
        type_: EventType::Warning,
        reason: "GateOff".into(),
        note: Some(format!("new pods do not wait for their rules: {problem:.800}")),
        action: "Install the CNI plugin".into(),
        secondary: None,
    }
}

fn of_damage(damage: Damage) -> Event {
    // Events of the same action become one with a count and the first one's note: so one for each program.
    let action = match &damage {
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
