//! Likewise for the table of what may come out of devices.

use super::support::agent::{Agent, Setup, Wrapper, done};
use super::support::lab::{self, Netns};
use super::support::table::{self, Table};
use ringfence::agent::kernel::Damage;
use ringfence::nft::Layout;
use ringfence::nft::monitor::Monitor;
use ringfence::nft::own::{Device, DeviceName, STAND_IN, TABLE, Watched};
use std::time::Instant;

/// A node with three devices, whose addresses are of every kind.
struct Scene {
    node: Netns,
    watched: Watched,
}

impl Scene {
    fn new() -> Self {
        let node = node("node");
        let mut watched = Watched::default();
        for (device, mac, addresses) in [
            ("veth1", Some("02:00:00:00:00:01"), &["10.0.0.1", "fd00::1"][..]),
            ("veth2", None, &["10.0.0.2", "fd00:0:0:2::", "fe80::2", "::ffff:10.0.0.2"]),
            ("veth3", Some("02:00:00:00:00:03"), &["10.0.0.3", "10.0.0.4", "::a00:3"]),
        ] {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let mac = mac.map(|mac| mac.parse().unwrap());
            watched.devices.insert(name(device), Device { index: 1, addresses, mac });
        }
        Self { node, watched }
    }

    /// With another link address and another address, and one device less.
    fn edited(&self) -> Watched {
        let mut edited = self.watched.clone();
        let first = edited.devices.get_mut(&name("veth1")).unwrap();
        first.mac = Some("02:00:00:00:00:ff".parse().unwrap());
        first.addresses.insert("10.0.0.9".parse().unwrap());
        edited.devices.remove(&name("veth3"));
        edited
    }

    fn read(&self) -> Table {
        table::read_named(&self.node, TABLE)
    }

    /// The chain of a device.
    fn chain(&self, device: &str) -> String {
        let hook = format!("device \"{device}\"");
        let table = self.read();
        let (header, _) = table.iter().find(|(_, lines)| lines.iter().any(|line| line.contains(&hook))).unwrap();
        header.strip_prefix("chain ").unwrap().to_owned()
    }
}

fn name(device: &str) -> DeviceName {
    device.parse().unwrap()
}

fn node(role: &str) -> Netns {
    let node = Netns::new(role);
    for i in 1..=3 {
        node.ip(&format!("link add veth{i} type veth peer name peer{i}"));
    }
    node
}

fn from_nothing(watched: &Watched) -> Table {
    let node = node("fresh");
    node.apply([watched.full().as_str()]);
    table::read_named(&node, TABLE)
}

#[test]
fn what_is_not_heard_of_is_found_by_comparison() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let node = &scene.node;
    let whole = from_nothing(&scene.watched);
    let elsewhere = Netns::new("elsewhere");
    Agent::on(node, Setup::deaf(&elsewhere), &scene.watched, |agent| {
        // Compared for the first time, and again after changes of its own.
        for desired in [&scene.watched, &scene.edited(), &scene.watched, &Watched::default(), &scene.watched] {
            agent.desire(desired, "a change", done);
            let rounds = agent.rounds().0;
            agent.until("comparisons", |all| all.len() > rounds + 2);
        }
        assert_eq!(agent.rounds().1, [], "nothing was amiss");
        let chain = scene.chain("veth1");
        for attack in [
            "flush ruleset",
            "delete table netdev ringfence",
            "delete element netdev ringfence own_4 { \"veth1\" . 10.0.0.1 }",
            "add element netdev ringfence own_6 { \"veth1\" . fd00::2 }",
            "delete element netdev ringfence own_4 { \"veth3\" . 10.0.0.4 }\nadd element netdev ringfence own_4 { \"veth1\" . 10.0.0.4 }",
            "add element netdev ringfence own_link_local { \"veth1\" . fe80::2 }",
            "add element netdev ringfence any_link_local { \"veth1\" }",
            "add element netdev ringfence own_targets { \"veth1\" . 0x1 }",
            &format!("flush chain netdev ringfence {chain}"),
            &format!("flush chain netdev ringfence {chain}\ndelete chain netdev ringfence {chain}"),
            &format!(
                "flush chain netdev ringfence {chain}\n\
                 add rule netdev ringfence {chain} ether saddr != 02:00:00:00:00:02 counter name other_mac drop\n\
                 add rule netdev ringfence {chain} goto own"
            ),
            "insert rule netdev ringfence own accept",
            "flush chain netdev ringfence tunnel\nadd rule netdev ringfence tunnel counter name tunnel accept",
            "add chain netdev ringfence before { type filter hook ingress device \"veth1\" priority -501; }",
            "add set netdev ringfence extra { type ipv4_addr; }",
            "add counter netdev ringfence extra",
        ] {
            let rounds = agent.rounds().0;
            agent.until("a quiet comparison", |all| {
                all.len() > rounds + 1 && matches!(all.last().unwrap().outcome, Ok(None))
            });
            let before = agent.rounds().1.len();
            node.apply([attack]);
            let (_, damage) = agent.repaired(before);
            println!("{attack}: {damage}");
            assert!(matches!(damage, Damage::Different { table: TABLE, .. }), "{damage}");
            table::assert_same(&scene.read(), &whole, attack);
        }
        let (rounds, repairs) = agent.rounds();
        agent.until("more comparisons", |all| all.len() > rounds + 5);
        assert_eq!(agent.rounds().1.len(), repairs.len(), "one repair each");
    });
}

