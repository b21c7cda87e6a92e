//! Virtual machines that Kubernetes does not run: real guests on taps, bridged and routed, in groups together with pods.

use super::cluster::{Namespace, Running, alone, attempt, calm, command, eventually, on_node, output_of};
use super::reach::{From, answers_in, target};
use std::process::Command;
use std::time::{Duration, Instant};

/// A machine, which may run or not.
#[derive(Clone, Copy)]
pub struct Machine {
    pub name: &'static str,
    pub node: &'static str,
    pub mac: &'static str,
    pub addresses: [&'static str; 2],
}

impl Machine {
    /// Boots it behind a port of the node's bridge, or behind a link of its own.
    pub fn boot(self, bridged: bool) -> Guest {
        let n = self.node.trim_start_matches('n');
        let gateway = format!("10.20.{n}.1,fd20:0:0:{n}::1");
        let mut start = command("guest");
        start.args(["start", self.node, self.name]).args(if bridged {
            &["--bridge", "br0"][..]
        } else {
            &["--routed"]
        });
        start.args(["--mac", self.mac, "--address", &self.addresses.join(","), "--gateway", &gateway]);
        output_of(start);
        Guest(self.name)
    }

    pub fn device(&self) -> String {
        format!("tap-{}", self.name)
    }

    /// Declares it, with a label by which bindings find it.
    pub fn declare(&self, namespace: &Namespace, app: &str) {
        self.declare_with(namespace, app, &self.addresses);
    }

    fn declare_with(&self, namespace: &Namespace, app: &str, addresses: &[&str]) {
        let Self { name, node, mac, .. } = self;
        namespace.apply(&format!(
            "{{apiVersion: ringfence.io/v1alpha1, kind: NetworkInterface, metadata: {{name: {name}, labels: {{app: {app}}}}}, \
             spec: {{nodeName: {node}, device: {}, macAddress: '{mac}', addresses: ['{}']}}}}",
            self.device(),
            addresses.join("', '")
        ));
    }

    /// A command in the guest.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut run = command("guest");
        run.args(["run", self.name]).args(arguments);
        run
    }

    pub fn run(&self, arguments: &[&str]) -> String {
        output_of(self.command(arguments))
    }

    /// Which targets answer the guest, like `tcp:10.0.0.1:80`; from one of its addresses, if one is given.
    pub fn reaches(&self, source: Option<&str>, targets: &[String]) -> Vec<bool> {
        let mut probe = self.command(&["probe", "many", "--timeout", "1s"]);
        probe.args(source.iter().flat_map(|source| ["--source", source])).args(targets);
        output_of(probe).lines().map(answers_in).collect()
    }

    pub fn on(&self, port: u16) -> Vec<String> {
        self.addresses.iter().map(|address| target("tcp", address, port)).collect()
    }
}

