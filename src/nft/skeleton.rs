//! The part of the table that never varies: base chains, maps, the verdict cache, and what always works or never does.

use super::TABLE;
use std::num::NonZeroU32;

/// Where ingress ends that no rule allowed.
pub const DENIED_INGRESS: &str = "denied_ingress";
/// Where egress ends that no rule allowed.
pub const DENIED_EGRESS: &str = "denied_egress";
/// Where packets of no connection end; the counter's name, as that of the two above is.
pub const NO_TUPLE: &str = "no_tuple";

/// Where packets come in, in this layout and in earlier ones.
pub const BASE_CHAINS: [&str; 5] = ["forward", MEANWHILE, "egress_to_node", "egress", "ingress"];

/// Creates the table, in which nobody is guarded. [`FORWARD`] comes with the guards, [`log`] if it is wanted.
///
/// What one direction accepts returns to the base chain, where the other one is judged.
///
/// - Packets without a tuple cannot be judged by one: they are dropped by their header, except neighbour discovery.
/// - A new TCP connection begins with SYN, a new SCTP association with INIT; what does not is the middle of one that was
///   cut, or of someone else's. (To conntrack, the heartbeat that any SCTP stack sends by itself would begin one, backwards.)
/// - Every packet pays for the first rules, and most are of established connections: one comparison sends the others away.
/// - Related ICMP errors carry the tuple of the connection they speak of, so they reach `denied_*` where no rule for ICMP
///   lets them through: path MTU and unreachability always work. Redirects never do. What `related` accepts is accepted
///   in both directions.
pub const SKELETON: &str = "\
table inet ringfence {
	comment \"Ringfence: security groups for Kubernetes\"

	counter denied_ingress { }
	counter denied_egress { }
	counter no_tuple { }

	set guarded_4 { type ipv4_addr; }
	set guarded_6 { type ipv6_addr; }
	set self_4 { type ipv4_addr . ipv4_addr; }
	set self_6 { type ipv6_addr . ipv6_addr; }
	map ingress_4 { type ipv4_addr : verdict; }
	map ingress_6 { type ipv6_addr : verdict; }
	map egress_4 { type ipv4_addr : verdict; }
	map egress_6 { type ipv6_addr : verdict; }
	map untracked_4 { type ipv4_addr : verdict; }
	map untracked_6 { type ipv6_addr : verdict; }

	chain related {
		ct state related icmp type { destination-unreachable, time-exceeded, parameter-problem } accept
		ct state related icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept
		ct original ip saddr . ct reply ip saddr @self_4 accept
		ct original ip6 saddr . ct reply ip6 saddr @self_6 accept
	}
	chain log_ingress {
	}
	chain log_egress {
	}
	chain denied_ingress {
		jump related
		jump log_ingress
		counter name denied_ingress drop
	}
	chain denied_egress {
		jump related
		meta l4proto udp ct original proto-src 68 ct reply proto-src 67 return
		meta l4proto udp ct original proto-src 546 ct reply proto-src 547 return
		jump log_egress
		counter name denied_egress drop
	}

	chain drop_guarded {
		ip saddr @guarded_4 counter name no_tuple drop
		ip daddr @guarded_4 counter name no_tuple drop
		ip6 saddr @guarded_6 counter name no_tuple drop
		ip6 daddr @guarded_6 counter name no_tuple drop
	}
	chain no_tuple {
		icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept
		jump drop_guarded
	}
	chain untracked {
		icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept
		ip saddr vmap @untracked_4
		ip6 saddr vmap @untracked_6
	}
	chain first {
		meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn jump drop_guarded
		meta l4proto sctp sctp chunk init missing jump drop_guarded
	}

	chain unusual {
		ct state vmap { invalid : goto no_tuple, untracked : goto no_tuple, new : goto first }
	}
	chain unusual_to_node {
		ct state vmap { invalid : goto no_tuple, untracked : goto untracked, new : goto first }
	}

	chain egress_to_node {
		type filter hook input priority filter - 1; policy accept;
		ct state invalid,untracked,new jump unusual_to_node
		ct original ip saddr vmap @egress_4
		ct original ip6 saddr vmap @egress_6
	}
}
";

