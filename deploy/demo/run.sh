#!/usr/bin/env bash
# The demonstration: a real two-node cluster on this machine, Ringfence installed with Helm, and the three rule sets of
# deploy/examples/ on pods named after them. Every cell of its tables is a connection that was tried, over IPv4 and IPv6.
#
#   CNI=ptp|bridge  the pod network; default ptp
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
cluster=${RINGFENCE_CLUSTER_DIR:-$PWD/target/cluster}
export CNI=${CNI:-ptp}

bold='' green='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
	bold=$'\e[1;33m' green=$'\e[32m' plain=$'\e[0m'
fi
step() { printf '\n%s==> %3d s  %s%s\n' "$bold" "$SECONDS" "$*" "$plain"; }
fail() {
	echo "demo: $*" >&2
	exit 1
}
kubectl() { "$cluster/kubectl" "$@"; }

# shellcheck source=deploy/demo/servers.sh
source "$here/servers.sh"
# shellcheck source=deploy/demo/matrix.sh
source "$here/matrix.sh"

wait_enforced() {
	kubectl --namespace shop wait --for=condition=Enforced --timeout=30s "$@" || {
		kubectl --namespace shop get sg,sgb --output wide >&2
		fail "not enforced"
	}
}

# Waits, and says how long it took.
timed_wait() {
	local start=${EPOCHREALTIME/./}
	wait_enforced "$@" >/dev/null
	echo "  enforced on every node concerned $(((${EPOCHREALTIME/./} - start) / 1000)) ms after kubectl returned," \
		"as seen by kubectl wait"
}

# forgotten NODE ADDRESS: whether the node's kernel has nothing about that address, now or within a second.
forgotten() {
	local rules _
	for _ in {1..10}; do
		rules=$("$cluster/node" "$1" nft list table inet ringfence)
		grep --quiet --fixed-strings --word-regexp "$2" <<<"$rules" || return 0
		sleep 0.1
	done
	return 1
}

[[ $(uname -s) == Linux ]] || fail "this needs Linux: it runs a Kubernetes cluster in network namespaces"
((EUID == 0)) || fail "this needs root: it makes network namespaces and mounts. Try: sudo make demo"

step "Prerequisites"
tests/cluster/prerequisites.sh
echo "  all there"

step "Cluster: two nodes, Kubernetes' own programs, pod network $CNI (the first time they are compiled: about ten minutes)"
tests/cluster/up.sh
kubectl get nodes --output wide

step "Ringfence: image, helm install"
deploy/install.sh
kubectl --namespace ringfence-system get pods --output wide

step "Servers: web, app, db and bastion in namespace shop, a stranger elsewhere"
# From an earlier run, if there was one.
kubectl delete namespace shop elsewhere --ignore-not-found --timeout=60s
servers | kubectl apply --filename - >/dev/null
for namespace in shop elsewhere; do
	kubectl --namespace "$namespace" wait --for=condition=Available deployment --all --timeout=60s >/dev/null
done
kubectl get pods --all-namespaces --selector tier --output custom-columns=POD:.metadata.name,NODE:.spec.nodeName,ADDRESSES:.status.podIPs[*].ip

step "Before: no groups. Everybody reaches everything"
measure
show
expect everything

step "kubectl apply -f deploy/examples/"
mysql=allowed
kubectl apply --filename deploy/examples/
timed_wait sg --all
wait_enforced sgb --all >/dev/null
measure
show
expect allowed

step "Remove one rule: MySQL from app-tier. A connection that is open stays open in app, and is judged again on every packet"
locate
timeout 10 "$cluster/pod" "shop/${pod_of[app]}" "$cluster/probe" stream tcp "${addresses_of[db]%% *}" 3306 \
	--interval 50ms --duration 4s >"$cluster/demo-stream" &
stream=$!
sleep 1
kubectl --namespace shop patch securitygroup db-private --type json \
	--patch '[{"op": "test", "path": "/spec/ingress/0/ports/0", "value": 3306}, {"op": "remove", "path": "/spec/ingress/0"}]'
timed_wait sg/db-private
mysql=removed
measure
show
expect allowed
wait "$stream" || true
echo "  the open connection app -> db:3306, one message every 50 ms: $(cat "$cluster/demo-stream")"

step "Add it back: kubectl apply -f deploy/examples/internal-database.yaml"
kubectl apply --filename deploy/examples/internal-database.yaml
timed_wait sg/db-private
mysql=allowed
measure
show
expect allowed

step "Move app to the other node: new pod, new address, and nobody touches a group"
old_addresses=${addresses_of[app]}
kubectl --namespace shop patch deployment app --type merge \
	--patch '{"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "n2"}}}}}'
kubectl --namespace shop rollout status deployment app --timeout=60s
wait_enforced sg --all >/dev/null
measure
show
expect allowed
echo "  app had ${old_addresses/ / and } on n1 and has ${addresses_of[app]/ / and } on n2: what it may do is the same"
for node in n1 n2; do
	for address in $old_addresses; do
		forgotten "$node" "$address" || fail "the old address $address is still in the kernel of $node"
	done
done
echo "  the old addresses are in no kernel any more"

step "kubectl get sg,sgb -n shop"
kubectl --namespace shop get sg,sgb

cat <<END

The cluster is still running. Look around:
  $cluster/kubectl describe sg db-private -n shop
  $cluster/node n2 nft list table inet ringfence
  $cluster/outside $cluster/probe tcp ${addresses_of[web]%% *} 443

Delete it with:
  make cluster-delete
END
