# Two commands: `make quickstart` (environment, install, run) and `make test`. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test test-slow wheel accuracy-smoke lint format

# Runs again only when the declared dependencies change.
install: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --quiet --editable .[dev]
	touch $@

quickstart: install
	$(BIN)/python -m isnet_jax.main --config=configs/quickstart.py

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m ""

# dist/ with the wheel and the source distribution that it is built from, tried in an environment of its own.
wheel: install
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	tests/wheel.sh dist/*.whl $(PYTHON)

# Trains ResNet-18 on a few small images in both frameworks, and compares: minutes, not accuracy.
accuracy-smoke: install
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet --quiet torch==2.13.0
	$(BIN)/python -m benchmarks.accuracy.run --smoke

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
