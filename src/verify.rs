//! Says whether an installation works: `helm test` runs this.

use crate::api::NodeEnforcement;
use crate::api::conditions::DATA_PATH_READY;
use crate::runtime::{Shutdown, chain};
use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// What to look at.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Namespace of the agents and the controller.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,
    /// Name of the agents' DaemonSet.
    #[arg(long)]
    daemonset: String,
    /// Name of the controller's Deployment.
    #[arg(long)]
    deployment: String,
    /// For how many seconds to wait until all is well.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// Looks until all is well, and prints what it saw last.
pub async fn run(args: Args, client: Client, shutdown: Shutdown) -> anyhow::Result<()> {
    let Args { namespace, daemonset, deployment, timeout } = args;
    let cluster = Cluster {
        agents: Api::namespaced(client.clone(), &namespace),
        controller: Api::namespaced(client.clone(), &namespace),
        nodes: Api::all(client.clone()),
        reports: Api::all(client),
    };
    let deadline = Instant::now() + Duration::from_secs(timeout);
    let checks = loop {
        match cluster.look(&daemonset, &deployment).await {
            Ok(checks) if Instant::now() > deadline || !checks.iter().any(Check::failed) => break checks,
            Ok(_) => {}
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("cannot see how the installation is; may this ServiceAccount look at it?");
            }
            Err(error) => tracing::warn!(error = chain(&*error), "cannot see how the installation is, will look again"),
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = shutdown.signalled() => bail!("told to stop"),
        }
    };
    for check in &checks {
        println!("{check}");
    }
    let failed = checks.iter().filter(|check| check.failed()).count();
    if failed > 0 {
        bail!(
            "{failed} of {} checks failed, see the lines above; begin with: kubectl --namespace {namespace} get pods --output wide",
            checks.len()
        );
    }
    Ok(())
}

struct Cluster {
    agents: Api<DaemonSet>,
    controller: Api<Deployment>,
    nodes: Api<Node>,
    reports: Api<NodeEnforcement>,
}

impl Cluster {
    async fn look(&self, daemonset: &str, deployment: &str) -> anyhow::Result<Vec<Check>> {
        let everything = ListParams::default();
        let agents = self.agents.get_opt(daemonset).await.context("cannot get the agents' DaemonSet")?;
        let controller = self.controller.get_opt(deployment).await.context("cannot get the controller's Deployment")?;
        let nodes = self.nodes.list(&everything).await.context("cannot list nodes")?;
        let reports = self.reports.list(&everything).await.context("cannot list NodeEnforcements")?;
        let mut checks = vec![
            Check { what: format!("controller {deployment}"), found: of_controller(controller.as_ref()) },
            Check { what: format!("agents {daemonset}"), found: of_agents(agents.as_ref()) },
        ];
        checks.extend(of_nodes(agents.as_ref(), &nodes.items, &reports.items));
        Ok(checks)
    }
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq)]
struct Check {
    what: String,
    found: Found,
}

/// How it is, or what is wrong and what to do.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Well(String),
    /// Nothing can be expected of it.
    Skipped(String),
    Wrong(String),
}

impl Check {
    fn failed(&self) -> bool {
        matches!(self.found, Found::Wrong(_))
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (word, text) = match &self.found {
            Found::Well(text) => ("ok", text),
            Found::Skipped(text) => ("skipped", text),
            Found::Wrong(text) => ("FAILED", text),
        };
        write!(f, "{word:<8} {}: {text}", self.what)
    }
}

fn of_controller(controller: Option<&Deployment>) -> Found {
    let Some(controller) = controller else {
        return Found::Wrong("there is no such Deployment; install the chart again".into());
    };
    let status = controller.status.clone().unwrap_or_default();
    if status.observed_generation < controller.metadata.generation {
        return Found::Wrong(
            "its last change is not seen by the cluster's controllers; is kube-controller-manager well?".into(),
        );
    }
    let available = status.conditions.iter().flatten().any(|c| c.type_ == "Available" && c.status == "True");
    let ready = format!(
        "{} of {} replicas are ready",
        status.ready_replicas.unwrap_or_default(),
        status.replicas.unwrap_or_default()
    );
    if available {
        Found::Well(ready)
    } else {
        Found::Wrong(format!("{ready}; kubectl describe and logs of its pods say why"))
    }
}

