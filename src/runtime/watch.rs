//! Feeds a watch into something synchronous: an index.
//!
//! Owns: the order of events, completeness of lists, retries, and what becomes of an object that cannot be read.
//! Must not: keep objects. Level-triggered: after every interruption the sink sees the whole state or nothing new.

use std::{fmt::Debug, pin::pin, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    core::{DeserializeGuard, PartialObjectMeta, error_boundary::InvalidObject},
    runtime::watcher::{self, Event, InitialListStrategy},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    Readiness, ReadyHandle,
    backoff::{Backoff, jitter},
    chain,
    streak::Streak,
    timeline::{Timeline, version},
};

/// Between attempts: the bounds of kube's own `default_backoff`, which itself never grows in list mode. It starts anew
/// after every event, and the intent to list is one (seen here: an attempt every 0.8–1.6 s for as long as it lasts).
const RETRY: Backoff = Backoff { min: Duration::from_millis(800), max: Duration::from_secs(30) };

/// Between two watches when one had to be given up. Rare, and each costs the API server a list.
const RESTART_DELAY: Duration = Duration::from_secs(5);

/// An object that is there but cannot be read as what it should be.
#[derive(Clone, Debug)]
pub struct Malformed {
    /// Its metadata, which could be read.
    pub meta: ObjectMeta,
    /// What is wrong with the rest.
    pub error: String,
}

/// Where a watch leads. Calls are synchronous and in order.
pub trait Sink<K> {
    /// The whole state, once for every list: what is in neither vector does not exist.
    ///
    /// The malformed come with it, and not before or after, so that their last good state need not be swept.
    fn reset(&mut self, objects: Vec<K>, malformed: Vec<Malformed>);

    /// An object was added or changed.
    fn apply(&mut self, object: K);

    /// An object was deleted. `object` is its last state.
    fn delete(&mut self, object: K);

    /// An object was added or changed and cannot be read. Its last good state may stand.
    fn malformed(&mut self, object: Malformed);

    /// An object that cannot be read was deleted.
    fn delete_malformed(&mut self, object: Malformed);
}

/// What the watches of a process have in common.
#[derive(Clone)]
pub struct Watches {
    /// How the API server is reached.
    pub client: Client,
    /// Whether what was seen is still to be believed.
    pub timeline: Timeline,
}

impl Watches {
    /// Begins to look at the API server's version, by objects of a kind that may be listed.
    pub fn new<K>(client: Client, timeline: Timeline) -> Self
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let api = Api::<K>::all(client.clone());
        tokio::spawn(timeline.clone().follow(async move || version(&api).await));
        Self { client, timeline }
    }

    /// Begins to watch every object of a kind that `config` selects. `readiness` waits for the first list.
    pub fn watch<K, S>(&self, config: watcher::Config, sink: S, readiness: &Readiness, name: &str)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
        S: Sink<K> + Send + 'static,
    {
        let api = Api::all(self.client.clone());
        tokio::spawn(feed(api, config, sink, readiness.register(name), self.timeline.clone()));
    }

    /// Watches as [`feed`] does, and asks for nothing but the metadata of objects.
    pub fn metadata_feed<K, S>(
        &self,
        config: watcher::Config,
        sink: S,
        ready: ReadyHandle,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
        S: Sink<PartialObjectMeta<K>> + Send + 'static,
    {
        let (api, timeline) = (Api::<PartialObjectMeta<K>>::all(self.client.clone()), self.timeline.clone());
        let config = listing_first(config);
        // What is guarded would be asked for whole.
        let guarded = |object| DeserializeGuard(Ok(object));
        let events = move || {
            let events = watcher::watcher(api.clone(), config.clone());
            events.map_ok(move |event| match event {
                Event::Init => Event::Init,
                Event::InitApply(object) => Event::InitApply(guarded(object)),
                Event::InitDone => Event::InitDone,
                Event::Apply(object) => Event::Apply(guarded(object)),
                Event::Delete(object) => Event::Delete(guarded(object)),
            })
        };
        follow(events, sink, ready, timeline)
    }
}

