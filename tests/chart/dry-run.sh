#!/usr/bin/env bash
# Asks the API server of the running test cluster whether it would take every object of the chart, with all that is optional.
# Nothing is changed. Kinds that the cluster does not know (ServiceMonitor and the like) are left out.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cluster=${RINGFENCE_CLUSTER_DIR:-$PWD/target/cluster}
namespace=ringfence-system

if [[ ! -x $cluster/kubectl ]]; then
	echo "dry-run: there is no test cluster; make one with: make cluster" >&2
	exit 1
fi

# The test's pod is left out as well: the account that it runs as would have to be there. `helm test` has it.
"$cluster/helm" template ringfence charts/ringfence --namespace "$namespace" --values tests/chart/everything.yaml |
	awk '
		function put() { if (text != "" && !skipped) printf "---\n%s", text; text = ""; skipped = 0 }
		/^---$/ { put(); next }
		/^apiVersion: monitoring\.coreos\.com\// || /^kind: Pod$/ { skipped = 1 }
		{ text = text $0 "\n" }
		END { put() }' |
	# Helm owns what is installed, and would go on owning it.
	"$cluster/kubectl" apply --server-side --dry-run=server --force-conflicts --validate=strict --filename -
