//! Which of the controller's replicas writes: leader election by a `coordination.k8s.io/v1` Lease.
//!
//! Owns: the Lease object. Must not: start or stop the writers; they look at [`Leadership`] before they write.
//!
//! The rules are client-go's. No two clocks are ever compared: a candidate takes the lease when it has itself seen no
//! change of it for the time its holder asked for, and the holder stops leading earlier than that, counted from before
//! it sent its last renewal. Every write carries the version it was decided on, so of two candidates one wins.

use std::{pin::pin, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    api::core::v1::ServiceAccount,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{Api, Client, Error, Resource, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use crate::runtime::{backoff::jitter, chain, streak::Streak};

/// The periods of the election; each must be well below the one before it.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// How long candidates leave a silent holder its lease, in the API's whole seconds.
    duration_seconds: i32,
    /// How long a holder leads without having renewed.
    renew_deadline: Duration,
    /// Between two attempts, of holders and candidates alike.
    retry: Duration,
}

const TIMING: Timing =
    Timing { duration_seconds: 15, renew_deadline: Duration::from_secs(10), retry: Duration::from_secs(2) };

/// One candidate. [`run`](Self::run) it beside the work that only the leader may do.
#[derive(Debug)]
pub struct LeaderElection {
    api: Api<Lease>,
    name: String,
    identity: String,
    owner: Option<OwnerReference>,
    timing: Timing,
    observed: Option<Observed>,
    /// `observed` is what this candidate wrote itself: no need to look before renewing it.
    current: bool,
    leads_until: watch::Sender<Option<Instant>>,
}

/// Whether this replica leads. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leadership {
    leads_until: watch::Receiver<Option<Instant>>,
    seen: bool,
}

/// The lease, and since when it has looked like that from here.
#[derive(Clone, Debug)]
struct Observed {
    lease: Lease,
    since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    /// There is no lease.
    Create,
    /// It is nobody's, or its holder has been silent for too long.
    Take,
    /// It is ours.
    Renew,
    /// It is somebody else's.
    Wait,
}

fn decide(observed: Option<&Observed>, identity: &str, now: Instant) -> Action {
    let Some(observed) = observed else { return Action::Create };
    match observed.holder() {
        None => Action::Take,
        Some(holder) if holder == identity => Action::Renew,
        Some(_) if now >= observed.expires() => Action::Take,
        Some(_) => Action::Wait,
    }
}

/// The lease as it should be written for `action`. The wall clock in it is for people to read.
fn claim(observed: Option<&Observed>, action: &Action, name: &str, identity: &str, seconds: i32) -> Lease {
    let now = MicroTime(Timestamp::now());
    let mut lease = observed.map(|o| o.lease.clone()).unwrap_or_else(|| Lease {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        spec: None,
    });
    let spec = lease.spec.get_or_insert_default();
    if *action != Action::Renew {
        spec.acquire_time = Some(now.clone());
        let taken = i32::from(*action == Action::Take);
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(taken));
    }
    spec.holder_identity = Some(identity.to_owned());
    spec.lease_duration_seconds = Some(seconds);
    spec.renew_time = Some(now);
    lease
}

impl Observed {
    fn spec(&self) -> Option<&LeaseSpec> {
        self.lease.spec.as_ref()
    }

    /// An empty identity means released.
    fn holder(&self) -> Option<&str> {
        self.spec()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
    }

    fn expires(&self) -> Instant {
        let asked = self.spec().and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
        // Absent or absurd: what this program itself would have asked for.
        let seconds = asked.filter(|s| *s > 0).unwrap_or(TIMING.duration_seconds.unsigned_abs().into());
        self.since + Duration::from_secs(seconds)
    }
}

