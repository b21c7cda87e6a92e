#!/usr/bin/env bash
# Builds the image of this tree, loads it into the running test cluster and installs it with Helm, or upgrades what is
# installed. Arguments go to Helm.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster=${RINGFENCE_CLUSTER_DIR:-$PWD/target/cluster}
namespace=ringfence-system

say() { echo "install: $*" >&2; }

if [[ ! -x $cluster/kubectl ]]; then
	say "there is no test cluster; make one with: make cluster"
	exit 1
fi

archive=$(deploy/image.sh | tail -n 1)
say "loading the image into the nodes"
"$cluster/load-image" "$archive"
# The tag is the same for every build of a version. The content's digest in an annotation is what makes an upgrade
# replace the pods when the image has changed, and leave them when it has not.
digest=$(tar --extract --to-stdout --file "$archive" index.json | jq --raw-output '.manifests[0].digest')

why() {
	say "it did not become ready; the pods:"
	"$cluster/kubectl" --namespace "$namespace" get pods --output wide >&2 || true
	"$cluster/kubectl" --namespace "$namespace" get events --sort-by=.lastTimestamp 2>/dev/null | tail -n 10 >&2 || true
	"$cluster/kubectl" --namespace "$namespace" logs --selector app.kubernetes.io/name=ringfence \
		--all-containers --prefix --tail 15 >&2 || true
	exit 1
}

say "helm upgrade --install"
"$cluster/helm" upgrade ringfence charts/ringfence --install --namespace "$namespace" --create-namespace \
	--set-string "controller.podAnnotations.image-digest=$digest" \
	--set-string "agent.podAnnotations.image-digest=$digest" \
	--hide-notes --wait --timeout 2m "$@" >&2 || why
# Helm may content itself with fewer agents than there are nodes.
"$cluster/kubectl" --namespace "$namespace" rollout status daemonset/ringfence-agent --timeout 60s >&2 || why
