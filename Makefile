# Two commands are all there is to know: `make demo` and `make test`. Both work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test coverage check docs bench format clean

help:
	@echo "make demo      write a small synthetic data set and show it (two minutes)"
	@echo "make test      all tests"
	@echo "make coverage  all tests, and the branches that none of them takes; half as long again"
	@echo "make check     format, lint, types, import layers, documentation"
	@echo "make docs      the documentation, as a site in site/"
	@echo "make bench     the benchmark tables"
	@echo "make format    put the code in format"

# torch first and pinned: what pulls it in later would take a build with gigabytes of CUDA.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "gradmm needs Python 3.11 or newer; name one with 'make PYTHON=python3.12 ...'"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	rm -rf gradmm-demo
	$(BIN)/gradmm demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile

coverage: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --cov --cov-report=term

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python -m benchmarks

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) gradmm-demo gradmm-run .pytest_cache .mypy_cache .ruff_cache .coverage site
