//! From the groups of an interface to its profile: rules merged until a packet costs a handful of lookups.

use super::model::digit;
use super::segments::{segments, singles};
use super::skeleton::{DENIED_EGRESS, DENIED_INGRESS};
use super::{Constant, Name, View};
use crate::policy::{
    CidrSet, Direction, Family, IcmpMatch, Interface, NamespacedName, PortSet, Remote, Rule, Traffic, Transport,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Ends one direction, not both: it leads back to the base chain, as profiles are jumped to, and chains in them gone to.
const ACCEPTED: &str = "return";

/// The compiled rules of one distinct combination of groups.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The chain to go to, by the family of the guarded address and the view.
    pub chains: BTreeMap<Family, BTreeMap<View, Name>>,
    /// Everything those chains need.
    pub constants: BTreeMap<Name, Arc<Constant>>,
    /// The groups whose address sets they look into.
    pub remotes: BTreeSet<NamespacedName>,
}

/// Compiles the groups attached to an interface.
pub fn compile(groups: &Interface) -> Profile {
    let mut builder = Builder::default();
    let chains = Family::ALL
        .map(|family| (family, View::ALL.map(|view| (view, builder.profile(groups, family, view))).into()))
        .into();
    let Builder { constants, remotes } = builder;
    Profile { chains, constants, remotes }
}

/// Protocols whose connections are told apart by a number: the destination port, or the ICMP type and code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Axis {
    Transport(Transport),
    Icmp,
}

/// Other ends, merged.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Remotes {
    cidrs: CidrSet,
    groups: BTreeSet<NamespacedName>,
}

impl Remotes {
    /// The part of a rule's remote that can meet an address of this family.
    fn of(rule: &Rule, family: Family) -> Self {
        match &rule.remote {
            Remote::Cidrs(cidrs) => Self { cidrs: cidrs.family(family), groups: BTreeSet::new() },
            Remote::Group(group) => Self { cidrs: CidrSet::default(), groups: [group.clone()].into() },
        }
    }

    fn merge(&mut self, other: &Self) {
        self.cidrs = self.cidrs.union(&other.cidrs);
        self.groups.extend(other.groups.iter().cloned());
    }

    fn is_nobody(&self) -> bool {
        self.cidrs.is_empty() && self.groups.is_empty()
    }
}

#[derive(Default)]
struct Builder {
    constants: BTreeMap<Name, Arc<Constant>>,
    remotes: BTreeSet<NamespacedName>,
}

impl Builder {
    fn profile(&mut self, groups: &Interface, family: Family, view: View) -> Name {
        let mut any = Remotes::default();
        let mut axes: BTreeMap<Axis, BTreeMap<Remotes, PortSet>> = BTreeMap::new();
        for rule in groups.values().flat_map(|group| group.rules(view.direction())) {
            let remotes = Remotes::of(rule, family);
            if remotes.is_nobody() {
                continue;
            }
            match on_axis(&rule.traffic, family) {
                Carried::Everything => any.merge(&remotes),
                Carried::Numbers(axis, numbers) => {
                    let merged = axes.entry(axis).or_default().entry(remotes).or_default();
                    *merged = merged.union(&numbers);
                }
                Carried::Nothing => {}
            }
        }

        let mut rules = self.accept(family, view, "", &any);
        // Nothing gets past an unconditional accept, so nothing is looked up behind it.
        if !any.cidrs.covers(family) {
            for (axis, rows) in axes {
                self.axis(family, view, axis, rows, &mut rules);
            }
            rules.push(denied(view));
        }
        let prefix = match view {
            View::Ingress => "in",
            View::Egress => "out",
            View::Untracked => "raw",
        };
        self.chain(&format!("{prefix}{}", digit(family)), rules)
    }

    /// The rules for one protocol.
    fn axis(
        &mut self,
        family: Family,
        view: View,
        axis: Axis,
        rows: BTreeMap<Remotes, PortSet>,
        rules: &mut Vec<String>,
    ) {
        let (protocol, Some(number)) = selectors(family, view, axis) else {
            return;
        };
        // Who may use the whole protocol needs no lookup of a number.
        let (whole, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, numbers)| numbers.is_all());
        let mut all = Remotes::default();
        whole.iter().for_each(|(remotes, _)| all.merge(remotes));
        rules.extend(self.accept(family, view, &format!("{protocol} "), &all));
        if rows.is_empty() {
            return;
        }

