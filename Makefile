# The development of Ringfence. `make demo` and `make test` do everything by themselves on a fresh Linux machine.

# The pod network of the test cluster: ptp (routed) or bridge.
CNI ?= ptp
export CNI

cluster := $(or $(RINGFENCE_CLUSTER_DIR),$(CURDIR)/target/cluster)

.DEFAULT_GOAL := help
.PHONY: help demo test unit lint crds manifests image install bench-datapath bench-denied bench-latency soak docs-test sbom deny cluster cluster-delete

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

demo: ## a cluster, Ringfence on it, and who reaches whom before and after three rule sets (root)
	@deploy/demo/run.sh

test: ## everything: lints, unit and kernel tests, clusters with both pod networks (root)
	@tests/run.sh

unit: ## unit and kernel tests, without a cluster (root)
	cargo test --locked

# Built like the tests: what is measured is the kernel's work.
bench-datapath: ## packets and connections through a guarded pod, against `established accept` (root)
	BENCH_DATE=$$(date -u +%FT%TZ) cargo bench --locked --profile dev --bench datapath

bench-denied: ## what it costs that the kernel tells of denied packets (root)
	cargo bench --locked --profile dev --bench denied

lint: ## format and lints
	cargo fmt --all --check
	cargo clippy --locked --all-targets --test e2e -- -D warnings
	@if command -v shellcheck >/dev/null; then \
		echo "shellcheck"; \
		find .ci deploy tests -name '*.sh' -print0 -o -path .ci/run -print0 | \
			xargs -0 shellcheck --external-sources --severity warning; \
	else echo "shellcheck is not installed: shell scripts are not checked"; fi

crds: ## the custom resource definitions in crds/ and the reference docs/api.md, from the program
	cargo run --quiet --locked -- crds --output-dir crds
	cargo run --quiet --locked -- api-reference >docs/api.md

# The definitions are in what is rendered, and the program is built with a lock file that knows its version.
manifests: ## everything that is generated: crds, the version of Cargo.toml in Cargo.lock and the chart, deploy/*.yaml
	cargo update --quiet --workspace
	$(MAKE) --no-print-directory crds
	HELM="$$(tests/cluster/tools.sh | tail -n 1)/helm" deploy/render.sh

image: ## the image, in target/image/ringfence.tar (root)
	deploy/image.sh

install: ## builds the image and installs it into the running test cluster with Helm; again after every change
	deploy/install.sh

bench-latency: ## how long after kubectl returns a change is in force, on the running test cluster
	cargo bench --locked --bench latency

soak: ## everything at once for minutes, on the running test cluster; nothing forbidden may come through
	cargo bench --locked --bench soak

docs-test: ## every command in docs/, on the running test cluster; ends with Ringfence uninstalled
	tests/docs.sh

sbom: ## a software bill of materials in CycloneDX, in target/sbom/
	deploy/sbom.sh

# CHECKS=advisories: what is known to be vulnerable; this asks the network.
CHECKS ?= bans licenses sources
deny: ## licences, bans and sources of the dependencies, against deny.toml
	"$$(deploy/cargo-tool.sh cargo-deny 0.20.2 | tail -n 1)/cargo-deny" --locked check $(CHECKS)

cluster: ## two nodes of real Kubernetes on this machine; CNI=ptp or CNI=bridge, KUBERNETES=1.37 or KUBERNETES=1.33 (root)
	tests/cluster/up.sh
	@echo "use $(cluster)/kubectl; delete it with: make cluster-delete"

cluster-delete: ## ends the test cluster
	tests/cluster/down.sh
