.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= drift-data
ARGS ?=

.PHONY: help run test test-faults check bench install clean

help: ## show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## everything on this machine, fed with a real sample; Ctrl-C ends (ARGS=--once exits after it)
	@$(BIN)/drift run --data $(DATA) $(ARGS)

test: $(VENV)/.installed-test ## all tests, on the best broker and ClickHouse this machine has
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-faults: $(VENV)/.installed-test ## half an hour of faults on real processes, and a report (ARGS=--minutes 5 --kills 8 ...)
	@$(BIN)/python -m tests.faults $(ARGS)

check: $(VENV)/.installed-dev ## ruff, mypy --strict, import rules
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: $(VENV)/.installed-test ## measure: ingest, graph, end to end (minutes)
	@$(BIN)/drift bench ingest $(ARGS)
	@$(BIN)/drift bench graph $(ARGS)
	@$(BIN)/drift bench e2e $(ARGS)

install: $(VENV)/.installed-dev ## the virtual environment with everything but torch

clean: ## remove the virtual environment and drift-data
	rm -rf $(VENV) $(DATA)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV), with what the tests need ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV), with development tools ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test
