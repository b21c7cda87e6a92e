//! Where Multus is a node's first configuration: which one it attaches pods to their own network by, and whether it calls our
//! plugin then.
//!
//! PURE. The plugin belongs to that configuration. Multus has it in another file, of which it reads the name or keeps a copy that
//! it renews when the file changes: <https://github.com/k8snetworkplumbingwg/multus-cni/blob/master/docs/configuration.md>.

use crate::cni::PLUGIN;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Its configuration, as far as it concerns us.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Multus {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    cluster_network: Option<PathBuf>,
    #[serde(default)]
    delegates: Vec<Network>,
}

#[derive(Debug, Default, Deserialize)]
struct Network {
    #[serde(default)]
    name: String,
    #[serde(default)]
    plugins: Vec<Value>,
}

/// Where the configuration of the pods' own network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterNetwork {
    /// In the file of this name, which is read for each pod.
    File(PathBuf),
    /// In the file that says this name of its network; there is a copy of it.
    Copy(String),
    /// Nowhere on this node, or in another folder.
    Elsewhere(String),
}

impl Multus {
    /// Reads a configuration; `None`: it is not one of Multus.
    pub fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().filter(|multus: &Self| multus.kind.starts_with("multus"))
    }

    /// Where to put our plugin. Multus may see this folder of configurations under another one, as its container does.
    pub fn cluster_network(&self, folder: &Path) -> ClusterNetwork {
        let seen = folder.strip_prefix("/").unwrap_or(folder);
        match (&self.cluster_network, self.delegates.first()) {
            (Some(path), _) => match path.file_name().filter(|_| path.parent().is_some_and(|p| p.ends_with(seen))) {
                Some(file) => ClusterNetwork::File(file.into()),
                None => ClusterNetwork::Elsewhere(path.display().to_string()),
            },
            (None, Some(network)) => ClusterNetwork::Copy(network.name.clone()),
            (None, None) => ClusterNetwork::Elsewhere("nothing".to_owned()),
        }
    }

    /// Whether its copy of that configuration has our plugin.
    pub fn calls_us(&self) -> bool {
        self.delegates.iter().flat_map(|network| &network.plugins).any(|plugin| plugin["type"] == PLUGIN)
    }

    /// Whether its copy has our plugin with this entry; what else it adds does not matter.
    pub fn calls(&self, entry: &Value) -> bool {
        let keys = || entry.as_object().into_iter().flatten();
        let plugins = self.delegates.first().into_iter().flat_map(|network| &network.plugins);
        plugins.last().is_some_and(|plugin| keys().all(|(key, value)| plugin.get(key) == Some(value)))
    }

    /// Whether it calls, or has a copy of, the configuration with this name and text.
    pub fn calls_file(&self, folder: &Path, name: &str, text: &str) -> bool {
        match self.cluster_network(folder) {
            ClusterNetwork::File(file) => file == Path::new(name),
            ClusterNetwork::Copy(network) => is_of(text, &network),
            ClusterNetwork::Elsewhere(_) => false,
        }
    }
}

/// Whether a configuration is a list of plugins for the network of this name.
pub fn is_of(text: &str, name: &str) -> bool {
    serde_json::from_str(text).is_ok_and(|network: Network| network.name == name && !network.plugins.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cluster_network(config: serde_json::Value) -> Option<ClusterNetwork> {
        Multus::read(&config.to_string()).map(|multus| multus.cluster_network(Path::new("/etc/cni/net.d")))
    }

    #[test]
    fn what_multus_writes_of_the_pods_own_network() {
        let by_name = |path: &str| cluster_network(json!({"type": "multus-shim", "clusterNetwork": path})).unwrap();
        for seen in ["/host/etc/cni/net.d", "/etc/cni/net.d"] {
            assert_eq!(by_name(&format!("{seen}/10-x.conflist")), ClusterNetwork::File("10-x.conflist".into()));
        }
        for elsewhere in ["/host/run/multus/cni/net.d/10-x.conflist", "default-network", "/"] {
            assert_eq!(by_name(elsewhere), ClusterNetwork::Elsewhere(elsewhere.to_owned()));
        }
        let copied = json!({"type": "multus", "delegates": [
            {"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"}, {"type": PLUGIN}]},
            {"name": "other", "type": "macvlan"},
        ]});
        let multus = Multus::read(&copied.to_string()).unwrap();
        assert!(multus.calls_us() && multus.calls(&json!({"type": PLUGIN})));
        assert!(!multus.calls(&json!({"type": PLUGIN, "primary": true})), "as it was before");
        assert_eq!(cluster_network(copied), Some(ClusterNetwork::Copy("cbr0".to_owned())));
        let single = json!({"type": "multus", "delegates": [{"name": "weave", "type": "weave-net"}]});
        assert!(!Multus::read(&single.to_string()).unwrap().calls_us());
        assert!(matches!(cluster_network(json!({"type": "multus"})), Some(ClusterNetwork::Elsewhere(_))));
        assert_eq!(cluster_network(json!({"type": "bridge"})), None);
        assert_eq!(cluster_network(json!({"plugins": [{"type": "multus-shim"}]})), None, "it can be chained");
    }

    #[test]
    fn a_list_has_the_name_of_its_network() {
        let list = json!({"name": "cbr0", "plugins": [{"type": "flannel"}]}).to_string();
        assert!(is_of(&list, "cbr0") && !is_of(&list, "cbr"));
        assert!(!is_of(&json!({"name": "cbr0", "type": "flannel"}).to_string(), "cbr0"), "it cannot be chained");
    }
}
