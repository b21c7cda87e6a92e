//! What groups mean, on real pods.

use super::cluster::{Namespace, Running, calm, get, kubectl, number};
use super::reach::{From, OFFICE, Pod, STRANGER, both, target};
use std::time::Duration;

const ANYWHERE: &str = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";

/// Answers of one pod to another, for each family.
fn probe(from: &Pod, to: &Pod, protocol: &str, port: u16) -> bool {
    let targets: Vec<String> = match protocol {
        "icmp" => to
            .addresses
            .iter()
            .map(|a| if a.contains(':') { format!("icmp:[{a}]") } else { format!("icmp:{a}") })
            .collect(),
        _ => to.on(protocol, port),
    };
    both(&from.probes().reaches(&targets))
}

#[test]
fn s1_s2_s6_closed_by_a_missing_group_and_groups_add_up() {
    let _calm = calm();
    let namespace = Namespace::new("additive");
    let pods = namespace.pods(&[("server", "server", "n1"), ("near", "client", "n1"), ("far", "client", "n2")]);
    let (server, clients) = (&pods["server"], [&pods["near"], &pods["far"]]);
    let open = |port| clients.map(|client| client.reaches(server, port));
    assert_eq!(open(80), [true, true], "nobody guards it yet");

    namespace.bind("one", &["http", "dns"], "server");
    let message = namespace.until("sgb", "one", "ResolvedRefs", "False", "GroupNotFound");
    assert!(message.contains("http") && message.contains("dns"), "{message}");
    namespace.enforced();
    assert_eq!(open(80), [false, false], "guarded by groups that do not exist");
    assert!(From::Node("n1").reaches_one(&target("tcp", &server.addresses[0], 80)), "S11: its own node");

    namespace.group("http", &format!("[{{protocol: TCP, ports: [80], remote: {ANYWHERE}}}]"), None);
    namespace.group("dns", &format!("[{{protocol: UDP, ports: [53], remote: {ANYWHERE}}}]"), None);
    namespace.enforced();
    assert_eq!(namespace.until("sgb", "one", "ResolvedRefs", "True", "Resolved"), "every group exists");
    assert_eq!((open(80), open(443)), ([true, true], [false, false]));
    assert!(clients.iter().all(|c| probe(c, server, "udp", 53) && !probe(c, server, "udp", 5353)));

    namespace.group("https", &format!("[{{protocol: TCP, ports: [\"443-444\"], remote: {ANYWHERE}}}]"), None);
    namespace.bind("two", &["https"], "*");
    namespace.enforced();
    assert_eq!((open(80), open(443)), ([true, true], [true, true]), "two bindings add up");
    assert!(
        !pods["near"].reaches(&pods["far"], 80) && pods["near"].reaches(&pods["far"], 443),
        "{{}} selects every pod"
    );

    namespace.kubectl(&["delete", "sgb", "one"]);
    namespace.enforced();
    assert_eq!((open(80), open(443)), ([false, false], [true, true]));
    namespace.kubectl(&["delete", "sgb", "two"]);
    super::cluster::eventually("nobody guards it any more", || open(22) == [true, true]);
}

