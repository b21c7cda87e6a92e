#!/bin/sh
# The first process of a guest: it sets up the network, serves what every test
# pod serves, and obeys commands from the cluster's machine.
#
# From the kernel's command line, with commas between the families:
#   rf.name=NAME rf.address=10.20.1.5/24,fd20:0:0:1::5/64 rf.gateway=10.20.1.1,fd20:0:0:1::1
set -eu
export PATH=/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do insmod "$module"; done

given() { tr ' ' '\n' </proc/cmdline | sed -n "s/^rf\.$1=//p" | tr ',' '\n'; }
family() { case $1 in *:*) echo -6 ;; *) echo -4 ;; esac; }

name=$(given name)
hostname "$name"
# Duplicate address detection would take a second, and nobody advertises routes.
for knob in accept_dad accept_ra; do echo 0 >"/proc/sys/net/ipv6/conf/eth0/$knob"; done
ip link set lo up
ip link set eth0 up
for address in $(given address); do
	ip "$(family "$address")" address add "$address" dev eth0
done
# Comes with the link, until which there are no routes of IPv6.
until ip -6 address show dev eth0 scope link | grep -q fe80; do sleep 0.1; done
# The gateway need not be in the subnet of the address.
for gateway in $(given gateway); do
	ip "$(family "$gateway")" route add "$gateway" dev eth0
	ip "$(family "$gateway")" route add default via "$gateway" dev eth0
done

probe serve --name "$name" --tcp 22,80,443,3306,65535 --udp 53,5353 &
# The last one that it listens to.
until probe udp ::1 5353; do sleep 0.1; done

for channel in /dev/vport*; do obey "$channel" & done
# Collects orphans, and never ends by itself.
while true; do
	sleep 3600 &
	wait
done
