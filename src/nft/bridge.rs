//! The third table: guarded interfaces that are ports of a bridge which hands no packets to the rules. PURE.
//!
//! Rules hook into the node's IP layer. What a bridge passes from port to port reaches it by br_netfilter alone, and where that
//! is off nothing judges it. This table drops it, for the ports that are guarded, family by family. It sees what passes from
//! port to port and nothing else: what the node itself sends or receives, or routes, passes the IP layer and its rules as ever.
//!
//! ARP, and what IPv6 has in its place, pass: nobody has to be found anew when the bridge is filtered again. Nothing of a
//! family that is closed passes beside that, DHCP included, as there is no connection here by which a client could be known.
//!
//! There is no table where nothing is to be closed, as on almost every node: not every kernel knows tables of bridges.

use super::layout::GUARDS;
use super::listing::{Contents, Item};
use super::own::DeviceName;
use super::{Layout, Plan, Replacement};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Our table for bridges.
pub const TABLE: &str = "bridge ringfence";

/// A copy of it, for as long as it takes to replace it. Who takes the product off a node takes off both.
pub const STAND_IN: &str = "bridge ringfence_stand_in";

/// The one base chain.
const BASE_CHAIN: &str = "forward";

/// By `ether type`, which shows VLAN tags. A port that is closed to either family passes nothing that is neither IP nor ARP.
const SKELETON: &str = "\
table bridge ringfence {
	comment \"Ringfence: what bridges do not hand to the rules\"

	counter unfiltered { }

	set closed_4 { type ifname; }
	set closed_6 { type ifname; }

	chain unfiltered {
		counter name unfiltered drop
	}
	chain discovery {
		icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept
		goto unfiltered
	}
	chain ports_4 {
		iifname @closed_4 goto unfiltered
		oifname @closed_4 goto unfiltered
	}
	chain ports_6 {
		iifname @closed_6 goto discovery
		oifname @closed_6 goto discovery
	}
	chain ports_other {
		iifname @closed_4 goto unfiltered
		oifname @closed_4 goto unfiltered
		iifname @closed_6 goto unfiltered
		oifname @closed_6 goto unfiltered
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ether type vmap { arp : accept, ip : goto ports_4, ip6 : goto ports_6 }
		goto ports_other
	}
}
";

/// The ports that are closed, by family. A name that is no port's closes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// To IPv4.
    pub v4: BTreeSet<DeviceName>,
    /// To IPv6.
    pub v6: BTreeSet<DeviceName>,
}

impl Closed {
    /// Nothing is closed.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn sets(&self) -> [(&'static str, &BTreeSet<DeviceName>); 2] {
        let Self { v4, v6 } = self;
        [("closed_4", v4), ("closed_6", v6)]
    }
}

impl Layout for Closed {
    const TABLE: &'static str = TABLE;
    const STAND_IN: &'static str = STAND_IN;

    fn full(&self) -> String {
        let mut script = format!("add table {TABLE}\ndelete table {TABLE}\n{SKELETON}");
        for (set, devices) in self.sets() {
            elements(&mut script, "add", set, devices.iter());
        }
        script
    }

    fn plan(&self, next: &Self) -> Plan {
        let mut script = String::new();
        for ((set, before), (_, after)) in self.sets().into_iter().zip(next.sets()) {
            elements(&mut script, "delete", set, before.difference(after));
            elements(&mut script, "add", set, after.difference(before));
        }
        Plan { switch: Some(script).filter(|script| !script.is_empty()), ..Plan::default() }
    }

    /// With a copy that stands in, as a frame that meets a base chain while it is replaced may find it empty.
    fn replacement(&self) -> Replacement {
        let full = self.full();
        // "add" first, as flushing what is not there would fail.
        let retired = format!("add table {TABLE}\nadd chain {TABLE} {BASE_CHAIN}\nflush chain {TABLE} {BASE_CHAIN}\n");
        // A space is in no name: the table's is nowhere else.
        let stand_in = |script: &str| script.replace(TABLE, STAND_IN);
        let cover = format!("{}add counter {STAND_IN} {GUARDS}\n", stand_in(&full));
        let uncover = format!("{}delete counter {STAND_IN} {GUARDS}\n", stand_in(&retired));
        Replacement { cover: vec![cover], replace: vec![retired, full, uncover, format!("delete table {STAND_IN}\n")] }
    }

    fn expected(&self, _next: &Self) -> Contents<'_> {
        let mut contents = Contents::of_skeleton(SKELETON);
        for (set, devices) in self.sets() {
            let is_own = |listed: &str| {
                let name = listed.strip_prefix('"').and_then(|listed| listed.strip_suffix('"'));
                name.and_then(|name| name.parse().ok()).is_some_and(|name| devices.contains(&name))
            };
            contents.add("set", set, Item::with_elements(devices.len(), is_own));
        }
        contents
    }
}

fn elements<'a>(script: &mut String, command: &str, set: &str, devices: impl Iterator<Item = &'a DeviceName>) {
    let devices: Vec<String> = devices.map(|device| format!("\"{device}\"")).collect();
    if !devices.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(script, "{command} element {TABLE} {set} {{ {} }}", devices.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(v4: &[&str], v6: &[&str]) -> Closed {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        Closed { v4: names(v4), v6: names(v6) }
    }

    #[test]
    fn a_change_is_its_elements() {
        let (before, after) = (closed(&["a", "b"], &["a"]), closed(&["b", "c"], &["a"]));
        assert_eq!(
            before.plan(&after).switch.unwrap(),
            "delete element bridge ringfence closed_4 { \"a\" }\nadd element bridge ringfence closed_4 { \"c\" }\n"
        );
        assert_eq!(before.plan(&before), Plan::default());
        assert!(Closed::default().is_empty() && !closed(&[], &["a"]).is_empty());
    }

    #[test]
    fn a_copy_is_under_another_name_throughout() {
        let Replacement { cover, replace } = closed(&["a"], &["b"]).replacement();
        assert!(cover.iter().chain(&replace[2..]).all(|script| !script.contains("bridge ringfence ")), "{cover:?}");
        assert!(cover[0].contains("add element bridge ringfence_stand_in closed_6 { \"b\" }"), "{cover:?}");
    }
}
