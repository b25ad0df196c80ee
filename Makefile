# make demo    draw the embedded data set, convert, train SimCLR + EquiMod, evaluate, draw the figures
# make test    ruff, the type checker, pytest
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
FOLDERS := pipelines models train tools benchmarks

.PHONY: demo test lint typecheck pytest clean
.DELETE_ON_ERROR:

# `python -m venv` leaves the folder behind when it fails, hence the stamp as target.
.venv/installed: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

test: lint typecheck pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/installed
	mkdir -p .typecheck/equimod
	for folder in $(FOLDERS); do ln -sfn ../../$$folder .typecheck/equimod/$$folder; done
	$(BIN)/mypy

pytest: .venv/installed
	$(BIN)/python -m pytest