/// Watches `api` into `sink` for ever; drop the future to stop. `ready` is set once the first list is complete and
/// stays set: what was known remains enforced while the API server is away (S8).
///
/// The initial state is always a paged, consistent list, whatever `config` says. kube can stream it instead
/// (WatchList), but asks for `resourceVersion=0`, which lets the server answer with a past that we had left behind and
/// would bring back access that was taken away; it keeps retrying when the server refuses (Kubernetes 1.33 does by
/// default); and it reports a list as complete although an event in it was lost.
///
/// When the storage was restored, as `timeline` says, what was seen may never have been: then it lists anew.
pub async fn feed<K, S>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    sink: S,
    ready: ReadyHandle,
    timeline: Timeline,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
    S: Sink<K>,
{
    let config = listing_first(config);
    follow(|| watcher::watcher(api.clone(), config.clone()), sink, ready, timeline).await;
}

fn listing_first(config: watcher::Config) -> watcher::Config {
    watcher::Config { initial_list_strategy: InitialListStrategy::ListWatch, ..config }
}

/// Begins a watch whenever the one before has ended.
async fn follow<K, S, W>(begin: impl Fn() -> W, mut sink: S, ready: ReadyHandle, timeline: Timeline)
where
    K: Resource,
    K::DynamicType: Default,
    S: Sink<K>,
    W: Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>>,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    loop {
        let mut breaks = timeline.breaks();
        tokio::select! {
            () = drive(&kind, begin(), &mut sink, &ready, &timeline) => {}
            _ = breaks.changed() => continue,
        }
        warn!(%kind, delay = ?RESTART_DELAY, "watch lost an event, will list anew");
        tokio::time::sleep(RESTART_DELAY).await;
    }
}

/// Feeds one watch until it ends, or until it can no longer be trusted to be complete.
async fn drive<K, S>(
    kind: &str,
    stream: impl Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>>,
    sink: &mut S,
    ready: &ReadyHandle,
    timeline: &Timeline,
) where
    K: Resource,
    S: Sink<K>,
{
    let mut stream = pin!(stream);
    let mut list: Option<List<K>> = None;
    let mut streak = Streak::default();
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                timeline.suspect();
                // A list that failed halfway begins again with `Init`.
                list = None;
                let report = streak.failed(Instant::now());
                // After long silence the first answer is often that the version is too old: then all is there to be listed.
                let failures = if has_expired(&error) { 1 } else { streak.failures() };
                let delay = RETRY.delay(u32::try_from(failures).unwrap_or(u32::MAX), jitter());
                if report {
                    let failures = streak.failures();
                    warn!(%kind, error = %chain(&error), failures, retry_in = ?delay, "watch failed, will retry");
                }
                if lost_an_event(&error) {
                    return;
                }
                // kube tries again when it is asked for the next event.
                tokio::time::sleep(delay).await;
                continue;
            }
        };
        // `Init` is kube's intent to list, not an answer of the server's.
        if !matches!(event, Event::Init)
            && let Some(failures) = streak.recovered()
        {
            info!(%kind, failures, "watch works again");
        }
        if let Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) = &event {
            timeline.saw(object.meta());
        }
        match event {
            Event::Init => list = Some(List::default()),
            Event::InitApply(object) => {
                if let Some(list) = &mut list {
                    list.push(kind, object);
                }
            }
            Event::InitDone => {
                // Without an `Init` since the last failure, what was collected is not the whole.
                let Some(List { objects, malformed }) = list.take() else { return };
                sink.reset(objects, malformed);
                ready.set_ready(true);
            }
            Event::Apply(object) => match read(kind, object) {
                Ok(object) => sink.apply(object),
                Err(malformed) => sink.malformed(*malformed),
            },
            Event::Delete(object) => match read(kind, object) {
                Ok(object) => sink.delete(object),
                Err(malformed) => sink.delete_malformed(*malformed),
            },
        }
    }
}

