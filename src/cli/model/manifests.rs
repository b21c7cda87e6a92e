//! Manifests as the API server would read them: defaults filled in, unknown fields refused, workloads as the pods they
//! make.
//!
//! PURE: text in, objects out. Knows no folder and no cluster.

use super::inventory::Inventory;
use crate::api::{NetworkInterface, SecurityGroup, SecurityGroupBinding, Target, default_egress};
use crate::index::{Index, SelectorKind, name_of};
use crate::policy::{NamespacedName, parse_group};
use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What no pod has in a real cluster, and what "anywhere" holds: addresses of pods of which only a manifest is known.
pub const STAND_IN_NETWORKS: [&str; 2] = ["240.0.0.0/4", "100::/64"];

/// Takes in the documents of one file. Objects without a namespace are of the given one.
pub fn read(text: &str, namespace: &str, into: &mut Inventory) -> anyhow::Result<()> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("this is no YAML")?;
    documents.into_iter().try_for_each(|document| take(document, namespace, into))
}

fn take(mut document: Value, namespace: &str, into: &mut Inventory) -> anyhow::Result<()> {
    if document.is_null() {
        return Ok(());
    }
    let kind = document["kind"].as_str().unwrap_or_default().to_owned();
    if kind == "List" {
        let items = document["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
        return items.into_iter().try_for_each(|item| take(item, namespace, into));
    }
    let ours = document["apiVersion"].as_str().is_some_and(|version| version.starts_with("ringfence.io/"));
    if document["metadata"]["namespace"].is_null() && document["metadata"].is_object() {
        document["metadata"]["namespace"] = json!(namespace);
    }
    let name = format!("{kind} {}", document["metadata"]["name"].as_str().unwrap_or("without a name"));
    match (kind.as_str(), ours) {
        ("SecurityGroup", true) => {
            // The API server writes the default, so that everyone can see it.
            let spec = document["spec"].as_object_mut().with_context(|| format!("{name}: it has no spec"))?;
            if spec.get("egress").is_none_or(Value::is_null) {
                spec.insert("egress".into(), default_egress());
            }
            let group: SecurityGroup = strict(document, &name)?;
            let key = name_of(&group.metadata);
            if let Err(errors) = parse_group(&key.namespace, &group.spec) {
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                bail!("{name}: {}", errors.join("; "));
            }
            into.groups.insert(key, group);
        }
        ("SecurityGroupBinding", true) => {
            let binding: SecurityGroupBinding = strict(document, &name)?;
            into.bindings.insert(name_of(&binding.metadata), binding);
        }
        ("NetworkInterface", true) => {
            let interface: NetworkInterface = strict(document, &name)?;
            into.interfaces.insert(name_of(&interface.metadata), interface);
        }
        ("Service", _) => {
            let service: k8s_openapi::api::core::v1::Service = lenient(document, &name)?;
            into.services.insert(name_of(&service.metadata), service);
        }
        ("NetworkPolicy", _) => {
            let policy: k8s_openapi::api::networking::v1::NetworkPolicy = lenient(document, &name)?;
            into.network_policies.insert(name_of(&policy.metadata), policy);
        }
        ("Pod", _) => {
            let pod: Pod = lenient(document, &name)?;
            into.pods.insert(name_of(&pod.metadata), pod);
        }
        ("Deployment" | "ReplicaSet" | "StatefulSet" | "ReplicationController" | "DaemonSet" | "Job", _) => {
            workload(&document["spec"], &document["metadata"], &name, into)?;
        }
        ("CronJob", _) => workload(&document["spec"]["jobTemplate"]["spec"], &document["metadata"], &name, into)?,
        _ => {}
    }
    Ok(())
}

/// The pods that a workload makes, as many as it asks for, one at least.
fn workload(spec: &Value, metadata: &Value, name: &str, into: &mut Inventory) -> anyhow::Result<()> {
    let replicas = spec["replicas"].as_u64().unwrap_or(1).clamp(1, 10_000);
    let mut pod = spec["template"].clone();
    ensure!(pod.is_object(), "{name}: it has no template for pods");
    for replica in 0..replicas {
        pod["metadata"]["name"] = json!(format!("{}-{replica}", metadata["name"].as_str().unwrap_or_default()));
        pod["metadata"]["namespace"] = metadata["namespace"].clone();
        let pod: Pod = lenient(pod.clone(), name)?;
        into.pods.insert(name_of(&pod.metadata), pod);
    }
    Ok(())
}

fn lenient<K: DeserializeOwned>(document: Value, name: &str) -> anyhow::Result<K> {
    serde_json::from_value(document).with_context(|| name.to_owned())
}

/// Reads an object, and refuses fields that it does not have: what is misspelt would be taken for absent, which may
/// mean "all".
fn strict<K: DeserializeOwned + Serialize>(document: Value, name: &str) -> anyhow::Result<K> {
    let object: K = lenient(document.clone(), name)?;
    let read = serde_json::to_value(&object)?;
    match unknown(&document["spec"], &read["spec"], "spec") {
        Some(field) => bail!("{name}: there is no field {field}"),
        None => Ok(object),
    }
}

fn unknown(given: &Value, read: &Value, path: &str) -> Option<String> {
    match given {
        Value::Object(fields) => fields.iter().filter(|(_, value)| !is_nothing(value)).find_map(|(field, value)| {
            let path = format!("{path}.{field}");
            read.get(field).map_or(Some(path.clone()), |read| unknown(value, read, &path))
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(i, item)| read.get(i).and_then(|read| unknown(item, read, &format!("{path}[{i}]")))),
        _ => None,
    }
}

/// What need not be written down when it is read.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(|o| o.is_empty())
}

/// Makes of manifests what could be running: every pod gets an address of each network, and a binding that selects
/// nothing gets a stand-in to select.
pub fn bring_to_life(inventory: &mut Inventory, networks: &[IpNet]) -> anyhow::Result<()> {
    // The first address of an IPv6 network is every router's.
    let hosts = |network: &IpNet| {
        network.hosts().filter({
            let first = network.network();
            move |host| *host != first
        })
    };
    let mut hosts = networks.iter().map(hosts).collect::<Vec<_>>();
    let mut addresses = || -> anyhow::Result<Vec<IpAddr>> {
        let next = hosts.iter_mut().map(Iterator::next).collect::<Option<Vec<_>>>();
        next.context("there are more pods than addresses; give --pod-cidr with shorter prefixes")
    };
    for pod in inventory.pods.values_mut() {
        give_addresses(pod, &mut addresses)?;
    }
    let index = inventory.index();
    let mut stand_ins = Vec::new();
    for binding in inventory.bindings.values() {
        let key = name_of(&binding.metadata);
        if let Some(stand_in) = stand_in(&index, &key, &binding.spec.target) {
            stand_ins.push(stand_in);
        }
    }
    for mut pod in stand_ins {
        give_addresses(&mut pod, &mut addresses)?;
        inventory.pods.insert(name_of(&pod.metadata), pod);
    }
    Ok(())
}

fn give_addresses(pod: &mut Pod, next: &mut impl FnMut() -> anyhow::Result<Vec<IpAddr>>) -> anyhow::Result<()> {
    let status = pod.status.get_or_insert_with(PodStatus::default);
    if status.pod_ips.as_ref().is_none_or(Vec::is_empty) {
        status.pod_ips = Some(next()?.into_iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    }
    Ok(())
}

/// The simplest pod that a binding selects, if it selects nothing and there is such a one.
fn stand_in(index: &Index, binding: &NamespacedName, target: &Target) -> Option<Pod> {
    let Target::PodSelector(selector) = target else { return None };
    if index.targets(binding).next().is_some() {
        return None;
    }
    let labels = labels(selector);
    let text: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let name = if text.is_empty() { "any pod".to_owned() } else { text.join(",") };
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: Some(binding.namespace.clone()),
        labels: Some(labels),
        ..ObjectMeta::default()
    };
    let pod = Pod { metadata, ..Pod::default() };
    let (kind, selector) = index.binding(binding)?.selector.clone()?;
    let matches = kube::core::SelectorExt::matches(&selector, pod.metadata.labels.as_ref()?);
    (kind == SelectorKind::Pod && matches).then_some(pod)
}

/// Labels that a selector asks for.
fn labels(selector: &LabelSelector) -> BTreeMap<String, String> {
    let mut labels = selector.match_labels.clone().unwrap_or_default();
    for expression in selector.match_expressions.iter().flatten() {
        let first = expression.values.iter().flatten().next();
        match (expression.operator.as_str(), first) {
            ("In", Some(value)) => labels.entry(expression.key.clone()).or_insert_with(|| value.clone()),
            ("Exists", _) => labels.entry(expression.key.clone()).or_default(),
            _ => continue,
        };
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(text: &str) -> anyhow::Result<Inventory> {
        let mut inventory = Inventory::default();
        read(text, "shop", &mut inventory)?;
        Ok(inventory)
    }

    fn error(text: &str) -> String {
        format!("{:#}", inventory(text).unwrap_err())
    }

    const GROUP: &str = "apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {name: web}\n";

    #[test]
    fn the_api_servers_default_is_filled_in() {
        let of = |spec: &str| {
            let inventory = inventory(&format!("{GROUP}{spec}")).unwrap();
            inventory.groups[&NamespacedName::new("shop", "web")].spec.clone()
        };
        assert_eq!(of("spec: {description: x}").egress.len(), 1);
        assert_eq!(of("spec: {egress: null}").egress.len(), 1);
        assert_eq!(of("spec: {egress: []}").egress.len(), 0, "written out, it means nothing");
    }

    #[test]
    fn what_the_api_server_refuses_is_refused() {
        let typo = "spec: {ingress: [{protocol: TCP, port: 22, remote: {cidrs: [10.0.0.0/8]}}]}";
        assert!(error(&format!("{GROUP}{typo}")).contains("there is no field spec.ingress[0].port"));
        let bits = "spec: {ingress: [{protocol: TCP, ports: [22], remote: {cidrs: [10.1.0.0/8]}}]}";
        assert!(error(&format!("{GROUP}{bits}")).contains("host bits"));
        assert!(error(&format!("{GROUP}spec: 3")).contains("no spec"));
        assert!(error("a: b: c").contains("YAML"));
    }

    #[test]
    fn workloads_are_the_pods_they_make() {
        let text = "
kind: List
items:
- {kind: Deployment, metadata: {name: web}, spec: {replicas: 3, template: {metadata: {labels: {app: web}}}}}
- {kind: StatefulSet, metadata: {name: db, namespace: data}, spec: {template: {metadata: {labels: {app: db}}}}}
- {kind: CronJob, metadata: {name: job}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {a: b}}}}}}}
- {kind: ConfigMap, metadata: {name: nothing-to-us}}
---
";
        let mut inventory = inventory(text).unwrap();
        bring_to_life(&mut inventory, &["240.0.0.0/4".parse().unwrap(), "100::/64".parse().unwrap()]).unwrap();
        let names: Vec<String> = inventory.pods.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["data/db-0", "shop/job-0", "shop/web-0", "shop/web-1", "shop/web-2"]);
        let index = inventory.index();
        let addresses: std::collections::BTreeSet<IpAddr> = index.pods().flat_map(|pod| index.addresses(pod)).collect();
        assert_eq!(addresses.len(), 10, "one of each family for each pod");
    }

    #[test]
    fn a_binding_that_selects_nothing_gets_a_stand_in() {
        let binding = |name: &str, selector: &str| {
            format!(
                "---\napiVersion: ringfence.io/v1alpha1\nkind: SecurityGroupBinding\nmetadata: {{name: {name}}}\n\
                 spec: {{securityGroups: [{{name: g}}], target: {{podSelector: {selector}}}}}\n"
            )
        };
        let text = [
            binding("a", "{matchLabels: {tier: db}}"),
            binding("b", "{matchExpressions: [{key: x, operator: In, values: [v, w]}, {key: e, operator: Exists}]}"),
            binding("c", "{matchExpressions: [{key: x, operator: DoesNotExist}, {key: x, operator: Exists}]}"),
        ];
        let mut inventory = inventory(&text.concat()).unwrap();
        bring_to_life(&mut inventory, &["240.0.0.0/4".parse().unwrap()]).unwrap();
        let names: Vec<&str> = inventory.pods.keys().map(|name| name.name.as_str()).collect();
        assert_eq!(names, ["e=,x=v", "tier=db"], "c can select nothing at all");
        let index = inventory.index();
        assert_eq!(index.targets(&NamespacedName::new("shop", "a")).count(), 1);
    }
}
