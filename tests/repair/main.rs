//! Others change our table, nft fails, agents die half-way: what was enforced stays, and what was lost comes back by itself.
//!
//! Everything but the API server is real: the kernel, nft, the agent's own loop around its table, packets that never stop.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod devices;
#[path = "../support/mod.rs"]
mod support;

use ringfence::agent::kernel::Damage;
use ringfence::nft::exec::NftError;
use ringfence::nft::monitor::{self, Monitor};
use ringfence::nft::notification::{Notification, Transaction, notifications};
use ringfence::nft::{self, Ruleset};
use ringfence::policy::{Family, Group, Remote, Transport};
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::agent::{Agent, PATIENCE, Setup, Wrapper, done};
use support::lab::{self, Netns};
use support::scenario::{anyone, interface, name, ports, rule};
use support::table::{self, Table};
use support::topology::{Network, Topology};
use support::traffic::{self, Carried, Expect, Flow};

const PORT: u16 = 7000;

/// A node with four pods: the second takes datagrams from group app, which is the first; the fourth from nobody.
struct Scene {
    topology: Topology,
    ruleset: Ruleset,
}

impl Scene {
    fn new() -> Self {
        let topology = Topology::new(Network::Routed, 4);
        topology.pin_neighbours();
        let mut scene = Self { topology, ruleset: Ruleset::default() };
        scene.ruleset = scene.with_port(PORT);
        scene
    }

    fn node(&self) -> &Netns {
        &self.topology.node.netns
    }

    /// The ruleset, with one more port open to anyone.
    fn with_port(&self, port: u16) -> Ruleset {
        let pods = &self.topology.pods;
        let app = rule(ports(Transport::Udp, [PORT..=PORT]), Remote::Group(name("app")));
        let more = rule(ports(Transport::Tcp, [port..=port]), anyone());
        let server = nft::compile(&interface(Group { ingress: vec![app, more], egress: vec![] }));
        let closed = nft::compile(&interface(Group::default()));
        let guarded = pods[1].addresses.iter().map(|a| (*a, &server));
        let guarded = guarded.chain(pods[3].addresses.iter().map(|a| (*a, &closed)));
        let members: Arc<BTreeSet<IpAddr>> = Arc::new(pods[0].addresses.iter().copied().collect());
        Ruleset::new(guarded, |_| members.clone())
    }

    /// From the first pod to the second, and from the third to the fourth.
    fn flows(&self) -> (Flow, Flow) {
        let pods = &self.topology.pods;
        let flow = |from: usize, to: usize, expect| {
            let socket = |pod: usize, port| traffic::udp(&pods[pod], pods[pod].v4(), port);
            Flow::start(socket(from, PORT + 1), socket(to, PORT), expect)
        };
        (flow(0, 1, Expect::All), flow(2, 3, Expect::None))
    }

    fn read(&self) -> Table {
        table::read(self.node())
    }

    fn app_set(&self) -> String {
        nft::Name::group_set(&name("app"), Family::V4).to_string()
    }
}

/// Waits until a flow has sent so many more, and tells what it had carried by then.
fn after(flow: &Flow, more: u64) -> Carried {
    let until = flow.carried().sent + more;
    let deadline = Instant::now() + PATIENCE;
    while flow.carried().sent < until {
        assert!(Instant::now() < deadline, "the flow has stopped");
        std::thread::sleep(Duration::from_millis(1));
    }
    flow.carried()
}

/// Nothing of a flow arrives any more, once what was under way has.
fn assert_closed(denied: &Flow, context: &str) {
    let before = after(denied, 200).received;
    assert_eq!(after(denied, 2_000).received, before, "{context}: open");
}

