//! What is valid and rarely meant.
//!
//! PURE. Every finding names the object and says what to do. What a rule covers is asked of the reference.

use super::describe::{direction_name, remote, traffic};
use super::inventory::Inventory;
use super::snapshot::Snapshot;
use super::traffic::{Steps, TrafficSet};
use crate::api::conditions::listed;
use crate::index::{Index, TargetName};
use crate::policy::{CidrSet, Direction, Family, L4, NamespacedName, Remote, Rule, Transport, carries};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// TCP ports by which machines and their stores are administered, as the chart's recommendations have them by default.
pub const ADMIN_PORTS: [u16; 22] = [
    22, 23, 135, 445, 1433, 1521, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5900, 5985, 5986, 6379, 6443, 9200, 10250,
    11211, 27017,
];
/// Networks with fewer bits than these are wide, as in the chart.
const WIDE: (u8, u8) = (8, 32);
/// More rules than these in one group are hard to judge, as in the chart.
const MANY_RULES: usize = 60;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// Probably not meant.
    Warning,
    /// Dangerous.
    Error,
}

/// The checks, with what each looks for.
pub const CHECKS: [(&str, &str); 8] = [
    ("admin-port-open", "An admin port is open to a wide network"),
    ("everything-open", "A wide network may send everything"),
    ("shadowed-rule", "Another rule of the group allows all that this one does"),
    ("duplicate-rule", "Several groups of the same targets have this rule"),
    ("unbound-group", "The group is attached to nothing"),
    ("empty-remote", "A rule names a group that is nobody"),
    ("unreachable-target", "Nobody can connect to a guarded target"),
    ("too-many-rules", "The group has so many rules that it is hard to judge"),
];

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Which check it is of, by its name in [`CHECKS`].
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// The object: `sg/NAME` and the like.
    pub object: String,
    /// Its namespace.
    pub namespace: String,
    /// The rule, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
    /// The file that it is in, if it came from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// Everything there is to find; in one namespace, or in all.
pub fn findings(inventory: &Inventory, scope: Option<&str>) -> Vec<Finding> {
    let index = inventory.index();
    let snapshot = Snapshot::new(&index);
    let mut audit = Audit { inventory, index: &index, found: Vec::new() };
    for group in index.groups() {
        audit.group(&group.name);
        for direction in [Direction::Ingress, Direction::Egress] {
            let rules = group.rules.as_ref().map(|rules| rules.rules(direction)).unwrap_or_default();
            audit.rules(&group.name, direction, rules);
        }
    }
    audit.targets(&snapshot);
    let mut found = audit.found;
    found.retain(|finding| scope.is_none_or(|scope| finding.namespace == scope));
    found.sort_by(|a, b| (b.level, a).cmp(&(a.level, b)));
    found
}

struct Audit<'a> {
    inventory: &'a Inventory,
    index: &'a Index,
    found: Vec<Finding>,
}

