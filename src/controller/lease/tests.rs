//! Decisions one by one, then candidates against an API server that knows nothing but leases.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use super::*;

fn observed(holder: &str, seconds: Option<i32>) -> Observed {
    let spec = LeaseSpec {
        holder_identity: Some(holder.to_owned()),
        lease_duration_seconds: seconds,
        lease_transitions: Some(4),
        // A clock that is years off must not matter.
        renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
        ..LeaseSpec::default()
    };
    Observed { lease: Lease { spec: Some(spec), ..Lease::default() }, since: Instant::now() }
}

#[test]
fn decisions() {
    let theirs = observed("b", Some(15));
    let after = |seconds: u64| theirs.since + Duration::from_millis(seconds * 1000 - 1);
    for (lease, now, action) in [
        (None, after(1), Action::Create),
        (Some(&observed("a", Some(15))), after(1), Action::Renew),
        (Some(&observed("a", Some(15))), after(99), Action::Renew),
        (Some(&observed("", Some(1))), after(1), Action::Take),
        (Some(&theirs), after(15), Action::Wait),
        (Some(&theirs), after(16), Action::Take),
        // The holder's own duration counts, and nonsense is not an invitation.
        (Some(&observed("b", Some(60))), after(59), Action::Wait),
        (Some(&observed("b", None)), after(14), Action::Wait),
        (Some(&observed("b", Some(0))), after(14), Action::Wait),
        (Some(&observed("b", Some(-5))), after(14), Action::Wait),
    ] {
        assert_eq!(decide(lease, "a", now), action, "{lease:?}");
    }
}

#[test]
fn a_claim_counts_the_holders_and_keeps_what_is_not_ours() {
    let mut theirs = observed("b", Some(60));
    theirs.lease.metadata.resource_version = Some("7".to_owned());
    let lease = claim(Some(&theirs), &Action::Take, "x", "a", 15);
    assert_eq!(lease.metadata.resource_version.as_deref(), Some("7"), "or the write would be unconditional");
    let spec = lease.spec.unwrap();
    assert_eq!((spec.lease_transitions, spec.lease_duration_seconds), (Some(5), Some(15)));

    let spec = claim(Some(&observed("a", Some(15))), &Action::Renew, "x", "a", 15).spec.unwrap();
    assert_eq!((spec.lease_transitions, spec.acquire_time), (Some(4), None));
    assert!(spec.renew_time.unwrap().0 > Timestamp::UNIX_EPOCH);

    let spec = claim(None, &Action::Create, "x", "a", 15).spec.unwrap();
    assert_eq!(spec.lease_transitions, Some(0));
}

