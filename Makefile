# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

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

.PHONY: image-test
image-test: $(VENV)/.installed-test ## Build the image without a Docker engine, look into it, and run its pods
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

.PHONY: clean
clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
