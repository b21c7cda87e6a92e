#!/usr/bin/env bash
# Builds the image and writes it to target/image/ringfence.tar, an OCI archive that `ctr images import`, `podman load`
# and `skopeo copy` read. Prints the file's name as its last line.
#
#   TAG=0.1.0        the image's tag; default: the program's version
#   BASE=IMAGE       another base than the one described below
#   BINARY=FILE      a program built elsewhere, inside this folder; default: a release build
#   CNI_PLUGIN=FILE  likewise the CNI plugin, which must be linked statically
#   RINGFENCE_CACHE  where the base is kept; default: ~/.cache/ringfence
#
# Without BASE the base is made of Debian packages by mmdebstrap, once, so that no image registry is needed. Where
# mmdebstrap is missing it is the Containerfile's own default, which buildah pulls.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=${RINGFENCE_CACHE:-$HOME/.cache/ringfence}/image-base
out=target/image
suite=bookworm

say() { echo "image: $*" >&2; }
fail() {
	say "$*"
	exit 1
}

# Storage of its own: the machine's images are nobody's business here, and everything under target/ may be deleted.
# The chroot isolation needs neither seccomp nor cgroups of the machine it runs on.
build_tool() {
	buildah --root "$PWD/$out/storage" --runroot "$PWD/$out/run" "$@"
}
export BUILDAH_ISOLATION=chroot

# The base's root filesystem, made once and kept under a name that says what it was made from.
base_filesystem() {
	# shellcheck disable=SC2016 # The hook is expanded by mmdebstrap's shell.
	local options=(
		--variant=minbase --include=nftables
		# What Debian's slim images leave out as well; the licences stay.
		--dpkgopt='path-exclude=/usr/share/man/*'
		--dpkgopt='path-exclude=/usr/share/locale/*'
		--dpkgopt='path-exclude=/usr/share/info/*'
		--dpkgopt='path-exclude=/usr/share/doc/*'
		--dpkgopt='path-include=/usr/share/doc/*/copyright'
		# The building machine's name and resolver do not belong into an image, and devices are the runtime's.
		--customize-hook='rm -f "$1/etc/hostname" "$1/etc/resolv.conf"'
		--skip=output/dev
	)
	local key folder scratch
	key=$(printf '%s\n' "$suite" "${options[@]}" "$(uname -m)" | sha256sum | cut -c1-16)
	folder=$cache/$key
	if [[ ! -f $folder/rootfs.tar ]]; then
		say "making the base of Debian packages (once; a minute or two)"
		mkdir -p "$cache"
		scratch=$(mktemp -d "$cache/.new.XXXXXX")
		# shellcheck disable=SC2064 # Named now: by then there is no such variable. It is the subshell of whoever asks that exits.
		trap "rm -rf '$scratch'" EXIT
		mmdebstrap --quiet "${options[@]}" "$suite" "$scratch/rootfs.tar" >&2 ||
			fail "mmdebstrap could not make the base; BASE=IMAGE uses an image instead"
		chmod 755 "$scratch"
		# Renamed when it is complete: an interrupted build leaves nothing that looks finished.
		mv -T "$scratch" "$folder" 2>/dev/null || [[ -d $folder ]]
	fi
	echo "$folder"
}

# The name of the base image in the storage above.
base_image() {
	local folder image container
	if [[ -n ${BASE:-} ]]; then
		echo "$BASE"
		return
	fi
	if ! command -v mmdebstrap >/dev/null; then
		sed -n 's/^ARG BASE=//p' Containerfile
		return
	fi
	folder=$(base_filesystem)
	image=localhost/ringfence-base:$(basename "$folder")
	if ! build_tool inspect --type image "$image" >/dev/null 2>&1; then
		say "importing the base"
		container=$(build_tool from scratch)
		build_tool add --quiet "$container" "$folder/rootfs.tar" / >/dev/null
		build_tool commit --quiet --rm "$container" "$image" >/dev/null
	fi
	echo "$image"
}

[[ $(id -u) == 0 ]] || fail "must run as root: it makes a root filesystem"
command -v buildah >/dev/null || fail "buildah is missing; on Debian: apt-get install buildah mmdebstrap"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=ringfence.test/ringfence:${TAG:-$version}

if [[ -z ${BINARY:-} ]]; then
	say "building the program"
	cargo build --quiet --release --locked --bin ringfence >&2
	BINARY=target/release/ringfence
fi
[[ -x $BINARY ]] || fail "$BINARY is not a program"
if [[ -z ${CNI_PLUGIN:-} ]]; then
	say "building the CNI plugin"
	# It runs on the nodes, whose C library nobody knows. The flag goes to this program alone: as RUSTFLAGS it would make
	# another build of every library.
	cargo rustc --quiet --release --locked --bin ringfence-cni -- -C target-feature=+crt-static >&2
	# Kept apart: any other build of this program would put one that needs the C library in its place.
	mkdir -p "$out"
	install target/release/ringfence-cni "$out/ringfence-cni"
	CNI_PLUGIN=$out/ringfence-cni
fi
[[ -x $CNI_PLUGIN ]] || fail "$CNI_PLUGIN is not a program"
! grep -q /ld-linux "$CNI_PLUGIN" || fail "$CNI_PLUGIN is not linked statically: it would not start on every node"

mkdir -p "$out"
# Nothing to do when nothing that goes into the image has changed.
inputs=$(
	{
		echo "$name ${BASE:-}"
		cat Containerfile deploy/image.sh
		sha256sum "$BINARY" "$CNI_PLUGIN"
	} | sha256sum | cut -c1-64
)
if [[ -f $out/ringfence.tar && $(cat "$out/inputs" 2>/dev/null) == "$inputs" ]]; then
	say "$name is up to date"
	echo "$PWD/$out/ringfence.tar"
	exit
fi

# Overlay does not work on every file system, on another overlay for one.
build_tool info >/dev/null 2>&1 || export STORAGE_DRIVER=vfs

base=$(base_image)
say "building $name on $base"
# Not squashed: the base stays a layer of its own, which a node that has it does not load again.
build_tool build --quiet --layers=false --force-rm \
	--build-arg "BASE=$base" --build-arg "VERSION=${TAG:-$version}" \
	--build-arg "BINARY=$BINARY" --build-arg "CNI_PLUGIN=$CNI_PLUGIN" \
	--tag "$name" --file Containerfile . >/dev/null

# A program from a machine with a newer C library does not start in an older base: find out here, not in a cluster.
container=$(build_tool from --pull-never "$name")
trap 'build_tool rm "$container" >/dev/null 2>&1 || true' EXIT
build_tool run "$container" -- /usr/local/bin/ringfence --help >/dev/null ||
	fail "the program does not start in this image: was it built for a newer C library than that of $base?"
build_tool run "$container" -- nft --version >&2 || fail "there is no nft in $base"

rm -f "$out/inputs" "$out/ringfence.tar"
build_tool push --quiet "$name" "oci-archive:$PWD/$out/ringfence.tar:$name" >&2
# Of older builds only the layers are left that this one uses.
build_tool rmi --prune >/dev/null 2>&1 || true
echo "$inputs" >"$out/inputs"
say "$name is in $out/ringfence.tar, $(du -h "$out/ringfence.tar" | cut -f1)"
echo "$PWD/$out/ringfence.tar"
