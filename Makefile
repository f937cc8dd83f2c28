.DEFAULT_GOAL := help
JEST = npm run -s jest --

help: ## this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-24s %s\n", $$1, $$2}'

node_modules/.ready: package.json package-lock.json
	npm ci --no-audit --no-fund
	@touch $@

setup: node_modules/.ready ## install the pinned dependencies

check: setup ## types, lint, format, architecture
	npm run -s types
	npm run -s lint
	npm run -s format:check
	$(JEST) test/architecture.test.ts

test: setup ## everything that proves it works
	$(JEST)

.PHONY: help setup check test
