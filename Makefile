# Everything a developer runs.  `make` alone says what there is.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup run test check soak faults clean
help:
	@echo "make setup | run | test | check | soak | faults | clean"

setup: .venv/.stamp

.venv/.stamp: pyproject.toml tools/setup.sh
	@PYTHON="$(PYTHON)" sh tools/setup.sh
	@touch $@

run: setup
	@$(BIN)/python tools/demo.py

test: setup
	@$(BIN)/python -m compileall -q mpifs tests tools  # hundreds of commands: each would do it
	@$(BIN)/python -m pytest -q -n 3 --dist worksteal </dev/null
	@echo "make test: all tests passed"

check: setup
	@$(BIN)/ruff check mpifs tests tools
	@$(BIN)/ruff format --check mpifs tests tools
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/check_house.py

soak: setup
	@$(BIN)/python tools/soak.py --minutes 10

# Every kind of damage alone, many mixtures, repairs killed at each step: about an hour.
faults: setup
	@MPIFS_FAULTS=long $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/faults tests/job tests/mount/test_volume_limits.py tests/job/test_run.py </dev/null

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
