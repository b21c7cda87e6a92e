#!/usr/bin/env bash
# Renders the chart with its default values into deploy/ringfence.yaml, for those who do not use Helm.
# With --check it writes nothing and fails when the file is not what the chart renders.
#
#   HELM=PROGRAM  default: helm
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=deploy/ringfence.yaml
namespace=ringfence-system

chart_version=$(sed -n 's/^appVersion: "\(.*\)"/\1/p' charts/ringfence/Chart.yaml)
program_version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
if [[ $chart_version != "$program_version" ]]; then
	echo "render: the chart's appVersion is $chart_version, the program's version $program_version" >&2
	exit 1
fi

rendered=$(mktemp)
trap 'rm -f "$rendered"' EXIT
{
	cat <<-YAML
		# Ringfence $program_version as plain manifests, rendered from charts/ringfence; do not edit.
		#
		# Put your image's name in place of ringfence.test/ringfence, then
		#   kubectl apply --server-side -f deploy/ringfence.yaml
		#
		# To uninstall, first run deploy/uninstall.yaml: it says how. Deleted without that, the agents leave a CNI plugin
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
	# The labels that say "Helm manages this" would be untrue.
	"${HELM:-helm}" template ringfence charts/ringfence --namespace "$namespace" |
		sed -e '/^ *helm\.sh\/chart: /d' -e '/^ *app\.kubernetes\.io\/managed-by: Helm$/d'
} >"$rendered"

if [[ ${1:-} == --check ]]; then
	diff -u "$target" "$rendered" >&2 || {
		echo "render: $target is not what the chart renders; run: make manifests" >&2
		exit 1
	}
else
	cp "$rendered" "$target"
	echo "render: $target, $(grep -c '^kind: ' "$target") objects" >&2
fi
