#!/usr/bin/env bash
# Keeps a service running, as systemd would: several programs of Kubernetes
# give up when what they depend on is away while they start.
#
# usage: supervise.sh FOLDER NAME
set -uo pipefail

folder=$1 name=$2

echo $$ >"$folder/$name.supervisor.pid"
while true; do
	"$folder/services/$name" &
	echo $! >"$folder/$name.pid"
	wait $!
	sleep 1
done
