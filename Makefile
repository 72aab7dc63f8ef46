# memarch: `make quickstart` shows it, `make test` proves it. Both set up all that they need.
#
# The environment is, in this order: the one that PYTHON= lies in, the active one (virtual
# environment or conda), or .venv here, made with PYTHON= or the first Python 3.11+ on the path.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow lint format types run-tests run-lint run-types base dev clean

PYTEST_ARGS ?=
STORAGE := $(or $(MEMARCH_STORAGE),runs)
FOLDERS := arch components kernels search_spaces studies

# Prints the environment's interpreter, making .venv where there is no environment.
define FIND_ENVIRONMENT
new_enough() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
in_environment() { "$$1" -c 'import os, sys; sys.exit(sys.prefix == sys.base_prefix and not os.path.isdir(os.path.join(sys.prefix, "conda-meta")))' 2>/dev/null; }
fail() { echo "make: $$*" >&2; exit 2; }
given="$(PYTHON)"
if [ -n "$$given" ]; then
  new_enough "$$given" || fail "PYTHON=$$given does not run, or is older than 3.11"
  if in_environment "$$given"; then command -v "$$given"; exit; fi
else
  for active in "$${VIRTUAL_ENV:-}" "$${CONDA_PREFIX:-}"; do
    if [ -n "$$active" ] && [ -x "$$active/bin/python" ]; then
      new_enough "$$active/bin/python" || fail "the active environment $$active has a Python older than 3.11; deactivate it, or give PYTHON="
      echo "$$active/bin/python"; exit
    fi
  done
  for name in python3 python3.13 python3.12 python3.11 python; do
    if new_enough $$name; then given=$$name; break; fi
  done
  [ -n "$$given" ] || fail "no Python 3.11 or newer found; install one, or give PYTHON=/path/to/python"
fi
here="$(CURDIR)/.venv/bin/python"
version() { "$$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
if [ -x "$$here" ]; then
  if [ -n "$(PYTHON)" ] && [ "$$(version "$$here")" != "$$(version "$$given")" ]; then
    fail ".venv has Python $$(version "$$here"), PYTHON= asks for $$(version "$$given"); remove .venv first"
  fi
else
  echo "Making the environment .venv with $$("$$given" --version) ..." >&2
  # Debian splits ensurepip off: then the outer pip fills the environment.
  "$$given" -m venv .venv >/dev/null 2>&1 || {
    "$$given" -m venv --clear --without-pip .venv >&2
    "$$given" -m pip --quiet --python "$$here" install pip >&2
  }
fi
echo "$$here"
endef
export FIND_ENVIRONMENT

# $(call install,EXTRAS): install this folder, editable, with the tested versions; quick when done.
define install
env_python=$$(bash -eu -c "$$FIND_ENVIRONMENT"); \
mkdir -p .make; echo "$$env_python" > .make/python; \
stamp=$$("$$env_python" -c 'import sys; print(sys.prefix)')/.memarch-installed; \
key="$(CURDIR) $$(cat pyproject.toml constraints.txt | cksum)"; \
found=$$(cat "$$stamp" 2>/dev/null || true); \
if [ "$$found" != "$$key dev" ] && [ "$$found" != "$$key $(1)" ]; then \
  echo "Installing memarch$(if $(filter dev,$(1)),[dev]) into $$(dirname "$$(dirname "$$env_python")")."; \
  if ! "$$env_python" -c 'import torch, ray, mlflow' 2>/dev/null; then \
    echo "This downloads, once, from your package index: PyTorch (0.2 GB; 2 to 3 GB more where the"; \
    echo "index serves CUDA builds), transformers, ray, mlflow, optuna, datasets and what they need"; \
    echo "(0.4 GB). It takes some minutes. No models and no data sets are downloaded."; \
    echo "Without a GPU, the CPU build of torch, installed before, saves most of it."; \
  fi; \
  PYTHONWARNINGS=ignore "$$env_python" -m pip install $$([ -t 1 ] || echo -qq) --disable-pip-version-check -c constraints.txt -e ".$(if $(filter dev,$(1)),[dev])"; \
  echo "$$key $(1)" > "$$stamp"; \
fi
endef
# Scripts, not `python -m`: that would put this folder, and so a bare `kernels`, on the path.
BIN = "$$(dirname "$$(cat .make/python)")"

help:
	@echo "make quickstart  set up, run a first search over memory mechanisms, show where to look"
	@echo "make test        set up, run the whole test suite      (PYTEST_ARGS='-k name' for a part)"
	@echo "make test-slow   those that take minutes each: faults on clusters, SLURM, sixty trials"
	@echo "make lint        ruff check and format check           make format   apply both"
	@echo "make types       mypy over all folders                 make clean    remove what was made"
	@echo "PYTHON=/path/to/python and an active virtual or conda environment are honoured."

base:
	@$(call install,base)
dev:
	@$(call install,dev)

quickstart: base
	@if [ -e "$(STORAGE)/studies/quickstart" ]; then \
	  echo "$(STORAGE) has a study named quickstart: going on with it."; \
	  $(BIN)/memarch study resume quickstart; \
	else \
	  $(BIN)/memarch study run search_spaces/quickstart.yaml; \
	fi
	@bin=$(BIN); \
	echo; \
	echo "Where to look next:"; \
	echo "  $(STORAGE)/studies/quickstart/report.html     the report: leaderboard, recall against state"; \
	echo "  $$bin/memarch study show quickstart           the same trials in the terminal"; \
	echo "  $$bin/memarch ui                              every run, in the MLflow UI"; \
	echo "  docs/results.md                               the same question with more sizes and steps"; \
	echo "  search_spaces/quickstart.yaml                 the study itself: copy it, change it, run it"

test: dev run-tests
test-slow: dev
	@$(BIN)/pytest -m slow $(PYTEST_ARGS)
lint: dev run-lint
types: dev run-types
format: dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# A file's tests run in one process, as they share studies; in the order of tests/conftest.py.
run-tests:
	@$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST_ARGS)

run-lint:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# mypy knows nothing of setuptools' mapping of folders to packages: links give it the same names.
run-types:
	@rm -rf .mypy/memarch; mkdir -p .mypy/memarch
	@for item in memarch/*; do ln -s "../../$$item" ".mypy/$$item"; done
	@for folder in $(FOLDERS); do ln -s "../../$$folder" ".mypy/memarch/$$folder"; done
	@$(BIN)/mypy --config-file pyproject.toml \
	  | sed -E 's#^\.mypy/(memarch/($(subst $() ,|,$(FOLDERS)))/)#\1#; s#^memarch/($(subst $() ,|,$(FOLDERS)))/#\1/#; s#^\.mypy/##'

clean:
	@rm -rf .make .mypy .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist memarch.egg-info
