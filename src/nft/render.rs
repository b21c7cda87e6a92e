//! From two rulesets to the text that turns the one in the kernel into the other.
//!
//! A change is up to two transactions. The first adds what is new and nothing refers to yet; the second, the one commit that
//! changes any verdict, edits elements and takes away what is no longer referred to. In a single transaction a packet that
//! is half-way when the generation flips may follow a new map element into a chain that is still empty for it.
//!
//! Every commit that may take something away begins a new verdict cache; a third transaction ends the old one, later.

use super::expected::expected;
use super::layout::{GUARDS, Layout, Plan, Replacement};
use super::listing::Contents;
use super::model::{Addresses, Constant, Guard, Name, Ruleset, View, digit};
use super::skeleton::{BASE_CHAINS, FORWARD, SKELETON, log, meanwhile, settle};
use super::{STAND_IN, TABLE};
use crate::policy::Family;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

/// More elements than this go into several commands: nft's cost for one command grows faster than its length.
const BATCH: usize = 2_000;

/// The transactions from any state of our table, or none, to this one, with one or the other in force at every instant.
///
/// [`full`] alone is not enough over a table in use. A packet that meets the new base chains just before the generation
/// flips, and the old ones just after, meets empty chains only: so a copy stands in while the table is replaced. And for
/// some microseconds after the flip lookups in new interval sets find nothing: so no packet is sent into a copy before all
/// of it is there, and none is inside when it goes.
pub fn replacement(ruleset: &Ruleset) -> Replacement {
    let (mut built, mut guards, mut retired) = (Script::default(), Script::default(), Script::default());
    built.start(ruleset);
    guards.change_guards(&Ruleset::default(), ruleset);
    guards.text.push_str(FORWARD);
    retired.line(format_args!("add table {TABLE}"));
    for chain in BASE_CHAINS {
        // "add" first, as flushing what is not there would fail.
        retired.line(format_args!("add chain {TABLE} {chain}"));
        retired.line(format_args!("flush chain {TABLE} {chain}"));
    }
    // Names are hashes: the table's name is nowhere else.
    let stand_in = |script: &Script| script.text.replace(TABLE, STAND_IN);
    let cover = format!("{}add counter {STAND_IN} {GUARDS}\n", stand_in(&guards));
    let uncover = format!("{}delete counter {STAND_IN} {GUARDS}\n", stand_in(&retired));
    Replacement {
        cover: vec![stand_in(&built), cover],
        replace: vec![retired.text, built.text, guards.text, uncover, format!("delete table {STAND_IN}\n")],
    }
}

/// One transaction from any state of our table, or none, to this one. For a table that no packet meets: see [`replacement`].
pub fn full(ruleset: &Ruleset) -> String {
    let mut script = Script::default();
    script.start(ruleset);
    script.change_guards(&Ruleset::default(), ruleset);
    script.text.push_str(FORWARD);
    script.text
}

/// The transactions from one state of our table to another.
pub fn plan(old: &Ruleset, new: &Ruleset) -> Plan {
    let (mut stage, mut switch) = (Script::default(), Script::default());
    if old.told.is_none() {
        stage.text.extend(new.told.map(log));
    }
    stage.add_all(old, new);
    switch.leave_groups(old, new);
    switch.change_guards(old, new);
    switch.remove_all(old, new);
    let settle = (!switch.text.is_empty()).then(settle);
    if settle.is_some() {
        switch.text.push_str(&meanwhile());
    }
    // What is remembered stays true when groups get more members: rules only ever accept.
    switch.join_groups(old, new);
    let unless_empty = |script: Script| Some(script.text).filter(|text| !text.is_empty());
    Plan { stage: unless_empty(stage), switch: unless_empty(switch), settle }
}

impl Layout for Ruleset {
    const TABLE: &'static str = TABLE;
    const STAND_IN: &'static str = STAND_IN;

    fn full(&self) -> String {
        full(self)
    }

    fn plan(&self, next: &Self) -> Plan {
        plan(self, next)
    }

    fn replacement(&self) -> Replacement {
        replacement(self)
    }

    fn expected(&self, _next: &Self) -> Contents<'_> {
        expected(self)
    }
}

#[derive(Default)]
struct Script {
    text: String,
}

