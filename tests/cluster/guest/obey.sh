#!/bin/sh
# Runs what comes in on a channel, "ID COMMAND" on a line, see once.sh for the
# answers. Each command ends the one before it, whose sender must have died.
# An empty line asks the running command to end.
#
# usage: obey CHANNEL
set -u

exec 3<>"$1"
running=/run/${1##*/} pid=
while read -r id command <&3; do
	if [ -z "$id" ]; then
		[ ! -e "$running" ] || kill -TERM "-$pid"
		continue
	fi
	[ ! -e "$running" ] || kill -KILL "-$pid"
	: >"$running"
	# A group of its own, so that all of it can be ended.
	setsid once "$running" "$id" "$command" </dev/null >&3 2>&1 3>&- &
	pid=$!
done
