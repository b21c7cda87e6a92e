//! The HTTP server for the kubelet and for Prometheus: `/livez`, `/readyz`, `/metrics`.
//!
//! Owns: the listener and the list of what readiness waits for. Must not: serve anything of the product's; the port
//! is open to the pod network, so it says how the process is, and of objects no more than names and counts, as metrics.

use std::{fmt::Write, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};
use prometheus_client::{encoding::text, registry::Registry};
use thiserror::Error;
use tokio::{net::TcpListener, sync::watch};

use super::process::ProcessCollector;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long a client may take to finish once the server stops. A slow scrape must not hold up the process's exit.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// What has to be ready before the process is. Cheap to clone.
///
/// It is not ready as long as nothing is registered: the admin server answers before the process knows what to wait for.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<Vec<Check>>>);

#[derive(Debug)]
struct Check {
    name: String,
    ready: bool,
}

/// One thing that readiness waits for.
#[derive(Debug)]
pub struct ReadyHandle {
    checks: Arc<watch::Sender<Vec<Check>>>,
    index: usize,
}

impl Readiness {
    /// Adds something to wait for.
    pub fn register(&self, name: impl Into<String>) -> ReadyHandle {
        let mut index = 0;
        self.0.send_modify(|checks| {
            index = checks.len();
            checks.push(Check { name: name.into(), ready: false });
        });
        ReadyHandle { checks: Arc::clone(&self.0), index }
    }

    /// The names of what is not ready, in the order they were registered.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<String> {
        let checks = self.0.borrow();
        if checks.is_empty() {
            return vec!["start".to_owned()];
        }
        checks.iter().filter(|check| !check.ready).map(|check| check.name.clone()).collect()
    }

    /// Resolves once everything registered is ready. An agent writes nothing to the kernel before that.
    pub async fn ready(&self) {
        let mut checks = self.0.subscribe();
        // The sender cannot be gone: `self` holds it.
        let _ = checks.wait_for(|checks| !checks.is_empty() && checks.iter().all(|check| check.ready)).await;
    }
}

impl ReadyHandle {
    /// Says whether it is ready. It stays part of readiness for the life of the process.
    pub fn set_ready(&self, ready: bool) {
        self.checks.send_if_modified(|checks| match checks.get_mut(self.index) {
            Some(check) if check.ready != ready => {
                check.ready = ready;
                true
            }
            _ => false,
        });
    }
}

/// The admin port cannot be had.
#[derive(Debug, Error)]
#[error("cannot listen on {address} for the admin server")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// The server, bound but not yet serving.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    app: Router,
}

impl Admin {
    /// Binds the address. The process's own metrics are added to what `registry` has, whatever its prefix.
    ///
    /// # Errors
    /// When the address cannot be bound; the message names it.
    pub async fn bind(address: SocketAddr, readiness: Readiness, registry: Registry) -> Result<Self, BindError> {
        // A registry of their own, for a prefix of the product's would take these metrics' customary names.
        let mut process = Registry::default();
        process.register_collector(Box::new(ProcessCollector::new()));
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let app = Router::new()
            .route("/livez", get(|| async { "live\n" }))
            .route("/readyz", get(readyz).with_state(readiness))
            .route("/metrics", get(metrics).with_state(Arc::new([process, registry])));
        Ok(Self { listener, address, app })
    }

    /// The address it listens on, with the port the kernel chose if port 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` resolves, then lets requests that have begun finish, for a moment.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let Self { listener, address: _, app } = self;
        let (stopping, mut stopped) = watch::channel(false);
        let server = axum::serve(listener, app).with_graceful_shutdown(async move {
            shutdown.await;
            stopping.send_replace(true);
        });
        tokio::select! {
            result = server => result,
            () = async {
                // An error means that the server is gone, and then the other branch has the word.
                if stopped.wait_for(|stop| *stop).await.is_err() { std::future::pending::<()>().await; }
                tokio::time::sleep(LAST_REQUESTS).await;
            } => Ok(()),
        }
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let waiting = readiness.waiting_for();
    if waiting.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let mut body = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(body, "waiting for: {}", waiting.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, body)
}

async fn metrics(State(registries): State<Arc<[Registry; 2]>>) -> impl IntoResponse {
    let mut body = String::new();
    let encoded = registries.iter().try_for_each(|registry| text::encode_registry(&mut body, registry));
    match encoded.and_then(|()| text::encode_eof(&mut body)) {
        Ok(()) => (StatusCode::OK, [(CONTENT_TYPE, OPENMETRICS)], body),
        Err(_) => {
            let body = "a metric cannot be encoded\n".to_owned();
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], body)
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use prometheus_client::metrics::gauge::Gauge;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::super::Shutdown;
    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn local() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[tokio::test]
    async fn answers_for_the_process_and_stops() {
        let readiness = Readiness::default();
        let mut registry = Registry::with_prefix("ringfence");
        registry.register("leader", "1 on the replica that writes", Gauge::<i64>::default());
        let admin = Admin::bind(local(), readiness.clone(), registry).await.unwrap();
        let address = admin.local_addr();
        let (trigger, shutdown) = Shutdown::manual();
        let server = tokio::spawn(admin.serve(async move { shutdown.signalled().await }));

        let answer = get(address, "/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("live\n"), "{answer}");

        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"), "nothing is registered yet");
        assert!(readiness.ready().now_or_never().is_none());
        let (pods, groups) = (readiness.register("pods"), readiness.register("groups"));
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("waiting for: pods, groups\n"), "{answer}");
        pods.set_ready(true);
        assert_eq!(readiness.waiting_for(), ["groups"]);
        assert!(readiness.ready().now_or_never().is_none());
        groups.set_ready(true);
        readiness.ready().await;
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));

        let answer = get(address, "/metrics").await;
        assert!(answer.contains(OPENMETRICS) && answer.contains("\nprocess_open_fds "), "{answer}");
        assert!(answer.contains("\nringfence_leader 0"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");

        // A client that sends nothing does not keep the server.
        let _idle = TcpStream::connect(address).await.unwrap();
        trigger.shut_down();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let first = Admin::bind(local(), Readiness::default(), Registry::default()).await.unwrap();
        let address = first.local_addr();
        let error = Admin::bind(address, Readiness::default(), Registry::default()).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
