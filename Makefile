.DEFAULT_GOAL := help
JEST = npm run -s jest --
NODE = node_modules/.bin/node
IMAGE ?= warmpath:dev

help: ## this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{sub(/:.*/, "", $$1); printf "  %-22s %s\n", $$1, $$2}'

# One marker for everything that `npm ci` gives, so that no target installs twice.
node_modules/.ready: package.json package-lock.json
	@# Not what npm thinks of the Node it runs on: the one Warmpath runs on is installed by it.
	npm ci --no-audit --no-fund --loglevel=error
	@touch $@

setup: node_modules/.ready ## install the pinned dependencies

check: setup ## types, lint, format, architecture, generated documents
	npm run -s types
	npm run -s lint
	npm run -s format:check
	$(JEST) test/architecture.test.ts test/docs.test.ts

test: setup ## everything that proves it works
	$(JEST)

e2e: setup ## real Envoy, simulated pods, the whole product
	$(JEST) test/e2e

demo: setup ## simulated pods, a real Envoy, real traffic, a table (ARGS="--json" etc. are passed on)
	@npm run -s warmpath -- demo $(ARGS)

docs: setup ## write the documents that are made from the code
	$(NODE) test/support/docs.ts

build: setup ## compile to dist/, what the npm package contains
	npm run -s build

format: setup ## format every file
	npm run -s format

test-kv-sync: setup ## KV events without sockets: decoding, engine blocks, sequences, the index
	$(JEST) test/unit/kvevents test/unit/prefix test/property/event-stream test/property/kv test/property/prefix

test-zmq: setup ## KV events over real sockets: streams, faults, floods, siblings
	$(JEST) test/integration/kv

test-zmq-coverage: setup ## which lines of the ingest thread run when only real sockets drive it, with limits
	@$(NODE) test/support/zmq-coverage.ts

test-kv-sync-benchmark: ARGS = --quick
test-kv-sync-benchmark: bench-kv ## a quick bench-kv

test-kv-sync-chaos: setup ## 150 faults of event streams in random order; two seconds to recover from each kind
	WARMPATH_KV_CHAOS_ROUNDS=150 $(JEST) test/chaos/kv

test-kv-sync-e2e: setup ## pods that come, die and move, with the fake API server and a real Envoy
	$(JEST) test/e2e/kubernetes test/e2e/failures

test-kv-sync-all: test-kv-sync test-zmq test-zmq-coverage test-kv-sync-e2e test-kv-sync-chaos test-kv-sync-benchmark ## all of these

chaos: setup ## long runs: faults of event streams, 50,000 requests through Envoy, memory
	WARMPATH_KV_CHAOS_ROUNDS=150 WARMPATH_SOAK_REQUESTS=50000 $(JEST) test/chaos

bench: bench-extproc bench-tokens bench-kv bench-routing ## every bench, one after another (ARGS="--quick")

bench-extproc: setup ## CPU and latency of one ext_proc request, next to a server that only answers (ARGS="--quick --only logic" etc.)
	@$(NODE) test/bench/extproc.bench.ts $(ARGS)

bench-tokens: setup ## reading, exact calls, the memo, tokenizers in trouble, one table (ARGS="--quick --only PART")
	@$(NODE) test/bench/tokens.bench.ts $(ARGS)

bench-kv: setup ## KV events and their index, next to msgpackr and Map<bigint, Set> (ARGS="--quick")
	@$(NODE) test/bench/kv.bench.ts $(ARGS)

bench-metrics: setup ## CPU of reading 64 engines' metrics each second, beside full parsing (ARGS="seconds")
	@$(NODE) test/bench/metrics.bench.ts $(ARGS)

bench-routing: setup ## every policy on a trace, ours beside the best of the others (ARGS="TRACE")
	@$(NODE) test/bench/routing.bench.ts $(ARGS)

.PHONY: image image-check
image: ## the container image (IMAGE=name:tag)
	docker build --build-arg VERSION=$$(sed -n 's/^  "version": "\(.*\)",/\1/p' package.json) -t $(IMAGE) .

image-check: setup ## what the image runs, without Docker: tarball, production install, size, entry point, probes
	$(NODE) test/support/image-check.ts

.PHONY: chart kube-schemas
chart: setup ## lint, render and check the Helm chart and the Envoy Gateway manifests
	$(JEST) test/unit/chart test/integration/chart test/integration/envoy-gateway

.PHONY: e2e-gateway
e2e-gateway: setup ## what Envoy Gateway makes of the manifests and the chart (builds egctl with Go, once)
	$(NODE) test/support/gateway-e2e.ts

kube-schemas: setup ## write test/fixtures/kubernetes-schemas anew (needs Go and pip)
	sh test/support/kube-schemas.sh

soak: setup ## 50,000 requests through a real Envoy, 200,000 exchanges: nothing unexpected, nothing left over
	WARMPATH_SOAK_REQUESTS=50000 WARMPATH_SOAK_EXCHANGES=200000 $(JEST) test/chaos/soak test/chaos/memory

.PHONY: help setup check test e2e demo docs build format test-kv-sync test-zmq test-zmq-coverage test-kv-sync-benchmark test-kv-sync-chaos test-kv-sync-e2e test-kv-sync-all chaos bench bench-extproc bench-tokens bench-kv bench-metrics bench-routing soak
