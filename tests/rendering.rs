//! What is rendered is what nft takes and what the kernel then holds: whole rulesets, differences between them, golden
//! tables, and the inputs at which others broke. No packets: those are in `kernel`.
//!
//! Needs root, `nft` and `ip`. A failure of a random test prints how to repeat it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use ringfence::nft::listing::{Fingerprints, difference};
use ringfence::nft::{self, Constant, Layout, Ruleset, compile};
use ringfence::policy::{
    Family, Group, IcmpMatch, IcmpType, Interface, NamespacedName, PortSet, Remote, Rule, Traffic, Transport,
};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use support::lab::{self, Netns};
use support::random::{self, Random};
use support::scenario::{Scenario, anyone, cidrs, interface, name, ports, rule};
use support::table::{self, Table};

const POD: [&str; 2] = ["10.77.0.4", "fd77::4"];

/// One pod, guarded by these groups, and the members of groups.
fn guarded(groups: &Interface, members: &[(&str, &[&str])]) -> Ruleset {
    let profile = compile(groups);
    let members = |group: &NamespacedName| -> nft::model::Addresses {
        let found = members.iter().find(|(name, _)| support::scenario::name(name) == *group);
        Arc::new(found.iter().flat_map(|(_, list)| *list).map(|a| a.parse().unwrap()).collect())
    };
    Ruleset::new(POD.map(|address| (address.parse().unwrap(), &profile)), members)
}

fn tcp(range: std::ops::RangeInclusive<u16>, remote: Remote) -> Rule {
    rule(ports(Transport::Tcp, [range]), remote)
}

fn of_group(group: &str) -> Remote {
    Remote::Group(name(group))
}

/// The table holds what the ruleset asks for and the skeleton, and nothing else.
#[track_caller]
fn assert_nothing_left_over(table: &Table, skeleton: &Table, ruleset: &Ruleset, context: &str) {
    let expected: BTreeSet<String> = table::names(skeleton).union(&table::asked(ruleset)).cloned().collect();
    assert_eq!(table::names(table), expected, "{context}");
}

fn skeleton() -> Table {
    table::from_nothing(&Ruleset::default())
}

/// Random policies over addresses that nothing needs to reach.
fn scenario(random: &mut Random) -> Scenario {
    let v4 = |n: u64| IpAddr::V4(Ipv4Addr::from_bits(n as u32));
    let v6 = |n: u64| IpAddr::V6(Ipv6Addr::from_bits(u128::from(n) << 64 | u128::from(n)));
    let pods = (0..8u64).map(|i| vec![v4(0x0a4d_0004 + i), v6(0xfd77 << 48 | i)]);
    let others = (0..12).flat_map(|_| [v4(random.next()), v6(random.next())]).collect::<Vec<_>>();
    Scenario::new(pods, others.into_iter().chain([v4(0), v4(u64::MAX), v6(0), v6(u64::MAX)]))
}

#[test]
fn a_difference_makes_the_same_table_as_building_from_nothing() {
    if !lab::ready() {
        return;
    }
    let started = Instant::now();
    let skeleton = skeleton();
    for seed in random::seeds(1..=6) {
        println!("{}", random::repeat(seed));
        let mut random = Random::new(seed);
        let mut scenario = scenario(&mut random);
        let node = Netns::new("node");
        let mut ruleset = Ruleset::default();
        let mut fingerprints = Fingerprints::default();
        node.apply([nft::full(&ruleset).as_str()]);
        for step in 0..20 {
            let mut log = Vec::new();
            if step % 7 == 0 {
                scenario.fill(&mut random);
            } else {
                log.extend((0..1 + random.below(4)).map(|_| scenario.edit(&mut random)));
            }
            let next = scenario.ruleset();
            let plan = nft::plan(&ruleset, &next);
            node.apply(plan.scripts());
            ruleset = next;
            let context = format!("{}, step {step}: {log:#?}\n{scenario}\n{plan:#?}", random::repeat(seed));
            let table = table::read(&node);
            assert_nothing_left_over(&table, &skeleton, &ruleset, &context);
            let listing = node.nft(&["-s", "list", "table", "inet", "ringfence"]);
            assert_eq!(
                difference(&listing, &ruleset.expected(&ruleset), &mut fingerprints),
                None,
                "{context}\n{listing}"
            );
            if step % 4 == 3 {
                table::assert_same(&table, &table::from_nothing(&ruleset), &context);
            }
            assert_eq!(nft::plan(&ruleset, &scenario.ruleset()), nft::Plan::default(), "{context}");
        }
        node.apply(nft::plan(&ruleset, &Ruleset::default()).scripts());
        table::assert_same(&table::read(&node), &skeleton, "after everything went");
    }
    println!("{:?}", started.elapsed());
}

