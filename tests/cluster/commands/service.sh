#!/usr/bin/env bash
# Starts, stops and restarts a service of the cluster, and returns when it
# answers, or is gone.
#
# usage: service start|stop|restart n1|n2 kubelet|containerd|kube-proxy
#        service start|stop|restart control etcd|apiserver|controller-manager|scheduler
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
source "$cluster_sources/lib/network.sh"
source "$cluster_sources/lib/host.sh"

(($# == 3)) || fail "usage: service start|stop|restart HOST NAME"
action=$1 host=$2 name=$3
[[ -x $state/$host/services/$name ]] || fail "no service $name on $host"

case $action in
start | stop | restart) ;;
*) fail "unknown action $action" ;;
esac
if [[ $action != start ]]; then stop_service "$host" "$name"; fi
if [[ $action != stop ]]; then
	start_service "$host" "$name"
	wait_for 60 "$name on $host" service_answers "$host" "$name"
fi