fn of_agents(agents: Option<&DaemonSet>) -> Found {
    let Some(agents) = agents else {
        return Found::Wrong("there is no such DaemonSet, so nothing is enforced; install the chart again".into());
    };
    let Some(status) = agents.status.as_ref().filter(|s| s.observed_generation >= agents.metadata.generation) else {
        return Found::Wrong(
            "its last change is not seen by the cluster's controllers; is kube-controller-manager well?".into(),
        );
    };
    let (wanted, updated) = (status.desired_number_scheduled, status.updated_number_scheduled.unwrap_or_default());
    if wanted == 0 {
        Found::Wrong("no node is to have one; do agent.nodeSelector and agent.tolerations fit any node?".into())
    } else if status.number_ready < wanted {
        let ready = status.number_ready;
        Found::Wrong(format!("{ready} of {wanted} are ready; kubectl describe and logs of the others say why"))
    } else if updated < wanted {
        Found::Wrong(format!("{updated} of {wanted} are up to date; wait for the rollout, or delete the old pods"))
    } else {
        Found::Well(format!("{wanted} of {wanted} are ready"))
    }
}

fn of_nodes(agents: Option<&DaemonSet>, nodes: &[Node], reports: &[NodeEnforcement]) -> Vec<Check> {
    let selector =
        agents.and_then(|a| a.spec.as_ref()?.template.spec.as_ref()?.node_selector.clone()).unwrap_or_default();
    let reports: BTreeMap<String, &NodeEnforcement> = reports.iter().map(|r| (r.name_any(), r)).collect();
    let mut checks: Vec<Check> = nodes
        .iter()
        .map(|node| {
            let name = node.name_any();
            let found = of_node(node, &selector, reports.get(&name).copied());
            Check { what: format!("node {name}"), found }
        })
        .collect();
    checks.sort_by(|a, b| a.what.cmp(&b.what));
    checks
}

