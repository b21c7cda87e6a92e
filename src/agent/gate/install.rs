//! Puts the plugin in its place on the node: its program, and its entry in the network's configuration.
//!
//! Every file is replaced as a whole, by renaming a complete one over it. The runtime uses the first configuration in its
//! folder. If that is a list, the plugin is appended to it. If it is a single plugin, which cannot be chained, it stays as it
//! is, and a list of it and ours is written under a name that comes first. If that plugin is Multus, which only calls others,
//! the plugin is appended to the list by which Multus attaches pods to their own network.

use super::Places;
use super::conflist::{Unfit, json, list_of, with_plugin};
use super::multus::{ClusterNetwork, Multus, is_of};
use crate::cni::config::Entry;
use anyhow::{Context, bail};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What a runtime reads in its folder of configurations.
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];
/// The list that stands in for a single plugin: "-" comes before every digit and letter.
pub const STAND_IN: &str = "0-ringfence.conflist";

/// Puts the plugin in its place; tells whether it was not there.
pub fn install(places: &Places) -> anyhow::Result<bool> {
    // First the program: from the moment its entry is read, it is called.
    let program = install_program(places)?;
    Ok(install_entry(places)? || program)
}

fn install_program(places: &Places) -> anyhow::Result<bool> {
    let (source, target) = (&places.source, places.program());
    let wanted = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
    let mode = |path: &Path| fs::metadata(path).map(|m| m.permissions().mode() & 0o777);
    if fs::read(&target).is_ok_and(|there| there == wanted) && mode(&target).is_ok_and(|mode| mode == 0o755) {
        return Ok(false);
    }
    replace(&target, &wanted, 0o755)?;
    Ok(true)
}

fn install_entry(places: &Places) -> anyhow::Result<bool> {
    let folder = &places.conf_dir;
    let stand_in = folder.join(STAND_IN);
    let Some(active) = configurations(folder)?.into_iter().find(|path| *path != stand_in) else {
        remove_if_there(&stand_in)?;
        bail!("there is no network configuration in {} yet", folder.display());
    };
    if active.extension().is_some_and(|e| e == "conflist") {
        let changed = append(&active, &places.entry)?;
        return Ok(remove_if_there(&stand_in)? || changed);
    }
    let text = read(&active)?;
    if let Some(multus) = Multus::read(&text) {
        return install_behind(&multus, &active, places);
    }
    if active < stand_in {
        bail!("{} is a single plugin, and no list can come before it: rename it", active.display());
    }
    let list = list_of(&text, &places.entry).map_err(|error| unfit(&active, &error))?;
    if fs::read_to_string(&stand_in).is_ok_and(|there| there == list) {
        return Ok(false);
    }
    replace(&stand_in, list.as_bytes(), mode_of(&active)?)?;
    Ok(true)
}

/// Appends the plugin to what Multus calls, and tells whether it was not there.
fn install_behind(multus: &Multus, active: &Path, places: &Places) -> anyhow::Result<bool> {
    let folder = &places.conf_dir;
    let stand_in = folder.join(STAND_IN);
    // Before Multus was there, ours may have been the first list, and so the one that it calls.
    let list = fs::read_to_string(&stand_in).unwrap_or_default();
    let changed = !multus.calls_file(folder, STAND_IN, &list) && remove_if_there(&stand_in)?;
    let active = active.display();
    match multus.cluster_network(folder) {
        ClusterNetwork::File(name) => Ok(append(&folder.join(name), &places.entry)? || changed),
        ClusterNetwork::Copy(name) => {
            let lists =
                configurations(folder)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "conflist"));
            let list = lists.into_iter().find(|path| fs::read_to_string(path).is_ok_and(|text| is_of(&text, &name)));
            let Some(list) = list else {
                bail!("{active} calls a network {name:?}, and no .conflist in {} is of that name", folder.display());
            };
            let changed = append(&list, &places.entry)? || changed;
            if !multus.calls(&json(&places.entry).map_err(|error| unfit(&list, &error))?) {
                bail!("Multus has not taken the change of {} over into {active} yet", list.display());
            }
            Ok(changed)
        }
        ClusterNetwork::Elsewhere(what) => {
            bail!("{active} calls {what}, which is no file in {}: name one there as clusterNetwork", folder.display())
        }
    }
}

