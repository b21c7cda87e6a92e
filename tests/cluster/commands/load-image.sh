#!/usr/bin/env bash
# Imports an image archive on every node.
#
# usage: load-image ARCHIVE
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
source "$cluster_sources/lib/node.sh"

pids=()
for node in "${nodes[@]}"; do
	load_images "$node" "$1" &
	pids+=($!)
done
# "wait" with several numbers tells of the last one's failure only.
for pid in "${pids[@]}"; do wait "$pid" || fail "import of $1 failed; see $state/logs"; done
