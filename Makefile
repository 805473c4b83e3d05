# Everything happens in a virtual environment made here, so Python (3.11 or newer) and make are all that it takes.
#   make help

VENV ?= .venv
PYTHON ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
TRAIN_ARGS ?=
TORTURE_ARGS ?=
WINDOWS_ARGS ?=
ARGS ?=

# Keyed on content, not on time (a checkout sets times as it likes), and on the place: an editable install names it.
INPUTS := pyproject.toml requirements/dev.txt
STAMP := $(VENV)/.installed-$(shell { cat $(INPUTS); echo '$(CURDIR)'; } | cksum | tr -cs '0-9\n' '-')

.DEFAULT_GOAL := help
.PHONY: help install train test test-lerobot equivalence torture windows bench bench-peers lint format clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1 - /p' Makefile
	@echo 'Variables:'
	@echo '  PYTHON=python3.12   the interpreter for a new .venv (make clean first, if there is one)'
	@echo '  PIP_ARGS=...        for pip; torch without CUDA, on Linux:'
	@echo '                      PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"'
	@echo '  PYTEST_ARGS=...     for pytest, e.g. PYTEST_ARGS="-k ring -x -n 0"; it runs a test a core'
	@echo '  TRAIN_ARGS=...      for examples/train_pusht.py'
	@echo '  ARGS=...            for equivalence and bench, e.g. ARGS="--only image_windows frames --quick", ARGS=--list'
	@echo '  TORTURE_ARGS=...    e.g. TORTURE_ARGS="--kills 500 --seed 7"; WINDOWS_ARGS=... e.g. "--mode png --start spawn"'

install: $(STAMP) ## make .venv with everything pinned, and the package itself in it

train: $(STAMP) ## import the sample, train a policy on it, evaluate it
	$(VENV)/bin/python examples/train_pusht.py $(TRAIN_ARGS)

test: lint ## lint, types and tests
	$(VENV)/bin/python -m pytest -n logical --dist worksteal $(PYTEST_ARGS)

# lerobot holds torch, av and others to versions of its own, so it has an environment of its own, which clones share;
# the package is found by its path, because an installed one would be that of a single clone.
test-lerobot: $(STAMP) ## tests beside lerobot 0.4.4, in an environment kept in ~/.cache/roboreel: Python 3.11, 9 GB on Linux
	python="$$($(VENV)/bin/python -m scripts.kept_environment requirements/lerobot.txt $(PIP_ARGS))" && \
	    PYTHONPATH=src "$$python" -m pytest -W default -n logical --dist worksteal tests/lerobot $(PYTEST_ARGS)

equivalence: $(STAMP) ## compare every item with LeRobotDataset's, in the environment of test-lerobot; an hour
	python="$$($(VENV)/bin/python -m scripts.kept_environment requirements/lerobot.txt $(PIP_ARGS))" && \
	    PYTHONPATH=src "$$python" -m scripts.equivalence $(ARGS)

torture: $(STAMP) ## kill writers 2,000 times and compare what is left; some 10 minutes
	$(VENV)/bin/python -m scripts.torture $(TORTURE_ARGS)

windows: $(STAMP) ## read 1,000,000 windows while they are overwritten, none torn; some 5 minutes
	$(VENV)/bin/python -m scripts.torn_windows $(WINDOWS_ARGS)

bench: $(STAMP) ## measure speed and memory beside floors and peers; some 15 minutes
	$(VENV)/bin/python -m benchmarks $(ARGS)

bench-peers: $(STAMP) ## the peers' environments, .venv-peers-*; 15 GB on Linux
	$(VENV)/bin/python -m benchmarks.peers.install $(PIP_ARGS)

lint: $(STAMP) ## ruff and mypy, nothing changed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP) ## ruff's mending of what it can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) outputs build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): $(VENV)/.made
	$(VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements/dev.txt
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --quiet --editable .
	rm -f $(VENV)/.installed-*
	touch $@

# Tried one by one and run, because a name on PATH is not enough: version managers leave shims that fail, and some
# distributions split venv off. Versions first that the pins are tested on.
$(VENV)/.made:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "making $(VENV) with $$python ($$("$$python" --version))"; \
	        "$$python" -m venv $(VENV) && touch $@ && exit 0; \
	        exit 1; \
	    fi; \
	done; \
	echo 'No usable Python: none of "$(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)" is Python 3.11 or' >&2; \
	echo 'newer with the modules venv and ensurepip. On Debian or Ubuntu: apt install python3-venv. To name one yourself:' >&2; \
	echo '    make PYTHON=/path/to/python3.11 install' >&2; \
	exit 1
