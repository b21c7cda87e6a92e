//! The protocol, word by word, against a runtime's and an agent's part played here.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

/// An agent that gives these answers, one per connection, and returns what it was asked.
struct Agent {
    socket: PathBuf,
    asked: JoinHandle<Vec<Request>>,
}

impl Agent {
    fn new(name: &str, answers: Vec<Answer>) -> Self {
        let socket = socket(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = std::thread::spawn(move || {
            let answer = |answer: Answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                writeln!(stream, "{}", serde_json::to_string(&answer).unwrap()).unwrap();
                serde_json::from_str(&line).unwrap()
            };
            answers.into_iter().map(answer).collect()
        });
        Self { socket, asked }
    }

    fn asked(self) -> Vec<Request> {
        std::fs::remove_file(&self.socket).unwrap();
        self.asked.join().unwrap()
    }
}

fn socket(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("ringfence-cni-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn result(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "interfaces": [
            { "name": "cni0", "mac": "02:00:00:00:00:01" },
            { "name": "veth1", "mac": "02:00:00:00:00:02" },
            { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/x" },
            { "name": "bwp1", "mac": "02:00:00:00:00:04" },
        ],
        "ips": [
            { "version": "4", "interface": 2, "address": "10.244.1.7/24", "gateway": "10.244.1.1" },
            { "version": "6", "interface": 2, "address": "fd00::7/64" },
        ],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dns": {},
    })
}

fn config(version: &str, socket: &std::path::Path, extra: Value) -> String {
    let mut config = json!({
        "cniVersion": version, "name": "pods", "type": PLUGIN, "primary": true, "socket": socket, "timeoutSeconds": 1,
        "onTimeout": "closed", "unknown": { "key": 1 },
    });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    config.to_string()
}

fn environment(command: &str) -> impl Fn(&str) -> Option<String> {
    let command = command.to_owned();
    move |name| {
        let value = match name {
            "CNI_COMMAND" => &command,
            "CNI_CONTAINERID" => "c1",
            "CNI_IFNAME" => "eth0",
            "CNI_NETNS" => "/run/netns/x",
            "CNI_ARGS" => {
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1"
            }
            _ => return None,
        };
        Some(value.to_owned())
    }
}

fn without<'a>(
    variable: &'a str,
    environment: impl Fn(&str) -> Option<String> + 'a,
) -> impl Fn(&str) -> Option<String> + 'a {
    move |name| if name == variable { None } else { environment(name) }
}

fn attachment() -> Attachment {
    Attachment {
        pod: NamespacedName::new("shop", "web"),
        uid: "u1".into(),
        container_id: "c1".into(),
        interface: "eth0".into(),
        network: None,
        device: Some("veth1".into()),
        mac: Some("02:00:00:00:00:03".into()),
        addresses: ["10.244.1.7".parse().unwrap(), "fd00::7".parse().unwrap()].into(),
    }
}

/// The code and the message of a failure.
fn failure(outcome: Outcome, version: &str) -> (u64, String) {
    assert!(outcome.failed, "{}", outcome.output);
    let error: Value = serde_json::from_str(&outcome.output).unwrap();
    assert_eq!(error["cniVersion"], version);
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

fn success(output: Value) -> Outcome {
    Outcome { output: output.to_string(), failed: false }
}

const SILENT: Outcome = Outcome { output: String::new(), failed: false };

#[test]
fn add_hands_over_and_returns_what_it_was_given() {
    for version in VERSIONS {
        let agent = Agent::new(&format!("add-{version}"), vec![Answer::yes()]);
        let input = config(version, &agent.socket, json!({ "prevResult": result(version) }));
        assert_eq!(run(environment("ADD"), &input), success(result(version)));
        assert_eq!(agent.asked(), [Request::Add { attachment: attachment(), patience_millis: 700 }]);
    }
}

#[test]
fn add_waits_for_an_agent_that_is_away() {
    let path = socket("late");
    let input = config("1.0.0", &path, json!({ "prevResult": result("1.0.0"), "timeoutSeconds": 30 }));
    let call = std::thread::spawn(move || run(environment("ADD"), &input));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!call.is_finished());
    // One that dies before it answers, and another one.
    drop(UnixListener::bind(&path).unwrap());
    let agent = Agent::new("late", vec![Answer::yes()]);
    assert_eq!(call.join().unwrap(), success(result("1.0.0")));
    agent.asked();
}

#[test]
fn without_a_yes_in_time_the_pod_does_not_start_unless_it_may() {
    let no = || vec![Answer::no("the agent has not seen the pod yet")];
    let agent = Agent::new("no", no());
    let input = config("1.1.0", &agent.socket, json!({ "prevResult": result("1.1.0") }));
    let (code, message) = failure(run(environment("ADD"), &input), "1.1.0");
    assert_eq!(code, 11);
    assert!(message.contains("shop/web") && message.contains("has not seen the pod yet"), "{message}");
    agent.asked();
    let (code, message) = failure(run(environment("ADD"), &input), "1.1.0");
    assert!(code == 11 && message.contains("does not answer"), "{message}");

    let open = json!({ "prevResult": result("1.1.0"), "onTimeout": "open" });
    let agent = Agent::new("open", no());
    assert_eq!(run(environment("ADD"), &config("1.1.0", &agent.socket, open.clone())), success(result("1.1.0")));
    agent.asked();
    assert_eq!(run(environment("ADD"), &config("1.1.0", &socket("open"), open)), success(result("1.1.0")));
}

