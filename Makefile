# The README's commands. `make help` lists them.
BIN := .venv/bin
PYTEST := $(BIN)/pytest
CLIENT_TESTS := $(wildcard $(addprefix tests/functional/test_, client_*.py lease_*.py slot.py revoke.py))
LAB := $(BIN)/python -m tests.lab
FUZZ_SECONDS ?= 60
RUNS ?= 20
MINUTES ?= 10
SEED ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test check static lint type unit contract functional functional-clients functional-servers deaths fuzz chaos chaos-short e2e bench schemas constraints clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## install everything: packages, and a virtual environment at .venv
	.ci/setup

demo: setup ## two hosts, a broker, agents and clients on this machine; nothing stays behind
	tests/lab/demo.sh

test: setup check ## all tests, with real VMs on real Open vSwitch
	.ci/at-once contract fuzz
	$(MAKE) functional chaos-short e2e
	@echo "all tests passed"

check: ## ruff, mypy, import rules, unit tests
	.ci/at-once unit static

static: lint type

lint: ## ruff and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

type: ## mypy, strict
	$(BIN)/mypy

unit: ## pure code, without services
	$(PYTEST) tests/unit

contract: ## one suite over fake drivers and, in a lab host, over real libvirt and OVS
	$(LAB) run --host contract -- $(PYTEST) tests/contract

functional: ## brokers, agents and clients as real processes; they wait a lot, so two halves at once
	.ci/at-once functional-servers functional-clients

functional-clients:
	$(PYTEST) $(CLIENT_TESTS)

functional-servers:
	$(PYTEST) tests/functional $(CLIENT_TESTS:%=--ignore=%)

deaths: ## brokers, agents and clients are killed while leases run, RUNS times; no failure is due
	@failed=0; for run in $$(seq $(RUNS)); do \
	  $(PYTEST) --quiet tests/functional/test_lease_*.py || failed=$$((failed + 1)); \
	done; echo "$$failed of $(RUNS) runs failed"; test $$failed = 0

fuzz: ## any bytes and any requests, for FUZZ_SECONDS, against the broker's readers and books
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTEST) --capture=no --timeout=0 tests/fuzz

chaos: ## random deaths, stops and partitions for MINUTES; SEED repeats what was done to whom
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

chaos-short: ## the same for a minute
	$(BIN)/python -m tests.chaos --minutes 1 $(if $(SEED),--seed $(SEED))

e2e: ## the whole chain in a lab of two hosts
	$(PYTEST) tests/e2e

bench: setup ## the broker and the client beside their rivals; writes docs/performance.md
	mkdir -p build
	$(BIN)/python -m tests.benchmarks --json build/bench.json --markdown docs/performance.md

schemas: ## write schemas/json again
	$(BIN)/python -m schemas.generate

constraints: ## pin what is installed now
	{ sed '/^[^#]/d' constraints.txt; $(BIN)/pip freeze --exclude-editable; } > constraints.new
	mv constraints.new constraints.txt

clean: ## remove what setup and tests made in this tree
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
