#!/usr/bin/env bash
# Every test there is, from lints to real clusters. Takes what it needs from Debian and compiles the rest once.
#
# The clusters are its own, apart from one that `make cluster` or `make demo` made, and are gone afterwards. Their logs
# stay in target/test-cluster/logs.
#
#   CLUSTERS="1.37:ptp 1.33:bridge"  the releases of Kubernetes and the pod networks to test
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export RINGFENCE_CLUSTER_DIR=${RINGFENCE_CLUSTER_DIR:-$PWD/target/test-cluster}
export RINGFENCE_CLUSTER_PREFIX=${RINGFENCE_CLUSTER_PREFIX:-rft}
cluster=$RINGFENCE_CLUSTER_DIR

now="the start"
step() {
	now=$*
	printf '\n==> %d min %02d s  %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$now"
}

# What the programs said is lost with the cluster, so it is kept when something failed.
keep_logs() {
	local folder=$cluster/logs/ringfence pod
	mkdir -p "$folder"
	"$cluster/kubectl" get pods,sg,sgb,nodeenforcements --all-namespaces --output yaml >"$folder/objects.yaml" 2>&1 || true
	for pod in $("$cluster/kubectl" --namespace ringfence-system get pods --output name 2>/dev/null); do
		"$cluster/kubectl" --namespace ringfence-system logs "$pod" >"$folder/${pod##*/}.log" 2>&1 || true
		"$cluster/kubectl" --namespace ringfence-system logs --previous "$pod" >"$folder/${pod##*/}.previous.log" 2>/dev/null || true
	done
	for node in n1 n2; do
		"$cluster/node" "$node" nft list table inet ringfence >"$folder/$node.nft" 2>&1 || true
	done
	echo "test: logs and the state of the cluster are in $cluster/logs" >&2
}

finish() {
	local status=$?
	trap - EXIT
	if ((status)); then
		echo "test: FAILED in: $now" >&2
		[[ ! -x $cluster/kubectl ]] || keep_logs
	fi
	tests/cluster/down.sh || status=1
	((status)) || echo "test: all passed in $((SECONDS / 60)) min $((SECONDS % 60)) s"
	exit "$status"
}
# An interrupted run cleans up too.
trap finish EXIT
trap 'exit 130' INT TERM

step "prerequisites"
tests/cluster/prerequisites.sh

step "lints"
make --no-print-directory lint

step "unit tests, rendering and real packets in network namespaces"
cargo test --locked

step "the cluster's programs (the first time they are compiled: about twelve minutes)"
tools=$(tests/cluster/tools.sh | tail -n 1)

step "chart and manifests"
tests/chart/check.sh "$tools"
HELM=$tools/helm deploy/render.sh --check

# What depends on neither is tested once.
skip=()
for choice in ${CLUSTERS:-1.37:ptp 1.33:bridge}; do
	export KUBERNETES=${choice%:*} CNI=${choice#*:}
	what="Kubernetes $KUBERNETES, pod network $CNI"
	step "cluster: $what"
	tests/cluster/up.sh
	step "image and helm install: $what"
	deploy/install.sh
	"$cluster/helm" test ringfence --namespace ringfence-system --logs
	step "every object of the chart against the API server, without changing anything"
	tests/chart/dry-run.sh
	step "end-to-end tests: $what"
	cargo test --locked --test e2e -- "${skip[@]}"
	if ((${#skip[@]} == 0)); then
		step "every command in the documentation"
		tests/docs.sh
	fi
	# The next one is another cluster; nothing of this one is reused.
	tests/cluster/down.sh
	skip=(--skip deletion:: --skip disruption:: --skip drops:: --skip edits:: --skip guests:: --skip lifecycle::s8_an_upgrade)
	skip+=(--skip moves:: --skip pairs:: --skip plugin:: --skip repair:: --skip usage::)
done
