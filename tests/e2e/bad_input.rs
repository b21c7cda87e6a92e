//! Refused with a clear message, or enforced exactly; never half.

use super::cluster::{Namespace, alone, apply, calm, eventually, get, kubectl};
use super::reach::From;

const TEN: &str = "remote: {cidrs: [\"10.0.0.0/8\"]}";

#[test]
fn refused_with_a_message_that_says_what_to_do() {
    let _calm = calm();
    let namespace = Namespace::new("refused");
    let long = "x".repeat(65_000);
    let group = |name: &str, spec: &str| {
        format!("apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: {name}}}\nspec: {spec}\n")
    };
    let rule = |rule: &str| group("t", &format!("{{ingress: [{rule}]}}"));
    let cidr = |cidr: &str| rule(&format!("{{protocol: TCP, remote: {{cidrs: [\"{cidr}\"]}}}}"));
    let ports = |ports: &str| rule(&format!("{{protocol: TCP, ports: [{ports}], {TEN}}}"));
    let binding = |spec: &str| {
        format!("apiVersion: ringfence.io/v1alpha1\nkind: SecurityGroupBinding\nmetadata: {{name: t}}\nspec: {spec}\n")
    };
    for (manifest, message) in [
        (rule(&format!("{{protocol: TCPX, {TEN}}}")), "supported values: \"TCP\", \"UDP\""),
        (ports("0"), "a number from 1 to 65535"),
        (ports("70000"), "a number from 1 to 65535"),
        (ports("-1"), "a number from 1 to 65535"),
        (ports("\"0\""), "is not a number from 1 to 65535"),
        (ports("\"70000\""), "is not a number from 1 to 65535"),
        (ports("\"080\""), "is not a number from 1 to 65535"),
        (ports("\"80-\""), "is not a number from 1 to 65535"),
        (ports("\"80-70000\""), "is not a number from 1 to 65535"),
        (ports("http"), "is not a number from 1 to 65535"),
        (ports("\"9000-8000\""), "write the lower number first"),
        (ports(""), "at least 1 items"),
        (rule(&format!("{{protocol: ICMP, ports: [80], {TEN}}}")), "ports go with protocol TCP, UDP or SCTP only"),
        (rule(&format!("{{protocol: Any, ports: [80], {TEN}}}")), "ports go with protocol TCP, UDP or SCTP only"),
        (rule(&format!("{{protocol: TCP, icmp: {{type: 8}}, {TEN}}}")), "icmp goes with protocol ICMP or ICMPv6 only"),
        (rule(&format!("{{protocol: ICMP, icmp: {{code: 0}}, {TEN}}}")), "icmp.type: Required value"),
        (rule(&format!("{{protocol: ICMP, icmp: {{type: 256}}, {TEN}}}")), "less than or equal to 255"),
        (cidr("10.1.2.3/8"), "host bits are set"),
        (cidr("fd00::1/64"), "host bits are set"),
        (cidr("::ffff:10.0.0.1/128"), "no IPv4-mapped IPv6"),
        (cidr("010.0.0.0/8"), "no leading zeros"),
        (cidr("10.0.0.0/08"), "must be an address with a prefix length"),
        (cidr("10.0.0.0"), "must be an address with a prefix length"),
        (cidr("10.0.0.0/33"), "must be an address with a prefix length"),
        (cidr(""), "must be an address with a prefix length"),
        (
            rule("{protocol: TCP, remote: {cidrs: [\"10.0.0.0/8\"], securityGroup: {name: a}}}"),
            "exactly one of cidrs or securityGroup",
        ),
        (rule("{protocol: TCP, remote: {}}"), "exactly one of cidrs or securityGroup"),
        (rule("{protocol: TCP, remote: {cidrs: null}}"), "exactly one of cidrs or securityGroup"),
        (rule("{protocol: TCP}"), "remote: Required value"),
        (rule("{protocol: TCP, remote: {cidrs: []}}"), "at least 1 items"),
        (rule("{protocol: TCP, remote: {securityGroup: {name: \"No Name\"}}}"), "should match"),
        (
            rule(&format!("{{protocol: TCP, {TEN}}}, {{protocol: TCP, {TEN}, description: again}}")),
            "two ingress rules say the same",
        ),
        (group("t", &format!("{{description: {long}}}")), "Too long"),
        (rule(&format!("{{protocol: TCP, {TEN}, description: {long}}}")), "Too long"),
        (group(&"x".repeat(64), "{}"), "at most 63 characters"),
        (binding("{securityGroups: [], target: {podSelector: {}}}"), "at least 1 items"),
        (binding("{securityGroups: [{name: a}], target: {}}"), "write podSelector"),
        (
            binding(
                "{securityGroups: [{name: a}], target: {podSelector: {matchExpressions: [{key: a, operator: In}]}}}",
            ),
            "need at least one value",
        ),
        (
            binding(
                "{securityGroups: [{name: a}], target: {podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}}",
            ),
            "supported values: \"In\"",
        ),
        (binding("{securityGroups: [{name: a}, {name: a}], target: {podSelector: {}}}"), "Duplicate value"),
    ] {
        let shown: String = manifest.chars().take(400).collect();
        match namespace.try_apply(&manifest) {
            Ok(_) => panic!("was admitted: {shown}"),
            Err(error) => assert!(error.contains(message), "not {message:?} but {error}\nfor {shown}"),
        }
    }
    assert!(namespace.kubectl(&["get", "sg,sgb", "-o", "name"]).is_empty());
}