/// A machine that runs, behind a tap of its own.
pub struct Guest(&'static str);

impl Drop for Guest {
    fn drop(&mut self) {
        let mut stop = command("guest");
        stop.args(["stop", self.0]);
        let _ = stop.output();
    }
}

pub fn bind_interfaces(namespace: &Namespace, group: &str, app: &str) {
    namespace.apply(&format!(
        "{{apiVersion: ringfence.io/v1alpha1, kind: SecurityGroupBinding, metadata: {{name: {group}}}, \
         spec: {{securityGroups: [{{name: {group}}}], target: {{networkInterfaceSelector: {{matchLabels: {{app: {app}}}}}}}}}}}"
    ));
}

pub fn ready(namespace: &Namespace) {
    namespace.kubectl(&["wait", "--for=condition=Ready", "nic", "--all", "--timeout=30s"]);
    namespace.enforced();
}

const BRIDGED: Machine =
    Machine { name: "bridged", node: "n1", mac: "52:54:00:00:00:05", addresses: ["10.20.1.5", "fd20:0:0:1::5"] };
const HONEST: Machine =
    Machine { name: "honest", node: "n1", mac: "52:54:00:00:00:09", addresses: ["10.20.1.9", "fd20:0:0:1::9"] };
const IMPOSTOR: Machine =
    Machine { name: "impostor", node: "n1", mac: "52:54:00:00:00:06", addresses: ["10.20.1.6", "fd20:0:0:1::6"] };
const ROUTED: Machine =
    Machine { name: "routed", node: "n2", mac: "52:54:00:00:00:15", addresses: ["10.20.2.5", "fd20:0:0:2::5"] };

const MOVED: Machine =
    Machine { name: "moved", node: "n1", mac: "52:54:00:00:00:07", addresses: ["10.20.1.7", "fd20:0:0:1::7"] };
const LATE: Machine =
    Machine { name: "late", node: "n1", mac: "52:54:00:00:00:08", addresses: ["10.20.1.8", "fd20:0:0:1::8"] };

const BESIDE: Machine =
    Machine { name: "beside", node: "n1", mac: "52:54:00:00:00:10", addresses: ["10.20.1.10", "fd20:0:0:1::10"] };

/// MySQL from the members of some groups.
pub fn from_groups(groups: &[&str]) -> String {
    let rule = |group: &&str| format!("{{protocol: TCP, ports: [3306], remote: {{securityGroup: {{name: {group}}}}}}}");
    format!("[{}]", groups.iter().map(rule).collect::<Vec<_>>().join(", "))
}

/// The database of the seed in a VM, the application in pods.
#[test]
fn s1_s4_a_database_in_a_machine_and_its_application_in_pods() {
    let _calm = calm();
    let namespace = Namespace::new("machines");
    let pods = namespace.pods(&[("app", "app", "n1"), ("far", "far", "n2"), ("other", "other", "n2")]);
    let _guests = [BRIDGED.boot(true), ROUTED.boot(false)];
    let machines = [BRIDGED, ROUTED];
    let reach = |pod: &str, machine: &Machine, port| pods[pod].probes().reaches(&machine.on(port));
    for machine in &machines {
        assert_eq!(reach("other", machine, 22), [true, true], "{}: not guarded yet", machine.name);
        machine.declare(&namespace, "db");
    }
    for group in ["app", "far"] {
        namespace.group(group, "[]", None);
        namespace.bind(group, &[group], group);
    }
    namespace.group("db", &from_groups(&["app", "far"]), Some("[]"));
    bind_interfaces(&namespace, "db", "db");
    ready(&namespace);
    for machine in &machines {
        for app in ["app", "far"] {
            assert_eq!(reach(app, machine, 3306), [true, true], "{app} {}", machine.name);
            assert_eq!(reach(app, machine, 22), [false, false], "{app} {}", machine.name);
        }
        assert_eq!(reach("other", machine, 3306), [false, false], "{}", machine.name);
        let out = pods["other"].on("tcp", 80);
        assert_eq!(machine.reaches(None, &out), [false, false], "{}: nothing may go out", machine.name);
    }
    let group = namespace.get("sg", "db");
    assert_eq!((&group["status"]["members"], &group["status"]["nodes"]["summary"]), (&2.into(), &"2/2".into()));
    let shown = namespace.kubectl(&["get", "nic,sgb"]);
    assert!(shown.contains("bridged") && shown.contains("tap-bridged") && shown.contains("Watched"), "{shown}");

    // Of the sessions that are open, those end whose rule goes, and the others lose nothing.
    let session = |from: &str, address: &str| {
        let mut stream = pods[from].probes().probe();
        stream.args(["stream", "tcp", address, "3306", "--interval", "10ms", "--duration", "6s"]);
        Running::start(stream)
    };
    let addresses = || machines.iter().flat_map(|machine| machine.addresses);
    let (kept, cut): (Vec<_>, Vec<_>) = addresses().map(|a| (session("far", a), session("app", a))).unzip();
    std::thread::sleep(Duration::from_secs(2));
    namespace.group("db", &from_groups(&["far"]), Some("[]"));
    namespace.enforced();
    for machine in &machines {
        assert_eq!(reach("app", machine, 3306), [false, false], "{}", machine.name);
    }
    for session in kept {
        let said = session.last_line();
        assert!(said.contains(" lost 0 "), "{said}");
    }
    for session in cut {
        let said = session.last_line();
        let words = said.split_whitespace();
        let received: u64 = words.skip_while(|word| *word != "received").nth(1).unwrap().parse().unwrap();
        // Some came through before, and nothing in the seconds after.
        assert!((20..350).contains(&received), "{said}");
    }
}

#[test]
fn s5_groups_follow_the_declared_addresses() {
    let _calm = calm();
    let namespace = Namespace::new("moved-in");
    let pods = namespace.pods(&[("app", "app", "n2")]);
    let (machine, _guest) = (MOVED, MOVED.boot(true));
    machine.declare(&namespace, "client");
    namespace.group("client", "[]", None);
    bind_interfaces(&namespace, "client", "client");
    namespace.group("app", &from_groups(&["client"]), None);
    namespace.bind("app", &["app"], "app");
    ready(&namespace);
    let later = ["10.20.1.77", "fd20:0:0:1::77"];
    for (address, length) in later.iter().zip(["24", "64"]) {
        machine.run(&["ip", "address", "add", &format!("{address}/{length}"), "dev", "eth0"]);
    }
    let reaches = |sources: &[&str; 2]| -> Vec<bool> {
        let targets = pods["app"].on("tcp", 3306);
        sources.iter().zip(targets).flat_map(|(source, target)| machine.reaches(Some(source), &[target])).collect()
    };
    assert_eq!((reaches(&machine.addresses), reaches(&later)), (vec![true; 2], vec![false; 2]));
    machine.declare_with(&namespace, "client", &later);
    eventually("the new addresses are known", || reaches(&later) == [true; 2]);
    ready(&namespace);
    assert_eq!(reaches(&machine.addresses), [false; 2], "they are not its own any more");
}

#[test]
fn s9_what_a_guest_says_of_itself_changes_nothing() {
    let _calm = calm();
    let namespace = Namespace::new("impostor");
    let pods = namespace.pods(&[("app", "app", "n1")]);
    let (honest, impostor) = (HONEST, IMPOSTOR);
    let _guests = [honest, impostor].map(|machine| machine.boot(true));
    honest.declare(&namespace, "client");
    impostor.declare(&namespace, "none");
    namespace.group("client", "[{protocol: Any, remote: {cidrs: ['0.0.0.0/0', '::/0']}}]", None);
    bind_interfaces(&namespace, "client", "client");
    namespace.group("app", &from_groups(&["client"]), None);
    namespace.bind("app", &["app"], "app");
    ready(&namespace);
    let targets = pods["app"].on("tcp", 3306);
    assert_eq!(honest.reaches(None, &targets), [true, true]);
    assert_eq!(impostor.reaches(None, &pods["app"].on("tcp", 80)), [false, false], "no group lets it in");

    // It has the other's addresses, and answers to whoever asks for them.
    for (address, length) in honest.addresses.iter().zip(["32", "128"]) {
        impostor.run(&["ip", "address", "add", &format!("{address}/{length}"), "dev", "eth0"]);
        impostor.run(&["ip", "route", "get", address]);
    }
    for (source, target) in honest.addresses.iter().zip(&targets) {
        assert_eq!(impostor.reaches(Some(source), std::slice::from_ref(target)), [false], "from {source}");
    }
    let who_answers = |address: &str| {
        let mut probe = pods["app"].probes().probe();
        probe.args(["tcp", address, "22"]);
        attempt(probe, "")
    };
    for round in 0..10 {
        on_node("n1", &["ip", "neighbour", "flush", "dev", "br0"]);
        for address in honest.addresses {
            let said = who_answers(address).unwrap_or_else(|said| said);
            assert!(said.starts_with("open honest "), "round {round}, {address}: {said}");
        }
    }
    // With the other's link address it has no way out at all.
    let own = From::Node("n1");
    assert_eq!(own.reaches(&impostor.on(22)), [true, true]);
    let pretend = |mac: &str| impostor.run(&["ip", "link", "set", "eth0", "address", mac]);
    pretend(honest.mac);
    assert_eq!(own.reaches(&impostor.on(22)), [false, false]);
    pretend(impostor.mac);
    eventually("it is itself again", || own.reaches(&impostor.on(22)) == [true, true]);
    for address in honest.addresses {
        let is_honest = || who_answers(address).is_ok_and(|said| said.starts_with("open honest "));
        eventually("the honest one is reached", is_honest);
    }
}

#[test]
fn s15_what_is_wrong_with_a_device_is_said() {
    // The bridges of a node are told to hand nothing over, which is no good to any other test.
    let _alone = alone();
    let namespace = Namespace::new("devices");
    namespace.group("db", "[]", None);
    bind_interfaces(&namespace, "db", "db");
    LATE.declare(&namespace, "db");
    namespace.until("nic", "late", "Ready", "False", "DeviceNotFound");
    let _guest = LATE.boot(true);
    namespace.until("nic", "late", "Ready", "True", "Watched");
    namespace.enforced();
    on_node("n1", &["ip", "link", "set", "tap-late", "down", "name", "tap-other"]);
    namespace.until("nic", "late", "Ready", "False", "DeviceNotFound");
    on_node("n1", &["ip", "link", "set", "tap-other", "name", "tap-late", "up"]);
    namespace.until("nic", "late", "Ready", "True", "Watched");

    let patch = |device: &str| {
        let patch = format!("{{\"spec\": {{\"device\": \"{device}\"}}}}");
        namespace.kubectl(&["patch", "nic", "late", "--type=merge", "-p", &patch]);
    };
    for unsuitable in ["eth0", "br0"] {
        patch(unsuitable);
        namespace.until("nic", "late", "Ready", "False", "DeviceUnsuitable");
    }
    patch("tap-late");
    namespace.until("nic", "late", "Ready", "True", "Watched");

    // A neighbour on the bridge, whom the group lets in by one port.
    let _neighbour = BESIDE.boot(true);
    namespace.group(
        "db",
        "[{protocol: TCP, ports: [3306], remote: {cidrs: [10.20.1.10/32, 'fd20:0:0:1::10/128']}}]",
        None,
    );
    namespace.enforced();
    let reach = || [3306, 22].map(|port| BESIDE.reaches(None, &LATE.on(port)));
    let judged = [vec![true; 2], vec![false; 2]];
    assert_eq!(reach(), judged);
    let unfiltered = Sysctl::set("n1", "net.bridge.bridge-nf-call-iptables", "0");
    let message = namespace.until("nic", "late", "Ready", "False", "Closed");
    assert!(message.contains("set net.bridge.bridge-nf-call-iptables"), "{message}");
    assert_eq!(reach(), [vec![false, true], vec![false; 2]], "closed to IPv4, and judged by IPv6");
    assert_eq!(From::Node("n1").reaches(&LATE.on(22)), [true; 2], "the node reaches what is on it");
    assert_eq!(LATE.reaches(None, &BESIDE.on(22)), [false, true], "nor from it");
    namespace.until("sgb", "db", "Enforced", "False", "Closed");
    namespace.until("sg", "db", "Enforced", "False", "Closed");
    drop(unfiltered);
    let since = Instant::now();
    eventually("it is open again", || reach() == judged);
    println!("open again after {:?}", since.elapsed());
    namespace.until("nic", "late", "Ready", "True", "Watched");
    namespace.enforced();

    // What comes up on such a bridge is closed from its first packet on, and what nobody guards is nobody's concern.
    drop(_guest);
    let _unfiltered =
        ["iptables", "ip6tables"].map(|word| Sysctl::set("n1", &format!("net.bridge.bridge-nf-call-{word}"), "0"));
    namespace.until("nic", "late", "Ready", "False", "DeviceNotFound");
    let attempts = LATE.addresses.map(|address| {
        let mut hammer = BESIDE.command(&["probe", "hammer", "tcp", address, "22"]);
        hammer.args(["--interval", "10ms", "--duration", "10m", "--timeout", "300ms"]);
        Running::start(hammer)
    });
    let _guest = LATE.boot(true);
    namespace.until("nic", "late", "Ready", "False", "Closed");
    for said in attempts.map(Running::stop) {
        assert!(said.contains(" open 0 ") && said.contains(" refused 0 ") && !said.contains("tried 0 "), "{said}");
    }
    namespace.kubectl(&["delete", "sgb", "db"]);
    namespace.until("nic", "late", "Ready", "False", "BridgeNotFiltered");
    assert_eq!(reach(), [vec![true; 2], vec![true; 2]]);
}

/// A setting of a node's kernel, for as long as this lives.
struct Sysctl([String; 3]);

impl Sysctl {
    fn set(node: &str, name: &str, value: &str) -> Self {
        let before = on_node(node, &["sysctl", "-n", name]).trim().to_owned();
        on_node(node, &["sysctl", "-w", &format!("{name}={value}")]);
        Self([node.to_owned(), name.to_owned(), before])
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let [node, name, before] = &self.0;
        let _ = command("node").args([node, "sysctl", "-w", &format!("{name}={before}")]).output();
    }
}

#[test]
fn s13_a_network_interface_that_cannot_be_is_refused_with_what_to_write() {
    let _calm = calm();
    let namespace = Namespace::new("refused-nic");
    let refused = |device: &str, mac: &str, address: &str| {
        let spec = format!("{{nodeName: n1, device: '{device}', macAddress: '{mac}', addresses: ['{address}']}}");
        let metadata = "apiVersion: ringfence.io/v1alpha1, kind: NetworkInterface, metadata: {name: vm}";
        namespace.try_apply(&format!("{{{metadata}, spec: {spec}}}")).unwrap_err()
    };
    let good = ("tap0", "52:54:00:00:00:01", "10.20.0.5");
    for (message, why) in [
        (refused("a name that is long", good.1, good.2), "spec.device"),
        (refused(good.0, "52-54-00-00-00-01", good.2), "spec.macAddress"),
        (refused(good.0, "53:54:00:00:00:01", good.2), "is a multicast address"),
        (refused(good.0, good.1, "10.20.0.0/24"), "must be an address, like 10.20.0.5"),
        (refused(good.0, good.1, "224.0.0.1"), "is no address that one interface can have"),
        (refused(good.0, good.1, "169.254.0.1"), "is no address that one interface can have"),
    ] {
        assert!(message.contains(why), "{message}");
    }
}
