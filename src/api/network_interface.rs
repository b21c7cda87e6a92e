//! `NetworkInterface`: an interface of a machine that Kubernetes does not run.

use super::schema;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// NetworkInterface declares an interface of a virtual machine, and the device of its node that leads to it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ringfence.io",
    version = "v1alpha1",
    kind = "NetworkInterface",
    namespaced,
    shortname = "nic",
    category = "ringfence",
    status = "NetworkInterfaceStatus",
    selectable = ".spec.nodeName",
    derive = "PartialEq",
    doc = "NetworkInterface is an interface of a machine that Kubernetes does not run: of a VM of libvirt, plain QEMU, Firecracker and the like. SecurityGroupBindings select it by its labels. Nothing but what it declares comes out of its device.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName", description = "The node it is on"),
    printcolumn(
        name = "Device",
        type_ = "string",
        json_path = ".spec.device",
        description = "The device of that node"
    ),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses", description = "Its addresses"),
    printcolumn(
        name = "Groups",
        type_ = "string",
        json_path = ".status.groups",
        description = "The groups attached; none: it is not guarded"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether its device is there, and nothing else than it declares comes out"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is ready or not"
    ),
    printcolumn(
        name = "MAC",
        type_ = "string",
        priority = 1,
        json_path = ".spec.macAddress",
        description = "Its link address"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceSpec {
    /// The node on which the machine runs. When it moves, this moves with it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// The network device of that node which leads to this interface and to nothing else: a tap, or one end of a veth pair.
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"))]
    pub device: String,
    /// The interface's link address, as the machine has it.
    #[schemars(regex(pattern = r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}$"))]
    #[x_kube(validation = Rule::new("!self.matches('^.[13579BbDdFf]')").message("is a multicast address: no interface has one of its own"))]
    pub mac_address: String,
    /// The interface's addresses. Those that are not link-local are the ones by which groups know it. Of link-local IPv6
    /// addresses it may use those listed here, and the one made of its link address.
    #[schemars(schema_with = "schema::addresses")]
    pub addresses: Vec<IpAddr>,
}

/// What is known of a NetworkInterface; written by Ringfence alone.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterfaceStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The groups attached, separated by commas, for printing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
}
