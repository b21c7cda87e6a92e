//! `kubectl sg allow`: one rule more.

use super::diff::Comparison;
use super::edit::{DryRun, GroupEditor, Writing, wait};
use super::load::{Cluster, Connection, Wanted};
use super::model::describe::{direction_name, remote, traffic};
use super::model::rule_flags::RuleFlags;
use super::output::{Answer, Format, Outcome, Paint};
use super::show::group_name;
use crate::api::{SecurityGroup, SecurityGroupRule};
use crate::policy::{Direction, NamespacedName, Remote, Rule, parse_rule};
use anyhow::bail;
use kube::Api;

/// What to allow.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The group: NAME, or NAMESPACE/NAME.
    group: String,
    #[command(flatten)]
    rule: RuleFlags,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    connection: Connection,
}

/// Allows.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let Args { group, rule, writing, connection } = args;
    let cluster = Cluster::connect(&connection).await?;
    let name = group_name(&group, &cluster.namespace);
    let (direction, raw) = rule.rule(&name.namespace)?;
    let parsed = match parse_rule(&name.namespace, &raw) {
        Ok(parsed) => parsed,
        Err(error) => bail!("{}: {}", error.field, error.message),
    };
    let api: Api<SecurityGroup> = Api::namespaced(cluster.client.clone(), &name.namespace);
    let Some(present) = api.get_opt(&name.name).await? else { bail!("there is no security group {name}") };
    let said = text(&name, direction, &parsed);
    if rules(&present, direction).iter().any(|known| parse_rule(&name.namespace, known).as_ref() == Ok(&parsed)) {
        return Ok(Outcome::yes(format!("{said}: it is allowed already\n")));
    }
    let mut notes = Vec::new();
    if let Remote::Group(remote) = &parsed.remote {
        let remotes: Api<SecurityGroup> = Api::namespaced(cluster.client.clone(), &remote.namespace);
        // Whoever may not look there may still name it.
        if let Ok(None) = remotes.get_opt(&remote.name).await {
            notes.push(format!("security group {remote} does not exist: until it does, the rule allows nothing"));
        }
    }
    if writing.dry_run != DryRun::None {
        let mut before = cluster.inventory(Wanted { targets: true, ..Wanted::default() }).await?;
        notes.append(&mut before.notes);
        let mut after = before.clone();
        let Some(group) = after.groups.get_mut(&name) else { bail!("there is no security group {name}") };
        match direction {
            Direction::Ingress => group.spec.ingress.push(raw.clone()),
            Direction::Egress => group.spec.egress.push(raw.clone()),
        }
        let comparison = Comparison::new(&before, &after);
        if writing.dry_run == DryRun::Server {
            GroupEditor::new(cluster.client, &name).add(direction, &raw, &writing.params()).await?;
        }
        let connections = comparison.connections(Format::Table, paint);
        return Ok(Outcome { text: format!("{said}{}\n{connections}", writing.suffix()), notes, ..Outcome::default() });
    }
    let written = GroupEditor::new(cluster.client, &name).add(direction, &raw, &writing.params()).await?;
    if !writing.wait {
        return Ok(Outcome { text: format!("{said}: allowed\n"), notes, answer: Answer::Yes });
    }
    let (waited, answer) = wait(&api, &written, writing.timeout).await;
    Ok(Outcome { text: format!("{said}: allowed, {waited}\n"), notes, answer })
}

/// The rules of one direction, as they are written.
pub fn rules(group: &SecurityGroup, direction: Direction) -> &[SecurityGroupRule] {
    match direction {
        Direction::Ingress => &group.spec.ingress,
        Direction::Egress => &group.spec.egress,
    }
}

/// "sg/db-private ingress TCP 3306 from sg/app-tier (23055aa948)".
pub fn text(group: &NamespacedName, direction: Direction, rule: &Rule) -> String {
    let preposition = if direction == Direction::Ingress { "from" } else { "to" };
    let (traffic, remote) = (traffic(rule), remote(&rule.remote, &group.namespace));
    format!("sg/{} {} {traffic} {preposition} {remote} ({})", group.name, direction_name(direction), rule.id())
}
