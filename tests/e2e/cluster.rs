//! The test cluster's commands, and namespaces that clean up after themselves.

use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// What must come, comes within this; generous, as many tests share two cores.
pub const SOON: Duration = Duration::from_secs(30);

/// Tests that stop parts of the cluster run alone.
static CALM: RwLock<()> = RwLock::new(());

/// Held by tests that need every part of the cluster to run.
pub fn calm() -> RwLockReadGuard<'static, ()> {
    // Another test's failure is not this one's.
    CALM.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by tests that stop parts of the cluster.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    CALM.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the namespaces of earlier tests are gone, for tests that stop the API server.
///
/// One that has just started does not serve every kind yet, and a namespace that goes then leaves objects of the others behind:
/// nobody can delete those, as policies of admission look for their namespace in vain.
pub fn nobody_is_leaving() {
    // Kubernetes looks at a namespace that is not empty yet again after 8 s, and after an error later each time, up to a minute.
    let deadline = Instant::now() + Duration::from_secs(180);
    let leaving = [
        "get",
        "namespaces",
        "-o",
        r#"jsonpath={range .items[?(@.status.phase=="Terminating")]}{.metadata.name}: {.status.conditions[*].message}{"\n"}{end}"#,
    ];
    loop {
        let namespaces = kubectl(&leaving);
        if namespaces.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "namespaces that do not go: {namespaces}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The folder of the cluster.
pub fn folder() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/target/cluster");
    let folder = PathBuf::from(std::env::var("RINGFENCE_CLUSTER_DIR").unwrap_or_else(|_| default.into()));
    assert!(
        folder.join("kubectl").exists(),
        "there is no test cluster in {}; run: make cluster install",
        folder.display()
    );
    folder
}

/// One of the commands in the cluster's folder.
pub fn command(name: &str) -> Command {
    Command::new(folder().join(name))
}

/// A command that sees the files of a node.
pub fn in_node(node: &str) -> Command {
    let pid = std::fs::read_to_string(folder().join(node).join("init.pid")).unwrap();
    let mut command = Command::new("nsenter");
    command.args(["--target", pid.trim(), "--mount", "--net", "--"]);
    command
}

/// The probe program, for `pod`, `node` and `outside`.
pub fn probe() -> String {
    folder().join("probe").display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(mut command: Command, input: Option<&str>) -> Output {
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).unwrap();
    }
    child.wait_with_output().unwrap()
}

