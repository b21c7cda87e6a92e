//! What nodes' kernels do with connections that were explained, beside what the API says.
//!
//! Owns the questions to agents and the comparison. The API's verdicts are [`verdicts`](super::model::verdicts)'.

use super::agents::{Agents, SOON};
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
        let first = tokio::time::timeout(SOON, answer.next()).await.context("its agent does not answer")?;
        match first? {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::read;
    use crate::observe::Change;
    use crate::policy::{L4, Transport};

    fn compared(edit: impl FnOnce(&mut Judged)) -> Live {
        let mut inventory = Inventory::default();
        let group =
            "kind: SecurityGroup\napiVersion: ringfence.io/v1alpha1\nmetadata: {name: db, generation: 2}\nspec: {}";
        read(group, "shop", &mut inventory).unwrap();
        let end = |direction, allowed| EndVerdict {
            direction,
            allowed,
            reason: if allowed { "Rule" } else { "NoRule" },
            groups: vec!["shop/db".to_owned()],
            rule: None,
            why_not: None,
            unresolved: Vec::new(),
            network_policies: Vec::new(),
        };
        let node =
            |reason: &str| NodeVerdict { reason: reason.to_owned(), rule: None, groups: vec!["shop/db".to_owned()] };
        let mut judged = Judged {
            table: Table::Same,
            last_change: None,
            generations: [("shop/db".to_owned(), 2)].into(),
            verdicts: vec![[node("Unguarded"), node("Rule")]],
        };
        edit(&mut judged);
        let connection = Connection {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            l4: L4::Ports(Transport::Tcp, 80),
        };
        let tried = [Tried { connection, nodes: [None, Some("n1".to_owned())] }];
        let (egress, ingress) = (end("egress", true), end("ingress", true));
        let question = Question { tried: &tried, ends: [&egress, &ingress] };
        let verdicts = [(connection, judged.verdicts[0].clone())].into();
        let [live] = &compare(&inventory, &question, &[("n1", Ok((judged, verdicts)))].into())[..] else {
            panic!("only the destination is on a node")
        };
        live.clone()
    }

    #[test]
    fn a_node_agrees_or_says_why_not() {
        let live = compared(|_| {});
        assert_eq!((live.agrees, live.direction, live.says), (Some(true), Direction::Ingress, vec![]));
        let live = compared(|judged| {
            judged.verdicts[0][1].reason = "NoRule".to_owned();
            judged.generations.insert("shop/db".to_owned(), 1);
        });
        assert_eq!(live.agrees, Some(false));
        assert_eq!(live.says, ["there it is denied", "it has generation 1 of shop/db, the API has 2"]);
        let live = compared(|judged| judged.verdicts[0][1].groups.clear());
        assert_eq!((live.agrees, live.says), (Some(true), vec!["groups there: none".to_owned()]));
    }

    #[test]
    fn what_is_not_known_is_not_agreement() {
        let live = compared(|judged| judged.table = Table::Unknown("nft hangs".to_owned()));
        assert_eq!(live.agrees, None);
        assert!(live.says[0].contains("nft hangs"));
        let live = compared(|judged| judged.table = Table::Repaired("a chain".to_owned()));
        assert!(live.agrees == Some(true) && live.says[0].contains("a chain"));
        let change = Change { what: "nft changed it".to_owned(), repaired: jiff::Timestamp::UNIX_EPOCH };
        let live = compared(|judged| judged.last_change = Some(change));
        assert!(live.says[0].ends_with("at 1970-01-01T00:00:00Z: nft changed it"), "{live:?}");
    }
}
