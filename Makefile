# The two commands are `make run` and `make test`; `make check` does all that CI does.
PYTHON ?= python3.11
NEWEST ?= python3.13
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.docs

.PHONY: run test test-slow test-wheel test-lowest test-newest mutants board lint check bench paper docs docs-check gallery figures dist clean

run: $(STAMP)  ## tune a model of a real table, look for labels that were turned in another, and say where the reports are
	$(BIN)/bilevax tune airfoil --out runs/airfoil --seed 0 --force
	$(BIN)/bilevax clean digits --flip 0.2 --trust 200 --out runs/digits --seed 0 --force

test: $(STAMP)  ## the documentation's code as a user would run it, then the tests under strict numerics
	$(BIN)/python -m pytest -n 2 --dist worksteal README.md CONTRIBUTING.md docs src
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(STAMP)  ## the statistical and real-data tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-wheel:  ## `make test` against the wheel in a fresh environment, from outside of the tree
	.ci/outside $(PYTHON) newest all

test-lowest:  ## a part of the tests with the lowest versions that pyproject.toml allows
	.ci/outside $(PYTHON) lowest smoke

test-newest:  ## a part of the tests with the newest Python that jax supports, and the newest versions
	.ci/outside $(NEWEST) newest smoke

mutants: $(STAMP)  ## break the package in one place at a time: do the tests see it?
	$(BIN)/python tests/mutants/run.py

board: $(STAMP)  ## what goes wrong, and what the tests say of it: the table of docs/reliability.md, scored
	$(BIN)/python tests/board.py

lint: $(STAMP)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DOCS)  ## the site, in docs/_build/html: every page, every recipe in quick mode, warnings as errors
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html

docs-check: $(DOCS)  ## the same without running the recipes
	$(BIN)/python -m sphinx -q -W --keep-going -D plot_gallery=0 docs docs/_build/check

gallery: $(DOCS)  ## the recipes in full: their figures go to docs/figures, which the site shows
	$(BIN)/python docs/_ext/recipes.py

figures: $(DOCS)  ## those of the recipes that take a seed, by five more
	$(BIN)/python docs/_ext/recipes.py --seeds 5

dist: $(STAMP)  ## the sdist, and the wheel that is built from it
	$(BIN)/python -m build

check: lint docs-check test-wheel  ## what CI does

bench: $(STAMP)  ## the comparison with a grid search on real data
	$(BIN)/python -m benchmarks against_grid

paper: $(STAMP)  ## the experiments of the paper on stochastic hypergradients: docs/paper.md and its figures
	$(BIN)/python -m benchmarks paper

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist runs docs/_build docs/_recipes docs/gallery docs/api/names .pytest_cache .mypy_cache .ruff_cache .hypothesis