/// Standard output of a command that must succeed.
pub fn output_of(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command, None);
    assert!(output.status.success(), "{shown}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// kubectl, which must succeed.
pub fn kubectl(arguments: &[&str]) -> String {
    let mut command = command("kubectl");
    command.args(arguments);
    output_of(command)
}

/// `kubectl apply` of a manifest: what it said on success, or on failure.
pub fn try_apply(manifest: &str) -> Result<String, String> {
    let mut command = command("kubectl");
    command.args(["apply", "-f", "-"]);
    attempt(command, manifest)
}

/// What a command said on success, or on failure.
pub fn attempt(command: Command, input: &str) -> Result<String, String> {
    let output = run(command, Some(input));
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// `kubectl apply`, which must succeed.
pub fn apply(manifest: &str) {
    try_apply(manifest).unwrap_or_else(|error| panic!("{error}\n{manifest}"));
}

/// An object as JSON.
pub fn get(arguments: &[&str]) -> Value {
    let arguments = [&["get"], arguments, &["-o", "json"]].concat();
    serde_json::from_str(&kubectl(&arguments)).unwrap()
}

/// The rules, sets and maps that a node has in its kernel.
pub fn table(node: &str) -> String {
    without_cache(&on_node(node, &["nft", "list", "table", "inet", "ringfence"]))
}

/// A listing without the verdict cache and what is remembered of denied packets: what packets leave there comes and goes.
pub fn without_cache(listing: &str) -> String {
    let mut cache = false;
    let lines = listing.split_inclusive('\n').filter(|line| {
        let begins = ["\tset accepted_", "\tset logged_"].iter().any(|set| line.starts_with(set));
        cache = begins || (cache && *line != "\t}\n");
        !cache
    });
    lines.collect()
}

/// What a command in a node's network says, which must succeed.
pub fn on_node(node: &str, arguments: &[&str]) -> String {
    let mut inside = command("node");
    inside.arg(node).args(arguments);
    output_of(inside)
}

/// The agent's process on a node, seen from this machine. It runs in the node's own network.
pub fn agent(node: &str) -> String {
    let network = on_node(node, &["readlink", "/proc/self/ns/net"]);
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let found = processes.map(|p| p.path()).find(|process| {
        let network_of =
            std::fs::read_link(process.join("ns/net")).map(|l| l.display().to_string()).unwrap_or_default();
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        network_of == network.trim() && String::from_utf8_lossy(&command).contains("ringfence\0agent")
    });
    found.unwrap_or_else(|| panic!("no agent on {node}")).file_name().unwrap().to_str().unwrap().to_owned()
}

/// Waits until something holds.
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    within(SOON, what, holds);
}

/// The same, where it may take longer.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The number that a probe says after a word, which it must.
pub fn number(said: &str, word: &str) -> u64 {
    find_number(said, word).unwrap_or_else(|| panic!("no {word}: {said}"))
}

/// The number that a probe says after a word, if it does.
pub fn find_number(said: &str, word: &str) -> Option<u64> {
    said.split_whitespace().skip_while(|w| *w != word).nth(1)?.parse().ok()
}

/// A running command that is ended with the test.
pub struct Running(Option<Child>);

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        Self(Some(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// Asks it to end, and returns what it said last.
    pub fn stop(self) -> String {
        let pid = self.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success(), "it ended by itself");
        self.last_line()
    }

    /// Waits for its end, and returns what it said last.
    pub fn last_line(mut self) -> String {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        let said = text(&output.stdout);
        said.lines().last().unwrap_or_else(|| panic!("nothing said; {}", text(&output.stderr))).to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A namespace of one test's own.
pub struct Namespace(pub String);

impl Namespace {
    /// Creates it, empty.
    pub fn new(name: &str) -> Self {
        let name = format!("e2e-{name}");
        // Left behind by a run that was killed.
        kubectl(&["delete", "namespace", &name, "--ignore-not-found", "--timeout=60s"]);
        kubectl(&["create", "namespace", &name]);
        // Pods are refused until the controller manager has made it, which takes seconds on a busy machine.
        kubectl(&["-n", &name, "wait", "--for=create", "serviceaccount/default", "--timeout=60s"]);
        Self(name)
    }

    /// Applies a manifest here.
    pub fn apply(&self, manifest: &str) {
        self.try_apply(manifest).unwrap_or_else(|error| panic!("{error}\n{manifest}"));
    }

    /// Likewise, and returns what kubectl said.
    pub fn try_apply(&self, manifest: &str) -> Result<String, String> {
        let mut command = command("kubectl");
        command.args(["-n", &self.0, "apply", "-f", "-"]);
        attempt(command, manifest)
    }

    /// kubectl here, with some input: whether it succeeded, and what it said, warnings too.
    pub fn tell(&self, arguments: &[&str], input: &str) -> (bool, String) {
        let mut command = command("kubectl");
        command.args(["-n", &self.0]).args(arguments);
        let output = run(command, Some(input));
        (output.status.success(), text(&output.stderr) + &text(&output.stdout))
    }

    /// kubectl here.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl(&[&["-n", &self.0], arguments].concat())
    }

    /// An object of this namespace.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        get(&["-n", &self.0, kind, name])
    }

    /// Applies a group with these ingress and egress rules, in YAML's flow style; `None`: absent.
    pub fn group(&self, name: &str, ingress: &str, egress: Option<&str>) {
        let egress = egress.map(|rules| format!("  egress: {rules}\n")).unwrap_or_default();
        self.apply(&format!(
            "apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: {name}}}\nspec:\n  ingress: {ingress}\n{egress}"
        ));
    }

    /// Attaches groups to the pods with the label `app`; `*` means every pod.
    pub fn bind(&self, name: &str, groups: &[&str], app: &str) {
        let groups: Vec<String> = groups.iter().map(|g| format!("{{name: {g}}}")).collect();
        let selector = if app == "*" { "{}".into() } else { format!("{{matchLabels: {{app: {app}}}}}") };
        self.apply(&format!(
            "apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroupBinding\nmetadata: {{name: {name}}}\nspec: {{securityGroups: [{}], target: {{podSelector: {selector}}}}}\n",
            groups.join(", ")
        ));
    }

    /// Waits until every group and binding here is enforced, on all nodes concerned.
    pub fn enforced(&self) {
        for kind in ["sgb", "sg"] {
            if !self.kubectl(&["get", kind, "-o", "name"]).is_empty() {
                self.kubectl(&["wait", "--for=condition=Enforced", kind, "--all", "--timeout=30s"]);
            }
        }
    }

    /// The reason and the message of a condition.
    pub fn condition(&self, kind: &str, name: &str, condition: &str) -> Option<(String, String, String)> {
        let object = self.get(kind, name);
        let found = object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == condition)?.clone();
        let field = |key: &str| found[key].as_str().unwrap().to_owned();
        Some((field("status"), field("reason"), field("message")))
    }

    /// Waits until a condition has this status and reason, and returns its message.
    pub fn until(&self, kind: &str, name: &str, condition: &str, status: &str, reason: &str) -> String {
        let mut message = String::new();
        eventually(&format!("{kind}/{name}: {condition}={status}, {reason}"), || {
            match self.condition(kind, name, condition) {
                Some((s, r, m)) if s == status && r == reason => {
                    message = m;
                    true
                }
                _ => false,
            }
        });
        message
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut delete = command("kubectl");
        delete.args(["delete", "namespace", &self.0, "--wait=false", "--ignore-not-found"]);
        let _ = delete.output();
    }
}
