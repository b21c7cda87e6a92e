//! What kubectl warns of or refuses when groups and bindings change, and what the controller tells of it afterwards.

use super::cluster::{Namespace, SOON, alone, calm, command, eventually, get, kubectl, output_of};
use serde_json::Value;
use std::time::Duration;

const WORLD: &str = "remote: {cidrs: [\"0.0.0.0/0\", \"::/0\"]}";
const OFFICE: &str = "remote: {cidrs: [\"203.0.113.0/24\"]}";
const APPLY: [&str; 3] = ["apply", "-f", "-"];
const SERVER_SIDE: [&str; 4] = ["apply", "--server-side", "-f", "-"];
const PROTECTED: &str = "ringfence.io/protect-admin-access";

fn group(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: {name}}}\nspec: {{ingress: [{rules}]}}\n"
    )
}

fn tcp(ports: &str, remote: &str) -> String {
    format!("{{protocol: TCP, ports: [{ports}], {remote}}}")
}

/// What kubectl must say.
fn warned(namespace: &Namespace, arguments: &[&str], manifest: &str, what: &str) {
    let (succeeded, said) = namespace.tell(arguments, manifest);
    assert!(
        succeeded && said.contains("Warning:") && said.contains(what),
        "not warned of {what:?}: {said}\n{manifest}"
    );
}

/// Nothing to be said.
fn silent(namespace: &Namespace, arguments: &[&str], manifest: &str) {
    let (succeeded, said) = namespace.tell(arguments, manifest);
    assert!(succeeded && !said.contains("Warning:"), "{said}\n{manifest}");
}

fn refused(namespace: &Namespace, arguments: &[&str], manifest: &str, what: &str) {
    let (succeeded, said) = namespace.tell(arguments, manifest);
    assert!(!succeeded && said.contains(what), "not refused for {what:?}: {said}\n{manifest}");
}

#[test]
fn an_admin_port_that_is_open_to_the_world_is_warned_of() {
    let _calm = calm();
    let namespace = Namespace::new("advice");
    for (i, (rule, opened)) in [
        (tcp("22", WORLD), "admin ports to 0.0.0.0/0, ::/0: 22 (SSH)"),
        (tcp("\"20-30\"", WORLD), "22 (SSH), 23 (Telnet)"),
        (tcp("80, 3389", "remote: {cidrs: [\"::/0\"]}"), "admin ports to ::/0: 3389 (RDP)"),
        (tcp("5432", "remote: {cidrs: [\"192.0.2.0/24\", \"128.0.0.0/1\"]}"), "to 128.0.0.0/1: 5432 (PostgreSQL)"),
        (tcp("6379", "remote: {cidrs: [\"2000::/3\"]}"), "to 2000::/3: 6379 (Redis)"),
        (format!("{{protocol: TCP, {WORLD}}}"), "22 (SSH)"),
        (format!("{{protocol: Any, {WORLD}}}"), "27017 (MongoDB)"),
    ]
    .into_iter()
    .enumerate()
    {
        let (create, update) = (format!("create-{i}"), format!("update-{i}"));
        warned(&namespace, &["create", "-f", "-"], &group(&create, &rule), opened);
        silent(&namespace, &APPLY, &group(&update, &tcp("443", WORLD)));
        let both = format!("{}, {rule}", tcp("443", WORLD));
        warned(&namespace, &SERVER_SIDE[..], &group(&format!("server-side-{i}"), &both), opened);
        warned(&namespace, &APPLY, &group(&update, &both), opened);
        // As those who apply everything every few minutes do it.
        silent(&namespace, &APPLY, &group(&update, &both));
        silent(&namespace, &SERVER_SIDE, &group(&format!("server-side-{i}"), &both));
        // It is known, and what is new is harmless.
        silent(&namespace, &APPLY, &group(&update, &format!("{both}, {}", tcp("8080", WORLD))));
    }
    for (i, rule) in [
        tcp("22", OFFICE),
        tcp("22", "remote: {cidrs: [\"10.0.0.0/8\", \"fd00::/32\"]}"),
        tcp("22", "remote: {securityGroup: {name: bastion}}"),
        tcp("80, \"8000-9000\"", WORLD),
        format!("{{protocol: UDP, ports: [22], {WORLD}}}"),
        format!("{{protocol: ICMP, {WORLD}}}"),
    ]
    .into_iter()
    .enumerate()
    {
        silent(&namespace, &APPLY, &group(&format!("fine-{i}"), &rule));
    }
}