impl Script {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.text.write_fmt(line);
        self.text.push('\n');
    }

    /// A table in which nobody is guarded yet, with all that this ruleset needs to guard them.
    fn start(&mut self, ruleset: &Ruleset) {
        // "add" first, as deleting what is not there would fail.
        self.line(format_args!("add table {TABLE}"));
        self.line(format_args!("delete table {TABLE}"));
        self.text.push_str(SKELETON);
        self.text.extend(ruleset.told.map(log));
        self.add_all(&Ruleset::default(), ruleset);
    }

    /// Adds constants and group sets that are new: first what others refer to.
    fn add_all(&mut self, old: &Ruleset, new: &Ruleset) {
        for (name, (family, addresses)) in new.groups.iter().filter(|(name, _)| !old.groups.contains_key(name)) {
            self.line(format_args!("add set {TABLE} {name} {{ type {}; }}", address_type(*family)));
            self.elements("add", name, addresses.iter());
        }
        let added: Vec<(&Name, &Constant)> = missing_from(new, old).collect();
        for (name, constant) in &added {
            match constant {
                Constant::Chain(_) => self.line(format_args!("add chain {TABLE} {name}")),
                Constant::Cidrs(family, nets) => {
                    let address = address_type(*family);
                    self.line(format_args!("add set {TABLE} {name} {{ type {address}; flags interval; }}"));
                    self.elements("add", name, nets);
                }
                Constant::Ports(ranges) => {
                    self.line(format_args!("add set {TABLE} {name} {{ type inet_service; flags interval; }}"));
                    self.elements("add", name, ranges.iter().map(|r| format!("{}-{}", r.start(), r.end())));
                }
                Constant::SinglePortVerdicts(_) | Constant::PortVerdicts(_) => {}
            }
        }
        for (name, constant) in &added {
            match constant {
                Constant::SinglePortVerdicts(elements) => {
                    // With its size known, the kernel takes a hash that need not be able to grow: it is twice as fast.
                    let size = elements.len();
                    self.line(format_args!("add map {TABLE} {name} {{ type inet_service : verdict; size {size}; }}"));
                    self.elements("add", name, elements.iter().map(|(port, verdict)| format!("{port} : {verdict}")));
                }
                Constant::PortVerdicts(elements) => {
                    let map = "type inet_service : verdict; flags interval;";
                    self.line(format_args!("add map {TABLE} {name} {{ {map} }}"));
                    let element = |(r, verdict): &(std::ops::RangeInclusive<u16>, String)| {
                        format!("{}-{} : {verdict}", r.start(), r.end())
                    };
                    self.elements("add", name, elements.iter().map(element));
                }
                Constant::Chain(_) | Constant::Cidrs(..) | Constant::Ports(_) => {}
            }
        }
        for (name, constant) in &added {
            if let Constant::Chain(rules) = constant {
                for rule in rules {
                    self.line(format_args!("add rule {TABLE} {name} {rule}"));
                }
            }
        }
    }

    /// Takes addresses out of groups that stay.
    fn leave_groups(&mut self, old: &Ruleset, new: &Ruleset) {
        for (name, before, after) in changed_groups(old, new) {
            self.elements("delete", name, before.difference(after));
        }
    }

    /// Adds addresses to groups that were there before.
    fn join_groups(&mut self, old: &Ruleset, new: &Ruleset) {
        for (name, before, after) in changed_groups(old, new) {
            self.elements("add", name, after.difference(before));
        }
    }

    /// The difference in guarded addresses and their profiles.
    fn change_guards(&mut self, old: &Ruleset, new: &Ruleset) {
        for family in Family::ALL {
            let of = |ruleset: &'_ Ruleset| -> Vec<(IpAddr, Guard)> {
                ruleset.guards.iter().filter(|(a, _)| Family::of(**a) == family).map(|(a, g)| (*a, g.clone())).collect()
            };
            let gone: Vec<(IpAddr, Guard)> =
                of(old).into_iter().filter(|(a, guard)| new.guards.get(a) != Some(guard)).collect();
            let come: Vec<(IpAddr, Guard)> =
                of(new).into_iter().filter(|(a, guard)| old.guards.get(a) != Some(guard)).collect();
            let digit = digit(family);
            for (view, map) in [(View::Ingress, "ingress"), (View::Egress, "egress"), (View::Untracked, "untracked")] {
                let map = format!("{map}_{digit}");
                self.elements("delete", &map, gone.iter().map(|(address, _)| address));
                self.elements("add", &map, come.iter().map(|(a, guard)| format!("{a} : jump {}", guard.chains[&view])));
            }
            let left: Vec<IpAddr> = gone.iter().map(|(a, _)| *a).filter(|a| !new.guards.contains_key(a)).collect();
            let entered: Vec<IpAddr> = come.iter().map(|(a, _)| *a).filter(|a| !old.guards.contains_key(a)).collect();
            for (command, addresses) in [("delete", left), ("add", entered)] {
                self.elements(command, &format!("guarded_{digit}"), &addresses);
                self.elements(command, &format!("self_{digit}"), addresses.iter().map(|a| format!("{a} . {a}")));
            }
        }
    }

    /// Removes constants and group sets that nothing refers to any more: first what refers.
    fn remove_all(&mut self, old: &Ruleset, new: &Ruleset) {
        let removed: Vec<(&Name, &Constant)> = missing_from(old, new).collect();
        let is_chain = |constant: &Constant| matches!(constant, Constant::Chain(_));
        for (name, _) in removed.iter().filter(|(_, c)| is_chain(c)) {
            self.line(format_args!("flush chain {TABLE} {name}"));
        }
        for (name, constant) in &removed {
            match constant {
                Constant::Chain(_) => {}
                Constant::Cidrs(..) | Constant::Ports(_) => self.line(format_args!("delete set {TABLE} {name}")),
                Constant::SinglePortVerdicts(_) | Constant::PortVerdicts(_) => {
                    self.line(format_args!("delete map {TABLE} {name}"));
                }
            }
        }
        for (name, _) in removed.iter().filter(|(_, c)| is_chain(c)) {
            self.line(format_args!("delete chain {TABLE} {name}"));
        }
        for name in old.groups.keys().filter(|name| !new.groups.contains_key(name)) {
            self.line(format_args!("delete set {TABLE} {name}"));
        }
    }

    fn elements<T: ToString>(&mut self, command: &str, set: &impl ToString, elements: impl IntoIterator<Item = T>) {
        let elements: Vec<String> = elements.into_iter().map(|e| e.to_string()).collect();
        let set = set.to_string();
        for batch in elements.chunks(BATCH) {
            self.line(format_args!("{command} element {TABLE} {set} {{ {} }}", batch.join(", ")));
        }
    }
}

