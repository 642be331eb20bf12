# Two commands: `make quickstart` (environment, install, run) and `make test`. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test test-slow

# Installed anew only when what it depends on has changed.
install: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --quiet --editable .[test]
	touch $@

quickstart: install
	$(BIN)/python -m isnet_jax.main --config=configs/quickstart.py

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m ""