#[test]
fn s8_what_others_do_to_the_table_is_undone_within_a_second() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let node = scene.node();
    let whole = table::from_nothing(&scene.ruleset);
    let (set, fourth, third) = (scene.app_set(), scene.topology.pods[3].v4(), scene.topology.pods[2].v4());
    let attacks = [
        "flush ruleset".to_owned(),
        "delete table inet ringfence".to_owned(),
        "add table inet ringfence\ndelete table inet ringfence\nadd table inet ringfence".to_owned(),
        format!("delete element inet ringfence ingress_4 {{ {fourth} }}"),
        format!("add element inet ringfence {set} {{ {third} }}"),
        format!("flush set inet ringfence {set}"),
        "flush chain inet ringfence forward".to_owned(),
        "flush chain inet ringfence forward\ndelete chain inet ringfence forward".to_owned(),
        "flush chain inet ringfence forward\ndelete set inet ringfence accepted_4".to_owned(),
        "insert rule inet ringfence forward accept".to_owned(),
        format!("add element inet ringfence accepted_4 {{ {third} . {fourth} . 17 . {PORT} timeout 1h }}"),
        "add set inet ringfence extra { type ipv4_addr; }".to_owned(),
        "add table inet ringfence { flags dormant; }".to_owned(),
    ];
    Agent::on(node, Setup::default(), &scene.ruleset, |agent| {
        table::assert_same(&scene.read(), &whole, "at first");
        let (allowed, denied) = scene.flows();
        assert_closed(&denied, "at first");
        let mut times = Vec::new();
        for attack in attacks.iter().chain(&attacks) {
            let (before, let_through) = (agent.rounds().1.len(), denied.carried().received);
            let started = Instant::now();
            node.apply([attack.as_str()]);
            let (at, damage) = agent.repaired(before);
            let took = at.duration_since(started);
            let context = attack.replace('\n', "; ");
            table::assert_same(&scene.read(), &whole, &context);
            assert_closed(&denied, &context);
            let let_through = denied.carried().received - let_through;
            println!("{took:?}, {let_through} datagrams let through, {damage}: {context}");
            assert!(matches!(&damage, Damage::Foreign { process, .. } if process.name == "nft"), "{damage}");
            times.push(took);
        }
        times.sort();
        println!(
            "from before the foreign nft to the end of the repair: p50 {:?}, max {:?}, of {}",
            times[times.len() / 2],
            times[times.len() - 1],
            times.len()
        );
        // Not of each: the machine may be busy with something else for longer than that.
        assert!(times[times.len() / 2] < Duration::from_secs(1), "{times:?}");
        assert_eq!(agent.rounds().1.len(), times.len(), "one repair each");
        let before = allowed.carried().received;
        assert!(after(&allowed, 100).received > before, "what is allowed goes on");
    });
}

#[test]
fn what_others_do_to_their_own_tables_is_no_concern() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    Agent::on(scene.node(), Setup::default(), &scene.ruleset, |agent| {
        for script in [
            "table inet theirs {\nset s { type ipv4_addr; }\nchain forward {\ntype filter hook forward priority filter; policy accept;\n}\n}",
            "add element inet theirs s { 10.77.0.4 }",
            "add rule inet theirs forward ip saddr @s accept",
            "add table ip ringfence\nadd chain ip ringfence ingress { type filter hook forward priority filter; }",
            "delete table inet theirs",
            "delete table ip ringfence",
        ] {
            scene.node().apply([script]);
        }
        // It has heard of all of that before it is through with this.
        agent.desire(&scene.with_port(80), "a change", done);
        assert_eq!(agent.rounds().1, []);
    });
}

#[test]
fn in_a_fight_over_the_table_nobody_gives_up_and_nothing_is_left_of_it() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let node = scene.node();
    let whole = table::from_nothing(&scene.ruleset);
    Agent::on(node, Setup::default(), &scene.ruleset, |agent| {
        let (_allowed, denied) = scene.flows();
        let started = Instant::now();
        let mut deleted = 0;
        while started.elapsed() < Duration::from_secs(4) {
            deleted += usize::from(node.commit("delete table inet ringfence").is_ok());
        }
        let ended = Instant::now();
        while !node.nft(&["list", "tables"]).contains(nft::TABLE) {
            assert!(ended.elapsed() < PATIENCE, "it is not back");
        }
        let back = ended.elapsed();
        agent.desire(&scene.with_port(PORT), "a quiet round", |round| matches!(round.outcome, Ok(None)));
        let repairs = agent.rounds().1.len();
        println!("deleted {deleted} times in 4 s, repaired {repairs} times, back after {back:?}");
        table::assert_same(&scene.read(), &whole, "afterwards");
        assert_closed(&denied, "afterwards");
        assert!(deleted > 2, "it came back every time");
        assert!(repairs <= 40, "and not many more");
    });
}

