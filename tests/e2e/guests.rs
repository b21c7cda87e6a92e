//! What a guest can be brought to send by programs of its own: a DHCP server, a router, other addresses.

use super::cluster::{Namespace, Running, attempt, calm, command, eventually, folder, kubectl};
use super::machines::{Machine, bind_interfaces, from_groups, ready};
use std::fs;

const ROGUE: Machine =
    Machine { name: "rogue", node: "n1", mac: "52:54:00:00:00:20", addresses: ["10.20.1.20", "fd20:0:0:1::20"] };
const VICTIM: Machine =
    Machine { name: "victim", node: "n1", mac: "52:54:00:00:00:21", addresses: ["10.20.1.21", "fd20:0:0:1::21"] };
const SHARED: Machine =
    Machine { name: "shared", node: "n1", mac: "52:54:00:00:00:22", addresses: ["10.20.1.22", "fd20:0:0:1::22"] };

/// The file of a DHCP server, which gives one machine its address and all others any.
fn dhcp_server(interface: &str, of: &Machine, run: &str) -> String {
    format!(
        "start 10.20.1.200\nend 10.20.1.220\ninterface {interface}\npidfile {run}/udhcpd.pid\nlease_file {run}/leases\n\
         static_lease {} {}\n",
        of.mac, of.addresses[0]
    )
}

/// What a machine is offered when it asks for an address, if it gets one.
fn leased(machine: &Machine) -> Option<String> {
    let asking = machine.command(&["sh", "-c", "udhcpc -f -n -q -t 4 -T 1 -i eth0 -s /bin/true 2>&1"]);
    let said = attempt(asking, "").ok()?;
    let lease = said.lines().find(|line| line.contains("lease of")).unwrap_or_else(|| panic!("{said}"));
    lease.split_whitespace().skip_while(|word| *word != "of").nth(1).map(str::to_owned)
}

#[test]
fn s9_a_guest_is_no_dhcp_server_and_no_router() {
    let _calm = calm();
    let namespace = Namespace::new("rogue");
    let _guests = [ROGUE, VICTIM].map(|machine| machine.boot(true));
    let conf = dhcp_server("eth0", &VICTIM, "/run");
    ROGUE.run(&[
        "sh",
        "-c",
        &format!("printf '{}' >/run/conf; touch /run/leases; udhcpd /run/conf", conf.replace('\n', "\\n")),
    ]);
    VICTIM.run(&["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra"]);
    let routed = |prefix: &str| {
        ROGUE.run(&["probe", "advertise", &format!("{prefix}::/64")]);
        // What answers this has dealt with what came before.
        assert_eq!(ROGUE.reaches(None, &VICTIM.on(22)), [true, true]);
        VICTIM.run(&["ip", "address", "show", "dev", "eth0"]).contains(prefix)
    };
    assert_eq!(leased(&VICTIM).as_deref(), Some(VICTIM.addresses[0]), "nobody watches it yet");
    assert!(routed("fd66"), "nobody watches it yet");

    ROGUE.declare(&namespace, "rogue");
    namespace.group("closed", "[]", Some("[{protocol: TCP, ports: [22], remote: {cidrs: ['0.0.0.0/0', '::/0']}}]"));
    bind_interfaces(&namespace, "closed", "rogue");
    ready(&namespace);
    assert_eq!(leased(&VICTIM), None);
    for prefix in ["fd67", "fd68"] {
        assert!(!routed(prefix), "{prefix}");
    }

    // Whoever may send next to nothing may still ask for its own address.
    ROGUE.run(&["sh", "-c", "kill $(cat /run/udhcpd.pid)"]);
    let run = folder().join("dhcp");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("conf"), dhcp_server("br0", &ROGUE, &run.display().to_string())).unwrap();
    fs::write(run.join("leases"), "").unwrap();
    let mut server = command("node");
    server.args(["n1", "busybox", "udhcpd", "-f"]).arg(run.join("conf"));
    let _server = Running::start(server);
    eventually("it has its address from the node's server", || leased(&ROGUE).as_deref() == Some(ROGUE.addresses[0]));
}

#[test]
fn s9_a_guest_uses_the_addresses_that_its_namespace_allows_it() {
    let _calm = calm();
    let namespace = Namespace::new("shared");
    let pods = namespace.pods(&[("app", "app", "n2"), ("other", "other", "n2")]);
    let _guest = SHARED.boot(true);
    SHARED.declare(&namespace, "client");
    namespace.group("client", "[]", None);
    bind_interfaces(&namespace, "client", "client");
    namespace.group("app", &from_groups(&["client"]), None);
    namespace.bind("app", &["app"], "app");
    ready(&namespace);
    let extra = ["10.20.1.41", "fd20:0:0:1::41"];
    for (address, length) in extra.iter().zip(["24", "64"]) {
        SHARED.run(&["ip", "address", "add", &format!("{address}/{length}"), "dev", "eth0"]);
    }
    let reaches = |sources: [&str; 2], pod: &str, port: u16| -> Vec<bool> {
        let targets = sources.into_iter().zip(pods[pod].on("tcp", port));
        targets.flat_map(|(source, target)| SHARED.reaches(Some(source), &[target])).collect()
    };
    assert_eq!(reaches(SHARED.addresses, "app", 3306), [true; 2]);
    assert_eq!(reaches(extra, "other", 80), [false; 2], "they are not its own");

    let asked = "ringfence.io/extra-addresses=10.20.1.40/30, fd20:0:0:1::41";
    namespace.kubectl(&["annotate", "nic", SHARED.name, asked]);
    namespace.kubectl(&["annotate", "nic", SHARED.name, "example.com/look=again"]);
    assert_eq!(reaches(extra, "other", 80), [false; 2], "the namespace does not allow them");
    let allowed = "ringfence.io/allowed-extra-addresses=10.20.1.32/28, fd20:0:0:1::40/124";
    kubectl(&["annotate", "namespace", &namespace.0, allowed]);
    eventually("it may use them", || reaches(extra, "other", 80) == [true; 2]);
    assert_eq!(reaches(extra, "app", 3306), [false; 2], "a rule that names the group means its members' own");
    assert_eq!(reaches(SHARED.addresses, "app", 3306), [true; 2]);
    let targets = extra.map(|address| super::reach::target("tcp", address, 22));
    assert_eq!(pods["other"].probes().reaches(&targets), [false; 2], "guarded like its own");
    kubectl(&["annotate", "namespace", &namespace.0, "ringfence.io/allowed-extra-addresses-"]);
    eventually("it may not any more", || reaches(extra, "other", 80) == [false; 2]);
}