/// Where the kernel tells of what is denied: a group of nflog. Others like low numbers.
pub const LOG_GROUP: u16 = 24_513;
/// What it calls a packet that was to come in, in the direction in which its connection began.
pub const LOG_INGRESS: &str = "ringfence ingress";
/// Likewise, of one that was to go out.
pub const LOG_EGRESS: &str = "ringfence egress";
/// Behind either: the packet goes the other way, from the connection's destination to its source.
pub const LOG_REPLY: &str = " reply";
/// For each guarded address, how much of it was told lately.
pub const LOGGED: [&str; 2] = ["logged_4", "logged_6"];

/// Tells of packets that are denied, of each guarded address so many in a second at most: one that is scanned does not
/// silence the others.
///
/// - A packet that meets none of these rules is dropped like any other. So is one for which there is no room in the set.
/// - The header says who talks to whom, in one direction or the other: where these chains are, addresses and ports are those of
///   the connection's own tuple. Which direction it is, conntrack tells, and the prefix passes on. (The tuple itself would come
///   with the packet only on kernels that were built with `NETFILTER_NETLINK_GLUE_CT`.)
/// - Packets that are not tracked have no direction; those that come here leave the guarded address.
/// - Of a packet no more is copied than its headers.
const LOG: &str = "\
table inet ringfence {
	set logged_4 { type ipv4_addr; size 4096; flags dynamic,timeout; timeout 10s; }
	set logged_6 { type ipv6_addr; size 4096; flags dynamic,timeout; timeout 10s; }

	chain log_ingress {
		ct direction original update @logged_4 { ct reply ip saddr LIMIT } log prefix \"ringfence ingress\" group 24513 snaplen 128
		ct direction original update @logged_6 { ct reply ip6 saddr LIMIT } log prefix \"ringfence ingress\" group 24513 snaplen 128
		ct direction reply update @logged_4 { ct reply ip saddr LIMIT } log prefix \"ringfence ingress reply\" group 24513 snaplen 128
		ct direction reply update @logged_6 { ct reply ip6 saddr LIMIT } log prefix \"ringfence ingress reply\" group 24513 snaplen 128
	}
	chain log_egress {
		ct direction original update @logged_4 { ct original ip saddr LIMIT } log prefix \"ringfence egress\" group 24513 snaplen 128
		ct direction original update @logged_6 { ct original ip6 saddr LIMIT } log prefix \"ringfence egress\" group 24513 snaplen 128
		ct direction reply update @logged_4 { ct original ip saddr LIMIT } log prefix \"ringfence egress reply\" group 24513 snaplen 128
		ct direction reply update @logged_6 { ct original ip6 saddr LIMIT } log prefix \"ringfence egress reply\" group 24513 snaplen 128
		ct state untracked update @logged_4 { ip saddr LIMIT } log prefix \"ringfence egress\" group 24513 snaplen 128
		ct state untracked update @logged_6 { ip6 saddr LIMIT } log prefix \"ringfence egress\" group 24513 snaplen 128
	}
}
";

/// See [`LOG`]; so many packets in a second of each guarded address.
pub fn log(per_second: NonZeroU32) -> String {
    LOG.replace("LIMIT", &format!("limit rate {per_second}/second burst {per_second} packets"))
}

/// Judges beside `forward`, with a cache of its own, until that one's has been made anew: see [`meanwhile`].
pub const MEANWHILE: &str = "forward_meanwhile";

/// The verdict cache, by family.
pub const CACHE: [&str; 2] = ["accepted_4", "accepted_6"];

