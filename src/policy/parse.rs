//! From API objects to the model: everything admission should have refused is refused here again, with the field's name.

use super::ports::parse_range;
use super::{
    CidrSet, Group, IcmpMatch, IcmpType, NamespacedName, PortSet, Remote, Rule, Traffic, Transport, parse_cidr,
};
use crate::api::{self, Protocol, SecurityGroupRule, SecurityGroupSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::fmt;

/// What is wrong with a spec, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Like `ingress[2].ports[0]`.
    pub field: String,
    /// What to do about it.
    pub message: String,
}

impl FieldError {
    fn new(field: impl Into<String>, message: impl ToString) -> Self {
        Self { field: field.into(), message: message.to_string() }
    }

    fn inside(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spec.{}: {}", self.field, self.message)
    }
}

/// Parses the spec of the group of that namespace. All errors at once, so that one edit can mend them.
pub fn parse_group(namespace: &str, spec: &SecurityGroupSpec) -> Result<Group, Vec<FieldError>> {
    let SecurityGroupSpec { description: _, ingress, egress } = spec;
    let mut errors = Vec::new();
    let mut parse = |list: &str, rules: &[SecurityGroupRule]| -> Vec<Rule> {
        let mut parsed = Vec::with_capacity(rules.len());
        for (i, rule) in rules.iter().enumerate() {
            match parse_rule(namespace, rule) {
                // A rule that says the same as another, in other words, adds nothing.
                Ok(rule) if parsed.contains(&rule) => {}
                Ok(rule) => parsed.push(rule),
                Err(error) => errors.push(error.inside(&format!("{list}[{i}]"))),
            }
        }
        parsed
    };
    let group = Group { ingress: parse("ingress", ingress), egress: parse("egress", egress) };
    if errors.is_empty() { Ok(group) } else { Err(errors) }
}

/// Parses one rule of a group of that namespace.
pub fn parse_rule(namespace: &str, rule: &SecurityGroupRule) -> Result<Rule, FieldError> {
    let SecurityGroupRule { protocol, ports, icmp, remote, description: _ } = rule;
    if ports.is_some() && !matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::SCTP) {
        return Err(FieldError::new("ports", "ports go with protocol TCP, UDP or SCTP only"));
    }
    if icmp.is_some() && !matches!(protocol, Protocol::ICMP | Protocol::ICMPv6) {
        return Err(FieldError::new("icmp", "icmp goes with protocol ICMP or ICMPv6 only"));
    }
    let icmp = icmp.map(|api::Icmp { type_, code }| IcmpType { type_, code });
    let transport = |transport| Ok(Traffic::Ports(transport, parse_ports(ports.as_deref())?));
    let traffic = match protocol {
        Protocol::TCP => transport(Transport::Tcp)?,
        Protocol::UDP => transport(Transport::Udp)?,
        Protocol::SCTP => transport(Transport::Sctp)?,
        Protocol::ICMP => Traffic::Icmp(icmp.map_or(IcmpMatch::Both, IcmpMatch::V4)),
        Protocol::ICMPv6 => Traffic::Icmp(IcmpMatch::V6(icmp)),
        Protocol::Any => Traffic::Any,
    };
    Ok(Rule { traffic, remote: parse_remote(namespace, remote)? })
}

fn parse_ports(ports: Option<&[IntOrString]>) -> Result<PortSet, FieldError> {
    match ports {
        None => Ok(PortSet::all()),
        // An empty list must not turn into "all".
        Some([]) => Err(FieldError::new("ports", "an empty list; leave ports out to allow all of them")),
        Some(ports) => ports
            .iter()
            .enumerate()
            .map(|(i, port)| {
                let text = match port {
                    IntOrString::Int(number) => number.to_string(),
                    IntOrString::String(text) => text.clone(),
                };
                parse_range(&text).map_err(|error| FieldError::new(format!("ports[{i}]"), error))
            })
            .collect(),
    }
}

