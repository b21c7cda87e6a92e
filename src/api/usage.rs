//! `NodeUsage`: which rules the connections of one node's targets used. Written by that node's agent, read by the controller.

use super::RuleDirection;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// NodeUsage has the name of its node.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ringfence.io",
    version = "v1alpha1",
    kind = "NodeUsage",
    plural = "nodeusages",
    derive = "PartialEq",
    doc = "NodeUsage says how many connections of one node, whose name it bears, each rule allowed. Written by that node's agent, and summed up in the status of SecurityGroups; not meant to be edited.",
    printcolumn(
        name = "Until",
        type_ = "date",
        json_path = ".spec.until",
        description = "Up to when the node's connections are counted here"
    ),
    printcolumn(
        name = "Gap",
        type_ = "date",
        json_path = ".spec.gap",
        description = "When connections were last missed"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeUsageSpec {
    /// The last of the kernel's counts that are in here: each is read, added and forgotten as a whole.
    pub epoch: i64,
    /// Up to when connections are counted here.
    pub until: Time,
    /// When connections were last missed, as after a restart of the node. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Time>,
    /// The groups that are, or were, attached to interfaces of the node.
    #[serde(default)]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "atomic"))]
    pub groups: Vec<UsedGroup>,
}

/// How the rules of one group are used on a node.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsedGroup {
    /// Namespace of the group.
    pub namespace: String,
    /// Name of the group.
    pub name: String,
    /// UID of the group.
    pub uid: String,
    /// Its rules.
    #[schemars(length(max = 512), extend("x-kubernetes-list-type" = "atomic"))]
    pub rules: Vec<UsedRule>,
}

/// How a rule is used on a node.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsedRule {
    /// The rule, by the short hash of its content.
    pub id: String,
    /// ingress or egress.
    pub direction: RuleDirection,
    /// Connections that it allowed.
    pub connections: i64,
    /// When it last allowed one. Absent: it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_matched: Option<Time>,
    /// Since when the node knows the rule.
    pub since: Time,
}
