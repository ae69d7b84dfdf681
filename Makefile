# `make study` and `make test` work on a fresh clone: each first makes the environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env lint test test-slow study clean
.DEFAULT_GOAL := test

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --no-deps curvlinops-for-pytorch backpack-for-pytorch \
		hessian-eigenthings==1.0.0a5
	touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: env
	$(BIN)/python -m pytest tests/cli -m "alone and not slow"
	$(BIN)/python -m pytest -m "not alone and not slow" -n auto --dist loadfile --no-loadscope-reorder

test-slow: env
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile --no-loadscope-reorder

study: env
	$(BIN)/python train.py -m experiment=surlemont2022

clean:
	rm -rf $(VENV) build *.egg-info