#[test]
fn what_is_denied_may_be_told_of_from_some_later_time_on() {
    if !lab::ready() {
        return;
    }
    let ruleset = scenario(&mut Random::new(1)).ruleset();
    let telling = Ruleset { told: NonZeroU32::new(10), ..ruleset.clone() };
    let node = Netns::new("node");
    node.apply([nft::full(&ruleset).as_str()]);
    node.apply(nft::plan(&ruleset, &telling).scripts());
    table::assert_same(&table::read(&node), &table::from_nothing(&telling), "the difference");
    assert_eq!(nft::plan(&telling, &telling), nft::Plan::default());
}

#[test]
fn a_replacement_comes_from_any_state() {
    if !lab::ready() {
        return;
    }
    let mut random = Random::new(7);
    let mut scenario = scenario(&mut random);
    let node = Netns::new("node");
    for _ in 0..5 {
        scenario.fill(&mut random);
        let ruleset = scenario.ruleset();
        node.apply(nft::replacement(&ruleset).scripts());
        table::assert_same(&table::read(&node), &table::from_nothing(&ruleset), "over the one before");
    }
    // Half-way through, the agent died: what stood in is still there.
    node.apply(nft::replacement(&scenario.ruleset()).scripts().take(3));
    node.apply(nft::replacement(&Ruleset::default()).scripts());
    assert_eq!(node.nft(&["list", "tables"]).trim(), format!("table {}", nft::TABLE));
    table::assert_same(&table::read(&node), &skeleton(), "back to nobody guarded");
}

#[test]
fn nothing_outside_the_table_is_touched() {
    if !lab::ready() {
        return;
    }
    let node = Netns::new("node");
    let theirs = "table inet theirs {\nchain forward {\ntype filter hook forward priority filter; policy drop;\n}\n}";
    node.apply([theirs]);
    let before = node.nft(&["list", "table", "inet", "theirs"]);
    let ruleset = guarded(&interface(Group::default()), &[]);
    node.apply(nft::replacement(&ruleset).scripts());
    node.apply(nft::plan(&ruleset, &Ruleset::default()).scripts());
    assert_eq!(node.nft(&["list", "table", "inet", "theirs"]), before);
}

#[test]
fn an_address_named_twice_is_guarded_by_one_whole_profile() {
    if !lab::ready() {
        return;
    }
    let closed = compile(&interface(Group::default()));
    let open = compile(&interface(Group { ingress: vec![tcp(80..=80, of_group("app"))], egress: vec![] }));
    let address = POD[0].parse().unwrap();
    let ruleset = Ruleset::new([(address, &closed), (address, &open)], |_| Arc::default());
    let node = Netns::new("node");
    node.apply([nft::full(&ruleset).as_str()]);
    assert_nothing_left_over(&table::read(&node), &skeleton(), &ruleset, "one of the two");
}

