# Each target sets up what it needs in .venv; nothing outside this folder is touched.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO ?= eval specialists --limit 1000
PYTEST_ARGS ?= -n 2 --dist loadfile

# one thread a process: two beside a busy one are slower than one
export OMP_NUM_THREADS := 1

.PHONY: help setup demo test lint clean

help:
	@echo "make demo    set up, then ask a team 1,000 questions and say whether it beats its best member"
	@echo "make test    set up, then run all tests"
	@echo "make lint    set up, then ruff, mypy and import-linter"
	@echo "make setup   only set up .venv"
	@echo "make clean   remove .venv and what the checks left behind"

setup: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "aiflow: Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# not compiled ahead: that is half of the time, and Python does it for what is really imported
	@# the CPU build of torch first, or gigabytes of CUDA follow; where that index cannot be reached, the next line takes what there is
	-$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --retries 1 --timeout 20 \
		--index-url $(TORCH_INDEX) $$(grep '^torch==' requirements-dev.lock)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	$(BIN)/aiflow $(DEMO)

test: setup
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
