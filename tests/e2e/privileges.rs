//! Who may do what, by trying: an agent, the controller, and tenants with Kubernetes' own roles.

use super::cluster::{Namespace, agent, attempt, calm, command, get, kubectl};
use super::disruption::SYSTEM;
use serde_json::{Value, json};

/// kubectl as somebody else: whether it succeeded, and what it said.
struct As {
    arguments: Vec<String>,
    /// A kubeconfig of its own.
    file: Option<std::path::PathBuf>,
}

impl As {
    /// Somebody without the administrator's groups.
    fn user(name: &str) -> Self {
        let groups = if name.starts_with("system:serviceaccount:") { "system:serviceaccounts" } else { "tenants" };
        let arguments =
            [format!("--as={name}"), format!("--as-group={groups}"), "--as-group=system:authenticated".into()];
        Self { arguments: arguments.into(), file: None }
    }

    /// Who has the token of a node's agent.
    fn agent_of(node: &str) -> Self {
        let token = format!("/proc/{}/root/run/secrets/kubernetes.io/serviceaccount/token", agent(node));
        let token = std::fs::read_to_string(token).unwrap();
        let mut config: Value = serde_json::from_str(&kubectl(&["config", "view", "--raw", "-o", "json"])).unwrap();
        for user in config["users"].as_array_mut().unwrap() {
            // Instead of the administrator's certificate.
            user["user"] = json!({ "token": token });
        }
        let file = std::env::temp_dir().join(format!("ringfence-agent-{node}-{}", std::process::id()));
        std::fs::write(&file, config.to_string()).unwrap();
        Self { arguments: vec![format!("--kubeconfig={}", file.display())], file: Some(file) }
    }

    fn tries(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = command("kubectl");
        command.args(&self.arguments).args(arguments);
        attempt(command, input)
    }

    fn may(&self, arguments: &[&str], input: &str) {
        self.tries(arguments, input).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    }

    fn may_not(&self, arguments: &[&str], input: &str, why: &str) {
        match self.tries(arguments, input) {
            Ok(said) => panic!("{arguments:?} succeeded: {said}"),
            Err(error) => assert!(error.contains(why), "{arguments:?}: refused, but not for {why:?}: {error}"),
        }
    }
}

impl Drop for As {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = std::fs::remove_file(file);
        }
    }
}

const FORBIDDEN: &str = "forbidden";

fn group(name: &str) -> String {
    let rule = "{protocol: TCP, ports: [443], remote: {cidrs: [\"192.0.2.0/24\"]}}";
    format!(
        "apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: {name}}}\nspec: {{ingress: [{rule}]}}\n"
    )
}

fn binding(namespace: &str) -> String {
    format!(
        "apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroupBinding\nmetadata: {{name: own, namespace: {namespace}}}\n\
         spec: {{securityGroups: [{{name: own}}], target: {{podSelector: {{}}}}}}\n"
    )
}

fn slice(name: &str) -> String {
    json!({
        "apiVersion": "ringfence.io/v1alpha1", "kind": "SecurityGroupSlice", "metadata": { "name": name },
        "spec": { "group": "own", "groupUID": "x", "members": [] },
    })
    .to_string()
}

#[test]
fn an_agent_reads_and_writes_its_own_report() {
    let _calm = calm();
    let agent = As::agent_of("n1");
    let report = |node: &str| get(&["nodeenforcement", node]).to_string();
    // The agent may write meanwhile; that is a conflict, and no refusal.
    let own = agent.tries(&["replace", "--subresource=status", "--dry-run=server", "-f", "-"], &report("n1"));
    assert!(own.is_ok() || own.as_ref().is_err_and(|error| error.contains("the object has been modified")), "{own:?}");
    let replace = ["replace", "--subresource=status", "-f", "-"];
    let refused = std::iter::repeat_with(|| agent.tries(&replace, &report("n2")))
        .find(|tried| !tried.as_ref().is_err_and(|error| error.contains("the object has been modified")));
    let refusal = "the agent of node n1 may write only the NodeEnforcement of n1, not of n2";
    assert!(
        refused.as_ref().is_some_and(|tried| tried.as_ref().is_err_and(|error| error.contains(refusal))),
        "{refused:?}"
    );
    let another = json!({ "apiVersion": "ringfence.io/v1alpha1", "kind": "NodeEnforcement", "metadata": { "name": "n3" }, "spec": {} });
    agent.may_not(&["create", "-f", "-"], &another.to_string(), "may write only the NodeEnforcement of n1, not of n3");
    // What it counts is its own alone likewise.
    let usage = json!({
        "apiVersion": "ringfence.io/v1alpha1", "kind": "NodeUsage", "metadata": { "name": "n2" },
        "spec": { "epoch": 1, "until": "2026-01-01T00:00:00Z", "groups": [] },
    });
    let refusal = "the agent of node n1 may write only the NodeUsage of n1, not of n2";
    agent.may_not(&["create", "--dry-run=server", "-f", "-"], &usage.to_string(), refusal);
    // Of its own node's machines alone it tells which connections they have, and not where they went.
    let handover = |from: &str, to: Option<&str>| {
        let mut handover = json!({
            "apiVersion": "ringfence.io/v1alpha1", "kind": "ConnectionHandover", "metadata": { "name": "test" },
            "spec": { "nodeName": from, "namespace": "default", "networkInterface": "test", "connections": [] },
        });
        to.iter().for_each(|to| handover["spec"]["toNode"] = json!(to));
        handover.to_string()
    };
    let create = ["create", "--dry-run=server", "-f", "-"];
    agent.may(&create, &handover("n1", None));
    agent.may_not(&create, &handover("n2", None), "may write only the ConnectionHandover of n1, not of n2");
    agent.may_not(&create, &handover("n1", Some("n2")), "agents do not say which node connections are for");
    agent.may(&["get", "sg,sgb,securitygroupslices", "--all-namespaces"], "");
    for attempt in [
        &["delete", "nodeenforcement", "n1", "--dry-run=server"][..],
        &["delete", "nodeusage", "n1", "--dry-run=server"],
        &["delete", "connectionhandover", "test", "--dry-run=server"],
        &["delete", "pods", "--all", "--all-namespaces", "--dry-run=server"],
        &["get", "secrets", "--all-namespaces"],
        &["get", "configmaps", "--all-namespaces"],
        &["delete", "sg", "--all", "--all-namespaces", "--dry-run=server"],
        &["label", "node", "n1", "a=b", "--dry-run=server"],
    ] {
        agent.may_not(attempt, "", FORBIDDEN);
    }
    agent.may_not(&["create", "-n", "default", "--dry-run=server", "-f", "-"], &group("t"), FORBIDDEN);
    agent.may_not(&["create", "-n", "default", "--dry-run=server", "-f", "-"], &slice("t"), FORBIDDEN);
}

