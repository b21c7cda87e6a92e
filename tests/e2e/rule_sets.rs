//! The three rule sets of the examples: every pair, both families, same node and across nodes, directly and through Services.

use super::cluster::{Namespace, calm};
use super::reach::{From, OFFICE, Pod, STRANGER, target};
use std::collections::BTreeMap;

const ROLES: [&str; 5] = ["web", "app", "db", "bastion", "other"];

/// Who may open what, as the rule sets say in words.
fn allowed(from: &str, to: &str, port: u16) -> bool {
    match (to, port) {
        ("web", 80 | 443) => true,
        ("web" | "bastion", 22) => from == "office",
        ("db", 3306) => from == "app",
        ("db" | "app", 22) => from == "bastion",
        // Nobody guards the others.
        ("other", _) => true,
        _ => false,
    }
}

#[test]
fn every_pair_of_the_three_rule_sets() {
    let _calm = calm();
    let namespace = Namespace::new("rule-sets");
    let names: Vec<(String, &str, &str)> = ROLES
        .iter()
        .flat_map(|role| [(format!("{role}-1"), *role, "n1"), (format!("{role}-2"), *role, "n2")])
        .collect();
    let wanted: Vec<(&str, &str, &str)> =
        names.iter().map(|(name, role, node)| (name.as_str(), *role, *node)).collect();
    let pods = namespace.pods(&wanted);
    for role in ["web", "db"] {
        namespace.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {role}}}\nspec: {{selector: {{app: {role}}}, ipFamilyPolicy: RequireDualStack, ports: [{{name: a, port: 80}}, {{name: b, port: 3306}}]}}\n"
        ));
    }
    let services: BTreeMap<&str, Vec<String>> = ["web", "db"].map(|role| (role, cluster_ips(&namespace, role))).into();

    check(&pods, &services, |_, _, _| true);
    let ready_before = readiness(&namespace);

    for example in ["public-web", "internal-database", "bastion"] {
        let file = format!("{}/deploy/examples/{example}.yaml", env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read_to_string(file).unwrap();
        // The examples name pods by tier and live in a namespace of their own.
        namespace.apply(
            &manifest.replace("namespace: shop", &format!("namespace: {}", namespace.0)).replace("{tier: ", "{app: "),
        );
    }
    namespace.enforced();
    check(&pods, &services, allowed);

    let objects = namespace.kubectl(&["get", "sg", "--no-headers"]);
    assert_eq!(objects.lines().count(), 4);
    assert!(objects.lines().all(|line| line.contains("2/2") && line.contains("True")), "{objects}");
    assert_eq!(ready_before, readiness(&namespace), "a kubelet's probe failed");
}

fn check(
    pods: &BTreeMap<String, Pod>,
    services: &BTreeMap<&str, Vec<String>>,
    allowed: impl Fn(&str, &str, u16) -> bool,
) {
    let role = |pod: &str| pod.split('-').next().unwrap().to_owned();
    let mut origins: Vec<(String, From<'_>)> = pods.iter().map(|(name, pod)| (name.clone(), From::Pod(pod))).collect();
    origins.push(("office".into(), From::Outside(OFFICE)));
    origins.push(("stranger".into(), From::Outside(STRANGER)));
    let mut wrong = Vec::new();
    for (from, origin) in origins {
        let mut expected = Vec::new();
        for (to, pod) in pods.iter().filter(|(to, _)| **to != from) {
            for port in [22, 80, 443, 3306] {
                expected.extend(pod.on("tcp", port).into_iter().map(|t| (t, allowed(&role(&from), &role(to), port))));
            }
        }
        // The Service's own address needs no rule; outside does not know the way to it.
        if matches!(origin, From::Pod(_)) {
            for (to, addresses) in services.iter().filter(|(to, _)| **to != role(&from)) {
                for (address, port) in addresses.iter().flat_map(|a| [(a, 80), (a, 3306)]) {
                    expected.push((target("tcp", address, port), allowed(&role(&from), to, port)));
                }
            }
        }
        let targets: Vec<String> = expected.iter().map(|(target, _)| target.clone()).collect();
        let answers = origin.reaches(&targets);
        wrong.extend(
            expected.iter().zip(answers).filter(|((_, e), a)| e != a).map(|((t, _), a)| format!("{from} -> {t}: {a}")),
        );
    }
    assert!(wrong.is_empty(), "{} pairs are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn cluster_ips(namespace: &Namespace, service: &str) -> Vec<String> {
    let ips = &namespace.get("service", service)["spec"]["clusterIPs"];
    ips.as_array().unwrap().iter().map(|ip| ip.as_str().unwrap().to_owned()).collect()
}

/// When each pod became ready, and how often it was restarted.
fn readiness(namespace: &Namespace) -> Vec<String> {
    let template = "{range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Ready\")]} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
    let said = namespace.kubectl(&["get", "pods", "-o", &format!("jsonpath={template}")]);
    said.lines().map(str::to_owned).collect()
}
