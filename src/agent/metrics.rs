//! What an operator watches of an agent.

use super::kernel::Damage;
use crate::nft::exec::NftError;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

/// See the help texts.
#[derive(Clone)]
pub struct Metrics {
    commits: Counter,
    failures: Counter,
    duration: Histogram,
    guarded: Gauge,
    repairs: Family<RepairLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepairLabels {
    reason: RepairReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "these are the labels' values")]
enum RepairReason {
    transaction,
    comparison,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            commits: Counter::default(),
            failures: Counter::default(),
            // From 1 ms to 16 s.
            duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            guarded: Gauge::default(),
            repairs: Family::default(),
        };
        // There from the start, so that the first one shows as an increase.
        for reason in [RepairReason::transaction, RepairReason::comparison] {
            drop(metrics.repairs.get_or_create(&RepairLabels { reason }));
        }
        registry.register("commits", "Changes committed to the kernel", metrics.commits.clone());
        registry.register("commit_failures", "Changes that could not be committed", metrics.failures.clone());
        registry.register("commit_duration_seconds", "From a computed change to its commit", metrics.duration.clone());
        registry.register("guarded_addresses", "Addresses that are guarded on this node", metrics.guarded.clone());
        registry.register(
            "repairs",
            "Replacements of a table of ours because someone else had changed it: seen in a transaction, or found by comparison",
            metrics.repairs.clone(),
        );
        metrics
    }

    /// Counts a repair.
    pub fn repaired(&self, damage: &Damage) {
        let reason = match damage {
            Damage::Foreign { .. } => RepairReason::transaction,
            Damage::Different { .. } => RepairReason::comparison,
        };
        self.repairs.get_or_create(&RepairLabels { reason }).inc();
    }

    /// Counts one round.
    pub fn committed(&self, took: Duration, outcome: &Result<Option<Damage>, NftError>, guarded: usize) {
        self.duration.observe(took.as_secs_f64());
        match outcome {
            Ok(_) => {
                self.commits.inc();
                self.guarded.set(i64::try_from(guarded).unwrap_or(i64::MAX));
            }
            Err(_) => {
                self.failures.inc();
            }
        }
    }
}
