//! `kubectl sg diff`: what a change would open and cut, before it is applied.

use super::load::{Cluster, Connection, Offline, Wanted, manifests};
use super::model::classes::States;
use super::model::edits::{Edit, edits};
use super::model::inventory::Inventory;
use super::model::naming::Names;
use super::model::rows::{Change, Ends, Row, rows};
use super::model::snapshot::Snapshot;
use super::output::{Answer, Cell, Format, Outcome, Paint, Table, Tone, counted, thousands};
use crate::policy::{Family, NamespacedName};
use anyhow::bail;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// With --offline: compare with these manifests; without it, with the same pods while nothing guards them.
    #[arg(long, value_name = "FILE", requires = "offline")]
    base: Vec<PathBuf>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    offline: Offline,
}

/// Compares.
pub async fn run(args: Args, paint: Paint) -> anyhow::Result<Outcome> {
    let Args { base, output, connection, offline } = args;
    let (before, after) = if offline.offline {
        let namespace = connection.namespace.unwrap_or_else(|| "default".to_owned());
        let after = offline.load(&namespace)?;
        // The same pods with the same addresses: what differs is what guards them.
        let before = match base.as_slice() {
            [] => after.unguarded(),
            base => after.unguarded().with(&manifests(base, &namespace)?),
        };
        (before, after)
    } else {
        if offline.filename.is_empty() {
            bail!("say what would change: -f FILE or -f FOLDER");
        }
        let cluster = Cluster::connect(&connection).await?;
        let changes = manifests(&offline.filename, &cluster.namespace)?;
        let before = cluster.inventory(Wanted { targets: true, ..Wanted::default() }).await?;
        let after = before.with(&changes);
        (before, after)
    };
    let comparison = Comparison::new(&before, &after);
    let text = match output.document(&comparison.document())? {
        Some(text) => text,
        None => comparison.render(output, paint),
    };
    let answer = if comparison.is_empty() { Answer::Yes } else { Answer::No };
    Ok(Outcome { text, answer, notes: before.notes })
}

/// What a change does, to objects and to connections.
pub struct Comparison {
    edits: Vec<Edit>,
    /// What opens and what is cut.
    pub rows: Vec<Row>,
    names: Names,
    /// The families in which targets have addresses.
    families: BTreeSet<Family>,
    newly_guarded: usize,
    guarded_no_more: usize,
}

impl Comparison {
    /// Compares two states of the same cluster.
    pub fn new(before: &Inventory, after: &Inventory) -> Self {
        let (old, new) = (Snapshot::new(&before.index()), Snapshot::new(&after.index()));
        let states = States { before: &old, after: &new };
        let (was, is) = (guarded(&old), guarded(&new));
        Self {
            edits: edits(before, after),
            rows: rows(states),
            names: Names::new(states),
            families: old.ends().chain(new.ends()).map(|(address, _)| Family::of(address)).collect(),
            newly_guarded: is.difference(&was).count(),
            guarded_no_more: was.difference(&is).count(),
        }
    }

