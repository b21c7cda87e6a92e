//! `kubectl sg explain`: whether one may connect to another, and which rule says so.

use super::agents::{Agents, System};
use super::explain_many;
use super::live::{Live, Question, Tried, ask};
use super::load::{Cluster, Source, Wanted};
use super::model::ends::{Asked, Place, masquerading, places, split};
use super::model::snapshot::Snapshot;
use super::model::verdicts::{EndVerdict, RuleAt, Scene};
use super::output::{Answer, Format, Outcome, Paint, Tone, clean};
use crate::policy::describe::l4_text;
use crate::policy::{Connection, Direction, L4};
use anyhow::ensure;
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;

/// What to explain.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Who connects: pod/NAME, vm/NAME, nic/NAME, svc/NAME (the pods behind it) or an address. A name may be
    /// NAMESPACE/NAME.
    #[arg(required_unless_present = "connections")]
    from: Option<String>,
    /// To whom: the same, with a port and a protocol if it is not TCP: pod/db-0:3306, svc/dns:53/udp, [fd00::1]:443,
    /// pod/db-0:icmp for a ping, 10.0.0.1:13.0/icmp for a type and code.
    #[arg(required_unless_present = "connections")]
    to: Option<String>,
    /// Many at once: a file with FROM and TO:PORT on a line each, what is behind a # apart; - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to", "live"])]
    connections: Option<PathBuf>,
    /// Also ask the nodes of both ends what their kernels do, and whether somebody else changed what they hold.
    #[arg(long, conflicts_with = "offline")]
    live: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    system: System,
}

/// Connections that fare alike, for the same reasons.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Explanation {
    from: Vec<String>,
    to: Vec<String>,
    traffic: String,
    pub(super) allowed: bool,
    /// The addresses, pair by pair.
    tried: Vec<(IpAddr, IpAddr)>,
    pub(super) egress: EndVerdict,
    pub(super) ingress: EndVerdict,
    /// What may hide on the way who connects, from the rules of TO.
    #[serde(skip_serializing_if = "Option::is_none")]
    masquerading: Option<&'static str>,
    /// The same connections, for their nodes.
    #[serde(skip)]
    for_nodes: Vec<Tried>,
    /// What nodes say, if they were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Vec<Live>>,
}

/// Explains.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let (inventory, namespace) =
        args.source.load(Wanted { targets: true, neighbours: true, ..Wanted::default() }).await?;
    let index = inventory.index();
    let snapshot = Snapshot::new(&index);
    let scene = Scene { inventory: &inventory, index: &index, snapshot: &snapshot };
    if let Some(file) = &args.connections {
        let outcome = explain_many::run(&scene, &namespace, &explain_many::read(file)?, args.output, paint)?;
        return Ok(Outcome { notes: inventory.notes, ..outcome });
    }
    let (from, to) = (args.from.unwrap_or_default(), args.to.unwrap_or_default());
    let mut explanations = explain(&scene, &namespace, &from, &to)?;
    if args.live {
        let cluster = Cluster::connect(&args.source.connection).await?;
        let agents = Agents::find(cluster.client, &args.system).await?;
        let questions = explanations.iter().map(|e| Question { tried: &e.for_nodes, ends: [&e.egress, &e.ingress] });
        let answers = ask(&agents, &inventory, &questions.collect::<Vec<_>>()).await;
        explanations.iter_mut().zip(answers).for_each(|(explanation, live)| explanation.live = Some(live));
    }
    let text = match args.output.document(&explanations)? {
        Some(text) => text,
        None => explanations.iter().map(|explanation| explanation.render(paint)).collect::<Vec<_>>().join("\n"),
    };
    let is_so = |live: &Live| live.agrees == Some(true);
    let yes = explanations.iter().all(|e| e.allowed && e.live.iter().flatten().all(is_so));
    Ok(Outcome { text, notes: inventory.notes, answer: if yes { Answer::Yes } else { Answer::No } })
}

