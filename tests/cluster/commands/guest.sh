#!/usr/bin/env bash
# Virtual machines on the nodes, as a platform for them would attach them.
#
# usage: guest start NODE NAME [--bridge BRIDGE | --routed | --pod NAMESPACE/POD] --mac MAC --address A[,A6] --gateway G[,G6]
#        guest run NAME COMMAND…
#        guest migrate NAME NODE|NAMESPACE/POD
#        guest stop NAME
#
# The guest is behind tap-NAME, a port of the BRIDGE (br0), which has the
# gateway's addresses and is made if missing; or a link of its own, to which
# routes lead from everywhere; or in a POD's network, where a bridge joins it
# to net1, whose addresses become its own. A gateway may say how long its
# subnet's prefix is: 10.20.1.65/26. Guests with a link of their own, or in a
# pod, migrate, and go on running on the other NODE or in the other POD.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
source "$cluster_sources/lib/network.sh"

usage() { fail "usage: $(sed -n '/^# usage: /,/^#$/s/^# *\(usage: \)\?//p' "${BASH_SOURCE[0]}")"; }

# Where it joins a guest to its pod.
pod_bridge=k6t-net1

# As many commands can run in a guest at the same time.
channels=(1 2 3 4)

# The processor is emulated, which works everywhere, in a virtual machine too.
start() {
	local node=$1 name=$2 bridge=br0 pod='' mac='' addresses='' gateways='' channel
	shift 2
	while (($# > 0)); do
		case $1 in
		--bridge) bridge=${2:?}; shift 2 ;;
		--routed) bridge=''; shift ;;
		--pod) pod=${2:?} bridge=$pod_bridge; shift 2 ;;
		--mac) mac=${2:?}; shift 2 ;;
		--address) addresses=${2:?}; shift 2 ;;
		--gateway) gateways=${2:?}; shift 2 ;;
		*) usage ;;
		esac
	done
	[[ $mac && $addresses && $gateways ]] || usage
	[[ " ${nodes[*]} " == *" $node "* ]] || fail "no node $node"
	# The kernel's limit for an interface is 15.
	[[ $name =~ ^[a-z0-9-]{1,11}$ ]] || fail "$name: at most 11 of a-z, 0-9 and -"

	# Left behind by a run that was killed.
	if [[ -d $state/guests/$name ]]; then stop "$name"; fi
	local folder=$state/guests/$name
	mkdir -p "$folder"
	plan "$bridge" "$addresses" "$gateways"
	for channel in "${channels[@]}"; do mkfifo "$folder/$channel.in" "$folder/$channel.out"; done
	declare -p bridge mac bare inner routers outer >"$folder/plan"
	if [[ $pod ]]; then enter_pod "$pod"; else place=$node; fi
	boot "$place" "$name"
	lead_to "$node"
	# Commands wait in the channel until there is somebody to obey them.
	patience=60
	run "$name" true
}

# boot PLACE NAME [OPTION…] plugs a planned guest in and starts its machine. The
# place is a node, or what enter_pod made of a pod.
boot() {
	local place=$1 name=$2 folder=$state/guests/$2 devices=() channel
	shift 2
	echo "$place" >"$folder/place"
	plug_in_guest "$place" "tap-$name" "$bridge"
	mkfifo "$folder/$place.in" "$folder/$place.out"
	for channel in "${channels[@]}"; do
		devices+=(-chardev "pipe,id=channel$channel,path=$folder/$channel" -device "virtserialport,chardev=channel$channel,nr=$channel")
	done
	inside "$place" qemu-system-x86_64 -name "$name" -accel tcg -m 128 \
		-nodefaults -no-reboot -display none -serial "file:$state/logs/guest-$name.log" \
		-kernel "$state/guest-image/kernel" -initrd "$state/guest-image/initramfs" \
		-append "console=ttyS0 quiet panic=-1 rf.name=$name rf.address=$(list "${inner[@]}") rf.gateway=$(list "${routers[@]}")" \
		-netdev "tap,id=net,ifname=tap-$name,script=no,downscript=no" \
		-device "virtio-net-pci,netdev=net,mac=$mac,romfile=" \
		-device virtio-serial-pci "${devices[@]}" \
		-chardev "pipe,id=monitor,path=$folder/$place" -mon chardev=monitor,mode=readline \
		-daemonize -pidfile "$folder/pid" "$@"
}

