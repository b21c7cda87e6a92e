# shellcheck shell=bash
# Names, addresses and small helpers that all parts of the cluster share.

cluster_sources=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Both can be set, so that two clusters can run beside each other: all
# addresses live inside network namespaces and do not clash.
state=${RINGFENCE_CLUSTER_DIR:-$(cd "$cluster_sources/../.." && pwd)/target/cluster}
prefix=${RINGFENCE_CLUSTER_PREFIX:-rf}

nodes=(n1 n2)
# A host has processes; "outside" is only a place in the network.
hosts=(control "${nodes[@]}")
places=("${hosts[@]}" outside)

control_v4=172.30.0.254 control_v6=fd00:172:30::fe
outside_v4=172.30.0.253 outside_v6=fd00:172:30::fd
office_v4=203.0.113.10 office_v6=2001:db8::10
stranger_v4=198.51.100.7 stranger_v6=2001:db8:ffff::7

pods_v4=10.244.0.0/16 pods_v6=fd00:10:244::/48
bridges_v4=10.30.0.0/16 bridges_v6=fd30::/48
services_v4=10.96.0.0/16 services_v6=fd00:10:96::/112
kubernetes_v4=10.96.0.1 dns_v4=10.96.0.10

# A node's number is the last character of its name.
node_v4() { echo "172.30.0.${1#n}"; }
node_v6() { echo "fd00:172:30::${1#n}"; }
node_pods_v4() { echo "10.244.${1#n}.0/24"; }
node_pods_v6() { echo "fd00:10:244:${1#n}::/64"; }
node_guests_v4() { echo "10.20.${1#n}.0/24"; }
node_guests_v6() { echo "fd20:0:0:${1#n}::/64"; }
# Of the secondary network "bridge".
node_bridge_v4() { echo "10.30.${1#n}.0/24"; }
node_bridge_v6() { echo "fd30:0:0:${1#n}::/64"; }

say() { echo "cluster: $*" >&2; }
fail() { say "$*"; exit 1; }

# Also those of pods, in which guests are.
all_places() {
	local pod
	printf '%s\n' "${places[@]}"
	for pod in "$(netns pod-)"*; do [[ ! -e $pod ]] || echo "${pod#"$(netns '')"}"; done
}
netns() { echo "/run/netns/$prefix-$1"; }

# wait_for SECONDS WHAT COMMAND… polls until the command succeeds.
wait_for() {
	local limit=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		((SECONDS < limit)) || fail "gave up waiting for $what; see $state/logs"
		sleep 0.1
	done
}

# Runs the calling script again under a lock; its daemons do not inherit it.
one_at_a_time() {
	mkdir -p "$(dirname "$state")"
	if [[ ${RINGFENCE_CLUSTER_LOCKED:-} != "$state" ]]; then
		RINGFENCE_CLUSTER_LOCKED=$state exec flock --close "$state.lock" "$0" "$@"
	fi
}
