# Every target makes the environment it needs in .venv, from nothing but Python >= 3.11 and pip.
#   make demo            train on simulated cells, predict, draw                -> demo_output/
#   make test            all tests, against the installed package
#   make test-fast       the same without those marked slow
#   make lint            ruff: rules and format; codespell: spelling; then make types
#   make types           pyright over the package
#   make docs            HTML pages, warnings are errors                        -> docs/_build/html
#   make bench-quality   quality of the predictions beside the baselines
#   make bench-robustness  odd input, interruptions, precision, memory: what happens
#   make bench-speed     speed of training and prediction beside SCVI, as ratios
#   make clean           remove what the targets wrote;   make distclean        the environment too

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Further requirements for the environment, such as "scvi-tools==1.4.2".
REQUIREMENTS ?=
# Processes that share the tests, one thread each. 0: all tests in pytest's own process.
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

# Without the working directory on sys.path, `import cfmvc_scvi` finds the installed package, never the checkout.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLBACKEND := Agg
# numba's threads beside torch's make both slow on few cores.
export NUMBA_NUM_THREADS := 1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
VENV_READY := $(VENV)/.venv-ready
ENV_READY := $(VENV)/.env-ready
PACKAGE_READY := $(VENV)/.package-ready
DOCS_READY := $(VENV)/.docs-ready
BENCH_READY := $(VENV)/.bench-ready
# Directories too: they change when a file is removed.
SOURCES := $(shell find cfmvc_scvi -not -name '*.pyc' -not -name __pycache__)

.PHONY: env demo test test-fast lint types docs bench-quality bench-robustness bench-speed clean distclean

env: $(PACKAGE_READY)

$(VENV_READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
# torch first and pinned, so that a CPU wheel of this version is taken where pip is set up to find one: left to the
# requirements of the other packages, the newest torch would come, with gigabytes of CUDA libraries.
	$(PIP) install "$(TORCH)"
	touch $@

$(ENV_READY): pyproject.toml $(VENV_READY)
	$(PIP) install ".[dev]" $(foreach requirement,$(REQUIREMENTS),"$(requirement)")
	touch $@

$(PACKAGE_READY): $(SOURCES) $(ENV_READY)
	$(PIP) install --quiet --no-deps --no-build-isolation --force-reinstall .
	touch $@

$(DOCS_READY): pyproject.toml $(ENV_READY)
	$(PIP) install ".[docs]"
	touch $@

$(BENCH_READY): pyproject.toml $(ENV_READY)
	$(PIP) install ".[bench]"
	touch $@

demo: $(PACKAGE_READY)
	$(BIN)/python tutorials/demo.py

test test-fast: export OMP_NUM_THREADS := 1
test test-fast: TEST_RUN = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=20
test: $(PACKAGE_READY)
	$(TEST_RUN) $(PYTEST_ARGS)

test-fast: $(PACKAGE_READY)
	$(TEST_RUN) -m "not slow" $(PYTEST_ARGS)

lint: $(ENV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(MAKE) --no-print-directory types

types: $(ENV_READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(PACKAGE_READY) $(DOCS_READY)
	rm -rf docs/_build docs/generated docs/tutorials
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

bench-quality: $(PACKAGE_READY) $(BENCH_READY)
	PYTHONPATH=benchmarks/quality $(BIN)/python benchmarks/quality/kang.py $(BENCH_ARGS)

bench-speed: $(PACKAGE_READY) $(BENCH_READY)
	PYTHONPATH=benchmarks/speed $(BIN)/python benchmarks/speed/run.py $(BENCH_ARGS)

bench-robustness: $(PACKAGE_READY)
	set -e; for script in inputs new_data mistakes memory interrupted_writes precision kill_and_resume; do \
	    echo "== $$script"; $(BIN)/python benchmarks/robustness/$$script.py; done

clean:
	rm -rf build dist demo_output lightning_logs docs/_build docs/generated docs/tutorials
	rm -rf .pytest_cache .ruff_cache .hypothesis htmlcov .coverage
	find cfmvc_scvi tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
