//! Changes to a cluster: what is sent, what is waited for, and what becomes of others' changes.

use super::api::Api;
use super::{Ran, sg};
use serde_json::{Value, json};

const SSH: &str = "a24a6c9730";

fn ssh() -> Value {
    json!({ "protocol": "TCP", "ports": [22], "remote": { "cidrs": ["203.0.113.10/32", "2001:db8::10/128"] } })
}

fn https() -> Value {
    json!({ "protocol": "TCP", "ports": [443], "remote": { "cidrs": ["0.0.0.0/0"] } })
}

/// One group with two rules, attached to one pod, with another pod beside it.
fn api(name: &str) -> Api {
    let pod = |name: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name, "labels": { "app": name } },
            "spec": { "containers": [] }, "status": { "phase": "Running", "podIPs": [{ "ip": ip }] },
        })
    };
    Api::new(
        name,
        [
            json!({
                "apiVersion": "ringfence.io/v1alpha1", "kind": "SecurityGroup",
                "metadata": { "namespace": "shop", "name": "web" },
                "spec": { "ingress": [https(), ssh()], "egress": [] },
            }),
            json!({
                "apiVersion": "ringfence.io/v1alpha1", "kind": "SecurityGroupBinding",
                "metadata": { "namespace": "shop", "name": "web" },
                "spec": {
                    "securityGroups": [{ "name": "web" }],
                    "target": { "podSelector": { "matchLabels": { "app": "web" } } },
                },
            }),
            pod("web", "10.0.0.1"),
            pod("other", "10.0.0.2"),
        ],
    )
}

fn run(api: &Api, line: &str) -> Ran {
    sg(&line.split_whitespace().collect::<Vec<_>>(), Some(&api.kubeconfig), "")
}

fn ingress(api: &Api) -> Vec<Value> {
    api.get("securitygroups", "web").unwrap()["spec"]["ingress"].as_array().unwrap().clone()
}

#[test]
fn a_rule_is_allowed_and_waited_for() {
    let api = api("allow");
    let ran = run(&api, "allow web --tcp 8080 --from 10.0.0.0/8 --description test");
    let ran = ran.expect(0, &["sg/web ingress TCP 8080 from 10.0.0.0/8 (", "allowed, enforced on 2 nodes after "]);
    let after = ran.out.split("after ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(after >= 20, "it waits for the status and not for the patch: {after}");
    let added =
        json!({ "protocol": "TCP", "ports": [8080], "remote": { "cidrs": ["10.0.0.0/8"] }, "description": "test" });
    assert_eq!(ingress(&api), [https(), ssh(), added]);
    run(&api, "allow web --tcp 8080 --from 10.0.0.0/8").expect(0, &["it is allowed already"]);
    assert_eq!(ingress(&api).len(), 3);
}

#[test]
fn what_others_add_meanwhile_stays() {
    let api = api("intruders");
    let other = json!({ "protocol": "UDP", "remote": { "cidrs": ["192.0.2.0/24"] } });
    let add = |first: bool| {
        let other = other.clone();
        move |group: &mut Value| {
            let rules = group["spec"]["ingress"].as_array_mut().unwrap();
            rules.insert(if first { 0 } else { rules.len() }, other.clone());
        }
    };
    api.intrude(add(false), "securitygroups", "web");
    run(&api, "allow web --tcp 1 --from ::/0 --wait=false").expect(0, &["allowed"]);
    assert_eq!(ingress(&api)[..3], [https(), ssh(), other.clone()]);
    // The rule to be removed moves to another place in the list.
    api.intrude(add(true), "securitygroups", "web");
    run(&api, &format!("revoke web {SSH} --yes --wait=false")).expect(0, &["taken away"]);
    let left = ingress(&api);
    assert_eq!(left[..2], [other, https()]);
    assert!(!left.contains(&ssh()));
}

#[test]
fn a_rule_is_revoked_after_saying_what_that_cuts() {
    let api = api("revoke");
    run(&api, &format!("revoke web {SSH}")).expect(2, &["standard input is no terminal", "--yes"]);
    let says = [
        "sg/web ingress TCP 22 from 203.0.113.10/32, 2001:db8::10/128 (a24a6c9730)",
        "-   203.0.113.10/32   shop/web [web]   TCP 22",
        "TCP 22: no group lets anyone in any more on shop/web",
    ];
    run(&api, &format!("revoke web {SSH} --dry-run=client")).expect(0, &says);
    assert_eq!(ingress(&api).len(), 2);
    assert!(!api.requests().iter().any(|request| request.starts_with("PATCH")));
    run(&api, &format!("revoke web {SSH} --dry-run=server")).expect(0, &["(server dry run)"]);
    assert_eq!(ingress(&api).len(), 2);
    assert!(api.requests().iter().any(|request| request.starts_with("PATCH") && request.contains("dryRun=All")));
    run(&api, &format!("revoke web {SSH} --yes"))
        .expect(0, &says)
        .expect(0, &["taken away, enforced on 2 nodes after "]);
    assert_eq!(ingress(&api), [https()]);
    run(&api, &format!("revoke web {SSH} --yes")).expect(2, &["has no rule a24a6c9730"]);
}

#[test]
fn what_is_not_enforced_in_time_says_why() {
    let api = api("broken");
    api.break_down();
    let says = ["not enforced after 1 s, 1 of 2 nodes have it: Reported: n2 does not answer"];
    run(&api, "allow web --tcp 1 --from ::/0 --timeout 1").expect(1, &says);
}

#[test]
fn a_dry_run_shows_what_would_open() {
    let api = api("dry");
    let says = ["(dry run)", "+   unguarded [other], 10.0.0.0/8   shop/web [web]   TCP 1"];
    run(&api, "allow web --tcp 1 --from 10.0.0.0/8 --dry-run=client").expect(0, &says);
    assert_eq!(ingress(&api).len(), 2);
    run(&api, "allow web --tcp 1 --from group/nobody --dry-run=client").expect(0, &["shop/nobody does not exist"]);
    run(&api, "allow nobody --tcp 1 --from ::/0").expect(2, &["there is no security group shop/nobody"]);
}

#[test]
fn a_thousand_pods_come_in_pages_and_are_one_row() {
    let api = api("pages");
    for i in 0..1200 {
        api.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": format!("web-{i}"), "labels": { "app": "web" } },
            "spec": { "containers": [] },
            "status": { "phase": "Running", "podIPs": [{ "ip": format!("10.1.{}.{}", i / 250, i % 250 + 1) }] },
        }));
    }
    let ran = run(&api, &format!("revoke web {SSH} --dry-run=client"));
    ran.expect(0, &["shop/web [1201]   TCP 22", "-   203.0.113.10/32"]);
    let pods = api.requests().into_iter().filter(|request| request.contains("/pods?")).count();
    assert_eq!(pods, 3, "{:?}", api.requests());
}

