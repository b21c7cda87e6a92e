//! `kubectl sg drops`: connections that nodes denied, what the ends are, and the rule that comes nearest.

use super::agents::{Agents, SOON, System};
use super::load::{Cluster, Connection, Wanted};
use super::model::ends::places;
use super::model::inventory::Inventory;
use super::output::{Cell, Format, Outcome, Paint, Table, Tone, clean};
use crate::index::Index;
use crate::kubevirt::machine_of;
use crate::observe::{Denied, NearestRule, Peer, Request, Said};
use crate::policy::describe::{direction_name, l4_text};
use crate::policy::{Direction, Miss};
use anyhow::bail;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};

/// Who has an address is looked up again when there is one that nobody is known to have, but no more often than this, …
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// … not so that looking takes more than one part in so many of the time, …
const RARELY: u32 = 20;
/// … and for so long not for addresses that nobody had, twice, as who is new may not be shown yet: most are not of the cluster.
const STRANGE_FOR: Duration = Duration::from_mins(5);
/// So many nodes are asked at the same time.
const AT_ONCE: usize = 64;

/// Which connections to show.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Only those of this one, at either end: pod/NAME, vm/NAME, nic/NAME or an address.
    target: Option<String>,
    /// Go on with what is denied from now on, until you end it.
    #[arg(short, long)]
    follow: bool,
    /// Of every namespace. Otherwise one end has to be of the namespace, or its groups.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    system: System,
}

/// Shows.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let Args { target, follow, all_namespaces, output, connection, system } = args;
    let cluster = Cluster::connect(&connection).await?;
    let agents = Agents::find(cluster.client.clone(), &system).await?;
    let mut names = Names::load(&cluster).await?;
    let mut notes = std::mem::take(&mut names.inventory.notes);
    let scope = Scope {
        addresses: target.map(|target| names.addresses(&cluster.namespace, &target)).transpose()?,
        namespace: Some(cluster.namespace.clone()).filter(|_| !all_namespaces),
    };
    if follow {
        return follow_all(&cluster, agents, names, &scope, (output, paint)).await;
    }
    let asked = agents.nodes().map(|node| {
        let (agents, node) = (&agents, node.clone());
        async move { (tokio::time::timeout(SOON, remembered(agents, &node)).await, node) }
    });
    let (mut all, mut answered) = (Vec::new(), false);
    let mut asked = stream::iter(asked).buffered(AT_ONCE);
    while let Some((remembered, node)) = asked.next().await {
        match remembered {
            Ok(Ok(denied)) => {
                answered = true;
                all.extend(denied.into_iter().filter(|denied| scope.holds(&names, denied)));
            }
            Ok(Err(error)) => notes.push(format!("node {node}: {}", crate::runtime::chain(&*error))),
            Err(_) => notes.push(format!("node {node}: its agent does not answer")),
        }
    }
    if !answered {
        bail!("no node could be asked: {}", notes.join("; "));
    }
    all.sort_by_key(|denied| denied.last);
    all.iter_mut().for_each(|denied| names.put(denied));
    let text = match output.document(&all)? {
        Some(text) => text,
        None if all.is_empty() => "nothing was denied lately\n".to_owned(),
        None => table(&all, output, paint),
    };
    Ok(Outcome { text, notes, ..Outcome::default() })
}

async fn remembered(agents: &Agents, node: &str) -> anyhow::Result<Vec<Denied>> {
    let mut answer = agents.ask(node, &Request::Drops { follow: false }).await?;
    let mut all = Vec::new();
    loop {
        match answer.next().await? {
            Some(Said::Denied(denied)) => all.push(*denied),
            Some(Said::Remembered) => return Ok(all),
            Some(_) => {}
            None => bail!("its agent's answer was cut off"),
        }
    }
}

