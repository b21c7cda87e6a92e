//! What nodes' kernels do with connections that were explained, beside what the API says.
//!
//! Owns the questions to agents and the comparison. The API's verdicts are [`verdicts`](super::model::verdicts)'.

use super::agents::Agents;
use super::model::inventory::Inventory;
use super::model::verdicts::EndVerdict;
use crate::observe::{Judged, MAX_JUDGED, NodeVerdict, Request, Said, Table};
use crate::policy::{Connection, Direction};
use anyhow::{Context, bail};
use futures::future::join_all;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a node says of one end of connections that fare alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Live {
    /// The node.
    pub node: String,
    /// `egress` of the source, `ingress` of the destination.
    pub direction: Direction,
    /// Whether its kernel does what the API says; absent: it could not be asked, or its kernel not be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agrees: Option<bool>,
    /// What it says of it, and what else there is to know of the node.
    pub says: Vec<String>,
}

/// One connection, and the nodes of its ends.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The connection.
    pub connection: Connection,
    /// Of source and destination; `None`: no node of the cluster is known to guard that end.
    pub nodes: [Option<String>; 2],
}

/// What is to be compared: connections that fare alike, and what the API says of their ends, egress first.
pub struct Question<'a> {
    /// The connections.
    pub tried: &'a [Tried],
    /// What the API says.
    pub ends: [&'a EndVerdict; 2],
}

/// Asks the nodes of all ends, each once.
pub async fn ask(agents: &Agents, inventory: &Inventory, questions: &[Question<'_>]) -> Vec<Vec<Live>> {
    let mut asked: BTreeMap<&str, Vec<Connection>> = BTreeMap::new();
    for tried in questions.iter().flat_map(|question| question.tried) {
        let nodes: BTreeSet<&str> = tried.nodes.iter().flatten().map(String::as_str).collect();
        nodes.into_iter().for_each(|node| asked.entry(node).or_default().push(tried.connection));
    }
    let answers = asked.into_iter().map(|(node, connections)| async move {
        let answer = judge(agents, node, &connections).await;
        (node, answer.map_err(|error| crate::runtime::chain(&*error)))
    });
    let answers: Answers<'_> = join_all(answers).await.into_iter().collect();
    questions.iter().map(|question| compare(inventory, question, &answers)).collect()
}

type Answers<'a> = BTreeMap<&'a str, Result<(Judged, Verdicts), String>>;

type Verdicts = BTreeMap<Connection, [NodeVerdict; 2]>;

async fn judge(agents: &Agents, node: &str, connections: &[Connection]) -> anyhow::Result<(Judged, Verdicts)> {
    let (mut last, mut verdicts) = (None, BTreeMap::new());
    for connections in connections.chunks(MAX_JUDGED) {
        let mut answer = agents.ask(node, &Request::Judge { connections: connections.to_vec() }).await?;
        match answer.next().await? {
            Some(Said::Judged(judged)) if judged.verdicts.len() == connections.len() => {
                verdicts.extend(connections.iter().copied().zip(judged.verdicts.clone()));
                last = Some(judged);
            }
            _ => bail!("its agent's answer was cut off"),
        }
    }
    Ok((last.context("it was asked nothing")?, verdicts))
}

fn compare(inventory: &Inventory, question: &Question<'_>, answers: &Answers<'_>) -> Vec<Live> {
    let mut all = BTreeSet::new();
    for tried in question.tried {
        for (i, direction) in [Direction::Egress, Direction::Ingress].into_iter().enumerate() {
            let Some(node) = &tried.nodes[i] else { continue };
            let (agrees, says) = match answers.get(node.as_str()) {
                Some(Ok((judged, verdicts))) => match verdicts.get(&tried.connection) {
                    Some(verdict) => compare_end(inventory, question.ends[i], judged, &verdict[i]),
                    None => (None, vec!["it was not asked".to_owned()]),
                },
                Some(Err(error)) => (None, vec![error.clone()]),
                None => (None, vec!["it was not asked".to_owned()]),
            };
            all.insert(Live { node: node.clone(), direction, agrees, says });
        }
    }
    all.into_iter().collect()
}

fn compare_end(
    inventory: &Inventory,
    api: &EndVerdict,
    judged: &Judged,
    verdict: &NodeVerdict,
) -> (Option<bool>, Vec<String>) {
    let mut says = Vec::new();
    let agrees = verdict.allowed() == api.allowed;
    if !agrees {
        let word = if verdict.allowed() { "allowed" } else { "denied" };
        let rule = verdict.rule.as_ref().map(|(group, id)| format!(" by rule {id} of {group}")).unwrap_or_default();
        let unguarded = if verdict.reason == "Unguarded" { ", nothing guards it there" } else { "" };
        says.push(format!("there it is {word}{rule}{unguarded}"));
    }
    if verdict.groups != api.groups && verdict.reason != "OwnNode" {
        let groups = if verdict.groups.is_empty() { "none".to_owned() } else { verdict.groups.join(", ") };
        says.push(format!("groups there: {groups}"));
    }
    for group in &verdict.groups {
        let Some(has) = judged.generations.get(group) else { continue };
        let wanted = group.parse().ok().and_then(|name| inventory.groups.get(&name)?.metadata.generation);
        if let Some(wanted) = wanted.filter(|wanted| wanted != has) {
            says.push(format!("it has generation {has} of {group}, the API has {wanted}"));
        }
    }
    match &judged.table {
        Table::Same => {}
        Table::Repaired(what) => says.push(format!("until just now it was otherwise: {what}; that was put right")),
        Table::Unknown(why) => says.push(format!("whether its kernel still holds that is not known: {why}")),
    }
    if let (Some(change), Table::Same) = (&judged.last_change, &judged.table) {
        let at = change.repaired.strftime("%Y-%m-%dT%H:%M:%SZ");
        says.push(format!("somebody else changed its rules, which was put right at {at}: {}", change.what));
    }
    let looked_at = !matches!(judged.table, Table::Unknown(_));
    // That it disagrees is worth more than that its table could not be looked at.
    ((looked_at || !agrees).then_some(agrees), says)
}
