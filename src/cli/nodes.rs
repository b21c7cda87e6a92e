//! `kubectl sg nodes`: what each node has in its kernel, and whether it can be relied on.

use super::list::age_of;
use super::load::{Cluster, Connection};
use super::output::{Answer, Cell, Format, Outcome, Paint, Table, Tone};
use crate::api::NodeEnforcement;
use crate::api::conditions::{DATA_PATH_READY, GATE_READY, OWN_ADDRESSES_ONLY};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// How to list.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Lists.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let cluster = Cluster::connect(&args.connection).await?;
    let mut notes = Vec::new();
    let reports: Vec<NodeEnforcement> = cluster.list_cluster(&mut notes).await?;
    let nodes: Vec<Node> = cluster.list_cluster(&mut notes).await?;
    let mut outcome = render(&reports, &nodes, args.output, paint)?;
    outcome.notes = notes;
    Ok(outcome)
}

fn render(reports: &[NodeEnforcement], nodes: &[Node], format: Format, paint: Paint) -> anyhow::Result<Outcome> {
    let by_name: BTreeMap<String, &NodeEnforcement> =
        reports.iter().map(|report| (report.metadata.name.clone().unwrap_or_default(), report)).collect();
    let names: BTreeSet<String> = nodes.iter().filter_map(|node| node.metadata.name.clone()).collect();
    let mut table = Table::new(["NODE", "GROUPS", "INTERFACES", "DATAPATH", "GATE", "OWNADDRESSES", "AGE", "PROBLEM"]);
    let mut answer = Answer::Yes;
    for name in names.iter().chain(by_name.keys()).collect::<BTreeSet<_>>() {
        let Some(report) = by_name.get(name) else {
            let dashes = ["-"; 6].map(Cell::from);
            let problem = Cell::toned("it does not report: no agent runs there, or it cannot write", Tone::Doubtful);
            table.row([Cell::from(name.as_str())].into_iter().chain(dashes).chain([problem]));
            continue;
        };
        let status = report.status.clone().unwrap_or_default();
        let condition = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_);
        let cell = |type_: &str| match condition(type_) {
            Some(condition) if condition.status == "True" => Cell::toned("True", Tone::Good),
            Some(condition) => Cell::toned(condition.status.as_str(), Tone::Bad),
            None => "-".into(),
        };
        let mut problems: Vec<String> = [DATA_PATH_READY, GATE_READY, OWN_ADDRESSES_ONLY]
            .into_iter()
            .filter_map(condition)
            .filter(|condition| condition.status != "True")
            .map(|condition| format!("{}: {}", condition.reason, condition.message))
            .collect();
        problems.extend(status.failures.iter().map(|f| format!("{}/{}: {}", f.namespace, f.name, f.message)));
        if !names.is_empty() && !names.contains(name) {
            problems.push("there is no such node any more".to_owned());
        }
        // The gate and anti-spoofing can be off on purpose; without a data path nothing is enforced.
        if condition(DATA_PATH_READY).is_none_or(|c| c.status != "True") || !status.failures.is_empty() {
            answer = Answer::No;
        }
        table.row([
            name.as_str().into(),
            status.group_count.to_string().into(),
            status.interfaces.to_string().into(),
            cell(DATA_PATH_READY),
            cell(GATE_READY),
            cell(OWN_ADDRESSES_ONLY),
            age_of(report.metadata.creation_timestamp.as_ref().map(|time| time.0)).into(),
            problems.join("; ").into(),
        ]);
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": reports });
    let text = match format.document(&list)? {
        Some(text) => text,
        None if table.is_empty() => "no node reports: is Ringfence installed?\n".to_owned(),
        None => table.render(paint),
    };
    Ok(Outcome { text, answer, notes: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, data_path: &str) -> NodeEnforcement {
        serde_json::from_value(json!({
            "apiVersion": "ringfence.io/v1alpha1", "kind": "NodeEnforcement", "metadata": { "name": name }, "spec": {},
            "status": { "groupCount": 2, "interfaces": 3, "conditions": [{
                "type": "DataPathReady", "status": data_path, "reason": "Bypassed", "message": "a bridge",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }] },
        }))
        .unwrap()
    }

    #[test]
    fn a_node_that_is_bypassed_or_silent_is_seen() {
        let node = |name: &str| serde_json::from_value::<Node>(json!({ "metadata": { "name": name } })).unwrap();
        let render =
            |reports: &[NodeEnforcement], nodes: &[Node]| render(reports, nodes, Format::Table, Paint(false)).unwrap();
        let well = render(&[report("n1", "True")], &[node("n1")]);
        assert_eq!(well.answer, Answer::Yes);
        let ill = render(&[report("n1", "True"), report("n2", "False")], &[node("n1"), node("n2"), node("n3")]);
        assert_eq!(ill.answer, Answer::No);
        assert!(ill.text.contains("Bypassed: a bridge") && ill.text.contains("n3     -"), "{}", ill.text);
        assert!(render(&[], &[]).text.contains("is Ringfence installed?"));
    }
}
