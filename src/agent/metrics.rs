//! What an operator watches of an agent.

use crate::nft::exec::NftError;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

/// See the help texts.
pub struct Metrics {
    commits: Counter,
    failures: Counter,
    duration: Histogram,
    guarded: Gauge,
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
        };
        registry.register("commits", "Changes committed to the kernel", metrics.commits.clone());
        registry.register("commit_failures", "Changes that could not be committed", metrics.failures.clone());
        registry.register("commit_duration_seconds", "From a computed change to its commit", metrics.duration.clone());
        registry.register("guarded_addresses", "Addresses that are guarded on this node", metrics.guarded.clone());
        metrics
    }

    /// Counts one round.
    pub fn committed(&self, took: Duration, outcome: &Result<(), NftError>, guarded: usize) {
        self.duration.observe(took.as_secs_f64());
        match outcome {
            Ok(()) => {
                self.commits.inc();
                self.guarded.set(i64::try_from(guarded).unwrap_or(i64::MAX));
            }
            Err(_) => {
                self.failures.inc();
            }
        }
    }
}
