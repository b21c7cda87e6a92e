//! Objects from a cluster or from files.
//!
//! Owns connections, pages and folders. Everything that it brings is an [`Inventory`]; it interprets none of it.

use super::model::inventory::{Inventory, Named};
use super::model::manifests::{STAND_IN_NETWORKS, bring_to_life, read};
use crate::api::NodeUsage;
use crate::index::name_of;
use crate::kubevirt::VirtualMachineInstance;
use anyhow::{Context, bail};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Large enough that a thousand pods are two requests, small enough for the API server.
const PAGE: u32 = 500;
/// How long an API server may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which cluster, and which part of it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Connection {
    /// Namespace to look into; by default the context's.
    #[arg(short, long, global = true, value_name = "NAMESPACE", help_heading = "Cluster")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig to use.
    #[arg(long, global = true, value_name = "CONTEXT", help_heading = "Cluster")]
    pub context: Option<String>,
    /// Kubeconfig to use; by default the files that KUBECONFIG names, or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Cluster")]
    pub kubeconfig: Option<PathBuf>,
}

/// Manifests in the place of a cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Offline {
    /// Ask no cluster: the files of -f are all there is. Workloads count as the pods they make.
    #[arg(long)]
    pub offline: bool,
    /// Files or folders with manifests; - is standard input. Folders are read with what is below them.
    #[arg(short, long = "filename", value_name = "FILE")]
    pub filename: Vec<PathBuf>,
    /// With --offline: the networks from which pods without an address get one. By default their addresses are such as
    /// only rules for anywhere hold.
    #[arg(long, value_name = "CIDR", requires = "offline")]
    pub pod_cidr: Vec<IpNet>,
}

/// Where to look.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Source {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub connection: Connection,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub offline: Offline,
}

/// What of a cluster a command needs, beyond groups and bindings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Who could be a member: pods, interfaces, nodes and what these report.
    pub targets: bool,
    /// Services and network policies.
    pub neighbours: bool,
    /// What nodes counted.
    pub usage: bool,
}

impl Source {
    /// The objects, and the namespace that is meant if nothing else is said.
    pub async fn load(&self, wanted: Wanted) -> anyhow::Result<(Inventory, String)> {
        if self.offline.offline {
            let namespace = self.connection.namespace.clone().unwrap_or_else(|| "default".to_owned());
            return Ok((self.offline.load(&namespace)?, namespace));
        }
        if !self.offline.filename.is_empty() {
            bail!("-f goes with --offline here");
        }
        let cluster = Cluster::connect(&self.connection).await?;
        Ok((cluster.inventory(wanted).await?, cluster.namespace))
    }
}

impl Offline {
    /// The manifests, as if they were running.
    pub fn load(&self, namespace: &str) -> anyhow::Result<Inventory> {
        if self.filename.is_empty() {
            bail!("--offline needs manifests: -f FILE or -f FOLDER");
        }
        let mut inventory = manifests(&self.filename, namespace)?;
        let stand_ins = STAND_IN_NETWORKS.iter().filter_map(|network| network.parse().ok());
        let networks = if self.pod_cidr.is_empty() { stand_ins.collect() } else { self.pod_cidr.clone() };
        bring_to_life(&mut inventory, &networks)?;
        Ok(inventory)
    }
}

/// The objects in files and folders.
pub fn manifests(paths: &[PathBuf], namespace: &str) -> anyhow::Result<Inventory> {
    let mut inventory = Inventory::default();
    let mut take = |text: &str, from: &Path| {
        let before: BTreeSet<_> = inventory.groups.keys().cloned().collect();
        read(text, namespace, &mut inventory).with_context(|| format!("cannot read {}", from.display()))?;
        for new in inventory.groups.keys().filter(|name| !before.contains(name)) {
            inventory.origins.insert(new.clone(), from.display().to_string());
        }
        anyhow::Ok(())
    };
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            take(&text, path)?;
            continue;
        }
        for file in files(path)? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            take(&text, &file)?;
        }
    }
    Ok(inventory)
}

/// A file, or the manifests in a folder and below it, in a stable order.
fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = || format!("cannot read {}", path.display());
    if !std::fs::metadata(path).with_context(context)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>())
        .with_context(context)?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            found.extend(files(&entry)?);
        } else if entry.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            found.push(entry);
        }
    }
    Ok(found)
}

/// A cluster.
pub struct Cluster {
    /// How to reach it.
    pub client: Client,
    /// The namespace that is meant if nothing else is said.
    pub namespace: String,
}

