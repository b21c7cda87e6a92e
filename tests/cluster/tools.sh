#!/usr/bin/env bash
# Builds the third-party programs of the test cluster, each family once, and
# prints the folder that holds them all as its last line.
#
# Versions are pinned by tools/<family>/go.mod; a family is rebuilt only when
# its own pins, the Go release or the build flags change.
#
# KUBERNETES chooses the release among tools/kubernetes-*.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${RINGFENCE_CACHE:-$HOME/.cache/ringfence}/tools
KUBERNETES=${KUBERNETES:-1.37}
# Quick ones first, so that a mistake in the set-up shows early.
families=(cni etcd containerd coredns helm prometheus "kubernetes-$KUBERNETES")

export CGO_ENABLED=0 GOFLAGS=-mod=readonly

say() { echo "tools: $*" >&2; }

releases=("$here"/tools/kubernetes-*)
releases=("${releases[@]##*/kubernetes-}")
if [[ " ${releases[*]} " != *" $KUBERNETES "* ]]; then
	say "KUBERNETES is one of ${releases[*]}, not $KUBERNETES"
	exit 1
fi

# Kubernetes takes its version from the linker; a kubelet that reports v0.0.0
# is refused by version-skew checks and by charts with a kubeVersion.
linker_flags() {
	local family=$1 flags="-s -w" version package major minor
	if [[ $family == kubernetes-* ]]; then
		version=$(sed -n 's|^\s*k8s.io/kubernetes \(v[0-9.]*\) .*|\1|p' "$here/tools/$family/go.mod")
		IFS=. read -r major minor _ <<<"${version#v}"
		for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
			flags+=" -X $package.gitVersion=$version -X $package.gitMajor=$major -X $package.gitMinor=$minor"
		done
	fi
	echo "$flags"
}

# promtool without the clients of every cloud: it only checks files here.
build_tags() {
	if [[ $1 == prometheus ]]; then echo remove_all_sd; fi
}

key_of() {
	local family=$1
	{
		cat "$here/tools/$family/go.mod" "$here/tools/$family/go.sum"
		go env GOVERSION GOARCH
		linker_flags "$family"
		build_tags "$family"
	} | sha256sum | cut -c1-16
}

# Builds into a folder beside the final one and renames it, so that an
# interrupted build leaves nothing that looks finished, and nothing at all.
scratch=''
trap 'rm -rf "$scratch"' EXIT
build() {
	local family=$1 target=$2 started=$SECONDS
	say "building $family"
	scratch=$(mktemp -d "$cache/.$family.XXXXXX")
	(cd "$here/tools/$family" &&
		go build -trimpath -tags "$(build_tags "$family")" -ldflags "$(linker_flags "$family")" -o "$scratch/" tool) >&2
	# Go names a program after the last element of its path.
	if [[ $family == etcd ]]; then mv "$scratch/server" "$scratch/etcd"; fi
	publish "$scratch" "$target"
	say "built $family in $((SECONDS - started)) s"
}

# Somebody else may have published the same thing meanwhile; theirs is as good.
publish() {
	local scratch=$1 target=$2
	chmod 755 "$scratch"
	mv -T "$scratch" "$target" 2>/dev/null || rm -rf "$scratch"
}

mkdir -p "$cache"
folders=()
for family in "${families[@]}"; do
	# The pins are in the key, and with them the release of Kubernetes.
	folder=$cache/${family%%-*}-$(key_of "$family")
	[[ -d $folder ]] || build "$family" "$folder"
	folders+=("$folder")
done

bin=$cache/$(echo "${folders[@]}" | sha256sum | cut -c1-16)
if [[ ! -d $bin ]]; then
	scratch=$(mktemp -d "$cache/.bin.XXXXXX")
	for folder in "${folders[@]}"; do ln -s "$folder"/* "$scratch/"; done
	publish "$scratch" "$bin"
fi
echo "$bin"