/// Judges what passes through the node, with an empty verdict cache.
///
/// Whether a packet passes depends on the rules and on its connection's addresses, protocol and destination port, and on
/// nothing else. So what both directions accepted is remembered by these, and costs one lookup from then on.
///
/// - It holds for as long as no rule, member or guard changes but for more members: every other commit begins a new one,
///   in [`meanwhile`]. An emptied set would not do, as a packet under way may add to it what only the old rules accept. Packets have the
///   rules of the base chain, and so its set, from beginning to end. A chain they jump to may be two commits ahead: none
///   of those refers to the cache.
/// - What depends on more is not remembered: ICMP has types in place of ports, and a client of DHCP is known by its source
///   port. What begins no connection as it should (`unusual`) is dropped before anything is looked up.
/// - When there is no room, packets are judged as if they were the first. Lookups do not make entries live longer, so
///   every verdict is found anew within seconds. The size is one that the agent can read whenever it compares the table.
pub const FORWARD: &str = "\
table inet ringfence {
	set accepted_4 { type ipv4_addr . ipv4_addr . inet_proto . inet_service; size 16384; flags dynamic,timeout; timeout 10s; }
	set accepted_6 { type ipv6_addr . ipv6_addr . inet_proto . inet_service; size 16384; flags dynamic,timeout; timeout 10s; }

	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state invalid,untracked,new jump unusual
		meta l4proto { 6, 17, 132 } ct original ip saddr . ct reply ip saddr . meta l4proto . ct reply proto-src @accepted_4 accept
		meta l4proto { 6, 17, 132 } ct original ip6 saddr . ct reply ip6 saddr . meta l4proto . ct reply proto-src @accepted_6 accept
		ct original ip saddr vmap @egress_4
		ct original ip6 saddr vmap @egress_6
		ct reply ip saddr vmap @ingress_4
		ct reply ip6 saddr vmap @ingress_6
		meta l4proto udp ct reply proto-src 67 accept
		meta l4proto udp ct reply proto-src 547 accept
		meta l4proto { 6, 17, 132 } add @accepted_4 { ct original ip saddr . ct reply ip saddr . meta l4proto . ct reply proto-src }
		meta l4proto { 6, 17, 132 } add @accepted_6 { ct original ip6 saddr . ct reply ip6 saddr . meta l4proto . ct reply proto-src }
	}
}
";

/// What begins a new cache and takes nothing away: a second [`FORWARD`] beside the first. What the first one still remembers,
/// this one judges, and a packet needs both.
///
/// After a commit that takes something away nft ends some ten milliseconds later, and nothing else can be committed until
/// then: the kernel lets it go when no packet can be using any of that. So there is [`settle`] for a quieter moment.
pub fn meanwhile() -> String {
    FORWARD.replace("chain forward", &format!("chain {MEANWHILE}")).replace("accepted_", "accepted_meanwhile_")
}

/// A new cache for `forward`, which from then on judges alone.
pub fn settle() -> String {
    let mut script = format!("flush chain {TABLE} forward\n");
    for set in CACHE {
        script += &format!("delete set {TABLE} {set}\n");
    }
    script += FORWARD;
    script += &format!("flush chain {TABLE} {MEANWHILE}\ndelete chain {TABLE} {MEANWHILE}\n");
    for set in CACHE {
        script += &format!("delete set {TABLE} {}\n", set.replace("accepted_", "accepted_meanwhile_"));
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_base_chain_refers_to_the_cache() {
        for set in CACHE {
            assert!(!SKELETON.contains(set));
            assert_eq!(FORWARD.matches(&format!("@{set}")).count(), 2, "one looks it up, one adds to it");
        }
        assert_eq!(FORWARD.matches("chain ").count(), 1);
    }

    #[test]
    fn what_is_told_goes_where_it_is_listened_for_under_the_names_that_are_known() {
        let text = log(NonZeroU32::new(7).unwrap());
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(" log ")).collect();
        let prefixes = [LOG_INGRESS, LOG_EGRESS].map(|prefix| [prefix.to_owned(), format!("{prefix}{LOG_REPLY}")]);
        for line in &lines {
            let known = |prefix: &String| line.contains(&format!("log prefix \"{prefix}\" group {LOG_GROUP} "));
            assert_eq!(prefixes.iter().flatten().filter(|prefix| known(prefix)).count(), 1, "{line}");
            assert!(line.contains("limit rate 7/second burst 7 packets }"), "{line}");
            assert_eq!(LOGGED.iter().filter(|set| line.contains(&format!(" update @{set} {{"))).count(), 1, "{line}");
        }
        assert_eq!(lines.len(), 10);
    }

    #[test]
    fn what_judges_meanwhile_shares_no_cache() {
        assert_eq!(meanwhile().matches("accepted_").count(), meanwhile().matches("accepted_meanwhile_").count());
        assert!(!meanwhile().contains("chain forward {"));
    }
}
