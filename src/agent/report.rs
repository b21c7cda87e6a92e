//! Writes the node's `NodeEnforcement`: the latest report, as soon as the last one is written.

use super::data_path::Problems;
use super::own_addresses::Said;
use super::state::Report;
use crate::api::conditions::{self, CLOSED, DATA_PATH_READY, Verdict};
use crate::api::{NodeEnforcement, NodeEnforcementSpec, NodeEnforcementStatus};
use crate::runtime::admin::ReadyHandle;
use crate::runtime::backoff::{Backoff, jitter};
use crate::runtime::{Shutdown, chain};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use std::time::Duration;
use tokio::sync::watch;

/// A commit is often followed by another: one report tells of both, and neither waits for the API server's work on the first.
const MOMENT: Duration = Duration::from_millis(20);
/// The API server may be away for long; the report is then the latest one.
const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(15) };

/// Takes reports; a task writes them.
pub struct Reporter {
    latest: watch::Sender<Option<(Report, Problems)>>,
}

impl Reporter {
    /// Starts the task.
    pub fn start(
        client: Client,
        node: &Node,
        own_addresses_only: watch::Receiver<Option<Said>>,
        written: ReadyHandle,
        shutdown: Shutdown,
    ) -> std::io::Result<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let (latest, reports) = watch::channel(None);
        let writer = Writer {
            api: Api::all(client),
            node: node.metadata.name.clone().unwrap_or_default(),
            owner: node.owner_ref(&()),
            boot_id,
            object: None,
            written,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = writer.run(reports, own_addresses_only) => {}
                () = shutdown.signalled() => {}
            }
        });
        Ok(Self { latest })
    }

    /// What is in the kernel now, and what is wrong with the node's data path.
    pub fn report(&self, report: Report, problems: Problems) {
        self.latest.send_replace(Some((report, problems)));
    }
}

struct Writer {
    api: Api<NodeEnforcement>,
    node: String,
    /// With the node goes its report.
    owner: Option<OwnerReference>,
    boot_id: String,
    /// The object as last read or written. Nobody else writes it.
    object: Option<NodeEnforcement>,
    /// Who waits for the agents reads their reports next.
    written: ReadyHandle,
}

impl Writer {
    async fn run(
        mut self,
        mut reports: watch::Receiver<Option<(Report, Problems)>>,
        mut own_addresses_only: watch::Receiver<Option<Said>>,
    ) {
        let mut failures = 0;
        // Who reports lives as long as the agent.
        while (tokio::select! {
            changed = reports.changed() => changed,
            changed = own_addresses_only.changed() => changed,
        })
        .is_ok()
        {
            tokio::time::sleep(MOMENT).await;
            loop {
                let Some((report, problems)) = reports.borrow_and_update().clone() else { break };
                let own_addresses_only = own_addresses_only.borrow_and_update().clone();
                match self.write(report, problems, own_addresses_only).await {
                    Ok(()) => {
                        self.written.set_ready(true);
                        failures = 0;
                        break;
                    }
                    Err(error) => {
                        // Whatever is there now, read it anew.
                        self.object = None;
                        failures += 1;
                        tracing::warn!(error = chain(&error), failures, "cannot write this node's report, will retry");
                        tokio::time::sleep(RETRY.delay(failures, jitter())).await;
                    }
                }
            }
        }
    }

    async fn write(
        &mut self,
        report: Report,
        problems: Problems,
        own_addresses_only: Option<Said>,
    ) -> kube::Result<()> {
        let mut object = match self.object.take() {
            Some(object) => object,
            None => self.find_or_create().await?,
        };
        let before = object.status.take().unwrap_or_default();
        let status = status(before.clone(), report, problems, own_addresses_only, &self.boot_id, Timestamp::now());
        let unchanged = status == before;
        object.status = Some(status);
        if !unchanged {
            object = self.api.replace_status(&self.node, &PostParams::default(), &object).await?;
        }
        self.object = Some(object);
        Ok(())
    }

    async fn find_or_create(&self) -> kube::Result<NodeEnforcement> {
        if let Some(object) = self.api.get_opt(&self.node).await? {
            return Ok(object);
        }
        let mut object = NodeEnforcement::new(&self.node, NodeEnforcementSpec {});
        object.metadata.owner_references = self.owner.clone().map(|owner| vec![owner]);
        self.api.create(&PostParams::default(), &object).await
    }
}

/// The status that says so; times move only with what they are of.
pub fn status(
    before: NodeEnforcementStatus,
    report: Report,
    problems: Problems,
    own_addresses_only: Option<Said>,
    boot_id: &str,
    now: Timestamp,
) -> NodeEnforcementStatus {
    let Report { interfaces, groups, remotes, bindings, failures, attachments, networks, gate } = report;
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let mut conditions = before.conditions;
    let Problems { bypassed, closed } = problems;
    let (status, reason) = match (bypassed.is_empty(), closed.is_empty()) {
        (true, true) => (true, "Passes"),
        (true, false) => (false, CLOSED),
        (false, _) => (false, "Bypassed"),
    };
    let problems: Vec<String> = bypassed.into_iter().chain(closed).collect();
    let message = if status { "nothing is known to bypass the rules".to_owned() } else { problems.join("; ") };
    let verdict = Verdict { type_: DATA_PATH_READY, status, reason, message };
    let (own_addresses_only, network_interfaces) =
        own_addresses_only.map(|said| (said.verdict, said.interfaces)).unzip();
    for verdict in [Some(verdict), Some(gate.verdict()), own_addresses_only].into_iter().flatten() {
        conditions::set(&mut conditions, verdict, None, now);
    }
    NodeEnforcementStatus {
        boot_id: Some(boot_id.to_owned()),
        group_count: count(groups.len()),
        interfaces: count(interfaces),
        groups,
        remotes,
        bindings,
        failures,
        attachments,
        network_interfaces: network_interfaces.unwrap_or_default(),
        networks,
        conditions,
    }
}
