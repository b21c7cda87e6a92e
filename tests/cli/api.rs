//! An API server as far as the plugin needs one: lists in pages, gets, JSON patches, creations, deletions, watches.
//!
//! In the place of the controller it says `Enforced` some milliseconds after each change.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Plural, namespace, name.
type Key = (String, String, String);
/// What somebody else does right before a patch arrives.
type Intruder = Box<dyn FnMut(&mut Objects) + Send>;
type Objects = BTreeMap<Key, Value>;

#[derive(Default)]
struct Store {
    objects: Objects,
    version: u64,
    intruder: Option<Intruder>,
    never_enforced: bool,
    requests: Vec<String>,
}

type Shared = Arc<Mutex<Store>>;

/// A running server, and a kubeconfig for it.
pub struct Api {
    store: Shared,
    /// What `KUBECONFIG` is to be.
    pub kubeconfig: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

impl Api {
    /// With these objects, whose `plural` says what they are.
    pub fn new(name: &str, objects: impl IntoIterator<Item = Value>) -> Self {
        let shared = Shared::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(serve).with_state(shared.clone());
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let kubeconfig = folder.join(format!("{name}.kubeconfig"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "test", "user": {} }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": "shop" } }],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let api = Self { store: shared, kubeconfig, _runtime: runtime };
        objects.into_iter().for_each(|object| api.put(object));
        api
    }

    /// Takes in an object.
    pub fn put(&self, mut object: Value) {
        let plural = match object["kind"].as_str().unwrap() {
            "NetworkPolicy" => "networkpolicies".to_owned(),
            kind => format!("{}s", kind.to_lowercase()),
        };
        let mut store = self.store.lock().unwrap();
        store.version += 1;
        object["metadata"]["resourceVersion"] = json!(store.version.to_string());
        object["metadata"]["uid"] = json!(format!("uid-{}", store.version));
        if object["metadata"]["generation"].is_null() {
            object["metadata"]["generation"] = json!(1);
        }
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = (plural, text("namespace"), text("name"));
        store.objects.insert(key, object);
    }

    /// An object as it is.
    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), "shop".to_owned(), name.to_owned());
        self.store.lock().unwrap().objects.get(&key).cloned()
    }

    /// Lets somebody else edit right before the next patch.
    pub fn intrude(&self, intruder: impl FnMut(&mut Value) + Send + 'static, plural: &str, name: &str) {
        let key = (plural.to_owned(), "shop".to_owned(), name.to_owned());
        let mut intruder = intruder;
        self.store.lock().unwrap().intruder = Some(Box::new(move |objects| intruder(objects.get_mut(&key).unwrap())));
    }

    /// No node ever enforces anything from now on.
    pub fn break_down(&self) {
        self.store.lock().unwrap().never_enforced = true;
    }

    /// What was asked, line by line.
    pub fn requests(&self) -> Vec<String> {
        self.store.lock().unwrap().requests.clone()
    }
}

async fn serve(State(shared): State<Shared>, method: Method, uri: Uri, body: Bytes) -> Response {
    let query: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    shared.lock().unwrap().requests.push(format!("{method} {uri}"));
    // /api/v1/… or /apis/GROUP/VERSION/…, and then a namespace or none.
    let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let parts = if parts.first() == Some(&"api") { &parts[2..] } else { &parts[3..] };
    let (namespace, rest) = match parts {
        ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let plural = rest[0].to_owned();
    let key = rest.get(1).map(|name| (plural.clone(), namespace.clone().unwrap_or_default(), (*name).to_owned()));
    if query.contains_key("watch") {
        let name = query["fieldSelector"].replace("metadata.name%3D", "");
        return watch(shared, (plural, namespace.unwrap(), name), query["resourceVersion"].parse().unwrap_or(0));
    }
    // Deletions say it in what they send.
    let dry_run = query.contains_key("dryRun") || body.windows(6).any(|word| word == b"dryRun");
    match (method, key) {
        (Method::GET, None) => list(&shared, &plural, namespace.as_deref(), &query),
        (Method::GET, Some(key)) => match shared.lock().unwrap().objects.get(&key) {
            Some(object) => answer(&object.clone()),
            None => refusal(404, "not found"),
        },
        (Method::PATCH, Some(key)) => patch(&shared, &key, &body, dry_run),
        (Method::POST, None) => {
            let object: Value = serde_json::from_slice(&body).unwrap();
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let key = (plural, namespace.unwrap(), name);
            if shared.lock().unwrap().objects.contains_key(&key) {
                return refusal(409, "it exists already");
            }
            if !dry_run {
                store(&shared, &key, object.clone());
            }
            answer(&shared.lock().unwrap().objects.get(&key).cloned().unwrap_or(object))
        }
        (Method::DELETE, Some(key)) => {
            let removed = match dry_run {
                true => shared.lock().unwrap().objects.get(&key).cloned(),
                false => shared.lock().unwrap().objects.remove(&key),
            };
            removed.map_or_else(|| refusal(404, "not found"), |object| answer(&object))
        }
        _ => refusal(405, "not here"),
    }
}

fn list(shared: &Shared, plural: &str, namespace: Option<&str>, query: &BTreeMap<String, String>) -> Response {
    let store = shared.lock().unwrap();
    let wanted = |(p, n, _): &&Key| p == plural && namespace.is_none_or(|namespace| n == namespace);
    let items: Vec<Value> = store.objects.iter().filter(|(key, _)| wanted(key)).map(|(_, o)| o.clone()).collect();
    let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let first: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    let last = first.saturating_add(limit).min(items.len());
    let token = if last < items.len() { last.to_string() } else { String::new() };
    let metadata = json!({ "continue": token, "resourceVersion": store.version.to_string() });
    answer(&json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items[first..last] }))
}

