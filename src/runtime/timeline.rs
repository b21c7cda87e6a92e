//! Notices that the API server's storage was restored from a backup: its versions lie behind what it has said before.
//!
//! No watch does. It goes on to ask for what comes after a version that is yet to be, and hears of nothing until then.
//! Owns: looking at the version. Must not: know what is watched.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, api::ListParams};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{debug, warn};

use super::{
    backoff::{Backoff, jitter},
    chain,
};

/// A backup that is older than this is always noticed, a younger one if anything watched has changed since. One request each so
/// often, from every node.
const EVERY: Duration = Duration::from_mins(10);
/// After a watch has failed: nobody restores a storage that is in use.
const RETRY: Backoff = Backoff { min: Duration::from_secs(1), max: Duration::from_secs(15) };

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Timeline(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    suspected: Notify,
    /// The latest version that was heard of.
    latest: AtomicU64,
    /// Counts the times that the storage went back.
    breaks: watch::Sender<u64>,
    heard: Gauge<f64, AtomicU64>,
    failures: Counter,
}

impl Timeline {
    /// One whose metrics are told.
    pub fn register(registry: &mut Registry) -> Self {
        let timeline = Self::default();
        let Inner { heard, failures, .. } = &*timeline.0;
        registry.register(
            "api_last_heard_timestamp_seconds",
            "When the API server last showed or answered anything; it is asked every ten minutes at least",
            heard.clone(),
        );
        registry.register("watch_failures", "Watches that failed and were begun again", failures.clone());
        timeline
    }

    /// A watch has shown this object.
    pub fn saw(&self, object: &ObjectMeta) {
        self.heard(object.resource_version.as_deref().and_then(|version| version.parse().ok()));
    }

    fn heard(&self, version: Option<u64>) {
        self.0.latest.fetch_max(version.unwrap_or_default(), Ordering::Relaxed);
        self.0.heard.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }

    /// Something has failed as it would when the API server is restarted.
    pub fn suspect(&self) {
        self.0.failures.inc();
        self.0.suspected.notify_one();
    }

    /// Changes when what was seen until then may never have been.
    pub fn breaks(&self) -> watch::Receiver<u64> {
        self.0.breaks.subscribe()
    }

    /// Asks for the version now and then, for ever. `None` is a version that cannot be compared.
    pub async fn follow<E: std::error::Error>(self, version: impl AsyncFn() -> Result<Option<u64>, E>) {
        let mut failures = 0;
        loop {
            // What is heard while the answer is on its way may rightly be later than the answer.
            let before = self.0.latest.load(Ordering::Relaxed);
            match version().await {
                Ok(now) => {
                    if let Some(now) = now.filter(|now| *now < before) {
                        warn!(before, now, "the API server's storage was restored, will list everything anew");
                        self.0.latest.store(now, Ordering::Relaxed);
                        self.0.breaks.send_modify(|breaks| *breaks += 1);
                    }
                    self.heard(now);
                    failures = 0;
                    let pause = EVERY.mul_f64(0.5 + 0.5 * jitter());
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = async { self.0.suspected.notified().await; sleep(RETRY.min).await } => {}
                    }
                }
                Err(error) => {
                    failures += 1;
                    debug!(error = chain(&error), "cannot ask for the version");
                    sleep(RETRY.delay(failures, jitter())).await;
                }
            }
        }
    }
}

/// The API server's version now. Kubernetes lets versions of one storage be compared as numbers.
pub async fn version<K: Clone + Debug + DeserializeOwned>(api: &Api<K>) -> kube::Result<Option<u64>> {
    let list = api.list_metadata(&ListParams::default().limit(1)).await?;
    Ok(list.metadata.resource_version.and_then(|version| version.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, collections::VecDeque, io};

    #[tokio::test(start_paused = true)]
    async fn going_back_is_noticed_and_going_on_is_not() {
        let versions = [Ok(Some(5)), Ok(Some(5)), Err(io::Error::other("away")), Ok(Some(9)), Ok(Some(3)), Ok(Some(4))];
        let versions = RefCell::new(VecDeque::from(versions));
        let (timeline, asked) = (Timeline::default(), RefCell::new(Vec::new()));
        let breaks = timeline.breaks();
        let follow = timeline.clone().follow(async || {
            asked.borrow_mut().push(*breaks.borrow());
            let next = versions.borrow_mut().pop_front();
            match next {
                Some(version) => version,
                None => std::future::pending().await,
            }
        });
        tokio::time::timeout(Duration::from_hours(2), follow).await.unwrap_err();
        assert_eq!(*asked.borrow(), [0, 0, 0, 0, 0, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_watches_have_shown_counts() {
        let timeline = Timeline::default();
        let breaks = timeline.breaks();
        timeline.saw(&ObjectMeta { resource_version: Some("12".into()), ..ObjectMeta::default() });
        let follow = timeline.clone().follow(async || Ok::<_, io::Error>(Some(11)));
        tokio::time::timeout(Duration::from_hours(2), follow).await.unwrap_err();
        assert_eq!(*breaks.borrow(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_heard_during_the_question_is_no_restoration() {
        let (timeline, asked) = (Timeline::default(), RefCell::new(10));
        let breaks = timeline.breaks();
        let follow = timeline.clone().follow(async || {
            let now = *asked.borrow();
            timeline.heard(Some(now + 5));
            *asked.borrow_mut() += 10;
            Ok::<_, io::Error>(Some(now))
        });
        tokio::time::timeout(Duration::from_hours(2), follow).await.unwrap_err();
        assert!(*asked.borrow() > 50);
        assert_eq!(*breaks.borrow(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspicion_is_looked_into_at_once() {
        let (timeline, start) = (Timeline::default(), tokio::time::Instant::now());
        let asked = RefCell::new(Vec::new());
        let follow = timeline.clone().follow(async || {
            asked.borrow_mut().push(start.elapsed().as_secs());
            Ok::<_, io::Error>(Some(1))
        });
        let suspect = async {
            sleep(Duration::from_secs(60)).await;
            (0..100).for_each(|_| timeline.suspect());
        };
        let _ = tokio::time::timeout(Duration::from_secs(120), async { tokio::join!(follow, suspect) }).await;
        // One notice may be kept from while it was asked.
        assert!(asked.borrow().starts_with(&[0, 61]) && asked.borrow().len() <= 3, "{asked:?}");
    }
}