impl Audit<'_> {
    fn add(&mut self, check: &'static str, level: Level, group: &NamespacedName, rule: Option<&Rule>, message: String) {
        self.found.push(Finding {
            check,
            level,
            object: format!("sg/{}", group.name),
            namespace: group.namespace.clone(),
            rule: rule.map(|rule| rule.id().to_string()),
            message,
            file: self.inventory.origins.get(group).cloned(),
        });
    }

    fn group(&mut self, name: &NamespacedName) {
        if self.index.bound_by(name).next().is_none() {
            let named = self.index.named_by(name).next().is_some();
            let level = if named { Level::Warning } else { Level::Note };
            let what = if named { "; rules that name it let nobody in" } else { "" };
            let message = format!("no binding attaches it to anything{what}: attach it, or delete it");
            self.add("unbound-group", level, name, None, message);
        }
        let count = self
            .index
            .group(name)
            .and_then(|group| group.rules.as_ref())
            .map_or(0, |r| r.ingress.len() + r.egress.len());
        if count > MANY_RULES {
            let message = format!("it has {count} rules: split it by tier, and attach several groups");
            self.add("too-many-rules", Level::Warning, name, None, message);
        }
    }

    fn rules(&mut self, name: &NamespacedName, direction: Direction, rules: &[Rule]) {
        for (place, rule) in rules.iter().enumerate() {
            if direction == Direction::Ingress {
                self.wide(name, rule);
            }
            if let Remote::Group(remote) = &rule.remote {
                let what = match self.index.group(remote) {
                    None => Some("does not exist"),
                    Some(_) if self.index.members(remote).next().is_none() => Some("has no members"),
                    Some(_) => None,
                };
                if let Some(what) = what {
                    let message =
                        format!("{} names {remote}, which {what}: it matches nobody", said(name, direction, rule));
                    self.add("empty-remote", Level::Warning, name, Some(rule), message);
                }
            }
            // Of two that cover each other, the first is the one to keep.
            let covered_by = |(other, candidate): &(usize, &Rule)| {
                *other != place && covers(candidate, rule) && (*other < place || !covers(rule, candidate))
            };
            if let Some((_, other)) = rules.iter().enumerate().find(covered_by) {
                let (rule_text, by) = (said(name, direction, rule), said(name, direction, other));
                let message = format!("{rule_text} adds nothing to {by} ({}): remove it", other.id());
                self.add("shadowed-rule", Level::Warning, name, Some(rule), message);
            }
        }
    }

    fn wide(&mut self, name: &NamespacedName, rule: &Rule) {
        let Remote::Cidrs(cidrs) = &rule.remote else { return };
        let is_wide = |net: &ipnet::IpNet| net.prefix_len() < if net.addr().is_ipv4() { WIDE.0 } else { WIDE.1 };
        let wide: Vec<String> = cidrs.nets().filter(is_wide).map(|net| net.to_string()).collect();
        if wide.is_empty() {
            return;
        }
        let family = if wide.iter().any(|net| net.contains('.')) { Family::V4 } else { Family::V6 };
        let allowed = allowed(rule, family);
        let open: BTreeSet<u16> =
            ADMIN_PORTS.into_iter().filter(|port| allowed.contains(L4::Ports(Transport::Tcp, *port))).collect();
        let text = said(name, Direction::Ingress, rule);
        if allowed == TrafficSet::all() {
            let message = format!("{text} lets everything in from {}: name the ports that are meant", wide.join(", "));
            self.add("everything-open", Level::Error, name, Some(rule), message);
        } else if !open.is_empty() {
            let ports = listed(open);
            let message = format!(
                "{text} opens admin ports to {}: {ports}; name the networks that need them, or a group",
                wide.join(", ")
            );
            self.add("admin-port-open", Level::Error, name, Some(rule), message);
        }
    }

    /// Over the combinations of groups that guard something.
    fn targets(&mut self, snapshot: &Snapshot) {
        let mut guarded: BTreeMap<usize, BTreeSet<&TargetName>> = BTreeMap::new();
        for (_, end) in snapshot.ends() {
            if let Some(guard) = &end.guard {
                guarded.entry(guard.id).or_default().extend(&end.targets);
            }
        }
        let mut several: BTreeMap<(Direction, &Rule), BTreeSet<&NamespacedName>> = BTreeMap::new();
        for guard in snapshot.guards() {
            let targets = guarded.get(&guard.id).cloned().unwrap_or_default();
            let mut ingress = guard.rules.values().flat_map(|group| &group.ingress);
            let somebody = |rule: &Rule| match &rule.remote {
                Remote::Cidrs(_) => true,
                Remote::Group(group) => {
                    self.index.group(group).is_some()
                        && self.index.members(group).any(|m| self.index.addresses(m).next().is_some())
                }
            };
            if !ingress.any(somebody)
                && let (Some(first), Some(group)) = (targets.first(), guard.attached.first())
            {
                let names = listed(targets.iter().map(|target| target.in_namespace()));
                self.found.push(Finding {
                    check: "unreachable-target",
                    level: Level::Note,
                    object: first.in_namespace(),
                    namespace: group.namespace.clone(),
                    rule: None,
                    message: format!("no rule of its groups lets anybody in: {names}"),
                    file: None,
                });
            }
            for direction in [Direction::Ingress, Direction::Egress] {
                let mut groups: BTreeMap<&Rule, BTreeSet<&NamespacedName>> = BTreeMap::new();
                for (name, group) in &guard.rules {
                    group.rules(direction).iter().for_each(|rule| {
                        groups.entry(rule).or_default().insert(name);
                    });
                }
                groups.retain(|_, names| names.len() > 1);
                for (rule, names) in groups {
                    several.entry((direction, rule)).or_default().extend(names);
                }
            }
        }
        for ((direction, rule), names) in several {
            // Every new group has it.
            if direction == Direction::Egress && allowed(rule, Family::V4) == TrafficSet::all() {
                continue;
            }
            let Some(first) = names.first().copied().cloned() else { continue };
            let groups = listed(names.iter().map(|name| name.name.as_str()));
            let message =
                format!("{} is in several groups of the same targets: {groups}", said(&first, direction, rule));
            self.add("duplicate-rule", Level::Note, &first, Some(rule), message);
        }
    }
}

fn said(group: &NamespacedName, direction: Direction, rule: &Rule) -> String {
    let preposition = if direction == Direction::Ingress { "from" } else { "to" };
    format!("{} {} {preposition} {}", direction_name(direction), traffic(rule), remote(&rule.remote, &group.namespace))
}

/// What a rule allows in a family, whoever its remote is.
fn allowed(rule: &Rule, family: Family) -> TrafficSet {
    Steps::of([rule]).allowed(|l4| carries(rule, family, l4))
}

