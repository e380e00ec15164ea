# What people type. The plain commands behind each target stand in the README.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SEEDS  ?= 0 1 2 3 4
TABLE  := poison_ratio,differs_in,n,undefended_ca,undefended_asr,ca,ca_unstamped,ca_drop_worst_class,asr,ba,detection_precision
GRIDS  ?= benchmarks/tables/digits.yml
JOBS   ?= 1

.PHONY: help install demo test lint types check results-table table mlflow viz bench hardening clean

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

# One thread a run, so that the figures do not depend on the number of cores.
results-table: export OMP_NUM_THREADS = 1
results-table: install  ## the README's table: five variants, seeds 0-4 (~40 minutes)
	for seed in $(SEEDS); do \
	  for variant in "" ,poison_ratio=0.05 ,relabel.trusted_stamps=0 ,relabel.agreed_stamps=0 \
	      ,relabel.trusted_stamps=0,relabel.agreed_stamps=0,relabel.stamp_repeats=1; do \
	    $(BIN)/kedro run --params seed=$$seed$$variant || exit 1; \
	  done; \
	done
	$(BIN)/kedro results --summary --format markdown --columns $(TABLE)

table: install  ## attacks x defences x seeds, and docs/results.md; goes on where it was (hours)
	$(BIN)/kedro table $(GRIDS) --jobs $(JOBS)

# MLflow keeps silent for the word "true" alone; the first line makes the database, if need be.
mlflow: export DO_NOT_TRACK = true
mlflow: install  ## serve the tracked runs on http://127.0.0.1:5001
	@MLFLOW_TRACKING_URI= $(BIN)/kedro results --limit 1 --format csv > /dev/null
	@echo "runs:  http://127.0.0.1:5001/#/experiments/1/runs?compareRunsMode=CHART"
	$(BIN)/mlflow server --backend-store-uri sqlite:///mlflow.db \
	  --artifacts-destination ./mlartifacts --host 127.0.0.1 --port 5001 --workers 1

viz: install  ## show the DAG
	$(BIN)/kedro viz run

bench: install  ## all benchmarks, one JSON object each (about an hour)
	for name in overhead ingest throughput memory cost kills; do \
	  $(BIN)/python benchmarks/$$name.py --json || exit 1; \
	done

hardening: install  ## bad values, damage, kills, hostile files: n tried, n good (hours)
	$(BIN)/python benchmarks/hardening.py

clean:  ## remove what runs have written, keep the environment
	rm -rf mlflow.db* .mlflow.db* .runs mlartifacts mlruns .pytest_cache .mypy_cache .ruff_cache
	find data -mindepth 1 ! -name .gitkeep -delete
