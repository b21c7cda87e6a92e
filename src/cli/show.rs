//! `kubectl sg show`: all that there is to know of one group, on one page.

use super::list::{age_of, enforced};
use super::load::{Source, Wanted};
use super::model::describe::{RuleView, local, rule_view};
use super::model::inventory::Inventory;
use super::output::{Cell, Format, Outcome, Paint, Table, Tone, fields};
use crate::api::RuleUsage;
use crate::index::{Index, SelectorKind};
use crate::policy::{Direction, NamespacedName, Remote, parse_rule};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::Serialize;
use std::net::IpAddr;

/// What to show.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The group: NAME, or NAMESPACE/NAME.
    group: String,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    source: Source,
}

/// More than these are a list for `-o json`.
const SHOWN_MEMBERS: usize = 20;

/// A group and what it is related to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    namespace: String,
    name: String,
    description: String,
    generation: Option<i64>,
    enforced: String,
    nodes: String,
    age: String,
    rules: Vec<Shown>,
    members: Vec<Member>,
    bindings: Vec<Bound>,
    named_by: Vec<Naming>,
    conditions: Vec<Condition>,
}

/// A rule, and how it is used as far as that is known.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    rule: RuleView,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<RuleUsage>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    target: String,
    addresses: Vec<IpAddr>,
    node: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Bound {
    name: String,
    selector: String,
    targets: usize,
    groups: Vec<String>,
}

/// A rule of some group that names this one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Naming {
    group: String,
    rule: RuleView,
}

/// Shows.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let (inventory, namespace) = args.source.load(Wanted { targets: true, ..Wanted::default() }).await?;
    let name = group_name(&args.group, &namespace);
    let page = Page::new(&inventory, &name)?;
    let text = match args.output.document(&page)? {
        Some(text) => text,
        None => page.render(args.output, paint),
    };
    Ok(Outcome { text, notes: inventory.notes, ..Outcome::default() })
}

/// What a person means by a group's name: `NAME`, `NAMESPACE/NAME`, or either behind `sg/`.
pub fn group_name(text: &str, namespace: &str) -> NamespacedName {
    let text = text.strip_prefix("sg/").or_else(|| text.strip_prefix("group/")).unwrap_or(text);
    text.parse().unwrap_or_else(|_| NamespacedName::new(namespace, text))
}

impl Page {
    fn new(inventory: &Inventory, name: &NamespacedName) -> anyhow::Result<Self> {
        let index = inventory.index();
        let group = inventory.group(name)?;
        let status = group.status.clone().unwrap_or_default();
        let spec = &group.spec;
        let shown = |rule: RuleView| {
            let used = status.usage.iter();
            let mut used = used.filter(|used| Direction::from(used.direction).name() == rule.direction);
            Shown { usage: used.find(|used| used.id == rule.id).cloned(), rule }
        };
        let view = |direction, rules: &[_]| -> Vec<Shown> {
            rules.iter().map(|rule| shown(rule_view(&name.namespace, direction, rule))).collect()
        };
        let mut rules = view(Direction::Ingress, &spec.ingress);
        rules.extend(view(Direction::Egress, &spec.egress));
        let condition = status.conditions.iter().find(|c| c.type_ == crate::api::conditions::ENFORCED);
        Ok(Self {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            description: spec.description.clone().unwrap_or_default(),
            generation: group.metadata.generation,
            enforced: condition.map_or_else(String::new, |_| {
                let (_, reason) = enforced(&status, group.metadata.generation);
                let current = condition.is_some_and(|c| c.status == "True") && reason != "Outdated";
                if current { "True".to_owned() } else { format!("False ({reason})") }
            }),
            nodes: status.nodes.as_ref().map(|nodes| nodes.summary.clone()).unwrap_or_default(),
            age: age_of(group.metadata.creation_timestamp.as_ref().map(|time| time.0)),
            rules,
            members: members(&index, name),
            bindings: bindings(&index, name),
            named_by: named_by(inventory, &index, name),
            conditions: status.conditions,
        })
    }

