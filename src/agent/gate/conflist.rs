//! Edits a network's configuration: our plugin in, as the last of its chain, or out.
//!
//! PURE. The text is somebody else's: what is not ours stays as it is, byte for byte, unknown keys and all.

use crate::cni::PLUGIN;
use crate::cni::config::{Entry, VERSIONS};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::ops::Range;

/// Why a configuration cannot have our plugin.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unfit {
    /// Not JSON, or not of this shape.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// Chains came with 0.3.0, and we cannot know what comes after those we know.
    #[error("its cniVersion {0:?} is none of {known}", known = VERSIONS.join(", "))]
    Version(String),
    /// Nothing to come after.
    #[error("it names no plugins")]
    NoPlugins,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    cni_version: String,
}

#[derive(Deserialize)]
struct Plugin {
    #[serde(default, rename = "type")]
    kind: String,
}

/// A list with our plugin as its last one; `None`: it is that already.
pub fn with_plugin(text: &str, entry: &Entry) -> Result<Option<String>, Unfit> {
    check_version(text)?;
    let entry = json(entry)?;
    let plugins = plugins(text)?;
    let ours: Vec<bool> = plugins.iter().map(|range| is_ours(&text[range.clone()])).collect();
    let in_place = ours.iter().filter(|ours| **ours).count() == 1
        && plugins
            .last()
            .is_some_and(|last| serde_json::from_str::<Value>(&text[last.clone()]).is_ok_and(|v| v == entry));
    if in_place {
        return Ok(None);
    }
    let text = without_plugin(text)?.unwrap_or_else(|| text.to_owned());
    let last = self::plugins(&text)?.pop().ok_or(Unfit::NoPlugins)?;
    if is_ours(&text[last.clone()]) {
        return Err(Unfit::NoPlugins);
    }
    // On a line of its own if the others are.
    let line = text[..last.start].rfind('\n').map_or("", |end| &text[end..last.start]);
    let separator = if line.trim().is_empty() && !line.is_empty() { line } else { " " };
    let (before, after) = text.split_at(last.end);
    Ok(Some(format!("{before},{separator}{entry}{after}")))
}

/// A list without our plugin; `None`: it is that already.
pub fn without_plugin(text: &str) -> Result<Option<String>, Unfit> {
    let plugins = plugins(text)?;
    let ours: Vec<bool> = plugins.iter().map(|range| is_ours(&text[range.clone()])).collect();
    let Some(first) = ours.iter().position(|ours| !ours) else {
        // Nobody but us: there is nothing that it could go back to.
        return Ok(None);
    };
    let mut edited = text.to_owned();
    // From the end, so that what is still to be cut stays where it is. With each goes the comma before it.
    for i in (first + 1..plugins.len()).rev().filter(|i| ours[*i]) {
        edited.replace_range(plugins[i - 1].end..plugins[i].end, "");
    }
    edited.replace_range(plugins[0].start..plugins[first].start, "");
    Ok((edited != text).then_some(edited))
}

/// A list that has the one plugin of this configuration, and ours.
pub fn list_of(text: &str, entry: &Entry) -> Result<String, Unfit> {
    let Plugin { kind } = parse(text)?;
    if kind.is_empty() {
        return Err(Unfit::NoPlugins);
    }
    check_version(text)?;
    let config: Value = parse(text)?;
    let (version, name) = (&config["cniVersion"], &config["name"]);
    let (plugin, entry) = (text.trim(), json(entry)?);
    Ok(format!("{{\"cniVersion\": {version}, \"name\": {name}, \"plugins\": [\n{plugin},\n{entry}\n]}}\n"))
}

fn check_version(text: &str) -> Result<(), Unfit> {
    let Head { cni_version } = parse(text)?;
    if VERSIONS.contains(&&*cni_version) { Ok(()) } else { Err(Unfit::Version(cni_version)) }
}

/// Where each plugin is in the text.
fn plugins(text: &str) -> Result<Vec<Range<usize>>, Unfit> {
    let List { plugins } = parse(text)?;
    let place = |plugin: &&RawValue| {
        // A raw value is borrowed from the text, so that its address says where it is.
        let start = plugin.get().as_ptr().addr() - text.as_ptr().addr();
        start..start + plugin.get().len()
    };
    Ok(plugins.iter().map(place).collect())
}

/// Whether our plugin is in a list.
pub fn has_plugin(text: &str) -> bool {
    plugins(text).is_ok_and(|plugins| plugins.into_iter().any(|range| is_ours(&text[range])))
}

fn is_ours(plugin: &str) -> bool {
    serde_json::from_str(plugin).is_ok_and(|Plugin { kind }| kind == PLUGIN)
}

