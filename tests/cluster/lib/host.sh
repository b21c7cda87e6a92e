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

# The pid file holds the number the host knows the service by.
service_runs() {
	local host=$1 name=$2 init pid
	init=$(init_of "$host") || return 1
	pid=$(cat "$state/$host/$name.pid" 2>/dev/null) || return 1
	[[ -d /proc/$init/root/proc/$pid ]]
}

start_service() {
	local host=$1 name=$2
	! service_runs "$host" "$name" || return 0
	# The shell becomes the daemon, so the number it writes stays true.
	# shellcheck disable=SC2016 # expanded by the inner shell
	on "$host" setsid --fork sh -c 'echo $$ >"$1"; exec "$2" >>"$3" 2>&1' service \
		"$state/$host/$name.pid" "$state/$host/services/$name" "$state/logs/$host-$name.log" </dev/null
	wait_for 5 "$name on $host to start" service_runs "$host" "$name"
}

stop_service() {
	local host=$1 name=$2 pid limit=$((SECONDS + 10))
	service_runs "$host" "$name" || return 0
	pid=$(cat "$state/$host/$name.pid")
	on "$host" kill -TERM "$pid"
	while service_runs "$host" "$name"; do
		((SECONDS < limit)) || on "$host" kill -KILL "$pid" || true
		sleep 0.05
	done
	rm -f "$state/$host/$name.pid"
}

services_of() {
	ls "$state/$1/services"
}

# Everything that runs in our network namespaces is ours. Killing a host's
# first process takes its pods along, whose namespaces are their own.
stop_hosts() {
	local place pids
	for place in "${places[@]}"; do
		[[ -e $(netns "$place") ]] || continue
		while pids=$(ip netns pids "$prefix-$place") && [[ -n $pids ]]; do
			# shellcheck disable=SC2086 # a list of numbers
			kill -KILL $pids 2>/dev/null || true
			sleep 0.05
		done
	done
	# Killed processes leave the cgroups of their containers behind.
	for place in "${nodes[@]}"; do
		find /sys/fs/cgroup -depth -type d -path "*/$prefix-$place*" -exec rmdir {} + 2>/dev/null || true
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