/// Explains all connections that two ends may mean.
pub(super) fn explain(scene: &Scene<'_>, namespace: &str, from: &str, to: &str) -> anyhow::Result<Vec<Explanation>> {
    let Scene { inventory, index, .. } = scene;
    let (end, asked) = split(to)?;
    let sources = places(inventory, index, namespace, from, None)?;
    let destinations = places(inventory, index, namespace, end, Some(asked))?;
    let mut explanations: Vec<Explanation> = Vec::new();
    for source in &sources {
        for destination in &destinations {
            for connection in connections(source, destination, asked) {
                let egress = scene.end(Direction::Egress, &connection, source, destination);
                let ingress = scene.end(Direction::Ingress, &connection, destination, source);
                let tried = (connection.source, connection.destination);
                let node = |place: &Place| index.target(place.target.as_ref()?)?.node.clone();
                let for_nodes = Tried { connection, nodes: [node(source), node(destination)] };
                let traffic = l4_text(connection.l4);
                let masquerading = masquerading(source, destination).filter(|_| ingress.reason != "Unguarded");
                let alike = |known: &&mut Explanation| {
                    (&known.egress, &known.ingress, &known.traffic, &known.masquerading)
                        == (&egress, &ingress, &traffic, &masquerading)
                };
                match explanations.iter_mut().find(alike) {
                    Some(known) => {
                        known.tried.push(tried);
                        known.for_nodes.push(for_nodes);
                        add(&mut known.from, &source.name);
                        add(&mut known.to, &destination.name);
                    }
                    None => explanations.push(Explanation {
                        from: vec![source.name.clone()],
                        to: vec![destination.name.clone()],
                        traffic,
                        allowed: egress.allowed && ingress.allowed,
                        tried: vec![tried],
                        egress,
                        ingress,
                        masquerading,
                        for_nodes: vec![for_nodes],
                        live: None,
                    }),
                }
            }
        }
    }
    ensure!(!explanations.is_empty(), "{from} and {end} have no addresses of the same family");
    Ok(explanations)
}

fn connections<'a>(source: &'a Place, destination: &'a Place, asked: Asked) -> impl Iterator<Item = Connection> + 'a {
    source.addresses.iter().flat_map(move |from| {
        let same = destination.addresses.iter().filter(|to| to.is_ipv4() == from.is_ipv4());
        same.map(move |to| {
            let l4: L4 = asked.l4(*to, destination.port);
            Connection { source: *from, destination: *to, l4 }
        })
    })
}

