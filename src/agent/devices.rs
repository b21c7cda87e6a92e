//! Which device leads to which pod: what the node's CNI plugins said when they attached it.
//!
//! libcni, and so containerd and CRI-O, keep each plugin's result in a file until the sandbox is deleted. Reading those covers the
//! pods that were there before the agent, and those of networks that Ringfence has no plugin in. Reads files and /sys only.

use super::attachments::Attachment;
use crate::cni::result::CniResult;
use crate::policy::NamespacedName;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where libcni keeps results, inside its folder: for the runtime, and for Multus.
pub const RESULTS: [&str; 2] = ["results", "multus/results"];

/// The node's network devices by name.
pub type Links = BTreeMap<String, Link>;

/// A network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it, never used again until the next boot.
    pub index: u32,
    /// What it is.
    pub kind: Kind,
}

/// What a device is, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One end of a pair (veth), whose other end is somewhere else.
    Pair,
    /// A pair whose two ends happen to have the same number in their namespaces, or something as plain, like a shaper.
    Plain,
    /// A bridge, an uplink, a VLAN, …: never a pod's.
    Other,
}

/// The devices there are now.
pub fn links() -> std::io::Result<Links> {
    let mut links = Links::new();
    for entry in fs::read_dir("/sys/class/net")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // It may be gone by now.
        if let Some(link) = read_link(&entry.path()) {
            links.insert(name, link);
        }
    }
    Ok(links)
}

fn read_link(folder: &Path) -> Option<Link> {
    let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u32>().ok();
    let index = number("ifindex")?;
    // The kernel names the type of all that have another device, but for pairs.
    let typed = fs::read_to_string(folder.join("uevent")).ok()?.contains("DEVTYPE=");
    let kind = match number("iflink")? {
        _ if typed || folder.join("device").exists() => Kind::Other,
        other if other == index => Kind::Plain,
        _ => Kind::Pair,
    };
    Some(Link { index, kind })
}

/// What the cache says of one interface of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    attachment: Attachment,
    /// Interfaces that are in no sandbox: the device of the pod's, and whatever else the plugins made.
    outside: BTreeSet<String>,
}