#[test]
fn groups_are_attached_and_detached() {
    let api = api("attach");
    run(&api, "attach web --to pod/other --dry-run=client").expect(
        0,
        &[
            "sgb/web-app-other: would select 1 target (dry run)",
            "=   203.0.113.10/32",
            "shop/web [other, of 2]   TCP 22,443   -",
        ],
    );
    run(&api, "attach web --to pod/other --dry-run=server").expect(0, &["(server dry run)"]);
    assert!(api.get("securitygroupbindings", "web-app-other").is_none());
    run(&api, "attach web gone --to pod/other --name b")
        .expect(0, &["sgb/b: selects 1 target, enforced on 2 nodes after ", "security group shop/gone does not exist"]);
    let spec = &api.get("securitygroupbindings", "b").unwrap()["spec"];
    assert_eq!(spec["target"], json!({ "podSelector": { "matchLabels": { "app": "other" } } }));
    run(&api, "attach web gone --to app=other --name b").expect(0, &["it is attached already"]);
    run(&api, "attach web --to app=web --name b").expect(2, &["says something else"]);

    run(&api, "detach b").expect(2, &["standard input is no terminal"]);
    run(&api, "detach b --dry-run=server")
        .expect(0, &["would be deleted (server dry run)", "Guarded no more: 1 target"]);
    assert!(api.get("securitygroupbindings", "b").is_some());
    run(&api, "detach sgb/b --yes").expect(0, &["sgb/b: deleted", "TCP 22: no group lets anyone in any more"]);
    assert!(api.get("securitygroupbindings", "b").is_none());
    run(&api, "detach b --yes").expect(2, &["there is no binding shop/b"]);
}

#[test]
fn nodes_say_whether_they_enforce() {
    let api = api("nodes");
    run(&api, "nodes").expect(0, &["no node reports"]);
    let report = |status: &str| {
        json!({
            "apiVersion": "ringfence.io/v1alpha1", "kind": "NodeEnforcement", "metadata": { "name": "n1" }, "spec": {},
            "status": { "groupCount": 2, "interfaces": 3, "conditions": [{
                "type": "DataPathReady", "status": status, "reason": "Bridge", "message": "a bridge passes by",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }] },
        })
    };
    api.put(report("True"));
    run(&api, "nodes").expect(0, &["n1     2        3            True       -      -"]);
    api.put(report("False"));
    run(&api, "nodes").expect(1, &["Bridge: a bridge passes by"]);
}