#[test]
fn a_group_with_very_many_rules_is_better_split() {
    let _calm = calm();
    let namespace = Namespace::new("many-rules");
    let rules = |count: usize| (0..count).map(|i| tcp(&(8000 + i).to_string(), OFFICE)).collect::<Vec<_>>().join(", ");
    // One more is the default rule for egress.
    silent(&namespace, &APPLY, &group("many", &rules(59)));
    warned(
        &namespace,
        &APPLY,
        &group("many", &rules(60)),
        "the group has 61 rules; more than 60 are hard to judge. Split it by tier",
    );
    silent(&namespace, &APPLY, &group("many", &rules(60)));
    silent(&namespace, &APPLY, &group("many", &rules(59)));
}

#[test]
fn policies_that_deny_refuse_and_name_pods_by_their_group() {
    let _alone = alone();
    let namespace = Namespace::new("denied");
    let render = || {
        let mut helm = command("helm");
        helm.args(["template", "strict", concat!(env!("CARGO_MANIFEST_DIR"), "/charts/ringfence")])
            .args(["--show-only", "templates/recommendations.yaml"])
            .args(["--set", "recommendations.adminPorts.action=Deny,recommendations.ruleCount.action=Deny"])
            .args(["--set", "recommendations.groupRemotes.action=Deny,recommendations.ruleCount.max=3"])
            .args(["--set", "recommendations.groupRemotes.podCIDRs={10.244.0.0/16,fd00:10:244::/48}"]);
        output_of(helm)
    };
    let policies = Policies(render());
    silent(&namespace, &APPLY, &group("old", &tcp("80", OFFICE)));
    namespace.tell(&APPLY, &policies.0);
    let open = group("open", &tcp("22", WORLD));
    let many: Vec<String> = (0..3).map(|i| tcp(&(80 + i).to_string(), OFFICE)).collect();
    let many = group("old", &many.join(", "));
    let by_address = tcp("80", "remote: {cidrs: [\"192.0.2.0/24\", \"10.244.3.0/24\"]}");
    // The API server takes up one after the other.
    for bad in [&open, &many, &group("old", &by_address)] {
        eventually("the policy is in force", || !namespace.tell(&["apply", "--dry-run=server", "-f", "-"], bad).0);
    }
    refused(&namespace, &APPLY, &open, "admin ports to 0.0.0.0/0, ::/0: 22 (SSH)");
    refused(&namespace, &SERVER_SIDE, &open, "admin ports to 0.0.0.0/0, ::/0: 22 (SSH)");
    refused(&namespace, &APPLY, &many, "Split it by tier");
    refused(&namespace, &APPLY, &group("old", &by_address), "addresses of pods (10.244.3.0/24)");
    let by_group = tcp("80", "remote: {securityGroup: {name: app}}");
    silent(&namespace, &APPLY, &group("old", &format!("{by_address}, {by_group}")));
    silent(&namespace, &APPLY, &group("old", &format!("{by_address}, {by_group}")));
}

/// Policies of a test's own, for as long as it lasts.
struct Policies(String);

impl Drop for Policies {
    fn drop(&mut self) {
        for kind in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
            let mut delete = command("kubectl");
            let _ = delete.args(["delete", kind, "--selector", "app.kubernetes.io/instance=strict"]).output();
        }
        // They are in force for a moment longer, and would refuse what other tests apply.
        std::thread::sleep(Duration::from_secs(2));
    }
}

