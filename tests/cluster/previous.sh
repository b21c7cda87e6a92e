#!/usr/bin/env bash
# Puts the commit before this tree into target/previous, with its programs built in target/ there, for its own
# deploy/install.sh.
#
# A tree with changes comes after HEAD, and one without after HEAD's parent.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$PWD/target/previous

say() { echo "previous: $*" >&2; }

commit=HEAD
# A shallow clone has no parent: then it is the same product, which is replaced all the same.
if [[ -z $(git status --porcelain) ]] && git rev-parse --quiet --verify HEAD~1 >/dev/null; then
	commit=HEAD~1
fi
say "$(git log -1 --format='%h %s' "$commit")"

# The same place each time, for cargo builds by paths.
rm -rf "$folder"
mkdir -p "$folder/target"
# As of now, or cargo takes what it built here of another commit for new enough.
git archive "$commit" | tar --extract --touch --directory "$folder"

# The tests' profile and their target folder: all libraries are there already.
export CARGO_TARGET_DIR=$PWD/target CARGO_PROFILE_DEV_DEBUG=false
(
	cd "$folder"
	cargo build --quiet --locked --bin ringfence >&2
	cargo rustc --quiet --locked --bin ringfence-cni -- -C target-feature=+crt-static >&2
)
# The next build of this tree puts its own programs there.
install --strip target/debug/ringfence target/debug/ringfence-cni "$folder/target/"
