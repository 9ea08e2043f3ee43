# `make help` lists the targets. Everything is set up in .venv; nothing else of the machine is changed but Debian
# packages that are missing (as root; otherwise scripts/system-deps says what to install).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?=
C_SOURCES := $(wildcard csrc/*.c csrc/*.h csrc/*.py)

.PHONY: help run test lint format bench bench-peers bench-plugin bench-tee soak sanitize wheel clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/pip: pyproject.toml
	scripts/system-deps build
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	touch $@

# The extension is built by the editable install, so it follows the C sources.
$(VENV)/app: $(VENV)/pip setup.py $(C_SOURCES)
	$(BIN)/pip install --quiet --editable '.[all]'
	touch $@

$(VENV)/test: $(VENV)/app
	$(BIN)/pip install --quiet --group test
	touch $@

$(VENV)/lint: $(VENV)/test
	$(BIN)/pip install --quiet --group lint
	touch $@

$(VENV)/bench: $(VENV)/test
	$(BIN)/pip install --quiet --group bench
	touch $@

run: $(VENV)/app ## Lazily pull, read, unlazy, verify and push an image: a built-in one, or IMAGE=…
	$(BIN)/blobtee demo $(IMAGE)

test: $(VENV)/test ## Run the whole test suite, real registry included
	scripts/system-deps test
	$(BIN)/pytest --numprocesses 2 --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/lint ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/lint ## Rewrite the Python files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench ## Measure the hot paths beside their references, as ratios
	$(BIN)/pytest benchmarks --benchmark-enable --benchmark-only --benchmark-group-by=group --benchmark-columns=min,median,rounds
	$(BIN)/python -m benchmarks.ratios_core

bench-peers: $(VENV)/bench ## Measure beside Go's path on this machine (needs Go)
	$(BIN)/python -m benchmarks.peers

bench-plugin: $(VENV)/bench ## Measure the content service beside containerd's own store (needs Go)
	$(BIN)/python -m benchmarks.plugin $(BENCH_ARGS)

bench-tee: $(VENV)/bench ## Measure the tee beside its targets: bytes, requests, waste, wrong bytes, ratios
	$(BIN)/python -m benchmarks.tee $(BENCH_ARGS)

soak: $(VENV)/bench ## Ten minutes of mixed load on the content service: nothing may grow, no byte be wrong
	$(BIN)/python -m benchmarks.soak

sanitize: $(VENV)/test ## Test the C core under ASan and UBSan, and fuzz it
	scripts/sanitize

wheel: ## Build the sdist, the wheel from it, repair, audit and import it
	scripts/wheel

clean: ## Remove everything that the other targets made
	rm -rf $(VENV) build dist .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	rm -rf src/*.egg-info src/blobtee/_core*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