fn of_node(node: &Node, selector: &BTreeMap<String, String>, report: Option<&NodeEnforcement>) -> Found {
    if selector.iter().any(|(key, value)| node.labels().get(key) != Some(value)) {
        return Found::Skipped("agent.nodeSelector leaves it out: pods there are not guarded".into());
    }
    let status = node.status.as_ref();
    if !status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True")
    {
        return Found::Skipped("it is not Ready".into());
    }
    let Some(report) = report.and_then(|r| r.status.as_ref()) else {
        return Found::Wrong("it does not report; does an agent run there, and what does its log say?".into());
    };
    if report.boot_id.as_deref() != status.and_then(|s| s.node_info.as_ref()).map(|info| info.boot_id.as_str()) {
        return Found::Wrong(
            "its report is of before it was rebooted; what does the log of the agent there say?".into(),
        );
    }
    match report.conditions.iter().find(|c| c.type_ == DATA_PATH_READY) {
        Some(condition) if condition.status == "True" => Found::Well(format!(
            "enforces, {} groups on {} interfaces at present",
            report.group_count, report.interfaces
        )),
        Some(condition) => Found::Wrong(format!("traffic of its pods bypasses the rules: {}", condition.message)),
        None => Found::Wrong("it does not say whether traffic meets the rules; is its agent of this version?".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn agents(generation: i64, wanted: i32, updated: i32, ready: i32) -> DaemonSet {
        serde_json::from_value(json!({ "metadata": { "generation": generation }, "status": {
            "observedGeneration": 2, "desiredNumberScheduled": wanted, "updatedNumberScheduled": updated,
            "numberReady": ready, "currentNumberScheduled": wanted, "numberMisscheduled": 0,
        } }))
        .unwrap()
    }

    fn controller(generation: i64, available: &str) -> Deployment {
        serde_json::from_value(json!({ "metadata": { "generation": generation }, "status": {
            "observedGeneration": 2, "replicas": 2, "readyReplicas": 1,
            "conditions": [{ "type": "Available", "status": available }],
        } }))
        .unwrap()
    }

    fn node(ready: &str) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": "n1", "labels": { "pool": "a" } }, "status": {
            "conditions": [{ "type": "Ready", "status": ready }],
            "nodeInfo": {
                "bootID": "boot", "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": "",
            },
        } }))
        .unwrap()
    }

    fn report(boot: &str, data_path: &str) -> NodeEnforcement {
        serde_json::from_value(json!({
            "apiVersion": "ringfence.io/v1alpha1", "kind": "NodeEnforcement", "metadata": { "name": "n1" }, "spec": {},
            "status": { "bootID": boot, "groupCount": 2, "interfaces": 3, "conditions": [{
                "type": "DataPathReady", "status": data_path, "reason": "Test", "message": "a bridge",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }] },
        }))
        .unwrap()
    }

    fn text(found: Found) -> String {
        Check { what: "x".into(), found }.to_string()
    }

    #[test]
    fn agents_are_well_when_all_are_new_and_ready() {
        let text = |agents| text(of_agents(Some(&agents)));
        assert_eq!(text(agents(2, 3, 3, 3)), "ok       x: 3 of 3 are ready");
        assert!(text(agents(3, 3, 3, 3)).contains("not seen"));
        assert!(text(agents(2, 0, 0, 0)).contains("agent.nodeSelector"));
        assert!(text(agents(2, 3, 3, 2)).contains("2 of 3 are ready"));
        assert!(text(agents(2, 3, 1, 3)).contains("1 of 3 are up to date"));
        assert!(matches!(of_agents(None), Found::Wrong(_)));
    }

    #[test]
    fn the_controller_is_well_when_it_is_available() {
        assert_eq!(text(of_controller(Some(&controller(2, "True")))), "ok       x: 1 of 2 replicas are ready");
        assert!(matches!(of_controller(Some(&controller(3, "True"))), Found::Wrong(_)), "the status is of before");
        assert!(matches!(of_controller(Some(&controller(2, "False"))), Found::Wrong(_)));
        assert!(matches!(of_controller(None), Found::Wrong(_)));
    }

    #[test]
    fn a_node_is_well_when_it_reports_this_boot_and_nothing_passes_by() {
        let all = BTreeMap::new();
        let text = |node, report: Option<NodeEnforcement>| text(of_node(&node, &all, report.as_ref()));
        let good = report("boot", "True");
        assert_eq!(text(node("True"), Some(good.clone())), "ok       x: enforces, 2 groups on 3 interfaces at present");
        assert_eq!(text(node("False"), Some(good)), "skipped  x: it is not Ready");
        assert!(text(node("True"), None).starts_with("FAILED   x: it does not report"));
        assert!(text(node("True"), Some(report("earlier", "True"))).contains("rebooted"));
        assert!(text(node("True"), Some(report("boot", "False"))).ends_with("bypasses the rules: a bridge"));
        let mut silent = report("boot", "True");
        silent.status.as_mut().unwrap().conditions.clear();
        assert!(text(node("True"), Some(silent)).starts_with("FAILED"));
    }

    #[test]
    fn nodes_that_have_no_agent_on_purpose_are_skipped() {
        let mut agents = agents(2, 1, 1, 1);
        agents.spec = serde_json::from_value(json!({
            "selector": {}, "template": { "spec": { "containers": [], "nodeSelector": { "pool": "b" } } },
        }))
        .unwrap();
        let checks = of_nodes(Some(&agents), &[node("True")], &[]);
        assert_eq!(checks.len(), 1);
        assert!(checks[0].to_string().starts_with("skipped  node n1: agent.nodeSelector"), "{}", checks[0]);
    }
}