impl Cluster {
    /// Finds it as `kubectl` does.
    pub async fn connect(connection: &Connection) -> anyhow::Result<Self> {
        let Connection { namespace, context, kubeconfig } = connection;
        let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
        let mut config = match kubeconfig {
            Some(file) => {
                let kubeconfig =
                    Kubeconfig::read_from(file).with_context(|| format!("cannot read {}", file.display()))?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await.context("cannot use the kubeconfig")?
            }
            None if context.is_some() => {
                Config::from_kubeconfig(&options).await.context("cannot use the kubeconfig")?
            }
            None => Config::infer().await.context("cannot find a cluster: there is no kubeconfig; see --offline")?,
        };
        // Generous: an API server that cannot be reached at all is noticed by the connection.
        config.read_timeout = Some(PATIENCE);
        let namespace = namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self { client: Client::try_from(config).context("cannot use the kubeconfig")?, namespace })
    }

    /// The objects of the whole cluster: remotes and bindings have no regard for who asks.
    pub async fn inventory(&self, wanted: Wanted) -> anyhow::Result<Inventory> {
        let mut inventory = Inventory::default();
        let notes = &mut inventory.notes;
        let (groups, malformed) = self.list(notes).await?;
        inventory.groups = groups;
        inventory.malformed_groups =
            malformed.into_iter().map(|m| (name_of(&m.metadata), (m.metadata, m.error))).collect();
        inventory.bindings = self.list(notes).await?.0;
        if wanted.targets {
            inventory.pods = self.list(notes).await?.0;
            inventory.interfaces = self.list(notes).await?.0;
            inventory.machines = self.machines(notes).await?;
            inventory.nodes = self.list_cluster(notes).await?;
            inventory.reports = self.list_cluster(notes).await?;
            let ranges: Vec<ServiceCIDR> = self.list_cluster(notes).await?;
            let cidrs = ranges.iter().flat_map(|range| &range.spec).flat_map(|spec| spec.cidrs.iter().flatten());
            inventory.service_networks = cidrs.filter_map(|cidr| cidr.parse().ok()).collect();
        }
        if wanted.usage {
            let usages: Option<Vec<NodeUsage>> = self.list_permitted().await?;
            inventory.usages = usages.filter(|usages| !usages.is_empty());
        }
        if wanted.neighbours {
            inventory.services = self.list(notes).await?.0;
            inventory.network_policies = self.list(notes).await?.0;
        }
        Ok(inventory)
    }

    /// All objects of a kind, of every namespace, or of ours where we may not look further; and those that cannot be
    /// read.
    async fn list<K>(
        &self,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<(Named<K>, Vec<kube::core::error_boundary::InvalidObject>)>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let kind = K::kind(&()).into_owned();
        let listed = match pages(Api::all(self.client.clone())).await {
            Err(error) if is_forbidden(&error) => {
                let namespace = &self.namespace;
                notes.push(format!(
                    "you may not list every {kind}: those of other namespaces than {namespace} are not seen"
                ));
                pages(Api::namespaced(self.client.clone(), namespace)).await
            }
            listed => listed,
        };
        let (mut objects, mut malformed) = (Named::new(), Vec::new());
        for DeserializeGuard(object) in listed.with_context(|| format!("cannot list {}", K::plural(&())))? {
            match object {
                Ok(object) => {
                    let object: K = object;
                    objects.insert(name_of(object.meta()), object);
                }
                Err(invalid) => {
                    notes.push(format!("{kind} {} cannot be read: {}", name_of(&invalid.metadata), invalid.error));
                    malformed.push(invalid);
                }
            }
        }
        Ok((objects, malformed))
    }

    /// The virtual machines of KubeVirt, where there is KubeVirt.
    async fn machines(&self, notes: &mut Vec<String>) -> anyhow::Result<Vec<VirtualMachineInstance>> {
        match pages(Api::all(self.client.clone())).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            Err(error) if is_forbidden(&error) => {
                notes.push(
                    "you may not list every VirtualMachineInstance: their labels are taken from their pods".to_owned(),
                );
                Ok(Vec::new())
            }
            listed => listed.context("cannot list virtualmachineinstances"),
        }
    }

    /// All objects of a kind that belongs to no namespace; none where we may not look.
    pub async fn list_cluster<K>(&self, notes: &mut Vec<String>) -> anyhow::Result<Vec<K>>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let permitted = self.list_permitted().await?;
        Ok(permitted.unwrap_or_else(|| {
            notes.push(format!("you may not list {}: what they say is not taken into account", K::plural(&())));
            Vec::new()
        }))
    }

    /// Likewise; `None` where we may not look.
    async fn list_permitted<K>(&self) -> anyhow::Result<Option<Vec<K>>>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        match pages(Api::all(self.client.clone())).await {
            Err(error) if is_forbidden(&error) => Ok(None),
            // An earlier version of Ringfence has no such kind.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Some(Vec::new())),
            listed => listed.map(Some).with_context(|| format!("cannot list {}", K::plural(&()))),
        }
    }
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

async fn pages<K>(api: Api<K>) -> Result<Vec<K>, kube::Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}
