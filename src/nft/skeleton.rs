//! The part of the table that never varies: base chains, maps, and what always works or never does.

/// Where ingress ends that no rule allowed.
pub const DENIED_INGRESS: &str = "denied_ingress";
/// Where egress ends that no rule allowed.
pub const DENIED_EGRESS: &str = "denied_egress";
/// Where packets of no connection end; the counter's name, as that of the two above is.
pub const NO_TUPLE: &str = "no_tuple";

/// Where packets come in.
pub const BASE_CHAINS: [&str; 3] = ["egress", "egress_to_node", "ingress"];

/// Creates the empty table. One base chain per direction: an accept ends only its own direction.
///
/// - Packets without a tuple cannot be judged by one: they are dropped by their header, except neighbour discovery.
/// - A new TCP connection begins with SYN, a new SCTP association with INIT; what does not is the middle of one that was
///   cut, or of someone else's. (To conntrack, the heartbeat that any SCTP stack sends by itself would begin one, backwards.)
/// - Every packet pays for the first rules, and most are of established connections: one comparison sends the others away.
/// - Related ICMP errors carry the tuple of the connection they speak of, so they reach `denied_*` where no rule for ICMP
///   lets them through: path MTU and unreachability always work. Redirects never do.
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
	chain denied_ingress {
		jump related
		counter name denied_ingress drop
	}
	chain denied_egress {
		jump related
		udp sport 68 udp dport 67 accept
		udp sport 546 udp dport 547 accept
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

	chain egress {
		type filter hook forward priority filter - 1; policy accept;
		ct state invalid,untracked,new jump unusual
		ct original ip saddr vmap @egress_4
		ct original ip6 saddr vmap @egress_6
	}
	chain egress_to_node {
		type filter hook input priority filter - 1; policy accept;
		ct state invalid,untracked,new jump unusual_to_node
		ct original ip saddr vmap @egress_4
		ct original ip6 saddr vmap @egress_6
	}
	chain ingress {
		type filter hook forward priority filter; policy accept;
		ct reply ip saddr vmap @ingress_4
		ct reply ip6 saddr vmap @ingress_6
	}
}
";
