//! Events on groups, bindings and network interfaces: what an operator sees in `kubectl describe`.
//!
//! What is worth one is decided purely; a task writes them, one after the other. Conditions say how it is, events what
//! happened: losing one loses nothing that is not said elsewhere.

use super::cluster::Work;
use super::lock_out::Notice;
use crate::api::conditions::{ACCEPTED, DELETION_BLOCKED, ENFORCED, READY, RESOLVED_REFS};
use crate::api::{
    NetworkInterfaceStatus, SecurityGroup, SecurityGroupBinding, SecurityGroupBindingStatus, SecurityGroupStatus,
};
use crate::runtime::{Shutdown, chain};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;

/// So many wait to be written; what comes on top is dropped.
const WAITING: usize = 256;
/// Between two writes. A change to a namespace's labels can concern thousands of objects.
const PAUSE: Duration = Duration::from_millis(50);
/// The API server takes 1 kB.
const MAX_NOTE: usize = 900;

/// Takes events; a task writes them.
#[derive(Clone)]
pub struct Events(mpsc::Sender<(Event, ObjectReference)>);

impl Events {
    /// Starts the task.
    pub fn start(client: Client, identity: &str, shutdown: Shutdown) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING);
        let reporter = Reporter { controller: "ringfence-controller".into(), instance: Some(identity.to_owned()) };
        let recorder = Recorder::new(client, reporter);
        tokio::spawn(async move {
            tokio::select! {
                () = publish(recorder, waiting) => {}
                () = shutdown.signalled() => {}
            }
        });
        Self(queue)
    }

    /// Writes an event, unless too many wait already.
    pub fn publish(&self, event: Event, regarding: ObjectReference) {
        if self.0.try_send((event, regarding)).is_err() {
            tracing::debug!("too many events at once, dropping one");
        }
    }

    /// Tells what became of the ways in on admin ports.
    pub fn notice(&self, notice: &Notice) {
        let subject = &notice.subject;
        let kind = if subject.is_group { SecurityGroup::kind(&()) } else { SecurityGroupBinding::kind(&()) };
        let regarding = ObjectReference {
            api_version: Some(SecurityGroup::api_version(&()).into_owned()),
            kind: Some(kind.into_owned()),
            namespace: Some(subject.name.namespace.clone()),
            name: Some(subject.name.name.clone()),
            uid: Some(subject.uid.clone()),
            ..ObjectReference::default()
        };
        tracing::info!(object = %subject.name, message = notice.message(), "a way in on an admin port was taken away");
        self.publish(of_notice(notice), regarding);
    }
}

