//! `kubectl sg revoke`: one rule less, after saying what that cuts.

use super::allow::{rules, text};
use super::ask::{Question, agreed};
use super::diff::Comparison;
use super::edit::{DryRun, GroupEditor, Writing, wait};
use super::load::{Cluster, Connection, Wanted};
use super::model::findings::ADMIN_PORTS;
use super::model::inventory::Inventory;
use super::output::{Answer, Format, Outcome, Paint, Tone};
use super::show::group_name;
use crate::api::SecurityGroup;
use crate::controller::lock_out::{AdminPorts, Before};
use crate::index::{Group, Update};
use crate::policy::{Direction, NamespacedName, Rule, parse_rule};
use anyhow::{bail, ensure};
use kube::Api;

/// Fewer characters of an id are a guess.
const SHORTEST: usize = 4;

/// What to take away.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The group: NAME, or NAMESPACE/NAME.
    group: String,
    /// The rule: its id as `show` tells it, or the beginning of it.
    rule: String,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    connection: Connection,
}

/// Takes away.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let Args { group, rule, yes, writing, connection } = args;
    let question = Question { yes, dry_run: writing.dry_run };
    question.can_be_asked()?;
    let cluster = Cluster::connect(&connection).await?;
    let name = group_name(&group, &cluster.namespace);
    let inventory = cluster.inventory(Wanted { targets: true, ..Wanted::default() }).await?;
    let (direction, rule) = find(inventory.group(&name)?, &name, &rule)?;
    let said = text(&name, direction, &rule);
    let consequences = consequences(&inventory, &name, direction, &rule, paint);
    if !agreed(&question, &format!("{said}\n{consequences}"), "Take it away?")? {
        return Ok(Outcome { text: "left as it is\n".to_owned(), answer: Answer::No, notes: Vec::new() });
    }
    let notes = inventory.notes;
    let report = |done: &str| {
        // What was read before answering need not be said again.
        if question.asks() { format!("{said}{done}\n") } else { format!("{said}{done}\n{consequences}") }
    };
    if writing.dry_run == DryRun::Client {
        return Ok(Outcome { text: report(writing.suffix()), notes, ..Outcome::default() });
    }
    let editor = GroupEditor::new(cluster.client.clone(), &name);
    let is_meant = |raw: &serde_json::Value| {
        let raw = serde_json::from_value(raw.clone());
        raw.is_ok_and(|raw| parse_rule(&name.namespace, &raw).as_ref() == Ok(&rule))
    };
    let Some(written) = editor.remove(direction, is_meant, &writing.params()).await? else {
        bail!("somebody else took the rule away in the meantime");
    };
    if writing.dry_run == DryRun::Server {
        return Ok(Outcome { text: report(writing.suffix()), notes, ..Outcome::default() });
    }
    if !writing.wait {
        return Ok(Outcome { text: report(": taken away"), notes, ..Outcome::default() });
    }
    let api: Api<SecurityGroup> = Api::namespaced(cluster.client, &name.namespace);
    let (waited, answer) = wait(&api, &written, writing.timeout).await;
    Ok(Outcome { text: report(&format!(": taken away, {waited}")), notes, answer })
}

/// The one rule whose id begins so.
fn find(group: &SecurityGroup, name: &NamespacedName, id: &str) -> anyhow::Result<(Direction, Rule)> {
    ensure!(id.len() >= SHORTEST, "{id:?} is too short for a rule's id: give {SHORTEST} characters at least");
    let all = [Direction::Ingress, Direction::Egress].into_iter().flat_map(|direction| {
        let parsed = rules(group, direction).iter().filter_map(|raw| parse_rule(&name.namespace, raw).ok());
        parsed.map(move |rule| (direction, rule))
    });
    let mut found: Vec<(Direction, Rule)> = all.filter(|(_, rule)| rule.id().to_string().starts_with(id)).collect();
    match found.len() {
        0 => bail!("security group {name} has no rule {id}; kubectl sg show {name} lists them"),
        1 => Ok(found.remove(0)),
        _ => bail!("{id} is the id of several rules of {name}: of the same traffic in and out, edit the group instead"),
    }
}

