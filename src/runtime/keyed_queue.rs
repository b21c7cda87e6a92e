//! A work queue for writers: a key stands for an object to bring up to date.
//!
//! Owns: running keys under the limits that `keyed_state` keeps. Must not: carry data. A key says what to look at, and
//! the worker writes what is true when it runs; so keys coalesce and none is ever stale.

use std::{
    fmt::{Debug, Display},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::warn;

use super::{
    Shutdown,
    backoff::{Backoff, jitter},
    keyed_state::{Ended, Next, State},
};

/// How a run that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The object is up to date.
    Done,
    /// Look again then, or earlier if the key is added.
    RequeueAfter(Duration),
}

/// Keys waiting to be worked on.
///
/// A key queued twice runs once; added while it runs, it runs again afterwards, never beside itself. A key whose worker
/// failed waits longer with every failure, and an `add` does not shorten that: busy keys would else defeat it just
/// when the API server can least bear them.
#[derive(Debug)]
pub struct KeyedQueue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

impl<K: Ord + Clone> Default for KeyedQueue<K> {
    /// At most a run every 100 ms for each key; 100 ms to 30 s after failures.
    fn default() -> Self {
        let backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };
        Self::new(Duration::from_millis(100), backoff)
    }
}

impl<K: Ord + Clone> KeyedQueue<K> {
    /// `min_interval` is kept between the starts of two runs of one key; the first is immediate.
    #[must_use]
    pub fn new(min_interval: Duration, backoff: Backoff) -> Self {
        Self { state: Mutex::new(State::new(min_interval, backoff)), changed: Notify::new() }
    }

    /// Wants `key` run as soon as it may.
    pub fn add(&self, key: K) {
        self.add_after(key, Duration::ZERO);
    }

    /// Wants `key` run after `delay`. Of several wishes the earliest wins.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.state().add(key, Instant::now() + delay);
        self.changed.notify_one();
    }

    /// Forgets every key and every failure, for when leadership is lost. What is running ends by itself, and is not
    /// tried again however it ends.
    pub fn clear(&self) {
        self.state().clear();
        self.changed.notify_one();
    }

    /// How many keys wait to run.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().waiting()
    }

    /// Runs `worker` for the queued keys, at most `concurrency` at once, until shutdown; then lets what runs finish.
    ///
    /// To be called once: a second call would share the keys but not the limit, and a dropped one leaves its running
    /// keys running for ever.
    pub async fn run<E, F>(self: Arc<Self>, concurrency: usize, shutdown: Shutdown, worker: impl Fn(K) -> F)
    where
        K: Debug,
        E: Display,
        F: Future<Output = Result<Outcome, E>>,
    {
        let mut running = FuturesUnordered::new();
        loop {
            let mut wake = None;
            while running.len() < concurrency.max(1) && !shutdown.is_signalled() {
                // Not in the `match`: its temporaries, and so the lock, would live until its end.
                let next = self.state().next(Instant::now());
                match next {
                    Next::Run(key) => {
                        let run = worker(key.clone());
                        running.push(async move { (key, run.await) });
                    }
                    Next::At(at) => {
                        wake = Some(at);
                        break;
                    }
                    Next::Idle => break,
                }
            }
            tokio::select! {
                biased;
                () = shutdown.signalled() => break,
                Some((key, result)) = running.next() => self.finish(&key, result),
                () = self.changed.notified() => {}
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        }
        while let Some((key, result)) = running.next().await {
            self.finish(&key, result);
        }
    }

    fn finish<E: Display>(&self, key: &K, result: Result<Outcome, E>)
    where
        K: Debug,
    {
        let ended = match &result {
            Ok(Outcome::Done) => Ended::Done,
            Ok(Outcome::RequeueAfter(after)) => Ended::Requeue(*after),
            Err(_) => Ended::Failed { jitter: jitter() },
        };
        let retry_in = self.state().finish(key, ended, Instant::now());
        if let Err(error) = result {
            // The backoff is what keeps this from flooding the log.
            warn!(?key, %error, ?retry_in, "failed");
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // Every change to the state is complete before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn runs_every_key_within_the_limit_and_drains() {
        let queue = Arc::new(KeyedQueue::default());
        let (trigger, shutdown) = Shutdown::manual();
        let (now, most, done) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counters = (now.clone(), most.clone(), done.clone());
        let worker = move |_key: u32| {
            let (now, most, done) = counters.clone();
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                sleep(Duration::from_secs(1)).await;
                now.fetch_sub(1, SeqCst);
                done.fetch_add(1, SeqCst);
                Ok::<_, &str>(Outcome::Done)
            }
        };
        (0..10).for_each(|key| queue.add(key));
        // Spawned, as it is in the product: the loop has to be `Send`.
        let task = tokio::spawn(queue.clone().run(4, shutdown, worker));

        sleep(Duration::from_millis(2_500)).await;
        assert_eq!((most.load(SeqCst), done.load(SeqCst), queue.waiting()), (4, 8, 0));
        trigger.shut_down();
        queue.add(99);
        task.await.unwrap();
        assert_eq!((done.load(SeqCst), queue.waiting()), (10, 1), "finishes what runs, starts nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn retries_requeues_and_wakes_on_time() {
        let queue = Arc::new(KeyedQueue::default());
        let (trigger, shutdown) = Shutdown::manual();
        let start = Instant::now();
        let runs = Mutex::new(Vec::new());
        let worker = |key: &'static str| {
            let mut runs = runs.lock().unwrap();
            runs.push((key, start.elapsed().as_secs()));
            let first = runs.len() == 1;
            async move {
                match key {
                    "fails" if first => Err("no"),
                    "again" if !first => Ok(Outcome::RequeueAfter(Duration::from_secs(7))),
                    _ => Ok(Outcome::Done),
                }
            }
        };
        queue.add("fails");
        tokio::join!(queue.clone().run(1, shutdown, worker), async {
            sleep(Duration::from_secs(2)).await;
            queue.add_after("again", Duration::from_secs(3));
            sleep(Duration::from_secs(11)).await;
            queue.clear();
            sleep(Duration::from_secs(60)).await;
            trigger.shut_down();
        });
        assert_eq!(*runs.lock().unwrap(), [("fails", 0), ("fails", 0), ("again", 5), ("again", 12)]);
    }
}