#[test]
fn the_controller_writes_what_is_its_own() {
    let _calm = calm();
    let namespace = Namespace::new("controllers");
    let (created, said) = namespace.tell(&["apply", "--server-side", "-f", "-"], &group("own"));
    assert!(created, "{said}");
    let controller = As::user(&format!("system:serviceaccount:{SYSTEM}:ringfence-controller"));
    // Applied: to patch, kubectl would read the group first, and the controller may not even read single ones.
    let apply = |manifest: &str| {
        let arguments =
            ["-n", &namespace.0, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"];
        controller.tries(&arguments, manifest)
    };
    let with = |metadata: &str| group("own").replace("{name: own}", &format!("{{name: own, {metadata}}}"));
    apply(&with("finalizers: [ringfence.io/in-use, a.example/b]")).unwrap();
    let emptied = group("own").replace("443", "444");
    for manifest in [emptied, with("annotations: {a: b}"), with("labels: {a: b}")] {
        let refusal = apply(&manifest).unwrap_err();
        let why = "the controller of Ringfence may change the finalizers of a group, and nothing else";
        assert!(refusal.contains(why), "{refusal}\n{manifest}");
    }
    for attempt in [
        &["create", "--dry-run=server", "-f", "-"][..],
        &["delete", "sg", "own", "--dry-run=server"],
        &["get", "secrets"],
        &["get", "configmaps"],
        &["create", "configmap", "a", "--dry-run=server"],
        &["delete", "nodeenforcement", "n1", "--dry-run=server"],
    ] {
        controller.may_not(&[&["-n", &namespace.0], attempt].concat(), &group("other"), FORBIDDEN);
    }
}

#[test]
fn a_tenant_has_its_namespace_and_no_other() {
    let _calm = calm();
    let (mine, theirs) = (Namespace::new("tenant-mine"), Namespace::new("tenant-theirs"));
    for (user, role) in [("editor", "edit"), ("viewer", "view"), ("owner", "admin")] {
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        mine.kubectl(&["create", "rolebinding", &user["--user=".len()..], &role, &user]);
    }
    theirs.apply(&group("own"));
    for user in ["editor", "owner"] {
        let tenant = As::user(user);
        tenant.may(&["-n", &mine.0, "apply", "-f", "-"], &group("own"));
        tenant.may(&["apply", "-f", "-"], &binding(&mine.0));
        tenant.may(&["-n", &mine.0, "get", "sg,sgb"], "");
        // Attached, shadowed, widened or looked at: nothing of another's.
        tenant.may_not(&["-n", &theirs.0, "create", "-f", "-"], &group("mine"), FORBIDDEN);
        tenant.may_not(&["create", "-f", "-"], &binding(&theirs.0), FORBIDDEN);
        tenant.may_not(&["-n", &theirs.0, "get", "sg"], "", FORBIDDEN);
        tenant.may_not(&["-n", &theirs.0, "delete", "sg", "own"], "", FORBIDDEN);
        // Nor what is internal, in its own namespace either.
        tenant.may_not(&["-n", &mine.0, "create", "-f", "-"], &slice("own-0"), FORBIDDEN);
        tenant.may_not(&["-n", &mine.0, "get", "securitygroupslices"], "", FORBIDDEN);
        tenant.may_not(&["get", "nodeenforcements"], "", FORBIDDEN);
        let status = [
            "-n",
            &mine.0,
            "patch",
            "sg",
            "own",
            "--subresource=status",
            "--type=merge",
            "--patch",
            "{status: {members: 7}}",
        ];
        tenant.may_not(&status, "", FORBIDDEN);
        tenant.may(&["-n", &mine.0, "delete", "sgb,sg", "--all"], "");
    }
    let viewer = As::user("viewer");
    viewer.may(&["-n", &mine.0, "get", "sg,sgb"], "");
    viewer.may_not(&["-n", &mine.0, "create", "-f", "-"], &group("own"), FORBIDDEN);
    viewer.may_not(&["-n", &theirs.0, "get", "sg"], "", FORBIDDEN);
}
