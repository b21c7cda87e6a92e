//! The table that counts connections: from whom to whom, by which protocol, to which port.
//!
//! PURE. A table of its own, so that it is untouched by whatever becomes of the one that guards, and cannot do harm to it: it
//! accepts everything, after that one has. Which rules a connection is to be counted for is not the kernel's business, so no
//! rule, member or profile is in here, and none of their changes loses a count.
//!
//! - Only the first packet of a connection is counted: conntrack confirms a connection when that one has passed. To all
//!   others the table is one comparison.
//! - Only what has a guarded end: others would take the room.
//! - It is counted into sets, which are never emptied: new ones take over, and the old ones, once read, go. What was counted
//!   is read as a whole or not at all, whoever ends when.
//! - When an element was last added to is seen by how long it still has to live.

use super::model::digit;
use crate::policy::Family;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

/// The table.
pub const TABLE: &str = "inet ringfence_usage";
/// So many different connections of one family are counted at once.
pub const SIZE: usize = 65_536;
/// How long an element lives that nothing adds to. Long enough for an agent to be away, and for none to go before it is read.
pub const LIFETIME: Duration = Duration::from_hours(30 * 24);
/// The kernel looks for elements whose life is over so often. It would do so every second.
const SWEEP: &str = "1h";
const BATCH: usize = 2_000;

/// Numbers the sets. The larger one is the later one.
pub type Epoch = u64;

/// The guarded addresses.
pub type Guarded = BTreeSet<IpAddr>;

/// The set into which connections of a family are counted, without the table.
pub fn set(family: Family, epoch: Epoch) -> String {
    format!("opened_{}_{epoch}", digit(family))
}

/// One transaction from any state of the table, or none, to one that counts into these sets, which are new. Sets of other
/// epochs stay as they are, but for those that are forgotten.
pub fn start(epoch: Epoch, guarded: &Guarded, forgotten: &BTreeSet<Epoch>) -> String {
    let mut script = format!("add table {TABLE}\n");
    for family in Family::ALL {
        let (digit, address) = (digit(family), address(family));
        // "add" first, as flushing what is not there would fail.
        script +=
            &format!("add set {TABLE} guarded_{digit} {{ type {address}_addr; }}\nflush set {TABLE} guarded_{digit}\n");
    }
    for chain in ["forward", "to_node", "first", "opened_4", "opened_6"] {
        script += &format!("add chain {TABLE} {chain}\nflush chain {TABLE} {chain}\n");
    }
    for chain in ["forward", "to_node"] {
        script += &format!("delete chain {TABLE} {chain}\n");
    }
    script += BASE_CHAINS;
    script += &guard(&Guarded::new(), guarded);
    script += &count_into(epoch);
    script + &forget(forgotten)
}

/// One comparison sends all packets away but the first ones.
const BASE_CHAINS: &str = "\
table inet ringfence_usage {
	comment \"Ringfence: connections of guarded addresses\"

	chain first {
		ct original ip saddr @guarded_4 goto opened_4
		ct reply ip saddr @guarded_4 goto opened_4
		ct original ip6 saddr @guarded_6 goto opened_6
		ct reply ip6 saddr @guarded_6 goto opened_6
	}
	chain forward {
		type filter hook forward priority filter + 10; policy accept;
		ct status & confirmed == 0 goto first
	}
	chain to_node {
		type filter hook input priority filter + 10; policy accept;
		ct status & confirmed == 0 goto first
	}
}
";

/// One transaction after which connections are counted into new sets.
pub fn turn(epoch: Epoch) -> String {
    let flush = |family| format!("flush chain {TABLE} opened_{}\n", digit(family));
    Family::ALL.map(flush).concat() + &count_into(epoch)
}

/// New sets, and the rules that add to them.
fn count_into(epoch: Epoch) -> String {
    let mut script = String::new();
    let days = LIFETIME.as_secs() / 86_400;
    for family in Family::ALL {
        let (digit, ip, set) = (digit(family), address(family), set(family, epoch));
        // How nft calls the addresses of packets.
        let (header, icmp) = if family == Family::V4 { ("ip", 1) } else { ("ip6", 58) };
        script += &format!(
            "add set {TABLE} {set} {{ type {ip}_addr . {ip}_addr . inet_proto . inet_service; size {SIZE}; flags dynamic,timeout; timeout {days}d; gc-interval {SWEEP}; }}\n"
        );
        let ends = format!("ct original {header} saddr . ct reply {header} saddr . meta l4proto");
        for (protocols, number) in [
            ("{ 6, 17, 132 }".to_owned(), "ct reply proto-src"),
            // Its type and code.
            (icmp.to_string(), "ct original proto-dst"),
            (format!("!= {{ 6, 17, 132, {icmp} }}"), "0"),
        ] {
            script += &format!(
                "add rule {TABLE} opened_{digit} meta l4proto {protocols} update @{set} {{ {ends} . {number} counter }}\n"
            );
        }
    }
    script
}

/// One transaction from some guarded addresses to others; empty if they are the same.
pub fn guard(before: &Guarded, now: &Guarded) -> String {
    let mut script = String::new();
    for (command, addresses) in [("delete", before - now), ("add", now - before)] {
        for family in Family::ALL {
            let of_family = addresses.iter().filter(|a| Family::of(**a) == family);
            let elements: Vec<String> = of_family.map(ToString::to_string).collect();
            for batch in elements.chunks(BATCH) {
                // Writing to a String cannot fail.
                let _ =
                    writeln!(script, "{command} element {TABLE} guarded_{} {{ {} }}", digit(family), batch.join(", "));
            }
        }
    }
    script
}

/// One transaction after which the sets of these epochs, which are there and no longer in use, are gone.
pub fn forget(epochs: &BTreeSet<Epoch>) -> String {
    let delete = |epoch: &Epoch| Family::ALL.map(|family| format!("delete set {TABLE} {}\n", set(family, *epoch)));
    epochs.iter().flat_map(delete).collect()
}

/// One transaction after which nothing is left of the table.
pub fn removal() -> String {
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

/// The epochs of the sets in a listing of the table: those of which there are both.
pub fn epochs(listing: &str) -> BTreeSet<Epoch> {
    let of = |family: Family| -> BTreeSet<Epoch> {
        let prefix = format!("\tset opened_{}_", digit(family));
        listing.lines().filter_map(|line| line.strip_prefix(&prefix)?.strip_suffix(" {")?.parse().ok()).collect()
    };
    let [v4, v6] = Family::ALL.map(of);
    &v4 & &v6
}

fn address(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_read_from_a_listing() {
        let set = |name: &str| format!("\tset {name} {{\n\t\ttype ipv4_addr\n\t}}\n");
        let listing = ["opened_4_7", "opened_6_7", "opened_4_12", "opened_6_12", "opened_4_3", "guarded_4"].map(set);
        assert_eq!(epochs(&listing.concat()), [7, 12].into(), "half of 3 is missing");
        assert_eq!(epochs(""), BTreeSet::new());
    }

    #[test]
    fn only_differences_are_told() {
        let addresses = |list: &[&str]| -> Guarded { list.iter().map(|a| a.parse().unwrap()).collect() };
        let (before, now) = (addresses(&["10.0.0.1", "fd00::1"]), addresses(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(
            guard(&before, &now),
            "delete element inet ringfence_usage guarded_6 { fd00::1 }\nadd element inet ringfence_usage guarded_4 { 10.0.0.2 }\n"
        );
        assert_eq!(guard(&now, &now), "");
    }
}
