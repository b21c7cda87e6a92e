//! Runs one piece of work whenever something has changed, however often it changes.
//!
//! Owns: when the work runs. Must not: know what changed; the worker looks at the state as it is when it starts, so
//! a hundred changes during one run cost one more run.

use std::{fmt::Display, sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    Shutdown,
    backoff::{Backoff, jitter},
    streak::Streak,
};

/// Why the worker is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Something has changed since the last run began.
    Dirty,
    /// The last run failed. What it left behind is unknown, so this one should start from nothing.
    Retry,
    /// Nothing need have changed: a full run is due.
    Periodic,
}

/// A dirty flag and the loop that clears it.
#[derive(Debug)]
pub struct Coalescer {
    // A `Notify` keeps at most one permit, which is exactly a dirty flag that can be waited for.
    dirty: Notify,
    retry: Backoff,
    full_every: Option<Duration>,
}

impl Coalescer {
    /// `retry` bounds the delay after a failure. With `full_every`, a full run (any but [`Reason::Dirty`]) succeeds
    /// at least that often, busy or idle.
    #[must_use]
    pub fn new(retry: Backoff, full_every: Option<Duration>) -> Self {
        Self { dirty: Notify::new(), retry, full_every }
    }

    /// Says that something has changed. Never blocks; may be called before [`run`](Self::run).
    pub fn notify(&self) {
        self.dirty.notify_one();
    }

    /// Runs `worker`, never two at once, until shutdown. A run that has begun is always finished.
    ///
    /// After a failure it runs again by itself, later with every failure. A change in the meantime may be what mends
    /// it, so it is tried then, but never sooner than the smallest delay.
    pub async fn run<E: Display>(
        self: Arc<Self>,
        shutdown: Shutdown,
        mut worker: impl AsyncFnMut(Reason) -> Result<(), E>,
    ) {
        let mut full_due = self.full_due();
        let mut failed: Option<Failed> = None;
        let mut streak = Streak::default();
        loop {
            let reason = tokio::select! {
                biased;
                () = shutdown.signalled() => return,
                reason = self.next(failed.as_ref(), full_due) => reason,
            };
            // Whatever asks for a run now is answered by this one, which has not looked at anything yet.
            let _ = self.dirty.notified().now_or_never();

            match worker(reason).await {
                Ok(()) => {
                    if let Some(failures) = streak.recovered() {
                        info!(failures, "succeeded again");
                    }
                    failed = None;
                    if reason != Reason::Dirty {
                        full_due = self.full_due();
                    }
                }
                Err(error) => {
                    let count = failed.map_or(1, |f| f.count.saturating_add(1));
                    let (now, delay) = (Instant::now(), self.retry.delay(count, jitter()));
                    if streak.failed(now) {
                        warn!(%error, failures = streak.failures(), retry_in = ?delay, "failed, will retry");
                    }
                    failed = Some(Failed { count, earliest: now + self.retry.min, latest: now + delay });
                }
            }
        }
    }

    async fn next(&self, failed: Option<&Failed>, full_due: Option<Instant>) -> Reason {
        if let Some(Failed { count: _, earliest, latest }) = failed {
            tokio::select! {
                () = sleep_until(*latest) => {}
                () = async { self.dirty.notified().await; sleep_until(*earliest).await } => {}
            }
            return Reason::Retry;
        }
        tokio::select! {
            biased;
            () = sleep_until(full_due.unwrap_or_else(Instant::now)), if full_due.is_some() => Reason::Periodic,
            () = self.dirty.notified() => Reason::Dirty,
        }
    }

    fn full_due(&self) -> Option<Instant> {
        self.full_every.map(|every| Instant::now() + every)
    }
}

/// What is known after a failed run.
struct Failed {
    /// Failures in a row.
    count: u32,
    /// Not before this, whatever changes.
    earliest: Instant,
    /// Then at the latest.
    latest: Instant,
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::time::sleep;

    use super::*;

