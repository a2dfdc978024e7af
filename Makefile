# The targets that people use; `make help` lists them.
PYTHON := .venv/bin/python
WORKERS ?= 2
PYTEST_ARGS ?=
OWM_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup foreign browser run test test-fast lint types docs compile

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## Make .venv, install what is missing, pull the default models
	@scripts/setup.sh

run: setup ## Start a devnet of three peers on this machine (OWM_ARGS='--peers 5 --ask "..."')
	@.venv/bin/owm devnet $(OWM_ARGS)

foreign: setup ## Install the go-libp2p and js-libp2p peers that the interoperability tests talk to
	@$(PYTHON) -m tests.foreign._install

browser: setup ## Install the browser that the landing page is tested in
	@$(PYTHON) -m tests.page._install

test: setup foreign browser ## Run all tests
	@$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-fast: setup ## Run the tests that take less than a second each
	@$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(PYTEST_ARGS)

CORES := $(addprefix tests/dht/test_,core.py machines.py wire.py) $(addprefix tests/gossip/test_,machines.py mesh_and_scores.py wire.py reconcile.py) \
	$(addprefix tests/net/test_,yamux.py noise.py multistream.py) tests/tasks/test_cores.py

test-cores: setup ## Run the protocol cores' own tests, in seconds: no trio, no sockets
	@$(PYTHON) -m pytest -q -c /dev/null --rootdir . -p no:trio -p no:cacheprovider -W ignore $(CORES)

lint: setup ## Style, formatting, import layers, security
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports
	@.venv/bin/bandit -q -r owm -c pyproject.toml

types: setup ## Types, strictly
	@.venv/bin/mypy

docs: setup ## Write the generated pages anew
	@$(PYTHON) -m scripts.gen_docs

compile: setup ## Compile the protocol cores for fast simulations (needs a C compiler)
	@$(PYTHON) -m scripts.compile_cores