#[test]
fn s1_s11_egress_icmp_and_the_own_node() {
    let _calm = calm();
    let namespace = Namespace::new("egress");
    let pods = namespace.pods(&[("client", "client", "n1"), ("near", "server", "n1"), ("far", "server", "n2")]);
    let client = &pods["client"];
    let node: Vec<String> = addresses_of("n1").iter().map(|a| target("tcp", a, 10250)).collect();
    namespace.bind("client", &["client"], "client");

    let reach = |protocol: &str, port: u16| [&pods["near"], &pods["far"]].map(|pod| probe(client, pod, protocol, port));
    let office = |protocol: &str| client.probes().reaches(&OFFICE.map(|a| target(protocol, a, 9)));

    namespace.group("client", "[]", Some("[]"));
    namespace.enforced();
    assert_eq!([reach("tcp", 80), reach("udp", 53), reach("icmp", 0)], [[false; 2]; 3]);
    assert!(!both(&client.probes().reaches(&node)), "traffic to the own node is egress");
    assert!(From::Node("n1").reaches_one(&target("tcp", &client.addresses[0], 80)), "the node reaches its pods");

    namespace.group("client", "[]", Some(&format!(
        "[{{protocol: ICMP, icmp: {{type: 8}}, remote: {ANYWHERE}}}, {{protocol: ICMPv6, icmp: {{type: 128, code: 0}}, remote: {ANYWHERE}}}, {{protocol: TCP, ports: [10250], remote: {ANYWHERE}}}]"
    )));
    namespace.enforced();
    assert_eq!([reach("tcp", 80), reach("udp", 53), reach("icmp", 0)], [[false; 2], [false; 2], [true; 2]]);
    assert!(both(&client.probes().reaches(&node)));

    let cidrs = format!(
        "{{cidrs: [\"{}/32\", \"{}/128\", \"{}/32\", \"{}/128\"]}}",
        pods["far"].addresses[0], pods["far"].addresses[1], OFFICE[0], OFFICE[1]
    );
    namespace.group("client", "[]", Some(&format!("[{{protocol: Any, remote: {cidrs}}}]")));
    namespace.enforced();
    assert_eq!([reach("tcp", 80), reach("udp", 53), reach("icmp", 0)], [[false, true]; 3]);
    assert_eq!(office("tcp"), [true, true], "nobody listens there, but the refusal comes back");

    // Absent: the API server writes the default rule, for everyone to see.
    namespace.group("other", "[]", None);
    let egress = namespace.get("sg", "other")["spec"]["egress"].to_string();
    assert!(egress.contains("0.0.0.0/0") && egress.contains("::/0") && egress.contains("default"), "{egress}");
    namespace.bind("client", &["other"], "client");
    namespace.enforced();
    assert_eq!([reach("tcp", 80), reach("udp", 53), reach("icmp", 0)], [[true; 2]; 3]);
}