/// Makes the plugin the last of a list, and tells whether it was not.
fn append(path: &Path, entry: &Entry) -> anyhow::Result<bool> {
    let text = read(path)?;
    match with_plugin(&text, entry).map_err(|error| unfit(path, &error))? {
        Some(edited) => replace_unless_changed(path, &text, &edited, mode_of(path)?).map(|()| true),
        None => Ok(false),
    }
}

fn unfit(path: &Path, error: &Unfit) -> anyhow::Error {
    anyhow::anyhow!("{} cannot be chained: {error}", path.display())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The permissions of a file, for what takes its place.
pub fn mode_of(path: &Path) -> anyhow::Result<u32> {
    Ok(fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.permissions().mode() & 0o777)
}

/// The configurations in a folder, in the order in which a runtime considers them.
pub fn configurations(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    found.retain(|path| path.is_file() && path.extension().is_some_and(|e| EXTENSIONS.iter().any(|x| e == *x)));
    found.sort();
    Ok(found)
}

/// Replaces a file that somebody else may be about to replace too: then theirs stays, and we look again.
pub fn replace_unless_changed(path: &Path, before: &str, text: &str, mode: u32) -> anyhow::Result<()> {
    let draft = write_draft(path, text.as_bytes(), mode)?;
    if !fs::read_to_string(path).is_ok_and(|now| now == before) {
        remove_if_there(&draft)?;
        bail!("{} changes right now", path.display());
    }
    fs::rename(&draft, path).with_context(|| format!("cannot replace {}", path.display()))
}

/// Removes a file; tells whether there was one.
pub fn remove_if_there(path: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Where a file is prepared: in the same folder, under a name that no runtime reads.
pub fn draft_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".ringfence-draft");
    path.with_file_name(name)
}

fn replace(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let draft = write_draft(path, content, mode)?;
    fs::rename(&draft, path).with_context(|| format!("cannot replace {}", path.display()))
}

