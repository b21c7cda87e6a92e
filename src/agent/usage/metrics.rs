//! The exact counts, for who wants them.

use super::tally::Tally;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use std::sync::{Arc, Mutex, PoisonError};

/// One time series for each rule of the groups that are attached to interfaces of this node, and of no others: with the rule it
/// goes.
#[derive(Clone, Debug, Default)]
pub struct Rows(Arc<Mutex<Vec<Row>>>);

#[derive(Debug)]
struct Row {
    group: String,
    direction: &'static str,
    rule: String,
    connections: u64,
}

impl Rows {
    /// What is counted by now.
    pub fn publish(&self, tally: &Tally) {
        let rows = tally.attached().map(|(group, direction, rule, connections)| Row {
            group: group.to_string(),
            direction: direction.name(),
            rule: rule.to_string(),
            connections,
        });
        let rows = rows.collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = rows;
    }
}

impl Collector for Rows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let help = "Connections that a rule of a group allowed, which interfaces of this node have";
        let mut family = encoder.encode_descriptor("rule_connections", help, None, MetricType::Counter)?;
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().try_for_each(|Row { group, direction, rule, connections }| {
            let labels = [("security_group", group.as_str()), ("direction", *direction), ("rule", rule.as_str())];
            ConstCounter::new(*connections).encode(family.encode_family(&labels)?)
        })
    }
}