fn patch(shared: &Shared, key: &Key, body: &[u8], dry_run: bool) -> Response {
    let mut object = {
        let mut store = shared.lock().unwrap();
        if let Some(mut intruder) = store.intruder.take() {
            intruder(&mut store.objects);
        }
        match store.objects.get(key) {
            Some(object) => object.clone(),
            None => return refusal(404, "not found"),
        }
    };
    let patch: json_patch::Patch = serde_json::from_slice(body).unwrap();
    if let Err(error) = json_patch::patch(&mut object, &patch) {
        return refusal(422, &format!("the server rejected our request due to an error in our request: {error}"));
    }
    object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap() + 1);
    if !dry_run {
        object = store(shared, key, object);
    }
    answer(&object)
}

/// Keeps an object, and enforces it some time later.
fn store(shared: &Shared, key: &Key, mut object: Value) -> Value {
    let mut store = shared.lock().unwrap();
    store.version += 1;
    object["metadata"]["resourceVersion"] = json!(store.version.to_string());
    if object["metadata"]["generation"].is_null() {
        object["metadata"]["generation"] = json!(1);
    }
    store.objects.insert(key.clone(), object.clone());
    let (shared, key, status) = (shared.clone(), key.clone(), !store.never_enforced);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let mut store = shared.lock().unwrap();
        store.version += 1;
        let version = store.version.to_string();
        let Some(object) = store.objects.get_mut(&key) else { return };
        let generation = object["metadata"]["generation"].clone();
        object["metadata"]["resourceVersion"] = json!(version);
        object["status"] = json!({
            "nodes": { "desired": 2, "enforced": if status { 2 } else { 1 }, "summary": "" },
            "conditions": [{
                "type": "Enforced", "status": if status { "True" } else { "False" }, "reason": "Reported",
                "message": "n2 does not answer", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        });
    });
    object
}

/// Events of one object, for as long as somebody listens.
fn watch(shared: Shared, key: Key, mut seen: u64) -> Response {
    let events = futures::stream::repeat(()).then_each(move || {
        let object = shared.lock().unwrap().objects.get(&key).cloned();
        let version = object.as_ref().and_then(|o| o["metadata"]["resourceVersion"].as_str()?.parse::<u64>().ok());
        let news = version.filter(|version| *version > seen).map(|version| {
            seen = version;
            Bytes::from(json!({ "type": "MODIFIED", "object": object }).to_string() + "\n")
        });
        news.unwrap_or_default()
    });
    Body::from_stream(events).into_response()
}

/// A look at something, again and again.
trait ThenEach: futures::Stream<Item = ()> + Sized {
    fn then_each(self, mut look: impl FnMut() -> Bytes) -> impl futures::Stream<Item = Result<Bytes, std::io::Error>> {
        futures::StreamExt::then(self, move |()| {
            let bytes = look();
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(bytes)
            }
        })
    }
}

impl<S: futures::Stream<Item = ()>> ThenEach for S {}

fn answer(object: &Value) -> Response {
    ([("content-type", "application/json")], object.to_string()).into_response()
}

fn refusal(code: u16, message: &str) -> Response {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code, "message": message,
        "reason": if code == 404 { "NotFound" } else { "Refused" },
    });
    (StatusCode::from_u16(code).unwrap(), answer(&status)).into_response()
}
