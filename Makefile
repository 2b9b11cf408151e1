# Each target sets up what it needs in .venv, an environment for each version of Python; PYTHON
# picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
ENVIRONMENT := .venv/$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(ENVIRONMENT)/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/xla
# Without bytecode files each process compiles three thousand modules again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart quickstart-spinenet test test-full campaigns ray lint setup clean

quickstart: setup
	$(BIN)/python scripts/run_crnas.py --config=configs/quickstart.py --workdir=runs/quickstart

quickstart-spinenet: setup
	$(BIN)/python scripts/run_spinenet.py --config=configs/search_spinenet.py:quick --workdir=runs/quickstart_spinenet

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The campaigns of docs/reliability.md, each with three kills and one case of each kind. They train
# for minutes, so that well compiled programs save more time than their compilation takes; those
# with many programs and little work are compiled as `make test` does.
test-full: setup
	XLA_FLAGS=--xla_backend_optimization_level=3 $(BIN)/python -m pytest -m "campaign and not programs" -s
	$(BIN)/python -m pytest -m programs -n 2

# The whole campaigns: twenty kills each, in every phase of a run, and all cases.
campaigns: setup
	CAMPAIGN_KILLS=20 XLA_FLAGS=--xla_backend_optimization_level=3 $(BIN)/python -m pytest -m "campaign and not programs" -s
	$(BIN)/python -m pytest -m programs -n 2

# The campaign of searches on a Ray cluster, with the extra that it needs.
ray: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[ray]"
	$(BIN)/python -m pytest -m ray -s tests/campaigns/test_ray.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(ENVIRONMENT)/.ready

$(ENVIRONMENT)/.ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(ENVIRONMENT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .cache runs