    /// Whether nothing changes, neither for objects nor for connections.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.rows.is_empty()
    }

    /// For people.
    pub fn render(&self, format: Format, paint: Paint) -> String {
        if self.is_empty() {
            return "no difference\n".to_owned();
        }
        let mut text = self.objects(paint);
        text += &self.connections(format, paint);
        text.push('\n');
        text += &self.summary();
        text
    }

    /// Says so if a row is about one of two families.
    fn only(&self, row: &Row) -> &'static str {
        let has = |family| row.families.contains(&family);
        match (has(Family::V4), has(Family::V6), self.families.len()) {
            (true, false, 2) => " (IPv4)",
            (false, true, 2) => " (IPv6)",
            _ => "",
        }
    }

    fn objects(&self, paint: Paint) -> String {
        let mut text = String::new();
        for Edit { kind, name, what, added, removed } in &self.edits {
            let created = *kind == "sg" && *what == "created";
            let rules = if created { format!(", {}", counted(added.len(), "rule")) } else { String::new() };
            text += &format!("{} {kind} {name} {what}{rules}\n", paint.tone(Tone::Heading, "*"));
            if created {
                continue;
            }
            let rules = removed.iter().map(|rule| ("-", Tone::Bad, rule));
            for (sign, tone, rule) in rules.chain(added.iter().map(|rule| ("+", Tone::Good, rule))) {
                let line = format!("{sign} {} {} {} ({})", rule.direction, rule.traffic, rule.remote, rule.id);
                text += &format!("    {}\n", paint.tone(tone, &line));
            }
        }
        text
    }

    /// The connections alone.
    pub fn connections(&self, format: Format, paint: Paint) -> String {
        let mut text = String::new();
        for (change, title, sign, tone) in [
            (Change::Cuts, "Cuts", "-", Tone::Bad),
            (Change::Keeps, "Newly guarded: all that may still come in", "=", Tone::Plain),
            (Change::Opens, "Opens", "+", Tone::Good),
        ] {
            let mut table = Table::new(["", "FROM", "TO", "TRAFFIC", "PAIRS"]);
            // Of what had no guard, what is left is shorter to say than what is cut.
            let said_otherwise = |row: &Row| row.change == Change::Cuts && row.newly_guarded;
            for row in self.rows.iter().filter(|row| row.change == change && !said_otherwise(row)) {
                let pairs = if row.pairs() == 0 { "-".to_owned() } else { thousands(row.pairs()) };
                let traffic = format!("{}{}", row.traffic_text(), self.only(row));
                let (from, to) = (self.names.phrases(&row.from), self.names.phrases(&row.to));
                if format.is_wide() {
                    // All ends, each on a line of its own.
                    for line in 0..from.len().max(to.len()) {
                        let at = |ends: &[String]| Cell::from(ends.get(line).cloned().unwrap_or_default());
                        let first = |text: &str| Cell::from(if line == 0 { text } else { "" });
                        let sign = Cell::toned(if line == 0 { sign } else { "" }, tone);
                        table.row([sign, at(&from), at(&to), first(&traffic), first(&pairs)]);
                    }
                } else {
                    let (from, to) = (self.names.line(&row.from), self.names.line(&row.to));
                    table.row([Cell::toned(sign, tone), from.into(), to.into(), traffic.into(), pairs.into()]);
                }
            }
            if change == Change::Keeps
                && let Some(closed) = self.closed()
            {
                let nobody = Cell::toned("nobody", Tone::Bad);
                table.row([sign.into(), nobody, self.names.line(&closed).into(), "-".into(), "-".into()]);
            }
            if !table.is_empty() {
                text += &format!("\n{}", paint.heading(title));
                text += &table.render(paint);
            }
        }
        text
    }

    /// What is newly guarded and lets nobody in.
    fn closed(&self) -> Option<Ends> {
        let of = |change| {
            let rows = self.rows.iter().filter(move |row| row.change == change && row.newly_guarded);
            rows.flat_map(|row| row.to.targets.iter().cloned())
        };
        let open: BTreeSet<_> = of(Change::Keeps).collect();
        let targets: BTreeSet<_> = of(Change::Cuts).filter(|target| !open.contains(target)).collect();
        (!targets.is_empty()).then(|| Ends { targets, ..Ends::default() })
    }

    /// All of it in a sentence.
    pub fn summary(&self) -> String {
        let pairs = |change| -> (usize, usize) {
            let rows = self.rows.iter().filter(|row| row.change == change);
            rows.fold((0, 0), |(rows, pairs), row| (rows + 1, pairs + row.pairs()))
        };
        if self.rows.is_empty() {
            return "No connection opens and none is cut.\n".to_owned();
        }
        let say = |verb: &str, (rows, pairs): (usize, usize)| match (rows, pairs) {
            (0, _) => format!("{verb} nothing"),
            (_, 0) => format!("{verb} connections with others than targets"),
            (_, pairs) => format!("{verb} traffic of {}", counted(pairs, "pair")),
        };
        let mut text = format!("{}, {}.", say("Cuts", pairs(Change::Cuts)), say("opens", pairs(Change::Opens)));
        if self.newly_guarded > 0 {
            text += &format!(" Newly guarded: {}.", counted(self.newly_guarded, "target"));
        }
        if self.guarded_no_more > 0 {
            text += &format!(" Guarded no more: {}.", counted(self.guarded_no_more, "target"));
        }
        text + "\n"
    }

    /// For programs.
    fn document(&self) -> Document<'_> {
        let end = |ends: &Ends| End {
            text: self.names.line(ends),
            everybody: ends.all_but.as_ref().is_some_and(|rest| rest.targets.is_empty() && rest.regions.is_empty()),
            targets: ends
                .targets
                .iter()
                .map(|target| format!("{}/{}", target.kind.short_name(), target.name))
                .collect(),
            networks: ends.regions.values().flat_map(|region| region.nets().map(|net| net.to_string())).collect(),
        };
        let connections = self.rows.iter().map(|row| Connections {
            change: match row.change {
                Change::Opens => "opens",
                Change::Cuts => "cuts",
                Change::Keeps => "keeps",
            },
            from: end(&row.from),
            to: end(&row.to),
            traffic: row.traffic_text(),
            families: row.families.iter().map(|family| family_name(*family)).collect(),
            pairs: row.pairs(),
        });
        Document {
            objects: &self.edits,
            connections: connections.collect(),
            newly_guarded: self.newly_guarded,
            guarded_no_more: self.guarded_no_more,
        }
    }
}

fn guarded(snapshot: &Snapshot) -> BTreeSet<(crate::index::TargetKind, NamespacedName)> {
    let guarded = snapshot.ends().filter(|(_, end)| end.guard.is_some());
    guarded.flat_map(|(_, end)| end.targets.iter().map(|target| (target.kind, target.name.clone()))).collect()
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    objects: &'a [Edit],
    connections: Vec<Connections>,
    newly_guarded: usize,
    guarded_no_more: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connections {
    change: &'static str,
    from: End,
    to: End,
    traffic: String,
    families: Vec<&'static str>,
    pairs: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    text: String,
    everybody: bool,
    targets: Vec<String>,
    networks: Vec<String>,
}
