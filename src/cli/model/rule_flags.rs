//! A rule from flags: `--tcp 80,443 --from 10.0.0.0/8`.
//!
//! PURE. Makes what a person would have written into the object; whether it is a rule is judged where all are judged.

use crate::api::{GroupReference, Icmp, Protocol, Remote, SecurityGroupRule};
use crate::policy::{Direction, Family, NamespacedName};
use anyhow::{Context, bail, ensure};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;

/// The flags of one rule.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(group(clap::ArgGroup::new("traffic").required(true).args(["tcp", "udp", "sctp", "icmp", "icmpv6", "any"])))]
pub struct RuleFlags {
    /// What may come in; --from says as much.
    #[arg(long, conflicts_with_all = ["egress", "to"])]
    ingress: bool,
    /// What may go out; --to says as much.
    #[arg(long, conflicts_with = "from")]
    egress: bool,
    /// TCP to these destination ports: 80,443,8000-9000, or all.
    #[arg(long, value_name = "PORTS")]
    tcp: Option<String>,
    /// UDP to these destination ports.
    #[arg(long, value_name = "PORTS")]
    udp: Option<String>,
    /// SCTP to these destination ports.
    #[arg(long, value_name = "PORTS")]
    sctp: Option<String>,
    /// ICMP, of both IPv4 and IPv6; with a type and a code, of IPv4.
    #[arg(long, value_name = "TYPE[:CODE]", num_args = 0..=1, default_missing_value = "")]
    icmp: Option<String>,
    /// ICMPv6.
    #[arg(long, value_name = "TYPE[:CODE]", num_args = 0..=1, default_missing_value = "")]
    icmpv6: Option<String>,
    /// Every protocol.
    #[arg(long)]
    any: bool,
    /// Who may connect: addresses, CIDRs, anywhere, or group/NAME, group/NAMESPACE/NAME. Several CIDRs are one rule.
    #[arg(long, value_name = "REMOTE", value_delimiter = ',', required_unless_present = "to", conflicts_with = "to")]
    from: Vec<String>,
    /// To whom one may connect: likewise.
    #[arg(long, value_name = "REMOTE", value_delimiter = ',')]
    to: Vec<String>,
    /// What the rule is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

impl RuleFlags {
    /// The direction and the rule, for a group of this namespace.
    pub fn rule(&self, namespace: &str) -> anyhow::Result<(Direction, SecurityGroupRule)> {
        let Self { ingress: _, egress: _, tcp, udp, sctp, icmp, icmpv6, any: _, from, to, description } = self;
        let direction = if to.is_empty() { Direction::Ingress } else { Direction::Egress };
        let (protocol, ports, types) = match (tcp, udp, sctp, icmp, icmpv6) {
            (Some(text), ..) => (Protocol::TCP, ports(text), None),
            (_, Some(text), ..) => (Protocol::UDP, ports(text), None),
            (_, _, Some(text), ..) => (Protocol::SCTP, ports(text), None),
            (_, _, _, Some(text), _) => (Protocol::ICMP, None, types(text)?),
            (_, _, _, _, Some(text)) => (Protocol::ICMPv6, None, types(text)?),
            _ => (Protocol::Any, None, None),
        };
        let remote = remote(if to.is_empty() { from } else { to }, namespace)?;
        Ok((direction, SecurityGroupRule { protocol, ports, icmp: types, remote, description: description.clone() }))
    }
}

fn ports(text: &str) -> Option<Vec<IntOrString>> {
    let port = |text: &str| match text.parse::<i32>() {
        Ok(number) => IntOrString::Int(number),
        Err(_) => IntOrString::String(text.to_owned()),
    };
    (text != "all").then(|| text.split(',').map(str::trim).map(port).collect())
}

fn types(text: &str) -> anyhow::Result<Option<Icmp>> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = |text: &str| text.parse().with_context(|| format!("{text:?} is no ICMP type or code from 0 to 255"));
    let (type_, code) = match text.split_once(':') {
        Some((type_, code)) => (number(type_)?, Some(number(code)?)),
        None => (number(text)?, None),
    };
    Ok(Some(Icmp { type_, code }))
}