    const RETRY: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(10) };

    type Runs = Rc<RefCell<Vec<(Reason, u64)>>>;

    /// Runs the loop beside `script`; each run takes `work_ms` and fails as long as `failures` lasts.
    async fn play(
        coalescer: &Arc<Coalescer>,
        work_ms: u64,
        mut failures: u32,
        script: impl Future<Output = ()>,
    ) -> Runs {
        let (trigger, shutdown) = Shutdown::manual();
        let (runs, start) = (Runs::default(), Instant::now());
        let worker = async |reason| {
            runs.borrow_mut().push((reason, start.elapsed().as_millis() as u64));
            sleep(Duration::from_millis(work_ms)).await;
            if failures == 0 {
                return Ok(());
            }
            failures -= 1;
            Err("no")
        };
        tokio::join!(coalescer.clone().run(shutdown, worker), async {
            script.await;
            trigger.shut_down();
        });
        runs
    }

    async fn until(start: Instant, ms: u64) {
        sleep_until(start + Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn changes_during_a_run_cost_one_more_run() {
        let (coalescer, start) = (Arc::new(Coalescer::new(RETRY, None)), Instant::now());
        coalescer.notify();
        let runs = play(&coalescer, 50, 0, async {
            for ms in [10, 20, 30, 500] {
                until(start, ms).await;
                coalescer.notify();
            }
            until(start, 1000).await;
        })
        .await;
        assert_eq!(*runs.borrow(), [(Reason::Dirty, 0), (Reason::Dirty, 50), (Reason::Dirty, 500)]);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_later_and_later() {
        let coalescer = Arc::new(Coalescer::new(RETRY, None));
        coalescer.notify();
        let runs = play(&coalescer, 0, 3, sleep(Duration::from_secs(60))).await;
        let runs = runs.borrow();
        assert_eq!(
            runs.iter().map(|r| r.0).collect::<Vec<_>>(),
            [Reason::Dirty, Reason::Retry, Reason::Retry, Reason::Retry]
        );
        for (pair, nominal) in runs.windows(2).zip([100, 200, 400]) {
            let gap = pair[1].1 - pair[0].1;
            assert!((nominal * 8 / 10..=nominal * 12 / 10 + 1).contains(&gap), "{runs:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_shortens_the_wait_but_not_below_the_minimum() {
        let (coalescer, start) = (Arc::new(Coalescer::new(RETRY, None)), Instant::now());
        coalescer.notify();
        let runs = play(&coalescer, 0, 8, async {
            // The seventh failure was at 6.3 s ± 20 %, and the wait after it is 6.4 s ± 20 %.
            until(start, 9_000).await;
            coalescer.notify();
            until(start, 9_001).await;
            coalescer.notify();
            until(start, 9_200).await;
        })
        .await;
        let last: Vec<_> = runs.borrow().iter().map(|r| r.1).filter(|ms| *ms > 8_000).collect();
        assert_eq!(last, [9_000, 9_100]);
    }

    #[tokio::test(start_paused = true)]
    async fn can_be_spawned_with_a_worker_that_has_state() {
        let coalescer = Arc::new(Coalescer::new(RETRY, None));
        coalescer.notify();
        let (trigger, shutdown) = Shutdown::manual();
        let mut state = vec![Reason::Dirty];
        let worker = async move |reason| {
            sleep(Duration::from_secs(1)).await;
            state.push(reason);
            trigger.shut_down();
            Ok::<_, &str>(())
        };
        tokio::spawn(coalescer.run(shutdown, worker)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn full_runs_come_even_when_always_busy() {
        let (coalescer, start) = (Arc::new(Coalescer::new(RETRY, Some(Duration::from_secs(1)))), Instant::now());
        let runs = play(&coalescer, 0, 0, async {
            for ms in (0..2_500).step_by(300) {
                until(start, ms).await;
                coalescer.notify();
            }
        })
        .await;
        let full: Vec<_> = runs.borrow().iter().filter(|r| r.0 == Reason::Periodic).map(|r| r.1).collect();
        assert_eq!(full, [1000, 2000]);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_finishes_the_run_that_has_begun() {
        let coalescer = Arc::new(Coalescer::new(RETRY, None));
        let done = RefCell::new(0);
        let (trigger, shutdown) = Shutdown::manual();
        coalescer.notify();
        let worker = async |_| {
            sleep(Duration::from_secs(5)).await;
            *done.borrow_mut() += 1;
            coalescer.notify(); // Too late: no second run.
            Ok::<_, &str>(())
        };
        tokio::join!(coalescer.clone().run(shutdown, worker), async {
            sleep(Duration::from_secs(1)).await;
            trigger.shut_down();
        });
        assert_eq!(*done.borrow(), 1);
    }
}
