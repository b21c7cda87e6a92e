#!/usr/bin/env bash
# Builds the test cluster's own programs and the images, each once, and prints
# the folder that holds them as its last line: probe, secondary-networks,
# toolbox.tar, coredns.tar.
#
# usage: images.sh TOOLS_BIN
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$1
cache=${RINGFENCE_CACHE:-$HOME/.cache/ringfence}/images

key=$({
	cat "$here"/probe/* "$here"/secondary-networks/* "$here"/images/*/Containerfile
	sha256sum </bin/busybox
	readlink "$tools/coredns"
	go env GOVERSION
} | sha256sum | cut -c1-16)
target=$cache/$key
if [[ -d $target ]]; then
	echo "$target"
	exit
fi

mkdir -p "$cache"
scratch=$(mktemp -d "$cache/.images.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# A store of its own, so that nobody's images are touched; nothing is run, so
# the plainest driver and isolation will do.
image() {
	local name=$1 context=$2
	echo "images: building $name" >&2
	local buildah=(buildah --root "$scratch/store" --runroot "$scratch/run" --storage-driver vfs)
	"${buildah[@]}" build --quiet --isolation chroot --tag "ringfence.test/$name:1" \
		--file "$here/images/$name/Containerfile" "$context" >&2
	"${buildah[@]}" push --quiet "ringfence.test/$name:1" \
		"oci-archive:$scratch/out/$name.tar:ringfence.test/$name:1" >&2
}

mkdir -p "$scratch/out" "$scratch/toolbox/bin" "$scratch/coredns"
for program in probe secondary-networks; do
	(cd "$here/$program" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$scratch/out/" .)
done

cp "$scratch/out/probe" /bin/busybox "$scratch/toolbox/bin/"
for applet in $(busybox --list); do
	[[ $applet == busybox ]] || ln -s busybox "$scratch/toolbox/bin/$applet"
done
image toolbox "$scratch/toolbox"

cp -L "$tools/coredns" "$scratch/coredns/"
image coredns "$scratch/coredns"

chmod 755 "$scratch/out"
# Somebody else may have published the same meanwhile; theirs is as good.
mv -T "$scratch/out" "$target" 2>/dev/null || [[ -d $target ]]
echo "$target"
