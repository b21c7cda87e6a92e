//! Addresses that a pod may use beside its own, such as one that moves between pods of a cluster of databases (S9). PURE.
//!
//! The pod asks in an annotation. Its namespace allows in another, which whoever may edit pods there cannot edit. What is
//! granted is guarded as the pod's own addresses are, and makes it a member of nothing: a group means its members' own.

use crate::api::ALLOWED_EXTRA_ADDRESSES;
use crate::index::{Target, is_own};
use crate::policy::{CidrError, CidrSet, parse_cidr};
use ipnet::{IpNet, Ipv4AddrRange, Ipv6AddrRange};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// So many addresses and prefixes can a pod ask for, …
const MAX_ENTRIES: usize = 16;
/// … as each address is an element in the kernel: of a prefix wider than these there would be too many.
const WIDEST_V4: i64 = 24;
const WIDEST_V6: i64 = 120;

/// The widest prefixes that a pod may ask for.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Widest {
    /// Shortest prefix length of IPv4 that pods may declare as extra addresses.
    #[arg(long = "extra-addresses-ipv4", default_value_t = 28, value_parser = clap::value_parser!(u8).range(WIDEST_V4..=32))]
    v4: u8,
    /// Shortest prefix length of IPv6 that pods may declare as extra addresses.
    #[arg(long = "extra-addresses-ipv6", default_value_t = 124, value_parser = clap::value_parser!(u8).range(WIDEST_V6..=128))]
    v6: u8,
}

impl Default for Widest {
    fn default() -> Self {
        Self { v4: 28, v6: 124 }
    }
}

/// What became of a pod's declaration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// What the pod may use.
    pub addresses: BTreeSet<IpAddr>,
    /// What it may not, and why.
    pub refused: Vec<String>,
}

/// What namespaces allow.
#[derive(Clone, Debug, Default)]
pub struct Allowances {
    widest: Widest,
    by_namespace: BTreeMap<String, CidrSet>,
}

impl Allowances {
    /// Nothing is allowed yet.
    pub fn new(widest: Widest) -> Self {
        Self { widest, by_namespace: BTreeMap::new() }
    }

    /// Takes in what the annotation of a namespace says now; tells whether that is news.
    pub fn set(&mut self, namespace: &str, annotation: Option<&str>) -> bool {
        let before = self.by_namespace.remove(namespace);
        // All addresses there are would be no allowance but the end of all guarding.
        let allowed: CidrSet = annotation
            .into_iter()
            .flat_map(entries)
            .filter_map(|entry| parse(entry).ok())
            .filter(|net| net.prefix_len() > 0)
            .collect();
        let news = before.unwrap_or_default() != allowed;
        if !allowed.is_empty() {
            self.by_namespace.insert(namespace.to_owned(), allowed);
        }
        news
    }

    /// Takes in all namespaces there are; tells whether that is news.
    pub fn set_all<'a>(&mut self, namespaces: impl IntoIterator<Item = (&'a str, Option<&'a str>)>) -> bool {
        let mut listed = Self::new(self.widest);
        for (namespace, annotation) in namespaces {
            listed.set(namespace, annotation);
        }
        let news = listed.by_namespace != self.by_namespace;
        *self = listed;
        news
    }

    /// What a pod gets of what it declares. `taken` says who has an address already, if anybody else does.
    pub fn grant(&self, pod: &Target, taken: impl Fn(IpAddr) -> Option<String>) -> Extra {
        let mut extra = Extra::default();
        let mut refuse = |entry: &str, why: String| extra.refused.push(format!("{}: {entry}: {why}", pod.name));
        for (count, entry) in pod.extra_addresses.iter().flat_map(|text| entries(text)).enumerate() {
            if count == MAX_ENTRIES {
                refuse(entry, format!("a pod can have {MAX_ENTRIES} extra addresses and prefixes; use wider prefixes"));
                break;
            }
            let net = match parse(entry) {
                Ok(net) => net,
                Err(error) => {
                    refuse(entry, error.to_string());
                    continue;
                }
            };
            let widest = if net.addr().is_ipv4() { self.widest.v4 } else { self.widest.v6 };
            if net.prefix_len() < widest {
                refuse(entry, format!("no prefix may be wider than /{widest} here"));
                continue;
            }
            let allowed = self.by_namespace.get(&pod.name.namespace);
            for address in addresses(net) {
                if !allowed.is_some_and(|allowed| allowed.contains(address)) {
                    let namespace = &pod.name.namespace;
                    let why = format!("{ALLOWED_EXTRA_ADDRESSES} of namespace {namespace} does not allow {address}");
                    refuse(entry, why);
                    break;
                }
                if !is_own(address) {
                    refuse(entry, format!("{address} can be no pod's"));
                } else if let Some(owner) = taken(address) {
                    refuse(entry, format!("{address} is {owner}'s"));
                } else {
                    extra.addresses.insert(address);
                }
            }
        }
        extra
    }
}

/// The parts of a list with commas.
fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