        let (remotes, numbers): (Vec<Remotes>, Vec<PortSet>) = rows.into_iter().unzip();
        let Some(segments) = segments(&numbers) else {
            for (remotes, numbers) in remotes.iter().zip(numbers) {
                let ports = self.constant("p", Constant::Ports(numbers.ranges().collect()));
                rules.extend(self.accept(family, view, &format!("{protocol} {number} @{ports} "), remotes));
            }
            return;
        };
        let mut verdicts: BTreeMap<BTreeSet<usize>, String> = BTreeMap::new();
        let elements = segments.into_iter().map(|(range, active)| {
            let verdict = verdicts.entry(active).or_insert_with_key(|active| {
                let mut merged = Remotes::default();
                active.iter().for_each(|&row| merged.merge(&remotes[row]));
                match self.accept(family, view, "", &merged) {
                    anyone if anyone == [ACCEPTED] => ACCEPTED.to_owned(),
                    mut rules => {
                        // A port is in one segment only, so no other rule of this profile is about it.
                        rules.push(denied(view));
                        format!("goto {}", self.chain(&format!("from{}", digit(family)), rules))
                    }
                }
            });
            (range, verdict.clone())
        });
        let elements = join(elements.collect::<Vec<_>>());
        let (ports, ranges) = match view {
            View::Ingress | View::Egress => singles(elements),
            // Too few such packets pass for it to pay.
            View::Untracked => (Vec::new(), elements),
        };
        if !ports.is_empty() {
            let map = self.constant("port", Constant::SinglePortVerdicts(ports));
            rules.push(format!("{protocol} {number} vmap @{map}"));
        }
        if !ranges.is_empty() {
            let map = self.constant("ports", Constant::PortVerdicts(ranges));
            rules.push(format!("{protocol} {number} vmap @{map}"));
        }
    }

    /// Rules that accept what matches, with any of the remotes. Each starts with `matching`.
    fn accept(&mut self, family: Family, view: View, matching: &str, remotes: &Remotes) -> Vec<String> {
        let Remotes { cidrs, groups } = remotes;
        if cidrs.covers(family) {
            return vec![format!("{matching}{ACCEPTED}")];
        }
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let remote = match view {
            View::Ingress => format!("ct original {ip} saddr"),
            View::Egress => format!("ct reply {ip} saddr"),
            View::Untracked => format!("{ip} daddr"),
        };
        let mut rules = Vec::new();
        // Groups first: a lookup in their hash sets is cheaper than one in an interval set.
        for group in groups {
            rules.push(format!("{matching}{remote} @{} {ACCEPTED}", Name::group_set(group, family)));
            self.remotes.insert(group.clone());
        }
        let nets: Vec<_> = cidrs.nets().collect();
        match nets.as_slice() {
            [] => {}
            [net] => rules.push(format!("{matching}{remote} {net} {ACCEPTED}")),
            _ => {
                let set = self.constant(&format!("c{}", digit(family)), Constant::Cidrs(family, nets));
                rules.push(format!("{matching}{remote} @{set} {ACCEPTED}"));
            }
        }
        rules
    }

    fn chain(&mut self, prefix: &str, rules: Vec<String>) -> Name {
        self.constant(prefix, Constant::Chain(rules))
    }

    fn constant(&mut self, prefix: &str, constant: Constant) -> Name {
        // Debug writes every part of the content, delimited: two constants with one text are one.
        let name = Name::hashed(prefix, &format!("{constant:?}"));
        self.constants.entry(name.clone()).or_insert_with(|| Arc::new(constant));
        name
    }
}

/// What becomes of what no rule accepts.
fn denied(view: View) -> String {
    match view.direction() {
        Direction::Ingress => format!("goto {DENIED_INGRESS}"),
        Direction::Egress => format!("goto {DENIED_EGRESS}"),
    }
}

enum Carried {
    Everything,
    Numbers(Axis, PortSet),
    Nothing,
}

/// Where a rule's traffic lies, seen by one family.
fn on_axis(traffic: &Traffic, family: Family) -> Carried {
    match (traffic, family) {
        (Traffic::Any, _) => Carried::Everything,
        (Traffic::Ports(transport, ports), _) => Carried::Numbers(Axis::Transport(*transport), ports.clone()),
        (Traffic::Icmp(IcmpMatch::Both), _) | (Traffic::Icmp(IcmpMatch::V6(None)), Family::V6) => {
            Carried::Numbers(Axis::Icmp, PortSet::all())
        }
        (Traffic::Icmp(IcmpMatch::V4(icmp)), Family::V4) | (Traffic::Icmp(IcmpMatch::V6(Some(icmp))), Family::V6) => {
            Carried::Numbers(Axis::Icmp, icmp.numbers())
        }
        (Traffic::Icmp(IcmpMatch::V4(_)), Family::V6) | (Traffic::Icmp(IcmpMatch::V6(_)), Family::V4) => {
            Carried::Nothing
        }
    }
}

