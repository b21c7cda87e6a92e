# shellcheck shell=bash
# The commands people and tests use. They work from any folder and go through
# as few processes as possible, since tests run them by the hundred.

write_wrappers() {
	cp "$images/probe" "$state/probe"
	ln -s "$guest" "$state/guest-image"
	mkdir -p "$state/guests"

	# The API server is only reachable from inside the cluster's network.
	wrapper kubectl "exec nsenter --net=$(netns control) -- $tools/kubectl --kubeconfig $state/kubeconfig \"\$@\""
	wrapper helm "exec nsenter --net=$(netns control) -- $tools/helm --kubeconfig $state/kubeconfig \"\$@\""

	wrapper outside "exec nsenter --net=$(netns outside) -- \"\$@\""
	# shellcheck disable=SC2016 # expanded by the wrapper
	wrapper node 'place=$1; shift' "exec nsenter --net=/run/netns/$prefix-\$place -- \"\$@\""

	script pod
	script guest
	script load-image
	script service
}

wrapper() {
	local name=$1
	shift
	printf '%s\n' '#!/bin/sh' "$@" >"$state/$name"
	chmod +x "$state/$name"
}

# script NAME makes a wrapper of commands/NAME.sh, bound to this cluster.
script() {
	wrapper "$1" \
		"export RINGFENCE_CLUSTER_DIR=$state RINGFENCE_CLUSTER_PREFIX=$prefix PATH=$tools:\$PATH" \
		"exec $cluster_sources/commands/$1.sh \"\$@\""
}
