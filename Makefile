# make demo: install, train for two minutes on the bundled Shakespeare, show what the model learned
# make test: install, run the tests but for the long ones, minutes        make test-all: every test
# make lint: format, lint and type checks                                 make bench: comparisons
# make bench-quick: one short round of each, beside what was measured last; DATA=DIRECTORY holds what some of them need
# make test-scale: several processes on every objective, kills and restarts, tens of minutes
# make faults: hundreds of kills at random moments, full disks, damaged files, a failing object store, an hour
# make fuzz: tens of thousands of damaged inputs, more than an hour on two cores

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-scale fuzz faults lint format bench bench-quick clean

demo: $(INSTALLED)
	$(BIN)/selfsup train

test: $(DEV)
	$(PYTEST) -m "not long and not scale"

test-all: $(DEV)
	$(PYTEST) -m "not scale"

test-scale: $(DEV)
	$(BIN)/python -m pytest -m scale

fuzz: $(DEV)
	$(BIN)/python tests/fuzz/campaign.py

faults: $(DEV)
	$(BIN)/python tests/faults/faults.py

lint: $(DEV)
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff format src tests benchmarks scripts
	$(BIN)/ruff check --fix src tests benchmarks scripts

bench: $(DEV)
	$(BIN)/python -m benchmarks all

bench-quick: $(DEV)
	$(BIN)/python -m benchmarks quick $(DATA)

clean:
	rm -rf $(VENV) build

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "selfsup needs Python 3.11 or newer; this is $$($(PYTHON) --version). Set PYTHON=python3.11 or newer."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[plots]'
	touch $@

$(DEV): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