/// Prints as it comes. Ends when no node can be asked any more.
async fn follow_all(
    cluster: &Cluster,
    agents: Agents,
    mut names: Names,
    scope: &Scope,
    (format, paint): (Format, Paint),
) -> anyhow::Result<Outcome> {
    let (sender, mut heard) = mpsc::channel(64);
    let (agents, places) = (Arc::new(agents), Arc::new(Semaphore::new(AT_ONCE)));
    for node in agents.nodes().cloned().collect::<Vec<_>>() {
        let (agents, places, sender) = (agents.clone(), places.clone(), sender.clone());
        tokio::spawn(async move {
            let end = listen(&agents, &places, &node, &sender).await;
            let why = end.map_or_else(|error| crate::runtime::chain(&*error), |()| "its agent ended".to_owned());
            let _ = sender.send((node, Err(why))).await;
        });
    }
    drop(sender);
    while let Some((node, said)) = heard.recv().await {
        match said {
            Ok(Said::Denied(mut denied)) => {
                names.refresh(cluster, &denied).await;
                if !scope.holds(&names, &denied) {
                    continue;
                }
                names.put(&mut denied);
                let text = match format {
                    Format::Json => serde_json::to_string(&denied)? + "\n",
                    Format::Yaml => format!("---\n{}", format.document(&denied)?.unwrap_or_default()),
                    Format::Table | Format::Wide => line(&denied, paint),
                };
                let mut stdout = std::io::stdout();
                if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
                    // A reader that has seen enough, like head, is no failure.
                    return Ok(Outcome::default());
                }
            }
            Ok(Said::Lost(packets)) => {
                eprintln!("note: node {node}: {packets} more packets, of which nothing is known")
            }
            Ok(_) => {}
            Err(why) => eprintln!("note: node {node}: {}", clean(&why)),
        }
    }
    bail!("no node can be asked any more")
}

type Heard = (String, Result<Said, String>);

async fn listen(agents: &Agents, places: &Semaphore, node: &str, sender: &mpsc::Sender<Heard>) -> anyhow::Result<()> {
    let mut answer = {
        let _place = places.acquire().await?;
        agents.ask(node, &Request::Drops { follow: true }).await?
    };
    while let Some(said) = answer.next().await? {
        sender.send((node.to_owned(), Ok(said))).await?;
    }
    Ok(())
}

/// Which are to be shown.
struct Scope {
    addresses: Option<BTreeSet<IpAddr>>,
    namespace: Option<String>,
}

impl Scope {
    fn holds(&self, names: &Names, denied: &Denied) -> bool {
        let ends = [&denied.source, &denied.destination];
        if let Some(addresses) = &self.addresses {
            return ends.iter().any(|end| addresses.contains(&end.address));
        }
        let Some(namespace) = &self.namespace else { return true };
        let is_of = |name: &str| name.split('/').rev().nth(1) == Some(namespace);
        let named = ends.iter().any(|end| names.name(end).is_some_and(|name| is_of(&name)));
        named || denied.groups.iter().any(|group| is_of(group))
    }
}

/// Who has which address, as the API server has it.
struct Names {
    inventory: Inventory,
    index: Index,
    looked: Instant,
    /// How long that took.
    took: Duration,
    /// How often somebody was looked up who is nobody's, and since when such are remembered.
    strangers: (Instant, BTreeMap<IpAddr, u32>),
}

impl Names {
    async fn load(cluster: &Cluster) -> anyhow::Result<Self> {
        let start = Instant::now();
        let inventory = cluster.inventory(Wanted { targets: true, ..Wanted::default() }).await?;
        Ok(Self::new(inventory, start.elapsed()))
    }

    fn new(inventory: Inventory, took: Duration) -> Self {
        let (index, now) = (inventory.index(), Instant::now());
        Self { index, inventory, looked: now, took, strangers: (now, BTreeMap::new()) }
    }

    /// Looks again, if there is somebody new.
    async fn refresh(&mut self, cluster: &Cluster, denied: &Denied) {
        let news = self.news(denied, Instant::now());
        if news.is_empty() {
            return;
        }
        match Self::load(cluster).await {
            Ok(names) => {
                let mut strangers = std::mem::take(&mut self.strangers.1);
                news.into_iter().for_each(|address| *strangers.entry(address).or_default() += 1);
                *self = Self { strangers: (self.strangers.0, strangers), ..names };
            }
            // What was known is better than nothing.
            Err(_) => self.looked = Instant::now(),
        }
    }