/// Whether a rule allows all that another one does, whoever is in which group.
fn covers(rule: &Rule, other: &Rule) -> bool {
    let same_remotes = match (&rule.remote, &other.remote) {
        (Remote::Group(a), Remote::Group(b)) => a == b,
        (Remote::Cidrs(a), Remote::Cidrs(b)) => a.union(b) == *a,
        (Remote::Group(_), Remote::Cidrs(_)) | (Remote::Cidrs(_), Remote::Group(_)) => false,
    };
    let concerned = |family: &Family| match &other.remote {
        Remote::Cidrs(cidrs) => cidrs.family(*family) != CidrSet::default(),
        Remote::Group(_) => true,
    };
    let mut families = Family::ALL.into_iter().filter(concerned);
    same_remotes && families.all(|family| allowed(other, family).minus(&allowed(rule, family)).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::{bring_to_life, read};

    fn audit(text: &str) -> Vec<(&'static str, String)> {
        let mut inventory = Inventory::default();
        read(text, "shop", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        findings(&inventory, None).into_iter().map(|finding| (finding.check, finding.message)).collect()
    }

    fn group(name: &str, rules: &[&str]) -> String {
        let rules = rules.join(", ");
        format!(
            "---\napiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: {name}}}\n\
             spec: {{ingress: [{rules}]}}\n---\napiVersion: ringfence.io/v1alpha1\nkind: SecurityGroupBinding\n\
             metadata: {{name: {name}}}\nspec: {{securityGroups: [{{name: {name}}}], target: {{podSelector: {{}}}}}}\n"
        )
    }

    const OFFICE: &str = "remote: {cidrs: [203.0.113.0/24]}";

    fn checks(text: &str) -> Vec<&'static str> {
        audit(text).into_iter().map(|(check, _)| check).collect()
    }

    #[test]
    fn nothing_is_found_in_what_is_as_it_should_be() {
        let rule = format!("{{protocol: TCP, ports: [22], {OFFICE}}}");
        assert_eq!(audit(&group("a", &[&rule])), []);
    }

    #[test]
    fn wide_networks_on_admin_ports() {
        let to = |ports: &str, cidr: &str| format!("{{protocol: TCP, {ports} remote: {{cidrs: [\"{cidr}\"]}}}}");
        for (rule, expected) in [
            (to("ports: [22],", "0.0.0.0/0"), vec!["admin-port-open"]),
            (to("ports: [\"20-30\"],", "::/0"), vec!["admin-port-open"]),
            (to("", "0.0.0.0/7"), vec!["admin-port-open"]),
            (to("ports: [443],", "0.0.0.0/0"), vec![]),
            (to("ports: [22],", "10.0.0.0/8"), vec![]),
            ("{protocol: UDP, remote: {cidrs: [0.0.0.0/0]}}".to_owned(), vec![]),
            ("{protocol: Any, remote: {cidrs: [0.0.0.0/0]}}".to_owned(), vec!["everything-open"]),
        ] {
            assert_eq!(checks(&group("a", &[&rule])), expected, "{rule}");
        }
    }

    #[test]
    fn rules_that_add_nothing() {
        let tcp = |ports: &str, cidr: &str| format!("{{protocol: TCP, ports: [{ports}], remote: {{cidrs: [{cidr}]}}}}");
        let (narrow, broad) = (tcp("80", "10.1.0.0/16"), tcp("\"80-90\"", "10.0.0.0/8"));
        assert_eq!(checks(&group("a", &[&narrow, &broad])), ["shadowed-rule"]);
        assert_eq!(checks(&group("a", &[&tcp("80", "10.0.0.0/8"), &tcp("80-90", "10.1.0.0/16")])), [""; 0]);
        let icmp = "{protocol: ICMP, remote: {cidrs: [10.0.0.0/8]}}";
        let echo = "{protocol: ICMP, icmp: {type: 8}, remote: {cidrs: [10.0.0.0/8]}}";
        let said = &audit(&group("a", &[icmp, echo]))[0].1;
        assert!(
            said.starts_with("ingress ICMP 8 from 10.0.0.0/8 adds nothing to ingress ICMP from 10.0.0.0/8 ("),
            "{said}"
        );
        assert_eq!(checks(&(group("a", &[&narrow]) + &group("b", &[&narrow]))), ["duplicate-rule"]);
    }

    #[test]
    fn groups_and_remotes_that_are_nobody() {
        let from = |group: &str| format!("{{protocol: TCP, remote: {{securityGroup: {{name: {group}}}}}}}");
        assert_eq!(checks(&group("a", &[&from("gone")])), ["empty-remote", "unreachable-target"]);
        assert_eq!(checks(&group("a", &[&from("a")])), [""; 0]);
        let alone = group("a", &[]).split("\n---\n").next().unwrap().to_owned();
        assert_eq!(checks(&alone), ["unbound-group"]);
        let many: Vec<String> = (1..62).map(|i| format!("{{protocol: UDP, ports: [{i}], {OFFICE}}}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(checks(&group("a", &many)), ["too-many-rules"]);
    }
}