# Its memory goes from one process to another, on the same machine as it
# happens, and the guest does not notice. No command may run in it meanwhile.
migrate() {
	local name=$1 place=$2 folder=$state/guests/$1 from pid line
	local bridge mac bare inner routers outer
	pid=$(guest_pid "$name") || fail "guest $name is not running"
	from=$(cat "$folder/place")
	# shellcheck disable=SC1091 # written by start
	source "$folder/plan"
	case $bridge in
	"$pod_bridge") enter_pod "$place" ;;
	?*) fail "guest $name is on bridge $bridge" ;;
	esac
	[[ $place != "$from" ]] || fail "guest $name is on $place"
	# Each process keeps the file of its number to itself.
	mv "$folder/pid" "$folder/pid.leaving"
	boot "$place" "$name" -incoming "unix:$folder/memory"
	echo "migrate unix:$folder/memory" >"$folder/$from.in"
	exec {monitor}<"$folder/$place.out"
	until [[ ${line:-} == *"VM status: running"* ]]; do
		[[ ${line:-} == *"VM status"* || -z ${line:-} ]] && echo "info status" >"$folder/$place.in"
		IFS= read -r -t 20 -u "$monitor" line || fail "guest $name did not arrive on $place"
	done
	kill -KILL "$pid"
	while [[ -d /proc/$pid ]]; do sleep 0.02; done
	unplug_guest "$from" "tap-$name"
	rm -f "$folder/$from.in" "$folder/$from.out" "$folder/memory" "$folder/pid.leaving"
	lead_to "$place"
}

# enter_pod NAMESPACE/POD makes a place of a pod's network and sets it. There, as
# with KubeVirt's binding "bridge", net1 is a port, and leaves its addresses to
# the guest.
enter_pod() {
	local namespace=${1%/*} pod=${1#*/} network process
	network=$("$state/kubectl" exec --namespace "$namespace" "$pod" -- readlink /proc/self/ns/net)
	for process in /proc/[0-9]*; do
		[[ $(readlink "$process/ns/net" || true) != "$network" ]] || break
	done
	[[ $(readlink "$process/ns/net") == "$network" ]] || fail "pod $1 does not run here"
	place=pod-$namespace-$pod
	ip netns attach "$prefix-$place" "${process#/proc/}"
	ip -n "$prefix-$place" link set net1 down
	ip -n "$prefix-$place" address flush dev net1
	ip -n "$prefix-$place" link set net1 address 02:00:00:00:00:02
	ip -n "$prefix-$place" link add "$pod_bridge" address 02:00:00:00:00:01 type bridge mcast_snooping 0
	ip -n "$prefix-$place" link set net1 master "$pod_bridge" up
	ip -n "$prefix-$place" link set "$pod_bridge" up
}

list() {
	local IFS=,
	echo "$*"
}

