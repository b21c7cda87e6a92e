#!/usr/bin/env bash
# Renders the chart with its default values into deploy/ringfence.yaml and, what Helm runs before it uninstalls, into
# deploy/uninstall.yaml, for those who do not use Helm. deploy/kustomization.yaml stands on the former and is written by hand.
# With --check it writes nothing and fails when a file is not what the chart renders.
#
#   HELM=PROGRAM  default: helm
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
namespace=ringfence-system

chart_version=$(sed -n 's/^appVersion: "\(.*\)"/\1/p' charts/ringfence/Chart.yaml)
program_version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
if [[ $chart_version != "$program_version" ]]; then
	echo "render: the chart's appVersion is $chart_version, the program's version $program_version" >&2
	exit 1
fi

rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT

# The labels and annotations that say "Helm manages this" would be untrue.
template() {
	"${HELM:-helm}" template ringfence charts/ringfence --namespace "$namespace" "$@" |
		sed -e '/^ *helm\.sh\/chart: /d' -e '/^ *app\.kubernetes\.io\/managed-by: Helm$/d' \
			-e '/^ *annotations:$/{N;/\n *helm\.sh\/hook: /d}' -e '/^ *helm\.sh\/hook/d' \
			-e '/^ *# A job that failed stays/d'
}

{
	cat <<-YAML
		# Ringfence $program_version as plain manifests, rendered from charts/ringfence; do not edit.
		#
		# Put your image's name into deploy/kustomization.yaml, then
		#   kubectl apply --server-side -k deploy
		#
		# To uninstall, first apply deploy/uninstall.yaml: it says how. Deleted without that, the agents leave a CNI plugin
		# behind that lets no pod start.
		#
		# 'kubectl delete -f' on this file also deletes the custom resource definitions, and with them every group and
		# binding of the cluster. Delete those first, while the controller is there to release them:
		#   kubectl delete securitygroupbindings,securitygroups --all --all-namespaces
		apiVersion: v1
		kind: Namespace
		metadata:
		  name: $namespace
		  labels:
		    # The agents use their node's network and NET_ADMIN.
		    pod-security.kubernetes.io/enforce: privileged
	YAML
	# Without the hooks: they take Ringfence off every node.
	template --no-hooks
} >"$rendered/ringfence.yaml"
{
	cat <<-YAML
		# Takes Ringfence $program_version off every node; rendered from charts/ringfence, do not edit.
		#
		# Put your image's name in place of ringfence.test/ringfence, then
		#   kubectl apply -f deploy/uninstall.yaml
		#   kubectl -n $namespace wait --for=condition=Complete --timeout=5m job/ringfence-uninstall
		# and only then
		#   kubectl delete -f deploy/uninstall.yaml -f deploy/ringfence.yaml
	YAML
	template --show-only templates/uninstall.yaml
} >"$rendered/uninstall.yaml"

for file in ringfence.yaml uninstall.yaml; do
	if [[ ${1:-} == --check ]]; then
		diff -u "deploy/$file" "$rendered/$file" >&2 || {
			echo "render: deploy/$file is not what the chart renders; run: make manifests" >&2
			exit 1
		}
	else
		cp "$rendered/$file" "deploy/$file"
		echo "render: deploy/$file, $(grep -c '^kind: ' "deploy/$file") objects" >&2
	fi
done