/// An address, or a prefix.
fn parse(entry: &str) -> Result<IpNet, CidrError> {
    match entry.parse::<IpAddr>() {
        Ok(address) if entry.contains(':') => parse_cidr(&format!("{address}/128")),
        Ok(address) => parse_cidr(&format!("{address}/32")),
        Err(_) => parse_cidr(entry),
    }
}

/// Every address of a prefix, the first and the last among them: they are no special ones here.
fn addresses(net: IpNet) -> Box<dyn Iterator<Item = IpAddr>> {
    match net {
        IpNet::V4(net) => Box::new(Ipv4AddrRange::new(net.network(), net.broadcast()).map(IpAddr::V4)),
        IpNet::V6(net) => Box::new(Ipv6AddrRange::new(net.network(), net.broadcast()).map(IpAddr::V6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EXTRA_ADDRESSES;
    use k8s_openapi::api::core::v1 as core;
    use serde_json::json;

    fn pod(declared: &str) -> Target {
        let pod: core::Pod = serde_json::from_value(json!({
            "metadata": { "namespace": "shop", "name": "db-0", "annotations": { EXTRA_ADDRESSES: declared } },
        }))
        .unwrap();
        Target::from(&pod)
    }

    fn granted(allowed: Option<&str>, declared: &str) -> (Vec<String>, Vec<String>) {
        let mut allowances = Allowances::default();
        allowances.set("shop", allowed);
        allowances.set("elsewhere", Some("10.9.0.0/16"));
        let taken = |address: IpAddr| (address.to_string() == "10.0.0.5").then(|| "shop/web".to_owned());
        let Extra { addresses, refused } = allowances.grant(&pod(declared), taken);
        (addresses.iter().map(ToString::to_string).collect(), refused)
    }

    fn refused(allowed: &str, declared: &str) -> String {
        let (addresses, refused) = granted(Some(allowed), declared);
        assert!(addresses.is_empty(), "{addresses:?}");
        refused.join("; ")
    }

    #[test]
    fn what_is_asked_for_and_allowed_is_granted() {
        let (addresses, refused) = granted(Some("10.0.0.0/8,fd00::/64"), "10.0.0.2/31, 10.1.2.3 ,fd00::7");
        assert_eq!(addresses, ["10.0.0.2", "10.0.0.3", "10.1.2.3", "fd00::7"]);
        assert!(refused.is_empty());
        assert_eq!(granted(Some("10.0.0.0/8"), ""), (vec![], vec![]));
    }

    #[test]
    fn nobody_grants_it_to_himself() {
        let why = "shop/db-0: 10.9.0.1: ringfence.io/allowed-extra-addresses of namespace shop does not allow 10.9.0.1";
        assert_eq!(granted(None, "10.9.0.1").1, [why]);
        assert_eq!(refused("10.0.0.0/31", "10.9.0.1"), why);
        assert!(refused("10.0.0.1", "10.0.0.2/31").contains("does not allow 10.0.0.2"));
        for everything in ["0.0.0.0/0", "::/0", "nonsense", "10.9.0.1/16"] {
            assert_eq!(refused(everything, "10.9.0.1"), why);
        }
    }

    #[test]
    fn what_can_be_nobodys_is_refused() {
        assert!(refused("10.0.0.0/8", "10.0.0.0/27").contains("no prefix may be wider than /28"));
        assert!(refused("fd00::/16", "fd00::/64").contains("no prefix may be wider than /124"));
        assert!(refused("10.0.0.0/8", "10.0.0.5").ends_with("10.0.0.5 is shop/web's"));
        assert!(refused("224.0.0.0/4", "224.0.0.1").ends_with("224.0.0.1 can be no pod's"));
        assert!(refused("10.0.0.0/8", "10.0.0.1/28").contains("has host bits set"));
        assert!(refused("10.0.0.0/8", "ten").contains("is not an address with a prefix length"));
        assert!(refused("::/1", "::ffff:10.0.0.1").contains("IPv4-mapped"));
    }

    #[test]
    fn one_bad_entry_leaves_the_others() {
        let (addresses, refused) = granted(Some("10.0.0.0/8"), "x,10.0.0.1");
        assert_eq!((addresses.len(), refused.len()), (1, 1));
        let many: Vec<String> = (1..=20).map(|n| format!("10.0.1.{n}")).collect();
        let (addresses, refused) = granted(Some("10.0.0.0/8"), &many.join(","));
        assert_eq!((addresses.len(), refused.len()), (16, 1));
    }

    #[test]
    fn news_of_namespaces() {
        let mut allowances = Allowances::default();
        assert!(!allowances.set("a", None));
        assert!(allowances.set("a", Some("10.0.0.1")));
        assert!(!allowances.set("a", Some(" 10.0.0.1/32 ")), "it says the same");
        assert!(!allowances.set_all([("a", Some("10.0.0.1")), ("b", None)]));
        assert!(allowances.set_all([("b", None)]), "a is gone");
        assert!(!allowances.set("a", None));
    }
}