#[test]
fn odd_but_right_is_enforced_exactly() {
    let _calm = calm();
    let namespace = Namespace::new("exactly");
    let pods = namespace.pods(&[("server", "server", "n1"), ("client", "client", "n2")]);
    let (server, client) = (&pods["server"], &pods["client"]);
    let name = "n".repeat(63);
    namespace.bind("server", &[&name], "server");
    let mine = |length: u8| -> String {
        // The /31 or /127 around the client.
        let masked = |address: &str, bits: u8| match address.parse::<std::net::IpAddr>().unwrap() {
            std::net::IpAddr::V4(a) => format!("{}/{}", std::net::Ipv4Addr::from(u32::from(a) & !1), 32 - bits),
            std::net::IpAddr::V6(a) => format!("{}/{}", std::net::Ipv6Addr::from(u128::from(a) & !1), 128 - bits),
        };
        let cidrs: Vec<String> = client.addresses.iter().map(|a| format!("\"{}\"", masked(a, length))).collect();
        cidrs.join(", ")
    };
    for (cidrs, ports, open, shut) in [
        ("\"10.0.0.0/8\", \"10.1.0.0/16\", \"fd00::/8\", \"fd00:10::/32\"".to_owned(), "[80]", vec![80], vec![443]),
        (
            "\"0.0.0.0/0\", \"10.0.0.0/8\", \"::/0\", \"fd00::/8\"".to_owned(),
            "[\"1-65535\"]",
            vec![22, 80, 65535],
            vec![],
        ),
        (
            "\"0.0.0.0/1\", \"128.0.0.0/1\", \"::/1\", \"8000::/1\"".to_owned(),
            "[\"443-65535\", \"500-600\", 443]",
            vec![443, 65535],
            vec![22, 80],
        ),
        (mine(1), "[65535, \"80\", 80]", vec![80, 65535], vec![443]),
        ("\"255.255.255.255/32\", \"0.0.0.0/32\", \"::1/128\"".to_owned(), "[80]", vec![], vec![80]),
    ] {
        namespace.group(&name, &format!("[{{protocol: TCP, ports: {ports}, remote: {{cidrs: [{cidrs}]}}}}]"), None);
        namespace.enforced();
        for port in open {
            assert!(client.reaches(server, port), "{cidrs} {ports}: {port} must be open");
        }
        for port in shut {
            assert!(!client.reaches(server, port), "{cidrs} {ports}: {port} must be shut");
        }
    }
    // Rules that say the same in other words are one.
    namespace.group(&name, "[{protocol: TCP, ports: [80, 81], remote: {cidrs: [\"10.0.0.0/8\", \"fd00::/8\"]}}, {protocol: TCP, ports: [\"80-81\"], remote: {cidrs: [\"fd00::/8\", \"10.0.0.0/9\", \"10.128.0.0/9\"]}}]", None);
    namespace.enforced();
    assert!(client.reaches(server, 80) && !client.reaches(server, 443));
    assert_eq!(namespace.get("sg", &name)["status"]["rules"]["ingress"], 1);
}

