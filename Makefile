# One word per chore; `make` alone lists them. Needs GNU make and Python 3.11 or later, nothing else.
# Everything is installed into .venv; the files in .venv/.done say what is there already.

# The first interpreter that is new enough; or say which: make test PYTHON=python3.13
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
VENV := .venv
BIN  := $(VENV)/bin
DONE := $(VENV)/.done
PIP  := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
# Further arguments for test, bench and demo: make test ARGS="-k fork"
ARGS ?=

# What the metadata of the installed project is made from.
PROJECT := pyproject.toml services/perdure/version.py

.DEFAULT_GOAL := help
.PHONY: help setup test check bench docs demo demo-cluster lock clean
.PHONY: stack stack-down stack-status stack-logs

help: ## list the chores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(DONE)/dev ## make .venv with everything that development needs

test: $(DONE)/dev ## run all tests, on all cores (ARGS="-k fork" for some)
	@$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal $(ARGS)

check: $(DONE)/dev ## lint, formatting and strict types
	@echo "ruff check";  $(BIN)/ruff check --quiet .
	@echo "ruff format"; $(BIN)/ruff format --quiet --diff .
	@echo "mypy";        $(BIN)/mypy services ops/stack tests/typing

bench: $(DONE)/dev ## measure perdure beside raw SQLite and its peers
	@$(BIN)/perdure bench $(ARGS)

docs: $(DONE)/dev ## write the generated pages, and run every example of docstrings and pages
	@$(BIN)/python ops/cli_reference.py
	@$(BIN)/python -m ops.write_schemas
	@$(BIN)/python -m pytest --quiet tests/unit/test_examples.py $(ARGS)

demo: $(DONE)/runtime ## watch an agent being killed and losing nothing
	@$(BIN)/perdure demo $(ARGS)

demo-cluster: $(DONE)/cluster ## the same on Kafka, Cassandra and Weaviate, services killed too
	@$(BIN)/python -m ops.demo_cluster $(ARGS)

stack: $(DONE)/dev ## start Kafka, Cassandra and Weaviate (with Docker where it answers)
	@$(BIN)/python -m ops.stack up $(ARGS)

stack-down: $(DONE)/dev ## stop them, and keep their data
	@$(BIN)/python -m ops.stack down $(ARGS)

stack-status: $(DONE)/dev ## which of them run, and where
	@$(BIN)/python -m ops.stack status $(ARGS)

stack-logs: $(DONE)/dev ## what they printed last
	@$(BIN)/python -m ops.stack logs $(ARGS)

lock: $(DONE)/lock-tool ## write requirements*.lock anew from pyproject.toml (ARGS=--upgrade for newer)
	@echo "perdure: resolving for every platform and Python from 3.11 on"
	@$(LOCK) pyproject.toml --extra bench --extra cluster --group dev \
		--output-file requirements-dev.lock
	@$(LOCK) pyproject.toml --constraint requirements-dev.lock --output-file requirements.lock
	@$(LOCK) pyproject.toml --extra cluster --constraint requirements-dev.lock \
		--output-file requirements-cluster.lock

clean: ## remove .venv, caches and what the chores left
	@rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@rm -rf perdure-demo perdure-demo-cluster
	@find services tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The lock names packages and hashes and no place to get them from: that is the user's to choose.
LOCK = $(VENV)/lock-tool/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" $(ARGS)

$(DONE)/venv:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "perdure needs Python 3.11 or later; found: $$($(or $(PYTHON),python3) --version 2>&1)."; \
		echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; } >&2
	@echo "perdure: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

$(DONE)/runtime: $(DONE)/venv requirements.lock $(PROJECT)
	@echo "perdure: installing the locked packages (a minute or less, once)"
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --editable .
	@touch $@

$(DONE)/cluster: $(DONE)/venv requirements-cluster.lock $(PROJECT)
	@echo "perdure: installing the locked packages for a cluster (a minute or less, once)"
	@$(PIP) install --require-hashes --requirement requirements-cluster.lock
	@$(PIP) install --no-deps --editable .
	@touch $@ $(DONE)/runtime

# The development lock holds the runtime lock's packages at the same versions, and the build backend.
$(DONE)/dev: $(DONE)/venv requirements-dev.lock $(PROJECT)
	@echo "perdure: installing the locked packages for development (a minute or less, once)"
	@$(PIP) install --require-hashes --requirement requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ $(DONE)/runtime $(DONE)/cluster

$(DONE)/lock-tool: $(DONE)/venv
	@echo "perdure: installing the tool that writes the lock"
	@$(BIN)/python -m venv $(VENV)/lock-tool
	@$(VENV)/lock-tool/bin/python -m pip --quiet --disable-pip-version-check install "uv>=0.5"
	@touch $@
