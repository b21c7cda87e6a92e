//! `kubectl sg effective`: the rules of all groups of one target together, and where each comes from.

use super::load::{Source, Wanted};
use super::model::describe::{RuleView, rule_view};
use super::model::ends::places;
use super::model::inventory::Inventory;
use super::output::{Cell, Format, Outcome, Paint, Table, Tone};
use crate::index::{Index, Target};
use crate::policy::{Direction, NamespacedName, Remote, parse_rule};
use anyhow::{Context, bail};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What to show.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The target: pod/NAME, vm/NAME, nic/NAME or its address.
    target: String,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    source: Source,
}

/// All that applies to a target.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Effective {
    target: String,
    addresses: Vec<IpAddr>,
    node: Option<String>,
    guarded: bool,
    /// The groups attached, each with the bindings that do it.
    groups: Vec<Attached>,
    rules: Vec<Merged>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attached {
    group: String,
    exists: bool,
    bindings: Vec<String>,
}

/// A rule, once, however many groups have it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Merged {
    #[serde(flatten)]
    rule: RuleView,
    groups: Vec<String>,
    /// Addresses that the remote stands for at present; `None`: it is CIDRs.
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_addresses: Option<usize>,
}

/// Shows.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let (inventory, namespace) = args.source.load(Wanted { targets: true, ..Wanted::default() }).await?;
    let effective = Effective::new(&inventory, &namespace, &args.target)?;
    let text = match args.output.document(&effective)? {
        Some(text) => text,
        None => effective.render(paint),
    };
    Ok(Outcome { text, notes: inventory.notes, ..Outcome::default() })
}

impl Effective {
    fn new(inventory: &Inventory, namespace: &str, text: &str) -> anyhow::Result<Self> {
        let index = inventory.index();
        let found = places(inventory, &index, namespace, text, None)?;
        let [place] = found.as_slice() else { bail!("{text} is several pods: ask about one of them") };
        let target = place.target.as_ref().and_then(|key| index.target(key));
        let target =
            target.with_context(|| format!("{text} is no pod's or machine's address, so nothing guards it"))?;
        let mut attached: BTreeMap<&NamespacedName, BTreeSet<&str>> = BTreeMap::new();
        for binding in index.bindings_of(&target.key()) {
            for group in &binding.groups {
                attached.entry(group).or_default().insert(&binding.name.name);
            }
        }
        Ok(Self {
            target: place.name.clone(),
            addresses: target.claimed().iter().copied().collect(),
            node: target.node.clone(),
            guarded: index.bindings_of(&target.key()).next().is_some(),
            rules: merged(inventory, &index, attached.keys().copied()),
            groups: attached
                .into_iter()
                .map(|(group, bindings)| Attached {
                    group: group.name.clone(),
                    exists: index.group(group).is_some(),
                    bindings: bindings.into_iter().map(str::to_owned).collect(),
                })
                .collect(),
        })
    }

    fn render(&self, paint: Paint) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let mut text = format!("{}  {}\n", self.target, addresses.join(", "));
        if !self.guarded {
            return text + "  no binding selects it: nothing guards it, everything may pass\n";
        }
        text += &format!("\n{}", paint.heading("Groups"));
        let mut table = Table::new(["GROUP", "BOUND BY"]).indented(2);
        for Attached { group, exists, bindings } in &self.groups {
            let tone = if *exists { Tone::Plain } else { Tone::Bad };
            let missing = if *exists { "" } else { " (does not exist: it allows nothing)" };
            table.row([Cell::toned(format!("{group}{missing}"), tone), bindings.join(", ").into()]);
        }
        text += &table.render(paint);
        for (direction, title, nothing) in
            [("ingress", "May come in", "nothing may come in"), ("egress", "May go out", "nothing may go out")]
        {
            text += &format!("\n{}", paint.heading(title));
            let mut table = Table::new(["TRAFFIC", "REMOTE", "GROUP", "RULE", "DESCRIPTION"]).indented(2);
            for Merged { rule, groups, remote_addresses } in self.rules.iter().filter(|m| m.rule.direction == direction)
            {
                let remote = match remote_addresses {
                    Some(0) => Cell::toned(format!("{} (nobody)", rule.remote), Tone::Doubtful),
                    _ => rule.remote.as_str().into(),
                };
                let rest = [groups.join(", "), rule.id.clone(), rule.description.clone()].map(Cell::from);
                table.row([rule.traffic.as_str().into(), remote].into_iter().chain(rest));
            }
            text += &if table.is_empty() { format!("  {nothing}\n") } else { table.render(paint) };
        }
        text
    }
}

/// The rules of some groups, in force at present, in the order in which people look for them.
fn merged<'a>(inventory: &Inventory, index: &Index, groups: impl Iterator<Item = &'a NamespacedName>) -> Vec<Merged> {
    let mut merged: BTreeMap<(&str, String), Merged> = BTreeMap::new();
    for name in groups {
        let Some(group) = inventory.groups.get(name) else { continue };
        for (direction, rules) in [(Direction::Ingress, &group.spec.ingress), (Direction::Egress, &group.spec.egress)] {
            for raw in rules {
                let Ok(rule) = parse_rule(&name.namespace, raw) else { continue };
                let view = rule_view(&name.namespace, direction, raw);
                let remote_addresses = match &rule.remote {
                    Remote::Group(remote) => Some(members(index, remote)),
                    Remote::Cidrs(_) => None,
                };
                let known = merged.entry((view.direction, view.id.clone())).or_insert_with(|| Merged {
                    rule: view.clone(),
                    groups: Vec::new(),
                    remote_addresses,
                });
                known.groups.push(name.name.clone());
            }
        }
    }
    let mut rules: Vec<Merged> = merged.into_values().collect();
    rules.sort_by(|a, b| (&a.rule.traffic, &a.rule.remote).cmp(&(&b.rule.traffic, &b.rule.remote)));
    rules
}

fn members(index: &Index, group: &NamespacedName) -> usize {
    let members = index.members(group).filter(|_| index.group(group).is_some());
    members.map(|target: &Target| index.addresses(target).count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::{bring_to_life, read};

    #[test]
    fn every_rule_once_and_where_it_comes_from() {
        let mut inventory = Inventory::default();
        let group = |name: &str, rules: &str| {
            format!(
                "---\napiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: {name}}}\n\
                 spec: {{egress: [], ingress: [{rules}]}}\n"
            )
        };
        let ssh = "{protocol: TCP, ports: [22], remote: {cidrs: [10.0.0.0/8]}, description: ssh}";
        let text = group("a", ssh)
            + &group("b", &format!("{ssh}, {{protocol: TCP, remote: {{securityGroup: {{name: empty}}}}}}"))
            + "---
apiVersion: ringfence.io/v1alpha1
kind: SecurityGroupBinding
metadata: {name: all}
spec: {securityGroups: [{name: a}, {name: b}, {name: gone}], target: {podSelector: {matchLabels: {app: x}}}}
---
kind: Pod
metadata: {name: x, labels: {app: x}}
---
kind: Pod
metadata: {name: other}
";
        read(&text, "shop", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        let text = |target| Effective::new(&inventory, "shop", target).unwrap().render(Paint(false));
        let x = text("pod/x");
        for line in [
            "TCP 22    10.0.0.0/8          a, b    ",
            "sg/empty (nobody)",
            "gone (does not exist: it allows nothing)   all",
            "May go out\n  nothing may go out",
        ] {
            assert!(x.contains(line), "{line} is not in:\n{x}");
        }
        assert_eq!(x, text("10.0.0.2"), "its address is as good as its name");
        assert!(text("pod/other").contains("nothing guards it"));
    }
}
