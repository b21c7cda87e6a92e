//! How long after kubectl has returned a change is in force, on every node concerned, for open connections and new ones.
//!
//! Needs a quiet cluster with Ringfence on it: `make cluster install`. A benchmark, so it asserts nothing about time; it prints
//! percentiles and writes them to `target/bench/latency.json`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that cannot run fails by panicking"
)]

#[allow(dead_code, reason = "the end-to-end tests use the rest")]
#[path = "../e2e/cluster.rs"]
mod cluster;
#[allow(dead_code, reason = "likewise")]
#[path = "../e2e/reach.rs"]
mod reach;

use cluster::Namespace;
use reach::Pod;
use serde_json::json;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Changes of each kind and direction.
const CHANGES: usize = 200;
/// Between two questions of a flow: what the measurement can tell apart. Shorter, and the flows are what keeps two cores busy.
const TICK: Duration = Duration::from_millis(3);
/// Silence for so long is a cut; an answer takes a fraction of a millisecond.
const SILENCE: Duration = Duration::from_millis(100);

fn main() {
    let namespace = Namespace::new("latency");
    let pods = namespace.pods(&[("near", "server", "n1"), ("far", "server", "n2"), ("client", "client", "n1")]);
    namespace.group("client", "[]", None);
    namespace.bind("server", &["server"], "server");

    let rule = |open: bool| {
        let ingress = if open { "[{protocol: UDP, ports: [53], remote: {cidrs: [\"0.0.0.0/0\"]}}]" } else { "[]" };
        move |namespace: &Namespace| namespace.group("server", ingress, None)
    };
    rule(false)(&namespace);
    namespace.enforced();
    let servers = [&pods["near"], &pods["far"]];
    let rules = measure("a rule of the servers' group", &namespace, &pods["client"], servers, rule(true), rule(false));

    namespace.group("server", "[{protocol: UDP, ports: [53], remote: {securityGroup: {name: client}}}]", None);
    namespace.enforced();
    let members = measure(
        "the client's binding to a remote group",
        &namespace,
        &pods["client"],
        servers,
        |namespace| namespace.bind("client", &["client"], "client"),
        |namespace| drop(namespace.kubectl(&["delete", "sgb", "client", "--wait=false"])),
    );

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench/latency.json");
    std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench")).unwrap();
    std::fs::write(
        file,
        format!("{:#}\n", json!({ "unit": "ms after kubectl returned", "measured": [rules, members] })),
    )
    .unwrap();
    println!("written to {file}");
}

/// Makes a change and takes it back, many times, under flows to both servers.
fn measure(
    what: &str,
    namespace: &Namespace,
    client: &Pod,
    servers: [&Pod; 2],
    allow: impl Fn(&Namespace),
    cut: impl Fn(&Namespace),
) -> serde_json::Value {
    let flows: Vec<Flow> =
        servers.iter().flat_map(|server| [true, false].map(|open| Flow::start(client, server, open))).collect();
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        let before = Instant::now();
        allow(namespace);
        let returned = Instant::now();
        allowed
            .push(flows.iter().map(|flow| flow.first_after(before)).max().unwrap().saturating_duration_since(returned));
        // The status of the last change is written by then: a quiet cluster.
        std::thread::sleep(SILENCE);

        cut(namespace);
        let returned = Instant::now();
        denied.push(flows.iter().map(Flow::last).max().unwrap().saturating_duration_since(returned));
        std::thread::sleep(SILENCE);
    }
    println!("{what}, {CHANGES} changes each, the slowest of open and new connections on both nodes:");
    let result = json!({ "change": what, "changes": CHANGES, "allow": percentiles("allow", allowed), "cut": percentiles("cut", denied) });
    flows.into_iter().for_each(Flow::stop);
    result
}

fn percentiles(what: &str, mut times: Vec<Duration>) -> serde_json::Value {
    times.sort();
    let ms = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1000.0;
    println!("  {what:<6} p50 {:6.1} ms   p99 {:6.1} ms   longest {:6.1} ms", ms(50), ms(99), ms(100));
    json!({ "p50": ms(50), "p99": ms(99), "longest": ms(100) })
}

/// Questions from a pod to a server, one every tick, and when answers came.
struct Flow {
    /// Nanoseconds from the start to the last answer; 0: none yet.
    last: Arc<AtomicU64>,
    /// The first answer after a silence.
    first: Arc<Mutex<Instant>>,
    started: Instant,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Flow {
    /// With `open`, one connection for ever; without, a new one for every question.
    fn start(client: &Pod, server: &Pod, open: bool) -> Self {
        let client = client.clone();
        let server = SocketAddr::new(server.addresses[0].parse::<IpAddr>().unwrap(), 53);
        let (last, stop, started) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)), Instant::now());
        let first = Arc::new(Mutex::new(started));
        let thread = std::thread::spawn({
            let (last, first, stop) = (last.clone(), first.clone(), stop.clone());
            move || {
                let answered = |answered: Instant| {
                    let now = u64::try_from((answered - started).as_nanos()).unwrap();
                    let before = Duration::from_nanos(last.swap(now, Ordering::SeqCst));
                    if answered - (started + before) > SILENCE / 2 {
                        *first.lock().unwrap() = answered;
                    }
                };
                client.enter(|| ask(server, open, &stop, answered));
            }
        });
        Self { last, first, started, stop, thread }
    }

    /// The first answer after a silence that ended after this instant.
    fn first_after(&self, instant: Instant) -> Instant {
        let limit = Instant::now() + cluster::SOON;
        loop {
            let first = *self.first.lock().unwrap();
            if first > instant {
                return first;
            }
            assert!(Instant::now() < limit, "not allowed within {:?}", cluster::SOON);
            std::thread::sleep(TICK);
        }
    }

    /// The last answer before a silence.
    fn last(&self) -> Instant {
        let limit = Instant::now() + cluster::SOON;
        loop {
            let last = self.started + Duration::from_nanos(self.last.load(Ordering::SeqCst));
            if last.elapsed() > SILENCE {
                return last;
            }
            assert!(Instant::now() < limit, "not cut within {:?}", cluster::SOON);
            std::thread::sleep(TICK);
        }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

fn ask(server: SocketAddr, open: bool, stop: &AtomicBool, mut answered: impl FnMut(Instant)) {
    let socket = || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    // An answer that is not there after as many ticks does not come.
    let mut asked: VecDeque<UdpSocket> = [socket()].into();
    while !stop.load(Ordering::SeqCst) {
        if !open {
            asked.push_back(socket());
            if asked.len() > 8 {
                asked.pop_front();
            }
        }
        // A refusal of an earlier question is reported here, and is no answer.
        let _ = asked.back().unwrap().send(b"?");
        std::thread::sleep(TICK);
        for socket in &asked {
            if socket.recv(&mut [0; 64]).is_ok() {
                answered(Instant::now());
            }
        }
    }
}
