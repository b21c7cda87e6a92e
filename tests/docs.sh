#!/usr/bin/env bash
# Runs the documentation on the running test cluster, on which deploy/install.sh has installed Ringfence: the ```sh blocks of
# a document, in their order, are one script, and stop at the first command that fails.
#
# usage: tests/docs.sh [DOCUMENT…]   default: all that have commands, docs/operations.md, which uninstalls Ringfence, last
#
# What a reader does not see, as it is in comments of Markdown, before a block:
#   <!-- fails -->           the block's only command must fail: a connection that is blocked, an object that is refused
#   <!-- prints nothing -->  the block must print nothing
#   <!-- prints -->          before a ```text block: all of its lines are in what the block before it printed
# Blocks of another kind are not run. ```console is for the few commands that cannot be: those in a pod or on a node of the
# reader's, and those that would take from the test cluster what the next document needs.
#
# A document runs alone, from top to bottom, in a copy of this folder. It makes its namespaces with `kubectl create namespace`,
# and these are deleted afterwards. IMAGE and REPOSITORY are what a reader would set: there is no Internet here.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cluster=${RINGFENCE_CLUSTER_DIR:-$PWD/target/cluster}

say() { echo "docs: $*" >&2; }

if [[ ! -x $cluster/kubectl ]]; then
	say "there is no test cluster; make one with: make cluster install"
	exit 1
fi

documents=("$@")
if ((${#documents[@]} == 0)); then
	documents=(docs/install.md deploy/examples/README.md docs/first-group.md docs/semantics.md docs/security-model.md)
	documents+=(docs/recommendations.md docs/troubleshooting.md docs/operations.md)
	# None is forgotten.
	while read -r document; do
		[[ " ${documents[*]} " == *" $document "* ]] || documents=("$document" "${documents[@]}")
	done < <(grep --recursive --files-with-matches '^ *```sh$' docs README.md deploy/examples || true)
fi

scratch=$(mktemp -d)
export PATH=$scratch/bin:$PATH
mkdir "$scratch/bin"
ln -s "$cluster/helm" "$scratch/bin/helm"
# The cluster's own kubectl names a kubeconfig before everything else, and then kubectl looks for no plugin.
cargo build --quiet --locked --bin kubectl-sg
cat >"$scratch/bin/kubectl" <<SH
#!/bin/sh
if [ "\$1" = sg ]; then
	shift
	KUBECONFIG='$cluster/kubeconfig' exec '$cluster/node' control '$PWD/target/debug/kubectl-sg' "\$@"
fi
exec '$cluster/kubectl' "\$@"
SH
chmod +x "$scratch/bin/kubectl"
export IMAGE=${IMAGE:-ringfence.test/toolbox:1} REPOSITORY=${REPOSITORY:-ringfence.test/ringfence}

# The namespaces that a document makes.
namespaces_of() {
	sed -n 's/^kubectl create namespace \([a-z0-9-]*\)$/\1/p' "$1"
}

clean() {
	local namespaces namespace
	mapfile -t namespaces < <(namespaces_of "$1")
	for namespace in "${namespaces[@]}"; do
		# A shell's sleep does not hear that it should end.
		kubectl delete pods --all --namespace "$namespace" --grace-period=1 --wait=false >/dev/null 2>&1 || true
		kubectl delete namespace "$namespace" --ignore-not-found --timeout=120s >/dev/null 2>&1 || true
	done
}

document=''
finish() {
	local status=$?
	trap - EXIT
	[[ -z $document ]] || clean "$document"
	# What a block left running in the background ends with its script.
	rm -rf "$scratch"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# script DOCUMENT: its blocks as one script, with a header before each that says where it is from. What a block prints goes
# to a file of its own, $output/LINE, for the comparison with what the document says, and for telling of a failure.
script() {
	awk -v document="$1" '
		function quoted(text) { gsub(/\047/, "\047\\\047\047", text); return "\047" text "\047" }
		/^<!-- (fails|prints|prints nothing) -->$/ { mark = $0; gsub(/^<!-- | -->$/, "", mark); next }
		# A block in a list is indented, and all of its lines are.
		/^ *```/ && !inside {
			inside = 1; kind = $0; sub(/^ *```/, "", kind); indent = match($0, /`/); body = ""; line = NR
			next
		}
		/^ *```$/ {
			inside = 0
			if (kind == "sh") {
				print "begin " line
				if (mark == "fails") {
					print "must_fail <<\047END_OF_BLOCK\047"
					printf "%s", body
					print "END_OF_BLOCK"
				} else {
					printf "%s", body
				}
				if (mark == "prints nothing") print "printed_nothing"
			} else if (mark == "prints") {
				count = split(body, expected, "\n")
				for (i = 1; i < count; i++) print "printed " quoted(expected[i])
			}
			mark = ""
			next
		}
		inside {
			body = body substr($0, indent) "\n"
			# No reader types so fast that pods are refused because their account is not there yet.
			if (/^kubectl create namespace [a-z0-9-]+$/) {
				body = body "kubectl -n " $4 " wait --for=create serviceaccount/default --timeout=60s\n"
			}
		}
		!inside && NF { mark = "" }
		END {
			if (inside) { print "docs: " document ": a block has no end" > "/dev/stderr"; exit 1 }
			print "begin end"
		}
	' "$1"
}

# What every script begins with.
prelude() {
	cat <<-'SH'
		set -euo pipefail
		exec 3>&1
		line=start
		begin() {
			line=$1
			# Kept too, as the latest: a line that is expected is in what the block before printed.
			exec >"$output/$line" 2>&1
		}
		wrong() {
			echo "$*" >>"$output/wrong"
			exit 1
		}
		must_fail() {
			local block
			block=$(cat)
			if (eval "$block"); then wrong "this must fail, and did not"; fi
		}
		printed() {
			grep --quiet --fixed-strings -- "$1" "$output/$line" || wrong "this was not printed: $1"
		}
		printed_nothing() {
			[[ ! -s $output/$line ]] || wrong "this must print nothing"
		}
		trap 'status=$?; ((status == 0)) || echo "$line" >"$output/failed"; kill $(jobs -p) 2>/dev/null || true; exit $status' EXIT
	SH
}

# block DOCUMENT LINE: the block that begins there.
block() {
	sed -n "$2,/^ *\`\`\`\$/p" "$1"
}

for document in "${documents[@]}"; do
	if ! grep --quiet '^ *```sh$' "$document"; then
		say "$document has no commands"
		continue
	fi
	started=$SECONDS
	folder=$scratch/work output=$scratch/output
	rm -rf "$folder" "$output"
	mkdir "$folder" "$output"
	# What is committed or is about to be, and nothing that was built.
	git ls-files --cached --others --exclude-standard -z | xargs -0 tar --create --ignore-failed-read 2>/dev/null |
		tar --extract --directory "$folder"
	clean "$document"
	{
		prelude
		script "$document"
	} >"$scratch/script"
	if ! (cd "$folder" && output=$output bash "$scratch/script" </dev/null); then
		failed=$(cat "$output/failed" 2>/dev/null || echo start)
		say "FAILED: $document, line $failed:"
		[[ ! $failed =~ ^[0-9]+$ ]] || block "$document" "$failed" >&2
		say "it printed:"
		cat "$output/$failed" >&2 2>/dev/null || true
		[[ ! -f $output/wrong ]] || say "$(cat "$output/wrong")"
		exit 1
	fi
	clean "$document"
	say "$document: $(grep --count '^ *```sh$' "$document") blocks in $((SECONDS - started)) s"
	document=''
done
