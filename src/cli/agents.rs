//! Asks the agents of nodes, through the API server.
//!
//! Owns: how an agent is found and reached. Whoever may forward ports of its pod may ask it, as [`crate::observe`] says.

use crate::observe::{PORT_NAME, Request, Said};
use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Portforwarder};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, Lines};

/// Which pods they are, among those of Ringfence's namespace.
const SELECTOR: &str = "app.kubernetes.io/component=agent";
/// How long one may be silent: it says something each twenty seconds.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long it may take to reach one, and then to hear its first word, for which it may have to compare a table.
pub const SOON: Duration = Duration::from_secs(10);

/// Where Ringfence is.
#[derive(Clone, Debug, clap::Args)]
pub struct System {
    /// The namespace in which Ringfence's agents run.
    #[arg(long, value_name = "NAMESPACE", default_value = "ringfence-system", help_heading = "Cluster")]
    pub ringfence_namespace: String,
}

/// The agents of a cluster.
pub struct Agents {
    pods: Api<Pod>,
    /// By node: the pod and its port.
    by_node: BTreeMap<String, (String, u16)>,
}

impl Agents {
    /// Finds those that run.
    pub async fn find(client: Client, system: &System) -> anyhow::Result<Self> {
        let namespace = &system.ringfence_namespace;
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let listed = pods.list(&ListParams::default().labels(SELECTOR)).await;
        let listed = listed.with_context(|| format!("cannot list Ringfence's agents in namespace {namespace}"))?;
        let by_node: BTreeMap<_, _> = listed.items.iter().filter_map(place).collect();
        if by_node.is_empty() {
            bail!("no agent that can be asked runs in namespace {namespace}; is it --ringfence-namespace?");
        }
        Ok(Self { pods, by_node })
    }

    /// The nodes on which they run.
    pub fn nodes(&self) -> impl Iterator<Item = &String> {
        self.by_node.keys()
    }

    /// Asks the one of a node.
    pub async fn ask(&self, node: &str, request: &Request) -> anyhow::Result<Answer> {
        let (pod, port) = self.by_node.get(node).context("no agent runs there")?;
        let ask = async {
            let mut forwarder = self.pods.portforward(pod, &[*port]).await.with_context(|| {
                format!("cannot forward a port of pod {pod}; that takes get and create of pods/portforward there")
            })?;
            let mut stream = forwarder.take_stream(*port).context("the port is not forwarded")?;
            let mut line = serde_json::to_vec(request)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            anyhow::Ok(Answer { lines: BufReader::new(stream).lines(), forwarder, port: *port })
        };
        match tokio::time::timeout(SOON, ask).await {
            Ok(answer) => answer,
            Err(_) => bail!("its agent cannot be reached within {} s", SOON.as_secs()),
        }
    }
}

/// An answer, line by line.
pub struct Answer {
    lines: Lines<BufReader<DuplexStream>>,
    forwarder: Portforwarder,
    port: u16,
}

impl Answer {
    /// The next line; `None`: that was all.
    pub async fn next(&mut self) -> anyhow::Result<Option<Said>> {
        loop {
            let line = match tokio::time::timeout(PATIENCE, self.lines.next_line()).await {
                Ok(line) => line?,
                Err(_) => bail!("its agent does not answer"),
            };
            match line {
                Some(line) if line.is_empty() => {}
                Some(line) => match serde_json::from_str(&line).context("its agent is of another version")? {
                    Said::Problem(problem) => bail!(problem),
                    said => return Ok(Some(said)),
                },
                None => {
                    // What was in the way at the other end comes by a channel of its own.
                    if let Some(error) = self.forwarder.take_error(self.port)
                        && let Ok(Some(error)) = tokio::time::timeout(Duration::from_secs(1), error).await
                    {
                        bail!(error);
                    }
                    return Ok(None);
                }
            }
        }
    }
}

fn place(pod: &Pod) -> Option<(String, (String, u16))> {
    let spec = pod.spec.as_ref()?;
    let running = pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
    let mut ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(PORT_NAME))?.container_port;
    let port = u16::try_from(port).ok()?;
    running.then_some((spec.node_name.clone()?, (pod.metadata.name.clone()?, port)))
}
