#!/usr/bin/env bash
# Builds kubectl-sg for this machine's architecture, and packs it with its manifest for krew into target/krew. Nothing is
# published: put the archive where URL says, and try it with: kubectl krew install --manifest=target/krew/sg.yaml
#
#   URL  the folder from which the archive will be served; default https://downloads.example.com/ringfence
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
url=${URL:-https://downloads.example.com/ringfence}
version=$(sed -n '0,/^version = /s/^version = "\(.*\)"$/\1/p' Cargo.toml)
case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*)
	echo "krew: kubectl-sg is not packed for $(uname -m)" >&2
	exit 1
	;;
esac

cargo build --quiet --release --locked --bin kubectl-sg >&2
out=target/krew
mkdir -p "$out"
archive=$out/kubectl-sg-$version-linux-$arch.tar.gz
# Of the same files the same archive, whoever packs it and when.
tar --create --gzip --file "$archive" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 \
	--directory "$PWD/target/release" kubectl-sg --directory "$PWD/deploy/krew" kubectl_complete-sg --directory "$PWD" LICENSE
sha256=$(sha256sum "$archive" | cut -d ' ' -f 1)
sed -e '/^#/d' -e "s|@VERSION@|$version|g; s|@URL@|$url|g; s|@ARCH@|$arch|g; s|@SHA256@|$sha256|g" \
	deploy/krew/sg.yaml >"$out/sg.yaml"
echo "$archive"
