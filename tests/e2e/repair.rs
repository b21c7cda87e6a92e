//! Others change a node's rules behind the agent's back: they come back at once, and it is told who did it (S8).

use super::cluster::{
    Namespace, Running, SOON, agent, alone, command, eventually, get, kubectl, output_of, table, without_cache,
};
use super::reach::Pod;
use std::process::Command;
use std::time::{Duration, Instant};

const ANYWHERE: &str = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";
const SYSTEM: &str = "ringfence-system";
const NODE: &str = "n1";

/// Runs nft on the node, as any other program there might.
fn nft(script: &str) {
    let mut nft = command("node");
    nft.args([NODE, "nft", script]);
    output_of(nft);
}

/// What the agent of the node counts under this name, labels included.
fn counted(name: &str) -> u64 {
    let pods = get(&["-n", SYSTEM, "pods", "-l", "app.kubernetes.io/component=agent"]);
    let on_node = pods["items"].as_array().unwrap().iter().find(|pod| pod["spec"]["nodeName"] == NODE);
    let agent = on_node.unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    let metrics = kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{SYSTEM}/pods/{agent}:9181/proxy/metrics")]);
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {metrics}"));
    line.trim().parse().unwrap()
}

fn repairs() -> u64 {
    counted("ringfence_agent_repairs_total{reason=\"transaction\"}")
}

/// The events of the node that tell of repairs, as kubectl shows them.
fn events() -> String {
    let selector = format!("involvedObject.kind=Node,involvedObject.name={NODE},reason=RulesRepaired,type=Warning");
    kubectl(&["-n", "default", "get", "events", "--field-selector", &selector])
}

/// kube-proxy of the node. Its rules go with a flush as well, and nobody tells it: afterwards it is started anew, and so is
/// the agent, whose connections went through it and take a while to be known for dead.
struct Proxy;

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut restart = command("service");
        restart.args(["restart", NODE, "kube-proxy"]);
        output_of(restart);
        assert!(Command::new("kill").args(["-KILL", &agent(NODE)]).status().unwrap().success());
        kubectl(&["-n", "ringfence-system", "rollout", "status", "daemonset/ringfence-agent", "--timeout=60s"]);
    }
}

/// The words of the table, sorted, without what counts; `None`: there is no table.
fn rules() -> Option<Vec<String>> {
    let list = command("node").args([NODE, "nft", "-s", "list", "table", "inet", "ringfence"]).output().unwrap();
    let listing = without_cache(&String::from_utf8(list.stdout).unwrap());
    // Elements come in the order of a hash table, which is another one in a new table.
    let mut words: Vec<String> = listing.split([' ', ',', '\n', '\t']).map(str::to_owned).collect();
    words.sort();
    list.status.success().then_some(words)
}

/// The table when nothing of other tests is left in it: what they leave goes a while after them, by nobody's attack.
fn settled(namespace: &Namespace) -> Vec<String> {
    let own = format!("namespace/{}", namespace.0);
    eventually("other tests' pods are gone", || {
        kubectl(&["get", "namespaces", "-o", "name"]).lines().all(|name| name == own || !name.contains("/e2e-"))
    });
    let mut before = rules();
    eventually("the table is at rest", || {
        std::thread::sleep(Duration::from_secs(1));
        let last = std::mem::replace(&mut before, rules());
        before == last
    });
    before.unwrap()
}

/// The words that only one of two tables has.
fn difference(before: &[String], after: &[String]) -> String {
    let only = |a: &[String], b: &[String]| a.iter().filter(|word| !b.contains(word)).cloned().collect::<Vec<_>>();
    format!("gone: {:?}, new: {:?}", only(before, after), only(after, before))
}

