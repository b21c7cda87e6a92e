//! What the plugin and the agent say to each other: one line of JSON there, one line back, per connection.

use crate::agent::attachments::{Attachment, Key};
use serde::{Deserialize, Serialize};

/// From the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// A pod is about to start. Answered when its rules are in the kernel.
    Add {
        /// Its interface.
        attachment: Attachment,
        /// How long the plugin waits for the answer.
        patience_millis: u64,
    },
    /// An interface is about to be taken down. Answered when its addresses are nobody's.
    Delete {
        /// Which one.
        key: Key,
        /// What the runtime says of it.
        described: Option<Attachment>,
        /// How long the plugin waits for the answer.
        patience_millis: u64,
    },
    /// Is this attached, and enforced?
    Check {
        /// As the runtime knows it.
        attachment: Attachment,
    },
    /// On this network these are all there are.
    Collect {
        /// See [`Attachment::network`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<String>,
        /// The interfaces that the runtime knows.
        valid: Vec<Key>,
    },
    /// Could a pod start?
    Status,
}

/// From the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// What was in the way; nothing, if all is as it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Answer {
    /// As it was asked for.
    pub fn yes() -> Self {
        Self::default()
    }

    /// Not so, and why.
    pub fn no(problem: impl Into<String>) -> Self {
        Self { problem: Some(problem.into()) }
    }
}
