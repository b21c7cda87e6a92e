//! `ConnectionHandover`: the TCP connections of a machine that left a node. Written by that node's agent; the controller says
//! which node it is for.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// So many connections of a machine go with it, at most: with the longest addresses, an object is not larger than a default etcd
/// takes.
pub const MAX_CONNECTIONS: usize = 7_000;

/// ConnectionHandover lives for a minute.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ringfence.io",
    version = "v1alpha1",
    kind = "ConnectionHandover",
    plural = "connectionhandovers",
    selectable = ".spec.toNode",
    derive = "PartialEq",
    validation = Rule::new("has(self.spec.networkInterface) != has(self.spec.virtualMachineInstance)").message("connections are those of one machine: write networkInterface or virtualMachineInstance"),
    doc = "ConnectionHandover tells the node that a machine moved to which TCP connections it has, and who began them: that node judges them as if it had seen their beginning. Written by the agent of the node that the machine left, and deleted a minute later; not meant to be edited.",
    printcolumn(
        name = "Interface",
        type_ = "string",
        json_path = ".spec.networkInterface",
        description = "Of which NetworkInterface"
    ),
    printcolumn(
        name = "Machine",
        type_ = "string",
        json_path = ".spec.virtualMachineInstance",
        description = "Of which VirtualMachineInstance, by its uid"
    ),
    printcolumn(name = "From", type_ = "string", json_path = ".spec.nodeName", description = "The node that it left"),
    printcolumn(name = "To", type_ = "string", json_path = ".spec.toNode", description = "The node that it went to"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionHandoverSpec {
    /// The node that the machine left.
    pub node_name: String,
    /// Namespace of the NetworkInterface whose device was there, or of the VirtualMachineInstance that ran there.
    pub namespace: String,
    /// Name of the NetworkInterface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_interface: Option<String>,
    /// The uid of the VirtualMachineInstance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine_instance: Option<String>,
    /// The node that it went to. Absent: nobody has said so yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_node: Option<String>,
    /// Its established TCP connections, as the machine sees them.
    #[schemars(length(max = 7000), extend("x-kubernetes-list-type" = "atomic"))]
    pub connections: Vec<HandedConnection>,
}

/// One TCP connection.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandedConnection {
    /// Who began it: ADDRESS:PORT, or [ADDRESS]:PORT.
    #[schemars(length(max = 64))]
    pub source: String,
    /// With whom, likewise.
    #[schemars(length(max = 64))]
    pub destination: String,
    /// The backend that answers it, likewise, if it is with a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub backend: Option<String>,
}