/// What to match the protocol with, and its number; no number where a packet does not show it in one piece.
fn selectors(family: Family, view: View, axis: Axis) -> (&'static str, Option<&'static str>) {
    // By number: names would need /etc/protocols, which slim images do not have.
    let protocol = match (axis, family) {
        (Axis::Transport(Transport::Tcp), _) => "meta l4proto 6",
        (Axis::Transport(Transport::Udp), _) => "meta l4proto 17",
        (Axis::Transport(Transport::Sctp), _) => "meta l4proto 132",
        (Axis::Icmp, Family::V4) => "meta l4proto 1",
        (Axis::Icmp, Family::V6) => "meta l4proto 58",
    };
    let number = match (axis, view) {
        (Axis::Transport(_), View::Ingress | View::Egress) => Some("ct reply proto-src"),
        (Axis::Transport(_), View::Untracked) => Some("th dport"),
        // An ICMP connection's "destination port" is its first packet's type * 256 + code.
        (Axis::Icmp, View::Ingress | View::Egress) => Some("ct original proto-dst"),
        (Axis::Icmp, View::Untracked) => None,
    };
    (protocol, number)
}

/// Joins neighbours with the same verdict.
fn join(elements: Vec<(std::ops::RangeInclusive<u16>, String)>) -> Vec<(std::ops::RangeInclusive<u16>, String)> {
    let mut joined: Vec<(std::ops::RangeInclusive<u16>, String)> = Vec::with_capacity(elements.len());
    for (range, verdict) in elements {
        match joined.last_mut() {
            Some((last, v)) if *v == verdict && last.end().checked_add(1) == Some(*range.start()) => {
                *last = *last.start()..=*range.end();
            }
            _ => joined.push((range, verdict)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Group, parse_cidr};

    #[test]
    fn what_is_accepted_ends_one_direction_and_what_is_not_ends_both() {
        let anyone = Remote::Cidrs(["0.0.0.0/0", "::/0"].iter().map(|cidr| parse_cidr(cidr).unwrap()).collect());
        let app = Remote::Group(NamespacedName::new("shop", "app"));
        let some = Remote::Cidrs(["10.0.0.0/8", "fd00::/8"].iter().map(|cidr| parse_cidr(cidr).unwrap()).collect());
        let tcp = |ports: &[u16], remote: &Remote| Rule {
            traffic: Traffic::Ports(Transport::Tcp, ports.iter().map(|port| *port..=*port).collect()),
            remote: remote.clone(),
        };
        let many: Vec<u16> = (1..60).map(|i| i * 3).collect();
        let rules = vec![
            tcp(&[80], &anyone),
            tcp(&many, &app),
            tcp(&[81, 82], &some),
            Rule { traffic: Traffic::Icmp(IcmpMatch::Both), remote: some.clone() },
            Rule { traffic: Traffic::Any, remote: app },
        ];
        let group = Group { ingress: rules.clone(), egress: rules };
        let profile = compile(&[(NamespacedName::new("shop", "web"), Arc::new(group))].into());
        let leads = |verdict: &str| {
            let chain = verdict.strip_prefix("goto ").map(|name| profile.constants.keys().any(|n| n.as_str() == name));
            verdict == "return" || chain == Some(true)
        };
        let entered: BTreeSet<&Name> = profile.chains.values().flat_map(BTreeMap::values).collect();
        for (name, constant) in &profile.constants {
            match constant.as_ref() {
                Constant::Chain(rules) => {
                    assert!(!rules.iter().any(|rule| rule.contains("accept") || rule.contains("jump")), "{rules:?}");
                    let last = rules.last().unwrap();
                    assert!(["goto denied_ingress", "goto denied_egress"].contains(&last.as_str()), "{rules:?}");
                    assert!(entered.contains(name) || name.as_str().starts_with("from"), "{name}");
                }
                Constant::SinglePortVerdicts(elements) => assert!(elements.iter().all(|(_, verdict)| leads(verdict))),
                Constant::PortVerdicts(elements) => assert!(elements.iter().all(|(_, verdict)| leads(verdict))),
                Constant::Cidrs(..) | Constant::Ports(_) => {}
            }
        }
    }
}