#[test]
fn what_is_not_heard_of_is_found_by_comparison() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let node = scene.node();
    let whole = table::from_nothing(&scene.ruleset);
    let (set, fourth) = (scene.app_set(), scene.topology.pods[3].v4());
    let elsewhere = Netns::new("elsewhere");
    Agent::on(node, Setup::deaf(&elsewhere), &scene.ruleset, |agent| {
        // What packets leave in the verdict cache is no damage.
        let flows = scene.flows();
        after(&flows.0, 100);
        // Compared for the first time, and again after a change of its own.
        let compared = agent.rounds().0;
        agent.until("comparisons", |rounds| rounds.len() > compared + 2);
        agent.desire(&scene.with_port(80), "a change", done);
        agent.desire(&scene.ruleset, "and back", done);
        let compared = agent.rounds().0;
        agent.until("comparisons", |rounds| rounds.len() > compared + 2);
        assert_eq!(agent.rounds().1, []);
        drop(flows);
        for attack in [
            "flush ruleset",
            &format!("delete element inet ringfence ingress_4 {{ {fourth} }}"),
            &format!("delete element inet ringfence {set} {{ {} }}", scene.topology.pods[0].v4()),
            &format!("add element inet ringfence {set} {{ 10.1.2.3 }}"),
            &format!(
                "delete element inet ringfence {set} {{ {} }}\nadd element inet ringfence {set} {{ 10.1.2.3 }}",
                scene.topology.pods[0].v4()
            ),
            "insert rule inet ringfence forward accept",
            "flush chain inet ringfence forward",
            "flush chain inet ringfence forward\ndelete set inet ringfence accepted_4",
            "add element inet ringfence accepted_4 { 10.1.2.3 . 10.1.2.4 . 6 . 80 timeout 1h }",
            "add set inet ringfence extra { type ipv4_addr; }",
            "add counter inet ringfence extra",
            "flush chain inet ringfence denied_ingress\nadd rule inet ringfence denied_ingress counter name no_tuple accept\nadd rule inet ringfence denied_ingress accept",
        ] {
            let rounds = agent.rounds().0;
            agent.until("a quiet comparison", |all| {
                all.len() > rounds + 1 && matches!(all.last().unwrap().outcome, Ok(None))
            });
            let before = agent.rounds().1.len();
            node.apply([attack]);
            let (_, damage) = agent.repaired(before);
            println!("{attack}: {damage}");
            assert!(matches!(damage, Damage::Different { .. }), "{damage}");
            table::assert_same(&scene.read(), &whole, attack);
        }
        let (rounds, repairs) = agent.rounds();
        agent.until("more comparisons", |all| all.len() > rounds + 5);
        assert_eq!(agent.rounds().1.len(), repairs.len(), "one repair each");
    });
}

#[test]
fn what_others_put_into_the_cache_goes_with_the_next_commit() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let (third, fourth) = (scene.topology.pods[2].v4(), scene.topology.pods[3].v4());
    let elsewhere = Netns::new("elsewhere");
    // It is not told, and looks at nothing.
    let setup = Setup { compare_every: Duration::from_secs(3600), ..Setup::deaf(&elsewhere) };
    Agent::on(scene.node(), setup, &scene.ruleset, |agent| {
        let (allowed, denied) = scene.flows();
        assert_closed(&denied, "at first");
        let foreign =
            format!("add element inet ringfence accepted_4 {{ {third} . {fourth} . 17 . {PORT} timeout 1h }}");
        scene.node().apply([foreign.as_str()]);
        let before = denied.carried().received;
        assert!(after(&denied, 2_000).received > before, "it has no effect");
        agent.desire(&scene.with_port(80), "a change", done);
        assert_closed(&denied, "after a commit");
        assert_eq!(agent.rounds().1, []);
        let allowed = allowed.stop();
        assert!(allowed.lost == 0 && allowed.received > 0, "{allowed:?}");
    });
}

