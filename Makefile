# One place for every command that people and CI run. `make help` lists them.

VENV ?= .venv
BIN := $(VENV)/bin
# Changes when an input of the environment does, so that a stale environment is never used.
STAMP := $(VENV)/.installed
# Dependencies publish wheels for a new Python late, so the version that we test comes first.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
PYTEST_ARGS ?=
# The whole suite runs in three processes, since tests of servers often wait (tests/support/side_by_side.py); tests named
# by PYTEST_ARGS run in one. SLOW=yes adds those marked `slow`, a third of the time.
SLOW ?= no
WHOLE_SUITE := -n 3 $(if $(filter yes,$(SLOW)),,-m "not slow")
# SGLang pins its own torch, so it has its own environment. It is built in SGLANG_CACHE, where other checkouts find it,
# or in this checkout where that folder cannot be written.
SGLANG_VENV := .venv-sglang
SGLANG_CACHE ?= $(shell folder="$${XDG_CACHE_HOME:-$$HOME/.cache}/megatron_prime"; \
    mkdir -p "$$folder" 2>/dev/null && [ -w "$$folder" ] && echo "$$folder")
BUILD_SGLANG = $(BIN)/python tools/install_sglang.py --venv $(SGLANG_VENV) \
    $(if $(SGLANG_CACHE),--cache "$(SGLANG_CACHE)")
# Without an engine environment `make test` builds it (yes), or skips the tests that start servers (no).
SGLANG ?= yes

# Nothing here may fetch from a model hub: all data of the tests and examples is made locally.
export HF_HUB_OFFLINE := 1
# Multi-process tests run several ranks on few cores, where more threads per process only compete.
test check: export OMP_NUM_THREADS := 1
test check: export TOKENIZERS_PARALLELISM := false

# Some machines forbid Python to keep compiled files, so that each process of the tests would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart quickstart-tools sglang test check docs wheel clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 19

quickstart: $(STAMP) ## Train a toy model end to end on this machine (ARGS="--compare", ARGS="--task arithmetic")
	$(BIN)/megatron-prime quickstart $(ARGS)

quickstart-tools: $(STAMP) ## Train a toy model that learns to call a tool
	$(BIN)/megatron-prime quickstart --task tools

sglang: $(STAMP) ## Build the rollout servers' environment, .venv-sglang (3 GB)
	$(BUILD_SGLANG)

# If the engine environment cannot be built, its tests are skipped, the others run, and the target fails.
test: $(STAMP) ## Run the tests (SLOW=yes: all of them; PYTEST_ARGS="tests/config -x": some; SGLANG=no: no servers)
	@sh tools/install_test_programs.sh
	@status=0; \
	if [ "$(SGLANG)" = yes ] && [ -z "$$MEGATRON_PRIME_SGLANG_PYTHON" ]; then \
	    $(BUILD_SGLANG) || { status=1; echo "ERROR: no SGLang environment: its tests" \
	        "are skipped, and this run counts as failed (make test SGLANG=no to do without)" >&2; }; \
	fi; \
	$(BIN)/python -m pytest $(or $(PYTEST_ARGS),$(WHOLE_SUITE)) || status=$$?; \
	exit $$status

check: $(STAMP) ## Lint, format, layers, types, dead code, test tree, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/vulture $(wildcard megatron_prime examples tools tests)
	$(BIN)/python -m pytest --durations=0 tests/test_mirror.py tests/test_structure.py tests/test_docs.py
	@$(MAKE) --no-print-directory docs

# NO_MKDOCS_2_WARNING: a notice of the theme, which setup.py answers by its version range.
docs: $(STAMP) ## Build the documentation as a site in build/site, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(STAMP) ## Build the source distribution and, from it, the wheel: dist/
	rm -rf build dist
	$(BIN)/python -m build --quiet

clean: ## Remove the environments, caches and build leftovers (runs/ stays)
	rm -rf $(VENV) $(SGLANG_VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The build environment that pip isolates for this package holds setuptools alone, so it cannot pull a second torch.
$(STAMP): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found; install Python 3.11 or newer with venv" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than 3.11; name another with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@# An existing environment keeps its interpreter: venv would mix it with the library of another one.
	@$(BIN)/python -c 'import pip, ssl' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@
