#!/usr/bin/env bash
# Makes sure that this machine can run the test cluster, and installs what it
# lacks from Debian. Does nothing, quickly, when all is there.
set -euo pipefail

fail() { echo "prerequisites: $*" >&2; exit 1; }

[[ $(uname -s) == Linux ]] || fail "the test cluster needs Linux"
((EUID == 0)) || fail "the test cluster makes network namespaces and mounts: run it as root"
for program in go cargo; do
	command -v "$program" >/dev/null || fail "$program is missing; install its current release"
done

# A program of each package, and the package.
needed=(
	buildah:buildah
	busybox:busybox-static
	conntrack:conntrack
	curl:curl
	ip:iproute2
	jq:jq
	mmdebstrap:mmdebstrap
	modprobe:kmod
	nft:nftables
	nsenter:util-linux
	openssl:openssl
	qemu-system-x86_64:qemu-system-x86
	runc:runc
	sysctl:procps
	tcpdump:tcpdump
	update-ca-certificates:ca-certificates
)
missing=()
for pair in "${needed[@]}"; do
	command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
# The dynamic busybox package has the same program, and is no use in an image.
if [[ -e /bin/busybox ]] && ! dpkg -s busybox-static >/dev/null 2>&1; then
	missing+=(busybox-static)
fi

if ((${#missing[@]})); then
	command -v apt-get >/dev/null || fail "please install: ${missing[*]}"
	echo "prerequisites: installing ${missing[*]}" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq >&2
	apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2
fi

# Modules on some machines, built into the kernel on others.
modprobe -qa br_netfilter nf_conntrack overlay veth || true
