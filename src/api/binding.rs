//! `SecurityGroupBinding`: attaches groups to targets of its own namespace.

use super::{NodeCount, schema};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// SecurityGroupBinding attaches SecurityGroups to the targets it selects in its own namespace.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ringfence.io",
    version = "v1alpha1",
    kind = "SecurityGroupBinding",
    namespaced,
    shortname = "sgb",
    category = "ringfence",
    status = "SecurityGroupBindingStatus",
    derive = "PartialEq",
    doc = "SecurityGroupBinding attaches SecurityGroups to the pods or network interfaces it selects in its own namespace. One that any binding selects is guarded: only what a rule of one of its groups allows may pass, in each direction.",
    printcolumn(name = "Groups", type_ = "string", json_path = ".status.groups", description = "The groups attached"),
    printcolumn(
        name = "Targets",
        type_ = "integer",
        json_path = ".status.targets",
        description = "Interfaces selected"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.nodes.summary",
        description = "Nodes that have this revision in their kernel, of those concerned"
    ),
    printcolumn(
        name = "Enforced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Enforced\")].status",
        description = "Whether every node concerned has it"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Enforced\")].reason",
        description = "Why it is enforced or not"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.networks) || !has(self.target.networkInterfaceSelector)").message("networks are those of pods and virtual machines; a NetworkInterface is one interface of its own: leave networks out")
)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupBindingSpec {
    /// The groups to attach, 1 to 16, of this namespace. Their rules add up. A missing group adds nothing, and the target stays guarded.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub security_groups: Vec<LocalGroupReference>,
    /// What the groups are attached to: exactly one kind of target.
    pub target: Target,
    /// The secondary networks of the targets that the groups are for, by their NetworkAttachmentDefinitions: name, or namespace/name. Absent: the network that Kubernetes gives them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(max = 317), regex(pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub networks: Option<Vec<String>>,
}

/// LocalGroupReference names a SecurityGroup of the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalGroupReference {
    /// Name of the SecurityGroup.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// Target says what a binding selects: exactly one of its fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(with = "TargetSchema")]
pub enum Target {
    /// Pods of the namespace of the binding.
    PodSelector(LabelSelector),
    /// KubeVirt's VirtualMachineInstances of the namespace of the binding.
    VirtualMachineSelector(LabelSelector),
    /// NetworkInterfaces of the namespace of the binding.
    NetworkInterfaceSelector(LabelSelector),
}

/// What a binding selects: exactly one kind of target.
// The schema of `Target`, for messages better than an enum's.
#[derive(KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.podSelector), has(self.virtualMachineSelector), has(self.networkInterfaceSelector)].filter(given, given).size() == 1").message("a target is exactly one kind of thing to select: write podSelector ({} for every pod of the namespace), virtualMachineSelector, or networkInterfaceSelector")
)]
struct TargetSchema {
    /// Pods of this namespace; {} selects every one. Pods on the host's network are never selected: their address is the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pod_selector: Option<LabelSelector>,
    /// KubeVirt's VirtualMachineInstances of this namespace, by their own labels; {} selects every one. A machine keeps its groups
    /// over restarts and live migrations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    virtual_machine_selector: Option<LabelSelector>,
    /// NetworkInterfaces of this namespace, which stand for machines that Kubernetes does not run; {} selects every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    network_interface_selector: Option<LabelSelector>,
}

/// What is known of a SecurityGroupBinding; written by Ringfence alone.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupBindingStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, ResolvedRefs and Enforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The groups attached, separated by commas, for printing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<String>,
    /// Interfaces that the binding selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<i64>,
    /// Nodes that are concerned, and those that have the binding's revision in their kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCount>,
}
