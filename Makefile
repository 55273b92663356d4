# Every target sets up what it needs in .venv, from nothing. First try: make demo
#
#   TORCH=cuda     use the CUDA build of torch (default: the CPU build, or what .venv already has)
#   PYTHON=...     interpreter for .venv (3.11 or newer)
#   ARGS="..."     passed on to pytest or to the demo
#   WORKERS=N      test processes (default 2)

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The choice sticks to the environment, so that `make test` after `make demo TORCH=cuda` keeps it.
TORCH ?= $(or $(patsubst $(VENV)/torch-%,%,$(wildcard $(VENV)/torch-cpu $(VENV)/torch-cuda)),cpu)
ARGS ?=
# Of two processes each begins with one half of the list, and 01 and 03 are the long ones.
NOTEBOOKS := $(sort $(wildcard notebooks/0[145]_*.ipynb))
NOTEBOOKS += $(filter-out $(NOTEBOOKS),$(sort $(wildcard notebooks/*.ipynb)))
# Test processes; 0 runs the tests in one process, for a debugger.
WORKERS ?= 2

CORE := $(VENV)/core-$(TORCH)
FULL := $(VENV)/full-$(TORCH)
PINS := pyproject.toml constraints.txt tools/environment.py

.PHONY: help demo test stacks browser check format lint types audit docs notebooks bench soak env lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(CORE)  ## transfer a steering vector between two small real models, on a CPU
	$(BIN)/tl-transfer demo $(ARGS)

test: $(FULL)  ## run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

stacks:  ## run the core tests with TransformerLens 4 and on Python 3.13 (not part of check)
	$(PYTHON) tools/stacks.py --workers $(WORKERS) $(ARGS)

browser:  ## make sure that there is a browser for the browser tests
	$(PYTHON) tools/browser.py

check: browser lint types audit test docs notebooks  ## everything a change must pass

lint: $(FULL)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(FULL)  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(FULL)
	$(BIN)/mypy

audit: $(FULL)  ## compare the installed packages with their pins, records and known advisories
	$(BIN)/python tools/audit.py

docs: $(FULL)  ## build the documentation into site/, and open every page of it in a browser
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m pytest -q --confcutdir tests/browser tests/browser/test_site_browser.py

notebooks: $(FULL)  ## execute the notebooks, WORKERS at a time
	@compgen -G 'notebooks/*.ipynb' >/dev/null || { echo 'notebooks/ has no notebook'; exit 1; }
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		--nbmake --nbmake-timeout=900 $(NOTEBOOKS) $(ARGS)

bench: $(FULL)  ## run the benchmarks and write docs/results/benchmarks.md
	@for script in $(filter-out %/timing.py %/page.py,$(wildcard benchmarks/*.py)) benchmarks/page.py; do \
		echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

soak: $(FULL)  ## the long campaigns (kills, damage, fuzzing, leaks, a cluster) and docs/results/soak.md
	$(BIN)/python tools/soak.py $(ARGS)

env: $(FULL)  ## set up .venv for development

lock:  ## resolve the dependencies anew into constraints.txt
	$(PYTHON) tools/environment.py --lock

clean:  ## remove .venv and everything built
	rm -rf $(VENV) .stacks site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One stamp a build and size; a change of build makes the other stamps untrue.
$(CORE): $(PINS)
	$(PYTHON) tools/environment.py --venv $(VENV) --torch $(TORCH)
	@rm -f $(VENV)/core-* $(VENV)/full-* $(VENV)/torch-*
	@touch $(VENV)/torch-$(TORCH) $@

$(FULL): $(PINS)
	$(PYTHON) tools/environment.py --venv $(VENV) --torch $(TORCH) \
		--extras dev,docs,notebooks,ray,sae,viz,tune
	@rm -f $(VENV)/core-* $(VENV)/full-* $(VENV)/torch-*
	@touch $(VENV)/torch-$(TORCH) $(CORE) $@
