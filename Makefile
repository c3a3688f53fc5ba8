# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.installed-demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[cli,controller,demo]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed-demo
	$(BIN)/pip install --quiet --editable '.[test,dev]'
	touch $@

.PHONY: demo
demo: $(VENV)/.installed-demo ## Install into .venv; this machine's report, then nodemem in a real cluster on loopback
	$(BIN)/nodemem report
	PYTHONPATH=tests $(BIN)/python -m cluster.demo

.PHONY: test
test: $(VENV)/.installed-test check ## Install what the tests need, and run them (root: the real kernel is part of them)
	$(BIN)/pytest

.PHONY: test-vm
test-vm: $(VENV)/.installed-test ## The full matrix of other kernels under QEMU (make test runs a short set)
	$(BIN)/pytest -m vm tests/vm

.PHONY: krew
krew: $(VENV)/.installed-test ## The kubectl plugin as an archive for krew, with its manifest, into dist/
	$(BIN)/pip install --quiet 'pyinstaller>=6'
	$(BIN)/python deploy/krew/build.py

.PHONY: test-krew
test-krew: $(VENV)/.installed-test ## Build that archive, install it with real krew, run it with real kubectl
	$(BIN)/pip install --quiet 'pyinstaller>=6'
	$(BIN)/pytest -m krew tests/krew

.PHONY: test-image
test-image: $(VENV)/.installed-test ## Build the image without a Docker engine, look into it, and run its pods
	$(BIN)/pytest -m image tests/image

.PHONY: check
check: $(VENV)/.installed-test ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.installed-test ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: $(VENV)/.installed-test ## Scanner against the C yardstick, as ratios
	PYTHONPATH=tests $(BIN)/python -m bench

.PHONY: bench-v2
bench-v2: $(VENV)/.installed-test ## The same scanner on cgroup v2, in a guest under QEMU
	PYTHONPATH=tests $(BIN)/python -m bench.guest

.PHONY: bench-agent
bench-agent: $(VENV)/.installed-test ## Memory of the whole agent, publishing to a real API server
	PYTHONPATH=tests $(BIN)/python -m bench.agent_rss

.PHONY: bench-day
bench-day: $(VENV)/.installed-test ## 5,000 scans while pods come and go: memory and descriptors stay flat
	PYTHONPATH=tests $(BIN)/python -m bench.day

.PHONY: bench-cluster
bench-cluster: $(VENV)/.installed-test ## The controller with 500 and with 5,000 nodes, on a real API server
	PYTHONPATH=tests $(BIN)/python -m bench.cluster_tables
	PYTHONPATH=tests $(BIN)/python -m bench.cluster

.PHONY: bench-writes
bench-writes: $(VENV)/.installed-test ## An agent's writes in a day, four kinds of day, and how soon it tells of a leak
	PYTHONPATH=tests $(BIN)/python -m bench.cluster_writes

.PHONY: clean
clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
