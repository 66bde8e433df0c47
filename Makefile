# Two commands do all the set-up on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compile once on every core, not by pip on one: that is half of its time. Templates that are no Python are passed over.
PIP_FLAGS ?= --quiet --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: demo test quick smoke test-all site lint types install install-dev clean

demo: $(VENV)/.installed
	@echo "TrustCXR is installed. A small study on synthetic X-rays begins; it takes about two minutes."
	$(BIN)/trustcxr demo --out out/demo

# Three processes of one thread each: on two cores, since tests wait for a disk, a browser or another process.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 3

# The examples in docstrings, which run.
EXAMPLES := $(addprefix src/trustcxr/,api.py plot.py attacks audit/run_audit.py certify data explain)

# Three sets of tests: quick ones, slow ones (`.ci/run` runs both on each push), and all.
test: lint types quick

quick: $(VENV)/.installed-dev
	$(PYTEST) --dist worksteal -m "not slow and not full"
	$(BIN)/python -m pytest -n 0 --doctest-modules $(EXAMPLES)

smoke: $(VENV)/.installed-dev
	$(PYTEST) --dist worksteal -m "slow and not full"

# A file stays in one process, with the runs that its tests share. A test that hangs ends after half an hour.
test-all: lint types site $(VENV)/.installed-dev
	$(PYTEST) --dist loadfile -o timeout=1800
	$(BIN)/python -m pytest -n 0 --doctest-modules $(EXAMPLES)

# The documentation, into out/site; a warning is an error.
site: $(VENV)/.installed-dev
	$(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_style.py

types: $(VENV)/.installed-dev
	$(BIN)/mypy

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(VENV)/bin/python
	@echo "Installing TrustCXR and PyTorch into $(VENV); this takes a few minutes and is done once."
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile --progress-bar on -e '.[weights]' | grep --line-buffered -E '^(Collecting|Downloading|Installing)' || true
	@$(BIN)/python -c 'import trustcxr' || { echo "The installation failed. Run: $(BIN)/python -m pip install -e ." >&2; exit 1; }
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
