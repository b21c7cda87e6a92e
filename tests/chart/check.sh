#!/usr/bin/env bash
# The chart without a cluster: lint, everything switched on, mistakes in values, alerts, and the names of metrics.
#
#   tests/chart/check.sh TOOLS  the folder with helm, kubectl and promtool
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tools=${1:?the folder with helm, kubectl and promtool}
chart=charts/ringfence
rules=$chart/files/rules/ringfence.yaml
dashboard=$chart/files/dashboards/ringfence.json

fail() {
	echo "chart: $*" >&2
	exit 1
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

template() {
	"$tools/helm" template ringfence "$chart" --namespace ringfence-system "$@" 2>"$scratch/errors"
}

# Renders, and has at least these kinds.
renders() {
	local kinds=$1 kind
	shift
	template "$@" >"$scratch/rendered.yaml" || fail "does not render with $*: $(cat "$scratch/errors")"
	for kind in $kinds; do
		grep -q "^kind: $kind\$" "$scratch/rendered.yaml" || fail "there is no $kind with $*"
	done
}

# Does not render, and says this word.
refuses() {
	local word=$1
	shift
	! template "$@" >"$scratch/rendered.yaml" || fail "renders with $*"
	grep -q -- "$word" "$scratch/errors" || fail "with $* it does not say '$word' but: $(cat "$scratch/errors")"
}

"$tools/helm" lint --strict "$chart"

renders "Deployment DaemonSet Job Pod"
everything=tests/chart/everything.yaml
renders "Service NetworkPolicy ServiceMonitor PrometheusRule ConfigMap" --values "$everything"
cp "$scratch/rendered.yaml" "$scratch/everything.yaml"
renders PodMonitor --values "$everything" --set metrics.serviceMonitor.enabled=false,metrics.podMonitor.enabled=true
renders "Deployment DaemonSet" --set crds.install=false,gate.enabled=false,antiSpoofing.enabled=false
renders DaemonSet --set deniedConnections.enabled=false
grep -q -- '--denied-rate=0$' "$scratch/rendered.yaml" || fail "deniedConnections.enabled=false turns nothing off"

# A mistake fails here and not at night.
refuses metricz --set metricz.services=true
refuses serviceMonitr --set metrics.serviceMonitr.enabled=true
refuses maxUnavailabel --set agent.updateStrategy.rollingUpdate.maxUnavailabel=1
refuses memroy --set controller.resources.requests.cpu=1,controller.resources.memroy=1Gi
refuses topologyKy --set 'controller.topologySpreadConstraints[0].topologyKy=zone'
refuses podAntiAfinity --set-json 'controller.affinity={"podAntiAfinity":{}}'
refuses interval --set metrics.podMonitor.interval=often
refuses "enable one of them" --set metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true
# Wherever the schema speaks of an object, it says what may be in there. `global` is Helm's, for charts that contain this one.
open=$(jq --raw-output '
	paths(type == "object" and .type? == "object" and (has("additionalProperties") | not)) | join(".")
	' "$chart/values.schema.json" | grep -vx 'properties\.global\|' || true)
[[ -z $open ]] || fail "values.schema.json takes anything in: $open"

"$tools/promtool" check rules --lint=all --lint-fatal "$rules"
"$tools/promtool" test rules tests/chart/rules_test.yaml
# Every alert has been seen firing.
for alert in $(sed -n 's/^ *- alert: //p' "$rules"); do
	grep -q "alertname=\"$alert\"" tests/chart/rules_test.yaml || fail "no test lets $alert fire"
done
# In the PrometheusRule it says the same, two columns further in.
awk '/^---$/ { rule = spec = 0 } /^kind: PrometheusRule$/ { rule = 1 }
	rule && spec { print substr($0, 3) } rule && /^spec:$/ { spec = 1 }' "$scratch/everything.yaml" >"$scratch/rules.yaml"
diff <(grep -v '^ *$' "$rules") <(grep -v '^ *$' "$scratch/rules.yaml") >&2 || fail "the PrometheusRule is not what $rules says"

# The dashboard's expressions are expressions; Grafana's variables stand for these values.
jq '{groups: [{name: "dashboard", rules: [.. | .expr? // empty | {
	record: "dashboard:panel", expr: gsub("\\$__rate_interval"; "5m")}]}]}' "$dashboard" >"$scratch/dashboard-rules.yaml"
"$tools/promtool" check rules --lint=none "$scratch/dashboard-rules.yaml" >/dev/null

# What alerts and dashboard name exists: metrics.txt is what the programs expose, kept by hand.
awk '$2 == "histogram" { print $1 "_bucket"; print $1 "_count"; print $1 "_sum"; next } { print $1 }' \
	tests/chart/metrics.txt | LC_ALL=C sort -u >"$scratch/exposed"
grep -ohE '\b(ringfence_(controller|agent)|process)_[a-z0-9_]+' "$rules" "$dashboard" tests/chart/rules_test.yaml |
	LC_ALL=C sort -u >"$scratch/named"
unknown=$(LC_ALL=C comm -13 "$scratch/exposed" "$scratch/named")
[[ -z $unknown ]] || fail "alerts or dashboard name metrics that do not exist:" $unknown

# Without Helm: the same objects, offline.
"$tools/kubectl" kustomize deploy >"$scratch/kustomized.yaml"
[[ $(grep -c '^kind: ' "$scratch/kustomized.yaml") == $(grep -c '^kind: ' deploy/ringfence.yaml) ]] ||
	fail "deploy/kustomization.yaml does not have the objects of deploy/ringfence.yaml"
echo "chart: all well" >&2
