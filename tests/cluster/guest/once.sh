#!/bin/sh
# Runs one command, and says on lines of their own when it began and with what
# status it ended.
#
# usage: once RUNNING ID COMMAND
set -u

# Asked to end with its group, it still tells what came of the command.
trap : TERM
printf '\n%s begin\n' "$2"
(eval "exec $3")
status=$?
rm -f "$1"
printf '\n%s end %s\n' "$2" "$status"
