# shellcheck shell=bash
# The network of the cluster: one namespace for each place, all plugged into
# one switch that lives in the control plane's namespace. Every interface is
# made inside a namespace, so that the machine's own list never changes.

# inside PLACE COMMAND… enters only the network. Not "ip netns exec", which
# also remounts /sys and so hides the cgroups.
inside() {
	local place=$1
	shift
	nsenter --net="$(netns "$place")" -- "$@"
}

create_network() {
	local place node
	for place in "${places[@]}"; do
		ip netns add "$prefix-$place"
		configure_kernel "$place"
		ip -n "$prefix-$place" link set lo up
	done

	ip -n "$prefix-control" link add nodes type bridge mcast_snooping 0
	add_addresses control nodes "$control_v4/24" "$control_v6/64"
	plug_in outside "$outside_v4/24" "$outside_v6/64"
	for node in "${nodes[@]}"; do
		plug_in "$node" "$(node_v4 "$node")/24" "$(node_v6 "$node")/64"
	done

	route_workloads
	add_outside_clients
}

# Duplicate address detection would cost a second for each IPv6 address, and
# reverse-path filtering drops what policy routing or a cluster IP brings in
# by another way.
configure_kernel() {
	inside "$1" sysctl -qw \
		net.ipv4.ip_forward=1 \
		net.ipv6.conf.all.forwarding=1 \
		net.ipv4.conf.all.rp_filter=0 \
		net.ipv4.conf.default.rp_filter=0 \
		net.ipv6.conf.all.accept_dad=0 \
		net.ipv6.conf.default.accept_dad=0 \
		net.ipv6.conf.all.accept_ra=0 \
		net.ipv6.conf.default.accept_ra=0
	# On a node, bridged pod traffic passes the same rules as routed traffic,
	# as Kubernetes asks for. The switch between the nodes is just a wire.
	local filter=0
	if [[ $1 == n? ]]; then filter=1; fi
	inside "$1" sysctl -qw \
		net.bridge.bridge-nf-call-iptables=$filter \
		net.bridge.bridge-nf-call-ip6tables=$filter
}

plug_in() {
	local place=$1
	shift
	ip -n "$prefix-control" link add "$place" type veth peer name eth0 netns "$prefix-$place"
	ip -n "$prefix-control" link set "$place" master nodes up
	add_addresses "$place" eth0 "$@"
}

add_addresses() {
	local place=$1 device=$2 address
	shift 2
	ip -n "$prefix-$place" link set "$device" up
	for address; do ip -n "$prefix-$place" address add "$address" dev "$device"; done
}

# Everybody reaches pods, by their own and by the bridge network, and guests
# through their node and the rest of the world through "outside"; cluster IPs are
# reached through the first node.
route_workloads() {
	local place node range
	for place in "${places[@]}"; do
		for node in "${nodes[@]}"; do
			[[ $node != "$place" ]] || continue
			for range in "$(node_pods_v4 "$node")" "$(node_guests_v4 "$node")" "$(node_bridge_v4 "$node")"; do
				ip -n "$prefix-$place" route add "$range" via "$(node_v4 "$node")"
			done
			for range in "$(node_pods_v6 "$node")" "$(node_guests_v6 "$node")" "$(node_bridge_v6 "$node")"; do
				ip -n "$prefix-$place" route add "$range" via "$(node_v6 "$node")"
			done
		done
		[[ $place != outside ]] || continue
		ip -n "$prefix-$place" route add default via "$outside_v4"
		ip -n "$prefix-$place" route add default via "$outside_v6"
	done
	for place in control outside; do
		ip -n "$prefix-$place" route add "$services_v4" via "$(node_v4 n1)"
		ip -n "$prefix-$place" route add "$services_v6" via "$(node_v6 n1)"
	done
}

# Two clients live outside: the office, whose address is used unless another
# is asked for, and a stranger.
add_outside_clients() {
	local route
	add_addresses outside lo "$office_v4/32" "$office_v6/128" "$stranger_v4/32" "$stranger_v6/128"
	ip -n "$prefix-outside" -4 route show | while read -r route; do
		# shellcheck disable=SC2086 # a route is a list of words
		ip -n "$prefix-outside" route change ${route% src *} src "$office_v4"
	done
	ip -n "$prefix-outside" -6 route show | grep -E 'eth0' | grep -v '^fe80' | while read -r route; do
		# shellcheck disable=SC2086
		ip -n "$prefix-outside" -6 route change ${route% pref *} src "$office_v6"
	done
}

delete_network() {
	local place
	for place in $(all_places); do
		[[ ! -e $(netns "$place") ]] || ip netns delete "$prefix-$place"
	done
}