#[test]
fn what_changes_leave_goes_when_they_are_through() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    Agent::on(scene.node(), Setup::default(), &scene.ruleset, |agent| {
        let (allowed, denied) = scene.flows();
        let changes = [80, 81, 82, 83].map(|port| scene.with_port(port));
        for change in &changes {
            agent.desire(change, "a change", done);
        }
        let deadline = Instant::now() + PATIENCE;
        while table::names(&scene.read()).contains(nft::skeleton::MEANWHILE) {
            assert!(Instant::now() < deadline, "it stays");
        }
        table::assert_same(&scene.read(), &table::from_nothing(&changes[3]), "when all is quiet");
        assert_eq!(agent.rounds().1, []);
        assert_eq!(denied.stop().received, 0);
        let allowed = allowed.stop();
        assert!(allowed.lost == 0 && allowed.received > 0, "{allowed:?}");
    });
}

#[test]
fn what_was_lost_is_compared() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let node = scene.node();
    let whole = table::from_nothing(&scene.ruleset);
    let setup = Setup { monitor: Box::new(|| Monitor::with_buffer(0).unwrap()), ..Setup::default() };
    Agent::on(node, setup, &scene.ruleset, |agent| {
        let many: Vec<String> = (0..2_000).map(|i| format!("10.9.{}.{}", i / 250, i % 250)).collect();
        let many = many.join(", ");
        let theirs = format!("add set inet theirs s {{ type ipv4_addr; }}\nadd element inet theirs s {{ {many} }}");
        let rounds = agent.rounds().0;
        agent.meanwhile(|| node.apply([format!("add table inet theirs\n{theirs}").as_str()]));
        agent.until("a round that compares", |all| all.len() > rounds);
        assert_eq!(agent.rounds().1, [], "nothing was amiss");
        // Of this the beginning is heard, which is theirs.
        let harm = format!("{}\nflush chain inet ringfence forward", theirs.replace(" s ", " more "));
        agent.meanwhile(|| node.apply([harm.as_str()]));
        let (_, damage) = agent.repaired(0);
        assert!(matches!(damage, Damage::Different { .. }), "{damage}");
        table::assert_same(&scene.read(), &whole, "lost, and found");
    });
}

#[test]
fn s8_whatever_becomes_of_nft_what_was_enforced_stays_and_it_recovers_by_itself() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let wrapper = Wrapper::new("nft");
    Agent::on(scene.node(), wrapper.setup(), &scene.ruleset, |agent| {
        let (allowed, denied) = scene.flows();
        let mut port = 8000;
        for mode in ["fail", "die", "missing", "hang"] {
            port += 1;
            let next = scene.with_port(port);
            match mode {
                "missing" => wrapper.take_away(),
                _ => wrapper.say(mode),
            }
            let started = Instant::now();
            agent.desire(&next, mode, |round| match (mode, &round.outcome) {
                ("fail", Err(NftError::Refused(_))) | ("die", Err(NftError::Ended(_))) => true,
                ("missing", Err(NftError::Run(_))) | ("hang", Err(NftError::Timeout(_))) => true,
                (_, Err(_)) => false,
                (_, Ok(_)) => panic!("{mode}: it cannot have gone well"),
            });
            let failed = started.elapsed();
            assert_eq!(denied.carried().received, 0, "{mode}: open");
            let before = allowed.carried().received;
            assert!(after(&allowed, 1_000).received > before, "{mode}: what is allowed goes on");
            wrapper.put();
            wrapper.say("well");
            let mended = Instant::now();
            agent.until("recovery", |rounds| rounds.last().is_some_and(done));
            println!("{mode}: failed after {failed:?}, recovered {:?} after it was mended", mended.elapsed());
            table::assert_same(&scene.read(), &table::from_nothing(&next), mode);
        }
        assert_eq!(agent.rounds().1, [], "none of this is anybody else's doing");
        assert_all_and_nothing(allowed, denied);
    });
}

