#!/usr/bin/env bash
# Brings up the two-node test cluster and waits until it is ready. A healthy
# one is left as it is; any other is replaced.
#
# CNI=ptp|bridge chooses what connects the pods of a node, KUBERNETES=1.37|1.33
# the release.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
for part in network host credentials control node wrappers; do
	# shellcheck source=/dev/null
	source "$cluster_sources/lib/$part.sh"
done

CNI=${CNI:-ptp}
[[ $CNI == ptp || $CNI == bridge ]] || fail "CNI is ptp or bridge, not $CNI"
"$cluster_sources/prerequisites.sh"
one_at_a_time "$@"

tools=$("$cluster_sources/tools.sh")
images=$("$cluster_sources/images.sh" "$tools")
guest=$("$cluster_sources/guest.sh" "$images")
export PATH=$tools:$PATH
# Hosts have their own /run and /var and could not see what lies there.
for path in "$state" "$tools" "$cluster_sources"; do
	[[ $path != /run/* && $path != /var/* ]] || fail "$path: choose a place outside /run and /var"
done

kubectl() { inside control kubectl --kubeconfig "$state/kubeconfig" "$@"; }

# What the running cluster was made of; another answer means another cluster.
recipe() { echo "$CNI $tools $images $guest"; }

healthy() {
	local host name
	[[ $(cat "$state/recipe" 2>/dev/null) == "$(recipe)" ]] || return 1
	for host in "${hosts[@]}"; do
		for name in $(services_of "$host"); do service_answers "$host" "$name" || return 1; done
	done
	kubectl wait --for=condition=Ready node --all --timeout=5s &&
		kubectl -n kube-system wait --for=condition=Available deployment/coredns --timeout=5s
}

start_control_plane() {
	start_service control etcd
	start_service control apiserver
	wait_for 60 "the API server" service_answers control apiserver
	start_service control controller-manager
	start_service control scheduler
	node_objects | kubectl apply -f - >/dev/null
	kubectl apply -f "$cluster_sources/manifests/network-attachment-definitions.yaml" \
		-f "$cluster_sources/manifests/coredns.yaml" >/dev/null
}

start_runtime() {
	start_service "$1" containerd
	wait_for 30 "containerd on $1" service_answers "$1" containerd
	load_images "$1" "$images/toolbox.tar" "$images/coredns.tar"
}

start=$SECONDS
if healthy >/dev/null 2>&1; then
	say "already up ($CNI)"
	exit
fi
tear_down
mkdir -p "$state/logs"
rm -rf "${state:?}"/logs/*

say "network and hosts ($CNI)"
create_network
create_credentials
define_control_plane
for node in "${nodes[@]}"; do prepare_node "$node"; done
for host in "${hosts[@]}"; do start_host "$host"; done
write_wrappers

say "control plane and container runtimes"
pids=()
for node in "${nodes[@]}"; do
	start_runtime "$node" &
	pids+=($!)
done
start_control_plane
for pid in "${pids[@]}"; do wait "$pid"; done

say "nodes"
for node in "${nodes[@]}"; do
	start_service "$node" kubelet
	start_service "$node" kube-proxy
done
wait_for 60 "the nodes" kubectl wait --for=condition=Ready node --all --timeout=60s
wait_for 30 "the default service account" kubectl get serviceaccount default
say "name server"
wait_for 60 "the name server" kubectl -n kube-system wait --for=condition=Available deployment/coredns --timeout=60s

recipe >"$state/recipe"
say "up in $((SECONDS - start)) s; use $state/kubectl"
