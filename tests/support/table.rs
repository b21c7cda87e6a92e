//! Reads our table back, in one normal form: order of creation, order in hash tables and counts do not show.

use super::lab::Netns;
use ringfence::nft::{self, Ruleset};
use std::collections::{BTreeMap, BTreeSet};

/// A table as text blocks: `set NAME`, `map NAME`, `chain NAME`, … with their lines; elements one by one, sorted.
pub type Table = BTreeMap<String, Vec<String>>;

/// The table that is in a namespace.
pub fn read(netns: &Netns) -> Table {
    read_named(netns, nft::TABLE)
}

/// A table that is in a namespace.
pub fn read_named(netns: &Netns, table: &str) -> Table {
    let mut arguments = vec!["--numeric-protocol", "list", "table"];
    arguments.extend(table.split(' '));
    // By number: names depend on the machine's /etc/protocols.
    parse(&netns.nft(&arguments))
}

/// The table that a ruleset makes from nothing.
pub fn from_nothing(ruleset: &Ruleset) -> Table {
    let netns = Netns::new("fresh");
    netns.apply([nft::full(ruleset).as_str()]);
    read(&netns)
}

/// Fills the verdict cache of both families, for longer than a test takes, with what no packet asks for.
pub fn fill_cache(netns: &Netns) {
    const SIZE: usize = 16_384;
    let fill = |set: &str, network: &str, count: usize| {
        let pairs = (1..=128).flat_map(|i| (1..=129).map(move |j| (i, j)));
        let element = |(i, j)| format!("{network}{i} . {network}{j} . 6 . 1 timeout 1h");
        let elements: Vec<String> = pairs.take(count).map(element).collect();
        format!("add element {} {set} {{ {} }}\n", nft::TABLE, elements.join(", "))
    };
    for (set, network) in [("accepted_4", "10.66.0."), ("accepted_6", "fd66::")] {
        netns.apply([fill(set, network, SIZE).as_str()]);
        assert!(netns.commit(&fill(set, network, SIZE + 1)).is_err(), "there is still room in {set}");
    }
}

/// The names of sets, maps and chains.
pub fn names(table: &Table) -> BTreeSet<String> {
    let named = |header: &str| {
        let (kind, name) = header.split_once(' ')?;
        matches!(kind, "set" | "map" | "chain").then(|| name.to_owned())
    };
    table.keys().filter_map(|header| named(header)).collect()
}

/// The names that a ruleset asks for.
pub fn asked(ruleset: &Ruleset) -> BTreeSet<String> {
    ruleset.constants.keys().chain(ruleset.groups.keys()).map(ToString::to_string).collect()
}

/// As text, for people and golden files.
pub fn text(table: &Table) -> String {
    let mut text = String::new();
    for (header, lines) in table {
        text.push_str(header);
        text.push_str(" {\n");
        for line in lines {
            text.push('\t');
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("}\n");
    }
    text
}

/// Fails if two tables are not the same, and shows where.
#[track_caller]
pub fn assert_same(actual: &Table, expected: &Table, context: &str) {
    if actual == expected {
        return;
    }
    let headers: BTreeSet<_> = actual.keys().chain(expected.keys()).collect();
    let mut differences = String::new();
    for header in headers.into_iter().filter(|h| actual.get(*h) != expected.get(*h)) {
        differences.push_str(&format!(
            "{header}\n  is:        {:?}\n  should be: {:?}\n",
            actual.get(header),
            expected.get(header)
        ));
    }
    panic!("{context}: the table differs from one built from nothing\n{differences}");
}

fn parse(listing: &str) -> Table {
    // nft breaks long lists of elements into lines.
    let mut lines: Vec<String> = Vec::new();
    let mut elements: Option<String> = None;
    for line in listing.lines().map(str::trim) {
        let mut list = match elements.take() {
            Some(list) => format!("{list} {line}"),
            None => match line.strip_prefix("elements = {") {
                Some(first) => first.to_owned(),
                None => {
                    lines.push(line.to_owned());
                    continue;
                }
            },
        };
        if !list.ends_with('}') {
            elements = Some(list);
            continue;
        }
        list.pop();
        let mut each: Vec<String> = list.split(", ").map(|e| e.trim_matches([' ', ',']).to_owned()).collect();
        // What packets leave there comes and goes with them.
        each.retain(|element| !element.contains(" expires "));
        each.sort();
        lines.extend(each);
    }

    let mut table = Table::new();
    let mut block = String::new();
    for line in lines {
        if let Some(header) = line.strip_suffix(" {") {
            block = header.to_owned();
            table.entry(block.clone()).or_default();
        } else if !matches!(line.as_str(), "" | "}") {
            table.get_mut(&block).unwrap().push(without_counts(&line));
        }
    }
    table
}

fn without_counts(line: &str) -> String {
    if line.starts_with("packets ") { "packets and bytes".to_owned() } else { line.to_owned() }
}