/// A list that is being collected.
struct List<K> {
    objects: Vec<K>,
    malformed: Vec<Malformed>,
}

impl<K> Default for List<K> {
    fn default() -> Self {
        Self { objects: Vec::new(), malformed: Vec::new() }
    }
}

impl<K: Resource> List<K> {
    fn push(&mut self, kind: &str, object: DeserializeGuard<K>) {
        match read(kind, object) {
            Ok(object) => self.objects.push(object),
            Err(malformed) => self.malformed.push(*malformed),
        }
    }
}

fn read<K: Resource>(kind: &str, object: DeserializeGuard<K>) -> Result<K, Box<Malformed>> {
    match object.0 {
        Ok(mut object) => {
            // Often larger than the rest of the object, and of no use here.
            object.meta_mut().managed_fields = None;
            Ok(object)
        }
        Err(InvalidObject { error, metadata: mut meta }) => {
            meta.managed_fields = None;
            let (namespace, name) =
                (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
            warn!(%kind, namespace, name, %error, "cannot read this object, skipping it");
            Err(Box::new(Malformed { meta, error }))
        }
    }
}

/// What was seen is too old to go on from, and kube lists anew.
fn has_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// Errors after which kube goes on as if nothing was missing, or tries what cannot succeed.
fn lost_an_event(error: &watcher::Error) -> bool {
    match error {
        // A line of the stream that is no event at all: kube skips it.
        watcher::Error::WatchFailed(kube::Error::SerdeError(_)) => true,
        // Gone as the answer to a watch rather than an event in it: kube asks for the same version for ever.
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::super::Readiness;
    use super::*;

    type Guarded = DeserializeGuard<Pod>;

    /// Writes down what it is told.
    #[derive(Default)]
    struct Log(Vec<String>);

    fn name(meta: &ObjectMeta) -> &str {
        meta.name.as_deref().unwrap()
    }

    impl Sink<Pod> for Log {
        fn reset(&mut self, objects: Vec<Pod>, malformed: Vec<Malformed>) {
            assert!(objects.iter().all(|pod| pod.metadata.managed_fields.is_none()));
            let names: Vec<_> = objects.iter().map(|pod| name(&pod.metadata)).collect();
            let bad: Vec<_> = malformed.iter().map(|bad| name(&bad.meta)).collect();
            self.0.push(format!("reset {} / {}", names.join(" "), bad.join(" ")));
        }
        fn apply(&mut self, object: Pod) {
            self.0.push(format!("apply {}", name(&object.metadata)));
        }
        fn delete(&mut self, object: Pod) {
            self.0.push(format!("delete {}", name(&object.metadata)));
        }
        fn malformed(&mut self, object: Malformed) {
            self.0.push(format!("malformed {}: {}", name(&object.meta), object.error));
        }
        fn delete_malformed(&mut self, object: Malformed) {
            self.0.push(format!("delete malformed {}", name(&object.meta)));
        }
    }

    fn good(name: &str) -> Guarded {
        let managed = json!([{"manager": "kubectl", "operation": "Apply"}]);
        serde_json::from_value(json!({"metadata": {"name": name, "managedFields": managed}})).unwrap()
    }

    fn bad(name: &str) -> Guarded {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"containers": "none"}})).unwrap()
    }

    fn hiccup() -> watcher::Result<Event<Guarded>> {
        Err(watcher::Error::NoResourceVersion)
    }

    /// What the sink was told, and whether that made it ready.
    async fn told(events: Vec<watcher::Result<Event<Guarded>>>) -> (Vec<String>, bool) {
        let (readiness, mut log) = (Readiness::default(), Log::default());
        let ready = readiness.register("pods");
        drive("Pod", stream::iter(events), &mut log, &ready, &Timeline::default()).await;
        (log.0, readiness.waiting_for().is_empty())
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_arrives_whole_and_then_its_changes() {
        let list = [Event::Init, Event::InitApply(good("a")), Event::InitApply(good("b")), Event::InitDone];
        let changes = [Event::Apply(good("c")), Event::Delete(good("a"))];
        let (log, ready) = told(list.into_iter().chain(changes).map(Ok).collect()).await;
        assert_eq!(log, ["reset a b / ", "apply c", "delete a"]);
        assert!(ready);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_fails_halfway_is_never_seen() {
        let half = vec![Ok(Event::Init), Ok(Event::InitApply(good("a"))), hiccup()];
        let (log, ready) = told(half).await;
        assert!(log.is_empty() && !ready);

        let again =
            vec![Ok(Event::Init), Ok(Event::InitApply(good("a"))), hiccup(), Ok(Event::Init), Ok(Event::InitDone)];
        assert_eq!(told(again).await, (vec!["reset  / ".to_owned()], true));

        // As kube's streaming list would have it: an error in the middle, and then "done".
        let holed = vec![Ok(Event::Init), hiccup(), Ok(Event::InitApply(good("b"))), Ok(Event::InitDone)];
        assert_eq!(told(holed).await, (vec![], false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_keeps_failing_is_tried_more_and_more_rarely() {
        let start = Instant::now();
        told((0..6).flat_map(|_| [Ok(Event::Init), hiccup()]).collect()).await;
        // 0.8 + 1.6 + 3.2 + 6.4 + 12.8 + 25.6 s, each ± 20 %.
        assert!((40..=61).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn after_long_silence_a_list_is_not_put_off() {
        let expired = || {
            let status =
                json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
            Err(watcher::Error::WatchError(serde_json::from_value(status).unwrap()))
        };
        let mut events = vec![Ok(Event::Init), Ok(Event::InitDone)];
        events.extend((0..10).map(|_| hiccup()));
        events.extend([expired(), Ok(Event::Init), Ok(Event::InitDone)]);
        let mut asked = Vec::new();
        let stream = stream::iter(events).inspect(|_| asked.push(Instant::now()));
        let (readiness, mut log) = (Readiness::default(), Log::default());
        drive("Pod", stream, &mut log, &readiness.register("pods"), &Timeline::default()).await;
        let pauses: Vec<u64> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
        assert!(pauses[11] >= 24, "{pauses:?}");
        assert!(pauses[12] <= 1, "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn errors_between_changes_do_not_end_the_watch_unless_one_was_lost() {
        let start = || vec![Ok(Event::Init), Ok(Event::InitDone)];
        let mut events = start();
        events.extend([hiccup(), Ok(Event::Apply(good("a")))]);
        assert_eq!(told(events).await.0, ["reset  / ", "apply a"]);

        let garbage = serde_json::from_str::<()>("{").unwrap_err();
        let mut events = start();
        events
            .extend([Err(watcher::Error::WatchFailed(kube::Error::SerdeError(garbage))), Ok(Event::Apply(good("a")))]);
        assert_eq!(told(events).await.0, ["reset  / "], "what follows a lost event is not the truth");
    }

    #[tokio::test(start_paused = true)]
    async fn a_malformed_object_is_reported_and_wedges_nothing() {
        let events = vec![
            Event::Init,
            Event::InitApply(good("a")),
            Event::InitApply(bad("x")),
            Event::InitDone,
            Event::Apply(bad("y")),
            Event::Apply(good("b")),
            Event::Delete(bad("y")),
        ];
        let (log, ready) = told(events.into_iter().map(Ok).collect()).await;
        assert!(ready);
        assert_eq!(
            (log[0].as_str(), log[2].as_str(), log[3].as_str()),
            ("reset a / x", "apply b", "delete malformed y")
        );
        assert!(log[1].starts_with("malformed y: ") && log[1].contains("none"), "{}", log[1]);
    }
}