fn remote(given: &[String], namespace: &str) -> anyhow::Result<Remote> {
    let group = |text: &String| {
        let name = text.strip_prefix("group/").or_else(|| text.strip_prefix("sg/"))?;
        Some(name.parse().unwrap_or_else(|_| NamespacedName::new(namespace, name)))
    };
    if let Some(name) = given.iter().find_map(group) {
        ensure!(given.len() == 1, "a rule has one group as its remote, or CIDRs: write a rule for each");
        let other = Some(name.namespace).filter(|other| other != namespace);
        return Ok(Remote::SecurityGroup(GroupReference { name: name.name, namespace: other }));
    }
    let mut cidrs = Vec::new();
    for text in given {
        match text.parse::<IpAddr>() {
            Ok(address) if Family::of(address) == Family::V4 => cidrs.push(format!("{address}/32")),
            Ok(address) => cidrs.push(format!("{address}/128")),
            Err(_) if text == "anywhere" => cidrs.extend(["0.0.0.0/0".to_owned(), "::/0".to_owned()]),
            Err(_) if text.contains('/') => cidrs.push(text.clone()),
            Err(_) => bail!("{text:?} is no address, CIDR, anywhere, or group/NAME"),
        }
    }
    Ok(Remote::Cidrs(cidrs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse_rule;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: RuleFlags,
    }

    fn rule(line: &str) -> String {
        let line = Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace()));
        let flags = match line {
            Ok(line) => line.flags,
            Err(_) => return "usage".to_owned(),
        };
        let parsed = flags.rule("shop").and_then(|(direction, rule)| {
            let rule = parse_rule("shop", &rule).map_err(|error| anyhow::anyhow!("{}", error.message))?;
            Ok(format!("{direction:?} {rule}"))
        });
        parsed.unwrap_or_else(|error| format!("{error:#}"))
    }

    #[test]
    fn rules_as_people_type_them() {
        for (line, expected) in [
            ("--tcp 80,443,8000-9000 --from 10.0.0.0/8", "Ingress TCP 80,443,8000-9000 10.0.0.0/8"),
            ("--ingress --udp 53 --from 10.0.0.1,fd00::1", "Ingress UDP 53 10.0.0.1/32,fd00::1/128"),
            ("--egress --sctp all --to group/db", "Egress SCTP sg:shop/db"),
            ("--tcp 1 --from sg/other/db", "Ingress TCP 1 sg:other/db"),
            ("--icmp --from anywhere", "Ingress ICMP 0.0.0.0/0,::/0"),
            ("--icmp 8:0 --from anywhere", "Ingress ICMP 8/0 0.0.0.0/0,::/0"),
            ("--icmpv6 128 --to ::/0", "Egress ICMPv6 128 ::/0"),
            ("--any --from group/a", "Ingress Any sg:shop/a"),
        ] {
            assert_eq!(rule(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for line in [
            "--from ::/0",
            "--tcp 1",
            "--tcp 1 --udp 1 --from ::/0",
            "--tcp 1 --from ::/0 --to ::/0",
            "--egress --tcp 1 --from ::/0",
        ] {
            assert_eq!(rule(line), "usage", "{line}");
        }
        assert!(rule("--tcp 0 --from ::/0").contains("is not a port"));
        assert!(rule("--tcp 1 --from 10.1.0.0/8").contains("host bits"));
        assert!(rule("--tcp 1 --from office").contains("group/NAME"));
        assert!(rule("--tcp 1 --from group/a,group/b").contains("a rule for each"));
        assert!(rule("--icmp 300 --from ::/0").contains("0 to 255"));
    }
}