#[tokio::test(start_paused = true)]
async fn leadership_ends_on_time_even_if_the_election_hangs() {
    let sender = watch::Sender::new(None);
    let mut leadership = Leadership { leads_until: sender.subscribe(), seen: false };
    sender.send_replace(Some(Instant::now() + Duration::from_secs(10)));
    assert!(leadership.changed().await && leadership.is_leader());

    let start = Instant::now();
    sleep(Duration::from_secs(2)).await;
    sender.send_replace(Some(Instant::now() + Duration::from_secs(10)));
    drop(sender);
    assert!(!leadership.changed().await && !leadership.is_leader());
    assert!((12_000..12_010).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

/// Stores one lease, and refuses what was decided on an older version of it.
#[derive(Default)]
struct Server {
    lease: Option<Lease>,
    version: u64,
    down: bool,
}

type Shared = Arc<Mutex<Server>>;

impl Server {
    fn store(&mut self, body: &Bytes, allowed: impl Fn(Option<&str>, &Lease) -> bool) -> Response {
        let mut lease: Lease = serde_json::from_slice(body).unwrap();
        let current = self.lease.as_ref().and_then(|l| l.metadata.resource_version.as_deref());
        if self.down {
            return refuse(500);
        }
        if !allowed(current, &lease) {
            return refuse(409);
        }
        self.version += 1;
        lease.metadata.resource_version = Some(self.version.to_string());
        self.lease = Some(lease);
        self.show()
    }

    fn show(&self) -> Response {
        match &self.lease {
            _ if self.down => refuse(500),
            Some(lease) => serde_json::to_vec(lease).unwrap().into_response(),
            None => refuse(404),
        }
    }
}

fn refuse(code: u16) -> Response {
    // kube goes by the reason.
    let reason = if code == 404 { "NotFound" } else { "Other" };
    let status = json!({"kind": "Status", "status": "Failure", "message": "no", "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), status.to_string()).into_response()
}

async fn server() -> (Shared, Client) {
    let shared = Shared::default();
    let leases = "/apis/coordination.k8s.io/v1/namespaces/ns/leases";
    let create = async |State(server): State<Shared>, body: Bytes| {
        server.lock().unwrap().store(&body, |current, _| current.is_none())
    };
    let replace = async |State(server): State<Shared>, body: Bytes| {
        let same = |current: Option<&str>, lease: &Lease| current == lease.metadata.resource_version.as_deref();
        server.lock().unwrap().store(&body, same)
    };
    let read = async |State(server): State<Shared>| server.lock().unwrap().show();
    let app = Router::new()
        .route(leases, post(create))
        .route(&format!("{leases}/{{name}}"), get(read).put(replace))
        .with_state(shared.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    (shared, Client::try_from(kube::Config::new(url)).unwrap())
}

/// A candidate in a hurry, running: what it knows, how to stop it, and its task.
fn candidate(client: &Client, identity: &str) -> (Leadership, oneshot::Sender<()>, JoinHandle<()>) {
    let mut election = LeaderElection::new(client.clone(), "ns", "x", identity);
    let (deadline, retry) = (Duration::from_millis(500), Duration::from_millis(50));
    election.timing = Timing { duration_seconds: 1, renew_deadline: deadline, retry };
    let leadership = election.leadership();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(election.run(async { drop(stopped.await) }));
    (leadership, stop, task)
}

fn spec(server: &Shared) -> LeaseSpec {
    server.lock().unwrap().lease.clone().unwrap().spec.unwrap()
}

#[tokio::test]
async fn one_leads_and_hands_over() {
    let (server, client) = server().await;
    let (mut a, stop_a, task_a) = candidate(&client, "a");
    assert!(a.changed().await);

    let (mut b, stop_b, task_b) = candidate(&client, "b");
    sleep(Duration::from_millis(1_300)).await;
    assert!(a.is_leader() && !b.is_leader(), "renewed beyond the lease's duration");

    // Released: long before the lease would have expired.
    let released = Instant::now();
    stop_a.send(()).unwrap();
    task_a.await.unwrap();
    assert!(!a.is_leader());
    assert!(b.changed().await);
    assert!(released.elapsed() < Duration::from_millis(500), "{:?}", released.elapsed());
    assert_eq!(spec(&server).lease_transitions, Some(1));

    // Killed: not before it has expired.
    task_b.abort();
    let killed = Instant::now();
    let (mut c, stop_c, task_c) = candidate(&client, "c");
    assert!(c.changed().await);
    assert!(!b.is_leader() && killed.elapsed() > Duration::from_millis(900), "{:?}", killed.elapsed());
    assert_eq!(spec(&server).lease_transitions, Some(2));

    stop_c.send(()).unwrap();
    task_c.await.unwrap();
    assert_eq!(spec(&server).holder_identity.as_deref(), Some(""));
    drop(stop_b);
}

#[tokio::test]
async fn a_leader_cut_off_from_the_server_stops_in_time_and_returns() {
    let (server, client) = server().await;
    let (mut a, _stop, _task) = candidate(&client, "a");
    assert!(a.changed().await);
    server.lock().unwrap().down = true;
    let cut = Instant::now();
    assert!(!a.changed().await);
    assert!(cut.elapsed() < Duration::from_millis(600), "before anybody may take the lease: {:?}", cut.elapsed());
    server.lock().unwrap().down = false;
    assert!(a.changed().await);
    assert_eq!(spec(&server).lease_transitions, Some(0), "nobody else held it");
}

#[tokio::test]
async fn a_lease_taken_away_or_deleted_is_noticed() {
    let (server, client) = server().await;
    let (mut a, _stop, _task) = candidate(&client, "a");
    assert!(a.changed().await);

    // Somebody edits the lease: the next renewal conflicts, and the holder looks.
    {
        let mut server = server.lock().unwrap();
        server.version += 1;
        let version = server.version.to_string();
        let lease = server.lease.as_mut().unwrap();
        lease.metadata.resource_version = Some(version);
        lease.spec.as_mut().unwrap().holder_identity = Some("admin".to_owned());
    }
    assert!(!a.changed().await);
    server.lock().unwrap().lease = None;
    assert!(a.changed().await);
    assert_eq!(spec(&server).holder_identity.as_deref(), Some("a"));
}