#[test]
fn s8_a_replacement_that_stops_half_way_opens_nothing() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let wrapper = Wrapper::new("half-way");
    let node = scene.node();
    let whole = table::from_nothing(&scene.ruleset);
    let steps = nft::replacement(&scene.ruleset).scripts().count();
    Agent::on(node, Setup::default(), &scene.ruleset, |_| {});
    let (allowed, denied) = scene.flows();
    for step in 1..=steps {
        for mode in ["fail", "die"] {
            let context = format!("{mode} at step {step} of {steps}");
            // An agent that starts over a table replaces it; this one cannot.
            wrapper.say_from(mode, step);
            Agent::on(node, wrapper.setup(), &scene.ruleset, |agent| {
                agent.until(&context, |rounds| rounds.len() > 1);
                assert!(!done(agent.rounds.lock().unwrap().last().unwrap()), "{context}");
                // The same one, which knows nothing, goes on.
                if step % 2 == 0 {
                    wrapper.say("well");
                    agent.until("recovery", |rounds| rounds.last().is_some_and(done));
                }
            });
            // Or the next one.
            Agent::on(node, Setup::default(), &scene.ruleset, |agent| {
                agent.until("recovery", |rounds| rounds.last().is_some_and(done));
            });
            table::assert_same(&scene.read(), &whole, &context);
            assert!(!node.nft(&["list", "tables"]).contains(nft::STAND_IN), "{context}");
            assert_eq!(denied.carried().received, 0, "{context}: open");
        }
    }
    assert_all_and_nothing(allowed, denied);
}

/// Nothing was lost of the first flow, and nothing came of the second.
fn assert_all_and_nothing(allowed: Flow, denied: Flow) {
    let (allowed, denied) = (allowed.stop(), denied.stop());
    println!("allowed {allowed:?}, denied {denied:?}");
    assert!(allowed.lost == 0 && allowed.received > 0, "{allowed:?}");
    assert!(denied.received == 0 && denied.sent > 0, "{denied:?}");
}

#[test]
fn the_kernel_tells_of_every_kind_of_change_and_who_made_it() {
    if !lab::ready() {
        return;
    }
    let node = Netns::new("node");
    let socket = node.enter(|| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER)).unwrap();
        net::bind(&socket, &SocketAddrNetlink::new(0, 1 << 6)).unwrap();
        socket
    });
    // All that one transaction told.
    let told = || -> (BTreeSet<String>, Vec<Transaction>) {
        let (mut tables, mut transactions, mut datagram) = (BTreeSet::new(), Vec::new(), vec![0; 1 << 16]);
        while let Ok((_, length)) = net::recv(&socket, datagram.as_mut_slice(), RecvFlags::empty()) {
            for notification in notifications(&datagram[..length]) {
                match notification.unwrap() {
                    Notification::Changes(_, table) => drop(tables.insert(format!("{table:?}"))),
                    Notification::Committed(transaction) => transactions.push(transaction),
                }
            }
        }
        (tables, transactions)
    };
    let mut generation = node.enter(|| monitor::generation().unwrap());
    for (script, expected) in [
        ("add table inet ringfence", &["inet ringfence"][..]),
        ("add chain inet ringfence c", &["inet ringfence"]),
        ("add rule inet ringfence c accept", &["inet ringfence"]),
        ("add set inet ringfence s { type ipv4_addr; }", &["inet ringfence"]),
        ("add element inet ringfence s { 10.0.0.1 }", &["inet ringfence"]),
        ("add counter inet ringfence n", &["inet ringfence"]),
        ("add table netdev ringfence\nadd table ip6 theirs", &["ip6 theirs", "netdev ringfence"]),
        ("flush chain inet ringfence c", &["inet ringfence"]),
        ("delete element inet ringfence s { 10.0.0.1 }", &["inet ringfence"]),
        ("delete counter inet ringfence n", &["inet ringfence"]),
        ("delete set inet ringfence s\ndelete chain inet ringfence c", &["inet ringfence"]),
        ("flush ruleset", &["inet ringfence", "ip6 theirs", "netdev ringfence"]),
    ] {
        node.apply([script]);
        let (tables, transactions) = told();
        assert_eq!(tables, expected.iter().map(|t| (*t).to_owned()).collect(), "{script}");
        let [Transaction { generation: now, process, .. }] = &transactions[..] else { panic!("{transactions:?}") };
        generation += 1;
        assert_eq!((*now, process.name.as_str()), (generation, "nft"), "{script}");
        assert_eq!(node.enter(|| monitor::generation().unwrap()), generation);
        assert!(process.id > 1, "{process}");
    }
    // What changes nothing is not told, and not counted.
    node.apply(["add table inet ringfence"]);
    told();
    node.apply(["add table inet ringfence"]);
    assert_eq!(told(), Default::default());
}
