#!/usr/bin/env bash
# Writes the version of Cargo.toml into the chart, and renders the chart with its default values into deploy/ringfence.yaml and,
# what Helm runs before it uninstalls, into deploy/uninstall.yaml, for those who do not use Helm. deploy/kustomization.yaml
# stands on the former and is written by hand. With --check it writes nothing and fails when a file is not what it would write.
#
#   HELM=PROGRAM  default: helm
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
namespace=ringfence-system

check=${1:-}
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT

# settle FILE: it becomes what the file of this name in $rendered is; with --check, it must be that already.
settle() {
	local file=$1 new=$rendered/${1##*/}
	if [[ $check != --check ]]; then
		cp "$new" "$file"
		return
	fi
	diff -u "$file" "$new" >&2 || {
		echo "render: $file is not what Cargo.toml's version and the chart say; run: make manifests" >&2
		exit 1
	}
}

# The one place where a person edits the version is Cargo.toml.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
chart=charts/ringfence/Chart.yaml
sed -e "s/^version: .*/version: $version/" -e "s/^appVersion: .*/appVersion: \"$version\"/" "$chart" >"$rendered/Chart.yaml"
settle "$chart"

# The labels and annotations that say "Helm manages this" would be untrue.
template() {
	"${HELM:-helm}" template ringfence charts/ringfence --namespace "$namespace" "$@" |
		sed -e '/^ *helm\.sh\/chart: /d' -e '/^ *app\.kubernetes\.io\/managed-by: Helm$/d' \
			-e '/^ *annotations:$/{N;/\n *helm\.sh\/hook: /d}' -e '/^ *helm\.sh\/hook/d' \
			-e '/^ *# A job that failed stays/d'
}

{
	cat <<-YAML
		# Ringfence $version as plain manifests, rendered from charts/ringfence; do not edit.
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
		# Takes Ringfence $version off every node; rendered from charts/ringfence, do not edit.
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
	settle "deploy/$file"
	[[ $check == --check ]] || echo "render: deploy/$file, $(grep -c '^kind: ' "deploy/$file") objects" >&2
done
