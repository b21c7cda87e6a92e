#!/usr/bin/env bash
# The first process of a host of the cluster. It turns fresh namespaces into
# something programs take for a machine of their own: own /proc and /sys, own
# /run and /var, and an /etc and /opt that start as the real ones. When it
# dies the kernel ends every process of the host and drops every mount.
#
# usage: host-init.sh NAME FOLDER
set -euo pipefail

name=$1 folder=$2

# /proc is still the machine's, so this is the number the machine knows us by.
read -r pid _ </proc/self/stat

hostname "$name"
mount -t proc proc /proc

# A new sysfs shows this host's interfaces; the cgroups have to come along.
mkdir -p "$folder/cgroup"
mount --rbind /sys/fs/cgroup "$folder/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$folder/cgroup" /sys/fs/cgroup
umount --lazy "$folder/cgroup"

# A kubelet sets these for the whole machine; let it set a copy.
mkdir -p "$folder/knobs"
for knob in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
	kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
	cat "/proc/sys/$knob" >"$folder/knobs/${knob//\//.}"
	mount --bind "$folder/knobs/${knob//\//.}" "/proc/sys/$knob"
done

for part in etc opt; do
	mkdir -p "$folder/$part" "$folder/overlay/$part"
	mount -t overlay overlay "/$part" \
		-o "lowerdir=/$part,upperdir=$folder/$part,workdir=$folder/overlay/$part"
done
mkdir -p "$folder/run/netns" "$folder/var/lib" "$folder/var/log" "$folder/var/tmp"
ln -sfn /run "$folder/var/run"
mount --bind "$folder/var" /var
mount --bind "$folder/run" /run
# As on a real node, or pods could not ask for mounts that propagate.
mount --make-rshared /

# The pid file says that all of the above is done.
echo "$pid" >"$folder/init.pid.new"
mv "$folder/init.pid.new" "$folder/init.pid"

# Collects orphans, and never ends by itself.
while true; do
	sleep infinity &
	wait
done