fn add(names: &mut Vec<String>, name: &str) {
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

impl Explanation {
    fn render(&self, paint: Paint) -> String {
        let (from, to) = (shortened(&self.from), shortened(&self.to));
        let answer = if self.allowed { paint.tone(Tone::Good, "ALLOWED") } else { paint.tone(Tone::Bad, "DENIED") };
        let mut text = format!("{answer}  {from} -> {to}  {}\n", self.traffic);
        let addresses: Vec<String> = self.tried.iter().take(3).map(|(from, to)| format!("{from} -> {to}")).collect();
        let more = self.tried.len() - addresses.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text += &format!("  {}{more}\n", addresses.join(", "));
        text += &render_end(&self.egress, &format!("out of {from}"), paint);
        text += &render_end(&self.ingress, &format!("into {to}"), paint);
        if let Some(hidden) = self.masquerading {
            text += &format!("  on the way: {}\n", paint.tone(Tone::Doubtful, hidden));
        }
        if let Some(live) = &self.live {
            text += &render_live(live, paint);
        }
        text
    }
}

fn render_live(live: &[Live], paint: Paint) -> String {
    if live.is_empty() {
        return "  no node of the cluster guards either end\n".to_owned();
    }
    let mut text = String::new();
    for Live { node, direction, agrees, says } in live {
        let side = if *direction == Direction::Egress { "out" } else { "in" };
        let (word, tone) = match agrees {
            Some(true) => ("agrees", Tone::Good),
            Some(false) => ("does NOT agree", Tone::Bad),
            None => ("cannot say", Tone::Doubtful),
        };
        text += &format!("  kernel of {node}, {side}: {}\n", paint.tone(tone, word));
        for line in says {
            text += &format!("    {}\n", clean(line));
        }
    }
    text
}

fn shortened(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

fn render_end(end: &EndVerdict, title: &str, paint: Paint) -> String {
    let (word, tone) = if end.allowed { ("allowed", Tone::Good) } else { ("denied", Tone::Bad) };
    let mut text = format!("  {title}: {}", paint.tone(tone, word));
    text += match end.reason {
        "Unguarded" => ", nothing guards it",
        "Itself" => ", it is the same interface",
        "OwnNode" => ", a node always reaches its own pods",
        _ => "",
    };
    text.push('\n');
    if !end.groups.is_empty() {
        text += &format!("    groups: {}\n", end.groups.join(", "));
    }
    if let Some(RuleAt { group, id, text: rule, description }) = &end.rule {
        let description = if description.is_empty() { String::new() } else { format!("  \"{}\"", clean(description)) };
        let title = if end.allowed { "by rule" } else { "nearest rule" };
        text += &format!("    {title} {id} of {group}: {rule}{description}\n");
    } else if !end.allowed {
        let has = if end.groups.is_empty() { "its address is claimed by several" } else { "no rule comes near" };
        text += &format!("    {has}\n");
    }
    if let Some(why) = &end.why_not {
        text += &format!("      {why}\n");
    }
    for unresolved in &end.unresolved {
        text += &format!("    {}\n", paint.tone(Tone::Doubtful, unresolved));
    }
    if !end.network_policies.is_empty() {
        let names = end.network_policies.join(", ");
        text += &format!("    network policies select it too, and must allow it as well: {names}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::inventory::Inventory;
    use crate::cli::model::manifests::{bring_to_life, read};

    fn inventory() -> Inventory {
        let mut inventory = Inventory::default();
        for text in [
            include_str!("../../deploy/examples/internal-database.yaml"),
            include_str!("../../deploy/examples/bastion.yaml"),
            "
kind: Pod
metadata: {name: app, labels: {tier: app}}
---
kind: Pod
metadata: {name: db, labels: {tier: db}}
---
kind: Pod
metadata: {name: stranger}
---
kind: NetworkPolicy
metadata: {name: lockdown}
spec: {podSelector: {matchLabels: {tier: db}}}
",
        ] {
            read(text, "shop", &mut inventory).unwrap();
        }
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()]).unwrap();
        inventory
    }

    fn explained(inventory: &Inventory, from: &str, to: &str) -> Vec<Explanation> {
        let index = inventory.index();
        let snapshot = Snapshot::new(&index);
        explain(&Scene { inventory, index: &index, snapshot: &snapshot }, "shop", from, to).unwrap()
    }

    fn text(from: &str, to: &str) -> String {
        let explanations = explained(&inventory(), from, to);
        explanations.iter().map(|explanation| explanation.render(Paint(false))).collect()
    }

    #[test]
    fn who_is_allowed_hears_the_rule() {
        let text = text("pod/app", "pod/db:3306");
        assert!(text.starts_with("ALLOWED  pod/shop/app -> pod/shop/db  TCP 3306\n"), "{text}");
        for line in [
            "10.0.0.1 -> 10.0.0.2, fd00::1 -> fd00::2",
            "by rule e24c574444 of shop/app-tier: Any to anywhere  \"default, allow everything outbound\"",
            "by rule 23055aa948 of shop/db-private: TCP 3306 from sg/app-tier  \"MySQL only from app servers\"",
            "network policies select it too, and must allow it as well: lockdown",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn who_is_denied_hears_what_comes_nearest() {
        let stranger = text("pod/stranger", "pod/db:3306");
        assert!(stranger.starts_with("DENIED"), "{stranger}");
        for line in [
            "out of pod/shop/stranger: allowed, nothing guards it",
            "nearest rule 23055aa948",
            "same port, other remote: pod/shop/stranger is no member of shop/app-tier",
        ] {
            assert!(stranger.contains(line), "{line} is not in:\n{stranger}");
        }
        assert!(text("pod/app", "pod/db:3307").contains("same remote, other port"));
        assert!(text("pod/app", "pod/db:3306/udp").contains("same remote, other protocol"));
        assert!(text("192.0.2.1", "pod/db:9").contains("no rule comes near"));
    }

    #[test]
    fn a_group_that_is_missing_is_named() {
        let mut inventory = inventory();
        inventory.groups.retain(|name, _| name.name != "app-tier");
        let explanations = explained(&inventory, "pod/app", "pod/db:3306");
        let text = explanations[0].render(Paint(false));
        assert!(text.contains("of shop/db-private names app-tier, which does not exist"), "{text}");
    }

    #[test]
    fn a_node_reaches_its_own_pods() {
        let mut inventory = inventory();
        let node = serde_json::json!({ "metadata": { "name": "n1" }, "status": { "addresses": [
            { "type": "InternalIP", "address": "172.30.0.1" } ] } });
        inventory.nodes = vec![serde_json::from_value(node).unwrap()];
        for pod in inventory.pods.values_mut() {
            pod.spec.get_or_insert_default().node_name = Some("n1".into());
        }
        let answer = |from| explained(&inventory, from, "pod/db:9")[0].allowed;
        assert!(answer("172.30.0.1") && !answer("172.30.0.2"));
    }
}
