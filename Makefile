# Two commands do all the set-up on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiled once all is there, on every core, and not by pip on one, which is half of its time; templates that are no Python
# are passed over.
PIP_FLAGS ?= --quiet --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: demo test quick test-slow site lint types install install-dev clean

demo: $(VENV)/.installed
	$(BIN)/trustcxr demo --out out/demo

# Three processes of one thread each: on two cores, since for a quarter of their time tests wait, for a disk, a browser, a
# process that is to be killed. A file of tests stays in one, with the runs that it shares. Compiled once, not by each.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile

# The examples in docstrings, which run.
EXAMPLES := src/trustcxr/attacks src/trustcxr/data src/trustcxr/explain

test: lint types quick

quick: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow"
	$(PYTEST) -n 0 --doctest-modules $(EXAMPLES)

# In the order of slow_cases.FIRST: else the file with the longest test, which has few, would come last and run alone.
# Four at once: these wait more. A test that hangs ends after half an hour: the longest takes minutes, and on a slow
# machine, beside three others on two cores, four times as many.
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -n 4 -m slow -o timeout=1800 --no-loadscope-reorder

# The documentation, into out/site; a warning is an error.
site: $(VENV)/.installed-dev
	$(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.installed-dev
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[weights]'
	$(COMPILE)
	@touch $@

# torchattacks pins an old requests, so it comes without its dependencies (all of which are here already).
$(VENV)/.installed-dev: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[dev]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps 'torchattacks>=3.5.1'
	$(COMPILE)
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) out .mypy_cache .ruff_cache .pytest_cache
