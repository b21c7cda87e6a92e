#!/usr/bin/env bash
# Removes the test cluster: processes, mounts, namespaces and files, except
# its logs. Does no harm when there is none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
source "$cluster_sources/lib/network.sh"
source "$cluster_sources/lib/host.sh"

one_at_a_time "$@"
tear_down
say "down"
