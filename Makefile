# make demo: install lvt, make procedural videos, run every stage on them.
# make test: install lvt and the development tools, lint, check types, run the tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
TEST_PROCESSES ?= 2

.PHONY: demo test lint format types bench versions clean help

help:
	@grep -E '^# make' Makefile | cut -c3-

demo: $(VENV)/ready
	$(BIN)/lvt demo -o $(DEMO)

test: lint types
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

# make lint: style only
lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# make types: mypy --strict only
types: $(VENV)/ready-dev
	$(BIN)/mypy

# make format: rewrite the code in the house style
format: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make bench: time what the documentation claims, side by side
bench: $(VENV)/ready-dev
	$(BIN)/python -m benchmarks

# make versions: a tiny pass over every stage with the oldest and newest allowed dependencies, on every Python found
versions: $(VENV)/ready
	$(BIN)/python -m tests.version_matrix $(VERSIONS_ARGS)

# make clean: remove the environment and what tools left behind; work directories stay
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lvt needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# PYTHONWARNINGS: setuptools warns of every editable installation.
$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(VENV)/ready $@