    fn render(&self, format: Format, paint: Paint) -> String {
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let mut text = fields([
            ("Name", self.name.clone()),
            ("Namespace", self.namespace.clone()),
            ("Description", or_none(&self.description)),
            ("Enforced", or_none(&self.enforced)),
            ("Nodes", or_none(&self.nodes)),
            ("Age", self.age.clone()),
        ]);
        for (direction, title, nothing) in
            [("ingress", "Ingress", "nothing may come in"), ("egress", "Egress", "nothing may go out")]
        {
            let rules: Vec<&Shown> = self.rules.iter().filter(|shown| shown.rule.direction == direction).collect();
            text += &section(paint, title, rules.len());
            let columns = ["RULE", "TRAFFIC", "REMOTE", "CONNECTIONS", "LAST USED", "DESCRIPTION"];
            let mut table = Table::new(columns).indented(2);
            for Shown { rule, usage } in &rules {
                let RuleView { id, direction: _, traffic, remote, description } = rule;
                let (connections, last) = used(usage.as_ref());
                table.row([id, traffic, remote, &connections, &last, description].map(|text| text.as_str().into()));
            }
            text += &if rules.is_empty() { format!("  {nothing}\n") } else { table.render(paint) };
        }

        text += &section(paint, "Members", self.members.len());
        let shown = if format.is_wide() { usize::MAX } else { SHOWN_MEMBERS };
        let mut table = Table::new(["TARGET", "ADDRESSES", "NODE"]).indented(2);
        for Member { target, addresses, node } in self.members.iter().take(shown) {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let node = node.as_deref().unwrap_or("-");
            table.row([target.as_str().into(), or_none(&addresses.join(", ")).into(), node.into()]);
        }
        text += &if table.is_empty() { "  nobody\n".to_owned() } else { table.render(paint) };
        if self.members.len() > shown {
            text += &format!("  and {} more: -o wide shows all\n", self.members.len() - shown);
        }

        text += &section(paint, "Bindings", self.bindings.len());
        let mut table = Table::new(["NAME", "SELECTS", "TARGETS", "GROUPS"]).indented(2);
        for Bound { name, selector, targets, groups } in &self.bindings {
            table.row([
                name.as_str().into(),
                selector.as_str().into(),
                targets.to_string().into(),
                groups.join(", ").into(),
            ]);
        }
        text += &if table.is_empty() {
            "  none: the group is attached to nothing\n".to_owned()
        } else {
            table.render(paint)
        };

        text += &section(paint, "Named as a remote by", self.named_by.len());
        let mut table = Table::new(["GROUP", "RULE", "DIRECTION", "TRAFFIC", "DESCRIPTION"]).indented(2);
        for Naming { group, rule } in &self.named_by {
            let RuleView { id, direction, traffic, remote: _, description } = rule;
            table.row([group, id, *direction, traffic.as_str(), description.as_str()].map(Cell::from));
        }
        text += &if table.is_empty() { "  no rule\n".to_owned() } else { table.render(paint) };

        if !self.conditions.is_empty() {
            text += &section(paint, "Conditions", self.conditions.len());
            let mut table = Table::new(["TYPE", "STATUS", "REASON", "MESSAGE"]).indented(2);
            for condition in &self.conditions {
                let tone = if condition.status == "True" { Tone::Good } else { Tone::Bad };
                let status = Cell::toned(condition.status.as_str(), tone);
                let reason = condition.reason.as_str().into();
                table.row([condition.type_.as_str().into(), status, reason, condition.message.as_str().into()]);
            }
            text += &table.render(paint);
        }
        text
    }
}

/// How many connections, and when the last. Of rules that nobody counts, nothing.
fn used(usage: Option<&RuleUsage>) -> (String, String) {
    let Some(RuleUsage { connections, last_matched, since, .. }) = usage else {
        return ("-".to_owned(), "-".to_owned());
    };
    let last = match last_matched {
        Some(last) => format!("{} ago", age_of(Some(last.0))),
        None => format!("not in {}", age_of(Some(since.0))),
    };
    (connections.to_string(), last)
}

fn section(paint: Paint, title: &str, count: usize) -> String {
    format!("\n{}", paint.heading(&format!("{title} ({count})")))
}

fn members(index: &Index, group: &NamespacedName) -> Vec<Member> {
    let mut members: Vec<_> = index.members(group).collect();
    members.sort_by_key(|target| (target.kind, &target.name));
    let member = |target: &&crate::index::Target| Member {
        target: target.key().in_namespace(),
        addresses: index.addresses(target).collect(),
        node: target.node.clone(),
    };
    members.iter().map(member).collect()
}

fn bindings(index: &Index, group: &NamespacedName) -> Vec<Bound> {
    let bindings = index.bound_by(group).filter_map(|name| index.binding(name));
    bindings
        .map(|binding| Bound {
            name: binding.name.name.clone(),
            selector: selector_text(binding),
            targets: index.targets(&binding.name).count(),
            groups: binding.groups.iter().map(|group| group.name.clone()).collect(),
        })
        .collect()
}

/// "pod tier=db": what a binding selects.
pub fn selector_text(binding: &crate::index::Binding) -> String {
    match &binding.selector {
        None => "nothing".to_owned(),
        Some((kind, selector)) => {
            let text = selector.to_string();
            let text = if text.is_empty() { "all of the namespace".to_owned() } else { text };
            let kind = match kind {
                SelectorKind::Pod => "pod",
                SelectorKind::VirtualMachine => "vm",
                SelectorKind::NetworkInterface => "nic",
            };
            format!("{kind} {text}")
        }
    }
}

fn named_by(inventory: &Inventory, index: &Index, group: &NamespacedName) -> Vec<Naming> {
    let mut namings = Vec::new();
    for name in index.named_by(group) {
        let Some(naming) = inventory.groups.get(name) else { continue };
        for (direction, rules) in [(Direction::Ingress, &naming.spec.ingress), (Direction::Egress, &naming.spec.egress)]
        {
            let names = |rule: &&crate::api::SecurityGroupRule| {
                parse_rule(&name.namespace, rule).is_ok_and(|rule| rule.remote == Remote::Group(group.clone()))
            };
            namings.extend(rules.iter().filter(names).map(|rule| Naming {
                group: local(name, &group.namespace),
                rule: rule_view(&name.namespace, direction, rule),
            }));
        }
    }
    namings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::{bring_to_life, read};

    #[test]
    fn a_name_with_and_without_its_namespace() {
        for text in ["db", "sg/db", "shop/db", "sg/shop/db"] {
            assert_eq!(group_name(text, "shop"), NamespacedName::new("shop", "db"), "{text}");
        }
    }

    #[test]
    fn a_page_says_who_is_in_it_and_who_names_it() {
        let mut inventory = Inventory::default();
        let text = include_str!("../../deploy/examples/internal-database.yaml");
        read(text, "default", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        let page = Page::new(&inventory, &group_name("app-tier", "shop")).unwrap();
        let text = page.render(Format::Table, Paint(false));
        for line in [
            "pod/tier=app   10.0.0.1",
            "app    pod tier=app   1         app-tier",
            "ingress     TCP 3306",
            "sg/bastion",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(Page::new(&inventory, &group_name("nobody", "shop")).is_err());
    }
}