#[test]
fn a_chain_that_went_with_its_device_is_no_damage() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let without = scene.edited();
    let elsewhere = Netns::new("elsewhere");
    Agent::on(&scene.node, Setup::deaf(&elsewhere), &scene.watched, |agent| {
        let third = scene.chain("veth3");
        {
            // Nobody tells the agent: what it is next, it compares first.
            let mut desired = agent.desired.lock().unwrap();
            scene.node.ip("link delete veth3");
            // Later kernels keep the chain.
            scene.node.apply([format!("flush chain {TABLE} {third}\ndelete chain {TABLE} {third}").as_str()]);
            desired.clone_from(&without);
        }
        let rounds = agent.rounds().0;
        agent.until("comparisons", |all| all.len() > rounds + 2);
        assert_eq!(agent.rounds().1, []);
        table::assert_same(&scene.read(), &from_nothing(&without), "without the device");
    });
}

#[test]
fn s8_what_others_do_is_undone_in_a_fight_too() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let whole = from_nothing(&scene.watched);
    Agent::on(&scene.node, Setup::default(), &scene.watched, |agent| {
        let started = Instant::now();
        for attack in 0..20 {
            let before = agent.rounds().1.len();
            scene.node.apply(["delete table netdev ringfence"]);
            let (_, damage) = agent.repaired(before);
            assert!(matches!(&damage, Damage::Foreign { table: TABLE, process } if process.name == "nft"), "{damage}");
            table::assert_same(&scene.read(), &whole, &format!("attack {attack}"));
        }
        println!("20 repairs in {:?}", started.elapsed());
        // Ten at once, and then one each 0.2 s.
        assert!(started.elapsed().as_millis() >= 2_000, "repairs slow down");
        assert_eq!(agent.rounds().1.len(), 20, "one repair each");
    });
}

#[test]
fn what_was_lost_is_compared() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let wrapper = Wrapper::new("lost");
    let setup = Setup { monitor: Box::new(|| Monitor::with_buffer(0).unwrap()), ..wrapper.setup() };
    Agent::on(&scene.node, setup, &scene.watched, |agent| {
        let many: Vec<String> = (0..2_000).map(|i| format!("10.9.{}.{}", i / 250, i % 250)).collect();
        let elements = format!("{{ type ipv4_addr; elements = {{ {} }}; }}", many.join(", "));
        // What is not amiss is not replaced, which would fail.
        wrapper.say("fail");
        let rounds = agent.rounds().0;
        agent.meanwhile(|| {
            scene.node.apply([format!("add table inet theirs\nadd set inet theirs s {elements}").as_str()])
        });
        agent.until("a round that compares", |all| all.len() > rounds + 1);
        assert!(agent.rounds.lock().unwrap().iter().all(|round| matches!(round.outcome, Ok(None))));
        wrapper.say("well");
        // Of this the beginning is heard, which is theirs.
        let harm = format!("add set inet theirs more {elements}\nflush chain {TABLE} own");
        agent.meanwhile(|| scene.node.apply([harm.as_str()]));
        let (_, damage) = agent.repaired(0);
        assert!(matches!(damage, Damage::Different { .. }), "{damage}");
        table::assert_same(&scene.read(), &from_nothing(&scene.watched), "lost, and found");
    });
}

#[test]
fn s8_a_replacement_that_stops_half_way_opens_nothing() {
    if !lab::ready() {
        return;
    }
    let scene = Scene::new();
    let node = &scene.node;
    let whole = from_nothing(&scene.watched);
    let wrapper = Wrapper::new("devices");
    let steps = scene.watched.replacement().scripts().count();
    assert_eq!(steps, 5);
    let listed = |table: &str| node.nft(&["list", "tables"]).contains(&format!("table {table}\n"));
    // A chain that leads somewhere.
    let guards = |table: &str| {
        let leads = |lines: &Vec<String>| lines[0].contains("\"veth1\"") && lines.iter().any(|line| line == "goto own");
        listed(table) && table::read_named(node, table).values().any(|lines| !lines.is_empty() && leads(lines))
    };
    Agent::on(node, Setup::default(), &scene.watched, |_| {});
    for step in 1..=steps {
        // An agent that starts over a table replaces it; this one cannot.
        wrapper.say_from("fail", step);
        Agent::on(node, wrapper.setup(), &scene.watched, |agent| {
            agent.until("failures", |rounds| rounds.len() > 1);
            assert!(!agent.rounds.lock().unwrap().iter().any(done), "step {step}");
            let guarding = [TABLE, STAND_IN].map(guards);
            let expected = match step {
                1 | 5 => [true, false],
                2 | 4 => [true, true],
                _ => [false, true],
            };
            assert_eq!(guarding, expected, "step {step}");
            wrapper.say("well");
            agent.until("recovery", |rounds| rounds.last().is_some_and(done));
        });
        table::assert_same(&scene.read(), &whole, &format!("step {step}"));
        assert!(!listed(STAND_IN), "step {step}");
    }
}