#[test]
fn an_agent_that_hangs_is_not_waited_for_longer_than_the_timeout() {
    let path = socket("hangs");
    let _listener = UnixListener::bind(&path).unwrap();
    let started = Instant::now();
    let input = config("1.0.0", &path, json!({ "prevResult": result("1.0.0") }));
    assert_eq!(failure(run(environment("ADD"), &input), "1.0.0").0, 11);
    assert_eq!(run(environment("DEL"), &input), SILENT);
    assert!(started.elapsed() >= Duration::from_secs(2));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn del_tells_what_it_knows_and_always_succeeds() {
    let agent = Agent::new("del", vec![Answer::yes(), Answer::no("late"), Answer::yes()]);
    let with = config("1.0.0", &agent.socket, json!({ "prevResult": result("1.0.0") }));
    let bare = config("0.3.1", &agent.socket, json!({}));
    assert_eq!(run(environment("DEL"), &with), SILENT);
    assert_eq!(run(environment("DEL"), &bare), SILENT);
    assert_eq!(run(without("CNI_NETNS", without("CNI_ARGS", environment("DEL"))), &with), SILENT);
    let asked = agent.asked();
    let expected = |described| Request::Delete { key: attachment().key(), described, patience_millis: 700 };
    assert_eq!(asked, [expected(Some(attachment())), expected(None), expected(None)]);
    let started = Instant::now();
    assert_eq!(run(environment("DEL"), &config("1.0.0", &socket("none"), json!({ "timeoutSeconds": 60 }))), SILENT);
    assert!(started.elapsed() < Duration::from_secs(30), "nobody is waited for");
}

#[test]
fn check_gc_and_status_ask_once() {
    let yes = Answer::yes;
    let agent = Agent::new("others", vec![yes(), Answer::no("not known"), yes(), yes()]);
    let with = config("1.1.0", &agent.socket, json!({ "prevResult": result("1.1.0") }));
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0" }] });
    let gc = config("1.1.0", &agent.socket, valid);
    assert_eq!(run(environment("CHECK"), &with), SILENT);
    assert_eq!(failure(run(environment("CHECK"), &with), "1.1.0"), (11, "not known".into()));
    assert_eq!(run(environment("GC"), &gc), SILENT);
    assert_eq!(run(environment("STATUS"), &gc), SILENT);
    let asked = agent.asked();
    assert_eq!(asked[0], Request::Check { attachment: attachment() });
    assert_eq!(asked[2..], [Request::Collect { network: None, valid: vec![attachment().key()] }, Request::Status]);

    let nobody = socket("nobody");
    assert_eq!(failure(run(environment("STATUS"), &config("1.1.0", &nobody, json!({}))), "1.1.0").0, 50);
    assert_eq!(run(environment("STATUS"), &config("1.1.0", &nobody, json!({ "onTimeout": "open" }))), SILENT);
    // Nothing said is not "none": every attachment would end.
    assert_eq!(failure(run(environment("GC"), &config("1.1.0", &nobody, json!({}))), "1.1.0").0, 7);
}

#[test]
fn on_another_network_no_more_than_the_type_is_said() {
    let agent = Agent::new("elsewhere", vec![Answer::yes(), Answer::yes()]);
    let config = |extra: Value| {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "storage", "type": PLUGIN, "socket": agent.socket });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config.to_string()
    };
    assert_eq!(run(environment("ADD"), &config(json!({ "prevResult": result("1.1.0") }))), success(result("1.1.0")));
    assert_eq!(run(environment("GC"), &config(json!({ "cni.dev/valid-attachments": [] }))), SILENT);
    let network = Some("storage".to_owned());
    let expected = [
        Request::Add { attachment: Attachment { network: network.clone(), ..attachment() }, patience_millis: 9_700 },
        Request::Collect { network, valid: vec![] },
    ];
    assert_eq!(agent.asked(), expected);
    let bare = Config::parse(&json!({ "cniVersion": "1.1.0", "name": "storage" }).to_string()).unwrap();
    assert_eq!((bare.socket, bare.on_timeout), (PathBuf::from("/run/ringfence/agent.sock"), OnTimeout::Closed));
}

#[test]
fn version_and_what_cannot_be_served() {
    let versions = json!({ "cniVersion": "1.0.0", "supportedVersions": VERSIONS });
    assert_eq!(run(environment("VERSION"), r#"{"cniVersion": "1.0.0"}"#), success(versions));
    let path = socket("unused");
    let good = config("1.0.0", &path, json!({ "prevResult": result("1.0.0") }));
    let code = |environment: &dyn Fn(&str) -> Option<String>, input: &str, version| {
        failure(run(environment, input), version).0
    };
    assert_eq!(code(&environment("ADD"), &config("0.2.0", &path, json!({})), "0.2.0"), 1);
    assert_eq!(code(&environment("ADD"), &config("2.0.0", &path, json!({})), "2.0.0"), 1);
    assert_eq!(code(&environment("ADD"), "not json", "1.1.0"), 6);
    assert_eq!(code(&environment("ADD"), &config("1.0.0", &path, json!({})), "1.0.0"), 7);
    assert_eq!(code(&environment("ADD"), &config("1.0.0", &path, json!({ "onTimeout": "ajar" })), "1.0.0"), 7);
    assert_eq!(code(&environment("UPDATE"), &good, "1.0.0"), 4);
    for missing in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
        assert_eq!(code(&without(missing, environment("ADD")), &good, "1.0.0"), 4, "{missing}");
    }
    let bad = json!({ "prevResult": { "ips": [{ "address": "10.0.0.300/24" }] } });
    assert_eq!(code(&environment("ADD"), &config("1.0.0", &path, bad), "1.0.0"), 7);
}
