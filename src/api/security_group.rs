//! `SecurityGroup`: a named, stateful, allow-only firewall.

use super::schema;
use crate::policy::Direction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// SecurityGroup is a named set of allow rules, a stateful firewall that SecurityGroupBindings attach to targets.
/// What no rule of any attached group allows is denied. Replies to allowed connections need no rule.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ringfence.io",
    version = "v1alpha1",
    kind = "SecurityGroup",
    namespaced,
    shortname = "sg",
    category = "ringfence",
    status = "SecurityGroupStatus",
    derive = "PartialEq",
    doc = "SecurityGroup is a named, stateful, allow-only firewall. SecurityGroupBindings attach it to pods of its namespace; what no rule of any attached group allows is denied, and replies to allowed connections need no rule.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("the name of a SecurityGroup is at most 63 characters long"),
    printcolumn(name = "In", type_ = "integer", json_path = ".status.rules.ingress", description = "Ingress rules"),
    printcolumn(name = "Out", type_ = "integer", json_path = ".status.rules.egress", description = "Egress rules"),
    printcolumn(name = "Members", type_ = "integer", json_path = ".status.members", description = "Interfaces the group is attached to"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes.summary", description = "Nodes that have this revision in their kernel, of those concerned"),
    printcolumn(name = "Enforced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Enforced\")].status", description = "Whether every node concerned has it"),
    printcolumn(name = "Reason", type_ = "string", priority = 1, json_path = ".status.conditions[?(@.type==\"Enforced\")].reason", description = "Why it is enforced or not"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupSpec {
    /// What the group is for, in words. Has no effect on traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,

    /// What may come in. Absent or empty: nothing may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"), extend("default" = []))]
    pub ingress: Vec<SecurityGroupRule>,

    /// What may go out. Absent: the API server writes the default rule, which allows everything. An empty list: nothing may.
    // Never skipped when empty: "nothing" must not turn into "absent", which means "everything".
    #[serde(default)]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"), extend("default" = schema::default_egress()))]
    pub egress: Vec<SecurityGroupRule>,
}

/// SecurityGroupRule allows one kind of traffic from or to one remote.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
#[x_kube(
    validation = Rule::new("!has(self.ports) || self.protocol in ['TCP', 'UDP', 'SCTP']").message("ports go with protocol TCP, UDP or SCTP only; leave them out to allow the whole protocol"),
    validation = Rule::new("!has(self.icmp) || self.protocol in ['ICMP', 'ICMPv6']").message("icmp goes with protocol ICMP or ICMPv6 only")
)]
pub struct SecurityGroupRule {
    /// TCP, UDP, SCTP, ICMP, ICMPv6 or Any. ICMP without `icmp` means ICMP for both IPv4 and IPv6.
    pub protocol: Protocol,

    /// Destination ports: numbers from 1 to 65535, or ranges like "8000-9000". Absent: all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ports")]
    #[x_kube(
        validation = Rule::new("self.all(p, type(p) != int || (p >= 1 && p <= 65535))").message("a port is a number from 1 to 65535")
    )]
    pub ports: Option<Vec<IntOrString>>,

    /// Restricts ICMP or ICMPv6 to one type, and to one code if that is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,

    /// The other end: exactly one of cidrs or securityGroup.
    pub remote: Remote,

    /// What the rule is for, in words. Has no effect on traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
}

/// The protocol of a rule.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    #[allow(missing_docs)]
    TCP,
    #[allow(missing_docs)]
    UDP,
    #[allow(missing_docs)]
    SCTP,
    #[allow(missing_docs)]
    ICMP,
    #[allow(missing_docs)]
    #[serde(rename = "ICMPv6")]
    ICMPv6,
    #[allow(missing_docs)]
    Any,
}

