//! The plugin's part of its network's configuration.

use super::{Error, code};
use crate::agent::attachments::Key;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The versions of CNI that this plugin speaks, oldest first. Before 0.3.0 there were no chains.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// So much earlier than the plugin the agent gives up, so that its explanation still arrives.
const HEAD_START: Duration = Duration::from_millis(300);

/// Whatever is written, nobody waits for longer.
pub const LONGEST: Duration = Duration::from_secs(120);

/// The agent's own folder on the node, unless it is told another one.
pub const RUN_DIR: &str = "/run/ringfence";
/// Where it listens there.
pub const SOCKET: &str = "agent.sock";
/// How long a pod waits, unless something else is said.
pub const TIMEOUT_SECONDS: u64 = 10;

/// Whether a pod starts when the agent has not said that its rules are in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum OnTimeout {
    /// It does not; the kubelet tries again.
    #[default]
    Closed,
    /// It does, and may pass packets that no group allows until the agent is back.
    Open,
}

/// What the agent writes into the configuration of the pods' own network. That of any other network says no more than the
/// plugin's type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// [`super::PLUGIN`].
    #[serde(rename = "type")]
    pub plugin: &'static str,
    /// True: this is the network that Kubernetes gives pods.
    pub primary: bool,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// How long a pod waits.
    pub timeout_seconds: u64,
    /// And then?
    pub on_timeout: OnTimeout,
}

/// What the runtime hands over of it.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) version: String,
    /// The name of the configuration, unless it is that of the network that Kubernetes gives pods.
    pub(super) network: Option<String>,
    pub(super) socket: PathBuf,
    pub(super) timeout: Duration,
    pub(super) on_timeout: OnTimeout,
    pub(super) prev_result: Option<Value>,
    pub(super) valid_attachments: Option<Vec<Key>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    name: String,
    #[serde(default)]
    primary: bool,
    #[serde(default = "default_socket")]
    socket: PathBuf,
    #[serde(default = "default_timeout")]
    timeout_seconds: u64,
    #[serde(default)]
    on_timeout: OnTimeout,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

fn default_socket() -> PathBuf {
    Path::new(RUN_DIR).join(SOCKET)
}

fn default_timeout() -> u64 {
    TIMEOUT_SECONDS
}

#[derive(Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl Config {
    pub(super) fn parse(input: &str) -> Result<Self, Error> {
        let version = version(input).ok_or_else(|| {
            Error::new(code::UNDECODABLE, "standard input is not a network configuration with a cniVersion")
        })?;
        if !VERSIONS.contains(&&*version) {
            let known = VERSIONS.join(", ");
            return Err(Error::new(code::INCOMPATIBLE_VERSION, format!("cniVersion {version:?} is none of {known}")));
        }
        let Written { name, primary, socket, timeout_seconds, on_timeout, prev_result, valid_attachments } =
            serde_json::from_str(input).map_err(|error| Error::new(code::INVALID_CONFIG, error.to_string()))?;
        let key = |a: ValidAttachment| Key { container_id: a.container_id, interface: a.ifname };
        Ok(Self {
            version,
            network: (!primary).then_some(name),
            socket,
            timeout: Duration::from_secs(timeout_seconds).min(LONGEST),
            on_timeout,
            prev_result,
            valid_attachments: valid_attachments.map(|all| all.into_iter().map(key).collect()),
        })
    }

    /// How long the agent may take.
    pub(super) fn patience_millis(&self) -> u64 {
        u64::try_from(self.timeout.saturating_sub(HEAD_START).as_millis()).unwrap_or(u64::MAX)
    }
}

/// The version of a configuration, if it says one.
pub(super) fn version(input: &str) -> Option<String> {
    let config: Value = serde_json::from_str(input).ok()?;
    config.get("cniVersion")?.as_str().map(str::to_owned)
}
