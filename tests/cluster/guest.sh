#!/usr/bin/env bash
# Builds what the virtual machines of the test cluster boot, once, and prints
# the folder that holds it as its last line: kernel, initramfs.
#
# usage: guest.sh IMAGES
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
images=$1
suite=bookworm
cache=${RINGFENCE_CACHE:-$HOME/.cache/ringfence}/guest

say() { echo "guest: $*" >&2; }

key=$({
	cat "$here/guest.sh" "$here"/guest/*
	sha256sum </bin/busybox
	sha256sum <"$images/probe"
} | sha256sum | cut -c1-16)
target=$cache/$key
if [[ -d $target ]]; then
	echo "$target"
	exit
fi

mkdir -p "$cache"
scratch=$(mktemp -d "$cache/.guest.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# Somebody else may have published the same meanwhile; theirs is as good.
publish() { mv -T "$1" "$2" 2>/dev/null || [[ -d $2 ]]; }

# Debian's kernel for virtual machines, unpacked and not installed, whatever
# this machine runs. Kept apart: any version will do, and the rest changes more
# often.
kernel=$cache/kernel-$suite
if [[ ! -d $kernel ]]; then
	say "downloading a kernel"
	# The package of that name only depends on the one of the current version.
	# shellcheck disable=SC2016 # The hook is expanded by mmdebstrap's shell.
	mmdebstrap --quiet --variant=custom --skip=output/dev --customize-hook='
		export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
		package=$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/^ *Depends: \(linux-image-[0-9].*\)/\1/p")
		cd "$1" && apt-get download -qq "$package"' "$suite" "$scratch/debian" >&2
	dpkg-deb --extract "$scratch"/debian/linux-image-*.deb "$scratch/kernel"
	publish "$scratch/kernel" "$kernel"
fi
version=$(basename "$kernel"/lib/modules/*)

say "building for Linux $version"
root=$scratch/root
mkdir -p "$root"/{bin,dev,modules,proc,run,sys} "$scratch/out"
cp "$images/probe" /bin/busybox "$root/bin/"
for applet in $(busybox --list); do
	[[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
done
install "$here/guest/init.sh" "$root/init"
install "$here/guest/obey.sh" "$root/bin/obey"
install "$here/guest/once.sh" "$root/bin/once"

# The drivers in the order in which they depend on each other, each once.
depmod --basedir "$kernel" "$version"
modprobe --dirname "$kernel" --set-version "$version" --show-depends --all virtio_pci virtio_net virtio_console |
	awk '$1 == "insmod" && !seen[$2]++ {print $2}' >"$scratch/modules"
number=10
while read -r module; do
	cp "$module" "$root/modules/$((number++))-$(basename "$module")"
done <"$scratch/modules"

# Not compressed: an emulated machine copies faster than it unpacks.
(cd "$root" && find . | busybox cpio --quiet -o -H newc -R 0:0) >"$scratch/out/initramfs"
cp "$kernel/boot/vmlinuz-$version" "$scratch/out/kernel"
chmod 755 "$scratch/out"
publish "$scratch/out" "$target"
echo "$target"
