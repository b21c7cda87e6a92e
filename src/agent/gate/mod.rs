//! The node's gate: a new pod starts when its rules are in the kernel, and addresses are taken out before they are given to
//! others (S7, S10).
//!
//! Owns the socket on which the CNI plugin asks, the files by which attachments outlive a restart, and the plugin's place on
//! the node. It decides nothing about packets: it hands attachments to the state, and waits for the enforcer's commits.

mod conflist;
mod install;
mod multus;
mod remove;
mod server;
mod store;

pub use conflist::has_plugin;
pub use remove::remove;
pub use server::Server;
pub use store::Store;

use super::Shared;
use super::announce::Announcer;
use super::state::Gate;
use crate::cni::PLUGIN;
use crate::cni::config::{Entry, OnTimeout, RUN_DIR, SOCKET, TIMEOUT_SECONDS};
use crate::runtime::{Backoff, Coalescer, Shutdown};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// When the plugin could not be put in its place.
const RETRY: Backoff = Backoff { min: Duration::from_millis(500), max: Duration::from_secs(30) };
/// Changes of a folder are told, but a folder may be replaced as a whole, and nobody is told of that.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// After a repair: whoever keeps undoing it must not keep us busy.
const REST: Duration = Duration::from_millis(100);

/// How the gate is run.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Make new pods wait until their rules are in the kernel: put the CNI plugin in its place and keep it there. Without
    /// this it is taken out where it is.
    #[arg(long)]
    gate: bool,
    /// For how many seconds a new pod waits.
    #[arg(long, default_value_t = TIMEOUT_SECONDS, value_parser = clap::value_parser!(u64).range(1..=60))]
    gate_timeout: u64,
    /// Whether a pod starts when that time is over.
    #[arg(long, value_enum, default_value_t = OnTimeout::Closed)]
    gate_on_timeout: OnTimeout,
    /// The node's folder of CNI plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The node's folder of CNI configurations.
    #[arg(long, default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The plugin's program, to be copied from here.
    #[arg(long, default_value = "/usr/local/bin/ringfence-cni")]
    cni_plugin: PathBuf,
    /// The agent's own folder on the node: here as there, or the plugin does not find the socket.
    #[arg(long, env = "RINGFENCE_RUN_DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

/// The parts of a node that are the gate's.
#[derive(Clone, Debug)]
pub struct Places {
    bin_dir: PathBuf,
    conf_dir: PathBuf,
    source: PathBuf,
    run_dir: PathBuf,
    entry: Entry,
    wanted: bool,
}

impl From<Args> for Places {
    fn from(args: Args) -> Self {
        let Args { gate, gate_timeout, gate_on_timeout, cni_bin_dir, cni_conf_dir, cni_plugin, run_dir } = args;
        let entry = Entry {
            plugin: PLUGIN,
            primary: true,
            socket: run_dir.join(SOCKET),
            timeout_seconds: gate_timeout,
            on_timeout: gate_on_timeout,
        };
        Self { bin_dir: cni_bin_dir, conf_dir: cni_conf_dir, source: cni_plugin, run_dir, entry, wanted: gate }
    }
}

impl Places {
    /// The plugin's program on the node.
    fn program(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    /// Where the agent listens.
    pub fn socket(&self) -> &std::path::Path {
        &self.entry.socket
    }

    /// Where attachments are kept.
    pub fn attachments(&self) -> PathBuf {
        self.run_dir.join("attachments")
    }

    /// Whether there is to be a gate.
    pub fn wanted(&self) -> bool {
        self.wanted
    }
}

/// Puts the plugin in its place and keeps it there, or takes it out.
pub(super) async fn keep(
    places: Places,
    state: Shared,
    dirty: Arc<Coalescer>,
    announcer: Announcer,
    shutdown: Shutdown,
) {
    let changed = Arc::new(Coalescer::new(RETRY, Some(LOOK_EVERY)));
    if places.wanted {
        let told = changed.clone();
        if let Err(error) = install::watch(&[&places.conf_dir, &places.bin_dir], move || told.notify()) {
            tracing::warn!(%error, "cannot watch the folders of CNI, will look now and then");
        }
    }
    changed.notify();
    let worker = async move |_| {
        let outcome = if places.wanted { install::install(&places) } else { remove::plugin(&places).map(|()| false) };
        let gate = match (&outcome, places.wanted) {
            (Ok(_), true) => Gate::Ready,
            (Ok(_), false) => Gate::Off,
            (Err(error), _) => Gate::Failing(format!("{error:#}")),
        };
        let before = std::mem::replace(&mut state.lock().gate, gate.clone());
        if before != gate {
            if let Gate::Failing(problem) = gate {
                announcer.gate_is_off(problem);
            }
            dirty.notify();
        }
        if outcome? {
            tracing::info!("the CNI plugin was put in its place");
            tokio::time::sleep(REST).await;
        }
        anyhow::Ok(())
    };
    changed.run(shutdown, worker).await;
}