/// Asks the kernel which elements a set or map has, at and around the edges of every range it should have.
#[track_caller]
fn assert_holds_exactly(node: &Netns, ruleset: &Ruleset) {
    let get = |set: &nft::Name, element: &dyn std::fmt::Display| {
        let element = format!("{{ {element} }}");
        node.enter(|| {
            let mut nft = std::process::Command::new("nft");
            nft.args(["get", "element", "inet", "ringfence", &set.to_string(), &element]);
            nft.output().unwrap().status.success()
        })
    };
    for (name, constant) in &ruleset.constants {
        match &**constant {
            Constant::Chain(_) => {}
            Constant::Cidrs(_, nets) => {
                let edges: BTreeSet<IpAddr> = nets
                    .iter()
                    .take(8)
                    .flat_map(|net| {
                        [Some(net.network()), Some(net.broadcast()), before(net.network()), after(net.broadcast())]
                    })
                    .flatten()
                    .collect();
                for edge in edges {
                    let expected = nets.iter().any(|net| net.contains(&edge));
                    assert_eq!(get(name, &edge), expected, "{edge} in {nets:?}");
                }
            }
            Constant::Ports(ranges) => assert_holds_ports(ranges.iter(), |port| get(name, &port)),
            Constant::SinglePortVerdicts(elements) => {
                let ports: Vec<_> = elements.iter().map(|(port, _)| *port..=*port).collect();
                assert_holds_ports(ports.iter(), |port| get(name, &port));
            }
            Constant::PortVerdicts(elements) => {
                assert_holds_ports(elements.iter().map(|(range, _)| range), |port| get(name, &port));
            }
        }
    }
}

