//! `kubectl sg graph`: which groups let which in.

use super::load::{Source, Wanted};
use super::model::describe::{local, traffic};
use super::model::inventory::Inventory;
use super::output::Outcome;
use crate::index::Index;
use crate::policy::{Direction, Family, NamespacedName, Remote};
use anyhow::{Context, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

/// What to draw.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The groups of every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// DOT, or a drawing of it; that needs the program dot, of Graphviz.
    #[arg(short, long, value_enum, default_value_t)]
    output: Drawing,
    #[command(flatten)]
    source: Source,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Drawing {
    #[default]
    Dot,
    Svg,
}

/// Draws.
pub async fn run(args: Args) -> anyhow::Result<Outcome> {
    let (inventory, namespace) = args.source.load(Wanted { targets: true, ..Wanted::default() }).await?;
    let everywhere = args.all_namespaces || args.source.offline.offline && args.source.connection.namespace.is_none();
    let dot = dot(&inventory, &inventory.index(), Some(namespace.as_str()).filter(|_| !everywhere));
    let text = match args.output {
        Drawing::Dot => dot,
        Drawing::Svg => svg(&dot)?,
    };
    Ok(Outcome { text, notes: inventory.notes, ..Outcome::default() })
}

const HEAD: &str = r#"digraph groups {
  rankdir=LR;
  node [fontname="sans-serif"];
  edge [fontname="sans-serif", fontsize=10];
"#;

/// Two ends of an edge, as they are called.
type Edge = (String, String, Direction);

/// The groups of a namespace, or all, and whoever they name. An arrow is a way for connections: rules for what comes in
/// are solid, for what goes out dashed; out to anywhere is left out, as nearly every group has it.
fn dot(inventory: &Inventory, index: &Index, scope: Option<&str>) -> String {
    let home = scope.unwrap_or_default();
    let (mut groups, mut addresses): (BTreeSet<&NamespacedName>, BTreeSet<String>) = Default::default();
    let mut edges: BTreeMap<Edge, BTreeSet<String>> = BTreeMap::new();
    for group in index.groups().filter(|group| scope.is_none_or(|scope| group.name.namespace == scope)) {
        groups.insert(&group.name);
        let name = local(&group.name, home);
        for direction in [Direction::Ingress, Direction::Egress] {
            for rule in group.rules.iter().flat_map(|rules| rules.rules(direction)) {
                let peer = match &rule.remote {
                    Remote::Group(remote) => {
                        groups.insert(remote);
                        local(remote, home)
                    }
                    Remote::Cidrs(cidrs) => {
                        let anywhere = Family::ALL.iter().all(|family| cidrs.covers(*family));
                        if anywhere && direction == Direction::Egress {
                            continue;
                        }
                        let text = if anywhere { "anywhere".to_owned() } else { cidrs.to_string().replace(',', "\n") };
                        addresses.insert(text.clone());
                        text
                    }
                };
                let edge = match direction {
                    Direction::Ingress => (peer, name.clone(), direction),
                    Direction::Egress => (name.clone(), peer, direction),
                };
                edges.entry(edge).or_default().insert(traffic(rule));
            }
        }
    }
    let mut text = HEAD.to_owned();
    for group in groups {
        let name = local(group, home);
        let exists = inventory.groups.contains_key(group) || inventory.malformed_groups.contains_key(group);
        let members = index.members(group).count();
        let (label, style) = match exists {
            true => (format!("{name}\n{}", super::output::counted(members, "member")), "rounded"),
            false => (format!("{name}\ndoes not exist"), "rounded,dashed"),
        };
        text += &format!("  {} [shape=box, style=\"{style}\", label={}];\n", quoted(&name), quoted(&label));
    }
    for address in addresses {
        text += &format!("  {} [shape=ellipse];\n", quoted(&address));
    }
    for ((from, to, direction), kinds) in edges {
        let kinds: Vec<String> = kinds.into_iter().collect();
        let style = if direction == Direction::Egress { ", style=dashed" } else { "" };
        text += &format!("  {} -> {} [label={}{style}];\n", quoted(&from), quoted(&to), quoted(&kinds.join("\n")));
    }
    text + "}\n"
}

/// As DOT wants text.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn svg(dot: &str) -> anyhow::Result<String> {
    let spawned = Command::new("dot").arg("-Tsvg").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.context("-o svg needs the program dot, of Graphviz; -o dot needs nothing")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(dot.as_bytes()).context("cannot hand the graph to dot")?;
    }
    let output = child.wait_with_output().context("cannot read what dot drew")?;
    ensure!(output.status.success(), "dot failed: {}", output.status);
    String::from_utf8(output.stdout).context("what dot drew is no text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::read;

    #[test]
    fn groups_and_the_ways_between_them() {
        let mut inventory = Inventory::default();
        read(include_str!("../../deploy/examples/internal-database.yaml"), "default", &mut inventory).unwrap();
        read(include_str!("../../deploy/examples/public-web.yaml"), "default", &mut inventory).unwrap();
        let text = dot(&inventory, &inventory.index(), Some("shop"));
        for line in [
            "\"app-tier\" -> \"db-private\" [label=\"TCP 3306\"];",
            "\"bastion\" [shape=box, style=\"rounded,dashed\", label=\"bastion\\ndoes not exist\"];",
            "\"anywhere\" -> \"web-public\" [label=\"TCP 443\\nTCP 80\"];",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("dashed];"), "the default rule is everybody's:\n{text}");
        assert_eq!(dot(&inventory, &inventory.index(), Some("elsewhere")).lines().count(), 5);
        assert_eq!(quoted("a\"\\b"), r#""a\"\\b""#);
    }
}
