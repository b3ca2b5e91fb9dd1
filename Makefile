PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check bench compare smollm2 clean

demo: $(INSTALLED)  ## prune the embedded model
	$(BIN)/darwinlm demo

test: $(INSTALLED)  ## all tests, on pico models, one process per core
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

check: $(INSTALLED)  ## style, types, import order
	$(BIN)/ruff format --check src tests benchmarks recipes
	$(BIN)/ruff check src tests benchmarks recipes
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_import_order.py

bench: $(INSTALLED)  ## the measurements of docs/benchmarks.md
	for script in $(filter-out benchmarks/compare.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

compare: $(INSTALLED)  ## every method of the paper's comparisons on two small models, resumable: takes hours on two cores
	$(BIN)/python benchmarks/compare.py --runs runs/compare

smollm2: $(INSTALLED)  ## a real model with every method, trained, scored and timed, resumable: about a day on two cores
	$(BIN)/python recipes/smollm2/run.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
