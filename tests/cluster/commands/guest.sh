#!/usr/bin/env bash
# Virtual machines on the nodes, as a platform for them would attach them.
#
# usage: guest start NODE NAME [--bridge BRIDGE | --routed] --mac MAC --address A[,A6] --gateway G[,G6]
#        guest run NAME COMMAND…
#        guest stop NAME
#
# The guest is behind tap-NAME, a port of the BRIDGE (br0), which has the
# gateway's addresses and is made if missing; or a link of its own, to which
# routes lead. A gateway may say how long its subnet's prefix is: 10.20.1.65/26.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
source "$cluster_sources/lib/network.sh"

usage() { fail "usage: $(sed -n '/^# usage: /,/^#$/s/^# *\(usage: \)\?//p' "${BASH_SOURCE[0]}")"; }

# As many commands can run in a guest at the same time.
channels=(1 2 3 4)

# The processor is emulated, which works everywhere, in a virtual machine too.
start() {
	local node=$1 name=$2 bridge=br0 mac='' addresses='' gateways='' channel
	shift 2
	while (($# > 0)); do
		case $1 in
		--bridge) bridge=${2:?}; shift 2 ;;
		--routed) bridge=''; shift ;;
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
	echo "$node" >"$folder/node"
	plan "$bridge" "$addresses" "$gateways"
	plug_in_guest "$node" "tap-$name" "$bridge"

	local devices=()
	for channel in "${channels[@]}"; do
		mkfifo "$folder/$channel.in" "$folder/$channel.out"
		devices+=(-chardev "pipe,id=channel$channel,path=$folder/$channel" -device "virtserialport,chardev=channel$channel,nr=$channel")
	done
	inside "$node" qemu-system-x86_64 -name "$name" -accel tcg -m 128 \
		-nodefaults -no-reboot -display none -serial "file:$state/logs/guest-$name.log" \
		-kernel "$state/guest-image/kernel" -initrd "$state/guest-image/initramfs" \
		-append "console=ttyS0 quiet panic=-1 rf.name=$name rf.address=$(list "${inner[@]}") rf.gateway=$(list "${routers[@]}")" \
		-netdev "tap,id=net,ifname=tap-$name,script=no,downscript=no" \
		-device "virtio-net-pci,netdev=net,mac=$mac,romfile=" \
		-device virtio-serial-pci "${devices[@]}" \
		-daemonize -pidfile "$folder/pid"
	# Commands wait in the channel until there is somebody to obey them.
	patience=60
	run "$name" true
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

# plug_in_guest NODE TAP BRIDGE; no bridge: routed.
plug_in_guest() {
	local node=$1 tap=$2 bridge=$3 address
	ip -n "$prefix-$node" tuntap add dev "$tap" mode tap
	if [[ -z $bridge ]]; then
		add_addresses "$node" "$tap" "${outer[@]}"
		for address in "${inner[@]}"; do ip -n "$prefix-$node" route add "$address" dev "$tap"; done
		return
	fi
	(
		flock 9
		if ! ip -n "$prefix-$node" link show dev "$bridge" >/dev/null 2>&1; then
			# An address of its own: that of a port would change as ports come and go.
			ip -n "$prefix-$node" link add "$bridge" address 02:00:00:00:00:01 type bridge mcast_snooping 0
			# What we made, we also remove.
			ip -n "$prefix-$node" link set "$bridge" alias guests
			add_addresses "$node" "$bridge" "${outer[@]}"
		fi
		ip -n "$prefix-$node" link set "$tap" master "$bridge" up
	) 9>"$state/guests/$node.lock"
}

unplug_guest() {
	local node=$1 tap=$2 bridge
	(
		flock 9
		bridge=$(ip -n "$prefix-$node" -j link show dev "$tap" 2>/dev/null | jq -r '.[0].master // empty') || true
		ip -n "$prefix-$node" link delete "$tap" 2>/dev/null || true
		[[ $bridge ]] || exit 0
		if [[ -z $(ip -n "$prefix-$node" link show master "$bridge") ]] &&
			[[ $(ip -n "$prefix-$node" -j link show dev "$bridge" | jq -r '.[0].ifalias') == guests ]]; then
			ip -n "$prefix-$node" link delete "$bridge"
		fi
	) 9>"$state/guests/$node.lock"
}

# guest_pid NAME prints the number of its process, if that is alive.
guest_pid() {
	local pid
	pid=$(cat "$state/guests/$1/pid" 2>/dev/null) || return 1
	# The number may belong to somebody else by now.
	grep -qzF "$state/guests/$1/" "/proc/$pid/cmdline" 2>/dev/null || return 1
	echo "$pid"
}

stop() {
	local name=$1 pid
	[[ -d $state/guests/$name ]] || fail "no guest $name"
	# Nothing in it is worth an orderly end.
	while pid=$(guest_pid "$name"); do
		kill -KILL "$pid" 2>/dev/null || true
		sleep 0.02
	done
	unplug_guest "$(cat "$state/guests/$name/node")" "tap-$name"
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
stop) (($# == 1)) || usage ;;
*) usage ;;
esac
"$action" "$@"