impl LeaderElection {
    /// A candidate for the lease `namespace/name`. `identity` must be this process's alone: two processes that share
    /// one both lead. A pod's name will do, for its successor takes over without waiting.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            identity: identity.into(),
            owner: None,
            timing: TIMING,
            observed: None,
            current: false,
            leads_until: watch::Sender::new(None),
        }
    }

    /// With the account that its candidates run as, the lease goes as well: an uninstallation leaves none.
    pub async fn owned_by(mut self, accounts: Api<ServiceAccount>, account: &str) -> Self {
        match accounts.get(account).await {
            Ok(account) => self.owner = account.owner_ref(&()),
            Err(error) => {
                warn!(account, error = chain(&error), "cannot read the own account; the lease will outlive it");
            }
        }
        self
    }

    /// What the writers look at.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        Leadership { leads_until: self.leads_until.subscribe(), seen: false }
    }

    /// Takes part until `stopped`, then releases the lease, so that the next leader need not wait.
    ///
    /// `stopped` must resolve only when the writers have finished: after it somebody else may write at once.
    pub async fn run(mut self, stopped: impl Future<Output = ()>) {
        let mut stopped = pin!(stopped);
        let mut streak = Streak::default();
        let mut led = false;
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => break,
                // Half the deadline: a request that hangs leaves time for another.
                result = timeout(self.timing.renew_deadline / 2, self.attempt()) => {
                    let failure = match result {
                        Ok(Ok(())) => None,
                        Ok(Err(error)) => Some(chain(&error)),
                        Err(_) => Some("no answer in time".to_owned()),
                    };
                    self.report(failure, &mut streak, &mut led);
                }
            }
            let pause = self.timing.retry.mul_f64(1.0 + 0.2 * jitter());
            tokio::select! {
                biased;
                () = &mut stopped => break,
                () = sleep(pause) => {}
            }
        }
        // What was under way when it was cut short may have been carried out all the same: ask, do not assume.
        self.leads_until.send_replace(None);
        match timeout(self.timing.renew_deadline / 2, self.release()).await {
            Ok(Ok(true)) => info!(lease = self.name, "leadership released"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                warn!(lease = self.name, error = chain(&error), "cannot release the lease; it expires by itself")
            }
            Err(_) => warn!(lease = self.name, "cannot release the lease in time; it expires by itself"),
        }
    }

    /// Looks and writes once. On conflict it looks again, once.
    async fn attempt(&mut self) -> Result<(), Error> {
        for last in [false, true] {
            if !self.current {
                let found = self.api.get_opt(&self.name).await?;
                self.observe(found);
            }
            let action = decide(self.observed.as_ref(), &self.identity, Instant::now());
            if action == Action::Wait {
                return Ok(());
            }
            let (observed, seconds) = (self.observed.as_ref(), self.timing.duration_seconds);
            let mut lease = claim(observed, &action, &self.name, &self.identity, seconds);
            if let Some(owner) = &self.owner {
                lease.metadata.owner_references = Some(vec![owner.clone()]);
            }
            // Until the answer is here, what is known of the lease may be out of date.
            self.current = false;
            let sent = Instant::now();
            let written = match action {
                Action::Create => self.api.create(&PostParams::default(), &lease).await,
                _ => self.api.replace(&self.name, &PostParams::default(), &lease).await,
            };
            match written {
                Ok(lease) => {
                    self.observe(Some(lease));
                    self.current = true;
                    self.leads_until.send_replace(Some(sent + self.timing.renew_deadline));
                    return Ok(());
                }
                // Somebody else was faster, or the lease is gone.
                Err(Error::Api(status)) if !last && matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes note of the lease. Only a change of what it says restarts its holder's time.
    fn observe(&mut self, found: Option<Lease>) {
        let now = Instant::now();
        let since = match (&self.observed, &found) {
            (Some(before), Some(lease)) if before.lease.spec == lease.spec => before.since,
            _ => now,
        };
        self.observed = found.map(|lease| Observed { lease, since });
        let ours = self.observed.as_ref().and_then(Observed::holder) == Some(self.identity.as_str());
        if !ours {
            self.leads_until.send_if_modified(|until| until.take().is_some());
        }
    }

    /// Gives the lease back if it is ours; whether it was.
    async fn release(&self) -> Result<bool, Error> {
        loop {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(false) };
            let Some(spec) = &mut lease.spec else { return Ok(false) };
            if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
                return Ok(false);
            }
            // Empty, not absent, and one second: how client-go writes "released".
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            match self.api.replace(&self.name, &PostParams::default(), &lease).await {
                Err(Error::Api(status)) if status.code == 409 => {}
                result => return result.map(|_| true),
            }
        }
    }

    fn report(&self, failure: Option<String>, streak: &mut Streak, led: &mut bool) {
        let lease = &self.name;
        match failure {
            None => drop(streak.recovered()),
            Some(error) if streak.failed(Instant::now()) => {
                warn!(lease, %error, failures = streak.failures(), "cannot take or renew the lease, will retry");
            }
            Some(_) => {}
        }
        let leads = leads(*self.leads_until.borrow());
        match (*led, leads) {
            (false, true) => info!(lease, identity = self.identity, "leading"),
            (true, false) => warn!(lease, identity = self.identity, "no longer leading"),
            _ => {}
        }
        *led = leads;
    }
}

fn leads(until: Option<Instant>) -> bool {
    until.is_some_and(|until| Instant::now() < until)
}

impl Leadership {
    /// Whether this replica leads at this moment. Looks at the clock: it is right even if the election itself hangs.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        leads(*self.leads_until.borrow())
    }

    /// Resolves when leadership has begun or ended since the last call; says which. The first call resolves at once
    /// if this replica leads already.
    pub async fn changed(&mut self) -> bool {
        loop {
            let until = *self.leads_until.borrow_and_update();
            let leader = leads(until);
            if leader != self.seen {
                self.seen = leader;
                return leader;
            }
            tokio::select! {
                renewed = self.leads_until.changed() => if renewed.is_err() {
                    // The election is over, so only time can change anything.
                    match until.filter(|_| leader) {
                        Some(until) => sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                },
                () = sleep_until(until.unwrap_or_else(Instant::now)), if leader => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
