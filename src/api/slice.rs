//! `SecurityGroupSlice`: the addresses of one group, sharded. Written by the controller, read by agents.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// SecurityGroupSlice carries some of the members of one group.
#[derive(CustomResource, JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ringfence.io",
    version = "v1alpha1",
    kind = "SecurityGroupSlice",
    namespaced,
    derive = "PartialEq",
    doc = "SecurityGroupSlice carries the addresses of some members of one SecurityGroup, as EndpointSlice does for Services. Written by Ringfence; not meant to be edited.",
    printcolumn(
        name = "Group",
        type_ = "string",
        json_path = ".spec.group",
        description = "The group whose members these are"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupSliceSpec {
    /// Name of the SecurityGroup, in this namespace.
    pub group: String,
    /// UID of the SecurityGroup: the slices of a group that was deleted and created anew are not the new group's.
    #[serde(rename = "groupUID")]
    pub group_uid: String,
    /// The members this slice carries.
    #[serde(default)]
    #[schemars(length(max = 500), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["target"]))]
    pub members: Vec<SliceMember>,
}

/// One member of a group: an interface.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceMember {
    /// The interface's owner, like pod/web-7d9f.
    #[schemars(length(max = 300))]
    pub target: String,
    /// Addresses of the interface.
    #[schemars(with = "Vec<String>", length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub addresses: Vec<IpAddr>,
    /// The node it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
}
