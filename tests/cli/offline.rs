//! Without a cluster, over the examples.

use super::{Ran, sg};

/// Runs a line of words over the examples.
fn run(line: &str) -> Ran {
    let words: Vec<&str> = line.split_whitespace().chain(["--offline", "-f", "deploy/examples"]).collect();
    sg(&words, None, "")
}

#[test]
fn list_and_show() {
    run("list").expect(0, &["IN   OUT   MEMBERS   NODES   ENFORCED", "shop        db-private "]);
    let json = run("list -o json").expect(0, &[]).out;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["items"][0]["metadata"]["name"], "app-tier");
    run("list -n elsewhere").expect(0, &["there are no security groups in namespace elsewhere"]);
    run("show -n shop db-private")
        .expect(0, &["23055aa948   TCP 3306   sg/app-tier", "nic/db-vm     10.20.0.5, fd00:20::5"]);
    run("show db-private")
        .expect(2, &["there is no security group default/db-private; there is one in namespace shop"]);
}

#[test]
fn the_difference_that_groups_make() {
    run("diff").expect(
        1,
        &[
            "=   shop/bastion [tier=bastion]   ",
            "   shop/app-tier [tier=app], shop/db-private [2]   TCP 22          3",
            "=   anyone but 203.0.113.10/32, 2001:db8::10/128   shop/web-public [tier=web]   ",
            "   TCP 80,443      4",
            "opens nothing. Newly guarded: 5 targets.",
        ],
    );
    run("diff --base deploy/examples").expect(0, &["no difference"]);
    let json = run("diff -o json").expect(1, &[]).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["newlyGuarded"], 5);
}

#[test]
fn standard_input_is_a_file_too() {
    let group = |port: u16| {
        format!(
            "apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: web-public, namespace: shop}}\n\
             spec: {{ingress: [{{protocol: TCP, ports: [{port}], remote: {{cidrs: [0.0.0.0/0]}}}}]}}\n"
        )
    };
    let words = ["diff", "--offline", "-f", "deploy/examples", "-f", "-", "--base", "deploy/examples"];
    sg(&words, None, &group(8080))
        .expect(1, &["- ingress TCP 443 anywhere", "TCP 8080 (IPv4)", "sg shop/web-public changed"]);
    sg(&words, None, &group(0)).expect(2, &["cannot read -", "\"0\" is not a port"]);
    sg(&words, None, &group(80).replace("ports", "port")).expect(2, &["there is no field spec.ingress[0].port"]);
}

#[test]
fn exit_codes_tell_allowed_from_denied_from_unknown() {
    run("explain -n shop pod/tier=app pod/tier=db:3306").expect(0, &["ALLOWED", "MySQL only from app servers"]);
    run("explain -n shop pod/tier=app nic/db-vm:3306").expect(0, &["into nic/shop/db-vm: allowed"]);
    run("explain -n shop pod/tier=web pod/tier=db:3306").expect(1, &["DENIED", "is no member of shop/app-tier"]);
    run("explain -n shop 203.0.113.10 pod/tier=bastion:22").expect(0, &["SSH from the office only"]);
    run("explain -n shop pod/nobody pod/tier=db:3306").expect(2, &["there is no live pod shop/nobody"]);
    run("explain -n shop pod/tier=web").expect(2, &["Usage"]);
    run("effective -n shop pod/tier=db").expect(0, &["TCP 3306   sg/app-tier   db-private   23055aa948"]);
}

#[test]
fn without_a_cluster_it_says_what_to_do() {
    sg(&["list"], None, "").expect(2, &["cannot find a cluster"]);
    sg(&["list", "--offline"], None, "").expect(2, &["--offline needs manifests"]);
    sg(&["list", "-f", "deploy/examples"], None, "").expect(2, &["-f goes with --offline"]);
    sg(&["list", "--offline", "-f", "nowhere"], None, "").expect(2, &["cannot read nowhere"]);
}

#[test]
fn the_whole_is_drawn_and_audited() {
    run("graph").expect(0, &["digraph groups {", "\"shop/bastion\" -> \"shop/db-private\" [label=\"TCP 22\"];"]);
    sg(&["audit", "--offline", "-f", "deploy/examples/public-web.yaml"], None, "").expect(0, &["nothing found"]);
    let open = "apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {name: open}\n\
                spec: {ingress: [{protocol: TCP, ports: [22], remote: {cidrs: [0.0.0.0/0]}}]}\n";
    let audit = |more: &[&str]| {
        let words: Vec<&str> = ["audit", "--offline", "-f", "-"].into_iter().chain(more.iter().copied()).collect();
        sg(&words, None, open)
    };
    audit(&[]).expect(1, &["error   admin-port-open", "opens admin ports to 0.0.0.0/0: 22", "2 findings"]);
    let sarif = audit(&["-o", "sarif"]).expect(1, &[]).out;
    let sarif: serde_json::Value = serde_json::from_str(&sarif).unwrap();
    assert_eq!(sarif["runs"][0]["results"][0]["ruleId"], "admin-port-open");
}

#[test]
fn shells_and_kubectl_complete() {
    for shell in ["bash", "zsh", "fish"] {
        sg(&["completion", shell], None, "").expect(0, &["kubectl-sg"]);
    }
    let ran = sg(&["__complete", "--", "audit", "--fail-on", ""], None, "");
    assert_eq!(ran.expect(0, &[]).out, "note\nwarning\nerror\n:4\n");
}
