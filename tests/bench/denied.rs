//! What it costs that the kernel tells of denied packets: accepted traffic through a node on which as many packets are denied as
//! one processor sends, with and without; and a denied packet's own price.
//!
//! All cases take turns on one node within one run, so that whatever else the machine does meets all of them alike. Prints
//! medians and ratios. `cargo bench --profile dev --bench denied`; needs root, `nft` and `ip`. Nothing here can fail by being slow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that cannot run panics")]

#[path = "../support/mod.rs"]
mod support;

use ringfence::nft::denied::Denied;
use ringfence::nft::{self, Ruleset};
use ringfence::policy::{Group, Transport};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::scenario::{anyone, interface, ports, rule};
use support::topology::{Network, Topology};
use support::traffic::{self, Expect, Flow};

const ROUNDS: usize = 9;
const TURN: Duration = Duration::from_millis(700);
const ACCEPTED: u16 = 7000;

/// Whether packets are denied meanwhile, and whether the kernel tells of them.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    flood: bool,
    told: bool,
}

const CASES: [Case; 4] = [
    Case { name: "nothing denied, told", flood: false, told: true },
    Case { name: "a flood denied, not told", flood: true, told: false },
    Case { name: "a flood denied, told", flood: true, told: true },
    Case { name: "a flood denied, not told, again", flood: true, told: false },
];

fn main() {
    if !support::lab::ready() {
        return;
    }
    let topology = Topology::new(Network::Routed, 3);
    topology.pin_neighbours();
    let node = &topology.node.netns;
    let group = Group { ingress: vec![rule(ports(Transport::Udp, [ACCEPTED..=ACCEPTED]), anyone())], egress: vec![] };
    let profile = nft::compile(&interface(group));
    let guarded = topology.pods[1].addresses.iter().map(|address| (*address, &profile));
    let mut ruleset = Ruleset::new(guarded, |_| Arc::default());
    // What the agent does: it reads, and no more than that can be in anybody's way.
    node.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut denied = runtime.block_on(async { Denied::open().unwrap() });
        std::thread::spawn(move || runtime.block_on(async { while denied.news().await.is_ok() {} }));
    });
    let mut rates = vec![(Vec::new(), Vec::new(), Vec::new()); CASES.len()];
    for round in 0..ROUNDS {
        for i in 0..CASES.len() {
            // From either end in turn: what follows what makes no difference.
            let i = if round % 2 == 0 { i } else { CASES.len() - 1 - i };
            let case = CASES[i];
            ruleset.told = NonZeroU32::new(10).filter(|_| case.told);
            node.apply([nft::full(&ruleset).as_str()]);
            let (accepted, denied, price) = turn(&topology, case.flood);
            rates[i].0.push(accepted);
            rates[i].1.push(denied);
            rates[i].2.push(price);
        }
    }
    let base = median(&mut rates[1].0.clone());
    let price = median(&mut rates[1].2.clone());
    println!("{:34} {:>14} {:>9} {:>12} {:>14} {:>9}", "", "accepted/s", "ratio", "denied/s", "ns a denied", "ratio");
    for (case, (accepted, denied, prices)) in CASES.iter().zip(&mut rates) {
        let (accepted, denied, own) = (median(accepted), median(denied), median(prices));
        println!(
            "{:34} {accepted:>14.0} {:>9.3} {denied:>12.0} {own:>14.0} {:>9.3}",
            case.name,
            accepted / base,
            own / price
        );
    }
}

/// Accepted datagrams and denied ones a second, and the sender's processor time for one of those, in nanoseconds.
fn turn(topology: &Topology, flood: bool) -> (f64, f64, f64) {
    let (client, server, stranger) = (&topology.pods[0], &topology.pods[1], &topology.pods[2]);
    let socket = |host, port| traffic::udp(host, if port == 0 { client.v4() } else { server.v4() }, port);
    let (stop, sent, spent) =
        (Arc::new(AtomicBool::new(!flood)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let flooder = {
        let (from, to) = (traffic::udp(stranger, stranger.v4(), 0), server.v4());
        let (stop, sent, spent) = (stop.clone(), sent.clone(), spent.clone());
        std::thread::spawn(move || {
            let mut processors = CpuSet::new();
            processors.set(0);
            sched_setaffinity(None, &processors).unwrap();
            let processor_time = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
            let began = processor_time();
            while !stop.load(SeqCst) {
                // Another connection each time, of a few thousand.
                for port in 10_000..14_000u16 {
                    let _ = from.send_to(b"denied", (to, port));
                    sent.fetch_add(1, SeqCst);
                }
            }
            spent.store((processor_time() - began).as_nanos() as u64, SeqCst);
        })
    };
    let flow = Flow::start(socket(client, 0), socket(server, ACCEPTED), Expect::All);
    let began = Instant::now();
    std::thread::sleep(TURN);
    let seconds = began.elapsed().as_secs_f64();
    let accepted = flow.carried();
    stop.store(true, SeqCst);
    flooder.join().unwrap();
    let lost = flow.stop().lost;
    assert_eq!(lost, 0, "an accepted datagram was lost");
    let denied = sent.load(SeqCst) as f64;
    (accepted.received as f64 / seconds, denied / seconds, spent.load(SeqCst) as f64 / denied.max(1.))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