/// As it stands in a configuration.
pub fn json(entry: &Entry) -> Result<Value, Unfit> {
    serde_json::to_value(entry).map_err(|error| Unfit::Unreadable(error.to_string()))
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Unfit> {
    serde_json::from_str(text).map_err(|error| Unfit::Unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::config::OnTimeout;

    const CALICO: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "mtu": 0, "ratio": 1.00, "big": 123456789012345678901234567890,
      "ipam": {"type": "calico-ipam"},
      "policy": {"type": "k8s"}
    },
    {
      "type": "portmap",
      "snat": true,
      "capabilities": {"portMappings": true}
    },
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}
"#;
    const FLANNEL: &str = "{\n\t\"name\": \"cbr0\",\n\t\"cniVersion\": \"0.3.1\",\n\t\"plugins\": [\n\t\t{\"type\": \"flannel\", \"delegate\": {\"hairpinMode\": true}},\n\t\t{\"type\": \"portmap\"}\n\t],\n\t\"unknown\": [1, 2]\n}";
    const CILIUM: &str =
        r#"{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni","enable-debug":false}]}"#;
    const PLAIN: &str = "{\n  \"cniVersion\": \"1.0.0\", \"name\": \"mynet\", \"type\": \"bridge\", \"ipam\": {\"type\": \"host-local\"}\n}\n";

    fn entry(timeout_seconds: u64) -> Entry {
        Entry {
            plugin: PLUGIN,
            primary: true,
            socket: "/run/a.sock".into(),
            timeout_seconds,
            on_timeout: OnTimeout::Closed,
        }
    }

    fn kinds(text: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(text).unwrap();
        list["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn in_as_the_last_and_out_again_without_a_trace() {
        for original in [CALICO, FLANNEL, CILIUM] {
            let with = with_plugin(original, &entry(10)).unwrap().unwrap();
            assert_eq!(kinds(&with).last().map(String::as_str), Some(PLUGIN));
            assert_eq!(with_plugin(&with, &entry(10)), Ok(None), "once is enough");
            assert_eq!(without_plugin(&with).unwrap().unwrap(), original);
            assert_eq!(without_plugin(original), Ok(None));
            let changed = with_plugin(&with, &entry(20)).unwrap().unwrap();
            assert_eq!(changed, with.replace(":10,", ":20,"), "other settings take the place of the old ones");
        }
        let with = with_plugin(FLANNEL, &entry(10)).unwrap().unwrap();
        let added = "\n\t\t{\"type\": \"portmap\"},\n\t\t{\"onTimeout\":\"closed\",\"primary\":true,\"socket\":\"/run/a.sock\",\"timeoutSeconds\":10,\"type\":\"ringfence-cni\"}\n\t],\n";
        assert!(with.contains(added), "{with}");
    }

    #[test]
    fn whoever_comes_after_us_comes_before() {
        let ours = json(&entry(10)).unwrap();
        for plugins in [
            format!("[{{\"type\": \"a\"}}, {ours}, {{\"type\": \"b\"}}]"),
            format!("[{ours}, {{\"type\": \"a\"}}, {ours}, {{\"type\": \"b\"}}]"),
            format!("[{{\"type\": \"a\"}}, {{\"type\": \"b\"}}, {ours},{ours}]"),
            format!("[{ours}, {ours}, {{\"type\": \"a\"}}, {{\"type\": \"b\"}}]"),
        ] {
            let list = format!("{{\"cniVersion\": \"1.1.0\", \"name\": \"n\", \"plugins\": {plugins}}}");
            assert_eq!(kinds(&with_plugin(&list, &entry(10)).unwrap().unwrap()), ["a", "b", PLUGIN], "{plugins}");
            assert_eq!(kinds(&without_plugin(&list).unwrap().unwrap()), ["a", "b"], "{plugins}");
        }
    }

    #[test]
    fn a_plain_configuration_becomes_a_list() {
        let list = list_of(PLAIN, &entry(10)).unwrap();
        let value: Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&value["name"], &value["cniVersion"]), (&"mynet".into(), &"1.0.0".into()));
        assert_eq!(kinds(&list), ["bridge", PLUGIN]);
        assert_eq!(value["plugins"][0], serde_json::from_str::<Value>(PLAIN).unwrap());
    }

    #[test]
    fn what_cannot_have_us_is_left_alone() {
        assert!(matches!(with_plugin("", &entry(10)), Err(Unfit::Unreadable(_))));
        assert!(matches!(with_plugin(PLAIN, &entry(10)), Err(Unfit::Unreadable(_))));
        assert_eq!(with_plugin(&CILIUM.replace("0.3.1", "0.2.0"), &entry(10)), Err(Unfit::Version("0.2.0".into())));
        assert_eq!(with_plugin(&CILIUM.replace("0.3.1", "9.0.0"), &entry(10)), Err(Unfit::Version("9.0.0".into())));
        assert_eq!(with_plugin(r#"{"cniVersion": "1.0.0", "plugins": []}"#, &entry(10)), Err(Unfit::NoPlugins));
        let alone = format!(r#"{{"cniVersion": "1.0.0", "plugins": [{}]}}"#, json(&entry(5)).unwrap());
        assert_eq!(with_plugin(&alone, &entry(10)), Err(Unfit::NoPlugins));
    }
}
