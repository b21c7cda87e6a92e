//! The part of the table that does not vary with devices: by what each frame is judged.

use super::{TABLE, Tunnels};

/// Creates the table without devices.
///
/// - `ether type`, not `meta protocol`: the kernel has put a VLAN tag aside by now, and only the former still shows it.
/// - `meta l4proto` finds the protocol behind IPv6 extension headers. Where there is none, or its header is not in the first
///   fragment (which nobody does who means well: RFC 7112), the packet is dropped, so nothing can be hidden there.
/// - Fragments carry their source in each header. What the first one says decides, without which the others are nothing.
/// - Protocols by number: names would need /etc/protocols, which slim images do not have.
pub(super) fn skeleton(tunnels: &Tunnels) -> String {
    let Tunnels { protocols, udp_ports } = tunnels;
    let tunnel_protocols: String = protocols.iter().map(|protocol| format!(", {protocol} : goto tunnel")).collect();
    // To the ports of DHCP's clients, of both families, only servers send: those are not to be a tunnel's.
    let tunnel_ports: String = udp_ports
        .iter()
        .filter(|port| ![68, 546].contains(*port))
        .map(|port| format!(", {port} : goto tunnel"))
        .collect();
    format!(
        "\
table {TABLE} {{
	comment \"Ringfence: own addresses only\"

	counter other_mac {{ }}
	counter other_protocol {{ }}
	counter other_address {{ }}
	counter other_arp {{ }}
	counter other_neighbour {{ }}
	counter link_local {{ }}
	counter infrastructure {{ }}
	counter tunnel {{ }}

	set own_4 {{ type ifname . ipv4_addr; }}
	set own_6 {{ type ifname . ipv6_addr; }}
	set own_link_local {{ type ifname . ipv6_addr; }}
	set any_link_local {{ type ifname; }}
	set own_targets {{ typeof iifname . @th,64,128; }}

	chain tunnel {{
		counter name tunnel drop
	}}
	chain infrastructure {{
		counter name infrastructure drop
	}}
	chain no_header {{
		ip frag-off & 0x1fff != 0 accept
		frag frag-off != 0 accept
		counter name other_protocol drop
	}}
	chain udp_ports {{
		udp dport vmap {{ 68 : goto infrastructure, 546 : goto infrastructure{tunnel_ports} }}
		udp dport != 0 accept
		goto no_header
	}}

	chain arp_sender {{
		arp htype != 1 counter name other_arp drop
		arp ptype != ip counter name other_arp drop
		arp hlen != 6 counter name other_arp drop
		arp plen != 4 counter name other_arp drop
		arp operation {{ request, reply }} iifname . arp saddr ip @own_4 accept
		arp operation request arp saddr ip 0.0.0.0 iifname . arp daddr ip @own_4 accept
		counter name other_arp drop
	}}

	chain icmp_types {{
		icmp type {{ redirect, router-advertisement }} counter name infrastructure drop
		accept
	}}
	chain own_ip {{
		meta l4proto 6 accept
		meta l4proto vmap {{ 1 : goto icmp_types, 17 : goto udp_ports{tunnel_protocols} }}
		accept
	}}
	chain ip_source {{
		iifname . ip saddr @own_4 goto own_ip
		ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
		counter name other_address drop
	}}

	chain claim {{
		iifname . @th,64,128 @own_targets accept
		iifname @any_link_local @th,64,16 0xfe80 accept
		counter name other_neighbour drop
	}}
	chain icmpv6_types {{
		icmpv6 type vmap {{ nd-neighbor-advert : goto claim, nd-router-advert : goto infrastructure, nd-redirect : goto infrastructure, mld-listener-query : goto infrastructure, router-renumbering : goto infrastructure }}
		icmpv6 type != 255 accept
		goto no_header
	}}
	chain discovery {{
		icmpv6 type vmap {{ nd-neighbor-solicit : accept, nd-neighbor-advert : goto claim, nd-router-solicit : accept, mld-listener-report : accept, mld-listener-done : accept, mld2-listener-report : accept, nd-router-advert : goto infrastructure, nd-redirect : goto infrastructure, mld-listener-query : goto infrastructure }}
		udp sport 546 udp dport 547 accept
		counter name link_local drop
	}}
	chain unspecified {{
		icmpv6 type vmap {{ nd-neighbor-solicit : goto claim, nd-router-solicit : accept, mld-listener-report : accept, mld-listener-done : accept, mld2-listener-report : accept }}
		counter name other_address drop
	}}
	chain own_ip6 {{
		ip6 daddr fe80::/10 goto discovery
		meta l4proto 6 accept
		meta l4proto vmap {{ 17 : goto udp_ports, 58 : goto icmpv6_types{tunnel_protocols} }}
		meta l4proto != 255 accept
		counter name other_protocol drop
	}}
	chain ip6_source {{
		iifname . ip6 saddr @own_6 goto own_ip6
		iifname . ip6 saddr @own_link_local goto discovery
		iifname @any_link_local ip6 saddr fe80::/10 goto discovery
		ip6 saddr :: goto unspecified
		counter name other_address drop
	}}

	chain own {{
		ether type vmap {{ ip : goto ip_source, ip6 : goto ip6_source, arp : goto arp_sender }}
		counter name other_protocol drop
	}}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_never_take_the_place_of_what_works() {
        let tunnels = Tunnels::new([6, 17, 1, 58, 47], [68, 546, 4789]);
        let text = skeleton(&tunnels);
        assert!(text.contains("17 : goto udp_ports, 47 : goto tunnel }"), "{text}");
        assert!(text.contains("546 : goto infrastructure, 4789 : goto tunnel }"), "{text}");
    }
}
