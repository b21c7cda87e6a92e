//! What an operator watches of the controller.

use super::Shared;
use super::truth::{self, NodeState};
use crate::api::conditions::ENFORCED;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// See the help texts.
#[derive(Clone)]
pub struct Metrics {
    /// Whether this replica writes.
    pub leader: Gauge,
    /// Writes that went through.
    pub writes: Counter,
    /// Writes that did not.
    pub failures: Counter,
    delay: Histogram,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            leader: Gauge::default(),
            writes: Counter::default(),
            failures: Counter::default(),
            // From 0.25 s, as the API server's own times are whole seconds, to 17 min.
            delay: Histogram::new(exponential_buckets(0.25, 2.0, 13)),
        };
        registry.register("leader", "1 on the replica that writes", metrics.leader.clone());
        registry.register("writes", "Writes to the API server", metrics.writes.clone());
        registry.register("write_failures", "Writes that failed, conflicts aside", metrics.failures.clone());
        registry.register_with_unit(
            "enforcement_delay",
            "From the change of a group's or binding's spec, whose time the API server keeps in whole seconds, to Enforced",
            Unit::Seconds,
            metrics.delay.clone(),
        );
        metrics
    }

    /// A change is in every kernel concerned.
    pub fn enforced(&self, metadata: &ObjectMeta, now: Timestamp) {
        if let Some(changed) = last_change(metadata) {
            self.delay.observe(now.duration_since(changed).as_secs_f64().max(0.0));
        }
    }
}

/// When somebody last wrote the spec.
fn last_change(metadata: &ObjectMeta) -> Option<Timestamp> {
    let writes = metadata.managed_fields.iter().flatten();
    let to_spec = writes.filter(|w| w.fields_v1.as_ref().is_some_and(|fields| fields.0.get("f:spec").is_some()));
    to_spec.filter_map(|write| Some(write.time.as_ref()?.0)).max()
}

/// Counts the cluster when somebody asks.
pub struct Census(pub(super) Shared);

impl std::fmt::Debug for Census {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Census").finish_non_exhaustive()
    }
}

/// What is counted.
#[derive(Default)]
struct Counts {
    groups: [i64; 2],
    bindings: [i64; 2],
    members: i64,
    nodes: [i64; 3],
}

impl Census {
    fn count(&self) -> Counts {
        let (cluster, mut counts) = (self.0.lock(), Counts::default());
        let enforced = |conditions: &[Condition]| {
            usize::from(conditions.iter().any(|c| c.type_ == ENFORCED && c.status == "True"))
        };
        for group in cluster.index.groups() {
            let seen = cluster.seen_group(&group.name);
            counts.groups[seen.map_or(0, |seen| enforced(&seen.ours.conditions))] += 1;
            let members = cluster.members(&group.name).map_or(0, |members| members.len());
            counts.members += i64::try_from(members).unwrap_or(i64::MAX);
        }
        for binding in cluster.index.bindings() {
            let seen = cluster.seen_binding(&binding.name);
            counts.bindings[seen.map_or(0, |seen| enforced(&seen.ours.conditions))] += 1;
        }
        for node in cluster.node_names() {
            counts.nodes[truth::state_of_node(&cluster, &node) as usize] += 1;
        }
        counts
    }
}

impl Collector for Census {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Counts { groups, bindings, members, nodes } = self.count();
        let mut family = |name: &str, help: &str, label: &str, counted: &[(&str, i64)]| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            counted.iter().try_for_each(|(value, count)| {
                ConstGauge::new(*count).encode(family.encode_family(&[(label, *value)])?)
            })
        };
        let enforced = |[no, yes]: [i64; 2]| [("true", yes), ("false", no)];
        family("security_groups", "Security groups", "enforced", &enforced(groups))?;
        family("security_group_bindings", "Bindings", "enforced", &enforced(bindings))?;
        let states = [NodeState::Reporting, NodeState::Silent, NodeState::Bypassed];
        let states = states.map(|state| (state.name(), nodes[state as usize]));
        family("nodes", "Nodes, by what their agents say of the kernel that runs now", "state", &states)?;
        let members = ConstGauge::new(members);
        let help = "Interfaces in groups, counted once for each group";
        members.encode(encoder.encode_descriptor("members", help, None, members.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_is_of_the_spec() {
        let metadata: ObjectMeta = serde_json::from_value(json!({ "managedFields": [
            { "manager": "kubectl", "time": "2026-01-01T00:00:01Z", "fieldsV1": { "f:spec": { "f:ingress": {} } } },
            { "manager": "argo", "time": "2026-01-01T00:00:05Z", "fieldsV1": { "f:spec": { "f:egress": {} } } },
            { "manager": "ringfence", "time": "2026-01-01T00:00:09Z", "fieldsV1": { "f:metadata": {} } },
            { "manager": "ringfence", "time": "2026-01-01T00:00:09Z", "subresource": "status", "fieldsV1": { "f:status": {} } },
        ] }))
        .unwrap();
        assert_eq!(last_change(&metadata).unwrap().to_string(), "2026-01-01T00:00:05Z");
        assert_eq!(last_change(&ObjectMeta::default()), None);
    }
}