fn addresses_of(node: &str) -> Vec<String> {
    let addresses = get(&["node", node])["status"]["addresses"].as_array().unwrap().clone();
    let internal = addresses.iter().filter(|a| a["type"] == "InternalIP");
    internal.map(|a| a["address"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn s12_true_clients_and_real_backends() {
    let _calm = calm();
    let namespace = Namespace::new("translated");
    let pods = namespace.pods(&[("near", "backend", "n1"), ("far", "backend", "n2"), ("client", "client", "n1")]);
    // Port 8080 of the Service is port 80 of its backends: rules speak of 80.
    namespace.apply("apiVersion: v1\nkind: Service\nmetadata: {name: backend}\nspec: {selector: {app: backend}, ipFamilyPolicy: RequireDualStack, ports: [{port: 8080, targetPort: 80}]}\n");
    namespace.group("backend", "[{protocol: TCP, ports: [80], remote: {securityGroup: {name: client}}}]", None);
    namespace.group("client", "[]", Some("[{protocol: TCP, ports: [80], remote: {securityGroup: {name: backend}}}]"));
    namespace.bind("backend", &["backend"], "backend");
    namespace.bind("client", &["client"], "client");
    namespace.enforced();
    let ips = namespace.get("service", "backend")["spec"]["clusterIPs"].as_array().unwrap().clone();
    let service: Vec<String> = ips.iter().map(|ip| target("tcp", ip.as_str().unwrap(), 8080)).collect();
    for _ in 0..6 {
        assert!(both(&pods["client"].probes().reaches(&service)), "either backend, whichever the Service chooses");
    }
    // A backend that reaches the Service may be sent to itself, or to the other, which does not allow it.
    namespace.group("backend", "[{protocol: TCP, ports: [443], remote: {securityGroup: {name: client}}}]", None);
    namespace.enforced();
    assert!(!both(&pods["client"].probes().reaches(&service)));

    // From outside, by the client's own address.
    let office = format!("{{cidrs: [\"{}/32\", \"{}/128\"]}}", OFFICE[0], OFFICE[1]);
    namespace.group("backend", &format!("[{{protocol: TCP, ports: [443], remote: {office}}}]"), None);
    namespace.enforced();
    for pod in [&pods["near"], &pods["far"]] {
        assert!(both(&From::Outside(OFFICE).reaches(&pod.on("tcp", 443))));
        assert!(!both(&From::Outside(STRANGER).reaches(&pod.on("tcp", 443))));
    }
}

#[test]
fn s3_s4_open_connections_end_with_what_allowed_them_and_others_lose_nothing() {
    let _calm = calm();
    let namespace = Namespace::new("revoked");
    let pods = namespace.pods(&[("server", "server", "n1"), ("near", "near", "n1"), ("far", "far", "n2")]);
    for group in ["near", "far"] {
        namespace.group(group, "[]", None);
        namespace.bind(group, &[group], group);
    }
    let rules = |who: &[&str]| -> String {
        let rules: Vec<String> = who
            .iter()
            .flat_map(|w| {
                ["TCP", "UDP"].map(|p| format!("{{protocol: {p}, remote: {{securityGroup: {{name: {w}}}}}}}"))
            })
            .collect();
        format!("[{}]", rules.join(", "))
    };
    // Closed egress: only state lets the server's replies out.
    namespace.group("server", &rules(&["near", "far"]), Some("[]"));
    namespace.bind("server", &["server"], "server");
    namespace.enforced();

    let stream = |from: &Pod, protocol: &str, port: &str| {
        let mut probe = from.probes().probe();
        probe.args(["stream", protocol, &pods["server"].addresses[0], port, "--interval", "10ms", "--duration", "6s"]);
        Running::start(probe)
    };
    let (kept_tcp, kept_udp) = (stream(&pods["near"], "tcp", "80"), stream(&pods["near"], "udp", "53"));
    let (cut_tcp, cut_udp) = (stream(&pods["far"], "tcp", "80"), stream(&pods["far"], "udp", "53"));
    std::thread::sleep(Duration::from_secs(2));
    namespace.group("server", &rules(&["near"]), Some("[]"));
    namespace.enforced();
    assert!(!pods["far"].reaches(&pods["server"], 80));
    for kept in [kept_tcp, kept_udp] {
        let said = kept.last_line();
        assert!(said.contains(" lost 0 "), "{said}");
    }
    for cut in [cut_tcp, cut_udp] {
        let said = cut.last_line();
        // Some came through before, and nothing in the four seconds after.
        assert!((51..350).contains(&number(&said, "received")), "{said}");
    }
}

#[test]
fn kubectl_shows_what_people_look_for() {
    let _calm = calm();
    let namespace = Namespace::new("columns");
    namespace.pods(&[("a", "a", "n1"), ("b", "a", "n2")]);
    namespace.group("one", &format!("[{{protocol: TCP, ports: [80], remote: {ANYWHERE}}}]"), None);
    namespace.group("two", "[]", None);
    namespace.bind("both", &["one", "two"], "a");
    namespace.enforced();
    let words = |kind: &str, name: &str| -> Vec<String> {
        namespace.kubectl(&["get", kind, name, "--no-headers"]).split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(words("sg", "one")[..6], ["one", "1", "1", "2", "2/2", "True"]);
    assert_eq!(words("sgb", "both")[..5], ["both", "one,two", "2", "2/2", "True"]);
    assert_eq!(kubectl(&["get", "ringfence", "-n", &namespace.0, "-o", "name"]).lines().count(), 3);
    let explained = kubectl(&["explain", "securitygroup.spec.ingress.remote"]);
    assert!(explained.contains("exactly one of cidrs or securityGroup"), "{explained}");
    let nodes = kubectl(&["get", "nodeenforcements", "--no-headers"]);
    assert_eq!(nodes.lines().count(), 2, "{nodes}");
}
