# Needs make, a POSIX shell and Python 3.11 or later. Everything else is installed below .venv and .devstack.
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run check test bench torture lock clean
.NOTPARALLEL:

PYTHON ?= python3
DURATION_S ?= 1800
SEED ?= 1
BOOTSTRAP = @"$(PYTHON)" -E -s -m devstack.bootstrap
BIN = .venv/bin

help:  ## this list
	@printf '%s\n' \
	'make run      set up, start the local stack and the three services, post an event, read its total; Ctrl-C stops all' \
	'make test     set up, then every check and test, end to end on the real KCL too' \
	'make check    set up, then the fast part of make test' \
	'make bench    set up, then the benchmarks' \
	'make torture DURATION_S=1800 SEED=1    set up, then the long run of faults' \
	'make setup    the environment in .venv, the parts of the local stack in .devstack' \
	'make lock     choose versions anew: requirements/*.in -> *.txt' \
	'make clean    remove what set-up and tests made; the data in .metering stays' \
	'PYTHON=python3.12 make run    with another Python than python3'

setup:
	$(BOOTSTRAP) run

setup-dev:
	$(BOOTSTRAP) dev

# exec: metering takes the place of make's shell, so that a signal sent to make reaches it and make waits for its end.
run: setup
	@exec $(BIN)/metering up

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 4 --dist worksteal tests/unit tests/contract tests/model

test: check
	$(BIN)/python -m pytest -q -n 4 --dist worksteal tests/protocol tests/live tests/fuzz
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/e2e
	$(BIN)/python -m pytest tests/torture

bench: setup-dev
	@exec $(BIN)/python -m bench

torture: setup-dev
	@exec $(BIN)/python -m tests.torture --duration-s $(DURATION_S) --seed $(SEED)

# One lock for every Python from 3.11 on and every platform; hashes, no addresses. local and dev keep to run's versions.
lock: setup-dev
	@for name in build run local dev; do \
		$(BIN)/uv pip compile --quiet --no-config --system-certs --upgrade --universal --python-version 3.11 --generate-hashes \
			--no-strip-extras --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
			--output-file requirements/$$name.txt requirements/$$name.in || exit 1; \
	done

clean:
	rm -rf .venv .devstack build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
