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
        Self { elements: Some(Elements { count: Some(count), belongs: Box::new(belongs) }), ..Self::default() }
    }

    /// With as many elements as there may be at the moment, each of which is one of those that may be there.
    pub(super) fn with_any_elements(belongs: impl Fn(&str) -> bool + 'a) -> Self {
        Self { elements: Some(Elements { count: None, belongs: Box::new(belongs) }), ..Self::default() }
    }
}

/// The elements of a set or map.
pub(super) struct Elements<'a> {
    /// How many; `None`: that is not known beforehand.
    count: Option<usize>,
    belongs: Box<dyn Fn(&str) -> bool + 'a>,
}

impl Elements<'_> {
    /// Whether these are they. The kernel has no element twice.
    fn are(&self, listed: &[&str]) -> bool {
        self.count.is_none_or(|count| count == listed.len()) && listed.iter().all(|element| (self.belongs)(element))
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

#[cfg(test)]
mod tests {
    use super::*;

    const SKELETON: &str = "\
table inet t {
	comment \"a table\"

	counter denied { }

	set members { type ipv4_addr; }

	chain first {
		type filter hook forward priority filter; policy accept;
		ip saddr @members drop
	}
}
";
    /// The same, with elements, as nft lists it.
    const LISTING: &str = "\
table inet t {
	comment \"a table\"
	counter denied {
	}

	set members {
		type ipv4_addr
		elements = { 10.0.0.1, 10.0.0.2,
			     10.0.0.3 }
	}

	chain first {
		type filter hook forward priority filter; policy accept;
		ip saddr @members drop
	}
}
";

    /// What is said of a listing, after one in which nothing was amiss.
    fn said(listing: &str, change: impl FnOnce(&mut Contents<'_>)) -> Option<String> {
        let contents = || {
            let mut contents = Contents::of_skeleton(SKELETON);
            let members = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
            contents.add("set", "members", Item::with_elements(3, move |element| members.contains(&element)));
            contents
        };
        let mut fingerprints = Fingerprints::default();
        assert_eq!(difference(LISTING, &contents(), &mut fingerprints), None);
        let mut changed = contents();
        change(&mut changed);
        difference(listing, &changed, &mut fingerprints)
    }

    #[test]
    fn what_is_amiss_is_named() {
        assert_eq!(said(LISTING, |_| {}), None);
        for (from, to, what) in [
            ("\tcounter denied {\n\t}\n", "", "there is no counter denied"),
            ("\tcounter denied {", "\tcounter allowed {\n\t}\n\tcounter denied {", "there is a counter allowed"),
            ("\tchain first {", "\tflowtable f {\n\t}\n\tchain first {", "there is a block flowtable f"),
            ("10.0.0.2", "10.0.0.4", "set members has other elements"),
            ("10.0.0.2,", "", "set members has other elements"),
            ("10.0.0.3", "10.0.0.3,\n10.0.0.4", "set members has other elements"),
            ("type ipv4_addr", "type ipv4_addr\n\t\tflags timeout", "set members has changed"),
            ("\t\tip saddr @members drop\n", "", "chain first has more or fewer rules"),
            ("@members drop", "@members accept", "chain first has changed"),
            ("policy accept", "policy drop", "chain first has changed"),
        ] {
            assert!(LISTING.contains(from), "{from}");
            assert_eq!(said(&LISTING.replace(from, to), |_| {}).as_deref(), Some(what));
        }
    }

    #[test]
    fn another_edition_is_written_otherwise() {
        let other = LISTING.replace("@members drop", "@members accept");
        let edition = |edition: &'static str| {
            move |contents: &mut Contents<'_>| {
                contents.add("chain", "first", Item { lines: Some(2), edition: edition.into(), ..Item::default() });
            }
        };
        assert_eq!(said(&other, edition("second")), None);
        assert_eq!(said(&other, edition("")).as_deref(), Some("chain first has changed"));
    }

    #[test]
    fn what_is_in_flux_may_be_anything() {
        let in_flux = |contents: &mut Contents<'_>| {
            contents.add("chain", "first", Item { lines: Some(2), in_flux: true, ..Item::default() });
        };
        let (before, _) = LISTING.split_once("\tchain first").unwrap();
        for listing in [
            LISTING.replace("drop", "accept"),
            LISTING.replace("\t\tip saddr", "\t\taccept\n\t\tip saddr"),
            format!("{before}}}\n"),
        ] {
            assert_eq!(said(&listing, in_flux), None, "{listing}");
            assert!(said(&listing, |_| {}).is_some(), "{listing}");
        }
    }
}
