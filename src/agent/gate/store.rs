//! Attachments as files: an agent that restarts knows them, and a node that reboots has none (/run is its memory).
//!
//! One small file each, named by container and interface. Neither may contain the colon that stands between them.

use crate::agent::attachments::{Key, Record};
use anyhow::Context;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Longer names are nobody's: a runtime's ids have 64 characters.
const MAX_ID: usize = 128;

/// The files, and what they say.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    written: BTreeMap<Key, Record>,
}

impl Store {
    /// Reads what there is. What cannot be read is removed: it could only have been written in part.
    ///
    /// The interface of a sandbox whose end nobody told us of is gone, and so is the attachment.
    pub fn open(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let mut written = BTreeMap::new();
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
            match record.filter(|r| path == folder.join(file_name(&r.attachment.key())) && may_exist(r)) {
                Some(record) => drop(written.insert(record.attachment.key(), record)),
                None => {
                    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
                }
            }
        }
        Ok(Self { folder, written })
    }

    /// What the files say.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        self.written.values().cloned()
    }

    /// Writes, and removes, until the files say this.
    pub fn save(&mut self, records: &BTreeMap<Key, Record>) -> anyhow::Result<()> {
        for (key, record) in records {
            if self.written.get(key) == Some(record) {
                continue;
            }
            let path = self.folder.join(file_name(key));
            // Renamed when it is complete. The name of the draft is of no attachment.
            let draft = self.folder.join("draft");
            let text = serde_json::to_vec(record)?;
            fs::write(&draft, text)
                .and_then(|()| fs::rename(&draft, &path))
                .with_context(|| path.display().to_string())?;
            self.written.insert(key.clone(), record.clone());
        }
        let gone: Vec<Key> = self.written.keys().filter(|key| !records.contains_key(key)).cloned().collect();
        for key in gone {
            let path = self.folder.join(file_name(&key));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| path.display().to_string());
                }
                _ => drop(self.written.remove(&key)),
            }
        }
        Ok(())
    }
}

/// Whether these are what CNI takes for a container and an interface, and so can be a file's name.
pub fn is_valid(key: &Key) -> bool {
    let Key { container_id: id, interface } = key;
    let id_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let interface_char = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
    id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.len() <= MAX_ID
        && id.chars().all(id_char)
        && (1..=15).contains(&interface.len())
        && !matches!(&**interface, "." | "..")
        && interface.chars().all(interface_char)
}

fn file_name(key: &Key) -> String {
    format!("{}:{}", key.container_id, key.interface)
}

fn may_exist(record: &Record) -> bool {
    let device = record.attachment.device.as_ref();
    record.released || device.is_none_or(|device| Path::new("/sys/class/net").join(device).exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::attachments::{Attachment, Attachments};
    use crate::policy::NamespacedName;

    fn attachment(container: &str, device: Option<&str>) -> Attachment {
        Attachment {
            pod: NamespacedName::new("shop", "a"),
            uid: container.into(),
            container_id: container.into(),
            interface: "eth0".into(),
            network: None,
            device: device.map(Into::into),
            mac: Some("02:00:00:00:00:01".into()),
            addresses: ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
        }
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart() {
        let folder = tempfile("store");
        let mut attachments = Attachments::default();
        attachments.attach(attachment("c1", Some("lo")));
        attachments.attach(attachment("c2", None));
        attachments.attach(attachment("gone", Some("no-such-device")));
        let mut store = Store::open(folder.clone()).unwrap();
        store.save(attachments.records()).unwrap();
        attachments.release(&attachment("c2", None).key(), None);
        store.save(attachments.records()).unwrap();
        fs::write(folder.join("c4:eth0"), "{\"half").unwrap();
        fs::write(folder.join("draft"), "").unwrap();

        let mut store = Store::open(folder.clone()).unwrap();
        let mut expected = attachments.records().clone();
        expected.remove(&attachment("gone", None).key());
        let restored = Attachments::restore(store.records());
        assert_eq!(*restored.records(), expected);
        store.save(&BTreeMap::new()).unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "what could not be read is gone too");
        fs::remove_dir(folder).unwrap();
    }

    #[test]
    fn only_what_can_be_a_name_is_one() {
        let key =
            |container: &str, interface: &str| Key { container_id: container.into(), interface: interface.into() };
        assert!(is_valid(&key("0a-B_.9", "net1.5")));
        for (container, interface) in [
            ("", "eth0"),
            ("../x", "eth0"),
            (".x", "eth0"),
            ("a:b", "eth0"),
            ("a", ""),
            ("a", ".."),
            ("a", "a/b"),
            ("a", "a:b"),
            ("a", "sixteen-letters!"),
        ] {
            assert!(!is_valid(&key(container, interface)), "{container} {interface}");
        }
        assert!(!is_valid(&key(&"x".repeat(129), "eth0")));
    }

    fn tempfile(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ringfence-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }
}
