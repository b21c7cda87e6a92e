//! What an operator watches of an agent.

use super::kernel::Damage;
use crate::nft::Ruleset;
use crate::nft::exec::NftError;
use crate::nft::model::Constant;
use crate::policy::Direction;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// See the help texts.
#[derive(Clone)]
pub struct Metrics {
    commits: Counter,
    failures: Counter,
    duration: Histogram,
    guarded: Gauge,
    remotes: Gauge,
    chains: Gauge,
    repairs: Family<RepairLabels, Counter>,
    dropped: Family<DropLabels, Counter>,
    spoofed: Counter,
    denied: Family<DeniedLabels, Counter>,
    denials_lost: Counter,
    gate_waits: Histogram,
    gate_timeouts: Counter,
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    direction: Dropped,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeniedLabels {
    direction: Dropped,
    namespace: String,
}

/// Why the kernel dropped packets of guarded addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "these are the labels' values")]
pub enum Dropped {
    /// No rule lets them in.
    ingress,
    /// No rule lets them out.
    egress,
    /// They belong to no connection.
    none,
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
            remotes: Gauge::default(),
            chains: Gauge::default(),
            repairs: Family::default(),
            dropped: Family::default(),
            spoofed: Counter::default(),
            denied: Family::default(),
            denials_lost: Counter::default(),
            // From 4 ms to 65 s: the longest patience is a minute.
            gate_waits: Histogram::new(exponential_buckets(0.004, 2.0, 15)),
            gate_timeouts: Counter::default(),
        };
        // There from the start, so that the first one shows as an increase.
        for reason in [RepairReason::transaction, RepairReason::comparison] {
            drop(metrics.repairs.get_or_create(&RepairLabels { reason }));
        }
        for direction in [Dropped::ingress, Dropped::egress, Dropped::none] {
            drop(metrics.dropped.get_or_create(&DropLabels { direction }));
        }
        registry.register("commits", "Changes committed to the kernel", metrics.commits.clone());
        registry.register("commit_failures", "Changes that could not be committed", metrics.failures.clone());
        registry.register("commit_duration_seconds", "From a computed change to its commit", metrics.duration.clone());
        registry.register("guarded_addresses", "Addresses that are guarded on this node", metrics.guarded.clone());
        registry.register("remote_addresses", "Addresses of remote groups in this kernel", metrics.remotes.clone());
        registry.register("chains", "Chains of compiled rules in this kernel", metrics.chains.clone());
        registry.register(
            "repairs",
            "Replacements of a table of ours because someone else had changed it: seen in a transaction, or found by comparison",
            metrics.repairs.clone(),
        );
        registry.register(
            "dropped_packets",
            "Packets of guarded addresses that no rule allows in that direction, or that belong to no connection",
            metrics.dropped.clone(),
        );
        for direction in [Dropped::ingress, Dropped::egress] {
            drop(metrics.denied.get_or_create(&DeniedLabels { direction, namespace: String::new() }));
        }
        registry.register(
            "denied_connections",
            "Connections that an end in this namespace denied, each once in ten seconds at most; of none where that is not known",
            metrics.denied.clone(),
        );
        registry.register(
            "denials_lost",
            "Denied packets that the kernel could not tell of as fast as they came, beyond the rate it was asked for",
            metrics.denials_lost.clone(),
        );
        registry.register(
            "spoofed_packets",
            "Packets that pods sent with addresses that are not theirs, or packed in others",
            metrics.spoofed.clone(),
        );
        registry.register_with_unit(
            "gate_waits",
            "How long pods waited for their rules when they started",
            Unit::Seconds,
            metrics.gate_waits.clone(),
        );
        registry.register(
            "gate_timeouts",
            "Pods whose rules were not in the kernel in time when they started; the kubelet tries again",
            metrics.gate_timeouts.clone(),
        );
        registry.register_collector(Box::new(Conntrack));
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
    pub fn committed(&self, took: Duration, outcome: &Result<Option<Damage>, NftError>, ruleset: &Ruleset) {
        self.duration.observe(took.as_secs_f64());
        if outcome.is_err() {
            self.failures.inc();
            return;
        }
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.commits.inc();
        self.guarded.set(count(ruleset.guards.len()));
        self.remotes.set(count(ruleset.groups.values().map(|(_, addresses)| addresses.len()).sum()));
        let chains = ruleset.constants.values().filter(|constant| matches!(***constant, Constant::Chain(_)));
        self.chains.set(count(chains.count()));
    }

    /// Counts a pod at the gate.
    pub fn waited(&self, took: Duration, in_time: bool) {
        self.gate_waits.observe(took.as_secs_f64());
        if !in_time {
            self.gate_timeouts.inc();
        }
    }

    /// Counts packets that the kernel dropped for want of a rule.
    pub fn dropped(&self, direction: Dropped, packets: u64) {
        self.dropped.get_or_create(&DropLabels { direction }).inc_by(packets);
    }

    /// Counts a connection that was told of.
    pub fn denied(&self, direction: Direction, namespace: &str) {
        let direction = match direction {
            Direction::Ingress => Dropped::ingress,
            Direction::Egress => Dropped::egress,
        };
        self.denied.get_or_create(&DeniedLabels { direction, namespace: namespace.to_owned() }).inc();
    }

    /// Forgets a namespace in which nobody is guarded here any more.
    pub fn forget_denied(&self, namespace: &str) {
        for direction in [Dropped::ingress, Dropped::egress] {
            self.denied.remove(&DeniedLabels { direction, namespace: namespace.to_owned() });
        }
    }

    /// Counts packets of which nothing is known.
    pub fn denials_lost(&self, packets: u64) {
        self.denials_lost.inc_by(packets);
    }

    /// Counts packets that pods had no right to send.
    pub fn spoofed(&self, packets: u64) {
        self.spoofed.inc_by(packets);
    }
}

/// How full the node's table of connections is, read when somebody asks. A full one drops new connections, guarded or not.
#[derive(Debug)]
struct Conntrack;

impl Collector for Conntrack {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let numbers = [
            ("conntrack_entries", "Connections that this node's kernel keeps track of", "nf_conntrack_count"),
            ("conntrack_limit", "Connections that it can keep track of", "nf_conntrack_max"),
        ];
        for (name, help, file) in numbers {
            let read = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{file}"));
            // A number that cannot be read is left out.
            let Some(number) = read.ok().and_then(|text| text.trim().parse::<i64>().ok()) else { continue };
            let gauge = ConstGauge::new(number);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