/// A server on the node with port 80 open, and a client on the other.
fn scene(name: &str) -> (Namespace, Pod, Pod) {
    let namespace = Namespace::new(name);
    let mut pods = namespace.pods(&[("server", "server", NODE), ("client", "client", "n2")]);
    namespace.group("server", &format!("[{{protocol: TCP, ports: [80], remote: {ANYWHERE}}}]"), None);
    namespace.bind("server", &["server"], "server");
    namespace.enforced();
    let (server, client) = (pods.remove("server").unwrap(), pods.remove("client").unwrap());
    (namespace, server, client)
}

#[test]
fn s8_what_others_do_to_the_rules_of_a_node_is_undone_and_told() {
    let _alone = alone();
    let (namespace, server, client) = scene("repair");
    let closed = || !client.reaches(&server, 443) && client.reaches(&server, 80);
    assert!(closed());
    let before = settled(&namespace);
    let address = &server.addresses[0];
    let proxy = Proxy;
    let attacks = [
        "delete table inet ringfence".to_owned(),
        format!("delete element inet ringfence ingress_4 {{ {address} }}"),
        "flush chain inet ringfence forward".to_owned(),
        "insert rule inet ringfence forward accept".to_owned(),
        "add set inet ringfence extra { type ipv4_addr; }".to_owned(),
        "flush ruleset".to_owned(),
    ];
    for attack in &attacks {
        let count = repairs();
        let started = Instant::now();
        nft(attack);
        let foreign = started.elapsed();
        while rules().as_ref() != Some(&before) {
            let difference = || rules().map(|after| difference(&before, &after));
            assert!(started.elapsed() < SOON, "{attack}: not repaired: {:?}", difference());
        }
        let took = started.elapsed();
        println!("{attack}: nft took {foreign:?}, the rules were back {took:?} after it began");
        assert!(took < Duration::from_secs(1) + foreign, "{attack}: {took:?}");
        assert!(closed(), "{attack}");
        // More than once, if it concerned more than one of our tables.
        eventually("it is counted", || repairs() > count);
    }
    drop(proxy);
    let mut told = String::new();
    eventually("an event of the node", || {
        told = events();
        told.contains("changed table inet ringfence")
    });
    println!("{told}");
    assert!(told.contains("nft (process "), "{told}");
    let described = kubectl(&["describe", "node", NODE]);
    assert!(described.contains("RulesRepaired"), "{described}");
}

#[test]
fn s8_another_programs_table_is_no_concern() {
    let _alone = alone();
    let (_namespace, server, client) = scene("bystander");
    let (count, before) = (repairs(), table(NODE));
    nft(
        "add table inet e2e_theirs; add chain inet e2e_theirs forward { type filter hook forward priority filter; policy accept; }",
    );
    nft("add rule inet e2e_theirs forward counter accept");
    assert!(!client.reaches(&server, 443) && client.reaches(&server, 80), "their accept is not ours");
    nft("delete table inet e2e_theirs");
    // A change of ours: it has heard of theirs before it is through with this.
    drop(scene("bystander-2"));
    assert_eq!(repairs(), count);
    assert!(before.contains("ingress_4"));
}

#[test]
fn s8_a_fight_over_the_table_opens_only_for_instants_and_does_not_flood() {
    let _alone = alone();
    let (_namespace, server, client) = scene("fight");
    let count = repairs();
    let mut allowed = client.probes().probe();
    allowed.args(["stream", "tcp", &server.addresses[0], "80", "--interval", "10ms", "--duration", "8s"]);
    let allowed = Running::start(allowed);
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        let _ = command("node").args([NODE, "nft", "delete", "table", "inet", "ringfence"]).output().unwrap();
    }
    // The last repair may come between the probes of the two families.
    eventually("peace", || !client.probes().reaches(&server.on("tcp", 443)).contains(&true));
    let allowed = allowed.last_line();
    let repairs = repairs() - count;
    println!("{repairs} repairs in 6 s; {allowed}");
    assert!((10..=60).contains(&repairs), "{repairs}");
    assert!(allowed.contains(" lost 0 "), "{allowed}");
    let lines = events().lines().count();
    assert!(lines <= 5, "one event for each program, with a count: {}", events());
}