/// An ICMP type and, optionally, code, as assigned by IANA for the protocol of the rule.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Icmp {
    /// ICMP type, 0 to 255: 8 is an IPv4 echo request, 128 an IPv6 one.
    #[serde(rename = "type")]
    #[schemars(with = "i32", range(min = 0, max = 255))]
    pub type_: u8,
    /// ICMP code, 0 to 255. Absent: every code of the type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 0, max = 255))]
    pub code: Option<u8>,
}

/// The other end of a rule. There is no "absent means anywhere": one of the two is always written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(with = "RemoteSchema")]
pub enum Remote {
    /// Addresses.
    Cidrs(Vec<String>),
    /// The members of a group.
    SecurityGroup(GroupReference),
}

/// The other end of a rule: exactly one of cidrs or securityGroup.
// The schema of `Remote`: an enum's own schema answers with "must validate one and only one schema (oneOf)".
#[derive(KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.cidrs) != has(self.securityGroup)").message("a remote is exactly one of cidrs or securityGroup; for anywhere write cidrs: [\"0.0.0.0/0\", \"::/0\"]")
)]
struct RemoteSchema {
    /// Addresses as CIDRs, IPv4 and IPv6: 203.0.113.10/32, 2001:db8::/64. Anywhere is 0.0.0.0/0 and ::/0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::cidrs")]
    cidrs: Option<Vec<String>>,
    /// The members of another group, or of this one; the rule follows their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    security_group: Option<GroupReference>,
}

/// GroupReference names a SecurityGroup, in this namespace or another.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupReference {
    /// Name of the SecurityGroup.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Namespace of the SecurityGroup. Absent: the namespace of the object that names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
}

/// What is known of a SecurityGroup; written by Ringfence alone.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, ResolvedRefs and Enforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Interfaces to which the group is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<i64>,
    /// How many rules the group has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<RuleCount>,
    /// Nodes that are concerned, and those that have the group's revision in their kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeCount>,
    /// How the rules are used, as far as nodes have told. Counts are brought up to date when they have doubled and when a rule is
    /// matched for the first time on a day (UTC); what is exact is in the agents' metrics.
    // Always there: a patch leaves alone what it does not mention.
    #[serde(default)]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["direction", "id"]))]
    pub usage: Vec<RuleUsage>,
}

/// How a rule is used.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleUsage {
    /// The rule, by the short hash of its content that tools show.
    #[schemars(length(max = 64))]
    pub id: String,
    /// ingress or egress.
    pub direction: RuleDirection,
    /// Connections that the rule allowed; of those that several rules allow, each counts.
    pub connections: i64,
    /// Of these, the ones that were counted by nodes that are gone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub departed: i64,
    /// When it last allowed one: others within a day of that are not told. Absent: it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_matched: Option<Time>,
    /// From when on silence means something: the rule was known to some node by then, and nothing was missed since.
    pub since: Time,
}

/// Into the members of a group, or out of them.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RuleDirection {
    /// Into them.
    Ingress,
    /// Out of them.
    Egress,
}

impl From<Direction> for RuleDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

impl From<RuleDirection> for Direction {
    fn from(direction: RuleDirection) -> Self {
        match direction {
            RuleDirection::Ingress => Self::Ingress,
            RuleDirection::Egress => Self::Egress,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Rules of a group, counted by direction.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleCount {
    /// Ingress rules.
    pub ingress: i64,
    /// Egress rules.
    pub egress: i64,
}

/// Nodes concerned by a group or a binding.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCount {
    /// Nodes that host a member, or a rule that depends on one.
    pub desired: i64,
    /// Those of them that have committed this revision to their kernel.
    pub enforced: i64,
    /// enforced/desired, for printing.
    pub summary: String,
}

impl NodeCount {
    /// Counts, with their printed form.
    pub fn new(enforced: usize, desired: usize) -> Self {
        Self {
            // A cluster has far fewer nodes than i64 can count; saturate rather than wrap.
            desired: i64::try_from(desired).unwrap_or(i64::MAX),
            enforced: i64::try_from(enforced).unwrap_or(i64::MAX),
            summary: format!("{enforced}/{desired}"),
        }
    }
}
