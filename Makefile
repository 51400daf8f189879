# One place for every command that people and CI run. `make help` lists them.

VENV ?= .venv
BIN := $(VENV)/bin
# Changes when an input of the environment does, so that a stale environment is never used.
STAMP := $(VENV)/.installed
# The newest Python is not always the right one: dependencies publish wheels late. 3.11 is what we test.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
PYTEST_ARGS ?=

# Nothing here may fetch from a model hub: all data of the tests and examples is made locally.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test check clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

quickstart: $(STAMP) ## Train a toy model end to end on this machine
	$(BIN)/python examples/quickstart.py

test: $(STAMP) ## Run the tests (PYTEST_ARGS="tests/config -x" for some of them)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP) ## Lint, format, layers, types, dead code, test tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/vulture $(wildcard megatron_prime examples tools tests)
	$(BIN)/python -m pytest --durations=0 tests/test_mirror.py

clean: ## Remove the environment, caches and build leftovers (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The build environment that pip isolates for this package holds setuptools alone, so it cannot pull a second torch.
$(STAMP): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11 or newer with venv" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than 3.11; name another with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@
