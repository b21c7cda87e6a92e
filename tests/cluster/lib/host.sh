# shellcheck shell=bash
# Hosts and the services on them. A host is a first process in namespaces of
# its own; a service is a script under HOST/services that becomes a daemon.

start_host() {
	local host=$1
	setsid --fork nsenter --net="$(netns "$host")" -- \
		unshare --mount --uts --ipc --pid --fork -- \
		"$cluster_sources/lib/host-init.sh" "$host" "$state/$host" \
		</dev/null >>"$state/logs/$host-init.log" 2>&1
	wait_for 10 "host $host" test -e "$state/$host/init.pid"
}

# init_of HOST prints the number of its first process, if that is alive.
init_of() {
	local host=$1 pid
	pid=$(cat "$state/$host/init.pid" 2>/dev/null) || return 1
	# The number may belong to somebody else by now.
	grep -qzxF "$state/$host" "/proc/$pid/cmdline" 2>/dev/null || return 1
	echo "$pid"
}

# on HOST COMMAND… runs as a process of the host.
on() {
	local init
	init=$(init_of "$1") || fail "host $1 is not running"
	shift
	nsenter --target "$init" --net --mount --uts --ipc --pid -- "$@"
}

# define_service HOST NAME COMMAND…
define_service() {
	local host=$1 name=$2
	shift 2
	mkdir -p "$state/$host/services"
	{
		echo '#!/bin/sh'
		echo "export PATH=$tools:$PATH"
		printf 'exec'
		printf ' \\\n\t%q' "$@"
		echo
	} >"$state/$host/services/$name"
	chmod +x "$state/$host/services/$name"
}

# lives HOST NAME tells whether the process of HOST/NAME.pid is there. The file
# holds the number by which the host knows it.
lives() {
	local host=$1 name=$2 init pid
	init=$(init_of "$host") || return 1
	pid=$(cat "$state/$host/$name.pid" 2>/dev/null) || return 1
	[[ -d /proc/$init/root/proc/$pid ]]
}

start_service() {
	local host=$1 name=$2
	! lives "$host" "$name.supervisor" || return 0
	on "$host" setsid --fork "$cluster_sources/lib/supervise.sh" \
		"$state/$host" "$name" </dev/null >>"$state/logs/$host-$name.log" 2>&1
	wait_for 5 "$name on $host to start" lives "$host" "$name"
}

# An API server would wait a long time for those who watch it; it is not given
# that long.
stop_service() {
	local host=$1 name=$2 limit=$((SECONDS + 3))
	if lives "$host" "$name.supervisor"; then
		on "$host" kill -KILL "$(cat "$state/$host/$name.supervisor.pid")"
	fi
	if lives "$host" "$name"; then
		on "$host" kill -TERM "$(cat "$state/$host/$name.pid")"
	fi
	while lives "$host" "$name"; do
		((SECONDS < limit)) || on "$host" kill -KILL "$(cat "$state/$host/$name.pid")" || true
		sleep 0.05
	done
	rm -f "$state/$host/$name.supervisor.pid" "$state/$host/$name.pid"
}

# service_answers HOST NAME asks the service itself.
service_answers() {
	local host=$1 name=$2 url
	case $name in
	containerd)
		ctr --address "$state/$host/run/containerd/containerd.sock" version
		return
		;;
	etcd) url=http://127.0.0.1:2379/health ;;
	apiserver) url=https://127.0.0.1:6443/readyz ;;
	controller-manager) url=https://127.0.0.1:10257/healthz ;;
	scheduler) url=https://127.0.0.1:10259/healthz ;;
	kubelet) url=http://127.0.0.1:10248/healthz ;;
	kube-proxy) url=http://127.0.0.1:10256/livez ;;
	esac
	inside "$host" curl --silent --fail --insecure --max-time 2 "$url"
}

services_of() {
	ls "$state/$1/services"
}

# Everything that runs in our network namespaces is ours. Killing a host's
# first process takes its pods along, whose namespaces are their own.
stop_hosts() {
	local place pids
	for place in $(all_places); do
		[[ -e $(netns "$place") ]] || continue
		while pids=$(ip netns pids "$prefix-$place") && [[ -n $pids ]]; do
			# shellcheck disable=SC2086 # a list of numbers
			kill -KILL $pids 2>/dev/null || true
			sleep 0.05
		done
	done
	# Killed processes leave the cgroups of their containers behind.
	for place in "${nodes[@]}"; do
		find /sys/fs/cgroup -depth -type d \
			\( -name "$prefix-$place" -o -path "*/$prefix-$place/*" \) -exec rmdir {} + 2>/dev/null || true
	done
}

tear_down() {
	stop_hosts
	delete_network
	# The logs stay, to be read after a failure.
	if [[ -d $state ]]; then
		find "$state" -mindepth 1 -maxdepth 1 ! -name logs -exec rm -rf --one-file-system {} +
	fi
}
