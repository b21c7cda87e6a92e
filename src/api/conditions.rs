//! The vocabulary of conditions and reasons, and the one way to write a condition.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The spec can be enforced as it is written.
pub const ACCEPTED: &str = "Accepted";
/// Everything that the spec names exists.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// Every node concerned has this revision, memberships included, in its kernel.
pub const ENFORCED: &str = "Enforced";
/// On a NetworkInterface: its device is there, and nothing else than it declares comes out of it.
pub const READY: &str = "Ready";
/// Only while a deletion waits: the group is in use, and by whom.
pub const DELETION_BLOCKED: &str = "DeletionBlocked";
/// On a NodeEnforcement: the traffic of the node's pods passes the hooks Ringfence listens on.
pub const DATA_PATH_READY: &str = "DataPathReady";
/// A reason of this and of Enforced: what would not pass the rules does not pass at all.
pub const CLOSED: &str = "Closed";
/// On a NodeEnforcement: no pod of the node sends with an address that is not its own.
pub const OWN_ADDRESSES_ONLY: &str = "OwnAddressesOnly";
/// On a NodeEnforcement: new pods of the node wait until their rules are in the kernel.
pub const GATE_READY: &str = "GateReady";

/// Kubernetes refuses condition messages longer than this.
const MAX_MESSAGE: usize = 32 * 1024;
/// Longer lists are cut: a condition is read by people.
const MAX_LISTED: usize = 5;

/// What is to be said; the time is added where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The condition's type.
    pub type_: &'static str,
    /// True or False.
    pub status: bool,
    /// One CamelCase word for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// Sets a condition; the transition time moves only when its status does.
pub fn set(conditions: &mut Vec<Condition>, verdict: Verdict, generation: Option<i64>, now: Timestamp) {
    let Verdict { type_, status, reason, mut message } = verdict;
    let status = if status { "True" } else { "False" };
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    }
    let since = conditions
        .iter()
        .find(|c| c.type_ == type_ && c.status == status)
        .map_or(Time(now), |c| c.last_transition_time.clone());
    conditions.retain(|c| c.type_ != type_);
    conditions.push(Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    });
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
}

/// "a, b and 3 more": enough to act on, short enough to read.
pub fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    match items.len() {
        n if n > MAX_LISTED => format!("{} and {} more", items[..MAX_LISTED].join(", "), n - MAX_LISTED),
        _ => items.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: bool) -> Verdict {
        Verdict { type_: ENFORCED, status, reason: "Test", message: "m".into() }
    }

    #[test]
    fn transition_time_moves_with_the_status_only() {
        let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let mut conditions = Vec::new();
        set(&mut conditions, verdict(false), Some(1), early);
        set(&mut conditions, verdict(false), Some(2), late);
        assert_eq!(conditions[0].last_transition_time, Time(early));
        assert_eq!(conditions[0].observed_generation, Some(2));
        set(&mut conditions, verdict(true), Some(2), late);
        assert_eq!(conditions[0].last_transition_time, Time(late));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed(["a", "b"]), "a, b");
        assert_eq!(listed(1..=7), "1, 2, 3, 4, 5 and 2 more");
    }
}
