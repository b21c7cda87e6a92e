//! `NodeEnforcement`: what one node has in its kernel. Written by that node's agent, read by the controller.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// NodeEnforcement has the name of its node; all it says is in its status.
#[derive(CustomResource, JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ringfence.io",
    version = "v1alpha1",
    kind = "NodeEnforcement",
    status = "NodeEnforcementStatus",
    derive = "PartialEq",
    doc = "NodeEnforcement says what one node, whose name it bears, has committed to its kernel. Written by that node's agent; not meant to be edited.",
    printcolumn(
        name = "Groups",
        type_ = "integer",
        json_path = ".status.groupCount",
        description = "Groups attached to interfaces of the node"
    ),
    printcolumn(
        name = "Interfaces",
        type_ = "integer",
        json_path = ".status.interfaces",
        description = "Guarded interfaces of the node"
    ),
    printcolumn(
        name = "DataPath",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"DataPathReady\")].status",
        description = "Whether traffic of the node's pods passes the hooks"
    ),
    printcolumn(
        name = "Gate",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"GateReady\")].status",
        description = "Whether new pods wait until their rules are in the kernel"
    ),
    printcolumn(
        name = "OwnAddresses",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"OwnAddressesOnly\")].status",
        description = "Whether the node's pods send with their own addresses only"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeEnforcementSpec {}

/// What a node has in its kernel. Digests are order-free sums over the addresses, so that both sides can compute them alone.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEnforcementStatus {
    /// The boot of the node whose kernel this speaks of: a rebooted kernel is empty until its agent says otherwise.
    #[serde(default, rename = "bootID", skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Groups attached to interfaces of the node, counted.
    #[serde(default)]
    pub group_count: i64,
    /// Guarded interfaces of the node, counted.
    #[serde(default)]
    pub interfaces: i64,
    /// Groups attached to interfaces of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub groups: Vec<EnforcedGroup>,
    /// Groups that rules on the node name as their remote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub remotes: Vec<EnforcedRemote>,
    /// Bindings that select interfaces of the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub bindings: Vec<EnforcedBinding>,
    /// Groups whose current revision the kernel refused; their last good revision is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub failures: Vec<EnforcementFailure>,
    /// Guarded pods whose addresses the node knows better than their status says: new ones, and ones whose network was taken
    /// down already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub attachments: Vec<PodAttachment>,
    /// NetworkInterfaces of the node, and how it is with their devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub network_interfaces: Vec<ReportedInterface>,
    /// Attachments of pods to secondary networks that bindings select, and whether rules reach them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub networks: Vec<ReportedAttachment>,
    /// DataPathReady, GateReady and OwnAddressesOnly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A group in a node's kernel, attached to at least one interface there.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnforcedGroup {
    /// Namespace of the group.
    pub namespace: String,
    /// Name of the group.
    pub name: String,
    /// UID of the group; absent if the group is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Generation of the rules in the kernel; 0 if the group is missing.
    #[serde(default)]
    pub generation: i64,
    /// Digest of the addresses on this node to which the group is attached.
    pub digest: String,
}

/// A group whose members' addresses are in a node's kernel because rules there name it.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnforcedRemote {
    /// Namespace of the group.
    pub namespace: String,
    /// Name of the group.
    pub name: String,
    /// Addresses in the kernel's set, counted.
    pub addresses: i64,
    /// Digest of those addresses.
    pub digest: String,
}

/// A binding in a node's kernel.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnforcedBinding {
    /// Namespace of the binding.
    pub namespace: String,
    /// Name of the binding.
    pub name: String,
    /// UID of the binding.
    pub uid: String,
    /// Generation of the binding.
    pub generation: i64,
    /// Digest of the addresses on this node that the binding selects.
    pub digest: String,
}

/// A group whose current revision the node could not commit.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnforcementFailure {
    /// Namespace of the group.
    pub namespace: String,
    /// Name of the group.
    pub name: String,
    /// What the kernel or the compiler said.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// How it is with the device of a NetworkInterface.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedInterface {
    /// Namespace of the NetworkInterface.
    pub namespace: String,
    /// Name of the NetworkInterface.
    pub name: String,
    /// UID of the NetworkInterface.
    pub uid: String,
    /// Generation of the NetworkInterface.
    pub generation: i64,
    /// How it is, in a word.
    pub state: DeviceState,
    /// How it is, in a sentence.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// How it is with the device of a NetworkInterface.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DeviceState {
    /// Nothing but what is declared comes out of it.
    Watched,
    /// It is not there, or not yet.
    DeviceNotFound,
    /// It leads to something else.
    DeviceInUse,
    /// It is none that can lead to one machine.
    DeviceUnsuitable,
    /// It is a port of a bridge that hands no packets to the rules.
    BridgeNotFiltered,
    /// It is a port of such a bridge, and passes nothing from and to its other ports.
    Closed,
    /// The node lets everyone send with any address.
    NotWatched,
    /// Something that an agent of another version says.
    #[serde(other)]
    Unknown,
}

impl DeviceState {
    /// As the reason of a condition.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Watched => "Watched",
            Self::DeviceNotFound => "DeviceNotFound",
            Self::DeviceInUse => "DeviceInUse",
            Self::DeviceUnsuitable => "DeviceUnsuitable",
            Self::BridgeNotFiltered => "BridgeNotFiltered",
            Self::Closed => "Closed",
            Self::NotWatched => "NotWatched",
            Self::Unknown => "Unknown",
        }
    }
}

/// The addresses of a pod, whatever its status says.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAttachment {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod, as its node knows it.
    pub uid: String,
    /// All of its addresses; none once its network was taken down.
    #[serde(default)]
    #[schemars(with = "Vec<String>", extend("x-kubernetes-list-type" = "atomic"))]
    pub addresses: Vec<std::net::IpAddr>,
}

/// How a pod is attached to a secondary network.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportedAttachment {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod, as its node knows it.
    pub uid: String,
    /// The network, as namespace/name of its NetworkAttachmentDefinition.
    pub network: String,
    /// How it is, in a word.
    pub state: AttachmentState,
    /// How it is, in a sentence.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The addresses of the pod there, if rules reach it.
    #[serde(default)]
    #[schemars(with = "Vec<String>", extend("x-kubernetes-list-type" = "atomic"))]
    pub addresses: Vec<std::net::IpAddr>,
}

/// How a pod is attached to a secondary network.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AttachmentState {
    /// Rules reach it.
    Guarded,
    /// Nobody has said how it is attached, or not yet.
    NotFound,
    /// What passes it passes no rules.
    Bypassing,
    /// What its bridge does not hand to the rules does not pass.
    Closed,
    /// The network gives it no address.
    AddressUnknown,
    /// Something that an agent of another version says.
    #[serde(other)]
    Unknown,
}
