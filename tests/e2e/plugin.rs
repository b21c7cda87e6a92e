//! `kubectl sg` on a live cluster: what it explains is what happens, and what it takes away is cut.

use super::cluster::{Namespace, Running, calm, command, folder};
use super::reach::{Pod, both};
use std::process::{Command, Output, Stdio};

/// The plugin, where the cluster's API server is reached.
pub fn sg(arguments: &[&str]) -> Output {
    sg_command(arguments).output().unwrap()
}

/// The same, before it runs.
pub fn sg_command(arguments: &[&str]) -> Command {
    let mut sg: Command = command("node");
    sg.env("KUBECONFIG", folder().join("kubeconfig")).stdin(Stdio::null());
    sg.args(["control", env!("CARGO_BIN_EXE_kubectl-sg")]).args(arguments);
    sg
}

/// All that it printed.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const ANYWHERE: &str = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";

fn rule(traffic: &str, remote: &str) -> String {
    format!("{{{traffic}, remote: {remote}}}")
}

fn members_of(group: &str) -> String {
    format!("{{securityGroup: {{name: {group}}}}}")
}

#[test]
fn s1_s5_what_explain_says_is_what_a_connection_does() {
    let _calm = calm();
    let namespace = Namespace::new("explain");
    let names = ["web", "app", "db", "bastion", "other"];
    let pods = namespace.pods(&[
        ("web", "web", "n1"),
        ("app", "app", "n2"),
        ("db", "db", "n1"),
        ("bastion", "bastion", "n2"),
        ("other", "other", "n1"),
    ]);
    let ssh = rule("protocol: TCP, ports: [22]", &members_of("bastion"));
    let rules = |rules: &[String]| format!("[{}]", rules.join(", "));
    namespace.group("web", &rules(&[rule("protocol: TCP, ports: [80, \"443-500\"]", ANYWHERE), ssh.clone()]), None);
    namespace.group("app", &rules(&[ssh.clone(), rule("protocol: ICMP", ANYWHERE)]), None);
    let mysql = rule("protocol: TCP, ports: [3306]", &members_of("app"));
    let dns = rule("protocol: UDP, ports: [53]", &members_of("web"));
    namespace.group("db", &rules(&[mysql, dns, ssh]), Some(&rules(&[rule("protocol: TCP", &members_of("app"))])));
    namespace.group("bastion", "[]", None);
    for group in ["web", "app", "db", "bastion"] {
        namespace.bind(group, &[group], group);
    }
    namespace.enforced();

    let asked = [("tcp", 22), ("tcp", 80), ("tcp", 443), ("tcp", 3306), ("tcp", 65535), ("udp", 53), ("udp", 5353)];
    let pairs = names.iter().flat_map(|from| names.iter().filter(move |to| *to != from).map(move |to| (*from, *to)));
    let pairs: Vec<(&str, &str)> = pairs.collect();
    let (namespace, pods) = (&namespace, &pods);
    std::thread::scope(|scope| {
        for some in pairs.chunks(pairs.len() / 4) {
            scope.spawn(move || {
                for (from, to) in some {
                    let targets: Vec<String> =
                        asked.iter().flat_map(|(protocol, port)| pods[*to].on(protocol, *port)).collect();
                    let answers = pods[*from].probes().reaches(&targets);
                    for ((protocol, port), answers) in asked.iter().zip(answers.chunks(2)) {
                        let connection = format!("pod/{to}:{port}/{protocol}");
                        let explained = sg(&["explain", "-n", &namespace.0, &format!("pod/{from}"), &connection]);
                        let expected = if both(answers) { 0 } else { 1 };
                        assert_eq!(
                            explained.status.code(),
                            Some(expected),
                            "{from} to {connection}: {answers:?}, and explained: {}",
                            said(&explained)
                        );
                    }
                }
            });
        }
    });
}

#[test]
fn s4_revoke_says_what_it_cuts_and_asks_first() {
    let _calm = calm();
    let namespace = Namespace::new("revoke");
    let pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    let (server, client): (&Pod, &Pod) = (&pods["server"], &pods["client"]);
    namespace.group("server", "[]", None);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    assert!(!client.reaches(server, 22));
    let group = |arguments: &[&str]| sg(&[arguments, &["-n", &namespace.0]].concat());
    let allowed =
        group(&["allow", "server", "--tcp", "22", "--from", "0.0.0.0/0", "--from", "::/0", "--description", "SSH"]);
    assert!(allowed.status.success() && said(&allowed).contains("enforced on 1 node"), "{}", said(&allowed));
    assert!(client.reaches(server, 22), "it is in force when it says so");

    let shown: serde_json::Value = serde_json::from_slice(&group(&["show", "server", "-o", "json"]).stdout).unwrap();
    let rules = shown["rules"].as_array().unwrap();
    let id = rules.iter().find(|rule| rule["traffic"] == "TCP 22").unwrap()["id"].as_str().unwrap();
    let mut stream = client.probes().probe();
    stream.args(["stream", "tcp", &server.addresses[0], "22", "--interval", "10ms", "--duration", "10m"]);
    let stream = Running::start(stream);
    let asked = group(&["revoke", "server", id]);
    assert!(asked.status.code() == Some(2) && said(&asked).contains("--yes"), "{}", said(&asked));
    assert!(client.reaches(server, 22), "nothing was taken away");
    let warned = group(&["revoke", "server", id, "--dry-run=client"]);
    assert!(said(&warned).contains("TCP 22: no group lets anyone in any more"), "{}", said(&warned));

    // Somebody else lets SSH in as well: no false alarm.
    namespace.group("other", &format!("[{}]", rule("protocol: TCP, ports: [\"20-30\"]", ANYWHERE)), None);
    namespace.bind("other", &["other"], "server");
    namespace.enforced();
    let covered = group(&["revoke", "server", id, "--dry-run=client"]);
    assert!(!said(&covered).contains("no group lets anyone in"), "{}", said(&covered));
    namespace.kubectl(&["delete", "sgb", "other"]);
    namespace.enforced();

    let revoked = group(&["revoke", "server", id, "--yes"]);
    assert!(
        revoked.status.success() && said(&revoked).contains("taken away, enforced on 1 node"),
        "{}",
        said(&revoked)
    );
    assert!(!client.reaches(server, 22));
    let stream = stream.stop();
    assert!(!stream.contains(" lost 0 ") && !stream.contains("received 0 "), "{stream}");
}
