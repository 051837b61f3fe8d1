# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
KEEP ?=
ARGS ?=

.DEFAULT_GOAL := help

# For users without a home, as in containers: pip needs one.
ifndef HOME
export HOME := $(CURDIR)/$(VENV)
endif

# Without compiled modules, each process that a test starts would compile Callmill anew.
unexport PYTHONDONTWRITEBYTECODE

# An environment of another Python, from a checkout elsewhere, or without pip is useless: create it anew.
IS_OURS := import os, pip; assert os.path.abspath("$(VENV)") in open("$(BIN)/activate").read()
ifneq ($(shell test ! -e $(VENV) || $(BIN)/python -c '$(IS_OURS)' 2>/dev/null || echo stale),)
.PHONY: $(BIN)/python $(VENV)/.installed $(VENV)/.installed-dev $(VENV)/.installed-release
endif

.PHONY: help
help: ## Show what there is to make
	@$(PYTHON) -c 'import re; [print(f"  make {name:<12} {text}") for name, text in re.findall("(?m)^([a-z-]+):.*## (.*)", open("Makefile").read())]'

.PHONY: setup
setup: $(VENV)/.installed-dev ## Make the virtual environment with everything for development

.PHONY: demo
demo: $(VENV)/.installed ## Push a few thousand calls through a simulated API and show it (KEEP=1: leave all up)
	@KEEP=$(KEEP) $(BIN)/python examples/demo.py

.PHONY: test
test: $(VENV)/.installed-dev ## Run the tests
	@$(BIN)/python -m pytest -q -n 6 --dist loadfile --no-loadscope-reorder -m 'not chaos and not long and not browser and not docker' $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.installed-dev ## Break everything under load and check what came of it (20 minutes; ARGS=--short: 12)
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal -m '(chaos or long) and not docker'
	@$(BIN)/python tests/chaos/storm.py $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-dev ## Feed everything that reads foreign bytes with nonsense (ten minutes each; CALLMILL_FUZZ_S=60: one)
	@CALLMILL_FUZZ_S=$${CALLMILL_FUZZ_S:-600} $(BIN)/python -m pytest -q -s tests/fuzz $(ARGS)

.PHONY: docker
docker: $(VENV)/.installed-dev ## Run image, compose file and scaling for real (5 minutes; needs a Docker engine)
	@if timeout 30 docker info >/dev/null 2>&1; then $(BIN)/python -m pytest -q -m docker $(ARGS); \
	else echo 'make docker: skipped, no Docker engine answers'; fi

.PHONY: browser
browser: $(VENV)/.installed-dev ## Look at the dashboard with a real Chromium (3 minutes)
	@$(BIN)/python -m pytest -q -m browser tests/browser $(ARGS)

.PHONY: screenshots
screenshots: $(VENV)/.installed-dev ## Take the pictures of docs/images anew (2 minutes; needs Chromium)
	@$(BIN)/python -m pytest -q -m browser --pictures tests/browser/test_pages_look.py tests/browser/test_redis_down.py

.PHONY: check
check: $(VENV)/.installed-dev ## Lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy
	@$(BIN)/mypy tests/typing/api.py
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/pyright --pythonpath $(BIN)/python tests/typing/api.py

.PHONY: format
format: $(VENV)/.installed-dev ## Put the code into its one format
	@$(BIN)/ruff check --fix-only -q .
	@$(BIN)/ruff format -q .

.PHONY: bench
bench: $(VENV)/.installed-dev ## Measure against the baselines (minutes; needs nginx)
	@$(BIN)/python benchmarks/run.py

.PHONY: bench-limits
bench-limits: $(VENV)/.installed-dev ## Measure what the limiter promises (45 minutes; ARGS=--quick: 4)
	@$(BIN)/python benchmarks/bench_limits.py $(ARGS)

.PHONY: lock
lock: $(VENV)/.installed-release ## Write requirements/ anew from pyproject.toml, with the newest versions that it allows
	@$(BIN)/python requirements/lock.py

.PHONY: audit
audit: $(VENV)/.installed-release ## Look the locked versions up among known vulnerabilities, and write dist/callmill.cdx.json, an SBOM
	@mkdir -p dist
	@$(BIN)/cyclonedx-py requirements requirements/runtime.txt --pyproject pyproject.toml --output-file dist/callmill.cdx.json
	@$(BIN)/pip-audit --requirement requirements/runtime.txt --requirement requirements/build.txt --disable-pip --strict

.PHONY: clean
clean: ## Remove what was made here
	@rm -rf $(VENV) .demo .node .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Callmill needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'No virtual environment: install the venv module (Debian: apt install python3-venv)' >&2; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check -U 'pip>=25.1'

# With the hashes of requirements/, so everybody gets the same files. --no-deps: everything is in there.
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
LOCKS := requirements/build.txt requirements/runtime.txt requirements/development.txt

$(VENV)/.installed: pyproject.toml $(LOCKS) | $(VENV)/bin/python
	@echo 'Installing Callmill into $(VENV) ...'
	@$(INSTALL) --require-hashes --no-deps -r requirements/build.txt -r requirements/runtime.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(LOCKS) | $(VENV)/bin/python
	@echo 'Installing Callmill and its development tools into $(VENV) ...'
	@$(INSTALL) --require-hashes --no-deps -r requirements/development.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-release: $(VENV)/.installed-dev
	@$(INSTALL) --group release
	@touch $@
