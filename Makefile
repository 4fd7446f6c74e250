# `make train` and `make test` need nothing but Python >= 3.11 and pip: the first of them makes .venv.
#
# Which build of torch: whatever `pip install torch` of the pinned version means on this machine. To choose another,
# say how to ask for it:  make train TORCH="torch==2.13.0 --index-url <the index of your CUDA or CPU build>"
.DELETE_ON_ERROR:
.PHONY: help install train test test-extras lint gates format snapshots clean

TORCH ?= torch==2.13.0
# The first Python on the path that is new enough; or say which: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Tests run one process a core, each with one thread: two processes beat two threads on small tensors.
JOBS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
SIDE_BY_SIDE := -n $(JOBS) --dist worksteal
EXTRAS := rware,mamujoco,magent,butterfly,lle,hanabi,vmas,jax,mabrax,tensordict,video,wandb,sacred,ray,offline

help:
	@echo "make train        set up, then train the default preset: some minutes on two cores"
	@echo "make test         set up, then lint and the core tests"
	@echo "make test-extras  the tests that need an extra: outside environments among them (installs 2 GB)"
	@echo "make lint         ruff, basedpyright and the import layers;  make gates: the contract tests alone"
	@echo "make format       rewrite the code as ruff likes it;  make snapshots: rewrite the committed snapshots"
	@echo "make clean        remove .venv and every cache (runs/ stays)"

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "martes needs Python >= 3.11 and found none: install it, or make PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	@echo "installing $(firstword $(TORCH)) into .venv (the largest part: minutes the first time)"
	@$(PIP) install -c constraints.txt $(TORCH)
	@echo "installing martes[dev,mpe,lbf] as constraints.txt pins it"
	@$(PIP) install -c constraints.txt -e '.[dev,mpe,lbf]'
	@touch $@

.venv/.extras: .venv/.installed
	@echo "installing martes[$(EXTRAS)] as constraints.txt pins it"
	@$(PIP) install -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

train: .venv/.installed
	@$(BIN)/martes train

lint: .venv/.installed
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --diff .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports --no-logo

gates: .venv/.installed
	@$(PYTEST) -m "not extras" tests/contracts

test: lint
	@$(PYTEST) $(SIDE_BY_SIDE) -m "not extras"

test-extras: .venv/.extras
	@$(PYTEST) $(SIDE_BY_SIDE) -m extras

format: .venv/.installed
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

snapshots: .venv/.installed
	@$(PYTEST) -m "not extras" --update-snapshots

clean:
	@rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -not -path './runs/*' -exec rm -rf {} +