    /// The addresses for which it is worth a look who has them.
    fn news(&mut self, denied: &Denied, now: Instant) -> Vec<IpAddr> {
        if now - self.looked <= LOOK_AGAIN.max(self.took * RARELY) {
            return Vec::new();
        }
        if now - self.strangers.0 > STRANGE_FOR {
            self.strangers = (now, BTreeMap::new());
        }
        let ends = [&denied.source, &denied.destination].into_iter();
        let unknown = ends.filter(|end| self.name(end).is_none()).map(|end| end.address);
        unknown.filter(|address| self.strangers.1.get(address).is_none_or(|looks| *looks < 2)).collect()
    }

    fn addresses(&self, namespace: &str, target: &str) -> anyhow::Result<BTreeSet<IpAddr>> {
        let found = places(&self.inventory, &self.index, namespace, target, None)?;
        Ok(found.into_iter().flat_map(|place| place.addresses).collect())
    }

    /// What the node did not know is put in.
    fn put(&self, denied: &mut Denied) {
        for end in [&mut denied.source, &mut denied.destination] {
            end.name = self.name(end);
        }
    }

    fn name(&self, end: &Peer) -> Option<String> {
        let mut claimants = self.index.claimants(end.address);
        let Some(target) = claimants.next().filter(|_| claimants.next().is_none()) else { return end.name.clone() };
        let pod = self.inventory.pods.get(&target.name);
        let machine = pod.filter(|pod| machine_of(&pod.metadata).is_some()).and_then(|pod| {
            let owners = pod.metadata.owner_references.iter().flatten();
            owners.clone().find(|owner| owner.controller == Some(true)).map(|owner| owner.name.clone())
        });
        Some(match machine {
            Some(machine) => format!("vm/{}/{machine}", target.name.namespace),
            None => format!("{}/{}", target.kind.short_name(), target.name),
        })
    }
}

fn called(end: &Peer) -> String {
    end.name.clone().unwrap_or_else(|| end.address.to_string())
}

fn nearest(rule: &NearestRule) -> String {
    let why = match rule.miss {
        Miss::Port => "same remote, other port",
        Miss::Remote => "same port, other remote",
        Miss::Protocol => "same remote, other protocol",
    };
    format!("{} of {}: {} ({why})", rule.id, rule.group, rule.text)
}

/// Which end denied it.
fn denied_at(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "into TO",
        Direction::Egress => "out of FROM",
    }
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn table(all: &[Denied], format: Format, paint: Paint) -> String {
    let columns = ["LAST SEEN", "PACKETS", "FROM", "TO", "TRAFFIC", "DENIED", "GROUPS", "NEAREST RULE"];
    let wide = ["NODE", "FROM ADDRESS", "TO ADDRESS", "FIRST SEEN", "WAS OPEN"];
    let mut table = Table::new(columns.into_iter().chain(wide.into_iter().filter(|_| format.is_wide())));
    for denied in all {
        let mut cells: Vec<Cell> = vec![
            time(denied.last).into(),
            denied.packets.to_string().into(),
            called(&denied.source).into(),
            called(&denied.destination).into(),
            l4_text(denied.l4).into(),
            Cell::toned(denied_at(denied.direction), Tone::Bad),
            denied.groups.join(", ").into(),
            denied.nearest.as_ref().map_or_else(|| "none comes near".to_owned(), nearest).into(),
        ];
        if format.is_wide() {
            cells.extend([
                denied.node.as_str().into(),
                denied.source.address.to_string().into(),
                denied.destination.address.to_string().into(),
                time(denied.first).into(),
                if denied.established { "yes" } else { "no" }.into(),
            ]);
        }
        table.row(cells);
    }
    table.render(paint)
}

