//! What our table holds, to be compared with its listing. PURE.

use super::listing::{Contents, Item};
use super::model::{Constant, Ruleset, View, digit};
use super::skeleton::{CACHE, FORWARD, LOGGED, SKELETON, log};
use crate::policy::Family;
use std::net::IpAddr;

/// All of it. Elements are compared as addresses, however nft writes those.
pub(super) fn expected(ruleset: &Ruleset) -> Contents<'_> {
    let Ruleset { constants, groups, guards, told } = ruleset;
    let log = told.map(log);
    let mut contents = Contents::of_skeleton(&[SKELETON, FORWARD, log.as_deref().unwrap_or_default()].concat());
    for set in CACHE.iter().chain(LOGGED.iter().filter(|_| told.is_some())) {
        // What packets put there has the set's own timeout: what would stay for longer is somebody else's.
        contents.add("set", set, Item::with_any_elements(|element| !element.contains(" timeout ")));
    }
    for (name, constant) in constants {
        let (kind, lines) = match constant.as_ref() {
            Constant::Chain(rules) => ("chain", Some(rules.len())),
            Constant::Cidrs(..) | Constant::Ports(_) => ("set", None),
            Constant::SinglePortVerdicts(_) | Constant::PortVerdicts(_) => ("map", None),
        };
        contents.add(kind, name, Item { lines, ..Item::default() });
    }
    for (name, (_, members)) in groups {
        let is_member = move |element: &str| element.parse().is_ok_and(|address: IpAddr| members.contains(&address));
        contents.add("set", name, Item::with_elements(members.len(), is_member));
    }
    let guard = move |address: &str| guards.get(&address.parse().ok()?);
    for family in Family::ALL {
        let count = guards.keys().filter(|address| Family::of(**address) == family).count();
        let digit = digit(family);
        let guarded = move |element: &str| guard(element).is_some();
        contents.add("set", format!("guarded_{digit}"), Item::with_elements(count, guarded));
        let itself = move |element: &str| element.split_once(" . ").is_some_and(|(a, b)| a == b && guard(a).is_some());
        contents.add("set", format!("self_{digit}"), Item::with_elements(count, itself));
        for (view, map) in [(View::Ingress, "ingress"), (View::Egress, "egress"), (View::Untracked, "untracked")] {
            let judged = move |element: &str| {
                element.split_once(" : jump ").is_some_and(|(address, chain)| {
                    guard(address).and_then(|guard| guard.chains.get(&view)).is_some_and(|c| c.as_str() == chain)
                })
            };
            contents.add("map", format!("{map}_{digit}"), Item::with_elements(count, judged));
        }
    }
    contents
}