/// The constants of one ruleset that another does not have.
fn missing_from<'a>(ruleset: &'a Ruleset, other: &'a Ruleset) -> impl Iterator<Item = (&'a Name, &'a Constant)> {
    ruleset.constants.iter().filter(|(n, _)| !other.constants.contains_key(*n)).map(|(n, c)| (n, c.as_ref()))
}

/// Groups that stay, and whose addresses may not: those of before and those of now.
fn changed_groups<'a>(
    old: &'a Ruleset,
    new: &'a Ruleset,
) -> impl Iterator<Item = (&'a Name, &'a Addresses, &'a Addresses)> {
    let both = new.groups.iter().filter_map(|(name, (_, after))| Some((name, &old.groups.get(name)?.1, after)));
    both.filter(|(_, before, after)| !Arc::ptr_eq(before, after))
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

#[cfg(test)]
mod tests {
    use super::super::compile;
    use super::*;
    use crate::policy::{Group, NamespacedName, Remote, Rule, Traffic, Transport};

    /// Pods that take this port from a group with these members.
    fn ruleset(pods: &[&str], port: u16, members: &[&str]) -> Ruleset {
        let remote = Remote::Group(NamespacedName::new("shop", "app"));
        let rule = Rule { traffic: Traffic::Ports(Transport::Tcp, [port..=port].into_iter().collect()), remote };
        let group = Group { ingress: vec![rule], egress: vec![] };
        let profile = compile(&[(NamespacedName::new("shop", "web"), Arc::new(group))].into());
        let members: Addresses = Arc::new(members.iter().map(|a| a.parse().unwrap()).collect());
        Ruleset::new(pods.iter().map(|a| (a.parse().unwrap(), &profile)), |_| members.clone())
    }

    #[test]
    fn what_may_take_something_away_begins_a_new_cache_in_the_same_commit() {
        let (a, b, c) = ("10.0.0.1", "10.0.0.2", "fd00::3");
        let old = ruleset(&[a], 80, &[b, c]);
        for (what, new, anew) in [
            ("a member comes", ruleset(&[a], 80, &[b, c, "10.0.0.4"]), false),
            ("a member goes", ruleset(&[a], 80, &[b]), true),
            ("one goes, one comes", ruleset(&[a], 80, &[b, "fd00::4"]), true),
            ("another port", ruleset(&[a], 81, &[b, c]), true),
            ("a guard comes", ruleset(&[a, b], 80, &[b, c]), true),
            ("a guard goes", ruleset(&[], 80, &[b, c]), true),
        ] {
            let Plan { stage, switch, settle } = plan(&old, &new);
            let (stage, switch) = (stage.unwrap_or_default(), switch.unwrap());
            assert_eq!(switch.contains(&meanwhile()), anew, "{what}: {switch}");
            assert_eq!(settle.is_some(), anew, "{what}: {settle:?}");
            assert!(!stage.contains("forward") && !stage.contains("accepted_"), "{what}: {stage}");
        }
    }

    #[test]
    fn nothing_is_remembered_before_there_are_guards() {
        let Replacement { cover, replace } = replacement(&ruleset(&["10.0.0.1"], 80, &[]));
        let ours = [&replace[1], &replace[2]].map(|script| (TABLE, script));
        let stand_in = [&cover[0], &cover[1]].map(|script| (STAND_IN, script));
        for [(table, built), (_, guards)] in [ours, stand_in] {
            assert!(built.contains(&format!("add table {table}\n")) && !built.contains("chain forward"), "{built}");
            assert!(guards.contains(&format!("add element {table} ingress_4 {{ 10.0.0.1")), "{guards}");
            assert!(guards.contains(&FORWARD.replace(TABLE, table)), "{guards}");
        }
    }

    #[test]
    fn base_chains_of_every_layout_are_empty_before_their_table_goes() {
        let Replacement { replace, .. } = replacement(&Ruleset::default());
        for chain in ["forward", "forward_meanwhile", "egress_to_node", "egress", "ingress"] {
            assert!(replace[0].contains(&format!("flush chain {TABLE} {chain}\n")));
            assert!(replace[3].contains(&format!("flush chain {STAND_IN} {chain}\n")));
        }
    }
}