fn write_draft(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<PathBuf> {
    let draft = draft_of(path);
    let write = || {
        let mut file = fs::File::create(&draft)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        // Or a power failure may leave the name without the content.
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", draft.display()))?;
    Ok(draft)
}

/// Calls `changed` whenever a file in one of the folders may have, on a thread that ends with the process.
pub fn watch(folders: &[&Path], changed: impl Fn() + Send + 'static) -> anyhow::Result<()> {
    let inotify = inotify::init(CreateFlags::CLOEXEC)?;
    // What is complete: a file that is being written is looked at when it is closed.
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
    for &folder in folders {
        inotify::add_watch(&inotify, folder, flags).with_context(|| format!("cannot watch {}", folder.display()))?;
    }
    let wait = move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(inotify, &mut buffer);
        loop {
            match events.next() {
                // Which file it was does not matter: all of them are looked at.
                Ok(_) => changed(),
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the folders of CNI any more, will look now and then");
                    return;
                }
            }
        }
    };
    std::thread::Builder::new().name("cni-folders".into()).spawn(wait)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::remove;
    use super::*;
    use crate::cni::PLUGIN;
    use crate::cni::config::OnTimeout;
    use serde_json::{Value, json};

    struct Node(Places);

    impl Node {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("ringfence-node-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            for folder in ["bin", "net.d", "run"] {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            fs::write(root.join("plugin"), "#!program").unwrap();
            Self(Places {
                bin_dir: root.join("bin"),
                conf_dir: root.join("net.d"),
                source: root.join("plugin"),
                run_dir: root.join("run"),
                entry: Entry {
                    plugin: PLUGIN,
                    primary: true,
                    socket: "/run/x".into(),
                    timeout_seconds: 10,
                    on_timeout: OnTimeout::Closed,
                },
                wanted: true,
            })
        }

        fn write(&self, name: &str, content: &Value) {
            fs::write(self.0.conf_dir.join(name), content.to_string()).unwrap();
        }

        /// The types of the plugins that the runtime would call, and the files in both folders.
        fn state(&self) -> (Vec<String>, Vec<String>) {
            let first = configurations(&self.0.conf_dir).unwrap().into_iter().next();
            let text = first.map(|path| fs::read_to_string(path).unwrap()).unwrap_or_else(|| "{}".into());
            let config: Value = serde_json::from_str(&text).unwrap();
            let kind = |plugin: &Value| plugin["type"].as_str().unwrap_or_default().to_owned();
            let plugins = match config["plugins"].as_array() {
                Some(list) => list.iter().map(kind).collect(),
                None => vec![kind(&config)],
            };
            let folders = [&self.0.conf_dir, &self.0.bin_dir];
            let entries = folders.into_iter().flat_map(|folder| fs::read_dir(folder).unwrap());
            let mut files: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            files.sort();
            (plugins, files)
        }
    }

    impl Drop for Node {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.conf_dir.parent().unwrap());
        }
    }

    fn list(plugins: &[&str]) -> Value {
        let plugins: Vec<Value> = plugins.iter().map(|p| json!({ "type": p })).collect();
        json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": plugins })
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_list_is_extended_and_repaired_and_restored() {
        let node = Node::new("list");
        node.write("10-pods.conflist", &list(&["ptp", "portmap"]));
        node.write("20-other.conflist", &list(&["other"]));
        fs::set_permissions(node.0.conf_dir.join("10-pods.conflist"), Permissions::from_mode(0o640)).unwrap();
        assert!(install(&node.0).unwrap());
        assert!(!install(&node.0).unwrap(), "it is in place");
        let files = strings(&["10-pods.conflist", "20-other.conflist", PLUGIN]);
        assert_eq!(node.state(), (strings(&["ptp", "portmap", PLUGIN]), files.clone()));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(node.0.conf_dir.join("10-pods.conflist")), mode(node.0.program())), (0o640, 0o755));

        node.write("10-pods.conflist", &list(&["bridge"]));
        fs::write(node.0.program(), "other").unwrap();
        assert!(install(&node.0).unwrap());
        assert_eq!(node.state(), (strings(&["bridge", PLUGIN]), files));
        assert_eq!(fs::read(node.0.program()).unwrap(), b"#!program");

        // Another configuration comes first now.
        node.write("05-new.conflist", &list(&["new"]));
        assert!(install(&node.0).unwrap());
        assert_eq!(node.state().0, strings(&["new", PLUGIN]));
        remove::plugin(&node.0).unwrap();
        let files = strings(&["05-new.conflist", "10-pods.conflist", "20-other.conflist"]);
        assert_eq!(node.state(), (strings(&["new"]), files));
        assert_eq!(
            fs::read_to_string(node.0.conf_dir.join("10-pods.conflist")).unwrap(),
            list(&["bridge"]).to_string()
        );
        remove::plugin(&node.0).unwrap();
    }

    #[test]
    fn a_single_plugin_gets_a_list_that_comes_first() {
        let node = Node::new("single");
        let single = |kind: &str| json!({ "cniVersion": "0.4.0", "name": "pods", "type": kind });
        node.write("00-pods.conf", &single("flannel"));
        assert!(install(&node.0).unwrap());
        assert!(!install(&node.0).unwrap());
        assert_eq!(node.state(), (strings(&["flannel", PLUGIN]), strings(&[STAND_IN, "00-pods.conf", PLUGIN])));
        node.write("00-pods.conf", &single("other"));
        assert!(install(&node.0).unwrap());
        assert_eq!(node.state().0, strings(&["other", PLUGIN]));
        // It became a list.
        fs::remove_file(node.0.conf_dir.join("00-pods.conf")).unwrap();
        node.write("00-pods.conflist", &list(&["flannel"]));
        assert!(install(&node.0).unwrap());
        assert_eq!(node.state(), (strings(&["flannel", PLUGIN]), strings(&["00-pods.conflist", PLUGIN])));

        fs::remove_file(node.0.conf_dir.join("00-pods.conflist")).unwrap();
        node.write("00-pods.json", &single("flannel"));
        assert!(install(&node.0).unwrap());
        remove::plugin(&node.0).unwrap();
        assert_eq!(node.state(), (strings(&["flannel"]), strings(&["00-pods.json"])));
        fs::rename(node.0.conf_dir.join("00-pods.json"), node.0.conf_dir.join("!pods.json")).unwrap();
        assert!(install(&node.0).unwrap_err().to_string().contains("no list can come before it"));
    }

    #[test]
    fn behind_multus_the_list_that_it_calls_is_extended() {
        let node = Node::new("multus");
        let folder = node.0.conf_dir.clone();
        let plugins = |file: &str| {
            let list: Value = serde_json::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap();
            list["plugins"]
                .as_array()
                .unwrap()
                .iter()
                .map(|p| p["type"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        node.write("10-pods.conflist", &list(&["ptp"]));
        let path = format!("/host{}/10-pods.conflist", folder.display());
        node.write("00-multus.conf", &json!({"type": "multus-shim", "clusterNetwork": path}));
        assert!(install(&node.0).unwrap());
        assert!(!install(&node.0).unwrap());
        assert_eq!(plugins("10-pods.conflist"), ["ptp", PLUGIN]);
        assert!(!folder.join(STAND_IN).exists());

        // With a copy, it is not in place before Multus has it, and not gone either.
        let copy = |plugins: &[&str]| json!({"type": "multus", "delegates": [list(plugins)]});
        node.write("00-multus.conf", &copy(&["ptp"]));
        assert!(install(&node.0).unwrap_err().to_string().contains("has not taken the change"));
        let mut with_us = copy(&["ptp"]);
        with_us["delegates"][0] =
            serde_json::from_str(&fs::read_to_string(folder.join("10-pods.conflist")).unwrap()).unwrap();
        node.write("00-multus.conf", &with_us);
        assert!(!install(&node.0).unwrap());
        assert!(remove::plugin(&node.0).unwrap_err().to_string().contains("has not taken the change"));
        assert_eq!(plugins("10-pods.conflist"), ["ptp"]);
        assert!(node.0.program().exists(), "Multus calls it");
        node.write("00-multus.conf", &copy(&["ptp"]));
        remove::plugin(&node.0).unwrap();
        assert!(!node.0.program().exists());

        node.write("00-multus.conf", &json!({"type": "multus", "clusterNetwork": "default-network"}));
        assert!(install(&node.0).unwrap_err().to_string().contains("name one there as clusterNetwork"));
        node.write("00-multus.conf", &json!({"type": "multus", "delegates": [{"name": "else", "type": "flannel"}]}));
        assert!(install(&node.0).unwrap_err().to_string().contains("no .conflist"));
        remove::plugin(&node.0).unwrap();
    }

    #[test]
    fn a_stand_in_that_multus_calls_stays_and_loses_the_plugin_alone() {
        let node = Node::new("stand-in");
        let stand_in = node.0.conf_dir.join(STAND_IN);
        node.write("10-pods.conf", &json!({ "cniVersion": "0.4.0", "name": "pods", "type": "flannel" }));
        assert!(install(&node.0).unwrap());
        let path = format!("/host{}", stand_in.display());
        node.write("!multus.conf", &json!({"type": "multus-shim", "clusterNetwork": path}));
        assert!(!install(&node.0).unwrap());
        assert!(fs::read_to_string(&stand_in).unwrap().contains(PLUGIN));
        remove::plugin(&node.0).unwrap();
        let left = fs::read_to_string(&stand_in).unwrap();
        assert!(left.contains("flannel") && !left.contains(PLUGIN) && !node.0.program().exists());
    }

    #[test]
    fn without_a_configuration_there_is_nothing_to_chain_to() {
        let node = Node::new("nothing");
        assert!(install(&node.0).unwrap_err().to_string().contains("no network configuration"));
        node.write(STAND_IN, &list(&["gone", PLUGIN]));
        assert!(install(&node.0).is_err());
        assert_eq!(node.state().1, strings(&[PLUGIN]), "what stood in for one that is gone goes too");
    }

    #[test]
    fn changes_are_told() {
        let node = Node::new("watch");
        let (told, changes) = std::sync::mpsc::channel();
        watch(&[&node.0.conf_dir, &node.0.bin_dir], move || told.send(()).unwrap_or_default()).unwrap();
        node.write("10-pods.conflist", &list(&["ptp"]));
        changes.recv().unwrap();
        fs::write(node.0.program(), "").unwrap();
        changes.recv().unwrap();
    }
}
