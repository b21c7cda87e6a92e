//! Brings the kernel from what is committed to what is desired.

use super::Shared;
use super::attachments::Settled;
use super::check::find_refused;
use super::data_path;
use super::metrics::Metrics;
use super::remotes::Remotes;
use super::report::Reporter;
use super::state::{Desired, Revision};
use crate::nft::exec::{self, NftError};
use crate::nft::{full, plan};
use crate::policy::NamespacedName;
use crate::runtime::coalesce::Reason;
use std::collections::BTreeMap;
use std::time::Instant;
use tokio::sync::watch;

/// The only one who commits.
pub struct Enforcer {
    state: Shared,
    remotes: Remotes,
    reporter: Reporter,
    metrics: Metrics,
    /// Who waits at the gate is told here.
    settled: watch::Sender<Settled>,
    /// What the kernel holds; `None` if that is not known, as at the start and after any failure.
    committed: Option<Desired>,
    /// The revisions last known to be good, which outlive a failure.
    good: BTreeMap<NamespacedName, Revision>,
}

impl Enforcer {
    /// An enforcer that knows nothing of the kernel: its first commit replaces our table as a whole.
    pub fn new(
        state: Shared,
        remotes: Remotes,
        reporter: Reporter,
        metrics: Metrics,
        settled: watch::Sender<Settled>,
    ) -> Self {
        Self { state, remotes, reporter, metrics, settled, committed: None, good: BTreeMap::new() }
    }

    /// One round: from the state as it is now to a commit and a report of it.
    pub async fn run(&mut self, reason: Reason) -> Result<(), NftError> {
        if reason != Reason::Dirty {
            self.committed = None;
        }
        let mut desired = self.state.lock().desired();
        if !self.remotes.know(&desired.remotes) {
            self.remotes.need(&desired.remotes).await;
            desired = self.state.lock().desired();
        }
        let started = Instant::now();
        let outcome = match self.commit(&desired).await {
            // Only the kernel's own "no" is about what was asked; all else is about the moment.
            Err(NftError::Refused(message)) if self.committed.is_none() => {
                tracing::error!(%message, "the kernel refused the whole ruleset, looking for the group at fault");
                self.hold_back(&desired).await;
                desired = self.state.lock().desired();
                self.commit(&desired).await
            }
            outcome => outcome,
        };
        self.metrics.committed(started.elapsed(), &outcome, desired.ruleset.guards.len());
        if let Err(error) = outcome {
            self.committed = None;
            return Err(error);
        }
        self.settled.send_replace(desired.settled.clone());
        self.remotes.keep_only(&desired.remotes);
        let addresses = desired.ruleset.guards.keys().copied();
        self.reporter.report(desired.report.clone(), data_path::problems(addresses));
        self.good.clone_from(&desired.revisions);
        self.committed = Some(desired);
        Ok(())
    }

    async fn commit(&self, desired: &Desired) -> Result<(), NftError> {
        let Some(committed) = &self.committed else {
            return exec::commit(&full(&desired.ruleset)).await;
        };
        for script in plan(&committed.ruleset, &desired.ruleset).scripts() {
            exec::commit(script).await?;
        }
        Ok(())
    }

    /// Finds the revisions that the kernel refuses, and keeps them out until they change.
    async fn hold_back(&self, desired: &Desired) {
        let wanted = &desired.revisions;
        let refused = find_refused(&self.good, wanted, async |tried| {
            let script = full(&self.state.lock().desired_with(wanted, tried).ruleset);
            exec::check(&script).await.err().map(|error| error.to_string())
        })
        .await;
        for (name, held) in &refused {
            tracing::error!(group = %name, message = %held.message, "the kernel refuses this group; its last good rules stay");
        }
        self.state.lock().held_back.extend(refused);
    }
}
