//! Objects as users, the scheduler and kubelets write them.

use crate::api::{SecurityGroup, SecurityGroupBinding};
use crate::policy::NamespacedName;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// The key of `namespace/name`, or of a name in the namespace that tests use by default.
pub fn key(name: &str) -> NamespacedName {
    name.parse().unwrap_or_else(|_| NamespacedName::new("shop", name))
}

pub fn mk_pod(pod: &str, app: &str, node: Option<&str>, ips: &[&str]) -> Pod {
    let NamespacedName { namespace, name } = key(pod);
    let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    serde_json::from_value(json!({
        "metadata": { "namespace": namespace, "name": name, "uid": format!("uid-{pod}"), "labels": { "app": app } },
        "spec": { "containers": [], "nodeName": node },
        "status": { "phase": "Running", "podIPs": ips },
    }))
    .unwrap()
}

pub fn mk_group(group: &str, spec: Value) -> SecurityGroup {
    let NamespacedName { namespace, name } = key(group);
    serde_json::from_value(json!({
        "apiVersion": "ringfence.io/v1alpha1",
        "kind": "SecurityGroup",
        "metadata": { "namespace": namespace, "name": name, "generation": 1 },
        "spec": spec,
    }))
    .unwrap()
}

pub fn mk_binding(binding: &str, groups: &[&str], selector: Value) -> SecurityGroupBinding {
    let NamespacedName { namespace, name } = key(binding);
    let groups: Vec<Value> = groups.iter().map(|g| json!({ "name": g })).collect();
    serde_json::from_value(json!({
        "apiVersion": "ringfence.io/v1alpha1",
        "kind": "SecurityGroupBinding",
        "metadata": { "namespace": namespace, "name": name, "generation": 1 },
        "spec": { "securityGroups": groups, "target": { "podSelector": selector } },
    }))
    .unwrap()
}

pub fn mk_node(node: &str, boot: &str, address: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": node },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": address }, { "type": "Hostname", "address": node }],
            "nodeInfo": {
                "bootID": boot, "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": "",
            },
        },
    }))
    .unwrap()
}

/// Ingress on TCP 80 from the members of a group.
pub fn from_group(remote: &str) -> Value {
    let NamespacedName { namespace, name } = key(remote);
    json!({
        "protocol": "TCP", "ports": [80], "remote": { "securityGroup": { "namespace": namespace, "name": name } },
    })
}

/// A group that takes in TCP 80 from members of these, and lets nothing out.
pub fn allows(remotes: &[&str]) -> Value {
    json!({ "ingress": remotes.iter().map(|r| from_group(r)).collect::<Vec<_>>() })
}
