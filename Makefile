PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.setup-done

TABLES := $(basename $(notdir $(wildcard sweeps/*.yaml)))
SIZE ?= small
WORKERS ?= 1

.DEFAULT_GOAL := help
.PHONY: $(TABLES) reproduce smoke help setup demo test test-slow check lint layers types format build clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
	@echo 'a table or figure of a paper, with SIZE=paper (as published), small (one GPU) or smoke (two CPU cores), in minutes:'
	@for table in $(TABLES); do sed -n "s/^title: /$$table\t/p" sweeps/$$table.yaml; sed -n 's/^minutes: {\(.*\)}/\t  \1/p' sweeps/$$table.yaml; done | expand -t 16

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

$(TABLES): $(SETUP)
	$(BIN)/python -m lorachains.reproduce table=$@ size=$(SIZE) workers=$(WORKERS)

reproduce: $(SETUP) ## all tables and figures of the papers (SIZE=smoke: on two cores, in minutes); what is finished is not run again
	$(BIN)/python -m lorachains.reproduce table=all size=$(SIZE) workers=$(WORKERS)

test: $(SETUP) ## run the tests, in a process for each core
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-slow: $(SETUP) ## run the tests that download a model or take minutes
	$(BIN)/python -m pytest -m slow

smoke: $(SETUP) ## make every table and figure in a few minutes, of a tiny model
	OMP_NUM_THREADS=1 $(BIN)/python -m lorachains.reproduce table=all size=smoke root=runs/smoke

check: lint types layers test smoke ## all that CI runs

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
