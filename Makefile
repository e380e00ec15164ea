# What people type. The plain commands behind each target stand in the README.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SEEDS  ?= 0 1 2 3 4

.PHONY: help install demo test lint types check results-table mlflow viz bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed  ## make .venv and install the project in it

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: install  ## install, run the whole DAG on real digits, print the result
	$(BIN)/kedro run
	$(BIN)/kedro results --last

test: install  ## install what is missing and run the tests
	$(BIN)/python -m pytest

lint: install  ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install  ## mypy --strict
	$(BIN)/mypy

check: lint types test  ## all that CI runs

results-table: install  ## the README's table: seeds 0-4, both ratios, trusted stamps on and off
	for seed in $(SEEDS); do \
	  $(BIN)/kedro run --params seed=$$seed && \
	  $(BIN)/kedro run --params seed=$$seed,poison_ratio=0.05 && \
	  $(BIN)/kedro run --params seed=$$seed,relabel.trusted_stamps=false || exit 1; \
	done
	$(BIN)/kedro results --summary --format markdown

mlflow: install  ## serve the tracked runs on http://127.0.0.1:5001
	@echo "runs:  http://127.0.0.1:5001/#/experiments/1/runs?compareRunsMode=CHART"
	$(BIN)/mlflow server --backend-store-uri sqlite:///mlflow.db \
	  --artifacts-destination ./mlartifacts --host 127.0.0.1 --port 5001 --workers 1

viz: install  ## show the DAG
	$(BIN)/kedro viz run

bench: install  ## what tracking and reporting cost
	$(BIN)/python benchmarks/overhead.py

clean:  ## remove what runs have written, keep the environment
	rm -rf mlflow.db mlartifacts mlruns .pytest_cache .mypy_cache .ruff_cache
	find data -mindepth 1 ! -name .gitkeep -delete