# plan BRIDGE ADDRESSES GATEWAYS sets the addresses of the guest (bare, and
# inner: with prefixes), and of its gateway (routers, and outer).
plan() {
	local address gateway length
	bare=() inner=() routers=() outer=()
	IFS=, read -ra bare <<<"$2"
	IFS=, read -ra outer <<<"$3"
	routers=("${outer[@]%/*}")
	((${#bare[@]} == ${#routers[@]})) || fail "as many gateways as addresses, please"
	for i in "${!bare[@]}"; do
		address=${bare[i]} gateway=${outer[i]}
		[[ $address != */* ]] || fail "$address: the gateway says how long the prefix is"
		case $1:$address in
		:*:*) length=128 ;;
		:*) length=32 ;;
		*:*:*) length=64 ;;
		*) length=24 ;;
		esac
		if [[ $1 && $gateway == */* ]]; then length=${gateway#*/}; fi
		inner+=("$address/$length")
		outer[i]=${routers[i]}/$length
	done
}

# plug_in_guest PLACE TAP BRIDGE; no bridge: routed.
plug_in_guest() {
	local place=$1 tap=$2 bridge=$3 address
	ip -n "$prefix-$place" tuntap add dev "$tap" mode tap
	if [[ -z $bridge ]]; then
		# A guest that comes from another node finds its router where it was.
		ip -n "$prefix-$place" link set "$tap" address ee:ee:ee:ee:ee:ee
		add_addresses "$place" "$tap" "${outer[@]}"
		for address in "${inner[@]}"; do ip -n "$prefix-$place" route replace "$address" dev "$tap"; done
		return
	fi
	(
		flock 9
		if ! ip -n "$prefix-$place" link show dev "$bridge" >/dev/null 2>&1; then
			# An address of its own: that of a port would change as ports come and go.
			ip -n "$prefix-$place" link add "$bridge" address 02:00:00:00:00:01 type bridge mcast_snooping 0
			# What we made, we also remove.
			ip -n "$prefix-$place" link set "$bridge" alias guests
			add_addresses "$place" "$bridge" "${outer[@]}"
		fi
		ip -n "$prefix-$place" link set "$tap" master "$bridge" up
	) 9>"$state/guests/$place.lock"
}

# lead_to NODE makes all places reach a guest with a link of its own there,
# whatever range its addresses are of.
lead_to() {
	local place address
	[[ -z $bridge ]] || return 0
	for place in "${places[@]}"; do
		[[ $place != "$1" ]] || continue
		for address in "${inner[@]}"; do
			case $address in
			*:*) ip -n "$prefix-$place" route replace "$address" via "$(node_v6 "$1")" ;;
			*) ip -n "$prefix-$place" route replace "$address" via "$(node_v4 "$1")" ;;
			esac
		done
	done
}

# Undoes lead_to: its addresses lead to the node of their range.
forget_way() {
	local place address
	[[ -z $bridge ]] || return 0
	for place in "${places[@]}"; do
		for address in "${inner[@]}"; do ip -n "$prefix-$place" route delete "$address" 2>/dev/null || true; done
	done
}

unplug_guest() {
	local place=$1 tap=$2 bridge
	(
		flock 9
		bridge=$(ip -n "$prefix-$place" -j link show dev "$tap" 2>/dev/null | jq -r '.[0].master // empty') || true
		ip -n "$prefix-$place" link delete "$tap" 2>/dev/null || true
		[[ $bridge ]] || exit 0
		if [[ -z $(ip -n "$prefix-$place" link show master "$bridge") ]] &&
			[[ $(ip -n "$prefix-$place" -j link show dev "$bridge" | jq -r '.[0].ifalias') == guests ]]; then
			ip -n "$prefix-$place" link delete "$bridge"
		fi
	) 9>"$state/guests/$place.lock"
	# The place of a pod was there for the guest alone.
	[[ $place != pod-* ]] || ip netns delete "$prefix-$place"
}

# guest_pid NAME [FILE] prints the number of its process, if that is alive.
guest_pid() {
	local pid
	pid=$(cat "$state/guests/$1/${2:-pid}" 2>/dev/null) || return 1
	# The number may belong to somebody else by now.
	grep -qzF "$state/guests/$1/" "/proc/$pid/cmdline" 2>/dev/null || return 1
	echo "$pid"
}

stop() {
	local name=$1 pid bridge mac bare inner routers outer
	[[ -d $state/guests/$name ]] || fail "no guest $name"
	# Nothing in it is worth an orderly end.
	while pid=$(guest_pid "$name" || guest_pid "$name" pid.leaving); do
		kill -KILL "$pid" 2>/dev/null || true
		sleep 0.02
	done
	unplug_guest "$(cat "$state/guests/$name/place")" "tap-$name"
	if [[ -e $state/guests/$name/plan ]]; then
		# shellcheck disable=SC1091
		source "$state/guests/$name/plan"
		forget_way
	fi
	rm -rf "${state:?}/guests/$name"
}

# Takes a channel that nobody uses, until this process ends.
take_channel() {
	local folder=$1 candidate
	while true; do
		for candidate in "${channels[@]}"; do
			exec {lock}>"$folder/$candidate.lock"
			if flock --nonblock "$lock"; then
				channel=$candidate
				return
			fi
			exec {lock}>&-
		done
		sleep 0.1
	done
}

# run NAME COMMAND… passes on what the command says, and its status. Asked to
# end, it asks the command to end, and still passes on its last words.
run() {
	local name=$1 folder=$state/guests/$1 lock channel to from id line said
	shift
	guest_pid "$name" >/dev/null || fail "guest $name is not running"
	take_channel "$folder"
	exec {to}>"$folder/$channel.in" {from}<"$folder/$channel.out"
	id=$$-$RANDOM$RANDOM
	printf '%s %s\n' "$id" "$(printf '%q ' "$@")" >&"$to"
	# What is still there was for somebody who died.
	until [[ ${line:-} == "$id begin" ]]; do hear; done
	# shellcheck disable=SC2064 # the channel of now
	trap "echo >&$to" TERM INT
	while true; do
		hear
		[[ $line != "$id end "* ]] || break
		if [[ ${said+x} ]]; then printf '%s\n' "$said"; fi
		said=$line
	done
	# The end of the last line is ours.
	printf '%s' "${said:-}"
	return "${line##* }"
}

# The other end is closed when the machine ends.
hear() {
	IFS= read -r ${patience:+-t "$patience"} -u "$from" line ||
		fail "guest $name does not answer; see $state/logs/guest-$name.log"
}

action=${1:-}
shift || true
case $action in
start) (($# >= 2)) || usage ;;
run) (($# >= 2)) || usage ;;
migrate) (($# == 2)) || usage ;;
stop) (($# == 1)) || usage ;;
*) usage ;;
esac
"$action" "$@"
