#!/usr/bin/env bash
# Writes target/sbom/ringfence.cdx.json, a software bill of materials of the two programs in CycloneDX: what they are compiled
# from, with versions, licences and checksums. The Debian packages of an image's base are not in it: dpkg of that image lists them.
#
# The same commit gives the same file.
#
#   TARGET=TRIPLE  the machine that the programs are for; default: this one
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=target/sbom/ringfence.cdx.json

fail() {
	echo "sbom: $*" >&2
	exit 1
}

tool=$(deploy/cargo-tool.sh cargo-cyclonedx 0.5.9 | tail -n 1)/cargo-cyclonedx
# The tool would bring a lock file that is behind up to date.
direct=$(cargo metadata --locked --no-deps --format-version 1 |
	jq --compact-output '[.packages[0].dependencies[] | select(.kind == null) | .name] | unique')
# No time is needed, but for a date that is the commit's.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
# It writes beside Cargo.toml and nowhere else.
trap 'rm -f ringfence.cdx.json' EXIT
"$tool" cyclonedx --quiet --format json --spec-version 1.5 --override-filename ringfence.cdx ${TARGET:+--target "$TARGET"}

# What is compiled into the programs or helps to compile them, the features that only tests ask for left out: the tool does not
# tell these apart.
compiled=$(cargo tree --locked --edges normal,build --prefix none --format '{p}' ${TARGET:+--target "$TARGET"} |
	awk '{ print $1 "@" substr($2, 2) }' | jq --raw-input --slurp --compact-output 'split("\n")')
mkdir -p "${out%/*}"
# References are names only, and need not say where this folder is.
jq --arg folder "path+file://$PWD#" --argjson compiled "$compiled" '
	INDEX($compiled[]; .) as $in
	| [.components[] | select($in[.name + "@" + .version] | not) | .["bom-ref"]] as $out
	| del(.components[] | select(.["bom-ref"] | IN($out[])))
	| del(.dependencies[] | select(.ref | IN($out[])))
	| .dependencies[] |= if .dependsOn then .dependsOn -= $out else . end
	| walk(if type == "string" then ltrimstr($folder) else . end)' ringfence.cdx.json >"$out"

missing=$(jq --raw-output --argjson direct "$direct" '
	$direct - [.components[] | select(.version and (.licenses | length > 0)) | .name] | join(", ")' "$out")
[[ -z $missing ]] || fail "not in $out, or without a version or a licence: $missing"
echo "sbom: $out, $(jq '.components | length' "$out") packages" >&2
