//! Brings the kernel from what is committed to what is desired.

use super::Shared;
use super::announce::Announcer;
use super::attachments::Settled;
use super::check::find_refused;
use super::committed::Committed;
use super::data_path;
use super::kernel::{Damage, Kernel};
use super::metrics::Metrics;
use super::published::{Examiner, Published};
use super::remotes::Remotes;
use super::report::Reporter;
use super::state::Desired;
use super::usage::Usage;
use crate::api::conditions::listed;
use crate::nft::Ruleset;
use crate::nft::exec::NftError;
use crate::observe::{Change, Table};
use crate::runtime::coalesce::Reason;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Who is told of rounds.
pub struct Told {
    /// Who waits at the gate: what is in the kernel.
    pub settled: watch::Sender<Settled>,
    /// Who counts connections: what is about to be.
    pub usage: Usage,
    /// Who wants to know what is in force.
    pub published: watch::Sender<Option<Published>>,
    /// Who wants the table to be looked at.
    pub examiner: Examiner,
}

/// The only one who decides what is committed.
pub struct Enforcer {
    state: Shared,
    remotes: Remotes,
    reporter: Reporter,
    metrics: Metrics,
    announcer: Announcer,
    kernel: Kernel<Ruleset>,
    told: Told,
    /// Nothing was committed yet by this agent: what another one left is in force, and members of groups are missing here.
    first: bool,
    /// What was last known to be good, which outlives a failure.
    good: Arc<Committed>,
}

impl Enforcer {
    /// An enforcer of what this state desires.
    pub fn new(
        state: Shared,
        remotes: Remotes,
        reporter: Reporter,
        metrics: Metrics,
        announcer: Announcer,
        kernel: Kernel<Ruleset>,
        told: Told,
    ) -> Self {
        Self { state, remotes, reporter, metrics, announcer, kernel, told, first: true, good: Arc::default() }
    }

    /// One round: from the state as it is now to a commit and a report of it. Who asked for a look at the table is told what
    /// was seen.
    pub async fn run(&mut self, reason: Reason) -> Result<(), NftError> {
        let asked = self.told.examiner.take();
        let outcome = self.round(reason, reason == Reason::Periodic || !asked.is_empty()).await;
        let table = match &outcome {
            Ok(None) => Table::Same,
            Ok(Some(damage)) => Table::Repaired(damage.to_string()),
            Err(error) => Table::Unknown(error.to_string()),
        };
        asked.into_iter().for_each(|asked| drop(asked.send(table.clone())));
        outcome.map(drop)
    }

    async fn round(&mut self, reason: Reason, compare: bool) -> Result<Option<Damage>, NftError> {
        let mut desired = self.state.lock().desired();
        while !self.remotes.know(&desired.remotes) {
            self.remotes.need(&desired.remotes, self.first).await;
            desired = self.state.lock().desired();
            if !self.first {
                break;
            }
        }
        self.told.usage.about_to_commit(desired.committed.clone());
        let started = Instant::now();
        let outcome = match self.kernel.enforce(desired.ruleset.clone(), compare).await {
            // Only the kernel's own "no" is about what was asked; all else is about the moment.
            Err(NftError::Refused(message)) if reason == Reason::Retry => {
                tracing::error!(%message, "the kernel refused the whole ruleset, looking for the group at fault");
                self.hold_back(&desired).await;
                desired = self.state.lock().desired();
                self.told.usage.about_to_commit(desired.committed.clone());
                self.kernel.enforce(desired.ruleset.clone(), false).await
            }
            outcome => outcome,
        };
        self.metrics.committed(started.elapsed(), &outcome, &desired.ruleset);
        let damage = outcome?;
        self.publish(&desired, damage.as_ref());
        if let Some(damage) = damage.clone() {
            self.announcer.repaired(damage);
        }
        self.trace(&desired, started.elapsed());
        self.first = false;
        self.told.settled.send_replace(desired.settled.clone());
        self.remotes.keep_only(&desired.remotes);
        let addresses = desired.ruleset.guards.keys().copied();
        let bridges_are_closed = self.state.lock().bridges_are_closed;
        self.reporter.report(desired.report, data_path::problems(addresses, bridges_are_closed));
        self.good = desired.committed;
        Ok(damage)
    }

    fn publish(&self, desired: &Desired, damage: Option<&Damage>) {
        let change = damage.map(|damage| Change { what: damage.to_string(), repaired: jiff::Timestamp::now() });
        self.told.published.send_modify(|published| {
            let last_change = change.or(published.take().and_then(|before| before.last_change));
            *published = Some(Published { committed: desired.committed.clone(), last_change });
        });
    }

    /// Says why there was something to commit, as far as it is rules.
    fn trace(&self, desired: &Desired, took: Duration) {
        let (good, now) = (&self.good.groups, &desired.committed.groups);
        let changed = now.iter().filter(|(name, now)| good.get(*name) != Some(*now));
        let changed = listed(changed.map(|(name, now)| format!("{name} generation {}", now.generation)));
        let gone = listed(good.keys().filter(|name| !now.contains_key(*name)));
        if !(changed.is_empty() && gone.is_empty()) {
            tracing::info!(%changed, %gone, guarded = desired.ruleset.guards.len(), ?took, "rules are in the kernel");
        }
    }

    /// Finds the revisions that the kernel refuses, and keeps them out until they change.
    async fn hold_back(&self, desired: &Desired) {
        let wanted = &desired.committed.groups;
        let refused = find_refused(&self.good.groups, wanted, async |tried| {
            let ruleset = self.state.lock().desired_with(wanted, tried).ruleset;
            self.kernel.refuses(&ruleset).await
        })
        .await;
        for (name, held) in &refused {
            tracing::error!(group = %name, message = %held.message, "the kernel refuses this group; its last good rules stay");
        }
        self.state.lock().held_back.extend(refused);
    }
}
