//! Is the table what was committed? A second net under the notifications, which cannot be fooled by what was never told.
//!
//! PURE. Addresses, and which chains, sets and maps there are, are compared with what was committed. How nft writes a rule
//! depends on its version, so a rule is compared with how it was written the first time.

use super::model::{Constant, Ruleset, View, digit};
use super::skeleton::SKELETON;
use crate::policy::Family;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// How nft wrote everything that is never edited in place. To be forgotten when the table is made anew.
#[derive(Debug, Default)]
pub struct Fingerprints(BTreeMap<(String, String), u64>);

/// What is wrong with a table that should hold this, in the words of its listing; `None`: nothing.
pub fn difference(listing: &str, ruleset: &Ruleset, fingerprints: &mut Fingerprints) -> Option<String> {
    let found = blocks(listing);
    let expected = expected(ruleset);
    if let Some((kind, name)) = found.keys().find(|block| !expected.contains_key(*block)) {
        return Some(format!("there is a {kind} {name}"));
    }
    let data = data(ruleset);
    let mut seen = BTreeMap::new();
    for ((kind, name), content) in expected {
        let Some(block) = found.get(&(kind, name)) else { return Some(format!("there is no {kind} {name}")) };
        if content.rules.is_some_and(|rules| rules != block.lines.len()) {
            return Some(format!("{kind} {name} has more or fewer rules"));
        }
        let mut written = DefaultHasher::new();
        block.lines.hash(&mut written);
        match data.get(name) {
            Some(data) if !data.is(ruleset, &block.elements) => {
                return Some(format!("{kind} {name} has other elements"));
            }
            Some(_) => {}
            None => block.elements.hash(&mut written),
        }
        let key = (kind.to_owned(), name.to_owned());
        let written = written.finish();
        if fingerprints.0.get(&key).is_some_and(|before| *before != written) {
            return Some(format!("{kind} {name} has changed"));
        }
        seen.insert(key, written);
    }
    fingerprints.0 = seen;
    None
}

/// A chain, set, map or counter.
#[derive(Default)]
struct Block<'a> {
    /// All but the elements.
    lines: Vec<&'a str>,
    elements: Vec<&'a str>,
}

/// The blocks of a table, by kind and name. Reads what nft lists, and the skeleton, which is written likewise.
fn blocks(table: &str) -> BTreeMap<(&str, &str), Block<'_>> {
    let mut blocks = BTreeMap::new();
    let mut open: Option<((&str, &str), Block<'_>)> = None;
    let mut in_elements = false;
    for line in table.lines() {
        let Some((_, block)) = &mut open else {
            let mut words = line.strip_prefix('\t').unwrap_or_default().split(' ');
            if let (Some(kind @ ("chain" | "set" | "map" | "counter")), Some(name)) = (words.next(), words.next()) {
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

/// What is known of a block beforehand.
struct Expected {
    /// The number of its rules, its type among them, if it is a chain.
    rules: Option<usize>,
}

fn expected(ruleset: &Ruleset) -> BTreeMap<(&str, &str), Expected> {
    let skeleton = blocks(SKELETON).into_iter().map(|((kind, name), block)| {
        let rules = (kind == "chain").then_some(block.lines.len());
        ((kind, name), Expected { rules })
    });
    let constants = ruleset.constants.iter().map(|(name, constant)| {
        let (kind, rules) = match constant.as_ref() {
            Constant::Chain(rules) => ("chain", Some(rules.len())),
            Constant::Cidrs(..) | Constant::Ports(_) => ("set", None),
            Constant::SinglePortVerdicts(_) | Constant::PortVerdicts(_) => ("map", None),
        };
        ((kind, name.as_str()), Expected { rules })
    });
    let groups = ruleset.groups.keys().map(|name| (("set", name.as_str()), Expected { rules: None }));
    skeleton.chain(constants).chain(groups).collect()
}

/// What is edited in place.
enum Data<'a> {
    /// The addresses of a group.
    Members(&'a BTreeSet<IpAddr>),
    /// Guarded addresses.
    Guarded(Family),
    /// Likewise, each with itself.
    Themselves(Family),
    /// Likewise, each with its chain.
    Chains(Family, View),
}

fn data(ruleset: &Ruleset) -> BTreeMap<String, Data<'_>> {
    let groups = ruleset.groups.iter().map(|(name, (_, addresses))| (name.to_string(), Data::Members(addresses)));
    let maps = Family::ALL.into_iter().flat_map(|family| {
        let digit = digit(family);
        [
            (format!("guarded_{digit}"), Data::Guarded(family)),
            (format!("self_{digit}"), Data::Themselves(family)),
            (format!("ingress_{digit}"), Data::Chains(family, View::Ingress)),
            (format!("egress_{digit}"), Data::Chains(family, View::Egress)),
            (format!("untracked_{digit}"), Data::Chains(family, View::Untracked)),
        ]
    });
    groups.chain(maps).collect()
}

impl Data<'_> {
    /// Whether these are the elements. The kernel has no element twice.
    fn is(&self, ruleset: &Ruleset, elements: &[&str]) -> bool {
        let guards = &ruleset.guards;
        let count = match self {
            Self::Members(addresses) => addresses.len(),
            Self::Guarded(family) | Self::Themselves(family) | Self::Chains(family, _) => {
                guards.keys().filter(|address| Family::of(**address) == *family).count()
            }
        };
        let guard = |address: &str| guards.get(&address.parse().ok()?);
        count == elements.len()
            && elements.iter().all(|element| match self {
                Self::Members(addresses) => element.parse().is_ok_and(|address: IpAddr| addresses.contains(&address)),
                Self::Guarded(_) => guard(element).is_some(),
                Self::Themselves(_) => element.split_once(" . ").is_some_and(|(a, b)| a == b && guard(a).is_some()),
                Self::Chains(_, view) => element.split_once(" : goto ").is_some_and(|(address, chain)| {
                    guard(address).and_then(|guard| guard.chains.get(view)).is_some_and(|c| c.as_str() == chain)
                }),
            })
    }
}