#[track_caller]
fn assert_holds_ports<'a>(ranges: impl Iterator<Item = &'a std::ops::RangeInclusive<u16>>, get: impl Fn(u16) -> bool) {
    let ranges: Vec<_> = ranges.take(8).collect();
    let edges: BTreeSet<u16> = ranges
        .iter()
        .flat_map(|r| [Some(*r.start()), Some(*r.end()), r.start().checked_sub(1), r.end().checked_add(1)])
        .flatten()
        .collect();
    for edge in edges {
        assert_eq!(get(edge), ranges.iter().any(|range| range.contains(&edge)), "{edge} in {ranges:?}");
    }
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(a) => a.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(a) => a.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

#[test]
fn s13_inputs_that_broke_others_are_enforced_exactly() {
    if !lab::ready() {
        return;
    }
    let node = Netns::new("node");
    let skeleton = skeleton();
    let mut ruleset = Ruleset::default();
    node.apply([nft::full(&ruleset).as_str()]);
    let mut load = |what: &str, ingress: Vec<Rule>| -> Ruleset {
        println!("{what}");
        // The same rules outwards, and as seen without a tuple.
        let next = guarded(&interface(Group { egress: ingress.clone(), ingress }), &[]);
        node.apply(nft::plan(&ruleset, &next).scripts());
        let table = table::read(&node);
        assert_nothing_left_over(&table, &skeleton, &next, what);
        // Each question is a run of nft: the large ones are here to be loaded.
        if next.constants.len() + next.groups.len() < 100 {
            assert_holds_exactly(&node, &next);
        }
        node.apply([nft::full(&next).as_str()]);
        table::assert_same(&table, &table::read(&node), what);
        ruleset = next.clone();
        next
    };

    for list in [
        &["10.0.0.0/8", "10.1.0.0/16"][..],
        &["0.0.0.0/0", "10.0.0.0/8"],
        &["0.0.0.0/1", "128.0.0.0/1"],
        &["10.0.0.0/9", "10.128.0.0/9", "192.0.2.7/32"],
        &["::/0", "fd00::/8"],
        &["::/1", "8000::/1"],
        &["10.0.0.0/31"],
        &["10.0.0.0/31", "10.0.0.3/32"],
        &["fd00::/127", "fd00::3/128"],
        &["255.255.255.255/32"],
        &["255.255.255.255/32", "0.0.0.0/32"],
        &["255.255.255.254/31", "128.0.0.0/2"],
        &["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"],
        &["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "::/128"],
        &["8000::/2", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"],
    ] {
        let remote = cidrs(list.iter().copied());
        load(&format!("CIDRs {list:?}"), vec![tcp(80..=81, remote.clone()), rule(Traffic::Any, remote)]);
    }

    for ranges in [
        &[65535..=65535][..],
        &[1..=1],
        &[1..=65535],
        &[1..=1, 65535..=65535],
        &[80..=80, 8000..=65535],
        &[1..=65534],
        &[22..=22, 23..=23, 24..=30],
    ] {
        for transport in Transport::ALL {
            let traffic = ports(transport, ranges.iter().cloned());
            let other = ports(transport, [65000..=65535]);
            let rules = vec![rule(traffic, cidrs(["10.0.0.0/8"])), rule(other, cidrs(["192.0.2.0/24"]))];
            load(&format!("{transport} {ranges:?}"), rules);
        }
    }
    load("every port", vec![rule(Traffic::Ports(Transport::Tcp, PortSet::all()), anyone())]);

    for (type_, code) in [(255, Some(255)), (0, Some(0)), (8, None), (255, None), (0, None)] {
        let icmp = IcmpType { type_, code };
        let both = [IcmpMatch::V4(icmp), IcmpMatch::V6(Some(icmp)), IcmpMatch::V4(IcmpType { type_: 7, code: None })];
        let remote = cidrs(["10.0.0.0/8", "fd00::/8"]);
        load(&format!("ICMP {icmp}"), both.map(|m| rule(Traffic::Icmp(m), remote.clone())).into());
    }

    let long = |c: &str| NamespacedName::new(c.repeat(63), format!("{}.{}", c.repeat(126), c.repeat(126)));
    load("the longest names", vec![tcp(80..=80, Remote::Group(long("a"))), tcp(81..=81, Remote::Group(long("b")))]);

    let many = (0..1_000).map(|i| tcp(1 + i % 50..=1_000 + i % 50, of_group(&format!("group-{i}"))));
    load("a thousand groups", many.collect());

    let scattered =
        (0..400u16).map(|i| tcp(1 + i * 10..=60_000 + i, cidrs([format!("10.{}.{}.0/24", i / 200, i % 200).as_str()])));
    let walked = load("more segments than are worth a map", scattered.collect());
    let kinds = |wanted: fn(&Constant) -> bool| walked.constants.values().filter(|c| wanted(c)).count();
    assert_eq!(kinds(|c| matches!(c, Constant::SinglePortVerdicts(_) | Constant::PortVerdicts(_))), 0);
    assert_eq!(kinds(|c| matches!(c, Constant::Ports(_))), 400, "shared by both directions");

    let wide = (0..5_000u32).map(|i| format!("{}/32", Ipv4Addr::from_bits(0x0a00_0000 + 2 * i))).collect::<Vec<_>>();
    load("five thousand CIDRs", vec![tcp(80..=80, cidrs(wide.iter().map(String::as_str)))]);

    node.apply(nft::plan(&ruleset, &Ruleset::default()).scripts());
    table::assert_same(&table::read(&node), &skeleton, "after everything went");
}

#[test]
fn one_address_of_many_is_one_element_sent() {
    if !lab::ready() {
        return;
    }
    let profile = compile(&interface(Group { ingress: vec![tcp(80..=80, of_group("app"))], egress: vec![] }));
    let with = |count: u32| {
        let addresses: BTreeSet<IpAddr> = (0..count).map(|i| Ipv4Addr::from_bits(0x0a00_0000 + i).into()).collect();
        let addresses = Arc::new(addresses);
        Ruleset::new([(POD[0].parse().unwrap(), &profile)], |_| addresses.clone())
    };
    let (before, after) = (with(100_000), with(100_001));
    let node = Netns::new("node");
    node.apply([nft::full(&before).as_str()]);
    let plan = nft::plan(&before, &after);
    assert_eq!(plan.stage, None);
    assert!(plan.switch.as_ref().is_some_and(|switch| switch.lines().count() == 1), "{plan:?}");
    node.apply(plan.scripts());
    let set = nft::Name::group_set(&name("app"), Family::V4).to_string();
    node.nft(&["get", "element", "inet", "ringfence", &set, "{ 10.1.134.160 }"]);
}

/// Compares with a file beside this test.
fn assert_golden(file: &str, groups: &Interface, members: &[(&str, &[&str])]) {
    const REWRITE: &str = "RINGFENCE_GOLDEN";
    let ruleset = guarded(groups, members);
    let mut actual = String::from("# What nft lists, sorted by kind and name.\n");
    for (name, group) in groups {
        for (arrow, rules) in [("in", &group.ingress), ("out", &group.egress)] {
            for rule in rules {
                let _ = writeln!(actual, "# {name} {arrow}: {rule}");
            }
        }
    }
    let mut table = table::from_nothing(&ruleset);
    if !groups.is_empty() {
        // What never varies is in the golden table of the closed pod.
        let skeleton = skeleton();
        table.retain(|header, lines| skeleton.get(header) != Some(lines));
    }
    actual.push_str(&table::text(&table));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if actual == expected {
        return;
    }
    let is = |text: &str, line: &str| text.lines().any(|l| l == line);
    let gone = expected.lines().filter(|line| !is(&actual, line)).map(|line| format!("- {line}\n"));
    let come = actual.lines().filter(|line| !is(&expected, line)).map(|line| format!("+ {line}\n"));
    panic!(
        "tests/golden/{file} says otherwise:\n{}\nIf that is meant: {REWRITE}=1 cargo test --test rendering golden, and read the difference",
        gone.chain(come).collect::<String>()
    );
}

#[test]
fn golden_closed() {
    if lab::ready() {
        assert_golden("closed.nft", &Interface::new(), &[]);
    }
}

#[test]
fn golden_database() {
    if !lab::ready() {
        return;
    }
    let database = Group {
        ingress: vec![
            tcp(3306..=3306, of_group("app")),
            tcp(3306..=3306, of_group("reports")),
            tcp(22..=22, cidrs(["203.0.113.10/32", "2001:db8::/64"])),
        ],
        egress: vec![rule(Traffic::Any, anyone())],
    };
    let monitored = Group {
        ingress: vec![
            tcp(9000..=9100, cidrs(["192.0.2.0/24", "198.51.100.0/24"])),
            rule(Traffic::Icmp(IcmpMatch::V4(IcmpType { type_: 8, code: Some(0) })), anyone()),
            rule(Traffic::Icmp(IcmpMatch::V6(Some(IcmpType { type_: 128, code: None }))), anyone()),
        ],
        egress: vec![],
    };
    let groups = [(name("database"), Arc::new(database)), (name("monitored"), Arc::new(monitored))].into();
    assert_golden("database.nft", &groups, &[("app", &["10.77.1.9", "10.77.1.10", "fd77:1::9"])]);
}

#[test]
fn golden_overlapping_ports() {
    if !lab::ready() {
        return;
    }
    let group = Group {
        ingress: vec![
            tcp(80..=90, cidrs(["10.0.0.0/8"])),
            tcp(85..=65535, of_group("app")),
            rule(ports(Transport::Udp, [53..=53, 65535..=65535]), anyone()),
            rule(Traffic::Ports(Transport::Sctp, PortSet::all()), of_group("app")),
            rule(Traffic::Icmp(IcmpMatch::Both), cidrs(["10.0.0.0/8", "fd00::/8"])),
        ],
        egress: vec![
            rule(ports(Transport::Udp, [53..=53]), cidrs(["10.96.0.10/32", "fd96::a/128"])),
            tcp(443..=443, anyone()),
        ],
    };
    assert_golden("overlapping-ports.nft", &interface(group), &[]);
}
