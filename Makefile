PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check lint layers types format build clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(SETUP) ## make .venv and install lorachains into it

# Done once, and again when what is to be installed changes.
$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lorachains needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

demo: $(SETUP) ## fine-tune a real model with LoRA and with COLA, and compare them (minutes)
	$(BIN)/python -m lorachains.train -m experiment=demo method=lora,cola hydra.sweep.dir=runs/demo
	$(BIN)/python -m lorachains.report runs/demo

test: $(SETUP) ## run the tests, in a process for each core
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-slow: $(SETUP) ## run the tests that download a model or take minutes
	$(BIN)/python -m pytest -m slow

check: lint types layers test ## all that CI runs

lint: $(SETUP) ## look for mistakes and unformatted files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(SETUP) ## check the types
	$(BIN)/mypy

layers: $(SETUP) ## check that each layer imports only from those below
	$(BIN)/lint-imports

format: $(SETUP) ## format the files and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(SETUP) ## build the wheel into dist/
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean: ## remove .venv and everything that was built
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
