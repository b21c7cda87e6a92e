//! S14: a group in use cannot vanish.

use super::cluster::{Namespace, calm, eventually};

const ANYWHERE: &str = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";

fn exists(namespace: &Namespace, group: &str) -> bool {
    namespace.kubectl(&["get", "sg", "-o", "name"]).lines().any(|name| name.ends_with(&format!("/{group}")))
}

#[test]
fn s14_deletion_waits_says_who_uses_the_group_and_enforcement_goes_on() {
    let _calm = calm();
    let namespace = Namespace::new("in-use");
    let pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    namespace.group("server", "[{protocol: TCP, ports: [80], remote: {securityGroup: {name: client}}}]", None);
    namespace.group("client", "[]", None);
    namespace.bind("server", &["server"], "server");
    namespace.bind("client", &["client"], "client");
    namespace.enforced();

    namespace.kubectl(&["delete", "sg", "server", "client", "--wait=false"]);
    let message = namespace.until("sg", "server", "DeletionBlocked", "True", "InUse");
    assert!(message.contains(&format!("{}/server", namespace.0)), "{message}");
    let message = namespace.until("sg", "client", "DeletionBlocked", "True", "InUse");
    assert!(
        message.contains("named as a remote by the groups") && message.contains(&format!("{}/client", namespace.0)),
        "{message}"
    );
    assert!(pods["client"].reaches(&pods["server"], 80) && !pods["client"].reaches(&pods["server"], 443));

    // Its own binding gone, "client" is still named by the rules of "server", which is still bound.
    namespace.kubectl(&["delete", "sgb", "client"]);
    let by_groups_alone =
        || namespace.condition("sg", "client", "DeletionBlocked").is_some_and(|(_, _, m)| !m.contains("bindings"));
    eventually("held by the rules alone", by_groups_alone);
    assert!(exists(&namespace, "client"));
    namespace.kubectl(&["delete", "sgb", "server"]);
    eventually("both are gone", || !exists(&namespace, "server") && !exists(&namespace, "client"));
}

#[test]
fn s14_deleted_cycles_go_and_unused_groups_go_at_once() {
    let _calm = calm();
    let namespace = Namespace::new("cycles");
    for (group, remote) in [("a", "b"), ("b", "c"), ("c", "a"), ("d", "d")] {
        namespace.group(group, &format!("[{{protocol: Any, remote: {{securityGroup: {{name: {remote}}}}}}}]"), None);
    }
    namespace.group("unused", &format!("[{{protocol: Any, remote: {ANYWHERE}}}]"), None);
    namespace.kubectl(&["wait", "--for=condition=Enforced", "sg", "--all", "--timeout=30s"]);
    namespace.kubectl(&["delete", "sg", "unused", "d", "--timeout=20s"]);
    namespace.kubectl(&["delete", "sg", "a", "b", "--wait=false"]);
    let message = namespace.until("sg", "a", "DeletionBlocked", "True", "InUse");
    assert!(message.contains(&format!("{}/c", namespace.0)), "{message}");
    namespace.kubectl(&["delete", "sg", "c", "--timeout=20s"]);
    eventually("the whole cycle is gone", || namespace.kubectl(&["get", "sg", "-o", "name"]).is_empty());
}
