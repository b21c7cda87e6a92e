//! Is a table what was committed? A second net under the notifications, which cannot be fooled by what was never told.
//!
//! PURE. Elements, and which chains, sets, maps and counters there are, are compared with what was committed. How nft writes
//! a rule depends on its version, so a rule is compared with how it was written the first time.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How nft wrote everything that is never edited in place. To be forgotten when the table is made anew.
#[derive(Debug, Default)]
pub struct Fingerprints(BTreeMap<(&'static str, String), (String, u64)>);

/// What is wrong with a table that should hold this, in the words of its listing; `None`: nothing.
pub fn difference(listing: &str, expected: &Contents<'_>, fingerprints: &mut Fingerprints) -> Option<String> {
    let mut found = blocks(listing);
    let mut seen = BTreeMap::new();
    for ((kind, name), item) in &expected.0 {
        let block = found.remove(&(*kind, name.as_str()));
        if item.in_flux {
            continue;
        }
        let Some(block) = block else { return Some(format!("there is no {kind} {name}")) };
        if item.lines.is_some_and(|lines| lines != block.lines.len()) {
            return Some(format!("{kind} {name} has more or fewer rules"));
        }
        let mut written = DefaultHasher::new();
        block.lines.hash(&mut written);
        match &item.elements {
            Some(elements) if !elements.are(&block.elements) => {
                return Some(format!("{kind} {name} has other elements"));
            }
            Some(_) => {}
            None => block.elements.hash(&mut written),
        }
        let key = (*kind, name.clone());
        let written = (item.edition.clone(), written.finish());
        let before = fingerprints.0.get(&key).filter(|(edition, _)| *edition == item.edition);
        if before.is_some_and(|before| *before != written) {
            return Some(format!("{kind} {name} has changed"));
        }
        seen.insert(key, written);
    }
    if let Some((kind, name)) = found.keys().next() {
        return Some(format!("there is a {kind} {name}"));
    }
    fingerprints.0 = seen;
    None
}

/// What a table should hold.
#[derive(Default)]
pub struct Contents<'a>(BTreeMap<(&'static str, String), Item<'a>>);

impl<'a> Contents<'a> {
    /// What a skeleton makes, which is written as nft lists it.
    pub(super) fn of_skeleton(skeleton: &str) -> Self {
        let items = blocks(skeleton).into_iter().map(|((kind, name), block)| {
            let lines = (kind == "chain").then_some(block.lines.len());
            ((kind, name.to_owned()), Item { lines, ..Item::default() })
        });
        Self(items.collect())
    }

    /// Something more, or more of something that is in the skeleton.
    pub(super) fn add(&mut self, kind: &'static str, name: impl ToString, item: Item<'a>) {
        self.0.insert((kind, name.to_string()), item);
    }
}

/// A chain, set, map or counter, as far as it is known beforehand.
#[derive(Default)]
pub(super) struct Item<'a> {
    /// The number of its rules, its type among them, if it is a chain.
    pub lines: Option<usize>,
    /// What it holds, if that is edited in place.
    pub elements: Option<Elements<'a>>,
    /// What tells it from what had its name before, if names are used again.
    pub edition: String,
    /// Whether it may be there or not, and be one way or another.
    pub in_flux: bool,
}

impl<'a> Item<'a> {
    /// With so many elements, each of which is one of those that should be there.
    pub(super) fn with_elements(count: usize, belongs: impl Fn(&str) -> bool + 'a) -> Self {
        Self { elements: Some(Elements { count, belongs: Box::new(belongs) }), ..Self::default() }
    }
}

/// The elements of a set or map.
pub(super) struct Elements<'a> {
    count: usize,
    belongs: Box<dyn Fn(&str) -> bool + 'a>,
}

impl Elements<'_> {
    /// Whether these are they. The kernel has no element twice.
    fn are(&self, listed: &[&str]) -> bool {
        self.count == listed.len() && listed.iter().all(|element| (self.belongs)(element))
    }
}

/// A chain, set, map or counter, as it is listed.
#[derive(Default)]
struct Block<'a> {
    /// All but the elements.
    lines: Vec<&'a str>,
    elements: Vec<&'a str>,
}

/// The blocks of a table, by kind and name. Reads what nft lists, and skeletons, which are written likewise.
fn blocks(table: &str) -> BTreeMap<(&'static str, &str), Block<'_>> {
    let mut blocks = BTreeMap::new();
    let mut open: Option<((&'static str, &str), Block<'_>)> = None;
    let mut in_elements = false;
    for line in table.lines() {
        let Some((_, block)) = &mut open else {
            let mut words = line.strip_prefix('\t').unwrap_or_default().split(' ');
            let kind = words.next().and_then(|word| KINDS.into_iter().find(|kind| *kind == word));
            if let (Some(kind), Some(name)) = (kind, words.next()) {
                let begun = ((kind, name), Block::default());
                if line.ends_with('}') {
                    blocks.extend([begun]);
                } else {
                    open = Some(begun);
                }
            } else if let Some(unknown) = line.strip_prefix('\t').filter(|line| line.ends_with(" {")) {
                // A kind of thing that we never make.
                blocks.insert(("block", unknown.trim_end_matches(" {")), Block::default());
            }
            continue;
        };
        if line == "\t}" {
            blocks.extend(open.take());
            continue;
        }
        let line = line.trim();
        let elements = match line.strip_prefix("elements = {") {
            Some(first) => first,
            None if in_elements => line,
            None => {
                block.lines.push(line);
                continue;
            }
        };
        in_elements = !elements.ends_with('}');
        let elements = elements.trim_end_matches('}').split(',').map(str::trim);
        block.elements.extend(elements.filter(|element| !element.is_empty()));
    }
    blocks
}

/// What tables of ours are made of.
const KINDS: [&str; 4] = ["chain", "set", "map", "counter"];
