# Each target sets up what it needs in .venv; nothing outside this folder is touched.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO ?= eval specialists --limit 1000
PYTEST_ARGS ?= -n 2 --dist loadfile

# one thread a process: two beside a busy one are slower than one
export OMP_NUM_THREADS := 1

.PHONY: help setup demo test test-vllm lint clean

help:
	@echo "make demo    set up, then ask a team 1,000 questions and say whether it beats its best member"
	@echo "make test    set up, then run all tests"
	@echo "make test-vllm  set up vLLM's CPU build in .venv-vllm, then run the tests that need it"
	@echo "make lint    set up, then ruff, mypy and import-linter"
	@echo "make setup   only set up .venv"
	@echo "make clean   remove .venv, .venv-vllm and what the checks left behind"

setup: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	$(call install,$(VENV))
	@touch $@

$(VLLM_STAMP): requirements-dev.lock requirements-vllm.lock pyproject.toml
	$(call install,$(VLLM_VENV))
	$(call pip,$(VLLM_VENV)) --no-deps -r requirements-vllm.lock
	@touch $@

# not compiled ahead: that is half of the time, and Python does it for what is really imported
pip = $(1)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check

# the CPU build of torch first, or gigabytes of CUDA follow; where that index cannot be reached, the next line takes what there is
define install
@test -n "$(PYTHON)" || { echo "aiflow: Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3" >&2; exit 2; }
$(PYTHON) -m venv $(1)
-$(call pip,$(1)) --no-deps --retries 1 --timeout 20 --index-url $(TORCH_INDEX) $$(grep '^torch==' requirements-dev.lock)
$(call pip,$(1)) -r requirements-dev.lock
$(call pip,$(1)) --no-deps --no-build-isolation -e .
endef

demo: setup
	$(BIN)/aiflow $(DEMO)

test: setup
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

# in an environment of its own: vLLM's CPU build wants other versions of some things. That it is there is looked at first, as its tests skip where it is not
test-vllm: $(VLLM_STAMP)
	$(VLLM_VENV)/bin/python -c "import vllm"
	$(VLLM_VENV)/bin/python -m pytest -q -m vllm --durations 8

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
