//! What an agent tells people who ask it: one line of JSON there, lines of JSON back, per connection.
//!
//! Owns the messages. Who may ask is not theirs to say: an agent listens on its node's loopback, which people reach through the
//! API server, as `kubectl port-forward` does.

use crate::policy::{Connection, Direction, L4, Miss};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The name of the agent's port in its pod.
pub const PORT_NAME: &str = "observe";

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// What was denied lately; with `follow`, from then on what is denied, for as long as the connection lasts.
    Drops {
        /// Whether to go on.
        follow: bool,
    },
    /// What the node's kernel does with these connections, after a look at whether it still holds what it was given.
    Judge {
        /// At most [`MAX_JUDGED`].
        connections: Vec<Connection>,
    },
}

/// So many connections are judged at once.
pub const MAX_JUDGED: usize = 1_000;

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Said {
    /// A connection was denied.
    Denied(Box<Denied>),
    /// So many packets were denied that nothing more is known of.
    Lost(u64),
    /// That is all that is remembered: what follows is new.
    Remembered,
    /// The answer to [`Request::Judge`].
    Judged(Judged),
    /// There is no answer, and why.
    Problem(String),
}

/// A connection that one end denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// When it was first seen, of what is counted here.
    pub first: jiff::Timestamp,
    /// When it was last seen.
    pub last: jiff::Timestamp,
    /// Its packets that the kernel told of, which are not all: it tells of so many a second.
    pub packets: u64,
    /// The node that denied it.
    pub node: String,
    /// Which end did: `ingress` is the destination.
    pub direction: Direction,
    /// Who opened it.
    pub source: Peer,
    /// The port it was opened from, of the last packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Whom to.
    pub destination: Peer,
    /// What it carries.
    pub l4: L4,
    /// It had come to be before it was denied.
    pub established: bool,
    /// The groups attached to the end that denied it.
    pub groups: Vec<String>,
    /// The rule there that comes nearest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearestRule>,
}

/// An end of a connection, as far as a node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// `pod/NAMESPACE/NAME`, or `nic/NAMESPACE/NAME`, if the node knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The groups that the node knows it to be in: those that it has itself, or that rules there name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// A rule that does not allow a connection, and comes near.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NearestRule {
    /// Its group.
    pub group: String,
    /// Its id.
    pub id: String,
    /// What it allows, and with whom.
    pub text: String,
    /// In what it differs.
    pub miss: Miss,
}

/// What a node says of connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// Whether the node's kernel holds what it was given.
    pub table: Table,
    /// When somebody else last changed it, and what is known of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_change: Option<Change>,
    /// The generations of the groups that it enforces.
    pub generations: BTreeMap<String, i64>,
    /// For each connection what its ends say, in the order of the question.
    pub verdicts: Vec<[NodeVerdict; 2]>,
}

/// What became of a comparison of the kernel's table with what was committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Table {
    /// It is the same.
    Same,
    /// It was not, and was put right; how it differed.
    Repaired(String),
    /// It could not be compared, and why.
    Unknown(String),
}

/// A change of the table by somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// What is known of it.
    pub what: String,
    /// When it was put right.
    pub repaired: jiff::Timestamp,
}

/// What a node says of one end of a connection: egress first, of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeVerdict {
    /// In a word: `Unguarded`, `Rule`, `Itself`, `OwnNode` or `NoRule`.
    pub reason: String,
    /// The rule that allows it, and its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<(String, String)>,
    /// The groups attached there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

impl NodeVerdict {
    /// Whether it lets the connection pass.
    pub fn allowed(&self) -> bool {
        self.reason != "NoRule"
    }
}
