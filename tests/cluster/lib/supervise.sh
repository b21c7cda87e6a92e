#!/usr/bin/env bash
# Keeps a service running, as systemd would: several programs of Kubernetes
# give up when what they depend on is away while they start.
#
# usage: supervise.sh FOLDER NAME LOG
set -uo pipefail

folder=$1 name=$2 log=$3

echo $$ >"$folder/$name.supervisor.pid"
while true; do
	"$folder/services/$name" >>"$log" 2>&1 </dev/null &
	echo $! >"$folder/$name.pid"
	wait $!
	sleep 1
done
