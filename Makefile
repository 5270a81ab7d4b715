# make demo    a full PRIME loop on a small model, on the CPU, from nothing
# make test    everything that has to hold: lint, types, layers, tests
#
# Both make .venv first, from the pinned versions in constraints.txt.

PYTHON ?= python3
VENV   ?= .venv

BIN := $(abspath $(VENV))/bin

.PHONY: demo test lint clean
demo: $(VENV)/.installed
	$(MAKE) --no-print-directory -C examples/arithmetic PYTHON=$(BIN)/python

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "primecli needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) examples/arithmetic/work .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