impl Attached {
    /// With the device, if it can be told among those that exist.
    fn resolve(&self, links: &Links) -> Attachment {
        let of = |kind| -> Vec<&String> {
            self.outside.iter().filter(|name| links.get(*name).is_some_and(|link| link.kind == kind)).collect()
        };
        let (pairs, plain) = (of(Kind::Pair), of(Kind::Plain));
        let device = match (pairs.as_slice(), plain.as_slice()) {
            ([one], _) | ([], [one]) => Some((*one).clone()),
            // One of several would be a guess.
            _ => None,
        };
        Attachment { device, ..self.attachment.clone() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    container_id: String,
    if_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: CniResult,
}

/// Reads one file of the cache; nothing, if it is about something else than a pod.
fn parse(text: &str) -> Result<Option<Attached>, serde_json::Error> {
    let File { kind, container_id, if_name, cni_args, result } = serde_json::from_str(text)?;
    let argument = |name: &str| cni_args.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let (Some(namespace), Some(name), "cniCacheV1") =
        (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"), kind.as_str())
    else {
        return Ok(None);
    };
    let attachment = Attachment {
        pod: NamespacedName::new(namespace, name),
        uid: argument("K8S_POD_UID").unwrap_or_default(),
        container_id,
        network: None,
        device: None,
        mac: result.mac(&if_name).map(str::to_owned),
        addresses: result.addresses().filter_map(Result::ok).collect(),
        interface: if_name,
    };
    Ok(Some(Attached { attachment, outside: result.outside().map(str::to_owned).collect() }))
}

/// The cache as last read: files that have not changed since are not read again.
pub struct Cache {
    folders: [PathBuf; 2],
    files: BTreeMap<PathBuf, (Version, Option<Attached>)>,
}

/// When a file was written, and its length.
type Version = (Option<SystemTime>, u64);

impl Cache {
    /// The cache in libcni's folder, not read yet.
    pub fn new(libcni: &Path) -> Self {
        Self { folders: RESULTS.map(|folder| libcni.join(folder)), files: BTreeMap::new() }
    }

    /// Reads what has changed. A file that cannot be read is skipped.
    pub fn read(&mut self) {
        let mut known = std::mem::take(&mut self.files);
        // No folder: no plugin has attached anything yet.
        let entries = self.folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        for entry in entries {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            let version = (metadata.modified().ok(), metadata.len());
            let attached = match known.remove(&path) {
                Some((before, attached)) if before == version => attached,
                _ => read_file(&path),
            };
            self.files.insert(path, (version, attached));
        }
    }

    /// The attachments there were then, the latest last, with their devices if those are among these.
    pub fn attachments(&self, links: &Links) -> Vec<Attachment> {
        let mut attached: Vec<(&Version, &Attached)> =
            self.files.values().filter_map(|(version, attached)| Some((version, attached.as_ref()?))).collect();
        attached.sort_by_key(|(version, _)| *version);
        attached.into_iter().map(|(_, attached)| attached.resolve(links)).collect()
    }
}

fn read_file(path: &Path) -> Option<Attached> {
    let text = fs::read_to_string(path).ok()?;
    match parse(&text) {
        Ok(attached) => attached,
        Err(error) => {
            // It is being written, or it will be said of its pod that its device is unknown.
            tracing::debug!(file = %path.display(), %error, "cannot read this result of a CNI plugin");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{Other, Pair, Plain};
    use super::*;

    fn links(list: &[(&str, Kind)]) -> Links {
        list.iter().zip(1..).map(|(&(name, kind), index)| (name.to_owned(), Link { index, kind })).collect()
    }

    fn file(interfaces: &str) -> String {
        format!(
            r#"{{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0","networkName":"pods",
            "cniArgs":[["K8S_POD_INFRA_CONTAINER_ID","c1"],["K8S_POD_UID","u1"],["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","db-0"]],
            "capabilityArgs":{{"dns":{{}}}},
            "result":{{"cniVersion":"1.0.0","dns":{{}},"interfaces":{interfaces},
            "ips":[{{"address":"10.244.1.7/24","gateway":"10.244.1.1","interface":1}},{{"address":"fd00:10:244:1::7/64","interface":1}}],
            "routes":[{{"dst":"0.0.0.0/0"}}]}}}}"#
        )
    }

    fn device(interfaces: &str, there: &[(&str, Kind)]) -> Option<String> {
        parse(&file(interfaces)).unwrap().unwrap().resolve(&links(there)).device
    }

    const POD: &str = r#"{"name":"eth0","mac":"aa:bb:cc:00:00:07","sandbox":"/run/netns/x"}"#;

    #[test]
    fn a_routed_pod() {
        let interfaces = format!(r#"[{{"name":"veth1","mac":"aa:bb:cc:00:00:01"}},{POD}]"#);
        let attached = parse(&file(&interfaces)).unwrap().unwrap().resolve(&links(&[("veth1", Pair), ("eth0", Other)]));
        assert_eq!(
            attached,
            Attachment {
                pod: NamespacedName::new("shop", "db-0"),
                uid: "u1".into(),
                container_id: "c1".into(),
                interface: "eth0".into(),
                network: None,
                device: Some("veth1".into()),
                mac: Some("aa:bb:cc:00:00:07".into()),
                addresses: ["10.244.1.7".parse().unwrap(), "fd00:10:244:1::7".parse().unwrap()].into(),
            }
        );
    }

    #[test]
    fn only_a_pair_is_a_pods_device() {
        let bridged = format!(r#"[{{"name":"cni0"}},{{"name":"veth1"}},{POD},{{"name":"bwp123"}}]"#);
        assert_eq!(device(&bridged, &[("cni0", Other), ("veth1", Pair), ("bwp123", Plain)]), Some("veth1".into()));
        assert_eq!(
            device(&bridged, &[("cni0", Other), ("veth1", Plain)]),
            Some("veth1".into()),
            "the same number twice"
        );
        assert_eq!(device(&bridged, &[("cni0", Other)]), None, "its pod is gone");
        let on_uplink = format!(r#"[{{"name":"eth0"}},{POD}]"#);
        assert_eq!(device(&on_uplink, &[("eth0", Other)]), None, "never the node's own");
        let two = format!(r#"[{{"name":"veth1"}},{{"name":"veth2"}},{POD}]"#);
        assert_eq!(device(&two, &[("veth1", Pair), ("veth2", Pair)]), None, "one of two is a guess");
    }

    #[test]
    fn what_is_no_pods_is_nothing() {
        assert_eq!(parse(r#"{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","result":{}}"#).unwrap(), None);
        assert_eq!(parse(&file("[]").replace("cniCacheV1", "cniCacheV9")).unwrap(), None);
        assert!(parse(&file("[]")[..200]).is_err());
    }
}