fn parse_remote(namespace: &str, remote: &api::Remote) -> Result<Remote, FieldError> {
    match remote {
        api::Remote::Cidrs(cidrs) if cidrs.is_empty() => {
            Err(FieldError::new("remote.cidrs", "an empty list; for anywhere write 0.0.0.0/0 and ::/0"))
        }
        api::Remote::Cidrs(cidrs) => cidrs
            .iter()
            .enumerate()
            .map(|(i, cidr)| parse_cidr(cidr).map_err(|error| FieldError::new(format!("remote.cidrs[{i}]"), error)))
            .collect::<Result<CidrSet, _>>()
            .map(Remote::Cidrs),
        api::Remote::SecurityGroup(api::GroupReference { name, namespace: other }) => {
            Ok(Remote::Group(NamespacedName::new(other.as_deref().unwrap_or(namespace), name)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(spec: Value) -> Result<Group, Vec<String>> {
        let spec: SecurityGroupSpec = serde_json::from_value(spec).unwrap();
        parse_group("shop", &spec).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    fn rule(rule: Value) -> Result<String, String> {
        parse(json!({ "ingress": [rule] })).map(|g| g.ingress[0].to_string()).map_err(|e| e.join("; "))
    }

    #[test]
    fn normal_forms() {
        let any = json!({"cidrs": ["::/0", "10.0.0.0/8", "0.0.0.0/0"]});
        for (given, normal) in [
            (
                json!({"protocol": "TCP", "ports": [3306, "8000-9000"], "remote": any}),
                "TCP 3306,8000-9000 0.0.0.0/0,::/0",
            ),
            (json!({"protocol": "UDP", "remote": {"securityGroup": {"name": "app"}}}), "UDP sg:shop/app"),
            (
                json!({"protocol": "SCTP", "ports": ["1-65535"], "remote": {"securityGroup": {"name": "a", "namespace": "b"}}}),
                "SCTP 1-65535 sg:b/a",
            ),
            (json!({"protocol": "ICMP", "icmp": {"type": 8, "code": 0}, "remote": any}), "ICMP 8/0 0.0.0.0/0,::/0"),
            (json!({"protocol": "ICMP", "remote": any}), "ICMP 0.0.0.0/0,::/0"),
            (json!({"protocol": "ICMPv6", "icmp": {"type": 128}, "remote": any}), "ICMPv6 128 0.0.0.0/0,::/0"),
            (json!({"protocol": "Any", "remote": {"cidrs": ["10.0.0.0/9", "10.128.0.0/9"]}}), "Any 10.0.0.0/8"),
        ] {
            assert_eq!(rule(given).unwrap(), normal);
        }
    }

    #[test]
    fn the_id_is_of_the_content() {
        let id = |value: Value| parse(json!({ "ingress": [value] })).unwrap().ingress[0].id();
        let a =
            id(json!({"protocol": "TCP", "ports": [80, 81], "remote": {"cidrs": ["10.0.0.0/8"]}, "description": "a"}));
        let b = id(json!({"protocol": "TCP", "ports": ["81", "80"], "remote": {"cidrs": ["10.0.0.0/8"]}}));
        let c = id(json!({"protocol": "TCP", "ports": [80], "remote": {"cidrs": ["10.0.0.0/8"]}}));
        assert_eq!(a, b);
        assert_ne!(a, c);
    }

    #[test]
    fn errors_name_the_field_and_all_come_at_once() {
        let errors = parse(json!({
            "ingress": [
                {"protocol": "TCP", "ports": [80, 0], "remote": {"cidrs": ["10.0.0.0/8"]}},
                {"protocol": "ICMP", "ports": [80], "remote": {"cidrs": ["10.0.0.0/8"]}},
            ],
            "egress": [{"protocol": "Any", "remote": {"cidrs": ["10.0.0.0/8", "10.1.2.3/8"]}}],
        }))
        .unwrap_err();
        assert_eq!(errors.len(), 3);
        assert!(errors[0].starts_with("spec.ingress[0].ports[1]: \"0\" is not a port"), "{errors:?}");
        assert!(errors[1].starts_with("spec.ingress[1].ports: "), "{errors:?}");
        assert!(errors[2].starts_with("spec.egress[0].remote.cidrs[1]: "), "{errors:?}");
    }

    #[test]
    fn empty_never_means_any() {
        for value in [
            json!({"protocol": "TCP", "ports": [], "remote": {"cidrs": ["10.0.0.0/8"]}}),
            json!({"protocol": "TCP", "remote": {"cidrs": []}}),
        ] {
            rule(value).unwrap_err();
        }
        for remote in [
            json!({}),
            json!(null),
            json!({"cidrs": null}),
            json!({"cidrs": ["10.0.0.0/8"], "securityGroup": {"name": "a"}}),
        ] {
            let value = json!({"protocol": "TCP", "remote": remote});
            serde_json::from_value::<SecurityGroupRule>(value).unwrap_err();
        }
        let spec: SecurityGroupSpec = serde_json::from_value(json!({})).unwrap();
        assert_eq!(
            parse_group("shop", &spec).unwrap(),
            Group::default(),
            "without the API server's default, egress is closed"
        );
        let text = serde_json::to_value(&spec).unwrap();
        assert_eq!(text["egress"], json!([]), "an empty egress must not be dropped on the way");
    }
}
