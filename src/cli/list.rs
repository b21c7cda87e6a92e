//! `kubectl sg list`: the groups, as a cloud's console lists them.

use super::load::{Source, Wanted};
use super::model::inventory::Inventory;
use super::output::{Cell, Format, Outcome, Paint, Table, Tone, age};
use crate::api::conditions::ENFORCED;
use crate::api::{SecurityGroup, SecurityGroupStatus};
use jiff::Timestamp;
use serde_json::json;

/// What to list.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Of every namespace.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    #[command(flatten)]
    source: Source,
}

/// Lists.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    // What a cluster's groups have for members is in their status.
    let wanted = Wanted { targets: args.source.offline.offline, ..Wanted::default() };
    let (inventory, namespace) = args.source.load(wanted).await?;
    let everywhere = args.all_namespaces || args.source.offline.offline && args.source.connection.namespace.is_none();
    let scope = Some(namespace).filter(|_| !everywhere);
    let mut outcome = render(&inventory, scope.as_deref(), args.source.offline.offline, args.output, paint)?;
    outcome.notes = inventory.notes;
    Ok(outcome)
}

/// The groups of a namespace, or of all.
fn render(
    inventory: &Inventory,
    scope: Option<&str>,
    offline: bool,
    format: Format,
    paint: Paint,
) -> anyhow::Result<Outcome> {
    let groups = inventory.groups.iter().filter(|(name, _)| scope.is_none_or(|scope| name.namespace == scope));
    let groups: Vec<&SecurityGroup> = groups.map(|(_, group)| group).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": groups });
    if let Some(text) = format.document(&list)? {
        return Ok(Outcome::yes(text));
    }
    if groups.is_empty() {
        let place = scope.map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
        return Ok(Outcome::yes(format!("there are no security groups{place}\n")));
    }
    let index = offline.then(|| inventory.index());
    let namespaces = scope.is_none();
    let columns = ["NAMESPACE", "NAME", "IN", "OUT", "MEMBERS", "NODES", "ENFORCED", "AGE", "REASON", "DESCRIPTION"];
    let last = if format.is_wide() { columns.len() } else { 8 };
    let first = usize::from(!namespaces);
    let mut table = Table::new(columns.into_iter().take(last).skip(first));
    for group in groups {
        let metadata = &group.metadata;
        let status = group.status.clone().unwrap_or_default();
        let name = crate::index::name_of(metadata);
        let members = match &index {
            Some(index) => index.members(&name).count().to_string(),
            None => status.members.map_or_else(|| "?".to_owned(), |members| members.to_string()),
        };
        let enforced = enforced(&status, metadata.generation);
        let cells: Vec<Cell> = vec![
            name.namespace.as_str().into(),
            name.name.as_str().into(),
            group.spec.ingress.len().to_string().into(),
            group.spec.egress.len().to_string().into(),
            members.into(),
            status.nodes.as_ref().map_or("-", |nodes| nodes.summary.as_str()).into(),
            enforced.0,
            age_of(metadata.creation_timestamp.as_ref().map(|time| time.0)).into(),
            enforced.1.into(),
            group.spec.description.clone().unwrap_or_default().into(),
        ];
        table.row(cells.into_iter().take(last).skip(first));
    }
    Ok(Outcome::yes(table.render(paint)))
}

/// Whether this generation is enforced, and why not.
pub fn enforced(status: &SecurityGroupStatus, generation: Option<i64>) -> (Cell, String) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == ENFORCED);
    match condition {
        None => (Cell::from("-"), String::new()),
        Some(condition) if condition.observed_generation < generation => {
            (Cell::toned("False", Tone::Doubtful), "Outdated".to_owned())
        }
        Some(condition) => {
            let tone = if condition.status == "True" { Tone::Good } else { Tone::Bad };
            (Cell::toned(condition.status.as_str(), tone), condition.reason.clone())
        }
    }
}

/// How old something is that was created then.
pub fn age_of(created: Option<Timestamp>) -> String {
    created.map_or_else(|| "-".to_owned(), |created| age(Timestamp::now().as_second() - created.as_second()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::{bring_to_life, read};

    #[test]
    fn of_one_namespace_and_of_all() {
        let mut inventory = Inventory::default();
        let group = |namespace: &str| {
            format!(
                "---\napiVersion: ringfence.io/v1alpha1\nkind: SecurityGroup\n\
                 metadata: {{name: g, namespace: {namespace}}}\n\
                 spec: {{description: \"a\\e[31m\"}}\n"
            )
        };
        read(&(group("a") + &group("b")), "default", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &[]).unwrap();
        let text = |scope, format| render(&inventory, scope, true, format, Paint(false)).unwrap().text;
        assert_eq!(
            text(Some("a"), Format::Table),
            "NAME   IN   OUT   MEMBERS   NODES   ENFORCED   AGE\ng      0    1     0         -       -          -\n"
        );
        assert_eq!(text(None, Format::Wide).lines().count(), 3);
        assert!(text(None, Format::Wide).contains("a [31m"), "a description is no command to the terminal");
        assert_eq!(text(Some("c"), Format::Table), "there are no security groups in namespace c\n");
        assert!(text(None, Format::Json).contains("\"kind\": \"List\""));
    }
}