/// What is cut, and which targets nobody can administer any more.
fn consequences(
    inventory: &Inventory,
    name: &NamespacedName,
    direction: Direction,
    rule: &Rule,
    paint: Paint,
) -> String {
    let mut after = inventory.clone();
    if let Some(group) = after.groups.get_mut(name) {
        let keep = |raw: &crate::api::SecurityGroupRule| parse_rule(&name.namespace, raw).as_ref() != Ok(rule);
        match direction {
            Direction::Ingress => group.spec.ingress.retain(keep),
            Direction::Egress => group.spec.egress.retain(keep),
        }
    }
    let comparison = Comparison::new(inventory, &after);
    if comparison.rows.is_empty() {
        return "nothing is cut: other rules allow all of it, or nobody is concerned\n".to_owned();
    }
    let mut text = comparison.connections(Format::Table, paint);
    let mut index = inventory.index();
    if let Some(new) = after.groups.get(name) {
        let update = Update::Group(Group::from(new));
        let before = Before::look(&index, &AdminPorts::from(ADMIN_PORTS), &update);
        index.update(update);
        if let Some(notice) = before.and_then(|before| before.compare(&index)) {
            let tone = if notice.lost.is_empty() { Tone::Doubtful } else { Tone::Bad };
            text += &format!("\n{}\n", paint.tone(tone, &notice.message()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::{bring_to_life, read};

    fn inventory(texts: &[&str]) -> Inventory {
        let mut inventory = Inventory::default();
        texts.iter().for_each(|text| read(text, "shop", &mut inventory).unwrap());
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        inventory
    }

    fn revoke(inventory: &Inventory, group: &str, id: &str) -> String {
        let name = NamespacedName::new("shop", group);
        let (direction, rule) = find(inventory.group(&name).unwrap(), &name, id).unwrap();
        consequences(inventory, &name, direction, &rule, Paint(false))
    }

    #[test]
    fn what_is_cut_and_who_is_locked_out() {
        let inventory = inventory(&[
            include_str!("../../deploy/examples/internal-database.yaml"),
            include_str!("../../deploy/examples/bastion.yaml"),
        ]);
        let ssh = revoke(&inventory, "db-private", "d5ae");
        assert!(ssh.contains("shop/bastion [tier=bastion]   shop/db-private [tier=db]   TCP 22"), "{ssh}");
        assert!(ssh.contains("TCP 22: no group lets anyone in any more on shop/tier=db"), "{ssh}");
        let mysql = revoke(&inventory, "db-private", "23055aa948");
        assert!(mysql.contains("TCP 3306"), "{mysql}");
    }

    #[test]
    fn what_others_allow_is_not_cut() {
        let group = |name: &str| {
            format!(
                "---\napiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\nmetadata: {{name: {name}}}\nspec:\n  \
                 ingress: [{{protocol: TCP, ports: [22], remote: {{cidrs: [192.0.2.0/24]}}}}]\n"
            )
        };
        let binding = "---\napiVersion: ringfence.io/v1alpha1\nkind: SecurityGroupBinding\nmetadata: {name: b}\n\
                       spec: {securityGroups: [{name: a}, {name: b}], target: {podSelector: {}}}\n";
        let inventory = inventory(&[&group("a"), &group("b"), binding]);
        let name = NamespacedName::new("shop", "a");
        let group = inventory.group(&name).unwrap();
        let id = parse_rule("shop", &group.spec.ingress[0]).unwrap().id().to_string();
        assert!(revoke(&inventory, "a", &id).starts_with("nothing is cut"));
        assert!(find(group, &name, "ffff").is_err() && find(group, &name, &id[..3]).is_err());
    }
}