#[test]
fn who_takes_the_last_way_in_is_warned_before_and_told_after() {
    let _calm = calm();
    let namespace = Namespace::new("lock-out");
    let both = format!("{}, {}", tcp("22", OFFICE), tcp("80", WORLD));
    silent(&namespace, &APPLY, &group("db", &both));
    silent(&namespace, &APPLY, &group("ops", &tcp("\"1-100\"", OFFICE)));
    namespace.bind("db", &["db"], "db");
    let pods = namespace.pods(&[("db-0", "db", "n1"), ("db-1", "db", "n2")]);
    assert_eq!(pods.len(), 2);
    namespace.until("sg", "db", "Enforced", "True", "Enforced");

    let without = group("db", &tcp("80", WORLD));
    warned(
        &namespace,
        &APPLY,
        &without,
        "security group db keeps no ingress rule and lets nobody in any more on 22 (SSH) of its 2 members",
    );
    let told = event(&namespace, "db", "AdminAccessRemoved");
    assert!(told.starts_with("TCP 22: no group lets anyone in any more on ") && told.contains("db-0"), "{told}");
    silent(&namespace, &APPLY, &without);

    // A second group on the same targets still lets people in: kubectl, who knows one group only, warns; the controller clears it.
    silent(&namespace, &APPLY, &group("db", &both));
    namespace.bind("ops", &["ops"], "db");
    namespace.until("sg", "ops", "Enforced", "True", "Enforced");
    warned(&namespace, &APPLY, &without, "Check first that another group on the same targets allows it");
    let told = event(&namespace, "db", "AdminAccessKept");
    assert_eq!(told, format!("TCP 22: still let in on every target, by {}/ops", namespace.0));

    warned(
        &namespace,
        &["delete", "sgb", "ops", "--dry-run=server"],
        "",
        "targets lose security group ops and its way in on 22 (SSH), 23 (Telnet)",
    );
    let elsewhere = "[{op: replace, path: /spec/target/podSelector/matchLabels/app, value: web}]";
    let patch = ["patch", "sgb", "ops", "--type=json", "--patch", elsewhere, "--dry-run=server"];
    warned(&namespace, &patch, "", "changed like this, targets lose security group ops");
    silent(&namespace, &["delete", "sgb", "db", "--dry-run=server"], "");
    warned(
        &namespace,
        &["delete", "sg", "ops", "--dry-run=server"],
        "",
        "security group ops is deleted and lets nobody in any more on 22 (SSH)",
    );
    silent(&namespace, &["delete", "sg", "db", "--dry-run=server"], "");
}

#[test]
fn a_protected_group_keeps_its_way_in() {
    let _calm = calm();
    let namespace = Namespace::new("protected");
    silent(&namespace, &APPLY, &group("db", &tcp("22, 80", OFFICE)));
    namespace.bind("db", &["db"], "db");
    let annotate = |what: &str| {
        let (succeeded, said) = namespace.tell(&["annotate", "sg", "db", what], "");
        assert!(succeeded, "{said}");
    };
    annotate(&format!("{PROTECTED}=true"));
    let without = group("db", &tcp("80", OFFICE));
    let what = "remove its annotation ringfence.io/protect-admin-access first";
    refused(&namespace, &APPLY, &without, what);
    refused(&namespace, &["delete", "sg", "db"], "", what);
    refused(&namespace, &["delete", "sgb", "db"], "", what);
    let both_at_once =
        format!("{{\"metadata\":{{\"annotations\":{{\"{PROTECTED}\":null}}}},\"spec\":{{\"ingress\":[]}}}}");
    refused(&namespace, &["patch", "sg", "db", "--type=merge", "--patch", &both_at_once], "", what);
    silent(&namespace, &APPLY, &group("db", &tcp("22, 443", OFFICE)));
    annotate(&format!("{PROTECTED}-"));
    warned(&namespace, &APPLY, &without, "lets nobody in any more on 22 (SSH)");
    // What goes with its namespace is not held.
    silent(&namespace, &APPLY, &group("db", &tcp("22", OFFICE)));
    annotate(&format!("{PROTECTED}=true"));
    kubectl(&["delete", "namespace", &namespace.0, &format!("--timeout={}s", SOON.as_secs())]);
}

/// Waits for an event on a group, and returns what it says.
fn event(namespace: &Namespace, group: &str, reason: &str) -> String {
    let mut note = String::new();
    eventually(&format!("an event {reason} on {group}"), || {
        let events = get(&["-n", &namespace.0, "events.events.k8s.io"]);
        let is_it = |event: &&Value| event["regarding"]["name"] == group && event["reason"] == reason;
        let found = events["items"].as_array().unwrap().iter().find(is_it).cloned();
        note = found.as_ref().and_then(|event| event["note"].as_str()).unwrap_or_default().to_owned();
        found.is_some()
    });
    note
}