/// One line, as columns of what is to come cannot be known.
fn line(denied: &Denied, paint: Paint) -> String {
    let side = match denied.direction {
        Direction::Ingress => "into",
        Direction::Egress => "out of",
    };
    let own = match denied.direction {
        Direction::Ingress => &denied.destination,
        Direction::Egress => &denied.source,
    };
    let mut text = format!(
        "{}  {}  {} -> {}  {}",
        time(denied.last),
        paint.tone(Tone::Bad, &format!("{} denied", direction_name(denied.direction))),
        clean(&called(&denied.source)),
        clean(&called(&denied.destination)),
        l4_text(denied.l4),
    );
    if denied.packets > 1 {
        text += &format!("  {} packets", denied.packets);
    }
    let groups = if denied.groups.is_empty() { "none".to_owned() } else { denied.groups.join(", ") };
    text += &format!("\n    {side} {}, groups: {}\n", clean(&called(own)), clean(&groups));
    if denied.established {
        text += "    the connection was open before\n";
    }
    match &denied.nearest {
        Some(rule) => text += &format!("    nearest rule {}\n", clean(&nearest(rule))),
        None => text += "    no rule comes near\n",
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::model::manifests::{bring_to_life, read};
    use crate::policy::{L4, Transport};

    fn names() -> Names {
        let text = "
kind: Pod
metadata: {name: web, labels: {app: web}}
---
kind: Pod
metadata:
  name: virt-launcher-db-x
  ownerReferences: [{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, name: db, uid: u1, controller: true}]
";
        let mut inventory = Inventory::default();
        read(text, "shop", &mut inventory).unwrap();
        bring_to_life(&mut inventory, &["10.0.0.0/24".parse().unwrap()]).unwrap();
        Names::new(inventory, Duration::from_secs(1))
    }

    fn denied(names: &Names) -> Denied {
        let peer = |target: &str| {
            let address = *names.addresses("shop", target).unwrap().first().unwrap();
            Peer { address, name: None, groups: Vec::new() }
        };
        Denied {
            first: Timestamp::UNIX_EPOCH,
            last: Timestamp::UNIX_EPOCH,
            packets: 3,
            node: "n1".to_owned(),
            direction: Direction::Ingress,
            source: peer("pod/web"),
            source_port: Some(40_000),
            destination: peer("vm/db"),
            l4: L4::Ports(Transport::Tcp, 3306),
            established: true,
            groups: vec!["shop/db".to_owned()],
            nearest: Some(NearestRule {
                group: "shop/db".to_owned(),
                id: "23055aa948".to_owned(),
                text: "TCP 3306 from sg/app".to_owned(),
                miss: Miss::Remote,
            }),
        }
    }

    #[test]
    fn pods_and_machines_are_called_by_their_names() {
        let names = names();
        let mut denied = denied(&names);
        names.put(&mut denied);
        let line = line(&denied, Paint(false));
        assert_eq!(
            line,
            "1970-01-01T00:00:00Z  ingress denied  pod/shop/web -> vm/shop/db  TCP 3306  3 packets\n    \
             into vm/shop/db, groups: shop/db\n    the connection was open before\n    \
             nearest rule 23055aa948 of shop/db: TCP 3306 from sg/app (same port, other remote)\n"
        );
        let table = table(&[denied], Format::Wide, Paint(false));
        assert!(table.contains("into TO   shop/db") && table.contains("n1"), "{table}");
    }

    #[test]
    fn who_is_nobody_is_not_looked_up_again_and_again() {
        let mut names = names();
        let mut denied = denied(&names);
        let later = |seconds| Duration::from_secs(seconds);
        let start = names.looked;
        assert!(names.news(&denied, start + later(21)).is_empty(), "both are known");
        denied.source.address = "192.0.2.7".parse().unwrap();
        assert!(names.news(&denied, start + later(20)).is_empty(), "the last look took a second");
        assert_eq!(names.news(&denied, start + later(21)), [denied.source.address]);
        names.strangers.1.insert(denied.source.address, 1);
        assert_eq!(names.news(&denied, start + later(21)), [denied.source.address], "it may be shown by now");
        names.strangers.1.insert(denied.source.address, 2);
        assert!(names.news(&denied, start + later(300)).is_empty());
        assert_eq!(names.news(&denied, start + later(301)), [denied.source.address]);
    }

    #[test]
    fn of_a_namespace_is_what_has_an_end_or_a_group_there() {
        let names = names();
        let in_namespace = |namespace: &str| Scope { addresses: None, namespace: Some(namespace.to_owned()) };
        let mut denied = denied(&names);
        assert!(in_namespace("shop").holds(&names, &denied) && !in_namespace("bank").holds(&names, &denied));
        denied.groups = vec!["bank/db".to_owned()];
        assert!(in_namespace("bank").holds(&names, &denied));
        assert!(Scope { addresses: None, namespace: None }.holds(&names, &denied));
        let of = |target: &str| Scope { addresses: Some(names.addresses("shop", target).unwrap()), namespace: None };
        assert!(of("vm/db").holds(&names, &denied) && !of("192.0.2.1").holds(&names, &denied));
    }
}
