#!/usr/bin/env bash
# Compiles a program of the Rust world once, in this very version, into the cache, and prints the folder that it is in as its
# last line. Nothing goes to ~/.cargo/bin.
#
#   deploy/cargo-tool.sh NAME VERSION
#
#   RINGFENCE_CACHE  where it is kept; default: ~/.cache/ringfence
set -euo pipefail

name=${1:?a name} version=${2:?its version}
cache=${RINGFENCE_CACHE:-$HOME/.cache/ringfence}/tools
folder=$cache/$name-$version

if [[ ! -d $folder ]]; then
	echo "cargo-tool: compiling $name $version (once; some minutes)" >&2
	mkdir -p "$cache"
	scratch=$(mktemp -d "$cache/.$name.XXXXXX")
	trap 'rm -rf "$scratch"' EXIT
	# From a folder without settings of its own: this project's are not meant for it.
	(cd "$scratch" && cargo install --quiet --locked --no-track --root "$scratch" --version "=$version" "$name") >&2
	chmod 755 "$scratch"
	# Renamed when it is complete; somebody else may have been first, and theirs is as good.
	mv -T "$scratch" "$folder" 2>/dev/null || [[ -d $folder ]]
fi
echo "$folder/bin"