/// An object that admission let through, as if written before the policy was there.
#[test]
fn s13_what_cannot_be_parsed_keeps_its_last_good_rules_and_holds_up_nobody() {
    // Without its policy the API server would take others' bad input too.
    let _alone = alone();
    let namespace = Namespace::new("invalid");
    let pods = namespace.pods(&[
        ("bad", "bad", "n1"),
        ("new", "new", "n1"),
        ("good", "good", "n1"),
        ("client", "client", "n2"),
    ]);
    let anywhere = "{cidrs: [\"0.0.0.0/0\", \"::/0\"]}";
    let on = |port: &str| format!("[{{protocol: TCP, ports: [{port}], remote: {anywhere}}}]");
    for group in ["bad", "good"] {
        namespace.group(group, &on("80"), None);
        namespace.bind(group, &[group], group);
    }
    namespace.enforced();

    let policy = "ringfence-security-groups";
    let mut binding = get(&["validatingadmissionpolicybinding", policy]);
    for field in ["resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"] {
        binding["metadata"].as_object_mut().unwrap().remove(field);
    }
    struct Restore(String);
    impl Drop for Restore {
        fn drop(&mut self) {
            apply(&self.0);
        }
    }
    let restore = Restore(binding.to_string());
    kubectl(&["delete", "validatingadmissionpolicybinding", policy]);
    eventually("the policy is off", || {
        namespace.try_apply(&format!("{{apiVersion: ringfence.io/v1alpha1, kind: SecurityGroup, metadata: {{name: bad}}, spec: {{ingress: {}}}}}", on("443, \"9000-8000\""))).is_ok()
    });
    namespace.group("new", &on("\"080\""), None);
    namespace.bind("new", &["new"], "new");

    let message = namespace.until("sg", "bad", "Accepted", "False", "Invalid");
    assert!(
        message.contains("spec.ingress[0].ports[1]: \"9000-8000\" runs backwards") && message.contains("stay in force"),
        "{message}"
    );
    namespace.until("sg", "bad", "Enforced", "False", "NotAccepted");
    let message = namespace.until("sg", "new", "Accepted", "False", "Invalid");
    assert!(message.contains("no earlier rules"), "{message}");
    namespace.group("good", &on("443"), None);
    namespace.kubectl(&["wait", "--for=condition=Enforced", "sg/good", "--timeout=30s"]);
    namespace.kubectl(&["wait", "--for=condition=Enforced", "sgb", "--all", "--timeout=30s"]);
    let client = &pods["client"];
    assert!(client.reaches(&pods["good"], 443) && !client.reaches(&pods["good"], 80), "the others go on");
    assert!(client.reaches(&pods["bad"], 80) && !client.reaches(&pods["bad"], 443), "the last good rules stay");
    assert!(!client.reaches(&pods["new"], 80), "what never was good allows nothing");
    assert!(From::Node("n1").reaches_one(&super::reach::target("tcp", &pods["new"].addresses[0], 80)));

    drop(restore);
    namespace.group("bad", &on("443"), None);
    namespace.group("new", &on("80"), None);
    namespace.enforced();
    assert!(client.reaches(&pods["bad"], 443) && client.reaches(&pods["new"], 80));
}
