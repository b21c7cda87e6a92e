//! Ten groups edited a thousand times under traffic.

use super::cluster::{Namespace, Running, alone, calm, eventually, table};
use super::reach::Pod;
use std::collections::BTreeSet;

const GROUPS: usize = 10;
const ROUNDS: usize = 100;

/// The groups with port 80 always open to the client, and another that changes with the round.
fn groups(round: usize) -> String {
    let group = |n: usize| {
        let port = 1000 + (round * GROUPS + n) % 4000;
        let other = match (round + n) % 3 {
            0 => format!("{{securityGroup: {{name: g{}}}}}", (n + 1) % GROUPS),
            1 => format!("{{cidrs: [\"192.0.2.{n}/32\", \"2001:db8:{n}::/48\"]}}"),
            _ => "{cidrs: [\"192.0.2.0/24\", \"198.18.0.0/15\", \"2001:db8::/32\"]}".to_owned(),
        };
        format!(
            "---\napiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: g{n}}}\nspec: {{ingress: [{{protocol: TCP, ports: [{port}, \"{}-{}\"], remote: {other}}}, {{protocol: TCP, ports: [80], remote: {{securityGroup: {{name: client}}}}}}, {{protocol: UDP, ports: [53], remote: {{securityGroup: {{name: client}}}}}}]}}\n",
            port + 5,
            port + 5 + round % 50,
        )
    };
    (0..GROUPS).map(group).collect()
}

/// Everything in a node's table that has a name.
fn names(node: &str) -> BTreeSet<String> {
    let table = table(node);
    let lines =
        table.lines().map(str::trim).filter(|l| ["set ", "map ", "chain "].iter().any(|kind| l.starts_with(kind)));
    lines.map(|l| l.trim_end_matches(" {").to_owned()).collect()
}

#[test]
fn a_thousand_edits_lose_no_allowed_packet_pass_no_denied_one_and_leave_nothing() {
    // What others have would show in the tables that are compared.
    let quiet = alone();
    let namespace = Namespace::new("edits");
    let names_of: Vec<(String, String, &str)> =
        (0..GROUPS).map(|n| (format!("s{n}"), format!("s{n}"), if n % 2 == 0 { "n1" } else { "n2" })).collect();
    let mut wanted: Vec<(&str, &str, &str)> = names_of.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), *c)).collect();
    wanted.extend([("near", "client", "n1"), ("far", "client", "n2")]);
    let pods = namespace.pods(&wanted);
    namespace.group("client", "[]", None);
    namespace.bind("client", &["client"], "client");
    for n in 0..GROUPS {
        namespace.bind(&format!("s{n}"), &[&format!("g{n}")], &format!("s{n}"));
    }
    namespace.apply(&groups(0));
    namespace.enforced();
    // Others' namespaces may still be going; wait for a table that stays as it is.
    let mut before = [names("n1"), names("n2")];
    eventually("quiet tables", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let now = [names("n1"), names("n2")];
        std::mem::replace(&mut before, now.clone()) == now
    });
    drop(quiet);

    let calm = calm();
    let start = |from: &Pod, arguments: &[&str]| {
        let mut probe = from.probes().probe();
        probe.args(arguments);
        Running::start(probe)
    };
    let (same, across) = (&pods["s0"].addresses, &pods["s1"].addresses);
    let mut allowed = Vec::new();
    let mut denied = Vec::new();
    for (from, to) in [("near", same), ("near", across), ("far", same)] {
        for address in to {
            // What a starved server has no time to read is thrown away: of datagrams, which are not sent again, there are fewer.
            for (protocol, port, interval) in [("tcp", "80", "10ms"), ("udp", "53", "25ms")] {
                let stream = ["stream", protocol, address, port, "--interval", interval, "--duration", TRAFFIC];
                allowed.push((format!("{protocol} {from} → {address}"), start(&pods[from], &stream)));
            }
            denied.push(start(
                &pods[from],
                &["hammer", "tcp", address, "443", "--interval", "20ms", "--duration", TRAFFIC],
            ));
        }
    }
    let started = std::time::Instant::now();
    for round in (1..=ROUNDS).chain([0]) {
        // What the API server can do alone, kubectl would take most of the time for.
        let apply = ["apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-"];
        let (applied, said) = namespace.tell(&apply, &groups(round));
        assert!(applied, "{said}");
    }
    namespace.enforced();
    println!("{} edits in {:.1} s", GROUPS * ROUNDS, started.elapsed().as_secs_f64());
    let allowed: Vec<String> = allowed.into_iter().map(|(what, flow)| format!("{what}: {}", flow.stop())).collect();
    let lost = allowed.iter().any(|said| !said.contains(" lost 0 "));
    assert!(!lost, "an allowed packet was lost:\n{}", allowed.join("\n"));
    for flow in denied {
        let said = flow.stop();
        assert!(said.contains(" open 0 "), "a denied connection came to be: {said}");
    }
    drop(calm);
    let _quiet = alone();
    eventually("nothing is left over", || [names("n1"), names("n2")] == before);
}

/// Longer than the edits take.
const TRAFFIC: &str = "10m";