async fn publish(recorder: Recorder, mut waiting: mpsc::Receiver<(Event, ObjectReference)>) {
    while let Some((event, regarding)) = waiting.recv().await {
        // An event that could not be written is not worth a second try: the conditions say how it is.
        if let Err(error) = recorder.publish(&event, &regarding).await {
            tracing::debug!(error = chain(&error), "cannot write an event");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn event(type_: EventType, reason: &str, action: impl Into<String>, note: &str) -> Event {
    let note = Some(format!("{note:.MAX_NOTE$}"));
    Event { type_, reason: reason.into(), note, action: action.into(), secondary: None }
}

fn of_notice(notice: &Notice) -> Event {
    let (type_, reason) = match notice.lost.is_empty() {
        true => (EventType::Normal, "AdminAccessKept"),
        false => (EventType::Warning, "AdminAccessRemoved"),
    };
    // Events of one action become one with a count and the first one's note: so one for each set of ports.
    let ports: Vec<String> = notice.ports.iter().take(16).map(u16::to_string).collect();
    event(type_, reason, format!("Close {}", ports.join(" ")), &notice.message())
}

/// What a status says of its object.
pub struct Said {
    /// As of which generation.
    pub generation: Option<i64>,
    /// How it is.
    pub conditions: Vec<Condition>,
}

impl From<&SecurityGroupStatus> for Said {
    fn from(status: &SecurityGroupStatus) -> Self {
        Self { generation: status.observed_generation, conditions: status.conditions.clone() }
    }
}

impl From<&SecurityGroupBindingStatus> for Said {
    fn from(status: &SecurityGroupBindingStatus) -> Self {
        Self { generation: status.observed_generation, conditions: status.conditions.clone() }
    }
}

impl From<&NetworkInterfaceStatus> for Said {
    fn from(status: &NetworkInterfaceStatus) -> Self {
        Self { generation: status.observed_generation, conditions: status.conditions.clone() }
    }
}

/// What has become wrong between two statuses of an object.
pub fn of_conditions(before: &[Condition], after: &[Condition]) -> Vec<Event> {
    let is_new = |now: &&Condition| {
        !before.iter().any(|c| (&c.type_, &c.status, &c.reason) == (&now.type_, &now.status, &now.reason))
    };
    let told = after.iter().filter(is_new).filter_map(|now| {
        let reason = match (now.type_.as_str(), now.status.as_str(), now.reason.as_str()) {
            (ENFORCED, "False", reason @ ("Refused" | "Bypassed" | "Closed")) => reason,
            (ACCEPTED, _, reason @ ("Invalid" | "AddressConflict" | "AddressReserved" | "HostNetworkPods")) => reason,
            (RESOLVED_REFS, "False", reason) => reason,
            (READY, "False", reason) if reason != "Pending" => reason,
            (DELETION_BLOCKED, "True", _) => "DeletionBlocked",
            _ => return None,
        };
        Some(event(EventType::Warning, reason, now.type_.clone(), &now.message))
    });
    told.collect()
}

/// The event of a generation that is in force.
pub fn of_enforcement(generation: i64, message: &str) -> Event {
    event(EventType::Normal, "Enforced", "Enforce", &format!("generation {generation}: {message}"))
}

/// Generations on their way into the kernels. Memberships come and go under one generation, and are no news.
#[derive(Default)]
pub struct Progress(HashMap<Work, i64>);

impl Progress {
    /// Takes in a status that was written over another. Whether by it a generation is enforced for the first time.
    pub fn advance(&mut self, object: &Work, before: Option<i64>, after: Option<i64>, enforced: bool) -> bool {
        if let Some(generation) = after.filter(|_| before != after) {
            self.0.insert(object.clone(), generation);
        }
        enforced && self.0.remove(object).is_some()
    }

    /// There is no such object any more.
    pub fn forget(&mut self, object: &Work) {
        self.0.remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::NamespacedName;
    use serde_json::json;

    fn condition(type_: &str, status: &str, reason: &str) -> Condition {
        let time = "2026-01-01T00:00:00Z";
        let value =
            json!({ "type": type_, "status": status, "reason": reason, "message": "m", "lastTransitionTime": time });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_is_wrong_and_new_is_told() {
        let good = [condition(ENFORCED, "True", "Enforced"), condition(ACCEPTED, "True", "Accepted")];
        let bad = [condition(ENFORCED, "False", "Refused"), condition(ACCEPTED, "True", "AddressConflict")];
        let reasons = |events: Vec<Event>| events.into_iter().map(|e| e.reason).collect::<Vec<_>>();
        assert_eq!(reasons(of_conditions(&good, &bad)), ["Refused", "AddressConflict"]);
        assert_eq!(reasons(of_conditions(&bad, &bad)), [""; 0]);
        assert_eq!(reasons(of_conditions(&bad, &good)), [""; 0]);
        assert_eq!(reasons(of_conditions(&[], &[condition(ENFORCED, "False", "Pending")])), [""; 0]);
    }

    #[test]
    fn a_generation_is_enforced_once() {
        let (mut progress, object) = (Progress::default(), Work::Group(NamespacedName::new("a", "b")));
        assert!(!progress.advance(&object, None, Some(1), false));
        assert!(progress.advance(&object, Some(1), Some(1), true));
        assert!(!progress.advance(&object, Some(1), Some(1), false), "a member came");
        assert!(!progress.advance(&object, Some(1), Some(1), true), "and is guarded");
        assert!(progress.advance(&object, Some(1), Some(2), true));
        progress.advance(&object, Some(2), Some(3), false);
        progress.forget(&object);
        assert!(!progress.advance(&object, Some(3), Some(3), true));
    }
}
